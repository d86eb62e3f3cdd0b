"""Guest memory: blocks, their addresses, and their reuse."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.descriptors import descriptors, settled
from uvirtio.backends.qemu.memory import FIRST, GuestMemory, QemuDma
from uvirtio.backends.qemu.models import LOONGARCH64, MICROVM, MODELS, Q35, VIRT, Model
from uvirtio.errors import Closed, Misuse, OperationFailed, QemuFailed
from uvirtio.host.pages import CPU_PAGE as PAGE
from uvirtio.spec.page import PFN_SHIFT

GIB = 1 << 30
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
    assert block.pfns() == [(FIRST >> PFN_SHIFT) + number for number in range(3)]
    assert bytes(block.view) == bytes(10_000)
    for offset, length in ((-1, 1), (0, 10_001), (10_000, 1), (0, -1)):
        with pytest.raises(Misuse, match="block"):
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


@pytest.mark.parametrize("model", [Q35, MICROVM], ids=lambda model: model.name)
def test_high_memory_lies_above_the_hole(model: Model) -> None:
    split = model.ram.split
    guest = GuestMemory(split + 32 * MIB, model.ram)
    low = guest.alloc(split - FIRST)
    high = guest.alloc(MIB)
    assert high.segments(0, 2) == [(model.ram.high, 2)]
    assert high.pfns()[0] == model.ram.high >> PFN_SHIFT
    assert high.offset == split
    low.close()
    high.close()
    with pytest.raises(OperationFailed):
        guest.alloc(split)  # never across the hole
    guest.alloc(split - FIRST)
    guest.close()


@pytest.mark.parametrize("high", [LOONGARCH64.ram.high, *LOONGARCH64.ram.others])
def test_high_memory_is_found_where_this_qemu_has_it(high: int) -> None:
    guest = GuestMemory(512 * MIB, LOONGARCH64.ram)
    split = LOONGARCH64.ram.split

    def read(width: int, address: int) -> int:
        """As QEMU does it with its memory at ``high``; other addresses read as zeros."""
        place = address - high + split
        return int.from_bytes(os.pread(guest.fd, width, place), "little") if split <= place < 512 * MIB else 0

    guest.locate(read)
    assert guest.ram.high == high
    guest.alloc(split - FIRST)
    assert guest.alloc(MIB).pfns()[0] == high >> PFN_SHIFT
    assert not any(os.pread(guest.fd, PAGE, split)), "the mark is gone"
    guest.close()


def test_high_memory_that_is_nowhere_is_said() -> None:
    guest = GuestMemory(512 * MIB, LOONGARCH64.ram)
    with pytest.raises(QemuFailed, match="not known here"):
        guest.locate(lambda width, address: 0)
    guest.close()
    guest = GuestMemory(512 * MIB, VIRT.ram)
    guest.locate(lambda width, address: pytest.fail("nothing is read where there is no doubt"))
    guest.close()


def test_memory_need_not_begin_at_0() -> None:
    guest = GuestMemory(32 * MIB, VIRT.ram)
    block = guest.alloc(PAGE)
    assert block.segments(8, 2) == [(VIRT.ram.base + FIRST + 8, 2)]
    assert block.pfns()[0] == (VIRT.ram.base + FIRST) >> PFN_SHIFT
    guest.close()


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_no_window_of_a_machine_lies_in_its_memory(model: Model) -> None:
    ram = [(model.ram.base, model.ram.base + model.ram.split)]
    if model.ram.high is not None:
        ram.append((min((model.ram.high, *model.ram.others)), model.ram.high + 256 * GIB))
    windows = []
    if model.pci is not None:
        windows += [model.pci.memory, model.pci.high]
        windows += [(at, at + (256 << 12)) for at in (model.pci.ecam,) if at is not None]
    if model.mmio is not None:
        windows.append((model.mmio.base, model.mmio.base + model.mmio.stride * model.mmio.count))
    places = sorted([*ram, *windows])
    assert all(end <= start for (_, end), (start, _) in pairwise(places))


def test_a_dma_space_ends_its_blocks(memory: GuestMemory) -> None:
    space = QemuDma(memory, translated=True)
    assert space.translated
    assert space.contiguous_limit == 16 * MIB
    block, pages = space.alloc(PAGE), space.pin(3 * PAGE)
    assert len(pages.pfns()) == 3 * PAGE >> PFN_SHIFT
    block.close()
    space.close()
    space.close()
    assert memory.alloc(16 * MIB).address == FIRST
    with pytest.raises(Closed):
        space.alloc(1)


def test_no_descriptor_is_left() -> None:
    before = len(settled())
    GuestMemory(32 * MIB).close()
    assert len(descriptors()) == before


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
