"""What holds for a virtqueue of either format: against a strict device, and against one that lies."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from tests.fakes.ring_rigs import FORMATS, A, Rig, both, corrupt, every_kind, name_of, rigs, traced
from uvirtio.errors import BadChain, Closed, DeviceBroken, QueueError, QueueFull, RingCorruption, UsageError
from uvirtio.scripted.memory import PAGE, ScriptedDma
from uvirtio.scripted.ring import Chain
from uvirtio.spec.ring import PACKED_DESC_F_AVAIL, PACKED_DESC_F_USED, USED_F_NO_NOTIFY
from uvirtio.virtqueue import base
from uvirtio.virtqueue.base import INDIRECT_ENTRIES, RingOptions
from uvirtio.virtqueue.interface import Virtqueue
from uvirtio.virtqueue.packed import PackedQueue, make_packed
from uvirtio.virtqueue.split import SplitQueue, make_split

MAKERS: dict[str, Any] = {"split": make_split, "packed": make_packed}


# --- layout and set-up ----------------------------------------------------------------------------------------


@pytest.mark.spec("SPL-01", "SPL-29", "PKD-01", "PKD-20")
@pytest.mark.parametrize(
    ("format", "size"),
    [
        *(("split", 1 << power) for power in range(16)),
        *(("packed", size) for size in (1, 2, 3, 5, 8, 255, 256, 32767, 32768)),
    ],
)
def test_areas_are_as_long_and_aligned_as_the_standard_says(format: str, size: int):
    lengths, aligns = {
        "split": ((16 * size, 6 + 2 * size, 6 + 8 * size), (16, 2, 4)),
        "packed": ((16 * size, 4, 4), (16, 4, 4)),
    }[format]
    dma = ScriptedDma()
    queue = MAKERS[format](0, size, dma, RingOptions(fence=lambda: None, indirect=False, event_idx=True))
    assert queue.area_sizes(size) == lengths
    assert [address % align for address, align in zip(queue.addresses, aligns, strict=True)] == [0, 0, 0]
    for address, length in zip(queue.addresses, lengths, strict=True):
        assert dma.memory.is_mapped(address, length)
    assert queue.free == size
    queue.close()


@pytest.mark.spec("SPL-29", "PKD-20")
@pytest.mark.parametrize(
    ("format", "size"),
    [
        *(("split", size) for size in (-1, 0, 3, 6, 255, 65536)),
        *(("packed", size) for size in (-1, 0, 32769, 65536)),
    ],
)
def test_a_size_that_cannot_be_is_refused(format: str, size: int):
    dma = ScriptedDma()
    with pytest.raises(UsageError):
        MAKERS[format](0, size, dma, RingOptions(fence=lambda: None, indirect=False, event_idx=False))
    assert not dma.memory.blocks


@pytest.mark.spec("SPL-01", "PKD-01")
@pytest.mark.parametrize(("made", "crooked"), [(SplitQueue, (8, 1, 2)), (PackedQueue, (8, 2, 1))])
def test_an_area_that_is_not_aligned_or_not_in_one_piece_is_refused(made: Any, crooked: tuple[int, int, int]):
    blocks: list[Any] = [ScriptedDma().alloc(PAGE) for _ in range(3)]

    class Crooked:
        def __init__(self, block: Any, runs: list[tuple[int, int]]) -> None:
            self.view, self.size, self._runs = block.view, block.size, runs

        def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
            return self._runs

    for place, bad in enumerate(crooked):
        wrong = list(blocks)
        wrong[place] = Crooked(blocks[place], [(0x1000 + bad, 4096)])
        with pytest.raises(QueueError, match="aligned"):
            made(0, 8, *wrong, RingOptions(fence=lambda: None, event_idx=False))
        wrong[place] = Crooked(blocks[place], [(0x1000, 2), (0x3000, 8)])
        with pytest.raises(QueueError, match="contiguous"):
            made(0, 8, *wrong, RingOptions(fence=lambda: None, event_idx=False))


# --- chains ---------------------------------------------------------------------------------------------------


@every_kind
def test_a_notification_that_was_requested_is_of_use_until_the_device_suppresses_them(kind: dict[str, Any]):
    rig = Rig(**kind)
    if rig.queue.kind == "split" and rig.device.event_idx:
        rig.device.lies.used_flags = USED_F_NO_NOTIFY  # without a meaning then (2.7.10)
    rig.device.ask_for_kicks()
    rig.queue.add((), [(A, 10)], 0)
    assert rig.queue.publish() and rig.queue.wants_kick()
    rig.device.ask_for_kicks(False)
    # Its next avail_event says nothing about what was published before (2.7.10).
    assert rig.queue.wants_kick() is (rig.device.event_idx and rig.queue.kind == "split")
    rig.device.ask_for_kicks()
    assert rig.queue.wants_kick()
    rig.queue.abandon()
    with pytest.raises(DeviceBroken):
        rig.queue.wants_kick()


@both
def test_it_is_a_virtqueue(format: str):
    queue: Virtqueue = Rig(format=format).queue
    assert (queue.index, queue.size, queue.free, queue.in_flight, queue.broken) == (3, 8, 8, 0, None)


@pytest.mark.spec(
    "SPL-02", "SPL-03", "SPL-07", "SPL-08", "SPL-10", "PKD-07", "PKD-10", "PKD-11", "PKD-12", "PKD-14", "PKD-19"
)
@every_kind
@pytest.mark.parametrize(("reads", "writes"), [(1, 0), (0, 1), (1, 1), (3, 2), (0, 8), (8, 0), (7, 1)])
def test_the_device_sees_the_chain_that_was_added(kind: dict[str, Any], reads: int, writes: int):
    rig = Rig(**kind)
    readable = [(A + 0x1000 * number, 10 + number) for number in range(reads)]
    writable = [(2 * A + 0x1000 * number, 20 + number) for number in range(writes)]
    rig.queue.add(readable, writable, "c")
    assert rig.device.available() == 0, "nothing is visible before publish"
    assert rig.queue.publish()
    chain = rig.device.pop()
    assert chain is not None
    assert [(part.address, part.length) for part in chain.readable] == readable
    assert [(part.address, part.length) for part in chain.writable] == writable
    assert chain.indirect == (kind["indirect"] and reads + writes > 1)
    assert rig.queue.free == 8 - (1 if chain.indirect else reads + writes)
    rig.device.push(chain, sum(length for _, length in writable))
    [done] = rig.queue.reap()
    assert (done.cookie, done.written) == ("c", sum(length for _, length in writable))
    assert rig.queue.free == 8


@both
@pytest.mark.spec("SPL-07")
def test_a_chain_too_long_for_a_table_goes_into_the_ring(format: str):
    rig = Rig(64, indirect=True, format=format)
    rig.queue.add((), [(A, 1)] * INDIRECT_ENTRIES, 1)
    rig.queue.add((), [(A, 1)] * (INDIRECT_ENTRIES + 1), 2)
    rig.queue.publish()
    assert [(chain.indirect, len(chain.elements)) for chain in rig.device.pop_all()] == [(True, 16), (False, 17)]


@both
def test_tables_lie_apart_and_never_cross_scattered_pages(format: str):
    rig = Rig(64, indirect=True, translated=False, format=format)
    for number in range(64):
        rig.queue.add((), [(A + 0x1000 * number + place, place + 1) for place in range(16)], number)
    rig.queue.publish()
    for number, chain in enumerate(rig.device.pop_all()):
        assert [part.address for part in chain.elements] == [A + 0x1000 * number + place for place in range(16)]


@pytest.mark.fault(50)
@pytest.mark.spec("SPL-04", "SPL-09", "PKD-06", "PKD-13")
@every_kind
@pytest.mark.parametrize(
    ("readable", "writable"),
    [
        ([], []),
        ([(A, 0)], []),
        ([], [(A, 1), (A, 0)]),
        ([(A, -1)], []),
        ([(A, 1 << 32)], []),
        ([(A, (1 << 32) - 1)], [(A, 2)]),
        ([(-1, 1)], []),
        ([((1 << 64) - 1, 2)], []),
        ([(1 << 64, 1)], []),
        ([(A, 1)] * 9, []),
        ([(A, 1)] * 5, [(A, 1)] * 4),
    ],
)
def test_a_chain_that_cannot_be_is_refused_and_changes_nothing(
    kind: dict[str, Any], readable: list[tuple[int, int]], writable: list[tuple[int, int]]
):
    rig = Rig(**kind)
    before = rig.visible()
    with pytest.raises(BadChain) as caught:
        rig.queue.add(readable, writable, None)
    assert caught.value.expected and caught.value.exit_code == 2
    assert before == rig.visible()
    assert rig.queue.free == 8 and not rig.queue.publish()


@both
@pytest.mark.spec("SPL-04", "SPL-09", "PKD-06", "PKD-13")
def test_the_largest_chains_are_taken(format: str):
    rig = Rig(format=format)
    rig.queue.add([(0, (1 << 32) - 1)], [((1 << 64) - 1, 1)], 1)
    rig.queue.publish()
    assert rig.device.pop() is not None
    rig = Rig(format=format)
    rig.queue.add((), [(A, 1)] * 8, 1)
    rig.queue.publish()
    chain = rig.device.pop()
    assert chain is not None and len(chain.elements) == 8


@pytest.mark.fault(48)
@pytest.mark.spec("PKD-08", "PKD-09")
@every_kind
def test_a_full_queue_says_so_and_changes_nothing(kind: dict[str, Any]):
    rig = Rig(**kind)
    for cookie in range(7):
        rig.queue.add((), [(A, 1)], cookie)
    if not kind["indirect"]:
        with pytest.raises(QueueFull):
            rig.queue.add((), [(A, 1)] * 2, "two")
        assert rig.queue.free == 1
    rig.queue.add((), [(A, 1)], 7)
    for elements in (1, 2):
        with pytest.raises(QueueFull) as caught:
            rig.queue.add((), [(A, 1)] * elements, "more")
        assert caught.value.remedy
    rig.queue.publish()
    chains = rig.device.pop_all()
    assert len(chains) == 8
    for chain in chains:
        rig.device.push(chain, 1)
    assert [done.cookie for done in rig.queue.reap()] == list(range(8))
    assert rig.queue.free == 8


# --- publishing and kicking -----------------------------------------------------------------------------------


@pytest.mark.fault(42)
@both
def test_garbage_in_avail_event_costs_kicks_at_most(format: str):
    rig = Rig(256, event_idx=True, format=format)
    rng = random.Random(7)
    for number in range(500):
        rig.device.write_avail_event(rng.randrange(65536))
        rig.queue.add((), [(A, 1)], number)
        rig.queue.publish()
        for chain in rig.device.pop_all():
            rig.device.push(chain, 1)
        assert [done.cookie for done in rig.queue.reap()] == [number]


@both
def test_publishing_nothing_wants_no_kick_and_touches_nothing(format: str):
    rig = Rig(format=format)
    trace = traced(rig)
    assert not rig.queue.publish() and not trace


# --- interrupts -----------------------------------------------------------------------------------------------


@pytest.mark.spec("SPL-15")
@every_kind
def test_an_interrupt_for_nothing_is_nothing(kind: dict[str, Any]):
    rig = Rig(**kind)
    rig.out("c")
    for _ in range(3):
        assert not rig.queue.pending() and rig.queue.reap() == []


@pytest.mark.spec("SPL-28", "PKD-24")
@every_kind
def test_what_comes_while_interrupts_go_on_is_seen(kind: dict[str, Any]):
    rig = Rig(**kind)
    rig.queue.want_interrupts(False)
    [chain] = rig.out("late")
    # The device completes after its last look at our wish, and before we look at the ring.
    rig.on_fence = lambda: rig.device.out and rig.device.push(chain, 0)
    assert rig.queue.want_interrupts(True)
    assert [done.cookie for done in rig.queue.reap()] == ["late"]
    assert not rig.queue.want_interrupts(True)


@both
@pytest.mark.spec("SPL-28", "PKD-24")
def test_what_comes_while_reaping_is_reaped_or_announced(format: str):
    rig = Rig(event_idx=True, format=format)
    first, second = rig.out(1, 2)
    rig.device.push(first, 0)
    rig.device.wants_interrupt()
    rig.on_fence = lambda: rig.device.out and rig.device.push(second, 0)
    assert [done.cookie for done in rig.queue.reap()] == [1, 2]


# --- used elements that lie (2.7.8, 2.8.4) --------------------------------------------------------------------


@pytest.mark.fault(28)
@pytest.mark.parametrize("lie", [8, 9, 0x1_0000, 0x1_0003, 0x8000_0000, 0xFFFF_FFFF])
@every_kind
def test_a_used_id_beyond_the_queue(kind: dict[str, Any], lie: int):
    rig = Rig(**kind)
    [chain] = rig.out("c")
    if kind["format"] == "packed":
        lie = lie & 0xFFFF | 8  # an id has 16 bits there
    rig.device.lies.used_id = lambda head: lie if lie < 0x1_0000 else lie & ~0xFFFF | head
    rig.device.push(chain, 0)
    corrupt(rig)
    assert rig.queue.abandon() == ["c"]


@pytest.mark.fault(29)
@every_kind
def test_a_used_id_of_a_free_descriptor(kind: dict[str, Any]):
    rig = Rig(**kind)
    [chain] = rig.out("c")
    rig.device.lies.used_id = lambda head: (head + 1) % 8
    rig.device.push(chain, 0)
    corrupt(rig, (chain.head + 1) % 8)


@every_kind
def test_a_used_id_that_was_added_and_not_published(kind: dict[str, Any]):
    rig = Rig(**kind)
    [chain] = rig.out("published")
    rig.queue.add((), [(A, 1)], "not yet")
    [hidden] = [ident for ident, entry in enumerate(rig.queue._out) if entry and entry[0] == "not yet"]
    rig.device.lies.used_id = lambda head: hidden
    rig.device.push(chain, 0)
    corrupt(rig, hidden)
    assert rig.queue.abandon() == ["published", "not yet"]


@pytest.mark.parametrize(
    "kind", [*rigs(), *({**kind, "in_order": True} for kind in rigs(event_idx=True))], ids=name_of
)
def test_the_device_sees_each_chain_also_where_the_ring_knows_it_already(kind: dict[str, Any]):
    """The same objects again and again, long and short, in and out of order: what is kept is never out of date."""
    rng = random.Random(8)
    shapes = [(1, 2), (1, 1), (0, 1), (2, 2), (1, 0), (3, 0), (0, 3), (12, 6)]
    pool: list[Any] = [
        (
            tuple((A + 0x10000 * number + 0x100 * part, 16 + part) for part in range(reads)),
            tuple((A + 0x10000 * number + 0x8000 + 0x100 * part, 64 + part) for part in range(writes)),
        )
        for number, (reads, writes) in enumerate(shapes)
    ]
    pool += [(list(pool[0][0]), list(pool[0][1])), (pool[0][0], pool[6][1][:2]), pool[7], pool[7]]
    pool += [((), [(A + 0x77000, 33)]), ([(A + 0x78000, 34)], ())]
    rig, out = Rig(64 if kind["format"] == "split" else 60, **kind), []
    number = 0
    for _ in range(700):
        if not out or rng.random() < 0.55:
            shape = rng.randrange(3)
            some = [pool[shape] if rng.random() < 0.6 else rng.choice(pool) for _ in range(rng.choice((1, 1, 4)))]
            while sum(len(readable) + len(writable) for readable, writable in some) > rig.queue.free:
                some.pop()
            cookies = range(number, number := number + len(some))
            if len(some) == 1:
                rig.queue.add(*some[0], cookies[0])
            else:
                left = [(*chain, cookie) for chain, cookie in zip(some, cookies, strict=True)]
                rig.queue.add_all(left)
                assert not left
            rig.queue.publish()
            chains = rig.device.pop_all()
            for chain, (readable, writable) in zip(chains, some, strict=True):
                assert [(one.address, one.length) for one in chain.elements] == [*readable, *writable]
                assert [one.writable for one in chain.elements] == [False] * len(readable) + [True] * len(writable)
            out += zip(chains, cookies, strict=True)
        else:
            place = 0 if kind.get("in_order") else -1 if rng.random() < 0.8 else rng.randrange(len(out))
            chain, cookie = out.pop(place)
            rig.device.push(chain, min(chain.room, 7))
            assert rig.queue.reap() == [(cookie, min(chain.room, 7))]


@every_kind
@pytest.mark.parametrize("elements", [1, 2])
def test_a_list_that_was_changed_since_is_another_chain(kind: dict[str, Any], elements: int):
    rig = Rig(8, **kind)
    readable: list[Any] = [(A, 4)]
    writable = [(A + 64, 4)] * (elements - 1)
    for address in (A, A + 0x1000):
        readable[0] = address, 4
        rig.queue.add(readable, writable, "c")
        rig.queue.publish()
        [chain] = rig.device.pop_all()
        assert chain.elements[0].address == address
        rig.device.push(chain, 0)
        rig.queue.reap()


@every_kind
def test_of_several_chains_those_that_were_added_are_not_left(kind: dict[str, Any]):
    rig = Rig(8, **kind)
    entry = ((A, 4),), ((A + 64, 4),)
    for _ in range(2):  # the second time the ring knows them
        room = rig.queue.free // rig.queue.needs(2)
        chains = [(*entry, number) for number in range(9)]
        with pytest.raises(QueueFull):
            rig.queue.add_all(chains)
        assert [cookie for *_, cookie in chains] == list(range(room, 9))
        rig.queue.publish()
        for chain in rig.device.pop_all():
            rig.device.push(chain, 4)
        assert [cookie for cookie, _ in rig.queue.reap()] == list(range(room))
    rig.queue.abandon()
    with pytest.raises(DeviceBroken):
        rig.queue.add_all(chains)
    assert [cookie for *_, cookie in chains] == list(range(room, 9))


@every_kind
@pytest.mark.parametrize("how", ["broken", "closed", "given to fixed slots"])
def test_a_ring_that_is_shut_takes_no_chains_that_it_knows(kind: dict[str, Any], how: str):
    """Their descriptors hold them already, so that nothing else would refuse them."""
    rig = Rig(8, **kind)
    entry = (), ((A, 4),)
    for _ in range(2):
        rig.queue.add_all([(*entry, 0)])
        rig.queue.publish()
        for chain in rig.device.pop_all():
            rig.device.push(chain, 4)
        rig.queue.reap()
    if how == "broken":
        if kind["format"] == "split":
            rig.device.write_used_idx(7)
        else:
            slot = rig.device.used_slot
            rig.device.write_used_slot(slot, 5, 0, rig.device.used_flags(slot))
        with pytest.raises(RingCorruption):
            rig.queue.reap()
    elif how == "closed":
        rig.queue.close()
    else:
        rig.queue._hand_over()
    before = "" if how == "closed" else rig.visible()
    for call in (
        lambda left: rig.queue.add_all(left),
        lambda left: rig.queue.add(*left[0]),
        lambda left: rig.queue.send(*left[0]),
    ):
        left = [(*entry, 1)]
        with pytest.raises({"broken": DeviceBroken, "closed": Closed}.get(how, UsageError)):
            call(left)
        assert left == [(*entry, 1)]
        assert how == "closed" or rig.visible() == before


@pytest.mark.fault(30)
@every_kind
def test_the_same_completion_twice(kind: dict[str, Any]):
    rig = Rig(**kind)
    one, _two = rig.out(1, 2)
    rig.device.lies.duplicate = True
    rig.device.push(one, 0)
    corrupt(rig, one.head)
    assert rig.queue.abandon() == [1, 2], "what was good in the same call is not lost"
    rig = Rig(**kind)
    first, second = rig.out(1, 2)
    rig.device.push(first, 0)
    assert len(rig.queue.reap()) == 1
    rig.device.lies.used_id = lambda head: first.head
    rig.device.push(second, 0)
    corrupt(rig, first.head)


@pytest.mark.fault(34)
@every_kind
def test_more_written_than_there_was_room(kind: dict[str, Any]):
    for written in (65, 128, 0xFFFF_FFFF):
        rig = Rig(**kind)
        rig.queue.add([(A, 100)], [(A, 32), (A, 32)], "c")
        rig.queue.publish()
        rig.device.push(rig.device.pop_all()[0], written)
        corrupt(rig, written)


@pytest.mark.fault(34)
@both
def test_the_quirk_clamps_and_counts(format: str):
    rig = Rig(clamp=True, format=format)
    rig.device.push(rig.out("c", room=64)[0], 65)
    assert [done.written for done in rig.queue.reap()] == [64]
    assert rig.queue.findings == {"used-length-clamped": 1}


@pytest.mark.fault(36)
@every_kind
def test_a_length_on_a_chain_without_room_is_noted_and_harmless(kind: dict[str, Any]):
    rig = Rig(**kind)
    rig.queue.add([(A, 1024)], (), "pfns")
    rig.queue.publish()
    rig.device.push(rig.device.pop_all()[0], 1024)
    assert [(done.cookie, done.written) for done in rig.queue.reap()] == [("pfns", 0)]
    assert rig.queue.findings == {"used-length-on-read-only-chain": 1}


@both
@pytest.mark.spec("SPL-16", "SPL-17")
@pytest.mark.parametrize("written", [0, 1, 63, 64])
def test_the_length_is_handed_on_as_it_is_when_it_can_be(format: str, written: int):
    rig = Rig(format=format)
    rig.device.push(rig.out("c", room=64)[0], written)
    assert [done.written for done in rig.queue.reap()] == [written]


@pytest.mark.fault(37, 38)
@every_kind
def test_descriptors_and_tables_that_the_device_overwrites_change_nothing(kind: dict[str, Any]):
    rig = Rig(**kind)
    for cookie in range(3):
        rig.queue.add([(A, 1)], [(A, 10)], cookie)
    rig.queue.publish()
    chains = rig.device.pop_all()
    rig.device.scribble()
    if kind["format"] == "split":
        for word in range(2, 2 + 8):
            rig.avail[word] = 0xFFFF
    for chain in reversed(chains):
        rig.device.push(chain, 10)
    assert [(done.cookie, done.written) for done in rig.queue.reap()] == [(2, 10), (1, 10), (0, 10)]
    assert rig.queue.free == 8
    rig.queue.add([(A, 5)], [(A, 6)], "again")
    rig.queue.publish()
    [chain] = rig.device.pop_all()
    assert [part.length for part in chain.elements] == [5, 6]


@pytest.mark.fault(33)
@every_kind
def test_a_storm_of_indices_ends_with_what_was_in_flight(kind: dict[str, Any]):
    rig = Rig(**kind)
    chains = rig.out(*range(8))
    # A device that completes one more at each fence, and then makes one up.
    rig.device.push(chains.pop(0), 0)
    rig.on_fence = lambda: rig.device.push(chains.pop(0) if chains else 0, 0)
    done: list[Any] = []
    with pytest.raises(RingCorruption):
        for _ in range(20):
            done += rig.queue.reap()
            rig.queue.want_interrupts(True)
    assert len(done) <= 8


@pytest.mark.fault(33)
@both
def test_a_limit_bounds_the_work_of_a_call(format: str):
    rig = Rig(format=format)
    for chain in rig.out(*range(8)):
        rig.device.push(chain, 0)
    assert [done.cookie for done in rig.queue.reap(3)] == [0, 1, 2]
    assert rig.queue.pending() and rig.queue.reap(0) == []
    assert [done.cookie for done in rig.queue.reap(100)] == [3, 4, 5, 6, 7]


@both
def test_a_silent_device_is_no_error_of_the_ring(format: str):
    rig = Rig(format=format)
    rig.out(*range(8))
    assert rig.queue.reap() == [] and rig.queue.in_flight == 8
    with pytest.raises(QueueFull):
        rig.queue.add((), [(A, 1)], None)


# --- leaving --------------------------------------------------------------------------------------------------


@pytest.mark.fault(31)
@every_kind
def test_abandon_returns_what_is_out_in_its_order_and_kills_the_ring(kind: dict[str, Any]):
    rig = Rig(**kind)
    chains = rig.out(1, 2, 3)
    rig.device.push(chains[1], 0)
    assert [done.cookie for done in rig.queue.reap()] == [2]
    rig.queue.add((), [(A, 1)], 4)
    assert rig.queue.abandon() == [1, 3, 4]
    assert rig.queue.abandon() == [] and rig.queue.in_flight == 0
    # A completion of the time before the reset is never delivered.
    rig.device.push(chains[0], 0)
    with pytest.raises(DeviceBroken):
        rig.queue.reap()


@every_kind
def test_close_gives_the_memory_back_once(kind: dict[str, Any]):
    rig = Rig(**kind)
    assert rig.dma.memory.open_blocks()
    rig.queue.close()
    rig.queue.close()
    assert not rig.dma.memory.open_blocks()
    for call in (rig.queue.reap, rig.queue.publish, rig.queue.pending):
        with pytest.raises(Closed):
            call()
    rig.queue.abandon()


@pytest.mark.parametrize("made", [SplitQueue, PackedQueue])
def test_what_the_caller_brought_stays_the_callers(made: Any):
    blocks = [ScriptedDma().alloc(PAGE) for _ in range(3)]
    made(0, 8, *blocks, RingOptions(fence=lambda: None, event_idx=False)).close()
    for block in blocks:
        assert not block.closed
        block.close()


@both
def test_memory_that_runs_out_leaves_nothing_behind(format: str, monkeypatch: pytest.MonkeyPatch):
    for fails in range(4):
        dma = ScriptedDma()
        made = 0
        alloc = dma.alloc

        def limited(size: int, alloc: Any = alloc, fails: int = fails) -> Any:
            nonlocal made
            if made == fails:
                raise MemoryError
            made += 1
            return alloc(size)

        monkeypatch.setattr(dma, "alloc", limited)
        with pytest.raises(MemoryError):
            MAKERS[format](0, 8, dma, RingOptions(fence=lambda: None, indirect=True, event_idx=True))
        assert not dma.memory.open_blocks()


@both
def test_the_module_takes_its_ordering_fence_from_this_machine(format: str, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    monkeypatch.setattr(base, "order_fence", lambda: lambda: calls.append(1))
    rig = Rig(format=format)
    rig.device.push(rig.out("c")[0], 0)
    rig.queue.reap()
    assert calls == [1, 1], "one before what shows the chain, one after what says that it is back"


# --- against a model ------------------------------------------------------------------------------------------


@pytest.mark.spec("SPL-12", "SPL-29", "PKD-17", "PKD-19", "PKD-20")
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        pytest.param(kind, size, id=f"{name_of(kind)}-{size}")
        for kind in rigs()
        for size in ((1, 2, 8, 256) if kind["format"] == "split" else (1, 2, 3, 5, 8, 255, 256))
    ],
)
def test_soak_over_the_wraps(kind: dict[str, Any], size: int):
    """Indices pass 65,536, and rings of any size wrap; every request comes back once, with its own length."""
    # Begins shortly before the wrap of the indices; one whole lap is soaked below.
    rig = Rig(size, **kind, start=65_536 - 40)
    _lap(rig, random.Random(size), 300)
    assert rig.queue.reaped > (65_536 if kind["format"] == "split" else 299)
    if kind["format"] == "packed":
        assert rig.queue.slots_reaped // size > (65_536 - 40) // size, "it wrapped"


def test_soak_in_one_region():
    rig = Rig(16, translated=False, one_region=True, indirect=True, event_idx=True, start=65_536 - 40)
    _lap(rig, random.Random(16), 300)
    rig.queue.close()
    assert not rig.dma.memory.open_blocks()


def _lap(rig: Rig, rng: random.Random, requests: int) -> None:
    queue, device = rig.queue, rig.device
    out: dict[int, tuple[Chain | None, int]] = {}
    number = done = 0
    while done < requests:
        burst = rng.randrange(1, queue.size + 1)
        for _ in range(burst):
            elements = rng.randrange(1, min(4, queue.size) + 1)
            try:
                queue.add((), [(A, 1 + number % 1000)] * elements, number)
            except QueueFull:
                break
            out[number] = (None, (1 + number % 1000) * elements)
            number += 1
        queue.publish()
        chains = device.pop_all()
        rng.shuffle(chains)
        for chain in chains:
            device.push(chain, chain.room)
        for completion in queue.reap():
            assert completion.written == out.pop(completion.cookie)[1]
            done += 1
        assert not out and queue.free == queue.size


@pytest.mark.spec("SPL-29")
def test_soak_of_more_than_65536_requests():
    rig = Rig(256, indirect=True, event_idx=True)
    _lap(rig, random.Random(1), 66_000)
    assert rig.queue.reaped >= 66_000


@pytest.mark.fault(28, 29, 30, 32, 34, 40)
@both
@given(seed=st.integers(0, 1 << 32), event_idx=st.booleans(), indirect=st.booleans())
def test_whatever_the_device_writes_is_refused_or_right(format: str, seed: int, event_idx: bool, indirect: bool):
    """Fuzz: whatever stands where it tells what is used, a completion is one that was posted, or there is none."""
    rig = Rig(format=format, event_idx=event_idx, indirect=indirect)
    rng = random.Random(seed)
    rig.out(*range(rng.randrange(1, 9)))
    out = set(range(8))
    for _ in range(10):
        _scrawl(rig, rng)
        try:
            for done in rig.queue.reap():
                assert done.cookie in out and done.written <= 64
                out.discard(done.cookie)
        except RingCorruption:
            break
    rig.dma.memory.assert_clean()


def _scrawl(rig: Rig, rng: random.Random) -> None:
    """A used element or slot, and the index or event beside it; half of the time near to what could be."""
    device, place, written = rig.device, rng.randrange(8), rng.choice([0, 64, 65])
    if rig.queue.kind == "split":
        device.write_used_element(place, rng.choice([rng.randrange(10), rng.getrandbits(32)]), written)
        device.write_used_idx(rng.choice([rng.randrange(9), rng.getrandbits(16)]))
    else:
        ident = rng.choice([rng.randrange(10), rng.getrandbits(16)])
        used = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED
        device.write_used_slot(place, ident, written, rng.choice([used, 0, rng.getrandbits(16)]))
        device.write_event(rng.getrandbits(16), rng.getrandbits(16))


class Machine(RuleBasedStateMachine):
    """Random adds, publishes and completions in any order, held against lists."""

    posted = Bundle("posted")

    def __init__(self) -> None:
        super().__init__()
        self.rig: Rig | None = None
        self.laid: list[int] = []
        self.taken: dict[int, Chain] = {}
        self.pushed: list[tuple[int, int]] = []
        self.rooms: dict[int, int] = {}
        self.used: dict[int, int] = {}
        self.number = 0
        self.kicked = False

    @precondition(lambda self: self.rig is None)
    @rule(
        format=st.sampled_from(FORMATS),
        power=st.integers(0, 5),
        odd=st.integers(1, 33),
        indirect=st.booleans(),
        event_idx=st.booleans(),
        start=st.sampled_from([0, 65_530, 65_535]),
    )
    def begin(self, format: str, power: int, odd: int, indirect: bool, event_idx: bool, start: int) -> None:
        size = 1 << power if format == "split" else odd
        self.rig = Rig(size, format=format, indirect=indirect, event_idx=event_idx, start=start)
        self.rig.device.ask_for_kicks()

    @precondition(lambda self: self.rig is not None)
    @rule(
        target=posted,
        reads=st.lists(st.integers(1, 5000), max_size=6),
        writes=st.lists(st.integers(1, 5000), max_size=6),
    )
    def add(self, reads: list[int], writes: list[int]) -> int:
        assert self.rig is not None
        queue = self.rig.queue
        count = len(reads) + len(writes)
        self.number += 1
        free = queue.free
        try:
            queue.add([(A, length) for length in reads], [(A, length) for length in writes], self.number)
        except BadChain:
            assert count == 0 or count > queue.size
            return 0
        except QueueFull:
            assert free < count and (free == 0 or not queue._tables)
            return 0
        self.laid.append(self.number)
        self.rooms[self.number] = sum(writes)
        self.used[self.number] = free - queue.free
        return self.number

    @precondition(lambda self: self.rig is not None)
    @rule()
    def publish(self) -> None:
        assert self.rig is not None
        wanted = self.rig.queue.publish()
        if self.laid and not self.rig.device.event_idx:
            assert wanted
        chains = self.rig.device.pop_all()
        self.rig.device.ask_for_kicks()
        assert len(chains) == len(self.laid), "what was published is what was laid down, in order"
        for number, chain in zip(self.laid, chains, strict=True):
            assert chain.room == self.rooms[number]
            self.taken[number] = chain
        if self.laid:
            assert wanted, "a device that emptied its ring and asked is always kicked"
        self.laid.clear()

    @rule(number=consumes(posted), part=st.floats(0, 1))
    def complete(self, number: int, part: float) -> None:
        chain = self.taken.pop(number, None)
        if chain is None or self.rig is None:
            return
        written = int(chain.room * part)
        self.rig.device.push(chain, written)
        self.pushed.append((number, written))

    @precondition(lambda self: self.rig is not None)
    @rule(limit=st.none() | st.integers(0, 4))
    def reap(self, limit: int | None) -> None:
        assert self.rig is not None
        assert self.rig.queue.pending() is bool(self.pushed)
        found = [(done.cookie, done.written) for done in self.rig.queue.reap(limit)]
        expected = self.pushed if limit is None else self.pushed[:limit]
        assert found == expected
        del self.pushed[: len(found)]
        for number, _ in found:
            del self.rooms[number], self.used[number]

    @precondition(lambda self: self.rig is not None)
    @rule(on=st.booleans())
    def interrupts(self, on: bool) -> None:
        assert self.rig is not None
        assert self.rig.queue.want_interrupts(on) is (on and bool(self.pushed))

    @precondition(lambda self: self.rig is not None)
    @invariant()
    def books_balance(self) -> None:
        assert self.rig is not None
        queue = self.rig.queue
        assert queue.free == queue.size - sum(self.used.values())
        assert queue.in_flight == len(self.taken) + len(self.pushed)

    def teardown(self) -> None:
        if self.rig is not None:
            assert set(self.rig.queue.abandon()) == {
                *self.laid,
                *self.taken,
                *(number for number, _ in self.pushed),
            }
            self.rig.queue.close()


TestMachine = pytest.mark.fault(48)(
    pytest.mark.spec("SPL-02", "SPL-09", "SPL-12", "PKD-07", "PKD-08", "PKD-09")(Machine.TestCase)
)
Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
