"""Docstrings in Google style, which tools can lift: each public name has one, and its sections say what is so."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import uvirtio
from uvirtio import errors

PACKAGE = Path(uvirtio.__file__).parent

SECTIONS = {"Args", "Attributes", "Raises", "Returns", "Yields"}
"""Google's sections that are used here."""

MISNAMED = {"Arguments", "Parameters", "Params", "Return", "Raise", "Yield", "Exceptions", "Throws", "Attribute"}

ROLE = re.compile(r":(?:\w+:)?\w+:`")
_HEADING = re.compile(r"([A-Z]\w+):")
_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \w+)*): \S.*")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


def sections(doc: str) -> dict[str, list[str]]:
    """The lines of each section of a clean docstring, without the indent of the section."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in doc.splitlines():
        if line.strip() and not line.startswith(" "):
            heading = _HEADING.fullmatch(line)
            lines = found.setdefault(heading[1], []) if heading and heading[1] in SECTIONS else None
        elif lines is not None and line.strip():
            lines.append(line.removeprefix("    "))
    return found


def entries(lines: list[str]) -> Iterator[str]:
    """The names before the colons of a section's entries; a line that is no entry as it stands."""
    for line in lines:
        if not line.startswith(" "):  # else it continues the entry above
            entry = _ENTRY.fullmatch(line)
            yield from entry[1].split(", ") if entry else [line]


