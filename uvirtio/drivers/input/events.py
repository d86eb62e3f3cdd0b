"""Input events, their frames, and the bounded queue in which frames wait for a reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from operator import index

from uvirtio.errors import UsageError
from uvirtio.spec import input as spec

EVENTS_MAX = 8192
"""Events that may wait for a reader, by default."""

FRAME_MAX = 1024
"""Events in one frame, at most. A longer one is cut here, as the kernel's input core does."""


@dataclass(frozen=True, slots=True)
class InputEvent:
    """One event (5.8.6): ``type`` and ``code`` as in <linux/input-event-codes.h>, ``value`` signed, 32 bits."""

    type: int
    code: int
    value: int


SYN_REPORT = InputEvent(spec.EV_SYN, spec.SYN_REPORT, 0)
SYN_DROPPED = InputEvent(spec.EV_SYN, spec.SYN_DROPPED, 0)


@dataclass(frozen=True, slots=True)
class Frame:
    """The events of one moment (5.8.6), up to and including the SYN_REPORT that closes them."""

    events: tuple[InputEvent, ...]
    time: float
    """When they were taken from the device, in seconds of time.monotonic(); events carry no time themselves."""

    @property
    def complete(self) -> bool:
        """Whether a SYN_REPORT closes it; if not, it exceeded ``FRAME_MAX`` and continues in the next frame."""
        return bool(self.events) and _closes(self.events[-1])

    @property
    def dropped(self) -> bool:
        """Whether frames before this one were dropped because the reader was too slow (SYN_DROPPED).

        The driver's ``state`` includes them.
        """
        return bool(self.events) and self.events[0] == SYN_DROPPED

    def __iter__(self) -> Iterator[InputEvent]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)


class EventQueue:
    """A bounded queue of frames.

    When it is full, all waiting events are dropped, with the rest of the incoming frame, and a frame with
    SYN_DROPPED takes their place: what evdev does for a slow reader.
    """

    def __init__(self, limit: int = EVENTS_MAX) -> None:
        """Make an empty queue.

        Args:
            limit: Events of all frames together, at most; 2 or more.

        Raises:
            UsageError: ``limit`` is below 2.
        """
        limit = index(limit)
        if limit < 2:
            raise UsageError("an event queue holds at least 2 events", seen=limit, expected="2 or more")
        self.limit = limit
        self.lost = 0
        """Events that were dropped because the reader was too slow."""
        self.overflows = 0
        """How often the queue was full."""
        self._frames: deque[Frame] = deque()
        self._open: list[InputEvent] = []
        self._skipping = False
        self._held = 0

    def __len__(self) -> int:
        """Return the number of waiting events."""
        return self._held

    @property
    def has_frame(self) -> bool:
        """Whether a whole frame waits."""
        return bool(self._frames)

    def push(self, event: InputEvent, time: float) -> None:
        """Append one event; drop what waits if the queue is full.

        Args:
            event: The event.
            time: When it was taken from the device, in seconds of time.monotonic().
        """
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
        # Our own SYN_DROPPED, which may be here from the last time, is no event of the device.
        self.lost += sum(event is not SYN_DROPPED for event in self.take())
        self.overflows += 1
        self._open[:] = [SYN_DROPPED]
        self._held = 1
        self._skipping = True

    def take(self) -> list[InputEvent]:
        """Remove and return all waiting events, including those of an unfinished frame."""
        found = [event for frame in self._frames for event in frame]
        found += self._open
        self._frames.clear()
        self._open.clear()
        self._held = 0
        return found

    def take_frame(self) -> Frame | None:
        """Remove and return the oldest whole frame; None if there is none."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        self._held -= len(frame)
        return frame


def _closes(event: InputEvent) -> bool:
    return event.type == spec.EV_SYN and event.code == spec.SYN_REPORT
