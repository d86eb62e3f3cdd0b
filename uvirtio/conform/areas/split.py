"""2.6.1 and 2.7: split virtqueues, message framing, notification suppression, and the reset of one queue."""

from __future__ import annotations

from collections.abc import Callable

from uvirtio.conform.exchange import FAULTS, NOTIFIED_WRONGLY, READ_ONLY, SERVED, WRITTEN
from uvirtio.conform.lane import SplitLane, flat, table_of
from uvirtio.conform.row import ANY, MODERN, Area, Level
from uvirtio.conform.traffic import (
    batch,
    cut,
    expect_any_framing,
    expect_in_order,
    expect_no_stray,
    expect_notified,
    expect_quiet,
    fitting,
    gave_up,
    longest,
    nothing_more,
    same_used_index,
    unwritten,
)
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, free, rejected
from uvirtio.diag.raw import Descriptor
from uvirtio.spec import features as f
from uvirtio.spec import ring
from uvirtio.spec.status import Status, describe

AREA = Area("split", 60, "2.6.1, 2.7: split virtqueues", transports=ANY, types=SERVED)


def only(t: Trial) -> None:
    """Leave the test out where the rings are packed."""
    t.need(not t.packed, "a test of split rings")


def split(t: Trial, *, also: int = 0, interrupts: bool = False, size: int | None = None) -> SplitLane:
    """Bring the device up with a split ring; a test that has another ring too calls ``Trial.start``."""
    only(t)
    lane = t.start(also=also, interrupts=interrupts, size=size)
    assert isinstance(lane, SplitLane)
    return lane


# --- descriptors (2.7.5) ----------------------------------------------------------------------------------------


@AREA.row("D-DESC-01", "2.7.5.1", "MUST NOT", "Write no device-readable buffer.", severity=Severity.MEMORY)
def readable_buffers_stay(t: Trial) -> Outcome:
    """Readable buffers are compared after three good requests; one that no request has lies beside them."""
    t.note("the frame compares these in every test")
    expect_no_stray(t, split(t), "D-DESC-01")
    return None


@AREA.row("D-DESC-03", "2.7.5.1", "MUST NOT", "Write no descriptor table entry.", severity=Severity.MEMORY)
def descriptors_stay(t: Trial) -> Outcome:
    """The whole table, and the available ring, are compared after three good requests."""
    expect_no_stray(t, split(t), "D-DESC-03")
    return None


@AREA.row("D-DESC-04", "2.7.5.1", "DESC", "Write nothing beyond a buffer's length.", severity=Severity.MEMORY)
def guards_stay(t: Trial) -> Outcome:
    """64 guard bytes around every writable buffer are compared after three good requests."""
    expect_no_stray(t, t.start(), "D-DESC-04")
    return None


# --- framing (2.7.4) --------------------------------------------------------------------------------------------


@AREA.row(
    "D-FRM-01",
    "2.7.4.1",
    "MUST NOT",
    "Assume nothing about how a request is cut into descriptors.",
    level=Level.ODD,
    transports=MODERN,
)
def any_framing(t: Trial) -> Outcome:
    """A good request whose buffers are cut into 1, 2, 7 and 16 pieces each, down to single bytes."""
    expect_any_framing(t, t.start())
    return None


@AREA.row(
    "D-FRM-02",
    "2.7.4.1",
    "MAY",
    "Limit the length of a chain, reasonably.",
    level=Level.ODD,
    types=frozenset({"rng"}),
)
def longest_chain(t: Trial) -> Outcome:
    """A chain of one-byte buffers as long as the queue is posted: what became of it is a fact."""
    return free(f"a chain {longest(t, split(t))}")


# --- indirect descriptors (2.7.5.3) -----------------------------------------------------------------------------


def _indirect(t: Trial) -> SplitLane:
    t.need_feature(f.INDIRECT_DESC)
    return split(t, also=f.mask(f.INDIRECT_DESC))


