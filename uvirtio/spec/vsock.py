"""The socket device (5.10). Offsets, widths and sizes in bytes."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 19
RX: Final = 0  # 5.10.2
TX: Final = 1
EVENT: Final = 2

# Configuration (5.10.4).
CONFIG: Final[Layout] = (F("guest_cid", 0, 8),)

HEADER: Final = Struct("<QQIIIHHIII")
"""src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt (5.10.6)."""

HOST_CID: Final = 2
RESERVED_CIDS: Final = frozenset({0, 1, 2, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF})
"""What a guest cannot be (5.10.4)."""
STREAM: Final = 1
"""``type`` of a packet."""


class Op(IntEnum):
    """``op`` of a packet (5.10.6)."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7
