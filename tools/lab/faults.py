"""docs/faults.toml against the tests: which faults a test proves that uvirtio meets, and at which level."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab import CHECKOUT, LabError
from lab.marks import modules

LIST = CHECKOUT / "docs" / "faults.toml"
PAGE = CHECKOUT / "docs" / "reliability.md"
TESTS = CHECKOUT / "tests"

BEGIN, END = "<!-- tools/faults begins -->", "<!-- tools/faults ends -->"

LEVELS = {
    "S": "a scripted device or a played kernel, in the same process",
    "X": "made-up trees of /sys and /proc",
    "F": "fuzz: inputs that a seed makes up",
    "H": "a state machine: sequences that a seed makes up",
    "Q": "QEMU's device models without a guest, or a daemon",
    "V": "a kernel in a VM",
    "K": "with kill -9 or SIGSTOP",
}

REAL = {"Q", "V"}
"""The levels that have a real QEMU, daemon or kernel."""

_TREES = ("unit/binding", "unit/host")
"""Folders whose tests are about made-up trees."""


@dataclass
class Case:
    """One case of the list, and the tests that carry its id."""

    id: int | str
    case: str
    does: str
    area: str
    tests: dict[str, set[str]] = field(default_factory=dict)
    """By test: the letters of its levels."""

    @property
    def levels(self) -> str:
        """The letters of all its tests, in the order of ``LEVELS``."""
        return "".join(letter for letter in LEVELS if any(letter in levels for levels in self.tests.values()))


@dataclass
class List:
    """All cases by id, how many have to have a real test, and what is wrong with the file."""

    cases: dict[int | str, Case]
    real: int
    problems: list[str]

    def areas(self) -> dict[str, list[Case]]:
        """The cases by area, in the order of the file."""
        found: dict[str, list[Case]] = {}
        for case in self.cases.values():
            found.setdefault(case.area, []).append(case)
        return found

    def numbered(self) -> list[Case]:
        """The cases without the rules of bind."""
        return [case for case in self.cases.values() if isinstance(case.id, int)]


def read_list(path: Path) -> List:
    """The list; a broken case is a problem and not an exception."""
    with path.open("rb") as file:
        document = tomllib.load(file)
    found = List({}, document["real"], [])
    for area in document["area"]:
        for entry in area["cases"]:
            case = Case(entry["id"], entry["case"], entry["does"], area["name"])
            if case.id in found.cases:
                found.problems.append(f"{path.name}: {case.id} is there twice")
            found.cases[case.id] = case
        if len(area["cases"]) != area["count"]:
            found.problems.append(
                f"{path.name}: {area['name']} has {len(area['cases'])} cases, not {area['count']}"
            )
    return found


def collect(cases: List, tests: Path) -> list[str]:
    """Enter every test into the cases that it proves. Returns what is wrong with the markers and the coverage."""
    problems: list[str] = []
    adopters = _adopters(tests)
    for path, module in modules(tests, "fault", problems, (int, str)):
        shown = module.shown
        for name, line in module.named:
            if name not in cases.cases:
                problems.append(f"{shown}:{line}: {name!r} is no id of {LIST.name}")
        for one in module.found:
            if strange := set(one.how) - set(LEVELS):
                problems.append(f"{shown}: {one.test} has the level {''.join(sorted(strange))!r}")
            elif not (place := _place(path.relative_to(tests), adopters)):
                problems.append(f"{shown}: {one.test} is of a body that nothing adopts")
            elif one.id in cases.cases:
                cases.cases[one.id].tests.setdefault(one.test, set()).update(place, one.how)
    problems += [f"{case.id}: no test: {case.case}" for case in cases.cases.values() if not case.tests]
    real = len(with_real(cases))
    if real < cases.real:
        problems.append(f"{real} cases have a test on a real QEMU, daemon or kernel, fewer than {cases.real}")
    return problems


def with_real(cases: List) -> list[Case]:
    """The numbered cases that have a test on a real QEMU, daemon or kernel."""
    return [case for case in cases.numbered() if REAL & set(case.levels)]


def _place(path: Path, adopters: dict[str, set[str]]) -> set[str]:
    """The letters that a test has for the place of its file below tests/."""
    match path.parts[0]:
        case "bodies":
            return adopters.get(path.stem, set())
        case "qemu":
            return {"Q"}
        case "vm" | "plugin" | "fleet":
            return {"V"}
    return {"X"} if path.is_relative_to(_TREES[0]) or path.is_relative_to(_TREES[1]) else {"S"}


def _adopters(tests: Path) -> dict[str, set[str]]:
    """By body: the letters of the floors that run it on their cells."""
    found: dict[str, set[str]] = {}
    for floor, letter in (("qemu", "Q"), ("vm", "V")):
        for path in sorted((tests / floor).rglob("*.py")):
            for name in _bodies_of(path):
                found.setdefault(name, set()).add(letter)
    return found


def _bodies_of(path: Path) -> Iterator[str]:
    """The bodies that a module imports, to adopt them."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # told where the markers are read
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "tests.bodies":
            yield from (name.name for name in node.names)


def chosen(cases: List, names: Iterable[str]) -> list[Case]:
    """The cases with these ids. Raises LabError for one that is not there."""
    found = []
    for name in names:
        ident = int(name) if name.isdecimal() else name.upper()
        if ident not in cases.cases:
            raise LabError(f"{name}: no such case in {LIST.relative_to(CHECKOUT)}; it has 1 to 100, R1 to R18", 2)
        found.append(cases.cases[ident])
    return found


def page(cases: List, text: str) -> str:
    """The page ``text`` with its tables as the tests are now. Raises LabError where the markers are missing."""
    if BEGIN not in text or END not in text:
        raise LabError(f"{PAGE.name} has no {BEGIN} ... {END}", 1)
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n" + "\n".join(_tables(cases)) + f"\n\n{END}{rest.partition(END)[2]}"


def _tables(cases: List) -> Iterator[str]:
    numbered = cases.numbered()
    yield f"{len(numbered)} cases, {len(with_real(cases))} of them with a test on a real QEMU, daemon or kernel."
    yield ""
    yield "| level | | cases |"
    yield "|---|---|---|"
    for letter, about in LEVELS.items():
        yield f"| {letter} | {about} | {sum(letter in case.levels for case in numbered)} |"
    for area, its in cases.areas().items():
        yield ""
        yield f"### {area}"
        yield ""
        yield "| # | case | uvirtio | tests |"
        yield "|---|---|---|---|"
        for case in its:
            tests = "<br>".join(_by_level(case)) or "none"
            yield f"| {case.id} | {_cell(case.case)} | {_cell(case.does)} | {tests} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _by_level(case: Case) -> Iterator[str]:
    """The tests of one case, those of the same levels behind their letters."""
    groups: dict[str, list[str]] = {}
    for test, levels in case.tests.items():
        groups.setdefault(" ".join(letter for letter in LEVELS if letter in levels), []).append(_short(test))
    for letters in sorted(groups, key=lambda letters: list(LEVELS).index(letters[0])):
        yield f"**{letters}** {', '.join(f'`{name}`' for name in groups[letters])}"


def _short(test: str) -> str:
    """``test_device::a_slow_reset_is_waited_for`` for a node id: a file's name is enough to find it."""
    path, _, name = test.partition("::")
    return f"{Path(path).stem.removeprefix('test_')}::{name.removeprefix('test_')}"
