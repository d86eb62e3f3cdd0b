"""The driver bodies over vp_vdpa: virtio-pci functions as vDPA devices, behind the VM's IOMMU.

Debian builds neither vp_vdpa nor the simulator, so that this machine is an extra one. The witness is QMP, as on
vfio-pci.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.bodies import (
    Cell,
    adopt,
    any_device,
    balloon,
    balloon_reports,
    balloon_stats,
    blk,
    keyboard,
    mem,
    net,
    rng,
    scsi,
)
from tests.bodies.mem import emptied  # noqa: F401  # a fixture
from tests.vm import vduse
from tests.vm.conforming import Ring, conforms, implementation
from tests.vm.lab_cell import lab_cell
from tests.vm.qmp_witness import Witness
from uvirtio.backends.vhost_vdpa import VdpaBlock, VhostVdpaNode, uapi
from uvirtio.backends.vhost_vdpa.memory import pinned_bytes
from uvirtio.binding.discover import find
from uvirtio.binding.facts import Facts
from uvirtio.binding.rules import check
from uvirtio.device import OpenOptions, QueueSpec, RingChoice
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.rng import Rng
from uvirtio.errors import FeaturesRefused, MemlockExceeded, NotSupported
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f
from uvirtio.spec import mem as mem_spec
from uvirtio.spec.status import Status
from uvirtio.transports.vdpa import PACKED_BASE

PER_QUEUE, POLLING = InterruptMode.PER_QUEUE, InterruptMode.POLLING
PCI = Path("/sys/bus/pci/devices")
MIB = 1 << 20

CELLS: dict[str, list[tuple[str, InterruptMode] | tuple[str, InterruptMode, RingChoice]]] = {
    "rng": [
        ("vp-rng", PER_QUEUE),
        ("vp-rng", POLLING),
        ("vp-rng-packed", PER_QUEUE),
        ("vp-rng-in-order", PER_QUEUE),
    ],
    "keyboard": [("vp-keyboard", PER_QUEUE), ("vp-keyboard", POLLING), ("vp-keyboard-packed", PER_QUEUE)],
    "blk": [("vp-disk", PER_QUEUE), ("vp-disk", POLLING), ("vp-disk-packed", PER_QUEUE)],
    "balloon": [
        ("vp-balloon-msix", PER_QUEUE),
        ("vp-balloon-msix", POLLING),
        ("vp-balloon-packed", PER_QUEUE),
    ],
    "balloon_more": [("vp-balloon-msix", PER_QUEUE), ("vp-balloon-packed", PER_QUEUE)],
    # These offer both kinds of ring.
    "scsi": [("vp-hba", PER_QUEUE, "split"), ("vp-hba", PER_QUEUE, "packed")],
    "net": [("vp-nic", PER_QUEUE, "split"), ("vp-nic", PER_QUEUE, "packed"), ("vp-nic", POLLING, "packed")],
    "mem": [("vp-mem", PER_QUEUE), ("vp-mem", POLLING), ("vp-mem-packed", PER_QUEUE)],
    "any": [
        ("vp-rng", PER_QUEUE),
        ("vp-rng-packed", POLLING),
        ("vp-rng-in-order", PER_QUEUE),
        ("vp-keyboard", PER_QUEUE),
        ("vp-disk", PER_QUEUE),
        ("vp-balloon-msix", PER_QUEUE),
        ("vp-mem", PER_QUEUE),
        ("vp-keyboard-packed", PER_QUEUE),
        ("vp-disk-packed", PER_QUEUE),
        ("vp-balloon-packed", PER_QUEUE),
        ("vp-mem-packed", PER_QUEUE),
        ("vp-hba", PER_QUEUE),
        ("vp-nic", PER_QUEUE),
    ],
}

OUTSIDE = ("test_net_what_is_sent_is_what_the_host_sees", "test_scsi_the_host_makes_it_larger")
"""What these ask QEMU for lies outside of the VM."""


@pytest.fixture(scope="module")
def memlock() -> Iterator[None]:
    """Room to pin what the bodies pin: the usual limit is 8 MiB, and holds for root too."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * MIB, 64 * MIB))
    yield
    resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


