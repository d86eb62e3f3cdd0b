"""Device-provided memory through a file: a memfd of this process, or /dev/mem at its guest-physical address."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress

from uvirtio.errors import Closed, Misuse, NotSupported, OperationFailed, PermissionLack
from uvirtio.host import cpu, privilege, remedies
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots


class FileWindow:
    """A range of an open file as memory that can be mapped. Satisfies ``MemoryWindow``; owns the descriptor."""

    def __init__(self, fd: int, base: int, size: int, *, what: str) -> None:
        """Set the range; nothing is mapped yet.

        Args:
            fd: The file; closed by ``close()``.
            base: Start of the range in the file, in bytes.
            size: Length of the range, in bytes.
            what: The name of the file, for errors.
        """
        self.size = size
        self._fd = fd
        self._base = base
        self._what = what

    def map(self, offset: int, length: int) -> mmap.mmap:
        """Map whole pages, shared, readable and writable; not inherited by a fork. The caller closes the mapping.

        Args:
            offset: Start in the window, in bytes.
            length: Number of bytes.

        Raises:
            Misuse: Outside the window, or not in whole pages.
            PermissionLack: The kernel does not allow it.
            OperationFailed: The map failed otherwise.
            Closed: After ``close()``.
        """
        if self._fd < 0:
            raise Closed(f"{self._what} is closed")
        if offset < 0 or length <= 0 or offset + length > self.size or (offset | length) % CPU_PAGE:
            raise Misuse(f"{length} bytes at {offset:#x} of {self.size:#x}, in pages of {CPU_PAGE}")
        try:
            mapping = mmap.mmap(self._fd, length, offset=self._base + offset)
        except PermissionError as error:
            raise PermissionLack(
                f"{self._what} cannot be mapped at {self._base + offset:#x}",
                seen=os.strerror(error.errno or 0),
                expected="a range that the kernel does not use itself",
                remedy="the kernel has this memory itself (look in /proc/iomem), or it is locked down",
            ) from error
        except (OSError, OverflowError, ValueError) as error:  # ValueError: the file is shorter than that
            raise OperationFailed(
                f"{self._what} cannot be mapped at {self._base + offset:#x}",
                seen=str(error),
                expected=f"{length} bytes of it",
            ) from error
        with suppress(OSError):
            mapping.madvise(mmap.MADV_DONTFORK)
        return mapping

    def close(self) -> None:
        """Close the file; idempotent. Existing mappings stay."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def dev_mem(addr: int, size: int, roots: Roots) -> FileWindow:
    """Open /dev/mem as a window at a guest-physical address.

    Args:
        addr: The guest-physical address, in bytes.
        size: Length in bytes.
        roots: Where /dev is.

    Raises:
        NotSupported: The kernel has no /dev/mem, or this CPU maps what is not in the kernel's memory map as Device
            memory, where the unaligned access of a slice ends the process with SIGBUS.
        PermissionLack: This user may not open it, or the kernel is locked down.
    """
    path = roots.dev / "mem"
    if not cpu.maps_any_memory_as_normal():
        raise NotSupported(
            f"plugged memory cannot be used through {path} on this CPU",
            seen=f"{cpu.machine()}, which maps memory that Linux does not know of as device memory",
            expected="ordinary memory, in which any access may be unaligned",
            remedy=remedies.plugged_memory(),
        )
    # Without O_SYNC: this is memory, and must be cached.
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        seen = os.strerror(error.errno or 0)
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionLack(
                f"{path} cannot be opened",
                seen=seen,
                expected="root (CAP_SYS_RAWIO)",
                remedy=privilege.remedy("run as root (CAP_SYS_RAWIO)", path=path, roots=roots),
            ) from error
        raise NotSupported(
            f"{path} cannot be opened",
            seen=seen,
            expected="a kernel with /dev/mem (CONFIG_DEVMEM)",
            remedy="without it plugged memory is reached through the kernel alone",
        ) from error
    return FileWindow(fd, addr, size, what=str(path))
