"""virtio-mmio through /dev/mem on a real kernel, with its own drivers loaded and bound first, and not loaded.

The machines are mmio, arm-mmio and arm-acpi (version 2), mmio-legacy and arm-legacy (version 1): six devices,
whose windows share one page. ARM's board has 32 windows, of which 26 are empty. The kernel has STRICT_DEVMEM and
IO_STRICT_DEVMEM, as Debian builds it. The witness is QMP.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import uvirtio
from tests.bodies import Cell, adopt, any_device, balloon, blk, keyboard, net, rng, scsi
from tests.support.virtio_state import state
from tests.vm.hands import FIRST_WINDOW, MODULES, ON_ARM, address_of, modprobe
from tests.vm.lab_cell import lab_cell, once, thorough
from tests.vm.qmp_witness import Witness
from tests.vm.test_commands import refusal
from tests.vm.test_commands import uvirtio as command
from uvirtio.binding import restore as restoring
from uvirtio.binding.discover import find, scan
from uvirtio.device import OpenOptions
from uvirtio.drivers.rng import Rng
from uvirtio.errors import Busy, ForeignWindow, GroupNotViable, NoSuchDevice, NotBound, NotVirtio
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import InterruptMode

POLLING = InterruptMode.POLLING
DEVICES = 6
# Devices fill the windows from the last. These are none: an interrupt controller's registers, and nothing.
FOREIGN, NOTHING = (0x08000000, 0x0A100000) if ON_ARM else (0xFEC00000, 0xFEB10000)
DRIVERS = Path("/sys/bus/platform/drivers")
on_mmio = pytest.mark.parametrize("name", ["mmio-rng"])
"""For what does not depend on the version: the id says on which machine it runs."""

on_both = pytest.mark.parametrize("name", ["mmio-rng", "mmio1-rng"])


@pytest.fixture
def not_loaded() -> None:
    """The kernel's virtio-mmio driver is not there, as on a machine where nothing asked for it."""
    if (DRIVERS / "virtio-mmio").exists():
        modprobe("-r", "virtio_mmio")


@pytest.fixture
def loaded() -> Iterator[None]:
    """The kernel's driver has all windows, and its drivers of each type the devices.

    Linux's input driver takes none of version 1.
    """
    modprobe("-a", "virtio_mmio", *MODULES)
    deadline = time.monotonic() + 30
    while sum(found.kernel_driver is not None for found in windows().values()) < 3:
        assert time.monotonic() < deadline, "the kernel's drivers do not take their devices"
        time.sleep(0.05)
    yield
    restoring.restore(Roots())


def is_legacy(name: str) -> bool:
    """Whether the device is of the machine with version 1."""
    return name.startswith("mmio1-")


def windows() -> dict[str, Any]:
    """The windows, by address, that have a device: the last."""
    found = {found.address: found for found in scan(Roots()) if found.bus == "platform"}
    return {address: found[address] for address in sorted(found, key=lambda one: int(one[5:], 16))[-DEVICES:]}


# --- the driver bodies --------------------------------------------------------------------------------------


@pytest.fixture
def cell(request: pytest.FixtureRequest, witness: Witness, not_loaded: None) -> Cell:
    name, mode, ring = request.param
    address = address_of(witness, name)
    options = OpenOptions(unsafe_dma=True, timeout=10, ring=ring)

    return lab_cell(
        witness,
        name,
        mode,
        lambda: uvirtio.open(address, options=options),
        translated=False,
        legacy=is_legacy(name),
        inside="",
    )


def some(bodies: ModuleType, device: str, *names: str, ring: str = "auto", marks: Any = ()) -> dict[str, Any]:
    """These bodies of a module (all, if none is named), on one device: the emulated CPU is slow."""
    short = bodies.__name__.rsplit(".", 1)[-1]
    rings = "" if ring == "auto" else f"-{ring}"
    made = adopt(bodies, [pytest.param((device, POLLING, ring), id=f"{device}{rings}", marks=marks)])
    chosen = made if not names else {name: made[name] for name in (f"test_{short}_{one}" for one in names)}
    return {f"{name}_{device}{rings}".replace("-", "_"): body for name, body in chosen.items()}


globals().update(some(any_device, "mmio-rng"))
globals().update(some(rng, "mmio-rng", "the_device_follows_our_indices", ring="split"))
globals().update(some(balloon, "mmio-balloon", "the_target_is_followed_both_ways", ring="split"))
globals().update(some(keyboard, "mmio-keyboard", "it_says_what_it_is", "keys_arrive_in_order"))
globals().update(some(blk, "mmio-disk", "what_is_written_is_on_the_disk"))
globals().update(some(scsi, "mmio-hba", "what_is_written_is_on_the_disk", ring="packed", marks=once))
globals().update(some(net, "mmio-nic", "a_question_is_answered", ring="split", marks=once))
# The other kind of ring, on a bus that knows no difference.
globals().update(some(rng, "mmio-rng", "the_device_follows_our_indices", ring="packed", marks=thorough))
globals().update(some(balloon, "mmio-balloon", "the_target_is_followed_both_ways", ring="packed", marks=thorough))
globals().update(some(keyboard, "mmio-keyboard", "keys_arrive_in_order", ring="split", marks=thorough))
globals().update(some(blk, "mmio-disk", "what_is_written_is_on_the_disk", ring="split", marks=thorough))
globals().update(some(scsi, "mmio-hba", "units_come_and_go", ring="split", marks=thorough))
globals().update(some(net, "mmio-nic", "the_control_queue", ring="packed", marks=thorough))

