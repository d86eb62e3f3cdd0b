"""Programs that this process starts and ends (``uvirtio.backends.child``)."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

import pytest

from tests.support.descriptors import descriptors, settled
from uvirtio.backends import child as module
from uvirtio.backends.child import ChildProcess
from uvirtio.errors import LimitReached


def test_a_program_that_a_handler_of_this_process_took_is_closed_as_any_other() -> None:
    """As where SIGCHLD is ignored: its PID is free before its keeper knows that it has ended."""
    child = ChildProcess("/bin/sleep", ["60"], [], timeout=10)
    try:
        with child._lock:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            assert not child.exited
            child._signal(signal.SIGTERM)
    finally:
        child.close()
    assert child.exited


def test_no_room_for_a_thread_or_a_process_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object, **__: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def no_thread(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    before = settled()
    monkeypatch.setattr(os, "posix_spawn", no_process)
    with pytest.raises(LimitReached, match="too many threads and processes") as caught:
        ChildProcess("/bin/sleep", ["60"], [], timeout=10)
    assert "RLIMIT_NPROC" in caught.value.seen and "ulimit -u" in str(caught.value.remedy)
    monkeypatch.setattr(module, "start_new_thread", no_thread)
    with pytest.raises(LimitReached, match="too many threads and processes"):
        ChildProcess("/bin/sleep", ["60"], [], timeout=10)
    assert descriptors() == before


def test_what_is_dropped_in_the_keeper_thread_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python collects garbage in whatever thread allocates: a device of this very program may be in it."""
    inside, left, sent = threading.Event(), list[object](), list[object]()
    ring = os.eventfd(0)
    other = os.eventfd(0)

    def as_garbage(status: int) -> int:
        if threading.get_ident() == child._keeper:  # with the lock held
            inside.set()
            child.unwatch(ring)
            os.close(ring)
            child.close()
            left.append(child._closed)
        return 0

    child = ChildProcess("/bin/sleep", ["60"], [], timeout=10)
    child.watch(other)
    child.watch(ring)
    monkeypatch.setattr(os, "waitstatus_to_exitcode", as_garbage)
    before = time.monotonic()
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda *to: sent.append(to))
    kill(child.pid, signal.SIGKILL)
    assert inside.wait(10) and child._ended.wait(10)
    assert left == [True] and child.exited and os.eventfd_read(other) == 1
    assert not sent, "it was waited for, and its PID may be another's"
    assert time.monotonic() - before < 5
    os.close(other)
