"""The seams: what a back end gives to a transport, and a transport to a device, as Protocols.

A back end (``backends/``) knows the kernel or QEMU and nothing of virtio; a transport (``transports/``) knows
what registers mean and not where they come from; ``device`` introduces them. All offsets and lengths are in
bytes, all addresses are the device's (IOVA or guest-physical, as the memory's policy has it).
"""

from __future__ import annotations

import mmap
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from uvirtio.memory.plain import BarInfo as BarInfo
from uvirtio.memory.plain import InterruptMode as InterruptMode

PFN_SHIFT = 12
"""A PFN is a guest-physical address divided by 4096, whatever the page size of the CPU (5.5.6)."""


class Registers(Protocol):
    """A window of registers: one access of exactly the width per call, at an aligned byte offset.

    Raises ValueError for an access outside the window or not aligned (a mistake of the caller), Closed after
    ``close()``, DeviceGone when the device has been removed.
    """

    length: int

    def read8(self, offset: int) -> int: ...
    def read16(self, offset: int) -> int: ...
    def read32(self, offset: int) -> int: ...
    def write8(self, offset: int, value: int) -> None: ...
    def write16(self, offset: int, value: int) -> None: ...
    def write32(self, offset: int, value: int) -> None: ...
    def close(self) -> None: ...


class Doorbell(Protocol):
    """Where a queue is kicked. ``ring`` takes the value that the standard wants written (4.1.5.2)."""

    def ring(self, value: int) -> None: ...
    def close(self) -> None: ...


class Event(Protocol):
    """One interrupt vector as a file descriptor that polls readable.

    ``take()`` consumes what is pending, without waiting, and says whether there was anything. A line that is
    level-triggered (INTx) stays masked from then on until ``rearm()``, which is called after the cause was
    read from the device; for edge-triggered vectors ``rearm()`` does nothing. ``take()`` must be called before
    one waits on ``fileno()``: an implementation may hold events that it read beside something else.
    """

    def fileno(self) -> int: ...
    def take(self) -> bool: ...
    def rearm(self) -> None: ...
    def close(self) -> None: ...


class Block(Protocol):
    """A piece of memory that stays where it is while a device may touch it.

    ``view`` is its bytes; whoever casts or slices it releases that view before ``close()``.
    """

    view: memoryview
    size: int
    contiguous: bool
    """One run of device addresses from start to end."""

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The device addresses of these bytes, as (address, length) runs, merged where they touch."""
        ...

    def pfns(self) -> list[int]:
        """The guest-physical frame number of each 4096-byte piece, read anew at every call.

        Raises PagemapHidden where this process may not know them.
        """
        ...

    def close(self) -> None: ...


class DmaSpace(Protocol):
    """Memory for one device, under one address policy."""

    translated: bool
    """True: addresses are IOVAs (ACCESS_PLATFORM negotiated). False: guest-physical addresses (6.1)."""

    contiguous_limit: int
    """No run of device addresses is longer than this many bytes, unless by luck; ring areas must fit in it."""

    def alloc(self, size: int) -> Block:
        """Zeroed, page-aligned memory of at least ``size`` bytes that the device may read and write.

        Raises MemlockExceeded, PagemapHidden, or OperationFailed when the map is refused.
        """
        ...

    def pin(self, size: int) -> Block:
        """Zeroed memory that stays put and whose ``pfns()`` are known, but that the device does not address.

        For balloon pages: pinned by one map, whatever their number. ``segments()`` is undefined on it.
        """
        ...

    def close(self) -> None: ...


class PciFunction(Protocol):
    """A PCI function that this process owns."""

    bus: Literal["pci"]
    """Which kind of thing this is; ``opening`` chooses the transport by it."""

    address: str
    config: Registers
    """Configuration space, 256 or 4096 bytes. What a capability walk reads, and nothing else is written."""

    has_intx: bool
    translates: bool
    """True where an IOMMU stands between the function and memory: IOVAs are possible."""

    removal: Event | None
    """Fires when somebody wants the device back (hot-unplug); None where nobody would tell."""

    description: str
    """One line for people: which way in this is (``vfio-pci, group 12, type1v2``)."""

    @property
    def msix_vectors(self) -> int:
        """Vectors that ``enable_msix`` can give; 0 where the function has none or they cannot be delivered."""
        ...

    def bar(self, index: int) -> BarInfo | None: ...

    def registers(self, bar: int, offset: int, length: int) -> Registers:
        """A window of a BAR. Raises CapabilityError if the BAR is absent or too small."""
        ...

    def doorbell(self, bar: int, offset: int, value: int) -> Doorbell | None:
        """An eventfd (or the like) that writes ``value`` at this place of the BAR; None: write the register."""
        ...

    def enable_msix(self, count: int) -> list[Event]:
        """Turn MSI-X on with vectors 0..count-1 and return their events; replaces what was on before."""
        ...

    def enable_intx(self) -> Event | None:
        """Turn the interrupt pin on; None where that cannot be had."""
        ...

    def disable_interrupts(self) -> None: ...

    def dma(self, translated: bool) -> DmaSpace:
        """Memory for this function. The caller closes it after the device was reset."""
        ...

    def bus_master(self, on: bool) -> None: ...

    def reset(self) -> bool:
        """Function-level reset; False where the function has none."""
        ...

    def close(self) -> None: ...


class MmioWindow(Protocol):
    """A virtio-mmio window (4.2) that this process owns. It has no bus master bit and no reset of its own."""

    bus: Literal["mmio"]

    address: str
    registers: Registers
    """The whole window: the registers of 4.2.2, then the device's configuration. Closed with the window."""

    translates: bool
    """True where an IOMMU stands between the device and memory: IOVAs are possible."""

    removal: Event | None
    """Fires when the device is taken away; None where nobody would tell."""

    description: str

    def enable_interrupt(self) -> Event | None:
        """Listen to the interrupt line, level-triggered; None where it does not reach this process."""
        ...

    def disable_interrupt(self) -> None: ...

    def guard(self, status: int) -> None:
        """The device is about to use memory. ``status`` is the offset of the register that 0 resets it by.

        Where nothing else stops the device if this process is killed, somebody has to stand ready from now on.
        """
        ...

    def dma(self, translated: bool) -> DmaSpace:
        """Memory for this device. The caller closes it after the device was reset."""
        ...

    def close(self) -> None: ...


