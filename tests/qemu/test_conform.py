"""``uvirtio conform`` on QEMU's device models: nothing is lost on them, and what is wrong is known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import forked
from uvirtio.conform import battery, run
from uvirtio.conform.verdict import Verdict

CHECKOUT = Path(__file__).resolve().parents[2]

MEASURED = ("7.2.22", "10.0.13")

FORETOLD = {
    "qemu:virtio-rng-pci": {"D-FEAT-03", "D-COM-15", "D-COM-16", "D-PCF-04", "D-IND-02", "D-QRST-03"},
    "qemu:virtio-blk-pci": {"D-STAT-01", "D-STAT-07", "D-COM-05", "D-COM-07", "D-ISR-07", "D-BLK-03", "D-BLK-27"},
}


@pytest.mark.parametrize("address", FORETOLD)
def test_a_device_of_qemu_survives_all_rows_and_breaks_those_that_are_known(address: str) -> None:
    report = run(address)
    lost = [one for one in report.results if one.verdict in (Verdict.WEDGED, Verdict.GONE, Verdict.ERROR)]
    assert not lost, [(one.row.id, one.seen, one.log) for one in lost]
    assert len(report.results) > 100 and report.counts["pass"] > 80
    if report.version in MEASURED:
        assert report.exit_code(strict=True) == 0, [(one.row.id, one.seen) for one in report.bad]
        known = {one.row.id for one in report.results if one.verdict is Verdict.KNOWN}
        assert known >= FORETOLD[address]


@pytest.mark.parametrize("area", ["console", "gpu"])
def test_rows_of_types_without_a_driver(area: str) -> None:
    """A port comes and goes by QMP, and QEMU's screen dump shows what a fence has promised."""
    address = {"console": "qemu:virtio-serial-pci", "gpu": "qemu:virtio-gpu-pci"}[area]
    report = run(address, rows=battery.chosen(None, area, None))
    left = {"D-GPU-05"}  # no lever for the size of a display
    verdicts = {one.row.id: one.verdict for one in report.results if one.row.id not in left}
    assert len(verdicts) == 5 and set(verdicts.values()) == {Verdict.PASS}, report.results


def test_a_disk_of_qemu_storage_daemon_breaks_the_row_that_is_known(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    rows = [row for row in battery.all_rows() if row.id.startswith(("D-IND-", "D-SUP-"))]
    report = run(f"vhost-user:qsd/{image}", rows=rows)
    assert report.implementation == "qemu-storage-daemon" and report.exit_code(strict=True) == 0, report.bad
    assert [one.row.id for one in report.results if one.verdict is Verdict.KNOWN] == ["D-IND-02"]


def test_the_rows_of_a_device_of_qemu_are_tests_of_pytest(tmp_path: Path) -> None:
    asked = ["-k", "D-RST or D-FEAT-03 or D-COM-17", "--uvirtio-device", "qemu:virtio-rng-pci"]
    words = ["-q", "-rx", "-p", "uvirtio.pytest_plugin", "-p", "no:cacheprovider", "-c", os.devnull]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = forked.pytest([*words, "--rootdir", ".", *asked], tmp_path, environment)
    assert "6 passed, 1 skipped" in done.stdout, done.stdout
    assert ", 1 xfailed" in done.stdout
    assert "XFAIL qemu:virtio-rng-pci::D-FEAT-03 - known: FEATURES_OK with " in done.stdout
