"""The 9P transport (type 9), of which the standard has the number alone; messages are those of 9P2000.L.

Field widths as in the manual pages of Plan 9's section 5 and Linux's include/net/9p/9p.h.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

TYPE: Final = 9
REQUESTQ: Final = 0

TAG_LENGTH_SIZE: Final = 2
"""The configuration: the length of the mount tag, then the tag."""

HEAD: Final = Struct("<IBH")
"""size of the whole message, type, tag."""
NO_TAG: Final = 0xFFFF
NO_FID: Final = 0xFFFF_FFFF
VERSION: Final = b"9P2000.L"
QID: Final = Struct("<BIQ")
"""type, version, path."""
QID_DIRECTORY: Final = 0x80


class Message(IntEnum):
    """Types of messages; an answer is the request's and 1."""

    RLERROR = 7
    TVERSION = 100
    TATTACH = 104
