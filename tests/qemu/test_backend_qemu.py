"""The qemu: back end itself against real device models: registers, interrupts, kicks, memory, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.descriptors import descriptors, settled
from tests.support.polling import readable
from tests.support.virtio_state import state
from uvirtio.backends import child
from uvirtio.backends.qemu.function import QemuPciFunction
from uvirtio.backends.qemu.machine import Machine
from uvirtio.backends.qemu.process import QemuProcess
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.backends.qemu.qtest import Qtest
from uvirtio.backends.qemu.single import open_address
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.rng import Rng
from uvirtio.errors import (
    BadAddress,
    CapabilityError,
    Closed,
    DeviceGone,
    DeviceTimeout,
    Misuse,
    NotSupported,
    QemuFailed,
    UvirtioError,
)
from uvirtio.interfaces.memory import Event, Registers
from uvirtio.opening import open as open_device
from uvirtio.spec import pci as spec

MACHINES = ("q35", "pc")


@pytest.fixture(params=MACHINES)
def machine_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rng(machine_name: str) -> Iterator[QemuPciFunction]:
    with open_address(f"qemu:{machine_name}/virtio-rng-pci") as function:
        yield function


@pytest.fixture
def balloon(machine_name: str) -> Iterator[QemuPciFunction]:
    with open_address(f"qemu:{machine_name}/virtio-balloon-pci") as function:
        yield function


def window(function: QemuPciFunction, wanted: int) -> Registers:
    """The registers behind the first virtio capability of one type, found by hand."""
    place, _ = capability(function, wanted)
    config = function.config
    return function.registers(
        config.read8(place + spec.CAP_BAR),
        config.read32(place + spec.CAP_OFFSET),
        config.read32(place + spec.CAP_LENGTH),
    )


def capability(function: QemuPciFunction, wanted: int) -> tuple[int, int]:
    """(place, BAR) of the first virtio capability of one type."""
    config = function.config
    place = config.read8(spec.CFG_CAPABILITIES_POINTER)
    for _ in range(spec.MAX_CAPABILITIES):
        if not place:
            break
        if config.read8(place) == spec.CapId.VENDOR and config.read8(place + spec.CAP_CFG_TYPE) == wanted:
            return place, config.read8(place + spec.CAP_BAR)
        place = config.read8(place + spec.CAP_NEXT)
    raise AssertionError(f"no capability of type {wanted}")


STATUS, CONFIG_VECTOR = 0x14, 0x10
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8


def bring_up(function: QemuPciFunction) -> Registers:
    """Just far enough for configuration changes; the driver features are VERSION_1 alone."""
    common = window(function, spec.CfgType.COMMON)
    function.bus_master(True)
    common.write8(STATUS, 0)
    common.write8(STATUS, ACKNOWLEDGE)
    common.write8(STATUS, ACKNOWLEDGE | DRIVER)
    common.write32(8, 1)  # driver_feature_select
    common.write32(12, 1)
    common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
    assert common.read8(STATUS) & FEATURES_OK
    return common


def waits(event: Event) -> bool:
    """Whether the event becomes pending; polls as a wait loop does."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if event.take():
            return True
        readable(event, 0.5)
    return False


