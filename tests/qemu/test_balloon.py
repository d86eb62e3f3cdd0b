"""The balloon's hints and reports on QEMU's model: host memory really goes, and a migration is spared pages."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import uvirtio
from tests.bodies import adopt, balloon_reports, balloon_stats
from tests.qemu.test_drivers import cell, cells  # noqa: F401  # the fixture is found by its name here
from uvirtio.device import Device
from uvirtio.drivers.balloon import Balloon, Use
from uvirtio.errors import DeviceBroken, DeviceTimeout, NotSupported
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine

MIB = 1 << 20

globals().update(adopt(balloon_stats, cells("balloon")))

REPORTS = [
    pytest.param(
        ("q35", f"virtio-balloon-pci,free-page-reporting=on,free-page-hint=on,iothread=t{extra}", mode, False),
        id=name,
    )
    for name, extra, mode in (
        ("q35-intx", "", InterruptMode.INTX),
        ("q35-iova-polling", ",iommu_platform=on,disable-legacy=on", InterruptMode.POLLING),
    )
]
globals().update(adopt(balloon_reports, REPORTS))


@contextmanager
def balloon(device: str, timeout: float = 10.0, **options: object) -> Iterator[tuple[Machine, Device, Balloon]]:
    # As a "peer" the doorbell device would forbid migrations; nothing else changes.
    with Machine("q35", [device], arguments=["-global", "ivshmem-doorbell.master=on"]) as machine:
        function = machine.functions[0]
        opened = identify(function.address, function, timeout=timeout)
        with opened, Balloon(opened, **options) as driver:  # type: ignore[arg-type]
            yield machine, opened, driver


def backing(machine: Machine) -> int:
    """Bytes that the host holds for the machine's memory."""
    return os.fstat(machine.memory.fd).st_blocks * 512


HINTS = "free-page-hint=on,iothread=hints"


@pytest.mark.spec("BAL-R01", "BAL-R04", "BAL-R06")
@pytest.mark.parametrize(
    ("options", "queue"),
    [("free-page-reporting=on", 3), (f"free-page-reporting=on,{HINTS}", 4)],
)
@pytest.mark.parametrize("hinting", [False, True])
def test_reported_memory_leaves_the_host_and_comes_back(options: str, queue: int, hinting: bool) -> None:
    with balloon(f"virtio-balloon-pci,{options}", reporting=True, hinting=hinting) as (machine, device, driver):
        assert device.queues[queue].name == "reporting_vq"
        with driver.arena(32 * MIB) as arena:
            taken = [arena.take() for _ in arena.ranges]  # filled, so that the host has memory behind it
            for one in taken:
                arena.give(one)
            before = backing(machine)
            assert driver.report(arena) == 32 * MIB
            assert backing(machine) <= before - 31 * MIB  # less a page of a ring or two
            one = arena.take()
            with arena.view(one) as view:
                assert not any(view[::4096])
            assert before - 31 * MIB < backing(machine) < before


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    ("options", "queues"),
    [
        ("", ["statsq"]),
        (",free-page-reporting=on", ["statsq", "reporting_vq"]),
        (f",{HINTS}", ["statsq", "free_page_vq"]),
        (f",free-page-reporting=on,{HINTS}", ["statsq", "free_page_vq", "reporting_vq"]),
    ],
)
@pytest.mark.parametrize("kind", ["q35/virtio-balloon-pci", "microvm/virtio-balloon-device"])
def test_qemu_has_its_optional_queues_without_gaps(kind: str, options: str, queues: list[str]) -> None:
    with uvirtio.open(f"qemu:{kind}{options}", timeout=10.0) as device:
        with Balloon(device, reporting=True) as driver:
            assert [device.queues[index].name for index in sorted(device.queues)][2:] == queues
            assert (driver.hints is not None) == ("free_page_vq" in queues)
            if driver.reports is not None:
                with driver.arena(MIB) as arena:
                    assert driver.report(arena) == MIB
        if driver.reports is not None:
            # QEMU counts what it offers; nothing that it shows tells it from a device that counts what was taken.
            with pytest.raises(NotSupported, match="cannot be known"):
                Balloon(device, reporting=True, stats=None)
        with Balloon(device, stats=None) as driver:
            driver.inflate(1)


