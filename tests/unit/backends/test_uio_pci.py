"""A function of uio_pci_generic made of files: what is written where, who is told, and what is refused."""

from __future__ import annotations

import os
import select
import signal

import pytest

from tests.fakes.fakesys import FakeSys, config_space
from tests.support.polling import readable
from uvirtio import opening
from uvirtio.backends import uio_pci
from uvirtio.backends.uio_pci import UioPciFunction
from uvirtio.errors import (
    Busy,
    CapabilityError,
    Closed,
    DeviceGone,
    DeviceResetByOther,
    GuardianLost,
    NoSuchDevice,
    NotBound,
    NotSupported,
    OperationFailed,
    UnsafeDma,
)
from uvirtio.host import lock
from uvirtio.interfaces.backend import Guarded, PciFunction, WithoutIommu
from uvirtio.spec import pci

ADDRESS = "0000:03:00.0"
STATUS = 0x14
IO, MEMORY, MASTER, INTX_OFF = (int(bit) for bit in pci.Command)


class Machine:
    """One function in a made-up tree, whose files stand for its registers."""

    def __init__(self, fake: FakeSys, *, pin: int = 1, group: int | None = None, legacy: bool = False) -> None:
        config = bytearray(config_space((0x1AF4, 0x1005 if legacy else 0x1044), modern=not legacy))
        config[pci.CFG_INTERRUPT_PIN] = pin
        self.fake, self.roots = fake, fake.roots
        self.path = fake.pci(ADDRESS, "rng", driver="uio_pci_generic", config=bytes(config), group=group)
        for index, size in ((0, 0x40), (1, 0x1000), (4, 0x4000)):
            fake.text(self.path / f"resource{index}", bytes(size))
        (self.path / "uio/uio7").mkdir(parents=True)
        self.node = fake.roots.dev / "uio7"
        os.mkfifo(self.node)

    def open(self, **how: object) -> UioPciFunction:
        return UioPciFunction.open(ADDRESS, self.roots, timeout=0.3, unsafe_dma=True, **how)

    def command(self) -> int:
        return int.from_bytes((self.path / "config").read_bytes()[4:6], "little")

    def set_command(self, value: int) -> None:
        with (self.path / "config").open("r+b") as file:
            file.seek(4)
            file.write(value.to_bytes(2, "little"))

    def bar(self, index: int) -> bytes:
        return (self.path / f"resource{index}").read_bytes()


@pytest.fixture
def machine(tmp_path):
    return Machine(FakeSys(tmp_path))


@pytest.fixture
def function(machine):
    with machine.open() as it:
        yield it


def test_it_is_what_the_seams_ask_for(function):
    typed: PciFunction = function
    assert isinstance(typed, Guarded)
    assert isinstance(typed, WithoutIommu)
    assert (typed.msix_vectors, typed.has_intx, typed.translates) == (0, True, False)
    assert typed.description == "uio_pci_generic, uio7, physical addresses"
    assert typed.config.read16(0) == 0x1AF4


def test_without_the_consent_it_is_not_even_opened(machine):
    before = machine.command()
    with pytest.raises(UnsafeDma) as caught:
        UioPciFunction.open(ADDRESS, machine.roots)
    assert (caught.value.code, caught.value.exit_code) == ("UV-REFUSED-UNSAFE-DMA", 3)
    assert "--unsafe-dma" in caught.value.remedy
    assert machine.command() == before


@pytest.mark.parametrize("driver", ["virtio-pci", "vfio-pci", None])
def test_another_driver_holds_it(tmp_path, driver):
    fake = FakeSys(tmp_path)
    fake.pci(ADDRESS, "rng", driver=driver)
    with pytest.raises(NotBound) as caught:
        UioPciFunction.open(ADDRESS, fake.roots, unsafe_dma=True)
    assert caught.value.remedy == f"uvirtio bind {ADDRESS} --driver uio_pci_generic"
    with pytest.raises(NoSuchDevice):
        UioPciFunction.open("0000:0f:00.0", fake.roots, unsafe_dma=True)


