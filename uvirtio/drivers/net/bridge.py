"""A card and something else that takes Ethernet frames, bridged: a TAP of the kernel, or a socket."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from uvirtio.drivers.net.driver import Net
from uvirtio.errors import BadFrame, ModuleLack, OperationFailed, PermissionLack, UsageError
from uvirtio.host.limits import SOCKET_PATH_MAX
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.spec import net as spec

_TUNSETIFF = 0x400454CA  # <linux/if_tun.h>, _IOW('T', 202, int)
_TUNGETIFF = 0x800454D2  # _IOR('T', 210, unsigned int)
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFNAMSIZ = 16
_DIGITS = 9
"""Of the number of a descriptor: an int of C holds it."""

_TURN = 64
"""Frames that are read from the other end at once."""

_BACKLOG = 256 << 10
"""Bytes that may wait for an end that does not read; frames that come on top of it are dropped."""

_PAUSE = 0.01
"""Seconds between two tries to go on while one side takes nothing."""


class End(Protocol):
    """What a bridge has at its other end."""

    ended: bool
    """Nothing comes any more."""
    waiting: bool
    """Something is still to be written: ``send([])`` tries again."""

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        ...

    def receive(self, most: int) -> list[bytes]:
        """Take frames that are there, without waiting; at most so many."""
        ...

    def send(self, frames: Sequence[bytes | memoryview]) -> int:
        """Hand on frames, without waiting; how many were taken, from the first on."""
        ...

    def close(self) -> None:
        """Close it; idempotent."""
        ...


class _Descriptor:
    """An end that is a file descriptor."""

    def __init__(self, fd: int) -> None:
        self.ended = self.waiting = False
        self._fd = fd
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._fd

    def close(self) -> None:
        """Close it; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warn_unclosed(self, str(self._fd), then=self.close)


class Datagrams(_Descriptor):
    """A frame for each read and write: a TAP, or a socket of datagrams."""

    def receive(self, most: int) -> list[bytes]:
        """Take frames that are there; see ``End``."""
        found: list[bytes] = []
        try:
            while len(found) < most:
                found.append(os.read(self._fd, spec.FRAME_MAX + 1))
                if not found[-1]:
                    found.pop()
                    self.ended = True
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if not found:
                raise _failed("read from", error) from error
        return found

    def send(self, frames: Sequence[bytes | memoryview]) -> int:
        """Hand on frames; see ``End``."""
        done = 0
        for frame in frames:
            try:
                os.write(self._fd, frame)
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError:
                self.ended = True
                break
            except OSError as error:
                raise _failed("written to", error) from error
            done += 1
        return done


class Stream(_Descriptor):
    """Frames in a stream, each behind its length in 4 bytes, in network order: QEMU's ``-netdev stream``."""

    def __init__(self, fd: int) -> None:
        """Take over a connected socket.

        Args:
            fd: Its descriptor.
        """
        super().__init__(fd)
        self._came = bytearray()
        self._goes = bytearray()

    def receive(self, most: int) -> list[bytes]:
        """Take frames that are there; see ``End``."""
        over = False
        if len(self._came) < _BACKLOG:
            try:
                more = os.read(self._fd, _BACKLOG)
                over = not more
                self._came += more
            except (BlockingIOError, InterruptedError):
                pass
            except ConnectionError:
                over = True
            except OSError as error:
                raise _failed("read from", error) from error
        found: list[bytes] = []
        at = 0
        while len(found) < most and len(self._came) >= at + 4:
            (length,) = struct.unpack_from(">I", self._came, at)
            if not 0 < length <= spec.FRAME_MAX:
                raise OperationFailed(
                    "the other end of the bridge sends no frames",
                    seen=f"a length of {length} bytes",
                    expected=f"1..{spec.FRAME_MAX}, in 4 bytes, most significant first",
                    remedy="it has to speak as QEMU's -netdev stream does",
                )
            if len(self._came) < at + 4 + length:
                break
            found.append(bytes(self._came[at + 4 : at + 4 + length]))
            at += 4 + length
        del self._came[:at]
        self.ended = self.ended or (over and not found)
        return found

    def send(self, frames: Sequence[bytes | memoryview]) -> int:
        """Hand on frames; see ``End``."""
        done = 0
        for frame in frames:
            if len(self._goes) > _BACKLOG:
                break
            self._goes += len(frame).to_bytes(4, "big") + frame
            done += 1
        try:
            while self._goes:
                del self._goes[: os.write(self._fd, self._goes)]
        except (BlockingIOError, InterruptedError):
            pass
        except ConnectionError:
            self.ended = True
        except OSError as error:
            raise _failed("written to", error) from error
        self.waiting = bool(self._goes) and not self.ended
        return done


