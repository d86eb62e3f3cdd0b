"""The lock of a device, ``/run/uvirtio/ADDRESS.lock``: one process at a time.

Bind and restore take it while they work. A back end whose access the kernel does not lock (/dev/mem) holds it for
as long as the device is open.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from uvirtio.errors import Busy, EnvironmentLack
from uvirtio.host import privilege, process
from uvirtio.host.digits import decimal
from uvirtio.host.roots import Roots


def lock_path(address: str, roots: Roots) -> Path:
    """The lock file of a device: ``/run/uvirtio/ADDRESS.lock``."""
    return roots.run / "uvirtio" / (address.strip("/").replace("/", "_") + ".lock")


def take_lock(address: str, roots: Roots, *, patience: float = 0.0) -> int:
    """Take the lock of a device; closing the file descriptor releases it.

    The file stays: removing it would let two processes hold two locks of one name.

    Args:
        address: The device.
        roots: Where ``/run`` is.
        patience: Seconds to wait for a lock whose taker is dead: its guardian process holds it until the device is
            reset.

    Returns:
        The file descriptor that holds the lock.

    Raises:
        Busy: Another process has the lock.
        EnvironmentLack: The lock file cannot be created.
    """
    path = lock_path(address, roots)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EnvironmentLack(
            f"the lock {path} cannot be made, so nothing may be changed",
            seen=error.strerror,
            expected="a /run that can be written",
            remedy=privilege.remedy("run this as root", path=path, roots=roots)
            if privilege.refused(error)
            else f"see to it that {path.parent} can be made, with room in it",
        ) from error
    try:
        _lock(fd, roots, time.monotonic() + patience)
    except OSError as error:
        holder = _holder(fd, roots)
        os.close(fd)
        raise Busy(
            f"{address} is being bound, restored or driven by another process",
            seen=f"{path} is locked by {holder}",
            expected="one process at a time",
            remedy="wait for it to end",
        ) from error
    with suppress(OSError):  # on a full file system: who has the lock is then not told
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def await_lock(fd: int, timeout: float, sleep: Callable[[float], None]) -> bool:
    """Lock an open file or directory for this process, waiting for another one's lock (flock(2)).

    Args:
        fd: Its descriptor; closing it releases the lock.
        timeout: Seconds to wait.
        sleep: Sleeps for so many seconds, between two tries.

    Returns:
        False where another process still had it at the end.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        sleep(0.05)


def _lock(fd: int, roots: Roots, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            taker = _taker(fd)
            if time.monotonic() >= deadline or (taker and process.exists(taker, roots)):
                raise
        time.sleep(0.05)


def _taker(fd: int) -> int | None:
    """The pid of the process that took the lock; None where the file has none."""
    return decimal(os.pread(fd, 32, 0).decode(errors="replace").strip())


def _holder(fd: int, roots: Roots) -> str:
    """The process whose pid is in the file, with the first two words of its command line."""
    pid = _taker(fd)
    if pid and not process.exists(pid, roots):
        return f"another process, as the guardian of process {pid}, which has ended"
    return str(process.holder(pid, roots)) if pid else "another process"