def gone(pid: int) -> bool:
    """Whether the process ends; a zombie that is not reaped in here counts as gone."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


# --- registers ---


def test_configuration_space(rng: QemuPciFunction) -> None:
    assert rng.config.read16(spec.CFG_VENDOR_ID) == spec.VIRTIO_VENDOR
    assert rng.config.read16(spec.CFG_DEVICE_ID) == 0x1005
    assert rng.config.read32(spec.CFG_VENDOR_ID) == 0x10051AF4
    assert rng.config.read8(spec.CFG_DEVICE_ID + 1) == 0x10
    assert rng.config.length == spec.CONFIG_SIZE
    assert rng.address.startswith("qemu:")
    assert str(rng.machine.pid) in rng.description
    assert not rng.translates


def test_base_addresses_agree_with_qemu(machine_name: str) -> None:
    with Machine(machine_name, ["virtio-rng-pci", "virtio-blk-pci", "virtio-balloon-pci"]) as machine:
        spans: list[tuple[int, int]] = []
        regions: dict[str, dict[int, tuple[int, int, str]]] = {}
        for device in machine.qmp("query-pci")[0]["devices"]:
            regions[device["qdev_id"]] = {
                region["bar"]: (region["address"], region["size"], region["type"]) for region in device["regions"]
            }
        for function in machine.functions:
            found = {}
            for index in range(6):
                bar = function.bar(index)
                if bar is not None:
                    address = function.bar_address(index)
                    found[index] = (address, bar.size, "io" if bar.is_io else "memory")
                    spans.append((address, address + bar.size))
                    assert address % bar.size == 0
            assert found == regions[function.id]
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))  # noqa: RUF007


def test_a_bar_round_trip(rng: QemuPciFunction) -> None:
    common = window(rng, spec.CfgType.COMMON)
    common.write8(STATUS, ACKNOWLEDGE)
    assert common.read8(STATUS) == ACKNOWLEDGE
    common.write16(CONFIG_VECTOR, 1)
    assert common.read16(CONFIG_VECTOR) == 1
    assert state(rng.machine.qmp, f"/machine/peripheral/{rng.id}/virtio-backend").status == {"ACKNOWLEDGE"}
    common.write8(STATUS, 0)
    assert common.read8(STATUS) == 0


def test_an_io_bar(rng: QemuPciFunction) -> None:
    bar = rng.bar(0)
    assert bar is not None
    assert bar.is_io
    legacy = rng.registers(0, 0, bar.size)
    legacy.write8(18, ACKNOWLEDGE)  # the legacy device status
    assert legacy.read8(18) == ACKNOWLEDGE
    assert window(rng, spec.CfgType.COMMON).read8(STATUS) == ACKNOWLEDGE


@pytest.mark.fault(4)
@pytest.mark.parametrize(("bar", "offset", "length"), [(5, 0, 4), (4, 0, 1 << 20), (4, -4, 4), (0, 32, 1)])
def test_no_window_outside_a_bar(rng: QemuPciFunction, bar: int, offset: int, length: int) -> None:
    with pytest.raises(CapabilityError):
        rng.registers(bar, offset, length)


def test_bus_master(rng: QemuPciFunction) -> None:
    assert not rng.config.read16(spec.CFG_COMMAND) & spec.Command.MASTER
    rng.bus_master(True)
    assert rng.config.read16(spec.CFG_COMMAND) & spec.Command.MASTER
    rng.enable_intx()
    assert rng.config.read16(spec.CFG_COMMAND) & spec.Command.MASTER
    rng.bus_master(False)
    command = rng.config.read16(spec.CFG_COMMAND)
    assert not command & spec.Command.MASTER
    assert command & spec.Command.MEMORY


# --- interrupts ---


def test_msix_is_an_eventfd(machine_name: str) -> None:
    """block_resize changes the configuration, which fires the vector that was chosen for it."""
    with open_address(f"qemu:{machine_name}/virtio-blk-pci") as function:
        assert function.msix_vectors >= 2
        events = function.enable_msix(2)
        common = bring_up(function)
        common.write16(CONFIG_VECTOR, 1)
        assert common.read16(CONFIG_VECTOR) == 1
        common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        for size in (32 << 20, 16 << 20):
            function.machine.qmp("block_resize", device=f"{function.id}-disk", size=size)
            assert waits(events[1])
            assert not events[1].take()
            events[1].rearm()
        assert not events[0].take()
        function.disable_interrupts()
        with pytest.raises(Closed):
            events[1].take()


def test_msix_vectors_are_shared_by_the_functions_of_a_machine() -> None:
    with Machine(
        devices=["virtio-blk-pci,vectors=20,num-queues=4", "virtio-blk-pci,vectors=20,num-queues=4"]
    ) as m:
        first, second = m.functions
        assert first.msix_vectors == 20
        first.enable_msix(20)
        assert first.msix_vectors == 20
        left = second.msix_vectors
        assert 0 < left < 20
        with pytest.raises(NotSupported):
            second.enable_msix(20)
        assert len(second.enable_msix(left)) == left
        first.disable_interrupts()
        assert len(second.enable_msix(20)) == 20


def test_a_function_without_msix(machine_name: str) -> None:
    with open_address(f"qemu:{machine_name}/virtio-rng-pci,vectors=0") as function:
        assert function.msix_vectors == 0
        with pytest.raises(NotSupported):
            function.enable_msix(1)
        assert function.doorbell(4, 0x3000, 0) is None


def test_intx_is_level_triggered(balloon: QemuPciFunction) -> None:
    """QMP's balloon changes the configuration; the pin stays raised until the ISR is read."""
    assert balloon.has_intx
    event = balloon.enable_intx()
    assert event is not None
    common = bring_up(balloon)
    isr = window(balloon, spec.CfgType.ISR)
    common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    assert not event.take()
    for size in (256 << 20, 128 << 20):
        balloon.machine.qmp("balloon", value=size)
        assert waits(event)
        assert not event.take(), "masked until rearm()"
        event.rearm()
        assert event.take(), "the cause was not read yet"
        assert isr.read8(0) & 2
        event.rearm()
        assert not event.take()
        assert not readable(event, 0)
    balloon.disable_interrupts()
    with pytest.raises(Closed):
        event.take()


