"""The block device (5.2). Offsets, widths and sizes in bytes; sectors are 512 bytes whatever blk_size says."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 2
REQUESTQ: Final = 0  # 5.2.2; requestqN is N - 1 with MQ

SECTOR_SIZE: Final = 512

# Configuration (5.2.4).
CONFIG: Final[Layout] = (
    F("capacity", 0, 8),  # in sectors
    F("size_max", 8, 4),  # with SIZE_MAX
    F("seg_max", 12, 4),  # with SEG_MAX
    F("cylinders", 16, 2),  # with GEOMETRY
    F("heads", 18, 1),
    F("sectors", 19, 1),
    F("blk_size", 20, 4),  # with BLK_SIZE
    F("physical_block_exp", 24, 1),  # with TOPOLOGY
    F("alignment_offset", 25, 1),
    F("min_io_size", 26, 2),
    F("opt_io_size", 28, 4),
    F("writeback", 32, 1),  # with CONFIG_WCE
    F("unused0", 33, 1),
    F("num_queues", 34, 2),  # with MQ
    F("max_discard_sectors", 36, 4),  # with DISCARD
    F("max_discard_seg", 40, 4),
    F("discard_sector_alignment", 44, 4),
    F("max_write_zeroes_sectors", 48, 4),  # with WRITE_ZEROES
    F("max_write_zeroes_seg", 52, 4),
    F("write_zeroes_may_unmap", 56, 1),
    F("unused1", 57, 3),
    F("max_secure_erase_sectors", 60, 4),  # with SECURE_ERASE
    F("max_secure_erase_seg", 64, 4),
    F("secure_erase_sector_alignment", 68, 4),
    F("zone_sectors", 72, 4),  # with ZONED
    F("max_open_zones", 76, 4),
    F("max_active_zones", 80, 4),
    F("max_append_sectors", 84, 4),
    F("write_granularity", 88, 4),
    F("model", 92, 1),
    F("unused2", 93, 3),
)
CONFIG_MIN_SIZE: Final = 8
CONFIG_SIZE: Final = 96


class Request(IntEnum):
    """Types of requests (5.2.6)."""

    IN = 0
    OUT = 1
    SCSI_CMD = 2  # legacy, 5.2.6.3
    FLUSH = 4
    FLUSH_OUT = 5  # legacy, another name of FLUSH (5.2.6.3)
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


HEADER: Final[Layout] = (F("type", 0, 4), F("reserved", 4, 4), F("sector", 8, 8))
HEADER_SIZE: Final = 16
STATUS_SIZE: Final = 1


class Status(IntEnum):
    """The byte at the end of a request (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


# One range of DISCARD, WRITE_ZEROES and SECURE_ERASE (5.2.6).
SEGMENT: Final[Layout] = (F("sector", 0, 8), F("num_sectors", 8, 4), F("flags", 12, 4))
SEGMENT_SIZE: Final = 16
SEGMENT_F_UNMAP: Final = 1  # WRITE_ZEROES only (5.2.6.1)

ID_SIZE: Final = 20  # GET_ID (5.2.6.1)
LIFETIME: Final[Layout] = (
    F("pre_eol_info", 0, 2),
    F("device_lifetime_est_typ_a", 2, 2),
    F("device_lifetime_est_typ_b", 4, 2),
)
LIFETIME_SIZE: Final = 6
