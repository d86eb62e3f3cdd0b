"""Asking VFIO for a structure that may be longer than expected."""

from __future__ import annotations

import ctypes
from typing import TypeVar

from uvirtio.errors import OperationFailed
from uvirtio.host.syscalls import Kernel

INFO_LIMIT = 1 << 20
"""No info structure of the kernel's is longer than this, in bytes; a larger ``argsz`` is not followed."""

Head = TypeVar("Head", bound=ctypes.Structure)


def query(kernel: Kernel, fd: int, request: int, head: Head) -> tuple[Head, bytes]:
    """Ask for an info structure, again with more room if the kernel says that it has more to tell.

    Returns the filled-in structure and all bytes, capabilities included. Raises OSError as ioctl does, and
    OperationFailed if the size that the kernel asks for is absurd or never settles.
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
        expected=f"at most {INFO_LIMIT}, and the same when asked again",
    )
