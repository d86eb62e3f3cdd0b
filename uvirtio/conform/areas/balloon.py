"""5.5: the traditional balloon. Only pinned pages of a test are inflated, and given back before it ends."""

from __future__ import annotations

import struct
from typing import Final

from uvirtio.conform.lane import Lane, Posted
from uvirtio.conform.levers import Rounds, Statistics, rounds, statistics
from uvirtio.conform.memory import Piece, pattern
from uvirtio.conform.row import ANY, LEGACY, MODERN, Area, Level, Need
from uvirtio.conform.traffic import gave_up
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Good, Outcome, Severity, Unfit, free, rejected
from uvirtio.drivers.balloon.queues import numbered
from uvirtio.errors import UvirtioError
from uvirtio.interfaces.memory import Block
from uvirtio.scripted import ScriptedCore
from uvirtio.spec import balloon
from uvirtio.spec import features as f
from uvirtio.spec.balloon import Stat
from uvirtio.spec.status import Status

AREA = Area("balloon", 80, "5.5: balloon", transports=ANY, types=frozenset({"balloon"}))

_PAGE: Final = 4096
_NOWHERE: Final = 0xFFFFFFFF
"""The page number that lies beyond the memory of any machine with less than 16 TiB."""
_UNKNOWN: Final = (0x7FFF, 0xFFFF)
"""Tags that no device knows."""
_POISONS: Final = (0, 0xAAAAAAAA)


