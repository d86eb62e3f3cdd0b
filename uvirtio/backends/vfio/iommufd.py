"""iommufd and VFIO's character device for each function: the newer interface, without groups and containers.

``<linux/iommufd.h>`` and the part of ``<linux/vfio.h>`` (6.6) that belongs to it, as ctypes: the names are the
kernel's. ``Ioas`` maps memory with the methods that ``Container`` has.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_int32, c_uint32, c_uint64
from pathlib import Path

from uvirtio.backends.vfio.container import IommuInfo, map_error
from uvirtio.backends.vfio.device import Device
from uvirtio.backends.vfio.group import holders_of_group, vf_token_refused
from uvirtio.errors import Busy, Closed, ModuleLack, NotSupported, OperationFailed, PermissionLack, UvirtioError
from uvirtio.host import privilege, sysfs
from uvirtio.host.process import holders
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import Kernel, failed, gone_or_failed, named
from uvirtio.memory.unclosed import warn_unclosed

_IOMMUFD_TYPE = ord(";") << 8

IOMMU_DESTROY = _IOMMUFD_TYPE | 0x80
IOMMU_IOAS_ALLOC = _IOMMUFD_TYPE | 0x81
IOMMU_IOAS_IOVA_RANGES = _IOMMUFD_TYPE | 0x84
IOMMU_IOAS_MAP = _IOMMUFD_TYPE | 0x85
IOMMU_IOAS_UNMAP = _IOMMUFD_TYPE | 0x86

IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0
IOMMU_IOAS_MAP_WRITEABLE = 1 << 1
IOMMU_IOAS_MAP_READABLE = 1 << 2

VFIO_DEVICE_BIND_IOMMUFD = _IOMMUFD_TYPE | 100 + 18
VFIO_DEVICE_ATTACH_IOMMUFD_PT = _IOMMUFD_TYPE | 100 + 19

_RANGES_LIMIT = 4096


class iommu_ioas_alloc(ctypes.Structure):
    """Argument of IOMMU_IOAS_ALLOC."""

    _fields_ = (("size", c_uint32), ("flags", c_uint32), ("out_ioas_id", c_uint32))


class iommu_iova_range(ctypes.Structure):
    """A range of device addresses. ``last`` is its last byte."""

    _fields_ = (("start", c_uint64), ("last", c_uint64))


class iommu_ioas_iova_ranges(ctypes.Structure):
    """Argument of IOMMU_IOAS_IOVA_RANGES.

    ``num_iovas`` is the capacity of the array at ``allowed_iovas``; overwritten with the number of ranges.
    """

    _fields_ = (
        ("size", c_uint32),
        ("ioas_id", c_uint32),
        ("num_iovas", c_uint32),
        ("__reserved", c_uint32),
        ("allowed_iovas", c_uint64),
        ("out_iova_alignment", c_uint64),
    )


class iommu_ioas_map(ctypes.Structure):
    """Argument of IOMMU_IOAS_MAP."""

    _fields_ = (
        ("size", c_uint32),
        ("flags", c_uint32),
        ("ioas_id", c_uint32),
        ("__reserved", c_uint32),
        ("user_va", c_uint64),
        ("length", c_uint64),
        ("iova", c_uint64),
    )


class iommu_ioas_unmap(ctypes.Structure):
    """Argument of IOMMU_IOAS_UNMAP. ``length`` is overwritten with the number of bytes that were unmapped."""

    _fields_ = (("size", c_uint32), ("ioas_id", c_uint32), ("iova", c_uint64), ("length", c_uint64))


VFIO_DEVICE_BIND_FLAG_TOKEN = 1 << 0


class vfio_device_bind_iommufd(ctypes.Structure):
    """Argument of VFIO_DEVICE_BIND_IOMMUFD.

    ``token_uuid_ptr`` is the address of the 16 bytes of a UUID (Linux 6.17).
    """

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iommufd", c_int32),
        ("out_devid", c_uint32),
        ("token_uuid_ptr", c_uint64),
    )


_BIND_SIZE = vfio_device_bind_iommufd.token_uuid_ptr.offset
"""Length without a token, in bytes: accepted by every kernel."""


class vfio_device_attach_iommufd_pt(ctypes.Structure):
    """Argument of VFIO_DEVICE_ATTACH_IOMMUFD_PT."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("pt_id", c_uint32))


def cdev_of(address: str, roots: Roots) -> Path | None:
    """Return the character device that VFIO made for a PCI function; None where this kernel makes none."""
    names = sysfs.vfio_devices(sysfs.device("pci", address, roots))
    paths = (roots.dev / "vfio" / "devices" / name for name in names)
    return next((path for path in paths if sysfs.exists(path)), None)


def has_groups(roots: Roots) -> bool:
    """Whether VFIO can be used by groups: a kernel without CONFIG_VFIO_GROUP has character devices alone."""
    vfio = roots.dev / "vfio"
    return sysfs.exists(vfio / "vfio") or not sysfs.names(vfio / "devices")