@AREA.row(
    "D-IND-01",
    "2.7.5.3.2",
    "MUST",
    "Ignore WRITE in the descriptor that names an indirect table.",
    level=Level.ODD,
)
def write_flag_of_a_table(t: Trial) -> Outcome:
    """A good request in a table, without and with WRITE in the head."""
    lane = _indirect(t)
    for flags in (0, ring.DESC_F_WRITE):
        elements = t.exchange.elements(t)
        table = t.readable(table_of(flat(elements)))
        posted = lane.indirect(table, *elements, flags=flags)
        lane.publish(posted)
        lane.kick()
        t.expect(t.serve(lane, posted), f"not served with flags {flags | 4:#x} in the head", "service")
        t.right(elements, posted)
    return None


@AREA.row(
    "D-IND-02",
    "2.7.5.3.2",
    "MUST",
    "Take direct descriptors followed by one indirect table.",
    level=Level.ODD,
)
def direct_then_indirect(t: Trial) -> Outcome:
    """The first piece of a good request in a direct descriptor, the rest in a table."""
    lane = _indirect(t)
    elements = t.exchange.elements(t)
    pieces = cut(elements, 2)
    posted = lane.indirect(t.readable(table_of(pieces[1:])), *pieces[1:], before=pieces[:1])
    lane.publish(posted)
    lane.kick()
    served = t.serve(lane, posted)
    t.expect(served, f"not served; status {describe(t.status())}", "a request that is served")
    t.right(elements, posted)
    return None


# --- faults: each is survived, and a reset mends it (2.7) -------------------------------------------------------


def _survived(t: Trial, lane: SplitLane) -> Outcome:
    """What became of invalid input; the frame sees whether the device works after its reset."""
    before = lane.used_idx
    lane.kick()
    t.until(lambda: lane.used_idx != before or bool(t.status() & Status.DEVICE_NEEDS_RESET), 2 * t.pace.watch)
    status = t.status()
    if status & Status.DEVICE_NEEDS_RESET:
        return rejected("DEVICE_NEEDS_RESET")
    if lane.used_idx != before:
        return rejected(f"a used element, len {lane.raw.used(before)[1]}")
    return rejected("silence")


def _fault(t: Trial, lay: Callable[[Trial, SplitLane], None]) -> Outcome:
    lane = split(t)
    t.good(lane)
    lay(t, lane)
    return _survived(t, lane)


@AREA.row(
    "D-FLT-01",
    "2.7",
    "DESC",
    "A head or a next index beyond the queue is survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
    types=FAULTS,
)
def head_beyond(t: Trial) -> Outcome:
    """The available ring names descriptor 0x7fff."""
    return _fault(t, lambda t, lane: lane.raw.show(0x7FFF))


@AREA.row(
    "D-FLT-02",
    "2.7",
    "DESC",
    "A loop of descriptors ends.",
    level=Level.RINGS,
    severity=Severity.DEAD,
    types=FAULTS,
)
def loop(t: Trial) -> Outcome:
    """Two descriptors that link to each other."""

    def lay(t: Trial, lane: SplitLane) -> None:
        raw, buffer = lane.raw, t.writable(8)
        for number in (0, 1):
            flags = ring.DESC_F_WRITE | ring.DESC_F_NEXT
            raw.descriptor(number, Descriptor(buffer.address, 8, flags, 1 - number))
        raw.show(0)

    return _fault(t, lay)


@AREA.row(
    "D-FLT-04",
    "2.7",
    "DESC",
    "An available index that jumps beyond the queue size is survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
    types=FAULTS,
)
def index_jumps(t: Trial) -> Outcome:
    """avail.idx moves on by the size of the queue and one more."""

    def lay(t: Trial, lane: SplitLane) -> None:
        raw = lane.raw
        raw.idx = raw.idx + lane.size + 1
        raw.fence()

    return _fault(t, lay)


@AREA.row(
    "D-FLT-05",
    "2.7",
    "DESC",
    "A readable buffer behind a writable one is survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
    types=FAULTS,
)
def wrong_order(t: Trial) -> Outcome:
    """A writable buffer, then a readable one."""

    def lay(t: Trial, lane: SplitLane) -> None:
        writable, readable = t.writable(8), t.readable(bytes(8))
        lane.publish(lane.chain(writable, readable))

    return _fault(t, lay)


