"""The input device (5.8). Offsets, widths and sizes in bytes; names of events are in ``input_codes``."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from uvirtio.spec import input_codes as codes
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
    """Values of ``select``: what the payload shows (5.8.4)."""

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

# --- names of events (evdev's, which 5.8.6 points to) -----------------------------------------------------

EV_SYN: Final = 0x00
EV_KEY: Final = 0x01
EV_REL: Final = 0x02
EV_ABS: Final = 0x03
EV_MSC: Final = 0x04
EV_SW: Final = 0x05
EV_LED: Final = 0x11
EV_SND: Final = 0x12
EV_REP: Final = 0x14
EV_FF: Final = 0x15
EV_PWR: Final = 0x16
EV_FF_STATUS: Final = 0x17
EV_CNT: Final = codes.COUNTS["EV"]

SYN_REPORT: Final = 0  # closes a frame of events (5.8.6)
SYN_MT_REPORT: Final = 2  # ends one contact of a device without slots (the kernel's multi-touch-protocol, A)
SYN_DROPPED: Final = 3

MSC_TIMESTAMP: Final = 0x05
PROP_ACCELEROMETER: Final = 0x06
BTN_JOYSTICK: Final = 0x120
BTN_DIGI: Final = 0x140
BTN_TOUCH: Final = 0x14A
ABS_X: Final = 0x00
ABS_Y: Final = 0x01
ABS_MT_POSITION_X: Final = 0x35
ABS_MT_POSITION_Y: Final = 0x36
ABS_MT_SLOT: Final = 0x2F  # the contact that the ABS_MT_* codes above it refer to
ABS_MT_TRACKING_ID: Final = 0x39  # -1: the contact ended

CODE_COUNTS: Final[dict[int, int]] = {
    EV_SYN: codes.COUNTS["SYN"],
    EV_KEY: codes.COUNTS["KEY"],
    EV_REL: codes.COUNTS["REL"],
    EV_ABS: codes.COUNTS["ABS"],
    EV_MSC: codes.COUNTS["MSC"],
    EV_SW: codes.COUNTS["SW"],
    EV_LED: codes.COUNTS["LED"],
    EV_SND: codes.COUNTS["SND"],
    EV_REP: codes.COUNTS["REP"],
    EV_FF: codes.COUNTS["FF"],
}
"""How many codes each event type has in the newest kernel (KEY_CNT and so on); ``OLDER_COUNTS`` has older ones."""
OLDER_COUNTS: Final[dict[int, int]] = {EV_SW: 0x11}
"""How many codes an event type has in every kernel since Linux 6.1, where newer kernels have more."""
PROP_COUNT: Final = codes.COUNTS["INPUT_PROP"]

UI_SET_SWBIT: Final = 0x4004556D
"""ioctl of /dev/uinput, _IOW('U', 109, int): the device has this switch (<linux/uinput.h>)."""

_CODES: Final[dict[int, dict[int, str]]] = {
    EV_SYN: codes.SYN,
    EV_KEY: codes.KEY,
    EV_REL: codes.REL,
    EV_ABS: codes.ABS,
    EV_MSC: codes.MSC,
    EV_SW: codes.SW,
    EV_LED: codes.LED,
    EV_SND: codes.SND,
    EV_REP: codes.REP,
    EV_FF: codes.FF,
    EV_FF_STATUS: codes.FF_STATUS,
}


def type_name(event_type: int) -> str:
    """Return the name of an event type: ``EV_KEY`` for 1; its number in hexadecimal if it has none."""
    return codes.TYPES.get(event_type, hex(event_type))


def code_name(event_type: int, code: int) -> str:
    """Return the name of an event code: ``KEY_A`` for (1, 30); its number in hexadecimal if it has none."""
    return _CODES.get(event_type, {}).get(code, hex(code))


def prop_name(prop: int) -> str:
    """Return the name of a property: ``INPUT_PROP_POINTER`` for 0; its number in hexadecimal if it has none."""
    return codes.PROPS.get(prop, hex(prop))


def bus_name(bustype: int) -> str:
    """Return the name of a bus type: ``BUS_VIRTUAL`` for 6; its number in hexadecimal if it has none."""
    return codes.BUSES.get(bustype, hex(bustype))


def code_of(name: str) -> tuple[int, int] | None:
    """Look up the name of an event code.

    Args:
        name: Such as ``KEY_A``, or an older name such as ``BTN_MOUSE``.

    Returns:
        (type, code); None where there is no such name.
    """
    for event_type, table in _CODES.items():
        for code, known in table.items():
            if known == name:
                return event_type, code
    alias = codes.ALIASES.get(name)
    prefix = name.partition("_")[0]
    for event_type, known in codes.TYPES.items():
        if alias is not None and known == f"EV_{'KEY' if prefix == 'BTN' else prefix}":
            return event_type, alias
    return None
