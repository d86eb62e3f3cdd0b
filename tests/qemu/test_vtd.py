"""Behind an IOMMU that this process programs: rings where no memory is, and faults when it takes them away.

The witnesses are the IOMMU's own fault records, and QMP.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import uvirtio
from tests.bodies import Cell, adopt, any_device, balloon, keyboard, rng
from uvirtio.backends.qemu.vtd import FIRST_IOVA, PAGE, Fault, TranslatedBlock, TranslatedDma
from uvirtio.device import Device
from uvirtio.drivers.rng import Rng
from uvirtio.errors import DeviceNeedsReset, DeviceTimeout
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine

PER_QUEUE, SHARED, INTX, POLLING = InterruptMode
BEHIND = "iommu_platform=on,disable-legacy=on"
NO_READ, NO_WRITE = 6, 5


def behind(device: Device) -> TranslatedDma:
    assert isinstance(device.dma, TranslatedDma)
    return device.dma


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine("q35", [f"virtio-rng-pci,{BEHIND}"], iommu="intel") as machine:
        yield machine
        assert machine.iommu is not None
        assert machine.iommu.faults() == []  # each test took those that it caused


def opened(machine: Machine, timeout: float = 5.0) -> Device:
    function = machine.functions[0]
    return identify(function.address, function, timeout=timeout, interrupts=[POLLING])


@pytest.mark.fault(24)
@pytest.mark.spec("RSV-02", "RSV-03")
def test_the_ring_lies_where_no_memory_is(machine: Machine):
    with opened(machine) as device, Rng(device) as driver:
        assert machine.functions[0].translates
        assert device.dma.translated
        seen = machine.qmp("x-query-virtio-queue-status", path="/machine/peripheral/dev0/virtio-backend", queue=0)
        places = device.queues[0].ring.addresses
        assert (seen["vring-desc"], seen["vring-avail"], seen["vring-used"]) == places
        assert all(place >= FIRST_IOVA > machine.memory.size for place in places)
        first, second = driver.read(64), driver.read(64)
        assert first != second


@pytest.mark.fault(24)
@pytest.mark.spec("RSV-03")
def test_a_buffer_that_was_taken_away_faults_at_its_address(machine: Machine):
    with opened(machine) as device, Rng(device):
        queue, dma = device.queues[0], behind(device)
        block = dma.alloc(PAGE)
        assert machine.iommu is not None
        dma.domain.unmap(block.address, PAGE)
        queue.add((), [(block.address, 64)], "gone")
        queue.kick()
        done: list[object] = []
        device.wait(lambda: bool(done.extend(queue.reap()) or done), timeout=5, what="the buffer")
        # The device says that it wrote, and wrote nowhere: only the IOMMU tells.
        assert bytes(block.view[:64]) == bytes(64)
        assert machine.iommu.faults() == [Fault(devfn_of(machine), block.address, NO_WRITE)]


@pytest.mark.spec("RSV-03")
def test_a_ring_that_was_taken_away_faults_and_stops_the_device(machine: Machine):
    with opened(machine, timeout=0.5) as device:
        driver = Rng(device)
        assert driver.read(8)
        ring = device.queues[0].ring.addresses
        behind(device).domain.unmap(ring[1], PAGE)
        assert machine.iommu is not None
        with pytest.raises((DeviceTimeout, DeviceNeedsReset)):
            driver.read(8, timeout=0.3)
        faults = machine.iommu.faults()
        assert {fault.reason for fault in faults} <= {NO_READ, NO_WRITE}
        assert ring[1] in {fault.address for fault in faults}
        assert {fault.devfn for fault in faults} == {devfn_of(machine)}
    machine.iommu.faults()  # the way out may run into it once more


def devfn_of(machine: Machine) -> int:
    return machine._places[machine.functions[0].id]


def test_what_one_function_has_is_nothing_to_another():
    devices = [f"virtio-rng-pci,{BEHIND}", f"virtio-rng-pci,{BEHIND}", "virtio-rng-pci"]
    with Machine("q35", devices, iommu="intel") as machine:
        opened_ = [identify(one.address, one, interrupts=[PER_QUEUE]) for one in machine.functions]
        drivers = [Rng(device) for device in opened_]
        for driver in drivers:
            assert len(driver.read(100)) == 100
        first, second, third = opened_
        # The same IOVA in two domains is two pages; without ACCESS_PLATFORM an address is memory's own.
        assert first.queues[0].ring.addresses == second.queues[0].ring.addresses
        assert all(place < machine.memory.size for place in third.queues[0].ring.addresses)
        assert not third.dma.translated
        theirs = [behind(device)._blocks[0] for device in (first, second)]
        assert all(isinstance(block, TranslatedBlock) for block in theirs)
        assert theirs[0].pfns() != theirs[1].pfns()
        for device in opened_:
            # An answer may overtake its interrupt, which then waits to be taken.
            device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")  # noqa: B023
            device.close()
        assert machine.iommu is not None
        assert machine.iommu.faults() == []


def test_by_address():
    with uvirtio.open(f"qemu:q35,iommu=intel/virtio-balloon-pci,{BEHIND}") as device:
        assert device.transport.translates


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    device, mode = request.param
    with Machine("q35", [f"{device},{BEHIND}"], iommu="intel") as machine:
        function = machine.functions[0]
        yield Cell(
            open=lambda: identify(function.address, function, interrupts=[mode]),
            qmp=machine.qmp,
            events=machine.qmp_events,
            path=f"/machine/peripheral/{function.id}/virtio-backend",
            mode=mode,
            translated=True,
            extra={"machine": machine},
        )
        assert machine.iommu is not None
        assert machine.iommu.faults() == []


def cells(device: str, *modes: InterruptMode) -> list[object]:
    return [pytest.param((device, mode), id=f"{device.split('-', 1)[1]}-{mode.value}") for mode in modes]


globals().update(adopt(any_device, cells("virtio-rng-pci", PER_QUEUE)))
globals().update(adopt(rng, cells("virtio-rng-pci,packed=on", SHARED)))
globals().update(adopt(balloon, cells("virtio-balloon-pci", INTX)))
globals().update(adopt(keyboard, cells("virtio-keyboard-pci", SHARED)))
