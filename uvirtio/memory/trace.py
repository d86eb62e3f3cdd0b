"""Registers that tell what is done to them, for ``-v`` on the command line."""

from __future__ import annotations

from collections.abc import Callable

from uvirtio.interfaces.memory import Doorbell, Registers

Trace = Callable[[str], None]


class TracedRegisters:
    """The same registers, each access reported to ``trace`` after it was made."""

    def __init__(self, inner: Registers, name: str, trace: Trace) -> None:
        self._inner = inner
        self._name = name
        self._trace = trace
        self.length = inner.length

    def _read(self, width: int, offset: int, value: int) -> int:
        self._trace(f"{self._name}+{offset:#04x} read{width * 8} -> {value:#x}")
        return value

    def read8(self, offset: int) -> int:
        return self._read(1, offset, self._inner.read8(offset))

    def read16(self, offset: int) -> int:
        return self._read(2, offset, self._inner.read16(offset))

    def read32(self, offset: int) -> int:
        return self._read(4, offset, self._inner.read32(offset))

    def write8(self, offset: int, value: int) -> None:
        self._inner.write8(offset, value)
        self._trace(f"{self._name}+{offset:#04x} write8 <- {value:#x}")

    def write16(self, offset: int, value: int) -> None:
        self._inner.write16(offset, value)
        self._trace(f"{self._name}+{offset:#04x} write16 <- {value:#x}")

    def write32(self, offset: int, value: int) -> None:
        self._inner.write32(offset, value)
        self._trace(f"{self._name}+{offset:#04x} write32 <- {value:#x}")

    def close(self) -> None:
        self._inner.close()


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
