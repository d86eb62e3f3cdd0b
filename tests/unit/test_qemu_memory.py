"""Guest memory: blocks, their addresses, and their reuse."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.backends.qemu.memory import FIRST, HIGH_BASE, LOW_LIMIT, PAGE, GuestMemory, QemuDma
from uvirtio.errors import Closed, OperationFailed

MIB = 1 << 20


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest = GuestMemory(32 * MIB)
    yield guest
    guest.close()


def test_a_block(memory: GuestMemory) -> None:
    block = memory.alloc(10_000)
    assert block.size == len(block.view) == 10_000
    assert block.address == FIRST
    assert block.contiguous
    assert block.segments(0, 10_000) == [(FIRST, 10_000)]
    assert block.segments(4096, 1) == [(FIRST + 4096, 1)]
    assert block.segments(5, 0) == []
    assert block.pfns() == [FIRST // PAGE, FIRST // PAGE + 1, FIRST // PAGE + 2]
    assert bytes(block.view) == bytes(10_000)
    for offset, length in ((-1, 1), (0, 10_001), (10_000, 1), (0, -1)):
        with pytest.raises(ValueError, match="block"):
            block.segments(offset, length)
    block.close()
    block.close()


def test_both_sides_see_the_same_bytes(memory: GuestMemory) -> None:
    block = memory.alloc(PAGE)
    block.view[:5] = b"hello"
    assert os.pread(memory.fd, 5, block.offset) == b"hello"
    os.pwrite(memory.fd, b"world", block.offset)
    assert bytes(block.view[:5]) == b"world"


def test_reused_memory_is_zero_and_freed_memory_is_given_back(memory: GuestMemory) -> None:
    block = memory.alloc(MIB)
    block.view[:] = b"\xff" * MIB
    assert os.fstat(memory.fd).st_blocks * 512 == MIB
    block.close()
    assert os.fstat(memory.fd).st_blocks == 0
    os.pwrite(memory.fd, b"late", FIRST)  # a device that writes after the end
    again = memory.alloc(MIB)
    assert again.address == FIRST
    assert bytes(again.view) == bytes(MIB)


def test_none_left_says_how_to_get_more(memory: GuestMemory) -> None:
    memory.alloc(16 * MIB)
    with pytest.raises(OperationFailed) as caught:
        memory.alloc(1)
    assert "ram=" in (caught.value.remedy or "")


def test_a_view_that_is_still_held_keeps_the_block(memory: GuestMemory) -> None:
    block = memory.alloc(PAGE)
    words = block.view.cast("I")
    with pytest.raises(BufferError):
        block.close()
    assert memory.alloc(PAGE).address != block.address
    words.release()
    block.close()
    assert memory.alloc(PAGE).address == FIRST


def test_closing_the_memory_ends_its_blocks() -> None:
    guest = GuestMemory(32 * MIB)
    block = guest.alloc(PAGE)
    held = guest.alloc(PAGE)
    words = held.view.cast("I")
    guest.close()
    guest.close()
    with pytest.raises(ValueError, match="released"):
        block.view[0]
    words[0] = 1  # harmless: QEMU is gone
    words.release()
    block.close()
    held.close()
    with pytest.raises(Closed):
        guest.alloc(1)


def test_high_memory_lies_above_the_hole() -> None:
    guest = GuestMemory(LOW_LIMIT + 32 * MIB)
    low = guest.alloc(LOW_LIMIT - FIRST)
    high = guest.alloc(MIB)
    assert high.segments(0, 2) == [(HIGH_BASE, 2)]
    assert high.pfns()[0] == HIGH_BASE // PAGE
    assert high.offset == LOW_LIMIT
    low.close()
    high.close()
    with pytest.raises(OperationFailed):
        guest.alloc(LOW_LIMIT)  # never across the hole
    guest.alloc(LOW_LIMIT - FIRST)
    guest.close()


def test_a_dma_space_ends_its_blocks(memory: GuestMemory) -> None:
    space = QemuDma(memory, translated=True)
    assert space.translated
    assert space.contiguous_limit == 16 * MIB
    block, pages = space.alloc(PAGE), space.pin(3 * PAGE)
    assert len(pages.pfns()) == 3
    block.close()
    space.close()
    space.close()
    assert memory.alloc(16 * MIB).address == FIRST
    with pytest.raises(Closed):
        space.alloc(1)


def test_no_descriptor_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    GuestMemory(32 * MIB).close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40_000), st.integers(0, 100)), max_size=40))
def test_blocks_never_overlap_and_all_comes_back(steps: list[tuple[bool, int, int]]) -> None:
    guest = GuestMemory(32 * MIB)
    blocks = []
    for allocate, size, which in steps:
        if allocate or not blocks:
            blocks.append(guest.alloc(size))
        else:
            blocks.pop(which % len(blocks)).close()
        areas = sorted((block.address, block.address + block.size) for block in blocks)
        assert all(start % PAGE == 0 and start >= FIRST and end <= 32 * MIB for start, end in areas)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(areas))
    for block in blocks:
        block.close()
    guest.alloc(16 * MIB).close()
    guest.close()
