"""The host's end of what a device connects to: a stream socket, whose other end QEMU has inherited."""

from __future__ import annotations

from _socket import socketpair  # of CPython; the module socket takes long to import

from uvirtio.errors import OperationFailed
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

_PATIENCE: Final = 1.0
"""Seconds for bytes to be taken."""
_MOST: Final = 65536


class Peer:
    """Both ends of a connection, until QEMU has its own."""

    def __init__(self) -> None:
        """Connect them."""
        self._own, self._far = socketpair()

    def fileno(self) -> int:
        """The descriptor that QEMU inherits."""
        return self._far.fileno()

    def started(self) -> None:
        """QEMU has its end: it is closed here. Idempotent."""
        self._far.close()

    def send(self, data: bytes) -> None:
        """Send bytes to the device.

        Args:
            data: The bytes.

        Raises:
            OperationFailed: QEMU does not take them.
        """
        own = self._own
        own.settimeout(_PATIENCE)
        try:
            own.sendall(data)
        except OSError as error:
            raise OperationFailed(
                "the other end of the device takes no bytes",
                seen=str(error),
                expected=f"{len(data)} bytes to be taken in {_PATIENCE:g} s",
                remedy="is QEMU running, and the port that was supplied still there?",
            ) from error

    def receive(self, timeout: float) -> bytes:
        """Receive what the device has sent; empty where nothing came.

        Args:
            timeout: Seconds to wait for the first of it.
        """
        own = self._own
        own.settimeout(max(timeout, 0.0))
        try:
            return own.recv(_MOST)
        except OSError:
            return b""

    def close(self) -> None:
        """Close what is open; idempotent."""
        self._own.close()
        self._far.close()
