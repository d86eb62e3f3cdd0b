"""Virtio over PCI, modern interface (4.1): what the registers of a function mean.

This module finds the structures through the vendor capabilities, and reads and writes each field with its own
width. What does not depend on where fields lie is in ``pci_base``.
"""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.errors import CapabilityError, ConfigError, QueueError
from uvirtio.memory.seams import Doorbell, QueueLayout, Registers
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.transports import pci_caps
from uvirtio.transports.pci_base import PciBase, config_reader

COMMON_MIN = 0x38
"""Bytes of the common configuration that every device has; the rest comes with features (4.1.4.3)."""


class PciModern(PciBase):
    """A ``Transport`` over the modern PCI interface.

    Takes the function over: ``close()`` closes it. Raises NotVirtio, CapabilityError, DeviceGone.
    """

    kind = "pci-modern"
    legacy = False
    features_allowed = f.mask(
        f.VERSION_1, f.ACCESS_PLATFORM, f.INDIRECT_DESC, f.EVENT_IDX, f.RING_PACKED, f.IN_ORDER
    )

    def _find(self) -> None:
        self._config: Registers | None = None
        self.capabilities = pci_caps.walk_capabilities(config_reader(self._function), self._function.bar)
        chosen = pci_caps.select(self.capabilities)
        self._common_place = chosen["common"].bar, chosen["common"].offset
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

    def _window(self, capability: pci_caps.VirtioCapability, need: int, name: str) -> Registers:
        # 4.1.4.1: map no more than is needed; a longer structure is a newer one, not an error.
        return self._open_window(capability.bar, capability.offset, min(capability.usable, need), name)

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

    def _status_place(self) -> tuple[int, int, int]:
        bar, offset = self._common_place
        return bar, offset + pci.COMMON_DEVICE_STATUS, 1

    def status(self) -> int:
        return self._common.read8(pci.COMMON_DEVICE_STATUS)

    def set_status(self, value: int) -> None:
        self._common.write8(pci.COMMON_DEVICE_STATUS, value)

    # --- device configuration (4.1.4.6, 4.1.3.1) ------------------------------------------------------------

    def generation(self) -> int | None:
        return self._common.read8(pci.COMMON_CONFIG_GENERATION)

    def _config_place(self, offset: int, width: int) -> tuple[Registers, int]:
        if self._config is None or offset + width > self._config.length:
            raise ConfigError(
                f"the device configuration of {self._function.address} ends before offset {offset + width:#x}",
                seen=f"{0 if self._config is None else self._config.length} bytes",
                expected=f"at least {offset + width} bytes (2.5.1)",
            )
        return self._config, offset

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
        common.write16(pci.COMMON_QUEUE_ENABLE, 1)  # last of all (4.1.4.3.2)
        self._expect(index, "queue_enable", common.read16(pci.COMMON_QUEUE_ENABLE), 1)
        return doorbell

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
        return self._doorbell_at(index, self._notify.bar, self._notify.offset + within)

    # --- interrupts (4.1.5.1.2, 4.1.4.5) --------------------------------------------------------------------

    def _take_config_vector(self, vector: int) -> int:
        self._common.write16(pci.COMMON_CONFIG_MSIX_VECTOR, vector)
        return self._common.read16(pci.COMMON_CONFIG_MSIX_VECTOR)

    def _take_queue_vector(self, index: int, vector: int) -> int:
        self._select(index)
        self._common.write16(pci.COMMON_QUEUE_MSIX_VECTOR, vector)
        return self._common.read16(pci.COMMON_QUEUE_MSIX_VECTOR)

    def _read_isr(self) -> int:
        return self._isr.read8(0)
