"""Virtio over PCI, modern interface (4.1): what the registers of a function mean.

The function comes from a back end (VFIO, QEMU, ...) as a ``PciFunction``; this module finds the structures
through the vendor capabilities, reads and writes each field with its own width, and climbs down the interrupt
ladder. It never waits: deadlines belong to ``device``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from uvirtio.errors import (
    CapabilityError,
    ConfigError,
    DeviceGone,
    EnvironmentLack,
    NotSupported,
    NotVirtio,
    OperationFailed,
    QueueError,
)
from uvirtio.memory.seams import (
    Causes,
    DmaSpace,
    Doorbell,
    Event,
    InterruptMode,
    PciFunction,
    QueueLayout,
    Registers,
)
from uvirtio.memory.trace import Trace, TracedDoorbell, TracedRegisters
from uvirtio.spec import features as f
from uvirtio.spec import ids, pci
from uvirtio.transports import pci_caps

COMMON_MIN = 0x38
"""Bytes of the common configuration that every device has; the rest comes with features (4.1.4.3)."""


class RegisterDoorbell:
    """A kick by a 16-bit write (4.1.5.2): no NOTIFICATION_DATA yet, so the value is the queue index."""

    def __init__(self, registers: Registers) -> None:
        self._registers = registers

    def ring(self, value: int) -> None:
        self._registers.write16(0, value)

    def close(self) -> None:
        self._registers.close()


class PciModern:
    """A ``Transport`` over the modern PCI interface.

    Takes the function over: ``close()`` closes it. Raises NotVirtio, CapabilityError, DeviceGone.
    """

    kind = "pci-modern"
    legacy = False
    features_allowed = f.mask(f.VERSION_1, f.ACCESS_PLATFORM, f.INDIRECT_DESC, f.EVENT_IDX)

    def __init__(self, function: PciFunction, *, trace: Trace | None = None) -> None:
        self._function = function
        self._trace = trace
        self._windows: list[Registers] = []
        self._config: Registers | None = None
        self._events: list[Event] = []
        self._mode = InterruptMode.POLLING
        self._config_shares_vector = False
        self._doorbells: dict[int, Doorbell] = {}
        self._closed = False

        try:
            self._find_structures()
        except BaseException:
            self._close_windows()
            raise

    def _find_structures(self) -> None:
        self.device_id = self._identify()
        self.capabilities = pci_caps.walk_capabilities(self._read_pci, self._function.bar)
        chosen = pci_caps.select(self.capabilities)
        self._notify = chosen["notify"]
        self._common = self._window(chosen["common"], pci.COMMON_CFG_SIZE, "common")
        if self._common.length < COMMON_MIN:
            raise CapabilityError(
                f"the common configuration of {self._function.address} is too short",
                seen=f"{self._common.length} bytes",
                expected=f"at least {COMMON_MIN} bytes (4.1.4.3)",
            )
        self._isr = self._window(chosen["isr"], 1, "isr")
        device = chosen.get("device")
        self.config_length = device.usable if device is not None else 0
        if device is not None:
            # No driver here reads past the first page, and 4.1.4.1 wants no more mapped than is used.
            self._config = self._window(device, 4096, "config")
        self.num_queues = self._common.read16(pci.COMMON_NUM_QUEUES)
        self._refuse_all_ones(self.num_queues, 16, "num_queues")

    # --- identity -----------------------------------------------------------------------------------------

    def _read_pci(self, offset: int, width: int) -> int:
        config = self._function.config
        reader = {1: config.read8, 2: config.read16, 4: config.read32}[width]
        return reader(offset)

    def _identify(self) -> int:
        # 4.1.2: the revision id says nothing and is not looked at.
        vendor = self._read_pci(pci.CFG_VENDOR_ID, 2)
        device = self._read_pci(pci.CFG_DEVICE_ID, 2)
        self._refuse_all_ones(vendor, 16, "the PCI vendor id")
        found = ids.device_id_of_pci(vendor, device)
        if found is None:
            raise NotVirtio(
                f"{self._function.address} is no virtio device",
                seen=f"{vendor:04x}:{device:04x}",
                expected="1af4:1000 to 1af4:107f (4.1.2)",
                remedy="list the virtio devices of this machine: uvirtio list",
            )
        return found

    def _refuse_all_ones(self, value: int, bits: int, what: str) -> None:
        # PCI answers a read of nothing with ones in every bit.
        if value == (1 << bits) - 1:
            raise DeviceGone(
                f"{self._function.address} does not answer any more",
                seen=f"{what} reads {value:#x}",
                expected="a value",
                remedy="look whether the device was removed: uvirtio list",
            )

    def _window(self, capability: pci_caps.VirtioCapability, need: int, name: str) -> Registers:
        # 4.1.4.1: map no more than is needed; a longer structure is a newer one, not an error.
        length = min(capability.usable, need)
        registers: Registers = self._function.registers(capability.bar, capability.offset, length)
        if self._trace is not None:
            registers = TracedRegisters(registers, name, self._trace)
        self._windows.append(registers)
        return registers

    def _close_windows(self) -> None:
        while self._windows:
            self._windows.pop().close()

    @property
    def description(self) -> str:
        return self._function.description

    @property
    def interface(self) -> str:
        places = ", ".join(
            f"{cap.type} BAR {cap.bar}+{cap.offset:#x}"
            for cap in self.capabilities
            if cap.verdict == "ok" and cap.length  # not PCI_CFG and vendor data, which lie in no BAR
        )
        return f"modern interface: {places}"

    @property
    def oddities(self) -> Sequence[str]:
        return [
            f"the {cap.type} capability at {cap.config_offset:#04x} cannot be used: {cap.why}"
            for cap in self.capabilities
            if cap.verdict == "bad"
        ]

    @property
    def translates(self) -> bool:
        return self._function.translates

    @property
    def function(self) -> PciFunction:
        return self._function

    @property
    def interrupt_mode(self) -> InterruptMode:
        return self._mode

    # --- features and status (4.1.4.3) ----------------------------------------------------------------------

    def device_features(self) -> int:
        features = 0
        for word in range(4):
            self._common.write32(pci.COMMON_DEVICE_FEATURE_SELECT, word)
            features |= self._common.read32(pci.COMMON_DEVICE_FEATURE) << (32 * word)
        return features

    def set_driver_features(self, features: int) -> None:
        for word in range(4):
            self._common.write32(pci.COMMON_DRIVER_FEATURE_SELECT, word)
            self._common.write32(pci.COMMON_DRIVER_FEATURE, (features >> (32 * word)) & 0xFFFFFFFF)

    def status(self) -> int:
        return self._common.read8(pci.COMMON_DEVICE_STATUS)

    def set_status(self, value: int) -> None:
        self._common.write8(pci.COMMON_DEVICE_STATUS, value)

    # --- device configuration (4.1.4.6, 4.1.3.1) ------------------------------------------------------------

    def generation(self) -> int | None:
        return self._common.read8(pci.COMMON_CONFIG_GENERATION)

    def _config_window(self, offset: int, width: int) -> Registers:
        if self._config is None or offset + width > self._config.length:
            raise ConfigError(
                f"the device configuration of {self._function.address} ends before offset {offset + width:#x}",
                seen=f"{0 if self._config is None else self._config.length} bytes",
                expected=f"at least {offset + width} bytes (2.5.1)",
            )
        return self._config

    def read_config(self, offset: int, width: int) -> int:
        config = self._config_window(offset, width)
        if width == 1:
            return config.read8(offset)
        if width == 2:
            return config.read16(offset)
        if width == 4:
            return config.read32(offset)
        return config.read32(offset) | config.read32(offset + 4) << 32

    def write_config(self, offset: int, width: int, value: int) -> None:
        config = self._config_window(offset, width)
        if width == 1:
            config.write8(offset, value)
        elif width == 2:
            config.write16(offset, value)
        else:
            config.write32(offset, value & 0xFFFFFFFF)
            if width == 8:
                config.write32(offset + 4, value >> 32)

    # --- queues (4.1.4.3, 4.1.5.1.3) ------------------------------------------------------------------------

    def _select(self, index: int) -> None:
        self._common.write16(pci.COMMON_QUEUE_SELECT, index)

    def queue_layout(self, index: int) -> QueueLayout:
        if index >= self.num_queues:
            return QueueLayout(size_max=0)
        self._select(index)
        return QueueLayout(size_max=self._common.read16(pci.COMMON_QUEUE_SIZE))

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
        common = self._common
        self._select(index)
        if common.read16(pci.COMMON_QUEUE_ENABLE):
            raise QueueError(
                f"queue {index} is already enabled",
                seen=1,
                expected="queue_enable 0 after a reset (4.1.4.3.1)",
            )
        common.write16(pci.COMMON_QUEUE_SIZE, size)
        self._expect(index, "queue_size", common.read16(pci.COMMON_QUEUE_SIZE), size)
        for name, offset, address in (
            ("queue_desc", pci.COMMON_QUEUE_DESC, desc),
            ("queue_driver", pci.COMMON_QUEUE_DRIVER, driver),
            ("queue_device", pci.COMMON_QUEUE_DEVICE, device),
        ):
            # 4.1.3.1: a 64-bit field is two 4-byte accesses.
            common.write32(offset, address & 0xFFFFFFFF)
            common.write32(offset + 4, address >> 32)
            back = common.read32(offset) | common.read32(offset + 4) << 32
            self._expect(index, name, back, address)
        doorbell = self._make_doorbell(index)
        self._doorbells[index] = doorbell
        common.write16(pci.COMMON_QUEUE_ENABLE, 1)  # last of all (4.1.4.3.2)
        self._expect(index, "queue_enable", common.read16(pci.COMMON_QUEUE_ENABLE), 1)
        return doorbell

    def _expect(self, index: int, name: str, seen: int, expected: int) -> None:
        if seen != expected:
            raise QueueError(
                f"{name} of queue {index} does not read back what was written",
                seen=f"{seen:#x}",
                expected=f"{expected:#x} (4.1.4.3)",
                remedy="uvirtio diag shows each register; the device is at fault here",
            )

    def _make_doorbell(self, index: int) -> Doorbell:
        # 4.1.4.4: cap.offset + queue_notify_off * notify_off_multiplier; a multiplier of 0 is one shared place.
        notify_off = self._common.read16(pci.COMMON_QUEUE_NOTIFY_OFF)
        multiplier = self._notify.notify_off_multiplier or 0
        within = notify_off * multiplier
        if within + 2 > self._notify.usable or (self._notify.offset + within) % 2:
            raise QueueError(
                f"the doorbell of queue {index} lies outside the notification structure",
                seen=f"offset {within:#x} ({notify_off} x {multiplier})",
                expected=f"an even offset of at most {self._notify.usable - 2:#x} (4.1.4.4.1)",
            )
        offset = self._notify.offset + within
        doorbell = self._function.doorbell(self._notify.bar, offset, index)
        if doorbell is None:
            doorbell = RegisterDoorbell(self._function.registers(self._notify.bar, offset, 2))
        return doorbell if self._trace is None else TracedDoorbell(doorbell, f"queue {index}", self._trace)

    # --- interrupts (4.1.5.1.2, 4.1.5.3, 4.1.5.4) -----------------------------------------------------------

    def connect_interrupts(self, queues: Sequence[int], modes: Sequence[InterruptMode]) -> InterruptMode:
        self._disconnect()
        tried: list[str] = []
        for mode in modes:
            try:
                why = self._try_mode(mode, queues)
            except (OperationFailed, EnvironmentLack) as error:  # this machine cannot; the next rung may do
                why = str(error)
            if why is None:
                self._mode = mode
                return mode
            tried.append(f"{mode.value}: {why}")
            self._disconnect()
        raise NotSupported(
            f"{self._function.address} can be driven in none of the wanted interrupt modes",
            seen="; ".join(tried),
            expected="one that works",
            remedy="allow polling, which always works",
        )

    def _try_mode(self, mode: InterruptMode, queues: Sequence[int]) -> str | None:
        """Set one rung up; None if it holds, else why not."""
        if mode is InterruptMode.POLLING:
            return None
        if mode is InterruptMode.INTX:
            event = self._function.enable_intx() if self._function.has_intx else None
            if event is None:
                return "the function has no interrupt pin"
            self._events = [event]
            return None
        have = self._function.msix_vectors
        if mode is InterruptMode.PER_QUEUE:
            if have < len(queues) + 1:
                return f"{have} vectors for {len(queues)} queues and the configuration"
            config_vector, queue_vectors = 0, list(range(1, len(queues) + 1))
        else:
            if have < 1:
                return "the function has no MSI-X vectors"
            config_vector, queue_vectors = 0, [1 if have > 1 else 0] * len(queues)
        self._config_shares_vector = config_vector in queue_vectors
        self._events = self._function.enable_msix(max([config_vector, *queue_vectors]) + 1)
        # 4.1.5.1.2.2: a vector that reads back as NO_VECTOR was refused.
        self._common.write16(pci.COMMON_CONFIG_MSIX_VECTOR, config_vector)
        if self._common.read16(pci.COMMON_CONFIG_MSIX_VECTOR) != config_vector:
            return "the device refused a vector for configuration changes"
        for index, vector in zip(queues, queue_vectors, strict=True):
            self._select(index)
            self._common.write16(pci.COMMON_QUEUE_MSIX_VECTOR, vector)
            if self._common.read16(pci.COMMON_QUEUE_MSIX_VECTOR) != vector:
                return f"the device refused vector {vector} for queue {index}"
        return None

    def _disconnect(self) -> None:
        if self._events:
            self._function.disable_interrupts()
        for event in self._events:
            event.close()
        self._events = []
        self._mode = InterruptMode.POLLING
        self._config_shares_vector = False

    def events(self) -> Sequence[Event]:
        removal = self._function.removal
        return self._events if removal is None else [*self._events, removal]

    def causes(self) -> Causes:
        removal = self._function.removal
        gone = removal is not None and removal.take()
        if self._mode is InterruptMode.POLLING:
            return self._isr_causes(gone)
        if self._mode is InterruptMode.INTX:
            line = self._events[0]
            if not line.take():
                return Causes(removal=gone)
            causes = self._isr_causes(gone)
            line.rearm()
            return causes
        # 4.1.4.5.2: with MSI-X on, the ISR is left alone.
        config = self._events[0].take()
        queues = [event.take() for event in self._events[1:]]
        return Causes(
            config=config,
            queues=any(queues) or (config and self._config_shares_vector),
            removal=gone,
        )

    def _isr_causes(self, removal: bool) -> Causes:
        # 4.1.4.5: reading clears, so it is read once and both bits are used.
        isr = self._isr.read8(0)
        if isr == 0xFF:
            self._refuse_all_ones(self.status(), 8, "the ISR and the status")
        return Causes(config=bool(isr & pci.ISR_CONFIG), queues=bool(isr & pci.ISR_QUEUE), removal=removal)

    # --- the rest -------------------------------------------------------------------------------------------

    def dma(self, translated: bool) -> DmaSpace:
        return self._function.dma(translated)

    def dma_enable(self, on: bool) -> None:
        self._function.bus_master(on)

    def function_reset(self) -> bool:
        return self._function.reset()

    def release_queues(self) -> None:
        """Close the doorbells and the interrupt events; the device has been reset."""
        for doorbell in self._doorbells.values():
            doorbell.close()
        self._doorbells.clear()
        self._disconnect()

    def close(self) -> None:
        """Release everything and close the function; idempotent. The device is expected to be reset."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:  # runs backwards, and all of it, whatever fails
            stack.callback(self._function.close)
            stack.callback(self._close_windows)
            self.release_queues()
