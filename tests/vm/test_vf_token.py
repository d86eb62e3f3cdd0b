"""VF tokens on a real kernel: QEMU's igb, a network card with SR-IOV, whose physical function vfio-pci has.

QEMU has no virtio functions with SR-IOV up to 10.0. The token is VFIO's alone, whatever the function is: so these
are opened as far as VFIO goes, and what makes a device of them says that they are none of virtio's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm.commands import uvirtio
from tests.vm.test_commands import until
from uvirtio.backends.vfio_pci import VfioPciFunction
from uvirtio.errors import NotSupported, PermissionLack

MACHINE = "sriov"

PCI = Path("/sys/bus/pci")
SRIOV = Path("/sys/module/vfio_pci/parameters/enable_sriov")
TOKEN = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
OTHER = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def bound(lab_devices: dict[str, str]) -> Iterator[str]:
    """The physical function, with vfio-pci."""
    address = lab_devices["pf"]
    device = PCI / "devices" / address
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    before = (device / "driver").resolve().name if (device / "driver").exists() else ""
    SRIOV.write_text("Y")
    change(address, "vfio-pci")
    yield address
    (device / "sriov_numvfs").write_text("0")
    SRIOV.write_text("N")
    change(address, "" if before else "none")


def change(address: str, driver: str) -> None:
    device = PCI / "devices" / address
    (device / "driver_override").write_text(f"{driver}\n")
    if (device / "driver").exists():
        (device / "driver" / "unbind").write_text(address)
    (PCI / "drivers_probe").write_text(address)


@pytest.fixture
def virtual(bound: str) -> Callable[[], str]:
    """``virtual()`` makes a virtual function, which vfio takes, and gives its address."""

    def make() -> str:
        device = PCI / "devices" / bound
        (device / "sriov_numvfs").write_text("1")
        until(lambda: (device / "virtfn0/driver").exists(), "the virtual function to be bound")
        assert (device / "virtfn0/driver").resolve().name == "vfio-pci"
        return (device / "virtfn0").resolve().name

    return make


def test_a_virtual_function_is_opened_only_with_the_token_of_the_physical_one(bound, virtual):
    with VfioPciFunction.open(bound, vf_token=TOKEN):
        vf = virtual()
        for wrong in (None, OTHER):
            with pytest.raises(PermissionLack, match="VF token") as caught:
                VfioPciFunction.open(vf, vf_token=wrong)
            assert bound in str(caught.value)
        with VfioPciFunction.open(vf, vf_token=TOKEN) as function:
            assert function.config.read16(0x06) not in (0, 0xFFFF)
    with VfioPciFunction.open(vf, vf_token=TOKEN):
        # While virtual functions are open, the physical one is opened with the same token alone.
        for wrong in (None, OTHER):
            with pytest.raises(PermissionLack, match="VF token"):
                VfioPciFunction.open(bound, vf_token=wrong)
        with VfioPciFunction.open(bound, vf_token=TOKEN):
            pass


def test_a_token_can_be_changed_while_the_physical_function_is_open(bound, virtual):
    with VfioPciFunction.open(bound, vf_token=TOKEN) as physical:
        vf = virtual()
        physical._way.device.set_vf_token(OTHER)
        with pytest.raises(PermissionLack):
            VfioPciFunction.open(vf, vf_token=TOKEN)
        with VfioPciFunction.open(vf, vf_token=OTHER):
            pass


def test_a_function_without_sr_iov_takes_no_token(lab_devices):
    address = lab_devices["rng-iova"]
    assert uvirtio("bind", address).returncode == 0
    try:
        with pytest.raises(NotSupported, match="takes no VF token"):
            VfioPciFunction.open(address, vf_token=TOKEN)
    finally:
        assert uvirtio("restore", "--all").returncode == 0
