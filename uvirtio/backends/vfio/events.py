"""Interrupts as eventfds."""

from __future__ import annotations

import os

from uvirtio.backends.vfio.device import Device
from uvirtio.backends.vfio.uapi import VFIO_PCI_INTX_IRQ_INDEX
from uvirtio.errors import Closed


class EventFd:
    """An eventfd that the kernel signals: an edge-triggered vector, an error, a request to give back.

    ``fileno()`` polls readable while something is pending. Close-on-exec, never blocks.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        if self._fd < 0:
            raise Closed("this event is closed")
        return self._fd

    def take(self) -> bool:
        """Consume what is pending; whether there was anything. Never waits."""
        try:
            os.eventfd_read(self.fileno())
        except BlockingIOError:
            return False
        return True

    def rearm(self) -> None:
        """Nothing: an eventfd fires again by itself."""

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> EventFd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class IntxEvent(EventFd):
    """The interrupt pin. The kernel masks it at each interrupt; ``rearm()`` unmasks it.

    Rearm after the cause was read from the device (for virtio: the ISR status), or it fires again at once.
    """

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device
        self.masked = False
        """An interrupt was taken and the line was not unmasked since."""

    def take(self) -> bool:
        if super().take():
            self.masked = True
            return True
        return False

    def rearm(self) -> None:
        """Unmask after an interrupt; nothing otherwise. Raises DeviceGone."""
        if self.masked:
            self._device.unmask(VFIO_PCI_INTX_IRQ_INDEX)
            self.masked = False
