"""The limits of a process that a call ran into (setrlimit(2)), and what to raise."""

from __future__ import annotations

import errno
import os

from uvirtio.errors import LimitReached, NotSupported, UvirtioError
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

_LIMITS = {
    errno.EMFILE: ("RLIMIT_NOFILE", "descriptors", "n"),
    errno.ETOOMANYREFS: ("RLIMIT_NOFILE", "descriptors", "n"),  # on their way through sockets
    errno.EFBIG: ("RLIMIT_FSIZE", "bytes in a file", "f"),
    errno.ENOMEM: ("RLIMIT_AS", "bytes of address space", "v"),
}
"""By error: the limit, what it counts, and its option of the shell's ulimit."""

SOCKET_PATH_MAX: Final = 107
"""Longest path of a Unix socket, in bytes (unix(7))."""


def reached(error: OSError, what: str) -> LimitReached | None:
    """The error for a call that ran into a limit of this process or of the machine.

    Args:
        error: What the call raised.
        what: What could not be done, for the message.

    Returns:
        The error; None: ``error`` is about something else.
    """
    if error.errno == errno.ENFILE:
        return LimitReached(
            f"{what}: this machine has too many open files",
            seen=os.strerror(errno.ENFILE),
            expected="room in the kernel's table of open files",
            remedy="raise it as root: sysctl fs.file-max shows it",
        )
    if error.errno not in _LIMITS:
        return None
    import resource  # here: every start of the command would load it

    name, unit, option = _LIMITS[error.errno]
    soft, hard = resource.getrlimit(getattr(resource, name))
    if soft == resource.RLIM_INFINITY:
        return LimitReached(
            f"{what}: {os.strerror(error.errno).lower()}",
            seen=f"no {name}",
            expected=f"more {unit}",
            remedy="free memory, or use less of it at once",
        )
    raised = f"raise the limit: ulimit -S -{option} $(ulimit -H -{option})"
    if hard == soft:
        more = 2 * hard if option == "n" else "unlimited"
        raised = f"raise the limit as root, since the hard limit is {hard}, too: ulimit -{option} {more}"
    return LimitReached(
        f"{what}: {os.strerror(error.errno).lower()}",
        seen=f"{name} {soft}",
        expected=f"more {unit}",
        remedy=raised,
    )


def no_task(error: OSError | RuntimeError, what: str) -> UvirtioError | None:
    """The error where no thread or process can be started: a limit was reached, or this is a subinterpreter.

    Args:
        error: What the start raised: RuntimeError for a thread, or in a subinterpreter.
        what: What could not be done, for the message.

    Returns:
        The error; None: ``error`` is about something else.
    """
    if isinstance(error, OSError):
        if error.errno != errno.EAGAIN:
            return reached(error, what)
    elif "subinterpreter" in str(error).replace("(sub)", "sub"):  # Python has it either way
        return NotSupported(
            f"{what} in a subinterpreter that may start no thread or process",
            seen=str(error),
            expected="the main interpreter of a process",
            remedy="use a process of its own, such as one of multiprocessing",
        )
    elif "start new thread" not in str(error):
        return None
    import resource  # as in ``reached``

    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    return LimitReached(
        f"{what}: there are too many threads and processes",
        seen="no RLIMIT_NPROC" if soft == resource.RLIM_INFINITY else f"RLIMIT_NPROC {soft}",
        expected="room for one more, of this user and in its control group (pids.max)",
        remedy="end some, or raise the limit: ulimit -u $(ulimit -H -u); a container's is pids.max",
    )


class told:  # a word of a with statement, as contextlib's are
    """Raise LimitReached in place of an OSError of the block that says that a limit was reached."""

    def __init__(self, what: str) -> None:
        """Note what could not be done, for the message."""
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UvirtioError):  # some are an OSError, too
            return
        found = self._found(error)
        if found is not None:
            raise found from error

    def _found(self, error: BaseException | None) -> UvirtioError | None:
        return reached(error, self._what) if isinstance(error, OSError) else None


class no_task_told(told):
    """The same, and ``no_task``, for a block that starts a thread or a process."""

    def _found(self, error: BaseException | None) -> UvirtioError | None:
        return no_task(error, self._what) if isinstance(error, OSError | RuntimeError) else None
