"""virtio-mem on QEMU's device model, without a guest: q35 and pc, and as the arena of another driver's buffers.

The witnesses are QMP (query-memory-devices, MEMORY_DEVICE_SIZE_CHANGE) and the blocks of the memory's own file.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bodies import Cell, adopt, any_device, mem
from tests.bodies.mem import emptied  # noqa: F401  # a fixture
from uvirtio.device import QueueSpec
from uvirtio.drivers.base import runs, transact
from uvirtio.drivers.mem import Mem, Region, Response, verify
from uvirtio.drivers.rng import Rng
from uvirtio.errors import FeaturesRefused, NotSupported
from uvirtio.interfaces.values import InterruptMode
from uvirtio.memory.window import FileWindow
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec import features as f
from uvirtio.spec import mem as spec
from uvirtio.spec import rng as rng_spec

PER_QUEUE, SHARED, INTX, POLLING = InterruptMode
MIB = 1 << 20
MAP_NORESERVE = 0x4000  # asm-generic/mman.h; CPython 3.11 has no name for it

# What a newer QEMU has: MSI-X, and answers that come in order.
SINCE_10 = [
    ("virtio-mem-pci,vectors=2", PER_QUEUE),
    ("virtio-mem-pci,vectors=1,iommu_platform=on,disable-legacy=on", SHARED),
    ("virtio-mem-pci,in_order=on", PER_QUEUE),
    ("virtio-mem-pci,in_order=on,packed=on", PER_QUEUE),
]


def cells() -> list[Any]:
    """One parameter for each machine, device and rung."""
    rungs = (
        ("virtio-mem-pci", INTX),
        ("virtio-mem-pci", POLLING),
        ("virtio-mem-pci,iommu_platform=on,disable-legacy=on", INTX),
    )
    every = [(machine, *rung) for machine in ("q35", "pc") for rung in rungs]
    every.append(("q35", "virtio-mem-pci,packed=on", INTX))
    newer = [("q35", *rung) for rung in SINCE_10]
    return [
        pytest.param(
            (machine, device, mode),
            id=f"{machine}-{device.split('-', 1)[1]}-{mode.value}",
            marks=marks,
        )
        for among, marks in ((every, ()), (newer, pytest.mark.qemu_since(10, 0)))
        for machine, device, mode in among
    ]


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    name, device, mode = request.param
    with Machine(name, [device]) as machine:
        function = machine.functions[0]

        def backing() -> int:
            return os.fstat(machine.files[function.id]).st_blocks * 512

        yield Cell(
            open=lambda: machine_device(machine, mode),
            qmp=machine.qmp,
            events=machine.qmp_events,
            path=f"/machine/peripheral/{function.id}/virtio-backend",
            mode=mode,
            translated="iommu_platform=on" in device,
            backing=backing,
            extra={"id": function.id},
        )


def machine_device(machine: Machine, mode: InterruptMode) -> Any:
    """The machine's first function as a device that can be closed and opened again."""
    function = machine.functions[0]
    # The function stays for the next one; the machine, at its end, closes it for good.
    close, function.close = function.close, lambda: None  # type: ignore[method-assign]
    machine._resources.callback(close)
    return identify(function.address, function, interrupts=[mode])


globals().update(adopt(any_device, cells()))
globals().update(adopt(mem, cells()))


# --- two functions of one machine ---------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[Machine]:
    with Machine("q35", ["virtio-mem-pci,requested-size=32M", "virtio-rng-pci"]) as machine:
        yield machine


def test_another_device_reads_into_plugged_memory(pair: Machine) -> None:
    plugs, rolls = pair.functions
    with identify(plugs.address, plugs) as one, Mem(one) as memory, Region.open(memory) as region:
        memory.plug(memory.addr + 3 * memory.block_size, 2)
        with identify(rolls.address, rolls) as two:
            two.start(wanted=0, queues=[QueueSpec(rng_spec.REQUESTQ, "requestq", size=8)])
            buffer = region.alloc(2 * MIB, shown=two.dma)
            assert buffer.segments(0, 64) == [(memory.addr + 3 * memory.block_size, 64)]
            for offset in (0, 4096 * 3 + 5, 2 * MIB - 64):
                queue = two.queues[rng_spec.REQUESTQ]
                done = transact(two, queue, (), runs(buffer, offset, 64), timeout=5, what="random bytes")
                assert done.written == 64
                assert len(set(buffer.view[offset : offset + 64])) > 8
            assert not any(buffer.view[64:4096])
            two.stop()
            buffer.close()
        assert not memory.block_table.in_use
        memory.unplug_all()


