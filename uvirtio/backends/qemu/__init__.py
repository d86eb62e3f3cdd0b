"""QEMU's device models without a guest: the ``qemu:`` back end."""

from uvirtio.backends.qemu.address import QemuAddress, parse
from uvirtio.backends.qemu.function import QemuPciFunction
from uvirtio.backends.qemu.machine import Machine, QemuFunction, open_address
from uvirtio.backends.qemu.mmio import QemuMmioWindow

__all__ = ["Machine", "QemuAddress", "QemuFunction", "QemuMmioWindow", "QemuPciFunction", "open_address", "parse"]
