"""What a back end provides: a PCI function, a virtio-mmio window, a vDPA device or a vhost-user back end.

A back end (``backends/``) knows the kernel or QEMU, and nothing of virtio. Optional abilities are Protocols of
their own beside the main one, and are tested with ``isinstance``.
"""

from __future__ import annotations

from uvirtio.interfaces.memory import DmaSpace, Doorbell, Event, MemoryWindow, Registers
from uvirtio.interfaces.runtime import Ends as Ends
from uvirtio.interfaces.runtime import Guarded as Guarded
from uvirtio.interfaces.runtime import GuestMachine as GuestMachine
from uvirtio.interfaces.runtime import Hurries as Hurries
from uvirtio.interfaces.runtime import WithoutIommu as WithoutIommu
from uvirtio.interfaces.runtime import after_removal as after_removal
from uvirtio.interfaces.runtime import after_reset_timeout as after_reset_timeout
from uvirtio.interfaces.runtime import inspection as inspection
from uvirtio.interfaces.values import BarInfo
from uvirtio.typed import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing import Literal


class PciFunction(Protocol):
    """A PCI function that this process owns."""

    bus: Literal["pci"]
    """The kind of back end object; ``opening`` chooses the transport by it."""

    address: str
    """Its address, as in sysfs: ``0000:03:00.0``."""

    config: Registers
    """Configuration space, 256 or 4096 bytes. For the capability walk, which only reads it."""

    has_intx: bool
    """The function has an interrupt pin that can be delivered to this process."""

    translates: bool
    """True where an IOMMU stands between the function and memory: IOVAs are possible."""

    removal: Event | None
    """Fires when the host requests the device back or has removed it (hot-unplug); None without such an event.

    ``take()`` fails with DeviceGone instead where the cause is another, such as the end of the device's process.
    """

    description: str
    """One line for people: how the function is reached (``vfio-pci, group 12, type1v2``)."""

    @property
    def msix_vectors(self) -> int:
        """Number of vectors that ``enable_msix`` can enable; 0 without MSI-X or where they cannot be delivered."""
        ...

    @property
    def has_reset(self) -> bool:
        """Whether ``reset`` can reset the function, whatever state the device is in; never an error."""
        ...

    def bar(self, index: int) -> BarInfo | None:
        """Return the base address register ``index`` (0 to 5); None where it is not implemented."""
        ...

    def registers(self, bar: int, offset: int, length: int) -> Registers:
        """Return a window of a BAR, for accesses of exact width. The function keeps what is behind it.

        Args:
            bar: Number of the BAR, 0 to 5.
            offset: Start of the window in the BAR, in bytes.
            length: Length of the window, in bytes.

        Raises:
            CapabilityError: The BAR is absent or too small.
        """
        ...

    def doorbell(self, bar: int, offset: int, value: int) -> Doorbell | None:
        """Return a doorbell that writes ``value`` to the BAR without an access by this process (an ioeventfd).

        Args:
            bar: Number of the BAR, 0 to 5.
            offset: Place of the notification register in the BAR, in bytes.
            value: The 16-bit value that is written at each kick.

        Returns:
            The doorbell; None where there is none, so that the register has to be written.
        """
        ...

    def enable_msix(self, count: int) -> list[Event]:
        """Enable MSI-X with the vectors 0 to ``count`` - 1; replaces what was enabled before.

        Returns:
            One event for each vector, in their order.

        Raises:
            OperationFailed: That many vectors are not available.
        """
        ...

    def enable_intx(self) -> Event | None:
        """Enable the interrupt pin; None where it is not available."""
        ...

    def disable_interrupts(self) -> None:
        """Disable MSI-X or the interrupt pin, whichever is enabled; idempotent."""
        ...

    def dma(self, translated: bool) -> DmaSpace:
        """Return memory for this function. The caller closes it after the device was reset.

        Args:
            translated: True for IOVAs (ACCESS_PLATFORM negotiated), False for guest-physical addresses (6.1).
        """
        ...

    def bus_master(self, on: bool) -> None:
        """Set or clear Bus Master Enable in the command register: allow the function to do DMA, or not."""
        ...

    def reset(self) -> bool:
        """Do a function-level reset; False where the function has none."""
        ...

    def close(self) -> None:
        """Release the function; idempotent."""
        ...


