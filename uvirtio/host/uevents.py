"""Uevents: the kernel's messages about devices that are added, removed, bound, unbound or changed.

The kernel sends them to a netlink group (NETLINK_KOBJECT_UEVENT, <linux/netlink.h>); udev reads them there,
applies its rules, and sends them on to a second group. ``UdevEvents`` takes them from libudev, by pyudev;
``KernelEvents`` from the kernel's group with nothing but a socket, for machines without libudev.

A netlink socket drops messages when its buffer is full, and reports that once (ENOBUFS). ``overruns`` counts these
reports; a reader has to check it, since dropped messages are not sent again.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from uvirtio.errors import Closed, OperationFailed
from uvirtio.host import sysfs
from uvirtio.host.digits import decimal
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import failed

_NETLINK_KOBJECT_UEVENT = 15
_GROUP_KERNEL = 1
_SO_RCVBUFFORCE = 33
_MESSAGE_MAX = 1 << 16
"""More than the kernel's UEVENT_BUFFER_SIZE (2048 bytes of variables) and a path."""

BUFFER = 8 << 20
"""The size of the socket's buffer, in bytes; an ordinary user gets net.core.rmem_max at most."""


@dataclass(frozen=True, slots=True)
class Uevent:
    """One uevent."""

    action: str
    """``add``, ``remove``, ``bind``, ``unbind``, ``change``, ``move``, ``online`` or ``offline``."""
    devpath: str
    """The device's directory below /sys, with a slash before it."""
    subsystem: str
    seqnum: int
    """SEQNUM, the kernel's count of its uevents."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """All variables of the message."""

    @property
    def name(self) -> str:
        """The device's name: the last part of its path."""
        return self.devpath.rpartition("/")[2]


def parse(message: bytes) -> Uevent | None:
    """Parse a message of the kernel's group: ``ACTION@DEVPATH``, then variables, each ended by a NUL.

    Returns:
        The uevent; None for a message of another form, such as libudev's own.
    """
    head, *lines = message.split(b"\0")
    properties = {}
    for line in lines:
        key, separator, value = line.decode("utf-8", errors="replace").partition("=")
        if separator:
            properties[key] = value
    return _uevent(properties) if b"@" in head else None


def _uevent(properties: Mapping[str, str]) -> Uevent | None:
    action, devpath = properties.get("ACTION", ""), properties.get("DEVPATH", "")
    seqnum = decimal(properties.get("SEQNUM", ""))
    if not action or not devpath.startswith("/") or seqnum is None:
        return None
    return Uevent(action, devpath, properties.get("SUBSYSTEM", ""), seqnum, properties)


class Uevents(Protocol):
    """A source of uevents."""

    source: str
    """Its name, for reports."""
    overruns: int
    """How often messages were dropped because they were not read in time."""

    def fileno(self) -> int:
        """A file descriptor that is readable while there is an event, or an overrun.

        Raises:
            Closed: The source is closed.
        """
        ...

    def receive(self) -> Uevent | None:
        """The next event; None where there is none now. Never waits.

        Raises:
            OperationFailed: The events cannot be read.
        """
        ...

    def close(self) -> None:
        """Stop listening; idempotent."""
        ...


