"""A QEMU that is stopped or killed: found out once, within the caller's deadline, and nothing of it is left."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import uvirtio
from tests.support.descriptors import descriptors, settled
from uvirtio import Device
from uvirtio.errors import (
    Closed,
    DeviceBroken,
    DeviceGone,
    DeviceResetByOther,
    DeviceTimeout,
    LimitReached,
)
from uvirtio.qemu import Machine

GIVEN = 0.2
"""Seconds that each call gets."""

SLACK = 0.5
"""Seconds beyond it. QEMU has 0.1 s for a response at least; the rest is what this machine may lose."""

PATIENCE = 5.0
"""Seconds that the device has by itself: what a call would take that does not hand its deadline down."""


def _rng(device: Device) -> Callable[[], object]:
    driver = uvirtio.Rng(device)
    return lambda: driver.read(8, timeout=GIVEN)


def _balloon(device: Device) -> Callable[[], object]:
    driver = uvirtio.Balloon(device)
    return lambda: driver.inflate(16, timeout=GIVEN)


def _deflate(device: Device) -> Callable[[], object]:
    driver = uvirtio.Balloon(device)
    driver.inflate(16)
    return lambda: driver.deflate(16, timeout=GIVEN)


def _mem(device: Device) -> Callable[[], object]:
    driver = uvirtio.Mem(device)
    return lambda: driver.state(driver.addr, 1, timeout=GIVEN)


def _input(device: Device) -> Callable[[], object]:
    driver = uvirtio.Input(device)
    return lambda: driver.read(timeout=GIVEN)


def _blk(device: Device) -> Callable[[], object]:
    driver = uvirtio.Blk(device)
    return lambda: driver.read(0, 1, timeout=GIVEN)


CALLS = {
    "rng": ("virtio-rng-pci", _rng),
    "rng-intx": ("virtio-rng-pci,vectors=0", _rng),
    "rng-mmio": ("virtio-rng-device", _rng),
    "balloon": ("virtio-balloon-pci", _balloon),
    "deflate": ("virtio-balloon-pci", _deflate),
    "mem": ("virtio-mem-pci", _mem),
    "input": ("virtio-keyboard-pci", _input),
    "blk": ("virtio-blk-pci", _blk),
}


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    model = request.param
    with Machine("microvm" if model.endswith("-device") else "q35", [model], timeout=PATIENCE) as made:
        yield made


@pytest.mark.parametrize(("machine", "make"), CALLS.values(), ids=CALLS, indirect=["machine"])
def test_a_stopped_qemu_costs_a_call_its_own_deadline(machine: Machine, make: Callable[[Device], object]) -> None:
    device = machine.open(0, timeout=PATIENCE)
    call = make(device)
    assert callable(call)
    os.kill(machine.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises((DeviceTimeout, DeviceBroken)):
            call()
            call()  # an event is not owed, so a device may be silent once
        with pytest.raises((DeviceTimeout, DeviceBroken)):
            call()
        device.close()
        assert time.monotonic() - began < 3 * (GIVEN + SLACK) < PATIENCE
        with pytest.raises(Closed):
            call()
    finally:
        os.kill(machine.pid, signal.SIGCONT)


def test_a_qemu_that_answers_again_is_used_again() -> None:
    with Machine(devices=["virtio-rng-pci"], timeout=1.0) as machine:
        config = machine.functions[0].config
        os.kill(machine.pid, signal.SIGSTOP)
        for said in ("for 1 s", "since an earlier call"):
            with pytest.raises(DeviceTimeout) as caught:
                config.read32(0)
            assert said in str(caught.value.seen)
        os.kill(machine.pid, signal.SIGCONT)
        deadline = time.monotonic() + 10
        while True:
            try:
                assert config.read32(0) == 0x10051AF4
                break
            except DeviceTimeout:
                assert time.monotonic() < deadline
        with machine.open(0) as device, uvirtio.Rng(device) as rng:
            assert len(rng.read(8)) == 8


@pytest.mark.fault(18, level="K")
def test_a_reset_that_takes_long_is_waited_for() -> None:
    with Machine(devices=["virtio-rng-pci"]) as machine, machine.open(0, timeout=PATIENCE) as device:
        with uvirtio.Rng(device) as rng:
            assert len(rng.read(8)) == 8
            os.kill(machine.pid, signal.SIGSTOP)
            goes_on = threading.Timer(GIVEN, os.kill, (machine.pid, signal.SIGCONT))
            began = time.monotonic()
            goes_on.start()
        assert time.monotonic() - began >= GIVEN and device.broken is None  # the driver left by a reset
        assert device.transport.status() == 0
        goes_on.join()
        with uvirtio.Rng(device) as rng:
            assert len(rng.read(8)) == 8


@pytest.mark.fault(100)
def test_a_device_that_was_reset_by_others_is_not_blamed_for_its_configuration() -> None:
    with Machine(devices=["virtio-mem-pci"]) as machine, machine.open(0, timeout=1) as device:
        mem = uvirtio.Mem(device)
        machine.qmp("system_reset")
        with pytest.raises((DeviceResetByOther, DeviceGone)):
            mem.config()
        with pytest.raises((DeviceResetByOther, DeviceGone, DeviceBroken)):
            mem.plug(mem.addr, 1)


@pytest.mark.fault(100)
@pytest.mark.parametrize("call", [uvirtio.Mem.config, uvirtio.Mem.resync])
def test_what_a_reset_by_others_unplugged_is_not_taken_for_news(call: Callable[[uvirtio.Mem], object]) -> None:
    """As much is requested, and usable, as before: that it is gone tells that the device was reset."""
    with Machine(devices=["virtio-mem-pci"]) as machine, machine.open(0, timeout=1) as device:
        mem = uvirtio.Mem(device)
        where = f"/machine/peripheral/{machine.functions[0].id}"
        machine.qmp("qom-set", path=where, property="requested-size", value=2 * mem.block_size)
        mem.plug(mem.addr, 2)
        machine.qmp("system_reset")
        with pytest.raises(DeviceResetByOther):
            call(mem)
        assert mem.block_table.plugged.total == 2


@contextmanager
def _few(more: int) -> Iterator[int]:
    """RLIMIT_NOFILE with room for so many descriptors from the first free number on; the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    lowest = next(number for number in range(soft) if number not in open_now)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
    try:
        yield lowest + more
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _named(error: LimitReached, limit: int) -> bool:
    remedy = str(error.remedy)
    return error.seen == f"RLIMIT_NOFILE {limit}" and "ulimit" in remedy and " -n" in remedy


