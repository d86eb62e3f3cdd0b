"""The fixture ``virtio_vm`` with the lab itself: tools/test --all boots it. One test, since each boots a VM."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.report.test_browser import CHROMIUM, looked_at
from uvirtio.errors import OperationFailed, QemuFailed

pytestmark = pytest.mark.skipif(
    not os.environ.get("UVIRTIO_VIRTIO_VM"), reason="tools/test --all runs this: it boots a VM"
)


def test_a_function_behind_vfio_is_diagnosed_dumped_and_reported(virtio_vm, tmp_path: Path) -> None:
    vm = virtio_vm("virtio-rng-pci,iommu_platform=on", "virtio-balloon-pci,id=balloon", kernel="6.1")
    assert vm.kernel.startswith("6.1.") and vm.run(["uname", "-r"], check=True).stdout == f"{vm.kernel}\n"
    address = vm.address(0)
    assert vm.address("balloon") != address and not Path("/sys/bus/pci/devices", address, "driver").exists()
    assert vm.run(["uvirtio", "bind", address]).returncode == 0
    diag = vm.run(["uvirtio", "diag", address, "--json"])
    assert diag.returncode == 0, diag.stderr
    assert json.loads(diag.stdout)["verdict"] == "pass"

    dump = vm.run(["uvirtio", "dump", address, "--live", "-o", "/tmp/rng.json"])
    assert dump.returncode == 0, dump.stderr
    [record] = json.loads(vm.copy_out("/tmp/rng.json").read_text())["devices"]
    assert (record["address"], record["driver"], record["type"]) == (address, "vfio-pci", "rng")
    assert "DRIVER_OK" in record["status"]["names"] and record["queues"][0]["ring"]["published"] >= 1
    # As the start has left them, not as sysfs had them before: MSI-X, and an interrupt for each vector.
    assert record["msix"]["enabled"]
    vectors = record["interrupts"]["vectors"]
    assert len(vectors) == 2 and sum(one["count"] for one in vectors) >= 1
    assert all(one["name"].startswith("vfio-msi") for one in vectors)

    report = vm.run(["uvirtio", "report", address, "--live", "-o", "/tmp/rng.html"])
    assert report.returncode == 0, report.stderr
    page = vm.copy_out("/tmp/rng.html", Path(os.environ.get("UVIRTIO_LAB_KEEP", tmp_path), "function.html"))
    assert 10_000 < page.stat().st_size < 400 << 10
    if CHROMIUM is not None:
        looked_at(page.read_text(encoding="utf-8"), tmp_path)

    said = vm.run(["sh", "-c", "printf 'a\\377\\n'; echo b >&2; exit 3"])
    assert (said.returncode, said.stdout, said.stderr) == (3, "a\udcff\n", "b\n")
    vm.run(["sh", "-c", "echo '<3>a complaint' >/dev/kmsg"], check=True)
    with pytest.raises(OperationFailed, match="cannot be copied"):
        vm.copy_out("/tmp/not there")
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        vm.run(["sh", "-c", "echo before; exec sleep 1000"], timeout=3)
    assert caught.value.output == "before\n"
    with pytest.raises(QemuFailed, match="has ended"):
        vm.run(["true"])
    assert "a complaint" in vm.console()  # which a failed test leaves
