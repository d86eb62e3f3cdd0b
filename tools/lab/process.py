"""Child processes that can't outlive us, and signals that end us in order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(127)

    return before_exec


def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own; the kernel kills it when this thread's process ends."""
    return subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with(os.getpid()), **options)


def kill(child: subprocess.Popen[bytes]) -> None:
    """End ``child`` and its session at once, and wait for it."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


class Interrupted(BaseException):
    """A signal asked us to end; ``code`` is the exit code that says so."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP raise Interrupted, so that every ``finally`` runs."""

    def handler(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, handler) for number in wanted]
    try:
        yield
    finally:
        for number, old in zip(wanted, before, strict=True):
            signal.signal(number, old)
