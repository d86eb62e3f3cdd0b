"""The console device (5.3). Offsets, widths and sizes in bytes."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 3

# Queues (5.3.2): those of port 0; the control queues, with MULTIPORT; then a pair for each further port.
RECEIVEQ: Final = 0
TRANSMITQ: Final = 1
CONTROL_RECEIVEQ: Final = 2
CONTROL_TRANSMITQ: Final = 3

# Configuration (5.3.4).
CONFIG: Final[Layout] = (
    F("cols", 0, 2),  # with SIZE
    F("rows", 2, 2),
    F("max_nr_ports", 4, 4),  # with MULTIPORT
    F("emerg_wr", 8, 4),  # with EMERG_WRITE
)
CONFIG_SIZE: Final = 12

CONTROL: Final = Struct("<IHH")
"""struct virtio_console_control (5.3.6.2): id, event, value. A name follows PORT_NAME."""


class Control(IntEnum):
    """The events of the control queues (5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


FROM_DEVICE: Final = frozenset(
    {
        Control.DEVICE_ADD,
        Control.DEVICE_REMOVE,
        Control.CONSOLE_PORT,
        Control.RESIZE,
        Control.PORT_OPEN,
        Control.PORT_NAME,
    }
)
"""The events that a device sends."""
