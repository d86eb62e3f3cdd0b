"""The system calls that a back end of this kernel makes, as one replaceable object, and what their errors mean."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvirtio.errors import DeviceGone, OperationFailed

GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.EIO})
"""Errors of a device that was there and is no more."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is asked of the kernel. Tests put their own functions here; nobody else has a reason to."""

    ioctl: Callable[[int, int, Any], int] = fcntl.ioctl
    open: Callable[[str, int], int] = os.open
    close: Callable[[int], None] = os.close
    write: Callable[[int, bytes], int] = os.write


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
