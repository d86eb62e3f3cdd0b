"""Choice of the interrupt mode (4.1.5.1.2, 4.1.4.5): the first that works is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from uvirtio.errors import EnvironmentLack, NotSupported, OperationFailed
from uvirtio.interfaces.values import InterruptMode


def choose_mode(
    address: str,
    modes: Sequence[InterruptMode],
    try_mode: Callable[[InterruptMode], str | None],
    undo: Callable[[], None],
    failures: list[str],
) -> InterruptMode:
    """Set up the first of ``modes`` that works.

    Args:
        address: The device's address, for errors.
        modes: The allowed modes, best first.
        try_mode: Sets up one mode; returns None if it works, else why not.
        undo: Undoes what is set up, completely or partly.
        failures: Emptied; then gets a line for each mode that there is and that failed.

    Raises:
        NotSupported: None of them works; ``seen`` has every reason.
    """
    undo()
    failures.clear()
    tried: list[str] = []
    for mode in modes:
        try:
            why = try_mode(mode)
        except (OperationFailed, EnvironmentLack) as error:  # not on this machine; the next mode may work
            why = str(error)
            failures.append(f"{mode.value}: {why}")
        if why is None:
            return mode
        tried.append(f"{mode.value}: {why}")
        undo()
    raise NotSupported(
        f"{address} works in none of the requested interrupt modes",
        seen="; ".join(tried),
        expected="one that works",
        remedy="allow polling, which always works",
    )
