"""docs/conformance.toml against the tests: which requirements of virtio 1.4 are covered, reasoned away, open."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lab import CHECKOUT, LabError
from lab.marks import modules

TABLE = CHECKOUT / "docs" / "conformance.toml"
TESTS = CHECKOUT / "tests"
LEVELS = {"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "DESC"}


@dataclass
class Row:
    """One requirement of the table, and the tests that carry its id."""

    id: str
    section: str
    level: str
    title: str
    area: int
    reason: str | None
    tests: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        if self.tests:
            return "covered"
        return "reasoned away" if self.reason else "open"


@dataclass
class Table:
    """All rows by id, the names of the areas, and what is wrong with the file."""

    rows: dict[str, Row]
    areas: dict[int, str]
    problems: list[str]


def read_table(path: Path) -> Table:
    """The table; a broken row is a problem and not an exception."""
    with path.open("rb") as file:
        document = tomllib.load(file)
    table = Table({}, {}, [])
    for area in document["area"]:
        number, name = area["number"], area["name"]
        if number in table.areas:
            table.problems.append(f"{path.name}: area {number} is there twice")
        table.areas[number] = name
        for entry in area["requirements"]:
            row = Row(entry["id"], entry["section"], entry["level"], entry["title"], number, entry.get("reason"))
            if row.id in table.rows:
                table.problems.append(f"{path.name}: {row.id} is there twice")
            if row.level.removesuffix("^") not in LEVELS:
                table.problems.append(f"{path.name}: {row.id} has the level {row.level!r}")
            if row.reason is not None and not row.reason.strip():
                table.problems.append(f"{path.name}: {row.id} has an empty reason")
            table.rows[row.id] = row
        if len(area["requirements"]) != area["count"]:
            table.problems.append(
                f"{path.name}: area {number} has {len(area['requirements'])} rows, not {area['count']}"
            )
    return table


def collect(table: Table, tests: Path) -> list[str]:
    """Enter every test into the rows that it covers. Returns what is wrong with the markers."""
    problems: list[str] = []
    for _, module in modules(tests, "spec", problems):
        for name, line in module.named:
            if name not in table.rows:
                problems.append(f"{module.shown}:{line}: {name!r} is no id of the table")
        for one in module.found:
            row = table.rows.get(str(one.id))
            if row is not None and one.test not in row.tests:
                row.tests.append(one.test)
    for row in table.rows.values():
        if row.tests and row.reason:
            problems.append(f"{row.id} is reasoned away, and {row.tests[0]} covers it")
    return problems


def counts(rows: list[Row]) -> dict[str, int]:
    """How many rows are in which state."""
    totals = {"covered": 0, "reasoned away": 0, "open": 0}
    for row in rows:
        totals[row.state] += 1
    return totals


def found(table: Table, names: Iterable[str]) -> list[Row]:
    """The rows with these ids. Raises LabError that names ids like the one that is not there."""
    rows = []
    for name in names:
        if name not in table.rows:
            raise LabError(
                f"{name}: no such requirement in {TABLE.relative_to(CHECKOUT)}; like it:"
                f" {', '.join(_like(table, name))}\n"
                "tools/conformance --search WORD looks for a word in ids, sections and titles",
                2,
            )
        rows.append(table.rows[name])
    return rows


def _like(table: Table, name: str, most: int = 6) -> list[str]:
    """The ids that may have been meant: those that are spelled nearly so first."""
    name = name.upper()
    family = [one for one in table.rows if one.rpartition("-")[0] == name.rpartition("-")[0]]
    near = difflib.get_close_matches(name, table.rows, n=most, cutoff=0.5)
    return list(dict.fromkeys([*near, *family]))[:most] or list(table.rows)[:most]


def search(table: Table, word: str) -> list[Row]:
    """The rows that have the word in their id, section or title, in capitals or not."""
    word = word.casefold()
    return [row for row in table.rows.values() if word in f"{row.id} {row.section} {row.title}".casefold()]
