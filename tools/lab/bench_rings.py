"""How fast the rings are, next to a ring of plain ctypes structures that checks nothing: ratios of one run.

    PYTHONPATH=tools python3 -m lab.bench_rings [--quick] [--json]

The driver's side alone is timed; the device is a few stores between two readings of the clock, and not counted.
Each figure is the median over all batches, in descriptors (or chains) a second, added, shown and taken back.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import platform
import random
import statistics
import tracemalloc
from array import array
from collections.abc import Callable
from time import perf_counter
from typing import Any

from uvirtio.memory.fence import full_fence
from uvirtio.virtqueue.packed import PackedQueue
from uvirtio.virtqueue.slots import fixed_slots
from uvirtio.virtqueue.split import SplitQueue

SIZE, BATCH, ROOM = 256, 32, 64
BASELINE = "ctypes structures, unchecked"


class Memory:
    """A block of this process's memory that no device ever touches."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, max(size, 4096))
        self.view = memoryview(self._map)
        self.size = size
        self.contiguous = True

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        return [(0x1000_0000 + offset, length)]

    def pfns(self) -> list[int]:
        return []

    def close(self) -> None:
        self.view.release()
        self._map.close()


# --- the baseline -------------------------------------------------------------------------------------------


class _Desc(ctypes.LittleEndianStructure):
    _fields_ = (
        ("addr", ctypes.c_uint64),
        ("len", ctypes.c_uint32),
        ("flags", ctypes.c_uint16),
        ("next", ctypes.c_uint16),
    )


class _Element(ctypes.LittleEndianStructure):
    _fields_ = (("id", ctypes.c_uint32), ("len", ctypes.c_uint32))


class _Avail(ctypes.LittleEndianStructure):
    _fields_ = (
        ("flags", ctypes.c_uint16),
        ("idx", ctypes.c_uint16),
        ("ring", ctypes.c_uint16 * SIZE),
        ("used_event", ctypes.c_uint16),
    )


class _Used(ctypes.LittleEndianStructure):
    _fields_ = (
        ("flags", ctypes.c_uint16),
        ("idx", ctypes.c_uint16),
        ("ring", _Element * SIZE),
        ("avail_event", ctypes.c_uint16),
    )


class CtypesRing:
    """A split ring as it is usually written in Python. No fence, no event index, nothing checked, no chains."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 4 * 4096)
        self._desc = (_Desc * SIZE).from_buffer(self._map, 0)
        self._avail = _Avail.from_buffer(self._map, 4096)
        self.used = _Used.from_buffer(self._map, 8192)
        self._free = list(range(SIZE))
        self._cookies: list[Any] = [None] * SIZE
        self._last = 0

    def add(self, address: int, length: int, cookie: object) -> None:
        head = self._free.pop()
        desc = self._desc[head]
        desc.addr = address
        desc.len = length
        desc.flags = 2
        desc.next = 0
        self._cookies[head] = cookie
        avail = self._avail
        avail.ring[avail.idx % SIZE] = head
        avail.idx = (avail.idx + 1) & 0xFFFF

    def reap(self) -> list[tuple[object, int]]:
        done = []
        used = self.used
        while self._last != used.idx:
            element = used.ring[self._last % SIZE]
            done.append((self._cookies[element.id], element.len))
            self._free.append(element.id)
            self._last = (self._last + 1) & 0xFFFF
        return done

    def answer(self, first: int, count: int) -> None:
        """What a device does, in order."""
        for number in range(first, first + count):
            element = self.used.ring[number % SIZE]
            element.id = self._avail.ring[number % SIZE]
            element.len = ROOM
        self.used.idx = (first + count) & 0xFFFF


# --- measuring ----------------------------------------------------------------------------------------------


def _rate(
    give: Callable[[], object], answer: Callable[[], object], take: Callable[[], object], runs: int
) -> float:
    """Descriptors a second; ``answer`` is the device, and not timed."""
    taken = []
    for _ in range(runs):
        begin = perf_counter()
        give()
        given = perf_counter()
        answer()
        answered = perf_counter()
        take()
        taken.append(perf_counter() - answered + given - begin)
    return BATCH / statistics.median(taken)


def baseline(runs: int) -> float:
    ring = CtypesRing()
    served = 0

    def give() -> None:
        for number in range(BATCH):
            ring.add(0x1000, ROOM, number)

    def answer() -> None:
        nonlocal served
        ring.answer(served, BATCH)
        served += BATCH

    return _rate(give, answer, ring.reap, runs)


def make(kind: str) -> Any:
    """A queue with EVENT_IDX, polled (its interrupts are off), every check on."""
    made: Any = {"split": SplitQueue, "packed": PackedQueue}[kind]
    blocks = [Memory(area) for area in made.area_sizes(SIZE)]
    queue = made(0, SIZE, *blocks, fence=full_fence(), event_idx=True)
    queue.want_interrupts(False)
    return queue


class Answers:
    """The device of ``queue``: uses the slots that it is told of, in this order."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._served = 0

    def __call__(self, ids: list[int]) -> None:
        queue = self._queue
        for number, ident in enumerate(ids, self._served):
            lap, place = divmod(number, SIZE)
            if queue.kind == "split":
                queue._elements[2 * place] = ident
                queue._elements[2 * place + 1] = ROOM
            else:
                flags = 2 if lap & 1 else 0x8082
                queue._desc[2 * place + 1] = ROOM | ident << 32 | flags << 48
        self._served += len(ids)
        if queue.kind == "split":
            queue._used[1] = self._served & 0xFFFF


