"""The batch path: fixed slots on both ring formats, against an honest device in any order, and against lies."""

from __future__ import annotations

import random
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.fakes.ring_rigs import FORMATS, A, Rig, name_of, rigs, traced
from tests.fakes.slot_rigs import KINDS, ROOM, Bench, chains, every_kind, fast_kind, lied_to, modes, no_kick
from uvirtio.errors import BadChain, Closed, DeviceBroken, QueueFull, RingCorruption, UsageError
from uvirtio.scripted.ring import Chain
from uvirtio.virtqueue.slots import PackedSlots, PlainSlots, SplitSlots, fixed_slots

# --- honest devices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", rigs("packed"), ids=name_of)
def test_a_batch_may_be_marked_backwards(kind: dict[str, Any]):
    """As DPDK does: the first slot is marked last, and until then none of the batch is used."""
    bench = Bench(kind, 8, 7)
    device = bench.rig.device
    rng = random.Random(6)
    for _ in range(12):
        slots = rng.sample(range(7), 7)
        came = bench.post(*slots)
        write, marks = device.write_used_slot, []
        device.write_used_slot = lambda *what, marks=marks: marks.append(what)
        bench.finish(*came[:3], written=5)
        bench.finish(*came[3:], written=6)
        device.write_used_slot = write
        for mark in reversed(marks[1:]):
            write(*mark)
            assert bench.reap() == []
        write(*marks[0])
        assert bench.reap() == slots
        assert [bench.slots.written[slot] for slot in slots] == [5] * 3 + [6] * 4


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.get("in_order")], ids=name_of)
def test_slots_in_flight_have_the_numbers_of_their_chains(kind: dict[str, Any]):
    bench = Bench(kind)
    posted = bench.post(0, 1, 2, 3)
    bench.finish(posted[0], posted[2])
    assert sorted(bench.reap()) == [0, 2]
    bench.slots.submit([2])
    assert bench.slots.numbers() == [1, 3, 4]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("event_idx", "wanted"), [(False, True), (True, False), (False, False)])
def test_who_wants_no_next_interrupt_looks_once(format: str, event_idx: bool, wanted: bool):
    bench = Bench({"format": format, "event_idx": event_idx})
    bench.rig.queue.want_interrupts(wanted)
    bench.finish(*bench.post(0, 1))
    before, asked = bench.rig.fences, bench.rig.visible()
    assert bench.reap() == [0, 1]
    assert (bench.rig.fences, bench.rig.visible()) == (before, asked), "no event is moved, and nothing is fenced"


@every_kind
def test_slots_that_are_read_have_any_length_up_to_their_first(kind: dict[str, Any]):
    bench = Bench(kind, 8, 8, reads=1, writes=0)
    rng = random.Random(4)
    for _ in range(40):
        slots = rng.sample(range(8), 5)
        lengths = [rng.randint(1, 16) for _ in slots]
        bench.slots.resize(slots, lengths)
        came = bench.post(*slots)
        assert [(bench.slot_of(one), one.elements[0].length) for one in came] == list(
            zip(slots, lengths, strict=True)
        )
        bench.finish(*came, written=0)
        assert sorted(bench.reap()) == sorted(slots)
    for slot, length in ((0, 0), (0, 17), (0, -1)):
        with pytest.raises(UsageError):
            bench.slots.resize([slot], [length])
    for shape in ({"reads": 0, "writes": 1}, {"reads": 2, "writes": 0}, {"reads": 1, "writes": 1}):
        with pytest.raises(UsageError, match="length"):
            Bench(kind, 32, 4, **shape).slots.resize([0], [8])


