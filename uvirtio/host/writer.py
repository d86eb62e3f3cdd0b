"""Writing to sysfs with a deadline, in a child process; and loading modules."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

from uvirtio.errors import Blocked, ModuleLack
from uvirtio.host import forks, limits, modules
from uvirtio.host.roots import Roots


class Writer(Protocol):
    """The changes that bind and restore make, as an interface that tests can replace."""

    def write(self, path: Path, text: str, timeout: float) -> None:
        """Write ``text`` to a sysfs file in one write(2).

        Args:
            path: The file.
            text: What to write.
            timeout: Seconds.

        Raises:
            OSError: The kernel refuses the write.
            Blocked: The write did not return in time; the kernel may still finish it.
        """
        ...

    def own(self, path: Path, uid: int, gid: int, mode: int | None) -> None:
        """Set the owner and the group of a device node, and its mode.

        Args:
            path: The node.
            uid: Its new owner.
            gid: Its new group.
            mode: Its new permission bits; None: they stay.

        Raises:
            OSError: The kernel refuses.
        """
        ...


def _blocked(path: Path, text: str, timeout: float) -> Blocked:
    return Blocked(
        f"the kernel did not finish writing {text!r} to {path}",
        seen=f"no answer within {timeout:g} s",
        expected="a driver that lets go",
        remedy="end the processes that use the device; the kernel finishes the write by itself, then "
        "`uvirtio restore --all`",
    )


def _write_and_exit(path: Path, text: str) -> NoReturn:
    """In the child: one write(2), and its errno as the exit code."""
    code = errno.EIO
    try:
        os.setsid()  # Ctrl-C is the parent's to handle, between two writes
        os.closerange(0, 1 << 16)  # a child that is left behind must hold no pipe or lock
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, text.encode())
        code = 0
    except OSError as error:
        if error.errno is not None and 0 < error.errno < 256:
            code = error.errno
    finally:
        os._exit(code)


class ChildWriter:
    """Writes in a child process, with a deadline.

    An unbind may sleep in the kernel uninterruptibly; then the child is left behind (init reaps it), and this
    process can report that. A bare fork, because starting an interpreter would cost more than the write.
    """

    def write(self, path: Path, text: str, timeout: float) -> None:
        """Write ``text`` to a sysfs file in one write(2), in a child process.

        Raises:
            OSError, Blocked: As of ``Writer``.
            LimitReached: There can be no child: a limit of processes, of this user or its control group.
            NotSupported: This is a subinterpreter that may not fork.
        """
        child, handle = 0, -1
        try:
            with limits.no_task_told(f"{path} cannot be written"), forks.undisturbed():
                child = os.fork()
                if child == 0:
                    _write_and_exit(path, text)
            handle = os.pidfd_open(child)
            code = self._wait(child, handle, timeout)
            if code is None:
                os.kill(child, signal.SIGKILL)
                self._wait(child, handle, 0.2)  # some waits in the kernel end with it: then no zombie stays
                raise _blocked(path, text, timeout)
        except BaseException as error:
            # A write that has begun should finish before anything is rolled back.
            if child and not isinstance(error, Blocked):
                handle = os.pidfd_open(child) if handle < 0 else handle
                if self._wait(child, handle, timeout) is None:
                    raise _blocked(path, text, timeout) from error
            raise
        finally:
            if handle >= 0:
                os.close(handle)
        if code:
            raise OSError(code, os.strerror(code), str(path))

    @staticmethod
    def _wait(child: int, handle: int, timeout: float) -> int | None:
        """The errno that the child ended with, 0 for none; None if it does not end in time."""
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(timeout * 1000):
            return None
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code if code >= 0 else errno.EIO

    def own(self, path: Path, uid: int, gid: int, mode: int | None) -> None:
        """Set the owner and the group of a device node, and its mode unless that is None."""
        os.chown(path, uid, gid, follow_symlinks=False)
        if mode is not None:
            path.chmod(mode)


def modprobe(module: str, *parameters: str) -> None:
    """Load a kernel module.

    Args:
        module: Its name.
        *parameters: Its parameters, each ``name=value``.

    Raises:
        ModuleLack: modprobe failed; ``seen`` has its message.
    """
    program = modules.modprobe_path() or "modprobe"
    try:
        done = subprocess.run(
            [program, "--", module, *parameters],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModuleLack(
            f"modprobe {module} did not run",
            seen=str(error),
            expected="a loaded module",
            remedy="install kmod, or load the module from outside of the container",
        ) from error
    if done.returncode and modules.NOT_FOUND in done.stderr:
        raise ModuleLack(
            f"the module {module} is not installed",
            seen=done.stderr.strip()[:500],
            expected="a kernel with this module",
            remedy=f"install the kernel's module package that has {module}",
        )
    if done.returncode:
        raise ModuleLack(
            f"modprobe {module} failed",
            seen=done.stderr.strip()[:500] or f"exit code {done.returncode}",
            expected="a loaded module",
            remedy=f"outside of this container, as root: modprobe {module}"
            if "not permitted" in done.stderr
            else "see the kernel's log (dmesg)",
        )


def module_loader(roots: Roots) -> Callable[..., None]:
    """The function that loads modules: ``modprobe`` for root on the real /sys, else one that raises ModuleLack."""
    if roots.live and os.geteuid() == 0:
        return modprobe

    def refuse(module: str, *parameters: str) -> None:
        raise ModuleLack(
            f"the module {module} is not loaded",
            seen="no such driver in sysfs",
            expected="a loaded module",
            remedy=f"as root: modprobe {' '.join((module, *parameters))}",
        )

    return refuse
