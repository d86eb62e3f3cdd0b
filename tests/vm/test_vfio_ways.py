"""VFIO by character devices and iommufd, and VFIO without an IOMMU: on kernels with modules of our own making."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import uvirtio
from tests.bodies import Cell, any_device, balloon, rng
from tests.vm import test_commands as commands
from tests.vm.lab_cell import lab_cell
from tests.vm.qmp_witness import Witness
from tests.vm.test_drivers import driver_of, given_back, hand_over  # noqa: F401  # one is a fixture
from tests.vm.test_uio import BALLOON, MASTER, child_of, chosen, command, free_pages, gone, guardian_of, on, status
from uvirtio.backends.vfio_noiommu import VfioNoIommuFunction
from uvirtio.backends.vfio_pci import VfioPciFunction
from uvirtio.binding.discover import find
from uvirtio.errors import Busy, GuardianLost, UnsafeDma
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import InterruptMode

PER_QUEUE, INTX = InterruptMode.PER_QUEUE, InterruptMode.INTX
NOIOMMU = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")


def take(name: str, address: str) -> None:
    """Hand a function over to vfio-pci, with what its way needs of the kernel."""
    if "noiommu" in name and not NOIOMMU.exists():
        subprocess.run(["modprobe", "vfio", "enable_unsafe_noiommu_mode=1"], check=True, timeout=60)
    if "cdev" in name:
        subprocess.run(["modprobe", "iommufd"], check=True, timeout=60)
    hand_over(address, "vfio-pci")


@pytest.fixture
def cell(
    request: pytest.FixtureRequest,
    lab_devices: dict[str, str],
    witness: Witness,
    given_back: None,  # noqa: F811
) -> Cell:
    name, mode = request.param
    address = lab_devices[name]
    take(name, address)

    return lab_cell(
        witness,
        name,
        mode,
        lambda: uvirtio.open(address, interrupts=[mode], timeout=10, unsafe_dma="noiommu" in name),
        translated=name == "rng-cdev",
    )


RNGS = [("rng-cdev", PER_QUEUE), ("rng-noiommu", PER_QUEUE)]
BALLOONS = [("balloon-cdev", INTX), ("balloon-noiommu", INTX)]
globals().update(
    chosen(
        any_device,
        [*RNGS, *BALLOONS],
        "the_device_sees_what_we_negotiated",
        "the_device_is_reset_when_it_is_left",
        "the_rings_are_where_we_put_them",
        "the_interrupt_mode_is_the_one_asked_for",
    )
)
globals().update(chosen(rng, RNGS, "completions_come", "the_device_follows"))
globals().update(chosen(balloon, BALLOONS, "the_host_sees_the_balloon", "leaving_gives", "the_target_is_followed"))


@pytest.fixture
def taken(
    lab_address: str,
    lab_devices: dict[str, str],
    given_back: None,  # noqa: F811
) -> Iterator[str]:
    """The address of a device that vfio-pci holds."""
    take(next(name for name, address in lab_devices.items() if address == lab_address), lab_address)
    yield lab_address


# --- the character device --------------------------------------------------------------------------------------


@on("rng-cdev")
def test_the_way_is_shown_and_the_group_is_there_beside_it(taken):
    with uvirtio.open(taken) as device, uvirtio.Rng(device) as source:
        assert "iommufd" in device.transport.description
        assert len(source.read(64)) == 64
    with uvirtio.open(taken, backend="vfio-group") as device, uvirtio.Rng(device) as source:
        assert "type1v2" in device.transport.description
        assert len(source.read(64)) == 64
    report = commands.uvirtio("diag", taken, "--backend", "vfio-cdev")
    assert report.returncode == 0, report.stdout
    assert "iommufd" in report.stdout


@on("rng-cdev")
@pytest.mark.parametrize("way", ["group", "cdev"])
def test_one_way_at_a_time(taken, way):
    with VfioPciFunction.open(taken, way="cdev"), pytest.raises(Busy):
        VfioPciFunction.open(taken, way=way)
    with VfioPciFunction.open(taken, way="group"), pytest.raises(Busy):
        VfioPciFunction.open(taken, way="cdev")
    VfioPciFunction.open(taken, way=way).close()


@on("rng-cdev")
def test_maps_of_iommufd_come_and_go(taken):
    with VfioPciFunction.open(taken, way="cdev") as function:
        assert function.reset()
        with function.dma(True) as space:
            blocks = [space.alloc(1 << 20) for _ in range(4)]
            assert len({block.segments(0, 1)[0][0] for block in blocks}) == 4
            blocks[0].close()
            again = space.alloc(1 << 20)
            again.view[0] = 1
        with function.dma(False) as space:
            block = space.alloc(4096)
            assert block.segments(0, 4096) == [(block.pfns()[0] << 12, 4096)]


@contextmanager
def held(node: str) -> Iterator[int]:
    """A process that has the node open, and does no more with it; its number."""
    program = "import os, sys; os.open(sys.argv[1], os.O_RDWR); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, node], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == b"\n", f"{node} was not opened"
        yield child.pid
        child.stdin.close()


@on("rng-cdev")
def test_who_has_either_node_open_keeps_the_function(lab_address):
    subprocess.run(["modprobe", "iommufd"], check=True, timeout=60)
    hand_over(lab_address, "virtio-pci")  # what other tests left bound is in no journal
    done = commands.uvirtio("bind", lab_address)
    assert done.returncode == 0, done.stderr
    found = find(lab_address, Roots())
    assert len(found.nodes) == 2 and found.nodes[1].startswith("/dev/vfio/devices/vfio"), found.nodes
    try:
        for node in found.nodes:
            with held(node) as pid:
                code, error = commands.refusal("restore", lab_address)
            assert (code, error["code"]) == (3, "UV-REFUSED-BUSY")
            assert f"{node} is open in process {pid} " in error["seen"]
            assert driver_of(lab_address) == "vfio-pci"
    finally:
        done = commands.uvirtio("restore", lab_address)
    assert done.returncode == 0, done.stderr
    assert driver_of(lab_address) == "virtio-pci"


# --- no IOMMU --------------------------------------------------------------------------------------------------


@on("rng-noiommu")
def test_no_iommu_wants_the_consent_and_is_shown(taken):
    with pytest.raises(UnsafeDma):
        uvirtio.open(taken)
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Rng(device) as source:
        assert "no-IOMMU" in device.transport.description
        assert isinstance(device.transport.backend, VfioNoIommuFunction)
        assert len(source.read(64)) == 64
    assert commands.refusal("rng", "read", taken, "16")[0] == 3
    done = commands.uvirtio("rng", "read", taken, "16", "--unsafe-dma")
    assert done.returncode == 0, done.stderr
    assert "warning: no IOMMU holds this device" in done.stderr


@pytest.mark.fault(89, level="K")
@on("balloon-noiommu")
def test_a_killed_driver_leaves_a_reset_device_and_only_then_its_memory(taken, witness):
    before = free_pages()
    with child_of(BALLOON, taken) as child:
        guardian = guardian_of(taken)
        os.kill(guardian, signal.SIGSTOP)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        assert free_pages() < before
        assert "DRIVER_OK" in status(witness, "balloon-noiommu"), "the kernel has not closed the device"
        os.kill(guardian, signal.SIGCONT)
        commands.until(gone(guardian), "the guardian to end")
    assert not status(witness, "balloon-noiommu")
    assert not command(taken) & MASTER
    assert free_pages() == before
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Balloon(device) as it:
        it.inflate(256)


@on("balloon-noiommu")
def test_a_killed_guardian_ends_the_driving(taken, witness):
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Balloon(device) as it:
        it.inflate(256)
        os.kill(guardian_of(taken), signal.SIGKILL)
        with pytest.raises(GuardianLost):
            it.hold(20)
    assert not status(witness, "balloon-noiommu")
    assert commands.balloon_size(witness) == 1 << 30


@on("rng-noiommu")
def test_bind_by_name_and_restore(lab_address):
    take("noiommu", lab_address)  # the parameter of vfio is set
    hand_over(lab_address, "virtio-pci")
    code, error = commands.refusal("bind", lab_address)
    assert (code, error["code"]) == (4, "UV-ENV-IOMMU")
    done = commands.uvirtio("bind", lab_address, "--driver", "vfio-pci", "--force", "unsafe-dma")
    assert done.returncode == 0, done.stderr
    assert "/dev/vfio/noiommu-" in done.stdout
    done = commands.uvirtio("restore", lab_address)
    assert done.returncode == 0, done.stderr
    assert driver_of(lab_address) == "virtio-pci"
