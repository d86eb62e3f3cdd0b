"""The lab itself: the other tests of this floor stand on what these show."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.vm.qmp_witness import QmpError, Witness


def test_the_kernel_is_the_one_asked_for():
    wanted = os.environ["UVIRTIO_LAB_KERNEL"]
    assert os.uname().release == wanted
    assert Path("/usr/lib/modules", wanted, "modules.dep").is_file()


def test_every_device_has_an_iommu_group_of_its_own(lab_devices):
    assert lab_devices
    for name, address in lab_devices.items():
        group = Path("/sys/bus/pci/devices", address, "iommu_group").resolve()
        members = [entry.name for entry in (group / "devices").iterdir()]
        assert members == [address], name


def test_lspci_sees_the_devices_where_qemu_says_they_are(lab_devices):
    seen = subprocess.run(["lspci", "-Dn", "-d", "1af4:"], capture_output=True, text=True, check=True).stdout
    for address in lab_devices.values():
        assert address in seen


def test_the_hosts_deny_list_is_not_in_force():
    assert not Path("/etc/uvirtio/deny").exists()


def test_vfio_pci_is_there_and_not_loaded_by_the_lab():
    done = subprocess.run(["modprobe", "--show-depends", "vfio-pci"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vfio-pci.ko" in done.stdout


def test_the_kernels_drivers_have_the_devices(lab_devices):
    drivers = {name: Path("/sys/bus/pci/devices", address, "driver") for name, address in lab_devices.items()}
    assert {name: path.resolve().name for name, path in drivers.items()} == dict.fromkeys(drivers, "virtio-pci")


def test_the_witness_sees_the_balloon(witness):
    assert witness.execute("query-balloon")["actual"] > 0


def test_the_witness_reports_a_refused_command(witness):
    with pytest.raises(QmpError, match="no-such-command"):
        witness.execute("no-such-command")


def test_the_witness_survives_an_earlier_user_who_stopped_half_way(lab_devices):
    with Witness() as first:
        first._send(b'{"execute": "query-')
    with Witness() as second:
        assert second.execute("query-status")["status"] == "running"


def test_of_the_host_only_the_share_can_be_written():
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    kinds = {where: kind for _, where, kind, *_ in mounts}
    assert kinds["/"] == "overlay"
    assert [where for where, kind in kinds.items() if kind == "9p"] == ["/run/lab"]
