"""2.8: packed virtqueues. Most of what a driver may do wrong with them is not tried (docs/conform.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uvirtio.conform.exchange import NOTIFIED_WRONGLY, SERVED, WRITTEN
from uvirtio.conform.lane import flat
from uvirtio.conform.packed_lane import UNKNOWN_SLOT, PackedLane, packed_table_of
from uvirtio.conform.row import MODERN, Area, Level
from uvirtio.conform.traffic import (
    all_used,
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
    requests,
)
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, Violated, free, rejected
from uvirtio.spec import features as f
from uvirtio.spec import ring
from uvirtio.spec.status import describe

AREA = Area("packed", 70, "2.8: packed virtqueues", transports=MODERN, types=SERVED)

_EVENT: Final = f.mask(f.EVENT_IDX)
_LAPS: Final = 3


def packed(t: Trial, *, also: int = 0, interrupts: bool = False, size: int | None = None) -> PackedLane:
    """Bring the device up with a packed ring."""
    t.need(t.packed, "a test of packed rings: --ring packed, of a device that offers RING_PACKED")
    lane = t.start(also=also, interrupts=interrupts, size=size)
    assert isinstance(lane, PackedLane)
    return lane


# --- the order of slots (2.8.12) --------------------------------------------------------------------------------


@AREA.row(
    "D-PKD-01", "2.8.12", "MUST", "Start descriptors in ring order.", level=Level.ODD, severity=Severity.SILENT
)
def starts_in_ring_order(t: Trial) -> Outcome:
    """Of two requests the second is made available first: nothing is used until the first one is, too."""
    lane = packed(t)
    t.good(lane)
    laid = [t.request(lane) for _ in range(2)]
    lane.publish(laid[1][1])
    lane.kick()
    early = not t.quiet(lambda: bool(lane.take()))
    t.expect(not early, "a list was used before the one ahead of it was available", "it waits for its turn")
    lane.publish(laid[0][1])
    lane.kick()
    all_used(t, lane)
    for elements, posted in laid:
        t.right(elements, posted)
    return None


@AREA.row(
    "D-PKD-02",
    "2.8.12",
    "MUST",
    "Write used descriptors one behind the other, in the order of completion.",
    severity=Severity.SILENT,
)
def used_without_gaps(t: Trial) -> Outcome:
    """Batches: while requests are out, no used slot stays behind one that is not used."""
    lane = packed(t)
    for _ in range(_LAPS):
        laid = requests(t, lane, fitting(t, lane))
        try:
            all_used(t, lane)
        except Violated:
            # A device may write several before the first of them shows; what stays like that is wrong.
            slot = lane.used_behind()
            t.expect(slot is None, f"slot {slot} is used, and slot {lane.reaped} before it is not", "no gap")
            raise
        for elements, posted in laid:
            t.right(elements, posted)
    return None


# --- what it may write (2.8.15) ---------------------------------------------------------------------------------


@AREA.row("D-PKD-03", "2.8.15", "MUST NOT", "Write no device-readable buffer.", severity=Severity.MEMORY)
def readable_buffers_stay(t: Trial) -> Outcome:
    """Readable buffers are compared after three good requests, as the frame does in every test."""
    expect_no_stray(t, packed(t), "D-DESC-01")
    return None


@AREA.row(
    "D-PKD-05",
    "2.8.15",
    "MUST NOT",
    "Use a descriptor before its AVAIL bit changed.",
    level=Level.ODD,
    severity=Severity.MEMORY,
)
def waits_for_the_flags(t: Trial) -> Outcome:
    """A request is laid but for the flags of its first slot, and kicked, in each of two laps."""
    lane = packed(t)
    for _ in range(2):
        elements, posted = t.request(lane)
        lane.kick()
        early = not t.quiet(lambda: bool(lane.take())) or any(one.written for one in elements)
        t.expect(not early, "a list was used that was not available", "it is left alone")
        lane.publish(posted)
        lane.kick()
        t.await_used(lane, 1)
        t.right(elements, posted)
        while lane.reaped % lane.size and lane.size - lane.reaped % lane.size >= len(elements):
            t.good(lane)
    return None


@AREA.row(
    "D-PKD-06",
    "2.8.15",
    "MUST NOT",
    "Change a descriptor after its USED bit changed.",
    severity=Severity.MEMORY,
)
def used_slots_stay(t: Trial) -> Outcome:
    """All slots that are not the device's are compared after three good requests, as in every test."""
    expect_no_stray(t, packed(t), "D-PKD-06")
    return None


# --- lists (2.8.5, 2.8.6, 2.8.18) -------------------------------------------------------------------------------


@AREA.row(
    "D-PKD-07",
    "2.8.18",
    "MUST",
    "Take the elements of a list in their order, however a request is cut.",
    level=Level.ODD,
)
def elements_in_order(t: Trial) -> Outcome:
    """A good request whose buffers are cut into 1, 2, 7 and 16 pieces each, down to single bytes."""
    expect_any_framing(t, packed(t))
    return None


