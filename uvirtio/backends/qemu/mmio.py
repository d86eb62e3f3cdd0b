"""A virtio-mmio window of a QEMU machine."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Literal

from uvirtio.backends.qemu.events import LineEvent, RemovalEvent
from uvirtio.backends.qemu.memory import QemuDma
from uvirtio.backends.qemu.models import MmioBus
from uvirtio.backends.qemu.other_side import OtherSideOf
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.backends.qemu.qtest import MemoryRegisters
from uvirtio.backends.qemu.supply import memory_of
from uvirtio.errors import Closed, QemuFailed
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.spec import mmio as spec

if TYPE_CHECKING:
    from uvirtio.backends.qemu.parts import MachineParts
    from uvirtio.interfaces.memory import Event, Registers
    from uvirtio.memory.window import FileWindow

_BUS = re.compile(r"virtio-mmio-bus\.([0-9]+)")


def transport_of(qmp: Qmp, ident: str, bus: MmioBus) -> int:
    """Return the number of the transport that a device is attached to.

    QEMU numbers the buses in the order in which it makes the transports, which is that of their addresses.

    Args:
        qmp: The QMP connection.
        ident: QEMU's name of the device.
        bus: The transports of the machine.

    Raises:
        QemuFailed: The device is not on a virtio-mmio transport.
    """
    parent = str(qmp.execute("qom-get", path=f"/machine/peripheral/{ident}", property="parent_bus"))
    match = _BUS.fullmatch(parent.rpartition("/")[2])
    if match is None or int(match[1]) >= bus.count:
        raise QemuFailed(
            f"the device {ident} is on no virtio-mmio transport",
            seen=parent or "no bus",
            expected=f"virtio-mmio-bus.0 to virtio-mmio-bus.{bus.count - 1}",
            remedy="use the -device form of the device",
        )
    return int(match[1])


class QemuMmioWindow(OtherSideOf):
    """One transport of a ``Machine``. Satisfies ``MmioWindow``; a context manager."""

    bus: Literal["mmio"] = "mmio"
    translates = False

    def __init__(self, machine: MachineParts, bus: MmioBus, transport: int, *, ident: str, address: str) -> None:
        """Set up a transport.

        Args:
            machine: The machine.
            bus: The transports of the machine.
            transport: The number of this one.
            ident: QEMU's name of the device on it.
            address: What to call the window in errors.
        """
        self.machine = machine
        self.id = ident
        self.address = address
        self.base = bus.base + bus.stride * transport
        """The guest-physical address of the window."""
        self.line = bus.first_line + transport
        """Its input of the interrupt controller."""

        self.description = f"qemu {machine.name}, no guest, window {self.base:#x}, process {machine.pid}"
        self._event: LineEvent | None = None
        self.undivided = False
        """Its machine is its own, and ends with it."""

        self.reopen()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, and ``reopen`` not since."""
        return self._closed

    def reopen(self) -> None:
        """Prepare for another device, after ``close``."""
        self.registers: Registers = MemoryRegisters(self.machine.qtest, self.base, spec.WINDOW_SIZE)
        self._removal = RemovalEvent(self.machine.process, self.machine.qmp_client, self.id)
        self.removal: Event | None = self._removal
        self._closed = False

    def wake(self) -> None:
        """Make the wait loop of its device check ``removal``."""
        self._removal.wake()

    def own_machine(self) -> None:
        """End the machine together with this window."""
        self.undivided, self._owner = True, os.getpid()

    def enable_interrupt(self) -> Event | None:
        """Enable the transport's interrupt line; replaces what was enabled before.

        Raises:
            Closed: After ``close()``.
        """
        self._check()
        self.disable_interrupt()
        qtest = self.machine.qtest
        self._event = LineEvent(qtest, qtest.irq_line(self.line))
        return self._event

    def disable_interrupt(self) -> None:
        """Disable the line, and close its event; idempotent."""
        event, self._event = self._event, None
        if event is not None:
            event.close()

    def guard(self, status: int) -> None:
        """Do nothing: QEMU, device and memory, ends with this process."""

    def dma(self, translated: bool) -> QemuDma:
        """Return memory for this device. There is no IOMMU, so an IOVA is a guest-physical address too.

        Raises:
            Closed: After ``close()``.
        """
        self._check()
        return QemuDma(self.machine.memory, translated)

    def plugged_memory(self) -> FileWindow:
        """Return the memory that the device plugs (virtio-mem), through its file; see ``ProvidesMemory``.

        Raises:
            NotSupported: The device has a memory backend of the caller's.
            Closed: After ``close()``.
        """
        self._check()
        return memory_of(self.machine.files, self.id, self.address)

    @property
    def ram(self) -> int:
        """Guest memory, in bytes; see ``GuestMachine``."""
        return self.machine.memory.size

    @property
    def ended(self) -> bool:
        """Whether QEMU has ended (see ``Ends``)."""
        return self.machine.process.exited

    def hurry(self, deadline: float | None) -> float | None:
        """Give this thread's accesses a deadline before that of the machine (see ``Hurries``)."""
        return self.machine.qtest.hurry(deadline)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command of the machine; see ``GuestMachine``."""
        return self.machine.qmp(command, **arguments)

    def close(self) -> None:
        """Disable the interrupt; idempotent. Ends the machine if it was made for this window."""
        if self._closed:
            return
        self.disable_interrupt()
        self._closed = True
        self.registers.close()
        self._removal.close()
        if self.undivided:
            self.machine.close()

    def __repr__(self) -> str:
        return f"<QemuMmioWindow {self.address}{', closed' * self._closed}>"

    def __enter__(self) -> QemuMmioWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "undivided", False) and not self._closed and os.getpid() == self._owner:
            warn_unclosed(self, then=self.close)

    def _check(self) -> None:
        if self._closed:
            raise Closed("this window is closed")