@every_kind
@pytest.mark.parametrize(("reads", "writes"), [(0, 1), (1, 0), (1, 1), (1, 2)])
def test_the_device_sees_the_chains_that_were_laid_down(kind: dict[str, Any], reads: int, writes: int):
    bench = Bench(kind, 32, 4, reads=reads, writes=writes)
    for _ in range(30):
        for slot, chain in enumerate(bench.post(0, 1, 2, 3)):
            readable, writable = bench.chains[slot]
            assert [(part.address, part.length) for part in chain.readable] == readable
            assert [(part.address, part.length) for part in chain.writable] == writable
            bench.finish(chain, written=chain.room)
        assert bench.reap() == [0, 1, 2, 3]
        assert list(bench.slots.written) == [ROOM * writes] * 4


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({"format": "split"}, SplitSlots),
        ({"format": "packed"}, PackedSlots),
        ({"format": "split", "in_order": True}, PlainSlots),
        ({"format": "packed", "in_order": True}, PlainSlots),
    ],
    ids=str,
)
def test_the_fastest_way_that_the_ring_allows(kind: dict[str, Any], expected: type):
    assert type(Bench(kind).slots) is expected
    assert type(Bench(kind, 32, 4, reads=1, writes=1).slots) is (
        PlainSlots if kind["format"] == "packed" else expected
    )


@fast_kind
def test_out_of_order_lengths_and_back_again(kind: dict[str, Any]):
    bench = Bench(kind)
    for turn in range(40):
        posted = bench.post(*range(8))
        order = random.Random(turn).sample(posted, 8) if turn % 3 else posted
        for chain in order[:5]:
            bench.finish(chain, written=turn if turn % 2 else ROOM)
        first = bench.reap()
        for chain in order[5:]:
            bench.finish(chain)
        assert first + bench.reap() == [bench.slot_of(chain) for chain in order]
        assert [bench.slots.written[slot] for slot in first] == [turn if turn % 2 else ROOM] * 5
        assert bench.slots.out() == []


@fast_kind
def test_only_part_of_what_is_out_comes_back(kind: dict[str, Any]):
    bench = Bench(kind, 8, 8)
    waiting: list[Chain] = bench.post(*range(8))
    for turn in range(60):
        take = 1 + turn % 7
        done, waiting = waiting[:take], waiting[take:]
        bench.finish(*done)
        back = bench.slots.reap()
        assert list(back) == [bench.slot_of(chain) for chain in done]
        assert bench.slots.out() == sorted(bench.slot_of(chain) for chain in waiting)
        bench.slots.submit(back)
        waiting += bench.rig.device.pop_all()
        assert len(waiting) == 8


@every_kind
def test_other_slots_than_those_that_came_back(kind: dict[str, Any]):
    """Eight slots, three of them out, in turn; then for a while what came back goes out again; and so on."""
    bench = Bench(kind, 16, 8)
    waiting, idle = bench.post(0, 1, 2), [3, 4, 5, 6, 7]
    for turn in range(60):
        bench.finish(waiting.pop(0))
        (back,) = bench.reap()
        busy = sorted(bench.slot_of(chain) for chain in waiting)
        assert bench.slots.out() == busy and bench.rig.queue.in_flight == 2
        for wrong in ([busy[0]], [idle[0], busy[1]], [idle[0], idle[0]], [8]):
            if not turn % 7:
                with pytest.raises(UsageError):
                    bench.slots.submit(wrong)
        idle.append(back)
        following = back if turn // 12 % 2 else idle[0]
        idle.remove(following)
        waiting += bench.post(following)
    for chain in waiting:
        bench.finish(chain)
    assert len(bench.reap()) == 3 and bench.slots.out() == [] and bench.rig.queue.in_flight == 0


@every_kind
def test_nothing_comes_of_nothing(kind: dict[str, Any]):
    bench = Bench(kind)
    assert bench.reap() == [] and not bench.slots.submit([]) and bench.slots.out() == []
    bench.post(3)
    assert bench.reap() == [] and bench.slots.out() == [3]
    bench.slots.submit([4], show=False)
    bench.rig.device.ask_for_kicks()
    assert not bench.slots.show(0) and bench.slots.laid == 1


@pytest.mark.spec("SPL-28", "PKD-24")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind["event_idx"]], ids=name_of)
def test_what_comes_while_reaping_is_reaped_or_announced(kind: dict[str, Any]):
    bench = Bench(kind)
    first, second = bench.post(0, 1)
    bench.finish(first)
    bench.rig.device.wants_interrupt()
    bench.rig.on_fence = lambda: bench.rig.device.out and bench.finish(second)
    assert bench.reap() == [0, 1]
    assert bench.slots.out() == []
    assert bench.post(0, 1)


