"""The VFIO back end on a real kernel: vfio-pci, type1, eventfds, pagemap, reset, removal.

The devices are found in sysfs, and each test gives back what it took.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import uvirtio
from tests.support.polling import readable
from uvirtio.backends.vfio import Container, Device, Group, group_of, uapi
from uvirtio.backends.vfio_pci import VfioPciFunction
from uvirtio.drivers.rng import Rng
from uvirtio.errors import (
    Busy,
    CapabilityError,
    Closed,
    DeviceGone,
    NotBound,
    OperationFailed,
)
from uvirtio.host.pages import CPU_PAGE as PAGE
from uvirtio.host.pages import HUGE_PAGE as HUGE

PCI = Path("/sys/bus/pci")
RNG = {"0x1044", "0x1005"}
BALLOON = {"0x1045", "0x1002"}
ACCESS_PLATFORM = 33
PATIENCE = 20.0
"""Seconds: a deadline for what must come, under TCG."""


def wait_for(what: Callable[[], bool], timeout: float = PATIENCE) -> bool:
    deadline = time.monotonic() + timeout
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def driver_of(address: str) -> str | None:
    link = PCI / "devices" / address / "driver"
    return link.resolve().name if link.is_symlink() else None


def give_to(address: str, driver: str | None) -> None:
    """Bind a function to vfio-pci, or (None) to whatever the kernel likes."""
    device = PCI / "devices" / address
    (device / "driver_override").write_text(f"{driver or ''}\n")
    if driver_of(address) is not None:
        (device / "driver" / "unbind").write_text(address)
    (PCI / "drivers_probe").write_text(address)


@pytest.fixture(scope="module")
def kinds() -> dict[str, list[str]]:
    """Addresses by what the devices are: read while the kernel's drivers still have them."""
    found: dict[str, list[str]] = {}
    for device in sorted((PCI / "devices").iterdir()):
        if (device / "vendor").read_text().strip() != "0x1af4":
            continue
        number = (device / "device").read_text().strip()
        name = "rng" if number in RNG else "balloon" if number in BALLOON else None
        if name is None:
            continue
        bits = "".join(path.read_text().strip() for path in device.glob("virtio*/features"))
        held = bits[ACCESS_PLATFORM : ACCESS_PLATFORM + 1] == "1"
        found.setdefault(f"{name}-iova" if held else name, []).append(device.name)
    return found


@pytest.fixture
def bound(kinds) -> Iterator[Callable[..., str]]:
    """``bound("rng-iova", ok=...)``: the address of such a device, on vfio-pci until the test ends."""
    subprocess.run(["modprobe", "vfio-pci"], check=True, timeout=60)
    taken: list[str] = []

    def take(kind: str, ok: Callable[[Path], bool] = lambda device: True) -> str:
        for address in kinds.get(kind, []):
            if address not in taken and ok(PCI / "devices" / address):
                taken.append(address)
                give_to(address, "vfio-pci")
                assert driver_of(address) == "vfio-pci"
                return address
        pytest.skip(f"this machine has no {kind} of the wanted kind")

    yield take
    for address in taken:
        if not (PCI / "devices" / address).exists():
            continue
        give_to(address, None)
        assert driver_of(address) == "virtio-pci"


def has_msix(device: Path) -> bool:
    return any((device / "msi_irqs").glob("*")) if (device / "msi_irqs").is_dir() else False


def behind_a_port(device: Path) -> bool:
    return device.resolve().parent.name != "pci0000:00"


def no_msix(device: Path) -> bool:
    return not has_msix(device)


# --- container, group, device -----------------------------------------------------------------------------


