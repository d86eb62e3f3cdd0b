"""What an interrupt is to this process: the contract below ``memory``, whose users have it from there."""

from __future__ import annotations

from uvirtio.typed import Protocol


class Event(Protocol):
    """One interrupt vector as a file descriptor that polls readable.

    A level-triggered line (INTx) stays masked after ``take()`` until ``rearm()``. ``take()`` must be called before
    waiting on ``fileno()``: an implementation may hold events that it read together with something else.
    """

    def fileno(self) -> int:
        """Return the file descriptor to poll for reading."""
        ...

    def take(self) -> bool:
        """Consume what is pending, without waiting.

        Returns:
            Whether an interrupt was pending.
        """
        ...

    def rearm(self) -> None:
        """Unmask a level-triggered line, once its cause was read from the device; no effect on other vectors."""
        ...

    def close(self) -> None:
        """Release the event; idempotent."""
        ...
