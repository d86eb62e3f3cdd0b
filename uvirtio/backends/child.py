"""A program that this process starts, watches, and ends in any case: QEMU, a daemon with a vhost-user device.

Everything that the program needs is inherited as a file descriptor, its standard input is empty, and it lives in a
session of its own (it does not get a Ctrl-C). It dies with this process: the kernel sends the parent-death signal
when the *thread* that started it ends, so a keeper thread starts it and then waits for its end. The keeper also
signals, by file descriptors, that it has ended.
"""

from __future__ import annotations

import errno
import os

# Of CPython; the module threading takes longer to import.
from _thread import RLock, allocate_lock, get_ident, start_new_thread
from collections.abc import Callable, Sequence

from uvirtio.errors import OperationFailed, UvirtioError
from uvirtio.host import limits
from uvirtio.host.pattern import Pattern

_WARNING = Pattern(r"(?:^|: )(?:warning|info): ")
_SIGPIPE, _SIGXFSZ = 13, 25  # the same on every Linux that Python runs on but MIPS and PA-RISC
_SIGKILL, _SIGTERM = 9, 15  # the module signal takes as long to import as QEMU's arguments to make
_PR_SET_PDEATHSIG = 1
_TERMINATE_WAIT = 2.0
_KILL_WAIT = 5.0
_REAP_WAIT = 2.0
_STDERR_QUOTED = 2000
_SETPRIV_MAX = 1 << 20  # bytes; util-linux has it in some 50,000


class _Latch:
    """What happens once, and is waited for."""

    def __init__(self) -> None:
        self._happened = False
        self._pending = allocate_lock()
        self._pending.acquire()

    def set(self) -> None:
        """It has happened; called once."""
        self._happened = True
        self._pending.release()

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for it, and return whether it has happened."""
        if not self._happened and self._pending.acquire(timeout=timeout):
            self._pending.release()  # for the next one; where a signal's exception comes first, it has the flag
        return self._happened


class ChildProcess:
    """One running program."""

    name = "the program"
    """What errors call it."""

    not_started: type[UvirtioError] = OperationFailed
    """The error for one that does not start."""

    belongings: object = None
    """What has to be there as long as the program runs: the keeper thread has this object."""

    disposable = False
    """Nothing that the program has outlives it: it is ended by SIGKILL alone."""

    def __init__(self, binary: str, arguments: Sequence[str], fds: Sequence[int], *, timeout: float) -> None:
        """Start the program.

        Args:
            binary: The program.
            arguments: Its arguments.
            fds: The descriptors that it inherits, under the same numbers.
            timeout: Seconds to wait for the start.

        Raises:
            LimitReached: A limit of this process does not allow it.
            NotSupported: This is a subinterpreter that may start no thread.
            UvirtioError: The process cannot be started; ``not_started`` says which.
        """
        self._binary, self._owner = binary, os.getpid()
        self._stderr = os.memfd_create("uvirtio-stderr", os.MFD_CLOEXEC)
        self._started = _Latch()
        self._ended = _Latch()
        self._lock = RLock()  # Python drops objects in any thread: ``close`` may come in the midst of ``_keep``
        self._keeper = 0
        self._watchers: list[int] = []
        self._failure: OSError | ValueError | None = None
        self._abandoned = False
        self._pid: int | None = None
        self._code: int | None = None
        self._closed = False
        self.exited = False
        """True from the moment that it has ended."""

        try:
            with limits.no_task_told(f"{self.name} cannot be started"):
                start_new_thread(self._keep, (binary, list(arguments), list(fds)))
            self._started.wait(timeout)
        except BaseException:
            self._abandon()
            raise
        if self._pid is None:
            self._abandon()
            if isinstance(self._failure, OSError):
                lacking = limits.no_task(self._failure, f"{self.name} cannot be started")
                if lacking is not None:
                    raise lacking
            raise self.not_started(
                f"{self.name} could not be started: {binary}",
                seen=str(self._failure or f"nothing after {timeout:g} s"),
                expected="a running process",
                remedy="try the program by hand: " + binary + " --version",
            )
        self.pid: int = self._pid

    def _abandon(self) -> None:
        """End a process that will have no owner: a signal came, or it never started."""
        with self._lock:  # held while the process is being started
            self._abandoned = True
            self._signal(_SIGKILL)
        os.close(self._stderr)

    def _signal(self, number: int) -> None:
        """Send a signal, unless it has ended; the lock is held, so that the PID is still the program's."""
        if self._pid is not None and not self.exited:
            try:
                os.kill(self._pid, number)
            except ProcessLookupError:  # a handler of this process's took it
                pass

    def _keep(self, binary: str, arguments: list[str], fds: list[int]) -> None:
        """Run the keeper thread: start the program, wait for its end, signal it."""
        self._keeper = get_ident()
        with self._lock:
            if self._abandoned:
                return
            try:
                self._pid = _start([binary, *arguments], fds, self._stderr)
            except (OSError, ValueError) as error:
                self._failure = error
                self._started.set()
                return
        self._started.set()
        try:
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass  # a handler of this process's took it
        with self._lock:
            self.exited = True  # first: once it was waited for, its PID may be another's
            try:
                self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            except ChildProcessError:
                self._code = 0  # not known
            while self._watchers:
                fd = self._watchers[-1]
                os.eventfd_write(fd, 1)
                self.unwatch(fd)
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
        code = self._code
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
        for name in (self._binary, os.path.basename(self._binary)):  # noqa: PTH119  # pathlib is not imported
            text = text.replace(f"{name}: ", "")
        lines = [line for line in text.splitlines() if line.strip()]
        causes = [line for line in lines if _WARNING.search(line) is None]
        return "\n".join(causes) if causes or not lines else "only warnings: " + "\n".join(lines)

    def close(self) -> None:
        """End the program: SIGTERM, and SIGKILL if that does not help. Idempotent; in a forked child nothing."""
        if self._closed or os.getpid() != self._owner:
            return
        for number, patience in ((_SIGTERM, _TERMINATE_WAIT), (_SIGKILL, _KILL_WAIT))[self.disposable :]:
            with self._lock:
                self._signal(number)
            if get_ident() == self._keeper or self._ended.wait(patience):  # the keeper cannot wait for itself
                break
        self._closed = True
        os.close(self._stderr)