def test_the_three_objects_by_hand(bound):
    address = bound("rng-iova")
    with Container.open() as container, Group.open(group_of(address, uvirtio_roots())) as group:
        assert container.check_extension(uapi.VFIO_TYPE1v2_IOMMU)
        assert not group.status() & uapi.VFIO_GROUP_FLAGS_CONTAINER_SET
        group.set_container(container)
        assert group.status() & uapi.VFIO_GROUP_FLAGS_CONTAINER_SET
        assert container.set_iommu() == uapi.VFIO_TYPE1v2_IOMMU
        info = container.iommu_info()
        assert info.page_sizes & PAGE
        assert info.ranges == ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1))
        assert info.dma_avail == 65535
        with Device(group.device_fd(address), address) as device:
            assert device.info().flags & uapi.VFIO_DEVICE_FLAGS_PCI
            assert device.info().num_regions >= uapi.VFIO_PCI_NUM_REGIONS
            config = device.region_info(uapi.VFIO_PCI_CONFIG_REGION_INDEX)
            assert config.size in (256, 4096)
            assert device.read(config, 0, 2) == b"\xf4\x1a"
            assert device.region_info(99).size == 0
            assert device.irq_info(99).count == 0


def uvirtio_roots():
    from uvirtio.host.roots import Roots

    return Roots()


def test_a_function_that_the_kernel_drives_is_not_opened(kinds):
    address = kinds["rng-iova"][0]
    assert driver_of(address) == "virtio-pci"
    with pytest.raises(NotBound):
        VfioPciFunction.open(address)
    assert driver_of(address) == "virtio-pci"


def test_bars_are_those_of_sysfs(bound):
    address = bound("rng-iova")
    lines = (PCI / "devices" / address / "resource").read_text().splitlines()[:6]
    with VfioPciFunction.open(address) as function:
        for index, line in enumerate(lines):
            start, end, flags = (int(word, 16) for word in line.split())
            bar = function.bar(index)
            if not end:
                assert bar is None
            else:
                assert bar is not None
                assert (bar.size, bar.is_io) == (end - start + 1, bool(flags & 0x100))
        assert function.config.length in (256, 4096)
        assert function.config.read16(0) == 0x1AF4
        assert function.translates
        assert function.description.startswith("vfio-pci, group ")
        with pytest.raises(CapabilityError):
            function.registers(5, 0, 1 << 40)


def test_a_mapping_shows_what_pread_reads(bound):
    address = bound("rng-iova")
    with VfioPciFunction.open(address) as function:
        device = function._device
        index = next(i for i in range(6) if (bar := function.bar(i)) and not bar.is_io and bar.size >= 0x4000)
        region = device.region_info(index)
        with contextlib.closing(device.mmap(region, 0, PAGE)) as mapping:
            view = memoryview(mapping)
            words = view.cast("I")
            assert words[4] == function.registers(index, 0, PAGE).read32(16)
            words.release()
            view.release()
        with pytest.raises(OperationFailed):
            device.mmap(region, region.size, PAGE)


def test_windows_end_with_the_function(bound):
    address = bound("rng-iova")
    function = VfioPciFunction.open(address)
    window = function.registers(next(i for i in range(6) if function.bar(i)), 0, 64)
    config = function.config
    function.close()
    function.close()
    for registers in (window, config):
        with pytest.raises(Closed):
            registers.read32(0)


def test_bus_master(bound):
    with VfioPciFunction.open(bound("rng-iova")) as function:
        assert not function.config.read16(4) & 4, "the kernel opens a function with bus mastering off"
        function.bus_master(True)
        assert function.config.read16(4) & 4
        function.bus_master(False)
        assert not function.config.read16(4) & 4
        assert function.config.read16(4) & 2, "memory decoding stays on"


def test_a_second_open_is_refused_and_names_the_first(bound):
    address = bound("rng-iova")
    with VfioPciFunction.open(address):
        with pytest.raises(Busy) as caught:
            VfioPciFunction.open(address)
        assert str(os.getpid()) in caught.value.seen
    with VfioPciFunction.open(address):
        pass


def open_files() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_nothing_is_left_open(bound):
    address = bound("rng-iova")
    before = open_files()
    for _ in range(3):
        with VfioPciFunction.open(address) as function:
            function.enable_msix(1)
            function.dma(True).alloc(PAGE)
            function.dma(False).pin(PAGE)
    assert open_files() == before
    status = Path("/proc/self/status").read_text()
    assert "VmLck:\t       0 kB" in status


# --- interrupts -------------------------------------------------------------------------------------------


