"""A program that this process starts, watches, and ends in any case: QEMU, a daemon with a vhost-user device.

Everything that the program needs is inherited as a file descriptor, its standard input is empty, and it lives in a
session of its own (it does not get a Ctrl-C). It dies with this process: the kernel sends the parent-death signal
when the *thread* that started it ends, so a keeper thread starts it and then waits for its end. The keeper also
signals, by file descriptors, that it has ended.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from uvirtio.errors import OperationFailed, UvirtioError
from uvirtio.host import limits

_WARNING = re.compile(r"(?:^|: )(?:warning|info): ")
_PR_SET_PDEATHSIG = 1
_TERMINATE_WAIT = 2.0
_KILL_WAIT = 5.0
_REAP_WAIT = 2.0
_STDERR_QUOTED = 2000


class ChildProcess:
    """One running program."""

    name = "the program"
    """What errors call it."""

    not_started: type[UvirtioError] = OperationFailed
    """The error for one that does not start."""

    def __init__(self, binary: str, arguments: Sequence[str], fds: Sequence[int], *, timeout: float) -> None:
        """Start the program.

        Args:
            binary: The program.
            arguments: Its arguments.
            fds: The descriptors that it inherits, under the same numbers.
            timeout: Seconds to wait for the start.

        Raises:
            LimitReached: A limit of this process does not allow it.
            UvirtioError: The process cannot be started; ``not_started`` says which.
        """
        self._binary = binary
        self._stderr = os.memfd_create("uvirtio-stderr", os.MFD_CLOEXEC)
        self._started = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._watchers: list[int] = []
        self._failure: OSError | ValueError | None = None
        self._abandoned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self.exited = False
        """True from the moment that it has ended."""

        keeper = threading.Thread(
            target=self._keep, args=(binary, list(arguments), list(fds)), name="uvirtio-child", daemon=True
        )
        try:
            keeper.start()
            self._started.wait(timeout)
        except BaseException:
            self._abandon()
            raise
        if self._process is None:
            self._abandon()
            if isinstance(self._failure, OSError):
                lacking = limits.reached(self._failure, f"{self.name} cannot be started")
                if lacking is not None:
                    raise lacking
            raise self.not_started(
                f"{self.name} could not be started: {binary}",
                seen=str(self._failure or f"nothing after {timeout:g} s"),
                expected="a running process",
                remedy="try the program by hand: " + binary + " --version",
            )
        self.pid: int = self._process.pid

    def _abandon(self) -> None:
        """End a process that will have no owner: a signal came, or it never started."""
        with self._lock:  # held while the process is being started
            self._abandoned = True
            if self._process is not None:
                self._process.kill()
        os.close(self._stderr)

    def _keep(self, binary: str, arguments: list[str], fds: list[int]) -> None:
        """Run the keeper thread: start the program, wait for its end, signal it."""
        command = [binary, *arguments]
        setpriv = shutil.which("setpriv")
        before: Callable[[], object] | None = None
        if setpriv is not None:
            # Runs nothing of Python between fork and exec, which is safe beside other threads.
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        else:
            import ctypes

            prctl = ctypes.CDLL(None).prctl

            def before() -> object:
                return prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

        with self._lock:
            if self._abandoned:
                return
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._stderr,
                    pass_fds=fds,
                    start_new_session=True,
                    preexec_fn=before,
                )
            except (OSError, ValueError) as error:
                self._failure = error
                self._started.set()
                return
        self._started.set()
        self._process.wait()
        with self._lock:
            self.exited = True
            watchers, self._watchers = self._watchers, []
            for fd in watchers:
                os.eventfd_write(fd, 1)
        self._ended.set()

    def watch(self, fd: int) -> None:
        """Set this eventfd when the program ends (at once, if it has)."""
        with self._lock:
            if self.exited:
                os.eventfd_write(fd, 1)
            else:
                self._watchers.append(fd)

    def unwatch(self, fd: int) -> None:
        """Forget an eventfd, before it is closed."""
        with self._lock:
            if fd in self._watchers:
                self._watchers.remove(fd)

    def autopsy(self) -> str:
        """Return how the program ended, and what it said about that; for errors."""
        self._ended.wait(_REAP_WAIT)  # its sockets close a moment before it can be reaped
        code = self._process.returncode if self._process is not None else None
        if code is None:
            how = f"{self.name} still runs, but hung up"
        elif code < 0:
            how = f"{self.name} was ended by {_signal_name(-code)}"
        else:
            how = f"{self.name} ended with exit code {code}"
        said = self.said()
        return f"{how}: {said}" if said else how

    def said(self) -> str:
        """Return the end of what it wrote to stderr; warnings only where there is nothing else, and as such."""
        if self._closed:
            return ""
        size = os.fstat(self._stderr).st_size
        start = max(0, size - _STDERR_QUOTED)
        text = os.pread(self._stderr, _STDERR_QUOTED, start).decode("utf-8", "replace")
        for name in (self._binary, Path(self._binary).name):
            text = text.replace(f"{name}: ", "")
        lines = [line for line in text.splitlines() if line.strip()]
        causes = [line for line in lines if not _WARNING.search(line)]
        return "\n".join(causes) if causes or not lines else "only warnings: " + "\n".join(lines)

    def close(self) -> None:
        """End the program: SIGTERM, and SIGKILL if that does not help. Idempotent."""
        if self._closed:
            return
        if self._process is not None:
            for number, patience in ((signal.SIGTERM, _TERMINATE_WAIT), (signal.SIGKILL, _KILL_WAIT)):
                if not self.exited:
                    self._process.send_signal(number)
                if self._ended.wait(patience):
                    break
        self._closed = True
        os.close(self._stderr)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
