"""A VFIO device: regions, interrupts, reset. Written for vfio-pci; the methods are VFIO's ioctls."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from uvirtio.backends.vfio.caps import info_caps
from uvirtio.backends.vfio.syscalls import query
from uvirtio.backends.vfio.uapi import (
    VFIO_DEVICE_FEATURE,
    VFIO_DEVICE_FEATURE_PCI_VF_TOKEN,
    VFIO_DEVICE_FEATURE_SET,
    VFIO_DEVICE_GET_INFO,
    VFIO_DEVICE_GET_IRQ_INFO,
    VFIO_DEVICE_GET_REGION_INFO,
    VFIO_DEVICE_RESET,
    VFIO_DEVICE_SET_IRQS,
    VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_SET_ACTION_MASK,
    VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS,
    VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
    vfio_device_info,
    vfio_irq_info,
    vfio_irq_set,
    vfio_region_info,
    vfio_region_info_cap_sparse_mmap,
    vfio_region_sparse_mmap_area,
)
from uvirtio.errors import Closed, DeviceGone, Misuse, OperationFailed
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.syscalls import Kernel, failed, gone_or_failed
from uvirtio.interfaces.values import DEFAULT_TIMEOUT
from uvirtio.memory.unclosed import warn_unclosed

_RESET_PAUSE = 0.01


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The result of VFIO_DEVICE_GET_INFO."""

    flags: int
    num_regions: int
    num_irqs: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """The result of VFIO_DEVICE_GET_REGION_INFO."""

    index: int
    flags: int
    size: int
    """Length in bytes; 0: the device does not have this region."""

    offset: int
    """Where the region begins in the device's file, in bytes."""

    sparse: tuple[tuple[int, int], ...] | None
    """The parts that can be mapped: (offset in the region, length) of each, in bytes. None: no such limit."""

    msix_mappable: bool
    """The part with the MSI-X table may be mapped as well."""

    @property
    def readable(self) -> bool:
        """Whether the region can be read."""
        return bool(self.flags & VFIO_REGION_INFO_FLAG_READ)

    @property
    def writable(self) -> bool:
        """Whether the region can be written."""
        return bool(self.flags & VFIO_REGION_INFO_FLAG_WRITE)

    def mappable(self, offset: int, length: int) -> bool:
        """Whether ``length`` bytes from byte ``offset`` of the region may be mapped, as one piece."""
        if not self.flags & VFIO_REGION_INFO_FLAG_MMAP or offset < 0 or length <= 0:
            return False
        areas = ((0, self.size),) if self.sparse is None else self.sparse
        return any(start <= offset and offset + length <= start + size for start, size in areas)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """The result of VFIO_DEVICE_GET_IRQ_INFO for one interrupt index."""

    index: int
    flags: int
    count: int
    """Number of interrupts (vectors) of this index; 0: none."""

    @property
    def eventfd(self) -> bool:
        """Whether the interrupts can signal eventfds."""
        return bool(self.flags & VFIO_IRQ_INFO_EVENTFD)


