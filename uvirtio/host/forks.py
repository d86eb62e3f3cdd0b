"""Forks whose child runs a few lines of this package and ends by ``os._exit``."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """A with statement for ``os.fork``: no warning, no signal for this thread, and none ever for the child.

    What a signal handler raised in the child would run what the callers do then, a second time. In this process it
    is raised as the statement ends, when the child is known.

    Where a process has threads, CPython warns of forks since 3.12: of locks that a thread held, which such a
    child takes none of. Where warnings are errors, 3.15 raises it when there is a child already: the caller would
    not know of the child, which would go on by itself.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