def test_an_interrupt_that_is_pending_when_the_pin_goes_on(balloon: QemuPciFunction) -> None:
    common = bring_up(balloon)
    common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    balloon.machine.qmp("balloon", value=256 << 20)
    event = balloon.enable_intx()
    assert event is not None
    assert waits(event)


def test_each_of_four_functions_has_a_line_of_its_own(machine_name: str) -> None:
    """A configuration change in one function is no interrupt of another."""
    with Machine(machine_name, ["virtio-blk-pci"] * 4) as machine:
        events = []
        for function in machine.functions:
            events.append(function.enable_intx())
            common = bring_up(function)
            common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        for index, function in enumerate(machine.functions):
            machine.qmp("block_resize", device=f"{function.id}-disk", size=32 << 20)
            assert waits(events[index])
            assert [event.take() for event in events] == [False] * 4
            assert window(function, spec.CfgType.ISR).read8(0) & 2
            events[index].rearm()


# --- kicks ---


def request_random(function: QemuPciFunction, kick: Callable[[Registers], None]) -> bytes:
    """One request of 16 bytes on the queue of virtio-rng, laid out by hand."""
    common = bring_up(function)
    with_memory = function.dma(False)
    block = with_memory.alloc(3 * 4096)
    base = block.segments(0, block.size)[0][0]
    quads, halves = block.view.cast("Q"), block.view.cast("H")
    quads[0] = base + 8192
    quads[1] = 16 | 2 << 32  # one descriptor, device-writable
    common.write16(0x16, 0)  # queue_select
    common.write16(0x18, 8)  # queue_size
    for place, address in ((0x20, base), (0x28, base + 2048), (0x30, base + 4096)):
        common.write32(place, address)
        common.write32(place + 4, 0)
    common.write16(0x1C, 1)  # queue_enable
    common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    halves[1024 + 1] = 1  # avail.idx
    kick(common)
    deadline = time.monotonic() + 10
    while halves[2048 + 1] != 1:  # used.idx
        assert time.monotonic() < deadline, "the device did not hear the kick"
        time.sleep(0.001)
    random = bytes(block.view[8192 : 8192 + 16])
    common.write8(STATUS, 0)
    quads.release()
    halves.release()
    with_memory.close()
    return random