class KernelEvents:
    """The kernel's own group of uevents, through a netlink socket. Any user may listen."""

    source = "uevent socket"

    def __init__(self, buffer: int = BUFFER) -> None:
        """Listen from now on.

        Args:
            buffer: Size of the socket's buffer, in bytes.

        Raises:
            OperationFailed: There is no such socket here.
        """
        self.overruns = 0
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_NETLINK, flags, _NETLINK_KOBJECT_UEVENT)
        except OSError as error:
            raise failed("opening the kernel's uevent socket", error) from error
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self._socket.bind((0, _GROUP_KERNEL))
        except OSError as error:
            self._socket.close()
            raise failed("listening to the kernel's uevents", error) from error

    def fileno(self) -> int:
        """The socket's file descriptor.

        Raises:
            Closed: The source is closed.
        """
        if self._socket.fileno() < 0:
            raise Closed("these uevents are closed")
        return self._socket.fileno()

    def receive(self) -> Uevent | None:
        """The next event; None where there is none now.

        Raises:
            OperationFailed: The socket cannot be read.
        """
        while True:
            try:
                message, sender = self._socket.recvfrom(_MESSAGE_MAX)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self.overruns += 1
                    continue
                raise failed("reading the kernel's uevents", error) from error
            # Port 0 is the kernel; a process with enough rights may send to the group as well.
            if sender[0] == 0 and (event := parse(message)) is not None:
                return event

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()


class UdevEvents:
    """A group of uevents through libudev: udev's, after its rules were applied, or the kernel's."""

    def __init__(
        self, group: Literal["udev", "kernel"], subsystems: Sequence[str] = (), *, buffer: int | None = None
    ) -> None:
        """Listen from now on.

        Args:
            group: ``udev`` is silent where no udevd runs.
            subsystems: Only events of these; empty: of all.
            buffer: Size of the socket's buffer, in bytes (needs CAP_NET_ADMIN); None: libudev's choice.

        Raises:
            ImportError: There is no libudev, or no pyudev.
            OSError: libudev cannot listen.
        """
        import pyudev  # here: a program that listens to no events does not load it

        self.source: str = group
        self.overruns = 0
        self._monitor: Any = pyudev.Monitor.from_netlink(pyudev.Context(), group)
        for subsystem in subsystems:
            self._monitor.filter_by(subsystem)
        if buffer is not None:
            self._monitor.set_receive_buffer_size(buffer)
        self._monitor.start()

    def fileno(self) -> int:
        """The file descriptor of libudev's socket.

        Raises:
            Closed: The source is closed.
        """
        if self._monitor is None:
            raise Closed("these uevents are closed")
        return int(self._monitor.fileno())

    def receive(self) -> Uevent | None:
        """The next event; None where there is none now.

        Raises:
            OperationFailed: The socket cannot be read.
        """
        while True:
            try:
                device = self._monitor.poll(0)
            except OSError as error:
                # pyudev reports POLLERR without an errno; the socket's SO_ERROR has it; reading clears it.
                if errno.ENOBUFS not in (error.errno, self._pending_error()):
                    raise OperationFailed(
                        "reading udev's events failed", seen=str(error), expected="an event, or none"
                    ) from error
                self.overruns += 1
                continue
            if device is None:
                return None
            if (event := _uevent({str(key): str(value) for key, value in device.properties.items()})) is not None:
                return event

    def _pending_error(self) -> int:
        with socket.socket(fileno=os.dup(self.fileno())) as twin:
            return twin.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._monitor = None  # its last reference: libudev closes the socket


def udev_runs(roots: Roots) -> bool:
    """Whether a udevd runs: its control socket exists."""
    return sysfs.exists(roots.run / "udev/control")


def udev_works(roots: Roots) -> bool:
    """Whether udevd is still processing events: the file ``queue`` exists meanwhile."""
    return sysfs.exists(roots.run / "udev/queue")


def listen(subsystems: Sequence[str], roots: Roots) -> tuple[Uevents, str | None]:
    """The best source of uevents that this machine has: udev's, else the kernel's by libudev, else by a socket.

    Args:
        subsystems: Only these are needed; others may come too.
        roots: Where udevd's control socket is looked for.

    Returns:
        The source, and what was missing for a better one, or None.

    Raises:
        OperationFailed: There is no source at all.
    """
    try:
        return UdevEvents("udev" if udev_runs(roots) else "kernel", subsystems), None
    except (ImportError, OSError) as error:
        why = str(error)
    return KernelEvents(), f"libudev cannot be used ({why}): uevents come from the kernel's own socket"
