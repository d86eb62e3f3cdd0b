"""Virtio over PCI, modern interface (4.1): what the registers of a function mean.

This module finds the structures through the vendor capabilities, and reads and writes each field with its own
width. What does not depend on where fields lie is in ``pci_base``.
"""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.errors import CapabilityError, ConfigError, QueueError
from uvirtio.interfaces.runtime import QueueLayout, SharedRegion, inspection
from uvirtio.memory.access import exchange
from uvirtio.spec import features as f
from uvirtio.spec import ids, pci
from uvirtio.transports import pci_caps
from uvirtio.transports.pci_base import PciBase, config_reader, device_ids
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Doorbell, Registers, Step

COMMON_MIN = 0x38
"""Bytes of the common configuration that every device has; further ones come with features (4.1.4.3)."""


class PciModern(PciBase):
    """A ``Transport`` over the modern PCI interface."""

    kind = "pci-modern"
    legacy = False

    def _find(self) -> None:
        self._config: Registers | None = None
        self._features = 0
        self.capabilities = pci_caps.walk_capabilities(config_reader(self._function), self._function.bar)
        chosen = pci_caps.select(self.capabilities, look=inspection(self._function))
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
        self.features_allowed = self._carried()
        device = chosen.get("device")
        self.config_length = device.usable if device is not None else 0
        if device is not None:
            # No driver here reads past the first page, and 4.1.4.1 asks for no larger mapping than needed.
            self._config = self._window(device, 4096, "config")
        self._num_queues: int | None = None
        _ = self.num_queues  # a device that is not there shows itself

    @property
    def num_queues(self) -> int:
        """Number of queues (4.1.4.3); read again once features are accepted: with MQ some devices have more."""
        if self._num_queues is None:
            count = self._common.read16(pci.COMMON_NUM_QUEUES)
            self._refuse_all_ones(count, 16, "num_queues")
            self._num_queues = count
        return self._num_queues

    def _carried(self) -> int:
        """The features that this interface supports, without those whose fields or alignment the device lacks."""
        carried = f.mask(
            f.VERSION_1,
            f.ACCESS_PLATFORM,
            f.INDIRECT_DESC,
            f.EVENT_IDX,
            f.RING_PACKED,
            f.IN_ORDER,
            f.ORDER_PLATFORM,
        )
        # 4.1.4.3: fields from 0x38 on exist with their feature, if the structure is long enough.
        for bit, end in (
            (f.NOTIF_CONFIG_DATA, pci.COMMON_QUEUE_NOTIF_CONFIG_DATA + 2),
            (f.RING_RESET, pci.COMMON_QUEUE_RESET + 2),
            (f.ADMIN_VQ, pci.COMMON_ADMIN_QUEUE_NUM + 2),
        ):
            if self._common.length >= end:
                carried |= f.mask(bit)
        # 4.1.4.4.1: a kick with data is 32 bits wide, and its place is aligned to them.
        aligned = not (self._notify.offset | (self._notify.notify_off_multiplier or 0)) % pci.NOTIFY_DATA_WIDTH
        if aligned and self._notify.usable >= pci.NOTIFY_DATA_WIDTH:
            carried |= f.mask(f.NOTIFICATION_DATA)
        return carried

    def _has(self, bit: int) -> bool:
        return f.has(self._features, bit)

    def _window(self, capability: pci_caps.VirtioCapability, need: int, name: str) -> Registers:
        # 4.1.4.1: map no more than is needed; a longer structure is a newer one, not an error.
        return self._open_window(capability.bar, capability.offset, min(capability.usable, need), name)

    @property
    def other_interface(self) -> str:
        """Return how to reach the legacy interface, which a transitional device has (4.1.2.1)."""
        transitional = ids.is_transitional_pci(*device_ids(self._function))
        return "take its legacy interface: --force-legacy (force_legacy=True)" if transitional else ""

    @property
    def interface(self) -> str:
        """One line for people: where the structures are."""
        places = ", ".join(
            f"{cap.type} BAR {cap.bar}+{cap.offset:#x}"
            for cap in self.capabilities
            if cap.verdict == "ok" and cap.length  # not PCI_CFG and vendor data, which lie in no BAR
        )
        return f"modern interface: {places}"

    @property
    def quirks(self) -> Sequence[str]:
        """The capabilities that cannot be used, and those over the MSI-X table, a line each."""
        used = [cap for cap in self.capabilities if cap.verdict == "ok" and cap.type in pci_caps.STRUCTURES]
        return pci_caps.over_msix(config_reader(self._function), used) + [
            f"the {cap.type} capability at {cap.config_offset:#04x} cannot be used: {cap.why}"
            for cap in self.capabilities
            if cap.verdict == "bad"
        ]

    # --- features and status (4.1.4.3) ----------------------------------------------------------------------

    def device_features(self) -> int:
        """Return the offered features, 128 bits."""
        steps: list[Step] = []
        for word in range(4):
            steps.append((pci.COMMON_DEVICE_FEATURE_SELECT, 4, word))
            steps.append((pci.COMMON_DEVICE_FEATURE, 4, None))
        return sum(bits << (32 * word) for word, bits in enumerate(exchange(self._common, steps)))

    def set_driver_features(self, features: int) -> None:
        """Write the accepted features, 128 bits."""
        self._features = features
        self._num_queues = None
        steps: list[Step] = []
        for word in range(4):
            steps.append((pci.COMMON_DRIVER_FEATURE_SELECT, 4, word))
            steps.append((pci.COMMON_DRIVER_FEATURE, 4, features >> (32 * word) & 0xFFFFFFFF))
        exchange(self._common, steps)

    def _status_place(self) -> tuple[int, int, int]:
        bar, offset = self._common_place
        return bar, offset + pci.COMMON_DEVICE_STATUS, 1

    def status(self) -> int:
        """Return the device status (2.1)."""
        return self._common.read8(pci.COMMON_DEVICE_STATUS)

    def set_status(self, value: int) -> None:
        """Write the device status (2.1); 0 resets the device."""
        self._common.write8(pci.COMMON_DEVICE_STATUS, value)

    # --- device configuration (4.1.4.6, 4.1.3.1) ------------------------------------------------------------

    def generation(self) -> int | None:
        """Return config_generation (2.5.1)."""
        return self._common.read8(pci.COMMON_CONFIG_GENERATION)

    def _config_place(self, offset: int, width: int) -> tuple[Registers, int]:
        if self._config is None or offset + width > self._config.length:
            raise self._beyond_config(offset + width, 0 if self._config is None else self._config.length)
        return self._config, offset

    # --- queues (4.1.4.3, 4.1.5.1.3) ------------------------------------------------------------------------

    def _select(self, index: int) -> None:
        self._common.write16(pci.COMMON_QUEUE_SELECT, index)

    def _read_of(self, index: int, offset: int) -> int:
        """Select a queue, and read a field of 16 bits."""
        return exchange(self._common, [(pci.COMMON_QUEUE_SELECT, 2, index), (offset, 2, None)])[0]

    def _write_and_read(self, offset: int, value: int) -> int:
        """Write a field of 16 bits; returns what it reads back."""
        return exchange(self._common, [(offset, 2, value), (offset, 2, None)])[0]

    def admin_queues(self) -> range:
        """Return the indices of the administration virtqueues; empty unless ADMIN_VQ was negotiated."""
        if not self._has(f.ADMIN_VQ):
            return range(0)
        fields: list[Step] = [(pci.COMMON_ADMIN_QUEUE_INDEX, 2, None), (pci.COMMON_ADMIN_QUEUE_NUM, 2, None)]
        first, count = exchange(self._common, fields)
        return range(first, first + count)

    def queue_layout(self, index: int) -> QueueLayout:
        """Return what is known of a queue before memory is allocated for it."""
        # 4.1.4.3: num_queues leaves the administration queues out.
        if index >= self.num_queues and index not in self.admin_queues():
            return QueueLayout(size_max=0)
        return QueueLayout(size_max=self._read_of(index, pci.COMMON_QUEUE_SIZE))

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
        """Set up and enable a queue; see ``Transport``."""
        common = self._common
        if self._read_of(index, pci.COMMON_QUEUE_ENABLE):
            raise self._queue_fault(
                f"queue {index} is already enabled",
                seen=1,
                expected="queue_enable 0 after a reset (4.1.4.3.1)",
                about="queue_enable before",
            )
        self._expect(index, "queue_size", self._write_and_read(pci.COMMON_QUEUE_SIZE, size), size)
        areas = (
            ("queue_desc", pci.COMMON_QUEUE_DESC, desc),
            ("queue_driver", pci.COMMON_QUEUE_DRIVER, driver),
            ("queue_device", pci.COMMON_QUEUE_DEVICE, device),
        )
        steps: list[Step] = []
        for _, low, address in areas:
            # 4.1.3.1: a 64-bit field is two 4-byte accesses.
            steps += [
                (low, 4, address & 0xFFFFFFFF),
                (low + 4, 4, address >> 32),
                (low, 4, None),
                (low + 4, 4, None),
            ]
        back = iter(exchange(common, steps))
        for name, _, address in areas:
            self._expect(index, name, next(back) | next(back) << 32, address)
        if index in self._queue_vectors:
            self._renew_vector(index)
        doorbell = self._make_doorbell(index)
        # Last of all (4.1.4.3.2).
        self._expect(index, "queue_enable", self._write_and_read(pci.COMMON_QUEUE_ENABLE, 1), 1)
        return doorbell

    def _make_doorbell(self, index: int) -> Doorbell:
        # 4.1.4.4: cap.offset + queue_notify_off * notify_off_multiplier; a multiplier of 0 is one shared place.
        notify_off = self._common.read16(pci.COMMON_QUEUE_NOTIFY_OFF)
        multiplier = self._notify.notify_off_multiplier or 0
        within = notify_off * multiplier
        data = self._has(f.NOTIFICATION_DATA)
        width = pci.NOTIFY_DATA_WIDTH if data else pci.NOTIFY_WIDTH
        if within + width > self._notify.usable or (self._notify.offset + within) % width:
            raise QueueError(
                f"the doorbell of queue {index} is outside the notification structure",
                seen=f"offset {within:#x} ({notify_off} x {multiplier})",
                expected=f"a multiple of {width}, at most {self._notify.usable - width:#x} (4.1.4.4.1)",
                about="queue_notify_off",
            )
        ident = index
        if self._has(f.NOTIF_CONFIG_DATA):
            ident = self._common.read16(pci.COMMON_QUEUE_NOTIF_CONFIG_DATA)
        offset = self._notify.offset + within
        return self._doorbell_at(index, self._notify.bar, offset, ident=ident, data=data)

    def _renew_vector(self, index: int) -> None:
        """Set the vector again after a queue reset, like everything else (2.6.1.2.2)."""
        vector = self._queue_vectors[index]
        if self._common.read16(pci.COMMON_QUEUE_MSIX_VECTOR) != vector:
            self._expect(index, "queue_msix_vector", self._take_queue_vector(index, vector), vector)

    # --- the reset of one queue (2.6.1, 4.1.4.3.2) ------------------------------------------------------------

    def start_queue_reset(self, index: int) -> None:
        """Start the reset of one queue (2.6.1)."""
        self._select(index)
        self._common.write16(pci.COMMON_QUEUE_RESET, 1)

    def queue_is_reset(self, index: int) -> bool:
        """Whether that reset is complete; then the queue's doorbell is released.

        Raises:
            QueueError: The device reports the reset as complete, and the queue is still enabled.
            DeviceGone: The device does not respond any more.
        """
        reset = self._read_of(index, pci.COMMON_QUEUE_RESET)
        self._refuse_all_ones(reset, 16, "queue_reset")
        if reset:
            return False
        self._expect(index, "queue_enable", self._common.read16(pci.COMMON_QUEUE_ENABLE), 0)
        doorbell = self._doorbells.pop(index, None)
        if doorbell is not None:
            doorbell.close()
        return True

    # --- for diagnostics ------------------------------------------------------------------------------------

    def raw_registers(self, structure: str) -> Registers:
        """Return a structure's registers for accesses that no driver would make; for diagnostics and tests.

        The caller closes them.

        Args:
            structure: ``common``, ``notify``, ``isr`` or ``device``.

        Raises:
            ConfigError: The device does not have it.
        """
        for cap in self.capabilities:
            if cap.type == structure and cap.verdict == "ok" and cap.usable:
                return self._function.registers(cap.bar, cap.offset, min(cap.usable, 4096))
        raise ConfigError(
            f"{self._function.address} has no {structure} structure",
            seen=[cap.type for cap in self.capabilities],
            expected="common, notify, isr or device",
        )

    # --- shared memory (2.10, 4.1.4.7) -----------------------------------------------------------------------

    def shared_memory(self) -> Sequence[SharedRegion]:
        """Return the shared memory regions of this device, by ascending id."""
        found = [
            SharedRegion(cap.id, cap.usable)
            for cap in self.capabilities
            if cap.type == pci_caps.SHARED_MEMORY and cap.verdict == "ok"
        ]
        return sorted(found, key=lambda region: region.shmid)

    def shared_registers(self, shmid: int, offset: int, length: int) -> Registers:
        """Return a piece of a shared memory region; see ``SharesMemory``.

        Raises:
            ConfigError: There is no such region, or the piece is not all in it.
        """
        for cap in self.capabilities:
            if cap.type == pci_caps.SHARED_MEMORY and cap.verdict == "ok" and cap.id == shmid:
                if offset >= 0 and 0 < length <= cap.usable - offset:
                    return self._function.registers(cap.bar, cap.offset + offset, length)
                raise ConfigError(
                    f"shared memory region {shmid} of {self._function.address} is shorter",
                    seen=f"{length} bytes at {offset:#x}",
                    expected=f"within {cap.usable:#x} bytes (2.10)",
                )
        raise ConfigError(
            f"{self._function.address} has no shared memory region {shmid}",
            seen=[region.shmid for region in self.shared_memory()],
            expected=f"region {shmid} (4.1.4.7)",
        )

    # --- interrupts (4.1.5.1.2, 4.1.4.5) --------------------------------------------------------------------

    def _take_config_vector(self, vector: int) -> int:
        return self._write_and_read(pci.COMMON_CONFIG_MSIX_VECTOR, vector)

    def _take_queue_vector(self, index: int, vector: int) -> int:
        field = pci.COMMON_QUEUE_MSIX_VECTOR
        steps: list[Step] = [(pci.COMMON_QUEUE_SELECT, 2, index), (field, 2, vector), (field, 2, None)]
        return exchange(self._common, steps)[0]

    def _read_isr(self) -> int:
        return self._isr.read8(0)
