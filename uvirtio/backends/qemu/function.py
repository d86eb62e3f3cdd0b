"""A PCI function of a QEMU machine."""

from __future__ import annotations

import os

from uvirtio.backends.qemu.events import LineEvent, MessageEvent, RemovalEvent
from uvirtio.backends.qemu.ivshmem import EventfdDoorbell
from uvirtio.backends.qemu.memory import QemuDma
from uvirtio.backends.qemu.other_side import OtherSideOf
from uvirtio.backends.qemu.pci import PciAccess
from uvirtio.backends.qemu.supply import memory_of
from uvirtio.errors import Closed, DeviceGone, DeviceTimeout, NotSupported
from uvirtio.interfaces.values import BarInfo
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.spec import pci as spec
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Literal

    from uvirtio.backends.qemu.parts import MachineParts
    from uvirtio.backends.qemu.vtd import TranslatedDma
    from uvirtio.interfaces.memory import Event, Registers
    from uvirtio.memory.window import FileWindow


class QemuPciFunction(OtherSideOf):
    """One function of a ``Machine``. Satisfies ``PciFunction``; a context manager."""

    bus: Literal["pci"] = "pci"

    def __init__(self, machine: MachineParts, access: PciAccess, *, ident: str, address: str) -> None:
        """Assign the BARs and enable decoding.

        Args:
            machine: The machine.
            access: Access to the function as firmware has it.
            ident: QEMU's name for it (``/machine/peripheral/ID``).
            address: What to call the function in errors.
        """
        self.machine = machine
        self.id = ident
        self.address = address
        self.translates = machine.iommu is not None
        self.has_intx = access.line is not None
        self.description = f"qemu {machine.name}, no guest, process {machine.pid}"
        self._access = access
        self.undivided = False
        """Its machine is its own, and ends with it."""

        self._vectors: list[int] = []
        self._events: list[MessageEvent | LineEvent] = []
        access.assign_bars()
        self.reopen()

    @property
    def config(self) -> Registers:
        """Configuration space; what is assigned here is used for all of it, interrupts included."""
        return self._access.config

    @config.setter
    def config(self, registers: Registers) -> None:
        self._access.config = registers

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, and ``reopen`` not since."""
        return self._closed

    def reopen(self) -> None:
        """Prepare for another device, after ``close``.

        Raises:
            DeviceGone: QEMU ended, or the device was unplugged.
            DeviceTimeout: QEMU does not respond.
            Closed: The machine is closed.
        """
        self._access.enable()
        self._master = False
        self._closed = False
        self._removal = RemovalEvent(self.machine.process, self.machine.qmp_client, self.id)
        self.removal: Event | None = self._removal

    def restore(self) -> None:
        """Set up what a reset of the machine has taken back; its device has to be opened again."""
        self._access.restore()

    def wake(self) -> None:
        """Make the wait loop of its device check ``removal``."""
        self._removal.wake()

    def own_machine(self) -> None:
        """End the machine together with this function."""
        self.undivided, self._owner = True, os.getpid()

    @property
    def msix_vectors(self) -> int:
        """Number of vectors that ``enable_msix`` can enable: limited by the table, and by the free eventfds."""
        return min(self._access.msix_size, self.machine.bells.calls_free + len(self._vectors))

    def bar(self, index: int) -> BarInfo | None:
        """Return a base address register; None if the function does not have it."""
        bar = self._access.bars.get(index)
        return BarInfo(bar.index, bar.size, bar.is_io) if bar is not None else None

    def bar_address(self, index: int) -> int:
        """Return the address of a BAR: a guest-physical address or an I/O port.

        Raises:
            KeyError: The function does not have this BAR.
        """
        return self._access.bars[index].address

    def registers(self, bar: int, offset: int, length: int) -> Registers:
        """Return a window of a BAR.

        Raises:
            CapabilityError: The BAR is absent or too small.
            Closed: After ``close()``.
        """
        self._check()
        return self._access.registers(bar, offset, length)

    def doorbell(self, bar: int, offset: int, value: int) -> EventfdDoorbell | None:
        """Return an eventfd that writes the 32-bit ``value`` to the BAR.

        Args:
            bar: Number of the BAR.
            offset: Place of the notification register in it, in bytes.
            value: What is written at each kick.

        Returns:
            None for a function without MSI-X (QEMU handles its kicks at once, in the write), for an I/O BAR, and
            when all eventfds are in use: then the register has to be written.

        Raises:
            QemuFailed: QEMU does not connect the eventfds.
            Closed: After ``close()``.
        """
        self._check()
        place = self._access.bars.get(bar)
        if not self._access.msix_size or place is None or place.is_io or offset + 4 > place.size or offset % 4:
            return None
        self.machine.connect_bells()
        return self.machine.bells.take_kick(place.address + offset, value, self.machine.process)

    def enable_msix(self, count: int) -> list[Event]:
        """Enable MSI-X with the vectors 0 to ``count`` - 1, as eventfds; replaces what was enabled before.

        Raises:
            NotSupported: That many vectors are not available.
            QemuFailed: QEMU does not connect the eventfds.
            Closed: After ``close()``.
        """
        self._check()
        self.disable_interrupts()
        if not 1 <= count <= self.msix_vectors:
            raise NotSupported(
                f"{count} MSI-X vectors of {self.address} are not available",
                seen=f"{self._access.msix_size} in its table, {self.machine.bells.calls_free} eventfds left",
                expected=f"1 to {self.msix_vectors}",
                remedy="share a vector between the queues, or use fewer devices in one machine",
            )
        self.machine.connect_bells()
        bells = self.machine.bells
        for vector in range(count):
            call = bells.take_call()
            self._vectors.append(call)
            self._access.msix_set(vector, *bells.call_message(call))
        self._access.msix_enable(True)
        events = [MessageEvent(bells.call_fd(call), self.machine.process) for call in self._vectors]
        self._events = list(events)
        return list(events)

    def enable_intx(self) -> Event | None:
        """Enable the interrupt pin; replaces what was enabled before. None where its line is not known.

        Raises:
            Closed: After ``close()``.
        """
        self._check()
        self.disable_interrupts()
        if self._access.line is None:
            return None
        qtest = self.machine.qtest
        event = LineEvent(qtest, qtest.irq_line(self._access.line))
        self._events = [event]
        self._access.enable(bus_master=self._master, intx=True)
        return event

    def disable_interrupts(self) -> None:
        """Disable MSI-X and the pin, and close their events; idempotent."""
        if self._closed:
            return
        events, self._events = self._events, []
        vectors, self._vectors = self._vectors, []
        for event in events:
            event.close()
        try:
            self._access.msix_enable(False)
            self._access.enable(bus_master=self._master)
        except DeviceGone:
            pass  # a removed function has no interrupts
        finally:
            for call in vectors:
                self.machine.bells.give_call(call)

    def dma(self, translated: bool) -> QemuDma | TranslatedDma:
        """Return memory for this function. Without an IOMMU an IOVA is a guest-physical address too.

        Args:
            translated: True for IOVAs (ACCESS_PLATFORM negotiated), False for guest-physical addresses (6.1).

        Raises:
            QemuFailed: The IOMMU does not respond as it should.
            Closed: After ``close()``.
        """
        self._check()
        iommu = self.machine.iommu
        if not translated or iommu is None:
            return QemuDma(self.machine.memory, translated)
        from uvirtio.backends.qemu.vtd import PAGE, TranslatedDma  # here: few machines have an IOMMU

        domain = iommu.domain(self._access.devfn)
        if self._access.msix_size:
            # Its messages go to an address behind the IOMMU too: the one that sets the eventfds.
            self.machine.connect_bells()
            page = self.machine.bells.call_message(0)[0] & -PAGE
            domain.map(page, page, PAGE)
        return TranslatedDma(self.machine.memory, domain)

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

    def bus_master(self, on: bool) -> None:
        """Set or clear Bus Master Enable: allow the function to do DMA and to send MSI-X messages, or not."""
        self._check()
        command = self.config.read16(spec.CFG_COMMAND)
        command = command | spec.Command.MASTER if on else command & ~spec.Command.MASTER
        self.config.write16(spec.CFG_COMMAND, command)
        if on:
            self.machine.qtest.settle()  # a kick does not go the same way, and could come first
        self._master = on

    @property
    def has_reset(self) -> bool:
        """Always False, see ``reset``."""
        return False

    def reset(self) -> bool:
        """Return False: on the root bus QEMU's virtio functions have no function-level reset."""
        return False

    def close(self) -> None:
        """Disable interrupts and bus mastering; idempotent. Ends the machine if it was made for this function."""
        if self._closed:
            return
        try:
            if not self.undivided:  # else QEMU ends with it, below
                self.disable_interrupts()
                self.bus_master(False)
        except (DeviceGone, DeviceTimeout, Closed):
            # QEMU ended or hangs: its device model does not write any more, or ends below.
            pass
        self._closed = True
        self._removal.close()
        for event in self._events:
            event.close()
        if self.id in self.machine.qmp_client.deleted:
            self._access.release_bars()
        if self.undivided:
            self.machine.close()

    def __repr__(self) -> str:
        return f"<QemuPciFunction {self.address}{', closed' * self._closed}>"

    def __enter__(self) -> QemuPciFunction:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "undivided", False) and not self._closed and os.getpid() == self._owner:
            warn_unclosed(self, then=self.close)

    def _check(self) -> None:
        if self._closed:
            raise Closed("this function is closed")
