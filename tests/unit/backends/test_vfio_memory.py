"""DMA memory over a container that keeps books: what is mapped where, and that all of it is taken back."""

from __future__ import annotations

import itertools
import mmap
from array import array
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.backends import vfio_memory
from uvirtio.backends.pages import merged
from uvirtio.backends.vfio import IovaAllocator, container
from uvirtio.backends.vfio_memory import VfioDmaSpace
from uvirtio.errors import Closed, MemlockExceeded, Misuse, OperationFailed, PagemapHidden, PageMoved
from uvirtio.host.pagemap import Pagemap, has_zero
from uvirtio.host.pages import CPU_PAGE as PAGE
from uvirtio.host.pages import HUGE_PAGE
from uvirtio.host.roots import Roots
from uvirtio.spec.page import VIRTIO_PAGE

RANGES = [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1)]
PRESENT = 1 << 63

PER_PAGE = PAGE // VIRTIO_PAGE


class BlockTable:
    """The container: maps by device address, refusing what the kernel refuses."""

    def __init__(self):
        self.maps: dict[int, tuple[int, int]] = {}
        self.refuse_over: int | None = None
        self.fail_at: int | None = None
        self.calls = 0

    def map(self, vaddr, iova, size, *, read=True, write=True):
        self.calls += 1
        assert size and not (iova | size) % PAGE
        assert not vaddr % mmap.ALLOCATIONGRANULARITY  # the kernel's own page, also where a larger one is played
        if self.fail_at is not None and self.calls == self.fail_at:
            raise MemlockExceeded("no more", remedy="-")
        if self.refuse_over is not None and size > self.refuse_over:
            raise OperationFailed("too large")
        for start, (_, length) in self.maps.items():
            assert iova + size <= start or start + length <= iova, "overlap"
        self.maps[iova] = (vaddr, size)

    def unmap(self, iova, size):
        inside = [s for s in self.maps if iova <= s < iova + size]
        assert sum(self.maps[s][1] for s in inside) == size
        for start in inside:
            del self.maps[start]


