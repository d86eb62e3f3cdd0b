"""Events, the frames that they come in, and the bounded queue in which frames wait for their reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from uvirtio.errors import UsageError
from uvirtio.spec import input as spec

EVENTS_MAX = 8192
"""Events that wait for their reader, unless the driver is told another number."""

FRAME_MAX = 1024
"""Events in one frame. A device that never ends its frame gets it ended here, as the kernel's input core does."""


@dataclass(frozen=True, slots=True)
class InputEvent:
    """One event: ``type`` and ``code`` as in <linux/input-event-codes.h>, ``value`` signed, 32 bits."""

    type: int
    code: int
    value: int


SYN_REPORT = InputEvent(spec.EV_SYN, spec.SYN_REPORT, 0)
SYN_DROPPED = InputEvent(spec.EV_SYN, spec.SYN_DROPPED, 0)


@dataclass(frozen=True, slots=True)
class Frame:
    """What happened at one moment (5.8.6): the events up to and with the SYN_REPORT that closes them.

    ``time`` is when they were taken from the device, in seconds of time.monotonic(): the events themselves carry
    no time.
    """

    events: tuple[InputEvent, ...]
    time: float

    @property
    def complete(self) -> bool:
        """Whether a SYN_REPORT closes it; if not, it grew beyond FRAME_MAX events and goes on in the next one."""
        return bool(self.events) and _closes(self.events[-1])

    @property
    def dropped(self) -> bool:
        """Whether frames before this one were lost because nobody read them (SYN_DROPPED).

        The driver's ``state`` knows what holds now.
        """
        return bool(self.events) and self.events[0] == SYN_DROPPED

    def __iter__(self) -> Iterator[InputEvent]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)


class EventQueue:
    """Frames in order, at most ``limit`` events together.

    When there are more, all that wait are dropped, with the rest of the frame that is coming in, and a frame
    with SYN_DROPPED takes their place. That is what evdev does for a slow reader, and readers know it.
    """

    def __init__(self, limit: int = EVENTS_MAX) -> None:
        if limit < 2:
            raise UsageError("an event queue holds 2 events at least", seen=limit, expected="2 or more")
        self.limit = limit
        self.lost = 0
        """Events that were dropped because nobody read them."""
        self.overflows = 0
        """How often the queue ran over."""
        self._frames: deque[Frame] = deque()
        self._open: list[InputEvent] = []
        self._skipping = False
        self._held = 0

    def __len__(self) -> int:
        """Events that wait."""
        return self._held

    @property
    def has_frame(self) -> bool:
        return bool(self._frames)

    def push(self, event: InputEvent, time: float) -> None:
        """Put one event behind the others; ``time`` is when it was taken."""
        closing = _closes(event)
        if self._skipping and not closing:
            self.lost += 1
            return
        if not self._skipping and self._held >= self.limit:
            self._overflow()
            if not closing:
                self.lost += 1
                return
        self._skipping = False
        self._open.append(event)
        self._held += 1
        if closing or len(self._open) >= FRAME_MAX:
            self._frames.append(Frame(tuple(self._open), time))
            self._open.clear()

    def _overflow(self) -> None:
        # Our own mark is no event of the device's; it may be here from the last time.
        self.lost += sum(event is not SYN_DROPPED for event in self.take())
        self.overflows += 1
        self._open[:] = [SYN_DROPPED]
        self._held = 1
        self._skipping = True

    def take(self) -> list[InputEvent]:
        """All events that wait, those of an unfinished frame too."""
        found = [event for frame in self._frames for event in frame]
        found += self._open
        self._frames.clear()
        self._open.clear()
        self._held = 0
        return found

    def take_frame(self) -> Frame | None:
        """The oldest whole frame, or None."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        self._held -= len(frame)
        return frame


def _closes(event: InputEvent) -> bool:
    return event.type == spec.EV_SYN and event.code == spec.SYN_REPORT
