"""The sound device (5.14), as far as PCM streams go. Offsets, widths and sizes in bytes."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 25
CONTROLQ: Final = 0  # 5.14.2
EVENTQ: Final = 1
TXQ: Final = 2
RXQ: Final = 3

# Configuration (5.14.4).
CONFIG: Final[Layout] = (F("jacks", 0, 4), F("streams", 4, 4), F("chmaps", 8, 4))


class Request(IntEnum):
    """Types of control requests (5.14.6)."""

    PCM_INFO = 0x0100
    PCM_SET_PARAMS = 0x0101
    PCM_PREPARE = 0x0102
    PCM_RELEASE = 0x0103
    PCM_START = 0x0104
    PCM_STOP = 0x0105


class Status(IntEnum):
    """How a request ended (5.14.6)."""

    OK = 0x8000
    BAD_MSG = 0x8001
    NOT_SUPP = 0x8002
    IO_ERR = 0x8003


HEADER: Final = Struct("<I")
"""The code of a request, or of an answer."""
QUERY_INFO: Final = Struct("<IIII")
"""code, start_id, count, size of one item."""
PCM_INFO: Final = Struct("<IIQQBBB5x")
"""hda_fn_nid, features, formats, rates, direction, channels_min, channels_max."""
PCM_HEADER: Final = Struct("<II")
"""code, stream_id."""
SET_PARAMS: Final = Struct("<IIIIIBBBx")
"""code, stream_id, buffer_bytes, period_bytes, features, channels, format, rate."""
TRANSFER: Final = Struct("<I")
"""stream_id, before the frames of a period (5.14.6.8)."""
TRANSFER_STATUS: Final = Struct("<II")
"""status, latency_bytes; behind the frames."""

OUTPUT: Final = 0
"""``direction`` of a stream."""
INPUT: Final = 1
FORMAT_S16: Final = 5
RATE_48000: Final = 7
