"""How much memory a queue takes, and whether the batch path makes objects that stay, or any at all in a round."""

from __future__ import annotations

import gc
import tracemalloc
from array import array

from benches.measure import Section
from benches.plain_memory import PlainDma
from benches.rings import Device
from uvirtio.memory.fence import full_fence
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.slots import Slots, fixed_slots
from uvirtio.virtqueue.split import SplitQueue, make_split

SIZE = 256
BUFFER = 4096
BATCH = 32
_MOST = 2 << 20
_TUPLE = 56.0
"""Bytes of the smallest tuple that a completion could be: less than that for each is no object for each."""


def run(runs: int, quick: bool) -> Section:
    """Bytes of a queue of 256 with a 4 KiB buffer for each slot; blocks that a round of the batch path leaves."""
    section = Section("memory", f"A split queue of {SIZE} with {BUFFER} bytes for each slot, and INDIRECT_DESC.")
    rounds = 64 if quick else 2000
    _laid()  # what is imported, or made, for the first queue alone
    gc.collect()
    tracemalloc.start(1)
    try:
        before = tracemalloc.get_traced_memory()[0]
        dma, queue, slots = _laid()
        objects = tracemalloc.get_traced_memory()[0] - before
        shared = sum(block.size for block in dma.blocks)
        section.add("shared with the device", [float(shared)], "B")
        section.add("Python objects", [float(objects)], "B")
        section.add("together", [float(shared + objects)], "B", f"wanted under {_MOST >> 20} MiB")
        section.compare(
            "a queue of 256 with its buffers / 2 MiB",
            [float(shared + objects)],
            [float(_MOST)],
            1.0,
            at_least=False,
        )

        device = Device(dma.at(queue.addresses[2]).view, BATCH, shuffled=False, length=BUFFER)
        kept, peak = _rounds(slots, device, rounds)
    finally:
        tracemalloc.stop()
    section.add("batch path, kept for each completion", [kept], "B")
    section.add("batch path, made and dropped by a reap of 32", [peak], "B", "a few flat copies, no object each")
    section.compare(
        "batch path: bytes made for each completion / a tuple", [peak / BATCH], [56.0], 1.0, at_least=False
    )
    section.compare("batch path: bytes kept for each completion / a tuple", [kept], [56.0], 0.01, at_least=False)
    return section


def _laid() -> tuple[PlainDma, SplitQueue, Slots]:
    """A queue with a buffer for each slot."""
    dma = PlainDma()
    queue = make_split(0, SIZE, dma, RingOptions(fence=full_fence(), indirect=True, event_idx=True))
    buffers = dma.alloc(SIZE * BUFFER)
    chains = [((), ((buffers.address + BUFFER * slot, BUFFER),)) for slot in range(SIZE)]
    return dma, queue, fixed_slots(queue, chains)


def _rounds(slots: Slots, device: Device, rounds: int) -> tuple[float, float]:
    """(bytes kept for each completion of the second half, most bytes that one reap made on its way)."""
    back, most, start = array("H", range(BATCH)), 0, 0
    for number in range(rounds):
        if number == rounds // 2:  # what is made once has been made
            gc.collect()
            start = tracemalloc.get_traced_memory()[0]
        slots.submit(back)
        device.give(device.answer(back))
        tracemalloc.reset_peak()
        here = tracemalloc.get_traced_memory()[0]
        back = slots.reap()
        if number >= rounds // 2:
            most = max(most, tracemalloc.get_traced_memory()[1] - here)
    gc.collect()
    return (tracemalloc.get_traced_memory()[0] - start) / (rounds - rounds // 2) / BATCH, float(most)
