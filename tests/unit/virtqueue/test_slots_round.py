"""Fixed slots of rings that go round: what is written only once, and kept for laps, is checked all the same."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.ring_rigs import traced
from tests.fakes.slot_rigs import ROOM, Bench, every_kind, fast_kind, lied_to, modes, no_kick
from uvirtio.errors import Closed, DeviceBroken, RingCorruption, UsageError
from uvirtio.scripted.ring import Chain


@fast_kind
@pytest.mark.parametrize("count", [4, 3])
def test_a_ring_that_goes_round_stays_right(kind: dict[str, Any], count: int):
    """In order, lap after lap: with lengths that change now and then, and a packed ring that is overwritten."""
    bench = Bench(kind, 8, count)
    back, rng = array("H", range(count)), random.Random(3)
    written = ROOM
    for turn in range(60):
        written = rng.choice([written, written, ROOM, 5])
        bench.slots.submit(back)
        chains = list(bench.rig.device.pop_all())
        assert [(bench.slot_of(chain), chain.elements[0].length) for chain in chains] == [
            (slot, ROOM) for slot in range(count)
        ]
        if kind["format"] == "packed" and turn % 2:
            bench.rig.device.scribble()
        bench.finish(*chains, written=written)
        back = bench.slots.reap()
        assert list(back) == list(range(count)) and bench.slots.out() == []
        assert list(bench.slots.written) == [written] * count


@fast_kind
@pytest.mark.parametrize("count", [1, 2])
def test_a_place_that_had_another_slot_a_lap_ago_gets_this_one(kind: dict[str, Any], count: int):
    """For laps the same slots go round; then others take their places, which still hold the first ones."""
    bench = Bench(kind, 8, 4)
    for first in (0, 2, 0):
        slots = array("H", range(first, first + count))
        back = slots
        for _ in range(2 * 8 + 4):
            bench.slots.submit(back)
            chains = list(bench.rig.device.pop_all())
            assert [bench.slot_of(chain) for chain in chains] == list(slots)
            bench.finish(*chains)
            back = bench.slots.reap()
            assert back == slots


@pytest.mark.spec("SPL-25", "SPL-26", "PKD-10", "PKD-15", "PKD-16", "PKD-24")
@fast_kind
def test_a_ring_that_goes_round_writes_what_is_not_there_yet(kind: dict[str, Any]):
    """In its order: what is shown, its announcement, a fence, the wish; an announcement, then the rest."""
    bench = Bench({**kind, "event_idx": True}, 8, 4)
    bench.rig.device.ask_for_kicks()
    back = array("H", range(4))
    bench.rig.queue.want_interrupts(False)
    for _ in range(5):
        bench.slots.submit(back)
        bench.finish(*bench.rig.device.pop_all())
        back = bench.slots.reap()
    trace = traced(bench.rig, weak=True)
    bench.slots.submit(back)
    posted = trace[:]
    bench.finish(*bench.rig.device.pop_all())
    trace.clear()
    bench.slots.reap()
    order, full = ("fence", "order", 0), ("fence", "full", 0)
    if kind["format"] == "split":
        avail_event = 2 + 4 * 8
        assert posted == [order, ("store", "_avail", 1), full, ("load", "_used", avail_event)]
        assert trace == [("load", "_used", 1), order]
    else:
        first = 8 * 4 + 7
        assert posted[-4:] == [order, ("store", "_flags", first), full, ("load", "_theirs", 0)]
        assert {entry[:2] for entry in posted[:-4]} == {("store", "_desc")}
        assert trace == [("load", "_flags", first + 24), order]


@fast_kind
@pytest.mark.parametrize("out", [3, 8])
def test_what_came_out_of_order_goes_out_again(kind: dict[str, Any], out: int):
    bench = Bench(kind, 8, 8)
    rng = random.Random(9)
    waiting = bench.post(*range(out))
    for turn in range(80):
        if turn % 20 < 15:
            rng.shuffle(waiting)
        take = rng.randint(1, out)
        done, waiting = waiting[:take], waiting[take:]
        written = rng.choice([ROOM, ROOM, ROOM, 5])
        bench.finish(*done, written=written)
        back = bench.slots.reap()
        assert list(back) == [bench.slot_of(chain) for chain in done]
        assert [bench.slots.written[slot] for slot in back] == [written] * take
        if turn % 4 == 0:
            assert bench.slots.out() == sorted(bench.slot_of(chain) for chain in waiting)
        if turn % 8 == 1:
            assert list(bench.slots.reap()) == []
        bench.slots.submit(back)
        waiting += bench.rig.device.pop_all()
        assert len(waiting) == out


@fast_kind
def test_what_waits_to_be_shown_goes_before_what_came(kind: dict[str, Any]):
    bench, posted = lied_to(kind, ordered=False)
    bench.finish(posted.pop())
    back = bench.slots.reap()
    bench.rig.device.ask_for_kicks()
    assert not bench.slots.submit([6, 7], show=False)
    assert bench.slots.submit(back)
    came = bench.rig.device.pop_all()
    assert [bench.slot_of(chain) for chain in came] == [6, 7, *back]
    bench.finish(*came)
    assert bench.reap() == [6, 7, *back]


@fast_kind
@modes
def test_what_came_and_waits_to_be_shown_goes_before_what_came_later(kind: dict[str, Any], ordered: bool):
    bench, posted = lied_to(kind, ordered)
    sent: list[int] = []
    for _ in range(2):
        bench.finish(posted.pop(0))
        back = bench.slots.reap()
        sent += back
        bench.slots.submit(back, show=len(sent) == 2)
    posted += bench.rig.device.pop_all()
    assert [bench.slot_of(chain) for chain in posted[-2:]] == sent
    bench.finish(*posted)
    assert bench.reap() == [bench.slot_of(chain) for chain in posted]


@fast_kind
def test_among_others_what_came_is_posted_once(kind: dict[str, Any]):
    """More slots than are out: which are out is remembered, for what came as well."""
    bench = Bench(kind, 16, 8)
    posted = bench.post(0, 1, 2)
    bench.finish(posted[0])
    assert bench.reap() == [0]
    bench.post(3)
    bench.finish(posted[1])
    back = bench.slots.reap()
    bench.slots.submit(back)
    with pytest.raises(UsageError):
        bench.slots.submit([1])
    bench.slots.submit([0])


@fast_kind
def test_a_batch_that_comes_in_two_reaps_and_across_the_end(kind: dict[str, Any]):
    """What came goes out again, in other numbers than it came in, so that batches lie across the ring's end."""
    bench = Bench(kind, 8, 7)
    waiting = bench.post(*range(7))
    rng = random.Random(8)
    idle: list[int] = []
    for turn in range(80):
        if turn % 20 > 10:
            rng.shuffle(waiting)
        take = rng.randint(1, len(waiting)) if waiting else 0
        done, waiting = waiting[:take], waiting[take:]
        bench.finish(*done, written=rng.choice([ROOM, ROOM, 5]))
        back = bench.slots.reap()
        assert list(back) == [bench.slot_of(chain) for chain in done]
        idle += back
        if turn % 3:
            bench.slots.submit(back if len(idle) == len(back) else idle)
            waiting += bench.rig.device.pop_all()
            idle = []
        assert bench.slots.out() == sorted(bench.slot_of(chain) for chain in waiting)


