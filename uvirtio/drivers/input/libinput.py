"""Recordings as ``libinput record`` writes them (YAML, version 1), and ``libinput replay`` plays them.

The reader knows the part of YAML that libinput writes, line by line: nested keys by indentation, and lists of
numbers on one line. A YAML library is not used for that: a recording has a hundred thousand lines, each of which
is checked and named in errors, and what a library would take besides (anchors, tags, more documents) has no place
in what is played into the kernel. What libinput adds about the machine, the device's HID descriptor and udev
properties, and its own events are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from uvirtio.drivers.input.description import AbsInfo, Description, InputIds
from uvirtio.drivers.input.events import InputEvent
from uvirtio.drivers.input.recording import Reader, Recording, fits, one_line
from uvirtio.spec import input as spec

VERSION = 1
LINE_MAX = 8192
"""Characters of a line, at most, including its end: the codes of a keyboard are one line."""

BEGIN = re.compile(r"version:\s*[0-9]+\s*(#.*)?\Z")
"""The first line of such a recording that is no comment."""

_REP_CODES = frozenset({0, 1})
_CODE_MAX = 0x300  # KEY_CNT, the most that a type has

_KEY = re.compile(r"([A-Za-z0-9_-]+):(?:\s+(.*))?\Z")
_NUMBERS = re.compile(r"\[[ \t]*(-?[0-9]{1,20}(?:[ \t]*,[ \t]*-?[0-9]{1,20})*)?[ \t]*\][ \t]*(?:#.*)?\Z")

_DEVICE = ("devices",)
_EVDEV = (*_DEVICE, "evdev")
_CODES, _AXES = (*_EVDEV, "codes"), (*_EVDEV, "absinfo")
_EVENTS = (*_DEVICE, "events")
_FRAME = (*_EVENTS, "evdev")
_KNOWN = ((), _DEVICE, _EVDEV, _CODES, _AXES, _EVENTS, _FRAME)
"""Where every line has to be understood; whatever is below another key is passed over."""


# --- writing ------------------------------------------------------------------------------------------------


def header(description: Description) -> Iterator[str]:
    """Describe a device, up to the line below which its events stand.

    Args:
        description: The device.

    Yields:
        Lines without line ends.
    """
    ids = description.ids
    yield "# libinput record"
    yield f"version: {VERSION}"
    yield "ndevices: 1"
    yield "libinput:"
    yield '  version: "none: written by uvirtio"'
    yield "devices:"
    yield "- node: virtio"
    yield "  evdev:"
    yield f"    name: {json.dumps(one_line(description.name), ensure_ascii=False)}"
    yield f"    id: [{ids.bustype}, {ids.vendor}, {ids.product}, {ids.version}]"
    yield "    codes:"
    axes: list[int] = []
    for kind in sorted({spec.EV_SYN, *description.events} & spec.CODE_COUNTS.keys()):
        codes = set(range(spec.CODE_COUNTS[kind])) & set(description.events.get(kind, ()))
        if kind == spec.EV_SYN:
            codes = {spec.SYN_REPORT, spec.SYN_MT_REPORT, spec.SYN_DROPPED}
        elif kind == spec.EV_REP:
            codes = set(_REP_CODES)
        elif kind == spec.EV_ABS:
            axes = sorted(codes)
        if codes:
            yield f"      {kind}: {sorted(codes)} # {spec.type_name(kind)}"
    if axes:
        yield "    absinfo:"
    for axis in axes:
        one = description.axes.get(axis, AbsInfo(0, 0, 0, 0, 0))
        yield f"      {axis}: {[one.minimum, one.maximum, one.fuzz, one.flat, one.resolution]}"
    yield f"    properties: {sorted(description.properties)}"
    yield "  events:"


def frame_lines(microseconds: int, events: Iterable[InputEvent]) -> Iterator[str]:
    """Format the events of one frame.

    Args:
        microseconds: Time since the first event.
        events: The events; without any, no line is made.

    Yields:
        Lines without line ends.
    """
    seconds, rest = divmod(microseconds, 1_000_000)
    first = True
    for event in events:
        if first:
            yield "  - evdev:"
            first = False
        about = f"{spec.type_name(event.type)} / {spec.code_name(event.type, event.code)} {event.value}"
        if event.type == spec.EV_SYN:
            about = f"------------ {spec.code_name(event.type, event.code)} ({event.value}) ----------"
        yield f"    - [{seconds:3}, {rest:6}, {event.type:3}, {event.code:3}, {event.value:7}] # {about}"


# --- reading ------------------------------------------------------------------------------------------------


def parse(lines: Iterable[str]) -> Recording:
    """Parse a recording.

    Args:
        lines: Its lines; each may have its line end.

    Raises:
        UsageError: A line is invalid or exceeds a limit, or there is not one device; the message has the line.
    """
    return _Parser().read(lines)


@dataclass
class _Parser(Reader):
    line_max = LINE_MAX
    writers = "libinput record and uvirtio input record --format libinput"

    version: bool = False
    devices: int = 0
    name: str | None = None
    ids: InputIds | None = None
    properties: frozenset[int] = frozenset()
    codes: dict[int, frozenset[int]] = field(default_factory=dict)
    axes: dict[int, AbsInfo] = field(default_factory=dict)
    open: list[tuple[int, str | None]] = field(default_factory=list)
    """The keys that enclose a line, each with its column; None for an item of a list."""
    brackets: int = 0
    """Open brackets of a value that is passed over, which goes on over several lines."""

    def take(self) -> None:
        """Parse the next line."""
        rest = self.text.lstrip(" ")
        if not rest.strip() or rest.startswith("#"):
            return
        if self.brackets > 0:
            self.brackets += _brackets(rest)
            return
        column = len(self.text) - len(rest)
        rest = rest.rstrip()
        if rest == "-" or rest.startswith("- "):
            self._leave(column, item=True)
            if not self._known():
                return
            self._item()
            self.open.append((column, None))
            inner = rest[1:].lstrip(" ")
            column, rest = column + len(rest) - len(inner), inner
            if rest.startswith("["):
                self._numbers_of_event(rest)
                return
        else:
            self._leave(column, item=False)
        if self._known():
            self._pair(column, rest)

    def _leave(self, column: int, *, item: bool) -> None:
        """Forget the keys that do not enclose a line at this column. A list may stand right below its key."""
        while self.open:
            at, key = self.open[-1]
            if at < column or (item and at == column and key is not None):
                return
            self.open.pop()

    def _path(self) -> tuple[str, ...]:
        return tuple(key for _, key in self.open if key is not None)

    def _known(self) -> bool:
        return self._path() in _KNOWN

    def _item(self) -> None:
        """An item of a list: a device, a frame, or an event."""
        path = self._path()
        if path == _DEVICE:
            self.devices += 1
            if self.devices > 1:
                self.wrong("a second device", "a recording of one device: libinput record without --multiple")
        elif path not in (_EVENTS, _FRAME):
            self.wrong("a list where there is none", "devices:, events: or evdev: before it")

    def _pair(self, column: int, rest: str) -> None:
        found = _KEY.match(rest)
        if found is None:
            self.wrong("it is no key and value", "KEY: VALUE")
        path, key, value = self._path(), found[1], (found[2] or "").strip()
        if value.startswith("#"):
            value = ""
        if path == () and key == "version":
            if not re.fullmatch(rf"{VERSION}\s*(#.*)?", value):
                self.wrong("a version that is not known", f"version: {VERSION}")
            self.version = True
        elif path == _EVDEV and key == "name":
            self._set_name(value)
        elif path == _EVDEV and key == "id":
            self._set_ids(self._numbers(value))
        elif path == _EVDEV and key == "properties":
            self.properties = self._bits(value, spec.PROP_COUNT)
        elif path == _CODES:
            self._set_codes(self._number(key), value)
        elif path == _AXES:
            self._set_axis(self._number(key), self._numbers(value))
        elif path == _FRAME:
            self.wrong("no event", "- [SECONDS, MICROSECONDS, TYPE, CODE, VALUE]")
        elif value.startswith("["):  # of no interest here, the HID descriptor for example
            self.brackets = _brackets(value)
        self.open.append((column, key))

    def _number(self, text: str) -> int:
        if not re.fullmatch("[0-9]{1,5}", text):
            self.wrong("the key is no number", "a type or code of evdev, in decimal")
        return int(text)

    def _numbers(self, text: str) -> list[int]:
        found = _NUMBERS.match(text)
        if found is None:
            self.wrong("no list of numbers", "[NUMBER, NUMBER ...] on one line, in decimal")
        return [int(word) for word in found[1].split(",")] if found[1] else []

    def _bits(self, text: str, count: int) -> frozenset[int]:
        bits = self._numbers(text)
        if not all(0 <= bit < count for bit in bits):
            self.wrong("a number that cannot be", f"0 to {count - 1}")
        return frozenset(bits)

    def _set_name(self, text: str) -> None:
        name = text
        if len(text) >= 2 and text[0] == text[-1] == '"':
            name = text[1:-1]  # as libinput writes it, nothing is escaped
            if "\\" in name:
                try:
                    read = json.loads(text)
                except ValueError:
                    read = name
                name = read if isinstance(read, str) and read.isprintable() else name
        if not name or not name.isprintable() or self.name is not None:
            self.wrong("the name is empty, not printable, or the second", 'name: "NAME", once')
        self.name = name

    def _set_ids(self, numbers: list[int]) -> None:
        if len(numbers) != 4 or not all(0 <= number < 1 << 16 for number in numbers) or self.ids is not None:
            self.wrong("no ids, or the second ones", "id: [BUS, VENDOR, PRODUCT, VERSION], 16 bits each, once")
        self.ids = InputIds(*numbers)

    def _set_codes(self, kind: int, text: str) -> None:
        codes = self._bits(text, _CODE_MAX)
        if kind >= spec.EV_CNT or kind in self.codes:
            self.wrong("no event type, or for a second time", f"a type below {spec.EV_CNT}")
        self.codes[kind] = codes

    def _set_axis(self, code: int, numbers: list[int]) -> None:
        good = len(numbers) == 5 and all(map(fits, numbers))
        if not good or code >= spec.CODE_COUNTS[spec.EV_ABS] or code in self.axes:
            self.wrong("no axis, or for a second time", "CODE: [MIN, MAX, FUZZ, FLAT, RESOLUTION], 32 bits each")
        self.axes[code] = AbsInfo(*numbers)

    def _numbers_of_event(self, text: str) -> None:
        numbers = self._numbers(text)
        if self._path() != _FRAME or len(numbers) != 5:
            self.wrong("no event", "- [SECONDS, MICROSECONDS, TYPE, CODE, VALUE] below evdev:")
        seconds, rest, kind, code, value = numbers
        if not 0 <= seconds < 1 << 34 or not 0 <= rest < 1_000_000 or kind < 0 or code < 0:
            self.wrong("an event that cannot be", "numbers above 0, and microseconds below 1000000")
        if self.description is None:
            self.description = self._describe()
        self.events.add(seconds * 1_000_000 + rest, InputEvent(kind, code, value), self.description)

    def _describe(self) -> Description:
        if not self.version or self.name is None or self.ids is None:
            self.wrong("no device is described before it", "version:, and name: and id: below evdev:")
        events = {kind: codes for kind, codes in self.codes.items() if kind != spec.EV_SYN and codes}
        return Description(
            name=self.name,
            ids=self.ids,
            properties=self.properties,
            events=events,
            axes={code: axis for code, axis in self.axes.items() if code in events.get(spec.EV_ABS, ())},
        )

    def finish(self) -> Recording:
        """Return the recording, after the last line."""
        return Recording(self.description or self._describe(), tuple(self.events.found))


def _brackets(text: str) -> int:
    return text.count("[") - text.count("]")
