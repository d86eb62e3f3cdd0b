"""Who is behind the socket of a back end (SO_PEERCRED, unix(7)), and whether that process still runs."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from struct import Struct
from typing import Any, Final

from uvirtio.host import process
from uvirtio.host.roots import Roots

_UCRED: Final = Struct("<iII")
"""struct ucred: process, user, group."""


class Peer:
    """The process of a back end, as /proc shows it."""

    def __init__(self, pid: int, uid: int, gid: int, roots: Roots) -> None:
        """Look at a process, as ``look`` does.

        Args:
            pid: Its number; 0: it is of another PID namespace.
            uid: Its user, when it began to listen.
            gid: Its group.
            roots: Where /proc is.
        """
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self._roots = roots
        self._started = process.start_time(pid, roots) if pid else None
        self.name = ""
        """The name of its program; empty where that cannot be seen."""
        self.executable: str | None = None
        """The file of its program; None where this user may not see it."""
        self.look()

    def look(self) -> None:
        """See which program it runs now: one that was just started may have been another one before."""
        if self.pid and not self.ended:
            words = process.command(self.pid, self._roots).split()
            self.name = Path(words[0]).name if words else ""
            self.executable = process.executable(self.pid, self._roots)

    @property
    def ended(self) -> bool:
        """Whether the process has ended, or is about to; False also where that cannot be seen."""
        if self._started is None:
            return False
        return process.ending(self.pid, self._roots) or process.start_time(self.pid, self._roots) != self._started

    def __str__(self) -> str:
        if not self.pid:
            return "a process of another PID namespace"
        return f"{self.name or 'a process'} (pid {self.pid})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``pid uid gid command exe``."""
        return {
            "pid": self.pid or None,
            "uid": self.uid,
            "gid": self.gid,
            "command": self.name or None,
            "exe": self.executable,
        }


def credentials(connected: socket.socket) -> tuple[int, int, int]:
    """The process, user and group that listened when the connection was made; process 0: of another namespace."""
    pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def of_child(pid: int, roots: Roots) -> Peer:
    """The peer where this process has started the back end: a socket that was handed over says who made it."""
    return Peer(pid, os.geteuid(), os.getegid(), roots)
