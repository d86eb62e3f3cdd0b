"""Child processes that can't outlive us, what a program says, and signals that end us in order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lab import LabError

LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals by which a user or a terminal asks a program to end."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        # nohup, and a shell that puts a command in the background, have it ignore some of these, and that is
        # inherited. A child is in a session of its own, where no terminal sends them; who sends one means it.
        for number in LEAVING:
            signal.signal(number, signal.SIG_DFL)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(127)

    return before_exec


def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, with the signals of LEAVING at their defaults.

    The kernel kills it when the thread that started it ends.
    """
    return subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with(os.getpid()), **options)


def kill(child: subprocess.Popen[bytes]) -> None:
    """End ``child`` and its session at once, and wait for it."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def run(
    command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 900
) -> str:
    """Run a program; its standard output. LabError with what it said if it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )
    if done.returncode:
        raise LabError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


class Interrupted(BaseException):
    """A signal asked us to end; ``code`` is the exit code that says so."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within, the first signal of LEAVING raises Interrupted, so that every ``finally`` runs; more are ignored.

    A lane gets two, the terminal's and its parent's. One that was ignored (nohup) stays ignored.
    """

    def handler(number: int, _frame: FrameType | None) -> None:
        for other in wanted:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)

    wanted = [number for number in LEAVING if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, handler) for number in wanted]
    try:
        yield
    finally:
        for number, old in zip(wanted, before, strict=True):
            signal.signal(number, old)


def to_its_end(command: list[str], **options: Any) -> int:
    """Run a program that talks to the user by itself; its exit code. The first signal of LEAVING ends it."""
    sys.stdout.flush()
    with signals_raise():
        child = start(command, stdin=subprocess.DEVNULL, **options)
        try:
            return child.wait()
        finally:
            kill(child)
