"""The kernel's policy for new memory blocks while memory is added, and a record of it that outlives a kill."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from uvirtio.errors import Busy, EnvironmentLack
from uvirtio.host import privilege, sysfs
from uvirtio.host.lock import await_lock
from uvirtio.online.kernel_view import KernelView

MOVABLE = "online_movable"
_KERNELS_OWN = frozenset({"online", "online_kernel"})
"""Policies by which a new block comes online in a zone that it may never leave again."""


class BlockPolicy:
    """``auto_online_blocks``, and ``/run/uvirtio/auto_online_blocks``, which has what it was while it is changed.

    The lock of the record is held as long: a record that is not locked is that of a process that was killed.
    """

    def __init__(
        self, kernel: KernelView, write: Callable[[Path, str], None], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Nothing is read or changed yet.

        Args:
            kernel: The view of the region.
            write: Writes a text to a file of sysfs.
            sleep: Sleeps for so many seconds.
        """
        self._roots = kernel.roots
        self._policy = kernel.memory / "auto_online_blocks"
        self._record = kernel.roots.run / "uvirtio" / "auto_online_blocks"
        self._write = write
        self._sleep = sleep

    @contextmanager
    def movable(self, timeout: float = 10.0) -> Iterator[None]:
        """While memory is added: blocks that the kernel onlines by itself go to ZONE_MOVABLE.

        Args:
            timeout: Seconds to wait for another process that adds memory.

        Raises:
            Busy: Another process is adding memory.
            EnvironmentLack: There is no place for the record; nothing was changed.
            OperationFailed: The kernel refused the write; Blocked where it did not return in time.
        """
        if sysfs.read(self._policy, 64) not in {MOVABLE, *_KERNELS_OWN}:
            yield
            return
        with self._locked(timeout) as fd:
            self._recover(fd)
            before = sysfs.read(self._policy, 64)
            if before not in _KERNELS_OWN:
                yield
                return
            self._note(fd, before)
            try:
                self._write(self._policy, MOVABLE)
                yield
            finally:
                self._write(self._policy, before)
                os.ftruncate(fd, 0)

    def recover(self) -> None:
        """Give back the policy that a process had changed when it was killed; nothing where one lives that has.

        Raises:
            OperationFailed: The kernel refused the write; Blocked where it did not return in time.
        """
        if sysfs.read(self._record, 64):
            try:
                with self._locked(0.0) as fd:
                    self._recover(fd)
            except Busy:
                pass

    def _recover(self, fd: int) -> None:
        before = os.pread(fd, 64, 0).decode(errors="replace").strip()
        if before in _KERNELS_OWN and sysfs.read(self._policy, 64) == MOVABLE:
            self._write(self._policy, before)
        os.ftruncate(fd, 0)

    def _note(self, fd: int, before: str) -> None:
        try:
            os.pwrite(fd, f"{before}\n".encode(), 0)
        except OSError as error:
            raise self._no_record(error) from error

    @contextmanager
    def _locked(self, timeout: float) -> Iterator[int]:
        record = self._record
        try:
            record.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(record, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._no_record(error) from error
        try:
            if not await_lock(fd, timeout, self._sleep):
                raise Busy(
                    "another process adds memory, and has changed auto_online_blocks meanwhile",
                    seen=f"{record} is locked",
                    expected="one at a time",
                    remedy="wait for it to end",
                )
            yield fd
        finally:
            os.close(fd)

    def _no_record(self, error: OSError) -> EnvironmentLack:
        return EnvironmentLack(
            f"{self._record} cannot be written, so the kernel's policy for new memory is not changed",
            seen=error.strerror,
            expected="a /run that can be written, with room in it",
            remedy=privilege.remedy("run this as root", path=self._record, roots=self._roots)
            if privilege.refused(error)
            else f"see to it that {self._record.parent} can be made, with room in it",
        )