def test_msix_loopback(bound):
    with VfioPciFunction.open(bound("rng-iova", has_msix)) as function:
        count = function.msix_vectors
        assert count >= 2
        events = function.enable_msix(count)
        for number, event in enumerate(events):
            function._device.trigger(uapi.VFIO_PCI_MSIX_IRQ_INDEX, number)
            assert readable(event, PATIENCE)
            assert [other.take() for other in events] == [other is event for other in events]
            event.rearm()
        again = function.enable_msix(1)
        assert len(again) == 1
        with pytest.raises(OperationFailed):
            function.enable_msix(count + 1)
        with pytest.raises(Closed):
            events[0].take()
        function.disable_interrupts()
        function.disable_interrupts()
        with pytest.raises(OperationFailed):
            function._device.trigger(uapi.VFIO_PCI_MSIX_IRQ_INDEX, 0)


def test_intx_loopback_and_back_to_msix(bound):
    with VfioPciFunction.open(bound("rng-iova", has_msix)) as function:
        assert function.has_intx
        event = function.enable_intx()
        assert event is not None
        assert not event.take()
        function._device.trigger(uapi.VFIO_PCI_INTX_IRQ_INDEX)
        assert readable(event, PATIENCE)
        assert event.take()
        event.rearm()
        assert not event.take()
        assert len(function.enable_msix(1)) == 1


def test_the_pin_is_quiet_while_nobody_listens(bound):
    # Or a polled device asserts a line without a handler, and the kernel switches it off for all who share it.
    address = bound("rng-iova", no_msix)

    def quiet() -> bool:
        command = (PCI / "devices" / address / "config").read_bytes()[4:6]
        return bool(int.from_bytes(command, "little") & 1 << 10)

    with VfioPciFunction.open(address) as function:
        assert quiet()
        assert function.enable_intx() is not None
        assert not quiet()
        function.disable_interrupts()
        assert quiet()


def test_the_interrupt_pin_with_a_device_behind_it(bound):
    address = bound("rng-iova", no_msix)
    with uvirtio.open(address) as device, Rng(device) as rng:
        for count in range(5):
            assert len(rng.read(64)) == 64
            # An answer may overtake its interrupt. Each line was masked by the kernel and rearmed by us, or there
            # would be one interrupt only.
            device.wait(lambda: device.counters.interrupts_taken > count, timeout=5, what="an interrupt")  # noqa: B023


def test_errors_and_requests_can_be_listened_to(bound):
    with VfioPciFunction.open(bound("rng-iova", behind_a_port)) as function:
        for index, event in (
            (uapi.VFIO_PCI_ERR_IRQ_INDEX, function.error),
            (uapi.VFIO_PCI_REQ_IRQ_INDEX, function.removal),
        ):
            assert event is not None
            assert not event.take()
            function._device.trigger(index)
            assert readable(event, PATIENCE)
            assert event.take()


# --- memory -----------------------------------------------------------------------------------------------


def test_translated_memory_is_mapped_and_all_of_it_comes_back(bound):
    with VfioPciFunction.open(bound("rng-iova")) as function:
        before = function._way.space.iommu_info().dma_avail
        with function.dma(True) as space:
            blocks = [space.alloc(size) for size in (1, PAGE, 3 * PAGE, 4 << 20)]
            assert function._way.space.iommu_info().dma_avail == before - 4
            assert all(len(block.segments(0, block.size)) == 1 for block in blocks)
            assert bytes(blocks[2].view) == bytes(3 * PAGE)
            blocks[1].close()
            assert function._way.space.iommu_info().dma_avail == before - 3
        assert function._way.space.iommu_info().dma_avail == before


def test_the_kernel_refuses_what_the_allocator_never_asks(bound):
    with VfioPciFunction.open(bound("rng-iova")) as function, function.dma(True) as space:
        block = space.alloc(PAGE)
        ((address, _),) = block.segments(0, PAGE)
        container = function._way.space
        with pytest.raises(OperationFailed) as caught:
            container.map(block.vaddr, address, PAGE)
        assert "EEXIST" in caught.value.seen
        with pytest.raises(OperationFailed) as caught:
            container.map(block.vaddr, 0xFEE0_0000, PAGE)
        assert "EINVAL" in caught.value.seen
        with pytest.raises(OperationFailed):
            container.unmap(1 << 30, PAGE)  # nothing there: the kernel unmaps 0 bytes and says so


