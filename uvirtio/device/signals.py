"""Signals while a device is being left: a second Ctrl-C must not interrupt the cleanup, whose time is bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # of CPython: what the module signal makes enums of


@contextmanager
def signals_held() -> Iterator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP until the end of the block, and raise them again there.

    A signal mask is not enough: another thread takes the signal then, and its handler still runs in the main
    thread. In other threads no handler runs, so there is nothing to defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)