@pytest.mark.parametrize("way", ["eventfd", "register"])
def test_a_kick_is_heard_and_memory_is_shared_both_ways(rng: QemuPciFunction, way: str) -> None:
    place, bar = capability(rng, spec.CfgType.NOTIFY)
    offset = rng.config.read32(place + spec.CAP_OFFSET)

    def kick(common: Registers) -> None:
        if way == "eventfd":
            bell = rng.doorbell(bar, offset, 0)
            assert bell is not None
            bell.ring(0)
            with pytest.raises(Misuse, match="writes"):
                bell.ring(1)
            bell.close()
            bell.close()
            with pytest.raises(Closed):
                bell.ring(0)
        else:
            rng.registers(bar, offset, 4).write16(0, 0)

    seen = {request_random(rng, kick) for _ in range(3)}
    assert len(seen) == 3
    assert bytes(16) not in seen


def test_doorbells_run_out_and_come_back(rng: QemuPciFunction) -> None:
    place, bar = capability(rng, spec.CfgType.NOTIFY)
    offset = rng.config.read32(place + spec.CAP_OFFSET)
    bells = []
    for _ in range(100):
        bell = rng.doorbell(bar, offset, 0)
        if bell is None:
            break
        bells.append(bell)
    assert len(bells) == 32
    bells.pop().close()
    assert rng.doorbell(bar, offset, 0) is not None
    assert rng.doorbell(0, 16, 0) is None, "an I/O port cannot be written by a message"


# --- memory ---


@pytest.mark.parametrize("ram", [64 << 20, 4 << 30])
def test_qemu_sees_our_memory_where_we_think_it_is(machine_name: str, ram: int) -> None:
    with Machine(machine_name, ["virtio-balloon-pci"], ram=ram) as machine:
        spaces = [machine.functions[0].dma(False)]
        blocks = [spaces[0].alloc(4096)]
        if ram > 2 << 30:
            filler = spaces[0].alloc((2 << 30) - (16 << 20) - 4096)
            blocks.append(spaces[0].alloc(4096))
            assert blocks[1].address == 4 << 30
            filler.close()
        for number, block in enumerate(blocks):
            block.view[:4] = (0x12345678 + number).to_bytes(4, "little")
            assert machine.qtest.read(4, block.address) == 0x12345678 + number
            machine.qtest.write(4, block.address + 4092, 0xCAFE)
            assert bytes(block.view[-4:]) == b"\xfe\xca\0\0"