@pytest.mark.fault(65)
@pytest.mark.spec("BAL-P02", "BAL-R02")
def test_with_poison_the_host_leaves_the_memory_alone() -> None:
    # QEMU cannot give poisoned pages back as they were, so it takes none.
    device = "virtio-balloon-pci,free-page-reporting=on"
    with balloon(device, reporting=True, poison=0xAAAAAAAA) as (machine, _, driver):
        assert driver.poison_val == 0xAAAAAAAA
        with driver.arena(4 * MIB) as arena:
            driver.report(arena)
            assert backing(machine) >= 4 * MIB
            with arena.view(arena.take()) as view:
                assert set(view[::4096]) == {0xAA}
        driver.inflate(300)
        driver.deflate(300)


def migrate(machine: Machine, device: Device, driver: Balloon) -> dict[str, int]:
    """Migrate into nowhere, answering hints meanwhile; QEMU's own account of it, in pages and bytes."""
    machine.qmp("migrate-set-parameters", **{"max-bandwidth": 32 * MIB})
    machine.qmp("migrate", uri="exec:cat >/dev/null")
    found: dict[str, object] = {}

    def over() -> bool:
        driver.serve()
        found.update(machine.qmp("query-migrate"))
        return found.get("status") in ("completed", "failed")

    assert device.wait(over, timeout=60, what="the end of the migration", owed=False)
    assert found["status"] == "completed", found
    driver.hold(timeout=0.2)
    machine.qmp("cont")
    return dict(found["ram"])  # type: ignore[call-overload]


@pytest.mark.fault(64)
@pytest.mark.spec("BAL-H02", "BAL-H03", "BAL-H04", "BAL-H06", "BAL-H09")
def test_a_migration_is_spared_the_pages_that_are_hinted() -> None:
    sent = {}
    for lend in (False, True):
        with balloon(f"virtio-balloon-pci,{HINTS}", hinting=True) as (machine, device, driver):
            arena = driver.arena(64 * MIB)
            for number in range(len(arena.ranges)):
                one = arena.take()
                with arena.view(one) as view:
                    view[:] = bytes([number + 1]) + os.urandom(63) + bytes(one.size - 64)
                    for at in range(0, one.size, 4096):
                        view[at] = 1  # no page of zeros, which would cost nothing
            for one in arena.ranges:
                arena.give(one)
            if lend:
                driver.lend(arena)
            sent[lend] = migrate(machine, device, driver)["normal"] * 4096
            assert driver.hints is not None
            assert driver.hints.rounds >= 1, "the host asked, also where there was nothing to say"
            assert driver.hints.hinted >= (64 * MIB if lend else 0)
            assert arena.bytes_in(Use.FREE) == arena.size, "DONE gives all of it back"
    assert sent[False] >= 64 * MIB
    assert sent[True] <= sent[False] - 48 * MIB


@pytest.mark.fault(46)
@pytest.mark.parametrize("call", ["inflate", "deflate", "report"])
def test_a_host_that_never_answers_costs_one_timeout(call: str) -> None:
    device = "virtio-balloon-pci,free-page-reporting=on"
    with Machine("q35", [device], timeout=1.0) as machine:
        function = machine.functions[0]
        with identify(function.address, function, timeout=1.0) as opened:
            driver = Balloon(opened, reporting=True)
            driver.inflate(10)
            arena = driver.arena(4096)
            os.kill(machine.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                with pytest.raises(DeviceTimeout):
                    driver.report(arena) if call == "report" else getattr(driver, call)(5)
                with pytest.raises((DeviceBroken, DeviceTimeout)):
                    driver.inflate(5)
                assert time.monotonic() - began < 20
            finally:
                os.kill(machine.pid, signal.SIGCONT)


def test_the_reporting_queue_is_found_by_polling_too() -> None:
    with Machine("q35", [f"virtio-balloon-pci,free-page-reporting=on,{HINTS}"]) as machine:
        function = machine.functions[0]
        opened = identify(function.address, function, interrupts=[InterruptMode.POLLING])
        with opened, Balloon(opened, reporting=True, hinting=True) as driver, driver.arena(MIB) as arena:
            assert driver.report(arena) == MIB
