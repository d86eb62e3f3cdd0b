"""The virtio capabilities of a PCI function (4.1.4), as a pure function over its configuration space.

A capability list comes from the device, so every link, length and offset is checked before anything is mapped.
The walk does not fail on invalid entries: it reports them, capability by capability, and ``select`` alone decides
whether what is left is enough to drive the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from uvirtio.errors import CapabilityError
from uvirtio.interfaces.values import BarInfo
from uvirtio.spec import pci
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any, Literal

    Verdict = Literal["ok", "ignored", "bad"]

ConfigReader = Callable[[int, int], int]
"""``read(offset, width)`` of configuration space: width 1, 2 or 4 bytes, aligned, little-endian."""

BarReader = Callable[[int], BarInfo | None]
"""``bars(index)``: the base address register, or None where it is not implemented."""

MAX_HOPS = pci.MAX_CAPABILITIES
"""48: no list of 4-byte aligned entries between 0x40 and 0xff is longer."""

COMMON = "common"
NOTIFY = "notify"
ISR = "isr"
DEVICE = "device"
STRUCTURES = (COMMON, NOTIFY, ISR, DEVICE)
PCI_CFG = "pci_cfg"
SHARED_MEMORY = "shared_memory"
VENDOR = "vendor"
UNKNOWN = "unknown"


# The bytes in the BAR without which a structure is useless. PCI_CFG and VENDOR are not in a BAR: the
# driver writes bar, offset and length of the first (4.1.4.9), the second has none (4.1.4.8).
_NEEDED = {
    pci.CfgType.COMMON: pci.COMMON_CFG_MIN_SIZE,
    pci.CfgType.NOTIFY: pci.NOTIFY_WIDTH,
    pci.CfgType.ISR: pci.ISR_SIZE,
    pci.CfgType.DEVICE: 1,
    pci.CfgType.SHARED_MEMORY: 1,
}


class VirtioCapability(NamedTuple):
    """One vendor capability of the list, as the device presents it, and the verdict on it.

    A fault of the list itself (a loop, a pointer into the header) is an entry of type ``unknown`` with
    ``cfg_type`` None.
    """

    type: str
    cfg_type: int | None
    config_offset: int
    """Place of the capability in configuration space, in bytes."""

    bar: int = 0
    offset: int = 0
    length: int = 0
    """Length of the structure as the device gives it, in bytes."""

    usable: int = 0
    """How much of it is inside the BAR, in bytes."""

    id: int = 0
    cap_len: int = 0
    notify_off_multiplier: int | None = None
    vendor_id: int | None = None
    verdict: Verdict = "ok"
    why: str = ""

    @property
    def end(self) -> int:
        """The first byte of the BAR behind the usable part."""
        return self.offset + self.usable

    def as_dict(self) -> dict[str, Any]:
        """Return the capability as the JSON of ``inspect`` has it."""
        made: dict[str, Any] = {
            "type": self.type,
            "cfg_type": self.cfg_type,
            "bar": self.bar,
            "offset": self.offset,
            "length": self.length,
            "config_offset": self.config_offset,
            "id": self.id,
            "verdict": self.verdict,
            "why": self.why,
        }
        if self.notify_off_multiplier is not None:
            made["notify_off_multiplier"] = self.notify_off_multiplier
        if self.vendor_id is not None:
            made["vendor_id"] = self.vendor_id
        return made


def walk_capabilities(config: ConfigReader, bars: BarReader | None = None) -> list[VirtioCapability]:
    """Return all vendor capabilities of the function, in the order of its list, each with a verdict.

    At most ``MAX_HOPS`` entries are visited. No error but those of ``config`` leaves it.

    Args:
        config: Reads configuration space, up to byte 0xff.
        bars: Reads the base address registers; None: they are unknown, and nothing is judged by them.
    """
    return list(each_capability(config, bars))


def each_capability(config: ConfigReader, bars: BarReader | None = None) -> Iterator[VirtioCapability]:
    """Yield the same one by one, so that no more is read than is asked for."""
    if config(pci.CFG_VENDOR_ID, 2) == 0xFFFF:
        yield _fault(pci.CFG_VENDOR_ID, "configuration space reads all ones: the function does not respond")
        return
    taken: set[tuple[int, int]] = set()
    for at, what in capability_list(config):
        if isinstance(what, str):
            yield _fault(at, what)
        elif what == pci.CapId.VENDOR:
            yield _one(config, bars, at, taken)


def capability_list(config: ConfigReader) -> Iterator[tuple[int, int | str]]:
    """Yield the place and the id of every capability of the function, in the order of its list (PCI 3.0, 6.7).

    At most ``MAX_HOPS`` entries are visited. A list that does not end as it should ends with the place of its bad
    link, and what is wrong there as text.

    Args:
        config: Reads configuration space, up to byte 0xff.
    """
    if not config(pci.CFG_STATUS, 2) & pci.STATUS_CAP_LIST:
        return
    seen: set[int] = set()
    came_from = pci.CFG_CAPABILITIES_POINTER
    at = config(came_from, 1) & pci.CAP_NEXT_MASK  # the two low bits are reserved
    while at:
        if at < pci.CAP_FIRST:
            yield came_from, f"the list points into the header, at {at:#04x}"
            return
        if at in seen or len(seen) >= MAX_HOPS:
            yield came_from, f"the list loops back to {at:#04x}"
            return
        seen.add(at)
        yield at, config(at, 1)
        came_from = at + pci.CAP_NEXT
        at = config(came_from, 1) & pci.CAP_NEXT_MASK


def _fault(at: int, why: str) -> VirtioCapability:
    return VirtioCapability(type=UNKNOWN, cfg_type=None, config_offset=at, verdict="bad", why=why)


def _one(config: ConfigReader, bars: BarReader | None, at: int, taken: set[tuple[int, int]]) -> VirtioCapability:
    """Read and judge the capability at ``at``; ``taken`` holds the (cfg_type, id) that have one already."""
    cap_len = config(at + pci.CAP_LEN, 1)
    cfg_type = config(at + pci.CAP_CFG_TYPE, 1)
    cap = VirtioCapability(type=pci.cfg_type_name(cfg_type), cfg_type=cfg_type, config_offset=at, cap_len=cap_len)
    room = pci.CONFIG_SIZE - at
    least = pci.CAP_SIZES.get(cfg_type)
    if least is None:
        # 4.1.4.1: a driver must ignore reserved types, so that later versions can add some.
        cap = cap._replace(verdict="ignored", why=f"cfg_type {cfg_type} is reserved")
        return _base(config, cap) if min(room, cap_len) >= pci.CAP_SIZE else cap
    if cap_len < least:
        return cap._replace(verdict="bad", why=f"cap_len {cap_len} is less than the {least} bytes of its type")
    if room < least:
        return cap._replace(verdict="bad", why="the capability runs past the end of configuration space")
    if cfg_type == pci.CfgType.VENDOR:
        return cap._replace(vendor_id=config(at + pci.VENDOR_CAP_VENDOR_ID, 2))
    cap = _base(config, cap)
    if cfg_type == pci.CfgType.NOTIFY:
        cap = cap._replace(notify_off_multiplier=config(at + pci.NOTIFY_CAP_MULTIPLIER, 4))
    elif cfg_type == pci.CfgType.SHARED_MEMORY:
        length = cap.length | config(at + pci.CAP64_LENGTH_HIGH, 4) << 32
        offset = cap.offset | config(at + pci.CAP64_OFFSET_HIGH, 4) << 32
        cap = cap._replace(offset=offset, length=length, usable=length)
    cap = judge(cap, cfg_type, bars)
    if cap.verdict == "ok":
        # 4.1.4.1: the first usable one of a type counts. Shared memory regions differ by their id (4.1.4.7).
        key = (cfg_type, cap.id if cfg_type == pci.CfgType.SHARED_MEMORY else 0)
        if key in taken:
            return cap._replace(verdict="ignored", why="not the first of its type")
        taken.add(key)
    return cap


def _base(config: ConfigReader, cap: VirtioCapability) -> VirtioCapability:
    """``cap`` with the fields of struct virtio_pci_cap."""
    at = cap.config_offset
    length = config(at + pci.CAP_LENGTH, 4)
    return cap._replace(
        bar=config(at + pci.CAP_BAR, 1),
        id=config(at + pci.CAP_SHMID, 1),
        offset=config(at + pci.CAP_OFFSET, 4),
        length=length,
        usable=length,
    )


def judge(cap: VirtioCapability, cfg_type: int, bars: BarReader | None) -> VirtioCapability:
    """Return the capability with the verdict on its place (4.1.4.1).

    Args:
        cap: The capability with its BAR, offset and length.
        cfg_type: Its type; one that is defined.
        bars: Reads the base address registers; None: they are unknown, and nothing is judged by them.
    """
    needed = _NEEDED.get(pci.CfgType(cfg_type))
    if needed is None:
        return cap
    if cap.bar > pci.MAX_BAR:
        return cap._replace(verdict="ignored", why=f"BAR {cap.bar} is reserved")  # 4.1.4.1
    if cap.length < needed:
        return cap._replace(verdict="bad", why=f"length {cap.length} is less than the {needed} bytes needed")
    align = pci.CAP_ALIGNMENT.get(cfg_type, 1)
    if cap.offset % align:
        return cap._replace(verdict="bad", why=f"offset {cap.offset:#x} is not aligned to {align} bytes")
    bits = 64 if cfg_type == pci.CfgType.SHARED_MEMORY else 32
    if cap.offset + cap.length > 1 << bits:
        return cap._replace(verdict="bad", why=f"offset + length wraps round {bits} bits")
    if bars is None:
        return cap
    bar = bars(cap.bar)
    if bar is None or bar.size <= 0:
        return cap._replace(verdict="bad", why=f"BAR {cap.bar} is not there")
    inside = max(0, bar.size - cap.offset)
    if inside < needed:
        return cap._replace(
            usable=inside,
            verdict="bad",
            why=f"offset {cap.offset:#x} + {needed} is outside BAR {cap.bar} of {bar.size:#x} bytes",
        )
    if inside < cap.length:
        # 4.1.4.1: a length may be unexpectedly large; what is inside the BAR is enough.
        return cap._replace(
            usable=inside,
            why=f"length {cap.length:#x} ends outside BAR {cap.bar} of {bar.size:#x} bytes; cut to fit",
        )
    return cap


def modern(caps: Iterable[VirtioCapability]) -> bool:
    """Whether any of the structures is listed, usable or not: without any it is a legacy device (4.1.5.1.1.1)."""
    return any(cap.type in STRUCTURES for cap in caps)


def pci_cfg_data(caps: Iterable[VirtioCapability]) -> tuple[tuple[int, int], ...]:
    """The places of ``pci_cfg_data`` in configuration space, as (offset, length) in bytes.

    Reading them makes the device read a BAR (4.1.4.9), so who copies configuration space leaves them out.

    Args:
        caps: The capabilities, as ``walk_capabilities`` returns them.
    """
    return tuple(
        (cap.config_offset + pci.PCI_CFG_CAP_DATA, 4)
        for cap in caps
        if cap.cfg_type == pci.CfgType.PCI_CFG and cap.config_offset + pci.PCI_CFG_CAP_SIZE <= pci.CONFIG_SIZE
    )


def copied(config: ConfigReader, length: int, hidden: Iterable[tuple[int, int]]) -> bytes:
    """Return a copy of configuration space, with zeros in the place of what is not read.

    Args:
        config: Reads configuration space, by words of 4 bytes.
        length: Bytes, a multiple of 4.
        hidden: The words that are not read, as ``pci_cfg_data`` returns them.
    """
    unread = {start for start, _ in hidden}
    return b"".join(
        bytes(4) if at in unread else config(at, 4).to_bytes(4, "little") for at in range(0, length, 4)
    )


def vendor_data(config: ConfigReader, cap: VirtioCapability, vendor_id: int) -> bytes:
    """Return the data of a vendor capability (4.1.4.8), for reports and debugging only (4.1.4.8.2).

    Args:
        config: Reads configuration space.
        cap: The capability.
        vendor_id: The vendor whose data is expected: the bytes have a meaning only together with it.

    Raises:
        CapabilityError: The capability is another vendor's, or not a vendor capability.
    """
    if cap.type != VENDOR or cap.verdict != "ok" or cap.vendor_id != vendor_id:
        raise CapabilityError(
            f"the {cap.type} capability at {cap.config_offset:#04x} holds no data of vendor {vendor_id:#06x}",
            seen=cap.type if cap.vendor_id is None else f"vendor {cap.vendor_id:#06x}",
            expected=f"vendor {vendor_id:#06x} (4.1.4.8.2)",
        )
    end = min(cap.config_offset + cap.cap_len, pci.CONFIG_SIZE)
    return bytes(config(at, 1) for at in range(cap.config_offset + pci.VENDOR_CAP_SIZE, end))


def select(caps: Iterable[VirtioCapability], *, look: str = "uvirtio inspect") -> dict[str, VirtioCapability]:
    """Return the first usable ``common``, ``notify``, ``isr`` and (if present) ``device`` capability.

    Args:
        caps: The capabilities, in the order of their list.
        look: The command that shows more of this device, for remedies.

    Raises:
        CapabilityError: One of the first three is missing, or notifications would be written over the common
            configuration.
    """
    every = list(caps)
    chosen: dict[str, VirtioCapability] = {}
    for cap in every:
        if cap.verdict == "ok" and cap.type in STRUCTURES:
            chosen.setdefault(cap.type, cap)
    for name in (COMMON, NOTIFY, ISR):
        if name not in chosen:
            raise _missing(name, every, look)
    return _apart(chosen)


def over_msix(config: ConfigReader, caps: Iterable[VirtioCapability]) -> list[str]:
    """Say which structures overlap the function's MSI-X table or its pending bits, a line each.

    A driver's write to such a structure changes a vector (PCI 3.0, 6.8.2).

    Args:
        config: Reads configuration space, up to byte 0xff.
        caps: The structures that are used.
    """
    at = next((at for at, what in capability_list(config) if what == pci.CapId.MSIX), None)
    if at is None or at + pci.MSIX_CAP_SIZE > pci.CONFIG_SIZE:
        return []
    vectors = (config(at + pci.MSIX_CONTROL, 2) & pci.MSIX_CONTROL_SIZE_MASK) + 1
    places = [
        ("the MSI-X table", config(at + pci.MSIX_TABLE, 4), vectors * pci.MSIX_ENTRY_SIZE),
        ("the MSI-X pending bits", config(at + pci.MSIX_PBA, 4), -(-vectors // 64) * 8),
    ]
    return [
        f"the {cap.type} structure at {cap.offset:#x} of BAR {cap.bar} overlaps {what}"
        for cap in caps
        for what, place, size in places
        if cap.bar == place & pci.MSIX_BIR_MASK
        and cap.offset < (place & pci.MSIX_OFFSET_MASK) + size
        and place & pci.MSIX_OFFSET_MASK < cap.end
    ]


def _missing(name: str, every: list[VirtioCapability], look: str) -> CapabilityError:
    refused = [f"at {cap.config_offset:#04x}: {cap.type}: {cap.why}" for cap in every if cap.verdict != "ok"]
    if not every:
        seen = "no vendor capability at all"
        remedy = "only a legacy device (1af4:1000 to 103f) has none, and this is not one according to its ID"
    else:
        seen = "; ".join(refused) if refused else "none of this type"
        remedy = f"see `{look}`; the device's capability list is wrong"
    return CapabilityError(
        f"the function has no usable {name} capability",
        seen=seen,
        expected="one usable capability each of common, notify and isr (4.1.4)",
        remedy=remedy,
    )


def _apart(chosen: Mapping[str, VirtioCapability]) -> dict[str, VirtioCapability]:
    """Keep kicks off the common configuration, whatever the device reports as its notification area."""
    made = dict(chosen)
    common, notify = made[COMMON], made[NOTIFY]
    if common.bar != notify.bar:
        return made
    common_end = common.offset + pci.COMMON_CFG_MIN_SIZE
    if (
        common.offset <= notify.offset < common_end
        or notify.offset < common.offset < notify.offset + pci.NOTIFY_WIDTH
    ):
        raise CapabilityError(
            "the notification area overlaps the common configuration",
            seen=f"BAR {common.bar}: common at {common.offset:#x}, notify at {notify.offset:#x}",
            expected="two areas that do not overlap",
            remedy="the device's capability list is wrong",
        )
    if notify.offset < common.offset < notify.end:
        made[NOTIFY] = notify._replace(usable=common.offset - notify.offset, why="cut where common begins")
    return made
