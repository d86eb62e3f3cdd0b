"""A virtio-mmio window made of Python: the scripted device behind the registers of 4.2.2.

    device = ScriptedMmio(Rng(), line=False)
    ...hand it to Mmio or to anything else that takes an MmioWindow...
    device.assert_obedient()

Every access is in ``device.log`` under the region ``mmio`` (registers) or ``device`` (configuration); an access
that the register table does not allow - a wrong width, a load of a W register, a store to an R register, an
offset that is no register - is a violation with its requirement's id.
"""

from __future__ import annotations

from uvirtio.scripted.core import QueueState, ScriptedCore
from uvirtio.scripted.model import Model
from uvirtio.scripted.parts import ScriptedEvent, Window
from uvirtio.spec import features as f
from uvirtio.spec import mmio, pci
from uvirtio.spec.mmio import Way
from uvirtio.spec.ring import is_power_of_two, legacy_layout
from uvirtio.spec.status import Status

ADDRESS = "mmio:0xfeb02e00"
LEGACY_FEATURES = f.mask(f.ANY_LAYOUT, f.INDIRECT_DESC, f.EVENT_IDX, f.NOTIFY_ON_EMPTY, f.Reserved.UNUSED)
"""What QEMU offers on version 1; a driver must not take the last two."""


class ScriptedMmio(ScriptedCore):
    """``line``: whether the interrupt line reaches the driver. ``magic``, ``version``, ``device_id``: what the
    first registers read. ``stray_causes``: bits that InterruptStatus has on top. ``ready_stuck``: QueueReady
    reads 1 after 0 was written. ``shared``: shared memory regions, (base, length) by id. ``two_words``: there are
    two feature words, and every selection but 0 is the second, as in QEMU. ``resets_queues`` False: QueueReset
    does nothing, as in QEMU.
    """

    bus = "mmio"

    def __init__(
        self,
        model: Model,
        *,
        line: bool = True,
        magic: int = mmio.MAGIC,
        version: int = mmio.VERSION,
        device_id: int | None = None,
        window: int = mmio.WINDOW_SIZE,
        stray_causes: int = 0,
        ready_stuck: bool = False,
        shared: dict[int, tuple[int, int]] | None = None,
        two_words: bool = False,
        resets_queues: bool = True,
        **how: object,
    ) -> None:
        how.setdefault("address", ADDRESS)
        self.legacy = version == mmio.VERSION_LEGACY
        self.page_sizes: list[int] = []
        """What GuestPageSize was told since the last reset."""
        if self.legacy:
            how.setdefault("contiguous_limit", 1 << 21)  # a huge page
            how.setdefault("features", LEGACY_FEATURES | model.features)
        super().__init__(model, vectors=0, intx=line, **how)  # type: ignore[arg-type]
        self.identity = {
            "MagicValue": magic,
            "Version": version,
            "DeviceID": model.device_id if device_id is None else device_id,
            "VendorID": 0x554D4551,
        }
        self.stray_causes = stray_causes
        self.ready_stuck = ready_stuck
        self.shared = shared or {}
        self.two_words = two_words
        self.resets_queues = resets_queues
        self.master = True  # there is no such bit: the device may always work
        self._shm = 0
        self._selected: set[str] = set()
        table = mmio.LEGACY_REGISTERS if self.legacy else mmio.REGISTERS
        # The registers that both have go by their name in version 2.
        self._table = {field.offset: (_MODERN.get(field.name, field.name), way) for field, way in table}
        self.registers = self._window_of(window)

    def _window_of(self, length: int) -> Window:
        def read(offset: int, width: int) -> int:
            return (self._register_read if offset < mmio.CONFIG else self._config_part_read)(offset, width)

        def write(offset: int, width: int, value: int) -> None:
            (self._register_write if offset < mmio.CONFIG else self._config_part_write)(offset, width, value)

        return self._window("mmio", length, read, write)

    # --- MmioWindow -----------------------------------------------------------------------------------------

    def enable_interrupt(self) -> ScriptedEvent | None:
        """Turn the interrupt line on; None where there is none."""
        return self.enable_intx()

    def disable_interrupt(self) -> None:
        """Turn the interrupt line off."""
        self._call("disable_interrupts")
        self._interrupts_off()

    def guard(self, status: int) -> None:
        """A guardian is told where the status register is and what to write when the driver dies."""
        self._call("guard", status)
        self.check("GUARD", not self._status & Status.DRIVER_OK, "a guard for a device that works already")

    def close(self) -> None:
        """Close the window. Idempotent."""
        super().close()
        self.registers.close()

    def assert_left(self) -> None:
        """The driver reset the device and left nothing open or allocated."""
        self.master = False
        super().assert_left()

    # --- the registers (4.2.2) ------------------------------------------------------------------------------

    def _name(self, offset: int, width: int, forbidden: Way) -> str:
        self.check("MMIO-04", width == 4 and offset % 4 == 0, f"{width} bytes at {offset:#x}")
        name, way = self._table.get(offset, ("none", Way.RW))
        self.check("MMIO-01", name != "none", f"an access at {offset:#x}, which is no register")
        if forbidden is Way.W:
            self.check("MMIO-03", way is not forbidden, f"a load of {name}")
        else:
            self.check("MMIO-02", way is not forbidden, f"a store to {name}")
        return name

    def _register_read(self, offset: int, width: int) -> int:
        name = self._name(offset, width, Way.W)
        if width != 4:
            return 0
        if name in self.identity:
            return self.identity[name]
        queue = self._queue()
        match name:
            case "QueuePFN":
                return int(self.faults.enabled_before) or queue.addresses["queue_desc"] >> 12
            case "DeviceFeatures":
                self.check("MMIO-10", "DeviceFeaturesSel" in self._selected, "DeviceFeatures was not selected")
                self._selected.discard("DeviceFeaturesSel")
                return self._read_feature()
            case "QueueSizeMax":
                if self.legacy:
                    self.check("MMIO-L03", not queue.addresses["queue_desc"], "QueueSizeMax of a live queue")
                return queue.size_max
            case "QueueReady":
                stuck = self.ready_stuck and queue.ring is not None
                return int(bool(queue.enable or self.faults.enabled_before or stuck))
            case "InterruptStatus":
                return self.isr | self.stray_causes
            case "Status":
                return self._read_status()
            case "QueueReset":
                if queue.reset_left:
                    queue.reset_left -= 1 if queue.reset_left > 0 else 0
                    return 1
                return 0
            case "ConfigGeneration":
                if self.faults.generation_bumps:
                    self.faults.generation_bumps -= 1 if self.faults.generation_bumps > 0 else 0
                    self._generation += 1
                return self._generation
            case "SHMLenLow" | "SHMLenHigh" | "SHMBaseLow" | "SHMBaseHigh":
                base, length = self.shared.get(self._shm, (mmio.NO_SHM, mmio.NO_SHM))
                value = base if "Base" in name else length
                return value >> (32 if name.endswith("High") else 0) & 0xFFFFFFFF
        return 0

    def _register_write(self, offset: int, width: int, value: int) -> None:
        name = self._name(offset, width, Way.R)
        if width != 4:
            return
        queue = self._queue()
        if name in ("QueueSize", *_HALVES):
            self.check("MMIO-13", not queue.enable, f"{name} was written while the queue is ready")
        if name in _HALVES:
            wide, shift = _HALVES[name]
            queue.addresses[wide] = queue.addresses[wide] & ~(0xFFFFFFFF << shift) | value << shift
            return
        match name:
            case "GuestPageSize":
                self.check("MMIO-L02", not self.page_sizes, "GuestPageSize was written twice")
                self.page_sizes.append(value)
            case "QueueAlign":
                self.check("MMIO-L04", is_power_of_two(value), f"QueueAlign {value}")
                self._aligned[self._queue_select] = value
            case "QueuePFN":
                self._write_frame(queue, value)
            case "DeviceFeaturesSel":
                self._selected.add(name)
                self._feature_select[0] = min(value, 1) if self.two_words else value
            case "DriverFeaturesSel":
                self._selected.add(name)
                self._feature_select[1] = min(value, 1) if self.two_words else value
            case "DriverFeatures":
                self.check("MMIO-11", "DriverFeaturesSel" in self._selected, "DriverFeatures was not selected")
                self._selected.discard("DriverFeaturesSel")
                self._write_feature(value)
            case "QueueSel":
                self._queue_select = value
            case "QueueSize":
                fits = 0 < value <= queue.size_max
                self.check("MMIO-12", fits, f"QueueSize {value} of at most {queue.size_max}")
                if fits:
                    queue.size = value
            case "QueueReady":
                self._write_ready(queue, value)
            case "QueueNotify":
                self._kick_at(value)
            case "InterruptACK":
                self._acknowledge(value)
            case "Status":
                self._write_status(value)
            case "SHMSel":
                self._shm = value
            case "QueueReset" if self.resets_queues:
                self.check("QRST-01", value == 1, f"QueueReset {value}")
                queue.reset_left = self.faults.queue_reset_reads
                queue.enable, queue.ring = 0, None
                # 2.6.1: all that was written for the queue is gone.
                queue.size = queue.size_max
                queue.addresses = dict.fromkeys(queue.addresses, 0)
                self.model.queue_reset(self._queue_select)

    def _write_ready(self, queue: QueueState, value: int) -> None:
        if value:
            self._enable_queue(queue, value)
        else:
            queue.enable = 0
            if not self.ready_stuck:
                queue.ring = None

    def _write_frame(self, queue: QueueState, frame: int) -> None:
        if not frame:
            queue.enable, queue.ring = 0, None
            queue.addresses = dict.fromkeys(queue.addresses, 0)
            return
        self.check("MMIO-L02", self.page_sizes == [4096], "QueuePFN before GuestPageSize")
        self.check("MMIO-L04", self._queue_select in self._aligned, "QueuePFN before QueueAlign")
        self.check("MMIO-L03", not queue.addresses["queue_desc"], "QueuePFN of a live queue")
        if self.faults.never_enables:
            return
        layout = legacy_layout(queue.size, self._aligned.get(self._queue_select, 4096))
        start = frame << 12
        places = (start + layout.desc, start + layout.avail, start + layout.used)
        queue.addresses = dict(zip(queue.addresses, places, strict=True))
        self.check("INIT-L01", bool(self._status & Status.DRIVER), "QueuePFN before DRIVER")
        self._serve(queue)

    def _write_status(self, value: int) -> None:
        if not self.legacy or value == 0:
            super()._write_status(value)
            return
        # 3.1.2: the same phases without FEATURES_OK.
        self.check("FEAT-L02", not value & Status.FEATURES_OK, "FEATURES_OK on a legacy interface")
        fresh = value & ~self._status
        self.check("STAT-02", value & self._status == self._status, f"from {self._status:#x} to {value:#x}")
        self._status = value
        if fresh & Status.DRIVER_OK:
            self._go()

    def _power_on(self) -> None:
        super()._power_on()
        self.page_sizes = []
        self._aligned: dict[int, int] = {}

    def _acknowledge(self, value: int) -> None:
        self.check("MMIO-18", not value & ~3, f"InterruptACK {value:#x}")
        self.check("MMIO-27", not value & ~self.isr, f"InterruptACK {value:#x} of causes {self.isr:#x}")
        self.isr &= ~value

    def _kick_at(self, value: int) -> None:
        # The rules of a kick are those of PCI; only the place is another.
        data = f.has(self.driver_features, f.NOTIFICATION_DATA)
        queue = value & 0xFFFF if data else value
        if queue >= len(self.queues):
            self.check("MMIO-29", False, f"a kick of queue {queue}, which does not exist")
            return
        self._kick(*self._kick_value(pci.NOTIFY_DATA_WIDTH if data else pci.NOTIFY_WIDTH, value))

    @property
    def speaks_legacy(self) -> bool:
        """Whether this is version 1."""
        return self.legacy

    def set_status_now(self, value: int) -> None:
        """The status without a register write."""
        self._status = value

    # --- the configuration ----------------------------------------------------------------------------------

    def _config_part_read(self, offset: int, width: int) -> int:
        return self._device_read(offset - mmio.CONFIG, width)

    def _config_part_write(self, offset: int, width: int, value: int) -> None:
        if self.legacy:
            self.check("INIT-02", bool(self._status & Status.DRIVER), "configuration was written before DRIVER")
            self.model.write_config(offset - mmio.CONFIG, width, value)
        else:
            self._device_write(offset - mmio.CONFIG, width, value)

    def config_accesses(self) -> list[tuple[str, int, int]]:
        """(op, offset in the configuration, width) of every access to it."""
        return [
            (access.op, access.offset - mmio.CONFIG, access.width)
            for access in self.log
            if access.region == "mmio" and access.offset >= mmio.CONFIG
        ]

    def order(self, *names: str) -> list[str]:
        """The accesses to these registers in their order, as ``R name`` and ``W name``."""
        found = []
        for access in self.log:
            name = self._table.get(access.offset, ("", Way.RW))[0] if access.region == "mmio" else ""
            if access.op in ("read", "write") and name and (not names or name in names):
                found.append(f"{access.op[0].upper()} {name}")
        return found


_MODERN = {
    "HostFeatures": "DeviceFeatures",
    "HostFeaturesSel": "DeviceFeaturesSel",
    "GuestFeatures": "DriverFeatures",
    "GuestFeaturesSel": "DriverFeaturesSel",
}

_HALVES = {
    "QueueDescLow": ("queue_desc", 0),
    "QueueDescHigh": ("queue_desc", 32),
    "QueueDriverLow": ("queue_driver", 0),
    "QueueDriverHigh": ("queue_driver", 32),
    "QueueDeviceLow": ("queue_device", 0),
    "QueueDeviceHigh": ("queue_device", 32),
}
