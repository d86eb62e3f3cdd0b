"""Each kind of machine is where its row says: memory, windows, ports, interrupt lines; and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import uvirtio
from tests.qemu.machines import ALL, WITH_MMIO, WITH_PCI, needs
from uvirtio.backends.qemu.memory import FIRST
from uvirtio.backends.qemu.models import MODELS
from uvirtio.backends.qemu.process import QemuProcess
from uvirtio.errors import NotSupported, QemuFailed
from uvirtio.interfaces.values import InterruptMode
from uvirtio.qemu import Machine
from uvirtio.spec import features as f

MIB = 1 << 20
MAGIC = int.from_bytes(b"virt", "little")


@pytest.mark.parametrize("name", ALL)
def test_memory_is_where_the_row_says(name: str) -> None:
    """At both ends of it, and on both sides of a hole where the machine has one by default."""
    with Machine(name) as machine:
        ram, size = machine.memory.ram, machine.memory.size
        places = [FIRST, min(size, ram.split) - 4096, *([ram.split, size - 4096] if size > ram.split else [])]
        for number, place in enumerate(places, 1):
            os.pwrite(machine.memory.fd, number.to_bytes(4, "little"), place)
            assert machine.qtest.read(4, ram.address_of(place)) == number
        assert machine.process.said() in ("", SILENT.get(name)), "QEMU has nothing against its arguments"


SILENT = {"loongarch64": "only warnings: warning: No kernel provided, booting from flash drive."}
"""What later versions of QEMU say of a machine that has nothing to boot from."""


@pytest.mark.parametrize("name", WITH_MMIO)
def test_every_window_is_a_transport(name: str) -> None:
    bus = MODELS[name].mmio
    assert bus is not None
    with Machine(name) as machine:
        for number in range(bus.count):
            assert machine.qtest.read(4, bus.base + number * bus.stride) == MAGIC


@pytest.mark.parametrize("name", WITH_MMIO)
def test_every_window_has_its_line(name: str) -> None:
    bus = MODELS[name].mmio
    assert bus is not None
    devices = ["virtio-rng-device"] * bus.count
    with Machine(name, devices) as machine:
        assert len({function.line for function in machine.functions}) == bus.count  # type: ignore[union-attr]
        for function in machine.functions:
            interrupted(machine, function)


@pytest.mark.parametrize("name", WITH_PCI)
def test_every_slot_has_its_line(name: str) -> None:
    """Five slots in a row: each of the four lines, and one of them twice."""
    devices = ["virtio-rng-pci,vectors=0"] * 4 + ["virtio-rng-pci,vectors=0,disable-modern=on,disable-legacy=off"]
    with Machine(name, devices) as machine:
        for function in machine.functions:
            interrupted(machine, function)
        with machine.open(4) as device:
            assert device.transport.legacy, "and the last one is in the I/O ports"


def interrupted(machine: Machine, function: object) -> None:
    """Read from a device, which tells so by its line."""
    with machine.open(function, interrupts=[InterruptMode.INTX]) as device, uvirtio.Rng(device) as rng:  # type: ignore[arg-type]
        assert len(rng.read(16)) == 16
        device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")
        assert device.counters.missed_interrupts == 0


@pytest.mark.parametrize("name", WITH_PCI)
def test_each_queue_has_its_message(name: str) -> None:
    machine = Machine(name, ["virtio-blk-pci,num-queues=2"])
    with machine, machine.open() as device, uvirtio.Blk(device) as disk:
        assert device.transport.interrupt_mode is InterruptMode.PER_QUEUE
        assert disk.read(0, 8) == bytes(4096)
        assert device.counters.missed_interrupts == 0


@pytest.mark.parametrize("name", [pytest.param("loongarch64", marks=needs("loongarch64"))])
def test_a_device_reaches_the_memory_beyond_the_hole(name: str) -> None:
    with Machine(name, ["virtio-rng-pci"]) as machine:
        ram = machine.memory.ram
        assert ram.high is not None and machine.memory.size > ram.split
        low = machine.memory.alloc(ram.split - FIRST)
        with machine.open() as device, uvirtio.Rng(device) as rng:
            assert len(set(rng.read(64))) > 8
            block = device.dma.alloc(4096)
            assert block.segments(0, 1)[0][0] >= ram.high, "and so are the ring and the buffers"
            block.close()
        low.close()


# --- what a device needs besides ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "qemu:virtio-9p-pci",
        "qemu:microvm/virtio-9p-device",
        "qemu:microvm/virtio-net-device",
        "qemu:microvm/virtio-pmem",
        "qemu:virtio-net-pci",
        "qemu:virtio-balloon-pci,free-page-hint=on",
        pytest.param("qemu:virtio-sound-pci", marks=pytest.mark.qemu_since(8, 2)),
        pytest.param("qemu:microvm/virtio-sound-device", marks=pytest.mark.qemu_since(8, 2)),
        pytest.param("qemu:virt/virtio-net-device", marks=needs("virt")),
        pytest.param("qemu:riscv64/virtio-net-device", marks=needs("riscv64")),
        pytest.param("qemu:loongarch64/virtio-net-pci", marks=needs("loongarch64")),
    ],
)
def test_a_device_that_lacks_something_is_supplied_with_it(address: str) -> None:
    with uvirtio.open(address) as device:
        assert device.type in address


def test_a_balloon_is_hinted_to_without_more_ado() -> None:
    address = "qemu:virtio-balloon-pci,free-page-hint=on"
    with uvirtio.open(address) as device, uvirtio.Balloon(device, hinting=True):
        assert device.has(f.Balloon.FREE_PAGE_HINT)


def test_what_qemu_makes_at_its_start_alone_cannot_be_plugged_in() -> None:
    with Machine("pc") as machine:
        for device, what in (("virtio-9p-pci", "fsdev"), ("virtio-mem-pci", "memory")):
            with pytest.raises(NotSupported, match="cannot be plugged") as caught:
                machine.plug(device)
            assert what in caught.value.seen
        assert machine.functions == [] and not machine.files
        machine.plug("virtio-balloon-pci,free-page-hint=on")


# --- another QEMU ---------------------------------------------------------------------------------------------


def play(folder: Path, script: str, name: str = "my-qemu") -> str:
    """A program that only says what a QEMU would."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def linked(folder: Path, name: str) -> str:
    """An installed QEMU, under another name."""
    program = folder / "my-qemu"
    program.symlink_to(str(shutil.which(name)))
    return str(program)