@AREA.row(
    "D-IND-03",
    "2.7.5.3",
    "DESC",
    "An indirect table that is longer than the queue is survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
    types=frozenset({"rng"}),
)
def long_table(t: Trial) -> Outcome:
    """One-byte buffers, one more than the queue has entries: served, or refused."""
    lane = _indirect(t)
    t.good(lane)
    pieces = cut([t.writable(lane.size + 1)], lane.size + 1)
    posted = lane.indirect(t.readable(table_of(pieces)), *pieces)
    lane.publish(posted)
    lane.kick()
    if t.serve(lane, posted):
        return free(f"a table of {lane.size + 1} descriptors, of a queue of {lane.size}, is served")
    return gave_up(t, otherwise="silence")


@AREA.row(
    "D-IND-04",
    "2.7.5.3",
    "DESC",
    "An indirect table of a bad length is survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
    types=FAULTS,
)
def odd_table(t: Trial) -> Outcome:
    """A table of 17 bytes."""
    lane = _indirect(t)
    t.good(lane)
    lane.publish(lane.indirect(t.readable(table_of(flat([t.writable(8)])) + b"\0")))
    return _survived(t, lane)


@AREA.row(
    "D-STAT-03",
    "2.1.2",
    "SHOULD",
    "Raise DEVICE_NEEDS_RESET on entering an error that only a reset can end.",
    transports=MODERN,
    level=Level.RINGS,
    types=FAULTS,
)
def says_that_it_needs_a_reset(t: Trial) -> Outcome:
    """After a head beyond the queue a good request is made: it is served, or the status says why not."""
    lane = split(t)
    t.good(lane)
    lane.raw.show(0x7FFF)
    lane.kick()
    _, posted = t.request(lane)
    lane.publish(posted)
    lane.kick()
    if t.serve(lane, posted, 2 * t.pace.watch):
        return rejected("the invalid head is passed over, and the next request is served")
    status = t.status()
    t.expect(
        bool(status & Status.DEVICE_NEEDS_RESET), f"status {describe(status)} of a stuck queue", "NEEDS_RESET"
    )
    return None


@AREA.row(
    "D-STAT-04",
    "2.1.2",
    "MUST",
    "With DRIVER_OK set, DEVICE_NEEDS_RESET comes with a configuration-change notification.",
    transports=MODERN,
    level=Level.RINGS,
    severity=Severity.SILENT,
    types=FAULTS,
)
def needs_reset_is_notified(t: Trial) -> Outcome:
    """A head beyond the queue; where the status shows DEVICE_NEEDS_RESET, the notification is waited for."""
    lane = split(t, interrupts=True)
    t.good(lane)
    t.arrived()
    lane.raw.show(0x7FFF)
    lane.kick()
    raised = t.until(lambda: bool(t.status() & Status.DEVICE_NEEDS_RESET), t.pace.deadline)
    t.need(raised, "this device does not raise DEVICE_NEEDS_RESET for an invalid head")
    t.owe(lambda: t.arrived().config, "no configuration-change notification came", "one (2.3)")
    return None


# --- used-buffer notifications (2.7.7) --------------------------------------------------------------------------

_EVENT = f.mask(f.EVENT_IDX)


@AREA.row("D-SUP-01", "2.7.7.2", "MUST", "Without EVENT_IDX used_event has no effect.", severity=Severity.SILENT)
def used_event_without_the_feature(t: Trial) -> Outcome:
    """used_event is far away, and a request is notified all the same."""
    lane = split(t, interrupts=True)
    lane.raw.used_event = 0x4000
    t.good(lane)
    t.await_interrupt(lane)
    return None


@AREA.row("D-SUP-02", "2.7.7.2", "SHOULD NOT", "Without EVENT_IDX flags 1 means no notification.")
def suppressed_by_flags(t: Trial) -> Outcome:
    """The flag, one request, and whatever the start brought; then three requests without a notification."""
    lane = split(t, interrupts=True)
    lane.raw.flags = ring.AVAIL_F_NO_INTERRUPT
    expect_quiet(t, lane, "a notification came though avail.flags was 1")
    return None


@AREA.row(
    "D-SUP-03", "2.7.7.2", "MUST", "Without EVENT_IDX flags 0 means a notification.", severity=Severity.SILENT
)
def notified(t: Trial) -> Outcome:
    """Three requests, an interrupt for each."""
    expect_notified(t, split(t, interrupts=True))
    return None