class _Pages:
    """Pages of the test, each with a pattern of its own."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self.count = block.size // _PAGE
        for number in range(self.count):
            self.fill(number)

    @staticmethod
    def _given(number: int) -> bytes:
        return struct.pack("<I", number) + pattern(_PAGE - 4)

    def fill(self, number: int) -> None:
        """Write the pattern of a page."""
        self._block.view[number * _PAGE : (number + 1) * _PAGE] = self._given(number)

    def page(self, number: int) -> bytes:
        """What a page holds."""
        return bytes(self._block.view[number * _PAGE : (number + 1) * _PAGE])

    def changed(self, *but: int) -> list[int]:
        """The pages that no longer hold their pattern, without those that may."""
        return [one for one in range(self.count) if one not in but and self.page(one) != self._given(one)]


class _Balloon:
    """A balloon that runs, and pinned pages for it."""

    def __init__(self, t: Trial, pages: int = 8) -> None:
        self.t = t
        t.start(queues=[balloon.INFLATEQ, balloon.DEFLATEQ])
        block = t.dma.pin(pages * _PAGE)
        self.pfns = block.pfns()
        self.pages = _Pages(block)

    def inflate(self, *numbers: int) -> None:
        """Give pages to the balloon."""
        self._ask(balloon.INFLATEQ, numbers)

    def deflate(self, *numbers: int) -> None:
        """Take pages back."""
        self._ask(balloon.DEFLATEQ, numbers)

    def _ask(self, queue: int, numbers: tuple[int, ...]) -> None:
        posted = self.post(queue, struct.pack(f"<{len(numbers)}I", *(self.pfns[one] for one in numbers)))
        self.t.await_used(self.t.lanes[queue], 1)
        self.t.expect(posted.length is not None, "the used ring names another chain", "the request")

    def post(self, queue: int, data: bytes) -> Posted:
        """Make a request of these bytes, without waiting for it."""
        return self.t.lanes[queue].post(self.t.readable(data))


# --- inflating and deflating (5.5.6) ----------------------------------------------------------------------------


@AREA.row(
    "D-BAL-01",
    "5.5.3.2",
    "MAY",
    "FEATURES_OK may be refused without MUST_TELL_HOST.",
    level=Level.ODD,
    transports=MODERN,
)
def without_must_tell_host(t: Trial) -> Outcome:
    """The bit is offered and not accepted."""
    t.need_feature(f.Balloon.MUST_TELL_HOST)
    return free("accepted without it" if t.accepts(t.plain) else "refused without it")


@AREA.row("D-BAL-02", "5.5.6.2", "MAY", "The contents of a page may go once it is in an inflate request.")
def contents_may_go(t: Trial) -> Outcome:
    """A pattern in a page that is inflated and deflated."""
    device = _Balloon(t)
    device.inflate(2)
    gone = bool(device.pages.changed())
    device.deflate(2)
    return free("they went" if gone else "they stayed")


@AREA.row(
    "D-BAL-03",
    "5.5.6.2",
    "DESC",
    "Pages outside of the request keep their contents.",
    severity=Severity.MEMORY,
    witness="memory",
)
def other_pages_stay(t: Trial) -> Outcome:
    """Patterns in the pages around one page and around two, with even and odd numbers."""
    device = _Balloon(t)
    inflated = (1, 4, 5)
    device.inflate(inflated[0])
    device.inflate(*inflated[1:])
    changed = device.pages.changed(*inflated)
    device.deflate(*inflated)
    changed = changed or device.pages.changed(*inflated)
    t.expect(not changed, f"pages {changed} changed, and {inflated} were inflated", "their contents")
    return None


@AREA.row(
    "D-BAL-04",
    "5.5.6.2",
    "DESC",
    "Page numbers outside of memory do no harm.",
    level=Level.RINGS,
    severity=Severity.DEAD,
)
def outside_of_memory(t: Trial) -> Outcome:
    """Page 0xffffffff is inflated: it is used, refused or passed over, and a reset mends it."""
    # Elsewhere that page may be somebody's.
    made = t.device.guest is not None or isinstance(t.transport.backend, ScriptedCore)
    t.need(made, "only on a machine that was made for the test")
    device = _Balloon(t)
    posted = device.post(balloon.INFLATEQ, struct.pack("<I", _NOWHERE))
    used = t.serve(t.lanes[balloon.INFLATEQ], posted, 2 * t.pace.watch)
    changed = device.pages.changed()
    t.expect(not changed, f"pages {changed} changed", "their contents")
    if used:
        return rejected("used")
    return gave_up(t, otherwise="passed over")


@AREA.row(
    "D-BAL-05",
    "5.5.6.2",
    "DESC",
    "A trailing fragment of a page number is ignored.",
    level=Level.RINGS,
    severity=Severity.MEMORY,
)
def trailing_fragment(t: Trial) -> Outcome:
    """A request of 7 bytes: one page number, and three bytes of that of a page that holds a pattern."""
    device = _Balloon(t)
    t.need(device.pfns[5] < 1 << 24, "the pages have numbers of four bytes")
    posted = device.post(balloon.INFLATEQ, struct.pack("<II", device.pfns[1], device.pfns[5])[:7])
    used = t.serve(t.lanes[balloon.INFLATEQ], posted, 2 * t.pace.watch)
    changed = device.pages.changed(1)
    t.expect(not changed, f"pages {changed} changed", "at most the first page of the request")
    return Good("used") if used else rejected("not used")


@AREA.row("D-BAL-17", "5.5.4", "DESC", "actual reads back what the driver wrote.", witness="host")
def actual_reads_back(t: Trial) -> Outcome:
    """It is written as a driver does it, after one page was inflated, after three, and after none is left."""
    device = _Balloon(t)
    device.inflate(0)
    _actual(t, 1)
    device.inflate(1, 2)
    _actual(t, 3)
    device.deflate(0, 1, 2)
    _actual(t, 0)
    return None


def _actual(t: Trial, pages: int) -> None:
    t.transport.write_config(balloon.ACTUAL, 4, pages)
    seen = t.config_field(balloon.CONFIG, "actual")
    t.expect(seen == pages, f"actual reads {seen:#x}", f"{pages:#x}")
    t.witnessed("actual", pages, t.host.balloon())


@AREA.row(
    "D-BAL-L1",
    "5.5.3.2",
    "MUST",
    "Legacy: a driver without MUST_TELL_HOST is served.",
    transports=LEGACY,
)
def legacy_without_must_tell_host(t: Trial) -> Outcome:
    """Pages are inflated and used again without deflating them, and others are inflated and deflated."""
    device = _Balloon(t)
    for number in range(4):
        device.inflate(number)
        device.pages.fill(number)
    device.inflate(4, 5)
    device.deflate(4, 5)
    status = t.status()
    t.expect(not status & Status.DEVICE_NEEDS_RESET, "DEVICE_NEEDS_RESET", "a device that works")
    return None


@AREA.row(
    "D-BAL-L2",
    "5.5.3.2",
    "SHOULD",
    "Legacy: without MUST_TELL_HOST pages may be used before the host is told.",
    severity=Severity.MEMORY,
    transports=LEGACY,
    witness="memory",
)
def legacy_uses_pages_first(t: Trial) -> Outcome:
    """An inflated page gets a pattern, which has to stay while another is inflated and both are deflated."""
    device = _Balloon(t)
    device.inflate(1)
    device.pages.fill(1)
    device.inflate(3)
    device.deflate(3)
    device.deflate(1)
    t.expect(not device.pages.changed(3), "the page lost what was written after it was inflated", "the pattern")
    return None


# --- statistics (5.5.6.3) ---------------------------------------------------------------------------------------

_VALUES: Final = {Stat.SWAP_IN: 0x1000, Stat.MINFLT: 0x77, Stat.MEMFREE: 0x123456000, Stat.MEMTOT: 0x200000000}


class _Stats:
    """The statistics queue of a device that runs."""

    def __init__(self, t: Trial, host: Statistics) -> None:
        t.need_feature(f.Balloon.STATS_VQ)
        self.t = t
        self.host = host
        also = f.mask(f.Balloon.STATS_VQ)
        t.start(also=also, queues=[balloon.INFLATEQ, balloon.DEFLATEQ, balloon.STATSQ])
        self.lane: Lane = t.lanes[balloon.STATSQ]

    def post(self, entries: list[tuple[int, int]]) -> Posted:
        """Make a buffer with these entries available."""
        return self.lane.post(self.t.readable(b"".join(struct.pack("<HQ", *one) for one in entries)))

    def ask(self, posted: Posted) -> None:
        """Have the host ask for others: the buffer comes back."""
        self.host.ask()
        self.t.await_used(self.lane, 1)
        self.host.rest()
        self.t.expect(posted.length is not None, "the used ring names another chain", "the statistics")

    def tell(self, entries: list[tuple[int, int]]) -> None:
        """Tell the host these statistics; of a legacy device it ignores the first buffer (5.5.6.3.3)."""
        if self.t.legacy:
            self.ask(self.post([(tag, 0) for tag, _ in entries]))
        self.post(entries)

    def shows(self, values: dict[int, int]) -> None:
        """The host has to show these values in time, and no others."""
        right = {int(tag): value for tag, value in values.items()}
        self.t.owe(lambda: self.host.read() == right, f"the host shows {self.host.read()}", f"{right}")


@AREA.row(
    "D-BAL-06",
    "5.5.6.3.2",
    "MUST",
    "Statistics with unknown tags are ignored.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
    witness="host",
)
def unknown_statistics(t: Trial) -> Outcome:
    """Tags 0x7fff and 0xffff between and behind the others, which the host shows."""
    with statistics(t.device) as host:
        entries = [(int(tag), value) for tag, value in _VALUES.items()]
        stats = _Stats(t, host)
        stats.tell([entries[0], (_UNKNOWN[0], 5), *entries[1:], (_UNKNOWN[1], 6)])
        stats.shows(dict(entries))
    return None


@AREA.row(
    "D-BAL-07",
    "5.5.6.3.2",
    "MUST",
    "Statistics are taken in any order.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
    witness="host",
)
def order_of_statistics(t: Trial) -> Outcome:
    """The tags from the last to the first; the host shows their values."""
    with statistics(t.device) as host:
        entries = [(int(tag), value) for tag, value in reversed(_VALUES.items())]
        stats = _Stats(t, host)
        stats.tell(entries)
        stats.shows(dict(entries))
    return None


@AREA.row(
    "D-BAL-08",
    "5.5.6.3",
    "DESC",
    "The statistics buffer is held until the host asks for others.",
    needs=frozenset({"host"}),
    witness="host",
)
def statistics_are_held(t: Trial) -> Outcome:
    """It is not used for a while; then the host asks, and it is."""
    with statistics(t.device) as host:
        stats = _Stats(t, host)
        posted = stats.post([(int(tag), value) for tag, value in _VALUES.items()])
        held = t.quiet(lambda: bool(stats.lane.take()))
        t.expect(held, "it was used though the host did not ask", "a buffer that is held")
        stats.ask(posted)
    return None


@AREA.row(
    "D-BAL-L3",
    "5.5.6.3.3",
    "SHOULD",
    "Legacy: the values of the first statistics buffer are ignored.",
    transports=LEGACY,
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
    witness="host",
)
def legacy_first_statistics(t: Trial) -> Outcome:
    """Rubbish in the first buffer, of which the host may show nothing; it shows the second."""
    with statistics(t.device) as host:
        stats = _Stats(t, host)
        posted = stats.post([(int(tag), 0x5A5A) for tag in _VALUES])
        t.quiet(lambda: bool(stats.lane.take()))
        shown = [tag for tag, value in host.read().items() if value == 0x5A5A]
        stats.ask(posted)
        stats.post([(int(tag), value) for tag, value in _VALUES.items()])
        stats.shows({int(tag): value for tag, value in _VALUES.items()})
        t.expect(not shown, f"the host shows tags {shown} of the first buffer", "none of them")
    return None


# --- hints and reports (5.5.6.5 to 5.5.6.7) ----------------------------------------------------------------------


@AREA.row(
    "D-BAL-09",
    "5.5.6.5.2",
    "SHOULD",
    "free_page_hint_cmd_id is STOP while hints are of no use.",
    transports=MODERN,
)
def no_round(t: Trial) -> Outcome:
    """It is read of a device that just came up; a round is told where the host is not ours."""
    t.need_feature(f.Balloon.FREE_PAGE_HINT)
    t.up(f.mask(f.Balloon.FREE_PAGE_HINT))
    seen = t.config_field(balloon.CONFIG, "free_page_hint_cmd_id")
    if seen >= balloon.CMD_ID_FIRST and not t.consent.host:
        return free(f"a round with id {seen}")
    t.expect(seen == balloon.CMD_ID_STOP, f"id {seen}", f"{balloon.CMD_ID_STOP}, STOP")
    return None


def _exists(t: Trial, queue: int) -> bool:
    try:
        return t.transport.queue_layout(queue).size_max > 0
    except UvirtioError:
        return False


@AREA.row(
    "D-BAL-16",
    "5.5.2",
    "DESC",
    "Hints have queue 3 and reports queue 4, also where another queue is absent.",
    transports=MODERN,
)
def queue_numbers(t: Trial) -> Outcome:
    """Each of the two features is accepted alone; the queue of its number is there."""
    pairs = (
        (f.Balloon.FREE_PAGE_HINT, balloon.FREE_PAGE_VQ, "hints"),
        (f.Balloon.PAGE_REPORTING, balloon.REPORTING_VQ, "reports"),
    )
    offered = [one for one in pairs if f.has(t.offered, one[0])]
    t.need(bool(offered), "neither FREE_PAGE_HINT nor PAGE_REPORTING is offered")
    for bit, queue, name in offered:
        status = t.negotiate(t.plain | f.mask(bit))
        t.need(bool(status & Status.FEATURES_OK), f"it refuses {f.feature(t.type, bit).name} alone")
        t.expect(_exists(t, queue), f"{name}: there is no queue {queue}", f"queue {queue}")
        t.reset()
    stats, hints = (f.has(t.offered, bit) for bit in (f.Balloon.STATS_VQ, f.Balloon.FREE_PAGE_HINT))
    t.need(not stats or not hints, "no queue before them is absent, so every way to number them is the same")
    return None


class _Queue:
    """The queue for hints or for reports of a device that runs, wherever it has it, and memory for it."""

    def __init__(self, t: Trial, bit: int, name: str, *, also: int = 0, poison: int | None = None) -> None:
        t.need_feature(bit)
        self.t = t
        # With all queues that there are, every way to number them comes to the same.
        queues = f.mask(f.Balloon.STATS_VQ, f.Balloon.FREE_PAGE_HINT, f.Balloon.PAGE_REPORTING)
        features = t.plain | t.offered & queues | also
        try:
            found = numbered(
                t.device.address, t.offered, features, balloon.REPORTING_VQ, lambda one: _exists(t, one)
            )
        except UvirtioError as error:
            raise Unfit(str(error)) from error
        places = {one.name: one.index for one in found}
        t.prepare(features=features, queues=list(places.values()))
        if poison is not None:
            t.transport.write_config(balloon.POISON_VAL, 4, poison)
        t.go()
        if balloon.STATSQ_NAME in places:
            # 5.5.6.3.1: there is one buffer, always.
            t.lanes[places[balloon.STATSQ_NAME]].post(t.readable(struct.pack("<HQ", Stat.MEMFREE, 0)))
        self.lane = t.lanes[places[name]]
        self._block = t.dma.alloc(8 * _PAGE)
        self.pages = _Pages(self._block)

    def command(self, ident: int) -> None:
        """Say under which id the next hints are."""
        posted = self.lane.post(self.t.readable(struct.pack("<I", ident)))
        self.t.await_used(self.lane, 1)
        self.t.expect(posted.length is not None, "the used ring names another chain", "the command")

    def give(self, first: int, count: int) -> None:
        """Say in one chain that pages are free."""
        runs = self._block.segments(first * _PAGE, count * _PAGE)
        posted = self.lane.post(*(Piece(address, length, True) for address, length in runs))
        self.t.await_used(self.lane, 1)
        self.t.expect(posted.length is not None, "the used ring names another chain", "the pages")


def _reports(t: Trial, *, also: int = 0, poison: int | None = None) -> _Queue:
    return _Queue(t, f.Balloon.PAGE_REPORTING, balloon.REPORTING_VQ_NAME, also=also, poison=poison)


def _hints(t: Trial) -> _Queue:
    return _Queue(t, f.Balloon.FREE_PAGE_HINT, balloon.FREE_PAGE_VQ_NAME)


def _id(t: Trial) -> int:
    return t.config_field(balloon.CONFIG, "free_page_hint_cmd_id")


def _begun(t: Trial, host: Rounds) -> int:
    """Have the host begin a round; its id."""
    host.begin()
    t.owe(lambda: _id(t) >= balloon.CMD_ID_FIRST, f"id {_id(t)} though the host wants hints", "the id of a round")
    return _id(t)


_HOST: Final[frozenset[Need]] = frozenset({"host"})


@AREA.row(
    "D-BAL-10",
    "5.5.6.5.2",
    "MUST NOT",
    "No command id is used again before STOP came from the driver.",
    severity=Severity.SILENT,
    transports=MODERN,
    needs=_HOST,
)
def ids_are_new(t: Trial) -> Outcome:
    """Two rounds, of which the first is begun by the driver and not stopped."""
    hints = _hints(t)
    with rounds(t) as host:
        first = _begun(t, host)
        hints.command(first)
        host.end()
        second = _begun(t, host)
    t.expect(second != first, f"id {first} twice", "another id")
    return Good(f"ids {first} and {second}")


@AREA.row(
    "D-BAL-11",
    "5.5.6.5.2",
    "MUST",
    "Hints under another id than that of the round are ignored.",
    severity=Severity.MEMORY,
    transports=MODERN,
    needs=_HOST,
    witness="memory",
)
def other_ids(t: Trial) -> Outcome:
    """Pages with patterns are hinted under an id that the round has not; what they hold here has to stay."""
    hints = _hints(t)
    with rounds(t) as host:
        hints.command(_begun(t, host) + 5)
        hints.give(1, 3)
        changed = hints.pages.changed()
    t.expect(not changed, f"pages {changed} changed", "their contents")
    return None


@AREA.row(
    "D-BAL-12",
    "5.5.6.5.2",
    "MUST NOT",
    "Hinted pages are left alone once the id is DONE.",
    severity=Severity.MEMORY,
    transports=MODERN,
    needs=_HOST,
    witness="memory",
)
def left_alone(t: Trial) -> Outcome:
    """Pages are hinted; after DONE they get a pattern, which has to stay."""
    hints = _hints(t)
    with rounds(t) as host:
        hints.command(_begun(t, host))
        hints.give(1, 3)
        host.end()
        t.owe(lambda: _id(t) == balloon.CMD_ID_DONE, f"id {_id(t)} at the end", f"{balloon.CMD_ID_DONE}, DONE")
        for number in (1, 2, 3):
            hints.pages.fill(number)
        # The device is asked meanwhile: some work only then.
        quiet = t.quiet(lambda: _id(t) != balloon.CMD_ID_DONE or bool(hints.pages.changed()))
    t.expect(quiet, f"pages {hints.pages.changed()} changed after DONE, id {_id(t)}", "their contents")
    return None


@AREA.row(
    "D-BAL-13",
    "5.5.6.5.2",
    "MUST",
    "DONE is reported when hinted pages are no longer needed.",
    transports=MODERN,
    needs=_HOST,
)
def reports_done(t: Trial) -> Outcome:
    """A round with hints, at the end of which the id is read."""
    hints = _hints(t)
    with rounds(t) as host:
        hints.command(_begun(t, host))
        hints.give(1, 1)
        host.end()
        t.owe(lambda: _id(t) == balloon.CMD_ID_DONE, f"id {_id(t)} at the end", f"{balloon.CMD_ID_DONE}, DONE")
    return None


@AREA.row(
    "D-BAL-14",
    "5.5.6.7.2",
    "MUST NOT",
    "With PAGE_POISON a reported page has poison_val, or what it held.",
    severity=Severity.SILENT,
    transports=MODERN,
    witness="memory",
)
def poisoned_pages(t: Trial) -> Outcome:
    """Pages with a pattern are reported, with poison_val 0 and 0xaaaaaaaa."""
    t.need_feature(f.Balloon.PAGE_POISON)
    seen = []
    for poison in _POISONS:
        reports = _reports(t, also=f.mask(f.Balloon.PAGE_POISON), poison=poison)
        reports.give(2, 3)
        poisoned = struct.pack("<I", poison) * (_PAGE // 4)
        changed = reports.pages.changed()
        wrong = [one for one in changed if reports.pages.page(one) != poisoned]
        t.expect(not wrong, f"pages {wrong} have other contents, with poison_val {poison:#x}", "it, or no change")
        seen.append(f"poison_val {poison:#x}: {'it' if changed else 'unchanged'}")
        t.reset()
    return Good("; ".join(seen))


@AREA.row(
    "D-BAL-15",
    "5.5.6.7",
    "DESC",
    "Reported pages come back used, and only their contents are free to go.",
    severity=Severity.MEMORY,
    transports=MODERN,
    witness="memory",
)
def reported_pages(t: Trial) -> Outcome:
    """One page and three are reported; the pages around them keep their patterns."""
    reports = _reports(t)
    reports.give(1, 1)
    reports.give(4, 3)
    changed = reports.pages.changed(1, 4, 5, 6)
    t.expect(not changed, f"pages {changed} changed, and were not reported", "their contents")
    return Good("their contents went" if reports.pages.changed() else "their contents stayed")