def test_the_driver_that_holds_it_decides_the_way_in(machine):
    with pytest.raises(UnsafeDma):
        opening.open(ADDRESS, roots=machine.roots)
    with pytest.raises(NotBound):
        opening.open(ADDRESS, roots=machine.roots, backend="vfio", unsafe_dma=True)
    with opening.open(ADDRESS, roots=machine.roots, unsafe_dma=True) as device:
        assert device.type == "rng"
        assert device.warning is not None and "no IOMMU holds this device" in device.warning
        assert device.transport.backend._plan()[0].register.offset == STATUS


def test_a_legacy_header_in_a_memory_bar_is_mapped_and_guarded(tmp_path):
    machine = Machine(FakeSys(tmp_path), legacy=True)
    resources = (machine.path / "resource").read_text().splitlines()
    resources[0] = f"{0xFE000000:#018x} {0xFE000FFF:#018x} {0x40200:#018x}"
    machine.fake.text(machine.path / "resource", "\n".join(resources) + "\n")
    machine.fake.text(machine.path / "resource0", bytes(0x1000))
    with opening.open(ADDRESS, roots=machine.roots, unsafe_dma=True) as device:
        assert device.transport.kind == "pci-legacy" and "memory BAR 0, 4096 bytes" in device.transport.interface
        device.transport.set_status(1)
        assert machine.bar(0)[pci.LEGACY_DEVICE_STATUS] == device.transport.status() == 1
        register = device.transport.backend._plan()[0].register
        assert (register.offset, register.width, register.mapped) == (pci.LEGACY_DEVICE_STATUS, 1, True)


def test_a_bar_within_a_page_is_not_taken_for_the_beginning_of_the_page(machine, monkeypatch):
    """Only where pages are larger than the BAR: the kernel maps the whole page, and the BAR is elsewhere in it."""
    monkeypatch.setattr(uio_pci, "CPU_PAGE", 1 << 16)
    text = (machine.path / "resource").read_text()
    moved = text.replace("fe000000 ", "fe004000 ").replace("fe003fff ", "fe007fff ")
    assert moved != text
    machine.fake.text(machine.path / "resource", moved)
    with machine.open() as function:
        with pytest.raises(NotSupported, match="does not begin at a page") as caught:
            function.registers(4, 0, 4)
        assert f"resource_alignment={ADDRESS}" in caught.value.remedy
        assert function.registers(0, 0, 4).length == 4  # I/O ports are not mapped
    machine.fake.text(machine.path / "resource", text)
    with machine.open() as function:
        function.registers(4, 0, 4)


def test_a_function_that_was_left_running_is_stopped_when_it_is_opened(machine):
    machine.set_command(MASTER)
    with machine.open():
        assert machine.command() == IO | MEMORY | INTX_OFF


def test_registers_of_both_kinds_of_bar(machine, function):
    memory, ports = function.registers(4, 0x10, 0x20), function.registers(0, 8, 8)
    assert function.bar(4).size == 0x4000 and not function.bar(4).is_io
    assert function.bar(0).is_io and function.bar(2) is None
    for window in (memory, ports):
        window.write8(1, 0x12)
        window.write16(2, 0x3456)
        window.write32(4, 0x789ABCDE)
        assert (window.read8(1), window.read16(2), window.read32(4)) == (0x12, 0x3456, 0x789ABCDE)
    wanted = bytes.fromhex("00125634debc9a78")
    assert machine.bar(4)[0x10:0x18] == wanted and machine.bar(0)[8:16] == wanted
    for bar, offset, length in ((4, 0x3FF0, 0x11), (2, 0, 4), (0, -1, 4)):
        with pytest.raises(CapabilityError):
            function.registers(bar, offset, length)
    assert function.doorbell(4, 0, 0) is None
    memory.close()
    with pytest.raises(Closed):
        memory.read8(0)


