"""``uvirtio conform --ring packed`` on a device model of QEMU."""

from __future__ import annotations

from uvirtio.conform import battery, run
from uvirtio.conform.verdict import Verdict
from uvirtio.device import OpenOptions

from .test_conform import MEASURED

KNOWN = {"D-PKD-13", "D-PKD-17", "D-PKD-18"}


def test_packed_rings_of_a_disk_of_qemu_break_the_rows_that_are_known() -> None:
    rows = battery.chosen(None, "packed", None)
    report = run("qemu:virtio-blk-pci,packed=on", rows=rows, options=OpenOptions(ring="packed"))
    assert report.ring == "packed"
    lost = [one for one in report.results if one.verdict in (Verdict.WEDGED, Verdict.GONE, Verdict.ERROR)]
    assert not lost, [(one.row.id, one.seen, one.log) for one in lost]
    assert report.counts["pass"] > 10
    if report.version in MEASURED:
        assert report.exit_code(strict=True) == 0, [(one.row.id, one.seen) for one in report.bad]
        known = {one.row.id for one in report.results if one.verdict is Verdict.KNOWN}
        assert known == KNOWN - ({"D-PKD-18"} if report.version.startswith("10.") else set())
