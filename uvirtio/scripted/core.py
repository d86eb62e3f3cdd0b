"""A virtio device made of Python, whatever the registers in front of it: records, checks, and lies on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from uvirtio.errors import Closed
from uvirtio.scripted.faults import Access, Faults
from uvirtio.scripted.memory import Memory, ScriptedBlock, ScriptedDma
from uvirtio.scripted.model import Admin, Model
from uvirtio.scripted.other_side import OtherSideOfModel
from uvirtio.scripted.packed import PackedDeviceRing
from uvirtio.scripted.parts import ScriptedEvent, Window
from uvirtio.scripted.ring import Chain, DeviceRing, Lies
from uvirtio.spec import features as f
from uvirtio.spec import ids, pci
from uvirtio.spec.status import Status

RING_FEATURES = f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX)


_DRIVERS_BITS = int(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK | Status.FAILED)


class QueueState:
    """The registers of one queue, and its ring once it is enabled."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.size_max = size
        self.vector = pci.NO_VECTOR
        self.enable = 0
        self.reset_left = 0
        self.addresses = {"queue_desc": 0, "queue_driver": 0, "queue_device": 0}
        self.ring: DeviceRing | PackedDeviceRing | None = None


class ScriptedCore(OtherSideOfModel):
    """The virtio device behind the registers of a transport: status, features, queues, interrupts, and its books.

    ``ScriptedDevice`` (PCI), ``ScriptedMmio`` and ``ScriptedLegacy`` put registers in front of it.
    """

    undivided = True

    def __init__(
        self,
        model: Model,
        *,
        address: str = "0000:00:04.0",
        features: int | None = None,
        access_platform: bool = False,
        vectors: int = 3,
        intx: bool = True,
        translates: bool = True,
        contiguous_limit: int | None = None,
        auto: bool = True,
        notif_config_data: Mapping[int, int] | None = None,
        admin: Admin | None = None,
        can_reset: bool = True,
        removable: bool = True,
        **faults: object,
    ) -> None:
        """Make the device.

        Args:
            model: What makes it an rng, a balloon, ...
            address: What the device is called.
            features: The offered word; None: the model's, VERSION_1 and the ring features.
            access_platform: Whether ACCESS_PLATFORM is offered.
            vectors: The size of the MSI-X table, or 0.
            intx: Whether there is an interrupt line.
            translates: Whether an IOMMU stands between the device and memory.
            contiguous_limit: The longest run of addresses that memory comes in, in bytes; None: any.
            auto: Answer inside the doorbell write; False: wait for ``step()`` or ``run()``.
            notif_config_data: What queues are called in kicks (4.1.5.2.1), by index.
            admin: What is behind the administration queues.
            can_reset: Whether the function has a reset of its own (FLR).
            removable: Whether the host can ask for the device back.
            **faults: Fields of ``Faults``.
        """
        self.address = address
        self.model = model
        model.device = self
        self.faults = Faults(**faults)  # type: ignore[arg-type]
        self.lies = Lies()
        self.ring_formats: dict[bool, type[DeviceRing] | type[PackedDeviceRing]] = {
            False: DeviceRing,
            True: PackedDeviceRing,
        }
        """What serves a queue, by whether RING_PACKED was negotiated: for devices whose rings are wrong."""
        self.lock = threading.RLock()
        self.log: list[Access] = []
        """Every access, oldest first."""
        self.violations: list[str] = []
        """The rules of the standard that the driver broke, each with its requirement's id."""
        self.auto = auto
        self.kicked: list[int] = []
        self.on_kick: Callable[[], object] | None = None
        self.gone = False
        self.closed = False

        self.offered = RING_FEATURES | model.features if features is None else features
        if access_platform:
            self.offered |= f.mask(f.ACCESS_PLATFORM)
        self.msix_vectors = vectors
        self.has_intx = intx
        self.translates = translates
        self.contiguous_limit = contiguous_limit
        self.description = "scripted"
        self.removal: ScriptedEvent | None = ScriptedEvent() if removable else None
        self.notif_config_data = notif_config_data or {}
        self.admin = admin
        if admin is not None:
            admin.device = self
        self.kick_data: list[tuple[int, int]] = []
        """(queue, upper half) of each kick under NOTIFICATION_DATA."""
        self.can_reset = can_reset

        self.memory = Memory()
        self.memory.on_free = self._memory_freed
        self.master = False
        self.spaces: list[ScriptedDma] = []
        self.msix: list[ScriptedEvent] = []
        self.line: ScriptedEvent | None = None
        self._windows: list[Window] = []
        self._events: list[ScriptedEvent] = []

        self._status = 0
        self.driver_features = 0
        self._feature_select = [0, 0]
        self._generation = 0
        self._generation_read = 0
        self._feature_reads = 0
        self._reset_done = 0.0
        self._reset_left: int | None = None
        self._missed: list[tuple[int, bytes, bool]] = []
        self._power_on()

    # --- what it knows ------------------------------------------------------------------------------------------

    def check(self, requirement: str, holds: bool, message: str) -> None:
        """Record a broken rule."""
        if not holds:
            self.violations.append(f"{requirement}: {message}")

    def assert_obedient(self) -> None:
        """No rule was broken, no guard byte touched, and everything that was closed is closed."""
        assert not self.violations, "\n".join(self.violations)
        self.memory.assert_clean()

    def assert_left(self) -> None:
        """The driver left in order: reset, bus master off, nothing open, nothing allocated."""
        self.assert_obedient()
        if not self.gone:
            assert self._status == 0, f"status was left at {self._status:#x}"
            assert not self.master, "bus mastering was left on"
        assert self.closed, "the function was not closed"
        assert not [window for window in self._windows if not window.closed], "registers were left open"
        assert not [event for event in self._events if not event.closed], "interrupt events were left open"
        assert not self.memory.open_blocks(), "memory was left allocated"

    def _memory_freed(self, block: ScriptedBlock) -> None:
        # The worst bug possible: a device that runs over freed memory.
        if self.gone or not self.master or not self._status & Status.DRIVER_OK:
            return
        self.model.memory_freed(block)
        pages = set(block.device_pages) if block.mapped else set()
        for index, queue in enumerate(self.queues):
            if queue.ring is not None:
                in_use = {address >> 12 for address in queue.ring.addresses_in_use()}
                self.check("LEAVE", pages.isdisjoint(in_use), f"memory of queue {index} was freed before a reset")

    # --- the log --------------------------------------------------------------------------------------------

    def writes(self, region: str, offset: int | None = None) -> list[int]:
        """The values written to ``region``, at ``offset`` or anywhere, oldest first."""
        return self._logged("write", region, offset)

    def reads(self, region: str, offset: int | None = None) -> list[int]:
        """The values read from ``region``, at ``offset`` or anywhere, oldest first."""
        return self._logged("read", region, offset)

    def calls(self, name: str) -> list[int]:
        """The arguments of the calls of the function's method ``name``, oldest first."""
        return self._logged("call", name, None)

    def _logged(self, op: str, region: str, offset: int | None) -> list[int]:
        return [
            access.value
            for access in self.log
            if access.op == op and access.region == region and offset in (None, access.offset)
        ]

    def _window(
        self,
        region: str,
        length: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> Window:
        def logged_read(offset: int, width: int) -> int:
            with self.lock:
                value = (1 << 8 * width) - 1 if self.gone else read(offset, width)
                self.log.append(Access("read", region, offset, width, value))
                return value

        def logged_write(offset: int, width: int, value: int) -> None:
            with self.lock:
                self.log.append(Access("write", region, offset, width, value))
                if not self.gone:
                    write(offset, width, value)

        window = Window(length, logged_read, logged_write)
        self._windows.append(window)
        return window

    def _call(self, name: str, value: int = 0) -> None:
        if self.closed:
            raise Closed("this function is closed")
        self.log.append(Access("call", name, 0, 0, value))

    # --- what every transport has -------------------------------------------------------------------------

    def enable_intx(self) -> ScriptedEvent | None:
        """Turn the interrupt line on; None where there is none."""
        self._call("enable_intx")
        if not self.has_intx:
            return None
        self._interrupts_off()
        self.line = ScriptedEvent(level=True, asserted=lambda: self.isr != 0)
        self._events.append(self.line)
        if self.isr:
            self.line.fire()
        return self.line

    def _interrupts_off(self) -> None:
        self.msix = []
        self.line = None

    def dma(self, translated: bool) -> ScriptedDma:
        """A space for DMA memory; ``translated`` must be whether ACCESS_PLATFORM was accepted."""
        self._call("dma", int(translated))
        offered = bool(self.driver_features & f.mask(f.ACCESS_PLATFORM))
        self.check("ACCESS_PLATFORM", translated == offered, f"dma({translated}), negotiated: {offered}")
        space = ScriptedDma(self.memory, translated=translated, contiguous_limit=self.contiguous_limit)
        self.spaces.append(space)
        return space

    @property
    def has_reset(self) -> bool:
        """Whether ``reset`` does anything."""
        return self.can_reset

    def reset(self) -> bool:
        """The function's own reset (FLR); whether there is one."""
        self._call("function_reset")
        if self.can_reset:
            self._reset_left = None
            self._finish_reset()
        return self.can_reset

    def close(self) -> None:
        """Close the function. Idempotent."""
        if self.closed:
            return
        self._call("close")
        self.closed = True
        if self.removal is not None:
            self.removal.close()

    # --- features and status (2.1, 2.2, 3.1) ---------------------------------------------------------------

    def _read_feature(self) -> int:
        select = self._feature_select[0]
        offered = self.offered
        if self.faults.features_later is not None and self._feature_reads >= pci.FEATURE_WORDS:
            offered = self.faults.features_later
        self._feature_reads += 1
        return (offered >> (32 * select)) & 0xFFFFFFFF if select < pci.FEATURE_WORDS else 0

    def _write_feature(self, value: int) -> None:
        word = self._feature_select[1]
        self.check("INIT-03", not self._status & Status.FEATURES_OK, "features were written after FEATURES_OK")
        if word < pci.FEATURE_WORDS:
            kept = self.driver_features & ~(0xFFFFFFFF << 32 * word)
            self.driver_features = kept | value << 32 * word
        elif value:
            self.check("FEAT-01", False, f"bits in feature word {word}")
        extra = self.driver_features & ~self.offered
        self.check("FEAT-01", not extra, f"features {extra:#x} were never offered")

    def _read_status(self) -> int:
        if self._reset_left is not None:
            if time.monotonic() < self._reset_done or self._reset_left:
                self._reset_left -= 1 if self._reset_left > 0 else 0
                return self._status
            self._reset_left = None
            self._finish_reset()
            return 0
        return self._status | self.faults.status_or

    def _finish_reset(self) -> None:
        self._power_on()
        self.isr = 0
        self.model.reset()

    def _write_status(self, value: int) -> None:
        if value == 0:
            slow = self.faults.reset_reads or self.faults.reset_seconds
            if slow and self._status:
                self._reset_left = self.faults.reset_reads
                self._reset_done = time.monotonic() + self.faults.reset_seconds
            else:
                self._finish_reset()
            return
        self.check("PCI-COM-05", self._reset_left is None, f"status {value:#x} was written before 0 was read back")
        before = self._status & ~int(Status.DEVICE_NEEDS_RESET)
        self.check("STAT-02", value & before == before, f"status went from {before:#x} to {value:#x}")
        self.check("STAT-03", not before & Status.FAILED, f"status {value:#x} was written after FAILED")
        fresh = value & ~before
        if not value & Status.FAILED:
            below = {
                Status.DRIVER: Status.ACKNOWLEDGE,
                Status.FEATURES_OK: Status.DRIVER,
                Status.DRIVER_OK: Status.FEATURES_OK,
            }
            for bit, needs in below.items():
                if fresh & bit:
                    self.check("INIT-01", bool(value & needs), f"{bit.name} without {needs.name}")
        # 2.1: DEVICE_NEEDS_RESET is ours, SUSPEND is nothing without its feature, and 0x20 is no bit.
        own = self._status & int(Status.DEVICE_NEEDS_RESET)
        if not value & Status.DRIVER_OK:
            own |= self._status & int(Status.SUSPEND)
        self._status = value & _DRIVERS_BITS | own
        if fresh & Status.FEATURES_OK:
            taken = self.driver_features
            unfit = not taken & f.mask(f.VERSION_1) or taken & ~self.offered
            if unfit or f.unmet(taken, f.device_dependencies(self.type)) or self._refuses():
                self._status &= ~int(Status.FEATURES_OK)
        if fresh & Status.DRIVER_OK and before & Status.SUSPEND:
            self._resume()
        elif fresh & Status.DRIVER_OK:
            self._go()
        elif value & Status.SUSPEND and before & Status.DRIVER_OK and f.has(self.driver_features, f.SUSPEND):
            self._suspend()

    # --- suspend (3.4.2) ----------------------------------------------------------------------------------------

    def _suspend(self) -> None:
        """Answer what was kicked, and stop: without DRIVER_OK no queue is looked at."""
        self.run()
        self._status = self._status & ~int(Status.DRIVER_OK) | int(Status.SUSPEND)

    def _resume(self) -> None:
        """Work again: what the configuration missed is told now, and what waits in the queues is done."""
        missed, self._missed = self._missed, []
        for offset, data, interrupt in missed:
            self.change_config(offset, data, interrupt=interrupt)
        for index in range(len(self.queues)):
            if self.fetch(index):
                self.interrupt_queue(index)

    def _refuses(self) -> bool:
        faults, taken = self.faults, self.driver_features
        bad = bool(faults.refuse_with) and taken & faults.refuse_with == faults.refuse_with
        return faults.refuse_features or bad or taken & faults.refuse_without != faults.refuse_without

    def _go(self) -> None:
        """DRIVER_OK was set: from now on the device works."""
        if self.faults.needs_reset_at == "driver_ok":
            self.needs_reset()
        self.model.driver_ok()
        for index in range(len(self.queues)):
            self.fetch(index)

    # --- queues and the configuration ------------------------------------------------------------------------

    def _power_on(self) -> None:
        self._status = 0
        self.driver_features = 0
        self._feature_select = [0, 0]
        self._queue_select = 0
        self.config_vector = pci.NO_VECTOR
        self.isr = 0
        missed, self._missed = self._missed, []
        for offset, data, _ in missed:
            self.change_config(offset, data, interrupt=False)
        self.kicked.clear()
        self.queues = [
            QueueState(self.faults.queue_size.get(index, size))
            for index, size in enumerate(self.model.queue_sizes)
        ]
        self.kick_data.clear()
        if self.admin is not None:
            self.admin.first = len(self.queues)
            self.queues += [QueueState(size) for size in self.admin.queue_sizes]
            self.admin.reset()

    def _queue(self) -> QueueState:
        if self._queue_select < len(self.queues):
            return self.queues[self._queue_select]
        return QueueState(0)

    def _ident(self, queue: int) -> int:
        """What we call a queue in kicks (4.1.5.2.1)."""
        if f.has(self.driver_features, f.NOTIF_CONFIG_DATA):
            return self.notif_config_data.get(queue, queue)
        return queue

    def _vector(self, value: int) -> int:
        if value == pci.NO_VECTOR:
            return value
        self.check("PCI-MSX-02", value < self.msix_vectors, f"vector {value} of {self.msix_vectors}")
        if value >= len(self.msix) or value in self.faults.no_vectors:
            return pci.NO_VECTOR
        return value

    def _enable_queue(self, queue: QueueState, value: int) -> None:
        self.check("PCI-COM-06", value == 1, f"queue_enable was written {value}")
        self.check("INIT-01", bool(self._status & Status.FEATURES_OK), "queue_enable before FEATURES_OK")
        if not value or not queue.size or self.faults.never_enables:
            return
        self._serve(queue)

    def _serve(self, queue: QueueState) -> None:
        """Enable the queue that is selected, and look at its ring for the first time."""
        queue.enable = 1
        try:
            queue.ring = self.ring_formats[f.has(self.driver_features, f.RING_PACKED)](
                self.memory,
                queue.size,
                *queue.addresses.values(),
                indirect=f.has(self.driver_features, f.INDIRECT_DESC),
                event_idx=f.has(self.driver_features, f.EVENT_IDX),
                in_order=f.has(self.driver_features, f.IN_ORDER),
                notify_on_empty=self.speaks_legacy and f.has(self.driver_features, f.NOTIFY_ON_EMPTY),
                lies=self.lies,
                index=self._queue_select,
            )
        except AssertionError as error:
            self.violations.append(str(error))

    def _device_read(self, offset: int, width: int) -> int:
        if offset + width > len(self.model.config):
            self.check("CFG-04", False, f"a read at {offset:#x} of {len(self.model.config)} bytes")
            return 0
        return self.model.read_config(offset, width)

    def _device_write(self, offset: int, width: int, value: int) -> None:
        right = bool(self._status & Status.FEATURES_OK) or offset in self.model.any_time
        self.check("INIT-02", right, "configuration was written in negotiation")
        self.check("SUSP-05", not self._status & Status.SUSPEND, "configuration was written while suspended")
        if self._status & Status.SUSPEND:
            return
        if offset + width > len(self.model.config):
            self.check("CFG-04", False, f"a write at {offset:#x} of {len(self.model.config)} bytes")
            return
        self.model.write_config(offset, width, value)

    def _kick_value(self, width: int, value: int) -> tuple[int, int | None]:
        """What a kick's value says: the queue's name, and with NOTIFICATION_DATA the upper half (2.9)."""
        data = f.has(self.driver_features, f.NOTIFICATION_DATA)
        if data:
            self.check("PCI-NTF-02", width == pci.NOTIFY_DATA_WIDTH, f"a kick of {width} bytes")
        else:
            self.check("PCI-NTF-01", width == pci.NOTIFY_WIDTH, f"a kick of {width} bytes")
        return value & 0xFFFF, value >> 16 if data else None

    def _kick(self, index: int, upper: int | None) -> None:
        self.check("INIT-07", bool(self._status & Status.DRIVER_OK), "a kick before DRIVER_OK")
        if upper is not None:
            self._check_kick_data(index, upper)
        there = index < len(self.queues) and self.queues[index].enable == 1
        self.check("PCI-NTF-07", there, f"a kick of queue {index}, which is not enabled")
        if self.faults.needs_reset_at == "kick":
            self.needs_reset()
        self.kicked.append(index)
        if self.on_kick is not None:
            self.on_kick()
        if self.auto:
            self.run()

    def _check_kick_data(self, index: int, upper: int) -> None:
        """Whether the upper half says where the driver's next chain will be (2.9)."""
        self.kick_data.append((index, upper))
        ring_ = self.queues[index].ring
        if isinstance(ring_, DeviceRing):
            self.check(
                "NOTE-02", upper == ring_.published(), f"kick data {upper:#x}, avail.idx {ring_.published():#x}"
            )
        elif ring_ is not None:
            self.check(
                "PKD-04", upper == ring_.end_of_list(), f"kick data {upper:#x}, not {ring_.end_of_list():#x}"
            )

    # --- doing the work -------------------------------------------------------------------------------------

    def _may_run(self, queue: int) -> DeviceRing | PackedDeviceRing | None:
        ring_ = self.queues[queue].ring if queue < len(self.queues) else None
        faults = self.faults
        spoilt = bool(faults.silent_with) and self.driver_features & faults.silent_with == faults.silent_with
        silent = faults.silent or spoilt or queue in faults.silent_queues or self.gone
        stopped = self._status & (Status.DEVICE_NEEDS_RESET | Status.FAILED)
        # 3.1.2: legacy drivers use a device before DRIVER_OK.
        live = Status.DRIVER_OK | (Status.DRIVER if self.speaks_legacy else 0)
        if ring_ is None or silent or stopped or not self._status & live:
            return None
        self.check("DMA", self.master, "work for the device, and bus mastering is off")
        return ring_ if self.master else None

    def step(self, queue: int = 0) -> bool:
        """Take one chain of this queue and do what it asks for; False if there was none."""
        with self.lock:
            ring_ = self._may_run(queue)
            if ring_ is None:
                return False
            try:
                chain = ring_.pop()
            except AssertionError as error:
                self.violations.append(str(error))
                self.needs_reset()
                return False
            finally:
                self.violations += ring_.noted
                ring_.noted.clear()
            if chain is None:
                return False
            if self.admin is not None and queue >= self.admin.first:
                written = self.admin.handle(queue, chain)
            else:
                written = self.model.handle(queue, chain)
            if written is not None:
                ring_.push(chain, written)
            return True

    def fetch(self, queue: int) -> int:
        """Take all chains of this queue and say where the next kick is wanted; how many there were."""
        with self.lock:
            ring_ = self._may_run(queue)
            if ring_ is None:
                return 0
            count = 0
            while self.step(queue):
                count += 1
            ring_.ask_for_kicks()
            return count

    def run(self) -> None:
        """Answer all kicks so far, each queue with at most one interrupt."""
        with self.lock:
            kicked, self.kicked = self.kicked, []
            for queue in dict.fromkeys(kicked):
                self.fetch(queue)
                self.interrupt_queue(queue)

    def complete(self, queue: int, chain: Chain | int, written: int = 0, *, interrupt: bool = True) -> None:
        """Give back a chain that the model kept."""
        with self.lock:
            ring_ = self.queues[queue].ring
            assert ring_ is not None
            ring_.push(chain, written)
            if interrupt:
                self.interrupt_queue(queue)

    def interrupt_queue(self, queue: int, *, force: bool = False) -> None:
        """The interrupt for what was completed, if the driver wants one; ``force``: whether or not."""
        with self.lock:
            ring_ = self.queues[queue].ring
            wanted = ring_ is not None and ring_.wants_interrupt()
            if force or (wanted and not self.faults.lose_interrupts):
                self._interrupt(pci.ISR_QUEUE, self.queues[queue].vector)

    def interrupt_config(self) -> None:
        """A configuration change notification."""
        with self.lock:
            self._interrupt(pci.ISR_CONFIG, self.config_vector)

    def _interrupt(self, cause: int, vector: int) -> None:
        if self.gone:
            return
        if self.msix:
            if vector < len(self.msix):
                self.msix[vector].fire()
            return
        self.isr |= int(cause)
        if self.line is not None:
            self.line.fire()

    def change_config(self, offset: int, data: bytes, *, interrupt: bool = True) -> None:
        """Change the device configuration as a device does: new generation, then the notification.

        While the device is suspended nothing changes: all of it comes with the resume (3.4.2).
        """
        with self.lock:
            if self._status & Status.SUSPEND:
                self._missed.append((offset, data, interrupt))
                return
            self.model.config[offset : offset + len(data)] = data
            self._generation += 1
            # 4.1.4.3.1: a value that was read never comes again while there are changes, though it has 8 bits.
            if self._generation & 0xFF == self._generation_read:
                self._generation += 1
            if interrupt and self._status & Status.DRIVER_OK:
                self.interrupt_config()

    def needs_reset(self) -> None:
        """The device gives up (2.1.1)."""
        with self.lock:
            self._status |= int(Status.DEVICE_NEEDS_RESET)
            if self._status & Status.DRIVER_OK:
                self.interrupt_config()

    def reset_by_other(self) -> None:
        """Another program resets the device."""
        with self.lock:
            self._finish_reset()

    def storm(self, on: bool = True) -> None:
        """Fire every interrupt again and again, for nothing."""
        for event in (*self.msix, *([self.line] if self.line else [])):
            event.storm(on)

    def vanish(self) -> None:
        """Surprise removal: from now on every read gives ones."""
        with self.lock:
            self.gone = True

    def ask_back(self) -> None:
        """Hot-unplug: the host wants the device back."""
        assert self.removal is not None
        self.removal.fire()

    @property
    def status_now(self) -> int:
        """The status without a register read."""
        return self._status

    @property
    def speaks_legacy(self) -> bool:
        """Whether the driver uses a legacy interface (2.2.3)."""
        return False

    @property
    def type(self) -> str:
        """The name of the device type."""
        return ids.type_name(self.model.device_id)