@AREA.row(
    "D-SUP-04",
    "2.7.7.2",
    "MUST",
    "With EVENT_IDX the low bit of avail.flags has no effect.",
    level=Level.RINGS,
    severity=Severity.SILENT,
    types=NOTIFIED_WRONGLY,
)
def flags_with_event_idx(t: Trial) -> Outcome:
    """flags 1 and a used_event that matches: a request is notified."""
    t.need_feature(f.EVENT_IDX)
    lane = split(t, also=_EVENT, interrupts=True)
    lane.raw.flags = ring.AVAIL_F_NO_INTERRUPT
    lane.raw.used_event = 0
    t.good(lane)
    t.await_interrupt(lane)
    return None


@AREA.row(
    "D-SUP-05",
    "2.7.7.2",
    "MUST",
    "With EVENT_IDX notify when the entry at used_event is written.",
    severity=Severity.SILENT,
)
def notified_at_the_event(t: Trial) -> Outcome:
    """used_event 0, then 2: the first and the third request are notified, and the second is not."""
    t.need_feature(f.EVENT_IDX)
    lane = split(t, also=_EVENT, interrupts=True)
    lane.raw.used_event = 0
    t.good(lane)
    t.await_interrupt(lane)
    lane.raw.used_event = 2
    t.good(lane)
    t.expect(t.no_interrupt(lane), "a notification came one request too early", "none")
    t.good(lane)
    t.await_interrupt(lane)
    return None


@AREA.row("D-SUP-06", "2.7.7.2", "SHOULD NOT", "With EVENT_IDX no notification comes elsewhere.")
def quiet_before_the_event(t: Trial) -> Outcome:
    """used_event far ahead: of four requests none is notified but the first, before which there was no index."""
    t.need_feature(f.EVENT_IDX)
    lane = split(t, also=_EVENT, interrupts=True)
    lane.raw.used_event = 0x4000
    expect_quiet(t, lane, "a notification came before used_event")
    return None


# --- the used ring (2.7.8) --------------------------------------------------------------------------------------


@AREA.row(
    "D-USED-02",
    "2.7.8.2",
    "MUST",
    "At least len bytes were written, from the first writable byte.",
    severity=Severity.SILENT,
    types=WRITTEN,
)
def len_is_written(t: Trial) -> Outcome:
    """Good requests into buffers full of a pattern: no run of it is left within len."""
    lane = t.start()
    for _ in range(3):
        elements, posted = t.request(lane)
        lane.publish(posted)
        lane.kick()
        t.await_used(lane, 1)
        wrong = unwritten(elements, posted.length or 0)
        t.expect(wrong is None, wrong or "", "bytes that were written")
    return None


@AREA.row(
    "D-USED-03",
    "2.7.8.2",
    "DESC",
    "len is 0 when the chain has no writable buffer.",
    severity=Severity.SILENT,
    types=READ_ONLY,
)
def len_of_readable_chains(t: Trial) -> Outcome:
    """Good requests that the device only reads."""
    lane = split(t)
    for posted in t.good(lane, 3):
        t.expect(posted.length == 0, f"len {posted.length}", "0")
    return None


@AREA.row(
    "D-USED-04",
    "2.7.8.2",
    "DESC",
    "len never exceeds the writable bytes that were posted.",
    severity=Severity.SILENT,
    types=WRITTEN,
)
def len_within_the_chain(t: Trial) -> Outcome:
    """Three good requests."""
    lane = t.start()
    for posted in t.good(lane, 3):
        t.expect((posted.length or 0) <= posted.room, f"len {posted.length} of {posted.room} bytes", "no more")
    return None


@AREA.row(
    "D-USED-05",
    "2.7.8",
    "DESC",
    "id names a head that was posted and not yet used.",
    severity=Severity.SILENT,
    witness="host",
)
def used_ids(t: Trial) -> Outcome:
    """Batches of requests against the ledger."""
    lane = split(t)
    for _ in range(3):
        chains = batch(t, lane, fitting(t, lane))
        t.await_used(lane, len(chains))
    same_used_index(t, lane)
    faults = [one for one in lane.faults if one.startswith("D-USED-05")]
    t.expect(not faults, "; ".join(faults), "heads that are out")
    return None


