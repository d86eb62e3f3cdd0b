"""The QEMU process: started with a parked CPU, watched, and ended in any case.

Everything that QEMU needs is inherited as a file descriptor: no file has a name that another process could
use or find. QEMU lives in a session of its own (it does not get a Ctrl-C) and dies with this process: the kernel
sends the parent-death signal when the *thread* that started it ends, so a keeper thread starts it and then
waits for its end. The keeper also signals, by file descriptors, that QEMU has ended.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from uvirtio.backends.qemu.models import WHY_LITTLE, Model, is_big_endian
from uvirtio.errors import NotSupported, QemuFailed, QemuMissing

OLDEST = (7, 2)
_PREFIX = "qemu-system-"
_WARNING = re.compile(r"(?:^|: )(?:warning|info): ")
_PR_SET_PDEATHSIG = 1
_TERMINATE_WAIT = 2.0
_KILL_WAIT = 5.0
_REAP_WAIT = 2.0
_STDERR_QUOTED = 2000


def halt_firmware() -> int:
    """Return a memfd with 64 KiB of firmware that parks the CPU: ``cli; hlt`` and back, at the reset vector.

    The CPU has to run (timers stop in a stopped machine) and must do nothing: a real firmware would program the
    PCI functions at the same time as this process.
    """
    image = bytearray(b"\xf4" * 65536)
    image[0xFFF0:0xFFF4] = b"\xfa\xf4\xeb\xfc"
    fd = os.memfd_create("uvirtio-halt", os.MFD_CLOEXEC)
    os.write(fd, image)
    return fd


def find_binary(binary: str | None, model: Model) -> str:
    """Return the path of QEMU.

    Args:
        binary: The program, by name or path; None: the usual one of the machine.
        model: The machine.

    Raises:
        QemuMissing: There is no such program.
    """
    name = binary or model.binary
    path = shutil.which(name)
    if path is None:
        remedy = f"apt-get install {model.package}"
        if model.older_package:
            remedy += f", or in an older release: apt-get install {model.older_package}"
        raise QemuMissing(
            f"QEMU is not installed: there is no program {name}",
            seen=f"no {name}" + ("" if "/" in name else " in PATH"),
            expected=f"QEMU {OLDEST[0]}.{OLDEST[1]} or later",
            remedy=f"{'install it' if binary is None else 'name another with binary=, or none'}: {remedy}",
        )
    return path


def check_target(target: str, model: Model, program: str) -> None:
    """Check that a QEMU emulates a CPU that the machine has.

    Args:
        target: What QEMU calls the CPU: ``x86_64``, ``riscv64``, ``s390x`` ...
        model: The machine.
        program: The program, for the error.

    Raises:
        NotSupported: It is another CPU.
    """
    if target in model.targets:
        return
    big = is_big_endian(target)
    raise NotSupported(
        f"{program} is the QEMU of a big-endian CPU: {WHY_LITTLE}"
        if big
        else f"{program} does not have the machine {model.name}",
        seen=target,
        expected=" or ".join(model.targets),
        remedy=f"leave binary= out, or name a {model.binary}",
    )


def target_of(program: str) -> str:
    """Return the CPU in the name of a program, ``qemu-system-TARGET``; empty if it has another name."""
    name = Path(program).name
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else ""


def version_of(program: str) -> tuple[int, ...]:
    """Return the three numbers that ``--version`` reports; () if unknown.

    Args:
        program: The path of QEMU.
    """
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=5,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(rb"version (\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(int(part) for part in match.groups()) if match else ()


def check_version(version: tuple[int, ...]) -> None:
    """Check that QEMU is not older than the oldest supported version.

    Raises:
        QemuFailed: It is.
    """
    if version[:2] < OLDEST:
        raise QemuFailed(
            "this QEMU is too old",
            seen=".".join(str(part) for part in version),
            expected=f"{OLDEST[0]}.{OLDEST[1]} or later",
            remedy="install a newer QEMU, or name one with binary=PATH",
        )


class QemuProcess:
    """One running QEMU."""

    def __init__(self, binary: str, arguments: Sequence[str], fds: Sequence[int], *, timeout: float) -> None:
        """Start QEMU.

        Args:
            binary: The program.
            arguments: Its arguments.
            fds: The descriptors that it inherits, under the same numbers.
            timeout: Seconds to wait for the start.

        Raises:
            QemuFailed: The process cannot be started.
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
        """True from the moment that QEMU has ended."""

        keeper = threading.Thread(
            target=self._keep, args=(binary, list(arguments), list(fds)), name="uvirtio-qemu", daemon=True
        )
        try:
            keeper.start()
            self._started.wait(timeout)
        except BaseException:
            self._abandon()
            raise
        if self._process is None:
            self._abandon()
            raise QemuFailed(
                f"QEMU could not be started: {binary}",
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
        """Run the keeper thread: start QEMU, wait for its end, signal it."""
        command = [binary, *arguments]
        setpriv = shutil.which("setpriv")
        before: Callable[[], object] | None = None
        if setpriv is not None:
            # Runs nothing of Python between fork and exec, which is safe beside other threads.
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        else:
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
        """Set this eventfd when QEMU ends (at once, if it has)."""
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
        """Return how QEMU ended, and what it said about that; for errors."""
        self._ended.wait(_REAP_WAIT)  # its sockets close a moment before it can be reaped
        code = self._process.returncode if self._process is not None else None
        if code is None:
            how = "QEMU still runs, but hung up"
        elif code < 0:
            how = f"QEMU was ended by {_signal_name(-code)}"
        else:
            how = f"QEMU ended with exit code {code}"
        said = self.said()
        return f"{how}: {said}" if said else how

    def said(self) -> str:
        """Return the end of what QEMU wrote to stderr; warnings only where there is nothing else, and as such."""
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

    def version(self) -> tuple[int, ...]:
        """Return what ``--version`` reports, for a QEMU that ended before its greeting; () if unknown."""
        return version_of(self._binary)

    def close(self) -> None:
        """End QEMU: SIGTERM, and SIGKILL if that does not help. Idempotent."""
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


def check_socket_path(path: str) -> None:
    """Check the path of a socket that QEMU is to make: QEMU would remove any other file there.

    Raises:
        QemuFailed: The path exists, and is not a socket.
    """
    place = Path(path)
    if place.exists() and not place.is_socket():
        raise QemuFailed(
            f"{path} exists and is not a socket",
            seen="a file of another kind",
            expected="a new name for the QMP socket",
            remedy="give qmp= another path",
        )
