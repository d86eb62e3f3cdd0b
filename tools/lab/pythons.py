"""Other interpreters than the distribution's own, for ``tools/test --python``: found and asked, never fetched.

What fetches some is debian_pythons.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import LabError

OLDEST = (3, 11)
_ASK = """
import json, platform, sys, sysconfig
free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print(json.dumps([platform.python_implementation(), list(sys.version_info[:3]), free, sys.version]))
"""


class NotHere(LabError):
    """This machine has no interpreter of that version, or name."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One that answers."""

    path: Path
    implementation: str
    version: tuple[int, int, int]
    free_threaded: bool
    build: str
    """All that it says of itself: another build wants another environment."""

    def __str__(self) -> str:
        return ".".join(map(str, self.version)) + ("t" if self.free_threaded else "")


def find(wanted: str) -> Interpreter:
    """``wanted``: a version (3.13; 3.14t for free threads), a program's name (python3.13), or a path.

    A version is looked for in PATH, then where pyenv and uv keep theirs. Raises LabError; NotHere: there is none.
    """
    if "/" in wanted:
        found = _ask(Path(wanted))
        if found is None:
            raise LabError(f"--python {wanted}: no Python that runs there{_remedy()}", 2)
        return _supported(found, wanted)
    version = re.fullmatch(r"(?:python)?(\d+(?:\.\d+)*)(t?)", wanted)
    name = f"python{version[1]}{version[2]}" if version else wanted
    for path in _places(name):
        found = _ask(path)
        if found is None:  # one of pyenv's shims, for a version that is not active, says no
            continue
        if version is None or _is(found, version[1], free=bool(version[2])):
            return _supported(found, wanted)
    raise NotHere(
        f"--python {wanted}: there is no {name} in PATH, nor where pyenv and uv keep theirs{_remedy()}", 2
    )


def _is(found: Interpreter, version: str, *, free: bool) -> bool:
    numbers = tuple(int(part) for part in version.split("."))
    return found.version[: len(numbers)] == numbers and found.free_threaded == free


def _supported(found: Interpreter, wanted: str) -> Interpreter:
    if found.implementation != "CPython" or found.version[:2] < OLDEST:
        raise LabError(
            f"--python {wanted}: {found.path} is {found.implementation} {found};"
            f" CPython {'.'.join(map(str, OLDEST))} or later is needed{_remedy()}",
            2,
        )
    return found


def _remedy() -> str:
    there: dict[str, Path] = {}
    for path in _places("python3", *(f"python3.{minor}" for minor in range(OLDEST[1], OLDEST[1] + 10))):
        found = _ask(path)
        if found is not None and found.implementation == "CPython" and found.version[:2] >= OLDEST:
            there.setdefault(str(found), path)
    listed = ", ".join(f"{name} ({path})" for name, path in there.items())
    return f"\nhere are: {listed or 'none'}\ninstall it, in any way, and name it: --python /path/to/python"


def _places(*names: str) -> Iterator[Path]:
    """The files of these names in PATH, and then of pyenv's and uv's versions, the newest first."""
    home = Path.home()
    kept = [
        Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions",
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python"),
    ]
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(":") if folder]
    for top in kept:
        folders += sorted((one / "bin" for one in top.glob("*")), key=_numbers, reverse=True)
    for folder in folders:
        yield from (folder / name for name in names if os.access(folder / name, os.X_OK))


def _numbers(path: Path) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", path.parent.name)]


def _ask(path: Path) -> Interpreter | None:
    """What the program says it is; None if it does not run, or is no Python."""
    try:
        done = subprocess.run(
            [str(path), "-I", "-c", _ASK], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
        implementation, version, free, build = json.loads(done.stdout)
        return Interpreter(path.absolute(), implementation, tuple(version), free, build)
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired):
        return None
