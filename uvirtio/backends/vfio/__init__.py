"""VFIO from Python: the kernel's ioctls by ctypes, fcntl and mmap, and nothing of virtio.

Usable on its own: a ``Container`` is an I/O address space, a ``Group`` is the smallest set of functions that the
IOMMU isolates, a ``Device`` has regions, interrupts and a reset. ``docs/vfio.md`` has an example.
"""

from __future__ import annotations

from uvirtio.backends.vfio.container import Container, IommuInfo
from uvirtio.backends.vfio.device import Device, DeviceInfo, IrqInfo, RegionInfo
from uvirtio.backends.vfio.group import Group, GroupMember, group_of, members
from uvirtio.host.drivers import pci_driver as driver_of
from uvirtio.host.syscalls import Kernel
from uvirtio.memory.iova import IovaAllocator

__all__ = [
    "Container",
    "Device",
    "DeviceInfo",
    "Group",
    "GroupMember",
    "IommuInfo",
    "IovaAllocator",
    "IrqInfo",
    "Kernel",
    "RegionInfo",
    "driver_of",
    "group_of",
    "members",
]
