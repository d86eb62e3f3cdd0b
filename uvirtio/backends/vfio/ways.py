"""The three ways to a function that vfio-pci holds: its group, its character device, and no IOMMU at all.

Each hands out the same :class:`Device`; what differs is where maps are made, and what has to be closed after.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from uvirtio.backends.vfio.container import IOMMU_NAMES, Container, IommuInfo
from uvirtio.backends.vfio.device import Device
from uvirtio.backends.vfio.group import Group, group_of, is_noiommu
from uvirtio.backends.vfio.iommufd import Ioas, cdev_of, open_cdev
from uvirtio.backends.vfio.uapi import VFIO_NOIOMMU_IOMMU
from uvirtio.errors import NotSupported
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import Kernel


class AddressSpace(Protocol):
    """Where maps are made: a container, or a space of iommufd."""

    def iommu_info(self) -> IommuInfo: ...
    def map(self, vaddr: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None: ...
    def unmap(self, iova: int, size: int) -> None: ...


@dataclass(slots=True)
class Way:
    """An open function. Close the device, then what was mapped, then this."""

    device: Device
    space: AddressSpace | None
    """None: no IOMMU, and nothing can be mapped."""
    description: str
    rest: ExitStack
    """What stays open behind the device: group, container, iommufd."""

    def close(self) -> None:
        """Close all of it; idempotent."""
        self.device.close()
        self.rest.close()


def by_group(address: str, roots: Roots, kernel: Kernel, vf_token: str | None = None) -> Way:
    """Through ``/dev/vfio/N`` and a container with type1, which every kernel has.

    Raises NoIommu, GroupNotViable, Busy, PermissionLack, ModuleLack, NotSupported.
    """
    return _by_group(address, roots, kernel, None, vf_token)


def without_iommu(address: str, roots: Roots, kernel: Kernel, vf_token: str | None = None) -> Way:
    """Through ``/dev/vfio/noiommu-N``: interrupts and reset as with VFIO, and nothing that holds the device."""
    return _by_group(address, roots, kernel, VFIO_NOIOMMU_IOMMU, vf_token)


def _by_group(address: str, roots: Roots, kernel: Kernel, kind: int | None, vf_token: str | None) -> Way:
    number = group_of(address, roots)
    with ExitStack() as stack:
        container = stack.enter_context(Container.open(roots, kernel=kernel))
        group = stack.enter_context(Group.open(number, roots, kernel=kernel, noiommu=kind is not None))
        group.set_container(container)
        name = IOMMU_NAMES[container.set_iommu(kind)]
        device = Device(group.device_fd(address, vf_token), address, kernel)
        text = f"group {number}, {name}"
        return Way(device, container if kind is None else None, text, stack.pop_all())


def by_cdev(address: str, roots: Roots, kernel: Kernel, vf_token: str | None = None) -> Way:
    """Through ``/dev/vfio/devices/vfioN`` and iommufd (Linux 6.6; with the token of a virtual function, 6.17).

    Raises NotSupported where the kernel has none; Busy, PermissionLack, ModuleLack, OperationFailed.
    """
    path = cdev_of(address, roots)
    if path is None:
        raise NotSupported(
            f"VFIO made no character device for {address}",
            seen=f"nothing in {roots.dev / 'vfio' / 'devices'} for it",
            expected="Linux 6.6 with CONFIG_VFIO_DEVICE_CDEV and CONFIG_IOMMUFD",
            remedy="take its group: --backend vfio-group",
        )
    with ExitStack() as stack:
        ioas = stack.enter_context(Ioas.open(roots, kernel=kernel))
        fd = open_cdev(path, ioas, roots, kernel=kernel, address=address, vf_token=vf_token)
        device = Device(fd, address, kernel)
        return Way(device, ioas, f"{path.name}, iommufd", stack.pop_all())


def best(address: str, roots: Roots, kernel: Kernel, vf_token: str | None = None) -> Way:
    """What this kernel has, and this user may open: the character device, else the group."""
    path = cdev_of(address, roots)
    if path is not None and all(os.access(node, os.R_OK | os.W_OK) for node in (path, roots.dev / "iommu")):
        try:
            return by_cdev(address, roots, kernel, vf_token)
        except NotSupported:
            if vf_token is None:
                raise  # the group of an older kernel takes one
    return by_group(address, roots, kernel, vf_token)


__all__ = ["AddressSpace", "Way", "best", "by_cdev", "by_group", "is_noiommu", "without_iommu"]
