"""uio_pci_generic on a machine without an IOMMU: the driver bodies, the commands, the guardian, wrong use.

The witness is the QMP of the QEMU around the VM. What needs an IOMMU runs on the machine ``vfio``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.bodies import Cell, adopt, any_device, balloon, blk, keyboard, mem, net, rng, scsi
from tests.bodies.mem import emptied  # noqa: F401  # a fixture
from tests.support.virtio_state import state
from tests.vm import test_commands as commands
from tests.vm.commands import read_until, rights, running
from tests.vm.lab_cell import lab_cell, once, thorough
from tests.vm.qmp_witness import Witness
from tests.vm.test_drivers import driver_of, given_back, hand_over  # noqa: F401  # one is a fixture
from uvirtio.backends.uio_pci import UioPciFunction
from uvirtio.device import OpenOptions
from uvirtio.errors import (
    Busy,
    DeviceGone,
    DeviceResetByOther,
    GuardianLost,
    HugePagesLack,
    NotSupported,
    UnsafeDma,
)
from uvirtio.interfaces.values import InterruptMode

UIO = "uio_pci_generic"
INTX, POLLING = InterruptMode.INTX, InterruptMode.POLLING
PCI = Path("/sys/bus/pci/devices")
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
MASTER = 1 << 2


@pytest.fixture
def cell(
    request: pytest.FixtureRequest,
    lab_devices: dict[str, str],
    witness: Witness,
    given_back: None,  # noqa: F811
) -> Cell:
    name, mode, *ring = request.param
    address = lab_devices[name]
    hand_over(address, UIO)
    options = OpenOptions(interrupts=[mode], timeout=10, unsafe_dma=True, ring=ring[0] if ring else "auto")

    return lab_cell(
        witness,
        name,
        mode,
        lambda: uvirtio.open(address, options=options),
        translated=False,
        legacy="legacy" in name,
    )


def chosen(bodies: Any, cells: list[tuple[Any, ...]], *names: str, marks: Any = ()) -> dict[str, Any]:
    """Those bodies of a module whose names begin so: the emulated CPU is slow, and the rest runs elsewhere."""
    marked = [
        pytest.param(
            (name, mode, *ring), id="-".join((name, mode.value, *ring)), marks=once if "packed" in name else marks
        )
        for name, mode, *ring in cells
    ]
    short = bodies.__name__.rsplit(".", 1)[-1]
    wanted = tuple(f"test_{short}_{name}" for name in names)
    found = {name: body for name, body in adopt(bodies, marked).items() if name.startswith(wanted)}
    assert len(found) == len(names), found
    return found


globals().update(
    chosen(
        any_device,
        [("rng-uio", POLLING), ("rng-legacy-uio", INTX)],
        "the_device_sees_what_we_negotiated",
        "the_rings_are_where_we_put_them",
        "the_interrupt_mode_is_the_one_asked_for",
    )
)
PACKED = [(f"{kind}-uio-packed", INTX) for kind in ("rng", "balloon", "keyboard", "disk", "mem")]
globals().update(chosen(any_device, PACKED, "packed_rings_and_in_order_are_taken"))
RNGS = [("rng-uio", INTX), ("rng-legacy-uio", INTX), ("rng-uio-packed", INTX)]
BALLOONS = [("balloon-uio", INTX), ("balloon-uio-packed", INTX), ("balloon-legacy-uio", INTX)]
KEYBOARDS = [("keyboard-uio", INTX), ("keyboard-uio-packed", INTX)]
globals().update(chosen(rng, RNGS, "completions_come"))
DISKS = [("disk-uio", INTX), ("disk-uio-packed", INTX), ("disk-legacy-uio", INTX)]
globals().update(chosen(blk, DISKS, "what_is_written"))
# One of each in a plain run: each has a guardian, which is a Python of its own.
HBAS = [("hba-uio", INTX, "split"), ("hba-legacy-uio", INTX)]
NICS = [("nic-uio", INTX, "packed"), ("nic-legacy-uio", INTX)]
FIRST = {**chosen(scsi, [("hba-uio", INTX, "packed")], "what_is_written", marks=once)}
FIRST |= chosen(net, [("nic-uio", INTX, "split")], "a_question_is_answered", marks=once)
globals().update({f"{name}_first": body for name, body in FIRST.items()})
globals().update(chosen(scsi, HBAS, "what_is_written", marks=thorough))
globals().update(chosen(scsi, HBAS[:1], "units_come_and_go", marks=thorough))
globals().update(chosen(net, NICS, "a_question_is_answered", marks=thorough))
globals().update(chosen(net, NICS[:1], "the_control_queue", marks=thorough))
globals().update(chosen(mem, [("mem-uio", INTX), ("mem-uio-packed", INTX)], "plug_unplug_and_state", marks=once))
globals().update(chosen(keyboard, KEYBOARDS, "keys_arrive", "events_come_by_interrupt"))
globals().update(chosen(balloon, BALLOONS, "the_host_sees_the_balloon", "leaving_gives", "the_target_is_followed"))


# --- the device, and what it may -------------------------------------------------------------------------------


@pytest.fixture
def taken(lab_address: str, given_back: None) -> str:  # noqa: F811
    """The address of a device that uio_pci_generic holds."""
    hand_over(lab_address, UIO)
    return lab_address


def on(*names: str) -> Any:
    return pytest.mark.parametrize("lab_address", names, indirect=True)


def command(address: str) -> int:
    with (PCI / address / "config").open("rb") as config:
        return int.from_bytes(config.read(6)[4:], "little")


def free_pages() -> int:
    return int((POOL / "free_hugepages").read_text())


def status(witness: Witness, name: str) -> frozenset[str]:
    return state(witness.execute, f"/machine/peripheral/{name}/virtio-backend").status


@once
@on("rng-uio")
def test_without_the_consent_nothing_is_touched(taken, witness):
    with pytest.raises(UnsafeDma):
        uvirtio.open(taken)
    code, error = commands.refusal("rng", "read", taken, "16")
    assert (code, error["code"]) == (3, "UV-REFUSED-UNSAFE-DMA")
    assert "--unsafe-dma" in error["remedy"]
    assert "DRIVER_OK" not in status(witness, "rng-uio")


@on("rng-uio")
def test_a_second_driver_is_refused_and_disturbs_nobody(taken):
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Rng(device) as source:
        with pytest.raises(Busy) as caught:
            uvirtio.open(taken, unsafe_dma=True)
        assert str(os.getpid()) in caught.value.seen
        assert command(taken) & MASTER
        assert len(source.read(64)) == 64


@on("rng-uio")
def test_somebody_who_switches_bus_mastering_off_is_noticed(taken):
    node = next((PCI / taken / "uio").iterdir()).name
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Rng(device):
        os.close(os.open(f"/dev/{node}", os.O_RDWR))
        assert not command(taken) & MASTER
        with pytest.raises(DeviceResetByOther, match="bus mastering"):
            device.wait(lambda: False, timeout=5, what="nothing", owed=False)
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Rng(device) as source:
        assert len(source.read(64)) == 64


@once
@on("rng-uio")
def test_the_pool_of_huge_pages_gets_all_of_them_back(taken):
    before = free_pages()
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Rng(device) as source:
        source.read(64)
        assert free_pages() < before
    assert free_pages() == before


@once
@on("balloon-uio")
def test_a_balloon_larger_than_the_pool_is_refused_with_the_command(taken):
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Balloon(device) as it:
        with pytest.raises(HugePagesLack) as caught:
            it.inflate(64 << 8)  # 64 MiB
        assert str(POOL / "nr_hugepages") in caught.value.remedy


@pytest.mark.fault(88)
@on("mouse-uio")
def test_a_device_that_is_removed_in_use_is_no_signal(taken, witness):
    # In a child, because what must not happen is the end of the process.
    program = (
        "import sys, uvirtio\n"
        "with uvirtio.open(sys.argv[1], unsafe_dma=True) as device, uvirtio.Input(device) as mouse:\n"
        "    print('ready', flush=True)\n"
        "    try:\n"
        "        mouse.read(timeout=50)\n"
        "    except uvirtio.UvirtioError as error:\n"
        "        print(type(error).__name__, flush=True)\n"
    )
    with child_of(program, taken) as child:
        assert child.stdout is not None
        witness.execute("device_del", id="mouse-uio")
        assert child.stdout.readline() == f"{DeviceGone.__name__}\n"
        assert child.wait(30) == 0
    witness.wait_event("DEVICE_DELETED", 30)
    commands.until(lambda: not (PCI / taken).exists(), "the function to go")


# --- the guardian ----------------------------------------------------------------------------------------------


@contextmanager
def child_of(program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A Python of its own, that has said "ready"."""
    child = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