def which(name: str) -> str | None:
    """Return the path of a program, as ``shutil.which`` finds it on Linux; None: there is none.

    Its module imports those of all archive formats, while QEMU waits to be started.

    Args:
        name: A name, which is looked for in PATH, or a path.
    """
    listed = os.environ.get("PATH", os.defpath)
    places = [""] if "/" in name else listed.split(os.pathsep) if listed else []
    paths = (os.path.join(place, name) for place in places)  # noqa: PTH118  # pathlib is not imported
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)  # noqa: PTH113


def _setpriv() -> str | None:
    """The path of a setpriv(1) that sets the parent-death signal; None: there is none.

    BusyBox's does not, nor util-linux's before 2.33. Which one it is can be read in the program: to ask it for its
    options takes as long as QEMU's start.
    """
    path = which("setpriv")
    try:
        if path is not None:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # pathlib is not imported
                if b"pdeathsig" in file.read(_SETPRIV_MAX):
                    return path
    except OSError:  # it may be run and not read
        pass
    return None


def _start(command: list[str], fds: Sequence[int], stderr: int) -> int:
    """Start a program in a session of its own, with these descriptors and no others; returns its PID.

    Args:
        command: The path of the program, and its arguments.
        fds: The descriptors that it inherits, under the same numbers.
        stderr: The descriptor for its standard error.

    Raises:
        OSError: It cannot be started.
        ValueError: An argument has a null byte.
    """
    setpriv = _setpriv()
    if setpriv is None:
        return _start_by_python(command, fds, stderr, dies_with_parent=False)
    # Runs nothing of Python between fork and exec, which is safe beside other threads.
    command = [setpriv, "--pdeathsig", "KILL", "--", *command]
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [(os.POSIX_SPAWN_DUP2, stderr, 2)]
    actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    actions.append((os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0))
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if fd in fds:
            actions.append((os.POSIX_SPAWN_DUP2, fd, fd))
        elif fd > 2 and _inherited(fd):
            actions.append((os.POSIX_SPAWN_CLOSE, fd))
    try:
        signals = (_SIGPIPE, _SIGXFSZ)
        return os.posix_spawn(setpriv, command, os.environ, file_actions=actions, setsid=True, setsigdef=signals)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
    # A descriptor to close is above the limit, which was lowered meanwhile: that is no action for the C library.
    return _start_by_python(command, fds, stderr, dies_with_parent=True)


def _inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # it was that of the list itself


def _start_by_python(command: list[str], fds: Sequence[int], stderr: int, *, dies_with_parent: bool) -> int:
    """The same where the C library cannot, or no setpriv(1) can: then the parent-death signal is set here."""
    import subprocess

    before: Callable[[], object] | None = None
    if not dies_with_parent:
        import ctypes

        prctl = ctypes.CDLL(None).prctl

        def before() -> object:
            return prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)

    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=fds,
        start_new_session=True,
        preexec_fn=before,
    )
    process.returncode = 0  # the caller waits for it
    return process.pid


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
