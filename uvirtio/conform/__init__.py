"""Does a device do what virtio 1.4 demands of devices: rows of the standard, each with a test, and their frame.

    report = uvirtio.conform.run("qemu:virtio-rng-pci")
    for result in report.bad:
        print(result.row.id, result.row.section, result.verdict.value, result.seen)

A row is one statement (``row``), an area a part of the standard (``areas``), a trial what a test is given
(``trial``).
"""

from uvirtio.conform.report import Report
from uvirtio.conform.result import Result
from uvirtio.conform.row import Area, Level, Row
from uvirtio.conform.run import run
from uvirtio.conform.trial import Consent, Pace, Trial
from uvirtio.conform.verdict import Severity, Verdict

__all__ = ["Area", "Consent", "Level", "Pace", "Report", "Result", "Row", "Severity", "Trial", "Verdict", "run"]
