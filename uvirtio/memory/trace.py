"""Registers that tell what is done to them, for ``-v`` on the command line."""

from __future__ import annotations

from collections.abc import Callable

from uvirtio.interfaces.memory import Doorbell, Registers
from uvirtio.memory.access import ForwardedRegisters

Trace = Callable[[str], None]


class TracedRegisters(ForwardedRegisters):
    """The same registers, each access reported to ``trace`` after it was made."""

    def __init__(self, inner: Registers, name: str, trace: Trace) -> None:
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
    """The same doorbell, each kick reported to ``trace``."""

    def __init__(self, inner: Doorbell, name: str, trace: Trace) -> None:
        self._inner = inner
        self._name = name
        self._trace = trace

    def ring(self, value: int) -> None:
        self._inner.ring(value)
        self._trace(f"kick {self._name} <- {value:#x}")

    def close(self) -> None:
        self._inner.close()
