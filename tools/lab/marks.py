"""The markers of the tests that name what a test proves, read without importing the tests.

A test proves something by carrying its id, @pytest.mark.spec("STAT-01", ...) or @pytest.mark.fault(37): on a
function, on a class, in pytestmark, or in the marks of a pytest.param. The tests are parsed, not imported, so the
ids have to be literals. A test that is always skipped, or expected to fail, proves nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """One id on one test that counts."""

    id: str | int
    test: str
    how: str
    """``F``: a property test (hypothesis' ``given``); ``H``: a state machine; and the marker's ``level=``."""


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


def _is_given(node: ast.expr) -> bool:
    """Whether this decorator is hypothesis' ``given(...)``."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    return getattr(function, "attr", getattr(function, "id", "")) == "given"


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


def modules(
    tests: Path, marker: str, problems: list[str], kinds: tuple[type, ...] = (str,)
) -> Iterator[tuple[Path, Module]]:
    """The test modules below a folder, with their markers of one name.

    Args:
        tests: The folder.
        marker: The name of the marker: ``spec``.
        problems: Gets what is wrong with the markers, and modules that cannot be parsed.
        kinds: Of which types its ids are.
    """
    for path in sorted(tests.rglob("*.py")):
        shown = str(path.relative_to(tests.parent))
        try:
            module = Module(path, shown, marker, kinds)
        except (SyntaxError, UnicodeDecodeError) as error:
            problems.append(f"{shown}: cannot be parsed: {error}")
            continue
        problems += module.problems
        yield path, module


class Module:
    """The markers of one name in one test module.

    ``found`` is every id of every test that counts; ``named`` is every id that was written, counting or not.
    """

    def __init__(self, path: Path, shown: str, marker: str, kinds: tuple[type, ...] = (str,)) -> None:
        """Read a module.

        Args:
            path: The module.
            shown: Its name in problems and in the names of tests.
            marker: The name of the marker: ``spec``.
            kinds: Of which types its ids are.
        """
        self.shown = shown
        self.marker, self.kinds = marker, kinds
        self.found: list[Found] = []
        self.named: list[tuple[str | int, int]] = []
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
        self._read(outer, prefix, any_counts)
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
        how = "F" if any(_is_given(mark) for mark in marks) else ""
        self._read(marks, name, counts, how)
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
        self._read(list(marks), f"{prefix}::{target.id}", counts, "H")
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
                        self._read(marks, test, counts and not any(map(proves_nothing, marks)))

    def _read(self, marks: list[ast.expr], test: str, counts: bool, how: str = "") -> None:
        for mark in marks:
            if mark_name(mark) != self.marker or not isinstance(mark, ast.Call):
                continue
            new = id(mark) not in self._seen
            self._seen.add(id(mark))
            if not mark.args:
                self.problems.append(f"{self.shown}:{mark.lineno}: a {self.marker} marker without an id")
            more = how + self._level(mark)
            for argument in mark.args:
                value = argument.value if isinstance(argument, ast.Constant) else None
                if not isinstance(value, str | int) or type(value) not in self.kinds:
                    kinds = " or ".join({str: "string", int: "number"}[kind] for kind in self.kinds)
                    self.problems.append(f"{self.shown}:{argument.lineno}: an id has to be a {kinds} literal")
                    continue
                if new:
                    self.named.append((value, argument.lineno))
                if counts:
                    self.found.append(Found(value, test, more))

    def _level(self, mark: ast.Call) -> str:
        """The letters of ``level=``; none without one."""
        for word in mark.keywords:
            if word.arg == "level" and isinstance(word.value, ast.Constant) and isinstance(word.value.value, str):
                return word.value.value
            self.problems.append(f"{self.shown}:{mark.lineno}: a {self.marker} marker with {word.arg!r}")
        return ""

    def _leftovers(self) -> None:
        """Markers that were not reached from any test: written in vain, or in a form not understood here."""
        reached = {
            id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call) and id(node) in self._seen
        }
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute) and mark_name(node) == self.marker and id(node) not in reached:
                self.problems.append(f"{self.shown}:{node.lineno}: a {self.marker} marker that marks no test")
