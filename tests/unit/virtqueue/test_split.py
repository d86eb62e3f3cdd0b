"""The split virtqueue against a strict device, and against one that lies."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.ring_rigs import A, Rig, corrupt, name_of, rigs, traced
from uvirtio.errors import MemoryScattered, QueueError, RingCorruption
from uvirtio.scripted.memory import PAGE, ScriptedDma
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.split import SplitQueue, make_split

every_kind = pytest.mark.parametrize("kind", rigs("split"), ids=name_of)


# --- layout and set-up --------------------------------------------------------------------------------------


def test_physical_memory_holds_256_entries_and_no_more_in_a_page():
    queue = make_split(
        0, 256, ScriptedDma(translated=False), RingOptions(lambda: None, indirect=True, event_idx=True)
    )
    queue.close()
    dma = ScriptedDma(translated=False)
    with pytest.raises(QueueError) as caught:
        make_split(0, 512, dma, RingOptions(lambda: None, event_idx=False))
    assert caught.value.seen and caught.value.remedy
    assert not dma.memory.open_blocks()
    make_split(
        0,
        512,
        ScriptedDma(translated=False, contiguous_limit=1 << 21),
        RingOptions(lambda: None, event_idx=False),
    )


@pytest.mark.spec("SPL-L02")
@pytest.mark.parametrize(
    ("size", "used", "total"),
    [(2, 4096, 8192), (128, 4096, 8192), (256, 8192, 12288), (1024, 20480, 32768), (32768, 593920, 860160)],
)
def test_the_one_region_of_a_legacy_queue(size: int, used: int, total: int):
    """Sizes by hand: 16q + 6 + 2q up to a page, then 6 + 8q up to a page (2.7.2)."""
    dma = ScriptedDma(translated=False, contiguous_limit=total)  # it may fill one run to its end
    queue = make_split(0, size, dma, RingOptions(lambda: None, event_idx=True, one_region=True))
    desc, driver, device = queue.addresses
    assert desc % 4096 == 0
    assert (driver - desc, device - desc) == (16 * size, used)
    (block,) = dma.memory.open_blocks()
    assert block.size == total
    queue.close()
    assert not dma.memory.open_blocks()


@pytest.mark.parametrize("lucky", [False, True])
def test_a_region_in_pieces_is_refused_and_given_back(monkeypatch: pytest.MonkeyPatch, lucky: bool):
    """Not even the smallest legacy queue fits a page, so scattered memory will not do; nor will luck."""
    dma = ScriptedDma(translated=False)
    if lucky:
        monkeypatch.setattr(dma.memory, "take_frames", lambda count, run=1: list(range(0x90000, 0x90000 + count)))
    with pytest.raises(MemoryScattered) as caught:
        make_split(1, 8, dma, RingOptions(lambda: None, indirect=True, event_idx=False, one_region=True))
    assert caught.value.exit_code == 4
    assert "4096 bytes" in caught.value.seen
    assert "hugepages" in caught.value.remedy
    assert not dma.memory.open_blocks()


def test_a_region_that_was_promised_in_one_piece_and_is_not():
    dma = ScriptedDma(translated=False)

    class Promising:
        """Says more than it keeps: the pool ran out between the two."""

        contiguous_limit = 1 << 21
        alloc = staticmethod(dma.alloc)

    promising: Any = Promising()
    with pytest.raises(MemoryScattered) as caught:
        make_split(1, 8, promising, RingOptions(lambda: None, indirect=True, event_idx=False, one_region=True))
    assert "2 runs" in caught.value.seen
    assert not dma.memory.open_blocks()


@pytest.mark.spec("SPL-18")
def test_used_flags_start_at_zero_whatever_the_memory_held():
    blocks = [ScriptedDma().alloc(PAGE) for _ in range(3)]
    for block in blocks:
        block.view[:] = b"\xff" * PAGE
    queue = SplitQueue(0, 8, *blocks, RingOptions(lambda: None, event_idx=True))
    for area, end in ((1, 4 + 2 * 8), (2, 4 + 8 * 8)):
        assert bytes(blocks[area].view[:4]) == bytes(4)
        assert bytes(blocks[area].view[end : end + 2]) == bytes(2)
    assert not queue.pending()


# --- publishing and kicking ---------------------------------------------------------------------------------


@pytest.mark.spec("SPL-25", "SPL-26")
@every_kind
def test_fences_stand_where_they_must(kind: dict[str, Any]):
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
    assert not [entry for entry in trace if entry[1] in ("_desc", "_avail", "_ring", "_table_words")]
    assert len([entry for entry in trace if entry[1] == "_elements"]) == 4, "each word of an element once"


def test_a_table_that_has_the_chain_is_not_written_again_and_any_other_is():
    rig = Rig(indirect=True)
    first, second = (((A, 16),), ((A + 64, 8), (A + 128, 1))), (((A + 256, 16),), ((A + 512, 4),))
    changing = [(A + 1024, 16), (A + 2048, 8)]

    def through(readable: Any, writable: Any) -> None:
        rig.queue.add(readable, writable, "x")
        rig.queue.publish()
        (chain,) = rig.device.pop_all()
        assert [(one.address, one.length) for one in chain.elements] == [*readable, *writable]
        rig.device.push(chain, 0)
        assert len(rig.queue.reap()) == 1

    trace = traced(rig, weak=True)
    for chain, written in (
        *((first, 6), (first, 0), (second, 4), (first, 6), (first, 0)),
        *(((first[0], second[1]), 4), (second, 4), (first, 6)),
    ):
        before = len(trace)
        through(*chain)
        stores = [entry for entry in trace[before:] if entry[:2] == ("store", "_table_words")]
        assert len(stores) == written
    for length in (8, 9):  # a list may be another one each time
        changing[1] = (A + 2048, length)
        through(changing, ())
    through(first[0], [*first[1]])
    through(*first)


def test_single_chains_are_noted_in_every_eighth_lap_and_found_in_any():
    rig, size = Rig(), 8
    trace = traced(rig)

    def through(chain: tuple[tuple[int, int], ...], count: int) -> int:
        """How many of so many chains, one after the other, were written into their descriptor."""
        before = len(trace)
        for _ in range(count):
            rig.queue.add((), chain, "x")
            rig.queue.publish()
            (popped,) = rig.device.pop_all()
            assert [(one.address, one.length) for one in popped.elements] == [*chain]
            rig.device.push(popped, chain[0][1])
            assert [*rig.queue.reap()] == [("x", chain[0][1])]
        return sum(entry[:2] == ("store", "_desc") for entry in trace[before:]) // 2

    first, second, third = (((A + at, 16 + at),) for at in (0, 32, 64))
    assert through(first, size) == 1
    assert through(first, 3 * size) == 0, "noted in the first lap, found in all"
    assert through(second, 4 * size) == 4 * size
    assert through(second, size) == 1, "noted in the ninth"
    assert (through(third, 2), through(second, 2), through(second, 5 * size)) == (2, 2, 5 * size), (
        "it was replaced"
    )
    for _ in range(20):  # the same addresses, but a list, or a new tuple
        assert through((*[(A, 4)],), 1) == 1


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
        rig.device.write_avail_event(rig.queue.published)
        rig.queue.add((), [(A, 1)], None)
        assert rig.queue.publish()
        rig.device.write_avail_event(rig.queue.published + 100)
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


@pytest.mark.spec("SPL-12")
@every_kind
def test_the_index_only_ever_grows(kind: dict[str, Any]):
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


# --- used elements that lie (2.7.8) -------------------------------------------------------------------------


@pytest.mark.fault(28)
def test_a_used_id_with_valid_low_bits_is_compared_in_full():
    rig = Rig()
    [chain] = rig.out("c")
    rig.device.lies.used_id = lambda head: 0x1_0000 + head
    rig.device.push(chain, 0)
    corrupt(rig, 0x1_0000 + chain.head)


@pytest.mark.fault(29)
def test_a_used_id_of_a_member_that_is_no_head():
    rig = Rig()
    rig.queue.add([(A, 1)], [(A, 1)], "c")
    rig.queue.publish()
    [chain] = rig.device.pop_all()
    member = chain.descriptors[1]
    rig.device.lies.used_id = lambda head: member
    rig.device.push(chain, 0)
    corrupt(rig, member)


@pytest.mark.fault(32)
@pytest.mark.parametrize("out", [0, 1, 3, 8])
@pytest.mark.parametrize("start", [0, 65530, 65535])
@every_kind
def test_a_used_index_beyond_what_is_in_flight(kind: dict[str, Any], start: int, out: int):
    for jump in (out + 1, out + 2, 9, 100, 32768, 65534, 65535):
        rig = Rig(**kind, start=start)
        queue = rig.queue
        if out:
            rig.out(*range(out))
        rig.device.write_used_idx(start + jump)
        assert queue.pending()
        corrupt(rig, (start + jump) & 0xFFFF)


@pytest.mark.fault(32)
@every_kind
def test_an_index_beyond_what_is_in_flight_announces_nothing(kind: dict[str, Any]):
    rig = Rig(**kind, start=65535)
    rig.out(1, 2)
    rig.device.write_used_idx(65535 + 2)
    assert rig.queue.announced() == 2
    rig.device.write_used_idx(65535 + 3)
    with pytest.raises(RingCorruption):
        rig.queue.announced()
    assert rig.queue.broken


@pytest.mark.spec("SPL-25")
@pytest.mark.parametrize(("event_idx", "wanted"), [(False, True), (True, False), (False, False), (True, True)])
def test_only_who_wants_the_next_interrupt_asks_for_it_and_looks_again(event_idx: bool, wanted: bool):
    rig = Rig(8, event_idx=event_idx)
    for chain in rig.out(1, 2):
        rig.device.push(chain, 0)
    rig.queue.want_interrupts(wanted)
    before = rig.fences, rig.visible()
    asked = event_idx and wanted
    rig.queue.reaped += 1
    assert rig.queue.took() == int(asked)
    assert ((rig.fences, rig.visible()) == before) is not asked


def test_what_was_taken_before_an_invalid_index_is_not_lost():
    """With EVENT_IDX it looks again: what it has taken by then is among what it gives up."""
    rig = Rig(event_idx=True)
    first, _ = rig.out("taken", "out")
    rig.device.push(first, 0)
    rig.on_fence = lambda: rig.device.write_used_idx(7)
    with pytest.raises(RingCorruption):
        rig.queue.reap()
    assert rig.queue.abandon() == ["taken", "out"]