@AREA.row(
    "D-PKD-08",
    "2.8.18",
    "MAY",
    "Limit the number of elements in a list.",
    level=Level.ODD,
    types=frozenset({"rng"}),
)
def longest_list(t: Trial) -> Outcome:
    """A list of one-byte buffers as long as the queue is posted: what became of it is a fact."""
    return free(f"a list {longest(t, packed(t))}")


@AREA.row(
    "D-PKD-09",
    "2.8.5",
    "DESC",
    "A list of n slots is skipped as n, and has one used slot.",
    severity=Severity.SILENT,
)
def whole_lists_are_skipped(t: Trial) -> Outcome:
    """Requests in lists of different lengths, three times round: each used slot is where its turn is."""
    lane = packed(t, size=min(16, t.transport.queue_layout(t.exchange.queue).size_max))
    number = 0
    while lane.laid < _LAPS * lane.size:
        elements = t.exchange.elements(t)
        pieces = cut(elements, (1, 2, 7)[number % 3])
        number += 1
        if len(pieces) > lane.size:
            pieces = flat(elements)
        place = lane.laid % lane.size
        posted = lane.post(*pieces)
        t.await_used(lane, 1)
        t.right(elements, posted)
        t.expect(posted.used_slot == place, f"the used slot is {posted.used_slot}", f"slot {place}")
    return None


# --- laps (2.8.1, 2.8.10.1) -------------------------------------------------------------------------------------