def _failed(what: str, error: OSError) -> OperationFailed:
    return OperationFailed(
        f"the other end of the bridge cannot be {what}",
        seen=error.strerror,
        expected="a TAP that is up, or a socket that is connected",
        remedy="for a TAP: ip link set NAME up",
    )


def open_end(text: str) -> Datagrams | Stream:
    """Open the other end of a bridge.

    Args:
        text: ``tap:NAME``, ``unix:PATH`` (a socket of QEMU's ``-netdev stream,server=on``), or ``fd:N``, a
            descriptor that was inherited: a TAP, or a socket of either kind.

    Raises:
        UsageError: It is none of these.
        PermissionLack: This user may not open the TAP.
        ModuleLack: The kernel has no TAPs.
        OperationFailed: It cannot be opened.
    """
    kind, _, name = text.partition(":")
    size = len(os.fsencode(name))
    if kind == "tap" and 0 < size < _IFNAMSIZ:
        return _open_tap(name)
    if kind == "unix" and 0 < size <= SOCKET_PATH_MAX:
        return _connect(name)
    if kind == "fd" and name.isascii() and name.isdigit() and size <= _DIGITS:
        return _inherited(int(name))
    raise UsageError(
        f"{text!r} is no other end of a bridge",
        seen=text,
        expected=f"tap:NAME (15 bytes at most), unix:PATH ({SOCKET_PATH_MAX} bytes at most) or fd:N",
        remedy="for example tap:tap0, which root makes: ip tuntap add dev tap0 mode tap user $USER",
    )


def _open_tap(name: str) -> Datagrams:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ModuleLack(
            "this kernel has no TAPs", seen="no /dev/net/tun", expected="the module tun", remedy="modprobe tun"
        ) from error
    except OSError as error:
        raise _no_tap(name, error) from error
    try:
        request = struct.pack("16sH22x", os.fsencode(name), _IFF_TAP | _IFF_NO_PI)
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as error:
        os.close(fd)
        if isinstance(error, PermissionError):
            raise PermissionLack(
                f"this user may not use the TAP {name}",
                seen=error.strerror,
                expected="a TAP of this user's, or CAP_NET_ADMIN",
                remedy=f"as root: ip tuntap add dev {name} mode tap user USER; ip link set {name} up",
            ) from error
        raise _no_tap(name, error) from error
    return Datagrams(fd)


def _no_tap(name: str, error: OSError) -> OperationFailed:
    return OperationFailed(
        f"the TAP {name} cannot be opened",
        seen=error.strerror,
        expected="a TAP that nothing else has open",
        remedy="ip -d link shows what it is; ip tuntap add dev NAME mode tap makes one",
    )


