"""Rng on any cell."""

from __future__ import annotations

import pytest

from tests.bodies import Cell
from uvirtio.drivers.rng import Rng
from uvirtio.errors import UsageError
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f
from uvirtio.spec import rng as spec


@pytest.mark.spec("RNG-01", "RNG-02", "SPL-16", "SPL-17")
def test_as_many_bytes_as_asked_for(cell: Cell) -> None:
    with cell.open() as device, Rng(device) as rng:
        for count in (5000, 0, 1, 64):
            assert len(rng.read(count)) == count


def test_two_reads_differ(cell: Cell) -> None:
    with cell.open() as device, Rng(device) as rng:
        first, second = rng.read(64), rng.read(64)
        assert first != second
        assert len(set(first)) > 8


@pytest.mark.spec("SPL-25", "SPL-26", "SPL-29", "PKD-15", "PKD-16", "PKD-17")
def test_the_device_follows_our_indices(cell: Cell) -> None:
    with cell.open() as device, Rng(device) as rng:
        for _ in range(10):
            rng.read(16)
        seen = cell.queue(spec.REQUESTQ)
        ring = device.queues[spec.REQUESTQ].ring
        # Of a packed ring the witness knows the place, not how many went by.
        expected = 10 if ring.kind == "split" else 10 % ring.size
        assert seen["last-avail-idx"] == seen["used-idx"] == expected
        assert seen["inuse"] == 0


@pytest.mark.spec("QRST-01", "QRST-02", "PCI-COM-07")
def test_the_queue_can_be_reset_by_itself(cell: Cell) -> None:
    with cell.open() as device, Rng(device) as rng:
        # QEMU 7.2 offers it over MMIO too, without the register (docs/mmio.md).
        if not device.has(f.RING_RESET) or device.transport.kind != "pci-modern":
            pytest.skip("queues cannot be reset by themselves here")
        queue = device.queues[spec.REQUESTQ]
        for _ in range(2):
            assert len(rng.read(100)) == 100
            assert device.reset_queue(queue) == []
            assert cell.queue(spec.REQUESTQ)["last-avail-idx"] == 0
        before = device.counters.interrupts_taken
        assert len(rng.read(100)) == 100
        if cell.mode is not InterruptMode.POLLING:
            device.wait(lambda: device.counters.interrupts_taken > before, timeout=5, what="an interrupt")


def test_completions_come_by_interrupt(cell: Cell) -> None:
    with cell.open() as device, Rng(device) as rng:
        for _ in range(5):
            rng.read(16)
        if cell.mode is InterruptMode.POLLING:
            assert device.counters.interrupts_taken == 0
        else:
            device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")


def test_a_negative_count_is_refused_and_nothing_breaks(cell: Cell) -> None:
    with cell.open() as device, Rng(device) as rng:
        with pytest.raises(UsageError):
            rng.read(-1)
        assert len(rng.read(8)) == 8
