"""What every transport does the same way: naming its device, choosing the interrupt mode, closing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from uvirtio.errors import ConfigError, QueueError
from uvirtio.interfaces.values import InterruptMode, Trace
from uvirtio.transports.interrupt_modes import choose_mode
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.backend import Backend
    from uvirtio.interfaces.memory import DmaSpace


class TransportBase:
    """The part of a ``Transport`` that does not depend on its registers."""

    def __init__(self, owned: Backend, *, trace: Trace | None) -> None:
        """Take over the back end's object.

        Args:
            owned: The back end's object; ``close()`` closes it.
            trace: Called with a line for each access; None: no trace.
        """
        self._owned = owned
        self._trace = trace
        self._mode = InterruptMode.POLLING
        self._closed = False
        self.interrupt_failures: list[str] = []

    @property
    def other_interface(self) -> str:
        """How to reach the device's other interface; "" where there is none."""
        return ""

    @property
    def description(self) -> str:
        """One line for people: how the device is reached."""
        return self._owned.description

    @property
    def interrupt_mode(self) -> InterruptMode:
        """The interrupt mode that ``connect_interrupts`` chose."""
        return self._mode

    def connect_interrupts(self, queues: Sequence[int], modes: Sequence[InterruptMode]) -> InterruptMode:
        """Enable the first of ``modes`` that works; to be called before any queue is enabled.

        Args:
            queues: The queues that are going to be used.
            modes: Interrupt modes, best first.

        Returns:
            The mode that was enabled.

        Raises:
            NotSupported: None of them works.
        """
        self._mode = choose_mode(
            self._owned.address,
            modes,
            lambda mode: self._try_mode(mode, queues),
            self._disconnect,
            self.interrupt_failures,
        )
        return self._mode

    def dma(self, translated: bool) -> DmaSpace:
        """Return memory for this device. The caller closes it after the device was reset."""
        return self._owned.dma(translated)

    def close(self) -> None:
        """Release everything and close the back end's object; idempotent. The device should have been reset."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:  # runs backwards, and all of it, whatever fails
            stack.callback(self._owned.close)
            self._let_go()

    def _queue_fault(self, what: str, *, seen: object, expected: str, about: str) -> QueueError:
        """The error for a register of a queue that has not the value which the standard says."""
        return QueueError(
            what,
            seen=seen,
            expected=expected,
            remedy="this is a fault of the device; uvirtio diag -v shows each register access",
            about=about,
        )

    def _beyond_config(self, end: int, length: int) -> ConfigError:
        """The error for a field that ends at ``end``, of a configuration of ``length`` bytes."""
        return ConfigError(
            f"the device configuration of {self._owned.address} has no byte {end - 1:#x}",
            seen=f"{length} bytes",
            expected=f"at least {end} bytes (2.5.1)",
        )

    # --- specific to each transport --------------------------------------------------------------------------

    def _try_mode(self, mode: InterruptMode, queues: Sequence[int]) -> str | None:
        """Set up one interrupt mode; returns None if it works, else why not."""
        raise NotImplementedError

    def _disconnect(self) -> None:
        """Undo what is set up of an interrupt mode, completely or partly; the mode is POLLING then."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Release registers, queues and interrupts."""
        raise NotImplementedError