def _connect(path: str) -> Stream:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.settimeout(5)
        made.connect(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        made.close()
        raise OperationFailed(
            f"nothing can be reached at {path}",
            seen=getattr(error, "strerror", None) or str(error),
            expected="a stream socket that takes connections",
            remedy=f"start it first: QEMU with -netdev stream,id=n,server=on,addr.type=unix,addr.path={path}",
        ) from error
    return Stream(made.detach())


def _inherited(number: int) -> Datagrams | Stream:
    try:
        is_socket = stat.S_ISSOCK(os.fstat(number).st_mode)
        fd = os.dup(number)
    except OSError as error:
        raise UsageError(
            f"there is no descriptor {number}",
            seen=error.strerror,
            expected="a descriptor that was inherited",
            remedy="the program that starts this one has to leave it open",
        ) from error
    if is_socket:
        return Stream(fd) if _socket_type(fd) == socket.SOCK_STREAM else Datagrams(fd)
    try:
        (flags,) = struct.unpack("16xH22x", fcntl.ioctl(fd, _TUNGETIFF, bytes(40)))
    except OSError:
        flags = 0
    if flags & (_IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR) != _IFF_TAP | _IFF_NO_PI:
        os.close(fd)
        raise UsageError(
            f"descriptor {number} takes no Ethernet frames",
            seen=f"a TUN or TAP, flags {flags:#x}" if flags else "neither a socket nor a TAP",
            expected="a socket, or a TAP that was opened with IFF_TAP and IFF_NO_PI, without IFF_VNET_HDR",
            remedy="tap:NAME opens one by itself",
        )
    return Datagrams(fd)


def _socket_type(fd: int) -> int:
    looked = socket.socket(fileno=os.dup(fd))
    with looked:
        return looked.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)


@dataclass(slots=True)
class BridgeCounts:
    """What a bridge did: frames handed on, and dropped, each way."""

    out: int = 0
    """From the card to the other end."""
    out_dropped: int = 0
    """Frames from the card that the other end had no room for, or that were not whole."""
    back: int = 0
    """From the other end to the card."""
    back_dropped: int = 0
    """Frames from the other end that no card can send: too short, or too long."""


class Bridge:
    """Hands frames on, both ways, until the other end is gone.

    What comes from the card while the other end takes nothing is dropped and counted; what comes from the other
    end waits there while the card takes nothing.
    """

    def __init__(self, net: Net, end: End) -> None:
        """Put both together.

        Args:
            net: The card.
            end: The other end, which stays the caller's.
        """
        self.counts = BridgeCounts()
        self._net, self._end = net, end
        self._back: list[bytes] = []  # what the card has not taken

    def run(self, *, timeout: float | None = None) -> bool:
        """Hand on frames.

        Args:
            timeout: Seconds; None: no limit, until the other end is gone, or a signal.

        Returns:
            Whether the other end is gone.
        """
        device = self._net.device
        begin = device.clock.monotonic()
        timeout = None if timeout is None else device.seconds(timeout)
        while not self._end.ended:
            left = None if timeout is None else timeout - (device.clock.monotonic() - begin)
            if left is not None and left <= 0:
                return False
            held = bool(self._back) or self._end.waiting
            # An end whose frames the card does not take now would end every sleep at once.
            watch = [] if self._back else [self._end.fileno()]
            pause = _PAUSE if held else left
            self._net._wait_for_frames(
                self._moved, pause if left is None or pause is None else min(pause, left), watch
            )
        return True

    def _moved(self) -> bool:
        return self._outwards() + self._backwards() > 0 or self._end.ended

    def _outwards(self) -> int:
        frames = self._net.take_frames()
        whole: list[memoryview] = []
        for frame in frames:
            try:
                whole.append(frame.whole())
            except BadFrame:
                self.counts.out_dropped += 1
        if whole or self._end.waiting:
            done = self._end.send(whole)
            self.counts.out += done
            self.counts.out_dropped += len(whole) - done
        return len(frames)

    def _backwards(self) -> int:
        if not self._back:
            came = self._end.receive(_TURN)
            self._back = [one for one in came if spec.ETHERNET_HEADER <= len(one) <= self._net.max_frame]
            self.counts.back_dropped += len(came) - len(self._back)
        if not self._back:
            return 0
        try:
            done = self._net.send(self._back)
        except BadFrame:  # one is longer than the MTU allows; they are sent one by one
            self._back, done = self._sendable(self._back), 0
        self.counts.back += done
        del self._back[:done]
        return done

    def _sendable(self, frames: Sequence[bytes]) -> list[bytes]:
        kept = [one for one in frames if self._net.can_send(one)]
        self.counts.back_dropped += len(frames) - len(kept)
        return kept
