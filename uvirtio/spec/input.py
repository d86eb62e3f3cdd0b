"""The input device (5.8). Offsets, widths and sizes in bytes; names of events are in ``input_codes``."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 18

# Queues (5.8.2); there are no feature bits (5.8.3).
EVENTQ: Final = 0
STATUSQ: Final = 1

# Configuration (5.8.4). Write select and subsel, then read size, then that much of the payload.
CONFIG: Final[Layout] = (
    F("select", 0, 1),
    F("subsel", 1, 1),
    F("size", 2, 1),
    F("reserved", 3, 5),
    F("u", 8, 128),
)
CONFIG_SIZE: Final = 136
SELECT: Final = 0
SUBSEL: Final = 1
SIZE: Final = 2
PAYLOAD: Final = 8
PAYLOAD_MAX: Final = 128


class Select(IntEnum):
    """What the payload shows (5.8.4)."""

    UNSET = 0x00
    ID_NAME = 0x01  # a string without a NUL
    ID_SERIAL = 0x02
    ID_DEVIDS = 0x03
    PROP_BITS = 0x10
    EV_BITS = 0x11  # subsel: the event type
    ABS_INFO = 0x12  # subsel: the axis


DEVIDS: Final[Layout] = (F("bustype", 0, 2), F("vendor", 2, 2), F("product", 4, 2), F("version", 6, 2))
DEVIDS_SIZE: Final = 8
ABSINFO: Final[Layout] = (F("min", 0, 4), F("max", 4, 4), F("fuzz", 8, 4), F("flat", 12, 4), F("res", 16, 4))
ABSINFO_SIZE: Final = 20

# One event (5.8.6), little-endian.
EVENT: Final[Layout] = (F("type", 0, 2), F("code", 2, 2), F("value", 4, 4))
EVENT_SIZE: Final = 8
