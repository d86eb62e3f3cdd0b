"""The device of docs/scripted.md, tested by its author: as it is it is good, and each way to break it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from uvirtio.conform import Pace, battery, run
from uvirtio.conform.verdict import Severity
from uvirtio.scripted import Model, ScriptedDevice

DOCS = Path(uvirtio.__file__).parents[1] / "docs"
PACE = Pace(deadline=0.01, watch=0.0, reset=0.01)


def _blocks(page: str, heading: str) -> str:
    return (
        (DOCS / page)
        .read_text(encoding="utf-8")
        .partition(heading)[2]
        .partition("```python\n")[2]
        .partition("```")[0]
    )


NAMES: dict[str, Any] = {}
exec(_blocks("scripted.md", "## A device of your own"), NAMES)
Echo: type[Any] = NAMES["Echo"]
exec(_blocks("conform.md", "## A device of your own"), NAMES)
REQUEST = NAMES["EchoRequest"]


class SilentCounter(Echo):
    """Its configuration changes behind the generation."""

    def handle(self, queue, chain):
        self.config[0] = (self.config[0] + 1) & 0xFF
        return chain.fill(chain.data())


class Reserved(Echo):
    features = 1 << 47


class Twice(Echo):
    def handle(self, queue, chain):
        length = super().handle(queue, chain)
        self.device.complete(queue, chain, length)
        return length


class FirstDescriptor(Echo):
    def handle(self, queue, chain):
        super().handle(queue, chain)
        return chain.fill(chain.data()[: chain.readable[0].length])


class Afterthought(Echo):
    """It writes into the buffers of the request before, which are the driver's again."""

    before = None

    def handle(self, queue, chain):
        if self.before is not None:
            self.before.fill(b"late")
        self.before = chain
        return super().handle(queue, chain)


class Backwards(Echo):
    def handle(self, queue, chain):
        return chain.fill(chain.data()[::-1])


def by_the_author(model: Callable[[], Model], *idents: str):
    rows = [battery.find(ident) for ident in idents] or None
    return run(lambda: ScriptedDevice(model(), translates=False), request=REQUEST, rows=rows, pace=PACE)


def test_the_device_as_it_stands_is_good():
    report = by_the_author(Echo)
    assert report.verdict(strict=True) == "pass", [(one.row.id, one.seen) for one in report.bad]
    assert report.counts["pass"] > 90, "the rows about queues run on it"
    assert run(ScriptedDevice(Echo()), pace=PACE).counts["pass"] < 50, "without a request they do not"


@pytest.mark.parametrize(
    ("model", "tells"),
    [
        (Reserved, ["D-FEAT-05"]),
        (SilentCounter, ["D-COM-06"]),
        (FirstDescriptor, ["D-FRM-01", "D-IND-02"]),
        (Twice, ["D-USED-05", "D-USED-06"]),
    ],
)
def test_each_way_to_break_it_is_told_by_its_rows(model, tells):
    others = ["D-RST-01", "D-CFG-03", "D-DESC-01"]
    report = by_the_author(model, *tells, *others)
    assert {one.row.id for one in report.bad} == set(tells), [(one.row.id, one.seen) for one in report.bad]


def test_a_wrong_answer_stops_the_run_and_is_told_with_the_reason():
    report = by_the_author(Backwards, "D-RST-01", "D-USED-06")
    assert list(report.counts) == ["skip", "error"] and report.exit_code() == 4
    assert report.stopped is not None and "b'9876543210', len 10" in report.stopped


def test_a_scripted_device_that_reaches_for_what_it_was_not_given_is_a_failure_and_no_traceback():
    report = by_the_author(Afterthought, "D-RST-01", "D-USED-06")
    assert list(report.counts) == ["gone"]
    assert {one.severity for one in report.results} == {Severity.MEMORY}
    assert "where nothing is mapped" in report.results[0].seen