BALLOON = """
import sys, uvirtio
with uvirtio.open(sys.argv[1], unsafe_dma=True) as device, uvirtio.Balloon(device) as balloon:
    balloon.inflate(512)
    print("ready", flush=True)
    while True:
        balloon.inflate(1024)
        balloon.deflate(1024, force=True)
"""

RNG = """
import sys, uvirtio
with uvirtio.open(sys.argv[1], unsafe_dma=True) as device, uvirtio.Rng(device) as rng:
    rng.read(64)
    print("ready", flush=True)
    while True:
        rng.read(4096)
"""


def guardian_of(address: str) -> int:
    """The process whose command line names the function and nothing else of ours."""
    found = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and f"\0guardian_process.py\0{address}\0" in text_of(path / "cmdline")
    ]
    assert len(found) == 1, found
    return found[0]


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def gone(pid: int) -> Callable[[], bool]:
    return lambda: not Path(f"/proc/{pid}").exists()


@pytest.mark.spec("CLN-02")
@pytest.mark.parametrize(
    ("lab_address", "program"),
    [("balloon-uio", BALLOON), pytest.param("rng-uio", RNG, marks=once)],
    indirect=["lab_address"],
)
def test_a_killed_driver_leaves_a_reset_device_and_only_then_its_memory(taken, program, witness, lab_devices):
    name = next(name for name, address in lab_devices.items() if address == taken)
    before = free_pages()
    with child_of(program, taken) as child:
        guardian = guardian_of(taken)
        # Held up, so that the order can be seen.
        os.kill(guardian, signal.SIGSTOP)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        assert free_pages() < before, "the pages are not the kernel's before the device is quiet"
        with pytest.raises(Busy):
            UioPciFunction.open(taken, timeout=0.2, unsafe_dma=True)
        os.kill(guardian, signal.SIGCONT)
        commands.until(gone(guardian), "the guardian to end")
    assert not status(witness, name)
    assert not command(taken) & MASTER
    assert free_pages() == before
    assert "died; the device was quieted" in subprocess.run(["dmesg"], capture_output=True, text=True).stdout
    with uvirtio.open(taken, unsafe_dma=True) as device:
        driver = uvirtio.Balloon(device) if "balloon" in name else uvirtio.Rng(device)
        driver.close()


