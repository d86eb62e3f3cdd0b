"""Fixed slots against a plain record of what is idle, laid, out and used: for laps, in any order, with lies."""

from __future__ import annotations

import random
from array import array
from typing import Any

import pytest

from tests.fakes.slot_rigs import ROOM, Bench, fast_kind, no_kick
from uvirtio.errors import UsageError
from uvirtio.scripted.ring import Chain

LENGTHS = (ROOM, ROOM, ROOM, 5)
"""Most of them the same: a slot that is taken for another one shows where their elements are alike."""


class Record:
    """A bench, and what is known of each of its slots without asking it."""

    def __init__(self, kind: dict[str, Any], seed: int) -> None:
        self.rng = rng = random.Random(seed)
        size = rng.choice((1, 2, 4, 4, 8)) if kind["format"] == "split" else rng.choice((1, 2, 3, 4, 5, 8))
        self.count = rng.randint((size + 1) // 2, size)
        self.bench = Bench(kind, size, self.count)
        self.device = self.bench.rig.device
        self.idle = list(range(self.count))
        self.laid: list[int] = []
        self.out: list[Chain] = []
        self.used: list[tuple[int, int]] = []
        self.ordered = True

    def slots_out(self) -> list[int]:
        return [self.bench.slot_of(chain) for chain in self.out]

    def lay(self, show: bool) -> None:
        """Slots that are idle, mostly in turn; then one that is not."""
        count = self.rng.randint(0, len(self.idle))
        now = self.idle[:count] if self.rng.random() < 0.7 else self.rng.sample(self.idle, count)
        if self.rng.random() < 0.2:
            self.bench.slots.check(array("H", now))
        self.bench.slots.submit(array("H", now) if self.rng.random() < 0.8 else now, show=show)
        self.idle = [slot for slot in self.idle if slot not in now]
        self.laid += now
        self.seen(len(self.laid) if show and now else 0)
        busy = [slot for slot in range(self.count) if slot not in self.idle]
        if busy and self.rng.random() < 0.3:
            with pytest.raises(UsageError):
                self.bench.slots.submit(array("H", [self.rng.choice(busy)]), show=self.rng.random() < 0.5)

    def show(self) -> None:
        count = self.rng.randint(0, len(self.laid))
        self.bench.slots.show(count)
        self.seen(count)

    def relay(self) -> None:
        count = self.bench.slots.relay(self.rng.randint(1, 3), no_kick, self.rng.randint(1, 3))
        assert bool(count) is bool(self.used) and count <= len(self.used)
        self.seen(min(count, len(self.laid)))

    def seen(self, count: int) -> None:
        """The device sees as many more of those that were laid, and no others."""
        taken = self.device.pop_all()
        assert [self.bench.slot_of(chain) for chain in taken] == self.laid[:count]
        self.out += taken
        del self.laid[:count]

    def complete(self) -> None:
        if not self.ordered:
            self.rng.shuffle(self.out)
        for _ in range(self.rng.randint(0, len(self.out))):
            chain, written = self.out.pop(0), self.rng.choice(LENGTHS)
            self.device.push(chain, written)
            self.used.append((self.bench.slot_of(chain), written))

    def reap(self) -> None:
        assert list(self.bench.slots.reap()) == [slot for slot, _ in self.used]
        for slot, written in self.used:
            assert self.bench.slots.written[slot] == written
        self.idle += [slot for slot, _ in self.used]
        self.used.clear()

    def lie(self) -> None:
        """Name a slot that is not out: idle, laid, or used already; nothing but an error comes of it."""
        named = [slot for slot in range(self.count) if slot not in self.slots_out()]
        if self.out and named:
            chain = self.out.pop(0)
            slot = self.rng.choice(named)
            self.device.lies.used_id = lambda _: slot  # descriptor and id of a slot are its number
            self.device.push(chain, self.rng.choice(LENGTHS))
            self.bench.corrupt()

    def step(self) -> None:
        """Do one thing, and look whether the books balance."""
        if self.rng.random() < 0.05:
            self.ordered = not self.ordered
        self.rng.choice(
            (
                *(lambda: self.lay(True), lambda: self.lay(False), self.show, self.relay),
                *(self.complete, self.complete, self.reap, self.reap),
                lambda: self.bench.rig.queue.want_interrupts(self.rng.random() < 0.6),
            )
        )()
        assert self.bench.slots.laid == len(self.laid)
        expected = sorted(self.slots_out() + [slot for slot, _ in self.used])
        assert self.bench.rig.queue.in_flight == len(expected)
        if self.rng.random() < 0.3:
            assert self.bench.slots.out() == expected


@pytest.mark.fault(28, 29)
@fast_kind
@pytest.mark.parametrize("seed", range(12))
def test_slots_agree_with_a_plain_record(kind: dict[str, Any], seed: int):
    for number in range(5):
        record = Record(kind, 100 * seed + number)
        for _ in range(300):
            record.step()
        record.lie()