@every_kind
def test_a_kick_is_wanted_when_the_device_asks(kind: dict[str, Any]):
    bench = Bench(kind)
    for turn in range(20):
        on = turn % 3 > 0
        bench.rig.device.ask_for_kicks(on)
        assert bench.slots.submit([0, 1, 2]) is on
        bench.finish(*bench.rig.device.pop_all())
        assert bench.reap() == [0, 1, 2]


@pytest.mark.spec("SPL-25", "SPL-26")
def test_one_copy_one_index_store_one_fence():
    bench = Bench({"format": "split", "event_idx": True})
    bench.rig.device.ask_for_kicks()
    trace = traced(bench.rig, weak=True)
    bench.slots.submit(array("H", range(8)))
    assert [entry[:2] for entry in trace] == [
        ("store", "_avail"),  # the heads, where the device does not look yet
        ("fence", "order"),
        ("store", "_avail"),
        ("fence", "full"),
        ("load", "_used"),
    ]
    assert trace[2] == ("store", "_avail", 1)


@pytest.mark.spec("PKD-10", "PKD-15", "PKD-16")
def test_the_first_flags_come_last():
    bench = Bench({"format": "packed", "event_idx": True})
    trace = traced(bench.rig, weak=True)
    bench.slots.submit(array("H", range(8)))
    assert trace[-4:] == [
        ("fence", "order", 0),
        ("store", "_flags", 7),
        ("fence", "full", 0),
        ("load", "_theirs", 0),
    ]
    assert not [entry for entry in trace[:-4] if entry[1] == "_flags"]


# --- our own mistakes ---------------------------------------------------------------------------------------


@pytest.mark.fault(50)
@every_kind
@pytest.mark.parametrize("wrong", [[8], [-1], [0, 0], [3], [1, 2, 3], [70000]])
def test_slots_that_cannot_be_posted_are_refused_and_change_nothing(kind: dict[str, Any], wrong: list[int]):
    bench = Bench(kind)
    bench.post(3)
    before = bench.rig.visible()
    with pytest.raises(UsageError):
        bench.slots.submit(wrong)
    assert bench.rig.visible() == before and bench.slots.out() == [3]


@every_kind
def test_what_is_sent_as_others_come_back_comes_back_too(kind: dict[str, Any]):
    bench = Bench(kind, 16, 8)
    posted = bench.post(0, 1, 2)
    if not kind.get("in_order"):
        bench.finish(posted.pop(1))
        assert bench.reap() == [1]
    bench.slots.submit([4, 3], show=False)
    bench.finish(posted.pop(0))
    assert bench.slots.relay(1, no_kick) == 1 and bench.slots.laid == 1
    posted += bench.rig.device.pop_all()
    assert bench.reap() == [0]
    bench.finish(*posted)
    assert bench.reap() == [bench.slot_of(chain) for chain in posted]
    assert bench.slots.out() == [] and bench.slots.relay(3, no_kick) == 0


def test_one_after_the_other_goes_on_until_as_many_are_used_as_were_asked_for():
    bench = Bench({"format": "split"})
    posted, seen = bench.post(0), []
    bench.slots.submit([5, 3, 6, 1], show=False)
    bench.finish(*posted)

    def kick() -> None:
        came = bench.rig.device.pop_all()
        seen.append([bench.slot_of(chain) for chain in came])
        bench.finish(*came)

    assert bench.slots.relay(1, kick, 3) == 3 and seen == [[5], [3], [6]] and bench.slots.laid == 1
    assert bench.slots.relay(1, kick, 8) == 5 and bench.slots.laid == 0
    assert bench.reap() == [0, 5, 3, 6, 1]


def looks_of(trace: list[tuple[str, str, int]]) -> int:
    """How often used.idx was read."""
    return trace.count(("load", "_used", 1))


