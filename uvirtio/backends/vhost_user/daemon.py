"""A back end's process that this process starts: with a socket handed over, or with the path of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from uvirtio.backends.child import ChildProcess
from uvirtio.errors import EnvironmentLack, UvirtioError

FD: Final = "{fd}"
"""Stands in a command for the number of a listening socket that the process inherits."""

SOCKET: Final = "{socket}"
"""Stands in a command for the path at which the process makes its socket."""


class BackEndProcess(ChildProcess):
    """One running back end."""

    name = "the back end"


class SpawnedDaemon:
    """A back end and its socket, in a directory that only this user may enter; both end with this object."""

    def __init__(self, command: Sequence[str], *, timeout: float) -> None:
        """Start the process.

        Args:
            command: The program and its arguments, one of which contains ``{fd}`` or ``{socket}``.
            timeout: Seconds to wait for the start.

        Raises:
            EnvironmentLack: There is no such program.
            OperationFailed: It cannot be started.
        """
        program = shutil.which(command[0])
        if program is None:
            raise missing(command[0])
        self._directory = Path(tempfile.mkdtemp(prefix="uvirtio-vhost-user-"))
        self.path = str(self._directory / "socket")
        """The socket."""
        try:
            with contextlib.ExitStack() as stack:
                number, fds = "", []
                if any(FD in word for word in command):
                    # It takes connections from here on, before the process has started.
                    listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                    listening.bind(self.path)
                    listening.listen(1)
                    fds, number = [listening.fileno()], str(listening.fileno())
                words = [word.replace(FD, number).replace(SOCKET, self.path) for word in command[1:]]
                self._process = BackEndProcess(program, words, fds, timeout=timeout)
        except BaseException:
            self._remove()
            raise
        self.pid = self._process.pid

    @property
    def exited(self) -> bool:
        """Whether the process has ended."""
        return self._process.exited

    def autopsy(self) -> str:
        """Return how it ended, and what it said."""
        return self._process.autopsy()

    def close(self) -> None:
        """End the process and remove its socket; idempotent."""
        try:
            self._process.close()
        finally:
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path)  # noqa: PTH108  # a str, as sockets have it
        with contextlib.suppress(OSError):
            self._directory.rmdir()


def missing(program: str, install: str = "") -> UvirtioError:
    """The error for a back end whose program is not there.

    Args:
        program: Its program, by name or path.
        install: The command that installs a well-known one; empty: that is not known.
    """
    return EnvironmentLack(
        f"{program} is not installed" if install else f"there is no program {program}",
        seen=f"no {program}" + ("" if "/" in program else " in PATH"),
        expected="the program of a vhost-user back end",
        remedy=install or "install it, or name another",
    )
