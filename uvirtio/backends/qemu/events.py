"""Interrupts and removal as events; see the Event seam."""

from __future__ import annotations

import os
import select

from uvirtio.backends.qemu.process import QemuProcess
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.backends.qemu.qtest import IrqLine, Qtest
from uvirtio.errors import Closed, DeviceGone


def _drained(fd: int) -> bool:
    """Read an eventfd to zero, without waiting; True if it was set."""
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


class MessageEvent:
    """An MSI-X vector: an eventfd, edge-triggered. The eventfd belongs to the pool it came from."""

    def __init__(self, fd: int, process: QemuProcess) -> None:
        self._fd = fd
        self._process = process
        self._closed = False

    def fileno(self) -> int:
        return self._fd

    def take(self) -> bool:
        """Consume what is pending. Raises DeviceGone when QEMU ended and nothing is pending."""
        if self._closed:
            raise Closed("this interrupt is turned off")
        try:
            os.eventfd_read(self._fd)
            return True
        except BlockingIOError:
            pass
        if self._process.exited:
            raise DeviceGone(
                "QEMU ended while its device was in use",
                seen=self._process.autopsy(),
                expected="a running QEMU",
                remedy="open the device again",
            )
        return False

    def rearm(self) -> None:
        """Nothing: messages are edges."""

    def close(self) -> None:
        """Stop; idempotent."""
        self._closed = True


class LineEvent:
    """An interrupt line, level-triggered, intercepted at its controller and reported over the qtest socket.

    ``fileno()`` polls readable when the socket does, or when the line rose while a register access read the
    socket: nothing is missed, and a wake-up may turn out to be nothing. Other functions may share the line.
    """

    def __init__(self, qtest: Qtest, line: IrqLine) -> None:
        self._qtest = qtest
        self._line = line
        self._masked = False
        self._closed = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll(2)
        self._poll.register(self._bell, select.EPOLLIN)
        self._poll.register(qtest.fileno(), select.EPOLLIN)
        self._seen = line.raises
        if line.level:
            self._wake()
        line.watchers.append(self._wake)

    def _wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    def fileno(self) -> int:
        return self._poll.fileno()

    def take(self) -> bool:
        """Whether the line is, or was, raised; it is masked then until ``rearm()``. Raises DeviceGone."""
        if self._closed:
            raise Closed("this interrupt is turned off")
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
        """Stop listening; idempotent."""
        if not self._closed:
            self._closed = True
            self._line.watchers.remove(self._wake)
            self._poll.close()
            os.close(self._bell)


class RemovalEvent:
    """Fires once, when QEMU ended or reported the function as unplugged (QMP DEVICE_DELETED)."""

    def __init__(self, process: QemuProcess, qmp: Qmp, device: str) -> None:
        self._process = process
        self._qmp = qmp
        self._device = device
        self._fired = False
        self._closed = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll(2)
        self._poll.register(self._bell, select.EPOLLIN)
        self._poll.register(qmp.fileno(), select.EPOLLIN)
        process.watch(self._bell)

    def fileno(self) -> int:
        return self._poll.fileno()

    def take(self) -> bool:
        """Whether the function went away since the last call."""
        if self._closed or self._fired:
            return False
        _drained(self._bell)
        try:
            self._qmp.drain()
        except (DeviceGone, Closed):
            # The socket polls readable from now on: nothing more can be learnt from it.
            self._poll.unregister(self._qmp.fileno())
            self._fired = True
            return True
        self._fired = self._process.exited or self._device in self._qmp.deleted
        return self._fired

    def rearm(self) -> None:
        """Nothing: a function goes once."""

    def close(self) -> None:
        """Stop listening; idempotent."""
        if not self._closed:
            self._closed = True
            self._process.unwatch(self._bell)
            self._poll.close()
            os.close(self._bell)