@pytest.mark.parametrize(("out", "used", "looks"), [(1, 1, 1), (16, 1, 3), (16, 2, 1), (16, 3, 1)])
def test_of_many_in_flight_an_eighth_is_waited_for_and_of_few_none(out: int, used: int, looks: int):
    bench = Bench({"format": "split"}, 32, 16)
    bench.finish(*bench.post(*range(out))[:used])
    trace = traced(bench.rig)
    assert bench.slots.relay(3, no_kick) == used and looks_of(trace) == looks


def test_when_nothing_is_laid_any_more_no_further_look_is_taken():
    bench = Bench({"format": "split"})
    posted, kicks = bench.post(0), []
    bench.slots.submit([5], show=False)
    bench.finish(*posted)
    trace = traced(bench.rig)

    def kick() -> None:
        kicks.append(5)
        bench.finish(*bench.rig.device.pop_all())

    assert bench.slots.relay(3, kick, 8) == 2 and kicks == [5] and looks_of(trace) == 2


def test_what_is_laid_is_fenced_before_the_index_that_shows_it():
    bench = Bench({"format": "split"})
    posted = bench.post(0)
    bench.slots.submit([5], show=False)
    bench.finish(*posted)
    trace = traced(bench.rig, weak=True)
    bench.slots.relay(1, lambda: None)
    shown = [("fence", "order", 0), ("store", "_avail", 1), ("fence", "full", 0), ("load", "_used", 0)]
    assert trace == [("load", "_used", 1), *shown]
    bench.slots.submit([6], show=False)
    trace.clear()
    bench.slots.show(1)
    assert trace == shown


@pytest.mark.spec("SPL-25", "SPL-26")
@pytest.mark.parametrize(("event", "kicks"), [(1, 1), (0, 0), (2, 0)])
def test_what_goes_out_as_others_come_back_is_told_where_the_device_asked(event: int, kicks: int):
    bench = Bench({"format": "split", "event_idx": True})
    posted, seen = bench.post(0), []
    bench.slots.submit([5], show=False)
    bench.finish(*posted)
    bench.rig.device.write_avail_event(event)
    assert bench.slots.relay(1, lambda: seen.append(1)) == 1
    assert len(seen) == kicks


@pytest.mark.parametrize("jump", [-1, 1])
def test_an_index_that_goes_back_or_beyond_in_the_middle_ends_it(jump: int):
    bench = Bench({"format": "split"})
    posted = bench.post(0, 7)
    bench.slots.submit([5, 3], show=False)
    bench.finish(*posted)

    def lie() -> None:
        device = bench.rig.device
        assert len(device.pop_all()) == 2
        device.write_used_idx(device.used_idx + (jump if jump < 0 else 2 + jump))

    with pytest.raises(RingCorruption):
        bench.slots.relay(1, lie, 8)
    assert bench.rig.queue.broken
    bench.rig.dma.memory.assert_clean()


@fast_kind
def test_what_came_back_and_was_altered_is_checked_again(kind: dict[str, Any]):
    bench = Bench(kind)
    bench.finish(*bench.post(0, 1, 2))
    back = bench.slots.reap()
    back[1] = 0
    with pytest.raises(UsageError):
        bench.slots.submit(back)
    again = array("H", [0, 1, 2])
    bench.slots.submit(again)
    with pytest.raises(UsageError):
        bench.slots.submit(again)


@fast_kind
def test_the_queue_itself_takes_no_single_chains_any_more(kind: dict[str, Any]):
    queue = Bench(kind).rig.queue
    for call in (lambda: queue.add((), [(A, 1)], 0), queue.publish, queue.reap):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(UsageError):
        fixed_slots(queue, chains(1))


@fast_kind
def test_slots_that_do_not_fit(kind: dict[str, Any]):
    with pytest.raises(QueueFull):
        fixed_slots(Rig(8, **kind).queue, chains(9))
    with pytest.raises(BadChain):
        fixed_slots(Rig(8, **kind).queue, chains(1, reads=5, writes=4))
    for in_order in (False, True):
        queue = Rig(8, **kind, in_order=in_order).queue
        if kind["indirect"]:
            assert fixed_slots(queue, chains(5, reads=1, writes=1)).count == 5
        else:
            with pytest.raises(QueueFull):
                fixed_slots(queue, chains(5, reads=1, writes=1))


