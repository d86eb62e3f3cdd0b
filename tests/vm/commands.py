"""``uvirtio`` as a person types it, for tests in the VM: forked from one process that has loaded it already.

``program`` starts the installed program itself: for what must not be forked (another user's process), and for one
test of each kind, so that what is forked is seen to be what is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from lab.commands import Command, Commands

from uvirtio.host import capabilities

PATIENCE = 60
PROGRAM = str(Path(sys.executable).with_name("uvirtio"))
USER = ("setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups", "--")

Done = subprocess.CompletedProcess[str]


@cache
def commands() -> Commands:
    """The process that forks; conftest.py has it made before the first test, and ends it."""
    return Commands.fork()


def uvirtio(*words: str) -> Done:
    """One command, run to its end."""
    return commands().run(*words, timeout=PATIENCE)


def program(*words: str, prefix: Sequence[str] = ()) -> Done:
    """The same by the installed program, perhaps started by another (``USER``)."""
    return subprocess.run(
        [*prefix, PROGRAM, *words], capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
    )


@contextmanager
def running(*words: str, merged: bool = True) -> Iterator[Command]:
    """A command in the background, in a session of its own; killed at the end if it still runs."""
    child = commands().start(*words, merged=merged)
    try:
        yield child
    finally:
        child.close()


def rights(pid: int) -> set[str]:
    """The capabilities of a process that are in effect, as the kernel shows them."""
    (word,) = re.findall(r"^CapEff:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return {capabilities.name(one) for one in range(64) if int(word, 16) >> one & 1}


def read_until(child: Command, pattern: str) -> str:
    """The output up to a line that matches."""
    seen = ""
    for line in child.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"no {pattern!r} in {seen!r}")
