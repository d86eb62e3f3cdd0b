"""Devices change hands: by hand, so that what is tested does not lean on ``bind``."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from tests.vm.qmp_witness import Witness

ON_ARM = os.uname().machine == "aarch64"
FIRST_WINDOW, WINDOW = 0x0A000000 if ON_ARM else 0xFEB00000, 0x200  # of QEMU's virt, and of microvm
MODULES = ("virtio_rng", "virtio_balloon", "virtio_input", "virtio_blk")
"""The kernel's drivers of the types that machines with virtio-mmio have."""


def driver_of(address: str) -> str:
    link = Path("/sys/bus/pci/devices") / address / "driver"
    return link.resolve().name if link.exists() else ""


def hand_over(address: str, driver: str) -> None:
    """By hand, so that what is tested here does not lean on what test_binding.py tests."""
    device = Path("/sys/bus/pci/devices") / address
    if driver_of(address) == driver:
        return
    ours = driver != "virtio-pci"
    if ours:
        subprocess.run(["modprobe", driver], check=True, timeout=60)
    (device / "driver_override").write_text(f"{driver}\n" if ours else "\n")
    if driver_of(address):
        (device / "driver" / "unbind").write_text(address)
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    deadline = time.monotonic() + 20
    while driver_of(address) != driver:
        assert time.monotonic() < deadline, f"{address} stays with {driver_of(address)!r}"
        time.sleep(0.05)
    (device / "driver_override").write_text("\n")


def modprobe(*words: str) -> None:
    subprocess.run(["modprobe", *words], check=True, timeout=60, capture_output=True)


def address_of(witness: Witness, name: str) -> str:
    """The window of the device with this id, as QEMU tells it."""
    bus = witness.execute("qom-get", path=f"/machine/peripheral/{name}", property="parent_bus")
    match = re.search(r"virtio-mmio-bus\.(\d+)$", str(bus))
    assert match is not None
    return f"mmio:{FIRST_WINDOW + WINDOW * int(match[1]):#x}"