@AREA.row(
    "D-USED-06", "2.7.8", "DESC", "Every posted chain comes back once.", severity=Severity.SILENT, witness="host"
)
def each_comes_back(t: Trial) -> Outcome:
    """A batch of requests: as many used elements, each for another chain, and none behind them."""
    lane = t.start()
    count = fitting(t, lane)
    chains = batch(t, lane, count)
    t.await_used(lane, count)
    back = sum(chain.length is not None for chain in chains)
    t.expect(back == count, f"{back} of {count} chains came back", "each of them")
    nothing_more(t, lane)
    same_used_index(t, lane)
    return None


@AREA.row(
    "D-RES-03",
    "6.2",
    "MUST",
    "With IN_ORDER buffers are used in the order in which they were made available.",
    severity=Severity.SILENT,
    transports=MODERN,
    types=WRITTEN,
)
def in_order(t: Trial) -> Outcome:
    """Batches: a used element stands for all chains up to the one that it names, so all of them are written."""
    t.need_feature(f.IN_ORDER)
    expect_in_order(t, t.start(also=f.mask(f.IN_ORDER)), "request")
    return None


# --- available-buffer notifications (2.7.10) --------------------------------------------------------------------


@AREA.row("D-AVS-01", "2.7.10.2", "MUST", "Without EVENT_IDX used.flags is 0 or 1.")
def used_flags(t: Trial) -> Outcome:
    """Sampled during traffic."""
    lane = split(t)
    for _ in range(4):
        t.expect(lane.used_flags in (0, 1), f"used.flags {lane.used_flags:#x}", "0 or 1")
        t.good(lane)
    return None


@AREA.row("D-AVS-02", "2.7.10.2", "MUST", "With EVENT_IDX used.flags is 0.")
def used_flags_with_event_idx(t: Trial) -> Outcome:
    """Sampled during traffic."""
    t.need_feature(f.EVENT_IDX)
    lane = split(t, also=_EVENT)
    for _ in range(4):
        t.good(lane)
        t.expect(lane.used_flags == 0, f"used.flags {lane.used_flags:#x}", "0")
    return None


@AREA.row("D-AVS-03", "2.7.10.2", "MUST", "Unneeded notifications are handled.", level=Level.ODD)
def spurious_kicks(t: Trial) -> Outcome:
    """Kicks before, between and after requests, some while the device asks for none."""
    lane = t.start()
    for _ in range(4):
        lane.kick()
        t.good(lane)
        lane.kick()
    nothing_more(t, lane)
    return None


@AREA.row("D-NOTE-01", "2.3", "DESC", "A kick for an empty queue is harmless.", level=Level.ODD, witness="host")
def empty_kicks(t: Trial) -> Outcome:
    """A hundred kicks with nothing new: nothing is used, and a request is served."""
    lane = t.start()
    for _ in range(100):
        lane.kick()
    nothing_more(t, lane)
    same_used_index(t, lane)
    t.good(lane)
    return None


@AREA.row("D-AVS-04", "2.7.10", "DESC", "Without suppression advice every kick leads to progress.")
def progress(t: Trial) -> Outcome:
    """Requests one by one, each with a kick where used.flags asks for it."""
    lane = split(t)
    for _ in range(8):
        _, posted = t.request(lane)
        lane.publish(posted)
        if not lane.used_flags & ring.USED_F_NO_NOTIFY:
            lane.kick()
        t.await_used(lane, 1)
    return None


@AREA.row("D-AVS-05", "2.7.10", "DESC", "With EVENT_IDX avail_event lies within one queue of avail.idx.")
def avail_event(t: Trial) -> Outcome:
    """Sampled after each of some requests, once the device had time to write it."""
    t.need_feature(f.EVENT_IDX)
    lane = split(t, also=_EVENT)
    for _ in range(4):
        t.good(lane)
        behind = (lane.idx - lane.avail_event) & 0xFFFF
        t.expect(behind <= lane.size, f"avail_event {lane.avail_event}, avail.idx {lane.idx}", "near avail.idx")
    return None
