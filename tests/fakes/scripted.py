"""A virtio-pci device made of Python: a ``PciFunction`` that records, checks, and lies on demand.

    device = ScriptedDevice(Rng(), vectors=2, silent=True)
    ...hand it to PciModern or to anything else that takes a PciFunction...
    device.assert_obedient()        # no rule of the standard was broken, no guard byte was touched

Faults are keyword arguments (:class:`Faults`); lies about a ring are in ``device.lies``. By default the device
answers inside the doorbell write; with ``auto=False`` it waits for ``step()`` or ``run()``.

Every access is in ``device.log``; broken rules are in ``device.violations``, each with its requirement's id.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tests.fakes.scripted_memory import Memory, ScriptedBlock, ScriptedDma
from tests.fakes.scripted_packed import PackedDeviceRing
from tests.fakes.scripted_ring import Chain, DeviceRing, DriverViolation, Lies
from uvirtio.errors import CapabilityError, Closed, OperationFailed
from uvirtio.interfaces.values import BarInfo
from uvirtio.spec import balloon, ids, input, pci, ring
from uvirtio.spec import features as f
from uvirtio.spec.layout import Field
from uvirtio.spec.status import Status

__all__ = [
    "Access",
    "Balloon",
    "Chain",
    "DeviceRing",
    "DriverViolation",
    "Faults",
    "Input",
    "Lies",
    "Memory",
    "Model",
    "Rng",
    "ScriptedBlock",
    "ScriptedDevice",
    "ScriptedDma",
    "ScriptedEvent",
]

BAR = 4
COMMON_AT, ISR_AT, DEVICE_AT, NOTIFY_AT = 0x0000, 0x1000, 0x2000, 0x3000
BAR_SIZE = 0x4000
CAPABILITIES_AT = 0x40

RING_FEATURES = f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX)


class Access(NamedTuple):
    """One thing that was done to the device; ``op`` is ``read``, ``write`` or ``call``."""

    op: str
    region: str
    offset: int
    width: int
    value: int


@dataclass
class Faults:
    """What is wrong with the device. Everything is off by default."""

    reset_reads: int = 0
    """Status reads after a reset that do not show 0 yet; -1: it never does."""
    reset_seconds: float = 0.0
    refuse_features: bool = False
    """FEATURES_OK does not stick."""
    features_later: int | None = None
    """What is offered after the first reading of all four words, instead of what was."""
    status_or: int = 0
    """Bits that every status read has on top (never while a reset completes)."""
    needs_reset_at: str | None = None
    """``driver_ok`` or ``kick``: when DEVICE_NEEDS_RESET goes up."""
    generation_bumps: int = 0
    """So many reads of config_generation each find it changed; -1: all do."""
    num_queues: int | None = None
    queue_size: dict[int, int] = field(default_factory=dict)
    """What queue_size reads before it is written, by queue; 0: there is no such queue."""
    queue_size_stuck: bool = False
    """queue_size does not take what is written."""
    address_mask: int = (1 << 64) - 1
    """Bits of queue addresses that the device keeps."""
    enabled_before: bool = False
    """queue_enable reads 1 before it was written."""
    never_enables: bool = False
    """queue_enable reads 0 after it was written."""
    no_vectors: frozenset[int] | set[int] = frozenset()
    """Vectors that read back as NO_VECTOR."""
    msix_fails: bool = False
    """Turning MSI-X on raises OperationFailed."""
    silent: bool = False
    """Kicks are heard and nothing is done."""
    silent_queues: frozenset[int] | set[int] = frozenset()
    lose_interrupts: bool = False
    """Completions without their interrupts."""
    queue_reset_reads: int = 0
    """Reads of queue_reset that show 1 before it is done; -1: for ever."""


class ScriptedEvent:
    """An ``Event`` on a real eventfd. ``level``: INTx, masked by ``take()`` until ``rearm()``."""

    def __init__(self, *, level: bool = False, asserted: Callable[[], bool] = lambda: False) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._level = level
        self._asserted = asserted
        self._masked = False
        self.fired = 0
        self.stuck = False
        self.closed = False

    def fire(self) -> None:
        if self.closed or self._masked:
            return
        self.fired += 1
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        if self.closed:
            raise Closed("this event is closed")
        return self._fd

    def take(self) -> bool:
        try:
            os.eventfd_read(self.fileno())
        except BlockingIOError:
            return False
        self._masked = self._level
        if self.stuck:
            self.fire()
        return True

    def rearm(self) -> None:
        if self._masked:
            self._masked = False
            if self._asserted() or self.stuck:
                self.fire()

    def storm(self, on: bool) -> None:
        """Fire again as soon as it was taken, or no more."""
        self.stuck = on
        if on:
            self.fire()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._fd)


class Window:
    """``Registers`` over a region of the device; refuses what real registers refuse."""

    def __init__(
        self,
        length: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> None:
        self.length = length
        self._read, self._write = read, write
        self.closed = False

    def _check(self, offset: int, width: int) -> None:
        if self.closed:
            raise Closed("these registers are closed")
        if offset < 0 or offset + width > self.length or offset % width:
            raise ValueError(f"a {width}-byte access at {offset:#x} of {self.length:#x}")

    def _get(self, offset: int, width: int) -> int:
        self._check(offset, width)
        return self._read(offset, width)

    def _put(self, offset: int, width: int, value: int) -> None:
        self._check(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise ValueError(f"{value:#x} does not fit {width} bytes")
        self._write(offset, width, value)

    def read8(self, offset: int) -> int:
        return self._get(offset, 1)

    def read16(self, offset: int) -> int:
        return self._get(offset, 2)

    def read32(self, offset: int) -> int:
        return self._get(offset, 4)

    def write8(self, offset: int, value: int) -> None:
        self._put(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        self._put(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        self._put(offset, 4, value)

    def close(self) -> None:
        self.closed = True


_FEATURE_OF = {
    "queue_notif_config_data": f.NOTIF_CONFIG_DATA,
    "queue_reset": f.RING_RESET,
    "admin_queue_index": f.ADMIN_VQ,
    "admin_queue_num": f.ADMIN_VQ,
}


class Admin:
    """What is behind the administration queues of a device; see ``scripted_admin``."""

    queue_sizes: Sequence[int] = ()
    first = 0

    def reset(self) -> None: ...
    def handle(self, queue: int, chain: Chain) -> int | None:
        raise NotImplementedError


class QueueState:
    """The registers of one queue, and its ring once it is enabled."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.size_max = size
        self.vector = pci.NO_VECTOR
        self.enable = 0
        self.reset_left = 0
        self.addresses = {"queue_desc": 0, "queue_driver": 0, "queue_device": 0}
        self.ring: DeviceRing | PackedDeviceRing | None = None


