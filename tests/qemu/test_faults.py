"""What goes wrong with QEMU's own devices, as its host may have set them up: cases of docs/faults.toml."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import uvirtio
from uvirtio import opening
from uvirtio.cli.app import run
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.mem import Manager, Mem
from uvirtio.drivers.rng import Rng
from uvirtio.errors import BeyondEnd, DeviceBroken, DeviceGone, DeviceResetByOther, MemBusy, RngUnhealthy
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec.mem import Response

MIB = 1 << 20


@pytest.mark.fault(3, 5)
def test_a_doorbell_in_io_ports_is_the_first_of_two() -> None:
    """The device lists one in an I/O BAR before the one in memory; the first that is usable counts (4.1.4.1)."""
    with (
        Machine("q35", ["virtio-rng-pci,modern-pio-notify=on,disable-legacy=off"]) as machine,
        uvirtio.open(machine.functions[0]) as device,
    ):
        first, second = (one for one in device.transport.capabilities if one.type == "notify")
        bar = machine.functions[0].bar(first.bar)
        assert bar is not None and bar.is_io
        assert (first.verdict, second.verdict, second.why) == ("ok", "ignored", "not the first of its type")
        with Rng(device) as rng:
            assert len(set(rng.read(64))) > 8


@pytest.mark.fault(85)
def test_a_source_of_zeros_is_no_source_of_entropy() -> None:
    zeros = ["-object", "rng-random,id=zeros,filename=/dev/zero"]
    with (
        Machine("q35", ["virtio-rng-pci,rng=zeros"], arguments=zeros) as machine,
        uvirtio.open(machine.functions[0]) as device,
        Rng(device) as rng,
        pytest.raises(RngUnhealthy, match="not random"),
    ):
        rng.read(64)


@pytest.mark.fault(55, 86)
def test_a_disk_without_a_sector_and_with_a_name_that_is_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[31m\x07red"
    drive = ["-drive", "if=none,id=none,driver=null-co,size=0,read-zeroes=on"]
    with Machine("q35", [f"virtio-blk-pci,drive=none,serial={name}"], arguments=drive) as machine:
        with machine.open() as device, Blk(device, allow_write=True) as blk:
            assert (blk.capacity, blk.identify()) == (0, name)
            for touch in (lambda: blk.read(0, 1), lambda: blk.write(0, bytes(512)), lambda: blk.discard(0, 1)):
                with pytest.raises(BeyondEnd):
                    touch()
            blk.flush()
        monkeypatch.setattr(opening, "open", lambda *_, **__: machine.open())
        assert run(["blk", "info", "0000:00:04.0"]) == 0
        said = capsys.readouterr().out
        assert r"\x1b[31m\x07red" in said and "\x1b" not in said and "\x07" not in said


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """A machine, and another that waits for its state."""
    devices = ["virtio-mem-pci,requested-size=64M,block-size=2M"]
    more = [
        "-global",
        "ivshmem-doorbell.master=on",
    ]  # as a "peer" it would forbid migrations; nothing else changes
    with (
        Machine("q35", devices, ram=32 * MIB, arguments=more) as machine,
        Machine("q35", devices, ram=32 * MIB, arguments=[*more, "-incoming", "defer"]) as other,
    ):
        other.qmp("migrate-incoming", uri=f"unix:{tmp_path}/state")
        yield machine, other


@pytest.mark.fault(70)
def test_a_device_that_is_migrated_is_busy_until_that_is_over(
    pair: tuple[Machine, Machine], tmp_path: Path
) -> None:
    """QEMU answers BUSY to each PLUG and UNPLUG while it migrates (5.15.6.2: "try again later")."""
    machine, other = pair
    function = machine.functions[0]
    with identify(function.address, function, timeout=20) as device, Mem(device) as mem:
        manager = Manager(mem)
        manager.plug_size(32 * MIB)
        machine.qmp("migrate-set-parameters", **{"max-bandwidth": 4096})
        machine.qmp("migrate", uri=f"unix:{tmp_path}/state")
        assert device.wait(
            lambda: machine.qmp("query-migrate").get("status") == "active",
            timeout=20,
            what="the start",
            owed=False,
        )
        addr = mem.config().addr
        for change, block in ((mem.plug, addr + 32 * MIB), (mem.unplug, addr)):
            before = mem.counts[Response.BUSY]
            with pytest.raises(MemBusy):
                change(block, 1)  # QEMU 10.0 takes up to 0.1 s for an answer while it migrates
            assert mem.counts[Response.BUSY] == before + 1
        machine.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 32})
        manager.plug_size(8 * MIB, timeout=60)  # waits it out
        assert machine.qmp("query-migrate")["status"] == "completed"
        assert mem.config().plugged_size == 40 * MIB
        assert other.qmp("query-memory-devices")[0]["data"]["size"] == 32 * MIB
        assert other.qmp("query-status")["running"]


def until(machine: Machine, state: str) -> None:
    """Wait for a state of the machine."""
    deadline = time.monotonic() + 20
    while (seen := machine.qmp("query-status")["status"]) != state:
        assert time.monotonic() < deadline, f"{seen}, and not {state}"
        time.sleep(0.01)


@pytest.mark.fault(78, 99, 100)
def test_a_machine_that_slept_has_lost_its_memory_unless_the_device_keeps_it() -> None:
    """Suspend to RAM by the registers of q35's power management, and a wake-up by the host.

    5.15.6.1: without PERSISTENT_SUSPEND plugged memory is lost. The wake-up resets every device.
    """
    with Machine("q35", ["virtio-mem-pci,requested-size=64M,block-size=2M"]) as machine:
        function, ports = machine.functions[0], machine.qtest

        def southbridge(register: int, width: int, value: int) -> None:  # ICH9's LPC function, 00:1f.0
            ports.exchange([(0xCF8, 4, 1 << 31 | 0x1F << 11 | register), (0xCFC, width, value)], ports=True)

        with identify(function.address, function, timeout=20) as device, Mem(device) as mem:
            mem.plug(mem.addr, 16)
            southbridge(0x40, 4, 0x601)  # PMBASE
            southbridge(0x44, 1, 0x80)  # ACPI_EN
            ports.port_out(2, 0x604, 1 << 13 | 1 << 10)  # PM1_CNT: SLP_EN, S3
            until(machine, "suspended")
            machine.qmp("system_wakeup")
            until(machine, "running")
            left = machine.qmp("query-memory-devices")[0]["data"]["size"]
            assert left == (32 * MIB if mem.survives_suspend else 0)
            with pytest.raises((DeviceResetByOther, DeviceGone)) as caught:
                mem.config()
            with pytest.raises(DeviceGone if caught.type is DeviceGone else DeviceBroken):
                mem.plug(mem.addr + 32 * MIB, 1)
