"""Many machines on one page: a matrix of machines, devices and steps, with the differences first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from uvirtio.report.markup import Children, Markup, element, join, mark, section, table
from uvirtio.report.page import shell
from uvirtio.report.runs import VERBS, Result, Run

_WEIGHT: Final = {"fail": 4, "warn": 1}
_OF_MACHINES: Final = frozenset({"doctor"})
"""Columns that are about a machine, not about one of its devices."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A step that did not come to the same on all devices of a type."""

    type: str
    column: str
    groups: tuple[tuple[Result, tuple[Run, ...]], ...]
    """What it came to, and where; the most usual first."""


def fleet(runs: Sequence[Run]) -> str:
    """Return the page of many machines.

    Args:
        runs: As ``runs.machine_runs`` returns them.

    Returns:
        A whole HTML file, which loads nothing and runs nothing.
    """
    columns = _columns(runs)
    found = differences(runs)
    odd = _odd(runs, found)
    ordered = sorted(runs, key=lambda run: (-_weight(run, odd), run.machine, run.device))
    machines = len({run.machine for run in runs})
    devices = sum(bool(run.device) for run in runs)
    failed = sum(any(one.verdict == "fail" for one in run.results.values()) for run in runs)
    worst = "fail" if failed else "warn" if found else "pass"
    summary = (
        f"{_count(machines, 'machine')}, {_count(devices, 'device')}; {failed} with a failure, "
        f"{_count(len(found), 'difference')} between devices of one type"
    )
    body = join(
        element(
            "header", element("h1", "uvirtio fleet"), element("p", mark(worst), f" {summary}", class_="verdict")
        ),
        section("differences", "Differences", _differences(found)),
        section("matrix", "Machines, devices and steps", _matrix(ordered, columns, odd)),
        section("failures", "Failures and warnings", _failures(ordered, columns)),
    )
    return shell(f"{_count(machines, 'machine')} - uvirtio fleet", body, [])


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Steps that came to different results on devices of one type, those with failures first.

    Args:
        runs: The devices of all machines.
    """
    found = []
    machines = {run.machine: run for run in reversed(runs)}
    for kind in ("", *sorted({run.type for run in runs if run.type})):
        # What is about a machine is compared once, whatever devices it has.
        alike = [run for run in runs if run.type == kind] if kind else list(machines.values())
        columns = [one for one in _columns(alike) if (one in _OF_MACHINES) == (not kind)]
        found += [one for column in columns if (one := _difference_in(kind, alike, column)) is not None]
    return sorted(found, key=lambda one: -max(_WEIGHT.get(result.verdict, 0) for result, _ in one.groups))


def _difference_in(kind: str, alike: Sequence[Run], column: str) -> Difference | None:
    groups: dict[str, list[Run]] = {}
    for run in alike:
        result = run.results.get(column)
        # A step that was not reached says nothing: the step that failed before it does.
        if result is not None and not (result.verdict == "skip" and _failed_before(run, column)):
            groups.setdefault(result.signature, []).append(run)
    if len(groups) < 2:
        return None
    # Among equally usual results the good one is the norm.
    usual = sorted(
        groups.values(), key=lambda group: (-len(group), _WEIGHT.get(group[0].results[column].verdict, 0))
    )
    return Difference(kind, column, tuple((group[0].results[column], tuple(group)) for group in usual))


def _odd(runs: Sequence[Run], found: Sequence[Difference]) -> set[tuple[str, str, str]]:
    """The cells that are not as most are: machine, device, column."""
    made = set()
    for one in found:
        for _, where in one.groups[1:]:
            machines = {run.machine for run in where} if one.column in _OF_MACHINES else set()
            cells = [run for run in runs if run.machine in machines] if machines else where
            made |= {(run.machine, run.device, one.column) for run in cells}
    return made


def _failed_before(run: Run, column: str) -> bool:
    names = list(run.results)
    return any(run.results[name].verdict == "fail" for name in names[: names.index(column)])


def _columns(runs: Sequence[Run]) -> list[str]:
    """The verbs and, in the place of diag, its steps."""
    seen = dict.fromkeys(name for run in runs for name in run.results)
    steps = [name for name in seen if name not in VERBS]
    made: list[str] = []
    for verb in VERBS:
        made += steps if verb == "diag" else [verb] if verb in seen else []
    return made


def _weight(run: Run, odd: set[tuple[str, str, str]]) -> int:
    return sum(
        _WEIGHT.get(result.verdict, 0) + 2 * ((run.machine, run.device, column) in odd)
        for column, result in run.results.items()
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _where(runs: Sequence[Run], column: str) -> str:
    names = (run.machine if column in _OF_MACHINES else f"{run.machine} {run.device}".strip() for run in runs)
    return ", ".join(dict.fromkeys(names))


def _differences(found: list[Difference]) -> Markup:
    if not found:
        return element("p", mark("pass", "none"), " Devices of one type behave alike on all machines.")
    return element("ol", [_difference(one) for one in found], class_="findings")


def _difference(one: Difference) -> Markup:
    worst = "fail" if any(result.verdict == "fail" for result, _ in one.groups) else "warn"
    rows: list[list[Children]] = [
        [
            _count(len(where), "machine" if one.column in _OF_MACHINES else "device"),
            mark(result.verdict),
            result.says,
            _where(where, one.column),
        ]
        for result, where in one.groups
    ]
    title = f"{one.type}, {one.column}" if one.type else one.column
    return element(
        "li",
        element("h3", title),
        table(("How many", "Verdict", "What was seen", "Where"), rows, caption=f"{title}: results that differ"),
        class_=f"finding {worst}",
    )


def _matrix(runs: list[Run], columns: list[str], odd: set[tuple[str, str, str]]) -> Markup:
    rows: list[list[Children]] = []
    for run in runs:
        cells: list[Children] = [run.machine, run.device or "none", run.type or "-"]
        for column in columns:
            result = run.results.get(column)
            if result is None:
                cells.append(element("span", "not run", class_="small"))
                continue
            differs = (run.machine, run.device, column) in odd
            cells.append(
                element("div", mark(result.verdict), element("b", " ≠ differs"), class_="differs")
                if differs
                else mark(result.verdict)
            )
        rows.append(cells)
    return table(
        ("Machine", "Device", "Type", *columns),
        rows,
        caption="Each device of each machine, and what each step came to; those that differ or failed first",
        class_="matrix",
    )


def _failures(runs: list[Run], columns: list[str]) -> Markup:
    """What failed or is odd, each once, with every place where it was seen."""
    places: dict[tuple[str, str, str], list[Run]] = {}
    for verdict in ("fail", "warn"):
        for column in columns:
            for run in runs:
                result = run.results.get(column)
                if result is not None and result.verdict == verdict:
                    places.setdefault((verdict, column, result.says), []).append(run)
    items = []
    for (verdict, column, says), where in places.items():
        attempts = dict.fromkeys(text for run in where for text in run.results[column].attempts)
        items.append(
            element(
                "li",
                element("h3", mark(verdict), f" {column}: {says}"),
                element("p", _where(where, column), class_="small"),
                [element("p", element("b", "Try: "), text, class_="try") for text in attempts],
                class_=f"finding {verdict}",
            )
        )
    return element("ol", items, class_="findings") if items else element("p", mark("pass", "none"))