@pytest.fixture(scope="module")
def over_vdpa(memlock: None, lab_devices: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """``over_vdpa(id)``: the address of the vDPA device that stands on this function from then on."""
    made: dict[str, str] = {}

    def make(name: str) -> str:
        if name not in lab_devices:
            pytest.skip(f"this machine has no {name}")
        if name not in made:
            function = PCI / lab_devices[name]
            for module in ("vhost_vdpa", "vp_vdpa"):
                vduse.run("modprobe", module)
            (function / "driver_override").write_text("vp-vdpa")
            if (function / "driver").exists():
                (function / "driver/unbind").write_text(function.name)
            Path("/sys/bus/pci/drivers_probe").write_text(function.name)
            vduse.run("vdpa", "dev", "add", "name", name, "mgmtdev", f"pci/{function.name}")
            vduse.hand_over(name, "vhost_vdpa")
            made[name] = f"vdpa:{name}"
        return made[name]

    yield make
    for name in made:
        vduse.run("vdpa", "dev", "del", name)


@pytest.fixture
def cell(request: pytest.FixtureRequest, over_vdpa: Callable[[str], str], witness: Witness) -> Cell:
    name, mode, *ring = request.param
    address = over_vdpa(name)
    options = OpenOptions(interrupts=[mode], timeout=10, ring=ring[0] if ring else "auto")

    return lab_cell(
        witness,
        name,
        mode,
        lambda: uvirtio.open(address, options=options),
        translated=True,
    )


def cells(kind: str) -> list[Any]:
    return [pytest.param(cell, id="-".join((cell[0], cell[1].value, *cell[2:]))) for cell in CELLS[kind]]


globals().update(adopt(any_device, cells("any")))
globals().update(adopt(rng, cells("rng")))
globals().update(adopt(blk, cells("blk")))
globals().update(adopt(keyboard, cells("keyboard")))
globals().update(adopt(balloon, cells("balloon")))
globals().update(adopt(balloon_stats, cells("balloon_more")))
globals().update(adopt(balloon_reports, cells("balloon_more")))
globals().update(adopt(mem, cells("mem")))
for bodies in (scsi, net):
    kind = bodies.__name__.rpartition(".")[2]
    globals().update({name: body for name, body in adopt(bodies, cells(kind)).items() if name not in OUTSIDE})


# --- against the standard -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ring"),
    [
        ("vp-rng", "split"),
        ("vp-rng-packed", "packed"),
        ("vp-keyboard", "split"),
        ("vp-disk", "split"),
        ("vp-hba", "split"),
        ("vp-hba", "packed"),
        ("vp-nic", "split"),
        ("vp-nic", "packed"),
        ("vp-balloon-msix", "split"),
        ("vp-mem", "split"),
        ("vp-balloon-packed", "packed"),
        ("vp-mem-packed", "packed"),
        ("vp-disk-packed", "packed"),
    ],
)
def test_a_device_over_vp_vdpa_obeys_but_for_what_is_known(
    over_vdpa: Callable[[str], str],
    witness: Witness,
    record_property: Callable[[str, object], None],
    name: str,
    ring: Ring,
) -> None:
    conforms(over_vdpa(name), implementation(witness), record_property, ring=ring)


# --- what is particular ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp-rng"])
def test_the_kernel_says_what_it_is_without_its_being_opened(over_vdpa, lab_devices, name):
    roots = Roots()
    found = find(over_vdpa(name), roots)
    assert (found.type, found.parent, found.driver) == ("rng", lab_devices[name], "vhost_vdpa")
    function = check(find(lab_devices[name], roots), roots).findings
    assert any(f"vdpa:{name} stands on it" in finding.evidence for finding in function)


@pytest.mark.parametrize("name", ["vp-rng-packed"])
def test_a_packed_ring_begins_at_0_with_both_wrap_counters_1(over_vdpa, name):
    # vp_vdpa can set nothing but the beginning (2.8.1), and says no to any other: so it understood this one.
    with VhostVdpaNode.open(over_vdpa(name)) as node:
        node.set_status(Status.ACKNOWLEDGE | Status.DRIVER)
        node.set_features(f.mask(f.VERSION_1, f.ACCESS_PLATFORM, f.RING_PACKED))
        node.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        node.set_vring_num(0, 8)
        node.set_vring_base(0, PACKED_BASE)
        for other in (0, PACKED_BASE ^ 1 << 15, PACKED_BASE ^ 1 << 31, PACKED_BASE | 1, PACKED_BASE | 1 << 16):
            with pytest.raises(NotSupported):
                node.set_vring_base(0, other)
        with pytest.raises(NotSupported):  # nor can it say how far a device is
            node.get_vring_base(0)


@pytest.mark.parametrize("name", ["vp-balloon"])
def test_a_function_without_msix_is_refused_before_the_kernel_warns(over_vdpa, name):
    with uvirtio.open(over_vdpa(name)) as device:
        assert device.transport.backend.calls == 0
        with pytest.raises(NotSupported) as caught:
            Balloon(device)
        assert "MSI-X" in caught.value.seen


