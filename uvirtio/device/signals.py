"""Signals while a device is being left: a second Ctrl-C must not interrupt the cleanup, whose time is bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # of CPython: what the module signal makes enums of


@contextmanager
def signals_held() -> Iterator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP until the end of the block, and raise them again there.

    A signal mask is not enough: another thread takes the signal then, and its handler still runs in the main
    thread. In other threads no handler runs, nor in a subinterpreter, so there is nothing to defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    held = {number: one for number, one in before.items() if one not in (signal.SIG_IGN, None)}
    try:
        try:
            for number in held:
                signal.signal(number, lambda number, _frame: came.append(number))
        except ValueError as error:  # or what a handler raised
            if "main interpreter" not in str(error):
                raise
            held.clear()  # a subinterpreter: at the first one, so that none is to come back
        yield
    finally:
        # A handler that is back may raise before the others are; each must come back all the same.
        try:
            _give_back(held)
        finally:
            try:
                _give_back(held)
            finally:
                _give_back(held)
                _raise(came)


def _give_back(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _raise(came: list[int]) -> None:
    """Raise each of these signals, also where the handler of one before raises an exception."""
    if came:
        try:
            signal.raise_signal(came[0])
        finally:
            _raise(came[1:])
