"""How cost grows: the same work at many sizes, as a curve with its slope.

A curve is the time of one unit of work (a descriptor, a queue, a page) at each size. What is flat costs n for n
units; what grows like the logarithm costs n log n; a slope of 1 in both logarithms costs n squared. The slope is
that of the line through the points, in logarithms of both, so the size of the machine does not matter.

A curve's work is a function of its size that returns the seconds of one unit: add a ``Curve`` to ``CURVES``.
``tools/bench --only growth --json FILE`` has all points, and ``--svg FILE`` draws them (plot.py).
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benches import growing_drivers as drivers
from benches import growing_machines as machines
from benches.measure import Section
from benches.rings import ADDRESS, LENGTH, Engine, Fixed, Loop

_CHAIN = ((ADDRESS, LENGTH),)

FLAT = 0.12
"""The steepest slope that counts as n: a ring of 32,768 entries is not in the caches that one of 8 is in."""

NLOGN = 0.30
"""The same for n log n, whose slope falls from 0.5 to 0.1 over the sizes here."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The cost of one unit of work at each size."""

    name: str
    unit: str
    """What one unit is: ``descriptor``."""

    sizes: tuple[int, ...]
    cost: Callable[[int, bool], float]
    """Seconds of one unit at a size; ``quick`` means: only to see that it runs."""

    most: float = FLAT
    """The steepest slope that is accepted."""

    why: str = ""
    """Why it is steeper than flat, where it may be."""


# --- rings ----------------------------------------------------------------------------------------------------

SIZES = tuple(1 << power for power in range(3, 16))
QUEUES = (1, 2, 4, 8, 16, 32, 64)
_BATCH = 8


class _FullFixed(Fixed):
    """All slots are out; some come back, of any place if out of order, and go out again."""

    def fresh(self) -> None:
        super().fresh()
        self.slots.submit(array("H", range(self.size)))
        self.out = list(range(self.size))
        self._draw = random.Random(7)

    def once(self) -> bytes:
        if self.shuffled:
            for place in range(self.batch):
                other = self._draw.randrange(place, self.size)
                self.out[place], self.out[other] = self.out[other], self.out[place]
        answer = self.device.answer(self.out[: self.batch])
        self.device.give(answer)
        back = self.slots.reap()
        assert len(back) == self.batch
        self.slots.submit(back)
        self.out = [*self.out[self.batch :], *back] if not self.shuffled else [*back, *self.out[self.batch :]]
        return answer

    def chunk(self, answers: Iterable[bytes]) -> None:
        give, post, reap = self.device.give, self.slots.submit, self.slots.reap
        for answer in answers:
            give(answer)
            post(reap())


class _FullPackedFixed(_FullFixed):
    """The same on a packed ring."""

    packed = True


class _FullEngine(Engine):
    """The ring is full of chains; the oldest come back, and as many are added."""

    def fresh(self) -> None:
        super().fresh()
        for place in range(self.size):
            self.queue.add((), _CHAIN, place)
        self.queue.publish()

    def once(self) -> bytes:
        answer = self.device.answer(self.idents())
        self.chunk([answer])
        return answer

    def chunk(self, answers: Iterable[bytes]) -> None:
        queue, give = self.queue, self.device.give
        for answer in answers:
            give(answer)
            for done in queue.reap():
                queue.add((), _CHAIN, done.cookie)
            queue.publish()


class _FullPackedEngine(_FullEngine):
    """The same on a packed ring."""

    packed = True


