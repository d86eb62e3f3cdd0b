"""A minimal data path test for each device type that has a driver: the device takes and returns buffers."""

from __future__ import annotations

from typing import Any, Protocol

from uvirtio.device import Device, Observer, QueueSpec
from uvirtio.device.evidence import of_queue
from uvirtio.diag.causes import STALLS
from uvirtio.diag.fs import FsPath
from uvirtio.diag.net import NetPath
from uvirtio.diag.outcome import Idle, PathResult, Witness, supplied_disk
from uvirtio.diag.scsi import ScsiPath
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.input import Input
from uvirtio.drivers.mem import Mem
from uvirtio.drivers.rng import Rng
from uvirtio.errors import BlkRefusal
from uvirtio.spec import balloon as balloon_spec
from uvirtio.spec import blk as blk_spec
from uvirtio.spec import fs as fs_spec
from uvirtio.spec import input as input_spec
from uvirtio.spec import mem as mem_spec
from uvirtio.spec import net as net_spec
from uvirtio.spec import rng as rng_spec
from uvirtio.spec import scsi as scsi_spec

_HostEvent = dict[str, Any]
"""An InputEvent of QEMU's QMP schema."""

_QUEUES_MAX = 16


class DataPath(Protocol):
    """The data path test of one device type."""

    def start(self, observe: Observer) -> None:
        """Bring the device up to DRIVER_OK (3.1.1).

        Args:
            observe: Called with the name of each step, as for ``Device.start``.
        """
        ...

    def exercise(self) -> PathResult:
        """Exchange buffers with the device."""
        ...

    def change_configuration(self) -> PathResult | None:
        """Have the host change the configuration, and read the change; None where that cannot be triggered."""
        ...

    def serve(self, seconds: float) -> int:
        """Answer what the device asks for, without traffic of its own.

        Args:
            seconds: How long; it may return earlier.

        Returns:
            How many messages the device sent by itself.
        """
        ...


def for_device(device: Device) -> DataPath:
    """The data path test of this device's type; for a type without a driver, one that only starts its queues."""
    guest = device.guest
    witness = guest.qmp if guest is not None else None
    ident = guest.id if guest is not None else None
    if device.device_id == rng_spec.TYPE:
        return _RngPath(device)
    if device.device_id == balloon_spec.TYPE:
        return _BalloonPath(device, witness)
    if device.device_id == input_spec.TYPE:
        return _InputPath(device, witness, ident)
    if device.device_id == mem_spec.TYPE:
        return _MemPath(device, witness, ident)
    if device.device_id == blk_spec.TYPE:
        return _BlkPath(device, witness, ident)
    if device.device_id == net_spec.TYPE:
        return NetPath(device, witness, ident)
    if device.device_id == fs_spec.TYPE:
        return FsPath(device)
    if device.device_id == scsi_spec.TYPE:
        return ScsiPath(device, witness, ident)
    return _BarePath(device)