class Device:
    """An open VFIO device. A context manager.

    Order of closing: this device, its group, the container. The kernel clears bus mastering and resets the
    function when the last descriptor closes.

    Raises:
        DeviceGone: In any method: the device was removed.
        Closed: In any method: after ``close()``.
    """

    def __init__(self, fd: int, name: str, kernel: Kernel | None = None) -> None:
        """Take over an open device.

        Args:
            fd: What ``Group.device_fd`` or ``open_cdev`` returned; closed by ``close()``.
            name: The device's address, for errors.
            kernel: The system calls; replaced in tests.
        """
        self.name = name
        self._fd = fd
        self._kernel = kernel or Kernel()

    @property
    def fd(self) -> int:
        """The file descriptor: regions are read and written through it at their offset.

        Raises:
            Closed: After ``close()``.
        """
        if self._fd < 0:
            raise Closed(f"the VFIO device {self.name} is closed")
        return self._fd

    def info(self) -> DeviceInfo:
        """Return the flags and the number of regions and interrupts (VFIO_DEVICE_GET_INFO).

        Raises:
            OperationFailed: The kernel refused.
        """
        try:
            head, _ = query(self._kernel, self.fd, VFIO_DEVICE_GET_INFO, vfio_device_info())
        except OSError as error:
            raise gone_or_failed(f"VFIO_DEVICE_GET_INFO of {self.name}", error) from error
        return DeviceInfo(head.flags, head.num_regions, head.num_irqs)

    def region_info(self, index: int) -> RegionInfo:
        """Return place, length and abilities of a region (VFIO_DEVICE_GET_REGION_INFO).

        A region that the device does not have has size 0.

        Raises:
            OperationFailed: The kernel refused, or its structure is malformed.
        """
        try:
            head, data = query(self._kernel, self.fd, VFIO_DEVICE_GET_REGION_INFO, vfio_region_info(index=index))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return RegionInfo(index, 0, 0, 0, None, False)
            raise gone_or_failed(f"VFIO_DEVICE_GET_REGION_INFO {index} of {self.name}", error) from error
        sparse: tuple[tuple[int, int], ...] | None = None
        msix_mappable = False
        first = head.cap_offset if head.flags & VFIO_REGION_INFO_FLAG_CAPS else 0
        for cap in info_caps(data, first, ctypes.sizeof(vfio_region_info)):
            if cap.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP:
                fixed = cap.fields(vfio_region_info_cap_sparse_mmap)
                areas = cap.items(vfio_region_sparse_mmap_area, ctypes.sizeof(fixed), fixed.nr_areas)
                sparse = tuple((a.offset, a.size) for a in areas if a.offset + a.size <= head.size)
            elif cap.id == VFIO_REGION_INFO_CAP_MSIX_MAPPABLE:
                msix_mappable = True
        return RegionInfo(index, head.flags, head.size, head.offset, sparse, msix_mappable)

    def irq_info(self, index: int) -> IrqInfo:
        """Return number and abilities of an interrupt index (VFIO_DEVICE_GET_IRQ_INFO).

        An index that the device does not have has count 0.

        Raises:
            OperationFailed: The kernel refused.
        """
        argument = vfio_irq_info(argsz=ctypes.sizeof(vfio_irq_info), index=index)
        try:
            self._kernel.ioctl(self.fd, VFIO_DEVICE_GET_IRQ_INFO, argument)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return IrqInfo(index, 0, 0)
            raise gone_or_failed(f"VFIO_DEVICE_GET_IRQ_INFO {index} of {self.name}", error) from error
        return IrqInfo(index, argument.flags, argument.count)

    def set_vf_token(self, token: str) -> None:
        """Set the UUID that a process must present to open a virtual function (VFIO_DEVICE_FEATURE_PCI_VF_TOKEN).

        Args:
            token: The UUID as text.

        Raises:
            OperationFailed: The device is not a physical function of SR-IOV.
            DeviceGone: The device was removed.
        """
        data = bytes.fromhex(token.replace("-", ""))
        head = struct.pack("=II", 8 + len(data), VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN)
        try:
            self._kernel.ioctl(self.fd, VFIO_DEVICE_FEATURE, bytearray(head + data))
        except OSError as error:
            raise gone_or_failed(f"setting the VF token of {self.name}", error) from error

    # --- regions ------------------------------------------------------------------------------------------

    def read(self, region: RegionInfo, offset: int, length: int) -> bytes:
        """Read bytes of a region by one pread. 1, 2 or 4 aligned bytes are one access of that width.

        Args:
            region: What ``region_info`` returned.
            offset: Start in the region, in bytes.
            length: Number of bytes.

        Raises:
            Misuse: The bytes are not all in the region.
            OperationFailed: The kernel refused.
        """
        place = self._place(region, offset, length)
        try:
            data = os.pread(self.fd, length, place)
        except OSError as error:
            raise gone_or_failed(f"reading region {region.index} of {self.name}", error) from error
        if len(data) != length:
            raise self._short(region, len(data), length)
        return data

    def write(self, region: RegionInfo, offset: int, data: bytes) -> None:
        """Write bytes of a region by one pwrite. 1, 2 or 4 aligned bytes are one access of that width.

        Args:
            region: What ``region_info`` returned.
            offset: Start in the region, in bytes.
            data: The bytes.

        Raises:
            Misuse: The bytes are not all in the region.
            OperationFailed: The kernel refused.
        """
        place = self._place(region, offset, len(data))
        try:
            done = os.pwrite(self.fd, data, place)
        except OSError as error:
            raise gone_or_failed(f"writing region {region.index} of {self.name}", error) from error
        if done != len(data):
            raise self._short(region, done, len(data))

    def _place(self, region: RegionInfo, offset: int, length: int) -> int:
        if offset < 0 or length < 0 or offset + length > region.size:
            raise Misuse(f"{length} bytes at {offset:#x} of a region of {region.size:#x}")
        return region.offset + offset

    def _short(self, region: RegionInfo, done: int, length: int) -> DeviceGone:
        return DeviceGone(
            f"region {region.index} of {self.name} does not respond",
            seen=f"{done} bytes",
            expected=f"{length} bytes",
        )

    def mmap(self, region: RegionInfo, offset: int, length: int) -> mmap.mmap:
        """Map whole pages of a region; the caller closes the mapping before the device.

        An access to it while the device decodes no memory, is in reset or was removed causes SIGBUS, which ends a
        Python process: ``read`` and ``write`` report an error instead. On arm64 so does every access that is not
        aligned to its width, and slices make such accesses: use items of a cast view (``memory.access``).

        Args:
            region: What ``region_info`` returned.
            offset: Start in the region, in bytes; a multiple of the CPU's page.
            length: Number of bytes; a multiple of the CPU's page.

        Raises:
            OperationFailed: The region cannot be mapped there.
        """
        if offset % CPU_PAGE or length % CPU_PAGE or not region.mappable(offset, length):
            raise OperationFailed(
                f"region {region.index} of {self.name} cannot be mapped there",
                seen=f"{length:#x} bytes at {offset:#x}",
                expected=f"whole pages inside {region.sparse or ((0, region.size),)}",
                remedy="use read and write",
            )
        try:
            mapping = mmap.mmap(self.fd, length, offset=region.offset + offset)
        except OSError as error:
            raise failed(f"mapping region {region.index} of {self.name}", error) from error
        try:
            mapping.madvise(mmap.MADV_DONTFORK)
        except OSError:
            pass  # advice only
        return mapping

    # --- interrupts ---------------------------------------------------------------------------------------

    def set_irqs(self, index: int, fds: Sequence[int], start: int = 0) -> None:
        """Deliver interrupts of an index to eventfds (VFIO_DEVICE_SET_IRQS).

        For MSI and MSI-X this enables them with ``len(fds)`` vectors.

        Args:
            index: The interrupt index, such as VFIO_PCI_MSIX_IRQ_INDEX.
            fds: An eventfd for each interrupt; -1: none.
            start: The first interrupt of the index that ``fds`` is for.

        Raises:
            OperationFailed: The kernel refused, or has fewer vectors.
        """
        data = array("i", fds).tobytes()
        self._set_irqs(index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, start, len(fds), data)

    def disable_irqs(self, index: int) -> None:
        """Disable all interrupts of an index.

        Raises:
            OperationFailed: The kernel refused.
        """
        self._set_irqs(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0)

    def trigger(self, index: int, start: int = 0, count: int = 1) -> None:
        """Signal the eventfds of ``count`` interrupts from ``start``, as if the device had interrupted (loopback).

        Raises:
            OperationFailed: The kernel refused.
        """
        self._set_irqs(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, start, count)

    def mask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Mask ``count`` interrupts from ``start``; the kernel has this for INTx only.

        Raises:
            OperationFailed: The kernel refused.
        """
        self._set_irqs(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK, start, count)

    def unmask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Unmask INTx, which the kernel masks at each interrupt; a line that is still asserted fires again.

        Raises:
            OperationFailed: The kernel refused.
        """
        self._set_irqs(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, start, count)

    def _set_irqs(self, index: int, flags: int, start: int, count: int, data: bytes = b"") -> None:
        size = ctypes.sizeof(vfio_irq_set) + len(data)
        head = vfio_irq_set(argsz=size, flags=flags, index=index, start=start, count=count)
        argument = bytearray(bytes(head) + data)
        try:
            left = self._kernel.ioctl(self.fd, VFIO_DEVICE_SET_IRQS, argument)
        except OSError as error:
            raise gone_or_failed(f"VFIO_DEVICE_SET_IRQS {index} of {self.name}", error) from error
        if left:
            # A positive result is the number of vectors that are available; nothing was enabled.
            raise OperationFailed(
                f"{self.name}: {count} interrupt vectors are not available",
                seen=f"{left} available",
                expected=f"{count}",
            )

    # --- reset and close ----------------------------------------------------------------------------------

    def reset(self, timeout: float = DEFAULT_TIMEOUT) -> bool:
        """Do a function-level (or better) reset (VFIO_DEVICE_RESET); False where the device has none.

        While another process holds the device's lock the kernel returns EAGAIN; the ioctl is repeated then.

        Args:
            timeout: Seconds to repeat it.

        Raises:
            OperationFailed: The reset failed, or the lock was not released in time.
            DeviceGone: The device was removed.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._kernel.ioctl(self.fd, VFIO_DEVICE_RESET, 0)
                return True
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOTTY):
                    return False
                if error.errno != errno.EAGAIN or time.monotonic() >= deadline:
                    raise gone_or_failed(f"VFIO_DEVICE_RESET of {self.name}", error) from error
            time.sleep(_RESET_PAUSE)

    def close(self) -> None:
        """Close the descriptor; idempotent. The kernel stops DMA, disables interrupts and resets the device."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._kernel.close(fd)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warn_unclosed(self, self.name)
