"""Keeping a machine from suspending to RAM while memory is plugged that would not survive it (5.15.6.1).

A user-space driver cannot forbid a suspend by itself, as a kernel driver does. It can hold what the machine has
for it: an inhibitor lock of systemd-logind, and a wake lock where the kernel has those. Both end with this
process, however it ends; the plugged memory does not, which is why the command line says so.
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

TIMEOUT = 5.0
"""Seconds that logind has for its answer."""

_WORD = b"held\n"


class SuspendLock:
    """Holds off a suspend between ``hold()`` and ``release()``; both idempotent. A context manager.

    ``means`` says what holds it off now, ``lacking`` why nothing does.
    """

    def __init__(self, why: str, *, roots: Roots | None = None, timeout: float = TIMEOUT) -> None:
        self._why = why
        self._roots = roots or Roots()
        self._timeout = timeout
        self._child: subprocess.Popen[bytes] | None = None
        self._wake_lock: str | None = None
        self._held = False
        self.lacking: list[str] = []

    @property
    def means(self) -> list[str]:
        """What keeps the machine awake now."""
        found = []
        if self._child is not None and self._child.poll() is None:
            found.append("systemd-inhibit")
        if self._wake_lock is not None:
            found.append("wake_lock")
        return found

    def hold(self) -> list[str]:
        """Hold off a suspend from now on; the ``means``, none where this machine has none."""
        if not self._held:
            self._held = True
            self.lacking.clear()
            self._ask_logind()
            self._take_wake_lock()
        return self.means

    def release(self) -> None:
        """Let the machine sleep again."""
        self._held = False
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

    # --- the two ways ---------------------------------------------------------------------------------------

    def _ask_logind(self) -> None:
        """systemd-inhibit(1) holds a lock for as long as its command runs, and that for as long as we do."""
        program = shutil.which("systemd-inhibit")
        if program is None or not (self._roots.run / "systemd/seats").exists():
            self.lacking.append("systemd-logind does not run here")
            return
        command = [program, "--what=sleep", "--who=uvirtio", f"--why={self._why}", "--mode=block"]
        child = subprocess.Popen(
            [*command, "sh", "-c", "echo held; exec cat >/dev/null"],
            stdin=subprocess.PIPE,  # its other end closes with us, also by kill -9: then cat, and the lock, end
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for us, who release the lock when all is left in order
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
    """Whether ``word`` comes within ``timeout`` seconds."""
    deadline, data = time.monotonic() + timeout, b""
    while word not in data:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
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
