"""What a vhost-user back end says unasked: that it has gone, and that the configuration has changed.

The eventfds of the queues say neither. When a back end ends, they stay silent, and kicks still succeed: only
sockets show it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from uvirtio.backends.vhost_user import spec
from uvirtio.backends.vhost_user.connection import ANCILLARY, Connection, close_received
from uvirtio.backends.vhost_user.spec import BackendRequest
from uvirtio.errors import ProtocolError, UvirtioError


class HangUp:
    """Fires when the back end hangs up; ``take()`` fails with DeviceGone then. Satisfies ``Event``."""

    def __init__(self, connection: Callable[[], Connection]) -> None:
        """Watch a connection.

        Args:
            connection: Returns the connection.
        """
        self._connection = connection

    def fileno(self) -> int:
        """Return the descriptor of the socket.

        Raises:
            DeviceGone: The connection has ended.
        """
        return self._connection().fileno()

    def take(self) -> bool:
        """Look whether the back end is still there; returns False.

        Raises:
            DeviceGone: It has closed the connection.
            ProtocolError: It has sent a message that nothing asked for.
        """
        self._connection().check()
        return False

    def rearm(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: the connection belongs to the node."""


class ConfigChanges:
    """The back-end channel (SET_BACKEND_REQ_FD): the configuration has changed. Satisfies ``Event``."""

    def __init__(self, changed: Callable[[], None], connection: Connection, address: str) -> None:
        """Make the channel.

        Args:
            changed: Called for each change.
            connection: Ended with this channel's errors.
            address: What the device is called in errors.
        """
        self._changed = changed
        self._connection = connection
        self._address = address
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours.setblocking(False)
        self._data = b""

    def send_end(self, send: Callable[[int], None]) -> None:
        """Hand the back end's end over, and close it here.

        Args:
            send: Sends the descriptor.
        """
        try:
            send(self._theirs.fileno())
        finally:
            self._theirs.close()

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._ours.fileno()

    def take(self) -> bool:
        """Read the messages that are there, without waiting; returns whether the configuration has changed.

        Raises:
            DeviceGone: The back end has closed its end.
            ProtocolError: A message is not one that can be.
        """
        while True:
            try:
                more, extra, _, _ = self._ours.recvmsg(spec.PAYLOAD_MAX, ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except OSError as error:
                raise self._ended(os.strerror(error.errno or 0)) from error
            close_received(extra)
            if not more:
                raise self._ended("end of file")
            self._data += more
        told = False
        while len(self._data) >= spec.HEADER.size:
            number, flags, size = spec.HEADER.unpack_from(self._data)
            if size > spec.PAYLOAD_MAX or flags & spec.VERSION_MASK != spec.VERSION or flags & spec.REPLY:
                raise self._fail(
                    ProtocolError(
                        f"the back end of {self._address} sent something that is no message",
                        seen=f"request {number}, flags {flags:#x}, {size} bytes, on the back-end channel",
                        expected="a message of version 1",
                        remedy="this is a fault of the back end",
                    )
                )
            if len(self._data) < spec.HEADER.size + size:
                break
            self._data = self._data[spec.HEADER.size + size :]
            known = number == BackendRequest.CONFIG_CHANGE_MSG
            if known:
                told = True
                self._changed()
            if flags & spec.NEED_REPLY:
                self._answer(number, 0 if known else 1)
        return told

    def _answer(self, number: int, value: int) -> None:
        message = spec.HEADER.pack(number, spec.VERSION | spec.REPLY, spec.U64.size) + spec.U64.pack(value)
        try:
            self._ours.send(message, socket.MSG_NOSIGNAL)
        except OSError as error:  # it does not read what it asked for, or has gone
            raise self._ended(os.strerror(error.errno or 0)) from error

    def _ended(self, seen: str) -> UvirtioError:
        # A process that ends closes this before its other socket, or after it.
        return self._connection.hung_up(f"{seen} on the back-end channel")

    def _fail(self, error: UvirtioError) -> UvirtioError:
        self._connection.end(error)
        return error

    def rearm(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close the channel; idempotent."""
        self._theirs.close()
        self._ours.close()
