"""QEMU's device models without a guest: the ``qemu:`` back end."""

from uvirtio.backends.qemu.address import QemuAddress, parse
from uvirtio.backends.qemu.function import QemuPciFunction
from uvirtio.backends.qemu.machine import Machine, open_address

__all__ = ["Machine", "QemuAddress", "QemuPciFunction", "open_address", "parse"]
