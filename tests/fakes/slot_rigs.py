"""A queue with fixed slots and the device on its other side, for either ring format."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.ring_rigs import A, Rig, name_of, rigs
from uvirtio.errors import DeviceBroken, RingCorruption, UsageError
from uvirtio.scripted.ring import Chain
from uvirtio.virtqueue.slots import Slots, fixed_slots

KINDS = [*rigs(), *({**kind, "in_order": True} for kind in rigs(event_idx=True))]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=name_of)
fast_kind = pytest.mark.parametrize("kind", rigs(), ids=name_of)

ROOM = 64


def chains(count: int, reads: int = 0, writes: int = 1, room: int = ROOM) -> list[Any]:
    return [
        (
            [(A + 0x10000 * slot + 0x100 * part, 16) for part in range(reads)],
            [(A + 0x10000 * slot + 0x8000 + 0x100 * part, room) for part in range(writes)],
        )
        for slot in range(count)
    ]


def no_kick() -> None:
    """Notify no one: the device of these tests looks when it is told to."""


class Bench:
    """A rig with slots; ``slot_of`` knows a chain by its first address."""

    def __init__(self, kind: dict[str, Any], size: int = 8, count: int = 8, **laid: int) -> None:
        self.rig = Rig(size, **kind)
        self.chains = chains(count, **laid)
        self.slots: Slots = fixed_slots(self.rig.queue, self.chains)

    def post(self, *slots: int) -> list[Chain]:
        self.slots.submit(slots)
        return list(self.rig.device.pop_all())

    def slot_of(self, chain: Chain) -> int:
        return (chain.elements[0].address - A) // 0x10000

    def finish(self, *chains: Chain, written: int = ROOM) -> None:
        for chain in chains:
            self.rig.device.push(chain, written)

    def reap(self) -> list[int]:
        return list(self.slots.reap())

    def corrupt(self) -> None:
        with pytest.raises(RingCorruption):
            self.slots.reap()
        for call in (self.slots.reap, lambda: self.slots.submit([0])):
            with pytest.raises((DeviceBroken, UsageError)):
                call()
        assert self.rig.queue.broken
        self.rig.dma.memory.assert_clean()


modes = pytest.mark.parametrize("ordered", [True, False], ids=["in order", "loose"])


def lied_to(kind: dict[str, Any], ordered: bool) -> tuple[Bench, list[Chain]]:
    """Four chains out; the device has so far answered in order, or not."""
    bench = Bench(kind, 16, 8)
    posted = bench.post(*range(6))
    if not ordered:
        bench.finish(posted.pop(3), posted.pop(3))
        bench.finish(posted.pop(1))
        assert bench.reap() == [3, 4, 1]
    return bench, posted