# --- device types -------------------------------------------------------------------------------------------


class Model:
    """What makes the device an rng, a balloon, an input: features, configuration, and what a kick does."""

    device_id = 0
    features = 0
    queue_sizes: Sequence[int] = (64,)
    fields: Mapping[str, Field] = {}
    """The fields of the configuration, by name."""

    def __init__(self) -> None:
        self.config = bytearray()
        self.device: ScriptedDevice

    def reset(self) -> None:
        """The device was reset."""

    def queue_reset(self, queue: int) -> None:
        """One queue was reset."""

    def driver_ok(self) -> None:
        """The driver set DRIVER_OK."""

    def memory_freed(self, block: ScriptedBlock) -> None:
        """The driver frees memory while the device runs."""

    def handle(self, queue: int, chain: Chain) -> int | None:
        """A chain came; the bytes written to it, or None to keep it for later (``device.complete``)."""
        return 0

    def read_config(self, offset: int, width: int) -> int:
        return int.from_bytes(self.config[offset : offset + width], "little")

    def write_config(self, offset: int, width: int, value: int) -> None:
        self.config[offset : offset + width] = value.to_bytes(width, "little")

    def put(self, name: str, value: int, *, interrupt: bool | None = None) -> None:
        """Change a field; with ``interrupt`` as a device does it, otherwise just so."""
        field = self.fields[name]
        data = value.to_bytes(field.width, "little")
        if interrupt is None:
            self.config[field.offset : field.end] = data
        else:
            self.device.change_config(field.offset, data, interrupt=interrupt)

    def get(self, name: str) -> int:
        field = self.fields[name]
        return int.from_bytes(self.config[field.offset : field.end], "little")


class Rng(Model):
    """An entropy source (5.4) whose bytes are known: 0, 1, 2, ... from ``source``."""

    device_id = 4

    def __init__(self, *, at_most: int | None = None) -> None:
        super().__init__()
        self.at_most = at_most
        self.given = bytearray()

    def source(self, count: int) -> bytes:
        first = len(self.given)
        return bytes((first + number) & 0xFF for number in range(count))

    def handle(self, queue: int, chain: Chain) -> int | None:
        self.device.check("RNG-01", not chain.readable, "a readable element on the request queue")
        count = chain.room if self.at_most is None else min(chain.room, self.at_most)
        data = self.source(count)
        self.given += data
        return chain.fill(data)


Numbering = Literal["standard", "offered", "negotiated"]
"""How a balloon numbers its optional queues: as 5.5.2 has it, or without gaps, by the features that it offers, or
by those that were negotiated."""


