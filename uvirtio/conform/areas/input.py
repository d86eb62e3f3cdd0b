"""5.8: the input device."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from uvirtio.conform.lane import Lane, Posted
from uvirtio.conform.levers import reports
from uvirtio.conform.memory import Buffer
from uvirtio.conform.row import ANY, Area, Level
from uvirtio.conform.traffic import gave_up
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Good, Outcome, Severity, free, rejected
from uvirtio.spec import input as spec
from uvirtio.spec.input import Select

AREA = Area("input", 100, "5.8: input", transports=ANY, types=frozenset({"input"}))

_UNKNOWN: Final = (
    (Select.UNSET, 0),
    (0x7F, 0),
    (0xFF, 0xFF),
    (Select.EV_BITS, 0xFF),
    (Select.EV_BITS, spec.EV_CNT - 2),
    (Select.ABS_INFO, 0xFF),
)
"""Selections that no device has anything for."""

_STRINGS: Final = (Select.ID_NAME, Select.ID_SERIAL)
_PLENTY: Final = 16
"""Event buffers for one update of any device that is asked for one here."""


# --- the configuration (5.8.4) ----------------------------------------------------------------------------------


def _size(t: Trial, select: int, subsel: int) -> int:
    """Make a selection; the size of what there is."""
    t.transport.write_config(spec.SELECT, 1, select)
    t.transport.write_config(spec.SUBSEL, 1, subsel)
    return t.config_field(spec.CONFIG, "size")


def _payload(t: Trial, select: int, subsel: int) -> bytes:
    """What a selection shows."""
    size = min(_size(t, select, subsel), spec.PAYLOAD_MAX)
    return bytes(t.transport.read_config(spec.PAYLOAD + place, 1) for place in range(size))


def _codes(t: Trial, event_type: int) -> set[int]:
    """The codes that are announced for an event type."""
    bitmap = int.from_bytes(_payload(t, Select.EV_BITS, event_type), "little")
    return {code for code in range(8 * spec.PAYLOAD_MAX) if bitmap >> code & 1}


def _named(select: int, subsel: int) -> str:
    return f"select {select:#x}, subsel {subsel:#x}"


@AREA.row("D-INP-01", "5.8.5.2", "MUST", "size is 0 for a select and subsel that the device does not know.")
def unknown_selections(t: Trial) -> Outcome:
    """Selections that no device has anything for, each after one that has a name."""
    t.up()
    for select, subsel in _UNKNOWN:
        _size(t, Select.ID_NAME, 0)
        seen = _size(t, select, subsel)
        t.expect(seen == 0, f"size {seen} for {_named(select, subsel)}", "0")
    return None


@AREA.row("D-INP-04", "5.8.4", "DESC", "select and subsel read back what was written.")
def selection_reads_back(t: Trial) -> Outcome:
    """The name, the keys, and selections that no device has anything for."""
    t.up()
    for select, subsel in ((Select.ID_NAME, 0), (Select.EV_BITS, spec.EV_KEY), *_UNKNOWN):
        _size(t, select, subsel)
        seen = t.config_field(spec.CONFIG, "select"), t.config_field(spec.CONFIG, "subsel")
        t.expect(seen == (select, subsel), f"{_named(*seen)} after {_named(select, subsel)}", "what was written")
    return None


@AREA.row(
    "D-INP-05",
    "5.8.4",
    "DESC",
    "size is at most that of the union and fits what is shown, and strings have no NUL terminator.",
)
def sizes(t: Trial) -> Outcome:
    """Name, serial, ids, properties, the bitmap of each event type, and each axis."""
    t.up()
    selections = [*((one, 0) for one in (*_STRINGS, Select.ID_DEVIDS, Select.PROP_BITS))]
    selections += [(Select.EV_BITS, event_type) for event_type in range(spec.EV_CNT)]
    selections += [(Select.ABS_INFO, axis) for axis in range(spec.CODE_COUNTS[spec.EV_ABS])]
    exact = {Select.ID_DEVIDS: spec.DEVIDS_SIZE, Select.ABS_INFO: spec.ABSINFO_SIZE}
    padded = []
    for select, subsel in selections:
        size = _size(t, select, subsel)
        if not size:
            continue
        what = _named(select, subsel)
        t.expect(size <= spec.PAYLOAD_MAX, f"size {size} for {what}", f"at most {spec.PAYLOAD_MAX}")
        if select in exact:
            t.expect(size == exact[select], f"size {size} for {what}", f"{exact[select]}")
            continue
        last = t.transport.read_config(spec.PAYLOAD + size - 1, 1)
        t.expect(last != 0 or select not in _STRINGS, f"{what} ends with a NUL", "a string without")
        if last == 0:
            padded.append(what)
    return free(f"bitmaps with zero bytes at the end: {'; '.join(padded)}") if padded else None


@AREA.row("D-INP-06", "5.8.5", "DESC", "Absolute axes that are announced have ABS_INFO.")
def axes(t: Trial) -> Outcome:
    """Each axis of the bitmap: 20 bytes, and min is not above max."""
    t.up()
    announced = sorted(_codes(t, spec.EV_ABS))
    t.need(bool(announced), "it has no absolute axis")
    for axis in announced:
        about = _payload(t, Select.ABS_INFO, axis)
        name = spec.code_name(spec.EV_ABS, axis)
        t.expect(len(about) == spec.ABSINFO_SIZE, f"{len(about)} bytes for {name}", f"{spec.ABSINFO_SIZE}")
        least, most = struct.unpack("<ii", about[:8])
        t.expect(least <= most, f"{name} from {least} to {most}", "a range")
    return None


# --- events (5.8.6) ---------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """One event as the device wrote it."""

    type: int
    code: int
    value: int
    length: int


def _event(data: bytes, length: int) -> Event:
    kind, code, value = struct.unpack("<HHi", data[: spec.EVENT_SIZE])
    return Event(kind, code, value, length)


class _Events:
    """The event queue of a device that runs, and the host's means to make an update."""

    def __init__(self, t: Trial) -> None:
        self.t = t
        self.report = reports(t.device)
        self.lane: Lane = t.start(queues=[spec.EVENTQ])
        self._posted: list[tuple[Buffer, Posted]] = []

    def give(self, count: int, size: int = spec.EVENT_SIZE) -> None:
        """Give it buffers."""
        for _ in range(count):
            buffer = self.t.writable(size)
            posted = self.lane.chain(buffer)
            self.lane.publish(posted)
            self._posted.append((buffer, posted))
        self.lane.kick()

    def take(self) -> list[Event]:
        """The events that came; each is given once."""
        self.lane.take()
        came = [(buffer, posted) for buffer, posted in self._posted if posted.length is not None]
        self._posted = [one for one in self._posted if one not in came]
        return [_event(one.data, posted.length or 0) for one, posted in came]

    def watch(self) -> list[Event]:
        """The events that come without the host's doing."""
        found: list[Event] = []

        def more() -> bool:
            found.extend(self.take())
            return False

        self.t.quiet(more)
        return found

    def update(self, number: int) -> list[Event]:
        """Have the host make one update, with buffers enough; all of it, in time."""
        self.give(_PLENTY)
        found: list[Event] = []

        def whole() -> bool:
            found.extend(self.take())
            return bool(found) and _ends(found)

        self.report(number)
        self.t.owe(whole, f"{len(found)} events came", "an update that ends with SYN_REPORT")
        return found


