"""The virtio capabilities of a PCI function (4.1.4), as a pure function over its configuration space.

A capability list is what a device says, so every hop, length and offset is checked before anybody maps
anything. Nothing here raises on nonsense: the walk reports it, capability by capability, and
:func:`select` alone decides whether what is left is enough to drive the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from uvirtio.errors import CapabilityError
from uvirtio.memory.seams import BarInfo

ConfigReader = Callable[[int, int], int]
"""``read(offset, width)`` of configuration space: width 1, 2 or 4 bytes, aligned, little-endian."""

BarReader = Callable[[int], BarInfo | None]
"""``bars(index)``: the base address register, or None where it is not there."""

Verdict = Literal["ok", "ignored", "bad"]

# PCI 3.0, 6.1 and 6.7: where the list starts, and what an entry looks like.
_VENDOR_ID = 0x00
_STATUS = 0x06
_STATUS_CAP_LIST = 0x10
_CAP_POINTER = 0x34
_CAP_ID_VENDOR = 0x09
_HEADER_END = 0x40
_CONFIG_END = 0x100
MAX_HOPS = (_CONFIG_END - _HEADER_END) // 4
"""48: no list of 4-byte aligned entries between 0x40 and 0xff is longer."""

# struct virtio_pci_cap, 4.1.4.
_CAP_NEXT = 1
_CAP_LEN = 2
_CFG_TYPE = 3
_BAR = 4
_ID = 5
_OFFSET = 8
_LENGTH = 12
_NOTIFY_MULTIPLIER = 16  # struct virtio_pci_notify_cap, 4.1.4.4
_OFFSET_HI = 16  # struct virtio_pci_cap64, 4.1.4
_LENGTH_HI = 20
_VENDOR_DATA_ID = 4  # struct virtio_pci_vndr_data, 4.1.4.8

COMMON = "common"
NOTIFY = "notify"
ISR = "isr"
DEVICE = "device"
PCI_CFG = "pci_cfg"
SHARED_MEMORY = "shared_memory"
VENDOR = "vendor"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the standard says of one cfg_type."""

    name: str
    cap_len: int
    """The least cap_len: the bytes of its structure in configuration space."""
    needed: int = 0
    """The bytes in the BAR without which the structure is useless; 0: it does not live in a BAR."""
    align: int = 1


_SHAPES: dict[int, _Shape] = {
    1: _Shape(COMMON, 16, needed=56, align=4),  # 4.1.4.3: up to and with queue_device
    2: _Shape(NOTIFY, 20, needed=2, align=2),  # 4.1.4.4.1
    3: _Shape(ISR, 16, needed=1),  # 4.1.4.5
    4: _Shape(DEVICE, 16, needed=1, align=4),  # 4.1.4.6.1
    5: _Shape(PCI_CFG, 20),  # 4.1.4.9: its bar, offset and length are ours to write
    8: _Shape(SHARED_MEMORY, 24, needed=1),  # 4.1.4.7
    9: _Shape(VENDOR, 6),  # 4.1.4.8
}


