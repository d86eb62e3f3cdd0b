"""What to do about a limit that was reached: it is a command that raises the limit from where it is."""

from __future__ import annotations

import errno
import resource
import subprocess

import pytest

from uvirtio.errors import NotSupported
from uvirtio.host import limits


@pytest.mark.parametrize(("soft", "hard"), [(32, 96), (32, 32), (1024, resource.RLIM_INFINITY)])
def test_the_remedy_raises_the_limit_or_says_who_may(
    soft: int, hard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    error = limits.reached(OSError(errno.EMFILE, "too many"), "it cannot be opened")
    assert error is not None and error.seen == f"RLIMIT_NOFILE {soft}" and error.remedy is not None
    why, _, command = error.remedy.partition(": ")
    if soft == hard:
        assert "as root" in why and command == "ulimit -n 64"
        return
    assert "as root" not in why
    script = f"ulimit -S -n 32 && {command} && ulimit -n"
    told = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True, timeout=60).stdout
    assert int(told) > 32


def test_a_limit_of_the_machine_is_told_from_one_of_the_process_and_from_other_errors() -> None:
    error = limits.reached(OSError(errno.ENFILE, "too many"), "it cannot be opened")
    assert error is not None and error.message == "it cannot be opened: this machine has too many open files"
    assert limits.reached(OSError(errno.ENOENT, "none"), "it cannot be opened") is None


def test_where_no_limit_is_set_it_is_memory_that_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    error = limits.reached(OSError(errno.EMFILE, "too many"), "it cannot be opened")
    assert error is not None and error.seen == "no RLIMIT_NOFILE" and "ulimit" not in str(error.remedy)


@pytest.mark.parametrize(
    "said",
    [
        "thread is not supported for isolated subinterpreters",
        "daemon threads are disabled in this (sub)interpreter",
        "fork not supported for isolated subinterpreters",
    ],
)
def test_a_subinterpreter_that_may_start_nothing_is_told(said: str):
    error = limits.no_task(RuntimeError(said), "it cannot be collected")
    assert isinstance(error, NotSupported) and error.seen == said
    assert limits.no_task(RuntimeError("can't create new thread at interpreter shutdown"), "it") is None