def _ends(events: list[Event]) -> bool:
    """Whether the last event ends an update."""
    return (events[-1].type, events[-1].code) == (spec.EV_SYN, spec.SYN_REPORT)


def _updates(events: list[Event]) -> list[int]:
    """How many events each update has, the last one whether or not it ended."""
    found = [0]
    for number, event in enumerate(events):
        found[-1] += 1
        if _ends([event]) and number + 1 < len(events):
            found.append(0)
    return found


@AREA.row(
    "D-INP-02",
    "5.8.6.2",
    "SHOULD NOT",
    "No single event of an update is dropped.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
    witness="host",
)
def no_part_is_dropped(t: Trial) -> Outcome:
    """The host makes an update of several events, for which there is a buffer too few; more buffers come later."""
    events = _Events(t)
    size = len(events.update(0))
    t.need(size > 1, "its updates have one event")
    t.reset()
    events = _Events(t)
    events.give(size - 1)
    events.report(1)
    found = events.watch()
    events.give(_PLENTY)
    found += events.watch()
    if not found:
        return Good("the update is dropped")
    t.expect(_ends(found) and len(found) == size, f"{len(found)} of {size} events came", "all of them, or none")
    return Good("the rest of the update came later")


@AREA.row(
    "D-INP-03",
    "5.8.6.2",
    "SHOULD",
    "A sequence is buffered or dropped as a whole.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
    witness="host",
)
def whole_sequences(t: Trial) -> Outcome:
    """An update finds no buffer, one finds one too few, and others find enough: each that comes is whole."""
    events = _Events(t)
    size = len(events.update(0))
    t.reset()
    events = _Events(t)
    events.report(1)
    events.give(size - 1)
    events.report(0)
    found = [*events.take(), *events.update(1), *events.update(0)]
    sizes = _updates(found)
    t.expect(set(sizes) == {size}, f"updates of {', '.join(map(str, sizes))} events", f"each of {size}")
    return None