class Guarded:
    """Bytes of a ring of which only some may be copied out."""

    def __init__(self, view: memoryview, first: int, end: int) -> None:
        self.view, self.first, self.end, self.looked = view, first, end, 0

    def __getitem__(self, key: slice) -> memoryview:
        assert key.start is not None and self.first <= key.start <= key.stop <= self.end, key
        self.looked += 1
        return self.view[key]

    def __setitem__(self, key: slice, value: bytes) -> None:
        self.view[key] = value


@pytest.mark.spec("PKD-24")
@pytest.mark.parametrize("event_idx", [False, True])
def test_what_is_not_marked_as_used_is_not_copied_out(event_idx: bool):
    """Flags are loaded one by one until it is known how many slots are used."""
    bench = Bench({"format": "packed", "event_idx": event_idx}, 8, 4)
    for _ in range(5):
        bench.finish(*bench.post(0, 1, 2, 3))
        assert bench.reap() == [0, 1, 2, 3]
    came = bench.post(0, 1, 2, 3)
    slots: Any = bench.slots
    slots._few = 0
    guard = bench.rig.queue.bytes = Guarded(bench.rig.queue.bytes, 4 * 16, 6 * 16)
    assert bench.reap() == [] and not guard.looked
    bench.finish(*came[:2])
    assert bench.reap() == [0, 1] and guard.looked


