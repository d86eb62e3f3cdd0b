"""The memory device, virtio-mem (5.15). Offsets, widths and sizes in bytes."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 24
GUEST_REQUESTQ: Final = 0  # 5.15.2

# Configuration (5.15.4); a driver writes none of it (5.15.4.1).
CONFIG: Final[Layout] = (
    F("block_size", 0, 8),
    F("node_id", 8, 2),  # with ACPI_PXM
    F("padding", 10, 6),
    F("addr", 16, 8),
    F("region_size", 24, 8),
    F("usable_region_size", 32, 8),
    F("plugged_size", 40, 8),  # changes without a notification (5.15.4.2)
    F("requested_size", 48, 8),
)
CONFIG_SIZE: Final = 56


class Request(IntEnum):
    """Types of requests (5.15.6)."""

    PLUG = 0  # 5.15.6.3
    UNPLUG = 1  # 5.15.6.4
    UNPLUG_ALL = 2  # 5.15.6.5
    STATE = 3  # 5.15.6.6


REQUEST: Final[Layout] = (
    F("type", 0, 2),
    F("padding", 2, 6),
    F("addr", 8, 8),
    F("nb_blocks", 16, 2),
    F("padding2", 18, 6),
)
REQUEST_SIZE: Final = 24
MAX_BLOCKS: Final = 0xFFFF  # nb_blocks is 16 bits wide


class Response(IntEnum):
    """Types of responses (5.15.6)."""

    ACK = 0
    NACK = 1  # would exceed requested_size, or not now
    BUSY = 2  # try again later
    ERROR = 3  # the request is invalid


RESPONSE: Final[Layout] = (F("type", 0, 2), F("padding", 2, 6), F("state", 8, 2))
RESPONSE_SIZE: Final = 10


class State(IntEnum):
    """The result of a STATE request whose response is ACK (5.15.6.6)."""

    PLUGGED = 0
    UNPLUGGED = 1
    MIXED = 2
