"""The doorbell of a virtio-mmio device (4.2.3.3)."""

from __future__ import annotations

from uvirtio.spec import mmio
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Registers


class QueueNotifyDoorbell:
    """A kick by a 32-bit write to QueueNotify (4.2.3.3), which all queues share.

    With NOTIFICATION_DATA ``device`` sets the upper half of the value: QueueNotify is 32 bits wide.
    """

    def __init__(self, registers: Registers) -> None:
        """Use the registers of the transport, which closes them."""
        self._registers = registers

    def ring(self, value: int) -> None:
        """Write ``value`` to QueueNotify."""
        self._registers.write32(mmio.QUEUE_NOTIFY, value)

    def close(self) -> None:
        """Do nothing: the registers are the transport's."""
