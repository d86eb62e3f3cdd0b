"""Programs of another Debian release that were unpacked and not installed.

Each is started by the dynamic loader and with the libraries that came with it, from a script under its own name:
to have the folder of these scripts in PATH is to have the programs.
"""

from __future__ import annotations

import shlex
from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"


def script(root: Path, program: Path, *words: str | Path, loader: Path | None = None, setting: str = "") -> str:
    """The script that runs ``program`` with the libraries below ``root``, and ``words`` before its own arguments.

    ``loader``: what starts it, by default the link that ``place`` makes; ``setting``: a line before it.
    """
    start = [root / "loaders" / program.name if loader is None else loader, "--library-path", root / LIBRARIES]
    first, *rest = [shlex.quote(str(word)) for word in (*start, program, *words)]
    return f'#!/bin/sh\n{setting}exec {first} --argv0 "$0" {" ".join(rest)} "$@"\n'


def place(work: Path, name: str, text: str) -> None:
    """Write a program's script to ``programs/NAME`` below ``work``, and link its loader as ``loaders/NAME``."""
    for folder in ("loaders", "programs"):
        (work / folder).mkdir(exist_ok=True)
    # The kernel names a process by the file that it started, and that is the loader.
    (work / "loaders" / name).symlink_to(f"../{LOADER}")
    write(work / "programs" / name, text)


def write(path: Path, text: str) -> None:
    """Write a script that can be run."""
    path.write_text(text)
    path.chmod(0o755)
