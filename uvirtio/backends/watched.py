"""Registers and events that also check something else: whether a device, or its guardian, still exists."""

from __future__ import annotations

from collections.abc import Callable

from uvirtio.memory.access import ForwardedRegisters
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Event, Registers


class WatchedRegisters(ForwardedRegisters):
    """The same registers; a check comes before each access."""

    def __init__(self, inner: Registers, look: Callable[[], None]) -> None:
        """Wrap registers.

        Args:
            inner: The registers; closed together with this object.
            look: Called before each access; its exceptions prevent the access.
        """
        super().__init__(inner)
        self._look = look

    def _read(self, place: int, width: int) -> int:
        self._look()
        return super()._read(place, width)

    def _write(self, place: int, width: int, value: int) -> None:
        self._look()
        super()._write(place, width, value)


class WatchedRemoval:
    """The event of a device's removal; a check comes with every ``take()`` that finds nothing.

    Every turn of the wait loop calls ``take()``, so this is the place for what has to be checked periodically.
    """

    def __init__(self, inner: Event, look: Callable[[], None]) -> None:
        """Wrap an event.

        Args:
            inner: The event; closed together with this object.
            look: Called by ``take()``; its exceptions leave it.
        """
        self._inner = inner
        self._look = look

    def fileno(self) -> int:
        """Return the file descriptor to poll for reading."""
        return self._inner.fileno()

    def take(self) -> bool:
        """Consume what is pending, or check; returns whether the device is being removed."""
        if self._inner.take():
            return True
        self._look()
        return False

    def rearm(self) -> None:
        """Rearm the inner event."""
        self._inner.rearm()

    def close(self) -> None:
        """Close the inner event."""
        self._inner.close()