def test_without_an_iommu_both_policies_give_guest_physical_addresses(rng: QemuPciFunction) -> None:
    for translated in (False, True):
        space = rng.dma(translated)
        assert space.translated is translated
        block = space.alloc(10_000)
        ((address, length),) = block.segments(0, 10_000)
        assert length == 10_000
        assert [address // 4096 + i for i in range(3)] == block.pfns()
        space.close()


# --- what devices are supplied with ---


@pytest.mark.parametrize(
    "device",
    [
        "virtio-balloon-pci",
        "virtio-mem-pci,requested-size=0",
        "virtio-pmem-pci",
        "virtio-keyboard-pci",
        "virtio-tablet-pci",
        "virtio-mouse-pci",
        "virtio-rng-pci",
        "virtio-blk-pci",
        "virtio-blk-pci,iothread=worker",
        "virtio-scsi-pci",
        "virtio-net-pci",
        "virtio-serial-pci",
        "virtio-gpu-pci",
        "virtio-crypto-pci",
        "virtio-rng-pci,disable-modern=on",
        "virtio-rng-pci,iommu_platform=on,disable-legacy=on",
        "virtio-rng-pci,id=mine,addr=1c.0",
    ],
)
def test_devices_start_with_nothing_but_their_name(machine_name: str, device: str) -> None:
    try:
        function = open_address(f"qemu:{machine_name}/{device}")
    except QemuFailed as error:
        if "not a valid device model name" in str(error.seen):
            pytest.skip("this QEMU does not have it")  # its modules are packages of their own
        raise
    with function:
        assert function.config.read16(spec.CFG_VENDOR_ID) == spec.VIRTIO_VENDOR
        assert function.machine.qmp("qom-get", path=f"/machine/peripheral/{function.id}", property="realized")


def test_a_supplied_disk_can_be_looked_into() -> None:
    with Machine(devices=["virtio-blk-pci"]) as machine:
        (fd,) = machine.files.values()
        assert os.fstat(fd).st_size == 64 << 20


def test_a_machine_has_several_functions(machine_name: str) -> None:
    with Machine(machine_name, ["virtio-rng-pci", "virtio-keyboard-pci,id=keys", "virtio-rng-pci"]) as machine:
        assert [function.id for function in machine.functions] == ["dev0", "keys", "dev2"]
        ids = [function.config.read16(spec.CFG_DEVICE_ID) for function in machine.functions]
        assert ids == [0x1005, 0x1052, 0x1005]
        machine.functions[0].close()
        assert machine.functions[1].config.read16(0) == spec.VIRTIO_VENDOR


# --- QMP ---


def test_qmp_and_its_events(balloon: QemuPciFunction) -> None:
    machine = balloon.machine
    assert machine.version >= (7, 2, 0)
    assert machine.qmp("query-status")["status"] == "running"
    with pytest.raises(QemuFailed, match="query-nothing"):
        machine.qmp("query-nothing")
    machine.qmp("stop")
    machine.qmp("cont")
    assert len(machine.qmp_events("STOP", 10.0)) == 1
    assert len(machine.qmp_events("RESUME", 10.0)) == 1
    assert machine.qmp_events("RESUME") == []


def test_a_qmp_socket_for_others(tmp_path: Path) -> None:
    path = tmp_path / "virtio-qmp"
    with open_address(f"qemu:q35,qmp={path}/virtio-rng-pci"), socket.socket(socket.AF_UNIX) as other:
        other.settimeout(10)
        other.connect(str(path))
        assert b'"QMP"' in other.recv(4096)
    assert not path.exists()


# --- the end ---


def test_close_leaves_no_process_and_no_descriptor(machine_name: str) -> None:
    before = settled()
    function = open_address(f"qemu:{machine_name}/virtio-rng-pci")
    pid = function.machine.pid
    function.enable_msix(2)
    function.dma(False).alloc(4096)
    registers = function.registers(4, 0, 4)
    function.close()
    function.close()
    function.machine.close()
    assert not Path(f"/proc/{pid}").exists()
    assert descriptors() == before
    with pytest.raises(Closed):
        function.registers(4, 0, 4)
    with pytest.raises(Closed):
        registers.read32(0)
    with pytest.raises(Closed):
        function.machine.qmp("query-status")


def test_a_machine_closes_its_functions() -> None:
    machine = Machine(devices=["virtio-rng-pci", "virtio-balloon-pci"])
    machine.close()
    machine.close()
    assert gone(machine.pid)
    for function in machine.functions:
        with pytest.raises(Closed):
            function.enable_intx()


def test_a_killed_qemu_is_device_gone_everywhere(machine_name: str) -> None:
    with Machine(machine_name, ["virtio-rng-pci", "virtio-balloon-pci"]) as machine:
        rng, balloon = machine.functions
        (message, *_) = rng.enable_msix(2)
        line = balloon.enable_intx()
        bell = rng.doorbell(4, 0x3000, 0)
        memory = rng.dma(False).alloc(4096)
        assert bell is not None
        assert line is not None
        assert rng.removal is not None
        assert not rng.removal.take()
        os.kill(machine.pid, signal.SIGKILL)
        with pytest.raises(DeviceGone, match="QEMU ended"):  # which is no hot-unplug
            waits(rng.removal)
        registers = rng.registers(4, 0, 4)
        for access in (
            lambda: rng.config.read32(0),
            lambda: registers.read32(0),
            lambda: registers.write32(0, 0),
            lambda: bell.ring(0),
            message.take,
            line.take,
            rng.removal.take,
            lambda: rng.bus_master(True),
            lambda: machine.qmp("query-status"),
        ):
            with pytest.raises(DeviceGone) as caught:
                access()
            assert "SIGKILL" in str(caught.value.seen)
        memory.view[0] = 1  # stays mapped
        bell.close()


@pytest.mark.fault(17, level="K")
def test_a_stopped_qemu_is_a_timeout_and_goes_on_after() -> None:
    with Machine(devices=["virtio-rng-pci"], timeout=1.0) as machine:
        config = machine.functions[0].config
        os.kill(machine.pid, signal.SIGSTOP)
        with pytest.raises(DeviceTimeout):
            config.read32(0)
        with pytest.raises(DeviceTimeout):
            machine.qmp("query-status")
        os.kill(machine.pid, signal.SIGCONT)
        deadline = time.monotonic() + 10
        while True:
            try:
                assert config.read32(0) == 0x10051AF4
                assert config.read16(0) == 0x1AF4
                break
            except DeviceTimeout:
                assert time.monotonic() < deadline


@pytest.mark.fault(17, level="K")
def test_a_stopped_qemu_is_killed_at_close() -> None:
    machine = Machine(devices=["virtio-rng-pci"])
    os.kill(machine.pid, signal.SIGSTOP)
    machine.close()
    assert gone(machine.pid)


@pytest.mark.fault(87)
def test_a_device_unplugged_is_a_removal() -> None:
    """On pc the guest ejects by writing the slot's bit to an ACPI register; here we are the guest."""
    with Machine("pc", ["virtio-rng-pci", "virtio-balloon-pci"]) as machine:
        rng, balloon = machine.functions
        assert rng.removal is not None
        assert balloon.removal is not None
        slot = next(
            device["slot"] for device in machine.qmp("query-pci")[0]["devices"] if device["qdev_id"] == rng.id
        )
        machine.qmp("device_del", id=rng.id)
        machine.qtest.port_out(4, 0xAE08, 1 << slot)
        assert waits(rng.removal)
        assert not rng.removal.take(), "it fires once"
        assert not balloon.removal.take()
        with pytest.raises(DeviceGone, match=rng.id) as caught:
            rng.config.read32(0)
        assert "hot-unplug" in str(caught.value.seen)
        assert balloon.config.read16(0) == spec.VIRTIO_VENDOR


def test_a_thread_that_ends_does_not_take_qemu_with_it() -> None:
    """The parent-death signal is sent when the thread that started the process ends."""
    opened: list[QemuPciFunction] = []
    thread = threading.Thread(target=lambda: opened.append(open_address("qemu:virtio-rng-pci")))
    thread.start()
    thread.join()
    with opened[0] as function:
        time.sleep(0.1)
        assert function.config.read16(0) == spec.VIRTIO_VENDOR


@pytest.mark.parametrize("way", ["setpriv", "prctl", "busybox"])
def test_a_killed_parent_leaves_no_qemu(way: str, tmp_path: Path) -> None:
    path = os.environ["PATH"]
    if way == "busybox":  # a setpriv that knows no parent-death signal, before the other one
        other = tmp_path / "setpriv"
        other.write_text("#!/bin/sh\necho 'setpriv: unrecognized option' >&2\nexit 1\n")
        other.chmod(0o755)
        path = f"{tmp_path}:{path}"
    if way == "prctl":  # a PATH that holds QEMU and no setpriv
        (tmp_path / "qemu-system-x86_64").symlink_to(
            next(
                place
                for place in (Path(folder) / "qemu-system-x86_64" for folder in path.split(":"))
                if os.access(place, os.X_OK)  # False also where the folder may not be looked at
            )
        )
        path = str(tmp_path)
    code = (
        "from uvirtio.backends.qemu.machine import Machine\n"
        "print(Machine(devices=['virtio-rng-pci']).pid, flush=True)\n"
        "input()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PATH": path},
        text=True,
    )
    try:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        child.kill()
        child.wait(10)
        assert gone(pid)
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("place", ["the keeper's start", "QMP's greeting"])
def test_an_interrupted_start_leaves_no_qemu(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settled()
    seen: list[QemuProcess] = []
    start = QemuProcess.__init__

    def noted(self: QemuProcess, *arguments: object, **options: object) -> None:
        seen.append(self)
        start(self, *arguments, **options)

    class Interrupted(child._Latch):
        def wait(self, timeout: float) -> bool:
            if super().wait(timeout) and seen[0]._started is self:
                raise KeyboardInterrupt
            return True

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(QemuProcess, "__init__", noted)
    if place == "QMP's greeting":
        monkeypatch.setattr(Qmp, "begin", interrupted)
    else:
        monkeypatch.setattr(child, "_Latch", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_address("qemu:virtio-rng-pci")
    monkeypatch.undo()
    assert seen[0]._pid is not None
    assert gone(seen[0]._pid)
    assert descriptors() == before


def test_a_device_that_qemu_does_not_know_is_quoted() -> None:
    with pytest.raises(QemuFailed) as caught:
        open_address("qemu:virtio-nonsense-pci")
    assert "'virtio-nonsense-pci' is not a valid device model name" in str(caught.value.seen)
    assert caught.value.exit_code == 4


def test_where_a_disk_image_belongs_is_told_and_works(tmp_path: Path) -> None:
    """To who names it alone, and to who knows QEMU's -drive."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(BadAddress) as caught:
        open_device(str(image))
    told = [word.rstrip(",") for word in str(caught.value.remedy).split() if ":" in word]
    assert len(told) == 2
    for address in told:
        with open_device(address) as device, Blk(device) as disk:
            assert disk.capacity == 2048
    with pytest.raises(QemuFailed, match="did not start") as refused:
        open_address(f"qemu:virtio-blk-pci,drive={image}")
    assert "qemu:q35,file=PATH/virtio-blk-pci" in str(refused.value.remedy)


def test_a_device_for_another_bus_is_refused() -> None:
    with pytest.raises(UvirtioError) as caught:
        open_address("qemu:virtio-rng-device")
    assert "bus" in str(caught.value)


def play(tmp_path: Path, script: str) -> str:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_an_old_qemu_says_its_version(tmp_path: Path) -> None:
    old = play(
        tmp_path, 'case "$1" in --version) echo QEMU emulator version 5.2.0;; *) echo odd >&2; exit 1;; esac'
    )
    with pytest.raises(QemuFailed, match="too old") as caught:
        Machine(devices=["virtio-rng-pci"], binary=old)
    assert caught.value.seen == "5.2.0"


def test_a_qemu_that_says_nothing_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    silent = play(tmp_path, f'[ "$1" = --version ] && exit 1; echo $$ > {note}; exec sleep 1000')
    with pytest.raises(QemuFailed, match=r"did not start in 0\.5 s"):
        Machine(devices=["virtio-rng-pci"], binary=silent, timeout=0.5)
    assert gone(int(note.read_text()))


def test_an_argument_that_no_process_can_have() -> None:
    with pytest.raises(QemuFailed):
        Machine(devices=["virtio-rng-pci,id=a\0b"])


def test_a_program_that_cannot_be_run(tmp_path: Path) -> None:
    broken = tmp_path / "qemu"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    with pytest.raises(QemuFailed):
        Machine(devices=["virtio-rng-pci"], binary=str(broken))


MANY = """
import os, resource, sys

wanted = 1200
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
if hard != resource.RLIM_INFINITY and hard < 2 * wanted:
    sys.exit(77)
resource.setrlimit(resource.RLIMIT_NOFILE, (2 * wanted, hard))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(wanted)]
assert held[-1] > 1023

import uvirtio

for address in sys.argv[1:]:
    with uvirtio.open(address) as device, uvirtio.Rng(device) as rng:
        assert len(rng.read(64)) == 64
        assert device.counters.missed_interrupts == 0
        print(address, device.transport.interrupt_mode.value)
"""


def test_descriptors_above_1023():
    """Interrupts by message and by line, in a process that has many files open."""
    addresses = ["qemu:virtio-rng-pci", "qemu:virtio-rng-pci,vectors=0", "qemu:microvm/virtio-rng-device"]
    done = subprocess.run(
        [sys.executable, "-c", MANY, *addresses], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == 77:
        pytest.skip("this user may not have so many files open")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        word for pair in zip(addresses, ["msix-per-queue", "intx", "intx"], strict=True) for word in pair
    ]


def sending(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is sent to qtest from now on, a text for each round trip."""
    sent: list[str] = []
    send = Qtest._send

    def counted(self: Qtest, text: str) -> None:
        sent.append(text)
        send(self, text)

    monkeypatch.setattr(Qtest, "_send", counted)
    return sent


def test_a_device_is_found_started_and_closed_in_few_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not depend on an answer goes together; each round trip costs a tenth of a millisecond."""
    waits: list[object] = []
    for name in ("_ask", "_ask_all", "settle"):
        monkeypatch.setattr(Qtest, name, counting(getattr(Qtest, name), waits))
    with open_device("qemu:virtio-rng-pci") as device:
        found = len(waits)
        with Rng(device) as rng:
            assert len(rng.read(1)) == 1
    assert found <= 13, waits[:found]
    assert len(waits) <= 49, waits


STARTED = """
import sys, uvirtio
with uvirtio.open("qemu:virtio-rng-pci") as device, uvirtio.Rng(device) as rng:
    rng.read(1)
print(*sys.modules)
"""


def test_a_device_is_driven_without_what_takes_long_to_import_or_much_memory() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        *("ctypes", "dataclasses", "importlib.metadata", "inspect", "logging", "pathlib", "selectors", "signal"),
        *("socket", "subprocess", "typing", "uvirtio.spec.mmio", "uvirtio.spec.type_features"),
    }
    ours = {name.removeprefix("uvirtio.") for name in loaded if name.partition(".")[0] == "uvirtio"}
    # 20 to 90 KiB each: contracts that are for type checkers and people, and what this device has no use for.
    assert not ours & {
        *("interfaces.memory", "interfaces.backend", "interfaces.transport", "interfaces.recording"),
        *("virtqueue.interface", "virtqueue.packed", "virtqueue.region", "virtqueue.slots", "backends.qemu.parts"),
        *("backends.pages", "host.pagemap", "host.remedies", "memory.trace", "spec.feature_names"),
    }
    assert len(ours) <= 92


def counting(call: Callable[..., Any], calls: list[object]) -> Callable[..., Any]:
    def counted(*given: Any) -> Any:
        calls.append(given[1:])
        return call(*given)

    return counted


def test_a_field_that_is_read_once_is_read_again_after_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_address("qemu:virtio-rng-pci") as function:
        sent, config = sending(monkeypatch), function.config
        device_id = config.read16(spec.CFG_DEVICE_ID)
        assert not sent
        config.write16(spec.CFG_DEVICE_ID, 0xFFFF)
        assert config.read16(spec.CFG_DEVICE_ID) == device_id  # read-only in the device, too
        assert [line.split()[0] for line in sent] == ["writew", "readw"]
        assert config.read16(spec.CFG_COMMAND) == config.read16(spec.CFG_COMMAND)
        assert len(sent) == 4, "what can change is read each time"


def test_qemu_has_no_descriptor_that_it_was_not_given(tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    with strange.open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        with open_address("qemu:virtio-rng-pci") as function:
            place = Path(f"/proc/{function.machine.pid}/fd")
            links = {int(fd.name): str(fd.readlink()) for fd in place.iterdir()}
    assert str(strange) not in links.values()
    assert (links[0], links[1]) == ("/dev/null", "/dev/null")
    assert "uvirtio-stderr" in links[2]