def _ring(kind: type[Loop], *, shuffled: bool = False) -> Callable[[int, bool], float]:
    """A ring of so many entries that is full."""

    def cost(size: int, quick: bool) -> float:
        laps = 1 if quick else 4  # two of a packed ring until everything repeats
        return 1 / kind(_BATCH, shuffled=shuffled, size=size).rate(max(laps * size // _BATCH, 64))

    return cost


def _queues(kind: type[Loop]) -> Callable[[int, bool], float]:
    """A batch on each of so many queues in turn."""

    def cost(count: int, quick: bool) -> float:
        loops = [kind(_BATCH, shuffled=False, size=64) for _ in range(count)]
        answers = [[loop.once() for _ in range(16 if quick else 64)] for loop in loops]
        for loop in loops:
            loop.fresh()
        spent = []
        for turn in zip(*answers, strict=True):
            begin = time.perf_counter()
            for loop, answer in zip(loops, turn, strict=True):
                loop.chunk([answer])
            spent.append(time.perf_counter() - begin)
        return statistics.median(spent) / count / _BATCH

    return cost


_KINDS: tuple[tuple[str, type[Loop], bool], ...] = (
    ("split, fixed slots in order", _FullFixed, False),
    ("split, fixed slots in any order", _FullFixed, True),
    ("split, chains by themselves", _FullEngine, False),
    ("packed, fixed slots in order", _FullPackedFixed, False),
    ("packed, fixed slots in any order", _FullPackedFixed, True),
    ("packed, chains by themselves", _FullPackedEngine, False),
)

_LISTS = (0.35, "a run put into a list moves the 8 bytes of each later one: seen beyond 100,000 runs alone")

CURVES: tuple[Curve, ...] = (
    *(
        Curve(f"ring of n entries: {name}", "descriptor", SIZES, _ring(kind, shuffled=shuffled))
        for name, kind, shuffled in _KINDS
    ),
    *(
        Curve(f"n queues: {name}", "descriptor", QUEUES, _queues(kind))
        for name, kind, shuffled in _KINDS
        if not shuffled
    ),
    *(
        Curve(f"list of n devices: {name}", "device", machines.SIZES, machines.listed(make))
        for name, make in machines.KINDS
    ),
    Curve(
        "memory device of n bytes, opened: eight runs of blocks",
        "opening",
        drivers.REGIONS,
        drivers.opened(drivers.few, each=False),
        NLOGN,
        "one request for each 65,535 blocks, and two for each halving down to the ends of a run: log n",
    ),
    Curve(
        "runs of a memory device of n bytes, opened: one block in 256",
        "run",
        drivers.REGIONS,
        drivers.opened(drivers.many, each=True),
    ),
    *(
        Curve(f"books of n runs of blocks: {name}", "step", drivers.BOOKS, cost, *_LISTS)
        for name, cost in (
            ("unplug and plug", drivers.booked(drivers.replug)),
            ("claim and release", drivers.booked(drivers.claim)),
            ("compare a run with what was found", drivers.compared),
        )
    ),
    Curve("balloon of n bytes: inflate", "page", drivers.BALLOONS, drivers.inflated()),
    Curve("balloon of n bytes: deflate", "page", drivers.BALLOONS, drivers.inflated(down=True)),
    *(
        Curve(f"n devices in one process: {name}", "device", drivers.DEVICES, drivers.together(opening=opening))
        for name, opening in (("open one more, and close it", True), ("read from each", False))
    ),
)


# --- what is kept ---------------------------------------------------------------------------------------------

COMPLETIONS = 100_000
_KEPT = 4096
"""Bytes that may be more after 100,000 completions: what tracemalloc, numbers and free lists need."""


def kept(kind: type[Loop], *, shuffled: bool, completions: int) -> float:
    """Bytes of Python objects that a ring has more after so many completions than after a tenth of them."""
    loop = kind(_BATCH, shuffled=shuffled)
    answers = iter([loop.once() for _ in range(11 * completions // 10 // _BATCH)])
    loop.fresh()

    def go(count: int) -> None:
        loop.chunk(itertools.islice(answers, count // _BATCH))

    gc.collect()
    tracemalloc.start(1)
    try:
        go(completions // 10)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        go(completions)
        gc.collect()
        return float(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()


def run(runs: int, quick: bool) -> Section:
    """All curves, and what the paths of the ring keep."""
    section = Section("growth", "Cost of a unit at growing sizes, and its slope: 0 is flat, 1 is in proportion.")
    for curve in CURVES:
        sizes = list(curve.sizes[:: 4 if quick else 1])
        costs = [min(curve.cost(size, quick) for _ in range(runs)) for size in sizes]
        section.curve(curve.name, curve.unit, sizes, costs, curve.most, curve.why)
    each = [drivers.bytes_a_page(size) for size in drivers.BALLOONS[: 1 if quick else None]]
    section.add("balloon: bytes of Python objects a page, 64 MiB to 64 GiB", each, "B")
    section.compare("balloon: bytes a page / 10", [max(each)], [10.0], 1.0, at_least=False)
    for name, kind, shuffled in _KINDS:
        more = kept(kind, shuffled=shuffled, completions=COMPLETIONS // 20 if quick else COMPLETIONS)
        section.add(f"{name}: kept after {COMPLETIONS:,} completions", [more], "B")
        section.compare(f"{name}: kept / {_KEPT} B", [max(more, 0.0)], [float(_KEPT)], 1.0, at_least=False)
    return section