WARNS = """
echo "my-qemu: -mon chardev=qmp: warning: '-mon' is deprecated, use '-object'" >&2
echo "my-qemu: warning: No kernel provided, booting from flash drive." >&2
"""


def test_a_warning_is_not_the_cause(tmp_path: Path) -> None:
    program = play(tmp_path, WARNS + 'echo "my-qemu: -device x: Property x.y not found" >&2; exit 1')
    with pytest.raises(QemuFailed) as caught:
        Machine(devices=["virtio-rng-pci"], binary=program)
    assert caught.value.seen == "QEMU ended with exit code 1: -device x: Property x.y not found"


def test_only_warnings_are_shown_as_that(tmp_path: Path) -> None:
    program = play(tmp_path, WARNS + "exit 1")
    with pytest.raises(QemuFailed) as caught:
        Machine(devices=["virtio-rng-pci"], binary=program)
    assert caught.value.seen.startswith("QEMU ended with exit code 1: only warnings: -mon chardev=qmp: warning:")


def test_the_remedy_names_the_program_that_was_started(tmp_path: Path) -> None:
    """And is followed: it lists the options, and the devices, of that program."""
    program = linked(tmp_path, "qemu-system-x86_64")
    wrong = {"virtio-rng-pci,nonsense=1": "virtio-rng-pci,help", "virtio-nonsense-pci": "help"}
    for device, argument in wrong.items():
        with pytest.raises(QemuFailed) as caught:
            Machine(devices=[device], binary=program)
        command = str(caught.value.remedy).rpartition(": ")[2].replace("NAME", device.partition(",")[0])
        assert command == f"{program} -device {argument}"
    process = QemuProcess(program, ["-device", "virtio-rng-pci,help"], [], timeout=10)
    try:
        assert process.autopsy().startswith("QEMU ended with exit code 0")
    finally:
        process.close()


@pytest.mark.parametrize("name", [pytest.param("loongarch64", marks=needs("virt"))])
def test_a_qemu_of_another_cpu_is_refused(tmp_path: Path, name: str) -> None:
    """It has a machine of that name too, and starts."""
    program = linked(tmp_path, "qemu-system-aarch64")
    with pytest.raises(NotSupported, match="does not have the machine loongarch64") as caught:
        Machine(name, binary=program)
    assert caught.value.seen == "aarch64"
