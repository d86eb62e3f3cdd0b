"""The packed virtqueue (2.8): what is its own, and not the split ring's."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.fakes.ring_rigs import A, Rig, corrupt, name_of, rigs, traced
from uvirtio.scripted.memory import PAGE, ScriptedDma
from uvirtio.spec import ring
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.packed import PackedQueue

every_kind = pytest.mark.parametrize("kind", rigs("packed"), ids=name_of)
ODD = (1, 2, 3, 5, 8, 255, 256)
AVAIL, USED = ring.PACKED_DESC_F_AVAIL, ring.PACKED_DESC_F_USED


def packed(size: int = 8, **kind: Any) -> Rig:
    return Rig(size, format="packed", **kind)


def slot(rig: Rig, place: int) -> tuple[int, int, int, int]:
    """(address, length, id, flags) of a slot."""
    return struct.unpack_from("<QIHH", rig.desc.cast("B"), 16 * place)


# --- layout and set-up --------------------------------------------------------------------------------------


@pytest.mark.spec("PKD-20")
def test_all_is_zero_at_the_start_whatever_the_memory_held():
    blocks = [ScriptedDma().alloc(PAGE) for _ in range(3)]
    for block in blocks:
        block.view[:] = b"\xff" * PAGE
    queue = PackedQueue(0, 8, *blocks, RingOptions(fence=lambda: None, event_idx=False))
    assert [bytes(block.view[:4]) for block in blocks] == [bytes(4)] * 3
    assert bytes(blocks[0].view[:128]) == bytes(128)
    assert not queue.pending()


# --- laps (2.8.1) -------------------------------------------------------------------------------------------


@pytest.mark.spec("PKD-17", "PKD-18")
@pytest.mark.parametrize("size", ODD)
def test_the_wrap_counter_starts_at_one_and_turns_with_each_lap(size: int):
    rig = packed(size)
    for number in range(3 * size + 1):
        lap, place = divmod(number, size)
        assert rig.queue.kick_data == place | (0 if lap % 2 else 0x8000)
        [chain] = rig.out(number)
        flags = slot(rig, place)[3]
        assert flags & (AVAIL | USED) == (USED if lap % 2 else AVAIL)
        assert not rig.queue.pending(), "what is given is not used"
        rig.device.push(chain, 1)
        assert slot(rig, place)[3] & (AVAIL | USED) == (0 if lap % 2 else AVAIL | USED)
        assert [done.cookie for done in rig.queue.reap()] == [number]
        assert not rig.queue.pending(), "the next slot holds what the lap before left there"


@pytest.mark.fault(40)
@pytest.mark.spec("PKD-18")
@pytest.mark.parametrize("flags", [0, AVAIL, USED])
def test_both_bits_have_to_say_used(flags: int):
    rig = packed()
    rig.out("c")
    rig.device.write_used_slot(0, 0, 1, flags | ring.DESC_F_WRITE)
    assert not rig.queue.pending() and rig.queue.reap() == []


@pytest.mark.spec("PKD-10", "PKD-19")
@pytest.mark.parametrize("start", range(8))
def test_a_list_may_go_over_the_end_of_the_ring(start: int):
    rig = packed(start=start)
    rig.queue.add([(A, 1), (A, 2), (A, 3)], [(A, 4), (A, 5)], "c")
    rig.queue.publish()
    [chain] = rig.device.pop_all()
    assert chain.descriptors == [(start + number) % 8 for number in range(5)]
    assert [part.length for part in chain.elements] == [1, 2, 3, 4, 5]
    rig.device.push(chain, 9)
    assert [(done.cookie, done.written) for done in rig.queue.reap()] == [("c", 9)]
    assert rig.queue.free == 8 and rig.queue.slots_reaped == start + 5


@pytest.mark.spec("PKD-02", "PKD-19")
def test_lists_of_mixed_length_come_back_in_any_order():
    rig = packed(16)
    for count in (3, 1, 5, 2):
        rig.queue.add((), [(A, 1)] * count, count)
    rig.queue.publish()
    chains = {len(chain.elements): chain for chain in rig.device.pop_all()}
    for turn, count in enumerate((5, 2, 3, 1)):
        rig.device.push(chains[count], count)
        assert [(done.cookie, done.written) for done in rig.queue.reap()] == [(count, count)]
        assert rig.queue.free == 5 + sum((5, 2, 3, 1)[: turn + 1])


@pytest.mark.spec("PKD-03", "PKD-10", "PKD-15")
@every_kind
def test_the_flags_of_a_first_slot_come_last_and_alone(kind: dict[str, Any]):
    rig = Rig(**kind)
    trace = traced(rig, weak=True)
    rig.queue.add([(A, 1), (A, 2)], [(A, 3)], "c")
    rig.queue.add([(A, 1)], [(A, 2)], "d")
    before = len(trace)
    stores = [place for what, name, place in trace if (what, name) == ("store", "_desc")]
    lists = [(0, 1), (1, 2)] if kind["indirect"] else [(0, 3), (3, 5)]
    for first, end in lists:
        # In the second 64 bits of a slot are its flags: those of the first slot come after all others of its list.
        assert all(stores.index(2 * first + 1) > stores.index(2 * slot + 1) for slot in range(first + 1, end))
    assert not list(rig.device.pop_all()), "nothing is visible before publish"
    rig.queue.publish()
    # Nor does a device look behind a slot that is not its own: the flags of the first one show both lists.
    assert trace[before:] == [
        ("fence", "order", 0),
        ("store", "_flags", 7),
        ("fence", "full", 0),
        ("load", "_theirs", 0),
    ]
    assert len(rig.device.pop_all()) == 2


@pytest.mark.spec("PKD-16")
@every_kind
def test_a_full_fence_parts_the_flags_from_the_devices_wish(kind: dict[str, Any]):
    rig = Rig(**kind)
    trace = traced(rig)
    rig.queue.add((), [(A, 1)], "c")
    rig.queue.publish()
    store, load = trace.index(("store", "_flags", 7)), trace.index(("load", "_theirs", 0))
    assert trace[store + 1 : load] == [("fence", "full", 0)]


@pytest.mark.spec("PKD-24")
@pytest.mark.parametrize("in_order", [False, True])
def test_the_flags_are_read_before_id_and_length_and_nothing_else_is_read(in_order: bool):
    rig = packed(indirect=True, in_order=in_order)
    rig.queue.add([(A, 1)], [(A, 1)], "c")
    rig.queue.publish()
    rig.device.push(rig.device.pop_all()[0], 1)
    trace = traced(rig, weak=True)
    assert len(rig.queue.reap()) == 1
    if in_order:
        expected = [("load", "_flags", 7), ("fence", "order", 0), ("load", "_desc", 1)]
    else:  # id and flags are in one word, which is loaded once more, behind the fence
        expected = [("load", "_halves", 3), ("fence", "order", 0), ("load", "_halves", 3), ("load", "_halves", 2)]
    assert trace[: len(expected)] == expected
    assert not [entry for entry in trace[len(expected) :] if entry[1] in ("_desc", "_halves")]


@pytest.mark.spec("PKD-12")
def test_entries_of_a_table_carry_write_and_nothing_else():
    rig = packed(indirect=True)
    rig.queue.add([(A, 1)] * 3, [(A, 1)] * 4, "c")
    rig.queue.publish()
    [chain] = rig.device.pop_all()
    [(address, length)] = chain.tables
    flags = [entry[3] for entry in struct.iter_unpack("<QIHH", rig.dma.memory.read(address, length))]
    assert flags == [0] * 3 + [ring.DESC_F_WRITE] * 4


# --- events (2.8.10) ----------------------------------------------------------------------------------------


@pytest.mark.spec("PKD-21")
@every_kind
@pytest.mark.parametrize(("flags", "wanted"), [(0, True), (1, False), (3, True)])
def test_the_device_says_whether_it_wants_kicks(kind: dict[str, Any], flags: int, wanted: bool):
    rig = Rig(**kind)
    for off_wrap in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
        rig.device.write_event(off_wrap, flags)
        for reserved in (0, 0xFFFC):
            rig.device.write_event(off_wrap, flags | reserved)
            [chain], kicked = _one(rig)
            assert kicked is wanted
            rig.device.push(chain, 0)
            rig.queue.reap()


def _one(rig: Rig) -> tuple[list[Any], bool]:
    rig.queue.add((), [(A, 1)], None)
    kicked = rig.queue.publish()
    return rig.device.pop_all(), kicked


@pytest.mark.spec("PKD-21")
def test_a_place_means_nothing_without_event_idx():
    rig = packed()
    for off_wrap in (0, 5, 0x8003):
        rig.device.write_event(off_wrap, ring.PACKED_EVENT_DESC)
        [chain], kicked = _one(rig)
        assert kicked
        rig.device.push(chain, 0)
        rig.queue.reap()


@pytest.mark.spec("PKD-21")
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("start", [0, 1, 5, 7, 8, 13, 65_533])
def test_with_event_idx_a_kick_comes_exactly_when_the_place_is_passed(size: int, start: int):
    for batch in range(1, size + 1):
        for ahead in range(2 * size):
            rig = packed(size, event_idx=True, start=start)
            # The device asks for the slot that is `ahead` of the next; two laps on it would look like this one.
            rig.device.write_event(rig.device.off_wrap(start + ahead), ring.PACKED_EVENT_DESC)
            for _ in range(batch):
                rig.queue.add((), [(A, 1)], None)
            assert rig.queue.publish() is (ahead < batch)


@pytest.mark.fault(42)
@pytest.mark.spec("PKD-21")
@pytest.mark.parametrize("wrap", [0, ring.PACKED_EVENT_WRAP])
@pytest.mark.parametrize("beyond", [0, 1, 0x7FF7])
def test_a_place_beyond_the_ring_costs_a_kick(wrap: int, beyond: int):
    rig = packed(event_idx=True)
    rig.device.write_event(8 + beyond | wrap, ring.PACKED_EVENT_DESC)
    assert _one(rig)[1]


def test_what_a_device_has_taken_is_known_by_the_place_that_it_names_alone():
    rig = packed(event_idx=True)
    rig.out(1, 2)
    for flags in (ring.PACKED_EVENT_ENABLE, ring.PACKED_EVENT_DISABLE):
        rig.device.write_event(rig.device.off_wrap(2), flags)
        assert rig.queue.taken() is None
    for place, taken in ((2, True), (1, False)):
        rig.device.write_event(rig.device.off_wrap(place), ring.PACKED_EVENT_DESC)
        assert rig.queue.taken() is taken
    assert packed(event_idx=False).queue.taken() is None


@pytest.mark.spec("PKD-21")
@every_kind
def test_interrupts_go_off_and_on(kind: dict[str, Any]):
    rig = Rig(**kind)
    for on in (True, False, False, True, True, False):
        rig.queue.want_interrupts(on)
        enabled = ring.PACKED_EVENT_DESC if kind["event_idx"] else ring.PACKED_EVENT_ENABLE
        assert rig.device.driver_event()[1] == (enabled if on else ring.PACKED_EVENT_DISABLE)
        for _ in range(11):
            rig.device.push(rig.out("c")[0], 0)
            assert rig.device.wants_interrupt() is on
            assert len(rig.queue.reap()) == 1


@pytest.mark.spec("PKD-24")
@every_kind
def test_turning_interrupts_on_fences_before_the_look(kind: dict[str, Any]):
    rig = Rig(**kind)
    rig.queue.want_interrupts(False)
    trace = traced(rig, weak=True)
    rig.queue.want_interrupts(True)
    wishes = [("store", "_mine", 0), ("fence", "order", 0)] if kind["event_idx"] else []
    assert trace == [*wishes, ("store", "_mine", 1), ("fence", "full", 0), ("load", "_flags", 7)]


# --- lies ---------------------------------------------------------------------------------------------------


@pytest.mark.spec("PKD-22")
def test_a_length_without_write_counts_for_nothing():
    rig = packed()
    first, second = rig.out(1, 2)
    rig.device.push(first, 10)
    assert [done.written for done in rig.queue.reap()] == [10]
    rig.device.marks = False
    rig.device.push(second, 20)
    assert [done.written for done in rig.queue.reap()] == [0]
    assert rig.queue.findings == {}


def test_a_device_that_never_sets_write_is_believed_and_noted():
    """QEMU does not set it, and Linux does not look."""
    rig = packed()
    rig.device.marks = False
    rig.device.push(rig.out("c", room=64)[0], 20)
    assert [done.written for done in rig.queue.reap()] == [20]
    assert rig.queue.findings == {"used-length-without-write": 1}
    rig.device.push(rig.out("c", room=64)[0], 65)
    corrupt(rig, 65)


def test_a_length_without_write_on_a_list_without_room_is_nothing():
    rig = packed()
    rig.device.marks = False
    rig.queue.add([(A, 64)], (), "c")
    rig.queue.publish()
    rig.device.push(rig.device.pop_all()[0], 64)
    assert [done.written for done in rig.queue.reap()] == [0] and not rig.queue.findings


@pytest.mark.parametrize("lap", [0, 1])
@pytest.mark.parametrize(
    ("slot", "seen"),
    [
        ({"ident": 8}, 8),  # no id of a ring of 8
        ({"ident": 0xFFFF}, 0xFFFF),
        ({"ident": 2}, 2),  # of a list that is not published
        ({"ident": 5}, 5),  # not in flight
        ({"written": 65}, 65),
        ({"written": 65, "more": 0x4000}, 65),  # with a flag that has no meaning here
        ({"more": 0x4000, "ident": 8}, 8),
    ],
)
def test_lies_of_a_device_that_is_known_to_set_write(lap: int, slot: dict[str, int], seen: int):
    """Its flags are compared as a whole, so this is another way through ``reap``."""
    rig = packed(start=8 * lap)
    rig.device.push(rig.out("honest")[0], 64)
    assert [done.written for done in rig.queue.reap()] == [64]
    rig.out("one", "two")
    rig.queue.add((), [(A, 64)], "hidden")
    at, flags = 8 * lap + 1, rig.device.used_flags(8 * lap + 1, write=True) | slot.get("more", 0)
    rig.device.write_used_slot(at, slot.get("ident", 0), slot.get("written", 64), flags)
    error = corrupt(rig, seen)
    assert error.about == "used-len" or error.expected == "the id of one of 2 chains in flight"


@pytest.mark.parametrize("element", [(A, 64.0), (float(A), 64)])
def test_what_cannot_be_written_is_not_published(element: Any):
    rig = packed()
    with pytest.raises((TypeError, struct.error)):
        rig.queue.add((), [element], "none")
    assert not rig.queue.publish() and not rig.device.pop_all()
    (chain,) = rig.out("one")
    rig.device.push(chain, 64)
    assert [done.cookie for done in rig.queue.reap()] == ["one"]


@pytest.mark.parametrize("write", [True, False])
def test_the_flags_of_the_lap_before_are_not_those_of_a_used_slot(write: bool):
    rig = packed(start=8)
    rig.device.push(rig.out("honest")[0], 64)
    assert len(rig.queue.reap()) == 1
    (chain,) = rig.out("one")
    for wrong in (
        ring.PACKED_DESC_F_AVAIL,
        ring.PACKED_DESC_F_USED,
        ring.PACKED_DESC_F_AVAIL | ring.PACKED_DESC_F_USED,
    ):
        rig.device.write_used_slot(9, 0, 64, wrong | (ring.DESC_F_WRITE if write else 0))
        assert rig.queue.reap() == []
    rig.device.write_used_slot(9, 0, 64, ring.DESC_F_WRITE)
    assert [done.cookie for done in rig.queue.reap()] == ["one"]
    del chain


@pytest.mark.fault(40)
@every_kind
def test_a_used_slot_that_was_never_given(kind: dict[str, Any]):
    for start in (0, 3, 8, 12):
        rig = Rig(**kind, start=start)
        rig.device.write_used_slot(start, 0, 0, rig.device.used_flags(start))
        assert rig.queue.pending()
        corrupt(rig, 0)
