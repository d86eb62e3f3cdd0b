"""One connection to a vhost-user back end: messages with descriptors, and one deadline for every reply.

A message whose reply does not come in time, or is not one that can be, ends the connection: what comes later could
not be told from the reply to another message.
"""

from __future__ import annotations

import array
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from uvirtio.backends.vhost_user import spec
from uvirtio.backends.vhost_user.peer import credentials
from uvirtio.backends.vhost_user.spec import Request
from uvirtio.errors import Closed, DeviceGone, DeviceTimeout, OperationFailed, ProtocolError, UvirtioError
from uvirtio.interfaces.values import RESPONSE_LEAST

ANCILLARY: Final = socket.CMSG_SPACE(spec.DESCRIPTORS_MAX * array.array("i").itemsize)
"""Room for the descriptors of a message, in bytes."""

_HANG_UP = select.POLLHUP | select.POLLRDHUP | select.POLLERR | select.POLLNVAL


class Connection:
    """A connected socket to a back end. Every method of it raises these.

    Raises:
        DeviceTimeout: No reply came in time; the connection is closed.
        ProtocolError: The reply is not one that can be; the connection is closed.
        DeviceGone: The back end has closed the connection, or an earlier error did.
        Closed: After ``close()``.
    """

    def __init__(self, connected: socket.socket, address: str, timeout: float) -> None:
        """Take over a connected socket.

        Args:
            connected: The socket; closed by ``close()``.
            address: What the device is called in errors.
            timeout: Seconds that the back end has for each reply.
        """
        connected.setblocking(False)
        self._socket = connected
        self._address = address
        self._timeout = timeout
        self.hurried: Callable[[], float | None] = lambda: None
        """The deadline of the call that sends a message, a time of ``time.monotonic()``; None: it has none."""
        self.messages = 0
        """Messages that were sent so far."""
        self._closed = False
        self.lost: UvirtioError | None = None
        """The error that ended the connection."""
        self.fate: Callable[[], str] = str
        """Says how the back end's process has ended; empty where it runs, or that is not known."""
        self.acks = False
        """REPLY_ACK was negotiated: each message without a reply of its own is acknowledged."""

    def fileno(self) -> int:
        """Return the socket's descriptor; it polls readable when the back end hangs up."""
        self._check()
        return self._socket.fileno()

    @property
    def credentials(self) -> tuple[int, int, int]:
        """The process that listened when this connection was made, its user and its group."""
        return credentials(self._socket)

    # --- messages -------------------------------------------------------------------------------------------

    def ask(self, request: Request, payload: bytes = b"", *, sizes: tuple[int, ...]) -> bytes:
        """Send a message that has a reply, and return the reply's payload.

        Args:
            request: The message.
            payload: Its payload.
            sizes: The sizes that the reply's payload may have, in bytes.
        """
        deadline = self._deadline()
        self._send(request, spec.VERSION, payload, (), deadline)
        return self._reply(request, sizes, deadline)

    def ask_number(self, request: Request) -> int:
        """Send a message whose reply is a 64-bit number, and return it."""
        return int(spec.U64.unpack(self.ask(request, sizes=(spec.U64.size,)))[0])

    def tell(self, request: Request, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """Send a message that has no reply of its own, and wait for its acknowledgement where there are any.

        Args:
            request: The message.
            payload: Its payload.
            fds: Descriptors to send with it; they stay the caller's.

        Raises:
            OperationFailed: The back end refused it. The connection is still open on this side.
        """
        deadline = self._deadline()
        self._send(request, spec.VERSION | (spec.NEED_REPLY if self.acks else 0), payload, fds, deadline)
        if not self.acks:
            return
        answer = spec.U64.unpack(self._reply(request, (spec.U64.size,), deadline))[0]
        if answer:
            raise OperationFailed(
                f"the back end of {self._address} refused {request.name}",
                seen=f"message {self.messages}: {answer:#x}",
                expected="0",
                remedy="the log of the back end's process may say why",
            )

    def _deadline(self) -> float:
        """When the reply to a message that is sent now has to be here."""
        now, hurried = time.monotonic(), self.hurried()
        own = now + self._timeout
        return own if hurried is None else min(own, max(hurried, now + RESPONSE_LEAST))

    def _send(self, request: Request, flags: int, payload: bytes, fds: tuple[int, ...], deadline: float) -> None:
        self._check()
        self.messages += 1
        data = spec.HEADER.pack(request, flags, len(payload)) + payload
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while data:
            try:
                sent = self._socket.sendmsg([data], extra, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._await(select.POLLOUT, request, deadline)
                continue
            except OSError as error:
                raise self._end(self._hung_up(request, os.strerror(error.errno or 0))) from error
            data, extra = data[sent:], []

    def _reply(self, request: Request, sizes: tuple[int, ...], deadline: float) -> bytes:
        head = self._receive(spec.HEADER.size, request, deadline)
        number, flags, size = spec.HEADER.unpack(head)
        # Some back ends repeat NEED_REPLY in a reply, against the text.
        if flags & ~spec.NEED_REPLY != spec.VERSION | spec.REPLY or number != request:
            raise self._end(
                self._odd(
                    f"answered {request.name} with another message",
                    f"request {number}, flags {flags:#x}",
                    f"request {int(request)}, flags {spec.VERSION | spec.REPLY:#x}",
                )
            )
        if size not in sizes:
            expected = " or ".join(map(str, sizes))
            raise self._end(
                self._odd(f"answered {request.name} in another size", f"{size} bytes", f"{expected} bytes")
            )
        return self._receive(size, request, deadline)

    def _receive(self, length: int, request: Request, deadline: float) -> bytes:
        """Receive exactly so many bytes of a reply, none of which may carry a descriptor."""
        data = b""
        while len(data) < length:
            try:
                more, extra, flags, _ = self._socket.recvmsg(
                    length - len(data), ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                self._await(select.POLLIN, request, deadline)
                continue
            except OSError as error:
                raise self._end(self._hung_up(request, os.strerror(error.errno or 0))) from error
            if close_received(extra) or flags & socket.MSG_CTRUNC:
                raise self._end(
                    self._odd(
                        f"sent file descriptors with the reply to {request.name}", "descriptors", "none in it"
                    )
                )
            if not more:
                where = f"after {len(data)} of {length} bytes of the reply" if data else "end of file"
                raise self._end(self._hung_up(request, where))
            data += more
        return data

    def _await(self, what: int, request: Request, deadline: float) -> None:
        poller = select.poll()
        poller.register(self._socket, what)
        left = deadline - time.monotonic()
        if left > 0 and poller.poll(left * 1000 + 1):
            return
        first = self.messages == 1
        within = f"within {self._timeout:g} s" if self.hurried() is None else "in the time of this call"
        raise self._end(
            DeviceTimeout(
                f"the back end of {self._address} does not answer",
                seen=f"no reply to message {self.messages} ({request.name}) {within}",
                expected="a reply",
                remedy="another front end may be connected, and most back ends serve one at a time: end that one"
                if first
                else "see whether the back end's process is stopped, and its log",
            )
        )

    # --- the end --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check that the back end has not hung up and has sent nothing that it was not asked for."""
        self._check()
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | select.POLLRDHUP)
        for _, seen in poller.poll(0):
            if seen & _HANG_UP:
                raise self.hung_up("end of file")
            raise self._end(self._odd("sent a message that nothing asked for", "bytes on the socket", "none"))

    def _check(self) -> None:
        if self.lost is not None:
            raise DeviceGone(
                f"the connection to the back end of {self._address} has ended",
                seen=str(self.lost),
                expected="a connection",
                remedy="open the device again",
            ) from self.lost
        if self._closed:
            raise Closed(f"the connection to {self._address} is closed")

    def _end(self, error: UvirtioError) -> UvirtioError:
        self.lost = self.lost or error
        self.close()
        return error

    def end(self, error: UvirtioError) -> None:
        """Close the connection because of an error that was met elsewhere."""
        self._end(error)

    def hung_up(self, seen: str) -> UvirtioError:
        """Close the connection, because the back end hung up; the error that says so.

        Args:
            seen: Where that was seen.
        """
        return self._end(self._hung_up(None, seen))

    def _hung_up(self, request: Request | None, seen: str) -> DeviceGone:
        where = f"message {self.messages} ({request.name})" if request else f"rest, after message {self.messages}"
        fate = self.fate()
        return DeviceGone(
            f"the back end of {self._address} has {'ended' if fate else 'closed the connection'}",
            seen=f"at {where}: {fate or seen}",
            expected="a back end that answers",
            remedy="its log may say why; start it again, and open the device again: that is another device"
            if fate
            else "its log may say why; open the device again",
            about="back-end-ended" if fate else "back-end-closed",
        )

    def _odd(self, what: str, seen: str, expected: str) -> ProtocolError:
        return ProtocolError(
            f"the back end of {self._address} {what}",
            seen=f"{seen} (message {self.messages})",
            expected=expected,
            remedy="this is a fault of the back end (docs/interop/vhost-user.rst of QEMU is the protocol)",
        )

    def close(self) -> None:
        """Close the socket; idempotent. The back end stops using the memory when it notices."""
        self._closed = True
        self._socket.close()


def close_received(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Close every descriptor that came with a message, and return how many they were."""
    count = 0
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds = array.array("i")
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            for fd in fds:
                with suppress(OSError):
                    os.close(fd)
                count += 1
    return count