def test_physical_memory_is_mapped_at_itself(bound):
    with VfioPciFunction.open(bound("rng")) as function:
        before = function._way.space.iommu_info().dma_avail
        with function.dma(False) as space:
            block = space.alloc(PAGE)
            (pfn,) = block.pfns()
            assert block.segments(0, PAGE) == [(pfn << 12, PAGE)]
            assert (pfn << 12, PAGE) in block.maps
            assert len(block.maps) == 2
            large = space.alloc(8 * PAGE)
            if space.contiguous_limit == HUGE:
                assert large.contiguous
            assert [length for _, length in large.segments(0, large.size)] == [r[2] for r in large.runs]
            assert [a >> 12 for _, a, n in large.runs for a in range(a, a + n, PAGE)] == large.pfns()
        assert function._way.space.iommu_info().dma_avail == before


@pytest.mark.fault(61)
def test_pinned_pages_stay_though_memory_is_compacted(bound):
    with VfioPciFunction.open(bound("balloon")) as function:
        before = function._way.space.iommu_info().dma_avail
        with function.dma(False) as space:
            block = space.pin(32 << 20)
            assert function._way.space.iommu_info().dma_avail == before - 1
            pfns = block.pfns()
            assert len(set(pfns)) == 8192
            Path("/proc/sys/vm/compact_memory").write_text("1")
            Path("/proc/sys/vm/drop_caches").write_text("3")
            assert block.pfns() == pfns


