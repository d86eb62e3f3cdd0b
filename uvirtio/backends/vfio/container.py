"""A VFIO container: one I/O address space (``/dev/vfio/vfio``)."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from uvirtio.backends.vfio.caps import info_caps
from uvirtio.backends.vfio.syscalls import query
from uvirtio.backends.vfio.uapi import (
    VFIO_API_VERSION,
    VFIO_CHECK_EXTENSION,
    VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_GET_API_VERSION,
    VFIO_IOMMU_GET_INFO,
    VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_INFO_PGSIZES,
    VFIO_IOMMU_MAP_DMA,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    VFIO_IOMMU_UNMAP_DMA,
    VFIO_NOIOMMU_IOMMU,
    VFIO_SET_IOMMU,
    VFIO_TYPE1_IOMMU,
    VFIO_TYPE1v2_IOMMU,
    vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap,
    vfio_iommu_type1_info,
    vfio_iommu_type1_info_cap_iova_range,
    vfio_iommu_type1_info_dma_avail,
    vfio_iova_range,
)
from uvirtio.errors import (
    Closed,
    MemlockExceeded,
    ModuleLack,
    NotSupported,
    OperationFailed,
    PermissionLack,
    UvirtioError,
)
from uvirtio.host import process, remedies
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import Kernel, failed, named
from uvirtio.memory.unclosed import warn_unclosed

IOMMU_NAMES = {VFIO_TYPE1v2_IOMMU: "type1v2", VFIO_TYPE1_IOMMU: "type1", VFIO_NOIOMMU_IOMMU: "no-IOMMU"}

DEFAULT_RANGES = ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1))
"""For kernels before 5.4, which report no ranges: 39 bits, without the range of x86's MSIs."""


@dataclass(frozen=True, slots=True)
class IommuInfo:
    """The result of VFIO_IOMMU_GET_INFO."""

    page_sizes: int
    """Bitmap of the page sizes of the IOMMU, in bytes."""

    ranges: tuple[tuple[int, int], ...]
    """Usable device addresses as (first byte, last byte)."""

    dma_avail: int | None
    """Number of further maps that the container allows; None where the kernel does not report it."""


