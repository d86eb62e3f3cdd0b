"""The three ways to a function that is bound to vfio-pci: its group, its character device, and no IOMMU at all.

Each returns the same ``Device``; they differ in where memory is mapped, and in what has to be closed afterwards.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from uvirtio.backends.vfio.container import IOMMU_NAMES, Container, IommuInfo
from uvirtio.backends.vfio.device import Device
from uvirtio.backends.vfio.group import Group, group_of, is_noiommu
from uvirtio.backends.vfio.iommufd import Ioas, cdev_of, has_groups, open_cdev
from uvirtio.backends.vfio.uapi import VFIO_NOIOMMU_IOMMU
from uvirtio.errors import NotSupported
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import Kernel


class AddressSpace(Protocol):
    """Where memory is mapped for the device: a container, or an address space of iommufd."""

    def iommu_info(self) -> IommuInfo:
        """Return the usable device addresses.

        Raises:
            OperationFailed: The kernel refused.
        """
        ...

    def map(self, vaddr: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """Pin memory of this process and map it for the devices; as ``Container.map``.

        Raises:
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            OperationFailed: The kernel refused for another reason.
        """
        ...

    def unmap(self, iova: int, size: int) -> None:
        """Remove the maps in a range; as ``Container.unmap``.

        Raises:
            OperationFailed: The kernel did not unmap exactly ``size`` bytes.
        """
        ...


@dataclass(slots=True)
class Way:
    """An open function. Close the device, then what was mapped, then this."""

    device: Device
    space: AddressSpace | None
    """None: no IOMMU, and nothing can be mapped."""

    description: str
    """One line for people: how the function is reached."""

    rest: ExitStack
    """What stays open behind the device: group, container, iommufd."""

    def close(self) -> None:
        """Close all of it; idempotent."""
        self.device.close()
        self.rest.close()


def by_group(address: str, roots: Roots, kernel: Kernel, vf_token: str | None = None) -> Way:
    """Open a function through ``/dev/vfio/N`` and a container with type1, which every kernel has.

    Args:
        address: The function, ``0000:03:00.0``.
        roots: Where /dev, /sys and /proc are.
        kernel: The system calls.
        vf_token: A UUID; as for ``Group.device_fd``.

    Raises:
        NoSuchDevice: There is no such function.
        NoIommu: It has no IOMMU group, or none that is bound to vfio-pci.
        GroupNotViable: A kernel driver is bound to another function of the group.
        Busy: Another process has the group open.
        PermissionLack: This user may not open the group, or the IOMMU does not isolate interrupts, or its VF token
            is missing or another one.
        ModuleLack: A module of VFIO is not loaded.
        NotSupported: The kernel has another version of VFIO.
        DeviceGone: The function was removed.
        OperationFailed: The kernel refused for another reason.
    """
    return _by_group(address, roots, kernel, None, vf_token)


def without_iommu(address: str, roots: Roots, kernel: Kernel, vf_token: str | None = None) -> Way:
    """Open a function through ``/dev/vfio/noiommu-N``: VFIO's interrupts and reset, but nothing restricts its DMA.

    Args:
        address: The function, ``0000:03:00.0``.
        roots: Where /dev, /sys and /proc are.
        kernel: The system calls.
        vf_token: A UUID; as for ``Group.device_fd``.

    Raises:
        NoSuchDevice: There is no such function.
        NoIommu: It has no group of VFIO.
        Busy: Another process has the group open.
        PermissionLack: The caller lacks CAP_SYS_RAWIO, or may not open the group, or its VF token
            is missing or another one.
        ModuleLack: A module of VFIO is not loaded.
        NotSupported: The kernel has another version of VFIO.
        DeviceGone: The function was removed.
        OperationFailed: The kernel refused for another reason.
    """
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
    """Open a function through ``/dev/vfio/devices/vfioN`` and iommufd (Linux 6.6; the token of a VF: 6.17).

    Args:
        address: The function, ``0000:03:00.0``.
        roots: Where /dev, /sys and /proc are.
        kernel: The system calls.
        vf_token: A UUID; as for ``Group.device_fd``.

    Raises:
        NotSupported: The kernel has no character device for it, or accepts no VF token there.
        Busy: Another process has the function or its group open.
        PermissionLack: This user may not open a node, or its VF token
            is missing or another one.
        ModuleLack: The module iommufd is not loaded.
        DeviceGone: The function was removed.
        OperationFailed: The kernel refused for another reason.
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
    """Open a function by its character device if the kernel has one that this user may open, else by its group.

    Args:
        address: The function, ``0000:03:00.0``.
        roots: Where /dev, /sys and /proc are.
        kernel: The system calls.
        vf_token: A UUID; as for ``Group.device_fd``.

    Raises:
        NoSuchDevice: There is no such function.
        NoIommu: It has no IOMMU group, or none that is bound to vfio-pci.
        GroupNotViable: A kernel driver is bound to another function of the group.
        Busy: Another process has the function or its group open.
        PermissionLack: This user may not open a node, or the IOMMU does not isolate interrupts, or its VF token
            is missing or another one.
        ModuleLack: A module of VFIO or iommufd is not loaded.
        NotSupported: The kernel has another version of VFIO, or cannot bind the function to iommufd.
        DeviceGone: The function was removed.
        OperationFailed: The kernel refused for another reason.
    """
    path = cdev_of(address, roots)
    open_to_us = path is not None and all(
        os.access(node, os.R_OK | os.W_OK) for node in (path, roots.dev / "iommu")
    )
    if open_to_us or (path is not None and not has_groups(roots)):
        try:
            return by_cdev(address, roots, kernel, vf_token)
        except NotSupported:
            if vf_token is None:
                raise  # the group of an older kernel accepts a token
    return by_group(address, roots, kernel, vf_token)


__all__ = ["AddressSpace", "Way", "best", "by_cdev", "by_group", "is_noiommu", "without_iommu"]