@pytest.mark.parametrize("more", [0, 4, 20, 40])
def test_too_few_descriptors_are_named_and_none_is_lost(more: int) -> None:
    before = settled()
    with _few(more) as limit, pytest.raises(LimitReached) as caught, uvirtio.open("qemu:virtio-rng-pci") as device:
        uvirtio.Rng(device)
    assert _named(caught.value, limit)
    assert len(descriptors()) == len(before)


@pytest.mark.parametrize(
    ("address", "driver"),
    [
        ("qemu:virtio-rng-pci", uvirtio.Rng),
        ("qemu:virtio-mem-pci", uvirtio.Mem),  # without MSI-X in QEMU 7.2: its interrupt line has two
        ("qemu:virtio-balloon-pci", uvirtio.Balloon),  # likewise, and it reads /proc/meminfo
        ("scripted:rng", uvirtio.Rng),
    ],
)
def test_wherever_the_descriptors_end_it_is_named_until_there_are_enough(
    address: str, driver: Callable[[Device], object]
) -> None:
    """The last are for the program's start, for doorbells, events and rings: each says it, and leaves none."""
    with uvirtio.open(address) as device:
        driver(device)  # what is opened once in a process is not counted
    before = len(settled())
    for more in range(0 if address.startswith("scripted") else 40, 200):
        try:
            with _few(more) as limit, uvirtio.open(address) as device:
                driver(device)
            break
        except LimitReached as error:
            assert _named(error, limit)
        assert len(descriptors()) == before
    assert 0 < more < 199 and len(descriptors()) == before


def test_descriptors_that_are_under_way_elsewhere_leave_none_behind() -> None:
    """The kernel counts what a user's processes have sent and not received (unix(7), ETOOMANYREFS)."""
    near, far = socket.socketpair()
    with near, far:
        before = len(settled())
        for _ in range(8):  # 253 at most in a message
            socket.send_fds(near, [b"x"], [near.fileno()] * 100)
        with _few(80) as limit, pytest.raises(LimitReached) as caught:
            uvirtio.open("qemu:virtio-rng-pci")
        assert _named(caught.value, limit)
        assert len(descriptors()) == before


def _held() -> tuple[int, int]:
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len(list(Path("/proc/self/fd").iterdir())), sum("memfd:uvirtio" in line for line in maps)


@pytest.mark.parametrize("address", ["qemu:virtio-rng-pci", "qemu:microvm/virtio-rng-device"])
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_closing_it_leaves_nothing_and_hides_no_error(address: str, how: signal.Signals) -> None:
    before = _held()
    for _ in range(1 if how is signal.SIGSTOP else 2):  # one that is stopped takes the time-out of two sockets
        with pytest.raises(ZeroDivisionError), uvirtio.open(address, timeout=2) as device:
            rng = uvirtio.Rng(device)
            rng.read(8)
            guest = device.guest
            assert guest is not None
            os.kill(guest.machine.pid, how)  # type: ignore[attr-defined]
            raise ZeroDivisionError
        with pytest.raises((Closed, DeviceGone)):
            rng.read(8)
    descriptors, maps = _held()
    assert descriptors <= before[0]
    assert maps <= before[1]
