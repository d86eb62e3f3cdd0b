"""An ARM64 machine: windows of a device tree, functions behind an SMMU, statistics with pages of any size.

The rest of what runs there are the cells of test_mmio.py, test_drivers.py and test_mem.py, on the machines arm-*.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.bodies import any_device, balloon, blk, keyboard, rng
from tests.support.virtio_state import state
from tests.vm import commands
from tests.vm.qmp_witness import Witness
from tests.vm.test_drivers import driver_of, hand_over
from tests.vm.test_mmio import address_of, cell, not_loaded, some  # noqa: F401  # two are fixtures
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.rng import Rng
from uvirtio.interfaces.values import InterruptMode

MIB = 1 << 20
WINDOWS, FIRST, SIZE = 32, 0x0A000000, 0x200  # of QEMU's virt

globals().update(some(any_device, "arm-rng", "the_rings_are_where_we_put_them"))
globals().update(some(rng, "arm-rng", "the_device_follows_our_indices"))
globals().update(some(balloon, "arm-balloon", "the_target_is_followed_both_ways"))
globals().update(some(keyboard, "arm-keyboard", "keys_arrive_in_order"))
globals().update(some(blk, "arm-disk", "what_is_written_is_on_the_disk"))

on_mmio = pytest.mark.parametrize("name", ["arm-rng"])


# --- the device tree ----------------------------------------------------------------------------------------


@on_mmio
def test_the_windows_of_the_device_tree_are_all_there(name: str, witness: Witness, not_loaded: None) -> None:  # noqa: F811
    listed = json.loads(commands.uvirtio("list", "--json").stdout)["devices"]
    windows = [one["address"] for one in listed if one["interface"] == "mmio"]
    assert windows == [f"mmio:{FIRST + number * SIZE:#x}" for number in range(WINDOWS)]
    assert address_of(witness, name) in windows
    assert "virtio_mmio" not in Path("/proc/iomem").read_text()  # which has them only while a driver holds them


@on_mmio
def test_from_the_kernel_to_a_verdict_and_back(name: str, witness: Witness) -> None:
    address = address_of(witness, name)
    subprocess.run(["modprobe", "-a", "virtio_mmio", "virtio_rng"], check=True, timeout=60)
    found = Path("/sys/bus/platform/devices", f"{int(address[5:], 16):x}.virtio_mmio", "driver")
    assert found.resolve().name == "virtio-mmio"
    done = commands.uvirtio("bind", address, "--group")
    assert done.returncode == 0, done.stderr
    assert not found.exists()
    done = commands.uvirtio("diag", address, "--unsafe-dma", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]) in ((0, "pass"), (0, "warn")), report
    with commands.running("input", "events", address_of(witness, "arm-keyboard"), "--unsafe-dma") as child:
        commands.read_until(child, "waiting")
        child.kill()
        child.wait(commands.PATIENCE)
    path = "/machine/peripheral/arm-keyboard"
    with uvirtio.open(address_of(witness, "arm-keyboard"), unsafe_dma=True):  # after its guardian has let go of it
        assert "DRIVER_OK" not in state(witness.execute, path).status
    done = commands.uvirtio("restore", "--all")
    assert done.returncode == 0, done.stderr
    assert found.resolve().name == "virtio-mmio"


# --- behind the SMMU ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arm-pci"])
def test_a_function_behind_the_smmu_interrupts_through_the_its(name: str, lab_devices: dict[str, str]) -> None:
    address = lab_devices[name]
    done = commands.uvirtio("bind", address)
    assert done.returncode == 0, done.stderr
    with uvirtio.open(address, interrupts=[InterruptMode.PER_QUEUE]) as device, Rng(device) as driver:
        interrupts = Path("/proc/interrupts").read_text()
        assert re.search(rf"ITS-PCI-MSIX-{re.escape(address)} .*vfio-msix", interrupts), interrupts
        assert len(driver.read(100)) == 100
    assert commands.uvirtio("restore", address).returncode == 0
    assert driver_of(address) == "virtio-pci"


# --- statistics ---------------------------------------------------------------------------------------------

COUNTERS = ("stat-swap-in", "stat-swap-out", "stat-major-faults", "stat-minor-faults")
"""They only grow: what we say lies between what Linux's driver says before and after."""
STILL = ("stat-swap-in", "stat-swap-out", "stat-total-memory")
"""They do not change while nothing swaps."""
LEVELS = ("stat-free-memory", "stat-available-memory", "stat-disk-caches")

