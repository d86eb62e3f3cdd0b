"""Interrupts and removal as events. Each satisfies ``Event``."""

from __future__ import annotations

import os
import select
from contextlib import ExitStack

from uvirtio.backends.qemu.process import QemuProcess
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.backends.qemu.qtest import IrqLine, Qtest
from uvirtio.errors import Closed, DeviceGone


def _drained(fd: int) -> bool:
    """Read an eventfd to zero, without waiting; returns whether it was set."""
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


def _bell_beside(number: int) -> tuple[int, select.epoll]:
    """An eventfd, and a set that polls readable with it and with ``number``; none of them where one is lacking."""
    with ExitStack() as undo:
        bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        undo.callback(os.close, bell)
        both = select.epoll(2)
        undo.callback(both.close)
        both.register(bell, select.EPOLLIN)
        both.register(number, select.EPOLLIN)
        undo.pop_all()
    return bell, both


class MessageEvent:
    """An MSI-X vector: an eventfd, edge-triggered. The eventfd belongs to its pool (``Bells``)."""

    def __init__(self, fd: int, process: QemuProcess) -> None:
        """Use the eventfd ``fd`` of the pool; ``process`` is checked when nothing is pending."""
        self._fd = fd
        self._process = process
        self._closed = False

    def fileno(self) -> int:
        """Return the file descriptor to poll for reading."""
        return self._fd

    def take(self) -> bool:
        """Consume what is pending, without waiting; returns whether an interrupt was.

        Raises:
            DeviceGone: QEMU ended, and nothing is pending.
            Closed: After ``close()``.
        """
        if self._closed:
            raise Closed("this interrupt is turned off: its function or its machine was closed")
        try:
            os.eventfd_read(self._fd)
            return True
        except BlockingIOError:
            pass
        if self._process.exited:
            raise _ended(self._process)
        return False

    def rearm(self) -> None:
        """Do nothing: messages are edge-triggered."""

    def close(self) -> None:
        """Stop; idempotent."""
        self._closed = True


class LineEvent:
    """An interrupt line, level-triggered, intercepted at its controller and reported over the qtest socket.

    ``fileno()`` polls readable when the socket does, or when the line rose while a register access read the
    socket: nothing is missed, and a wake-up may turn out to be nothing. Other functions may share the line.
    """

    def __init__(self, qtest: Qtest, line: IrqLine) -> None:
        """Watch ``line``, an interrupt line of ``qtest``."""
        self._qtest = qtest
        self._line = line
        self._masked = False
        self._closed = False
        self._bell, self._poll = _bell_beside(qtest.fileno())
        self._seen = line.raises
        if line.level:
            self._wake()
        line.watchers.append(self._wake)

    def _wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    def fileno(self) -> int:
        """Return the file descriptor to poll for reading."""
        return self._poll.fileno()

    def take(self) -> bool:
        """Consume what is pending, without waiting; returns whether the line is, or was, raised.

        If so it is masked until ``rearm()``.

        Raises:
            DeviceGone: QEMU ended.
            DeviceTimeout: QEMU does not respond.
            Closed: After ``close()``.
        """
        if self._closed:
            raise Closed("this interrupt is turned off: its function or its machine was closed")
        self._qtest.drain()
        _drained(self._bell)
        if self._masked:
            return False
        fired = self._line.level or self._line.raises != self._seen
        self._seen = self._line.raises
        self._masked = fired
        return fired

    def rearm(self) -> None:
        """Unmask: if the line is still raised, it is pending again."""
        if self._closed:
            return
        self._masked = False
        self._seen = self._line.raises
        if self._line.level:
            self._wake()

    def close(self) -> None:
        """Stop watching; idempotent."""
        if not self._closed:
            self._closed = True
            self._line.watchers.remove(self._wake)
            self._poll.close()
            os.close(self._bell)


class RemovalEvent:
    """Fires once, when QEMU reported the device as unplugged (QMP DEVICE_DELETED).

    The end of QEMU is not a hot-unplug: ``take()`` fails with DeviceGone then, with how it ended.
    """

    def __init__(self, process: QemuProcess, qmp: Qmp, device: str) -> None:
        """Watch for the removal of a device.

        Args:
            process: The QEMU process.
            qmp: Its QMP connection.
            device: QEMU's name of the device.
        """
        self._process = process
        self._qmp = qmp
        self._device = device
        self._fired = False
        self._closed = False
        self._bell, self._poll = _bell_beside(qmp.fileno())
        process.watch(self._bell)

    def fileno(self) -> int:
        """Return the file descriptor to poll for reading."""
        return self._poll.fileno()

    def wake(self) -> None:
        """Make ``fileno()`` poll readable: another reader of the connection has read the report."""
        if not self._closed:
            os.eventfd_write(self._bell, 1)

    def take(self) -> bool:
        """Whether the device was unplugged since the last call.

        Raises:
            DeviceGone: QEMU ended, or the machine was closed.
        """
        if self._closed or self._fired:
            return False
        _drained(self._bell)
        try:
            self._qmp.drain()
            ended = self._process.exited
        except DeviceGone:
            ended = True
        except Closed as error:
            raise DeviceGone(
                "the device's machine was closed while it was in use",
                seen="Machine.close()",
                expected="a running QEMU",
                remedy="close the device before its machine",
            ) from error
        self._fired = self._device in self._qmp.deleted
        if ended and not self._fired:
            raise _ended(self._process)
        return self._fired

    def rearm(self) -> None:
        """Do nothing: a device is removed once."""

    def close(self) -> None:
        """Stop watching; idempotent."""
        if not self._closed:
            self._closed = True
            self._process.unwatch(self._bell)
            self._poll.close()
            os.close(self._bell)


def _ended(process: QemuProcess) -> DeviceGone:
    return DeviceGone(
        "QEMU ended while its device was in use",
        seen=process.autopsy(),
        expected="a running QEMU",
        remedy="open the device again",
    )