def _group_instead(roots: Roots) -> str:
    """The remedy that does without iommufd; empty where there is none."""
    return "take the group instead: --backend vfio-group" if has_groups(roots) else ""


def _forbidden(path: Path, error: OSError, roots: Roots) -> PermissionLack:
    return PermissionLack(
        f"{path} may not be opened",
        seen=f"{named(error)}, as user {os.geteuid()}",
        expected="root, or the owner of the node",
        remedy=privilege.remedy(path=path, also=_group_instead(roots), roots=roots),
    )


class Ioas:
    """An I/O address space of iommufd (``/dev/iommu``), in which memory is mapped. A context manager."""

    def __init__(self, fd: int, ioas_id: int, kernel: Kernel, roots: Roots) -> None:
        """Take over an open ``/dev/iommu``; use ``open``.

        Args:
            fd: The descriptor; closed by ``close()``.
            ioas_id: What IOMMU_IOAS_ALLOC returned.
            kernel: The system calls; replaced in tests.
            roots: Where /proc is.
        """
        self.id = ioas_id
        self._fd = fd
        self._kernel = kernel
        self._roots = roots

    @classmethod
    def open(cls, roots: Roots, *, kernel: Kernel | None = None) -> Ioas:
        """Open ``/dev/iommu`` below ``roots.dev``, and allocate one address space.

        Raises:
            ModuleLack: The module iommufd is not loaded.
            PermissionLack: This user may not open the node.
            OperationFailed: The kernel refused the address space.
        """
        kernel = kernel or Kernel()
        path = roots.dev / "iommu"
        try:
            fd = kernel.open(str(path), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise _forbidden(path, error, roots) from error
            raise ModuleLack(
                f"{path} is not there",
                seen=named(error),
                expected="the module iommufd (CONFIG_IOMMUFD)",
                remedy="; or ".join(filter(None, ("as root: modprobe iommufd", _group_instead(roots)))),
            ) from error
        argument = iommu_ioas_alloc(size=ctypes.sizeof(iommu_ioas_alloc))
        try:
            kernel.ioctl(fd, IOMMU_IOAS_ALLOC, argument)
        except OSError as error:
            kernel.close(fd)
            raise failed("IOMMU_IOAS_ALLOC", error) from error
        return cls(fd, argument.out_ioas_id, kernel, roots)

    @property
    def fd(self) -> int:
        """The file descriptor.

        Raises:
            Closed: After ``close()``.
        """
        if self._fd < 0:
            raise Closed("this I/O address space is closed")
        return self._fd

    def iommu_info(self) -> IommuInfo:
        """Return the usable device addresses (IOMMU_IOAS_IOVA_RANGES); they are known once a device is attached.

        Raises:
            OperationFailed: The kernel refused.
        """
        room = 32
        while True:
            found = (iommu_iova_range * room)()
            argument = iommu_ioas_iova_ranges(
                size=ctypes.sizeof(iommu_ioas_iova_ranges),
                ioas_id=self.id,
                num_iovas=room,
                allowed_iovas=ctypes.addressof(found),
            )
            try:
                self._kernel.ioctl(self.fd, IOMMU_IOAS_IOVA_RANGES, argument)
            except OSError as error:
                if error.errno != errno.EMSGSIZE or not room < argument.num_iovas <= _RANGES_LIMIT:
                    raise failed("IOMMU_IOAS_IOVA_RANGES", error) from error
                room = argument.num_iovas
                continue
            ranges = tuple((r.start, r.last) for r in found[: min(room, argument.num_iovas)] if r.start <= r.last)
            return IommuInfo(int(argument.out_iova_alignment), ranges, None)

    def map(self, vaddr: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """Pin memory of this process and map it for the devices (IOMMU_IOAS_MAP); as ``Container.map``.

        Args:
            vaddr: Virtual address in this process, in bytes.
            iova: Device address, in bytes.
            size: Length, in bytes.
            read: The device may read it.
            write: The device may write it.

        Raises:
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            OperationFailed: Overlap with a map, outside the ranges, or another refusal.
        """
        flags = IOMMU_IOAS_MAP_FIXED_IOVA
        flags |= (IOMMU_IOAS_MAP_READABLE if read else 0) | (IOMMU_IOAS_MAP_WRITEABLE if write else 0)
        argument = iommu_ioas_map(
            size=ctypes.sizeof(iommu_ioas_map),
            flags=flags,
            ioas_id=self.id,
            user_va=vaddr,
            length=size,
            iova=iova,
        )
        try:
            self._kernel.ioctl(self.fd, IOMMU_IOAS_MAP, argument)
        except OSError as error:
            raise map_error(self._roots, error, iova, size) from error

    def unmap(self, iova: int, size: int) -> None:
        """Remove the maps in a range (IOMMU_IOAS_UNMAP); their pages are unpinned.

        Args:
            iova: First device address, in bytes.
            size: Length, in bytes.

        Raises:
            OperationFailed: The kernel did not unmap exactly ``size`` bytes.
        """
        argument = iommu_ioas_unmap(size=ctypes.sizeof(iommu_ioas_unmap), ioas_id=self.id, iova=iova, length=size)
        try:
            self._kernel.ioctl(self.fd, IOMMU_IOAS_UNMAP, argument)
        except OSError as error:
            raise failed(f"unmapping {size} bytes at the device address {iova:#x}", error) from error
        if argument.length != size:
            raise OperationFailed(
                f"the kernel did not unmap the requested range at {iova:#x}",
                seen=f"{argument.length} bytes",
                expected=f"{size} bytes",
            )

    def close(self) -> None:
        """Close the descriptor; idempotent. The kernel frees the address space with its maps."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._kernel.close(fd)

    def __enter__(self) -> Ioas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warn_unclosed(self, str(self.id))


def open_cdev(
    path: Path,
    ioas: Ioas,
    roots: Roots,
    *,
    kernel: Kernel | None = None,
    address: str = "",
    vf_token: str | None = None,
) -> int:
    """Open a character device of VFIO, bind it to iommufd and attach it to an address space. **This resets it.**

    Args:
        path: What ``cdev_of`` returned.
        ioas: The address space.
        roots: Where /proc and /sys are.
        kernel: The system calls; replaced in tests.
        address: The function, ``0000:03:00.0``; needed with ``vf_token``, and for errors.
        vf_token: As for ``Group.device_fd``. Before Linux 6.17 only that of a physical function is accepted.

    Returns:
        A descriptor that the caller owns.

    Raises:
        PermissionLack: This user may not open the node; the VF token is missing, or another one.
        Busy: Another process has the function or its group open.
        NotSupported: The kernel cannot bind the function to iommufd, or accepts no VF token there.
        DeviceGone: The function was removed.
        OperationFailed: The kernel refused for another reason.
    """
    kernel = kernel or Kernel()
    try:
        fd = kernel.open(str(path), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _forbidden(path, error, roots) from error
        raise gone_or_failed(f"opening {path}", error) from error
    try:
        late_token = _bind(fd, ioas, kernel, address, vf_token, roots)
        if late_token is not None:
            Device(fd, address, kernel).set_vf_token(late_token)
        attach = vfio_device_attach_iommufd_pt(argsz=ctypes.sizeof(vfio_device_attach_iommufd_pt), pt_id=ioas.id)
        kernel.ioctl(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach)
    except UvirtioError:
        kernel.close(fd)
        raise
    except OSError as error:
        kernel.close(fd)
        if error.errno == errno.EACCES:
            raise vf_token_refused(address or path.name, vf_token, roots) from error
        found = holders(path, roots)
        # EBUSY: its group is open. EINVAL: this node is, among other things.
        if error.errno == errno.EBUSY and not found and address:
            group = sysfs.iommu_group(sysfs.device("pci", address, roots))
            found = [] if group is None else holders_of_group(group, roots)
        if error.errno == errno.EBUSY or (error.errno == errno.EINVAL and found):
            raise Busy(
                f"{path} is in use",
                seen=("held by " + ", ".join(map(str, found))) if found else "EBUSY; perhaps its group is open",
                expected="one process at a time, by the group or by this node",
                remedy="end that process" if found else f"as root: fuser -v {path} /dev/vfio/*",
            ) from error
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            raise NotSupported(
                f"{path} cannot be bound to iommufd" + ("" if vf_token is None else " with a VF token"),
                seen=named(error),
                expected="a kernel with VFIO_DEVICE_BIND_IOMMUFD"
                + ("" if vf_token is None else " that takes a token (Linux 6.17)")
                + ", and an IOMMU behind the function",
                remedy=_group_instead(roots) or None,
            ) from error
        raise gone_or_failed(f"binding {path} to iommufd", error) from error
    except BaseException:
        kernel.close(fd)
        raise
    return fd


def _bind(fd: int, ioas: Ioas, kernel: Kernel, address: str, vf_token: str | None, roots: Roots) -> str | None:
    """Bind the node to iommufd (VFIO_DEVICE_BIND_IOMMUFD); returns a VF token that is still to be set, or None."""
    plain = vfio_device_bind_iommufd(argsz=_BIND_SIZE, iommufd=ioas.fd)
    if vf_token is None:
        kernel.ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, plain)
        return None
    uuid = (ctypes.c_uint8 * 16).from_buffer_copy(bytes.fromhex(vf_token.replace("-", "")))
    bind = vfio_device_bind_iommufd(
        argsz=ctypes.sizeof(vfio_device_bind_iommufd),
        flags=VFIO_DEVICE_BIND_FLAG_TOKEN,
        iommufd=ioas.fd,
        token_uuid_ptr=ctypes.addressof(uuid),
    )
    try:
        kernel.ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, bind)
        return None
    except OSError as error:
        # Linux before 6.17 knows no flag. The token of a physical function can be set afterwards.
        if error.errno != errno.EINVAL or not sysfs.is_physical_function(sysfs.device("pci", address, roots)):
            raise
    kernel.ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, plain)
    return vf_token
