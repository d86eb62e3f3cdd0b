"""The end of a command after ``--for SECONDS``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.device import Device


class TimeUp(BaseException):
    """The time of ``--for`` is over; raised by the wait loop. A BaseException, so that it is no failure."""


@contextmanager
def time_up_after(device: Device, limit: float | None) -> Iterator[None]:
    """Interrupt the wait loop of a device after a time.

    Args:
        device: Its wait loop raises ``TimeUp`` inside the block.
        limit: Seconds; None: never.
    """
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