@pytest.mark.parametrize("name", ["vp-disk"])
def test_the_kernels_disk_of_a_vdpa_device_is_found_and_kept(over_vdpa, name):
    """virtio_vdpa puts it below the function: it is the vDPA device's all the same, and its function's."""
    address = over_vdpa(name)
    for module in ("virtio_vdpa", "virtio_blk"):
        vduse.run("modprobe", module)
    vduse.hand_over(name, "virtio_vdpa")
    try:
        found = find(address, Roots())
        assert (found.type, found.kernel_driver) == ("blk", "virtio_blk")
        disk = next(node for node in Facts(Roots()).nodes(found) if node.subsystem == "block")
        with open(disk.node, "rb"):  # noqa: PTH123  # a block device
            for one in (found, find(found.above[-1], Roots())):
                evidence = [
                    finding.evidence for finding in check(one, Roots()).findings if finding.rule == "mounted"
                ]
                assert any(f"{disk.node} is open in process" in text for text in evidence), evidence
    finally:
        vduse.hand_over(name, "vhost_vdpa")


@pytest.mark.parametrize("name", ["vp-mem"])
@pytest.mark.spec("MEM-04")
def test_what_the_device_insists_on_is_refused_without(over_vdpa, name):
    with uvirtio.open(over_vdpa(name)) as device, pytest.raises(FeaturesRefused):
        device.start(wanted=0, queues=[QueueSpec(mem_spec.GUEST_REQUESTQ, "guest-request", size=8)])


@pytest.mark.parametrize("name", ["vp-rng-bypass"])
def test_a_device_that_goes_round_the_iommu_gets_no_memory(over_vdpa, name):
    with uvirtio.open(over_vdpa(name)) as device, pytest.raises(NotSupported) as caught:
        Rng(device)
    assert "ACCESS_PLATFORM" in caught.value.seen


@pytest.mark.parametrize("name", ["vp-rng"])
def test_a_map_pins_and_a_pinned_page_stays(over_vdpa, name):
    roots = Roots()
    with uvirtio.open(over_vdpa(name)) as device, Rng(device):
        before = pinned_bytes(roots)
        block = device.dma.pin(4 * MIB)
        assert isinstance(block, VdpaBlock)
        assert pinned_bytes(roots) == before + 4 * MIB
        frames = block.pfns()
        assert len(set(frames)) == 4 * MIB // 4096
        Path("/proc/sys/vm/compact_memory").write_text("1")
        assert block.pfns() == frames
        block.close()
        assert pinned_bytes(roots) == before


@pytest.mark.fault(93)
@pytest.mark.parametrize("name", ["vp-rng"])
def test_the_limit_on_pinned_memory_holds_for_root_too(over_vdpa, name):
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (2 * MIB, hard))
    try:
        with uvirtio.open(over_vdpa(name)) as device, Rng(device) as source:
            with pytest.raises(MemlockExceeded):
                device.dma.pin(4 * MIB)
            assert len(source.read(16)) == 16
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


@pytest.mark.parametrize("name", ["vp-rng"])  # any device of this machine: the simulator is in its modules
def test_the_simulator_suspends_and_resumes(lab_devices, name):
    if name not in lab_devices:
        pytest.skip("the modules of this machine are needed")
    for module in ("vhost_vdpa", "vdpa_sim_blk"):
        vduse.run("modprobe", module)
    vduse.run("vdpa", "dev", "add", "name", "sim0", "mgmtdev", "vdpasim_blk")
    try:
        vduse.hand_over("sim0", "vhost_vdpa")
        with uvirtio.open("vdpa:sim0", interrupts=[PER_QUEUE]) as device, Blk(device, allow_write=True) as disk:
            node = device.transport.backend
            assert isinstance(node, VhostVdpaNode)
            assert not f.has(device.offered, f.RING_PACKED)  # docs/vdpa.md says so
            assert node.backend_has(uapi.VHOST_BACKEND_F_SUSPEND)
            assert node.backend_has(uapi.VHOST_BACKEND_F_RESUME)
            data = bytes(range(256)) * 2
            disk.write(3, data)
            done = node.get_vring_base(0)
            node.suspend()
            late = disk.submit_read(3, 1)
            assert not device.wait(lambda: not disk.in_flight, timeout=0.5, what="nothing", owed=False)
            assert node.get_vring_base(0) == done
            node.resume()
            device.queues[0].notify()
            assert late.result(timeout=5) == data
    finally:
        vduse.run("vdpa", "dev", "del", "sim0")


@pytest.mark.parametrize("name", ["vp-disk"])
def test_a_queue_without_a_name_is_refused_by_the_kernel(over_vdpa, name):
    with uvirtio.open(over_vdpa(name)) as device:
        layout = [device.transport.queue_layout(index).size_max for index in range(3)]
        assert layout[:2] == [256, 256] and layout[2] == 0
        device.start(wanted=0, queues=[QueueSpec(0, "one"), QueueSpec(9, "none", required=False)])
        assert list(device.queues) == [0]
