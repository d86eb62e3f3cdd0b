"""An open vhost-vdpa node: one method for each ioctl, under the kernel's name.

Opening resets the device, and so does closing. One process owns it: vhost ties it to the address space that
called VHOST_SET_OWNER, so a forked child may not use it.

The kernel decides how long an ioctl takes, and no signal ends it. Where a process implements the device
(VDUSE) the kernel waits ``msg_timeout`` seconds for it (30, in ``/sys/class/vduse/NAME``); from then on every
ioctl fails with EIO at once: that is DeviceGone here.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from uvirtio.backends.vhost_vdpa import uapi
from uvirtio.backends.vhost_vdpa.memory import VdpaDmaSpace
from uvirtio.backends.vhost_vdpa.names import behind, calls_of, kind_of, require_bound
from uvirtio.errors import (
    Busy,
    Closed,
    NoIommu,
    NoSuchDevice,
    NotSupported,
    OperationFailed,
    PermissionLack,
    UvirtioError,
)
from uvirtio.host import privilege, remedies
from uvirtio.host.process import holders
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import GONE, Kernel, failed, gone_or_failed, named
from uvirtio.memory.iova import IovaAllocator
from uvirtio.memory.unclosed import warn_unclosed

ENOTSUPP = 524
"""An error number of the kernel (<linux/errno.h>) that vhost-vdpa returns; user space has no name for it."""

_ENOIOCTLCMD = 515

_LACKING = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, ENOTSUPP, _ENOIOCTLCMD})
_WORDS = 2
"""Number of 64-bit words of features that are requested: virtio has 128 feature bits (2.2)."""

_WORD = (1 << 64) - 1

WANTED_BACKEND_FEATURES = (
    1 << uapi.VHOST_BACKEND_F_IOTLB_MSG_V2
    | 1 << uapi.VHOST_BACKEND_F_IOTLB_BATCH
    | 1 << uapi.VHOST_BACKEND_F_SUSPEND
    | 1 << uapi.VHOST_BACKEND_F_RESUME
)
"""Not among them: ENABLE_AFTER_DRIVER_OK, because queues are enabled before it (3.1.1); IOTLB_ASID and DESC_ASID,
because one address space is enough; IOTLB_PERSIST, because no map here outlives a reset."""

_MSI_WINDOW = (0xFEE0_0000, 0xFEEF_FFFF)
"""Addresses of x86's interrupt messages. VFIO excludes them from its ranges; vhost-vdpa reports them as usable."""


