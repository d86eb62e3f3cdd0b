"""The baseline of the network card: frames through the ctypes ring of ``plain_ring``, without a single check.

It copies each frame in or out, believes the device's ids, lengths and headers, and has no deadline, no fence and
no books. It is here to be compared with, not to be used.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benches.plain_ring import Desc, PlainRing
from uvirtio.device import Device
from uvirtio.spec.ring import DESC_F_WRITE
from uvirtio.virtqueue.split import SplitQueue

HEADER = 12
SLOT = 2048
START = 10.0
"""Seconds."""


class _OnDevice(PlainRing):
    """The ctypes ring in the memory of a live queue."""

    def __init__(self, ring: SplitQueue) -> None:
        super().__init__(ring.size)
        desc, driver, used = (area.view for area in ring.areas)
        self.desc = (Desc * ring.size).from_buffer(desc)
        self.avail = type(self.avail).from_buffer(driver)
        self.used = type(self.used).from_buffer(used)
        self.shadow, self.last_used = self.avail.idx, self.used.idx
        self.avail.flags = 1  # no interrupts


@contextmanager
def _queue(device: Device, index: int) -> Iterator[tuple[_OnDevice, list[int], ctypes.Array[ctypes.c_char]]]:
    """The ring of a queue that is not used otherwise, addresses of its buffers, and these as one array."""
    ring = device.queues[index].ring
    assert isinstance(ring, SplitQueue)
    block = device.dma.alloc(SLOT * ring.size)
    memory = (ctypes.c_char * (SLOT * ring.size)).from_buffer(block.view)
    plain = _OnDevice(ring)
    addresses = [block.segments(SLOT * slot, SLOT)[0][0] for slot in range(ring.size)]
    try:
        yield plain, addresses, memory
    finally:
        del plain.desc, plain.avail, plain.used, memory


def _started(limit: float, now: float) -> float:
    """The time by which the device has to have used buffers twice: what is timed begins with the first ones."""
    if limit and now > limit:
        raise AssertionError(f"the device used no buffer within {START:g} s")
    return limit or now + START


def send(device: Device, index: int, frame: bytes, seconds: float) -> float:
    """Frames/s, each copied into its buffer, as many at a time as there are descriptors."""
    with _queue(device, index) as (ring, addresses, memory):
        base, length, count = ctypes.addressof(memory), len(frame), 0
        notify, memmove = device.queues[index].notify, ctypes.memmove
        begin = now = limit = 0.0
        while not count or now - begin < seconds:
            free = len(ring.free)
            for _ in range(free):
                slot = ring.free[-1]
                memmove(base + SLOT * slot + HEADER, frame, length)
                ring.add(addresses[slot], HEADER + length, 0)
            if free and ring.publish():
                notify()
            came, now = len(ring.reap()), time.perf_counter()
            if begin and came:
                count += came
            elif came:
                begin = now
            elif not count:
                limit = _started(limit, now)
        del memory
        return count / (now - begin)


def receive(device: Device, index: int, seconds: float) -> float:
    """Frames/s, each copied out as bytes, their buffers given back at once."""
    with _queue(device, index) as (ring, addresses, memory):
        base, count = ctypes.addressof(memory), 0
        notify, string_at = device.queues[index].notify, ctypes.string_at
        for _ in range(ring.size):
            ring.add(addresses[ring.free[-1]], SLOT, DESC_F_WRITE)
        ring.publish()
        notify()
        begin = now = limit = 0.0
        while not count or now - begin < seconds:
            frames = []
            back = ring.reap()
            for slot, written in back:
                frames.append(string_at(base + SLOT * slot + HEADER, written - HEADER))
            for _ in back:
                ring.add(addresses[ring.free[-1]], SLOT, DESC_F_WRITE)
            if back and ring.publish():
                notify()
            now = time.perf_counter()
            if begin and frames:
                count += len(frames)
            elif frames:
                begin = now
            elif not count:
                limit = _started(limit, now)
        del memory
        return count / (now - begin)
