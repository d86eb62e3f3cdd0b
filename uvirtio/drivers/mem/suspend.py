"""Inhibiting suspend to RAM while memory is plugged that would be lost (5.15.6.1).

A user-space driver cannot forbid a suspend as a kernel driver does. It can take an inhibitor lock of
systemd-logind, and a wake lock where the kernel has those. Both end with this process, however it ends; the
plugged memory does not, which is why the command line says so.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from types import TracebackType
from typing import IO, Self

from uvirtio.host import wake_lock
from uvirtio.host.roots import Roots
from uvirtio.memory.unclosed import warn_unclosed

TIMEOUT = 5.0
"""Seconds to wait for logind's lock."""

_WORD = b"held\n"


def _logind(roots: Roots) -> str | None:
    """The program that asks logind; None where there is none, or logind does not run."""
    return shutil.which("systemd-inhibit") if (roots.run / "systemd/seats").exists() else None


class SuspendLock:
    """Inhibits suspend between ``hold()`` and ``release()``, which are idempotent. A context manager."""

    def __init__(self, why: str, *, roots: Roots | None = None, timeout: float = TIMEOUT) -> None:
        """Make a lock that is not held yet.

        Args:
            why: The reason that ``systemd-inhibit --list`` shows.
            roots: Whose /run and /sys to use.
            timeout: Seconds to wait for logind.
        """
        self._why = why
        self._roots = roots or Roots()
        self._timeout = timeout
        self._child: subprocess.Popen[bytes] | None = None
        self._wake_lock: str | None = None
        self._held, self._holder = False, 0
        self.lacking: list[str] = []
        """Why a kind of lock could not be taken, in words."""

    @property
    def means(self) -> list[str]:
        """The locks that are held now: ``systemd-inhibit``, ``wake_lock``."""
        found = []
        if self._child is not None and self._child.poll() is None:
            found.append("systemd-inhibit")
        if self._wake_lock is not None:
            found.append("wake_lock")
        return found

    def rights(self) -> dict[str, str]:
        """The capabilities that taking and releasing the locks needs, each with why."""
        needed = {}
        if wake_lock.supported(self._roots):
            needed["CAP_BLOCK_SUSPEND"] = "a wake lock is held while memory is plugged"
        if _logind(self._roots) is not None:  # who asks for the right by that capability, up to version 255
            needed["CAP_SYS_BOOT"] = "logind is asked to inhibit suspend while memory is plugged"
        return needed

    def hold(self) -> list[str]:
        """Inhibit suspend from now on.

        Returns:
            The locks that are held, as ``means``; empty where this machine has none, see ``lacking``.
        """
        if not self._held:
            self._held, self._holder = True, os.getpid()
            self.lacking.clear()
            self._ask_logind()
            self._take_wake_lock()
        return self.means

    def release(self) -> None:
        """Release all locks; idempotent. In a forked child nothing: they are the parent's."""
        if self._holder not in (0, os.getpid()):
            return
        self._held, self._holder = False, 0
        child, self._child = self._child, None
        if child is not None:
            _end(child)
        name, self._wake_lock = self._wake_lock, None
        if name is not None:
            try:
                wake_lock.drop(name, self._roots)
            except OSError as error:
                self.lacking.append(f"wake_unlock: {error.strerror}")

    close = release

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_held", False) and self._holder == os.getpid():
            warn_unclosed(self, self._why, then=self.release)

    # --- the two ways ---------------------------------------------------------------------------------------

    def _ask_logind(self) -> None:
        """systemd-inhibit(1) holds a lock as long as its command runs, which is as long as this process runs."""
        program = _logind(self._roots)
        if program is None:
            self.lacking.append("systemd-logind does not run here")
            return
        command = [program, "--what=sleep", "--who=uvirtio", f"--why={self._why}", "--mode=block"]
        child = subprocess.Popen(
            [*command, "sh", "-c", "echo held; exec cat >/dev/null"],
            stdin=subprocess.PIPE,  # closed when this process ends, also by kill -9: then cat ends, and the lock
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for this process, which releases the lock after its cleanup
        )
        assert child.stdout is not None
        if _said(child.stdout, _WORD, self._timeout):
            self._child = child
        else:
            _end(child)
            self.lacking.append("systemd-logind grants no lock")

    def _take_wake_lock(self) -> None:
        if not wake_lock.supported(self._roots):
            self.lacking.append("this kernel has no wake locks")
            return
        name = f"uvirtio-{os.getpid()}"
        try:
            wake_lock.take(name, self._roots)
        except OSError as error:
            self.lacking.append(f"wake_lock: {error.strerror}")
        else:
            self._wake_lock = name


def _said(stream: IO[bytes], word: bytes, timeout: float) -> bool:
    """Whether ``word`` is read within ``timeout`` seconds."""
    deadline, data = time.monotonic() + timeout, b""
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    while word not in data:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            return False
        piece = os.read(stream.fileno(), 64)
        if not piece:
            return False
        data += piece
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()
    try:
        child.wait(1.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