class FakePagemap:
    """Frame numbers by our own rule in place of the kernel's file."""

    rule = staticmethod(lambda page: (0x100_0000 + page * PAGE % 0x1000_0000) // PAGE)

    def __init__(self, roots):
        pass

    def pfns(self, vaddr, size):
        frames = [self.rule(vaddr // PAGE + i) for i in range(size // PAGE)]
        return [frame * PER_PAGE + part for frame in frames for part in range(PER_PAGE)]

    def close(self):
        pass


@pytest.fixture
def books():
    return BlockTable()


@pytest.fixture
def make(books, monkeypatch):
    made = []

    def space(translated, rule=None):
        if rule is not None:
            monkeypatch.setattr(FakePagemap, "rule", staticmethod(rule))
        monkeypatch.setattr(vfio_memory, "Pagemap", FakePagemap)
        iova = IovaAllocator(RANGES)
        it = VfioDmaSpace(books, iova, translated=translated)
        made.append((it, iova))
        return it

    yield space
    for it, iova in made:
        it.close()
        assert iova.taken == {}
    assert books.maps == {}


def test_translated_memory_is_one_run_at_an_address_of_ours(make, books):
    space = make(True)
    block = space.alloc(3 * PAGE - 5)
    assert (block.size, block.contiguous) == (3 * PAGE, True)
    ((start, length),) = block.segments(0, block.size)
    assert books.maps == {start: (block.vaddr, length)}
    assert start != 0
    assert block.segments(PAGE + 1, 2) == [(start + PAGE + 1, 2)]
    assert bytes(block.view) == bytes(3 * PAGE)


def test_the_blocks_address_is_where_its_view_is(make):
    import ctypes

    block = make(True).alloc(PAGE)
    block.view[5] = 0xAB
    assert ctypes.c_uint8.from_address(block.vaddr + 5).value == 0xAB


@pytest.mark.fault(24)
def test_physical_memory_is_pinned_first_and_then_mapped_at_itself(make, books):
    # Frames in pairs: two that touch, then a gap.
    space = make(False, rule=lambda page: 0x100 + page % 0x1000 // 2 * 4 + page % 2)
    block = space.alloc(PAGE)
    order = list(books.maps)
    assert order[0] > 0xFEF0_0000, "the scratch address keeps away from RAM"
    assert order[1] == block.pfns()[0] << 12
    assert block.segments(0, PAGE) == [(order[1], PAGE)]
    assert {vaddr for vaddr, _ in books.maps.values()} == {block.vaddr}


def test_physical_memory_in_pieces_merges_what_touches(make, books):
    space = make(False, rule=lambda page: 0x100 + page % 0x1000 // 2 * 4 + page % 2)
    assert space.contiguous_limit == PAGE  # the huge page that was tried is none
    block = space.alloc(6 * PAGE)
    assert not block.contiguous
    runs = block.segments(0, block.size)
    assert sum(length for _, length in runs) == block.size
    assert all(length <= 2 * PAGE for _, length in runs)
    assert len(books.maps) == 1 + len(runs)
    for offset in (0, 1, PAGE - 1, PAGE, 3 * PAGE + 7):
        address = block.pfns()[offset // VIRTIO_PAGE] * VIRTIO_PAGE + offset % VIRTIO_PAGE
        assert block.segments(offset, 1) == [(address, 1)]


def test_a_huge_page_serves_rings_that_need_more_than_a_page(make, books):
    space = make(False)
    assert space.contiguous_limit == HUGE_PAGE
    block = space.alloc(3 * PAGE)
    assert block.contiguous
    assert block.size == 3 * PAGE
    assert sum(size for _, size in books.maps.values()) == 6 * PAGE, "only what was asked for is pinned"


@pytest.mark.parametrize("pool", [True, False])
def test_the_pool_is_asked_where_no_transparent_huge_page_comes(make, books, monkeypatch, pool):
    asked = []

    def pooled():
        asked.append("pool")
        return vfio_memory.ordinary(HUGE_PAGE, small_pages=True) if pool else None

    monkeypatch.setattr(vfio_memory, "_transparent", lambda: None)
    monkeypatch.setattr(vfio_memory, "_pooled", pooled)
    space = make(False)
    assert space.contiguous_limit == (HUGE_PAGE if pool else PAGE)
    assert space.alloc(2 * PAGE).size == 2 * PAGE
    assert asked == ["pool"], "what was tried is kept for the first who needs it"


def test_pinned_memory_takes_one_map(make, books):
    block = make(False).pin(100 * PAGE)
    assert len(books.maps) == 1
    assert len(block.pfns()) == 100 * PER_PAGE


def test_a_map_that_is_refused_for_its_size_is_made_in_pieces(make, books, monkeypatch):
    monkeypatch.setattr(vfio_memory, "MAP_PIECE", 4 * PAGE)
    books.refuse_over = 4 * PAGE
    block = make(True).alloc(10 * PAGE)
    assert sorted(size for _, size in books.maps.values()) == [2 * PAGE, 4 * PAGE, 4 * PAGE]
    assert len(block.segments(0, block.size)) == 1


def test_pieces_that_were_mapped_are_taken_back_when_a_later_one_is_refused(make, books, monkeypatch):
    monkeypatch.setattr(vfio_memory, "MAP_PIECE", 4 * PAGE)
    books.refuse_over = 4 * PAGE
    books.fail_at = 3  # the whole, the first piece, the second
    with pytest.raises(MemlockExceeded):
        make(True).alloc(10 * PAGE)
    assert books.maps == {}


def test_a_page_that_moves_while_it_is_being_mapped_is_refused(make, books):
    frames = itertools.count(0x100)
    space = make(False, rule=lambda page: next(frames) * 2)  # never the same answer twice
    with pytest.raises(PageMoved):
        space.alloc(PAGE)
    assert books.maps == {}


@pytest.mark.parametrize("translated", [True, False])
def test_a_refused_map_leaves_nothing(make, books, translated):
    space = make(translated, rule=lambda page: 0x100 + page % 0x1000 * 2)
    for failing in range(1, 2 if translated else 6):
        books.calls, books.fail_at = 0, failing
        with pytest.raises(MemlockExceeded):
            space.alloc(4 * PAGE)
        assert books.maps == {}
    books.fail_at = None
    space.alloc(4 * PAGE)


def test_a_physical_address_that_the_iommu_reserves_is_refused(make, books):
    space = make(False, rule=lambda page: 0xFEE0_0000 // PAGE)
    with pytest.raises(OperationFailed, match="cannot be mapped to itself"):
        space.alloc(PAGE)
    assert books.maps == {}


def test_segments_outside_the_block(make):
    block = make(True).alloc(PAGE)
    for offset, length in ((-1, 1), (0, PAGE + 1), (PAGE, 1)):
        with pytest.raises(Misuse):
            block.segments(offset, length)
    assert block.segments(PAGE, 0) == []


def test_close_is_idempotent_and_final(make, books):
    space = make(True)
    block = space.alloc(PAGE)
    block.close()
    block.close()
    assert books.maps == {}
    with pytest.raises(Closed):
        block.segments(0, 1)
    with pytest.raises(Closed):
        block.pfns()
    space.close()
    space.close()
    with pytest.raises(Closed):
        space.alloc(PAGE)
    with pytest.raises(Closed):
        space.pin(PAGE)


def test_a_view_that_is_still_held_delays_only_the_freeing(make, books):
    block = make(True).alloc(PAGE)
    held = block.view.cast("H")
    with pytest.raises(BufferError):
        block.close()
    assert books.maps == {}, "the device has lost it all the same"
    held.release()
    block.close()


def test_a_failing_unmap_keeps_the_address_and_is_told(make, books, monkeypatch):
    space = make(True)
    block = space.alloc(PAGE)
    with monkeypatch.context() as patched:
        patched.setattr(books, "unmap", lambda iova, size: (_ for _ in ()).throw(OperationFailed("no")))
        with pytest.raises(OperationFailed):
            block.close()
    address = next(iter(books.maps))
    assert address in space._iova.taken
    books.maps.clear()
    space._iova.free(address)


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=50))
def test_merged_runs_are_the_frames(pfns):
    runs = merged(pfns)
    expanded = [(address + piece) >> 12 for _, address, length in runs for piece in range(0, length, 4096)]
    assert expanded == pfns
    assert [offset for offset, _, _ in runs] == [sum(r[2] for r in runs[:i]) for i in range(len(runs))]
    assert all(a[1] + a[2] != b[1] for a, b in itertools.pairwise(runs)), "neighbours are merged"


# --- the real file format -----------------------------------------------------------------------------------


@pytest.fixture
def pagemap(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)

    def write(*entries):
        (tmp_path / "proc/self/pagemap").write_bytes(array("Q", entries).tobytes())
        return Pagemap(Roots.under(tmp_path))

    return write


def test_pagemap_gives_the_frames_of_these_pages(pagemap):
    map_ = pagemap(0, PRESENT | 0x123, PRESENT | 1 << 61 | 1 << 55 | 0x456, 0)
    both = [frame * PER_PAGE + part for frame in (0x123, 0x456) for part in range(PER_PAGE)]
    assert map_.pfns(PAGE, 2 * PAGE) == both
    map_.close()
    map_.close()


@pytest.mark.parametrize(
    "entries",
    [
        [PRESENT | 7, PRESENT | 5],
        [PRESENT | 1 << 55 | 0xFFFF_FFFF // PER_PAGE, PRESENT | 1 << 61 | 1],
        [PRESENT | 1 << 32, PRESENT | 1 << 32 | 1],
        [PRESENT | 1 << 32, PRESENT | 1],
    ],
    ids=["alike", "flags-differ", "long", "short-and-long"],
)
def test_packed_frames_are_of_four_bytes_where_that_is_enough(pagemap, entries):
    with closing(pagemap(*entries)) as map_:
        found = map_.frames(0, 2 * PAGE)
        frames = [(entry & (1 << 55) - 1) * PER_PAGE + part for entry in entries for part in range(PER_PAGE)]
        assert found.tolist() == map_.pfns(0, 2 * PAGE) == frames
        assert found.itemsize == (4 if max(frames) < 1 << 32 else 8)


@pytest.mark.parametrize("code", "IQ")
@pytest.mark.parametrize("pfns", [[], [1, 2], [1, 1 << 24], [1 << 24, 1], [0, 1], [1, 0], [1 << 24, 0, 1]])
def test_a_frame_of_0_is_seen_wherever_it_is(pfns, code):
    assert has_zero(array(code, pfns)) == (0 in pfns)


@pytest.mark.parametrize("entry", [PRESENT, 0, 0x123, 1 << 62 | 0x123])
def test_a_hidden_or_absent_page_is_refused(pagemap, entry):
    map_ = pagemap(PRESENT | 5, entry)
    with pytest.raises(PagemapHidden):
        map_.pfns(0, 2 * mmap.PAGESIZE)
    map_.close()


def test_a_pagemap_that_ends_early(pagemap):
    map_ = pagemap(PRESENT | 5)
    with pytest.raises(PagemapHidden) as caught:
        map_.pfns(0, 2 * mmap.PAGESIZE)
    assert caught.value.seen == "0 bytes at 0x8", "no answer of the kernel's, though this is an OSError too"
    map_.close()


def test_no_pagemap_at_all(tmp_path):
    with pytest.raises(PagemapHidden):
        Pagemap(Roots.under(tmp_path)).pfns(0, mmap.PAGESIZE)


def test_a_physical_space_without_pagemap_is_refused_before_any_map(tmp_path, books):
    with pytest.raises(PagemapHidden):
        VfioDmaSpace(books, IovaAllocator(RANGES), translated=False, roots=Roots.under(tmp_path))
    assert books.maps == {}


@pytest.mark.parametrize("translated", [True, False])
def test_what_is_lacking_in_all_counts_what_is_held_once(make, monkeypatch, translated):
    """Physical addresses have two maps a page, and the kernel counts both."""
    maps = 1 if translated else 2
    space = make(translated)
    space.alloc(2 * PAGE)
    others = 3 * PAGE
    monkeypatch.setattr(container, "memlock_limit", lambda roots: others + maps * 8 * PAGE)
    monkeypatch.setattr(container, "locked_bytes", lambda roots: others + maps * 2 * PAGE)
    assert space.lack(8 * PAGE) is None
    error = space.lack(9 * PAGE)
    assert f"at least {others + maps * 9 * PAGE} bytes" == error.expected
    assert f"{others} in use" in error.seen


@pytest.mark.parametrize("size", [PAGE, HUGE_PAGE - PAGE, HUGE_PAGE, 2 * HUGE_PAGE + 3 * PAGE])
def test_pages_of_a_balloon_may_be_huge_ones_and_no_others(make, size):
    block = make(False).pin(size)
    flags = _flags(block.vaddr, size)
    assert block.size == size and bytes(block.view) == bytes(size)
    whole = size // HUGE_PAGE * HUGE_PAGE
    assert not whole or not block.vaddr % HUGE_PAGE
    allowed = sum(length for start, length, words in flags if "nh" not in words)
    assert allowed == whole, "what is behind the last whole one stays in small pages"
    assert all("dc" in words and "dd" in words for _, _, words in flags), "no fork has it, and no core dump"


def _flags(vaddr, size):
    """The mappings of this process within these bytes, as (start, length, VmFlags)."""
    found, inside = [], None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(part, 16) for part in head.split("-"))
            low, high = max(start, vaddr), min(end, vaddr + size)
            inside = (low, high - low) if low < high else None
        elif head == "VmFlags:" and inside is not None:
            found.append((*inside, line.split()[1:]))
    return found
