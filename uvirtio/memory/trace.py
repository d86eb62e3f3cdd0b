"""Registers and doorbells that report each access, for ``-v`` on the command line."""

from __future__ import annotations

from collections.abc import Callable

from uvirtio.interfaces.values import Trace
from uvirtio.memory.access import ForwardedRegisters
from uvirtio.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Doorbell, Registers


class Naming(Protocol):
    """What the registers of a structure are called and mean."""

    def told(self, place: int, width: int, value: int, written: bool) -> tuple[str, str]:
        """Name and meaning of one access.

        Args:
            place: Offset in the structure, in bytes.
            width: Of the access, in bytes.
            value: What was read or written.
            written: Whether it was written.

        Returns:
            The name of the register, and what the value means; each empty where there is nothing to say.
        """


class TracedRegisters(ForwardedRegisters):
    """The same registers, with each access reported to ``trace`` after it was made."""

    def __init__(self, inner: Registers, name: str, trace: Trace, naming: Naming | None = None) -> None:
        """Wrap registers.

        Args:
            inner: The registers; closed together with this object.
            name: What to call them in the report.
            trace: Called with one line for each access.
            naming: What single registers are called; None: by their offset alone.
        """
        super().__init__(inner)
        self.inner = inner
        self._name = name
        self._trace = trace
        self._naming = naming

    def _read(self, place: int, width: int) -> int:
        value = super()._read(place, width)
        self._tell(place, width, value, written=False)
        return value

    def _write(self, place: int, width: int, value: int) -> None:
        super()._write(place, width, value)
        self._tell(place, width, value, written=True)

    def _tell(self, place: int, width: int, value: int, *, written: bool) -> None:
        name, meaning = ("", "") if self._naming is None else self._naming.told(place, width, value, written)
        access = f"write{width * 8} <-" if written else f"read{width * 8} ->"
        line = f"{self._name}+{place:#04x} {name + ' ' if name else ''}{access} {value:#x}"
        self._trace(f"{line} ({meaning})" if meaning else line)


class TracedDoorbell:
    """The same doorbell, with each kick reported to ``trace``."""

    def __init__(
        self,
        inner: Doorbell,
        queue: int,
        place: str,
        trace: Trace,
        written: Callable[[int], int] | None = None,
    ) -> None:
        """Wrap a doorbell.

        Args:
            inner: The doorbell; closed together with this object.
            queue: The index of its queue.
            place: Where it writes, for people: a BAR and offset, or a register; with the width.
            trace: Called with one line for each kick.
            written: The value that reaches the device, from the one that it is rung with; None: the same.
        """
        self._inner = inner
        self._about = f"kick queue {queue}: {place} <-"
        self._trace = trace
        self._written = written

    def ring(self, value: int) -> None:
        """Kick the device and report it."""
        self._inner.ring(value)
        self._trace(f"{self._about} {value if self._written is None else self._written(value):#x}")

    def close(self) -> None:
        """Close the inner doorbell."""
        self._inner.close()
