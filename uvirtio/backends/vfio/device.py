"""A VFIO device: regions, interrupts, reset. Written for vfio-pci; the verbs are VFIO's own."""

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

_RESET_PAUSE = 0.01


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """VFIO_DEVICE_GET_INFO."""

    flags: int
    num_regions: int
    num_irqs: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """VFIO_DEVICE_GET_REGION_INFO: ``size`` and ``offset`` (in the device's file) are bytes; size 0: absent."""

    index: int
    flags: int
    size: int
    offset: int
    sparse: tuple[tuple[int, int], ...] | None
    """Where mmap is limited to parts: (offset in the region, size) of each. None: no such limit."""

    msix_mappable: bool
    """The part that holds the MSI-X table may be mapped as well."""

    @property
    def readable(self) -> bool:
        return bool(self.flags & VFIO_REGION_INFO_FLAG_READ)

    @property
    def writable(self) -> bool:
        return bool(self.flags & VFIO_REGION_INFO_FLAG_WRITE)

    def mappable(self, offset: int, length: int) -> bool:
        """Whether the bytes at ``offset`` of the region may be mapped, as one piece."""
        if not self.flags & VFIO_REGION_INFO_FLAG_MMAP or offset < 0 or length <= 0:
            return False
        areas = ((0, self.size),) if self.sparse is None else self.sparse
        return any(start <= offset and offset + length <= start + size for start, size in areas)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """VFIO_DEVICE_GET_IRQ_INFO of one interrupt index: how many there are; 0: none."""

    index: int
    flags: int
    count: int

    @property
    def eventfd(self) -> bool:
        return bool(self.flags & VFIO_IRQ_INFO_EVENTFD)


class Device:
    """An open VFIO device; ``fd`` comes from :meth:`Group.device_fd` and is owned from then on.

    Order of closing: this device, its group, the container. The kernel clears bus mastering and resets the
    function when the last descriptor closes. All methods raise Closed after ``close()``, DeviceGone when the
    device has been removed.
    """

    def __init__(self, fd: int, name: str, kernel: Kernel | None = None) -> None:
        self._fd = fd
        self._kernel = kernel or Kernel()
        self.name = name

    @property
    def fd(self) -> int:
        """The file descriptor: regions are read and written through it at their offset. Raises Closed."""
        if self._fd < 0:
            raise Closed(f"the VFIO device {self.name} is closed")
        return self._fd

    def info(self) -> DeviceInfo:
        """VFIO_DEVICE_GET_INFO."""
        try:
            head, _ = query(self._kernel, self.fd, VFIO_DEVICE_GET_INFO, vfio_device_info())
        except OSError as error:
            raise gone_or_failed(f"VFIO_DEVICE_GET_INFO of {self.name}", error) from error
        return DeviceInfo(head.flags, head.num_regions, head.num_irqs)

    def region_info(self, index: int) -> RegionInfo:
        """VFIO_DEVICE_GET_REGION_INFO; a region that the device does not have comes back with size 0."""
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
        """VFIO_DEVICE_GET_IRQ_INFO; an interrupt that the device does not have comes back with count 0."""
        argument = vfio_irq_info(argsz=ctypes.sizeof(vfio_irq_info), index=index)
        try:
            self._kernel.ioctl(self.fd, VFIO_DEVICE_GET_IRQ_INFO, argument)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return IrqInfo(index, 0, 0)
            raise gone_or_failed(f"VFIO_DEVICE_GET_IRQ_INFO {index} of {self.name}", error) from error
        return IrqInfo(index, argument.flags, argument.count)

    def set_vf_token(self, token: str) -> None:
        """VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: from now on, who opens a virtual function must know this UUID.

        Args:
            token: The UUID as text.

        Raises:
            OperationFailed: The device is no physical function of SR-IOV.
            DeviceGone: The device is gone.
        """
        data = bytes.fromhex(token.replace("-", ""))
        head = struct.pack("=II", 8 + len(data), VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN)
        try:
            self._kernel.ioctl(self.fd, VFIO_DEVICE_FEATURE, bytearray(head + data))
        except OSError as error:
            raise gone_or_failed(f"setting the VF token of {self.name}", error) from error

    # --- regions ------------------------------------------------------------------------------------------

    def read(self, region: RegionInfo, offset: int, length: int) -> bytes:
        """Bytes of a region by one pread. 1, 2 and 4 aligned bytes are one access of that width each."""
        place = self._place(region, offset, length)
        try:
            data = os.pread(self.fd, length, place)
        except OSError as error:
            raise gone_or_failed(f"reading region {region.index} of {self.name}", error) from error
        if len(data) != length:
            raise self._short(region, len(data), length)
        return data

    def write(self, region: RegionInfo, offset: int, data: bytes) -> None:
        """Write bytes of a region by one pwrite; widths as for :meth:`read`."""
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
            f"region {region.index} of {self.name} does not answer",
            seen=f"{done} bytes",
            expected=f"{length} bytes",
        )

    def mmap(self, region: RegionInfo, offset: int, length: int) -> mmap.mmap:
        """Map whole pages of a region; the caller closes the mapping before the device.

        Touching it while the device decodes no memory, is in reset or was removed raises SIGBUS, which ends a
        Python process: ``read`` and ``write`` raise an error instead. Raises OperationFailed where the kernel
        does not allow it.
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
        """Deliver interrupts ``start``... of ``index`` to these eventfds (-1: to nobody).

        For MSI and MSI-X this turns them on with ``len(fds)`` vectors. Raises OperationFailed, also where the
        kernel has fewer vectors than asked.
        """
        data = array("i", fds).tobytes()
        self._set_irqs(index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, start, len(fds), data)

    def disable_irqs(self, index: int) -> None:
        """Turn all interrupts of ``index`` off."""
        self._set_irqs(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0)

    def trigger(self, index: int, start: int = 0, count: int = 1) -> None:
        """Loopback: signal the eventfds as if the device had interrupted."""
        self._set_irqs(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, start, count)

    def mask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Mask interrupts (INTx only, as the kernel has it)."""
        self._set_irqs(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK, start, count)

    def unmask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Unmask INTx, which the kernel masks at each interrupt; a line still raised fires again at once."""
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
            # A positive answer is the number of vectors that could be had; nothing was turned on.
            raise OperationFailed(
                f"{self.name} cannot have {count} interrupt vectors now",
                seen=f"{left} available",
                expected=f"{count}",
            )

    # --- reset and close ----------------------------------------------------------------------------------

    def reset(self, timeout: float = DEFAULT_TIMEOUT) -> bool:
        """VFIO_DEVICE_RESET: a function-level (or better) reset; False where the device has none.

        While somebody else holds the device's lock the kernel says EAGAIN; that is asked again for ``timeout``
        seconds. Raises OperationFailed or DeviceGone.
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
        """Close the descriptor; idempotent. The kernel stops DMA, turns interrupts off and resets."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._kernel.close(fd)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