class MmioWindow(Protocol):
    """A virtio-mmio window (4.2) that this process owns. It has no bus master bit and no reset of its own."""

    bus: Literal["mmio"]
    """The kind of back end object; ``opening`` chooses the transport by it."""

    address: str
    """Its address, as the command line has it: ``mmio:0xfe003e00``."""

    registers: Registers
    """The whole window: the registers of 4.2.2, then the device's configuration. Closed with the window."""

    translates: bool
    """True where an IOMMU stands between the device and memory: IOVAs are possible."""

    removal: Event | None
    """Fires when the device is removed, as that of a ``PciFunction`` does; None where no such event exists."""

    description: str
    """One line for people: how the window is reached."""

    def enable_interrupt(self) -> Event | None:
        """Enable the interrupt line, level-triggered; None where it is not delivered to this process."""
        ...

    def disable_interrupt(self) -> None:
        """Disable the interrupt line; idempotent."""
        ...

    def guard(self, status: int) -> None:
        """Announce that the device is about to use memory.

        Where nothing else stops the device if this process is killed, a guardian process must be ready now.

        Args:
            status: Offset of the Status register in the window, in bytes; writing 0 resets the device (4.2.2.1).
        """
        ...

    def dma(self, translated: bool) -> DmaSpace:
        """Return memory for this device. The caller closes it after the device was reset.

        Args:
            translated: True for IOVAs (ACCESS_PLATFORM negotiated), False for guest-physical addresses (6.1).
        """
        ...

    def close(self) -> None:
        """Release the window; idempotent."""
        ...


