"""Doorbells that are registers of a PCI function (4.1.5.2.1)."""

from __future__ import annotations

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Registers


class _OwnRegister:
    """A doorbell with a register window of its own; ``ident`` is the device's identifier of the queue."""

    def __init__(self, registers: Registers, ident: int) -> None:
        self._registers = registers
        self._ident = ident

    def close(self) -> None:
        """Close the register window; idempotent."""
        self._registers.close()


class IndexDoorbell(_OwnRegister):
    """A kick by a 16-bit write (4.1.5.2.1): of the queue's index, or of the device's identifier of the queue."""

    def __init__(self, registers: Registers, ident: int) -> None:
        """Take over the window; ``ident`` is what is written."""
        super().__init__(registers, ident)
        self._write16 = registers.write16

    def ring(self, value: int) -> None:
        """Write the identifier; ``value`` is ignored."""
        self._write16(0, self._ident)


class DataDoorbell(_OwnRegister):
    """A kick by a 32-bit write under NOTIFICATION_DATA (4.1.5.2.1): the upper half is the position (2.9)."""

    def ring(self, value: int) -> None:
        """Write the identifier with the upper half of ``value``."""
        self._registers.write32(0, value & 0xFFFF_0000 | self._ident)
