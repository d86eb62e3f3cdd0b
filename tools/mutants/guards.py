"""Guards of the package, and what can be made of each: deleted, negated, a bound moved by one, a part dropped."""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("virtqueue", "transports", "drivers", "binding", "host")
"""Packages below ``uvirtio/`` that guards are drawn from."""

_NEXT: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_ENDS = (ast.Raise, ast.Return, ast.Continue, ast.Break)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Mutant:
    """One guard, changed."""

    file: str
    """Its path below the checkout."""
    line: int
    function: str
    """The qualified name of the outermost function that it is in."""
    number: int
    """The guard's place among those of its file."""
    change: int
    """The place of the change among those of the guard."""
    before: str
    after: str

    @property
    def part(self) -> str:
        """The package that it is in."""
        return self.file.split("/")[1]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}: if {self.before} -> if {self.after}"


def _guards(tree: ast.Module) -> Iterator[tuple[str, ast.If]]:
    """The guards of a module: conditions whose body leaves, in functions; with the name of the outermost one."""

    def walk(node: ast.AST, name: str, inside: bool) -> Iterator[tuple[str, ast.If]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef) and not inside:
                yield from walk(child, f"{name}{child.name}.", False)
            elif isinstance(child, Function) and not inside:
                yield from walk(child, f"{name}{child.name}", True)
            else:
                if inside and isinstance(child, ast.If) and _leaves(child.body[-1]):
                    yield name, child
                yield from walk(child, name, inside)

    yield from walk(tree, "", False)


def _leaves(last: ast.stmt) -> bool:
    """Whether a body ends by leaving: raise, return, a call that is all there is, a finding that is yielded."""
    return isinstance(last, _ENDS) or (isinstance(last, ast.Expr) and isinstance(last.value, ast.Call | ast.Yield))


def _changes(test: ast.expr) -> Iterator[ast.expr]:
    """What can be made of a condition."""
    yield ast.Constant(False)
    yield ast.UnaryOp(ast.Not(), test)
    for number, node in enumerate(ast.walk(test)):
        if isinstance(node, ast.Compare):
            for place, op in enumerate(node.ops):
                if type(op) in _NEXT:
                    yield _edited(test, number, place)
        elif isinstance(node, ast.BoolOp):
            for place in range(len(node.values)):
                yield _edited(test, number, place)


def _edited(test: ast.expr, number: int, place: int) -> ast.expr:
    """A copy of a condition whose node ``number`` has another bound, or one operand fewer, at ``place``."""
    whole = copy.deepcopy(test)
    node = list(ast.walk(whole))[number]
    if isinstance(node, ast.Compare):
        node.ops[place] = _NEXT[type(node.ops[place])]()
    elif isinstance(node, ast.BoolOp):
        del node.values[place]
        if len(node.values) == 1:
            return _Replaced(node, node.values[0]).visit(whole)  # type: ignore[no-any-return]
    return whole


class _Replaced(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> Any:
        """Replace it, or look further down."""
        return self._new if node is self._old else self.generic_visit(node)


def files(parts: Iterable[str] = PARTS) -> list[str]:
    """The modules that guards are drawn from."""
    found = [path for part in parts for path in sorted((ROOT / "uvirtio" / part).rglob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in found]


def of_file(file: str) -> list[list[Mutant]]:
    """All mutants of a module, those of a guard together."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return [_mutants(file, number, name, guard) for number, (name, guard) in enumerate(_guards(tree))]


def _mutants(file: str, number: int, name: str, guard: ast.If) -> list[Mutant]:
    before = ast.unparse(guard.test)
    return [
        Mutant(file, guard.lineno, name, number, change, before, ast.unparse(made))
        for change, made in enumerate(_changes(guard.test))
    ]


@functools.cache
def _names(text: str) -> tuple[tuple[str, str], ...]:
    """Function and condition of each guard of a module's text."""
    return tuple((name, ast.unparse(guard.test)) for name, guard in _guards(ast.parse(text)))


def drawn(seed: int, count: int, parts: Iterable[str] = PARTS) -> list[Mutant]:
    """So many guards by a seed, each with one change of its own.

    A guard's rank follows from the seed and from what it is known by, so a smaller draw is the beginning of a
    larger one, and guards that come or go elsewhere leave the rest of a draw as it is.

    Args:
        seed: Decides all.
        count: How many.
        parts: The packages to draw from.
    """
    ranked = []
    for file in files(parts):
        seen: Counter[tuple[str, str]] = Counter()
        for number, name in enumerate(_names((ROOT / file).read_text(encoding="utf-8"))):
            seen[name] += 1
            words = "\0".join((str(seed), file, *name, str(seen[name])))
            ranked.append((hashlib.sha256(words.encode()).digest(), file, number))
    ranked.sort()
    trees = {file: list(_guards(ast.parse((ROOT / file).read_text("utf-8")))) for _, file, _ in ranked[:count]}
    chosen = [(rank, _mutants(file, number, *trees[file][number])) for rank, file, number in ranked[:count]]
    return [guard[int.from_bytes(rank[-8:], "big") % len(guard)] for rank, guard in chosen]


def code(mutant: Mutant) -> CodeType:
    """The byte code of the mutant's function, with the change in it."""
    path = ROOT / mutant.file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guard = [guard for _, guard in _guards(tree)][mutant.number]
    guard.test = list(_changes(guard.test))[mutant.change]
    return _compiled(tree, path, mutant.function)


def probed(file: str, function: str, numbers: Collection[int], probe: str) -> CodeType:
    """The byte code of a function whose guards tell what they find.

    Args:
        file: Its module's path below the checkout.
        function: Its qualified name.
        numbers: Which guards of the file.
        probe: The name of a builtin that takes a guard's number and its condition, and returns the latter.
    """
    path = ROOT / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for number, (_, guard) in enumerate(_guards(tree)):
        if number in numbers:
            guard.test = ast.Call(ast.Name(probe, ast.Load()), [ast.Constant(number), guard.test], [])
    return _compiled(tree, path, function)


def _compiled(tree: ast.Module, path: Path, function: str) -> CodeType:
    ast.fix_missing_locations(tree)
    found = _named(compile(tree, str(path), "exec", dont_inherit=True), function)
    assert found is not None, function
    return found


def _named(whole: CodeType, name: str) -> CodeType | None:
    for one in whole.co_consts:
        if isinstance(one, CodeType):
            if one.co_qualname == name:
                return one
            if name.startswith(f"{one.co_qualname}.") and (inner := _named(one, name)) is not None:
                return inner
    return None