@pytest.mark.fault(66, 89, level="K")
@once
@on("balloon-uio")
def test_kills_at_any_moment(taken, witness):
    before = free_pages()
    for pause in (0.01, 0.06):
        with child_of(BALLOON, taken) as child:
            guardian = guardian_of(taken)
            time.sleep(pause)
            child.send_signal(signal.SIGKILL)
            commands.until(gone(guardian), "the guardian to end")
        assert not status(witness, "balloon-uio")
        assert free_pages() == before
    # The host counts the pages of the dead until somebody comes and says how many there are.
    assert commands.balloon_size(witness) < 1 << 30
    with uvirtio.open(taken, unsafe_dma=True) as device:
        uvirtio.Balloon(device).close()
    assert commands.balloon_size(witness) == 1 << 30


@on("balloon-uio")
def test_a_killed_guardian_ends_the_driving(taken, witness):
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Balloon(device) as it:
        it.inflate(256)
        os.kill(guardian_of(taken), signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(GuardianLost):
            it.hold(20)
        assert time.monotonic() - begin < 10
    assert not status(witness, "balloon-uio")
    assert not command(taken) & MASTER
    assert commands.balloon_size(witness) == 1 << 30, "it was given back all the same"


@once
@on("balloon-uio")
def test_neither_driver_nor_guardian_has_any_right_left(taken, witness):
    """Frame numbers, configuration space and I/O ports are reached through what root has opened."""
    with running("balloon", "follow", taken, "--unsafe-dma") as child:
        read_until(child, "^following")
        assert rights(child.pid) == rights(guardian_of(taken)) == set()
        witness.execute("balloon", value=(1 << 30) - (8 << 20))
        read_until(child, "^reached: target 8 MiB")
        assert commands.balloon_size(witness) == (1 << 30) - (8 << 20)
        guardian = guardian_of(taken)
        child.kill()
        commands.until(gone(guardian), "the guardian to end")
    assert not status(witness, "balloon-uio") and not command(taken) & MASTER
    witness.execute("balloon", value=1 << 30)
    with uvirtio.open(taken, unsafe_dma=True) as device:
        uvirtio.Balloon(device).close()
    assert commands.balloon_size(witness) == 1 << 30


# --- binding ---------------------------------------------------------------------------------------------------


@pytest.mark.fault(94, "R15")
@once
@on("rng-uio")
def test_without_an_iommu_bind_names_the_choices_and_takes_none(lab_address):
    hand_over(lab_address, "virtio-pci")
    code, error = commands.refusal("bind", lab_address)
    assert (code, error["code"]) == (4, "UV-ENV-IOMMU")
    for choice in ("IOMMU", f"--driver {UIO}"):
        assert choice in error["remedy"]
    assert driver_of(lab_address) == "virtio-pci"


@on("rng-uio")
def test_bind_drive_and_restore(lab_address):
    hand_over(lab_address, "virtio-pci")
    done = commands.uvirtio("bind", lab_address, "--driver", UIO)
    assert done.returncode == 0, done.stderr
    assert "/dev/uio" in done.stdout
    read = commands.uvirtio("rng", "read", lab_address, "32", "--unsafe-dma")
    assert read.returncode == 0, read.stderr
    assert "warning: no IOMMU holds this device" in read.stderr
    report = commands.uvirtio("diag", lab_address, "--unsafe-dma")
    assert report.returncode == 0, report.stdout
    assert "physical addresses" in report.stdout
    done = commands.uvirtio("restore", lab_address)
    assert done.returncode == 0, done.stderr
    assert driver_of(lab_address) == "virtio-pci"


@once
@on("rng-uio")
def test_its_node_is_not_given_to_a_user(lab_address):
    hand_over(lab_address, "virtio-pci")
    code, error = commands.refusal("bind", lab_address, "--driver", UIO, "--owner", "1234:1234")
    assert (code, error["code"]) == (3, "UV-REFUSED")
    assert "as root" in error["remedy"]
    assert driver_of(lab_address) == "virtio-pci"


# --- with an IOMMU (the machine vfio) ----------------------------------------------------------------------------


@pytest.fixture
def some_pages() -> Iterator[None]:
    """Huge pages on a machine that was booted without any."""
    (POOL / "nr_hugepages").write_text("4")
    yield
    (POOL / "nr_hugepages").write_text("0")


@on("rng-iova")
def test_uio_with_the_iommu_on_is_refused_for_what_it_is(taken, some_pages):
    with uvirtio.open(taken, unsafe_dma=True) as device:
        with pytest.raises(NotSupported, match="uio with the IOMMU on") as caught:
            uvirtio.Rng(device)
        assert "iommu=pt" in caught.value.remedy


@on("rng-pt")
def test_an_iommu_that_passes_addresses_through_is_none(taken):
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Rng(device) as source:
        assert device.dma.translated, "ACCESS_PLATFORM was taken"
        assert len(source.read(64)) == 64


@on("rng")
def test_a_device_that_goes_round_the_iommu_works(taken, some_pages):
    with uvirtio.open(taken, unsafe_dma=True) as device, uvirtio.Rng(device) as source:
        assert len(source.read(64)) == 64