class Balloon(Model):
    """The traditional balloon (5.5): knows which frames it was given.

    ``shows``: queues that it shows at least, whatever they are good for.
    """

    device_id = balloon.TYPE

    def __init__(
        self,
        *,
        features: int = 0,
        config_length: int = balloon.CONFIG_SIZE,
        numbering: Numbering = "offered",
        shows: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        self.numbering = numbering
        roles = self._numbered(features)
        shown = [*range(shows), *roles]
        self.queue_sizes = [128 if index in shown else 0 for index in range(max(shown) + 1)]
        self.config = bytearray(config_length)
        self.frames: set[int] = set()
        """What the balloon holds."""
        self.requests: list[tuple[str, list[int]]] = []
        self.actual_writes: list[int] = []
        self.stats: list[dict[int, int]] = []
        self.stats_chain: Chain | None = None
        self.hints: list[tuple[str, int]] = []
        """What came on free_page_vq: ("command", id) or ("pages", bytes)."""
        self.opened: set[int] = set()
        self.reports: list[list[int]] = []
        """What came on reporting_vq: the lengths of the elements of each chain."""
        self.free: list[tuple[int, int]] = []
        """What was hinted and reported: (device address, length)."""
        self.scribble = b""
        """What the device writes over hinted and reported memory: its contents are undefined."""
        self.hold = False
        """Keep requests instead of completing them; statistics are always kept."""
        self.kept: list[tuple[int, Chain]] = []

    def _numbered(self, features: int) -> dict[int, str]:
        optional = (
            (f.Balloon.STATS_VQ, balloon.STATSQ, "stats"),
            (f.Balloon.FREE_PAGE_HINT, balloon.FREE_PAGE_VQ, "hint"),
            (f.Balloon.PAGE_REPORTING, balloon.REPORTING_VQ, "report"),
        )
        roles = {balloon.INFLATEQ: "inflate", balloon.DEFLATEQ: "deflate"}
        for bit, index, role in optional:
            if f.has(features, bit):
                roles[index if self.numbering == "standard" else len(roles)] = role
        return roles

    @property
    def roles(self) -> dict[int, str]:
        """What each queue is for, by its index."""
        return self._numbered(self.device.driver_features if self.numbering == "negotiated" else self.features)

    def reset(self) -> None:
        self.frames.clear()
        self.stats_chain = None
        self.opened.clear()
        self.kept.clear()

    def memory_freed(self, block: ScriptedBlock) -> None:
        kept = self.frames.intersection(block.frames)
        self.device.check("BAL-FREE", not kept, f"{len(kept)} pages were freed while the balloon holds them")

    @property
    def target(self) -> int:
        return self.read_config(balloon.NUM_PAGES, 4)

    @property
    def actual(self) -> int:
        return self.read_config(balloon.ACTUAL, 4)

    def set_target(self, pages: int) -> None:
        """What the host does when it wants the balloon to have ``pages`` pages; with its interrupt."""
        self.device.change_config(balloon.NUM_PAGES, struct.pack("<I", pages))

    def write_config(self, offset: int, width: int, value: int) -> None:
        writable = (balloon.ACTUAL, balloon.POISON_VAL)
        self.device.check("BAL-CONFIG", offset in writable and width == 4, f"a config write at {offset}")
        if offset == balloon.ACTUAL:
            self.actual_writes.append(value)
        super().write_config(offset, width, value)

    def set_hint_id(self, ident: int) -> None:
        """What a host does that wants a round of hints, or no more of them."""
        self.device.change_config(balloon.FREE_PAGE_HINT_CMD_ID, struct.pack("<I", ident))

    @property
    def hint_id(self) -> int:
        return self.read_config(balloon.FREE_PAGE_HINT_CMD_ID, 4)

    def handle(self, queue: int, chain: Chain) -> int | None:
        written: int | None = 0
        match self.roles.get(queue):
            case None:
                self.device.check("BAL-QUEUE", False, f"a chain on queue {queue}, which is for nothing")
            case "stats":
                self._take_stats(chain)
                return None
            case "hint":
                self._take_hint(chain)
            case "report":
                self.device.check("BAL-R", not chain.readable, "a readable element on reporting_vq")
                self.reports.append([element.length for element in chain.writable])
                written = self._take_free(chain)
            case role:
                self._take_pfns(role, chain)
        if self.hold:
            self.kept.append((queue, chain))
            return None
        return written

    def release(self) -> None:
        """Complete what was kept."""
        kept, self.kept = self.kept, []
        for queue, chain in kept:
            self.device.complete(queue, chain)

    def _take_stats(self, chain: Chain) -> None:
        check = self.device.check
        data = chain.data()
        check("BAL-S01", self.stats_chain is None, "a second statistics buffer while one is out")
        check("BAL-S05", len(data) % balloon.STAT_SIZE == 0 and bool(data), f"statistics of {len(data)} bytes")
        check("BAL-S", not chain.writable, "a writable element on statsq")
        entries = dict(struct.iter_unpack("<HQ", data[: len(data) // 10 * 10]))
        check("BAL-S06", not self.stats or list(entries) == list(self.stats[-1]), "another set of statistics")
        self.stats.append(entries)
        self.stats_chain = chain

    def _take_hint(self, chain: Chain) -> None:
        check = self.device.check
        if chain.readable:
            data = chain.data()
            check("BAL-H01", len(data) == 4 and not chain.writable, f"a command of {len(data)} bytes")
            value = int.from_bytes(data[:4], "little")
            check("BAL-H03", value not in self.opened, f"the id {value} came twice")
            if value >= balloon.CMD_ID_FIRST:
                self.opened.add(value)
            self.hints.append(("command", value))
            return
        opened = [value for kind, value in self.hints if kind == "command"]
        inside = bool(opened) and opened[-1] >= balloon.CMD_ID_FIRST
        check("BAL-H02", inside, "pages outside of a round")
        self.hints.append(("pages", chain.room))
        self._take_free(chain)

    def _take_free(self, chain: Chain) -> int:
        for element in chain.writable:
            self.free.append((element.address, element.length))
            if self.scribble:
                times = element.length // len(self.scribble)
                self.device.memory.write(element.address, self.scribble * times)
        return chain.room if self.scribble else 0

    def _take_pfns(self, role: str, chain: Chain) -> None:
        check = self.device.check
        data = chain.data()
        check("BAL-PFN", not chain.writable and len(data) % 4 == 0, "PFN arrays are le32 and read-only")
        pfns = list(struct.unpack(f"<{len(data) // 4}I", data))
        owned = {frame for block in self.device.memory.open_blocks() for frame in block.frames}
        for pfn in pfns:
            if role == "inflate":
                check("BAL-PFN", pfn != 0 and pfn in owned, f"frame {pfn:#x} is nobody's")
                self.frames.add(pfn)
            else:
                check("BAL-05", pfn in self.frames, f"frame {pfn:#x} is deflated and was never inflated")
                self.frames.discard(pfn)
        self.requests.append((role, pfns))

    def ask_for_stats(self) -> None:
        """Give the statistics buffer back, which asks for new ones (5.5.6.3)."""
        chain, self.stats_chain = self.stats_chain, None
        assert chain is not None
        self.device.complete(balloon.STATSQ, chain, 0)


class Input(Model):
    """An input device (5.8); ``answers`` maps (select, subsel) to the payload."""

    device_id = input.TYPE

    def __init__(
        self, name: bytes = b"scripted keyboard", answers: dict[tuple[int, int], bytes] | None = None
    ) -> None:
        super().__init__()
        self.queue_sizes = (64, 64)
        self.config = bytearray(input.CONFIG_SIZE)
        select = input.Select
        self.answers: dict[tuple[int, int], bytes] = {
            (select.ID_NAME, 0): name,
            (select.ID_SERIAL, 0): b"1",
            (select.ID_DEVIDS, 0): struct.pack("<HHHH", 6, 0x0627, 1, 1),
            (select.EV_BITS, 1): bytes([0xFE] * 16),
            **(answers or {}),
        }
        self.size_lies: dict[tuple[int, int], int] = {}
        """What ``size`` announces instead of the payload's length."""
        self.stuck: tuple[int, int] | None = None
        """The selection that the device shows and answers, whatever is written."""
        self.buffers: list[Chain] = []
        self.statuses: list[tuple[int, int, int]] = []

    def reset(self) -> None:
        self.buffers.clear()
        self.config[:] = bytes(len(self.config))

    def write_config(self, offset: int, width: int, value: int) -> None:
        self.device.check("INP-SEL", offset in (0, 1) and width == 1, f"a config write at {offset}")
        super().write_config(offset, width, value)
        if self.stuck is not None:
            self.config[input.SELECT], self.config[input.SUBSEL] = self.stuck
        key = (self.config[input.SELECT], self.config[input.SUBSEL])
        payload = self.answers.get(key, b"")
        self.config[input.SIZE] = self.size_lies.get(key, len(payload)) & 0xFF
        self.config[input.PAYLOAD :] = payload[: input.PAYLOAD_MAX].ljust(input.PAYLOAD_MAX, b"\0")

    def handle(self, queue: int, chain: Chain) -> int | None:
        if queue == input.EVENTQ:
            self.device.check("INP-05", chain.room >= input.EVENT_SIZE, f"an event buffer of {chain.room} bytes")
            self.buffers.append(chain)
            return None
        data = chain.data()
        self.device.check(
            "INP-06", len(data) >= input.EVENT_SIZE and not chain.writable, f"a status of {len(data)} bytes"
        )
        self.statuses.append(struct.unpack("<HHi", data[: input.EVENT_SIZE]))
        return 0

    def inject(self, *events: tuple[int, int, int], written: int = input.EVENT_SIZE) -> int:
        """Events as (type, code, value) into the buffers that wait, then one interrupt; how many found one."""
        self.device.fetch(input.EVENTQ)
        given = 0
        for kind, code, value in events:
            if not self.buffers:
                break
            chain = self.buffers.pop(0)
            chain.fill(struct.pack("<HHI", kind, code, value & 0xFFFFFFFF))
            self.device.complete(input.EVENTQ, chain, written, interrupt=False)
            given += 1
        self.device.interrupt_queue(input.EVENTQ)
        return given


# --- the function -------------------------------------------------------------------------------------------


class ScriptedDevice:
    """The PCI function and the virtio device in it.

    ``vectors``: MSI-X table size; ``intx``: whether there is an interrupt pin; ``features``: offered word
    (default: the model's, VERSION_1 and the ring features); ``access_platform``: offer ACCESS_PLATFORM.
    ``capabilities``: raw capabilities (each from its id byte on; the next pointers are filled in) instead of
    the usual ones. ``multiplier``, ``notify_offs``: where the doorbells are.
    """

    bus = "pci"

    def __init__(
        self,
        model: Model,
        *,
        address: str = "0000:00:04.0",
        features: int | None = None,
        access_platform: bool = False,
        vectors: int = 3,
        intx: bool = True,
        translates: bool = True,
        contiguous_limit: int | None = None,
        auto: bool = True,
        multiplier: int = 4,
        notify_offs: dict[int, int] | None = None,
        notif_config_data: dict[int, int] | None = None,
        admin: Admin | None = None,
        common_length: int = pci.COMMON_CFG_MIN_SIZE,
        pci_device: int | None = None,
        capabilities: Sequence[bytes] | None = None,
        can_reset: bool = True,
        removable: bool = True,
        **faults: object,
    ) -> None:
        self.address = address
        self.model = model
        model.device = self
        self.faults = Faults(**faults)  # type: ignore[arg-type]
        self.lies = Lies()
        self.lock = threading.RLock()
        self.log: list[Access] = []
        self.violations: list[str] = []
        self.auto = auto
        self.kicked: list[int] = []
        self.on_kick: Callable[[], object] | None = None
        self.gone = False
        self.closed = False

        self.offered = RING_FEATURES | model.features if features is None else features
        if access_platform:
            self.offered |= f.mask(f.ACCESS_PLATFORM)
        self.msix_vectors = vectors
        self.has_intx = intx
        self.translates = translates
        self.contiguous_limit = contiguous_limit
        self.description = "scripted"
        self.removal: ScriptedEvent | None = ScriptedEvent() if removable else None
        self.multiplier = multiplier
        self.notify_offs = notify_offs or {}
        self.notif_config_data = notif_config_data or {}
        self.admin = admin
        self.kick_data: list[tuple[int, int]] = []
        """(queue, upper half) of each kick under NOTIFICATION_DATA."""
        self.can_reset = can_reset
        self._common_length = common_length

        self.memory = Memory()
        self.memory.on_free = self._memory_freed
        self.master = False
        self.spaces: list[ScriptedDma] = []
        self.msix: list[ScriptedEvent] = []
        self.line: ScriptedEvent | None = None
        self._windows: list[Window] = []
        self._events: list[ScriptedEvent] = []

        self._generation = 0
        self._feature_reads = 0
        self._reset_done = 0.0
        self._reset_left: int | None = None
        self._common_fields = {
            (field.offset, field.width): field.name for field in pci.COMMON_CFG if field.width < 8
        }
        for wide in pci.COMMON_CFG:
            if wide.width == 8:
                self._common_fields[wide.offset, 4] = wide.name + ":lo"
                self._common_fields[wide.offset + 4, 4] = wide.name + ":hi"
        self._power_on()

        if pci_device is None:
            pci_device = pci.DEVICE_MODERN + model.device_id
        if capabilities is None:
            capabilities = self.usual_capabilities()
        self.config_space = _config_space(pci_device, capabilities)
        self.config = self._window("config", 256, self._config_read, self._config_write)

    # --- building -------------------------------------------------------------------------------------------

    def usual_capabilities(self) -> list[bytes]:
        """MSI-X (if there are vectors), common, isr, device (if there is a configuration), notify, pci_cfg."""
        caps = []
        if self.msix_vectors:
            caps.append(struct.pack("<BBHII", pci.CapId.MSIX, 0, self.msix_vectors - 1, 1, 0x800 | 1))
        caps.append(virtio_capability(pci.CfgType.COMMON, BAR, COMMON_AT, self._common_length))
        caps.append(virtio_capability(pci.CfgType.ISR, BAR, ISR_AT, 1))
        if self.model.config:
            caps.append(virtio_capability(pci.CfgType.DEVICE, BAR, DEVICE_AT, len(self.model.config)))
        notify = struct.pack("<I", self.multiplier)
        caps.append(virtio_capability(pci.CfgType.NOTIFY, BAR, NOTIFY_AT, 0x1000, notify))
        caps.append(virtio_capability(pci.CfgType.PCI_CFG, 0, 0, 0, bytes(4)))
        return caps

    def _power_on(self) -> None:
        self._status = 0
        self.driver_features = 0
        self._feature_select = [0, 0]
        self._queue_select = 0
        self.config_vector = pci.NO_VECTOR
        self.isr = 0
        self.kicked.clear()
        self.queues = [
            QueueState(self.faults.queue_size.get(index, size))
            for index, size in enumerate(self.model.queue_sizes)
        ]
        self.kick_data.clear()
        if self.admin is not None:
            self.admin.first = len(self.queues)
            self.queues += [QueueState(size) for size in self.admin.queue_sizes]
            self.admin.reset()

    def check(self, requirement: str, holds: bool, message: str) -> None:
        """Record a broken rule."""
        if not holds:
            self.violations.append(f"{requirement}: {message}")

    def assert_obedient(self) -> None:
        """No rule was broken, no guard byte touched, and everything that was closed is closed."""
        assert not self.violations, "\n".join(self.violations)
        self.memory.assert_clean()

    def assert_left(self) -> None:
        """The driver left in order: reset, bus master off, nothing open, nothing allocated."""
        self.assert_obedient()
        if not self.gone:
            assert self._status == 0, f"status was left at {self._status:#x}"
            assert not self.master, "bus mastering was left on"
        assert self.closed, "the function was not closed"
        assert not [window for window in self._windows if not window.closed], "registers were left open"
        assert not [event for event in self._events if not event.closed], "interrupt events were left open"
        assert not self.memory.open_blocks(), "memory was left allocated"

    def _memory_freed(self, block: ScriptedBlock) -> None:
        # The worst bug possible: a device that runs over freed memory.
        if self.gone or not self.master or not self._status & Status.DRIVER_OK:
            return
        self.model.memory_freed(block)
        pages = set(block.device_pages) if block.mapped else set()
        for index, queue in enumerate(self.queues):
            if queue.ring is not None:
                in_use = {address >> 12 for address in queue.ring.addresses_in_use()}
                self.check("LEAVE", pages.isdisjoint(in_use), f"memory of queue {index} was freed before a reset")

    # --- the log --------------------------------------------------------------------------------------------

    def writes(self, region: str, offset: int | None = None) -> list[int]:
        return self._logged("write", region, offset)

    def reads(self, region: str, offset: int | None = None) -> list[int]:
        return self._logged("read", region, offset)

    def calls(self, name: str) -> list[int]:
        return self._logged("call", name, None)

    def _logged(self, op: str, region: str, offset: int | None) -> list[int]:
        return [
            access.value
            for access in self.log
            if access.op == op and access.region == region and offset in (None, access.offset)
        ]

    def _window(
        self,
        region: str,
        length: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> Window:
        def logged_read(offset: int, width: int) -> int:
            with self.lock:
                value = (1 << 8 * width) - 1 if self.gone else read(offset, width)
                self.log.append(Access("read", region, offset, width, value))
                return value

        def logged_write(offset: int, width: int, value: int) -> None:
            with self.lock:
                self.log.append(Access("write", region, offset, width, value))
                if not self.gone:
                    write(offset, width, value)

        window = Window(length, logged_read, logged_write)
        self._windows.append(window)
        return window

    def _call(self, name: str, value: int = 0) -> None:
        if self.closed:
            raise Closed("this function is closed")
        self.log.append(Access("call", name, 0, 0, value))

    # --- PciFunction ----------------------------------------------------------------------------------------

    def bar(self, index: int) -> BarInfo | None:
        return BarInfo(BAR, BAR_SIZE, False) if index == BAR else None

    def registers(self, bar: int, offset: int, length: int) -> Window:
        self._call("registers", offset)
        if bar != BAR or offset < 0 or length <= 0 or offset + length > BAR_SIZE:
            raise CapabilityError(f"{length} bytes at {offset:#x} of BAR {bar}", seen=bar, expected="inside a BAR")
        region, start = next(
            (name, at)
            for name, at in (("notify", NOTIFY_AT), ("device", DEVICE_AT), ("isr", ISR_AT), ("common", COMMON_AT))
            if offset >= at
        )
        bias = offset - start
        read: Callable[[int, int], int] = getattr(self, f"_{region}_read")
        write: Callable[[int, int, int], None] = getattr(self, f"_{region}_write")

        def shifted_read(at: int, width: int) -> int:
            return read(at + bias, width)

        def shifted_write(at: int, width: int, value: int) -> None:
            write(at + bias, width, value)

        return self._window(region, length, shifted_read, shifted_write)

    def doorbell(self, bar: int, offset: int, value: int) -> None:
        self._call("doorbell", offset)

    def enable_msix(self, count: int) -> list[ScriptedEvent]:
        self._call("enable_msix", count)
        if self.faults.msix_fails:
            raise OperationFailed("MSI-X cannot be turned on", seen="scripted")
        self.check("PCI-MSX-02", 0 < count <= self.msix_vectors, f"{count} vectors of {self.msix_vectors}")
        self._interrupts_off()
        self.msix = [ScriptedEvent() for _ in range(count)]
        self._events += self.msix
        return list(self.msix)

    def enable_intx(self) -> ScriptedEvent | None:
        self._call("enable_intx")
        if not self.has_intx:
            return None
        self._interrupts_off()
        self.line = ScriptedEvent(level=True, asserted=lambda: self.isr != 0)
        self._events.append(self.line)
        if self.isr:
            self.line.fire()
        return self.line

    def disable_interrupts(self) -> None:
        self._call("disable_interrupts")
        self._interrupts_off()

    def _interrupts_off(self) -> None:
        self.msix = []
        self.line = None

    def dma(self, translated: bool) -> ScriptedDma:
        self._call("dma", int(translated))
        offered = bool(self.driver_features & f.mask(f.ACCESS_PLATFORM))
        self.check("ACCESS_PLATFORM", translated == offered, f"dma({translated}), negotiated: {offered}")
        space = ScriptedDma(self.memory, translated=translated, contiguous_limit=self.contiguous_limit)
        self.spaces.append(space)
        return space

    def bus_master(self, on: bool) -> None:
        self._call("bus_master", int(on))
        self.master = on

    def reset(self) -> bool:
        self._call("function_reset")
        if self.can_reset:
            self._reset_left = None
            self._finish_reset()
        return self.can_reset

    def close(self) -> None:
        if self.closed:
            return
        self._call("close")
        self.closed = True
        self.config.close()
        if self.removal is not None:
            self.removal.close()

    # --- configuration space --------------------------------------------------------------------------------

    def _config_read(self, offset: int, width: int) -> int:
        at = self._pci_cfg_at()
        if at is not None and offset in range(at + pci.PCI_CFG_CAP_DATA, at + pci.PCI_CFG_CAP_SIZE):
            return self._through_window(at, width, None)
        return int.from_bytes(self.config_space[offset : offset + width], "little")

    def _config_write(self, offset: int, width: int, value: int) -> None:
        at = self._pci_cfg_at()
        if at is None or not at + pci.CAP_BAR <= offset <= at + pci.PCI_CFG_CAP_DATA + 3:
            self.check("PCI-CAP-07", False, f"configuration space was written at {offset:#x}")
            return
        self.config_space[offset : offset + width] = value.to_bytes(width, "little")
        if offset >= at + pci.PCI_CFG_CAP_DATA:
            self._through_window(at, width, value)

    def _pci_cfg_at(self) -> int | None:
        at = self.config_space[pci.CFG_CAPABILITIES_POINTER]
        while at:
            if self.config_space[at] == pci.CapId.VENDOR and self.config_space[at + 3] == pci.CfgType.PCI_CFG:
                return at
            at = self.config_space[at + pci.CAP_NEXT]
        return None

    def _through_window(self, at: int, width: int, value: int | None) -> int:
        """pci_cfg_data was read or written (4.1.4.9)."""
        bar = self.config_space[at + pci.CAP_BAR]
        offset, length = struct.unpack_from("<II", self.config_space, at + pci.CAP_OFFSET)
        self.check(
            "PCI-CFA-03", length in (1, 2, 4) and length == width, f"a window of {length}, {width} accessed"
        )
        self.check("PCI-CFA-01", not length or not offset % length, f"a window of {length} bytes at {offset:#x}")
        inside = bar == BAR and any(
            start <= offset and offset + length <= start + size for start, size in self._structures()
        )
        self.check("PCI-CFA-02", inside, f"a window at {offset:#x} of BAR {bar}")
        if not inside:
            return 0
        window = self.registers(bar, offset, length)
        if value is None:
            return int(getattr(window, f"read{8 * width}")(0))
        getattr(window, f"write{8 * width}")(0, value)
        return 0

    def _structures(self) -> list[tuple[int, int]]:
        sizes = [(COMMON_AT, self._common_length), (ISR_AT, 1), (NOTIFY_AT, 0x1000)]
        return [*sizes, (DEVICE_AT, len(self.model.config))]

    # --- common configuration (4.1.4.3) ---------------------------------------------------------------------

    def _common_name(self, offset: int, width: int) -> str:
        name = self._common_fields.get((offset, width))
        self.check("PCI-ACC", name is not None, f"a {width}-byte access at {offset:#x} of common")
        known = offset + width <= self._common_length
        self.check("PCI-COM-10", known, f"an access at {offset:#x} of {self._common_length:#x}")
        return name or "none"

    def _queue(self) -> QueueState:
        if self._queue_select < len(self.queues):
            return self.queues[self._queue_select]
        return QueueState(0)

    def _common_read(self, offset: int, width: int) -> int:
        name = self._common_name(offset, width)
        queue = self._queue()
        if name.startswith("queue_d"):
            wide, half = name.split(":")
            return (queue.addresses[wide] >> (32 if half == "hi" else 0)) & 0xFFFFFFFF
        if name == "device_feature":
            return self._read_feature()
        if name == "device_status":
            return self._read_status()
        if name == "config_generation":
            if self.faults.generation_bumps:
                self.faults.generation_bumps -= 1 if self.faults.generation_bumps > 0 else 0
                self._generation += 1
            return self._generation & 0xFF
        if name == "num_queues":
            count = len(self.queues) if self.admin is None else self.admin.first
            return count if self.faults.num_queues is None else self.faults.num_queues
        if name in _FEATURE_OF:
            taken = f.has(self.driver_features, _FEATURE_OF[name])
            self.check("PCI-COM-10", taken, f"{name} was read without its feature")
        if name == "admin_queue_index" and self.admin is not None:
            return self.admin.first
        if name == "admin_queue_num" and self.admin is not None:
            return len(self.admin.queue_sizes)
        if name == "queue_reset":
            if queue.reset_left:
                queue.reset_left -= 1 if queue.reset_left > 0 else 0
                return 1
            return 0
        if name == "queue_enable":
            return int((queue.enable or self.faults.enabled_before) and not self.faults.never_enables)
        word = self._feature_select[1]
        values = {
            "device_feature_select": self._feature_select[0],
            "driver_feature_select": word,
            "driver_feature": (self.driver_features >> (32 * word)) & 0xFFFFFFFF if word < 4 else 0,
            "config_msix_vector": self.config_vector,
            "queue_select": self._queue_select,
            "queue_size": queue.size,
            "queue_msix_vector": queue.vector,
            "queue_notify_off": self.notify_offs.get(self._queue_select, self._queue_select),
            "queue_notif_config_data": self._ident(self._queue_select),
        }
        return values.get(name, 0)

    def _ident(self, queue: int) -> int:
        """What we call a queue in kicks (4.1.5.2.1)."""
        if f.has(self.driver_features, f.NOTIF_CONFIG_DATA):
            return self.notif_config_data.get(queue, queue)
        return queue

    def _read_feature(self) -> int:
        select = self._feature_select[0]
        offered = self.offered
        if self.faults.features_later is not None and self._feature_reads >= pci.FEATURE_WORDS:
            offered = self.faults.features_later
        self._feature_reads += 1
        return (offered >> (32 * select)) & 0xFFFFFFFF if select < pci.FEATURE_WORDS else 0

    def _common_write(self, offset: int, width: int, value: int) -> None:
        name = self._common_name(offset, width)
        queue = self._queue()
        self.check("PCI-COM-01", name not in pci.COMMON_CFG_READ_ONLY, f"{name} was written")
        if name.startswith("queue_d"):
            self.check("PCI-COM-04", not queue.enable, f"{name} was written after queue_enable")
            wide, half = name.split(":")
            shift = 32 if half == "hi" else 0
            kept = queue.addresses[wide] & ~(0xFFFFFFFF << shift)
            queue.addresses[wide] = (kept | value << shift) & self.faults.address_mask
        elif name == "device_feature_select":
            self._feature_select[0] = value
        elif name == "driver_feature_select":
            self._feature_select[1] = value
        elif name == "driver_feature":
            self._write_feature(value)
        elif name == "device_status":
            self._write_status(value)
        elif name == "config_msix_vector":
            self.config_vector = self._vector(value)
        elif name == "queue_select":
            self._queue_select = value
        elif name == "queue_size":
            if f.has(self.driver_features, f.RING_PACKED):
                self.check("PCI-COM-02", 0 < value <= ring.MAX_SIZE, f"queue_size {value}")
            else:
                self.check("PCI-COM-03", ring.is_power_of_two(value), f"queue_size {value}")
            self.check("PCI-COM-04", not queue.enable, "queue_size was written after queue_enable")
            if not self.faults.queue_size_stuck:
                queue.size = value
        elif name == "queue_msix_vector":
            self.check("PCI-COM-04", not queue.enable, "queue_msix_vector was written after queue_enable")
            queue.vector = self._vector(value)
        elif name == "queue_enable":
            self._enable_queue(queue, value)
        elif name == "queue_reset":
            taken = f.has(self.driver_features, f.RING_RESET)
            self.check("PCI-COM-10", taken and value == 1, f"queue_reset was written {value}")
            queue.reset_left = self.faults.queue_reset_reads
            queue.enable = 0
            queue.ring = None
            # 2.6.1: all that was written for the queue is gone.
            queue.size, queue.vector = queue.size_max, pci.NO_VECTOR
            queue.addresses = dict.fromkeys(queue.addresses, 0)
            self.model.queue_reset(self._queue_select)

    def _vector(self, value: int) -> int:
        if value == pci.NO_VECTOR:
            return value
        self.check("PCI-MSX-02", value < self.msix_vectors, f"vector {value} of {self.msix_vectors}")
        if value >= len(self.msix) or value in self.faults.no_vectors:
            return pci.NO_VECTOR
        return value

    def _write_feature(self, value: int) -> None:
        word = self._feature_select[1]
        self.check("INIT-03", not self._status & Status.FEATURES_OK, "features were written after FEATURES_OK")
        if word < pci.FEATURE_WORDS:
            kept = self.driver_features & ~(0xFFFFFFFF << 32 * word)
            self.driver_features = kept | value << 32 * word
        elif value:
            self.check("FEAT-01", False, f"bits in feature word {word}")
        extra = self.driver_features & ~self.offered
        self.check("FEAT-01", not extra, f"features {extra:#x} were never offered")

    def _read_status(self) -> int:
        if self._reset_left is not None:
            if time.monotonic() < self._reset_done or self._reset_left:
                self._reset_left -= 1 if self._reset_left > 0 else 0
                return self._status
            self._reset_left = None
            self._finish_reset()
            return 0
        return self._status | self.faults.status_or

    def _finish_reset(self) -> None:
        self._power_on()
        self._interrupt_line_low()
        self.model.reset()

    def _interrupt_line_low(self) -> None:
        self.isr = 0

    def _write_status(self, value: int) -> None:
        if value == 0:
            if self.faults.reset_reads or self.faults.reset_seconds:
                self._reset_left = self.faults.reset_reads
                self._reset_done = time.monotonic() + self.faults.reset_seconds
            else:
                self._finish_reset()
            return
        self.check("PCI-COM-05", self._reset_left is None, f"status {value:#x} was written before 0 was read back")
        before = self._status & ~int(Status.DEVICE_NEEDS_RESET)
        self.check("STAT-02", value & before == before, f"status went from {before:#x} to {value:#x}")
        self.check("STAT-03", not before & Status.FAILED, f"status {value:#x} was written after FAILED")
        fresh = value & ~before
        if not value & Status.FAILED:
            below = {
                Status.DRIVER: Status.ACKNOWLEDGE,
                Status.FEATURES_OK: Status.DRIVER,
                Status.DRIVER_OK: Status.FEATURES_OK,
            }
            for bit, needs in below.items():
                if fresh & bit:
                    self.check("INIT-01", bool(value & needs), f"{bit.name} without {needs.name}")
        self._status = value | self._status & int(Status.DEVICE_NEEDS_RESET)
        if fresh & Status.FEATURES_OK:
            unfit = not self.driver_features & f.mask(f.VERSION_1)
            if unfit or self.faults.refuse_features:
                self._status &= ~int(Status.FEATURES_OK)
        if fresh & Status.DRIVER_OK:
            self._go()

    def _go(self) -> None:
        """DRIVER_OK was set: from now on the device works."""
        if self.faults.needs_reset_at == "driver_ok":
            self.needs_reset()
        self.model.driver_ok()
        for index in range(len(self.queues)):
            self.fetch(index)

    def _enable_queue(self, queue: QueueState, value: int) -> None:
        self.check("PCI-COM-06", value == 1, f"queue_enable was written {value}")
        self.check("INIT-01", bool(self._status & Status.FEATURES_OK), "queue_enable before FEATURES_OK")
        if not value or not queue.size or self.faults.never_enables:
            return
        self._serve(queue)

    def _serve(self, queue: QueueState) -> None:
        """Enable the queue that is selected, and look at its ring for the first time."""
        queue.enable = 1
        try:
            format_ = PackedDeviceRing if f.has(self.driver_features, f.RING_PACKED) else DeviceRing
            queue.ring = format_(
                self.memory,
                queue.size,
                *queue.addresses.values(),
                indirect=f.has(self.driver_features, f.INDIRECT_DESC),
                event_idx=f.has(self.driver_features, f.EVENT_IDX),
                in_order=f.has(self.driver_features, f.IN_ORDER),
                lies=self.lies,
                index=self._queue_select,
            )
        except AssertionError as error:
            self.violations.append(str(error))

    # --- isr, device configuration, doorbells ----------------------------------------------------------------

    def _isr_read(self, offset: int, width: int) -> int:
        self.check("PCI-ACC-01", width == 1, f"the ISR was read with {width} bytes")
        self.check("PCI-ISR-01", not self.msix, "the ISR was read with MSI-X on")
        value, self.isr = self.isr, 0
        return value

    def _isr_write(self, offset: int, width: int, value: int) -> None:
        self.check("PCI-ISR-02", False, "the ISR was written")

    def _device_read(self, offset: int, width: int) -> int:
        if offset + width > len(self.model.config):
            self.check("CFG-04", False, f"a read at {offset:#x} of {len(self.model.config)} bytes")
            return 0
        return self.model.read_config(offset, width)

    def _device_write(self, offset: int, width: int, value: int) -> None:
        self.check("INIT-02", bool(self._status & Status.FEATURES_OK), "configuration was written in negotiation")
        if offset + width > len(self.model.config):
            self.check("CFG-04", False, f"a write at {offset:#x} of {len(self.model.config)} bytes")
            return
        self.model.write_config(offset, width, value)

    def _notify_read(self, offset: int, width: int) -> int:
        self.check("PCI-NTF", False, "a doorbell was read")
        return 0

    def _notify_write(self, offset: int, width: int, value: int) -> None:
        data = f.has(self.driver_features, f.NOTIFICATION_DATA)
        if data:
            self.check("PCI-NTF-02", width == pci.NOTIFY_DATA_WIDTH, f"a kick of {width} bytes")
        else:
            self.check("PCI-NTF-01", width == pci.NOTIFY_WIDTH, f"a kick of {width} bytes")
        value, upper = value & 0xFFFF, value >> 16
        self.check("INIT-07", bool(self._status & Status.DRIVER_OK), "a kick before DRIVER_OK")
        here = [
            index
            for index in range(len(self.queues))
            if self.notify_offs.get(index, index) * self.multiplier == offset
        ]
        named = [index for index in here if self._ident(index) == value]
        if not named:
            rule = "PCI-NTF-05" if f.has(self.driver_features, f.NOTIF_CONFIG_DATA) else "PCI-NTF-03"
            self.check(rule, False, f"the value {value:#x} at the doorbell {offset:#x} of queues {here}")
            return
        [value] = named
        if data:
            self._check_kick_data(value, upper)
        self.check("PCI-NTF-07", self.queues[value].enable == 1, f"a kick of queue {value}, which is not enabled")
        if self.faults.needs_reset_at == "kick":
            self.needs_reset()
        self.kicked.append(value)
        if self.on_kick is not None:
            self.on_kick()
        if self.auto:
            self.run()

    def _check_kick_data(self, index: int, upper: int) -> None:
        """Whether the upper half says where the driver's next chain will be (2.9)."""
        self.kick_data.append((index, upper))
        ring_ = self.queues[index].ring
        if isinstance(ring_, DeviceRing):
            self.check(
                "NOTE-02", upper == ring_.published(), f"kick data {upper:#x}, avail.idx {ring_.published():#x}"
            )
        elif ring_ is not None:
            self.check(
                "PKD-04", upper == ring_.end_of_list(), f"kick data {upper:#x}, not {ring_.end_of_list():#x}"
            )

    # --- doing the work -------------------------------------------------------------------------------------

    def _may_run(self, queue: int) -> DeviceRing | PackedDeviceRing | None:
        ring_ = self.queues[queue].ring if queue < len(self.queues) else None
        silent = self.faults.silent or queue in self.faults.silent_queues or self.gone
        stopped = self._status & (Status.DEVICE_NEEDS_RESET | Status.FAILED)
        if ring_ is None or silent or stopped or not self._status & Status.DRIVER_OK:
            return None
        self.check("DMA", self.master, "work for the device, and bus mastering is off")
        return ring_ if self.master else None

    def step(self, queue: int = 0) -> bool:
        """Take one chain of this queue and do what it asks for; False if there was none."""
        with self.lock:
            ring_ = self._may_run(queue)
            if ring_ is None:
                return False
            try:
                chain = ring_.pop()
            except AssertionError as error:
                self.violations.append(str(error))
                self.needs_reset()
                return False
            if chain is None:
                return False
            if self.admin is not None and queue >= self.admin.first:
                written = self.admin.handle(queue, chain)
            else:
                written = self.model.handle(queue, chain)
            if written is not None:
                ring_.push(chain, written)
            return True

    def fetch(self, queue: int) -> int:
        """Take all chains of this queue and say where the next kick is wanted; how many there were."""
        with self.lock:
            ring_ = self._may_run(queue)
            if ring_ is None:
                return 0
            count = 0
            while self.step(queue):
                count += 1
            ring_.ask_for_kicks()
            return count

    def run(self) -> None:
        """Answer all kicks so far, each queue with at most one interrupt."""
        with self.lock:
            kicked, self.kicked = self.kicked, []
            for queue in dict.fromkeys(kicked):
                self.fetch(queue)
                self.interrupt_queue(queue)

    def complete(self, queue: int, chain: Chain | int, written: int = 0, *, interrupt: bool = True) -> None:
        """Give back a chain that the model kept."""
        with self.lock:
            ring_ = self.queues[queue].ring
            assert ring_ is not None
            ring_.push(chain, written)
            if interrupt:
                self.interrupt_queue(queue)

    def interrupt_queue(self, queue: int, *, force: bool = False) -> None:
        """The interrupt for what was completed, if the driver wants one; ``force``: whether or not."""
        with self.lock:
            ring_ = self.queues[queue].ring
            wanted = ring_ is not None and ring_.wants_interrupt()
            if force or (wanted and not self.faults.lose_interrupts):
                self._interrupt(pci.ISR_QUEUE, self.queues[queue].vector)

    def interrupt_config(self) -> None:
        """A configuration change notification."""
        with self.lock:
            self._interrupt(pci.ISR_CONFIG, self.config_vector)

    def _interrupt(self, cause: int, vector: int) -> None:
        if self.gone:
            return
        if self.msix:
            if vector < len(self.msix):
                self.msix[vector].fire()
            return
        self.isr |= int(cause)
        if self.line is not None:
            self.line.fire()

    def change_config(self, offset: int, data: bytes, *, interrupt: bool = True) -> None:
        """Change the device configuration as a device does: new generation, then the notification."""
        with self.lock:
            self.model.config[offset : offset + len(data)] = data
            self._generation += 1
            if interrupt and self._status & Status.DRIVER_OK:
                self.interrupt_config()

    def needs_reset(self) -> None:
        """The device gives up (2.1.1)."""
        with self.lock:
            self._status |= int(Status.DEVICE_NEEDS_RESET)
            if self._status & Status.DRIVER_OK:
                self.interrupt_config()

    def reset_by_other(self) -> None:
        """Somebody else resets the device."""
        with self.lock:
            self._finish_reset()

    def storm(self, on: bool = True) -> None:
        """Fire every interrupt again and again, for nothing."""
        for event in (*self.msix, *([self.line] if self.line else [])):
            event.storm(on)

    def vanish(self) -> None:
        """Surprise removal: from now on every read gives ones."""
        with self.lock:
            self.gone = True

    def ask_back(self) -> None:
        """Hot-unplug: somebody wants the device back."""
        assert self.removal is not None
        self.removal.fire()

    @property
    def status_now(self) -> int:
        """The status without a register read."""
        return self._status

    @property
    def type(self) -> str:
        return ids.type_name(self.model.device_id)


def virtio_capability(cfg_type: int, bar: int, offset: int, length: int, extra: bytes = b"") -> bytes:
    """One ``virtio_pci_cap`` (4.1.4), next pointer 0."""
    size = pci.CAP_SIZE + len(extra)
    return struct.pack("<BBBBBBHII", pci.CapId.VENDOR, 0, size, cfg_type, bar, 0, 0, offset, length) + extra


def _config_space(pci_device: int, capabilities: Sequence[bytes]) -> bytearray:
    """256 bytes of configuration space with these capabilities from 0x40 on, linked in order."""
    space = bytearray(pci.CONFIG_SIZE)
    struct.pack_into("<HHHH", space, pci.CFG_VENDOR_ID, pci.VIRTIO_VENDOR, pci_device, 0x2, pci.STATUS_CAP_LIST)
    space[pci.CFG_REVISION_ID] = 1
    struct.pack_into("<I", space, pci.CFG_BAR0 + 4 * BAR, 0xFE00_0000 | pci.BAR_TYPE_64)
    struct.pack_into("<HH", space, pci.CFG_SUBSYSTEM_VENDOR_ID, pci.VIRTIO_VENDOR, 0x1100)
    space[pci.CFG_INTERRUPT_PIN] = 1
    place, link = CAPABILITIES_AT, pci.CFG_CAPABILITIES_POINTER
    for capability in capabilities:
        space[link] = place
        space[place : place + len(capability)] = capability
        link = place + pci.CAP_NEXT
        space[link] = 0
        place = (place + len(capability) + 3) & ~3
    assert place <= len(space)
    return space
