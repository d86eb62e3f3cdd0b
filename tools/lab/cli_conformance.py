"""``tools/conformance``: which requirements of virtio 1.4 a test proves; or one requirement and its tests."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from lab import LabError, conformance
from lab.conformance import Row, Table

_EPILOG = """\
exit code: 0; 1 where the table or a marker is wrong (an id that the table does not have, a marker that marks no
test, a row that is both covered and reasoned away, an id that is there twice, an area that lost a row) or where
--search finds nothing; 2 for an ID that the table does not have.
"""


def main(arguments: list[str]) -> int:
    """Run tools/conformance; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        table = conformance.read_table(options.table)
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise LabError(f"{options.table} cannot be read as a table: {error!r}", 1) from None
    areas = sorted(table.areas)
    if options.area is not None:
        if options.area not in table.areas:
            parser.error(f"there is no area {options.area}; there are {areas[0]} to {areas[-1]}")
        areas = [options.area]
    if not options.tests.is_dir():
        parser.error(f"{options.tests} is no directory")
    problems = table.problems + conformance.collect(table, options.tests.resolve())
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.ids or options.search:
        return _some(table, options)
    if options.json:
        _print_json(
            {
                "areas": [_area(table, number) for number in areas],
                "problems": problems,
                "totals": {**conformance.counts(list(table.rows.values())), "all": len(table.rows)},
            }
        )
    else:
        _print_report(table, areas, options.open)
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/conformance",
        description="Compare docs/conformance.toml, the driver's requirements of virtio 1.4, with the tests: what"
        " is covered, reasoned away, open. With an ID: that requirement and its tests.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="a requirement to show: PCI-COM-01")
    parser.add_argument("--search", metavar="WORD", help="the requirements with this in id, section or title")
    parser.add_argument("--open", action="store_true", help="list the open requirements too")
    parser.add_argument("--area", type=int, metavar="N", help="show this area only; the totals are always of all")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser.add_argument("--table", type=Path, default=conformance.TABLE, metavar="FILE")
    parser.add_argument("--tests", type=Path, default=conformance.TESTS, metavar="DIR")
    return parser


def _some(table: Table, options: argparse.Namespace) -> int:
    """Some requirements: each with its tests if it was named, one a line if it was searched for."""
    named = conformance.found(table, options.ids)
    matching = conformance.search(table, options.search) if options.search else []
    if options.json:
        _print_json({"requirements": [_row(row) for row in [*named, *matching]]})
    else:
        for row in named:
            _print_row(table, row)
        for row in matching:
            print(f"{row.id:11} {row.level:11} {row.section:24} {_tests(row):13} {row.title}")
    if options.search and not matching:
        print(f"tools/conformance: no requirement has {options.search!r} in id, section or title", file=sys.stderr)
        return 1
    return 0


def _tests(row: Row) -> str:
    if not row.tests:
        return row.state
    return "1 test" if len(row.tests) == 1 else f"{len(row.tests)} tests"


def _print_row(table: Table, row: Row) -> None:
    print(f"{row.id}  {row.level}  {row.section}  ({table.areas[row.area]})\n  {row.title}")
    if row.reason:
        print(f"  reasoned away: {row.reason}")
    for test in row.tests:
        print(f"  {test}{'  (run by the cells of tests/qemu and tests/vm)' if '/bodies/' in test else ''}")
    print(f"  run: tools/test --spec {row.id}\n" if row.tests else "  no test\n")


def _row(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "section": row.section,
        "level": row.level,
        "title": row.title,
        "state": row.state,
        "reason": row.reason,
        "tests": row.tests,
    }


def _area(table: Table, number: int) -> dict[str, Any]:
    rows = [row for row in table.rows.values() if row.area == number]
    return {
        "number": number,
        "name": table.areas[number],
        **conformance.counts(rows),
        "requirements": [_row(row) for row in rows],
    }


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=1))


def _print_report(table: Table, areas: list[int], list_open: bool) -> None:
    """The table of the areas, the open ids before it where wanted, the totals last."""
    chosen = [row for row in table.rows.values() if row.area in areas]
    if list_open:
        for row in chosen:
            if row.state == "open":
                print(f"{row.id:11} {row.level:11} {row.section:24} {row.title}")
        print()
    print(f"{'area':27} {'covered':>8} {'reasoned away':>14} {'open':>5} {'all':>4}")
    for number in areas:
        rows = [row for row in chosen if row.area == number]
        got = conformance.counts(rows)
        print(
            f"{number:2}  {table.areas[number]:23} {got['covered']:8} {got['reasoned away']:14} "
            f"{got['open']:5} {len(rows):4}"
        )
    got = conformance.counts(list(table.rows.values()))
    print(
        f"total of {len(table.rows)} requirements: {got['covered']} covered, "
        f"{got['reasoned away']} reasoned away, {got['open']} open"
    )