class VhostVdpaNode:
    """``/dev/vhost-vdpa-N``, open and owned by this process. Satisfies ``VdpaNode``; a context manager.

    Raises:
        NotSupported: In any ioctl: this kernel or device does not implement it.
        PermissionLack: In any ioctl: the node belongs to another process.
        DeviceGone: In any ioctl: the parent device does not respond any more.
        OperationFailed: In any ioctl: the kernel refused for another reason.
        Closed: In any method: after ``close()``.
    """

    bus: Literal["vdpa"] = "vdpa"

    def __init__(self, fd: int, address: str, name: str, roots: Roots, kernel: Kernel | None = None) -> None:
        """Take over an open node; use ``open``.

        Args:
            fd: The descriptor; closed by ``close()``.
            address: The node, ``/dev/vhost-vdpa-0``.
            name: The name of the vDPA device.
            roots: Where /dev, /sys and /proc are.
            kernel: The system calls; replaced in tests.
        """
        self.address = address
        self._fd = fd
        self._kernel = kernel or Kernel()
        self._roots = roots
        self._spaces: list[VdpaDmaSpace] = []
        self._iova: IovaAllocator | None = None
        self._batching = False
        self.name = name
        self.calls = calls_of(name, roots)
        self.kind = kind_of(name, roots)
        """What makes the device: ``vp-vdpa``, ``vduse``, the driver of a card; empty where it is not told."""
        self.description = f"vhost-vdpa, {name} of {behind(name, roots)}"
        self.backend_features = 0
        """The VHOST_BACKEND_F bits that were accepted with VHOST_SET_BACKEND_FEATURES."""

    @classmethod
    def open(cls, address: str, roots: Roots | None = None, *, kernel: Kernel | None = None) -> VhostVdpaNode:
        """Open and own a device. **The kernel resets it.** The caller has checked the deny list.

        Args:
            address: ``vdpa:NAME`` or ``/dev/vhost-vdpa-N``.
            roots: Where /dev, /sys and /proc are.
            kernel: The system calls; replaced in tests.

        Raises:
            NoSuchDevice: There is no such device, or no node for it.
            NotBound: The device is not bound to vhost_vdpa.
            Busy: Another process has it open.
            PermissionLack: This user may not open the node.
            NoIommu: No IOMMU translates the parent device's addresses.
            DeviceGone: The parent device does not respond.
            OperationFailed: The kernel refused for another reason.
        """
        roots = roots or Roots()
        kernel = kernel or Kernel()
        node, name = require_bound(address, roots)
        path = roots.dev / Path(node).name
        try:
            fd = kernel.open(str(path), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _open_error(path, name, roots, error) from error
        opened = cls(fd, node, name, roots, kernel)
        try:
            opened.set_owner()
            opened._agree()
        except BaseException:
            opened.close()
            raise
        return opened

    def _agree(self) -> None:
        offered = self.get_backend_features()
        self.set_backend_features(offered & WANTED_BACKEND_FEATURES)

    @property
    def fd(self) -> int:
        """The file descriptor.

        Raises:
            Closed: After ``close()``.
        """
        if self._fd < 0:
            raise Closed(f"{self.address} is closed")
        return self._fd

    # --- ioctls ---------------------------------------------------------------------------------------------

    def _ioctl(self, what: str, request: int, argument: Any) -> None:
        try:
            self._kernel.ioctl(self.fd, request, argument)
        except OSError as error:
            raise self._refused(what, error) from error

    def _refused(self, what: str, error: OSError) -> UvirtioError:
        if error.errno in _LACKING:
            return NotSupported(
                f"{what}: not supported by this kernel or by {self.name}",
                seen=_named(error),
                expected=f"a device that can; {self.description}",
            )
        if error.errno == errno.EPERM:
            return PermissionLack(
                f"{what}: {self.address} belongs to another process",
                seen=f"{_named(error)}, in process {os.getpid()}",
                expected="the process that opened it (vhost ties a node to one address space)",
                remedy="open the device after the fork",
            )
        return gone_or_failed(
            f"{what} of {self.address}",
            error,
            remedy="see the kernel's log (dmesg)",
        )

    def _get(self, what: str, request: int, kind: type[ctypes._SimpleCData[int]]) -> int:
        value = kind()
        self._ioctl(what, request, value)
        return int(value.value)

    def _state(self, what: str, request: int, index: int, num: int = 0) -> int:
        state = uapi.vhost_vring_state(index=index, num=num)
        self._ioctl(f"{what} of queue {index}", request, state)
        return int(state.num)

    def set_owner(self) -> None:
        """Own the device (VHOST_SET_OWNER).

        Raises:
            Busy: The device has an owner already.
        """
        try:
            self._kernel.ioctl(self.fd, uapi.VHOST_SET_OWNER, 0)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise _busy(self._roots.dev / Path(self.address).name, self.name, self._roots, error) from error
            raise self._refused("VHOST_SET_OWNER", error) from error

    def get_backend_features(self) -> int:
        """Return a mask of VHOST_BACKEND_F bits (VHOST_GET_BACKEND_FEATURES)."""
        return self._get("VHOST_GET_BACKEND_FEATURES", uapi.VHOST_GET_BACKEND_FEATURES, ctypes.c_uint64)

    def set_backend_features(self, features: int) -> None:
        """Accept VHOST_BACKEND_F bits (VHOST_SET_BACKEND_FEATURES); once, after VHOST_SET_OWNER."""
        word = ctypes.c_uint64(features)
        self._ioctl("VHOST_SET_BACKEND_FEATURES", uapi.VHOST_SET_BACKEND_FEATURES, word)
        self.backend_features = features

    def backend_has(self, bit: int) -> bool:
        """Whether this VHOST_BACKEND_F bit was accepted."""
        return bool(self.backend_features >> bit & 1)

    def get_device_id(self) -> int:
        """Return the virtio device ID (VHOST_VDPA_GET_DEVICE_ID)."""
        return self._get("VHOST_VDPA_GET_DEVICE_ID", uapi.VHOST_VDPA_GET_DEVICE_ID, ctypes.c_uint32)

    def get_status(self) -> int:
        """Return the device status (VHOST_VDPA_GET_STATUS)."""
        return self._get("VHOST_VDPA_GET_STATUS", uapi.VHOST_VDPA_GET_STATUS, ctypes.c_uint8)

    def set_status(self, value: int) -> None:
        """Write the device status (VHOST_VDPA_SET_STATUS); 0 resets the device."""
        self._ioctl("VHOST_VDPA_SET_STATUS", uapi.VHOST_VDPA_SET_STATUS, ctypes.c_uint8(value))

    def get_features(self) -> int:
        """Return the offered features: VHOST_GET_FEATURES_ARRAY where the kernel has it for vDPA, else 64 bits."""
        words = self._features_array()
        if words is not None:
            return sum(word << 64 * place for place, word in enumerate(words))
        return self._get("VHOST_GET_FEATURES", uapi.VHOST_GET_FEATURES, ctypes.c_uint64)

    def _features_array(self) -> list[int] | None:
        buffer = _array([0] * _WORDS)
        try:
            self._kernel.ioctl(self.fd, uapi.VHOST_GET_FEATURES_ARRAY, buffer)
        except OSError as error:
            if error.errno in GONE:
                raise self._refused("VHOST_GET_FEATURES_ARRAY", error) from error
            # A kernel without it takes the count for the number of a queue, so any error is possible.
            return None
        return _words(buffer)

    def set_features(self, features: int) -> None:
        """Write the accepted features before FEATURES_OK (VHOST_SET_FEATURES, or its array for a bit above 63)."""
        if features >> 64:
            words = [features >> 64 * place & _WORD for place in range(_WORDS)]
            self._ioctl("VHOST_SET_FEATURES_ARRAY", uapi.VHOST_SET_FEATURES_ARRAY, _array(words))
        else:
            self._ioctl("VHOST_SET_FEATURES", uapi.VHOST_SET_FEATURES, ctypes.c_uint64(features))

    def get_config_size(self) -> int:
        """Return the length of the device configuration in bytes (VHOST_VDPA_GET_CONFIG_SIZE)."""
        return self._get("VHOST_VDPA_GET_CONFIG_SIZE", uapi.VHOST_VDPA_GET_CONFIG_SIZE, ctypes.c_uint32)

    def get_config(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes, at least one, from byte ``offset`` of the configuration (VHOST_VDPA_GET_CONFIG).

        The kernel reads them as one access, where it can.
        """
        head = ctypes.sizeof(uapi.vhost_vdpa_config)
        buffer = bytearray(bytes(uapi.vhost_vdpa_config(off=offset, len=length)) + bytes(length))
        self._ioctl("VHOST_VDPA_GET_CONFIG", uapi.VHOST_VDPA_GET_CONFIG, buffer)
        return bytes(buffer[head:])

    def set_config(self, offset: int, data: bytes) -> None:
        """Write ``data`` from byte ``offset`` of the configuration on (VHOST_VDPA_SET_CONFIG).

        Some devices ignore it silently (VDUSE's configuration is read-only).
        """
        buffer = bytearray(bytes(uapi.vhost_vdpa_config(off=offset, len=len(data))) + data)
        self._ioctl("VHOST_VDPA_SET_CONFIG", uapi.VHOST_VDPA_SET_CONFIG, buffer)

    def get_vqs_count(self) -> int:
        """Return the number of queues (VHOST_VDPA_GET_VQS_COUNT)."""
        return self._get("VHOST_VDPA_GET_VQS_COUNT", uapi.VHOST_VDPA_GET_VQS_COUNT, ctypes.c_uint32)

    def get_vring_num(self) -> int:
        """Return the largest queue size in entries, over all queues (VHOST_VDPA_GET_VRING_NUM)."""
        return self._get("VHOST_VDPA_GET_VRING_NUM", uapi.VHOST_VDPA_GET_VRING_NUM, ctypes.c_uint16)

    def get_vring_size(self, index: int) -> int | None:
        """Return the maximum size of a queue in entries (VHOST_VDPA_GET_VRING_SIZE, Linux 6.9), or None."""
        try:
            return self._state("VHOST_VDPA_GET_VRING_SIZE", uapi.VHOST_VDPA_GET_VRING_SIZE, index)
        except NotSupported:
            return None

    def set_vring_num(self, index: int, num: int) -> None:
        """Set the size of a queue in entries (VHOST_SET_VRING_NUM)."""
        self._state("VHOST_SET_VRING_NUM", uapi.VHOST_SET_VRING_NUM, index, num)

    def set_vring_addr(self, index: int, desc: int, avail: int, used: int) -> None:
        """Set the IOVAs of the descriptor, driver and device areas of a queue (VHOST_SET_VRING_ADDR)."""
        argument = uapi.vhost_vring_addr(
            index=index, flags=0, desc_user_addr=desc, avail_user_addr=avail, used_user_addr=used
        )
        self._ioctl(f"VHOST_SET_VRING_ADDR of queue {index}", uapi.VHOST_SET_VRING_ADDR, argument)

    def set_vring_base(self, index: int, base: int) -> None:
        """Set the index at which the device begins (VHOST_SET_VRING_BASE).

        A split queue begins at 0 after every reset. For a packed queue: available index and wrap counter in the
        low 16 bits, used index and wrap counter in the high 16 bits.
        """
        self._state("VHOST_SET_VRING_BASE", uapi.VHOST_SET_VRING_BASE, index, base)

    def get_vring_base(self, index: int) -> int:
        """Return the index at which the device goes on (VHOST_GET_VRING_BASE), as for ``set_vring_base``."""
        return self._state("VHOST_GET_VRING_BASE", uapi.VHOST_GET_VRING_BASE, index)

    def _file(self, what: str, request: int, index: int, fd: int) -> None:
        self._ioctl(f"{what} of queue {index}", request, uapi.vhost_vring_file(index=index, fd=fd))

    def set_vring_kick(self, index: int, fd: int) -> None:
        """Set the eventfd by which the driver kicks a queue (VHOST_SET_VRING_KICK); -1 removes it."""
        self._file("VHOST_SET_VRING_KICK", uapi.VHOST_SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int) -> None:
        """Set the eventfd that signals used buffers of a queue (VHOST_SET_VRING_CALL); -1 removes it."""
        self._file("VHOST_SET_VRING_CALL", uapi.VHOST_SET_VRING_CALL, index, fd)

    def set_vring_enable(self, index: int, on: bool) -> None:
        """Enable or disable a queue (VHOST_VDPA_SET_VRING_ENABLE)."""
        self._state("VHOST_VDPA_SET_VRING_ENABLE", uapi.VHOST_VDPA_SET_VRING_ENABLE, index, int(on))

    def set_config_call(self, fd: int) -> None:
        """Set the eventfd that signals configuration changes (VHOST_VDPA_SET_CONFIG_CALL); -1 removes it."""
        self._ioctl("VHOST_VDPA_SET_CONFIG_CALL", uapi.VHOST_VDPA_SET_CONFIG_CALL, ctypes.c_int(fd))

    def get_iova_range(self) -> tuple[int, int]:
        """Return the first and the last byte of the usable device addresses (VHOST_VDPA_GET_IOVA_RANGE)."""
        found = uapi.vhost_vdpa_iova_range()
        self._ioctl("VHOST_VDPA_GET_IOVA_RANGE", uapi.VHOST_VDPA_GET_IOVA_RANGE, found)
        return int(found.first), int(found.last)

    def suspend(self) -> None:
        """Stop the queues; their state is kept (VHOST_VDPA_SUSPEND).

        Raises:
            NotSupported: VHOST_BACKEND_F_SUSPEND was not accepted.
        """
        self._need(uapi.VHOST_BACKEND_F_SUSPEND, "VHOST_VDPA_SUSPEND")
        self._ioctl("VHOST_VDPA_SUSPEND", uapi.VHOST_VDPA_SUSPEND, 0)

    def resume(self) -> None:
        """Continue after ``suspend`` (VHOST_VDPA_RESUME).

        Raises:
            NotSupported: VHOST_BACKEND_F_RESUME was not accepted.
        """
        self._need(uapi.VHOST_BACKEND_F_RESUME, "VHOST_VDPA_RESUME")
        self._ioctl("VHOST_VDPA_RESUME", uapi.VHOST_VDPA_RESUME, 0)

    def _need(self, bit: int, what: str) -> None:
        if not self.backend_has(bit):
            raise NotSupported(
                f"{what}: {self.name} does not offer it",
                seen=f"backend features {self.backend_features:#x}",
                expected=f"bit {bit}",
            )

    # --- IOTLB messages -------------------------------------------------------------------------------------

    def iotlb_update(self, iova: int, size: int, vaddr: int, perm: int = uapi.VHOST_ACCESS_RW) -> None:
        """Pin memory of this process and map it for the device (VHOST_IOTLB_UPDATE).

        Args:
            iova: Device address, in bytes.
            size: Length, in bytes.
            vaddr: Virtual address in this process, in bytes.
            perm: VHOST_ACCESS_RO, _WO or _RW: what the device may do.

        Raises:
            OperationFailed: The kernel refused; one errno (EFAULT) stands for every cause.
        """
        self._message(uapi.VHOST_IOTLB_UPDATE, iova=iova, size=size, uaddr=vaddr, perm=perm)

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        """Remove every map in a range (VHOST_IOTLB_INVALIDATE); each has to be in it as a whole.

        Args:
            iova: First device address, in bytes.
            size: Length, in bytes.

        Raises:
            OperationFailed: The kernel refused.
        """
        self._message(uapi.VHOST_IOTLB_INVALIDATE, iova=iova, size=size)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Group several messages: the device may be updated once, at the end (VHOST_IOTLB_BATCH_BEGIN and _END).

        No effect where VHOST_BACKEND_F_IOTLB_BATCH was not accepted.

        Raises:
            OperationFailed: The kernel refused.
        """
        if self._batching or not self.backend_has(uapi.VHOST_BACKEND_F_IOTLB_BATCH):
            yield
            return
        self._message(uapi.VHOST_IOTLB_BATCH_BEGIN)
        self._batching = True
        try:
            yield
        finally:
            self._batching = False
            self._message(uapi.VHOST_IOTLB_BATCH_END)

    def _message(self, kind: int, **fields: int) -> None:
        message: uapi.vhost_msg | uapi.vhost_msg_v2
        if self.backend_has(uapi.VHOST_BACKEND_F_IOTLB_MSG_V2):
            message = uapi.vhost_msg_v2(type=uapi.VHOST_IOTLB_MSG_V2)
        else:
            message = uapi.vhost_msg(type=uapi.VHOST_IOTLB_MSG)
        message.iotlb = uapi.vhost_iotlb_msg(type=kind, **fields)
        data = bytes(message)
        try:
            written = self._kernel.write(self.fd, data)
        except OSError as error:
            raise failed(
                f"the IOTLB message {kind} to {self.address}",
                error,
                expected="a range of VHOST_VDPA_GET_IOVA_RANGE with no map in it, "
                "and memory that may be pinned, in few runs of page frames",
                remedy="see the kernel's log (dmesg); scattered memory: 'echo 1 > /proc/sys/vm/compact_memory'",
            ) from error
        if written != len(data):
            raise OperationFailed(
                f"the kernel accepted only a part of an IOTLB message to {self.address}",
                seen=f"{written} bytes",
                expected=f"{len(data)} bytes",
            )

    # --- memory, close --------------------------------------------------------------------------------------

    def dma(self, translated: bool) -> VdpaDmaSpace:
        """Return memory for this device. The caller closes it after the device was reset.

        Args:
            translated: Whether ACCESS_PLATFORM was negotiated; has to be True.

        Raises:
            NotSupported: ``translated`` is False: a vDPA device has no addresses but IOVAs.
            OperationFailed: The kernel does not report the range of IOVAs.
        """
        if not translated:
            raise NotSupported(
                f"{self.address} does not offer ACCESS_PLATFORM, so the device would take IOVAs for physical "
                "addresses and write to pages that have another owner",
                seen="no VIRTIO_F_ACCESS_PLATFORM (6.1)",
                expected="a device that goes through the IOMMU, as every vDPA device should",
                remedy="give the parent device iommu_platform=on (QEMU), or bind the PCI function to vfio-pci",
            )
        if self._iova is None:
            self._iova = IovaAllocator(_usable(self.get_iova_range()))
        space = VdpaDmaSpace(self, self._iova, self._roots)
        self._spaces.append(space)
        return space

    def close(self) -> None:
        """Close the node; idempotent. The kernel resets the device and removes all maps."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with ExitStack() as stack:  # runs backwards: memory after the device that uses it
            for space in self._spaces:
                stack.callback(space.abandon)
            self._kernel.close(fd)

    def __enter__(self) -> VhostVdpaNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warn_unclosed(self, self.address)


def _usable(whole: tuple[int, int]) -> list[tuple[int, int]]:
    """The pieces of a range of device addresses that are not the place of interrupt messages."""
    first, last = whole
    low, high = _MSI_WINDOW
    pieces = [(first, min(last, low - 1)), (max(first, high + 1), last)]
    return [(start, end) for start, end in pieces if start <= end]


def _array(words: list[int]) -> bytearray:
    """Return a ``vhost_features_array`` with these words."""
    values = (ctypes.c_uint64 * len(words))(*words)
    return bytearray(bytes(uapi.vhost_features_array(count=len(words))) + bytes(values))


def _words(buffer: bytearray) -> list[int]:
    return list((ctypes.c_uint64 * _WORDS).from_buffer_copy(buffer, ctypes.sizeof(uapi.vhost_features_array)))


def _named(error: OSError) -> str:
    return "ENOTSUPP (not supported by the kernel's driver)" if error.errno == ENOTSUPP else named(error)


def _busy(path: Path, name: str, roots: Roots, error: OSError) -> Busy:
    found = holders(path, roots)
    return Busy(
        f"the vDPA device {name} is in use",
        seen=f"{path} is held by " + ", ".join(map(str, found)) if found else _named(error),
        expected="one process at a time",
        remedy="end that process" if found else f"as root: fuser -v {path}",
    )


def _open_error(path: Path, name: str, roots: Roots, error: OSError) -> UvirtioError:
    if error.errno == errno.EBUSY:
        return _busy(path, name, roots, error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionLack(
            f"{path} may not be opened",
            seen=f"{_named(error)}, as user {os.geteuid()}",
            expected="root, or the owner of the node",
            remedy=privilege.remedy(
                "run as root, or let root give you this one device: uvirtio bind DEV --owner USER "
                "(refused for a balloon or mem device)",
                path=path,
                roots=roots,
            ),
        )
    if error.errno in (ENOTSUPP, errno.ENODEV):
        # vhost_vdpa needs an IOMMU that keeps caches coherent, unless the device translates by itself.
        return NoIommu(
            f"{name} cannot be opened: nothing translates its addresses",
            seen=_named(error),
            expected="a parent device behind an IOMMU that the kernel uses",
            remedy=remedies.iommu(),
        )
    if error.errno in (errno.ENOENT, errno.ENXIO):
        return NoSuchDevice(
            f"{path} is not there",
            seen=_named(error),
            expected=f"the node of {name}",
            remedy=f"uvirtio bind vdpa:{name}; is /dev a devtmpfs here?",
        )
    return gone_or_failed(f"opening {path}", error)