class VhostNode(Protocol):
    """A device behind calls, as vhost has them: one method for each, with the kernel's name of its ioctl.

    Addresses for ``set_vring_addr`` are those of the space that ``dma`` returns. ``fd`` -1 removes an eventfd.

    Raises:
        OperationFailed: In any method: the request was refused.
        NotSupported: In any method: this kernel or device does not implement it.
        DeviceGone: In any method: the device does not respond any more.
        Closed: In any method: after ``close()``.
    """

    address: str
    """The node, ``/dev/vhost-vdpa-0``, or what stands for it: ``vhost-user:blk:/run/disk.socket``."""

    description: str
    """One line for people: how the device is reached, and what is behind it."""

    calls: int | None
    """How many calls (one for each queue, one for the configuration) are delivered; None where that is unknown."""

    def get_device_id(self) -> int:
        """Return the virtio device ID (5)."""
        ...

    def get_status(self) -> int:
        """Return the device status, 8 bits (2.1)."""
        ...

    def set_status(self, value: int) -> None:
        """Write the device status (2.1); 0 resets the device."""
        ...

    def get_features(self) -> int:
        """Return the offered features: 64 bits, or 128 where the kernel has an ioctl for them."""
        ...

    def set_features(self, features: int) -> None:
        """Write the accepted features; before FEATURES_OK."""
        ...

    def get_config_size(self) -> int:
        """Return the length of the device configuration, in bytes."""
        ...

    def get_config(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes of the device configuration from byte ``offset``."""
        ...

    def set_config(self, offset: int, data: bytes) -> None:
        """Write ``data`` to the device configuration from byte ``offset``."""
        ...

    def get_vqs_count(self) -> int:
        """Return the number of queues."""
        ...

    def get_vring_num(self) -> int:
        """Return the largest queue size, in entries, over all queues."""
        ...

    def get_vring_size(self, index: int) -> int | None:
        """Return the maximum size of one queue, in entries; None where kernel or device do not report it."""
        ...

    def set_vring_num(self, index: int, num: int) -> None:
        """Set the size of a queue to ``num`` entries."""
        ...

    def set_vring_addr(self, index: int, desc: int, avail: int, used: int) -> None:
        """Set the three areas of a queue.

        Args:
            index: The queue.
            desc: Device address of the descriptor area.
            avail: Device address of the driver area.
            used: Device address of the device area.
        """
        ...

    def set_vring_base(self, index: int, base: int) -> None:
        """Set the index at which the device begins with a queue."""
        ...

    def get_vring_base(self, index: int) -> int:
        """Return the index at which the device goes on with a queue."""
        ...

    def set_vring_kick(self, index: int, fd: int) -> None:
        """Set the eventfd by which the driver kicks a queue."""
        ...

    def set_vring_call(self, index: int, fd: int) -> None:
        """Set the eventfd by which the device signals used buffers of a queue."""
        ...

    def set_vring_enable(self, index: int, on: bool) -> None:
        """Enable or disable a queue."""
        ...

    def set_config_call(self, fd: int) -> None:
        """Set the eventfd by which the device signals a change of its configuration."""
        ...

    def suspend(self) -> None:
        """Stop the queues; their state is kept.

        Raises:
            NotSupported: The device cannot.
        """
        ...

    def resume(self) -> None:
        """Continue after ``suspend``.

        Raises:
            NotSupported: The device cannot.
        """
        ...

    def dma(self, translated: bool) -> DmaSpace:
        """Return memory for this device. The caller closes it after the device was reset.

        Raises:
            NotSupported: The device has no addresses of this kind.
        """
        ...

    def close(self) -> None:
        """Close the node; idempotent. The device uses no memory of it any more, whatever state it is in."""
        ...


class VdpaNode(VhostNode, Protocol):
    """A vDPA device that this process has opened, through the ioctls of vhost-vdpa. All addresses are IOVAs."""

    bus: Literal["vdpa"]
    """The kind of back end object; ``opening`` chooses the transport by it."""


class VhostUserNode(VhostNode, Protocol):
    """A device in another process that this one is connected to, through the messages of vhost-user."""

    bus: Literal["vhost-user"]
    """The kind of back end object; ``opening`` chooses the transport by it."""

    removal: Event
    """Fires when the back end hangs up; ``take()`` fails with DeviceGone then."""

    config_changes: Event | None
    """Fires when the configuration changes; None where the back end cannot say so. A reset may replace it."""


Backend = PciFunction | MmioWindow | VdpaNode | VhostUserNode
"""What a back end provides. ``bus`` says which of the four it is."""


@runtime_checkable
class ProvidesMemory(Protocol):
    """Optional ability of a back end's object: the memory of its device is a file that this process can map."""

    def plugged_memory(self) -> MemoryWindow:
        """Return a window of the whole memory region of the device (virtio-mem, 5.15).

        Raises:
            NotSupported: The file belongs to another process.
        """
        ...


@runtime_checkable
class OtherSide(Protocol):
    """Optional ability of a back end's object: this process sees what the device does on its other side, too.

    That is no part of the device, and a driver has no use for it. A diagnosis compares there.
    """

    @property
    def other_sides(self) -> frozenset[str]:
        """What there is for this device: ``peer``, ``screen``, ``memory``. The methods of the others fail."""
        ...

    def peer_send(self, data: bytes) -> None:
        """``peer``: send bytes to the device from what it connects to, the host's end of a console's port 0.

        Args:
            data: The bytes, at most a few KiB.

        Raises:
            OperationFailed: They are not taken.
        """
        ...

    def peer_receive(self, timeout: float) -> bytes:
        """``peer``: receive what the device has sent.

        Args:
            timeout: Seconds to wait for the first of it.

        Returns:
            The bytes that are there; empty where none came, or the other side is closed.
        """
        ...

    def screen(self) -> bytes:
        """``screen``: what the screen of the device shows, as a portable pixmap (P6)."""
        ...

    def cpu_read(self, address: int, length: int) -> bytes:
        """``memory``: read guest-physical memory as a processor of the machine does.

        Args:
            address: Where; a multiple of 4.
            length: Bytes; a multiple of 4.
        """
        ...

    def cpu_write(self, address: int, data: bytes) -> None:
        """``memory``: write guest-physical memory as a processor of the machine does.

        Args:
            address: Where; a multiple of 4.
            data: The bytes; a multiple of 4.
        """
        ...

    def file_read(self, offset: int, length: int) -> bytes:
        """``memory``: read the file behind the device's memory.

        Args:
            offset: Where, in bytes.
            length: Bytes.
        """
        ...

    def file_write(self, offset: int, data: bytes) -> None:
        """``memory``: write the file behind the device's memory.

        Args:
            offset: Where, in bytes.
            data: The bytes.
        """
        ...