class _BarePath(Idle):
    """Queues without traffic, for device types without a driver."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def start(self, observe: Observer) -> None:
        """Start the queues of the device, without a driver."""
        count = min(self._device.transport.num_queues, _QUEUES_MAX)
        queues = [QueueSpec(index, f"queue {index}", size=8, required=False) for index in range(count)]
        self._device.start(wanted=0, queues=queues, observe=observe)

    def exercise(self) -> PathResult:
        """Report that no buffers were exchanged."""
        return PathResult(f"no driver for {self._device.type}, so no buffers were exchanged", skipped=True)

    def change_configuration(self) -> PathResult | None:
        """Return None: there is no driver to read the configuration."""
        return None


class _RngPath(Idle):
    """Reads random bytes from an entropy device."""

    _COUNT = 64

    def __init__(self, device: Device) -> None:
        self._device = device

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._rng = Rng(self._device, health=False, observe=observe)  # its bytes are checked here

    def exercise(self) -> PathResult:
        """Read random bytes twice, and compare them."""
        first, second = self._rng.read(self._COUNT), self._rng.read(self._COUNT)
        odd = ""
        if first == second or len(set(first)) == 1:
            odd = "these bytes are not random: the device writes nothing, or the host's source is broken"
        return PathResult(f"2 x {self._COUNT} bytes, beginning {first[:8].hex(' ')}", odd)

    def change_configuration(self) -> PathResult | None:
        """Return None: the device has no configuration (5.4.4)."""
        return None  # 5.4.4: it has no configuration


class _BalloonPath:
    """Inflates and deflates a balloon by one page."""

    def __init__(self, device: Device, witness: Witness | None) -> None:
        self._device = device
        self._witness = witness

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._balloon = Balloon(self._device, observe=observe)

    def exercise(self) -> PathResult:
        """Inflate and deflate one page, twice: the second round needs a kick that the device asks for."""
        seen = []
        for _ in range(2):
            self._balloon.inflate(1)
            seen.append(self._balloon.actual)
            # The page goes back also where the host asks for pages: diag does not leave it, and close() would not.
            self._balloon.deflate(1, force=True)
        odd = "" if seen == [1, 1] else f"actual reads {seen[0]} after 1 was written (5.5.4)"
        return PathResult("1 page inflated, acknowledged, deflated, acknowledged, twice", odd)

    def serve(self, seconds: float) -> int:
        """Answer requests for statistics and hints; the target of the host is not followed."""
        self._balloon.hold(seconds)
        return 0

    def change_configuration(self) -> PathResult | None:
        """Have the host change its target (num_pages), and change it back."""
        if self._witness is None:
            return None
        device, balloon = self._device, self._balloon
        before, seen = balloon.num_pages, device.counters.config_changes
        size = int(self._witness("query-balloon")["actual"])
        self._witness("balloon", value=size - (1 << 20))
        told = device.wait(
            lambda: device.counters.config_changes != seen, timeout=device.timeout, what="the change", owed=False
        )
        after = balloon.num_pages
        self._witness("balloon", value=size)
        detail = f"the host changed num_pages from {before} to {after}"
        if after == before:
            return PathResult(detail, "the host's change does not show in the configuration")
        return PathResult(detail, "" if told else "the configuration changed without a notification (4.1.5.4)")


class _MemPath(Idle):
    """Queries a memory device and plugs nothing, since plugged memory would outlive the diagnosis."""

    def __init__(self, device: Device, witness: Witness | None, ident: str | None) -> None:
        self._device = device
        self._witness = witness
        self._path = f"/machine/peripheral/{ident}"

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._mem = Mem(self._device, observe=observe)

    def exercise(self) -> PathResult:
        """Query the state of the first block."""
        config = self._mem.config()
        about = f"{config.plugged_blocks} of {config.blocks} blocks of {config.block_size} bytes are plugged"
        odd = "; ".join(self._mem.findings)
        if not config.usable_blocks:
            return PathResult(f"{about}; no block is usable, so none can be queried", odd, skipped=True)
        state = self._mem.state(config.addr, 1)
        return PathResult(f"{about}; the state of the first: {state.name}", odd)

    def change_configuration(self) -> PathResult | None:
        """Have the host change requested_size, and change it back."""
        if self._witness is None:
            return None
        device, mem = self._device, self._mem
        config, seen = mem.config(), device.counters.config_changes
        other = config.block_size if config.requested_size != config.block_size else 2 * config.block_size
        if other > config.region_size:
            return None
        self._request(other)
        told = device.wait(
            lambda: device.counters.config_changes != seen, timeout=device.timeout, what="the change", owed=False
        )
        after = mem.config().requested_size
        self._request(config.requested_size)
        detail = f"the host changed requested_size from {config.requested_size} to {after}"
        if after != other:
            return PathResult(detail, "the host's change does not show in the configuration")
        return PathResult(detail, "" if told else "the configuration changed without a notification (4.1.5.4)")

    def _request(self, size: int) -> None:
        assert self._witness is not None
        self._witness("qom-set", path=self._path, property="requested-size", value=size)


def _rel(value: int) -> _HostEvent:
    return {"type": "rel", "data": {"axis": "x", "value": value}}


def _abs(value: int) -> _HostEvent:
    return {"type": "abs", "data": {"axis": "x", "value": value}}


def _contact(kind: str, ident: int) -> _HostEvent:
    data = {"type": kind, "slot": 0, "tracking-id": ident, "axis": "x", "value": 0}
    return {"type": "mtt", "data": data}


def _key(down: bool) -> _HostEvent:
    return {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": "a"}}}


def _button(down: bool) -> _HostEvent:
    return {"type": "btn", "data": {"down": down, "button": "left"}}


_KEY_A, _BTN_LEFT = 30, 0x110

_HOST_EVENTS: tuple[tuple[int, int, _HostEvent, _HostEvent | None], ...] = (
    # The first code that the device has decides: QEMU gives an event to the first model that takes its type.
    (input_spec.EV_REL, 0, _rel(1), None),
    (input_spec.EV_ABS, 0, _abs(1), None),
    (input_spec.EV_ABS, input_spec.ABS_MT_SLOT, _contact("begin", 0), _contact("end", -1)),
    (input_spec.EV_KEY, _KEY_A, _key(True), _key(False)),
    (input_spec.EV_KEY, _BTN_LEFT, _button(True), _button(False)),
)
"""What a host can send to a device with this type and code: QMP input-send-event; and the event that undoes it."""

_PASSED_THROUGH = ("virtio-input-host", "vhost-user-input")
"""Models that forward another device's events, and get none from QMP."""


