"""docs/conformance.toml against the tests: which requirements of virtio 1.4 are covered, reasoned away, open.

A test covers a requirement by carrying its id, @pytest.mark.spec("STAT-01", ...): on a function, on a class, in
pytestmark, or in the marks of a pytest.param. The tests are parsed, not imported, so the ids have to be string
literals. A test that is always skipped, or expected to fail, covers nothing.
"""

from __future__ import annotations

import ast
import difflib
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab import CHECKOUT, LabError

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


def mark_name(node: ast.expr) -> str | None:
    """``spec`` for ``pytest.mark.spec`` and for ``mark.spec(...)``; None for anything else."""
    if isinstance(node, ast.Call):
        node = node.func
    if not isinstance(node, ast.Attribute):
        return None
    owner = node.value
    if (isinstance(owner, ast.Attribute) and owner.attr == "mark") or (
        isinstance(owner, ast.Name) and owner.id == "mark"
    ):
        return node.attr
    return None


def is_call_of(node: ast.expr, name: str) -> bool:
    """Whether ``node`` calls ``pytest.<name>`` or the bare name."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr == name and isinstance(function.value, ast.Name) and function.value.id == "pytest"
    return isinstance(function, ast.Name) and function.id == name


def proves_nothing(mark: ast.expr) -> bool:
    """Whether the mark keeps its test from running, or from having to pass, in all circumstances."""
    name = mark_name(mark)
    if name == "skip":
        return True
    arguments = mark.args if isinstance(mark, ast.Call) else []
    if name == "skipif":
        return bool(arguments) and isinstance(arguments[0], ast.Constant) and bool(arguments[0].value)
    if name == "xfail":
        conditions = arguments + [
            word.value for word in (mark.keywords if isinstance(mark, ast.Call) else []) if word.arg == "condition"
        ]
        return not conditions or (isinstance(conditions[0], ast.Constant) and bool(conditions[0].value))
    return False


class Module:
    """The markers of one test module.

    ``found`` is (id, test) of every test that counts; ``named`` is every id that was written, counting or not.
    """

    def __init__(self, path: Path, shown: str) -> None:
        self.shown = shown
        self.found: list[tuple[str, str]] = []
        self.named: list[tuple[str, int]] = []
        self.problems: list[str] = []
        self._seen: set[int] = set()
        self._tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        self._names = self._assignments(self._tree.body)
        skipped = any(
            isinstance(statement, ast.Expr) and is_call_of(statement.value, "skip")
            for statement in self._tree.body
        )
        marks = list(self._flat(self._names.get("pytestmark")))
        self._tests(self._tree.body, shown, marks, skipped)
        self._leftovers()

    @staticmethod
    def _assignments(body: list[ast.stmt]) -> dict[str, ast.expr]:
        names: dict[str, ast.expr] = {}
        for statement in body:
            if isinstance(statement, ast.Assign):
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        names[target.id] = statement.value
            elif (
                isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value
            ):
                names[statement.target.id] = statement.value
        return names

    def _flat(self, node: ast.expr | None, depth: int = 0) -> Iterator[ast.expr]:
        """A mark, or the marks of a list or tuple; names of this module are looked up."""
        if node is None or depth > 8:
            return
        if isinstance(node, ast.List | ast.Tuple):
            for element in node.elts:
                yield from self._flat(element, depth + 1)
        elif isinstance(node, ast.Name) and node.id in self._names:
            yield from self._flat(self._names[node.id], depth + 1)
        else:
            yield node

    def _tests(self, body: list[ast.stmt], prefix: str, outer: list[ast.expr], skipped: bool) -> bool:
        """Every test below ``body``; True if one of them counts. ``outer``: the marks of what is around."""
        skipped = skipped or any(map(proves_nothing, outer))
        any_counts = False
        for statement in body:
            if isinstance(statement, ast.If | ast.Try | ast.With):
                any_counts |= self._tests(statement.body, prefix, [], skipped)
                any_counts |= self._tests(getattr(statement, "orelse", []), prefix, [], skipped)
            elif isinstance(statement, ast.ClassDef) and statement.name.startswith("Test"):
                own = [mark for decorator in statement.decorator_list for mark in self._flat(decorator)]
                own += self._flat(self._assignments(statement.body).get("pytestmark"))
                any_counts |= self._tests(statement.body, f"{prefix}::{statement.name}", own, skipped)
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name.startswith(
                "test"
            ):
                any_counts |= self._test(statement, prefix, skipped)
            elif isinstance(statement, ast.Assign):
                any_counts |= self._applied(statement, prefix, skipped)
        # The marks around are read once, and stand for the tests inside them.
        self._spec_marks(outer, prefix, any_counts)
        return any_counts

    def _test(self, test: ast.FunctionDef | ast.AsyncFunctionDef, prefix: str, skipped: bool) -> bool:
        name = f"{prefix}::{test.name}"
        marks = [mark for decorator in test.decorator_list for mark in self._flat(decorator)]
        first = next((line for line in test.body if not self._is_docstring(line)), None)
        counts = (
            not skipped
            and not any(map(proves_nothing, marks))
            and not (isinstance(first, ast.Expr) and is_call_of(first.value, "skip"))
        )
        self._spec_marks(marks, name, counts)
        for mark in marks:
            if mark_name(mark) == "parametrize" and isinstance(mark, ast.Call):
                for argument in (*mark.args[1:], *(word.value for word in mark.keywords)):
                    for parameters in self._flat(argument):
                        self._params(parameters, name, counts)
        return counts

    def _applied(self, statement: ast.Assign, prefix: str, skipped: bool) -> bool:
        """``TestMachine = pytest.mark.spec("A-01")(Machine.TestCase)``: marks called on what they mark."""
        target, value = statement.targets[0], statement.value
        marks = []
        while (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Call)
            and mark_name(value.func)
            and value.args
        ):
            marks.append(value.func)
            value = value.args[0]
        if not marks or not isinstance(target, ast.Name) or not target.id.lower().startswith("test"):
            return False
        counts = not skipped and not any(map(proves_nothing, marks))
        self._spec_marks(list(marks), f"{prefix}::{target.id}", counts)
        return counts

    @staticmethod
    def _is_docstring(line: ast.stmt) -> bool:
        return (
            isinstance(line, ast.Expr)
            and isinstance(line.value, ast.Constant)
            and isinstance(line.value.value, str)
        )

    def _params(self, node: ast.expr, test: str, counts: bool) -> None:
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and is_call_of(call, "param"):
                for word in call.keywords:
                    if word.arg == "marks":
                        marks = list(self._flat(word.value))
                        self._spec_marks(marks, test, counts and not any(map(proves_nothing, marks)))

    def _spec_marks(self, marks: list[ast.expr], test: str, counts: bool) -> None:
        for mark in marks:
            if mark_name(mark) != "spec" or not isinstance(mark, ast.Call):
                continue
            new = id(mark) not in self._seen
            self._seen.add(id(mark))
            if not mark.args:
                self.problems.append(f"{self.shown}:{mark.lineno}: a spec marker without an id")
            for argument in mark.args:
                if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                    self.problems.append(f"{self.shown}:{argument.lineno}: an id has to be a string literal")
                    continue
                if new:
                    self.named.append((argument.value, argument.lineno))
                if counts:
                    self.found.append((argument.value, test))

    def _leftovers(self) -> None:
        """Markers that were not reached from any test: written in vain, or in a form not understood here."""
        reached = {
            id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call) and id(node) in self._seen
        }
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute) and mark_name(node) == "spec" and id(node) not in reached:
                self.problems.append(f"{self.shown}:{node.lineno}: a spec marker that marks no test")


def collect(table: Table, tests: Path) -> list[str]:
    """Enter every test into the rows that it covers. Returns what is wrong with the markers."""
    problems: list[str] = []
    for path in sorted(tests.rglob("*.py")):
        shown = str(path.relative_to(tests.parent))
        try:
            module = Module(path, shown)
        except (SyntaxError, UnicodeDecodeError) as error:
            problems.append(f"{shown}: cannot be parsed: {error}")
            continue
        problems += module.problems
        for name, line in module.named:
            if name not in table.rows:
                problems.append(f"{shown}:{line}: {name!r} is no id of the table")
        for name, test in module.found:
            if name in table.rows and test not in table.rows[name].tests:
                table.rows[name].tests.append(test)
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
