"""A QEMU whose device or machine is dropped without ``close()``: it ends, and a ResourceWarning says so."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import uvirtio
from tests.support.children import qemus
from tests.support.descriptors import descriptors
from uvirtio import opening
from uvirtio.qemu import Machine


@pytest.fixture(autouse=True)
def a_machine_ends_with_its_test() -> None:
    """Nothing: the one of this folder has all devices and machines, so that none is dropped."""


def dropped(make: Callable[[], object]) -> list[str]:
    """What is said where what ``make`` returns is dropped; then its QEMU has ended, and nothing is left open."""
    gc.collect()
    before, running = len(descriptors()), qemus()
    made: object | None = make()
    assert len(qemus()) == len(running) + 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = None
        gc.collect()
    assert made is None and qemus() == running and len(descriptors()) <= before
    assert {one.category for one in said} == {ResourceWarning}
    return sorted(re.sub(r"(process |@)\d+", r"\1N", str(one.message)) for one in said)


ADDRESSES = {
    "qemu:virtio-rng-pci": uvirtio.Rng,
    "qemu:virtio-balloon-pci": uvirtio.Balloon,
    "qemu:virtio-blk-pci": uvirtio.Blk,
    "qemu:virtio-net-pci": uvirtio.Net,
    "qemu:virtio-mem-pci": uvirtio.Mem,
    "qemu:microvm/virtio-rng-device": uvirtio.Rng,
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("started", [False, True], ids=["opened", "started"])
def test_a_device_ends_with_its_qemu(address: str, started: bool) -> None:
    def make() -> object:
        device = uvirtio.open(address, timeout=20)
        return ADDRESSES[address](device) if started else device

    (told,) = dropped(make)
    assert told.startswith(f"unclosed <Device {address} ")


def test_an_image_is_left_in_order(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))

    def make() -> object:
        disk = uvirtio.Blk(uvirtio.open(f"qemu:q35,file={image}/virtio-blk-pci", timeout=20), allow_write=True)
        disk.write(3, b"w" * 512)
        return disk

    assert len(dropped(make)) == 1
    assert image.read_bytes()[3 * 512 : 4 * 512] == b"w" * 512


def test_a_record_of_it_is_whole(tmp_path: Path) -> None:
    def make() -> object:
        return uvirtio.Rng(uvirtio.open("qemu:virtio-rng-pci", timeout=20, record=tmp_path / "record"))

    assert len(dropped(make)) == 1
    assert '"close"' in (tmp_path / "record").read_text().splitlines()[-1]


def test_what_a_back_end_has_opened_ends_alone() -> None:
    told = dropped(lambda: opening.open_function("qemu:virtio-rng-pci", timeout=20)[1])
    assert told == ["unclosed <QemuPciFunction qemu:virtio-rng-pci>"]
    told = dropped(lambda: opening.open_function("qemu:microvm/virtio-rng-device", timeout=20)[1])
    assert told == ["unclosed <QemuMmioWindow qemu:microvm/virtio-rng-device>"]


def _alone() -> object:
    return Machine(devices=["virtio-rng-pci", "virtio-balloon-pci"], timeout=20)


def _opened() -> object:
    machine = Machine(devices=["virtio-rng-pci"], timeout=20)
    return machine, machine.open(0)


def _started() -> object:
    machine = Machine(devices=["virtio-rng-pci"], timeout=20)
    rng = uvirtio.Rng(machine.open(0))
    rng.read(4)
    return machine, rng


@pytest.mark.parametrize("make", [_alone, _opened, _started])
def test_a_machine_ends_with_its_devices(make: Callable[[], object]) -> None:
    told = dropped(make)
    assert re.fullmatch(r"unclosed <Machine q35, process N, \d functions>", told[-1])
    # A device of it may be told, too: Python drops both at once, in any order.
    assert len(told) <= 2 and all(
        line.startswith("unclosed <Device qemu:q35@N/virtio-rng-pci") for line in told[:-1]
    )


def test_a_machine_keeps_the_device_that_was_opened_from_it() -> None:
    gc.collect()
    with Machine(devices=["virtio-rng-pci"], timeout=20) as machine:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            machine.open(0)
            gc.collect()
        assert not said
        with pytest.raises(uvirtio.errors.Busy):
            machine.open(0)


def test_a_device_that_the_machine_does_not_know_leaves_it_as_it_is() -> None:
    with Machine(devices=["virtio-rng-pci", "virtio-balloon-pci"], timeout=20) as machine:
        with machine.open(1) as device, uvirtio.Balloon(device) as balloon:
            uvirtio.Rng(uvirtio.open(machine.functions[0], timeout=20)).read(1)
            with pytest.warns(
                ResourceWarning, match=r"^unclosed <Device qemu:q35@\d+/virtio-rng-pci,id=dev0 rng, "
            ):
                gc.collect()
            balloon.inflate(16)  # nothing of this machine was touched
        with uvirtio.open(machine.functions[0], timeout=20) as device, uvirtio.Rng(device) as rng:
            assert len(rng.read(4)) == 4


def test_a_device_whose_machine_was_closed_is_closed() -> None:
    gc.collect()
    before = len(descriptors())
    with Machine(devices=["virtio-rng-pci"], timeout=20) as machine:
        rng = uvirtio.Rng(machine.open(0))
        rng.read(1)
    with pytest.warns(ResourceWarning, match=r"^unclosed <Device "):
        del machine, rng
        gc.collect()
    assert len(descriptors()) <= before


ENDS = {
    "device": 'kept = uvirtio.Rng(uvirtio.open("qemu:virtio-rng-pci", timeout=20))',
    "function": 'kept = uvirtio.opening.open_function("qemu:virtio-rng-pci", timeout=20)[1]',
    "machine": 'kept = uvirtio.qemu.Machine(devices=["virtio-rng-pci"], timeout=20); kept.open(0)',
}


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_the_process_waits_for_nothing(end: str) -> None:
    """Threads do not run any more then: a device is left before, by atexit, and the kernel ends what is left."""
    program = f"import time, uvirtio, uvirtio.opening\n{ENDS[end]}\nprint(time.monotonic())"
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", program],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert time.monotonic() - float(done.stdout) < 4  # a wait for the thread would take 5 s or more
    told = "" if end == "device" else "ResourceWarning: unclosed <"
    assert len(done.stderr.splitlines()) == bool(told) and told in done.stderr
