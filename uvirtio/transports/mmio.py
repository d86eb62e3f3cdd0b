"""Virtio over MMIO (4.2): what the registers of a window mean.

The window comes from a back end (/dev/mem, QEMU) as an ``MmioWindow``. Its first 256 bytes are registers of
32 bits, most of which are either read-only or write-only (4.2.2.2); behind them is the device's configuration,
with the widths of its fields. Version 2 is the standard's, version 1 the legacy interface (4.2.4), which is
QEMU's default. Nothing here waits: deadlines belong to ``device``.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import ExitStack
from typing import ClassVar, NamedTuple

from uvirtio.errors import (
    DeviceGone,
    NoSuchDevice,
    NotSupported,
    NotVirtio,
    QueueError,
)
from uvirtio.interfaces.runtime import Causes, QueueLayout, after_removal
from uvirtio.interfaces.values import InterruptMode, Trace
from uvirtio.memory.access import read_field, write_field
from uvirtio.memory.trace import TracedDoorbell, TracedRegisters
from uvirtio.spec import features as f
from uvirtio.spec import mmio
from uvirtio.spec.page import VIRTIO_PAGE
from uvirtio.transports.base import TransportBase
from uvirtio.transports.mmio_doorbell import QueueNotifyDoorbell
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.backend import MmioWindow
    from uvirtio.interfaces.memory import Doorbell, Event, Registers

_ALL_ONES = 0xFFFFFFFF
_CAUSES = int(mmio.Interrupt.USED_BUFFER | mmio.Interrupt.CONFIG_CHANGE)
_GAP = 4
"""Absent queues in a row that end the search: no register has the number of queues, and a balloon's have gaps."""

_MOST_QUEUES = 1024
"""Limit of the search: a device that reports every queue as present would never end it."""


class Probed(NamedTuple):
    """The values of the first three registers."""

    version: int
    device_id: int


def probe(registers: Registers, address: str) -> Probed:
    """Check that a window is virtio-mmio, by magic, version and device ID, in this order.

    Nothing else is accessed (4.2.3.1.1).

    Args:
        registers: The registers of the window.
        address: Its address, for errors.

    Raises:
        NotVirtio: The magic value is wrong.
        NotSupported: The version is unknown.
        NoSuchDevice: The window is empty.
        DeviceGone: The device was removed.
    """
    magic = registers.read32(mmio.MAGIC_VALUE_REG)
    if magic != mmio.MAGIC:
        raise NotVirtio(
            f"there is no virtio-mmio device at {address}",
            seen=f"magic value {magic:#010x}" + (": no device responds there" if magic in (0, _ALL_ONES) else ""),
            expected=f'{mmio.MAGIC:#010x}, "virt" (4.2.2)',
            remedy="uvirtio list shows the windows of this machine",
        )
    version = registers.read32(mmio.VERSION_REG)
    if version not in (mmio.VERSION, mmio.VERSION_LEGACY):
        raise NotSupported(
            f"the virtio-mmio device at {address} has an unknown version",
            seen=f"version {version:#x}",
            expected=f"{mmio.VERSION}, or {mmio.VERSION_LEGACY} of a legacy device (4.2.2.2)",
            remedy="it is newer than this release of uvirtio; look for a newer one",
        )
    device_id = registers.read32(mmio.DEVICE_ID)
    if device_id == mmio.PLACEHOLDER:
        raise NoSuchDevice(
            f"the virtio-mmio window at {address} is empty",
            seen="device id 0",
            expected="a device (4.2.2.2)",
            remedy="machines have more windows than devices; uvirtio list shows the others",
        )
    return Probed(version, device_id)


