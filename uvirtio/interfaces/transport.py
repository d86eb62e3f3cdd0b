"""What a transport offers to a device: the operations of chapter 3, by the registers of chapter 4.

A transport (``transports/``) knows what registers mean, and not where they come from. Optional abilities are
Protocols of their own beside ``Transport``, and are tested with ``isinstance``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from uvirtio.interfaces.backend import Backend
from uvirtio.interfaces.memory import DmaSpace, Doorbell, Event, Registers
from uvirtio.interfaces.runtime import USED as USED
from uvirtio.interfaces.runtime import Causes as Causes
from uvirtio.interfaces.runtime import ConfirmsAbsence as ConfirmsAbsence
from uvirtio.interfaces.runtime import HasAdminQueues as HasAdminQueues
from uvirtio.interfaces.runtime import HasQueueEvents as HasQueueEvents
from uvirtio.interfaces.runtime import QueueLayout as QueueLayout
from uvirtio.interfaces.runtime import ResetsQueues as ResetsQueues
from uvirtio.interfaces.runtime import SharedRegion as SharedRegion
from uvirtio.interfaces.values import InterruptMode
from uvirtio.typed import Protocol, runtime_checkable


@runtime_checkable
class SharesMemory(Protocol):
    """Optional ability of a ``Transport``: shared memory regions (2.10)."""

    def shared_memory(self) -> Sequence[SharedRegion]:
        """Return the regions that this device has, by ascending id."""
        ...

    def shared_registers(self, shmid: int, offset: int, length: int) -> Registers:
        """Return a piece of a region, for accesses of exact width. The caller closes it.

        Args:
            shmid: The id of the region.
            offset: Start in the region, in bytes.
            length: Number of bytes.

        Raises:
            ConfigError: There is no such region, or the piece is not all in it.
        """
        ...


class Transport(Protocol):
    """Virtio over some bus: the operations of chapter 3, by the registers of chapter 4."""

    kind: str
    """The bus, for people and machines: ``pci``, ``mmio``, ``vdpa``."""

    device_id: int
    """The virtio device ID (5)."""

    legacy: bool
    """The legacy interface (2.2.3): feature bits 0..31, no FEATURES_OK, no generation, page-frame queue addresses.

    There the bytes of rings and configuration are in the guest's byte order (2.5.3, 2.7.3). This package
    runs on little-endian machines alone (``memory/access.py``), so both interfaces have the same byte order.
    """

    features_allowed: int
    """Mask of the feature bits 24..63 that this transport and the rings of this package support (6)."""

    interrupt_failures: list[str]
    """Why ``connect_interrupts`` gave up modes that exist: refused vectors, calls that failed. A line each."""

    @property
    def other_interface(self) -> str:
        """How to reach the device's other interface, legacy or modern, for remedies; "" where there is none."""
        ...

    @property
    def backend(self) -> Backend:
        """The back end's object. Its optional abilities are tested with ``isinstance``."""
        ...

    @property
    def config_length(self) -> int:
        """Maximum length of the device configuration, in bytes."""
        ...

    @property
    def num_queues(self) -> int:
        """Number of queues that the device has at most."""
        ...

    @property
    def description(self) -> str:
        """One line for people: how the device is reached."""
        ...

    @property
    def interface(self) -> str:
        """One line for people: which interface of the device is used, and where its registers are."""
        ...

    @property
    def quirks(self) -> Sequence[str]:
        """Deviations from the standard in how the device presents its interface; it can be used. A line each."""
        ...

    @property
    def translates(self) -> bool:
        """True where an IOMMU stands between the device and memory: IOVAs are possible."""
        ...

    @property
    def interrupt_mode(self) -> InterruptMode:
        """The interrupt mode that ``connect_interrupts`` chose."""
        ...

    def device_features(self) -> int:
        """Return the offered features, 128 bits; of a legacy interface only the first 32 (4.1.4.10)."""
        ...

    def set_driver_features(self, features: int) -> None:
        """Write the accepted features, 128 bits."""
        ...

    def status(self) -> int:
        """Return the device status, 8 bits (2.1)."""
        ...

    def set_status(self, value: int) -> None:
        """Write the device status (2.1); 0 resets the device."""
        ...

    def generation(self) -> int | None:
        """Return config_generation (2.5.1); None where the transport has none (legacy)."""
        ...

    def read_config(self, offset: int, width: int) -> int:
        """Read one field of the device configuration, little-endian.

        Args:
            offset: Place in the configuration, in bytes.
            width: 1, 2, 4 or 8 bytes; 8 is two 4-byte accesses (2.5.1).

        Raises:
            ConfigError: The field is not all in the configuration.
        """
        ...

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Write one field of the device configuration, little-endian; parameters as for ``read_config``.

        Raises:
            ConfigError: The field is not all in the configuration.
        """
        ...

    def queue_layout(self, index: int) -> QueueLayout:
        """Return what is known of a queue before memory is allocated for it."""
        ...

    def connect_interrupts(self, queues: Sequence[int], modes: Sequence[InterruptMode]) -> InterruptMode:
        """Enable the first of ``modes`` that works; to be called before any queue is enabled.

        Args:
            queues: The queues that are going to be used.
            modes: Interrupt modes, best first.

        Returns:
            The mode that was enabled.
        """
        ...

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
        """Write the size and the three area addresses of a queue, read them back, and enable it.

        Args:
            index: The queue.
            size: Its size, in entries.
            desc: Device address of the descriptor area.
            driver: Device address of the driver area.
            device: Device address of the device area.

        Returns:
            The queue's doorbell.

        Raises:
            QueueError: The device did not take the queue.
        """
        ...

    def events(self) -> Sequence[Event]:
        """Return the events to wait for: interrupts, and the removal of the device."""
        ...

    def causes(self, fired: Collection[int] | None = None) -> Causes:
        """Take what is pending, read its cause and rearm. In POLLING mode this reads the interrupt status.

        Args:
            fired: The descriptors among those of ``events()`` that are known to be readable; the others are not
                checked. None: check all.
        """
        ...

    def dma(self, translated: bool) -> DmaSpace:
        """Return memory for this device. The caller closes it after the device was reset.

        Args:
            translated: True for IOVAs (ACCESS_PLATFORM negotiated), False for guest-physical addresses (6.1).
        """
        ...

    def dma_enable(self, on: bool) -> None:
        """Allow the device to do DMA, or not (PCI: Bus Master Enable)."""
        ...

    def function_reset(self) -> bool:
        """Reset the function by the means of its bus; False where the bus has none."""
        ...

    def release_queues(self) -> None:
        """Release doorbells and interrupts after a reset; the next initialisation makes new ones."""
        ...

    def close(self) -> None:
        """Release the device; idempotent."""
        ...
