"""What only virtio-mmio has, on QEMU's machines: both versions by address, wrong use, several windows."""

from __future__ import annotations

import json
import subprocess

import pytest

import uvirtio
from tests.qemu.machines import needs
from uvirtio.device import QueueSpec
from uvirtio.drivers.mem import Mem
from uvirtio.drivers.rng import Rng
from uvirtio.errors import ConfigError, FeatureMissing, NotSupported, QueueError
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec import features as f


@pytest.mark.spec("MMIO-L01", "MMIO-07")
@pytest.mark.parametrize(
    ("address", "legacy"),
    [
        ("qemu:microvm/virtio-rng-device", True),  # QEMU's own choice
        ("qemu:microvm,legacy=on/virtio-rng-device", True),
        ("qemu:microvm,legacy=off/virtio-rng-device", False),
        ("qemu:virt,legacy=off,ram=64M/virtio-rng-device", False),
        pytest.param("qemu:riscv64/virtio-rng-device", True, marks=needs("riscv64")),
        pytest.param("qemu:riscv64,legacy=off,ram=64M/virtio-rng-device", False, marks=needs("riscv64")),
    ],
)
def test_the_address_chooses_the_version(address: str, legacy: bool):
    with uvirtio.open(address) as device, Rng(device) as rng:
        assert device.address == address
        assert device.transport.legacy is legacy
        assert device.transport.interrupt_mode is InterruptMode.INTX
        assert len(rng.read(8)) == 8


def test_the_windows_of_a_machine_do_not_disturb_each_other():
    devices = ["virtio-rng-device", "virtio-keyboard-device", "virtio-rng-device,id=other"]
    with Machine("virt", [*devices, "virtio-rng-pci"], legacy=False) as machine:
        bases = {function.id: getattr(function, "base", None) for function in machine.functions}
        assert bases == {"dev0": 0x0A003E00, "dev1": 0x0A003C00, "other": 0x0A003A00, "dev3": None}
        first, _, second, pci = (identify(function.address, function) for function in machine.functions)
        drivers = [Rng(device) for device in (first, second, pci)]
        for _ in range(3):
            assert all(len(driver.read(16)) == 16 for driver in drivers)
        for device in (first, second, pci):
            # An answer may be seen before its interrupt, and two interrupts of one vector may be taken as one.
            device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")  # noqa: B023
            assert device.counters.missed_interrupts == 0
            device.close()


def test_version_1_cannot_give_what_came_with_version_1_of_the_standard():
    with (
        uvirtio.open("qemu:microvm,legacy=on/virtio-rng-device") as device,
        pytest.raises(FeatureMissing) as caught,
    ):
        device.start(wanted=0, required=f.mask(f.VERSION_1), queues=[QueueSpec(0, "requestq")])
    assert "legacy interface" in (caught.value.remedy or "")


def test_force_legacy_is_for_pci():
    with pytest.raises(NotSupported, match="no legacy interface"):
        uvirtio.open("qemu:microvm,legacy=off/virtio-rng-device", force_legacy=True)
    uvirtio.open("qemu:microvm,legacy=on/virtio-rng-device", force_legacy=True).close()


def test_virtio_mem_has_its_region_nowhere_and_is_refused():
    with uvirtio.open("qemu:virt,legacy=off/virtio-mem") as device, pytest.raises(ConfigError) as caught:
        Mem(device)
    assert "addr is 0" in caught.value.message


@pytest.mark.fault(49)
def test_a_queue_reset_that_this_qemu_has_not_is_not_believed():
    # It offers RING_RESET over virtio-mmio, and has no register for it (7.2); a newer one resets the queue.
    with uvirtio.open("qemu:microvm,legacy=off/virtio-rng-device") as device, Rng(device) as rng:
        if not device.has(f.RING_RESET):
            pytest.skip("this QEMU does not offer it")
        try:
            device.reset_queue(device.queues[0])
        except QueueError as error:
            assert "QueueReady 0x1" in str(error.seen)
        else:
            assert len(rng.read(8)) == 8


@pytest.mark.parametrize("legacy", ["on", "off"])
@pytest.mark.parametrize("name", ["microvm", pytest.param("riscv64", marks=needs("riscv64"))])
def test_a_diagnosis_of_a_window(name: str, legacy: str):
    address = f"qemu:{name},legacy={legacy}/virtio-balloon-device"
    done = subprocess.run(
        ["uvirtio", "diag", address, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    steps = {step["name"]: step for step in report["steps"]}
    assert report["verdict"] == "pass"
    assert f"virtio-mmio version {1 if legacy == 'on' else 2}" in steps["capabilities"]["detail"]
    assert steps["interrupt"]["verdict"] == "pass"
    assert "intx" in steps["vectors"]["detail"]
    assert steps["features_ok"]["verdict"] == ("skip" if legacy == "on" else "pass")
