"""Registers and events that look at something else on the way: whether a device, or its guardian, is there."""

from __future__ import annotations

from collections.abc import Callable

from uvirtio.interfaces.memory import Event, Registers
from uvirtio.memory.access import ForwardedRegisters


class WatchedRegisters(ForwardedRegisters):
    """The same registers; ``look`` is called before each access, and raises where there shall be none."""

    def __init__(self, inner: Registers, look: Callable[[], None]) -> None:
        super().__init__(inner)
        self._look = look

    def _read(self, place: int, width: int) -> int:
        self._look()
        return super()._read(place, width)

    def _write(self, place: int, width: int, value: int) -> None:
        self._look()
        super()._write(place, width, value)


class WatchedRemoval:
    """The event of a device's removal; ``look`` is called whenever it is asked for and has not fired.

    Every turn of the wait loop asks for it, so ``look`` is the place for what has to be looked at now and then.
    It raises what it finds.
    """

    def __init__(self, inner: Event, look: Callable[[], None]) -> None:
        self._inner = inner
        self._look = look

    def fileno(self) -> int:
        return self._inner.fileno()

    def take(self) -> bool:
        if self._inner.take():
            return True
        self._look()
        return False

    def rearm(self) -> None:
        self._inner.rearm()

    def close(self) -> None:
        self._inner.close()