@pytest.mark.fault(90)
def test_one_driver_at_a_time_and_the_second_never_touches_the_node(machine, function, monkeypatch):
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *more: opened.append(str(path)) or real(path, *more))
    with pytest.raises(Busy) as caught:
        machine.open()
    assert str(machine.node) not in opened
    assert "locked" in caught.value.seen
    function.close()
    machine.open().close()


def test_the_lock_of_a_dead_driver_is_waited_for(machine, monkeypatch):
    function = machine.open()
    os.pwrite(function._lock, b"999999999\n", 0)  # its guardian still holds it
    monkeypatch.setattr(lock.time, "sleep", lambda _: function.close())
    machine.open().close()


# --- DMA ---------------------------------------------------------------------------------------------------------


def test_the_guardian_resets_the_device_of_a_driver_that_did_not_leave(machine):
    function = machine.open()
    function.registers(4, 0, 0x38).write8(STATUS, 0x0F)
    function.guard(4, STATUS, 1)
    function.bus_master(True)
    assert machine.command() & MASTER
    function._guardian.close()  # its end of the pipe is closed, as by a death
    assert machine.bar(4)[STATUS] == 0
    assert not machine.command() & MASTER
    function.close()


def test_bus_mastering_is_written_where_it_is_on_already(function, monkeypatch):
    """QEMU turns it on itself at DRIVER on the legacy interface, and serves nothing before it is written."""
    kind, written = type(function.config), []
    write = kind.write16

    def seen(self, offset: int, value: int) -> None:
        written.append((offset, bool(value & MASTER)))
        write(self, offset, value)

    monkeypatch.setattr(kind, "write16", seen)
    function.bus_master(True)
    function.bus_master(True)
    assert written == [(4, True)] * 2


def test_leaving_in_order_leaves_the_status_to_the_device(machine):
    with machine.open() as function:
        function.guard(4, STATUS, 1)
        function.bus_master(True)
        function.registers(4, 0, 0x38).write8(STATUS, 0x0F)
        guardian = function._guardian
    assert machine.bar(4)[STATUS] == 0x0F, "only the transport writes it"
    assert not machine.command() & MASTER
    assert not guardian.alive
    function.close()


def test_a_function_whose_dma_cannot_be_stopped_is_left_to_the_guardian(machine, monkeypatch):
    function = machine.open()
    function.guard(4, STATUS, 1)
    function.bus_master(True)
    function.registers(4, 0, 0x38).write8(STATUS, 0x0F)

    def refused(**_bits: int) -> int:
        raise OperationFailed("no")

    monkeypatch.setattr(function, "command", refused)
    function.close()
    assert machine.bar(4)[STATUS] == 0
    assert not machine.command() & MASTER


def turn(function: UioPciFunction) -> bool:
    """A turn of the wait loop, some time after the last."""
    function._looked = 0.0
    return function.removal.take()


def test_bus_mastering_that_somebody_else_switched_off_is_told_once(machine, function):
    function.bus_master(True)
    assert not turn(function)
    machine.set_command(IO | MEMORY)
    with pytest.raises(DeviceResetByOther):
        turn(function)
    assert not turn(function)


def test_a_guardian_that_is_gone_is_told_once(machine, function):
    function.bus_master(True)
    os.kill(function._guardian.pid, signal.SIGKILL)
    function._guardian._process.wait(10)
    with pytest.raises(GuardianLost):
        turn(function)
    assert not turn(function)
    with pytest.raises(GuardianLost):
        function.bus_master(True)


def test_nobody_watches_a_function_without_dma(machine, function):
    machine.set_command(0)
    assert not turn(function)


class Space:
    def __init__(self, roots: object, **how: object) -> None:
        self.how = how


