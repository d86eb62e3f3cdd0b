"""Fields of the device configuration that belong together, from a device that may change them meanwhile (2.5)."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from uvirtio.errors import ConfigUnstable
from uvirtio.interfaces.transport import Transport

T = TypeVar("T")

_TRIES, _PATIENCE = 16, 0.5
"""Readings of a configuration that moves before we pause between them, and seconds until we give up. A host that
sweeps a value through a hundred others is busy, not broken; one that never holds still is."""


def snapshot(
    transport: Transport, address: str, read: Callable[[], T], *, check: Callable[[], object], patience: float
) -> T:
    """What ``read`` returns, read between two equal generations (2.5.1); without any, the same twice (2.5.4).

    Args:
        transport: What the configuration is read from.
        address: The device's, for errors.
        read: Reads the fields; called again as long as they move.
        check: Looks whether the device is still there; raises if not.
        patience: Seconds to try, if they are less than half a second.

    Raises:
        ConfigUnstable: The device changed it all the time.
    """
    patience = min(patience, _PATIENCE)
    deadline = time.monotonic() + patience
    for tries in count(1):
        before = transport.generation()
        value = read()
        if before is None:
            if read() == value:
                return value
        elif transport.generation() == before:
            if before == 0xFF:
                check()  # or is it a device that is gone, and answers with ones?
            return value
        if time.monotonic() >= deadline:
            break
        if tries >= _TRIES:
            time.sleep(min(1e-3, patience))
    raise ConfigUnstable(
        f"the configuration of {address} changes faster than it can be read",
        seen=f"something new at each of {tries} reads in {patience:g} s",
        expected="the same generation before and after (2.5.1); without one, the same values twice (2.5.4)",
        remedy="the device is at fault: its configuration must stand still while nothing changes",
    )
