"""What a host may do to a driver at any moment: reset the machine, change its mind a hundred times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from uvirtio.device import Device
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.input import Input
from uvirtio.drivers.mem import Manager, Mem
from uvirtio.errors import DeviceAbsent, DeviceBroken, DeviceFailure, DeviceGone
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine

_, _, INTX, POLLING = InterruptMode
MIB = 1 << 20
PATIENCE = 20.0


@contextmanager
def opened(argument: str, mode: InterruptMode) -> Iterator[tuple[Machine, Device]]:
    with Machine("q35", [argument]) as machine:
        function = machine.functions[0]
        with identify(function.address, function, interrupts=[mode], timeout=PATIENCE) as device:
            yield machine, device


def _balloon(device: Device) -> Callable[[], object]:
    driver = Balloon(device)
    driver.inflate(500)
    return lambda: driver.follow(timeout=PATIENCE)


def _mem(device: Device) -> Callable[[], object]:
    manager = Manager(Mem(device))
    return lambda: manager.follow(timeout=PATIENCE)


def _input(device: Device) -> Callable[[], object]:
    driver = Input(device)
    return lambda: driver.read(timeout=PATIENCE)


@pytest.mark.fault(100)
@pytest.mark.spec("STAT-04")
@pytest.mark.parametrize("mode", [INTX, POLLING])
@pytest.mark.parametrize(
    ("argument", "begin"),
    [("virtio-balloon-pci", _balloon), ("virtio-mem-pci", _mem), ("virtio-keyboard-pci", _input)],
    ids=["balloon", "mem", "input"],
)
def test_a_machine_that_is_reset_ends_what_waits(
    argument: str, begin: Callable[[Device], Callable[[], object]], mode: InterruptMode
) -> None:
    """The reset takes the registers' addresses too: the device is gone or was reset, and that is said at once."""
    with opened(argument, mode) as (machine, device):
        wait = begin(device)
        timer = threading.Timer(0.1, lambda: machine.qmp("system_reset"))
        timer.start()
        with pytest.raises((DeviceFailure, DeviceAbsent)) as caught:
            wait()
        timer.join()
        with pytest.raises(DeviceGone if caught.type is DeviceGone else DeviceBroken):
            wait()


@pytest.mark.fault(54, 60)
@pytest.mark.parametrize("mode", [INTX, POLLING])
def test_a_balloon_is_where_a_hundred_changes_end(mode: InterruptMode) -> None:
    with opened("virtio-balloon-pci", mode) as (machine, device), Balloon(device) as driver:
        full = machine.qmp("query-balloon")["actual"]
        left = [*range(100, 0, -1)]

        def change(_held: int) -> None:
            """Ten changes for each batch, while it is worked on."""
            for _ in range(10):
                if left:
                    machine.qmp("balloon", value=full - left.pop() % 7 * MIB)

        change(0)
        driver.follow(timeout=1.0, progress=change)
        while left:
            change(0)
            driver.follow(timeout=1.0, progress=change)
        assert driver.held == driver.num_pages == driver.actual
        assert machine.qmp("query-balloon")["actual"] == full - 2 * MIB  # 100 % 7
        assert machine.qmp_events("BALLOON_CHANGE", PATIENCE), "and who listens has heard of it"


@pytest.mark.fault(54, 75)
@pytest.mark.parametrize("mode", [INTX, POLLING])
def test_memory_is_where_a_hundred_changes_end(mode: InterruptMode) -> None:
    with opened("virtio-mem-pci,block-size=2M", mode) as (machine, device), Mem(device) as mem:
        manager = Manager(mem)
        path = f"/machine/peripheral/{machine.functions[0].id}"
        left = [*range(100, 0, -1)]

        def change(_plugged: int) -> None:
            for _ in range(10):
                if left:
                    size = left.pop() % 7 * 2 * MIB
                    machine.qmp("qom-set", path=path, property="requested-size", value=size)

        while left:
            change(0)
            manager.follow(timeout=1.0, progress=change)
        assert machine.qmp("query-memory-devices")[0]["data"]["size"] == 4 * MIB  # 100 % 7 blocks
        assert mem.block_table.plugged.total == 2
        assert not mem.findings
