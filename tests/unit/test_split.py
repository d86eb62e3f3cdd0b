"""The split virtqueue against a strict device, and against one that lies."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from tests.unit.scripted_memory import PAGE, Memory, ScriptedDma
from tests.unit.scripted_ring import Chain, DeviceRing, Lies
from uvirtio.errors import (
    BadChain,
    Closed,
    DeviceBroken,
    MemoryScattered,
    QueueError,
    QueueFull,
    RingCorruption,
    UsageError,
)
from uvirtio.spec import ring
from uvirtio.virtqueue import Virtqueue
from uvirtio.virtqueue import split as split_module
from uvirtio.virtqueue.split import INDIRECT_ENTRIES, SplitQueue, make_split

A = 0x4000_0000
"""Where buffers are said to be, in tests that never touch their bytes."""


class Rig:
    """A queue and the device on its other side; ``trace`` has stores and fences in their order."""

    def __init__(
        self,
        size: int = 8,
        *,
        indirect: bool = False,
        event_idx: bool = False,
        translated: bool = True,
        clamp: bool = False,
        start: int = 0,
        one_region: bool = False,
    ) -> None:
        limit = 1 << 20 if one_region else None
        self.dma = ScriptedDma(translated=translated, contiguous_limit=limit)
        self.fences = 0
        self.queue = make_split(
            3,
            size,
            self.dma,
            fence=self.fence,
            indirect=indirect,
            event_idx=event_idx,
            clamp_used_len=clamp,
            one_region=one_region,
        )
        self.device = DeviceRing(
            self.dma.memory,
            size,
            *self.queue.addresses,
            indirect=indirect,
            event_idx=event_idx,
            lies=Lies(),
            check_buffers=False,
        )
        self.on_fence: Callable[[], None] = lambda: None
        # As if ``start`` chains had gone through already.
        self.queue._laid = self.queue._published = self.queue._reaped = start
        self.queue._avail[1] = start
        self.device.last_avail = self.device.used_idx = start
        self.device._seen_idx = self.device._signalled = start
        self.device.write_used_idx(start)

    def fence(self) -> None:
        self.fences += 1
        self.on_fence()

    def out(self, *cookies: Any, room: int = 64) -> list[Chain]:
        """Post one writable chain for each cookie, and let the device take them."""
        for cookie in cookies:
            self.queue.add((), [(A, room)], cookie)
        self.queue.publish()
        return self.device.pop_all()

    @property
    def avail(self) -> memoryview:
        return self.queue._avail


def rigs(**fixed: bool) -> list[dict[str, bool]]:
    combinations = [{"indirect": i, "event_idx": e} for i in (False, True) for e in (False, True)]
    return [c for c in combinations if all(c[name] == value for name, value in fixed.items())]


def name_of(value: dict[str, bool]) -> str:
    return "+".join(name for name, on in value.items() if on) or "plain"


every_kind = pytest.mark.parametrize("kind", rigs(), ids=name_of)


# --- layout and set-up --------------------------------------------------------------------------------------


@pytest.mark.spec("SPL-01", "SPL-29")
@pytest.mark.parametrize("size", [1 << power for power in range(16)])
def test_areas_are_as_long_and_aligned_as_the_standard_says(size: int):
    dma = ScriptedDma()
    queue = make_split(0, size, dma, fence=lambda: None, indirect=False, event_idx=True)
    assert queue.area_sizes(size) == (16 * size, 6 + 2 * size, 6 + 8 * size)
    desc, driver, device = queue.addresses
    assert (desc % 16, driver % 2, device % 4) == (0, 0, 0)
    for address, length in zip(queue.addresses, queue.area_sizes(size), strict=True):
        assert dma.memory.is_mapped(address, length)
    queue.close()


@pytest.mark.spec("SPL-29")
@pytest.mark.parametrize("size", [-1, 0, 3, 6, 255, 65536])
def test_a_size_that_cannot_be_is_refused(size: int):
    dma = ScriptedDma()
    with pytest.raises(UsageError):
        make_split(0, size, dma, fence=lambda: None, indirect=False, event_idx=False)
    assert not dma.memory.blocks


@pytest.mark.spec("SPL-01")
def test_an_area_that_is_not_aligned_or_not_in_one_piece_is_refused():
    memory = Memory()
    blocks = [ScriptedDma(memory).alloc(PAGE) for _ in range(3)]

    class Crooked:
        def __init__(self, block: Any, runs: list[tuple[int, int]]) -> None:
            self.view, self.size, self._runs = block.view, block.size, runs

        def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
            return self._runs

    for place, bad in ((0, 8), (1, 1), (2, 2)):
        wrong: list[Any] = list(blocks)
        wrong[place] = Crooked(blocks[place], [(0x1000 + bad, 4096)])
        with pytest.raises(QueueError, match="aligned"):
            SplitQueue(0, 8, *wrong, fence=lambda: None, event_idx=False)
        wrong[place] = Crooked(blocks[place], [(0x1000, 8), (0x3000, 8)])
        with pytest.raises(QueueError, match="contiguous"):
            SplitQueue(0, 8, *wrong, fence=lambda: None, event_idx=False)


def test_physical_memory_holds_256_entries_and_no_more_in_a_page():
    queue = make_split(0, 256, ScriptedDma(translated=False), fence=lambda: None, indirect=True, event_idx=True)
    queue.close()
    dma = ScriptedDma(translated=False)
    with pytest.raises(QueueError) as caught:
        make_split(0, 512, dma, fence=lambda: None, indirect=False, event_idx=False)
    assert caught.value.seen and caught.value.remedy
    assert not dma.memory.open_blocks()
    make_split(
        0,
        512,
        ScriptedDma(translated=False, contiguous_limit=1 << 21),
        fence=lambda: None,
        indirect=False,
        event_idx=False,
    )


@pytest.mark.spec("SPL-L02")
@pytest.mark.parametrize(
    ("size", "used", "total"),
    [(2, 4096, 8192), (128, 4096, 8192), (256, 8192, 12288), (1024, 20480, 32768), (32768, 593920, 860160)],
)
def test_the_one_region_of_a_legacy_queue(size: int, used: int, total: int):
    """Sizes by hand: 16q + 6 + 2q up to a page, then 6 + 8q up to a page (2.7.2)."""
    dma = ScriptedDma(translated=False, contiguous_limit=1 << 21)
    queue = make_split(0, size, dma, fence=lambda: None, indirect=False, event_idx=True, one_region=True)
    desc, driver, device = queue.addresses
    assert desc % 4096 == 0
    assert (driver - desc, device - desc) == (16 * size, used)
    (block,) = dma.memory.open_blocks()
    assert block.size == total
    queue.close()
    assert not dma.memory.open_blocks()


def test_a_region_in_pieces_is_refused_and_given_back():
    """Not even the smallest legacy queue fits a page, so scattered memory will not do."""
    dma = ScriptedDma(translated=False)
    with pytest.raises(MemoryScattered) as caught:
        make_split(1, 8, dma, fence=lambda: None, indirect=True, event_idx=False, one_region=True)
    assert caught.value.exit_code == 4
    assert "2 runs" in caught.value.seen
    assert "hugepages" in caught.value.remedy
    assert not dma.memory.open_blocks()


@pytest.mark.spec("SPL-18")
def test_used_flags_start_at_zero_whatever_the_memory_held():
    blocks = [ScriptedDma().alloc(PAGE) for _ in range(3)]
    for block in blocks:
        block.view[:] = b"\xff" * PAGE
    queue = SplitQueue(0, 8, *blocks, fence=lambda: None, event_idx=True)
    for area, end in ((1, 4 + 2 * 8), (2, 4 + 8 * 8)):
        assert bytes(blocks[area].view[:4]) == bytes(4)
        assert bytes(blocks[area].view[end : end + 2]) == bytes(2)
    assert not queue.pending()


def test_it_is_a_virtqueue():
    queue: Virtqueue = Rig().queue
    assert (queue.index, queue.size, queue.free, queue.in_flight, queue.broken) == (3, 8, 8, 0, None)


# --- chains -------------------------------------------------------------------------------------------------


@pytest.mark.spec("SPL-02", "SPL-03", "SPL-07", "SPL-08", "SPL-10")
@every_kind
@pytest.mark.parametrize(("reads", "writes"), [(1, 0), (0, 1), (1, 1), (3, 2), (0, 8), (8, 0), (7, 1)])
def test_the_device_sees_the_chain_that_was_added(kind: dict[str, bool], reads: int, writes: int):
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


@pytest.mark.spec("SPL-07")
def test_a_chain_too_long_for_a_table_goes_into_the_ring():
    rig = Rig(64, indirect=True)
    rig.queue.add((), [(A, 1)] * INDIRECT_ENTRIES, 1)
    rig.queue.add((), [(A, 1)] * (INDIRECT_ENTRIES + 1), 2)
    rig.queue.publish()
    assert [(chain.indirect, len(chain.elements)) for chain in rig.device.pop_all()] == [(True, 16), (False, 17)]


def test_tables_lie_apart_and_never_cross_scattered_pages():
    rig = Rig(64, indirect=True, translated=False)
    for number in range(64):
        rig.queue.add((), [(A + 0x1000 * number + place, place + 1) for place in range(16)], number)
    rig.queue.publish()
    for number, chain in enumerate(rig.device.pop_all()):
        assert [part.address for part in chain.elements] == [A + 0x1000 * number + place for place in range(16)]


@pytest.mark.spec("SPL-04", "SPL-09")
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
    kind: dict[str, bool], readable: list[tuple[int, int]], writable: list[tuple[int, int]]
):
    rig = Rig(**kind)
    before = bytes(rig.queue._desc.cast("B")), bytes(rig.avail.cast("B"))
    with pytest.raises(BadChain) as caught:
        rig.queue.add(readable, writable, None)
    assert caught.value.expected and caught.value.exit_code == 2
    assert before == (bytes(rig.queue._desc.cast("B")), bytes(rig.avail.cast("B")))
    assert rig.queue.free == 8 and not rig.queue.publish()


@pytest.mark.spec("SPL-04", "SPL-09")
def test_the_largest_chains_are_taken():
    rig = Rig()
    rig.queue.add([(0, (1 << 32) - 1)], [((1 << 64) - 1, 1)], 1)
    rig.queue.publish()
    assert rig.device.pop() is not None
    rig = Rig()
    rig.queue.add((), [(A, 1)] * 8, 1)
    rig.queue.publish()
    chain = rig.device.pop()
    assert chain is not None and len(chain.elements) == 8


@every_kind
def test_a_full_queue_says_so_and_changes_nothing(kind: dict[str, bool]):
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


# --- publishing and kicking ---------------------------------------------------------------------------------


class Spy:
    """A view whose stores and loads go into a trace; one item access is one access of the memory."""

    def __init__(self, view: memoryview, name: str, trace: list[tuple[str, str, int]]) -> None:
        self._view, self._name, self._trace = view, name, trace

    def __getitem__(self, place: int) -> int:
        self._trace.append(("load", self._name, place))
        return self._view[place]

    def __setitem__(self, place: int, value: int) -> None:
        self._trace.append(("store", self._name, place))
        self._view[place] = value

    def release(self) -> None:
        self._view.release()


def traced(rig: Rig, *, weak: bool = False) -> list[tuple[str, str, int]]:
    trace: list[tuple[str, str, int]] = []
    queue = rig.queue
    for name in ("_desc", "_avail", "_used", "_elements", "_table_words"):
        view = getattr(queue, name)
        if view is not None:
            setattr(queue, name, Spy(view, name, trace))
    rig.on_fence = lambda: trace.append(("fence", "full", 0))
    if weak:
        queue._order = lambda: trace.append(("fence", "order", 0))
    return trace


@pytest.mark.spec("SPL-25", "SPL-26")
@every_kind
def test_fences_stand_where_they_must(kind: dict[str, bool]):
    rig = Rig(**kind)
    trace = traced(rig, weak=True)
    for cookie in range(3):
        rig.queue.add([(A, 1)], [(A, 1)], cookie)
    assert ("store", "_avail", 1) not in trace, "the index waits for publish"
    rig.queue.publish()
    index = trace.index(("store", "_avail", 1))
    assert trace[index - 1] == ("fence", "order", 0), "descriptors and ring before the index"
    assert trace[index + 1] == ("fence", "full", 0), "the index before the device's wish"
    wish = 2 + 4 * 8 if kind["event_idx"] else 0
    assert trace[index + 2 :] == [("load", "_used", wish)]
    assert sum(entry[0] == "store" and entry[1:] == ("_avail", 1) for entry in trace) == 1, "one index store"
    assert sum(entry[1] == "full" for entry in trace) == 1, "one fence for the whole batch"


@pytest.mark.spec("SPL-25")
def test_where_stores_stay_in_order_no_fence_precedes_the_index():
    rig = Rig()
    trace = traced(rig)
    rig.queue._order = None
    rig.queue.add((), [(A, 1)], 0)
    rig.queue.publish()
    assert [entry[0] for entry in trace[:4]] == ["store"] * 4


def test_the_index_is_read_before_the_elements_and_never_the_descriptors():
    rig = Rig(indirect=True)
    rig.out("a", "b")
    for head in list(rig.device.out):
        rig.device.push(head, 0)
    trace = traced(rig, weak=True)
    assert len(rig.queue.reap()) == 2
    assert trace[:2] == [("load", "_used", 1), ("fence", "order", 0)]
    assert not [entry for entry in trace if entry[1] in ("_desc", "_avail", "_table_words")]
    assert len([entry for entry in trace if entry[1] == "_elements"]) == 4, "each word of an element once"


@pytest.mark.spec("SPL-20", "SPL-21", "SPL-19")
def test_without_event_idx_flags_decide_and_avail_event_is_ignored():
    rig = Rig(64)
    for flags, wanted in ((0, True), (1, False), (0, True)):
        for event in (0, 1, 0x7FFF, 0xFFFF):
            rig.device.write_used_flags(flags)
            rig.device.write_avail_event(event)
            rig.queue.add((), [(A, 1)], None)
            assert rig.queue.publish() is wanted


@pytest.mark.spec("SPL-22")
def test_with_event_idx_used_flags_mean_nothing():
    rig = Rig(64, event_idx=True)
    for flags in (0, 1, 0xFFFF):
        rig.device.write_used_flags(flags)
        rig.device.write_avail_event(rig.queue._published)
        rig.queue.add((), [(A, 1)], None)
        assert rig.queue.publish()
        rig.device.write_avail_event(rig.queue._published + 100)
        rig.queue.add((), [(A, 1)], None)
        assert not rig.queue.publish()


@pytest.mark.spec("SPL-23", "SPL-24")
@pytest.mark.parametrize("start", [0, 5, 32766, 65530, 65535])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_with_event_idx_a_kick_comes_exactly_when_the_index_passes_avail_event(start: int, batch: int):
    for distance in range(-9, 10):
        rig = Rig(event_idx=True, start=start)
        queue = rig.queue
        rig.device.write_avail_event(start + distance)
        for _ in range(batch):
            queue.add((), [(A, 1)], None)
        # An entry was placed at the index avail_event.
        assert queue.publish() is (0 <= distance < batch)


@pytest.mark.spec("SPL-23")
@given(old=st.integers(0, 0xFFFF), moved=st.integers(0, ring.MAX_SIZE), event=st.integers(0, 0xFFFF))
def test_need_event_is_the_range_test(old: int, moved: int, event: int):
    passed = any((old + step) & 0xFFFF == event for step in range(moved)) if moved < 64 else None
    answer = ring.need_event(event, (old + moved) & 0xFFFF, old)
    assert answer is ((event - old) & 0xFFFF < moved)
    if passed is not None:
        assert answer is passed


def test_garbage_in_avail_event_costs_kicks_at_most():
    rig = Rig(256, event_idx=True)
    rng = random.Random(7)
    for number in range(500):
        rig.device.write_avail_event(rng.randrange(65536))
        rig.queue.add((), [(A, 1)], number)
        rig.queue.publish()
        for chain in rig.device.pop_all():
            rig.device.push(chain, 1)
        assert [done.cookie for done in rig.queue.reap()] == [number]


def test_publishing_nothing_wants_no_kick_and_touches_nothing():
    rig = Rig()
    trace = traced(rig)
    assert not rig.queue.publish() and not trace


@pytest.mark.spec("SPL-12")
@every_kind
def test_the_index_only_ever_grows(kind: dict[str, bool]):
    rig = Rig(**kind)
    seen: list[int] = []
    rig.on_fence = lambda: seen.append(rig.avail[1])
    for number in range(50):
        rig.queue.add((), [(A, 1)] * (1 + number % 3), number)
        rig.queue.publish()
        for chain in rig.device.pop_all():
            rig.device.push(chain, 0)
        rig.queue.reap()
    assert seen == sorted(seen) and seen[-1] == 50


# --- interrupts ---------------------------------------------------------------------------------------------


@pytest.mark.spec("SPL-13")
def test_without_event_idx_flags_are_zero_or_one():
    rig = Rig()
    for on in (True, False, True, False):
        rig.queue.want_interrupts(on)
        assert rig.avail[0] == (0 if on else 1)
        rig.device.push(rig.out("c")[0], 0)
        assert rig.device.wants_interrupt() is on
        rig.queue.reap()


@pytest.mark.spec("SPL-14")
@pytest.mark.parametrize("start", [0, 65533])
def test_with_event_idx_flags_stay_zero_and_used_event_speaks(start: int):
    rig = Rig(event_idx=True, start=start)
    for on in (True, False, False, True, True, False):
        rig.queue.want_interrupts(on)
        for _ in range(5):
            rig.device.push(rig.out("c")[0], 0)
            assert rig.avail[0] == 0
            assert rig.device.wants_interrupt() is on
            assert len(rig.queue.reap()) == 1


def test_interrupts_that_are_off_stay_off_for_65535_entries():
    rig = Rig(256, event_idx=True)
    rig.queue.want_interrupts(False)
    left = 65_535
    while left:
        chains = rig.out(*range(min(left, 256)))
        for chain in chains:
            rig.device.push(chain, 0)
        assert not rig.device.wants_interrupt()
        left -= len(rig.queue.reap())


@pytest.mark.spec("SPL-15")
@every_kind
def test_an_interrupt_for_nothing_is_nothing(kind: dict[str, bool]):
    rig = Rig(**kind)
    rig.out("c")
    for _ in range(3):
        assert not rig.queue.pending() and rig.queue.reap() == []


@pytest.mark.spec("SPL-28")
@every_kind
def test_what_comes_while_interrupts_go_on_is_seen(kind: dict[str, bool]):
    rig = Rig(**kind)
    rig.queue.want_interrupts(False)
    [chain] = rig.out("late")
    # The device completes after its last look at our wish, and before we look at the ring.
    rig.on_fence = lambda: rig.device.out and rig.device.push(chain, 0)
    assert rig.queue.want_interrupts(True)
    assert [done.cookie for done in rig.queue.reap()] == ["late"]
    assert not rig.queue.want_interrupts(True)


@pytest.mark.spec("SPL-28")
def test_what_comes_while_reaping_is_reaped_or_announced():
    rig = Rig(event_idx=True)
    first, second = rig.out(1, 2)
    rig.device.push(first, 0)
    rig.device.wants_interrupt()
    rig.on_fence = lambda: rig.device.out and rig.device.push(second, 0)
    assert [done.cookie for done in rig.queue.reap()] == [1, 2]


# --- used elements that lie (2.7.8) -------------------------------------------------------------------------


def corrupt(rig: Rig, seen: object = None) -> RingCorruption:
    """The next reap fails, and everything after it at once."""
    with pytest.raises(RingCorruption) as caught:
        rig.queue.reap()
    error = caught.value
    assert error.expected and error.remedy
    if seen is not None:
        assert error.seen == seen
    assert rig.queue.broken
    for call in (
        lambda: rig.queue.reap(),
        lambda: rig.queue.add((), [(A, 1)], None),
        lambda: rig.queue.publish(),
        lambda: rig.queue.pending(),
        lambda: rig.queue.want_interrupts(True),
    ):
        with pytest.raises(DeviceBroken):
            call()
    rig.dma.memory.assert_clean()
    return error


@pytest.mark.parametrize("lie", [8, 9, 0x1_0000, 0x1_0003, 0x8000_0000, 0xFFFF_FFFF])
@every_kind
def test_a_used_id_beyond_the_queue(kind: dict[str, bool], lie: int):
    rig = Rig(**kind)
    [chain] = rig.out("c")
    rig.device.lies.used_id = lambda head: lie if lie < 0x1_0000 else lie & ~0xFFFF | head
    rig.device.push(chain, 0)
    corrupt(rig)
    assert rig.queue.abandon() == ["c"]


def test_a_used_id_with_valid_low_bits_is_compared_in_full():
    rig = Rig()
    [chain] = rig.out("c")
    rig.device.lies.used_id = lambda head: 0x1_0000 + head
    rig.device.push(chain, 0)
    corrupt(rig, 0x1_0000 + chain.head)


@every_kind
def test_a_used_id_of_a_free_descriptor(kind: dict[str, bool]):
    rig = Rig(**kind)
    [chain] = rig.out("c")
    rig.device.lies.used_id = lambda head: (head + 1) % 8
    rig.device.push(chain, 0)
    corrupt(rig, (chain.head + 1) % 8)


def test_a_used_id_of_a_member_that_is_no_head():
    rig = Rig()
    rig.queue.add([(A, 1)], [(A, 1)], "c")
    rig.queue.publish()
    [chain] = rig.device.pop_all()
    member = chain.descriptors[1]
    rig.device.lies.used_id = lambda head: member
    rig.device.push(chain, 0)
    corrupt(rig, member)


@every_kind
def test_a_used_id_that_was_added_and_not_published(kind: dict[str, bool]):
    rig = Rig(**kind)
    [chain] = rig.out("published")
    rig.queue.add((), [(A, 1)], "not yet")
    hidden = rig.avail[2 + 1]
    rig.device.lies.used_id = lambda head: hidden
    rig.device.push(chain, 0)
    corrupt(rig, hidden)
    assert rig.queue.abandon() == ["published", "not yet"]


@every_kind
def test_the_same_completion_twice(kind: dict[str, bool]):
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
    rig.device.push(second, 0)
    rig.device.write_used_element(1, first.head, 0)
    corrupt(rig, first.head)


@pytest.mark.parametrize("out", [0, 1, 3, 8])
@pytest.mark.parametrize("start", [0, 65530, 65535])
@every_kind
def test_a_used_index_beyond_what_is_in_flight(kind: dict[str, bool], start: int, out: int):
    for jump in (out + 1, out + 2, 9, 100, 32768, 65534, 65535):
        rig = Rig(**kind, start=start)
        queue = rig.queue
        if out:
            rig.out(*range(out))
        rig.device.write_used_idx(start + jump)
        assert queue.pending()
        corrupt(rig, (start + jump) & 0xFFFF)


@every_kind
def test_more_written_than_there_was_room(kind: dict[str, bool]):
    for written in (65, 128, 0xFFFF_FFFF):
        rig = Rig(**kind)
        rig.queue.add([(A, 100)], [(A, 32), (A, 32)], "c")
        rig.queue.publish()
        rig.device.push(rig.device.pop_all()[0], written)
        corrupt(rig, written)


def test_the_quirk_clamps_and_counts():
    rig = Rig(clamp=True)
    rig.device.push(rig.out("c", room=64)[0], 65)
    assert [done.written for done in rig.queue.reap()] == [64]
    assert rig.queue.findings == {"used-length-clamped": 1}


@every_kind
def test_a_length_on_a_chain_without_room_is_noted_and_harmless(kind: dict[str, bool]):
    rig = Rig(**kind)
    rig.queue.add([(A, 1024)], (), "pfns")
    rig.queue.publish()
    rig.device.push(rig.device.pop_all()[0], 1024)
    assert [(done.cookie, done.written) for done in rig.queue.reap()] == [("pfns", 0)]
    assert rig.queue.findings == {"used-length-on-read-only-chain": 1}


@pytest.mark.spec("SPL-16", "SPL-17")
@pytest.mark.parametrize("written", [0, 1, 63, 64])
def test_the_length_is_handed_on_as_it_is_when_it_can_be(written: int):
    rig = Rig()
    rig.device.push(rig.out("c", room=64)[0], written)
    assert [done.written for done in rig.queue.reap()] == [written]


@every_kind
def test_descriptors_and_tables_that_the_device_overwrites_change_nothing(kind: dict[str, bool]):
    rig = Rig(**kind)
    for cookie in range(3):
        rig.queue.add([(A, 1)], [(A, 10)], cookie)
    rig.queue.publish()
    chains = rig.device.pop_all()
    rig.device.scribble()
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


@every_kind
def test_a_storm_of_indices_ends_with_what_was_in_flight(kind: dict[str, bool]):
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


def test_a_limit_bounds_the_work_of_a_call():
    rig = Rig()
    for chain in rig.out(*range(8)):
        rig.device.push(chain, 0)
    assert [done.cookie for done in rig.queue.reap(3)] == [0, 1, 2]
    assert rig.queue.pending() and rig.queue.reap(0) == []
    assert [done.cookie for done in rig.queue.reap(100)] == [3, 4, 5, 6, 7]


def test_a_silent_device_is_no_error_of_the_ring():
    rig = Rig()
    rig.out(*range(8))
    assert rig.queue.reap() == [] and rig.queue.in_flight == 8
    with pytest.raises(QueueFull):
        rig.queue.add((), [(A, 1)], None)


# --- leaving ------------------------------------------------------------------------------------------------


@every_kind
def test_abandon_returns_what_is_out_in_its_order_and_kills_the_ring(kind: dict[str, bool]):
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
def test_close_gives_the_memory_back_once(kind: dict[str, bool]):
    rig = Rig(**kind)
    assert rig.dma.memory.open_blocks()
    rig.queue.close()
    rig.queue.close()
    assert not rig.dma.memory.open_blocks()
    for call in (rig.queue.reap, rig.queue.publish, rig.queue.pending):
        with pytest.raises(Closed):
            call()
    rig.queue.abandon()


def test_what_the_caller_brought_stays_the_callers():
    blocks = [ScriptedDma().alloc(PAGE) for _ in range(3)]
    SplitQueue(0, 8, *blocks, fence=lambda: None, event_idx=False).close()
    for block in blocks:
        assert not block.closed
        block.close()


def test_memory_that_runs_out_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
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
            make_split(0, 8, dma, fence=lambda: None, indirect=True, event_idx=True)
        assert not dma.memory.open_blocks()


def test_the_module_takes_its_ordering_fence_from_this_machine(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    monkeypatch.setattr(split_module, "order_fence", lambda: lambda: calls.append(1))
    rig = Rig()
    rig.device.push(rig.out("c")[0], 0)
    rig.queue.reap()
    assert calls == [1, 1], "one before the index, one after the used index"


# --- against a model ----------------------------------------------------------------------------------------


@pytest.mark.spec("SPL-12", "SPL-29")
@pytest.mark.parametrize("size", [1, 2, 8, 256])
@every_kind
def test_soak_over_the_wrap_of_the_indices(kind: dict[str, bool], size: int):
    """The indices pass 65,536; every request comes back once, with its own length."""
    # Begins shortly before the wrap; one whole lap is soaked below.
    rig = Rig(size, **kind, start=65_536 - 40)
    _lap(rig, random.Random(size), 300)
    assert rig.queue._reaped > 65_536


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
    assert rig.queue._reaped >= 66_000


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
        power=st.integers(0, 5),
        indirect=st.booleans(),
        event_idx=st.booleans(),
        start=st.sampled_from([0, 65_530, 65_535]),
    )
    def begin(self, power: int, indirect: bool, event_idx: bool, start: int) -> None:
        self.rig = Rig(1 << power, indirect=indirect, event_idx=event_idx, start=start)
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


TestMachine = pytest.mark.spec("SPL-02", "SPL-09", "SPL-12")(Machine.TestCase)
Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(seed=st.integers(0, 1 << 32), event_idx=st.booleans(), indirect=st.booleans())
def test_random_used_elements_are_refused_or_right(seed: int, event_idx: bool, indirect: bool):
    """Fuzz: whatever stands in the used ring, a completion is one that was posted, or there is none."""
    rig = Rig(event_idx=event_idx, indirect=indirect)
    rng = random.Random(seed)
    rig.out(*range(rng.randrange(1, 9)))
    out = set(range(8))
    for _ in range(10):
        rig.device.write_used_element(
            rng.randrange(8), rng.choice([rng.randrange(10), rng.getrandbits(32)]), rng.choice([0, 64, 65])
        )
        rig.device.write_used_idx(rng.choice([rng.randrange(9), rng.getrandbits(16)]))
        try:
            for done in rig.queue.reap():
                assert done.cookie in out and done.written <= 64
                out.discard(done.cookie)
        except RingCorruption:
            break
    rig.dma.memory.assert_clean()