def transport(window: MmioWindow, *, trace: Trace | None = None) -> Mmio:
    """Return the transport for the version of a window.

    Args:
        window: The window; the transport closes it.
        trace: Called with a line for each access; None: no trace.

    Raises:
        NotVirtio: The window is too small, or the magic value is wrong.
        NotSupported: The version is unknown.
        NoSuchDevice: The window is empty.
        DeviceGone: The device was removed.
    """
    registers = window.registers
    if registers.length < mmio.WINDOW_MIN_SIZE:
        raise NotVirtio(
            f"the window at {window.address} is too small for virtio-mmio",
            seen=f"{registers.length} bytes",
            expected=f"at least {mmio.WINDOW_MIN_SIZE} bytes (4.2.2)",
        )
    if trace is not None:
        from uvirtio.transports.register_names import MmioNames  # only where there is a trace

        registers = TracedRegisters(registers, Mmio.kind, trace, MmioNames())
    found = probe(registers, window.address)
    kind = MmioLegacy if found.version == mmio.VERSION_LEGACY else Mmio
    return kind(window, registers, found.device_id, trace=trace)


class Mmio(TransportBase):
    """A ``Transport`` over a virtio-mmio window of version 2; ``transport`` makes it."""

    kind = "mmio"
    legacy = False
    version: ClassVar[int] = mmio.VERSION
    # 6: ADMIN_VQ is reserved on MMIO, NOTIF_CONFIG_DATA and SR_IOV have no form there.
    features_allowed = f.mask(
        f.VERSION_1,
        f.ACCESS_PLATFORM,
        f.INDIRECT_DESC,
        f.EVENT_IDX,
        f.RING_PACKED,
        f.IN_ORDER,
        f.NOTIFICATION_DATA,
        f.ORDER_PLATFORM,
        f.RING_RESET,
    )
    quirks: Sequence[str] = ()

    def __init__(
        self, window: MmioWindow, registers: Registers, device_id: int, *, trace: Trace | None = None
    ) -> None:
        """Take over a window that was probed.

        Args:
            window: The window; ``close()`` closes it.
            registers: Its registers, traced or not.
            device_id: The device ID that was read.
            trace: Called with a line for each access; None: no trace.
        """
        super().__init__(window, trace=trace)
        self._window = window
        self._registers = registers
        self._event: Event | None = None
        self._live: set[int] = set()
        self._count: int | None = None
        self.device_id = device_id
        self.config_length = registers.length - mmio.CONFIG
        """The space for it, in bytes; no register has the length that the device uses."""

    # --- identity -----------------------------------------------------------------------------------------

    @property
    def translates(self) -> bool:
        """True where an IOMMU stands between the device and memory."""
        return self._window.translates

    @property
    def backend(self) -> MmioWindow:
        """The back end's object."""
        return self._window

    @property
    def interface(self) -> str:
        """One line for people: version and vendor."""
        vendor = self._registers.read32(mmio.VENDOR_ID)
        kind = "legacy" if self.legacy else "modern"
        return f"virtio-mmio version {self.version} ({kind}), vendor {vendor:#x}, {self._window.address}"

    # --- features and status --------------------------------------------------------------------------------

    def device_features(self) -> int:
        """Return the offered features, 128 bits."""
        words = []
        for word in range(4):
            self._registers.write32(mmio.DEVICE_FEATURES_SEL, word)
            words.append(self._registers.read32(mmio.DEVICE_FEATURES))
        if words[1] == words[2] == words[3]:
            # QEMU treats every selection but 0 as 1, and so returns the second word three times.
            words = words[:2]
        return sum(value << (32 * word) for word, value in enumerate(words))

    def set_driver_features(self, features: int) -> None:
        """Write the accepted features, 128 bits."""
        self._count = None  # a device may have more queues with some features (MQ)
        for word in range(4):
            value = (features >> (32 * word)) & 0xFFFFFFFF
            # For the same reason an empty third or fourth word is not written: it would clear the second.
            # After a reset they are empty anyway.
            if word < 2 or value:
                self._registers.write32(mmio.DRIVER_FEATURES_SEL, word)
                self._registers.write32(mmio.DRIVER_FEATURES, value)

    def status(self) -> int:
        """Return the device status (2.1)."""
        # The byte of 2.1; a window without a device reads all ones, and so does the byte.
        return self._registers.read32(mmio.STATUS) & 0xFF

    def is_absent(self) -> bool:
        """Whether MagicValue (4.2.2), too, says that there is no device."""
        return self._registers.read32(mmio.MAGIC_VALUE_REG) != mmio.MAGIC

    def set_status(self, value: int) -> None:
        """Write the device status (2.1); 0 resets the device."""
        self._registers.write32(mmio.STATUS, value)

    # --- device configuration -------------------------------------------------------------------------------

    def generation(self) -> int | None:
        """Return ConfigGeneration (2.5.1)."""
        return self._registers.read32(mmio.CONFIG_GENERATION)

    def _config_place(self, offset: int, width: int) -> int:
        if offset < 0 or offset + width > self.config_length:
            raise self._beyond_config(offset + width, self.config_length)
        return mmio.CONFIG + offset

    # 4.2.2.2: an 8- or 16-bit field by an access of its width, a 64-bit one by two of 32 bits.

    def read_config(self, offset: int, width: int) -> int:
        """Read one field of the device configuration; see ``Transport``."""
        return read_field(self._registers, self._config_place(offset, width), width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Write one field of the device configuration; see ``Transport``."""
        write_field(self._registers, self._config_place(offset, width), width, value)

    # --- queues (4.2.3.2) -----------------------------------------------------------------------------------

    @property
    def num_queues(self) -> int:
        """Number of queues, gaps included. No register has it: the first call searches for the last queue."""
        if self._count is None:
            last = index = -1
            while index - last < _GAP and index + 1 < _MOST_QUEUES:
                index += 1
                if self.queue_layout(index).size_max:
                    last = index
            self._count = last + 1
        return self._count

    def _select(self, index: int) -> None:
        self._registers.write32(mmio.QUEUE_SEL, index)

    def _refuse_busy(self, index: int, register: int, name: str) -> None:
        if (seen := self._registers.read32(register)) != 0:
            raise self._queue_fault(
                f"queue {index} is already in use",
                seen=f"{name} {seen:#x}",
                expected=f"{name} 0 after a reset (4.2.3.2)",
                about="queue_enable before",
            )

    def queue_layout(self, index: int) -> QueueLayout:
        """Return what is known of a queue before memory is allocated for it."""
        self._select(index)
        return QueueLayout(size_max=self._registers.read32(mmio.QUEUE_SIZE_MAX))

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
        """Set up and enable a queue; see ``Transport``."""
        registers = self._registers
        self._select(index)
        self._refuse_busy(index, mmio.QUEUE_READY, "QueueReady")
        self._check_size(index, size)
        registers.write32(mmio.QUEUE_SIZE, size)
        for low, address in (
            (mmio.QUEUE_DESC_LOW, desc),
            (mmio.QUEUE_DRIVER_LOW, driver),
            (mmio.QUEUE_DEVICE_LOW, device),
        ):
            registers.write32(low, address & 0xFFFFFFFF)
            registers.write32(low + 4, address >> 32)
        self._live.add(index)
        registers.write32(mmio.QUEUE_READY, 1)  # last of all
        if (ready := registers.read32(mmio.QUEUE_READY)) != 1:
            raise self._queue_fault(
                f"queue {index} does not become ready",
                seen=f"QueueReady {ready:#x}",
                expected="QueueReady 1 (4.2.2)",
                about="queue_enable",
            )
        return self._doorbell(index)

    def _check_size(self, index: int, size: int) -> None:
        largest = self._registers.read32(mmio.QUEUE_SIZE_MAX)
        if not 0 < size <= largest:
            raise QueueError(
                f"queue {index} cannot have {size} entries",
                seen=f"QueueSizeMax {largest}",
                expected=f"at least {size} (4.2.2.2)",
                about="queue_size",
            )

    def _doorbell(self, index: int) -> Doorbell:
        doorbell: Doorbell = QueueNotifyDoorbell(
            self._registers if self._trace is None else self._window.registers
        )
        if self._trace is None:
            return doorbell
        return TracedDoorbell(doorbell, index, f"QueueNotify+{mmio.QUEUE_NOTIFY:#x} write32", self._trace)

    def stop_queue(self, index: int) -> None:
        """Disable a queue, and check that it is (4.2.2.2).

        Raises:
            QueueError: It stays enabled.
        """
        self._select(index)
        self._stop(index, mmio.QUEUE_READY, "QueueReady")

    def _stop(self, index: int, register: int, name: str) -> None:
        self._registers.write32(register, 0)
        if (seen := self._registers.read32(register)) != 0:
            raise QueueError(
                f"queue {index} does not stop",
                seen=f"{name} {seen:#x}",
                expected=f"{name} 0 (4.2.2.2)",
            )
        self._live.discard(index)

    # --- the reset of one queue (2.6.1, 4.2.2.2) --------------------------------------------------------------

    def start_queue_reset(self, index: int) -> None:
        """Start the reset of one queue (2.6.1)."""
        self._select(index)
        self._registers.write32(mmio.QUEUE_RESET, 1)

    def queue_is_reset(self, index: int) -> bool:
        """Whether that reset is complete.

        Raises:
            QueueError: The device reports the reset as complete, and the queue is still enabled.
        """
        self._select(index)
        if self._registers.read32(mmio.QUEUE_RESET):
            return False
        # QEMU 7.2 offers RING_RESET here and has no such register, so 0 alone proves nothing.
        if (ready := self._registers.read32(mmio.QUEUE_READY)) != 0:
            raise QueueError(
                f"queue {index} is reported as reset, but is not",
                seen=f"QueueReset 0, QueueReady {ready:#x}",
                expected="QueueReady 0 (2.6.1, 4.2.2)",
                remedy="reset the whole device: close it",
            )
        self._live.discard(index)
        return True

    # --- shared memory (2.10, 4.2.2) ------------------------------------------------------------------------

    def shared_memory_region(self, ident: int) -> tuple[int, int] | None:
        """Return base address and length of a shared memory region, in bytes; None if there is none with this id.

        To be used only for device types with such regions (4.2.3.1.1).
        """
        registers = self._registers
        registers.write32(mmio.SHM_SEL, ident)
        length = registers.read32(mmio.SHM_LEN_LOW) | registers.read32(mmio.SHM_LEN_HIGH) << 32
        if length == mmio.NO_SHM:
            return None
        return registers.read32(mmio.SHM_BASE_LOW) | registers.read32(mmio.SHM_BASE_HIGH) << 32, length

    # --- interrupts (4.2.3.4) -------------------------------------------------------------------------------

    def _try_mode(self, mode: InterruptMode, queues: Sequence[int]) -> str | None:
        if mode is InterruptMode.POLLING:
            return None
        if mode is not InterruptMode.INTX:
            return "virtio-mmio has one interrupt line, and no MSI-X"
        self._event = self._window.enable_interrupt()
        return None if self._event is not None else "the interrupt line is not delivered to this process"

    def _disconnect(self) -> None:
        event, self._event = self._event, None
        self._mode = InterruptMode.POLLING
        if event is not None:
            try:
                self._window.disable_interrupt()
            finally:
                event.close()

    def events(self) -> Sequence[Event]:
        """Return the events to wait for: the interrupt line, and the removal of the device."""
        removal = self._window.removal
        return [event for event in (self._event, removal) if event is not None]

    def causes(self, fired: Container[int] | None = None) -> Causes:
        """Take what is pending, read its cause, acknowledge and rearm; see ``Transport``.

        Raises:
            DeviceGone: The device does not respond any more.
        """
        removal = self._window.removal
        gone = removal is not None and removal.take()
        event = self._event
        if event is not None and not event.take():
            return Causes(removal=gone)
        status = self._registers.read32(mmio.INTERRUPT_STATUS)
        if status == _ALL_ONES and self.status() == 0xFF:
            raise DeviceGone(
                f"{self._window.address} does not respond any more",
                seen="InterruptStatus and Status read ones",
                expected="a value",
                remedy=after_removal(self._window),
            )
        handled = status & _CAUSES
        if handled:
            # 4.2.3.4.1: exactly what was read. The caller reads the rings after this, so what the device does
            # in between is seen; acknowledging after reading the rings could lose it.
            self._registers.write32(mmio.INTERRUPT_ACK, handled)
        if event is not None:
            event.rearm()
        return Causes(
            config=bool(handled & mmio.Interrupt.CONFIG_CHANGE),
            queues=bool(handled & mmio.Interrupt.USED_BUFFER),
            removal=gone,
        )

    # --- the rest -------------------------------------------------------------------------------------------

    def dma_enable(self, on: bool) -> None:
        """Make the back end's guardian ready: there is no bus master bit, only a reset stops the device."""
        if on:
            self._window.guard(mmio.STATUS)

    def function_reset(self) -> bool:
        """Return False: a window has no reset but that of the device status."""
        return False

    def release_queues(self) -> None:
        """Disable the queues and release the interrupt; the device has been reset, or refuses to be."""
        with ExitStack() as stack:
            stack.callback(self._disconnect)
            for index in sorted(self._live):
                stack.callback(self.stop_queue, index)
        self._live.clear()

    def _let_go(self) -> None:
        self._disconnect()


class MmioLegacy(Mmio):
    """Version 1, the legacy interface (4.2.4).

    32 feature bits, no generation, no QueueReady, no 64-bit addresses: a queue is one region of pages, and the
    number of its first page enables it.
    """

    kind = "mmio-legacy"
    legacy = True
    version = mmio.VERSION_LEGACY
    features_allowed = f.mask(f.INDIRECT_DESC, f.EVENT_IDX, f.ANY_LAYOUT)

    _page_told = False

    @property
    def other_interface(self) -> str:
        """How to reach version 2, the modern interface."""
        return (
            "have the host offer version 2 (QEMU: -global virtio-mmio.force-legacy=off; qemu: address: legacy=off)"
        )

    def device_features(self) -> int:
        """Return the offered features, 32 bits."""
        self._registers.write32(mmio.DEVICE_FEATURES_SEL, 0)
        return self._registers.read32(mmio.DEVICE_FEATURES)

    def set_driver_features(self, features: int) -> None:
        """Write the accepted features, 32 bits."""
        self._registers.write32(mmio.DRIVER_FEATURES_SEL, 0)
        self._registers.write32(mmio.DRIVER_FEATURES, features & 0xFFFFFFFF)

    def set_status(self, value: int) -> None:
        """Write the device status (2.1); 0 resets the device."""
        super().set_status(value)
        if value == 0:
            self._page_told = False

    def generation(self) -> int | None:
        """Return None: the legacy interface has no generation."""
        return None

    def queue_layout(self, index: int) -> QueueLayout:
        """Return what is known of a queue before memory is allocated for it."""
        if not self._page_told:
            # Once in a life, before any queue (4.2.4).
            self._registers.write32(mmio.GUEST_PAGE_SIZE, VIRTIO_PAGE)
            self._page_told = True
        self._select(index)
        if self._registers.read32(mmio.QUEUE_PFN):  # then the size cannot be read
            return QueueLayout(size_max=0, one_region=True)
        return QueueLayout(size_max=self._registers.read32(mmio.QUEUE_SIZE_MAX), one_region=True)

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
        """Set up and enable a queue; see ``Transport``."""
        registers = self._registers
        frame = desc // VIRTIO_PAGE
        if desc % VIRTIO_PAGE or not 0 < frame <= _ALL_ONES:
            # Number 0 means none.
            raise QueueError(
                f"the memory of queue {index} is out of the legacy interface's range",
                seen=f"address {desc:#x}",
                expected="the start of a page, not the first one, below 2^44 (4.2.4)",
            )
        self._select(index)
        self._refuse_busy(index, mmio.QUEUE_PFN, "QueuePFN")
        self._check_size(index, size)
        registers.write32(mmio.QUEUE_SIZE, size)
        registers.write32(mmio.QUEUE_ALIGN, VIRTIO_PAGE)
        self._live.add(index)
        registers.write32(mmio.QUEUE_PFN, frame)
        if (seen := registers.read32(mmio.QUEUE_PFN)) != frame:
            raise self._queue_fault(
                f"queue {index} does not take its address",
                seen=f"QueuePFN {seen:#x}",
                expected=f"QueuePFN {frame:#x} (4.2.4)",
                about="queue_desc",
            )
        return self._doorbell(index)

    def stop_queue(self, index: int) -> None:
        """Disable a queue, and check that it is (4.2.4).

        Raises:
            QueueError: It stays enabled.
        """
        self._select(index)
        self._stop(index, mmio.QUEUE_PFN, "QueuePFN")

    def shared_memory_region(self, ident: int) -> tuple[int, int] | None:
        """Return None: the legacy interface has no such registers."""
        return None
