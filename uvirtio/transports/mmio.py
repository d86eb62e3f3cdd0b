"""Virtio over MMIO (4.2): what the registers of a window mean.

The window comes from a back end (/dev/mem, QEMU) as an ``MmioWindow``. Its first 256 bytes are registers of
32 bits, of which most may either be read or written and not both (4.2.2.2); behind them lies the device's
configuration, with the widths of its fields. Version 2 is the standard's, version 1 the legacy interface
(4.2.4), which QEMU shows unless it is told otherwise. It never waits: deadlines belong to ``device``.
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
from uvirtio.interfaces.backend import MmioWindow, after_removal
from uvirtio.interfaces.memory import Doorbell, Event, Registers
from uvirtio.interfaces.transport import Causes, QueueLayout
from uvirtio.interfaces.values import InterruptMode
from uvirtio.memory.access import read_field, write_field
from uvirtio.memory.trace import Trace, TracedDoorbell, TracedRegisters
from uvirtio.spec import features as f
from uvirtio.spec import mmio
from uvirtio.spec.page import VIRTIO_PAGE
from uvirtio.transports.base import TransportBase
from uvirtio.transports.doorbells import QueueNotifyDoorbell

_ALL_ONES = 0xFFFFFFFF
_CAUSES = int(mmio.Interrupt.USED_BUFFER | mmio.Interrupt.CONFIG_CHANGE)
_GAP = 4
"""So many absent queues in a row are the end: no register tells their number, and a balloon's have gaps."""
_MOST_QUEUES = 1024
"""More are not counted: a device that has every queue that it is asked for would be counted for ever."""


class Probed(NamedTuple):
    """What the first three registers say."""

    version: int
    device_id: int


