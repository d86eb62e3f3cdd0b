"""VFIO's info structures: the kernel decides how long they are."""

from __future__ import annotations

import ctypes
from typing import TypeVar

from uvirtio.errors import OperationFailed
from uvirtio.host.syscalls import Kernel

INFO_LIMIT = 1 << 20
"""Longest info structure that is read, in bytes; a larger ``argsz`` is an error."""

Head = TypeVar("Head", bound=ctypes.Structure)


def query(kernel: Kernel, fd: int, request: int, head: Head) -> tuple[Head, bytes]:
    """Read an info structure, again with a longer buffer where the kernel has more.

    Args:
        kernel: The system calls.
        fd: The descriptor.
        request: The ioctl.
        head: The structure, filled in as far as the ioctl needs; ``argsz`` is set here.

    Returns:
        The filled-in structure, and all bytes, capabilities included.

    Raises:
        OSError: The ioctl failed.
        OperationFailed: The size that the kernel asks for is absurd, or changes every time.
    """
    size = ctypes.sizeof(head)
    for _ in range(4):
        buffer = bytearray(max(size, ctypes.sizeof(head)))
        buffer[: ctypes.sizeof(head)] = bytes(head)
        view = type(head).from_buffer(buffer)
        view.argsz = len(buffer)
        kernel.ioctl(fd, request, buffer)
        wanted = int(view.argsz)
        if wanted <= len(buffer):
            return type(head).from_buffer_copy(buffer), bytes(buffer)
        if wanted > INFO_LIMIT:
            break
        size = wanted
    raise OperationFailed(
        f"the kernel's answer to ioctl {request:#x} has no usable size",
        seen=f"argsz {wanted}",
        expected=f"at most {INFO_LIMIT}, and the same at the next ioctl",
    )
