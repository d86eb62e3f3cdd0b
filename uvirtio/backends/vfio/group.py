"""A VFIO group: the functions that the IOMMU cannot isolate from each other (``/dev/vfio/N``)."""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from uvirtio.backends.vfio.container import Container
from uvirtio.backends.vfio.uapi import (
    VFIO_GROUP_FLAGS_VIABLE,
    VFIO_GROUP_GET_DEVICE_FD,
    VFIO_GROUP_GET_STATUS,
    VFIO_GROUP_SET_CONTAINER,
    VFIO_GROUP_UNSET_CONTAINER,
    vfio_fd,
    vfio_group_status,
)
from uvirtio.errors import (
    Busy,
    Closed,
    GroupNotViable,
    ModuleLack,
    NoIommu,
    NoSuchDevice,
    NotSupported,
    PermissionLack,
    UvirtioError,
)
from uvirtio.host import privilege, remedies, sysfs
from uvirtio.host.digits import decimal
from uvirtio.host.drivers import PCI_STUB, is_vfio, pci_driver
from uvirtio.host.process import Holder, holders_of_any
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import Kernel, failed, gone_or_failed, named
from uvirtio.memory.unclosed import warn_unclosed

BRIDGE_DRIVERS = frozenset({"pcieport", PCI_STUB})
"""Drivers that may be bound to members of a group: they do no DMA of their own (vfio.rst, "viable")."""


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A function in an IOMMU group, and its driver."""

    address: str
    driver: str | None
    vfio: bool = False
    """VFIO has it: the driver is vfio-pci or a variant of it."""


def group_of(address: str, roots: Roots) -> int:
    """Return the IOMMU group of a PCI function, from sysfs.

    VFIO gives a group to a function without an IOMMU too: see ``is_noiommu``.

    Raises:
        NoSuchDevice: There is no such function.
        NoIommu: It has no group.
    """
    device = sysfs.device("pci", address, roots)
    if sysfs.gone(device):
        raise NoSuchDevice(f"there is no PCI function {address}", seen=str(device), remedy="uvirtio list")
    try:
        name = (device / "iommu_group").readlink().name
    except OSError as error:
        raise NoIommu(
            f"{address} is in no IOMMU group",
            seen=named(error),
            expected=f"the link {device / 'iommu_group'}",
            remedy=remedies.iommu(),
        ) from error
    group = decimal(name)
    if group is None:
        raise NoIommu(f"{address} has an IOMMU group that is not a number", seen=name, expected="a number")
    return group


def is_noiommu(address: str, roots: Roots) -> bool:
    """Whether the function's group was made by VFIO because there is no IOMMU."""
    return sysfs.is_noiommu(sysfs.device("pci", address, roots))


def members(number: int, roots: Roots) -> list[GroupMember]:
    """Return the functions of an IOMMU group with their drivers, from sysfs; empty where it cannot be read."""
    return [
        GroupMember(name, pci_driver(name, roots), is_vfio(sysfs.device("pci", name, roots), roots))
        for name in sysfs.iommu_group_members(number, roots)
    ]