@fast_kind
def test_closed_means_closed(kind: dict[str, Any]):
    bench = Bench(kind)
    bench.post(0)
    bench.rig.queue.close()
    for call in (bench.slots.reap, lambda: bench.slots.submit([1])):
        with pytest.raises(Closed):
            call()
    assert not bench.rig.dma.memory.open_blocks()


@pytest.mark.fault(31)
@fast_kind
def test_after_a_reset_nothing_goes_and_nothing_comes(kind: dict[str, Any]):
    bench = Bench(kind)
    bench.finish(*bench.post(0, 1))
    bench.rig.queue.abandon()
    out = bench.slots.out()
    for call in (bench.slots.reap, lambda: bench.slots.submit([2])):
        with pytest.raises(DeviceBroken):
            call()
    assert bench.slots.out() == out, "what was refused is not in the books"


# --- lies ---------------------------------------------------------------------------------------------------


@fast_kind
@modes
@pytest.mark.parametrize("lie", [6, 7, 8, 15, 16, 0x7FFF, 0x1_0000])
def test_an_id_that_is_not_out(kind: dict[str, Any], ordered: bool, lie: int):
    bench, posted = lied_to(kind, ordered)
    if kind["format"] == "packed":
        lie = lie & 0xFFFF or 9  # an id has 16 bits there
    bench.rig.device.lies.used_id = lambda head: lie if lie < 0x1_0000 else lie | head
    bench.finish(posted[0])
    bench.corrupt()


@pytest.mark.fault(30)
@fast_kind
@modes
def test_the_same_id_twice(kind: dict[str, Any], ordered: bool):
    bench, posted = lied_to(kind, ordered)
    bench.rig.device.lies.duplicate = True
    bench.finish(posted[0])
    bench.corrupt()


@pytest.mark.fault(34)
@fast_kind
@modes
def test_more_written_than_there_was_room(kind: dict[str, Any], ordered: bool):
    for written in (ROOM + 1, 0xFFFF_FFFF):
        bench, posted = lied_to(kind, ordered)
        bench.finish(posted[0], written=written)
        bench.corrupt()


@fast_kind
def test_more_written_than_there_was_room_where_that_is_known(kind: dict[str, Any]):
    bench = Bench({**kind, "clamp": True}, 16, 8)
    for _ in range(5):
        for chain in bench.post(*range(6)):
            bench.finish(chain, written=ROOM + 512)
        assert bench.reap() == [*range(6)]
        assert list(bench.slots.written) == [ROOM] * 8
    assert bench.rig.queue.findings == {"used-length-clamped": 6}  # once for each slot: then it is expected


@pytest.mark.fault(32)
@modes
@pytest.mark.parametrize("jump", [1, 2, 100, 32768, 65535])
def test_an_index_beyond_what_is_out(ordered: bool, jump: int):
    bench, posted = lied_to({"format": "split"}, ordered)
    bench.rig.device.write_used_idx(bench.rig.device.used_idx + len(posted) + jump)
    bench.corrupt()


@modes
def test_an_index_beyond_what_is_out_sends_nothing_that_was_laid(ordered: bool):
    bench, posted = lied_to({"format": "split"}, ordered)
    bench.slots.submit([6, 7], show=False)
    bench.rig.device.write_used_idx(bench.rig.device.used_idx + len(posted) + 1)
    with pytest.raises(RingCorruption):
        bench.slots.relay(1, no_kick)
    assert bench.slots.laid == 2 and not bench.rig.device.pop_all()
    with pytest.raises(DeviceBroken):
        bench.slots.relay(1, no_kick)


@fast_kind
def test_a_completion_where_nothing_is_out(kind: dict[str, Any]):
    bench = Bench(kind)
    bench.rig.device.push(0, ROOM)
    bench.corrupt()


