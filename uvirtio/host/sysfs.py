"""Reading sysfs and proc without being surprised.

What is missing, unreadable, garbage or gone between two reads is None (or empty): devices come and go while
we look, and an ordinary user sees less than root. Nothing here writes.
"""

from __future__ import annotations

import os
from pathlib import Path

_LIMIT = 1 << 20
"""No attribute file is longer; a longer one is not read to its end."""


def read(path: Path, limit: int = _LIMIT) -> str | None:
    """The text of a file, stripped of white space and NULs at its ends; None where it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            pieces = []
            left = limit
            while left > 0 and (piece := file.read(min(left, 65536))):
                pieces.append(piece)
                left -= len(piece)
    except (OSError, ValueError):
        return None
    return b"".join(pieces).decode("utf-8", errors="replace").strip(" \t\r\n\0")


def lines(path: Path) -> list[str] | None:
    """The lines of a file; None where it cannot be read."""
    text = read(path, 16 * _LIMIT)
    return None if text is None else text.splitlines()


def number(path: Path) -> int | None:
    """A number as sysfs writes it (``0x1af4``, ``-1``, ``12``); None for anything else."""
    text = read(path, 64)
    if not text:
        return None
    try:
        return int(text, 0)
    except ValueError:
        return None


def link_name(path: Path) -> str | None:
    """The last part of what a link points to: the name of a driver, a group, a subsystem."""
    try:
        target = path.readlink()
    except (OSError, ValueError):
        return None
    return target.name or None


def names(path: Path) -> list[str]:
    """The names in a directory, sorted; none where it cannot be listed."""
    try:
        return sorted(entry.name for entry in path.iterdir())
    except (OSError, ValueError):
        return []


def override(directory: Path) -> str | None:
    """``driver_override`` of a device; None where there is none set (the kernel then writes ``(null)``)."""
    text = read(directory / "driver_override", 4096)
    return None if not text or text == "(null)" else text


def real(path: Path) -> Path:
    """The path behind all links; the path itself where that cannot be told."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return path


def below(top: Path, limit: int = 5000, depth: int = 12) -> list[Path]:
    """Every directory at or below ``top``, links not followed; at most ``limit`` of them."""
    found: list[Path] = []
    pending = [(top, 0)]
    while pending and len(found) < limit:
        here, level = pending.pop()
        found.append(here)
        if level >= depth:
            continue
        try:
            with os.scandir(here) as entries:
                children = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        except OSError:
            continue
        pending.extend((here / name, level + 1) for name in reversed(children))
    return found