class Group:
    """An open VFIO group. The kernel lets one process open it, once. A context manager.

    ``Group.open(number)``; ``set_container``; then ``device_fd`` for each function. Close the devices before the
    group.
    """

    def __init__(self, fd: int, number: int, path: Path, roots: Roots, kernel: Kernel | None = None) -> None:
        """Take over an open ``/dev/vfio/NUMBER``; use ``open``.

        Args:
            fd: The descriptor; closed by ``close()``.
            number: The IOMMU group.
            path: The node, for errors.
            roots: Where /sys and /proc are.
            kernel: The system calls; replaced in tests.
        """
        self.path = path
        self._fd = fd
        self._kernel = kernel or Kernel()
        self._roots = roots
        self._contained = False
        self.number = number

    @classmethod
    def open(
        cls,
        number: int,
        roots: Roots | None = None,
        *,
        kernel: Kernel | None = None,
        noiommu: bool = False,
    ) -> Group:
        """Open ``/dev/vfio/NUMBER`` below ``roots.dev``, and check that the group is viable.

        Args:
            number: The IOMMU group.
            roots: Where /dev, /sys and /proc are.
            kernel: The system calls; replaced in tests.
            noiommu: Open ``/dev/vfio/noiommu-NUMBER``.

        Raises:
            Busy: Another process has it open; ``seen`` names it.
            PermissionLack: This user may not open the node.
            ModuleLack: The module vfio is not loaded.
            NoIommu: No function of the group is bound to vfio-pci.
            GroupNotViable: A kernel driver is bound to a function of the group.
            OperationFailed: The node cannot be opened for another reason.
        """
        roots = roots or Roots()
        kernel = kernel or Kernel()
        path = roots.dev / "vfio" / (f"noiommu-{number}" if noiommu else str(number))
        try:
            fd = kernel.open(str(path), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _open_error(path, number, roots, error) from error
        group = cls(fd, number, path, roots, kernel)
        try:
            group._check_viable()
        except BaseException:
            group.close()
            raise
        return group

    @property
    def fd(self) -> int:
        """The file descriptor.

        Raises:
            Closed: After ``close()``.
        """
        if self._fd < 0:
            raise Closed(f"VFIO group {self.number} is closed")
        return self._fd

    def status(self) -> int:
        """Return the flags of VFIO_GROUP_GET_STATUS.

        Raises:
            OperationFailed: The kernel refused.
            DeviceGone: The group's devices were removed.
        """
        argument = vfio_group_status(argsz=ctypes.sizeof(vfio_group_status))
        try:
            self._kernel.ioctl(self.fd, VFIO_GROUP_GET_STATUS, argument)
        except OSError as error:
            raise gone_or_failed(f"VFIO_GROUP_GET_STATUS of group {self.number}", error) from error
        return int(argument.flags)

    def _check_viable(self) -> None:
        if self.status() & VFIO_GROUP_FLAGS_VIABLE:
            return
        held = [
            member
            for member in members(self.number, self._roots)
            if member.driver is not None and member.driver not in BRIDGE_DRIVERS and not member.vfio
        ]
        listed = ", ".join(f"{member.address} ({member.driver})" for member in held)
        raise GroupNotViable(
            f"IOMMU group {self.number} is not viable: kernel drivers hold other functions of it",
            seen=listed or "members that sysfs does not show",
            expected="every function of the group bound to vfio-pci or to nothing; bridges may stay",
            remedy="uvirtio bind --group " + (" ".join(member.address for member in held) or "DEV"),
        )

    def set_container(self, container: Container) -> None:
        """Join an I/O address space (VFIO_GROUP_SET_CONTAINER).

        Raises:
            OperationFailed: The kernel refused.
        """
        try:
            self._kernel.ioctl(self.fd, VFIO_GROUP_SET_CONTAINER, vfio_fd(container.fd))
        except OSError as error:
            raise failed(
                f"putting IOMMU group {self.number} into the container",
                error,
                expected="a group with an IOMMU that the container's can serve",
            ) from error
        self._contained = True

    def device_fd(self, address: str, vf_token: str | None = None) -> int:
        """Open a function of the group (VFIO_GROUP_GET_DEVICE_FD). **This resets it** where the kernel can.

        Args:
            address: The function, ``0000:03:00.0``.
            vf_token: A UUID. A virtual function of SR-IOV whose physical function is bound to vfio-pci is opened
                only with the token of the physical one; that of a physical function is set, or has to match while
                the virtual ones are open.

        Returns:
            A descriptor that the caller owns.

        Raises:
            NoSuchDevice: The group has no such function that is bound to vfio-pci.
            Busy: The function is open in another process.
            PermissionLack: The VF token is missing, or another one.
            DeviceGone: The function was removed.
            OperationFailed: The kernel refused for another reason.
        """
        # A bytearray, on purpose: given bytes, fcntl.ioctl returns the buffer and loses the descriptor.
        text = address if vf_token is None else f"{address} vf_token={vf_token}"
        name = bytearray(text.encode("ascii") + b"\0")
        try:
            return self._kernel.ioctl(self.fd, VFIO_GROUP_GET_DEVICE_FD, name)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise NoSuchDevice(
                    f"VFIO group {self.number} has no device {address}",
                    seen=", ".join(f"{m.address} ({m.driver})" for m in members(self.number, self._roots)),
                    expected=f"{address} bound to vfio-pci",
                    remedy=f"uvirtio bind {address}",
                ) from error
            if error.errno == errno.EBUSY:
                raise _busy(self.path, self.number, self._roots, f"{address} is open elsewhere") from error
            if error.errno == errno.EACCES:
                raise vf_token_refused(address, vf_token, self._roots) from error
            raise gone_or_failed(f"opening {address} of VFIO group {self.number}", error) from error

    def close(self) -> None:
        """Leave the container and close the descriptor; idempotent. Devices have to be closed before."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._contained:
                self._kernel.ioctl(fd, VFIO_GROUP_UNSET_CONTAINER, 0)
        except OSError:
            pass  # a device is still open, or the group was removed: closing does the same
        finally:
            self._kernel.close(fd)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warn_unclosed(self, str(self.path))


def require_vf_token_taker(address: str, roots: Roots) -> None:
    """Check that VFIO uses a VF token for a function.

    Args:
        address: The function, ``0000:03:00.0``.
        roots: Where /sys is.

    Raises:
        NotSupported: The function has no SR-IOV, or vfio-pci is not the driver of its physical function.
    """
    device = sysfs.device("pci", address, roots)
    owner = sysfs.physical_function(device)
    if owner is None:
        if sysfs.is_physical_function(device):
            return
        seen = f"{address} is not a function with SR-IOV"
    else:
        if is_vfio(sysfs.device("pci", owner, roots), roots):
            return
        seen = f"its physical function {owner} is bound to {pci_driver(owner, roots) or 'no driver'}"
    raise NotSupported(
        f"{address} takes no VF token",
        seen=seen,
        expected="a physical function of SR-IOV, or a virtual one whose physical function is bound to vfio-pci",
        remedy="leave --vf-token out",
    )


def vf_token_refused(address: str, vf_token: str | None, roots: Roots) -> PermissionLack:
    """Return the error for the kernel's EACCES: a function of SR-IOV is opened without its token, or with another.

    Args:
        address: The function, ``0000:03:00.0``.
        vf_token: The token that was given.
        roots: Where /sys is.
    """
    owner = sysfs.physical_function(sysfs.device("pci", address, roots)) or address
    return PermissionLack(
        f"{address} is opened only with the VF token of {owner}",
        seen="no token" if vf_token is None else "another token",
        expected=f"the UUID that the process with {owner} has set",
        remedy="--vf-token UUID (vf_token=)",
    )


def holders_of_group(number: int, roots: Roots) -> list[Holder]:
    """The processes that have a group open, or by its own character device one of its functions.

    Args:
        number: The IOMMU group.
        roots: Where /dev, /sys and /proc are.
    """
    nodes = [f"vfio/{number}", f"vfio/noiommu-{number}"]
    for name in sysfs.iommu_group_members(number, roots):
        nodes += [node.removeprefix("/dev/") for node in sysfs.vfio_nodes(sysfs.device("pci", name, roots))]
    return holders_of_any([roots.dev / node for node in nodes], roots)


def _busy(path: Path, number: int, roots: Roots, what: str) -> Busy:
    found = holders_of_group(number, roots)
    return Busy(
        what,
        seen=("held by " + ", ".join(map(str, found))) if found else "EBUSY; the holder is not visible from here",
        expected="one process at a time",
        remedy="end that process" if found else f"as root: fuser -v {path} {roots.dev}/vfio/devices/*",
    )


def _open_error(path: Path, number: int, roots: Roots, error: OSError) -> UvirtioError:
    if error.errno == errno.EBUSY:
        return _busy(path, number, roots, f"VFIO group {number} is in use")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionLack(
            f"{path} may not be opened",
            seen=f"{named(error)}, as user {os.geteuid()}",
            expected="root, or the owner of the node",
            remedy=privilege.remedy(
                "run as root, or let root give you this one device: uvirtio bind DEV --owner USER "
                "(refused for a balloon or mem device, and where no IOMMU holds the device: the owner of one can "
                "write to all memory)",
                path=path,
                roots=roots,
            ),
        )
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        if not sysfs.exists(roots.dev / "vfio"):
            return ModuleLack(
                f"{path} is not there: vfio is not loaded",
                seen=named(error),
                expected=str(path),
                remedy="as root: modprobe vfio-pci, then uvirtio bind DEV",
            )
        return NoIommu(
            f"{path} is not there: no function of IOMMU group {number} is bound to vfio-pci",
            seen=named(error),
            expected=str(path),
            remedy="uvirtio bind DEV",
        )
    return failed(f"opening {path}", error)
