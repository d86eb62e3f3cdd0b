"""The system calls that a back end makes, as one replaceable object, and the meaning of their errors."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvirtio.errors import DeviceGone, OperationFailed

GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.EIO})
"""Errors of a device that was removed."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The system calls, each as a function; only tests replace them."""

    ioctl: Callable[[int, int, Any], int] = fcntl.ioctl
    open: Callable[[str, int], int] = os.open
    close: Callable[[int], None] = os.close
    write: Callable[[int, bytes], int] = os.write


def named(error: OSError) -> str:
    """The name and the text of an errno: ``EPERM (Operation not permitted)``."""
    number = error.errno or 0
    return f"{errno.errorcode.get(number, str(number))} ({os.strerror(number)})"


def failed(
    what: str, error: OSError, *, expected: str | None = None, remedy: str | None = None
) -> OperationFailed:
    """An OperationFailed for a system call.

    Args:
        what: The operation, for the message.
        error: What the kernel said; its errno's name becomes ``seen``.
        expected: As for the error.
        remedy: As for the error.
    """
    return OperationFailed(f"{what} failed", seen=named(error), expected=expected, remedy=remedy)


def gone_or_failed(what: str, error: OSError, *, remedy: str | None = None) -> DeviceGone | OperationFailed:
    """DeviceGone for a system call that failed with an errno in ``GONE``, OperationFailed for all others.

    Args:
        what: The operation, for the message.
        error: What the kernel said.
        remedy: As for OperationFailed.
    """
    if error.errno in GONE:
        return DeviceGone(
            f"{what} failed: the device does not answer any more",
            seen=named(error),
            expected="a device that is there",
            remedy="look whether the device was removed: uvirtio list",
        )
    return failed(what, error, remedy=remedy)
