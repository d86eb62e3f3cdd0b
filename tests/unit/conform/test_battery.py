"""Each row: a scripted device that obeys is good, and one that breaks just this row is caught."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from uvirtio.conform import Pace, battery
from uvirtio.conform.result import Result
from uvirtio.conform.row import Level
from uvirtio.conform.run import run
from uvirtio.conform.verdict import FAILURES, Verdict
from uvirtio.device import OpenOptions
from uvirtio.scripted import ScriptedCore
from uvirtio.scripted.address import build

from .mutants import Mutant, all_mutants, around

ROWS = battery.all_rows()
PACE = Pace(deadline=0.01, watch=0.0, reset=0.01)
"""A scripted device answers inside the register access."""

MUTANTS = all_mutants()


def one(row, make, ring="split") -> tuple[Result, list[ScriptedCore]]:
    made: list[ScriptedCore] = []

    def anew() -> ScriptedCore:
        made.append(make())
        return made[-1]

    report = run(anew, rows=[row], options=OpenOptions(ring=ring), pace=PACE)
    assert len(report.results) == 1, f"{row.id} does not fit the device of its mutant"
    return report.results[0], made


@cache
def obeying(row_id: str) -> Result:
    row, mutant = battery.find(row_id), MUTANTS[row_id]
    result, made = one(row, mutant.make, mutant.ring)
    if row.level < Level.REGISTERS:
        broken = [what for device in made for what in device.violations]
        assert not broken, f"L{row.level.value} asks only for what a driver may do: {broken}"
    return result


def test_every_row_has_a_mutant_and_every_mutant_a_row():
    assert {row.id for row in ROWS} == set(MUTANTS)


def test_rings_of_network_devices_are_not_made_wrong():
    """Of L4 they have only notifications that a driver may not ask for, and flags that a device has to ignore."""
    found = {row.id for row in ROWS if row.level is Level.RINGS and row.fits_type("net")}
    assert found == {"D-SUP-04", "D-PKD-15", "D-PKD-16"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_an_obeying_device_is_good(row):
    result = obeying(row.id)
    assert result.verdict in (Verdict.PASS, Verdict.REJECT, Verdict.FREE), (result.seen, result.log)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_its_mutant_is_caught(row):
    mutant: Mutant = MUTANTS[row.id]
    result, _ = one(row, mutant.device, mutant.ring)
    if row.keyword == "MAY":  # a fact, which is told and never bad
        assert result.seen != obeying(row.id).seen
    else:
        assert result.verdict in FAILURES, (result.verdict, result.seen, result.log)


def test_a_notification_that_a_start_brings_is_not_held_against_the_flags():
    """As qemu-storage-daemon, which signals each eventfd once when it gets it."""

    def make():
        device = build("scripted:rng")
        around(device, "_go", lambda go: (go(), device.interrupt_queue(0, force=True)))
        return device

    assert run(make, rows=[battery.find("D-SUP-02")], pace=PACE).counts == {"pass": 1}


@pytest.mark.parametrize("device", ["balloon", "blk", "mem", "net,features=0x100431028", "scsi"])
def test_a_scripted_device_of_any_type_keeps_what_no_driver_may_write(device):
    report = run(f"scripted:{device}", rows=[battery.find("D-CFG-05")])
    assert report.counts == {"pass": 1}, report.results


def test_what_is_seen_from_outside_of_a_card_is_done_with_consent_alone():
    rows = [battery.find(ident) for ident in ("D-NET-16", "D-NET-17", "D-COM-06")]
    report = run(build("scripted:net"), rows=rows, pace=PACE)
    assert report.counts == {"skip": 3} and all("--host" in one.seen for one in report.results)


def test_the_example_of_the_page_holds():
    page = (Path(uvirtio.__file__).parents[1] / "docs" / "conform.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    report = names["report"]
    assert report.verdict(strict=True) == "pass", [(one.row.id, one.seen) for one in report.bad]
    assert len(report.results) > 200


def test_ids_are_unique_and_rows_are_said_in_full():
    assert len({row.id for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.id.startswith("D-") and row.section and row.title.endswith("."), row
        assert row.check.__doc__, f"{row.id}: no word on how it is tested"


LATER = ("D-CON-", "D-VSK-", "D-FS-", "D-GPU-")
"""Of device types whose rows come and go without the list of the page."""
STATEMENTS = 486 - 25
"""Statements about devices that were found in the standard, but for those types."""


def test_what_has_no_row_is_told_with_the_reason():
    page = (Path(uvirtio.__file__).parents[1] / "docs" / "conform.md").read_text(encoding="utf-8")
    table = page.partition("## Statements without a row")[2].partition("\n## ")[0]
    left_out: list[str] = []
    for line in table.splitlines():
        if line.startswith("| D-"):
            for part in line.split("|")[1].split(","):
                first, _, last = (one.strip() for one in part.partition(" to "))
                area, _, number = first.rpartition("-")
                until = int(last.rpartition("-")[2]) if last else None
                left_out += (
                    [first] if until is None else [f"{area}-{one:02}" for one in range(int(number), until + 1)]
                )
    rows = {row.id for row in ROWS if not row.id.startswith(LATER)}
    assert len(set(left_out)) == len(left_out)
    assert not rows & set(left_out), "it has a row: take it out of the list"
    assert len(rows) + len(left_out) == STATEMENTS