@pytest.mark.fault(91)
def test_a_child_does_not_get_the_memory(bound):
    with VfioPciFunction.open(bound("rng-iova")) as function, function.dma(True) as space:
        block = space.alloc(PAGE)
        name = f"{block.vaddr:x}-"
        child = os.fork()
        if child == 0:
            lines = Path("/proc/self/maps").read_text().splitlines()
            os._exit(1 if any(line.startswith(name) for line in lines) else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        flags = smaps_flags(block.vaddr)
        assert {"dc", "dd"} <= flags, "no copy in a fork, no copy in a core dump"


def smaps_flags(vaddr: int) -> set[str]:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(" ", 1)[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(part, 16) for part in head.split("-"))
            inside = first <= vaddr < last
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("not mapped")


@pytest.mark.fault(24)
@pytest.mark.parametrize("kind", ["rng-iova", "rng"])
def test_a_device_fills_memory_of_either_kind(bound, kind):
    with uvirtio.open(bound(kind)) as device, Rng(device) as rng:
        assert device.has(ACCESS_PLATFORM) is (kind == "rng-iova")
        data = rng.read(256)
        assert len(data) == 256
        assert len(set(data)) > 32


# --- an ordinary user -------------------------------------------------------------------------------------

USER = """
import sys
from uvirtio.backends.vfio_pci import VfioPciFunction
from uvirtio.drivers.rng import Rng
from uvirtio.errors import UvirtioError
import uvirtio

def said(call):
    try:
        call()
    except UvirtioError as error:
        return error.code
    return "ok"

address = sys.argv[1]
try:
    function = VfioPciFunction.open(address)
except UvirtioError as error:
    print(error.code)
    sys.exit()
with function:
    space = function.dma(True)
    print(said(lambda: space.alloc(16384)))
    print(said(lambda: space.alloc(16384).pfns()))
    print(said(lambda: space.alloc(32 << 20)))
    print(said(lambda: function.dma(False)))
with Rng(uvirtio.open(address)) as rng:
    print(len(rng.read(32)))
"""


def as_user(address: str) -> list[str]:
    command = ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups", "--", sys.executable, "-c", USER]
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_user_needs_the_groups_node_and_nothing_else(bound):
    address = bound("rng-iova", has_msix)
    node = Path("/dev/vfio") / str(group_of(address, uvirtio_roots()))
    assert as_user(address) == ["UV-ENV-PERMISSION"]
    os.chown(node, 1234, 1234)
    assert as_user(address) == ["ok", "UV-ENV-PAGEMAP", "UV-ENV-MEMLOCK", "UV-ENV-PAGEMAP", "32"]


# --- reset and removal ------------------------------------------------------------------------------------


def device_status(function: VfioPciFunction) -> int:
    """device_status (4.1.4.3) of a QEMU device: the common configuration is at the start of BAR 4."""
    return function.registers(4, 0, 64).read8(20)


def test_a_function_level_reset_resets_virtio(bound):
    with VfioPciFunction.open(bound("rng-iova", behind_a_port)) as function:
        registers = function.registers(4, 0, 64)
        registers.write8(20, 1)
        registers.write8(20, 3)
        assert device_status(function) == 3
        assert function.reset() is True
        assert device_status(function) == 0


def test_opening_resets(bound):
    address = bound("rng-iova", behind_a_port)
    with VfioPciFunction.open(address) as function:
        function.registers(4, 0, 64).write8(20, 1)
        assert device_status(function) == 1
    with VfioPciFunction.open(address) as function:
        assert device_status(function) == 0


def test_a_function_without_reset_says_so(bound):
    with VfioPciFunction.open(bound("rng", lambda device: not behind_a_port(device))) as function:
        assert function.reset() is False


@pytest.mark.fault(87)
def test_removal_is_asked_for_and_waits_for_us(bound):
    address = bound("rng-iova", behind_a_port)
    function = VfioPciFunction.open(address)
    remover = threading.Thread(target=(PCI / "devices" / address / "remove").write_text, args=("1",), daemon=True)
    try:
        assert function.removal is not None
        assert not function.removal.take()
        remover.start()
        assert readable(function.removal, PATIENCE), "the kernel asks for it"
        assert function.removal.take()
        assert remover.is_alive(), "and waits until it is closed"
    finally:
        function.close()
        remover.join(PATIENCE)
        assert not remover.is_alive()
        assert not (PCI / "devices" / address).exists()
        (PCI / "rescan").write_text("1")
        assert wait_for(lambda: driver_of(address) == "virtio-pci")


@pytest.mark.fault(87)
def test_hot_unplug_while_in_use(bound, witness):
    address = bound("rng-iova", has_msix)
    name = next(name for name, place in witness.pci_addresses().items() if place == address)
    properties = {"bus": "parent_bus", "rng": "rng", "vectors": "vectors"}
    made = {key: str(witness.execute("qom-get", path=name, property_=what)) for key, what in properties.items()}
    function = VfioPciFunction.open(address)
    try:
        assert function.removal is not None
        witness.execute("device_del", id_=name)
        assert readable(function.removal, PATIENCE)
        assert function.removal.take()
    finally:
        function.close()
        witness.wait_event("DEVICE_DELETED", PATIENCE)
        assert wait_for(lambda: not (PCI / "devices" / address).exists())
        words = [f"{key}={value.rsplit('/', 1)[-1]}" for key, value in made.items()]
        line = ",".join(["device_add virtio-rng-pci", f"id={name}", "iommu_platform=on", *words])
        assert witness.execute("human-monitor-command", command_line=line) == ""
        assert wait_for(lambda: driver_of(address) == "virtio-pci")


@pytest.mark.fault(88)
def test_surprise_removal_ends_in_an_error_and_not_in_a_signal(bound):
    """Memory decoding off is what a BAR of a lost device looks like: a mapping would raise SIGBUS."""
    with VfioPciFunction.open(bound("rng-iova")) as function:
        registers = function.registers(4, 0, 64)
        command = function.config.read16(4)
        function.config.write16(4, command & ~2)
        with pytest.raises(DeviceGone) as caught:
            registers.read32(0)
        assert os.strerror(errno.EIO) in caught.value.seen
        function.config.write16(4, command)
        assert registers.read16(18) != 0  # num_queues


def test_the_view_is_at_the_address_that_was_mapped(bound):
    with VfioPciFunction.open(bound("rng-iova")) as function, function.dma(True) as space:
        block = space.alloc(PAGE)
        block.view[7] = 0x5A
        assert ctypes.c_uint8.from_address(block.vaddr + 7).value == 0x5A
