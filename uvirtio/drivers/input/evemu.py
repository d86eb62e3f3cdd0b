"""Recordings in evemu's text format: the description of a device (N, I, P, B, A lines), then its events (E lines).

``evemu-device`` and ``evemu-play`` read what ``header`` and ``event_line`` write. ``parse`` is strict, because a
recording is played into the kernel: every line has to be understood, numbers have to fit, time never goes back,
and there is no event that the recorded device could not send. Lines, events and sizes are bounded.

evemu keeps the two halves apart as well: ``evemu-describe`` writes descriptions, and many recordings have only E
lines, to be played into an existing device. Those have no description here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from uvirtio.drivers.input.description import AbsInfo, Description, InputIds
from uvirtio.drivers.input.events import InputEvent
from uvirtio.drivers.input.recording import EVENTS_MAX, LINES_MAX, Reader, Recording, fits, one_line
from uvirtio.spec import input as spec

__all__ = ["EVENTS_MAX", "LINES_MAX", "LINE_MAX", "Recording", "event_line", "header", "parse"]

LINE_MAX = 1024
"""Characters of a line, at most, including its end."""

_PER_LINE = 8
_PROP_BYTES = 8  # what evemu writes; it takes fewer
_MASK_BYTES = 96  # KEY_CNT bits, the longest mask
_SYN_CODES = frozenset({spec.SYN_REPORT, 1, spec.SYN_DROPPED})
_REP_CODES = frozenset({0, 1})

_HEX = "[0-9a-fA-F]"
_NUMBER = "-?[0-9]{1,10}"
_IDS = re.compile(rf"({_HEX}{{1,4}}) ({_HEX}{{1,4}}) ({_HEX}{{1,4}}) ({_HEX}{{1,4}})")
_BYTES = re.compile(rf"{_HEX}{{2}}(?: {_HEX}{{2}})*")
_AXIS = re.compile(rf"({_HEX}{{1,2}}) ({_NUMBER}) ({_NUMBER}) ({_NUMBER}) ({_NUMBER})(?: ({_NUMBER}))?")
_BIT = re.compile(rf"{_HEX}{{1,2}} [01]")
_EVENT = re.compile(rf"([0-9]{{1,10}})\.([0-9]{{6}}) ({_HEX}{{1,4}}) ({_HEX}{{1,4}}) ({_NUMBER})")


# --- writing ------------------------------------------------------------------------------------------------


def header(description: Description) -> Iterator[str]:
    """Describe a device.

    Args:
        description: The device.

    Yields:
        Lines without line ends.
    """
    ids = description.ids
    name = one_line(description.name)
    yield "# EVEMU 1.3"
    yield f'# Input device name: "{name}"'
    yield (
        f"# Input device ID: bus {ids.bustype:#04x} vendor {ids.vendor:#04x} product {ids.product:#04x}"
        f" version {ids.version:#04x}"
    )
    yield "# Supported events:"
    for kind, codes in sorted(description.events.items()):
        yield f"#   Event type {kind} ({spec.type_name(kind)})"
        yield from (f"#     Event code {code} ({spec.code_name(kind, code)})" for code in sorted(codes))
    yield f"N: {name}"
    yield f"I: {ids.bustype:04x} {ids.vendor:04x} {ids.product:04x} {ids.version:04x}"
    yield from _mask("P:", description.properties, _PROP_BYTES)
    for kind in range(spec.EV_CNT):
        codes = description.events.get(kind, frozenset())
        if kind == spec.EV_SYN:
            codes = _SYN_CODES
        elif kind == spec.EV_REP and kind in description.events:
            codes = _REP_CODES  # a B line needs codes
        if codes:
            length = spec.CODE_COUNTS.get(kind, 64) // 8
            yield from _mask(f"B: {kind:02x}", codes, max(length, _PER_LINE))
    for code, axis in sorted(description.axes.items()):
        numbers = (axis.minimum, axis.maximum, axis.fuzz, axis.flat, axis.resolution)
        yield f"A: {code:02x} " + " ".join(str(number) for number in numbers)
    yield "################################"
    yield "#      Waiting for events      #"
    yield "################################"


def event_line(microseconds: int, event: InputEvent) -> str:
    """Format one event as an E line.

    Args:
        microseconds: Time since the first event.
        event: The event.

    Returns:
        The line, without its end.
    """
    names = f"{spec.type_name(event.type)} / {spec.code_name(event.type, event.code)}"
    if event.type == spec.EV_SYN:
        names = f"------------ {spec.code_name(event.type, event.code)} ({event.value}) ----------"
    at = f"{microseconds // 1_000_000}.{microseconds % 1_000_000:06}"
    return f"E: {at} {event.type:04x} {event.code:04x} {event.value:04d}\t# {names}"


def _mask(head: str, bits: Iterable[int], length: int) -> Iterator[str]:
    mask = bytearray(length)
    for bit in bits:
        if bit < 8 * length:
            mask[bit // 8] |= 1 << bit % 8
    for at in range(0, length, _PER_LINE):
        yield f"{head} " + " ".join(f"{byte:02x}" for byte in mask[at : at + _PER_LINE].ljust(_PER_LINE, b"\0"))


# --- reading ------------------------------------------------------------------------------------------------


def parse(lines: Iterable[str]) -> Recording:
    """Parse a recording.

    Args:
        lines: Its lines; each may have its line end.

    Raises:
        UsageError: A line is invalid or exceeds a limit; the message has its number.
    """
    return _Parser().read(lines)


@dataclass
class _Parser(Reader):
    line_max = LINE_MAX
    writers = "evemu-record and uvirtio input record"

    name: str | None = None
    ids: InputIds | None = None
    properties: bytearray = field(default_factory=bytearray)
    masks: dict[int, bytearray] = field(default_factory=dict)
    axes: dict[int, AbsInfo] = field(default_factory=dict)
    described: bool = False
    """Whether there was a line of a description."""

    def take(self) -> None:
        """Parse the next line."""
        text = self.text.strip(" \t")
        if not text or text.startswith("#"):
            return
        kind, _, rest = text.partition(":")
        handlers = {
            "N": self._name,
            "I": self._ids,
            "P": self._properties,
            "B": self._bits,
            "A": self._axis,
            "L": self._initial,
            "S": self._initial,
            "E": self._event,
        }
        if kind not in handlers:
            self.wrong("it begins with no known letter", ", ".join(f"{letter}:" for letter in handlers))
        if kind != "E":
            if self.events.found:
                self.wrong("the description goes on after the first event", "E:")
            self.described = True
        handlers[kind](rest.strip(" \t") if kind == "N" else " ".join(rest.split("#")[0].split()))

    def _name(self, rest: str) -> None:
        if self.name is not None:
            self.wrong("a second name", "one device in a recording")
        if not rest or not rest.isprintable():
            self.wrong("the name is empty or not printable", "N: NAME")
        self.name = rest

    def _ids(self, rest: str) -> None:
        found = _IDS.fullmatch(rest)
        if found is None or self.ids is not None:
            self.wrong("no ids, or the second ones", "I: BUS VENDOR PRODUCT VERSION, in hexadecimal, once")
        self.ids = InputIds(*(int(word, 16) for word in found.groups()))

    def _bytes(self, rest: str) -> bytes:
        if not _BYTES.fullmatch(rest):
            self.wrong("no bytes", "pairs of hexadecimal digits")
        return bytes.fromhex(rest)

    def _properties(self, rest: str) -> None:
        self.properties += self._bytes(rest)
        if len(self.properties) > _PROP_BYTES:
            self.wrong("too many properties", f"{_PROP_BYTES} bytes at most")

    def _bits(self, rest: str) -> None:
        kind, *mask = self._bytes(rest)
        if kind >= spec.EV_CNT or not mask:
            self.wrong("no bits of an event type", f"B: TYPE BYTES, TYPE below {spec.EV_CNT:#x}")
        whole = self.masks.setdefault(kind, bytearray())
        whole += bytes(mask)
        if len(whole) > _MASK_BYTES:
            self.wrong("too many bits", f"{_MASK_BYTES} bytes at most for a type")

    def _axis(self, rest: str) -> None:
        found = _AXIS.fullmatch(rest)
        if found is None:
            self.wrong("no axis", "A: CODE MIN MAX FUZZ FLAT [RESOLUTION]")
        code = int(found[1], 16)
        numbers = [int(word) for word in found.groups("0")[1:]]
        if code >= spec.CODE_COUNTS[spec.EV_ABS] or code in self.axes or not all(map(fits, numbers)):
            self.wrong("an axis that cannot be, or a second time", "a code below 0x40, numbers of 32 bits")
        self.axes[code] = AbsInfo(*numbers)

    def _initial(self, rest: str) -> None:
        """LEDs and switches that were on; ignored, because uinput cannot start with them."""
        if not _BIT.fullmatch(rest):
            self.wrong("no LED or switch", "CODE 0 or CODE 1")

    def _event(self, rest: str) -> None:
        found = _EVENT.fullmatch(rest)
        if found is None:
            self.wrong("no event", "E: SECONDS.MICROSECONDS TYPE CODE VALUE, type and code in hexadecimal")
        if self.described and self.description is None:
            self.description = self._describe()
        event = InputEvent(int(found[3], 16), int(found[4], 16), int(found[5]))
        self.events.add(int(found[1]) * 1_000_000 + int(found[2]), event, self.description)

    def _describe(self) -> Description:
        if self.name is None or self.ids is None:
            self.wrong("no device is described before it", "N: and I: lines first")
        events = {kind: _codes(mask) for kind, mask in self.masks.items() if kind != spec.EV_SYN and any(mask)}
        return Description(
            name=self.name,
            ids=self.ids,
            properties=_codes(self.properties),
            events=events,
            axes={code: axis for code, axis in self.axes.items() if code in events.get(spec.EV_ABS, ())},
        )

    def finish(self) -> Recording:
        """Return the recording, after the last line."""
        if self.description is None and (self.described or not self.events.found):
            self.description = self._describe()
        return Recording(self.description, tuple(self.events.found))


def _codes(mask: bytes | bytearray) -> frozenset[int]:
    return frozenset(8 * at + bit for at, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1)