def chain_at_a_time(kind: str, runs: int) -> float:
    queue = make(kind)
    answers = Answers(queue)
    run = ((0x1000, ROOM),)

    def give() -> None:
        for number in range(BATCH):
            queue.add((), run, number)
        queue.publish()

    def answer() -> None:
        out = [(entry[3], ident) for ident, entry in enumerate(queue._out) if entry is not None]
        answers([ident for _, ident in sorted(out)])

    return _rate(give, answer, queue.reap, runs)


def slots(kind: str, runs: int, *, shuffled: bool) -> float:
    queue = make(kind)
    chains = [((), ((0x1000 * number, ROOM),)) for number in range(SIZE)]
    fixed = fixed_slots(queue, chains)
    answers = Answers(queue)
    rng = random.Random(1)
    now = array("H", range(BATCH))

    def give() -> None:
        fixed.post(now)

    def answer() -> None:
        ids = list(now)
        if shuffled:
            rng.shuffle(ids)
        answers(ids)

    def take() -> None:
        nonlocal now
        now = fixed.reap()

    rate = _rate(give, answer, take, runs)
    assert sorted(now) == list(range(BATCH))
    return rate


def allocated(kind: str, runs: int = 200) -> float:
    """Bytes that the batch path leaves allocated for each completion, over many batches."""
    queue = make(kind)
    fixed = fixed_slots(queue, [((), ((0x1000 * number, ROOM),)) for number in range(SIZE)])
    answers = Answers(queue)
    now = array("H", range(BATCH))
    tracemalloc.start()
    try:
        before = 0
        for number in range(runs + 10):
            fixed.post(now)
            answers(list(now))
            now = fixed.reap()
            if number == 9:
                before = tracemalloc.get_traced_memory()[0]
        return max(0, tracemalloc.get_traced_memory()[0] - before) / (runs * BATCH)
    finally:
        tracemalloc.stop()


def measure(*, quick: bool = False) -> dict[str, Any]:
    """All figures of one run: rates a second, their ratio to the baseline, and what stays allocated."""
    runs = 50 if quick else 3000
    rates: dict[str, float] = {BASELINE: baseline(runs)}
    for kind in ("split", "packed"):
        rates[f"{kind}, a chain at a time"] = chain_at_a_time(kind, runs)
        rates[f"{kind}, fixed slots, in order"] = slots(kind, runs, shuffled=False)
        rates[f"{kind}, fixed slots, any order"] = slots(kind, runs, shuffled=True)
    base = rates[BASELINE]
    return {
        "python": platform.python_version(),
        "queue": SIZE,
        "batch": BATCH,
        "descriptors_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio_to_baseline": {name: round(rate / base, 2) for name, rate in rates.items()},
        "bytes_left_per_completion": {kind: round(allocated(kind), 3) for kind in ("split", "packed")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--json", action="store_true")
    wish = parser.parse_args()
    found = measure(quick=wish.quick)
    if wish.json:
        print(json.dumps(found))
        return 0
    for name, rate in found["descriptors_per_second"].items():
        print(f"{name:34} {rate / 1e6:8.2f} M/s {found['ratio_to_baseline'][name]:7.2f} x")
    print(f"left allocated, bytes a completion: {found['bytes_left_per_completion']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
