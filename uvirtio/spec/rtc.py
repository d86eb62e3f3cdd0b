"""The real-time clock device (5.23). Offsets, widths and sizes in bytes; times in nanoseconds."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

TYPE: Final = 17
REQUESTQ: Final = 0  # 5.23.2


class Request(IntEnum):
    """Types of messages (5.23.6)."""

    READ = 0x0001
    READ_CROSS = 0x0002
    CFG = 0x1000
    CLOCK_CAP = 0x1001


class Status(IntEnum):
    """How a request ended (5.23.6)."""

    OK = 0
    EOPNOTSUPP = 2
    EINVAL = 3
    EIO = 4


HEAD: Final = Struct("<H6x")
"""msg_type; all of CFG."""
OF_CLOCK: Final = Struct("<H6xH6x")
"""msg_type, clock_id: READ and CLOCK_CAP."""
CFG: Final = Struct("<B7xH6x")
"""status, num_clocks."""
CLOCK_CAP: Final = Struct("<B7xBBB5x")
"""status, type, leap_second_smearing, flags."""
READ: Final = Struct("<B7xQ")
"""status, clock_reading."""

CLOCK_TYPES: Final = {0: "UTC", 1: "TAI", 2: "monotonic", 3: "smeared UTC", 4: "maybe smeared UTC"}
UTC: Final = 0
