"""Device-provided memory through a file: its own memfd, or /dev/mem at its guest-physical address."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress

from uvirtio.errors import Closed, Misuse, NotSupported, OperationFailed, PermissionLack
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots


class FileWindow:
    """``size`` bytes of an open file from ``base`` on; see the MemoryWindow seam. Owns ``fd``."""

    def __init__(self, fd: int, base: int, size: int, *, what: str) -> None:
        self.size = size
        self._fd = fd
        self._base = base
        self._what = what

    def map(self, offset: int, length: int) -> mmap.mmap:
        """Map whole pages, shared, readable and writable; never inherited by a fork.

        Raises Misuse outside the window, PermissionLack, OperationFailed, Closed.
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
        except (OSError, OverflowError) as error:
            raise OperationFailed(
                f"{self._what} cannot be mapped at {self._base + offset:#x}",
                seen=str(error),
                expected=f"{length} bytes of it",
            ) from error
        with suppress(OSError):
            mapping.madvise(mmap.MADV_DONTFORK)
        return mapping

    def close(self) -> None:
        """Close the file; idempotent. What is mapped stays mapped."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def dev_mem(addr: int, size: int, roots: Roots) -> FileWindow:
    """/dev/mem at a guest-physical address. Raises PermissionLack, NotSupported."""
    path = roots.dev / "mem"
    # Without O_SYNC: this is memory, and wants to be cached.
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        seen = os.strerror(error.errno or 0)
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionLack(
                f"{path} cannot be opened",
                seen=seen,
                expected="root (CAP_SYS_RAWIO)",
                remedy="run as root; a locked-down kernel says no to root too",
            ) from error
        raise NotSupported(
            f"{path} cannot be opened",
            seen=seen,
            expected="a kernel with /dev/mem (CONFIG_DEVMEM)",
            remedy="without it plugged memory is reached through the kernel alone",
        ) from error
    return FileWindow(fd, addr, size, what=str(path))