def probe(registers: Registers, address: str) -> Probed:
    """Look whether this window is virtio-mmio, and what is in it: magic, version, device id, in this order.

    Nothing else is touched (4.2.3.1.1). Raises NotVirtio, NotSupported, NoSuchDevice for an empty window.
    """
    magic = registers.read32(mmio.MAGIC_VALUE_REG)
    if magic != mmio.MAGIC:
        raise NotVirtio(
            f"there is no virtio-mmio device at {address}",
            seen=f"magic value {magic:#010x}" + (": nothing answers there" if magic in (0, _ALL_ONES) else ""),
            expected=f'{mmio.MAGIC:#010x}, "virt" (4.2.2)',
            remedy="uvirtio list shows the windows of this machine",
        )
    version = registers.read32(mmio.VERSION_REG)
    if version not in (mmio.VERSION, mmio.VERSION_LEGACY):
        raise NotSupported(
            f"the virtio-mmio device at {address} is of an unknown version",
            seen=f"version {version:#x}",
            expected=f"{mmio.VERSION}, or {mmio.VERSION_LEGACY} of a legacy device (4.2.2.2)",
            remedy="it is newer than this package; look for a new release",
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
    """The transport for the version that the window has. Raises NotVirtio, NotSupported, NoSuchDevice."""
    registers = window.registers
    if registers.length < mmio.WINDOW_MIN_SIZE:
        raise NotVirtio(
            f"the window at {window.address} is too small for virtio-mmio",
            seen=f"{registers.length} bytes",
            expected=f"at least {mmio.WINDOW_MIN_SIZE} bytes (4.2.2)",
        )
    if trace is not None:
        registers = TracedRegisters(registers, Mmio.kind, trace)
    found = probe(registers, window.address)
    kind = MmioLegacy if found.version == mmio.VERSION_LEGACY else Mmio
    return kind(window, registers, found.device_id, trace=trace)


class Mmio(TransportBase):
    """A ``Transport`` over a virtio-mmio window of version 2; :func:`transport` makes it.

    Takes the window over: ``close()`` closes it.
    """

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
        """``registers`` are the window's, perhaps traced."""
        super().__init__(window, trace=trace)
        self._window = window
        self._registers = registers
        self._event: Event | None = None
        self._live: set[int] = set()
        self._count: int | None = None
        self.device_id = device_id
        self.config_length = registers.length - mmio.CONFIG
        """The space that there is for it; no register tells how much of it the device uses."""

    # --- identity -----------------------------------------------------------------------------------------

    @property
    def translates(self) -> bool:
        return self._window.translates

    @property
    def backend(self) -> MmioWindow:
        return self._window

    @property
    def interface(self) -> str:
        vendor = self._registers.read32(mmio.VENDOR_ID)
        kind = "legacy" if self.legacy else "modern"
        return f"virtio-mmio version {self.version} ({kind}), vendor {vendor:#x}, {self._window.address}"

    # --- features and status --------------------------------------------------------------------------------

    def device_features(self) -> int:
        words = []
        for word in range(4):
            self._registers.write32(mmio.DEVICE_FEATURES_SEL, word)
            words.append(self._registers.read32(mmio.DEVICE_FEATURES))
        if words[1] == words[2] == words[3]:
            # QEMU takes every selection but 0 for 1, and so shows the second word three times.
            words = words[:2]
        return sum(value << (32 * word) for word, value in enumerate(words))

    def set_driver_features(self, features: int) -> None:
        for word in range(4):
            value = (features >> (32 * word)) & 0xFFFFFFFF
            # For the same reason an empty third or fourth word is not written: it would clear the second.
            # After a reset they are empty anyway.
            if word < 2 or value:
                self._registers.write32(mmio.DRIVER_FEATURES_SEL, word)
                self._registers.write32(mmio.DRIVER_FEATURES, value)

    def status(self) -> int:
        # The byte of 2.1; a window that nobody answers for reads ones, and so does the byte.
        return self._registers.read32(mmio.STATUS) & 0xFF

    def set_status(self, value: int) -> None:
        self._registers.write32(mmio.STATUS, value)

    # --- device configuration -------------------------------------------------------------------------------

    def generation(self) -> int | None:
        return self._registers.read32(mmio.CONFIG_GENERATION)

    def _config_place(self, offset: int, width: int) -> int:
        if offset < 0 or offset + width > self.config_length:
            raise self._beyond_config(offset + width, self.config_length)
        return mmio.CONFIG + offset

    # 4.2.2.2: an 8- or 16-bit field by an access of its width, a 64-bit one by two of 32 bits.

    def read_config(self, offset: int, width: int) -> int:
        return read_field(self._registers, self._config_place(offset, width), width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        write_field(self._registers, self._config_place(offset, width), width, value)

    # --- queues (4.2.3.2) -----------------------------------------------------------------------------------

    @property
    def num_queues(self) -> int:
        """Where the queues end. No register says: it is found out at the first question."""
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
            raise QueueError(
                f"queue {index} is already in use",
                seen=f"{name} {seen:#x}",
                expected=f"{name} 0 after a reset (4.2.3.2)",
            )

    def queue_layout(self, index: int) -> QueueLayout:
        self._select(index)
        return QueueLayout(size_max=self._registers.read32(mmio.QUEUE_SIZE_MAX))

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
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
            raise QueueError(
                f"queue {index} does not become ready",
                seen=f"QueueReady {ready:#x}",
                expected="QueueReady 1 (4.2.2)",
                remedy="uvirtio diag -v shows each register; the device is at fault here",
            )
        return self._doorbell(index)

    def _check_size(self, index: int, size: int) -> None:
        largest = self._registers.read32(mmio.QUEUE_SIZE_MAX)
        if not 0 < size <= largest:
            raise QueueError(
                f"queue {index} cannot have {size} entries",
                seen=f"QueueSizeMax {largest}",
                expected=f"at least {size} (4.2.2.2)",
            )

    def _doorbell(self, index: int) -> Doorbell:
        doorbell: Doorbell = QueueNotifyDoorbell(
            self._registers if self._trace is None else self._window.registers
        )
        return doorbell if self._trace is None else TracedDoorbell(doorbell, f"queue {index}", self._trace)

    def stop_queue(self, index: int) -> None:
        """Take a queue out of use, and make sure that it is (4.2.2.2). Raises QueueError."""
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
        self._select(index)
        self._registers.write32(mmio.QUEUE_RESET, 1)

    def queue_is_reset(self, index: int) -> bool:
        self._select(index)
        if self._registers.read32(mmio.QUEUE_RESET):
            return False
        # QEMU 7.2 offers RING_RESET here and has no such register, so that 0 alone says nothing.
        if (ready := self._registers.read32(mmio.QUEUE_READY)) != 0:
            raise QueueError(
                f"queue {index} is said to be reset, and is not",
                seen=f"QueueReset 0, QueueReady {ready:#x}",
                expected="QueueReady 0 (2.6.1, 4.2.2)",
                remedy="reset the whole device: close it",
            )
        self._live.discard(index)
        return True

    # --- shared memory (2.10, 4.2.2) ------------------------------------------------------------------------

    def shared_memory_region(self, ident: int) -> tuple[int, int] | None:
        """Base address and length of a shared memory region; None where the device has none with this id.

        For drivers of a type that has such regions, and no others (4.2.3.1.1).
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
            return "virtio-mmio has one interrupt line, and no messages"
        self._event = self._window.enable_interrupt()
        return None if self._event is not None else "the interrupt line does not reach this process"

    def _disconnect(self) -> None:
        event, self._event = self._event, None
        self._mode = InterruptMode.POLLING
        if event is not None:
            self._window.disable_interrupt()
            event.close()

    def events(self) -> Sequence[Event]:
        removal = self._window.removal
        return [event for event in (self._event, removal) if event is not None]

    def causes(self, fired: Container[int] | None = None) -> Causes:
        removal = self._window.removal
        gone = removal is not None and removal.take()
        event = self._event
        if event is not None and not event.take():
            return Causes(removal=gone)
        status = self._registers.read32(mmio.INTERRUPT_STATUS)
        if status == _ALL_ONES and self.status() == 0xFF:
            raise DeviceGone(
                f"{self._window.address} does not answer any more",
                seen="InterruptStatus and Status read ones",
                expected="a value",
                remedy=after_removal(self._window),
            )
        handled = status & _CAUSES
        if handled:
            # 4.2.3.4.1: exactly what was read. Whoever asks reads the rings again after this, so what the
            # device does between the two is seen; to acknowledge after reading the rings could lose it.
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
        """There is no bus master bit, a device stops when it is reset: let the back end see to that."""
        if on:
            self._window.guard(mmio.STATUS)

    def function_reset(self) -> bool:
        return False

    def release_queues(self) -> None:
        """Stop the queues and let go of the interrupt; the device has been reset, or refuses to be."""
        with ExitStack() as stack:
            stack.callback(self._disconnect)
            for index in sorted(self._live):
                stack.callback(self.stop_queue, index)
        self._live.clear()

    def _let_go(self) -> None:
        self._disconnect()


class MmioLegacy(Mmio):
    """Version 1, the legacy interface (4.2.4).

    32 feature bits, no generation, no QueueReady, no 64-bit addresses: a queue is one region of pages, and its
    first page's number starts it.
    """

    kind = "mmio-legacy"
    legacy = True
    version = mmio.VERSION_LEGACY
    features_allowed = f.mask(f.INDIRECT_DESC, f.EVENT_IDX, f.ANY_LAYOUT)

    _page_told = False

    def device_features(self) -> int:
        self._registers.write32(mmio.DEVICE_FEATURES_SEL, 0)
        return self._registers.read32(mmio.DEVICE_FEATURES)

    def set_driver_features(self, features: int) -> None:
        self._registers.write32(mmio.DRIVER_FEATURES_SEL, 0)
        self._registers.write32(mmio.DRIVER_FEATURES, features & 0xFFFFFFFF)

    def set_status(self, value: int) -> None:
        super().set_status(value)
        if value == 0:
            self._page_told = False

    def generation(self) -> int | None:
        return None

    def queue_layout(self, index: int) -> QueueLayout:
        if not self._page_told:
            # Once in a life, before any queue (4.2.4).
            self._registers.write32(mmio.GUEST_PAGE_SIZE, VIRTIO_PAGE)
            self._page_told = True
        self._select(index)
        if self._registers.read32(mmio.QUEUE_PFN):  # then the size cannot be read
            return QueueLayout(size_max=0, one_region=True)
        return QueueLayout(size_max=self._registers.read32(mmio.QUEUE_SIZE_MAX), one_region=True)

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
        registers = self._registers
        frame = desc // VIRTIO_PAGE
        if desc % VIRTIO_PAGE or not 0 < frame <= _ALL_ONES:
            # Number 0 means none.
            raise QueueError(
                f"queue {index} lies where the legacy interface cannot name it",
                seen=f"address {desc:#x}",
                expected="the beginning of a page, not the first one, below 2^44 (4.2.4)",
            )
        self._select(index)
        self._refuse_busy(index, mmio.QUEUE_PFN, "QueuePFN")
        self._check_size(index, size)
        registers.write32(mmio.QUEUE_SIZE, size)
        registers.write32(mmio.QUEUE_ALIGN, VIRTIO_PAGE)
        self._live.add(index)
        registers.write32(mmio.QUEUE_PFN, frame)
        if (seen := registers.read32(mmio.QUEUE_PFN)) != frame:
            raise QueueError(
                f"queue {index} does not take its address",
                seen=f"QueuePFN {seen:#x}",
                expected=f"QueuePFN {frame:#x} (4.2.4)",
                remedy="uvirtio diag -v shows each register; the device is at fault here",
            )
        return self._doorbell(index)

    def stop_queue(self, index: int) -> None:
        """Take a queue out of use (4.2.4). Raises QueueError."""
        self._select(index)
        self._stop(index, mmio.QUEUE_PFN, "QueuePFN")

    def shared_memory_region(self, ident: int) -> tuple[int, int] | None:
        """None: the legacy interface has no such registers."""
        return None