@dataclass(frozen=True, slots=True)
class VirtioCapability:
    """One vendor capability of the list, as the device gives it, and what we make of it.

    ``length`` is the device's own word; ``usable`` is how much of it lies inside the BAR (bytes). A fault of
    the list itself (a loop, a pointer into the header) is an entry of type ``unknown`` with ``cfg_type`` None.
    """

    type: str
    cfg_type: int | None
    config_offset: int
    bar: int = 0
    offset: int = 0
    length: int = 0
    usable: int = 0
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
        """The capability as the JSON of ``inspect`` has it."""
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
    """All vendor capabilities of the function, in the order of its list, each with a verdict.

    ``config`` must be readable up to byte 0xff. ``bars`` None means that the BARs are not known here: then
    nothing is judged by them. At most :data:`MAX_HOPS` entries are visited. Raises what ``config`` raises,
    nothing else.
    """
    found: list[VirtioCapability] = []
    if config(_VENDOR_ID, 2) == 0xFFFF:
        return [_fault(_VENDOR_ID, "configuration space reads all ones: the function does not answer")]
    if not config(_STATUS, 2) & _STATUS_CAP_LIST:
        return found
    seen: set[int] = set()
    taken: set[tuple[int, int]] = set()
    came_from = _CAP_POINTER
    at = config(_CAP_POINTER, 1) & 0xFC  # the two low bits are reserved (PCI 3.0, 6.7)
    while at:
        if at < _HEADER_END:
            found.append(_fault(came_from, f"the list points into the header, at {at:#04x}"))
            break
        if at in seen or len(seen) >= MAX_HOPS:
            found.append(_fault(came_from, f"the list loops back to {at:#04x}"))
            break
        seen.add(at)
        if config(at, 1) == _CAP_ID_VENDOR:
            found.append(_one(config, bars, at, taken))
        came_from = at + _CAP_NEXT
        at = config(came_from, 1) & 0xFC
    return found


def _fault(at: int, why: str) -> VirtioCapability:
    return VirtioCapability(type=UNKNOWN, cfg_type=None, config_offset=at, verdict="bad", why=why)


def _one(config: ConfigReader, bars: BarReader | None, at: int, taken: set[tuple[int, int]]) -> VirtioCapability:
    """Read and judge the capability at ``at``; ``taken`` holds the (cfg_type, id) that already have one."""
    cap_len = config(at + _CAP_LEN, 1)
    cfg_type = config(at + _CFG_TYPE, 1)
    shape = _SHAPES.get(cfg_type)
    cap = VirtioCapability(
        type=shape.name if shape else UNKNOWN, cfg_type=cfg_type, config_offset=at, cap_len=cap_len
    )
    room = _CONFIG_END - at
    if shape is None:
        # 4.1.4.1: a driver must ignore reserved types, so that later versions can add some.
        cap = replace(cap, verdict="ignored", why=f"cfg_type {cfg_type} is reserved")
        return _base(config, cap) if min(room, cap_len) >= 16 else cap
    if cap_len < shape.cap_len:
        return replace(
            cap, verdict="bad", why=f"cap_len {cap_len} is less than the {shape.cap_len} bytes of its type"
        )
    if room < shape.cap_len:
        return replace(cap, verdict="bad", why="the capability runs past the end of configuration space")
    if shape.name == VENDOR:
        return replace(cap, vendor_id=config(at + _VENDOR_DATA_ID, 2))
    cap = _base(config, cap)
    if shape.name == NOTIFY:
        cap = replace(cap, notify_off_multiplier=config(at + _NOTIFY_MULTIPLIER, 4))
    elif shape.name == SHARED_MEMORY:
        cap = replace(
            cap,
            offset=cap.offset | config(at + _OFFSET_HI, 4) << 32,
            length=cap.length | config(at + _LENGTH_HI, 4) << 32,
        )
        cap = replace(cap, usable=cap.length)
    cap = _judge(cap, shape, bars)
    if cap.verdict == "ok":
        # 4.1.4.1: the first usable one of a type counts. Shared memory regions differ by their id (4.1.4.7).
        key = (cfg_type, cap.id if shape.name == SHARED_MEMORY else 0)
        if key in taken:
            return replace(cap, verdict="ignored", why="not the first of its type")
        taken.add(key)
    return cap


def _base(config: ConfigReader, cap: VirtioCapability) -> VirtioCapability:
    """``cap`` with the fields of struct virtio_pci_cap."""
    at = cap.config_offset
    length = config(at + _LENGTH, 4)
    return replace(
        cap,
        bar=config(at + _BAR, 1),
        id=config(at + _ID, 1),
        offset=config(at + _OFFSET, 4),
        length=length,
        usable=length,
    )


