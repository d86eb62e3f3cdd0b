"""The raw layer: what it is told to write stands there, and the scripted device sees through it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.ring_rigs import A, Rig
from uvirtio.diag.raw import Descriptor, RawPacked, RawSplit, packed_table, table
from uvirtio.scripted.memory import ScriptedDma
from uvirtio.scripted.ring import DriverViolation
from uvirtio.spec import ring

NEXT, WRITE, INDIRECT = ring.DESC_F_NEXT, ring.DESC_F_WRITE, ring.DESC_F_INDIRECT


def test_an_honest_chain_is_one():
    rig = Rig()
    with RawSplit(rig.queue) as raw:
        raw.descriptor(3, Descriptor(A, 10, NEXT, 5))
        raw.descriptor(5, Descriptor(A + 100, 20, WRITE))
        raw.show(3)
        chain = rig.device.pop()
        assert [(part.address, part.length, part.writable) for part in chain.elements] == [
            (A, 10, False),
            (A + 100, 20, True),
        ]
        rig.device.push(chain, 7)
        rig.device.write_used_flags(1)
        rig.device.write_avail_event(9)
        assert (raw.used_idx, raw.used(0), raw.used_flags, raw.avail_event) == (1, (3, 7), 1, 9)
        raw.used_event, raw.flags = 0x1_0002, 1
        assert (raw.used_event, raw.flags, raw.idx) == (2, 1, 1)
    rig.queue.close()


@pytest.mark.parametrize(
    ("requirement", "entries", "heads"),
    [
        ("SPL-04", [], (200,)),
        ("SPL-04", [Descriptor(A, 4, NEXT, 99)], (0,)),
        ("SPL-04", [Descriptor(A, 4, NEXT, 0)], (0,)),
        ("SPL-02", [Descriptor(A, 4, NEXT | WRITE, 1), Descriptor(A, 4)], (0,)),
        ("SPL-04", [Descriptor(A, 0)], (0,)),
        ("SPL-12", [Descriptor(A, 4)], (0,) * 9),
        ("SPL-10", [Descriptor(A, 4, 8)], (0,)),
    ],
)
def test_nonsense_is_laid_down_as_it_is_given(requirement: str, entries: list[Descriptor], heads: tuple[int, ...]):
    rig = Rig()
    with RawSplit(rig.queue) as raw:
        for index, entry in enumerate(entries):
            raw.descriptor(index, entry)
        raw.show(*heads)
    with pytest.raises(DriverViolation, match=requirement):
        rig.device.pop_all()


def test_a_table_may_be_wrong_too():
    rig = Rig(indirect=True)
    block = ScriptedDma(rig.dma.memory).alloc(4096)
    where, length = table(block, [Descriptor(A, 4, INDIRECT)])
    with RawSplit(rig.queue) as raw:
        raw.descriptor(0, Descriptor(where, length, INDIRECT))
        raw.show(0)
    with pytest.raises(DriverViolation, match="SPL-08"):
        rig.device.pop()


@pytest.mark.parametrize(
    ("requirement", "slots"),
    [
        ("PKD-06", [Descriptor(A, 0, 0x80)]),
        ("PKD-07", [Descriptor(A, 4, 0x80 | NEXT | WRITE), Descriptor(A, 4, 0x80)]),
        ("PKD-19", [Descriptor(A, 4, 0x80, 99), Descriptor(A, 4, 0x80, 99)]),
        ("PKD-11", [Descriptor(A, 16, 0x80 | INDIRECT)]),
        ("PKD-10", [Descriptor(A, 4, 0x80 | NEXT), Descriptor(A, 4, 0)]),
    ],
)
def test_nonsense_in_a_packed_ring(requirement: str, slots: list[Descriptor]):
    rig = Rig(format="packed")
    with RawPacked(rig.queue) as raw:
        for place, entry in reversed(list(enumerate(slots))):
            raw.set_slot(place, entry)
            assert raw.slot(place) == entry
    with pytest.raises(DriverViolation, match=requirement):
        rig.device.pop_all()
    rig.queue.close()


def test_a_packed_table_and_the_events():
    rig = Rig(format="packed", indirect=True)
    block = ScriptedDma(rig.dma.memory).alloc(4096)
    where, length = packed_table(block, [Descriptor(A, 4, NEXT)])
    with RawPacked(rig.queue) as raw:
        raw.event(0x8003, 1)
        assert rig.device.driver_event() == (0x8003, 1)
        rig.device.write_event(5, 2)
        assert raw.device_event == (5, 2)
        raw.set_slot(0, Descriptor(where, length, 0x80 | INDIRECT))
    chain = rig.device.pop()
    assert chain is not None and chain.elements
    assert rig.device.noted == ["PKD-12: flags 0x1 in an indirect table"]


@pytest.mark.parametrize("kind", [("split", RawSplit), ("packed", RawPacked)])
def test_closing_it_lets_the_queue_close(kind: tuple[str, Any]):
    rig = Rig(format=kind[0])
    raw = kind[1](rig.queue)
    raw.close()
    raw.close()
    rig.queue.close()
    assert not rig.dma.memory.open_blocks()