@pytest.mark.parametrize("event_idx", [False, True])
def test_out_of_order_a_batch_may_be_marked_backwards_too(event_idx: bool):
    bench = Bench({"format": "packed", "event_idx": event_idx}, 8, 7)
    device, rng = bench.rig.device, random.Random(6)
    for turn in range(20):
        came = bench.post(*range(7))
        rng.shuffle(came)
        write, marks = device.write_used_slot, []
        device.write_used_slot = lambda *what, marks=marks: marks.append(what)
        bench.finish(*came, written=5 if turn % 4 == 1 else ROOM)
        device.write_used_slot = write
        # A part of them backwards, then the rest.
        for mark in reversed(marks[1:4]):
            write(*mark)
            assert bench.reap() == []
        write(*marks[0])
        assert bench.reap() == [bench.slot_of(chain) for chain in came[:4]]
        for mark in reversed(marks[5:]):
            write(*mark)
        assert bench.reap() == []
        write(*marks[4])
        assert bench.reap() == [bench.slot_of(chain) for chain in came[4:]]


@pytest.mark.parametrize("event_idx", [False, True])
def test_an_empty_answer_is_the_callers_own(event_idx: bool):
    """A batch that is being marked backwards is not used yet; the empty arrays of two reaps are two."""
    bench = Bench({"format": "packed", "event_idx": event_idx}, 8, 4)
    bench.finish(*bench.post(0, 1, 2))
    assert bench.reap() == [0, 1, 2]
    came = bench.post(0, 1, 2)
    device, marks = bench.rig.device, []
    write, device.write_used_slot = device.write_used_slot, lambda *what: marks.append(what)
    bench.finish(*came)
    write(*marks[2])
    nothing = bench.slots.reap()
    nothing.append(3)
    assert bench.reap() == []
    for mark in marks[:2]:
        write(*mark)
    assert bench.reap() == [0, 1, 2]


@fast_kind
@modes
def test_what_is_with_the_device_is_not_posted_again(kind: dict[str, Any], ordered: bool):
    bench, posted = lied_to(kind, ordered)
    bench.finish(posted[0])
    [back] = bench.reap()
    bench.slots.submit([back])
    for wrong in (array("H", [back]), array("H", [2]), array("H", [back, 6])):
        with pytest.raises(UsageError):
            bench.slots.submit(wrong)


@fast_kind
def test_what_came_is_refused_by_a_queue_that_is_closed_or_given_up(kind: dict[str, Any]):
    for end, error in (("close", Closed), ("abandon", DeviceBroken)):
        bench = Bench(kind)
        bench.finish(*bench.post(0, 1))
        back = bench.slots.reap()
        getattr(bench.rig.queue, end)()
        with pytest.raises(error):
            bench.slots.submit(back)


