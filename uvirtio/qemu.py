"""QEMU without a guest, for tests and experiments: ``uvirtio.qemu.Machine``.

One :class:`Machine` owns one QEMU with several virtio functions and a QMP connection; several drivers may
share it. ``open_function`` puts a device on one of its functions.
"""

from uvirtio.backends.qemu import Machine, QemuMmioWindow, QemuPciFunction

__all__ = ["Machine", "QemuMmioWindow", "QemuPciFunction"]
