"""Interrupts as eventfds."""

from __future__ import annotations

from uvirtio.backends.vfio.device import Device
from uvirtio.backends.vfio.uapi import VFIO_PCI_INTX_IRQ_INDEX
from uvirtio.memory.eventfd import EventFd


class IntxEvent(EventFd):
    """The interrupt pin. The kernel masks it at each interrupt; ``rearm()`` unmasks it.

    Rearm after the cause was read from the device (for virtio: the ISR status), or it fires again at once.
    """

    def __init__(self, device: Device) -> None:
        """Make the eventfd; ``device`` unmasks its pin on ``rearm()``."""
        super().__init__()
        self._device = device
        self.masked = False
        """An interrupt was taken, and the pin has not been unmasked since."""

    def take(self) -> bool:
        """Consume what is pending, without waiting; returns whether anything was."""
        if super().take():
            self.masked = True
            return True
        return False

    def rearm(self) -> None:
        """Unmask the pin if an interrupt was taken; no effect otherwise.

        Raises:
            DeviceGone: The device was removed.
            OperationFailed: The kernel refused.
        """
        if self.masked:
            self._device.unmask(VFIO_PCI_INTX_IRQ_INDEX)
            self.masked = False
