"""A recording of an input device, whatever its format: the device and the events that it sent, checked.

A recording is played into the kernel, so numbers have to fit, time never goes back, and there is no event that the
recorded device could not send.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn, Protocol

from uvirtio.drivers.input.description import Description
from uvirtio.drivers.input.events import InputEvent
from uvirtio.errors import UsageError
from uvirtio.spec import input as spec

LINES_MAX = 300_000
EVENTS_MAX = 200_000


@dataclass(frozen=True, slots=True)
class Recording:
    """A device and the events that it sent."""

    description: Description | None
    """None where the recording has only events."""
    events: tuple[tuple[int, InputEvent], ...]
    """(microseconds since the first event, event)."""

    def frames(self) -> Iterator[tuple[int, tuple[InputEvent, ...]]]:
        """Group the events by frame.

        Yields:
            (microseconds since the first event, the events of one frame). The last may lack its SYN_REPORT.
        """
        open_: list[InputEvent] = []
        for at, event in self.events:
            open_.append(event)
            if event.type == spec.EV_SYN and event.code == spec.SYN_REPORT:
                yield at, tuple(open_)
                open_.clear()
        if open_:
            yield self.events[-1][0], tuple(open_)


class Wrong(Protocol):
    """How a reader refuses the line that it is at."""

    def __call__(self, why: str, expected: str) -> NoReturn:
        """Raise UsageError for the line."""


@dataclass(slots=True)
class Events:
    """The events of a recording, while it is read."""

    wrong: Wrong
    found: list[tuple[int, InputEvent]] = field(default_factory=list)
    _first: int = 0

    def add(self, at: int, event: InputEvent, description: Description | None) -> None:
        """Check an event and append it.

        Args:
            at: When it came, in microseconds of any clock.
            event: The event.
            description: The device, where it is known.

        Raises:
            UsageError: It cannot be.
        """
        if not fits(event.value):
            self.wrong("the value does not fit", "32 bits, signed")
        if event.code >= spec.CODE_COUNTS.get(event.type, 0):
            self.wrong("there is no such event", "a type and a code of evdev")
        if description is not None and not description.can(event.type, event.code):
            self.wrong("the device of this recording has no such event", "an event that its description has")
        if not self.found:
            self._first = at
        at -= self._first
        if at < (self.found[-1][0] if self.found else 0):
            self.wrong("time goes back", "events in order")
        if len(self.found) >= EVENTS_MAX:
            self.wrong("there are too many events", f"{EVENTS_MAX} at most")
        self.found.append((at, event))


@dataclass
class Reader:
    """Reads a recording line by line; a format says what a line means."""

    line_max: ClassVar[int]
    """The most characters of a line."""
    writers: ClassVar[str]
    """Which programs write such files, for errors."""

    number: int = 0
    """The line that is being read, from 1."""
    text: str = ""
    """It, without its line end."""
    description: Description | None = None

    def __post_init__(self) -> None:
        self.events = Events(self.wrong)

    def read(self, lines: Iterable[str]) -> Recording:
        """Read all lines; each may have its line end.

        Raises:
            UsageError: A line is invalid or exceeds a limit; the message has its number.
        """
        for number, line in enumerate(lines, 1):
            self.number, self.text = number, line.rstrip("\r\n")
            if len(line) > self.line_max:
                self.wrong("it is too long", f"{self.line_max} characters at most")
            if number > LINES_MAX:
                self.wrong("there are too many lines", f"{LINES_MAX} at most")
            self.take()
        return self.finish()

    def wrong(self, why: str, expected: str) -> NoReturn:
        """Raise UsageError for the current line."""
        raise UsageError(
            f"line {self.number} of the recording: {why}",
            seen=self.text[:80],
            expected=expected,
            remedy=f"{self.writers} write such files",
        )

    def take(self) -> None:
        """Parse ``text``."""
        raise NotImplementedError

    def finish(self) -> Recording:
        """Return the recording, after the last line."""
        raise NotImplementedError


def fits(number: int) -> bool:
    """Whether a number has 32 bits, signed."""
    return -(1 << 31) <= number < 1 << 31


def one_line(text: str) -> str:
    """A name as the formats take it: one line, printable, not empty."""
    return "".join(char if char.isprintable() else "?" for char in text).strip()[:200] or "?"
