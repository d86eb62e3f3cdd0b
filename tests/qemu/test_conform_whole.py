"""The whole battery on each device model that ``tools/gen-conform`` measures; made by ``tools/test --all``.

A plain run has a part of it: test_conform.py and test_conform_packed.py.
"""

from __future__ import annotations

import os

import pytest

from tests.support import tool
from uvirtio.conform import battery
from uvirtio.conform.verdict import Verdict
from uvirtio.errors import QemuFailed

from .test_conform import MEASURED

if not os.environ.get("UVIRTIO_CONFORM_WHOLE"):
    reason = "the whole battery: tools/test --all, or UVIRTIO_CONFORM_WHOLE=1"
    pytest.skip(reason, allow_module_level=True)


TOOL = tool.load("gen-conform")


@pytest.mark.parametrize(("address", "which"), TOOL.devices(), ids=str)
def test_what_is_wrong_is_known_and_what_is_known_shows(address: str, which: str) -> None:
    rows = [row for row in battery.all_rows() if TOOL.wanted(row.id, which)]
    try:
        report = TOOL.run_on(address, rows, quirks=None)
    except QemuFailed as error:
        pytest.skip(f"this QEMU has no such model, or property: {error.seen}")
    lost = [one for one in report.results if one.verdict in (Verdict.WEDGED, Verdict.GONE, Verdict.ERROR)]
    assert not lost, [(one.row.id, one.seen, one.log) for one in lost]
    assert report.stopped is None and report.tried
    if report.version in MEASURED:
        assert report.exit_code(strict=True) == 0, [
            (one.row.id, one.verdict.value, one.seen)
            for one in report.results
            if one in report.bad or one.verdict is Verdict.FIXED
        ]
