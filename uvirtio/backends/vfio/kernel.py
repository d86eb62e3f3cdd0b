"""The three system calls that this binding makes, as one replaceable object, and what their errors mean."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from uvirtio.errors import DeviceGone, OperationFailed

INFO_LIMIT = 1 << 20
"""No info structure of the kernel's is longer than this, in bytes; a larger ``argsz`` is not followed."""

GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.EIO})
"""Errors of a device that was there and is no more."""

Head = TypeVar("Head", bound=ctypes.Structure)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is asked of the kernel. Tests put their own functions here; nobody else has a reason to."""

    ioctl: Callable[[int, int, Any], int] = fcntl.ioctl
    open: Callable[[str, int], int] = os.open
    close: Callable[[int], None] = os.close


def named(error: OSError) -> str:
    """``EPERM (Operation not permitted)``."""
    number = error.errno or 0
    return f"{errno.errorcode.get(number, str(number))} ({os.strerror(number)})"


def failed(
    what: str, error: OSError, *, expected: str | None = None, remedy: str | None = None
) -> OperationFailed:
    """An OperationFailed that keeps the errno's name."""
    return OperationFailed(f"{what} failed", seen=named(error), expected=expected, remedy=remedy)


def gone_or_failed(what: str, error: OSError, *, remedy: str | None = None) -> DeviceGone | OperationFailed:
    """DeviceGone for the errors that a removed device gives, OperationFailed for all others."""
    if error.errno in GONE:
        return DeviceGone(
            f"{what} failed: the device does not answer any more",
            seen=named(error),
            expected="a device that is there",
            remedy="look whether the device was removed: uvirtio list",
        )
    return failed(what, error, remedy=remedy)


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