@fast_kind
@modes
@pytest.mark.parametrize("lie", ["id", "twice", "length", "more"])
def test_lies_to_a_ring_that_went_round(kind: dict[str, Any], ordered: bool, lie: str):
    """After laps without a lie, in one batch with slots that came as they should."""
    bench = Bench(kind, 8, 6)
    rng = random.Random(2)
    for _ in range(12):
        posted = bench.post(0, 1, 2, 3)
        if not ordered:
            rng.shuffle(posted)
        bench.finish(*posted)
        assert bench.reap() == [bench.slot_of(chain) for chain in posted]
    posted = bench.post(0, 1, 2, 3)
    if not ordered:
        posted.reverse()
    bench.finish(posted[0])
    if lie == "id":
        bench.rig.device.lies.used_id = lambda head: 5
    elif lie == "twice":
        bench.rig.device.lies.used_id = lambda head: posted[0].head
    bench.finish(posted[1], written=ROOM + 1 if lie == "length" else ROOM)
    if lie == "more":
        bench.finish(*posted[2:])
        bench.rig.device.push(0, ROOM)
    with pytest.raises(RingCorruption):
        bench.slots.reap()
        bench.slots.reap()
    assert bench.rig.queue.broken
    bench.rig.dma.memory.assert_clean()


@fast_kind
def test_a_ring_that_goes_round_has_the_length_of_now(kind: dict[str, Any]):
    bench = Bench(kind, 8, 4, reads=1, writes=0)
    back = array("H", range(4))
    for turn in range(40):
        length = 16 if turn % 12 < 9 else 7
        bench.slots.resize(back, [length] * 4)
        bench.slots.submit(back)
        chains = list(bench.rig.device.pop_all())
        assert [chain.elements[0].length for chain in chains] == [length] * 4
        bench.finish(*chains, written=0)
        back = bench.slots.reap()


class Changing(Guarded):
    """Bytes of a ring that the device writes to before each copy but the first."""

    def __init__(self, view: memoryview, change: Callable[[], None]) -> None:
        super().__init__(view, 0, len(view))
        self.change = change

    def __getitem__(self, key: slice) -> memoryview:
        if self.looked:
            self.change()
        return super().__getitem__(key)


@modes
def test_flags_that_change_between_two_copies_break_the_queue(ordered: bool):
    """A batch that seems to be marked backwards is copied again; what was used then has to be used still."""
    bench = Bench({"format": "packed"}, 16, 8)
    posted = bench.post(*range(6))
    if not ordered:
        bench.finish(posted.pop(1))
        assert bench.reap() == [1]
    first = bench.rig.queue.slots_reaped
    device, marks = bench.rig.device, []
    write, device.write_used_slot = device.write_used_slot, lambda *what: marks.append(what)
    bench.finish(*posted[:5])
    for mark in (*marks[:3], marks[4]):
        write(*mark)
    used: list[int] = [first, first + 1, first + 2]
    flags = bench.rig.queue._flags

    def take_back() -> None:
        flags[8 * used.pop() + 7] ^= 0x8080

    slots: Any = bench.slots
    slots._few, slots._hint = 0, 5
    bench.rig.queue.bytes = Changing(bench.rig.queue.bytes, take_back)
    with pytest.raises(RingCorruption, match="used before its predecessor"):
        bench.slots.reap()
    assert bench.rig.queue.broken and used


def test_across_the_end_the_next_interrupt_is_requested_before_a_batch_is_complete():
    """The last slot of the ring is used, and a batch behind it is being marked backwards."""
    bench = Bench({"format": "packed", "event_idx": True}, 8, 7)
    bench.finish(*bench.post(*range(7)))
    bench.reap()
    came = bench.post(0, 1, 2, 3)
    device, marks = bench.rig.device, []
    write, device.write_used_slot = device.write_used_slot, lambda *what: marks.append(what)
    bench.finish(*came)
    for mark in (marks[0], marks[2], marks[3]):
        write(*mark)
    assert bench.reap() == [0]
    assert bench.rig.queue.words()["driver event off_wrap"] == bench.rig.queue._off_wrap(8)
    write(*marks[1])
    assert bench.reap() == [1, 2, 3]