TOUCH = """
import mmap, sys
block = mmap.mmap(-1, 48 << 20)
for byte in (1, 2):
    for at in range(0, len(block), 4096):
        block[at] = byte
    print(byte, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def swapped() -> Iterator[None]:
    """Some pages have gone to a swap device, and come back."""
    group = Path("/sys/fs/cgroup/swapping")
    subprocess.run(["modprobe", "zram", "num_devices=1"], check=True, timeout=60)
    Path("/sys/block/zram0/disksize").write_text("128M")
    subprocess.run(["mkswap", "/dev/zram0"], check=True, timeout=60, capture_output=True)
    subprocess.run(["swapon", "/dev/zram0"], check=True, timeout=60)
    if not (group.parent / "cgroup.controllers").exists():
        subprocess.run(["mount", "-t", "cgroup2", "none", str(group.parent)], check=True, timeout=60)
    (group.parent / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    child = subprocess.Popen(
        ["python3", "-c", TOUCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        (group / "cgroup.procs").write_text(str(child.pid))
        assert child.stdout.readline() == "1\n"
        (group / "memory.reclaim").write_text("32M")
        child.stdin.write("\n")
        assert child.stdout.readline() == "2\n"
        yield
    finally:
        child.kill()
        child.communicate()
        subprocess.run(["swapoff", "/dev/zram0"], check=True, timeout=60)
        group.rmdir()


def statistics(witness: Witness, name: str, hold: Any) -> dict[str, int]:
    """What the host has been told, by whoever answers while ``hold`` runs."""
    path = f"/machine/peripheral/{name}"
    before = witness.execute("qom-get", path=path, property="guest-stats")["last-update"]
    witness.execute("qom-set", path=path, property="guest-stats-polling-interval", value=1)
    try:
        for _ in range(100):
            hold(0.25)
            seen = witness.execute("qom-get", path=path, property="guest-stats")
            if seen["last-update"] > before + 1:  # in seconds: the first answer may be one from before
                return {key: value for key, value in seen["stats"].items() if value != (1 << 64) - 1}
    finally:
        witness.execute("qom-set", path=path, property="guest-stats-polling-interval", value=0)
    raise AssertionError("nobody answers the host")


@pytest.mark.spec("BAL-S01")
@pytest.mark.parametrize("name", ["balloon-msix"])
def test_statistics_are_those_of_the_kernels_driver(
    name: str, lab_devices: dict[str, str], witness: Witness, swapped: None
) -> None:
    address = lab_devices[name]
    hand_over(address, "virtio-pci")
    first = statistics(witness, name, time.sleep)
    hand_over(address, "vfio-pci")
    with uvirtio.open(address, timeout=10) as device, Balloon(device) as driver:
        ours = statistics(witness, name, lambda seconds: driver.hold(timeout=seconds))
    hand_over(address, "virtio-pci")
    last = statistics(witness, name, time.sleep)
    assert ours.keys() == first.keys() == last.keys()
    assert first["stat-swap-out"] >= 16 * MIB, "nothing was swapped: this test would show nothing"
    for key in COUNTERS:
        assert first[key] <= ours[key] <= last[key], (key, first, ours, last)
    for key in STILL:
        assert first[key] == ours[key] == last[key], (key, first, ours, last)
    for key in LEVELS:
        assert abs(ours[key] - first[key]) < 64 * MIB, (key, first, ours)
    assert ours["stat-total-memory"] % os.sysconf("SC_PAGE_SIZE") == 0
