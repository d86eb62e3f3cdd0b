"""``--for SECONDS``: an end that was asked for beforehand, and comes as a signal's does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.device import Device


class TimeUp(BaseException):
    """``--for`` is over; thrown by the wait loop. A BaseException, so that nobody takes it for a failure."""


@contextmanager
def time_up_after(device: Device, limit: float | None) -> Iterator[None]:
    """Inside the block the wait loop of ``device`` raises TimeUp after ``limit`` seconds (None: never)."""
    if limit is None:
        yield
        return
    timer = threading.Timer(limit, device.interrupt, (TimeUp(),))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
