"""A back end's process that this process starts: with a socket handed over, or with the path of one.

A socket that listens takes connections before the process is up, and has no place that another program could
have taken; nor one that stays when this process is killed, for it is removed before the other starts.
A connected one has no place at all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from uvirtio.backends.child import ChildProcess
from uvirtio.errors import EnvironmentLack, UvirtioError
from uvirtio.host.sockets import make_place, remove_place

FD: Final = "{fd}"
"""Stands in a command for the number of a listening socket that the process inherits."""

CONNECTED: Final = "{connected}"
"""Stands in a command for the number of a connected socket that the process inherits, and serves alone."""

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
            command: The program and its arguments; one contains ``{fd}``, ``{connected}`` or ``{socket}``.
            timeout: Seconds to wait for the start.

        Raises:
            EnvironmentLack: There is no such program, or no place for its socket.
            OperationFailed: It cannot be started.
        """
        program = shutil.which(command[0])
        if program is None:
            raise missing(command[0])
        self.program = program
        """The path of the program that was started."""
        self._socket: Path | None = None
        self._place: int | None = None  # the listening socket's, whose name is gone (O_PATH)
        self.path = ""
        """What to connect to."""
        self._connected: socket.socket | None = None
        self.serves_one = any(CONNECTED in word for word in command)
        """Whether it has one connection, made before its start, and takes no other."""
        try:
            with contextlib.ExitStack() as stack:
                number, fds = "", []
                if self.serves_one:
                    self._connected, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                    stack.callback(theirs.close)
                    fds, number = [theirs.fileno()], str(theirs.fileno())
                else:
                    self._socket = make_place("uvirtio-vhost-user-")
                    self.path = str(self._socket)
                if any(FD in word for word in command):
                    # It takes connections from here on, before the process has started.
                    listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                    listening.bind(self.path)
                    listening.listen(1)
                    self._place = os.open(self.path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
                    self._unlink()
                    self.path = f"/proc/self/fd/{self._place}"
                    fds, number = [listening.fileno()], str(listening.fileno())
                words = [
                    word.replace(FD, number).replace(CONNECTED, number).replace(SOCKET, self.path)
                    for word in command[1:]
                ]
                self._process = BackEndProcess(program, words, fds, timeout=timeout)
        except BaseException:
            self._remove()
            raise
        self.pid = self._process.pid

    def take_connected(self) -> socket.socket | None:
        """Hand out the connection that was made before the start, once; None: it is taken, or there is none."""
        connected, self._connected = self._connected, None
        return connected

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
        if self._connected is not None:
            self._connected.close()
            self._connected = None
        self._unlink()
        if self._place is not None:
            os.close(self._place)
            self._place = None

    def _unlink(self) -> None:
        if self._socket is not None:
            remove_place(self._socket)
            self._socket = None


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
