"""A PCI function in VFIO's no-IOMMU mode: VFIO's registers, interrupts and reset, and no protection.

It taints the kernel. Addresses are physical and nothing is pinned, so memory comes from huge pages and a guardian
stands by, as with uio_pci_generic; but there is MSI-X, and no other process can interfere.
"""

from __future__ import annotations

from contextlib import suppress

from uvirtio.backends.guardian import WARNING, Guardian, QuietStep, Register, quieting
from uvirtio.backends.physical import HugeFile, PhysicalDmaSpace
from uvirtio.backends.vfio.uapi import VFIO_PCI_CONFIG_REGION_INDEX
from uvirtio.backends.vfio.ways import Way
from uvirtio.backends.vfio_function import VfioFunction
from uvirtio.backends.watched import WatchedRemoval
from uvirtio.errors import Closed
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import DEFAULT_TIMEOUT
from uvirtio.memory.eventfd import EventFd
from uvirtio.spec import pci
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import DmaSpace


class VfioNoIommuFunction(VfioFunction):
    """A PCI function that is bound to vfio-pci without an IOMMU.

    Satisfies ``PciFunction``, ``Guarded`` and ``WithoutIommu``.
    """

    warning = WARNING

    def __init__(self, address: str, way: Way, roots: Roots, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take over an open function, as ``VfioFunction``; use ``VfioPciFunction.open``, which opens it.

        Raises:
            DeviceGone: The function was removed.
            NotSupported: The kernel has no huge pages of 2 MiB.
            OperationFailed: The kernel refused, or the guardian cannot be started.
        """
        super().__init__(address, way, roots, timeout=timeout)
        self.translates = False
        self._status: Register | None = None
        self._memory: HugeFile | None = None
        self._guardian: Guardian | None = None
        try:
            self._memory = HugeFile(roots)
            self._guardian = Guardian(address, [self._memory.fileno(), way.device.fd])
            self.removal = WatchedRemoval(self.removal or EventFd(), self._guardian.check)
        except BaseException:
            self.close()
            raise

    def guard(self, bar: int, offset: int, width: int) -> None:
        """Set where the device status is, for the guardian; see ``Guarded``."""
        self._status = Register(self._device.fd, self._regions[bar].offset + offset, width)

    def bus_master(self, on: bool) -> None:
        """Set or clear Bus Master Enable: allow the function to do DMA and to send MSIs, or not.

        Allowing waits until the guardian is ready.

        Raises:
            OperationFailed: The guardian did not become ready.
            GuardianLost: The guardian has ended.
        """
        if on and self._guardian is not None:
            self._guardian.stand_ready(self._plan())
        super().bus_master(on)
        if self._guardian is not None:
            self._guardian.needed = on

    def _plan(self) -> list[QuietStep]:
        place = self._regions[VFIO_PCI_CONFIG_REGION_INDEX].offset + pci.CFG_COMMAND
        return quieting(self._status, Register(self._device.fd, place, 2), pci.Command.MASTER)

    def dma(self, translated: bool) -> DmaSpace:
        """Return memory in huge pages: nothing translates, so both meanings of an address are physical.

        Raises:
            HugePagesLack: The pool has no huge page.
            PagemapHidden: This process may not read physical addresses.
            Closed: After ``close()``.
        """
        if self._closed or self._memory is None:
            raise Closed(f"{self.address} is closed")
        return PhysicalDmaSpace(self._roots, file=self._memory, translated=translated)

    def close(self) -> None:
        """Disable bus mastering, end the guardian (or let it act), then close as ``VfioFunction``; idempotent."""
        if not self._closed and self._guardian is not None:
            # It has the function's descriptor, and the kernel resets the function when the last one is closed.
            if self._master_off():
                self._guardian.disarm()
            self._guardian.close()
        super().close()
        if self._memory is not None:
            with suppress(Closed):
                self._memory.close()