def _own_exceptions(tree: ast.Module) -> set[str]:
    """The exceptions that the module defines, or takes from a neighbour, which are no errors of the library."""
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(_is_exception(ast.unparse(base)) for base in node.bases)
    }
    taken = [
        (node.module, one.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uvirtio.conform.")
        for one in node.names
    ]
    return defined | {name for module, name in taken if _raised(module, name)}


def _raised(module: str, name: str) -> bool:
    kind = getattr(importlib.import_module(module), name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _is_exception(name: str) -> bool:
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _parameters(node: Documented) -> set[str]:
    if isinstance(node, ast.ClassDef):  # a dataclass: its fields
        return {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and _named(one.target)}
    if isinstance(node, ast.Module):
        return set()
    args = node.args
    names = {arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
    names |= {f"*{args.vararg.arg}"} if args.vararg else set()
    return (names | ({f"**{args.kwarg.arg}"} if args.kwarg else set())) - {"self", "cls"}


def _named(target: ast.expr) -> bool:
    return isinstance(target, ast.Name)


def _has_init(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(getattr(one, "name", "") == "__init__" for one in node.body)


def _needs_one(node: Documented) -> bool:
    if isinstance(node, ast.Module):
        return True
    # Overloads and setters are documented where the function or the property is.
    elsewhere = {ast.unparse(one).rpartition(".")[2] for one in node.decorator_list} & {"overload", "setter"}
    return not node.name.startswith("_") and not elsewhere


def walk(node: ast.Module | ast.ClassDef, path: str = "") -> Iterator[tuple[str, Documented]]:
    """The module, its classes and functions, and what is in its classes; nothing that is in a function."""
    yield path or "the module", node
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from walk(child, f"{path}.{child.name}".lstrip("."))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path}.{child.name}".lstrip("."), child


def problems(source: str) -> list[str]:
    """What breaks a rule in this module, each with the name or the line that it is at."""
    tree = ast.parse(source)
    own = _own_exceptions(tree)
    found = []
    for name, node in walk(tree):
        doc = ast.get_docstring(node)
        if doc is None:
            if _needs_one(node):
                found.append(f"{name}: no docstring")
            continue
        parts = sections(doc)
        for error in entries(parts.get("Raises", [])):
            if error not in own and not _is_exception(error):
                found.append(f"{name}: Raises: {error!r} is no class of uvirtio.errors and none of Python's")
        if "Args" in parts and _has_init(node):
            found.append(f"{name}: Args: belongs to __init__")
        for argument in entries(parts.get("Args", [])):
            if argument not in _parameters(node):
                found.append(f"{name}: Args: {argument!r} is no parameter")
        found += [f"{name}: {section}: is empty" for section, lines in parts.items() if not lines]
    for line, text in _strings(tree):
        if ROLE.search(text):
            found.append(f"line {line}: a role: {ROLE.search(text)[0]}...`")  # type: ignore[index]
        prose = [one for one in text.splitlines() if re.search(r"\bRaises\b", one) and one.strip() != "Raises:"]
        found += [f"line {line}: Raises outside of a section: {one.strip()!r}" for one in prose]
        wrong = [one for one in text.splitlines() if one.removesuffix(":") in MISNAMED and one.endswith(":")]
        found += [f"line {line}: {one} is no section of ours" for one in wrong]
    return found


def _strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every docstring, that of an attribute or a constant too: each string that is a statement of its own."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.lineno, inspect.cleandoc(value.value)


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "uvirtio"


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_s_docstrings_follow_the_rules(name: str):
    assert not problems(MODULES[name].read_text(encoding="utf-8"))


GOOD = '''
"""A module."""

class Own(BaseException):
    """An exception of this module's own."""

class Thing:
    """A thing."""

    size: int
    """Bytes."""

    def __init__(self, size: int, *rest: int, **more: int) -> None:
        """Make it.

        Args:
            size: Bytes; a long line
                goes on here: and has a colon.
            *rest: The rest.
            **more: More.

        Raises:
            BadSize, OSError: It is wrong.
            Closed: It is closed.
            Own: It is the module's own.
        """

    @property
    def state(self) -> int:
        """Its state."""

    @state.setter
    def state(self, value: int) -> None:
        self._state = value

    def _private(self) -> None:
        def inner() -> None: ...

@dataclass
class Pair:
    """A pair.

    Args:
        first: The first.
    """

    first: int
'''


def test_good_docstrings_pass():
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"""A module."""\n', "", "the module: no docstring"),
        ('    """A thing."""\n', "", "Thing: no docstring"),
        ('        """Its state."""\n', "        return 0\n", "Thing.state: no docstring"),
        ('"""Its state."""', '"""Its state; see :meth:`close`."""', "a role: :meth:`...`"),
        ('"""Bytes."""', '"""Bytes, as in :py:func:`len`."""', "a role: :py:func:`...`"),
        ('"""Its state."""', '"""Its state. Raises Closed."""', "Raises outside of a section"),
        ('"""Its state."""', '"""Its state.\n\n        Raises Closed, BadSize.\n        """', "Raises outside"),
        ("BadSize, OSError: It", "BadSize, Nothing: It", "Raises: 'Nothing' is no class"),
        ("Closed: It is", "What memory raises: It is", "Raises: 'What memory raises: It is closed.' is no class"),
        ("Closed: It is closed.", "Path: It is closed.", "Raises: 'Path' is no class"),
        ("Own: It is", "Thing: It is", "Raises: 'Thing' is no class"),
        ("Closed: It is closed.", "len: It is closed.", "Raises: 'len' is no class"),
        ("size: Bytes; a", "length: Bytes; a", "Thing.__init__: Args: 'length' is no parameter"),
        ("*rest: The", "rest: The", "Thing.__init__: Args: 'rest' is no parameter"),
        ("first: The", "second: The", "Pair: Args: 'second' is no parameter"),
        (
            '    """A thing."""',
            '    """A thing.\n\n    Args:\n        size: Bytes.\n    """',
            "Thing: Args: belongs to __init__",
        ),
        ("        Args:\n", "        Parameters:\n", "Parameters: is no section of ours"),
        ('"""Its state."""', '"""Its state.\n\n        Returns:\n        """', "Thing.state: Returns: is empty"),
    ],
)
def test_a_broken_rule_is_found(old: str, new: str, said: str):
    assert GOOD.count(old) == 1
    assert any(said in problem for problem in problems(GOOD.replace(old, new)))