globals().update(
    some(any_device, "mmio1-rng", "the_device_sees_what_we_negotiated", "the_rings_are_where_we_put_them")
)
globals().update(some(rng, "mmio1-rng", "the_device_follows_our_indices"))
globals().update(some(balloon, "mmio1-balloon", "the_host_sees_the_balloon_grow_and_shrink"))
globals().update(some(keyboard, "mmio1-keyboard", "keys_arrive_in_order"))
globals().update(some(blk, "mmio1-disk", "what_is_written_is_on_the_disk"))
globals().update(some(scsi, "mmio1-hba", "what_is_written_is_on_the_disk", marks=once))
globals().update(some(net, "mmio1-nic", "a_question_is_answered", marks=once))


# --- bind and restore ---------------------------------------------------------------------------------------


@on_both
def test_the_whole_page_is_taken_from_the_kernel_and_given_back(name: str, witness: Witness, loaded: None) -> None:
    address = address_of(witness, name)
    before = windows()
    assert len(before) == DEVICES
    others = sorted(set(before) - {address})
    with pytest.raises(NotBound):
        uvirtio.open(address, unsafe_dma=True)

    # Alone it is refused: one window that is still bound closes all of its page.
    code, error = refusal("bind", address)
    assert code == 3
    assert all(other in error["seen"] for other in others)
    assert "--group" in error["remedy"]

    done = command("bind", address, "--group")
    assert done.returncode == 0, done.stderr
    assert {found.driver for found in windows().values()} == {None}
    with uvirtio.open(address, unsafe_dma=True) as device, Rng(device) as driver:
        assert len(driver.read(100)) == 100
        with pytest.raises(Busy):  # the window is in use
            restoring.restore(Roots(), [address])

    done = command("restore", "--all")
    assert done.returncode == 0, done.stderr
    after = windows()
    assert {one: found.driver for one, found in after.items()} == dict.fromkeys(before, "virtio-mmio")
    # The kernel's driver works again.
    available = Path("/sys/class/misc/hw_random/rng_available").read_text()
    assert available.startswith("virtio_rng")
    Path("/sys/class/misc/hw_random/rng_current").write_text(available.split()[0])
    with Path("/dev/hwrng").open("rb", buffering=0) as file:
        assert len(file.read(16)) == 16


@on_mmio
def test_a_sibling_that_is_bound_closes_the_page(name: str, witness: Witness, loaded: None) -> None:
    address = address_of(witness, name)
    found = find(address, Roots())
    (DRIVERS / "virtio-mmio" / "unbind").write_text(found.name)
    try:
        with pytest.raises(GroupNotViable) as caught:
            uvirtio.open(address, unsafe_dma=True)
        for other in set(windows()) - {address}:
            assert other in str(caught.value.seen)
        assert "--group" in (caught.value.remedy or "")
    finally:
        (DRIVERS / "virtio-mmio" / "bind").write_text(found.name)


# --- the guardian -------------------------------------------------------------------------------------------

DRIVER = """
import sys, time, uvirtio
from uvirtio.drivers.rng import Rng
device = uvirtio.open(sys.argv[1], unsafe_dma=True)
print(len(Rng(device).read(8)), flush=True)
time.sleep(600)
"""


@pytest.mark.fault(89, level="K")
@on_mmio
def test_a_killed_driver_leaves_a_device_that_is_reset(name: str, witness: Witness, not_loaded: None) -> None:
    address = address_of(witness, name)

    def is_up() -> bool:
        return "DRIVER_OK" in state(witness.execute, f"/machine/peripheral/{name}").status

    child = subprocess.Popen([sys.executable, "-c", DRIVER, address], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "8\n"
        assert is_up()
        child.kill()
        child.wait()
    # The guardian holds the lock until the device is quiet; then the next driver gets it.
    with uvirtio.open(address, unsafe_dma=True, timeout=10) as device:
        assert not is_up()
        with Rng(device) as driver:
            assert len(driver.read(8)) == 8


# --- wrong use, and the commands ----------------------------------------------------------------------------


@pytest.mark.fault(11)
@on_mmio
def test_wrong_addresses_are_refused_one_by_one(name: str, not_loaded: None) -> None:
    ram = next(line for line in Path("/proc/iomem").read_text().splitlines() if "System RAM" in line)
    start = int(ram.split("-")[0], 16)
    for base, kind in (
        (start, ForeignWindow),
        (FOREIGN, ForeignWindow),
        (FIRST_WINDOW, NoSuchDevice),  # a window without a device
        (NOTHING, ForeignWindow if ON_ARM else NotVirtio),  # a read of it would be a bus error
    ):
        with pytest.raises(kind):
            uvirtio.open(f"mmio:{base:#x}", unsafe_dma=True)


@on_mmio
def test_the_commands_take_mmio_addresses(name: str, witness: Witness, not_loaded: None) -> None:
    address = address_of(witness, name)
    code, error = refusal("diag", address)
    assert (code, error["code"]) == (3, "UV-REFUSED-UNSAFE-DMA")
    done = command("diag", address, "--unsafe-dma")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "virtio-mmio version 2" in done.stdout
    assert "verdict: pass" in done.stdout or "verdict: warn" in done.stdout
    traced = command("rng", "read", find(address, Roots()).name, "4", "--unsafe-dma", "-v")
    assert traced.returncode == 0
    assert re.search(r"mmio\+0x70 Status write32 <- 0xf", traced.stderr)
    assert "kick queue 0" in traced.stderr
