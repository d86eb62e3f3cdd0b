"""4.2.4: the registers of virtio-mmio version 1, the legacy interface."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.areas.mmio import cleared_by_reset, in_use, of_queue, queues_of, steady, window_of
from uvirtio.conform.areas.split import only
from uvirtio.conform.exchange import SERVED
from uvirtio.conform.lane import SplitLane
from uvirtio.conform.row import M1, Area, Level
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome
from uvirtio.interfaces.memory import Block, DmaSpace, Registers
from uvirtio.spec import mmio, ring
from uvirtio.spec.status import describe
from uvirtio.transports.mmio_doorbell import QueueNotifyDoorbell
from uvirtio.virtqueue.base import RingOptions, allocate_queue
from uvirtio.virtqueue.region import Part
from uvirtio.virtqueue.split import SplitQueue

AREA = Area("mmio_legacy", 51, "4.2.4: the registers of virtio-mmio version 1", transports=frozenset({M1}))

_TRAFFIC: Final = SERVED
_PAIRED: Final = frozenset({"balloon", "input"})
"""Types with a second queue that needs no request to be good."""


def _write(window: Registers, queue: int, *values: tuple[int, int]) -> None:
    """Select a queue, and write registers of it in this order."""
    window.write32(mmio.QUEUE_SEL, queue)
    for register, value in values:
        window.write32(register, value)


@AREA.row("D-MMIO-L1", "4.2.4", "DESC", "Version of a legacy device is 1.", level=Level.LOOK)
def legacy_version(t: Trial) -> Outcome:
    """Read at status 0, ACKNOWLEDGE and DRIVER."""
    steady(t, mmio.VERSION_REG, mmio.VERSION_LEGACY, "Version")
    return None


@AREA.row(
    "D-MMIO-L2",
    "4.2.4",
    "DESC",
    "QueuePFN reads the page number in use, and 0 where there is none.",
)
def frame_reads_back(t: Trial) -> Outcome:
    """Read before a queue is enabled, at DRIVER_OK, and after a reset."""
    only(t)
    window = window_of(t)
    index = queues_of(t)[0]
    t.expect(not of_queue(window, index, mmio.QUEUE_PFN), "QueuePFN is not 0 before the queue is enabled", "0")
    lane = t.start(queues=[index])
    frame = lane.queue.addresses[0] >> 12
    seen = of_queue(window, index, mmio.QUEUE_PFN)
    t.expect(seen == frame, f"QueuePFN {seen:#x} while the device runs", f"{frame:#x}, as written")
    t.confirm_reset()
    seen = of_queue(window, index, mmio.QUEUE_PFN)
    t.expect(seen == 0, f"QueuePFN {seen:#x} after the reset", "0")
    return None


@AREA.row(
    "D-MMIO-L3",
    "4.2.4",
    "DESC",
    "QueuePFN 0 stops that queue and no other.",
    level=Level.ODD,
    types=_PAIRED,
)
def stops_one_queue(t: Trial) -> Outcome:
    """Of two queues of a running device one is stopped; the other serves on."""
    only(t)
    main = t.exchange.queue
    other = 1 - main
    lane = t.start(queues=[main, other])
    t.good(lane)
    before = t.status()
    window = window_of(t)
    frame = of_queue(window, main, mmio.QUEUE_PFN)
    _write(window, other, (mmio.QUEUE_PFN, 0))
    status = t.status()
    t.expect(status == before, f"status {describe(status)} after one queue was stopped", describe(before))
    seen = of_queue(window, main, mmio.QUEUE_PFN)
    t.expect(seen == frame, f"QueuePFN {seen:#x} of the other queue", f"{frame:#x}, as before")
    t.good(lane)
    return None


@AREA.row(
    "D-MMIO-L4",
    "4.2.4",
    "DESC",
    "QueueAlign places the used ring.",
    level=Level.ODD,
    types=_TRAFFIC,
)
def align_places_the_used_ring(t: Trial) -> Outcome:
    """A queue whose used ring is 256-byte aligned, in the page of its other parts, serves."""
    only(t)
    align, size = 256, 16
    index = t.exchange.queue
    layout = ring.legacy_layout(size, align)
    t.negotiate(t.plain)
    t.need(t.transport.queue_layout(index).size_max >= size, f"queue {index} has no {size} entries")

    def areas(queue: int, entries: int, dma: DmaSpace) -> list[Block]:
        whole = dma.alloc(layout.total)  # less than a page
        return [
            Part(whole, layout.desc, layout.avail - layout.desc),
            Part(whole, layout.avail, layout.used - layout.avail),
            Part(whole, layout.used, layout.total - layout.used, last=True),
        ]

    options = RingOptions(fence=lambda: None, one_region=True)
    queue = allocate_queue(SplitQueue, index, size, t.dma, options, areas)
    window = window_of(t)
    lane = t.lanes[index] = SplitLane(queue, QueueNotifyDoorbell(window), with_data=False, in_order=False)
    frame = queue.addresses[0] >> 12
    _write(window, index, (mmio.QUEUE_SIZE, size), (mmio.QUEUE_ALIGN, align), (mmio.QUEUE_PFN, frame))
    t.go()
    t.good(lane, size + 1)
    return None


@AREA.row("D-MMIO-L5", "4.2.4", "DESC", "A reset sets QueuePFN of all queues to 0.")
def reset_clears_the_frames(t: Trial) -> Outcome:
    """All queues are enabled, and read after the reset."""
    cleared_by_reset(t, mmio.QUEUE_PFN, "QueuePFN")
    return None


@AREA.row(
    "D-MMIO-L6",
    "4.2.4",
    "DESC",
    "Version 1 has no registers of version 2: writes to them do nothing.",
    level=Level.REGISTERS,
    types=_TRAFFIC,
)
def no_modern_registers(t: Trial) -> Outcome:
    """QueueReady 0 and another QueueDesc, an empty page of ours, are written to a live queue, which serves on."""
    lane, window = in_use(t)
    page = t.own_page() << 12
    low, high = (mmio.QUEUE_DESC_LOW, page & 0xFFFFFFFF), (mmio.QUEUE_DESC_HIGH, page >> 32)
    _write(window, lane.index, low, high, (mmio.QUEUE_READY, 0))
    t.good(lane)
    return None
