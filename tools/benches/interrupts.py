"""Interrupts: how many a second the wait loop handles, beside a bare loop that does nothing else.

With a device: a request is kicked, QEMU answers it and writes the vector's eventfd; the bare loop has the same
rings and the same kick, and only an epoll and a read for the interrupt. Without: the eventfd is written here, so
that nothing but the loop itself is measured: one after the other, which the loop expects after two of them, and
each after a wait that found nothing, so that it does not.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from functools import partial

from benches import measure
from benches.measure import Section
from uvirtio.device import Device
from uvirtio.drivers.rng import Rng
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec import rng as spec


def _rate(count: int, one: Callable[[], None], before: Callable[[], object] = lambda: None) -> float:
    """A second's worth of ``one``, by the median of its times; ``before`` each, not timed."""
    took = []
    for _ in range(count):
        before()
        begin = time.perf_counter()
        one()
        took.append(time.perf_counter() - begin)
    return 1 / sorted(took)[count // 2]


def loops(device: Device) -> list[Callable[[], None]]:
    queue = device.queues[spec.REQUESTQ]
    buffer = device.dma.alloc(4096).segments(0, 16)
    vector = device.transport.events()[1].fileno()
    poller = select.epoll()
    poller.register(vector, select.EPOLLIN)

    def bare() -> None:
        queue.add((), buffer, None)
        queue.kick()
        while not queue.reap():
            poller.poll(1.0)
            os.eventfd_read(vector)

    def ours() -> None:
        queue.add((), buffer, None)
        queue.kick()
        device.wait(lambda: bool(queue.reap()), timeout=5, what="an answer")

    def bare_alone() -> None:
        os.eventfd_write(vector, 1)
        poller.poll(1.0)
        os.eventfd_read(vector)

    def ours_alone() -> None:
        taken = device.counters.interrupts_taken
        os.eventfd_write(vector, 1)
        device.wait(lambda: device.counters.interrupts_taken != taken, timeout=5, what="an interrupt")

    return [ours, bare, ours_alone, bare_alone]


def run(runs: int, quick: bool) -> Section:
    """Interrupts handled a second."""
    section = Section("interrupts", "MSI-X on qemu: (an eventfd for each vector), handled one after the other.")
    count = 50 if quick else 3000
    with Machine("q35", ["virtio-rng-pci"]) as machine:
        function = machine.functions[0]
        with identify(function.address, function) as device, Rng(device):
            ones = loops(device)
            works = [partial(_rate, count, one) for one in ones]
            nothing = partial(device.wait, lambda: True, timeout=5, what="nothing")
            works.append(partial(_rate, count, ones[2], nothing))
            ours, bare, ours_alone, bare_alone, unexpected = measure.interleaved(runs, *works)
    section.add("with a device: wait loop", ours, "irq/s")
    section.add("with a device: kick, epoll, read", bare, "irq/s")
    section.add("eventfd alone: wait loop", ours_alone, "irq/s")
    section.add("eventfd alone, not expected: wait loop", unexpected, "irq/s")
    section.add("eventfd alone: write, epoll, read", bare_alone, "irq/s")
    section.compare("with a device: wait loop / bare loop", ours, bare, 0.8)
    section.compare("eventfd alone: wait loop / bare loop", ours_alone, bare_alone, 0.65)
    section.compare("eventfd alone, not expected: wait loop / bare loop", unexpected, bare_alone, None)
    return section