@pytest.mark.fault(40)
@modes
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_used_slot_behind_one_that_is_not(missing: int, ordered: bool):
    """Slots are used in their order (2.8.1), so that few of their flags are asked for; but all are checked."""
    bench = Bench({"format": "packed"})
    first = bench.post(0, 1, 2, 3)
    bench.finish(*(first if ordered else first[::-1]))
    assert len(bench.reap()) == 4, "from now on four at a time are no surprise"
    if not ordered:
        bench.post(4, 5, 6, 7)
        bench.finish(*list(bench.rig.device.out.values())[::-1][:1])
        assert bench.reap() == [7]
    posted = list(bench.rig.device.out.values()) or bench.post(0, 1, 2, 3)
    device = bench.rig.device
    for number, chain in enumerate(posted):
        if number != missing or number == len(posted) - 1:
            slot = device.used_slot + number
            device.write_used_slot(slot, chain.head, ROOM, device.used_flags(slot, write=True))
    if missing < len(posted) - 1:
        try:
            found = bench.reap()
        except RingCorruption:
            assert bench.rig.queue.broken
        else:
            assert len(found) <= missing, "what lies before it at most"


@pytest.mark.fault(37)
@fast_kind
def test_overwritten_descriptors_change_nothing(kind: dict[str, Any]):
    bench = Bench(kind)
    posted = bench.post(0, 1, 2)
    bench.rig.device.scribble()
    bench.finish(*posted)
    assert bench.reap() == [0, 1, 2]


@pytest.mark.fault(28, 29, 30, 32, 34)
@given(seed=st.integers(0, 1 << 32), format=st.sampled_from(FORMATS), event_idx=st.booleans())
def test_fuzz_a_slot_comes_back_once_or_there_is_an_error(seed: int, format: str, event_idx: bool):
    rng = random.Random(seed)
    bench = Bench({"format": format, "event_idx": event_idx})
    device = bench.rig.device
    out: set[int] = set()
    try:
        for _ in range(10):
            idle = [slot for slot in range(8) if slot not in out]
            fresh = rng.sample(idle, rng.randrange(len(idle) + 1))
            bench.slots.submit(fresh)
            out.update(fresh)
            for place in range(8):
                if rng.random() < 0.3:
                    ident = rng.choice([*range(9), rng.getrandbits(16)])
                    length = rng.choice([0, ROOM, ROOM + 1])
                    if format == "split":
                        device.write_used_element(place, ident, length)
                    else:
                        device.write_used_slot(place, ident, length, rng.choice([0x8080, 0x8082, 0, 2, 0x80]))
            if format == "split":
                device.write_used_idx(bench.rig.queue.reaped + rng.randrange(4))
            for slot in bench.slots.reap():
                assert slot in out and bench.slots.written[slot] <= ROOM
                out.discard(slot)
            assert set(bench.slots.out()) == out
    except RingCorruption:
        pass
    bench.rig.dma.memory.assert_clean()


# --- against a model ----------------------------------------------------------------------------------------


LENGTHS = st.sampled_from([ROOM, ROOM, 5]) | st.integers(0, ROOM)
"""Most of them the same: a slot that is taken for another one shows where their elements are alike."""


