"""The device's own view beside the driver's: what the QEMU that has it says by QMP, and every disagreement.

A ring alone does not tell a kick that was lost from a device that waits, nor an interrupt that was never raised
from one that did not arrive. QEMU keeps its own index into each ring, and up to which it has weighed an interrupt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

from uvirtio.backends.qemu import queries
from uvirtio.backends.qemu.queries import Answer, Qmp
from uvirtio.device import Device, Queue
from uvirtio.diag.causes import Cause
from uvirtio.errors import QemuFailed, UsageError
from uvirtio.host import addresses
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f
from uvirtio.spec import input as input_spec
from uvirtio.spec.status import Status, describe

_NAMES: Final = {"console": "virtio-serial", "vsock": "vhost-vsock", "fs": "vhost-user-fs"}
"""QEMU's names of device types that are not ``virtio-TYPE``."""

_UNATTENDED: Final = {(input_spec.TYPE, input_spec.EVENTQ)}
"""Queues that QEMU looks at when it has something for them, not when they are kicked."""

_STATUS_PREFIX: Final = "VIRTIO_CONFIG_S_"
_OTHER_NAMES: Final = {"IOMMU_PLATFORM": "ACCESS_PLATFORM", "NEEDS_RESET": "DEVICE_NEEDS_RESET"}
_WRAP: Final = 1 << 15


@dataclass(slots=True)
class View:
    """What QEMU says of one device, and where that is not what the driver knows."""

    qemu: str
    """The version."""
    path: str
    """The device in QEMU's object tree."""
    running: bool
    state: str
    """The machine's state: ``running``, ``paused`` ..."""
    status: Answer | None = None
    """Status and features; None where this version is not asked for them."""
    queues: list[Answer] = field(default_factory=list)
    """Each queue as QEMU has it, or as it has told vhost."""
    disagreements: list[Cause] = field(default_factory=list)
    """The worst first."""

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {
            "qemu": self.qemu,
            "path": self.path,
            "running": self.running,
            "state": self.state,
            "status": self.status,
            "queues": self.queues,
            "disagreements": [one.as_dict() for one in self.disagreements],
        }

    def __str__(self) -> str:
        asked = "status, features" if self.status is not None else "status not asked for in this version"
        vhost = sum("kick" in one for one in self.queues)
        count = len(self.queues)
        served = f"{count} queue{'s' * (count != 1)}" + (f", {vhost} by vhost without indices" if vhost else "")
        return f"QEMU {self.qemu}, {self.path}: {asked}, {served}"