class VdpaNode(Protocol):
    """A vDPA device that this process has opened: one verb for each ioctl of vhost-vdpa, under the kernel's name.

    Addresses that go into ``set_vring_addr`` are IOVAs of the space that ``dma`` makes. ``fd`` -1 takes an eventfd
    away. All raise OperationFailed for what the kernel refuses, NotSupported for what this kernel or device has
    not, DeviceGone when nobody answers behind the node any more, Closed.
    """

    bus: Literal["vdpa"]
    """Which kind of thing this is; ``opening`` chooses the transport by it."""

    address: str
    description: str
    """One line for people: which way in this is, and who is behind it."""

    calls: int | None
    """How many calls (one for each queue, one for the configuration) get through; None where nobody can tell."""

    def get_device_id(self) -> int: ...
    def get_status(self) -> int: ...
    def set_status(self, value: int) -> None: ...
    def get_features(self) -> int:
        """The offered features: 64 bits, or 128 where the kernel has words for them."""
        ...

    def set_features(self, features: int) -> None: ...
    def get_config_size(self) -> int: ...
    def get_config(self, offset: int, length: int) -> bytes: ...
    def set_config(self, offset: int, data: bytes) -> None: ...
    def get_vqs_count(self) -> int: ...
    def get_vring_num(self) -> int:
        """The most entries that a queue may have, whichever it is."""
        ...

    def get_vring_size(self, index: int) -> int | None:
        """The size of one queue as the device has it; None where the kernel or the device does not say."""
        ...

    def set_vring_num(self, index: int, num: int) -> None: ...
    def set_vring_addr(self, index: int, desc: int, avail: int, used: int) -> None: ...
    def set_vring_base(self, index: int, base: int) -> None: ...
    def get_vring_base(self, index: int) -> int: ...
    def set_vring_kick(self, index: int, fd: int) -> None: ...
    def set_vring_call(self, index: int, fd: int) -> None: ...
    def set_vring_enable(self, index: int, on: bool) -> None: ...
    def set_config_call(self, fd: int) -> None: ...
    def suspend(self) -> None:
        """Stop the queues with their state kept. Raises NotSupported where the device cannot."""
        ...

    def resume(self) -> None: ...
    def dma(self, translated: bool) -> DmaSpace:
        """Memory for this device. The caller closes it after the device was reset.

        Raises NotSupported with ``translated=False``: there are no other addresses than IOVAs here.
        """
        ...

    def close(self) -> None:
        """Idempotent. The kernel resets the device, whatever state it is in."""
        ...


class MemoryWindow(Protocol):
    """The CPU's way to memory that a device provides (virtio-mem), in pieces that are mapped one by one."""

    size: int

    def map(self, offset: int, length: int) -> mmap.mmap:
        """Map whole pages of it, for reading and writing; whoever asked closes the mapping.

        Raises PermissionLack, OperationFailed, Closed; ValueError outside the window.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class ProvidesMemory(Protocol):
    """What a PciFunction may have beside the rest: its device's memory is a file of this process."""

    def plugged_memory(self) -> MemoryWindow:
        """A window of the whole region. Raises NotSupported where the file belongs to somebody else."""
        ...


@runtime_checkable
class AdoptsMemory(Protocol):
    """What a DmaSpace may have beside the rest: it shows a device memory that it did not make."""

    def adopt(self, mapping: mmap.mmap, physical: int) -> Block:
        """The whole mapping, whose guest-physical address is known, as a block of this space.

        Closing the block takes it away from the device; the mapping stays the caller's.
        """
        ...


@runtime_checkable
class Guarded(Protocol):
    """What a PciFunction may have beside the rest: somebody resets its device when this process is killed."""

    def guard(self, bar: int, offset: int, width: int) -> None:
        """Where the device status lies: 0 is written there, and read back, when it comes to that."""
        ...


@runtime_checkable
class Unheld(Protocol):
    """What a back end's object may have beside the rest: no IOMMU holds its device."""

    warning: str
    """What that means, for people."""


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
    def oddities(self) -> Sequence[str]:
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
