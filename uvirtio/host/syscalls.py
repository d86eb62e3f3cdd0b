"""The system calls that a back end of this kernel makes, as one replaceable object, and what their errors mean."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uvirtio.errors import DeviceGone, OperationFailed
from uvirtio.host.roots import Roots

GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.EIO})
"""Errors of a device that was there and is no more."""

_SCAN_LIMIT = 65536


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


def holders(path: Path, roots: Roots) -> list[str]:
    """The processes that have ``path`` open, as far as ``/proc`` shows them: ``"1234 (python3)"``."""
    found: list[str] = []
    wanted = {str(path), os.path.realpath(path)}
    looked = 0
    try:
        processes = sorted((p for p in roots.proc.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    except OSError:
        return found
    for process in processes:
        try:
            links = list((process / "fd").iterdir())
        except OSError:
            continue
        for link in links:
            looked += 1
            try:
                if str(link.readlink()) in wanted:
                    found.append(f"{process.name} ({_comm(process)})")
                    break
            except OSError:
                continue
        if looked > _SCAN_LIMIT:
            break
    return found


def _comm(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"