@pytest.mark.parametrize(("kind", "refused"), [("DMA-FQ", True), ("DMA", True), ("identity", False)])
def test_addresses_that_an_iommu_would_translate(tmp_path, monkeypatch, kind, refused):
    machine = Machine(FakeSys(tmp_path), group=5)
    machine.fake.text(machine.roots.sys / "kernel/iommu_groups/5/type", f"{kind}\n")
    monkeypatch.setattr(uio_pci, "PhysicalDmaSpace", Space)
    with machine.open() as function:
        assert isinstance(function.dma(False), Space)
        if refused:
            with pytest.raises(NotSupported, match="uio with the IOMMU on") as caught:
                function.dma(True)
            assert "iommu=pt" in caught.value.remedy
        else:
            assert function.dma(True).how["translated"]


def test_a_group_that_does_not_say_what_it_is_counts_as_translating(tmp_path):
    with Machine(FakeSys(tmp_path), group=5).open() as function, pytest.raises(NotSupported):
        function.dma(True)


# --- interrupts, removal, reset ----------------------------------------------------------------------------------


def test_the_pin_is_taken_and_rearmed_through_the_command_register(machine, function):
    event = function.enable_intx()
    assert not machine.command() & INTX_OFF
    assert not event.take()
    with machine.node.open("r+b", buffering=0) as kernel:
        kernel.write((1).to_bytes(4, "little"))
        machine.set_command(machine.command() | INTX_OFF)  # as the kernel's handler does
        assert readable(event, 5)
        assert event.take()
        assert machine.command() & INTX_OFF, "not before the cause was read"
        event.rearm()
        assert not machine.command() & INTX_OFF
        assert not event.take()
        function.disable_interrupts()
        function.disable_interrupts()
    assert machine.command() & INTX_OFF
    with pytest.raises(Closed):
        event.take()
    with pytest.raises(OperationFailed):
        function.enable_msix(1)


def test_a_function_without_a_pin(tmp_path):
    with Machine(FakeSys(tmp_path), pin=0).open() as function:
        assert not function.has_intx
        assert function.enable_intx() is None


def test_a_function_whose_interrupt_the_kernel_has_not_is_polled(machine, monkeypatch):
    monkeypatch.setattr(uio_pci._Lines, "state", lambda self: select.POLLERR)
    with machine.open() as function:
        assert not function.has_intx
        assert not function.removal.take()
        assert not readable(function.removal, 0), "or the wait loop would spin"
        assert function.registers(4, 0, 4).read32(0) == 0
        function.bus_master(True)
        machine.set_command(0)
        with pytest.raises(DeviceResetByOther):  # watched all the same
            turn(function)


@pytest.mark.fault(88)
def test_a_function_that_is_taken_away_is_an_error_and_not_a_signal(machine, function, monkeypatch):
    window = function.registers(4, 0, 4)
    monkeypatch.setattr(uio_pci._Lines, "state", lambda self: select.POLLERR | select.POLLHUP)
    monkeypatch.setattr(uio_pci.MappedRegisters, "read32", lambda *_: pytest.fail("that would have been SIGBUS"))
    with pytest.raises(DeviceGone):
        window.read32(0)
    assert function.removal.take()


def test_configuration_space_of_nothing(machine, function):
    machine.set_command(0xFFFF)
    with pytest.raises(DeviceGone):
        function.bus_master(False)


def test_a_reset_where_sysfs_has_one(machine, function):
    assert not function.reset()
    machine.fake.text(machine.path / "reset", "")
    assert function.reset()
    assert (machine.path / "reset").read_text() == "1"


@pytest.mark.parametrize("text", ["0x0 0x0\n", "zero one two\n", ""])
def test_a_table_of_bars_that_makes_no_sense(machine, text):
    machine.fake.text(machine.path / "resource", text)
    if text:
        with pytest.raises(OperationFailed, match="BARs"):
            machine.open()
    else:
        with machine.open() as function:
            assert all(function.bar(index) is None for index in range(6))


def test_no_node(machine):
    (machine.path / "uio/uio7").rmdir()
    with pytest.raises(OperationFailed, match="no node"):
        machine.open()
