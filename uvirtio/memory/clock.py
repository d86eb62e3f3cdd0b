"""The clock of a device: this machine's, unless its back end keeps another time (a replay of a record)."""

from __future__ import annotations

import select
import time

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.clock import Clock


class HostClock:
    """This machine's clock, sleep and sets of file descriptors. Satisfies ``Clock``."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    epoll = staticmethod(select.epoll)
    poll = staticmethod(select.poll)

    @staticmethod
    def random() -> float:
        """Return a random number from 0.0 up to 1.0."""
        import random  # here: it loads hashlib

        return random.random()


def clock_of(transport: object) -> Clock:
    """Return the clock of the device behind a transport.

    Args:
        transport: The transport, whose back end may keep a time of its own.
    """
    kept: Clock | None = getattr(getattr(transport, "backend", None), "clock", None)  # see ``KeepsTime``
    return HostClock() if kept is None else kept
