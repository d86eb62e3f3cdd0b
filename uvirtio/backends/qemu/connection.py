"""What the two connections to a QEMU have in common: locking, closing, and errors."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import ClassVar, NoReturn

from uvirtio.errors import Closed, DeviceGone, DeviceTimeout


class Connection:
    """A stream socket to one QEMU; calls from several threads take turns."""

    owed: ClassVar[str]
    """What QEMU has to send, for the error when it does not."""

    def __init__(self, connection: socket.socket, *, timeout: float, why: Callable[[], str] | None = None) -> None:
        """Take over a connected socket.

        Args:
            connection: The socket; closed by ``close()``.
            timeout: Seconds that QEMU has for each response.
            why: Returns how QEMU ended, for the error.
        """
        self._socket = connection
        self._timeout = timeout
        self._why = why or (lambda: "the connection ended")
        self._lock = threading.RLock()
        self._closed = False

    def fileno(self) -> int:
        """Return the descriptor, which polls readable when QEMU sent something; ``drain()`` reads it."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection; idempotent, from any thread. A call waiting in another thread gets Closed."""
        if self._closed:
            return
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        with self._lock:
            self._socket.close()

    def _check(self) -> None:
        if self._closed:
            raise Closed("the connection to QEMU is closed")

    def _gone(self, error: OSError | None) -> NoReturn:
        self._check()
        raise DeviceGone(
            "QEMU ended while its device was in use",
            seen=self._why(),
            expected="a running QEMU",
            remedy="open the device again",
        ) from error

    def _silent(self, what: str) -> NoReturn:
        self._check()
        raise DeviceTimeout(
            f"QEMU {what}",
            seen=f"nothing for {self._timeout:g} s",
            expected=self.owed,
            remedy="close the device; QEMU is killed then",
        )