def _judge(cap: VirtioCapability, shape: _Shape, bars: BarReader | None) -> VirtioCapability:
    if not shape.needed:
        return cap
    if cap.bar > 5:
        return replace(cap, verdict="ignored", why=f"BAR {cap.bar} is reserved")  # 4.1.4.1
    if cap.length < shape.needed:
        return replace(cap, verdict="bad", why=f"length {cap.length} is less than the {shape.needed} bytes needed")
    if cap.offset % shape.align:
        return replace(cap, verdict="bad", why=f"offset {cap.offset:#x} is not aligned to {shape.align} bytes")
    bits = 64 if shape.name == SHARED_MEMORY else 32
    if cap.offset + cap.length > 1 << bits:
        return replace(cap, verdict="bad", why=f"offset + length wraps round {bits} bits")
    if bars is None:
        return cap
    bar = bars(cap.bar)
    if bar is None or bar.size <= 0:
        return replace(cap, verdict="bad", why=f"BAR {cap.bar} is not there")
    if cap.offset + shape.needed > bar.size:
        return replace(
            cap,
            usable=max(0, bar.size - cap.offset),
            verdict="bad",
            why=f"offset {cap.offset:#x} + {shape.needed} is outside BAR {cap.bar} of {bar.size:#x} bytes",
        )
    if cap.offset + cap.length > bar.size:
        # 4.1.4.1: a length may be surprisingly big; what is inside the BAR will do.
        return replace(
            cap,
            usable=bar.size - cap.offset,
            why=f"length {cap.length:#x} ends outside BAR {cap.bar} of {bar.size:#x} bytes; cut to fit",
        )
    return cap


def select(caps: Iterable[VirtioCapability]) -> dict[str, VirtioCapability]:
    """The first usable ``common``, ``notify``, ``isr`` and (where there is one) ``device`` capability.

    Raises CapabilityError when one of the first three is missing, or when notifications would be written
    over the common configuration.
    """
    every = list(caps)
    chosen: dict[str, VirtioCapability] = {}
    for cap in every:
        if cap.verdict == "ok" and cap.type in (COMMON, NOTIFY, ISR, DEVICE):
            chosen.setdefault(cap.type, cap)
    for name in (COMMON, NOTIFY, ISR):
        if name not in chosen:
            raise _missing(name, every)
    return _apart(chosen)


def _missing(name: str, every: list[VirtioCapability]) -> CapabilityError:
    refused = [f"at {cap.config_offset:#04x}: {cap.type}: {cap.why}" for cap in every if cap.verdict != "ok"]
    if not every:
        seen, remedy = "no vendor capability at all", "a legacy device has none; it needs the legacy transport"
    else:
        seen = "; ".join(refused) if refused else "none of this type"
        remedy = "see `uvirtio inspect`; the device's capability list is wrong"
    return CapabilityError(
        f"the function has no usable {name} capability",
        seen=seen,
        expected="one usable capability each of common, notify and isr (4.1.4)",
        remedy=remedy,
    )


def _apart(chosen: Mapping[str, VirtioCapability]) -> dict[str, VirtioCapability]:
    """Keep kicks off the common configuration, whatever the device says of its notification area."""
    made = dict(chosen)
    common, notify = made[COMMON], made[NOTIFY]
    if common.bar != notify.bar:
        return made
    common_end = common.offset + _SHAPES[1].needed
    if common.offset <= notify.offset < common_end or notify.offset < common.offset < notify.offset + 2:
        raise CapabilityError(
            "the notification area lies on the common configuration",
            seen=f"BAR {common.bar}: common at {common.offset:#x}, notify at {notify.offset:#x}",
            expected="two areas that do not overlap",
            remedy="the device's capability list is wrong",
        )
    if notify.offset < common.offset < notify.end:
        made[NOTIFY] = replace(notify, usable=common.offset - notify.offset, why="cut where common begins")
    return made
