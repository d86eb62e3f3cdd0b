"""Programs that this process starts and ends (``uvirtio.backends.child``)."""

from __future__ import annotations

import os
import signal

from uvirtio.backends.child import ChildProcess


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
