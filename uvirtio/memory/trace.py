"""Registers and doorbells that report each access, for ``-v`` on the command line."""

from __future__ import annotations

from collections.abc import Callable

from uvirtio.interfaces.memory import Doorbell, Registers
from uvirtio.memory.access import ForwardedRegisters

Trace = Callable[[str], None]


class TracedRegisters(ForwardedRegisters):
    """The same registers, with each access reported to ``trace`` after it was made."""

    def __init__(self, inner: Registers, name: str, trace: Trace) -> None:
        """Wrap registers.

        Args:
            inner: The registers; closed together with this object.
            name: What to call them in the report.
            trace: Called with one line for each access.
        """
        super().__init__(inner)
        self._name = name
        self._trace = trace

    def _read(self, place: int, width: int) -> int:
        value = super()._read(place, width)
        self._trace(f"{self._name}+{place:#04x} read{width * 8} -> {value:#x}")
        return value

    def _write(self, place: int, width: int, value: int) -> None:
        super()._write(place, width, value)
        self._trace(f"{self._name}+{place:#04x} write{width * 8} <- {value:#x}")


class TracedDoorbell:
    """The same doorbell, with each kick reported to ``trace``."""

    def __init__(self, inner: Doorbell, name: str, trace: Trace) -> None:
        """Wrap a doorbell.

        Args:
            inner: The doorbell; closed together with this object.
            name: What to call it in the report.
            trace: Called with one line for each kick.
        """
        self._inner = inner
        self._name = name
        self._trace = trace

    def ring(self, value: int) -> None:
        """Kick the device and report it."""
        self._inner.ring(value)
        self._trace(f"kick {self._name} <- {value:#x}")

    def close(self) -> None:
        """Close the inner doorbell."""
        self._inner.close()
