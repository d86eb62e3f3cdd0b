"""``uvirtio conform``, L0 to L2, on a device of the VM: what is not known obeys, and nothing is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from tests.vm.qmp_witness import Witness

if TYPE_CHECKING:  # what a machine does not run is not imported on its emulated CPU
    from uvirtio.conform import Report
    from uvirtio.conform.implementation import Implementation
    from uvirtio.conform.row import Row

Ring = Literal["split", "packed"]

MEASURED = ("7.2.22", "10.0.13")
"""The versions of QEMU whose violations are known."""


def implementation(witness: Witness) -> Implementation:
    """The QEMU around the VM, which has the device itself, whatever is before it."""
    from uvirtio.conform.implementation import Implementation

    told = witness.execute("query-version")["qemu"]
    return Implementation("qemu", f"{told['major']}.{told['minor']}.{told['micro']}")


def rows() -> list[Row]:
    """The rows up to L2; of a plain run those of L0, and of the status: each of the others takes half a second."""
    from uvirtio.conform import battery
    from uvirtio.conform.row import Level

    found = battery.chosen(None, None, Level.ODD)
    if os.environ.get("UVIRTIO_LAB_WHOLE") == "0":
        status = battery.chosen(None, "status", Level.ODD)
        found = [row for row in found if row.level is Level.LOOK or row in status]
    return found


def conforms(
    address: str,
    maker: Implementation | None,
    noted: Callable[[str, object], None],
    *,
    ring: Ring = "split",
) -> Report:
    """Run the rows: none loses the device, and what is bad is known, but for a QEMU not measured yet."""
    from uvirtio.conform import run
    from uvirtio.conform.verdict import Verdict
    from uvirtio.device import OpenOptions

    began = time.monotonic()
    report = run(
        address,
        rows=rows(),
        options=OpenOptions(ring=ring, timeout=10),
        implementation=maker,
    )
    noted("conform", f"{report.type} {report.transport} {report.ring} {report.implementation} {report.version}")
    for one in report.results:
        noted(one.row.id, one.verdict.value)
    print(f"{address}: {report.type}, {report.ring}, {report.counts} in {time.monotonic() - began:.0f} s")
    odd = [one for one in report.results if one in report.bad or one.verdict is Verdict.FIXED]
    told = "\n".join(f"{one.row.id} {one.verdict.value}: {one.seen}; expected {one.expected}" for one in odd)
    lost = [one for one in report.results if one.verdict in (Verdict.WEDGED, Verdict.GONE, Verdict.ERROR)]
    assert not lost, "\n".join([told, *(f"{one.row.id}: {line}" for one in lost for line in one.log[-20:])])
    assert report.counts["pass"] > 8 and report.ring == ring and report.stopped is None
    measured = report.implementation != "qemu" or report.version in MEASURED
    assert not (measured and odd), told
    return report
