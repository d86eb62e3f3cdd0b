"""DMA memory in huge pages: how it is cut up and given back, over a file of ordinary pages."""

from __future__ import annotations

import errno
import mmap
import os
import random
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvirtio.backends.pages import Pagemap
from uvirtio.backends.physical import HugeFile, PhysicalDmaSpace
from uvirtio.errors import BadSize, Closed, HugePagesLack, Misuse, NotSupported, OperationFailed, PagemapHidden
from uvirtio.host.pages import CPU_PAGE as PAGE
from uvirtio.host.pages import HUGE_PAGE as HUGE
from uvirtio.host.roots import Roots
from uvirtio.interfaces.memory import AdoptsMemory, Block, DmaSpace
from uvirtio.spec.page import VIRTIO_PAGE

PER_PAGE = PAGE // VIRTIO_PAGE
PRESENT = 1 << 63
SCATTER = 7
"""The pool's pages lie so many of their sizes apart."""


def ordinary() -> int:
    return os.memfd_create("test", os.MFD_CLOEXEC)


class Pool(HugeFile):
    """A file of so many pages, which remembers what lies where, as the frames of a pool would."""

    def __init__(self, roots: Roots, pages: int = 64):
        super().__init__(roots, create=ordinary)
        self.left = pages
        self.taken: set[int] = set()

    def map(self, first, count):
        new = set(range(first, first + count)) - self.taken
        if len(new) > self.left:
            raise self._lack(count, OSError(errno.ENOSPC, "No space left on device"))
        self.left -= len(new)
        self.taken |= new
        return super().map(first, count)

    def free(self, first, count):
        for page in range(first, first + count):
            if page in self.taken:
                self.taken.discard(page)
                self.left += 1
        super().free(first, count)