def _round(t: Trial, sizes: Sequence[int]) -> int:
    """Make requests three times round rings of these sizes; how many sizes there could be."""
    need = len(flat(t.exchange.elements(t)))
    done = 0
    for size in sizes:
        if not need <= size <= t.transport.queue_layout(t.exchange.queue).size_max:
            continue
        t.reset()
        lane = packed(t, size=size)
        t.good(lane, _LAPS * size // need + 1)
        done += 1
    return done


def _at_rest(t: Trial) -> None:
    """Bring the device up, so that there is memory to make a first request in."""
    packed(t)


@AREA.row(
    "D-PKD-10",
    "2.8.1",
    "DESC",
    "Both wrap counters start at 1 and turn with the ring.",
    severity=Severity.DEAD,
)
def wrap_counters(t: Trial) -> Outcome:
    """Good requests three times round rings of 1, 2, 4 and 64 slots, as far as the device has them."""
    _at_rest(t)
    t.need(bool(_round(t, (1, 2, 4, 64))), "no such size is large enough for a request")
    return None


@AREA.row("D-PKD-11", "2.8.10.1", "DESC", "Sizes that are no power of two work.", severity=Severity.DEAD)
def odd_sizes(t: Trial) -> Outcome:
    """Good requests three times round rings of 3, 7 and 100 slots, as far as the device has them."""
    t.need(t.transport.kind != "vdpa", "VHOST_SET_VRING_NUM takes powers of two alone")
    _at_rest(t)
    t.need(bool(_round(t, (3, 7, 100))), "no such size is large enough for a request")
    return None


# --- notifications (2.8.10) -------------------------------------------------------------------------------------


@AREA.row(
    "D-PKD-12",
    "2.8.10",
    "DESC",
    "Event flags 1: no notification; 0: notifications.",
    severity=Severity.SILENT,
)
def event_flags(t: Trial) -> Outcome:
    """After a request, three with flags 1, then three with flags 0, an interrupt for each of these."""
    lane = packed(t, interrupts=True)
    lane.raw.event(0, ring.PACKED_EVENT_DISABLE)
    expect_quiet(t, lane, "a notification came though the event flags were 1")
    lane.raw.event(0, ring.PACKED_EVENT_ENABLE)
    expect_notified(t, lane)
    return None


@AREA.row(
    "D-PKD-13",
    "2.8.10",
    "DESC",
    "Event flags 2: a notification for the slot and the lap that are named, and for no others.",
    severity=Severity.SILENT,
)
def event_slot(t: Trial) -> Outcome:
    """The slot of the next request is named, then that of the one after it, then the same slot a lap later."""
    t.need_feature(f.EVENT_IDX)
    lane = packed(t, also=_EVENT, interrupts=True, size=4)
    need = len(t.exchange.elements(t))

    def name(ahead: int) -> None:
        lane.raw.event(lane.off_wrap(lane.reaped + ahead), ring.PACKED_EVENT_DESC)

    early = []
    for ahead in (0, need, lane.size):
        target = lane.reaped + ahead
        name(ahead)
        while lane.reaped + need <= target:
            t.good(lane)
            if not t.no_interrupt(lane):
                early.append(f"slot {lane.off_wrap(lane.reaped - need):#x} for {lane.off_wrap(target):#x}")
        t.good(lane)
        t.await_interrupt(lane)
    if early:  # one too many is a nuisance, one too few a driver that waits
        raise Violated(f"a notification at {', '.join(early)}", "none", severity=Severity.ADVICE)
    return None


@AREA.row(
    "D-PKD-14",
    "2.8.10",
    "DESC",
    "The device event structure has flags 0, 1 or, with EVENT_IDX, 2, and an offset inside the ring.",
    severity=Severity.SILENT,
)
def device_event(t: Trial) -> Outcome:
    """Sampled during traffic round the ring, without EVENT_IDX and with it."""
    for also in (0, t.offered & _EVENT):
        lane = packed(t, also=also, size=min(16, t.transport.queue_layout(t.exchange.queue).size_max))
        allowed = (0, 1, 2) if also else (0, 1)
        while lane.laid < lane.size:
            t.good(lane)
            off_wrap, flags = lane.device_event
            offset = off_wrap & ring.PACKED_EVENT_OFF_MASK
            t.expect(flags in allowed, f"flags {flags:#x} {'with' if also else 'without'} EVENT_IDX", f"{allowed}")
            inside = flags != ring.PACKED_EVENT_DESC or offset < lane.size
            t.expect(inside, f"offset {offset} of {lane.size} slots", "a slot of the ring")
        t.reset()
    return None


@AREA.row(
    "D-PKD-15",
    "2.8.10",
    "DESC",
    "Reserved event flags are survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
    types=NOTIFIED_WRONGLY,
)
def reserved_event_flags(t: Trial) -> Outcome:
    """The driver's event flags are 3, and a request is made without waiting for an interrupt."""
    lane = packed(t)
    t.good(lane)
    lane.raw.event(0, 3)
    _, posted = t.request(lane)
    lane.publish(posted)
    lane.kick()
    if t.serve(lane, posted, 2 * t.pace.watch):
        return rejected("requests are served")
    return gave_up(t, otherwise="silence")


# --- indirect tables (2.8.7) ------------------------------------------------------------------------------------


@AREA.row(
    "D-PKD-16",
    "2.8.7",
    "DESC",
    "In indirect tables the order counts, and of the flags only WRITE.",
    level=Level.RINGS,
    types=NOTIFIED_WRONGLY,
)
def flags_in_tables(t: Trial) -> Outcome:
    """A good request in a table, then another whose last entry has NEXT and whose entries have ids."""
    t.need_feature(f.INDIRECT_DESC)
    lane = packed(t, also=f.mask(f.INDIRECT_DESC))
    for ident, more in ((0, 0), (0x5A5A, ring.DESC_F_NEXT)):
        elements = t.exchange.elements(t)
        pieces = cut(elements, 2)
        posted = lane.indirect(t.readable(packed_table_of(pieces, ident=ident, last_flags=more)), *elements)
        lane.publish(posted)
        lane.kick()
        served = t.serve(lane, posted)
        t.expect(
            served, f"a table whose last entry has NEXT {more} is not served: {describe(t.status())}", "service"
        )
        t.right(elements, posted)
    return None


# --- used slots (2.8.4, 2.8.8) ----------------------------------------------------------------------------------


@AREA.row(
    "D-PKD-17",
    "2.8.4",
    "DESC",
    "WRITE is set in a used slot if, and only if, its length says how much was written.",
    severity=Severity.SILENT,
)
def write_in_used_slots(t: Trial) -> Outcome:
    """Three good requests: the used slots of those that were written have WRITE, those of others have not."""
    lane = packed(t)
    for posted in t.good(lane, 3):
        assert posted.used_slot is not None
        entry = lane.slot(posted.used_slot)
        marked = bool(entry.flags & ring.DESC_F_WRITE)
        if posted.length:
            t.expect(marked, f"len {entry.length} and flags {entry.flags:#x}: no WRITE", "WRITE, for len to hold")
        else:
            t.expect(not (marked and entry.length), f"WRITE and len {entry.length}", "no length")
    return None


@AREA.row(
    "D-PKD-18",
    "2.8.22",
    "DESC",
    "A used slot carries the buffer id of the last slot of its list.",
    severity=Severity.SILENT,
)
def buffer_ids(t: Trial) -> Outcome:
    """Ids such as 0xffff, in batches and alone, with other ids in the slots before the last."""
    lane = packed(t)
    for ident in (0xFFFF, 0, 0x8000, lane.size, 0x7FFF):
        elements = t.exchange.elements(t)
        posted = lane.chain(*elements, ident=ident, others=ident ^ 0x1234)
        lane.publish(posted)
        lane.kick()
        t.until(lambda: bool(lane.take()), t.pace.deadline)
        wrong = [one for one in lane.faults if one.startswith(UNKNOWN_SLOT)]
        t.expect(not wrong, "; ".join(wrong), f"the id {ident:#x}")
        t.right(elements, posted)
    for _ in range(3):
        batch(t, lane, fitting(t, lane))
        all_used(t, lane)
    nothing_more(t, lane)
    return None


@AREA.row(
    "D-PKD-19",
    "2.8.8",
    "DESC",
    "With IN_ORDER one used slot may stand for a batch, whose last id it has.",
    severity=Severity.SILENT,
    types=WRITTEN,
)
def batches_in_order(t: Trial) -> Outcome:
    """Batches: a used slot stands for all lists up to the one that it names, so all of them are written."""
    t.need_feature(f.IN_ORDER)
    expect_in_order(t, packed(t, also=f.mask(f.IN_ORDER)), "list")
    return None
