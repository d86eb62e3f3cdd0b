"""The input device (5.8): keyboards, mice, tablets, touch screens.

``Input`` is the driver: what the device is, its stream of events in frames, its LEDs. ``Bridge`` forwards events
to a clone of the device in /dev/uinput, which every program can read. ``evemu`` writes and reads recordings.
"""

from uvirtio.drivers.input.bridge import Bridge, Clone, Feed, UinputClone, phys_of
from uvirtio.drivers.input.description import SLOTS_MAX, AbsInfo, Description, InputIds
from uvirtio.drivers.input.driver import Input
from uvirtio.drivers.input.events import EVENTS_MAX, FRAME_MAX, EventQueue, Frame, InputEvent
from uvirtio.drivers.input.state import Contact, InputState

__all__ = [
    "EVENTS_MAX",
    "FRAME_MAX",
    "SLOTS_MAX",
    "AbsInfo",
    "Bridge",
    "Clone",
    "Contact",
    "Description",
    "EventQueue",
    "Feed",
    "Frame",
    "Input",
    "InputEvent",
    "InputIds",
    "InputState",
    "UinputClone",
    "phys_of",
]