class Container:
    """An I/O address space. Devices of the groups in it have the same device addresses. A context manager.

    The kernel requires this order: ``Container.open()``, then a group joins (``Group.set_container``), then
    ``set_iommu``. ``close()`` removes all maps that are left.
    """

    def __init__(self, fd: int, path: Path, kernel: Kernel | None = None, roots: Roots | None = None) -> None:
        """Take over an open ``/dev/vfio/vfio``; use ``open``.

        Args:
            fd: The descriptor; closed by ``close()``.
            path: The node, for errors.
            kernel: The system calls; replaced in tests.
            roots: Where /dev and /proc are.
        """
        self.path = path
        self._fd = fd
        self._kernel = kernel or Kernel()
        self._roots = roots or Roots()
        self.iommu_type: int | None = None
        """VFIO_TYPE1v2_IOMMU or VFIO_TYPE1_IOMMU once set."""

    @classmethod
    def open(cls, roots: Roots | None = None, *, kernel: Kernel | None = None) -> Container:
        """Open ``/dev/vfio/vfio`` below ``roots.dev``.

        Raises:
            ModuleLack: The module vfio is not loaded.
            PermissionLack: This user may not open the node.
            NotSupported: The kernel has another version of the API.
            OperationFailed: The node cannot be opened for another reason.
        """
        roots = roots or Roots()
        kernel = kernel or Kernel()
        path = roots.dev / "vfio" / "vfio"
        try:
            fd = kernel.open(str(path), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _open_error(path, error) from error
        container = cls(fd, path, kernel, roots)
        try:
            container._check_version()
        except BaseException:
            container.close()
            raise
        return container

    def _check_version(self) -> None:
        version = self._kernel.ioctl(self.fd, VFIO_GET_API_VERSION, 0)
        if version != VFIO_API_VERSION:
            raise NotSupported(f"{self.path} has another VFIO version", seen=version, expected=VFIO_API_VERSION)

    @property
    def fd(self) -> int:
        """The file descriptor.

        Raises:
            Closed: After ``close()``.
        """
        if self._fd < 0:
            raise Closed("this VFIO container is closed")
        return self._fd

    def check_extension(self, extension: int) -> bool:
        """Whether this kernel has an IOMMU type or extension (VFIO_CHECK_EXTENSION).

        Raises:
            Closed: After ``close()``.
        """
        try:
            return self._kernel.ioctl(self.fd, VFIO_CHECK_EXTENSION, extension) > 0
        except OSError:
            return False

    def set_iommu(self, iommu_type: int | None = None) -> int:
        """Choose the IOMMU type, after a group has joined (VFIO_SET_IOMMU).

        Args:
            iommu_type: VFIO_TYPE1v2_IOMMU or another of these; None: type1v2, else type1.

        Returns:
            The type that was set.

        Raises:
            ModuleLack: The kernel has no type1 IOMMU.
            PermissionLack: The IOMMU does not isolate interrupts.
            OperationFailed: The kernel refused it for another reason.
        """
        if iommu_type is None:
            offered = [t for t in (VFIO_TYPE1v2_IOMMU, VFIO_TYPE1_IOMMU) if self.check_extension(t)]
            if not offered:
                raise ModuleLack(
                    "this VFIO container has no type1 IOMMU",
                    seen="neither VFIO_TYPE1v2_IOMMU nor VFIO_TYPE1_IOMMU",
                    expected="a type1 IOMMU",
                    remedy="as root: modprobe vfio_iommu_type1",
                )
            iommu_type = offered[0]
        name = IOMMU_NAMES.get(iommu_type, str(iommu_type))
        try:
            self._kernel.ioctl(self.fd, VFIO_SET_IOMMU, iommu_type)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise PermissionLack(
                    "the kernel refuses this IOMMU: it does not isolate interrupts, so a device could forge "
                    "those of others",
                    seen=f"EPERM from VFIO_SET_IOMMU {name}",
                    expected="interrupts that a device cannot forge",
                    remedy=remedies.isolated_interrupts(),
                ) from error
            raise failed(f"VFIO_SET_IOMMU {name}", error) from error
        self.iommu_type = iommu_type
        return iommu_type

    def iommu_info(self) -> IommuInfo:
        """Return page sizes, usable device addresses and free maps (VFIO_IOMMU_GET_INFO).

        Raises:
            OperationFailed: The kernel refused, or its structure is malformed.
        """
        try:
            head, data = query(self._kernel, self.fd, VFIO_IOMMU_GET_INFO, vfio_iommu_type1_info())
        except OSError as error:
            raise failed("VFIO_IOMMU_GET_INFO", error) from error
        sizes = int(head.iova_pgsizes) if head.flags & VFIO_IOMMU_INFO_PGSIZES else CPU_PAGE
        ranges: tuple[tuple[int, int], ...] = DEFAULT_RANGES
        avail: int | None = None
        first = head.cap_offset if head.flags & VFIO_IOMMU_INFO_CAPS else 0
        # An old kernel ends the structure before cap_offset, so a chain may begin from byte 16 on.
        for cap in info_caps(data, first, vfio_iommu_type1_info.cap_offset.offset):
            if cap.id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
                fixed = cap.fields(vfio_iommu_type1_info_cap_iova_range)
                found = cap.items(vfio_iova_range, ctypes.sizeof(fixed), fixed.nr_iovas)
                ranges = tuple((r.start, r.end) for r in found if r.start <= r.end)
            elif cap.id == VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
                avail = int(cap.fields(vfio_iommu_type1_info_dma_avail).avail)
        return IommuInfo(sizes, ranges, avail)

    def map(self, vaddr: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """Pin memory of this process and map it for the devices (VFIO_IOMMU_MAP_DMA).

        Addresses and size are multiples of the IOMMU's page. A map that ends at 2^64 can be made and, with Linux
        6.12, not be unmapped.

        Args:
            vaddr: Virtual address in this process, in bytes.
            iova: Device address, in bytes.
            size: Length, in bytes.
            read: The device may read it.
            write: The device may write it.

        Raises:
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            OperationFailed: Overlap with a map, outside the ranges, no maps left, or another refusal.
        """
        flags = (VFIO_DMA_MAP_FLAG_READ if read else 0) | (VFIO_DMA_MAP_FLAG_WRITE if write else 0)
        argument = vfio_iommu_type1_dma_map(
            argsz=ctypes.sizeof(vfio_iommu_type1_dma_map), flags=flags, vaddr=vaddr, iova=iova, size=size
        )
        try:
            self._kernel.ioctl(self.fd, VFIO_IOMMU_MAP_DMA, argument)
        except OSError as error:
            raise map_error(self._roots, error, iova, size) from error

    def unmap(self, iova: int, size: int) -> None:
        """Remove the maps in a range (VFIO_IOMMU_UNMAP_DMA); their pages are unpinned.

        Args:
            iova: First device address, in bytes.
            size: Length, in bytes.

        Raises:
            OperationFailed: The kernel did not unmap exactly ``size`` bytes.
        """
        argument = vfio_iommu_type1_dma_unmap(
            argsz=ctypes.sizeof(vfio_iommu_type1_dma_unmap), flags=0, iova=iova, size=size
        )
        try:
            self._kernel.ioctl(self.fd, VFIO_IOMMU_UNMAP_DMA, argument)
        except OSError as error:
            raise failed(f"unmapping {size} bytes at the device address {iova:#x}", error) from error
        if argument.size != size:
            raise OperationFailed(
                f"the kernel did not unmap the requested range at {iova:#x}",
                seen=f"{argument.size} bytes",
                expected=f"{size} bytes",
            )

    def close(self) -> None:
        """Close the descriptor; idempotent. Maps are removed once the last device and group are closed, too."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._kernel.close(fd)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warn_unclosed(self, str(self.path))


def map_error(roots: Roots, error: OSError, iova: int, size: int) -> UvirtioError:
    """Return the error that a refused map means.

    Args:
        roots: Where /proc is.
        error: What the ioctl raised.
        iova: Device address of the map, in bytes.
        size: Length of the map, in bytes.

    Returns:
        MemlockExceeded or OperationFailed.
    """
    what = f"mapping {size} bytes at the device address {iova:#x}"
    if error.errno == errno.ENOMEM and (lack := memlock_lack(roots, size)) is not None:
        return lack
    remedies = {
        errno.ENOSPC: "fewer, larger maps, or raise the parameter dma_entry_limit of vfio_iommu_type1",
        errno.EEXIST: "choose device addresses that are free",
        errno.EINVAL: "stay inside the ranges of VFIO_IOMMU_GET_INFO, in whole pages",
    }
    return failed(what, error, remedy=remedies.get(error.errno or 0))


def _open_error(path: Path, error: OSError) -> UvirtioError:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return ModuleLack(
            f"{path} is not there",
            seen=named(error),
            expected="the vfio module",
            remedy="as root: modprobe vfio-pci",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionLack(
            f"{path} may not be opened",
            seen=named(error),
            expected="mode 0666, as the vfio module makes it",
            remedy=f"as root: chmod 0666 {path} (a container alone gives access to no device)",
        )
    return failed(f"opening {path}", error)


def memlock_lack(roots: Roots, size: int, held: int = 0) -> MemlockExceeded | None:
    """Return the error if RLIMIT_MEMLOCK does not allow so many bytes; None if it does.

    Args:
        roots: Where /proc is.
        size: Bytes to pin.
        held: Those of them that are pinned already.
    """
    limit, locked = memlock_limit(roots), locked_bytes(roots) - held
    if limit is None or locked + size <= limit:
        return None
    need = locked + size
    return MemlockExceeded(
        f"pinning another {size} bytes exceeds RLIMIT_MEMLOCK",
        seen=f"limit {limit} bytes, {locked} in use",
        expected=f"at least {need} bytes",
        remedy=f"'ulimit -l {-(-need // 1024)}' in the shell, 'prlimit --memlock={need} COMMAND' as "
        f"root, or a line in /etc/security/limits.d: 'USER - memlock {-(-need // 1024)}'",
    )


def locked_bytes(roots: Roots) -> int:
    """Return what this process has locked or pinned against RLIMIT_MEMLOCK, in bytes.

    Type1 counts its maps as locked (VmLck of ``/proc/self/status``), iommufd as pinned (VmPin).
    """
    return process.status_bytes(("VmLck", "VmPin"), roots)


def memlock_limit(roots: Roots) -> int | None:
    """Return the soft RLIMIT_MEMLOCK in bytes; None where it does not apply (unlimited, or CAP_IPC_LOCK)."""
    if process.capable(process.CAP_IPC_LOCK, roots):
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