class Frames(Pagemap):
    """Frames by our own rule: each huge page of the file lies at a place of its own."""

    def __init__(self, roots):
        super().__init__(roots)
        self.space: PhysicalDmaSpace | None = None
        self.shift = 0

    def pfns(self, vaddr, size):
        with Path("/proc/self/maps").open() as maps:
            for line in maps:
                span, _, offset, *_ = line.split()
                start, end = (int(x, 16) for x in span.split("-"))
                if start <= vaddr < end:
                    at = int(offset, 16) + vaddr - start
                    break
        places = range(at // VIRTIO_PAGE, (at + size) // VIRTIO_PAGE)
        return [(p // 512 * SCATTER + 1) * 512 + p % 512 + self.shift for p in places]


@pytest.fixture
def roots(tmp_path):
    pool = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    pool.mkdir(parents=True)
    for name, value in (("nr", 8), ("free", 3), ("resv", 1)):
        (pool / f"{name}_hugepages").write_text(f"{value}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    return Roots.under(tmp_path)


@pytest.fixture
def pool(roots):
    it = Pool(roots)
    yield it
    assert it.taken == set(), "all pages went back"
    it.close()
    it.close()


@pytest.fixture
def space(roots, pool):
    with PhysicalDmaSpace(roots, file=pool, pagemap=Frames(roots)) as it:
        yield it


def test_it_is_what_the_seams_ask_for(space):
    typed: DmaSpace = space
    block: Block = typed.alloc(1)
    assert isinstance(typed, AdoptsMemory)
    assert (block.size, block.contiguous, typed.translated) == (PAGE, True, False)


def test_rings_and_buffers_share_a_huge_page(space, pool):
    blocks = [space.alloc(3 * PAGE - 1) for _ in range(5)]
    assert pool.taken == {0}
    spans = sorted((b.segments(0, b.size)[0][0], b.size) for b in blocks)
    assert all(b.contiguous and b.size == 3 * PAGE for b in blocks)
    assert all(a + n <= b for (a, n), (b, _) in pairwise(spans))
    blocks[0].view[0] = 1
    assert not any(any(b.view) for b in blocks[1:])


def test_a_legacy_ring_is_one_run_of_frames(space):
    space.alloc(HUGE - 2 * PAGE)
    ring = space.alloc(11 * PAGE)  # does not fit the rest of the first huge page, and does not cross its end
    assert ring.contiguous
    assert ring.pfns() == list(range(ring.pfns()[0], ring.pfns()[0] + 11 * PER_PAGE))
    assert ring.segments(5, 10 * PAGE) == [(ring.pfns()[0] * VIRTIO_PAGE + 5, 10 * PAGE)]


def test_longer_memory_is_as_many_runs_as_huge_pages(space):
    block = space.pin(2 * HUGE + PAGE)
    assert not block.contiguous
    runs = block.segments(0, block.size)
    assert [length for _, length in runs] == [HUGE, HUGE, PAGE]
    assert len(block.pfns()) == block.size // VIRTIO_PAGE
    assert block.segments(HUGE - 1, 2) == [(runs[0][0] + HUGE - 1, 1), (runs[1][0], 1)]
    rest = space.alloc(PAGE)
    assert rest.pfns()[0] == block.pfns()[-1] + 1, "what is left of the last huge page serves others"


def test_what_is_reused_is_zero(space):
    first = space.alloc(PAGE)
    second = space.alloc(PAGE)
    first.view[:] = second.view[:] = b"\xff" * PAGE
    first.close()
    assert not any(space.alloc(PAGE).view)
    assert second.view[0] == 0xFF


def test_a_huge_page_goes_back_with_its_last_block(space, pool):
    blocks = [space.alloc(PAGE) for _ in range(3)]
    for block in blocks[:2]:
        block.close()
        block.close()
    assert pool.taken == {0}
    blocks[2].close()
    assert pool.taken == set()
    with pytest.raises(Closed):
        blocks[2].pfns()
    with pytest.raises(Closed):
        blocks[2].segments(0, 1)


def test_memory_that_is_still_viewed_is_not_reused(space, pool):
    block = space.alloc(PAGE)
    held = block.view.cast("H")
    with pytest.raises(BufferError):
        block.close()
    other = space.alloc(PAGE)
    assert other.pfns() != block.pfns()
    with pytest.raises(BufferError):
        space.close()
    assert pool.taken == {0}
    held.release()
    space.close()
    assert pool.taken == set()


def test_the_frames_are_read_anew_each_time(roots, pool):
    frames = Frames(roots)
    with PhysicalDmaSpace(roots, file=pool, pagemap=frames) as space:
        block = space.alloc(PAGE)
        before = block.pfns()
        frames.shift = 512
        assert block.pfns() != before


def test_an_empty_pool_is_named_with_the_command(roots):
    pool = Pool(roots, pages=1)
    with PhysicalDmaSpace(roots, file=pool, pagemap=Frames(roots)) as space:
        block = space.alloc(HUGE)
        with pytest.raises(HugePagesLack) as caught:
            space.alloc(3 * HUGE)
        error = caught.value
        assert (error.code, error.exit_code) == ("UV-ENV-HUGEPAGES", 4)
        assert "2 free of 8" in error.seen
        # 8 there are, 2 of them free, 3 wanted
        assert f"echo 9 > {roots.sys}/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages" in error.remedy
        assert pool.taken == {0}
        block.close()
        space.alloc(HUGE)


def test_no_page_at_all_is_told_when_the_space_is_made(roots):
    with pytest.raises(HugePagesLack):
        PhysicalDmaSpace(roots, file=Pool(roots, pages=0), pagemap=Frames(roots))


def test_a_real_file_of_huge_pages_is_refused_where_the_pool_is_empty(roots):
    # Not faked: whatever this machine has, nobody has 2^20 huge pages free.
    file = HugeFile(roots)
    with pytest.raises(HugePagesLack):
        file.map(0, 1 << 20)
    file.close()
    with pytest.raises(Closed):
        file.map(0, 1)


def test_a_kernel_without_huge_pages(roots):
    def none() -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    with pytest.raises(NotSupported):
        HugeFile(roots, create=none)


def test_no_room_to_map_is_another_error(roots, pool, monkeypatch):
    space = PhysicalDmaSpace(roots, file=pool, pagemap=Frames(roots))

    def full(*_args: object, **_more: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", full)
        with pytest.raises(OperationFailed, match="mapped"):
            space.alloc(PAGE)
    space.close()


def test_the_pagemap_of_this_machine_is_asked(tmp_path, roots):
    pool = Pool(roots)
    with pytest.raises(PagemapHidden):
        PhysicalDmaSpace(roots, file=pool)
    # A sparse file with one frame wherever the block may lie.
    path = tmp_path / "proc/self/pagemap"
    path.write_bytes(b"")
    with pytest.raises(PagemapHidden):
        PhysicalDmaSpace(roots, file=pool)
    assert pool.taken == set()
    pool.close()


def test_frame_zero_is_refused(tmp_path, roots, monkeypatch):
    pool = Pool(roots)
    answers = [PRESENT]
    (tmp_path / "proc/self/pagemap").touch()
    monkeypatch.setattr(os, "pread", lambda _fd, size, _at: array("Q", answers * (size // 8)).tobytes())
    with pytest.raises(PagemapHidden, match="physical") as caught:
        PhysicalDmaSpace(roots, file=pool)
    assert "frame number 0" in caught.value.seen
    answers[0] = PRESENT | 0x1234
    with PhysicalDmaSpace(roots, file=pool) as space:
        assert space.alloc(PAGE).pfns() == [0x1234 * PER_PAGE + number for number in range(PER_PAGE)]
    pool.close()


def test_memory_of_others_is_shown_at_its_address(space):
    with mmap.mmap(-1, 2 * PAGE) as mapping:
        block = space.adopt(mapping, 0x1_0000_0000)
        assert block.segments(1, PAGE) == [(0x1_0000_0001, PAGE)]
        assert block.pfns() == list(range(0x10_0000, 0x10_0000 + 2 * PER_PAGE))
        block.close()


def test_a_closed_space(space):
    block = space.alloc(PAGE)
    space.close()
    space.close()
    for call in (lambda: space.alloc(1), lambda: space.pin(1), lambda: block.segments(0, 1)):
        with pytest.raises(Closed):
            call()


def test_sizes_that_cannot_be(space):
    block = space.alloc(PAGE)
    for offset, length in ((-1, 1), (0, PAGE + 1), (PAGE, 1)):
        with pytest.raises(Misuse):
            block.segments(offset, length)
    with pytest.raises(BadSize):
        space.alloc(0)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 1100), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_no_two_blocks_share_a_byte_and_all_comes_back(tmp_path_factory, sizes, chance: random.Random):
    roots = Roots.under(tmp_path_factory.mktemp("roots"))
    pool = Pool(roots, pages=200)
    with PhysicalDmaSpace(roots, file=pool, pagemap=Frames(roots)) as space:
        blocks = []
        for units in sizes:
            block = space.alloc(units * VIRTIO_PAGE)
            if units <= 512:
                assert block.contiguous
            blocks.append(block)
            if chance.random() < 0.4:
                blocks.pop(chance.randrange(len(blocks))).close()
            frames = [frame for other in blocks for frame in other.pfns()]
            assert len(set(frames)) == len(frames)
            assert pool.taken == {(frame // 512 - 1) // SCATTER for frame in frames}
    assert pool.taken == set()
    pool.close()