@AREA.row(
    "D-INP-07",
    "5.8.6",
    "DESC",
    "Events have types and codes that were announced.",
    needs=frozenset({"host"}),
    witness="host",
)
def announced_events(t: Trial) -> Outcome:
    """The host makes updates; each event but SYN is looked for in the bitmaps."""
    events = _Events(t)
    codes = {event_type: _codes(t, event_type) for event_type in range(1, spec.EV_CNT)}
    for number in range(2):
        for event in events.update(number):
            known = event.type == spec.EV_SYN or event.code in codes.get(event.type, ())
            name = f"{spec.type_name(event.type)} {spec.code_name(event.type, event.code)}"
            t.expect(known, f"{name}, which was not announced", "an announced code")
    return None


@AREA.row(
    "D-INP-08",
    "5.8.6",
    "DESC",
    "A used event buffer has 8 bytes.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def event_length(t: Trial) -> Outcome:
    """Buffers of 8 bytes and of 64: len is 8, and the rest of the buffer stays."""
    events = _Events(t)
    for event in events.update(0):
        t.expect(event.length == spec.EVENT_SIZE, f"len {event.length} in 8 bytes", "8")
    t.reset()
    events = _Events(t)
    events.give(_PLENTY, 64)
    for event in events.update(1):
        t.expect(event.length == spec.EVENT_SIZE, f"len {event.length} in 64 bytes", "8")
    return None


@AREA.row("D-INP-09", "5.8.6", "DESC", "Status buffers come back, those with unknown codes too.", level=Level.ODD)
def status_comes_back(t: Trial) -> Outcome:
    """An LED that goes out, a sound and a type that no device has, and an LED that there is not."""
    lane = t.start(queues=[spec.STATUSQ])
    for event in ((spec.EV_LED, 0, 0), (spec.EV_SND, 7, 0), (0x1E, 0x2FF, 0), (spec.EV_LED, 0xFFFF, 0)):
        posted = lane.post(t.readable(struct.pack("<HHi", *event)))
        t.await_used(lane, 1)
        t.expect(posted.length is not None, "the used ring names another chain", "the status buffer")
    return None


@AREA.row(
    "D-INP-10",
    "5.8.6",
    "DESC",
    "Event buffers that are too small are survived, and nothing behind them is written.",
    level=Level.RINGS,
    severity=Severity.MEMORY,
    needs=frozenset({"host"}),
)
def small_buffers(t: Trial) -> Outcome:
    """Buffers of 4 bytes, between guards, and an update: they are used, refused or passed over."""
    report = reports(t.device)
    lane = t.start(queues=[spec.EVENTQ])
    posted = [lane.chain(t.writable(4)) for _ in range(_PLENTY)]
    lane.publish(*posted)
    lane.kick()
    report(0)
    report(1)
    if t.serve(lane, posted[0], 2 * t.pace.watch):
        return rejected(f"used with len {posted[0].length}")
    return gave_up(t, otherwise="passed over")
