"""4.1.1 to 4.1.4: the identity of a PCI function, and its virtio capabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from uvirtio.conform.row import PCI, Area, L, Level, P
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, free
from uvirtio.interfaces.backend import PciFunction
from uvirtio.interfaces.memory import Registers
from uvirtio.spec import features as f
from uvirtio.spec import ids, pci
from uvirtio.spec.device_config import FIELDS
from uvirtio.spec.pci import CfgType

AREA = Area(
    "capabilities", 35, "4.1.1 to 4.1.4: a PCI function and its capabilities", transports=PCI, level=Level.LOOK
)

_BOTH: Final = frozenset({P, L})
_ONLY_L: Final = frozenset({L})
_STRUCTURES: Final = (CfgType.COMMON, CfgType.NOTIFY, CfgType.ISR, CfgType.DEVICE)


def function(t: Trial) -> PciFunction:
    """The function that the device is."""
    return cast(PciFunction, t.transport.backend)


@dataclass(frozen=True, slots=True)
class Cap:
    """One virtio capability, as it stands in configuration space."""

    at: int
    cap_len: int
    cfg_type: int
    bar: int
    id: int
    offset: int
    length: int

    @property
    def name(self) -> str:
        """Its type, and where it is."""
        return f"{pci.cfg_type_name(self.cfg_type)} at {self.at:#04x}"


def walk(t: Trial) -> tuple[list[tuple[int, int]], str | None]:
    """The capabilities of the function as (place, id), and what is wrong with the list, if anything."""
    config = function(t).config
    found: list[tuple[int, int]] = []
    if not config.read16(pci.CFG_STATUS) & pci.STATUS_CAP_LIST:
        return found, None
    at = config.read8(pci.CFG_CAPABILITIES_POINTER) & pci.CAP_NEXT_MASK
    while at:
        if at < pci.CAP_FIRST:
            return found, f"a capability at {at:#x}, inside the header"
        if at in [place for place, _ in found]:
            return found, f"the list comes back to {at:#x}"
        found.append((at, config.read8(at)))
        at = config.read8(at + pci.CAP_NEXT) & pci.CAP_NEXT_MASK
    return found, None


def caps(t: Trial, *cfg_types: int) -> list[Cap]:
    """The virtio capabilities, all or of some types, in the order of the list."""
    config = function(t).config
    found = []
    for at, ident in walk(t)[0]:
        if ident == pci.CapId.VENDOR:
            cap = Cap(
                at,
                config.read8(at + pci.CAP_LEN),
                config.read8(at + pci.CAP_CFG_TYPE),
                config.read8(at + pci.CAP_BAR),
                config.read8(at + pci.CAP_SHMID),
                *((_read32(config, at + place)) for place in (pci.CAP_OFFSET, pci.CAP_LENGTH)),
            )
            if not cfg_types or cap.cfg_type in cfg_types:
                found.append(cap)
    return found


def _read32(config: Registers, at: int) -> int:
    return config.read32(at) if at + 4 <= config.length else 0


def _one(t: Trial, cfg_type: int) -> Cap:
    found = caps(t, cfg_type)
    t.need(bool(found), f"there is no {pci.cfg_type_name(cfg_type)} structure")
    return found[0]


# --- the function (4.1.1, 4.1.2) --------------------------------------------------------------------------------


@AREA.row("D-PCI-01", "4.1.1", "MUST", "Be a proper PCI or PCI Express function.", transports=_BOTH)
def proper_function(t: Trial) -> Outcome:
    """Header type 0, a capability list that ends, and BARs that do not claim a reserved type."""
    config = function(t).config
    header = config.read8(pci.CFG_HEADER_TYPE) & pci.HEADER_TYPE_MASK
    t.expect(header == 0, f"header type {header:#x}", "0, no bridge")
    fault = walk(t)[1]
    t.expect(fault is None, fault or "", "a list that ends")
    for number in range(pci.BARS):
        value = config.read32(pci.CFG_BAR0 + 4 * number)
        if number and config.read32(pci.CFG_BAR0 + 4 * number - 4) & 7 == pci.BAR_TYPE_64:
            continue  # the upper half of the one before
        odd = not value & pci.BAR_IO and value & pci.BAR_TYPE_MASK not in (0, pci.BAR_TYPE_64)
        t.expect(not odd, f"BAR {number} reads {value:#x}: a reserved type", "32 or 64 bits")
    return None


@AREA.row("D-PCI-02", "4.1.2.1", "MUST", "The vendor id is 0x1af4.", transports=_BOTH)
def vendor_id(t: Trial) -> Outcome:
    """Read from configuration space."""
    seen = function(t).config.read16(pci.CFG_VENDOR_ID)
    t.expect(seen == pci.VIRTIO_VENDOR, f"{seen:#06x}", "0x1af4")
    return None


def _device_id(t: Trial) -> int:
    return function(t).config.read16(pci.CFG_DEVICE_ID)


@AREA.row(
    "D-PCI-03",
    "4.1.2.1",
    "MUST",
    "The device id is 0x1040 and the device type, or a transitional id of that type.",
    transports=_BOTH,
)
def device_id(t: Trial) -> Outcome:
    """Read from configuration space; a modern id that is no known type is none, too."""
    seen = _device_id(t)
    transitional = ids.is_transitional_pci(pci.VIRTIO_VENDOR, seen)
    known = seen - pci.DEVICE_MODERN == t.device.device_id
    t.expect(transitional or known, f"{seen:#06x} for type {t.device.device_id}", "0x1040 and the type")
    return None


def _modern_id(t: Trial) -> int:
    seen = _device_id(t)
    t.need(seen >= pci.DEVICE_MODERN, "a transitional device")
    return seen


@AREA.row("D-PCI-04", "4.1.2.1", "SHOULD", "Non-transitional: the device id is 0x1040 to 0x107f.")
def modern_device_id(t: Trial) -> Outcome:
    """A transitional id is for a device that has the legacy registers, in an I/O BAR 0."""
    seen = _device_id(t)
    bar = function(t).bar(0)
    transitional = bar is not None and bar.is_io
    t.need(not transitional, "a transitional device")
    t.expect(pci.DEVICE_MODERN <= seen <= pci.DEVICE_LAST, f"{seen:#06x} without a legacy interface", "0x1040 on")
    return None


@AREA.row("D-PCI-05", "4.1.2.1", "SHOULD", "Non-transitional: the revision is 1 or more.")
def modern_revision(t: Trial) -> Outcome:
    """Read from configuration space."""
    _modern_id(t)
    seen = function(t).config.read8(pci.CFG_REVISION_ID)
    t.expect(seen >= 1, f"revision {seen}", "1 or more")
    return None


@AREA.row("D-PCI-06", "4.1.2.1", "SHOULD", "Non-transitional: the subsystem device id is 0x40 or more.")
def modern_subsystem(t: Trial) -> Outcome:
    """Read from configuration space."""
    _modern_id(t)
    seen = function(t).config.read16(pci.CFG_SUBSYSTEM_ID)
    t.expect(seen >= 0x40, f"subsystem {seen:#x}", "0x40 or more")
    return None


@AREA.row("D-PCI-L1", "4.1.2.3", "MUST", "Transitional: the revision is 0.", transports=_ONLY_L)
def legacy_revision(t: Trial) -> Outcome:
    """Read from configuration space."""
    seen = function(t).config.read8(pci.CFG_REVISION_ID)
    t.expect(seen == 0, f"revision {seen}", "0")
    return None


@AREA.row("D-PCI-L2", "4.1.2.3", "MUST", "Transitional: the subsystem device id is the type.", transports=_ONLY_L)
def legacy_subsystem(t: Trial) -> Outcome:
    """Read from configuration space."""
    seen = function(t).config.read16(pci.CFG_SUBSYSTEM_ID)
    t.expect(seen == t.device.device_id, f"subsystem {seen:#x}", f"{t.device.device_id:#x}, the type")
    return None


@AREA.row("D-PCI-L3", "4.1.2.3", "MUST", "Transitional: the device id is 0x1000 to 0x103f.", transports=_ONLY_L)
def legacy_device_id(t: Trial) -> Outcome:
    """Read from configuration space."""
    seen = _device_id(t)
    t.expect(pci.DEVICE_FIRST <= seen < pci.DEVICE_MODERN, f"{seen:#06x}", "0x1000 to 0x103f")
    return None


@AREA.row(
    "D-PCI-L9", "4.1.5.1.1.1", "MUST", "Transitional: the legacy interface lies in I/O space.", transports=_ONLY_L
)
def legacy_in_io_space(t: Trial) -> Outcome:
    """The kind of BAR 0."""
    bar = function(t).bar(0)
    t.expect(bar is not None and bar.is_io, f"BAR 0 is {bar}", "I/O ports")
    return None


# --- the list (4.1.4) -------------------------------------------------------------------------------------------


@AREA.row("D-CAP-01", "4.1.4.2", "MUST", "cap_len covers the structure and its extra data.")
def lengths_cover(t: Trial) -> Outcome:
    """Each virtio capability against the length that its type has."""
    for cap in caps(t):
        least = pci.CAP_SIZES.get(cap.cfg_type, pci.CAP_SIZE)
        fits = cap.cap_len >= least and cap.at + cap.cap_len <= pci.CONFIG_SIZE
        t.expect(fits, f"cap_len {cap.cap_len} of {cap.name}", f"at least {least}, and inside 256 bytes")
    return None


@AREA.row("D-CAP-03", "4.1.4", "DESC", "bar is 0 to 5, and offset and length lie inside that BAR.")
def inside_their_bars(t: Trial) -> Outcome:
    """Each structure against the size of its BAR."""
    for cap in caps(t, *_STRUCTURES):
        bar = function(t).bar(cap.bar) if cap.bar <= pci.MAX_BAR else None
        size = 0 if bar is None else bar.size
        end = cap.offset + cap.length
        t.expect(end <= size, f"{cap.name} ends at {end:#x} of BAR {cap.bar}, of {size:#x} bytes", "inside a BAR")
    return None


@AREA.row("D-CAP-04", "4.1.4", "DESC", "Structures of different types do not overlap.")
def apart(t: Trial) -> Outcome:
    """Each pair of structures in one BAR."""
    found = caps(t, *_STRUCTURES)
    for number, one in enumerate(found):
        for other in found[number + 1 :]:
            over = one.offset < other.offset + other.length and other.offset < one.offset + one.length
            together = one.bar == other.bar and one.cfg_type != other.cfg_type and over
            t.expect(not together, f"{one.name} and {other.name} overlap", "structures apart")
    return None


@AREA.row("D-CAP-05", "4.1.4", "MAY", "Unknown cfg_type values stand beside the known ones.")
def unknown_types(t: Trial) -> Outcome:
    """They are listed."""
    odd = [f"{cap.cfg_type} at {cap.at:#04x}" for cap in caps(t) if cap.cfg_type not in pci.CFG_TYPE_NAMES]
    return free(f"cfg_type {', '.join(odd)}" if odd else "none")


@AREA.row("D-CAP-06", "4.1.4", "DESC", "The capability list ends and stays between 0x40 and 0xff.")
def list_ends(t: Trial) -> Outcome:
    """A walk that visits no place twice."""
    fault = walk(t)[1]
    t.expect(fault is None, fault or "", "a list that ends")
    return None


def present(ident: str, section: str, cfg_type: int, title: str) -> None:
    """Declare the row that a structure is there."""

    @AREA.row(ident, section, "MUST", title)
    def there(t: Trial) -> Outcome:
        """The list is walked."""
        t.expect(bool(caps(t, cfg_type)), "there is none", "one at least")
        return None


present("D-COM-02", "4.1.4.3.1", CfgType.COMMON, "There is a common configuration structure.")
present("D-NCF-01", "4.1.4.4.1", CfgType.NOTIFY, "There is a notification structure.")
present("D-ISR-01", "4.1.4.5.1", CfgType.ISR, "There is an ISR structure.")
present("D-PCF-01", "4.1.4.9.1", CfgType.PCI_CFG, "There is a configuration access capability.")


@AREA.row("D-COM-01", "4.1.4.3.1", "MUST", "The common structure's offset is divisible by 4.")
def common_is_aligned(t: Trial) -> Outcome:
    """The offset in its BAR; of each of them, where there are several."""
    for cap in caps(t, CfgType.COMMON):
        t.expect(cap.offset % 4 == 0, f"offset {cap.offset:#x} of {cap.name}", "a multiple of 4")
    return None


# --- notifications (4.1.4.4) ------------------------------------------------------------------------------------


def _multiplier(t: Trial, cap: Cap) -> int:
    return _read32(function(t).config, cap.at + pci.NOTIFY_CAP_MULTIPLIER)


def _notify_width(t: Trial) -> int:
    return pci.NOTIFY_DATA_WIDTH if f.has(t.offered, f.NOTIFICATION_DATA) else pci.NOTIFY_WIDTH


@AREA.row("D-NCF-02", "4.1.4.4.1", "MUST", "Its offset is even; with NOTIFICATION_DATA, divisible by 4.")
def notify_is_aligned(t: Trial) -> Outcome:
    """The offset in its BAR; of each of them, where there are several."""
    width = _notify_width(t)
    for cap in caps(t, CfgType.NOTIFY):
        t.expect(cap.offset % width == 0, f"offset {cap.offset:#x} of {cap.name}", f"a multiple of {width}")
    return None


@AREA.row("D-NCF-03", "4.1.4.4.1", "MUST", "notify_off_multiplier is 0 or an even power of two.")
def multiplier_is_a_power(t: Trial) -> Outcome:
    """Read from the capability."""
    seen = _multiplier(t, _one(t, CfgType.NOTIFY))
    t.expect(seen == 0 or (seen > 1 and is_power_of_two32(seen)), f"{seen}", "0, or 2, 4, 8 ...")
    return None


def is_power_of_two32(value: int) -> bool:
    """Whether a number of 32 bits is a power of two."""
    return value > 0 and not value & (value - 1)


@AREA.row("D-NCF-04", "4.1.4.4.1", "MUST", "With NOTIFICATION_DATA the multiplier is 0 or a multiple of 4.")
def multiplier_for_data(t: Trial) -> Outcome:
    """Read from the capability."""
    t.need_feature(f.NOTIFICATION_DATA)
    seen = _multiplier(t, _one(t, CfgType.NOTIFY))
    t.expect(seen % 4 == 0, f"{seen}", "a multiple of 4")
    return None


@AREA.row("D-NCF-05", "4.1.4.4.1", "MUST", "length is 2 at least; with NOTIFICATION_DATA, 4.")
def notify_is_long_enough(t: Trial) -> Outcome:
    """Read from the capability."""
    cap, width = _one(t, CfgType.NOTIFY), _notify_width(t)
    t.expect(cap.length >= width, f"length {cap.length}", f"{width} or more")
    return None


@AREA.row("D-NCF-06", "4.1.4.4.1", "MUST", "length covers the place of each queue.")
def notify_covers_queues(t: Trial) -> Outcome:
    """queue_notify_off x notify_off_multiplier + 2 (or 4) of each queue, against the length."""
    cap, width = _one(t, CfgType.NOTIFY), _notify_width(t)
    multiplier = _multiplier(t, cap)
    common = t.registers("common")
    for queue in range(min(t.transport.num_queues, 64)):
        common.write16(pci.COMMON_QUEUE_SELECT, queue)
        if not common.read16(pci.COMMON_QUEUE_SIZE):
            continue
        end = common.read16(pci.COMMON_QUEUE_NOTIFY_OFF) * multiplier + width
        t.expect(end <= cap.length, f"queue {queue} ends at {end:#x} of {cap.length:#x} bytes", "inside")
    return None


# --- the device's own structure (4.1.4.6) -----------------------------------------------------------------------


def _fields_end(t: Trial) -> int:
    offered = t.offered
    fields = [field for field, needs in FIELDS.get(t.type, ()) if needs is None or f.has(offered, needs)]
    return max((field.end for field in fields), default=0)


@AREA.row("D-DCF-01", "4.1.4.6.1", "MUST", "A type with configuration has a device structure.")
def device_structure(t: Trial) -> Outcome:
    """The list, where an offered feature or the type itself has a field."""
    t.need(_fields_end(t) > 0, f"no field of {t.type} is known, or none is offered")
    t.expect(bool(caps(t, CfgType.DEVICE)), "there is none", "one at least")
    return None


@AREA.row("D-DCF-02", "4.1.4.6.1", "MUST", "The device structure's offset is divisible by 4.")
def device_structure_is_aligned(t: Trial) -> Outcome:
    """The offset in its BAR."""
    cap = _one(t, CfgType.DEVICE)
    t.expect(cap.offset % 4 == 0, f"offset {cap.offset:#x}", "a multiple of 4")
    return None


@AREA.row("D-DCF-03", "4.1.4.6", "DESC", "The device structure reaches the fields of the offered features.")
def device_structure_is_long_enough(t: Trial) -> Outcome:
    """Its length against the end of the last field."""
    end = _fields_end(t)
    t.need(end > 0, f"no field of {t.type} is known, or none is offered")
    cap = _one(t, CfgType.DEVICE)
    t.expect(cap.length >= end, f"{cap.length} bytes", f"{end} or more")
    return None


# --- shared memory, vendor data (4.1.4.7, 4.1.4.8) --------------------------------------------------------------


@AREA.row("D-SHC-01", "4.1.4.7.1", "MUST", "A shared memory region lies inside its BAR.")
def regions_inside(t: Trial) -> Outcome:
    """Offset and length, each of 64 bits, against the BAR."""
    config = function(t).config
    found = caps(t, CfgType.SHARED_MEMORY)
    t.need(bool(found), "there is no shared memory region")
    for cap in found:
        offset = cap.offset | _read32(config, cap.at + pci.CAP64_OFFSET_HIGH) << 32
        length = cap.length | _read32(config, cap.at + pci.CAP64_LENGTH_HIGH) << 32
        bar = function(t).bar(cap.bar)
        size = 0 if bar is None else bar.size
        t.expect(offset + length <= size, f"region {cap.id} ends at {offset + length:#x} of {size:#x}", "inside")
    return None


@AREA.row("D-SHC-02", "4.1.4.7.1", "MUST", "The ids of shared memory regions are unique.")
def region_ids(t: Trial) -> Outcome:
    """The ids of all such capabilities."""
    numbers = [cap.id for cap in caps(t, CfgType.SHARED_MEMORY)]
    t.need(bool(numbers), "there is no shared memory region")
    t.expect(len(set(numbers)) == len(numbers), f"ids {numbers}", "each once")
    return None


@AREA.row("D-VND-01", "4.1.4.8.1", "MUST NOT", "A vendor capability's vendor_id is not 0x1af4.")
def vendor_of_vendor_data(t: Trial) -> Outcome:
    """Read from each such capability."""
    for cap in _vendor(t):
        seen = function(t).config.read16(cap.at + pci.VENDOR_CAP_VENDOR_ID)
        t.expect(seen != pci.VIRTIO_VENDOR, f"{seen:#06x}", "the vendor's own id")
    return None


@AREA.row("D-VND-02", "4.1.4.8.1", "MUST", "The size of a vendor capability is a multiple of 4.")
def size_of_vendor_data(t: Trial) -> Outcome:
    """cap_len of each such capability."""
    for cap in _vendor(t):
        t.expect(cap.cap_len % 4 == 0, f"cap_len {cap.cap_len}", "a multiple of 4")
    return None


@AREA.row(
    "D-VND-03",
    "4.1.4.8.1",
    "MUST NOT",
    "Reading a vendor capability has no side effect.",
    severity=Severity.SILENT,
)
def reading_vendor_data(t: Trial) -> Outcome:
    """Read twice, with status, generation and features before and after."""
    for cap in _vendor(t):
        before = t.status(), t.transport.generation(), t.transport.device_features()
        first, second = ([function(t).config.read8(cap.at + at) for at in range(cap.cap_len)] for _ in range(2))
        t.expect(first == second, "it reads differently the second time", "the same bytes")
        after = t.status(), t.transport.generation(), t.transport.device_features()
        t.expect(after == before, f"status, generation, features {after}", f"{before}, as before")
    return None


def _vendor(t: Trial) -> Iterator[Cap]:
    found = caps(t, CfgType.VENDOR)
    t.need(bool(found), "there is no vendor capability")
    return iter(found)


# --- the window in configuration space (4.1.4.9) ----------------------------------------------------------------


def _aim(t: Trial, bar: int, offset: int, length: int) -> int:
    """Point pci_cfg at a place; where its data is."""
    cap = _one(t, CfgType.PCI_CFG)
    config = function(t).config
    config.write8(cap.at + pci.CAP_BAR, bar)
    config.write32(cap.at + pci.CAP_OFFSET, offset)
    config.write32(cap.at + pci.CAP_LENGTH, length)
    return cap.at + pci.PCI_CFG_CAP_DATA


@AREA.row("D-PCF-02", "4.1.4.9.1", "MUST", "A write to its data writes to the BAR it names.", level=Level.LEGAL)
def window_writes(t: Trial) -> Outcome:
    """device_feature_select is written through the window and read in the BAR."""
    common, cap = t.registers("common"), _one(t, CfgType.COMMON)
    for value in (1, 0):
        data = _aim(t, cap.bar, cap.offset + pci.COMMON_DEVICE_FEATURE_SELECT, 4)
        function(t).config.write32(data, value)
        seen = common.read32(pci.COMMON_DEVICE_FEATURE_SELECT)
        t.expect(seen == value, f"the BAR has {seen}", f"{value}, as written")
    return None


@AREA.row("D-PCF-03", "4.1.4.9.1", "MUST", "A read of its data reads the BAR it names.", level=Level.LEGAL)
def window_reads(t: Trial) -> Outcome:
    """Registers of 1, 2 and 4 bytes, through the window and in the BAR."""
    t.acknowledge()
    common, cap = t.registers("common"), _one(t, CfgType.COMMON)
    for offset, width in (
        (pci.COMMON_DEVICE_STATUS, 1),
        (pci.COMMON_NUM_QUEUES, 2),
        (pci.COMMON_DEVICE_FEATURE, 4),
    ):
        data = _aim(t, cap.bar, cap.offset + offset, width)
        seen = getattr(function(t).config, f"read{8 * width}")(data)
        direct = getattr(common, f"read{8 * width}")(offset)
        t.expect(seen == direct, f"{seen:#x} through the window at {offset:#x}", f"{direct:#x}, as in the BAR")
    return None


@AREA.row(
    "D-PCF-04",
    "4.1.4.9.1",
    "MUST",
    "cap.bar selects the BAR, not only the offset.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
)
def window_goes_by_bar(t: Trial) -> Outcome:
    """The window is aimed at num_queues' offset of a BAR that is not there."""
    cap = _one(t, CfgType.COMMON)
    absent = next((bar for bar in range(pci.BARS) if function(t).bar(bar) is None and not _upper(t, bar)), None)
    t.need(absent is not None, "every BAR is there")
    data = _aim(t, cast(int, absent), cap.offset + pci.COMMON_NUM_QUEUES, 2)
    seen = function(t).config.read16(data)
    count = t.transport.num_queues
    t.need(count not in (0, 0xFFFF), "num_queues has no value that could be told from nothing")
    t.expect(seen != count, f"{seen}, which is num_queues, from BAR {absent}, which is not there", "nothing")
    return None


def _upper(t: Trial, bar: int) -> bool:
    """Whether a BAR register is the upper half of a 64-bit one."""
    return bar > 0 and function(t).config.read32(pci.CFG_BAR0 + 4 * bar - 4) & 7 == pci.BAR_TYPE_64
