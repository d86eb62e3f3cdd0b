"""``tools/faults``: which faults a test proves that uvirtio meets, and the page that says so."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path

from lab import LabError, faults
from lab.faults import Case, List

_EPILOG = """\
exit code: 0; 1 where the list or a marker is wrong, a case has no test, too few cases have a test on a real QEMU,
daemon or kernel, or the page is not what --write would make it; 2 for an ID that the list does not have.
"""


def main(arguments: list[str]) -> int:
    """Run tools/faults; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        cases = faults.read_list(options.list)
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise LabError(f"{options.list} cannot be read as a list: {error!r}", 1) from None
    if not options.tests.is_dir():
        parser.error(f"{options.tests} is no directory")
    problems = cases.problems + faults.collect(cases, options.tests.resolve())
    if options.ids:
        some = faults.chosen(cases, options.ids)
        print(json.dumps([_as_dict(case) for case in some], indent=1) if options.json else _told(some))
        return 0
    problems += _page(cases, options.page, write=options.write)
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.json:
        print(
            json.dumps({"cases": [_as_dict(one) for one in cases.cases.values()], "problems": problems}, indent=1)
        )
    else:
        _report(cases)
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/faults",
        description="Compare docs/faults.toml, what can go wrong, with the tests that carry pytest.mark.fault, and"
        " docs/reliability.md with both. With an ID: that case and its tests.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="a case to show: 37, or R9 for a rule of bind")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/reliability.md")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser.add_argument("--list", type=Path, default=faults.LIST, metavar="FILE")
    parser.add_argument("--page", type=Path, default=faults.PAGE, metavar="FILE")
    parser.add_argument("--tests", type=Path, default=faults.TESTS, metavar="DIR")
    return parser


def _page(cases: List, path: Path, *, write: bool) -> list[str]:
    """Compare the page, or write it. Returns what is wrong with it."""
    text = path.read_text(encoding="utf-8")
    wanted = faults.page(cases, text)
    if write:
        path.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        return [f"{path.name} is not what the tests say: run tools/faults --write"]
    return []


def _as_dict(case: Case) -> dict[str, object]:
    tests = {
        test: "".join(letter for letter in faults.LEVELS if letter in how) for test, how in case.tests.items()
    }
    return {
        "id": case.id,
        "area": case.area,
        "case": case.case,
        "does": case.does,
        "levels": case.levels,
        "tests": tests,
    }


def _told(cases: list[Case]) -> str:
    lines = []
    for case in cases:
        lines += [f"{case.id}  {case.case}  ({case.area})", f"  {case.does}"]
        for test, how in case.tests.items():
            lines.append(f"  {''.join(letter for letter in faults.LEVELS if letter in how):3} {test}")
        lines += ["  no test"] if not case.tests else []
    return "\n".join(lines)


def _report(cases: List) -> None:
    """A line for each area, and the totals last."""
    print(f"{'area':26} {'cases':>5} {'proved':>6} {'real':>4}")
    for area, its in cases.areas().items():
        real = sum(bool(faults.REAL & set(case.levels)) for case in its)
        print(f"{area:26} {len(its):5} {sum(bool(case.tests) for case in its):6} {real:4}")
    numbered = cases.numbered()
    print(
        f"{len(numbered)} cases: {sum(bool(case.tests) for case in numbered)} proved,"
        f" {len(faults.with_real(cases))} on a real QEMU, daemon or kernel"
    )
