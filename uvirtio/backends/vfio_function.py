"""A PCI function that is bound to vfio-pci, as the ``PciFunction`` that the transports need.

Every register access is a pread or pwrite on the region, the doorbell's too, though memory BARs could be
mapped: touching a mapped BAR of a device that was removed, is in reset or decodes no memory causes SIGBUS,
which ends the Python process with its balloon inflated. A pwrite fails with DeviceGone, and costs a microsecond
per batch. ``Device.mmap`` has the mapping.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import Self

from uvirtio.backends.pci_function import BoundFunction
from uvirtio.backends.vfio.device import RegionInfo
from uvirtio.backends.vfio.events import IntxEvent
from uvirtio.backends.vfio.uapi import (
    VFIO_DEVICE_FLAGS_RESET,
    VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_BAR5_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_ERR_IRQ_INDEX,
    VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX,
)
from uvirtio.backends.vfio.ways import Way
from uvirtio.backends.vfio_memory import VfioDmaSpace
from uvirtio.errors import Closed, DeviceGone, OperationFailed
from uvirtio.host.drivers import VFIO, pci_driver
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import DEFAULT_TIMEOUT, BarInfo
from uvirtio.memory.access import FdRegisters
from uvirtio.memory.eventfd import EventFd, all_or_none
from uvirtio.memory.iova import IovaAllocator
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.spec import pci
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import DmaSpace, Event, Registers


class VfioFunction(BoundFunction):
    """A PCI function that VFIO has and this process opened. Satisfies ``PciFunction``."""

    def __init__(
        self,
        address: str,
        way: Way,
        roots: Roots,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Take over an open function; use ``VfioPciFunction.open``, which opens it.

        Args:
            address: The function, ``0000:03:00.0``.
            way: How it was opened; closed by ``close()``.
            roots: Where /proc and /sys are.
            timeout: Seconds to wait for the device's lock at a reset.

        Raises:
            DeviceGone: The function was removed.
            OperationFailed: The kernel refused.
        """
        super().__init__(address)
        self.driver = pci_driver(address, roots) or VFIO  # or a variant of it, by whose name it is shown
        self._way = way
        self._device = device = way.device
        self._roots = roots
        self._timeout = timeout
        self._windows: weakref.WeakSet[FdRegisters] = weakref.WeakSet()
        self._spaces: list[VfioDmaSpace] = []
        self._interrupts: list[EventFd] = []
        self._armed: int | None = None
        self.removal: Event | None = None
        self.error: Event | None = None
        """Fires when the function reports an uncorrectable error (AER); None where it is not signalled."""

        self._regions: dict[int, RegionInfo] = {
            index: device.region_info(index)
            for index in (
                *range(VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX + 1),
                VFIO_PCI_CONFIG_REGION_INDEX,
            )
        }
        space = self._regions[VFIO_PCI_CONFIG_REGION_INDEX]
        self.config: Registers = self._window(space, 0, space.size)
        self._bars = {index: info for index in range(pci.BARS) if (info := self._bar_info(index)) is not None}
        self.msix_vectors = device.irq_info(VFIO_PCI_MSIX_IRQ_INDEX).count
        self.has_intx = device.irq_info(VFIO_PCI_INTX_IRQ_INDEX).count > 0
        self.translates = True
        self.description = f"{self.driver}, {way.description}"
        if way.space is not None:
            iommu = way.space.iommu_info()
            page = max(CPU_PAGE, iommu.page_sizes & -iommu.page_sizes)
            self._iova = IovaAllocator(iommu.ranges, page)
        self._decode()
        self.error = self._listen(VFIO_PCI_ERR_IRQ_INDEX)
        try:
            self.removal = self._listen(VFIO_PCI_REQ_IRQ_INDEX)
        except BaseException:
            if self.error is not None:
                self.error.close()
            raise

    # --- registers ----------------------------------------------------------------------------------------

    def _window(self, region: RegionInfo, offset: int, length: int) -> FdRegisters:
        window = FdRegisters(self._device.fd, region.offset + offset, length, what=self.address)
        self._windows.add(window)
        return window

    def _bar_info(self, index: int) -> BarInfo | None:
        size = self._regions[index].size
        if not size:
            return None
        return BarInfo(index, size, bool(self.config.read32(pci.CFG_BAR0 + 4 * index) & pci.BAR_IO))

    def registers(self, bar: int, offset: int, length: int) -> FdRegisters:
        """Return a window of a BAR.

        Raises:
            CapabilityError: The BAR is absent or too small.
            Closed: After ``close()``.
        """
        self._bar_of(bar, offset, length)
        return self._window(self._regions[bar], offset, length)

    def bus_master(self, on: bool) -> None:
        """Set or clear Bus Master Enable: allow the function to do DMA and to send MSIs, or not."""
        if on:
            self.command(set_=pci.Command.MASTER)
        else:
            self.command(clear=pci.Command.MASTER)

    # --- interrupts ---------------------------------------------------------------------------------------

    def _listen(self, index: int) -> EventFd | None:
        """Return an event for one of the kernel's own messages (error, request), or None."""
        if not self._device.irq_info(index).count:
            return None
        event = EventFd()
        try:
            self._device.set_irqs(index, [event.fileno()])
        except OperationFailed:
            event.close()
            return None
        except BaseException:
            event.close()
            raise
        return event

    def enable_msix(self, count: int) -> list[Event]:
        """Enable MSI-X with ``count`` vectors; returns an event for each.

        Raises:
            OperationFailed: The function or the kernel has fewer.
            DeviceGone: The function was removed.
        """
        if not 0 < count <= self.msix_vectors:
            raise OperationFailed(
                f"{count} MSI-X vectors of {self.address} are not available",
                seen=f"{self.msix_vectors} in its table",
            )
        self.disable_interrupts()
        events = all_or_none(EventFd, count)
        self._arm(VFIO_PCI_MSIX_IRQ_INDEX, events)
        return list(events)

    def enable_intx(self) -> Event | None:
        """Enable the interrupt pin; None where the function has none or the kernel cannot deliver it."""
        if not self.has_intx:
            return None
        self.disable_interrupts()
        event = IntxEvent(self._device)
        try:
            self._arm(VFIO_PCI_INTX_IRQ_INDEX, [event])
        except OperationFailed:
            return None
        self.command(clear=pci.Command.INTX_DISABLE)  # armed first: a line that is high already is delivered
        return event

    def _arm(self, index: int, events: list[EventFd] | list[IntxEvent]) -> None:
        try:
            self._device.set_irqs(index, [event.fileno() for event in events])
        except BaseException:
            for event in events:
                event.close()
            raise
        self._armed = index
        self._interrupts = list(events)

    def disable_interrupts(self) -> None:
        """Disable MSI-X or INTx and close their events; idempotent."""
        index, self._armed = self._armed, None
        events, self._interrupts = self._interrupts, []
        try:
            if index == VFIO_PCI_INTX_IRQ_INDEX:
                self.command(set_=pci.Command.INTX_DISABLE)
            if index is not None:
                self._device.disable_irqs(index)
        finally:
            for event in events:
                event.close()

    # --- memory, reset, close -----------------------------------------------------------------------------

    def dma(self, translated: bool) -> DmaSpace:
        """Return memory under one address policy. The caller closes it after the device was reset.

        Args:
            translated: True for IOVAs (ACCESS_PLATFORM negotiated), False for guest-physical addresses (6.1).

        Raises:
            PagemapHidden: ``translated`` is False, and this process may not read physical addresses.
            Closed: After ``close()``.
        """
        if self._closed or self._way.space is None:
            raise Closed(f"{self.address} is closed")
        space = VfioDmaSpace(self._way.space, self._iova, translated=translated, roots=self._roots)
        self._spaces.append(space)
        return space

    @property
    def has_reset(self) -> bool:
        """Whether the kernel found a way to reset the function (VFIO_DEVICE_FLAGS_RESET)."""
        try:
            return bool(self._device.info().flags & VFIO_DEVICE_FLAGS_RESET)
        except (OperationFailed, DeviceGone, Closed):
            return False

    def reset(self) -> bool:
        """Do a VFIO_DEVICE_RESET; False where the function has no reset."""
        return self._device.reset(self._timeout)

    def close(self) -> None:
        """Release the function; idempotent.

        Order: interrupts off, the device's descriptor (the kernel stops DMA and resets), memory that is still
        allocated, group, container.
        """
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:  # runs backwards, and all of it, whatever fails
            stack.callback(self._way.close)
            for space in self._spaces:
                stack.callback(space.close)
            for event in (self.removal, self.error):
                if event is not None:
                    stack.callback(event.close)
            stack.callback(self._device.close)
            for window in list(self._windows):
                stack.callback(window.close)  # or accesses would go to a reused descriptor
            try:
                self.disable_interrupts()
            except (DeviceGone, OperationFailed):
                pass  # it is being removed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warn_unclosed(self, self.address)
