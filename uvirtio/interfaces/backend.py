"""What a back end hands over: a PCI function, a virtio-mmio window or a vDPA device that this process owns.

A back end (``backends/``) knows the kernel or QEMU, and nothing of virtio. Optional abilities are Protocols of
their own beside the main one, and are asked for by ``isinstance``.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from uvirtio.interfaces.memory import DmaSpace, Doorbell, Event, MemoryWindow, Registers
from uvirtio.interfaces.values import BarInfo


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
    """Fires when the host asks for the device back, or has removed it (hot-unplug); None where nothing would tell.

    ``take()`` raises DeviceGone instead where the cause is another, such as the end of the device's process.
    """

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
    """Fires when the device is taken away, as that of a PciFunction does; None where nothing would tell."""

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


Backend = PciFunction | MmioWindow | VdpaNode
"""What a back end hands over. ``bus`` tells which of the three it is."""


@runtime_checkable
class ProvidesMemory(Protocol):
    """What it may have beside the rest: its device's memory is a file of this process."""

    def plugged_memory(self) -> MemoryWindow:
        """A window of the whole region. Raises NotSupported where the file belongs to somebody else."""
        ...


@runtime_checkable
class GuestMachine(Protocol):
    """What it may have beside the rest: its device is in a guest machine that this process runs.

    No operating system runs in that guest, so all of its memory is the drivers'.
    """

    id: str
    """The machine's own name of the device: ``/machine/peripheral/ID`` in QEMU's tree of objects."""

    @property
    def ram(self) -> int:
        """The guest's memory in bytes, without what a virtio-mem device plugs."""
        ...

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command of the machine's monitor (QMP) and return its result.

        Raises:
            QemuFailed: The machine refuses the command.
            DeviceGone: The machine has ended.
            DeviceTimeout: It does not answer.
            Closed: It was closed here.
        """
        ...


def after_removal(backend: object) -> str:
    """What to do when the device behind ``backend`` is gone, for the remedy of DeviceGone."""
    if isinstance(backend, GuestMachine):
        return "its machine runs without it: plug in another device, or start another machine"
    return "uvirtio list shows what is left"


@runtime_checkable
class Guarded(Protocol):
    """What a PciFunction may have beside the rest: somebody resets its device when this process is killed."""

    def guard(self, bar: int, offset: int, width: int) -> None:
        """Where the device status lies: 0 is written there, and read back, when it comes to that."""
        ...


@runtime_checkable
class WithoutIommu(Protocol):
    """What a back end's object may have beside the rest: no IOMMU holds its device."""

    warning: str
    """What that means, for people."""
