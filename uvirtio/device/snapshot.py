"""Consistent reads of several configuration fields from a device that may change them meanwhile (2.5)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from uvirtio.errors import ConfigUnstable
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeVar

    from uvirtio.interfaces.clock import Clock
    from uvirtio.interfaces.transport import Transport

    T = TypeVar("T")

_TRIES, _PATIENCE = 16, 0.5
"""Readings of a changing configuration before there is a pause between them, and seconds before giving up. A host
that steps a value through a hundred others is busy, not broken; one that never stops is."""


def snapshot(
    transport: Transport,
    address: str,
    read: Callable[[], T],
    *,
    check: Callable[[], object],
    patience: float,
    clock: Clock,
    sleep: Callable[[float], None],
) -> T:
    """Call ``read`` between two equal generations (2.5.1); without a generation, until two results agree (2.5.4).

    Args:
        transport: What the configuration is read from.
        address: The device's address, for errors.
        read: Reads the fields; called again as long as they change.
        check: Checks that the device is still there; raises if not.
        patience: Seconds to try; at most half a second is used.
        clock: The device's clock.
        sleep: Sleeps for so many seconds between two readings, and may raise to end them (``WaitLoop.pause``).

    Returns:
        What ``read`` returned.

    Raises:
        ConfigUnstable: The device kept changing it.
    """
    patience = min(patience, _PATIENCE)
    deadline = clock.monotonic() + patience
    for tries in count(1):
        before = transport.generation()
        value = read()
        if before is None:
            if read() == value:
                return value
        elif transport.generation() == before:
            if before == 0xFF:
                check()  # a device that is gone reads as all ones
            return value
        if clock.monotonic() >= deadline:
            break
        if tries >= _TRIES:
            sleep(min(1e-3, patience))
    raise ConfigUnstable(
        f"the configuration of {address} changes faster than it can be read",
        seen=f"something new at each of {tries} reads in {patience:g} s",
        expected="the same generation before and after (2.5.1); without one, the same values twice (2.5.4)",
        remedy="the device is at fault: its configuration must stand still while nothing changes",
    )
