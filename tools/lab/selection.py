"""Which tests were asked for: paths and pytest node ids, each on the floor that it lies on."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lab import CHECKOUT, LabError, conformance
from lab.machines import Machine

TESTS = CHECKOUT / "tests"
FLOORS = ("unit", "qemu", "vm")
_USAGE = 2


@dataclass(frozen=True, slots=True)
class Chosen:
    """A folder or a test file below tests/, or some tests of a file."""

    path: Path
    node: str = ""
    """What follows the path in a node id, ``::`` included."""

    def __str__(self) -> str:
        return f"{self.path}{self.node}"

    @property
    def floor(self) -> str:
        """The floor that this lies on."""
        return self.path.relative_to(TESTS).parts[0]

    def has(self, file: Path) -> bool:
        """Whether this is a folder with that file, that file, or a test in it."""
        return self.path == file or self.path in file.parents

    def within(self, file: Path) -> Chosen:
        """The part of this that lies in that file."""
        return self if self.path == file else Chosen(file)


def by_floor(words: Iterable[str]) -> dict[str, list[Chosen]]:
    """PATH arguments, by their floors. Raises LabError for one that names no tests."""
    floors: dict[str, list[Chosen]] = {}
    for word in words:
        for chosen in _chosen(word):
            others = floors.setdefault(chosen.floor, [])
            if chosen not in others:
                others.append(chosen)
    return floors


def of_machine(machine: Machine, chosen: list[Chosen]) -> Machine | None:
    """The machine with those of its test files alone that were chosen; None if it has none of them."""
    files = tuple(file for file in machine.files if any(one.has(file) for one in chosen))
    arguments = dict.fromkeys(str(one.within(file)) for file in files for one in chosen if one.has(file))
    if list(arguments) == [str(file) for file in files]:
        arguments = {}
    return replace(machine, files=files, arguments=tuple(arguments)) if files else None


def dealt(files: Iterable[Path], parts: int) -> list[list[Path]]:
    """The files in so many parts of about one size."""
    made: list[list[Path]] = [[] for _ in range(parts)]
    sizes = {file: file.stat().st_size for file in files}
    for file in sorted(sizes, key=lambda file: (-sizes[file], file)):
        min(made, key=lambda part: sum(sizes[one] for one in part)).append(file)
    return made


def check_requirements(names: list[str]) -> None:
    """Raises LabError for an id that the table of requirements does not have."""
    conformance.found(conformance.read_table(conformance.TABLE), names)


def of_requirements(names: list[str], floors: Iterable[str]) -> dict[str, list[Chosen]]:
    """The files whose tests prove these requirements, by the floors that may run.

    With no floors: all that need no VM. Raises LabError for an id that the table does not have, and where no test
    of those floors proves one.
    """
    table = conformance.read_table(conformance.TABLE)
    rows = conformance.found(table, names)
    conformance.collect(table, conformance.TESTS)
    found: dict[str, list[Chosen]] = {}
    for row in rows:
        for file in dict.fromkeys(CHECKOUT / test.partition("::")[0] for test in row.tests):
            for chosen in map(Chosen, _adopters() if TESTS / "bodies" in file.parents else [file]):
                others = found.setdefault(chosen.floor, [])
                if chosen not in others:
                    others.append(chosen)
    wanted = list(floors) or [floor for floor in FLOORS if floor != "vm"]
    left = {floor: chosen for floor, chosen in found.items() if floor in wanted}
    if not left:
        raise LabError(_unproved(rows, found), _USAGE)
    return left


def _adopters() -> list[Path]:
    """The files that run the bodies on their cells."""
    return [file for floor in FLOORS for file in _files(TESTS / floor) if "tests.bodies" in file.read_text()]


def _unproved(rows: list[conformance.Row], found: Iterable[str]) -> str:
    names = ", ".join(row.id for row in rows)
    if found:
        flags = " or ".join(f"--{floor}" for floor in found)
        return f"{names}: proved on another floor; add {flags}"
    reasons = "".join(f"; {row.id}: {row.reason}" for row in rows if row.reason)
    return f"{names}: no test proves it{reasons}"


def _chosen(word: str) -> list[Chosen]:
    path, sep, node = word.partition("::")
    found = _existing(path)
    if found == TESTS and not sep:
        return [Chosen(TESTS / floor) for floor in FLOORS]
    if not any(found == TESTS / floor or TESTS / floor in found.parents for floor in FLOORS):
        raise LabError(f"{path}: {_elsewhere(found)}", _USAGE)
    if found.is_file() and not (found.name.startswith("test_") and found.suffix == ".py"):
        raise LabError(f"{path}: a helper of the tests, with no test in it; name a file test_*.py", _USAGE)
    if found.is_dir():
        if sep:
            raise LabError(f"{word}: {path} is a folder; write FILE::NAME, or -k NAME for a whole folder", _USAGE)
        if not any(found.rglob("test_*.py")):
            raise LabError(f"{path}: no test_*.py below this folder", _USAGE)
    elif sep:
        _check_name(found, path, node)
    return [Chosen(found, f"{sep}{node}")]


def _existing(path: str) -> Path:
    """The file or folder: seen from here, or else from the checkout. LabError names those like it."""
    for base in (Path.cwd(), CHECKOUT):
        if (base / path).exists():
            return (base / path).resolve()
    files = {str(file.relative_to(CHECKOUT)): file.name for floor in FLOORS for file in _files(TESTS / floor)}
    moved = [one for one, name in files.items() if name == Path(path).name]
    names = difflib.get_close_matches(Path(path).name, list(files.values()), n=4, cutoff=0.6)
    like = moved or [one for one, name in files.items() if name in names]
    hint = f"like it: {', '.join(like)}" if like else "see the folders tests/unit, tests/qemu, tests/vm"
    raise LabError(f"{path}: no such file or folder; {hint}", _USAGE)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("test_*.py"))


def _elsewhere(path: Path) -> str:
    if TESTS / "bodies" in path.parents or path == TESTS / "bodies":
        name = path.stem if path.is_file() else "rng"
        return (
            "bodies are run by the cells that adopt them: tools/test tests/qemu/test_drivers.py -k"
            f" {name.partition('_')[0]}"
        )
    return "not below tests/unit, tests/qemu or tests/vm"


def _check_name(file: Path, path: str, node: str) -> None:
    """LabError if the file has no test of this name. Names that are made at import time are left to pytest."""
    text = file.read_text(encoding="utf-8")
    if "globals()" in text:
        return
    try:
        tree = ast.parse(text, str(file))
    except SyntaxError:
        return  # pytest shows where
    wanted = node.split("[", 1)[0].split("::")[0]
    defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names = [one.name for one in ast.walk(tree) if isinstance(one, defined)]
    names += [one.id for one in ast.walk(tree) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
    if wanted in names:
        return
    tests = [name for name in names if name.lower().startswith("test")]
    like = difflib.get_close_matches(wanted, tests, n=3, cutoff=0.5)
    hint = f"like it: {', '.join(like)}" if like else f"it has: {', '.join(tests[:6])}{', ...' * (len(tests) > 6)}"
    raise LabError(f"{path} has no test {wanted}; {hint}", _USAGE)
