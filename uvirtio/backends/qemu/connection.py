"""What the two connections to a QEMU have in common: locking, closing, and errors."""

from __future__ import annotations

import _socket  # of CPython; the module socket takes three times as long to import
import select
import threading
import time
from collections.abc import Callable

from uvirtio.errors import Closed, DeviceGone, DeviceTimeout
from uvirtio.interfaces.values import RESPONSE_LEAST
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import ClassVar, NoReturn


class Connection:
    """A stream socket to one QEMU; calls from several threads take turns."""

    owed: ClassVar[str]
    """What QEMU has to send, for the error when it does not."""

    no_answer: ClassVar[str]
    """What is said of a QEMU that does not send it."""

    def __init__(
        self, connection: _socket.socket, *, timeout: float, why: Callable[[], str] | None = None
    ) -> None:
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
        self._mute = False
        """QEMU owed something and did not send it. Until it sends anything again, every call fails at once."""
        self._until = threading.local()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def fileno(self) -> int:
        """Return the descriptor, which polls readable when QEMU sent something; ``drain()`` reads it."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection; idempotent, from any thread. A call waiting in another thread gets Closed."""
        if self._closed:
            return
        self._closed = True
        try:
            self._socket.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass
        with self._lock:
            self._socket.close()

    def hurry(self, deadline: float | None) -> float | None:
        """Give the calls of this thread a deadline before that of each response.

        Args:
            deadline: A time of ``time.monotonic()``; None: none.

        Returns:
            The deadline before.
        """
        before, self._until.deadline = self._deadline(), deadline
        return before

    def _deadline(self) -> float | None:
        """The deadline of this thread's calls, a time of ``time.monotonic()``; None: it has set none."""
        found: float | None = getattr(self._until, "deadline", None)
        return found

    def _check(self) -> None:
        if self._closed:
            raise Closed("the connection to QEMU is closed")

    def _listen(self) -> None:
        """Fail at once unless QEMU, which owes a response, has sent something by now, or ended."""
        if not self._poll.poll(0):
            self._silent(self.no_answer)
        self._mute = False

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
        known, self._mute = self._mute, True
        raise DeviceTimeout(
            f"QEMU {what}",
            seen=self._waited(known),
            expected=self.owed,
            remedy="close the device; QEMU is killed then",
        )

    def _waited(self, known: bool) -> str:
        """For how long nothing came."""
        if known:
            return "nothing since an earlier call timed out"
        return (
            f"nothing for {self._timeout:g} s" if self._deadline() is None else "nothing in the time of this call"
        )

    def _patience(self) -> float:
        """Seconds that QEMU has for a response that is asked for now."""
        deadline = self._deadline()
        return (
            self._timeout
            if deadline is None
            else min(self._timeout, max(deadline - time.monotonic(), RESPONSE_LEAST))
        )
