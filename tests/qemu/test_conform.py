"""``uvirtio conform`` on QEMU's device models: nothing is lost on them, and what is wrong is known."""

from __future__ import annotations

import pytest

from uvirtio.conform import run
from uvirtio.conform.verdict import Verdict

MEASURED = "7.2.22"

FORETOLD = {
    "qemu:virtio-rng-pci": {"D-FEAT-03", "D-COM-15", "D-COM-16", "D-COM-21", "D-PCF-04", "D-IND-02", "D-QRST-03"},
    "qemu:virtio-blk-pci": {"D-STAT-01", "D-STAT-07", "D-COM-05", "D-COM-07", "D-ISR-07", "D-BLK-03", "D-BLK-27"},
}


@pytest.mark.parametrize("address", FORETOLD)
def test_a_device_of_qemu_survives_all_rows_and_breaks_those_that_are_known(address: str) -> None:
    report = run(address)
    lost = [one for one in report.results if one.verdict in (Verdict.WEDGED, Verdict.GONE, Verdict.ERROR)]
    assert not lost, [(one.row.id, one.seen, one.log) for one in lost]
    assert len(report.results) > 100 and report.counts["pass"] > 80
    if report.version == MEASURED:
        assert report.exit_code(strict=True) == 0, [(one.row.id, one.seen) for one in report.bad]
        known = {one.row.id for one in report.results if one.verdict is Verdict.KNOWN}
        assert known >= FORETOLD[address]
