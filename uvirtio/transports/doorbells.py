"""Doorbells that are registers (4.1.5.2.1, 4.2.3.3)."""

from __future__ import annotations

from uvirtio.interfaces.memory import Registers
from uvirtio.spec import mmio


class _OwnRegister:
    """A doorbell with a window of registers to itself; ``ident`` is what the device calls the queue."""

    def __init__(self, registers: Registers, ident: int) -> None:
        self._registers = registers
        self._ident = ident

    def close(self) -> None:
        self._registers.close()


class IndexDoorbell(_OwnRegister):
    """A kick by a 16-bit write (4.1.5.2.1): of the queue's index, or of what the device calls the queue."""

    def ring(self, value: int) -> None:
        self._registers.write16(0, self._ident)


class DataDoorbell(_OwnRegister):
    """A kick by a 32-bit write under NOTIFICATION_DATA (4.1.5.2.1): the upper half says what is new (2.9)."""

    def ring(self, value: int) -> None:
        self._registers.write32(0, value & 0xFFFF_0000 | self._ident)


class QueueNotifyDoorbell:
    """A kick by a 32-bit write to QueueNotify (4.2.3.3), which all queues share.

    With NOTIFICATION_DATA the value has its upper half from ``device``: QueueNotify is as wide.
    """

    def __init__(self, registers: Registers) -> None:
        self._registers = registers

    def ring(self, value: int) -> None:
        self._registers.write32(mmio.QUEUE_NOTIFY, value)

    def close(self) -> None:
        """Nothing: the registers are the transport's."""
