"""The interrupt ladder (4.1.5.1.2, 4.1.4.5): the first rung that holds is taken, and the rest is remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from uvirtio.errors import EnvironmentLack, NotSupported, OperationFailed
from uvirtio.memory.seams import InterruptMode


def climb(
    address: str,
    modes: Sequence[InterruptMode],
    stand: Callable[[InterruptMode], str | None],
    step_off: Callable[[], None],
) -> InterruptMode:
    """The first of ``modes`` that ``stand`` sets up; it returns None for that, else why the rung does not hold.

    ``step_off`` undoes what is set up, whole or half. Raises NotSupported, with every reason, if none holds.
    """
    step_off()
    tried: list[str] = []
    for mode in modes:
        try:
            why = stand(mode)
        except (OperationFailed, EnvironmentLack) as error:  # this machine cannot; the next rung may do
            why = str(error)
        if why is None:
            return mode
        tried.append(f"{mode.value}: {why}")
        step_off()
    raise NotSupported(
        f"{address} can be driven in none of the wanted interrupt modes",
        seen="; ".join(tried),
        expected="one that works",
        remedy="allow polling, which always works",
    )
