"""The traditional memory balloon (5.5). Offsets, widths and sizes in bytes."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 5

# Queues (5.5.2). The last three exist only with their features, and not every device has them at these indices:
# see drivers/balloon/queues.py.
INFLATEQ: Final = 0
DEFLATEQ: Final = 1
STATSQ: Final = 2  # with STATS_VQ
FREE_PAGE_VQ: Final = 3  # with FREE_PAGE_HINT
REPORTING_VQ: Final = 4  # with PAGE_REPORTING
STATSQ_NAME: Final = "statsq"
FREE_PAGE_VQ_NAME: Final = "free_page_vq"
REPORTING_VQ_NAME: Final = "reporting_vq"

# Configuration (5.5.4), little-endian on legacy devices too (5.5.4.0.0.1).
CONFIG: Final[Layout] = (
    F("num_pages", 0, 4),  # the target
    F("actual", 4, 4),  # what the driver says that it holds
    F("free_page_hint_cmd_id", 8, 4),  # with FREE_PAGE_HINT, read only
    F("poison_val", 12, 4),  # with PAGE_POISON
)
CONFIG_MIN_SIZE: Final = 8
CONFIG_SIZE: Final = 16
NUM_PAGES: Final = 0
ACTUAL: Final = 4
FREE_PAGE_HINT_CMD_ID: Final = 8
POISON_VAL: Final = 12

PFN_SIZE: Final = 4  # le32 each
PFNS_PER_BUFFER: Final = 256  # Linux's choice (drivers/virtio/virtio_balloon.c); the standard sets no limit

# Free page hinting (5.5.6.5).
CMD_ID_STOP: Final = 0
CMD_ID_DONE: Final = 1
CMD_ID_FIRST: Final = 2  # the lowest id of a round of hints
CMD_ID_SIZE: Final = 4


class Stat(IntEnum):
    """Tags of the statistics queue (5.5.6.4)."""

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJFLT = 2
    MINFLT = 3
    MEMFREE = 4
    MEMTOT = 5
    AVAIL = 6
    CACHES = 7
    HTLB_PGALLOC = 8
    HTLB_PGFAIL = 9
    # Newer than the standard: Linux 6.12's <linux/virtio_balloon.h>.
    OOM_KILL = 10
    ALLOC_STALL = 11
    ASYNC_SCAN = 12
    DIRECT_SCAN = 13
    ASYNC_RECLAIM = 14
    DIRECT_RECLAIM = 15


# An entry is packed, 10 bytes; 5.5.6.3.1 still speaks of multiples of 6, which is an oversight.
STAT: Final[Layout] = (F("tag", 0, 2), F("val", 2, 8))
STAT_SIZE: Final = 10
