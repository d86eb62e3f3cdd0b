"""The layouts of split (2.7) and packed (2.8) virtqueues, and the rules that are pure arithmetic.

Sizes and offsets in bytes; ``q`` is the queue size, in descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout
from uvirtio.spec.page import VIRTIO_PAGE

MAX_SIZE: Final = 32768  # 2.7, 2.8
INDEX_MASK: Final = 0xFFFF  # ring indices run freely modulo 65536 (2.7.6)
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
    """The descriptor table."""
    return DESC_SIZE * q


def avail_size(q: int) -> int:
    """The available ring, with used_event."""
    return 6 + AVAIL_ENTRY_SIZE * q


def used_size(q: int) -> int:
    """The used ring, with avail_event."""
    return 6 + USED_ENTRY_SIZE * q


def used_event_offset(q: int) -> int:
    """used_event, at the end of the available ring: the driver asks for an interrupt there (2.7.6)."""
    return RING_ENTRIES + AVAIL_ENTRY_SIZE * q


def avail_event_offset(q: int) -> int:
    """avail_event, at the end of the used ring: the device asks for a kick there (2.7.8)."""
    return RING_ENTRIES + USED_ENTRY_SIZE * q


def need_event(event: int, new: int, old: int) -> bool:
    """Whether the index ``event`` was passed on the way from ``old`` to ``new``, all modulo 65536.

    ``old`` is the index at the last such question, ``new`` the one published since (2.7.7.1, 2.7.10.1). A batch
    of 65536 or more looks like none at all; a ring never holds that many.
    """
    return (new - event - 1) & INDEX_MASK < (new - old) & INDEX_MASK


@dataclass(frozen=True, slots=True)
class SplitLayout:
    """Where the three parts lie when they share one piece of memory that starts well aligned."""

    desc: int
    avail: int
    used: int
    total: int


def align_up(value: int, alignment: int) -> int:
    """``value`` rounded up to a multiple of ``alignment``, a power of two."""
    return (value + alignment - 1) & ~(alignment - 1)


def split_layout(q: int) -> SplitLayout:
    """The parts one after the other, each at its own alignment (2.7)."""
    avail = desc_size(q)
    used = align_up(avail + avail_size(q), USED_ALIGN)
    return SplitLayout(desc=0, avail=avail, used=used, total=used + used_size(q))


def legacy_layout(q: int, align: int = VIRTIO_PAGE) -> SplitLayout:
    """The one region of a legacy queue (2.7.2); ``align`` is the Queue Align, 4096 on PCI.

    The standard's ALIGN macro is right only if qalign means the alignment less one; the rounding meant is
    the usual one, as every implementation has it.
    """
    avail = desc_size(q)
    used = align_up(avail + avail_size(q), align)
    return SplitLayout(desc=0, avail=avail, used=used, total=used + align_up(used_size(q), align))


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
    """The descriptor ring."""
    return DESC_SIZE * q


# --- notification data (2.9) ------------------------------------------------------------------------------


def notification_data(queue: int, next_off: int, next_wrap: int) -> int:
    """The 32-bit word of a kick under NOTIFICATION_DATA.

    ``queue`` is the queue's index, or its queue_notif_config_data under NOTIF_CONFIG_DATA.
    """
    return queue & 0xFFFF | (next_off & 0x7FFF) << 16 | (next_wrap & 1) << 31


def split_notification_data(queue: int, avail_idx: int) -> int:
    """The same for a split queue: next_off and next_wrap are the low 15 bits and bit 15 of avail.idx."""
    return notification_data(queue, avail_idx & 0x7FFF, avail_idx >> 15)


def is_power_of_two(q: int) -> bool:
    """Whether ``q`` can be the size of a split queue (2.7)."""
    return 0 < q <= MAX_SIZE and q & (q - 1) == 0