def test_what_waits_to_be_shown_cannot_be_used():
    """Nor after a look in vain: among what is out of order, it is not what is with the device."""
    bench, posted = lied_to({"format": "split"}, ordered=False)
    bench.finish(posted.pop())
    back = bench.slots.reap()
    bench.slots.submit(back, show=False)
    assert bench.slots.relay(3, no_kick) == 0
    assert back[0] not in bench.slots.out()
    bench.rig.device.lies.used_id = lambda head: back[0]
    bench.finish(posted.pop())
    with pytest.raises(RingCorruption, match="not in flight"):
        bench.slots.reap()


@every_kind
def test_what_came_waits_to_be_shown_once(kind: dict[str, Any]):
    bench = Bench(kind)
    bench.finish(*bench.post(0, 1))
    back = bench.slots.reap()
    bench.slots.submit(back, show=False)
    with pytest.raises(UsageError):
        bench.slots.submit(back, show=False)
    assert bench.slots.laid == 2


def looked_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Of which slots a set of those in flight was asked, from now on."""
    asked: list[list[int]] = []
    look_up = type(bench.slots)._look_up

    def noted(books: Any, slots: Any) -> None:
        asked.append(list(slots))
        look_up(books, slots)

    monkeypatch.setattr(type(bench.slots), "_look_up", noted)
    return asked


@fast_kind
@pytest.mark.parametrize(("size", "count", "batch"), [(8, 4, 2), (8, 8, 3), (16, 4, 1), (8, 6, 3)])
def test_slots_that_are_taken_in_turn_are_known_to_be_idle(
    kind: dict[str, Any], size: int, count: int, batch: int, monkeypatch: pytest.MonkeyPatch
):
    """Those in flight are not asked for any more, once the ring goes round, if a number of rounds fits it."""
    bench = Bench(kind, size, count)
    asked = looked_up(bench, monkeypatch)
    idle, out = list(range(count)), []
    for turn in range(12 * size):
        now, idle = idle[:batch], idle[batch:]
        bench.slots.submit(array("H", now))
        came = list(bench.rig.device.pop_all())
        assert [bench.slot_of(chain) for chain in came] == now
        out += came
        assert bench.slots.numbers() == list(range(batch * (turn + 1) - len(out), batch * (turn + 1)))
        if len(idle) <= batch:
            bench.finish(*out[:batch])
            idle += bench.reap()
            out = out[batch:]
        if turn == 6 * size:
            asked.clear()
    assert bool(asked) is (size % count != 0)


@fast_kind
@pytest.mark.parametrize("seed", range(6))
def test_whoever_leaves_the_round_is_checked_again(kind: dict[str, Any], seed: int):
    """Against a plain record: in turn for a while, then any slots, known or not, some twice, some in flight."""
    size, count, rng = 8, 8 if seed % 2 else 4, random.Random(seed)
    bench = Bench(kind, size, count)
    lap = 2 * size if kind["format"] == "packed" else size
    idle: list[int] = list(range(count))
    out: list[Any] = []
    posted: list[int] = []
    refused = shuffled = 0
    for turn in range(1500):
        wild = turn % 100 > 80
        many = rng.randint(1, 2)
        now = [rng.randrange(count) for _ in range(many)] if wild and rng.random() < 0.5 else idle[:many]
        if out and rng.random() < 0.1:  # in flight, in the middle of rounds
            now = [bench.slot_of(rng.choice(out))]
        if len(posted) >= lap and posted[-lap] not in idle and rng.random() < 0.5:
            now = posted[-lap:][:1]  # in flight, and what was posted in this place a lap ago
        if not now or len(now) != len(set(now)) or not set(now) <= set(idle):
            if now:
                refused += 1
                with pytest.raises(UsageError):
                    bench.slots.submit(array("H", now))
                assert list(bench.rig.device.pop_all()) == []
        else:
            bench.slots.submit(array("H", now))
            out += bench.rig.device.pop_all()
            posted += now
            idle = [slot for slot in idle if slot not in now]
        assert sorted(bench.slots.out()) == sorted(bench.slot_of(chain) for chain in out)
        if rng.random() < (0.3 if wild else 0.03) and len(out) > 1:
            shuffled += 1
            rng.shuffle(out)
        back = rng.randint(0, len(out))
        bench.finish(*out[:back])
        came = bench.reap()
        assert came == [bench.slot_of(chain) for chain in out[:back]]
        out, idle = out[back:], idle + came
    assert refused > 50 and shuffled > 10


@pytest.mark.parametrize("slots", [[0, 1, 2, 3, 1, 0, 2, 3], [0, 1, 0, 1, 2, 3, 2, 3]])
def test_what_repeats_lap_by_lap_need_not_be_a_round(slots: list[int]):
    """The slot that was posted here a lap ago was posted since then: it is in flight."""
    bench = Bench({"format": "split"}, 8, 4)
    twice = next(at for at in range(8) if slots[at] in slots[max(0, at - 3) : at])
    before = slots.index(slots[twice])
    for slot in 4 * slots + slots[:before]:
        bench.slots.submit(array("H", [slot]))
        bench.finish(*bench.rig.device.pop_all())
        assert bench.reap() == [slot]
    for slot in slots[before:twice]:
        bench.slots.submit(array("H", [slot]))
    with pytest.raises(UsageError):
        bench.slots.submit(array("H", [slots[twice]]))


@fast_kind
def test_a_round_that_was_left_out_of_order_is_none(kind: dict[str, Any]):
    """For a lap one slot overtakes another, again and again; then the same are posted as in that lap."""
    bench = Bench(kind, 8, 4)
    lap = 16 if kind["format"] == "packed" else 8

    def post(slot: int) -> Chain:
        bench.slots.submit(array("H", [slot]))
        (chain,) = bench.rig.device.pop_all()
        return chain

    out = [post(0)]
    for number in range(1, 4 * lap + 1):  # a round, with one in flight
        out.append(post(number % 4))
        bench.finish(out.pop(0))
        assert bench.reap() == [(number - 1) % 4]
    bench.finish(*out)
    bench.reap()
    overtaken = post(1)
    for _ in range(lap - 2):
        bench.finish(post(2))
        assert bench.reap() == [2]
    bench.finish(overtaken)
    assert bench.reap() == [1]
    bench.finish(post(3))
    assert bench.reap() == [3]
    post(1)
    post(2)
    with pytest.raises(UsageError):
        bench.slots.submit(array("H", [2]))


@pytest.mark.fault(28)
@fast_kind
@pytest.mark.parametrize("other", [1, 3])
def test_what_was_laid_while_others_came_out_of_order_is_known_by_its_own(kind: dict[str, Any], other: int):
    """Its place had another slot a lap ago: that one, with the same length, is not taken for it."""
    bench = Bench(kind, 4, 4)
    for slots in ([0, 1, 2, 3], [3, 1, 2]):
        bench.slots.submit(array("H", slots))
        out = list(bench.rig.device.pop_all())
        if len(out) == 4:
            bench.finish(*out)
            assert bench.reap() == slots
    bench.finish(out[1])
    assert bench.reap() == [1]
    bench.slots.submit(array("H", [0]), show=False)  # in the place of slot 3
    for chain in (out[0], out[2]):
        bench.finish(chain)
        assert bench.reap() == [bench.slot_of(chain)]
    # The last one came in order: from here on elements are expected by place.
    bench.slots.submit(array("H", [other]))
    _, last = bench.rig.device.pop_all()
    if other == 3:
        bench.finish(last)
        assert bench.reap() == [3] and bench.slots.out() == [0]
        return
    bench.rig.device.lies.used_id = lambda _: 3
    bench.finish(last)
    bench.corrupt()


@fast_kind
def test_the_first_answer_of_a_slot_is_compared_with_what_is_expected_of_it(kind: dict[str, Any]):
    """A record that has gone no lap yet repeats nothing, though all of its places name slot 0."""
    bench = Bench(kind, 8, 8)
    bench.slots.submit(array("H", [0]))
    bench.finish(*bench.rig.device.pop_all(), written=0)
    assert bench.reap() == [0] and bench.slots.written[0] == 0
