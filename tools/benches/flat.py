"""The baseline of the disk: the same reads by flat code that knows one queue and one size, and trusts the device.

No slots, no sessions, no deadline, no look at ids, lengths or anything but the contents: what is left is QEMU, the
copies, and Python's loop. It is here to be compared with, not to be used.
"""

from __future__ import annotations

import time
from array import array

from uvirtio.device import Device
from uvirtio.memory.access import words16, words32, words64
from uvirtio.memory.fence import full_fence
from uvirtio.spec import blk as spec
from uvirtio.spec.ring import DESC_F_NEXT, DESC_F_WRITE, RING_ENTRIES
from uvirtio.virtqueue.split import SplitQueue

SIZE = 4096
LOST = 10.0
"""Seconds for all of it."""


def read(device: Device, queue: int, depth: int, blocks: list[int], content: list[bytes]) -> float:
    """Read these blocks of 4 KiB, ``depth`` at a time, on a queue with no other user; reads/s."""
    ring = device.queues[queue].ring
    if not isinstance(ring, SplitQueue) or 3 * depth > ring.size:
        raise AssertionError("flat code knows split rings only, with three descriptors for a request")
    dma = device.dma
    headers, statuses, data = dma.alloc(16 * depth), dma.alloc(depth), dma.alloc(SIZE * depth)
    desc, driver, used_area = (area.view for area in ring.areas)
    table = words64(desc, 0, 2 * ring.size)
    avail, used = words16(driver, 0, 3 + ring.size), words16(used_area, 0, 3 + 4 * ring.size)
    elements = words32(used_area, RING_ENTRIES, 2 * ring.size)
    head = words64(headers.view, 0, 2 * depth)
    views = [data.view[SIZE * slot : SIZE * (slot + 1)] for slot in range(depth)]
    try:
        for slot in range(depth):
            parts = (
                (headers, 16, DESC_F_NEXT),
                (data, SIZE, DESC_F_NEXT | DESC_F_WRITE),
                (statuses, 1, DESC_F_WRITE),
            )
            for number, (block, length, flags) in enumerate(parts, 3 * slot):
                ((address, _),) = block.segments(slot * length, length)
                table[2 * number], table[2 * number + 1] = address, length | flags << 32 | number + 1 << 48
            head[2 * slot] = spec.Request.IN
        fence, mask, size = full_fence(), ring.size - 1, ring.size
        kick = device.queues[queue].notify
        avail[0] = 1  # no interrupts
        sectors = array("Q", (8 * block for block in blocks))
        expected = [content[block] for block in blocks]
        where = list(range(depth))
        begin = time.perf_counter()
        limit = begin + LOST
        free, shown, seen, place, count = list(range(depth)), avail[1], used[1], 0, len(blocks)
        out = 0
        while place < count or out:
            free = free[: count - place]
            for slot in free:
                head[2 * slot + 1], where[slot] = sectors[place], place
                avail[2 + (shown & mask)] = 3 * slot
                shown, place = shown + 1, place + 1
            out += len(free)
            avail[1] = shown & 0xFFFF
            fence()
            if not used[0] & 1:
                kick()
            turns = 0
            while used[1] == seen:
                turns += 1
                if not turns & 0xFFFF and time.perf_counter() > limit:
                    raise AssertionError("the device does not answer")
            now = used[1]
            back = [elements[2 * (number % size)] // 3 for number in range(seen, seen + (now - seen & 0xFFFF))]
            seen = now
            for slot in back:
                if views[slot].tobytes() != expected[where[slot]]:
                    raise AssertionError(f"slot {slot} does not hold what it should")
            out -= len(back)
            free = back
        return count / (time.perf_counter() - begin)
    finally:
        for view in (table, avail, used, elements, head, *views):
            view.release()