class _InputPath:
    """Describes an input device, and has the host send it an event."""

    def __init__(self, device: Device, witness: Witness | None, ident: str | None) -> None:
        self._device = device
        self._witness = witness
        self._path = f"/machine/peripheral/{ident}"

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._input = Input(self._device, observe=observe)

    def exercise(self) -> PathResult:
        """Read the description, switch an LED off, and have the host send an event."""
        told = self._input.describe()
        about = f"{told.name!r}, event types {sorted(told.events)}"
        if told.slots:
            about += f", {told.slots} contacts"
        leds = sorted(told.events.get(input_spec.EV_LED, ()))
        odd = "; ".join(self._input.findings)
        if leds:
            for _ in range(2):  # the second one needs a kick that the device asks for
                self._input.set_led(leds[0], False)
                if not self._input.flush(timeout=self._device.timeout):
                    return PathResult(about, *self._silent(odd))
            about += "; it acknowledged an LED"
        sent = self._host_event()
        if self._witness is None or sent is None:
            return PathResult(
                f"{about}; event queue filled; no key can be pressed from here", odd, skipped=not (odd or leds)
            )
        event, back = sent
        self._witness("input-send-event", events=[event])
        found = self._input.read(timeout=self._device.timeout)
        if back is not None:
            self._witness("input-send-event", events=[back])
        if not found:
            return PathResult(about, "the host sent an event and none arrived")
        return PathResult(f"{about}; the host sent an event, {len(found)} arrived, first {found[0]}", odd)

    def _silent(self, odd: str) -> tuple[str, str]:
        """What is odd about a status queue that keeps its buffers, and the cause."""
        found = of_queue(self._device.queues[input_spec.STATUSQ])
        what = f"it does not serve its status queue (5.8.6): {found}"
        ident = STALLS[found.stall][0] if found is not None and found.stall in STALLS else "data-path"
        return f"{odd}; " * bool(odd) + what, ident

    def _host_event(self) -> tuple[_HostEvent, _HostEvent | None] | None:
        """An event of a kind that this device has, and one that undoes it; None where the host can send none."""
        if self._witness is None:
            return None
        model = str(self._witness("qom-get", path=self._path, property="type"))
        if model.startswith(_PASSED_THROUGH):
            return None
        kinds = self._input.describe().events
        for kind, code, event, back in _HOST_EVENTS:
            if code in kinds.get(kind, ()):
                return event, back
        return None

    def serve(self, seconds: float) -> int:
        """Take events, and give the device its buffers back."""
        return len(self._input.read(timeout=seconds))

    def change_configuration(self) -> PathResult | None:
        """Return None: the host cannot change the configuration."""
        return None


class _BlkPath(Idle):
    """Reads one sector and the serial of a block device, and writes nothing."""

    _GROWTH = 1 << 20

    def __init__(self, device: Device, witness: Witness | None, ident: str | None) -> None:
        self._device = device
        self._witness = witness
        self._ident = ident

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._blk = Blk(self._device, observe=observe)

    def exercise(self) -> PathResult:
        """Read sector 0 and the serial."""
        blk = self._blk
        about = f"{blk.capacity} sectors"
        if not blk.capacity:
            return PathResult(f"{about}: there is nothing to read", skipped=True)
        odd = []
        try:
            first = blk.read(0, 1)
            about += f"; sector 0 begins {first[:8].hex(' ')}"
        except BlkRefusal as error:
            odd.append(f"sector 0 cannot be read: {error.seen}")
        try:
            name = blk.identify()
            about += f"; serial: {name or 'none'}"
        except BlkRefusal as error:
            about += f"; serial: none ({error.seen})"  # a device is free to have none
        cause = "io-error" if odd else "used-len"
        odd += blk.findings
        return PathResult(about, "; ".join(odd), cause)

    def change_configuration(self) -> PathResult | None:
        """Have the host change the capacity, and change it back."""
        disk = self._disk()
        if disk is None:
            return None
        assert self._witness is not None
        device, blk = self._device, self._blk
        before, seen = blk.refresh().capacity, device.counters.config_changes
        size = int(disk["inserted"]["image"]["virtual-size"])
        self._witness("block_resize", device=disk["device"], size=size + self._GROWTH)
        told = device.wait(
            lambda: device.counters.config_changes != seen, timeout=device.timeout, what="the change", owed=False
        )
        after = blk.refresh().capacity
        self._witness("block_resize", device=disk["device"], size=size)
        detail = f"the host changed the capacity from {before} to {after} sectors"
        if after == before:
            return PathResult(detail, "the host's change does not show in the configuration")
        return PathResult(detail, "" if told else "the configuration changed without a notification (4.1.5.4)")

    def _disk(self) -> dict[str, Any] | None:
        return supplied_disk(self._witness, self._ident)