class Machine(RuleBasedStateMachine):
    """Random posts and completions, held against a list of what is out."""

    @initialize(
        kind=st.sampled_from(KINDS),
        count=st.integers(1, 12),
        start=st.sampled_from([0, 65_530]),
        spare=st.integers(0, 4),
    )
    def begin(self, kind: dict[str, Any], count: int, start: int, spare: int) -> None:
        size = 1 << (count + spare - 1).bit_length() if kind["format"] == "split" else count + spare
        self.kind = kind
        self.rig = Rig(size, **kind, start=start)
        if kind.get("in_order"):
            self.rig.device._next_descriptor = 0
        self.slots = fixed_slots(self.rig.queue, chains(count))
        self.count = count
        self.waiting: list[Chain] = []
        self.came: list[tuple[int, int]] = []
        self.back: list[Any] = []
        self.laid: list[int] = []

    def seen(self, *expected: int) -> None:
        """The device takes what it sees."""
        taken = self.rig.device.pop_all()
        assert [self.number(chain) for chain in taken] == list(expected)
        self.waiting += taken

    def number(self, chain: Chain) -> int:
        return (chain.elements[0].address - A) // 0x10000

    @rule(data=st.data())
    def post(self, data: st.DataObject) -> None:
        chosen = self.some_idle(data)
        self.slots.submit(chosen)
        if chosen:
            chosen, self.laid = [*self.laid, *chosen], []
        self.seen(*chosen)

    def some_idle(self, data: st.DataObject) -> list[int]:
        out = {*self.slots.out(), *self.laid}
        idle = [slot for slot in range(self.count) if slot not in out]
        chosen = data.draw(st.permutations(idle)) if idle else []
        return list(chosen[: data.draw(st.integers(0, len(chosen)))])

    @rule(data=st.data())
    def check(self, data: st.DataObject) -> None:
        """What was checked counts as idle until it is submitted, and no longer."""
        self.slots.check(self.some_idle(data))
        for slot in {*self.slots.out(), *self.laid}:
            with pytest.raises(UsageError):
                self.slots.check([slot])

    @rule(data=st.data())
    def check_and_post(self, data: st.DataObject) -> None:
        chosen = self.some_idle(data)
        self.slots.check(chosen)
        self.slots.submit(array("H", chosen))
        if chosen:
            with pytest.raises(UsageError):
                self.slots.submit(array("H", chosen))
            now, self.laid = [*self.laid, *chosen], []
            self.seen(*now)

    @rule(data=st.data())
    def lay(self, data: st.DataObject) -> None:
        chosen = self.some_idle(data)
        assert not self.slots.submit(chosen, show=False)
        self.laid += chosen
        self.seen()
        if self.laid:
            with pytest.raises(UsageError):
                self.slots.submit([self.laid[0]])

    @rule(data=st.data())
    def show(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.laid)))
        self.slots.show(count)
        now, self.laid = self.laid[:count], self.laid[count:]
        self.seen(*now)

    @rule(looks=st.integers(1, 3), goal=st.integers(1, 3))
    def relay(self, looks: int, goal: int) -> None:
        """As many go out as are known to have come, before these are looked at."""
        count = self.slots.relay(looks, no_kick, goal)
        assert bool(count) is bool(self.came) and count <= len(self.came)
        now, self.laid = self.laid[:count], self.laid[count:]
        self.seen(*now)

    @rule()
    def post_what_came(self) -> None:
        if self.back:
            back = self.back.pop()
            if {*self.slots.out(), *self.laid}.isdisjoint(back):
                self.slots.submit(back)
                now, self.laid = [*self.laid, *back], []
                self.seen(*now)

    @rule()
    def lay_what_came(self) -> None:
        if self.back:
            back = self.back.pop()
            if {*self.slots.out(), *self.laid}.isdisjoint(back):
                self.slots.submit(back, show=False)
                self.laid += back
                self.seen()

    @rule(count=st.integers(1, 6), seed=st.integers(0, 100), written=LENGTHS, shuffled=st.booleans())
    def complete(self, count: int, seed: int, written: int, shuffled: bool) -> None:
        if shuffled and not self.kind.get("in_order"):
            random.Random(seed).shuffle(self.waiting)
        done, self.waiting = self.waiting[:count], self.waiting[count:]
        for chain in done:
            self.rig.device.push(chain, written)
            self.came.append((self.number(chain), written))

    @rule()
    def reap(self) -> None:
        assert self.rig.queue.pending() is bool(self.came)
        found = self.slots.reap()
        assert list(found) == [slot for slot, _ in self.came]
        for slot, written in self.came:
            assert self.slots.written[slot] == written
        self.came.clear()
        if found:
            self.back.append(found)

    @rule(on=st.booleans())
    def interrupts(self, on: bool) -> None:
        assert self.rig.queue.want_interrupts(on) is (on and bool(self.came))

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "slots"):
            expected = [self.number(chain) for chain in self.waiting] + [slot for slot, _ in self.came]
            assert self.slots.out() == sorted(expected)
            assert self.rig.queue.in_flight == len(expected)
            assert self.slots.laid == len(self.laid)


TestMachine = Machine.TestCase
Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
