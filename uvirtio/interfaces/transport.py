"""What a transport offers to a device: the verbs of chapter 3, with the registers of chapter 4 behind them.

A transport (``transports/``) knows what registers mean, and not where they come from. Optional abilities are
Protocols of their own beside :class:`Transport`, and are asked for by ``isinstance``.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from uvirtio.interfaces.backend import Backend
from uvirtio.interfaces.memory import DmaSpace, Doorbell, Event, Registers
from uvirtio.interfaces.values import InterruptMode


@dataclass(frozen=True, slots=True)
class SharedRegion:
    """Memory of the device that driver and device share (2.10): its id, and its length in bytes."""

    shmid: int
    length: int


@runtime_checkable
class ResetsQueues(Protocol):
    """What a Transport has beside the rest if RING_RESET is among its features."""

    def start_queue_reset(self, index: int) -> None:
        """Ask for the reset of one queue (2.6.1)."""
        ...

    def queue_is_reset(self, index: int) -> bool:
        """Whether it is done; then the queue's doorbell is let go of, and it can be enabled anew."""
        ...


@runtime_checkable
class HasAdminQueues(Protocol):
    """What a Transport has beside the rest if ADMIN_VQ is among its features."""

    def admin_queues(self) -> range:
        """The indices of the administration queues (2.13); empty unless ADMIN_VQ was negotiated."""
        ...


@runtime_checkable
class SharesMemory(Protocol):
    """What a Transport has beside the rest if it knows of shared memory regions (2.10)."""

    def shared_memory(self) -> Sequence[SharedRegion]:
        """The regions that this device has, by ascending id."""
        ...

    def shared_registers(self, shmid: int, offset: int, length: int) -> Registers:
        """A piece of a region, for accesses of exact width. The caller closes it. Raises ConfigError outside."""
        ...


@dataclass(frozen=True, slots=True)
class QueueLayout:
    """What a transport knows of a queue before memory is made for it."""

    size_max: int
    """Entries; 0 means that the queue does not exist."""

    size_fixed: bool = False
    """Legacy PCI: the size cannot be reduced."""

    one_region: bool = False
    """Legacy: descriptors, available and used ring in one contiguous region, used aligned to 4096 (2.7.2)."""


@dataclass(frozen=True, slots=True)
class Causes:
    """What the interrupts that were just taken say."""

    config: bool = False
    queues: bool = False
    removal: bool = False
    spurious: bool = False
    """An interrupt was taken, and the device names no cause."""


class Transport(Protocol):
    """Virtio over some bus: the verbs of chapter 3, with chapter 4's registers behind them."""

    kind: str
    device_id: int
    legacy: bool
    """The legacy interface (2.2.3): feature bits 0..31, no FEATURES_OK, no generation, page-frame queue addresses.

    Where it is spoken the bytes of rings and configuration are in the guest's order (2.5.3, 2.7.3). This package
    runs on little-endian machines alone (``memory/access.py``), so there is one order for both interfaces.
    """

    features_allowed: int
    """Mask of the feature bits 24..63 that this transport and our rings can carry (6)."""

    @property
    def backend(self) -> Backend:
        """What the back end handed over. Its optional abilities are asked for by ``isinstance``."""
        ...

    @property
    def config_length(self) -> int:
        """Bytes of device configuration that there are at most."""
        ...

    @property
    def num_queues(self) -> int: ...
    @property
    def description(self) -> str: ...
    @property
    def interface(self) -> str:
        """One line for people: which interface of the device is spoken, and where its registers lie."""
        ...

    @property
    def quirks(self) -> Sequence[str]:
        """What is wrong with how the device presents its interface, though it can be used; a line each."""
        ...

    @property
    def translates(self) -> bool: ...
    @property
    def interrupt_mode(self) -> InterruptMode: ...

    def device_features(self) -> int:
        """The offered features, 128 bits; of a legacy interface the first 32 alone (4.1.4.10)."""
        ...

    def set_driver_features(self, features: int) -> None: ...
    def status(self) -> int: ...
    def set_status(self, value: int) -> None: ...
    def generation(self) -> int | None:
        """config_generation, or None where the transport has none (legacy)."""
        ...

    def read_config(self, offset: int, width: int) -> int:
        """One field of the device configuration; width 1, 2, 4 or 8 (8 is two 4-byte accesses)."""
        ...

    def write_config(self, offset: int, width: int, value: int) -> None: ...
    def queue_layout(self, index: int) -> QueueLayout: ...
    def connect_interrupts(self, queues: Sequence[int], modes: Sequence[InterruptMode]) -> InterruptMode:
        """Take the first of ``modes`` that works for these queues and the configuration; before any enable."""
        ...

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
        """Write size and the three area addresses, read them back, enable; returns where to kick."""
        ...

    def events(self) -> Sequence[Event]: ...
    def causes(self, fired: Container[int] | None = None) -> Causes:
        """Take what is pending, read its cause, rearm. In POLLING mode this asks the device (ISR).

        ``fired``: the descriptors among those of ``events()`` that can be read now, for who has just asked; the
        others need not be looked at. None: look at all.
        """
        ...

    def dma(self, translated: bool) -> DmaSpace: ...
    def dma_enable(self, on: bool) -> None: ...
    def function_reset(self) -> bool: ...
    def release_queues(self) -> None:
        """After a reset: let go of doorbells and interrupts; the next initialisation makes new ones."""
        ...

    def close(self) -> None: ...