def test_a_whole_driver_has_its_buffer_there(pair: Machine) -> None:
    plugs, rolls = pair.functions
    with identify(plugs.address, plugs) as one, Mem(one) as memory, Region.open(memory) as region:
        memory.plug(memory.addr, 1)
        with identify(rolls.address, rolls) as two, Rng(two) as rng:
            rng._buffer = region.alloc(4096, shown=two.dma)
            found = rng.read(4096)
            assert bytes(rng._buffer.view[:4096]) == found == region.read(0, 4096)
            assert os.pread(pair.files[plugs.id], 4096, 0) == found


def test_devices_that_are_shown_everything_see_the_plugged_runs(pair: Machine) -> None:
    plugs, rolls = pair.functions
    with identify(plugs.address, plugs) as one, Mem(one) as memory, Region.open(memory) as region:
        block = memory.block_size
        memory.plug(memory.addr, 2)
        memory.plug(memory.addr + 5 * block, 1)
        with identify(rolls.address, rolls) as two, Rng(two):
            shown = region.show(two.dma)
            assert [piece.segments(0, piece.size) for piece in shown] == [
                [(memory.addr, 2 * block)],
                [(memory.addr + 5 * block, block)],
            ]
            for piece in shown:
                piece.close()


# --- what goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.spec("MEM-04")
def test_a_device_that_wants_unplugged_inaccessible_is_not_driven_without() -> None:
    with Machine("q35", ["virtio-mem-pci,unplugged-inaccessible=on"]) as machine:
        queues = [QueueSpec(spec.GUEST_REQUESTQ, "guest-request", size=8)]
        with machine_device(machine, POLLING) as device, pytest.raises(FeaturesRefused):
            device.start(wanted=f.mask(f.Mem.ACPI_PXM), queues=queues)
        with machine_device(machine, POLLING) as device, Mem(device) as memory:
            assert memory.unplugged_inaccessible


def test_memory_of_somebody_elses_has_no_window() -> None:
    # A second device, so that there is room to plug; the first brings its own memory.
    own = "virtio-mem-pci,memdev=own,requested-size=4M"
    arguments = ["-object", "memory-backend-ram,id=own,size=64M"]
    with (
        Machine("q35", [own, "virtio-mem-pci"], arguments=arguments) as machine,
        machine_device(machine, POLLING) as device,
        Mem(device) as memory,
        pytest.raises(NotSupported, match="not a file of this process"),
    ):
        Region.open(memory)


# --- memory that is acknowledged and not there --------------------------------------------------------------


class Unreserved(FileWindow):
    """A window that is mapped as QEMU maps it: huge pages are looked for when they are touched."""

    def map(self, offset: int, length: int) -> mmap.mmap:
        return mmap.mmap(self._fd, length, flags=mmap.MAP_SHARED | MAP_NORESERVE, offset=self._base + offset)


@pytest.mark.fault(76)
def test_huge_pages_that_the_host_does_not_have_are_acknowledged_and_found_missing() -> None:
    """QEMU acknowledges, for its memory is not reserved; with the first access comes a SIGBUS."""
    free = int(re.findall(r"^HugePages_Free: +(\d+)$", Path("/proc/meminfo").read_text(), re.MULTILINE)[0])
    size = 2 * MIB * (4 + free)
    huge = f"memory-backend-memfd,id=huge,size={2 * size},hugetlb=on,hugetlbsize=2M,reserve=off,share=on"
    with Machine(
        "q35",
        [f"virtio-mem-pci,memdev=huge,requested-size={size}"],
        arguments=["-m", f"maxmem={4 << 30},slots=1", "-object", huge],
    ) as machine:
        files = [path for path in Path(f"/proc/{machine.pid}/fd").iterdir() if path.stat().st_size == 2 * size]
        [path] = [path for path in files if "memory-backend-memfd" in str(path.readlink())]
        window = Unreserved(os.open(path, os.O_RDWR), 0, 2 * size, what="the device's memory")
        with identify("dev0", machine.functions[0]) as device, Mem(device) as memory, Region(memory, window) as it:
            memory.plug(memory.addr, 4 + free)
            assert memory.counts[Response.ACK] == 1
            bad = verify(it, [(0, 4 + free)])
            assert len(bad) == 4 and {one.why for one in bad} == {"SIGBUS at an access"}
            memory.unplug_all()
