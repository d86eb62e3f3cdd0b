"""Plugged memory in a VFIO container: shown under either reading of an address, and taken away again."""

from __future__ import annotations

import mmap

import pytest

from tests.unit.backends.test_vfio_memory import PAGE, BlockTable, FakePagemap
from uvirtio.backends import vfio_memory
from uvirtio.backends.vfio import IovaAllocator
from uvirtio.backends.vfio_memory import VfioDmaSpace
from uvirtio.errors import Closed, MemlockExceeded, Misuse, OperationFailed
from uvirtio.interfaces.memory import AdoptsMemory, Block

PHYSICAL = 0x1_0000_0000
RANGES = [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1)]


@pytest.fixture
def books():
    return BlockTable()


@pytest.fixture
def make(books, monkeypatch):
    monkeypatch.setattr(vfio_memory, "Pagemap", FakePagemap)
    made = []

    def space(*, translated):
        iova = IovaAllocator(RANGES)
        made.append((VfioDmaSpace(books, iova, translated=translated), iova))
        return made[-1][0]

    yield space
    for it, iova in made:
        it.close()
        assert iova.taken == {}
    assert books.maps == {}


@pytest.fixture
def mapping():
    made = mmap.mmap(-1, 4 * PAGE)
    yield made
    made.close()  # BufferError if the space kept a view of it


@pytest.mark.spec("MEM-08")
def test_translated_it_has_an_address_of_ours(make, books, mapping):
    space = make(translated=True)
    assert isinstance(space, AdoptsMemory)
    block: Block = space.adopt(mapping, PHYSICAL)
    assert len(books.maps) == 1
    [(iova, (_, size))] = books.maps.items()
    assert size == 4 * PAGE
    assert block.segments(PAGE + 3, 10) == [(iova + PAGE + 3, 10)]
    block.close()
    assert books.maps == {}
    assert mapping[0] == 0  # still the caller's


def test_physical_it_has_its_own_address(make, books, mapping):
    space = make(translated=False)
    block = space.adopt(mapping, PHYSICAL)
    assert block.segments(0, 4 * PAGE) == [(PHYSICAL, 4 * PAGE)]
    assert PHYSICAL in books.maps
    block.close()
    block.close()
    assert PHYSICAL not in books.maps
    with pytest.raises(Closed):
        block.segments(0, 1)


def test_the_same_memory_twice_is_refused_and_leaves_the_first_alone(make, books, mapping):
    space = make(translated=False)
    block = space.adopt(mapping, PHYSICAL)
    with pytest.raises(OperationFailed):
        space.adopt(mapping, PHYSICAL)
    assert PHYSICAL in books.maps
    block.close()


@pytest.mark.parametrize("translated", [True, False])
def test_a_refused_map_leaves_nothing(make, books, mapping, translated):
    space = make(translated=translated)
    before = dict(books.maps)
    books.fail_at = books.calls + 1
    with pytest.raises(MemlockExceeded):
        space.adopt(mapping, PHYSICAL)
    assert books.maps == before


def test_no_whole_pages_are_a_mistake_of_ours(make, mapping):
    space = make(translated=True)
    with pytest.raises(Misuse, match="whole pages"):
        space.adopt(mapping, PHYSICAL + 1)


def test_the_space_takes_it_away_when_it_closes(make, books, mapping):
    space = make(translated=True)
    space.adopt(mapping, PHYSICAL)
    space.close()
    assert books.maps == {}