class Beside:
    """A QEMU that is asked for its view of the device."""

    def __init__(
        self,
        qmp: Qmp | None,
        which: str = "",
        *,
        aside: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Note whom to ask; nothing is sent.

        Args:
            qmp: The QEMU; None: the one that this process runs for a ``qemu:`` address.
            which: The device there, by its id or its path in the object tree; empty: it is found by its address.
            aside: Keeps what is read of the device out of a record, which a replay without this QEMU has to match.
        """
        self._qmp = qmp
        self._aside = aside
        self._which = which

    def check(self) -> None:
        """Check before the device is opened that this QEMU tells of its devices.

        Raises:
            QemuFailed: It does not.
        """
        if self._qmp is not None:
            queries.devices(self._qmp)

    def look(self, device: Device, *, awaited: bool) -> View:
        """Ask for the view of a started device, and compare.

        Args:
            device: The device, which has queues.
            awaited: Whether buffers that the device has are overdue.

        Raises:
            QemuFailed: QEMU refuses, or sends what is not QMP.
            DeviceGone: QEMU has ended.
            DeviceTimeout: QEMU does not respond.
            UsageError: Which of QEMU's devices this is cannot be told.
        """
        with self._aside():
            return self._view(device, awaited)

    def _view(self, device: Device, awaited: bool) -> View:
        qmp = self._ask(device)
        path = self.find(device)
        running, state = queries.running(qmp)
        version = ".".join(map(str, queries.version(qmp)))
        view = View(version, path, running, state, queries.status(qmp, path))
        found = self._compare(device, view, awaited)
        if found:  # once more: the device may have gone on between two questions
            view.queues.clear()
            found = self._compare(device, view, awaited)
        if awaited:
            found += self._look_into_rings(device, view)
        view.disagreements = sorted(found, key=lambda one: _WORST.index(one.id))
        return view

    def _compare(self, device: Device, view: View, awaited: bool) -> list[Cause]:
        qmp, path = self._ask(device), view.path
        found = [] if view.running else [_paused(view)]
        for queue in device.queues.values():
            told = queries.vhost_queue(qmp, path, queue.index)
            if told is not None:
                view.queues.append({"queue-index": queue.index, **told})
                continue
            told = queries.queue(qmp, path, queue.index)
            view.queues.append(told)
            found += _of_queue(device, queue, told, awaited)
        return [*found, *_lost_interrupts(device, view.queues), *_of_status(device, view.status)]

    def _look_into_rings(self, device: Device, view: View) -> Iterator[Cause]:
        """What QEMU reads in the rings that have overdue buffers. Last: that makes it look at avail.idx."""
        for told in view.queues:
            queue = device.queues[told["queue-index"]]
            if queue.ring.kind != "split" or not queue.ring.in_flight or not told.get("vring-desc"):
                continue
            told["element"] = element = queries.element(self._ask(device), view.path, queue.index)
            seen = element.get("avail") if element is not None else None
            read, mine = seen.get("idx") if isinstance(seen, dict) else None, queue.ring.words()["avail.idx"]
            if read is not None and read != mine:
                yield Cause(
                    "ring-memory",
                    f"{queue.name}: QEMU reads another avail.idx in the ring than the driver has written",
                    (f"driver {mine}, QEMU reads {read}",),
                    ("is the address translated as negotiated (ACCESS_PLATFORM), is it this machine's memory?",),
                )

    def _ask(self, device: Device) -> Qmp:
        if self._qmp is not None:
            return self._qmp
        if device.guest is not None:
            return device.guest.qmp
        raise UsageError(
            "there is no QEMU of this process's to ask",
            seen=device.address,
            expected="a qemu: address with --qmp auto, or --qmp SOCK",
            remedy="give QEMU -qmp unix:SOCK,server=on,wait=off, and name SOCK",
        )

    # --- which device it is -----------------------------------------------------------------------------------

    def find(self, device: Device) -> str:
        """The path of the device in QEMU's object tree.

        Raises:
            UsageError: It cannot be told; ``seen`` has those that it may be.
        """
        qmp = self._ask(device)
        listed = queries.devices(qmp)
        paths = [str(one["path"]) for one in listed]
        named = self._which or (device.guest.id if device.guest is not None else "")
        if named:
            return _only([path for path in paths if path == named or _ident(path) == named], paths, named)
        name = _NAMES.get(device.type, f"virtio-{device.type}")
        fitting = [str(one["path"]) for one in listed if one["name"] == name] or paths
        if device.transport.backend.bus != "pci":
            return _only(fitting, fitting, device.address)
        return _only(_at(qmp, device.address, fitting), fitting, device.address)


def _only(found: list[str], of: list[str], named: str) -> str:
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"which of QEMU's devices {named} is cannot be told" if found or of else "this QEMU has no virtio device",
        seen=", ".join(sorted(found or of)) or "none",
        expected="one device with this id or PCI address",
        remedy="name it by its id or path: --qmp SOCK#ID",
    )


def _ident(path: str) -> str:
    """The id of the device: ``/machine/peripheral/ID/virtio-backend``, or without the last part (virtio-mmio)."""
    parts = path.split("/")
    return parts[3] if parts[:3] == ["", "machine", "peripheral"] and len(parts) > 3 else ""


def _at(qmp: Qmp, address: str, paths: list[str]) -> list[str]:
    """Those of the paths that are the PCI function at this address, as its guest numbers it."""
    try:
        parsed = addresses.parse(address)
    except UsageError:
        return paths
    if parsed.family != "pci":
        return paths
    _, bus, place = parsed.name.split(":")
    slot, function = (int(part, 16) for part in place.split("."))
    here = [
        one
        for one in queries.functions(qmp)
        if (one["bus"], one["slot"], one["function"]) == (int(bus, 16), slot, function)
    ]
    idents = {one["qdev_id"] for one in here}
    if idents - {""}:
        return [path for path in paths if _ident(path) in idents]
    if not here:
        return []
    # Devices without an id: by their place on their bus, whose number their objects do not tell.
    unnamed = [path for path in paths if not _ident(path)]
    return [path for path in unnamed if _place(qmp, path.removesuffix("/virtio-backend")) == (slot, function)]


def _place(qmp: Qmp, path: str) -> tuple[int, int] | None:
    try:
        told = qmp("qom-get", path=path, property="addr")
    except QemuFailed:
        return None
    if isinstance(told, int):
        return told >> 3, told & 7
    try:
        slot, _, function = str(told).partition(".")
        return int(slot, 16), int(function or "0", 16)
    except ValueError:
        return None


# --- the comparison ---------------------------------------------------------------------------------------------

_WORST: Final = (
    "machine-stopped",
    "queue-differs",
    "ring-memory",
    "lost-kick",
    "lost-interrupt",
    "interrupt-not-raised",
    "index-differs",
    "device-broken",
    "status-differs",
    "features-differ",
)


def _paused(view: View) -> Cause:
    return Cause(
        "machine-stopped",
        f"QEMU does not run: the machine is {view.state}",
        (f"query-status: {view.state}",),
        ("QMP's cont lets it run",),
    )


def _of_queue(device: Device, queue: Queue, told: Answer, awaited: bool) -> Iterator[Cause]:
    """Where QEMU and the driver do not agree about one queue that QEMU serves."""
    ring = queue.ring
    mine = dict(zip(("vring-desc", "vring-avail", "vring-used"), ring.addresses, strict=True))
    mine["vring-num"] = ring.size
    odd = {name: (value, told.get(name)) for name, value in mine.items() if told.get(name) != value}
    if odd:
        yield Cause(
            "queue-differs",
            f"{queue.name}: QEMU has another ring than the driver gave: {', '.join(odd)}",
            tuple(f"{name}: driver {value:#x}, QEMU {seen}" for name, (value, seen) in odd.items()),
            ("do the queue registers keep what is written, and was the device reset meanwhile?",),
        )
        return
    words = ring.words()
    split = ring.kind == "split"
    mask = 0xFFFF if split else _WRAP - 1
    avail, used = (words["avail.idx"], words["used.idx"]) if split else (words["next avail"], words["next used"])
    avail, used = avail & mask, used & mask
    taken, looked, returned = (_number(told, name) for name in ("last-avail-idx", "shadow-avail-idx", "used-idx"))
    shown = (
        f"{queue.name}: driver: avail {avail}, used {used}, {queue.kicks} kicks",
        f"{queue.name}: QEMU: last-avail-idx {taken}, shadow-avail-idx {looked}, used-idx {returned}",
    )
    if taken is not None and returned is not None:
        ahead, behind = (taken - avail) & mask, (returned - used) & mask
        if split and 0 < ahead < mask // 2:
            yield _index(queue, "QEMU has taken more chains than were made available", shown)
        elif split and behind:
            yield _index(queue, "used.idx in memory is not the one that QEMU has written", shown)
    seen = looked if split and looked is not None else taken
    unattended = (device.device_id, queue.index) in _UNATTENDED
    if awaited and not unattended and ring.in_flight and seen != avail and queue.kicked == ring.published:
        yield Cause(
            "lost-kick",
            f"{queue.name}: the kick was lost: the driver sent it, and QEMU has not looked at the ring since",
            shown,
            ("does the doorbell reach the device: BAR, queue_notify_off, notify_off_multiplier, ioeventfd?",),
        )


def _number(told: Answer, name: str) -> int | None:
    value = told.get(name)
    return value if isinstance(value, int) else None


def _index(queue: Queue, what: str, shown: tuple[str, ...]) -> Cause:
    return Cause("index-differs", f"{queue.name}: {what}", shown, ("who else writes to this ring or device?",))


def _lost_interrupts(device: Device, told: list[Answer]) -> Iterator[Cause]:
    """Interrupts that the driver missed: whether QEMU has raised them, by its ``signalled-used``."""
    counters, mode = device.counters, device.transport.interrupt_mode
    done = {queue.index: queue for queue in device.queues.values() if queue.completions}
    lost_all, missed = bool(done) and not counters.interrupts_taken, counters.missed_interrupts
    if mode is InterruptMode.POLLING or not (lost_all or missed):
        return
    signalled: list[str] = []
    silent: list[str] = []
    shown = []
    for one in told:
        queue = done.get(int(one.get("queue-index", -1)))
        if queue is None or "used-idx" not in one:
            continue
        raised = bool(one.get("signalled-used-valid")) and one.get("signalled-used") == one["used-idx"]
        (signalled if raised else silent).append(queue.name)
        shown.append(
            f"{queue.name}: QEMU: used-idx {one['used-idx']}, signalled-used {one.get('signalled-used')}"
            f"{'' if one.get('signalled-used-valid') else ' (not valid)'}; driver: {queue.completions} completions"
        )
    came = f"{counters.interrupts_taken} interrupts came ({mode.value}), {missed} were missed"
    if signalled:
        yield Cause(
            "lost-interrupt",
            f"{', '.join(signalled)}: {'the' if lost_all else 'an'} interrupt was lost: QEMU returned the buffers "
            "and raised it, and it did not arrive",
            (came, *shown),
            ("is the vector masked, MSI-X on, bus mastering on; does the message address reach this process?",),
        )
    elif silent:
        yield Cause(
            "interrupt-not-raised",
            f"{', '.join(silent)}: QEMU returned the buffers and has raised no interrupt for them",
            (came, *shown),
            ("what do used_event, or avail.flags, ask for (2.7.7.2)?",),
        )


def _of_status(device: Device, told: Answer | None) -> Iterator[Cause]:
    """Where QEMU and the driver do not agree about the device as a whole."""
    if told is None:
        return
    mine = Status(device.transport.status())
    names = _names(told.get("status"), "statuses", _STATUS_PREFIX)
    theirs = Status(sum(bit for bit in Status if bit.name in names))
    if told.get("broken"):
        yield Cause(
            "device-broken",
            "QEMU has marked the device as broken: it met what it cannot go on with",
            (f"device_status reads {describe(mine)}",),
            ("QEMU's stderr says what (virtio: ...)",),
        )
    if mine != theirs:
        yield Cause(
            "status-differs",
            f"device_status reads {describe(mine)}, and QEMU has {describe(theirs)}",
            (f"QEMU: {', '.join(sorted(names)) or 'none'}",),
            ("which device does this path belong to?",),
        )
    yield from _of_features(device, told.get("guest-features"))


def _of_features(device: Device, told: Any) -> Iterator[Cause]:
    if not isinstance(told, dict):
        return
    unknown = told.get("unknown-dev-features")
    theirs = unknown if isinstance(unknown, int) else 0
    bits = [
        f.numbered(device.type, name)
        for member in ("transports", "dev-features")
        for name in _names(told, member, f"VIRTIO_{device.type.upper()}_F_")
    ]
    theirs |= f.mask(*(bit for bit in bits if bit is not None))
    mine = device.features & (1 << 64) - 1
    # A bit for which QEMU has a name of its own may be any that the driver alone seems to have.
    missing = 0 if None in bits else mine & ~theirs
    if missing or theirs & ~mine:
        only = [(missing, "the driver alone"), (theirs & ~mine, "QEMU alone")]
        shown = tuple(
            f"{who}: {', '.join(bit.name for bit in f.names(device.type, word))}" for word, who in only if word
        )
        yield Cause(
            "features-differ",
            "QEMU has noted other features as accepted than the driver wrote",
            shown,
            ("was the device reset or started again meanwhile, or does another driver use it?",),
        )


def _names(told: Any, member: str, *prefixes: str) -> set[str]:
    """The names before the explanations, as in ``VIRTIO_F_VERSION_1: Device compliant ...``."""
    lines = told.get(member) if isinstance(told, dict) else None
    found = set()
    for line in lines if isinstance(lines, list) else ():
        name = str(line).partition(":")[0]
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        found.add(_OTHER_NAMES.get(name, name))
    return found
