"""The layouts of split (2.7) and packed (2.8) virtqueues, and the arithmetic on them.

Sizes and offsets in bytes; ``q`` is the queue size, in descriptors.
"""

from __future__ import annotations

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout
from uvirtio.spec.page import VIRTIO_PAGE
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Final

MAX_SIZE: Final = 32768  # 2.7, 2.8
MAX_CHAIN_BYTES: Final = 1 << 32  # 2.7.5.2

# --- descriptors (2.7.5, 2.8.14) --------------------------------------------------------------------------

DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2  # the device writes this element, else it reads it
DESC_F_INDIRECT: Final = 4
PACKED_DESC_F_AVAIL: Final = 1 << 7  # 2.8.1
PACKED_DESC_F_USED: Final = 1 << 15

DESC_SIZE: Final = 16
DESC: Final[Layout] = (F("addr", 0, 8), F("len", 8, 4), F("flags", 12, 2), F("next", 14, 2))
PACKED_DESC: Final[Layout] = (F("addr", 0, 8), F("len", 8, 4), F("id", 12, 2), F("flags", 14, 2))

# --- the split ring (2.7.6, 2.7.8) ------------------------------------------------------------------------

AVAIL_F_NO_INTERRUPT: Final = 1  # 2.7.7
USED_F_NO_NOTIFY: Final = 1  # 2.7.10

DESC_ALIGN: Final = 16  # 2.7
AVAIL_ALIGN: Final = 2
USED_ALIGN: Final = 4

RING_FLAGS: Final = 0  # in both rings
RING_IDX: Final = 2
RING_ENTRIES: Final = 4
AVAIL_ENTRY_SIZE: Final = 2
USED_ENTRY_SIZE: Final = 8
USED_ENTRY: Final[Layout] = (F("id", 0, 4), F("len", 4, 4))


def desc_size(q: int) -> int:
    """Return the size of the descriptor table."""
    return DESC_SIZE * q


def avail_size(q: int) -> int:
    """Return the size of the available ring, with used_event."""
    return 6 + AVAIL_ENTRY_SIZE * q


def used_size(q: int) -> int:
    """Return the size of the used ring, with avail_event."""
    return 6 + USED_ENTRY_SIZE * q


def used_event_offset(q: int) -> int:
    """Return the offset of used_event in the available ring, where the driver asks for an interrupt (2.7.6)."""
    return RING_ENTRIES + AVAIL_ENTRY_SIZE * q


def avail_event_offset(q: int) -> int:
    """Return the offset of avail_event in the used ring, where the device asks for a kick (2.7.8)."""
    return RING_ENTRIES + USED_ENTRY_SIZE * q


class LegacyLayout(NamedTuple):
    """Offsets of the three parts of a legacy queue (2.7.2) in their page-aligned memory, and its size."""

    desc: int
    avail: int
    used: int
    total: int


def align_up(value: int, alignment: int) -> int:
    """Return ``value`` rounded up to a multiple of ``alignment``, a power of two."""
    return (value + alignment - 1) & ~(alignment - 1)


def legacy_layout(q: int, align: int = VIRTIO_PAGE) -> LegacyLayout:
    """Return the layout of a legacy queue, whose parts are in one piece of memory (2.7.2).

    The standard's ALIGN macro is right only if qalign means the alignment less one; the usual rounding is meant,
    as in every implementation.

    Args:
        q: The queue size.
        align: The Queue Align, 4096 on PCI.
    """
    avail = desc_size(q)
    used = align_up(avail + avail_size(q), align)
    return LegacyLayout(desc=0, avail=avail, used=used, total=used + align_up(used_size(q), align))


# --- the packed ring (2.8) --------------------------------------------------------------------------------

PACKED_RING_ALIGN: Final = 16  # 2.8.10.1
PACKED_EVENT_ALIGN: Final = 4
PACKED_EVENT_SIZE: Final = 4
PACKED_EVENT: Final[Layout] = (F("desc", 0, 2), F("flags", 2, 2))  # 2.8.10

PACKED_EVENT_ENABLE: Final = 0
PACKED_EVENT_DISABLE: Final = 1
PACKED_EVENT_DESC: Final = 2  # with EVENT_IDX only
PACKED_EVENT_FLAGS_MASK: Final = 0x3
PACKED_EVENT_OFF_MASK: Final = 0x7FFF
PACKED_EVENT_WRAP: Final = 0x8000


def packed_ring_size(q: int) -> int:
    """Return the size of the descriptor ring."""
    return DESC_SIZE * q


def is_power_of_two(q: int) -> bool:
    """Return whether ``q`` can be the size of a split queue (2.7)."""
    return 0 < q <= MAX_SIZE and q & (q - 1) == 0
