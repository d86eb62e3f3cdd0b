"""A virtio-pci device made of Python: a ``PciFunction`` that records, checks, and lies on demand (4.1)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from uvirtio.errors import CapabilityError, OperationFailed
from uvirtio.interfaces.values import BarInfo
from uvirtio.memory.eventfd import all_or_none
from uvirtio.scripted.core import ScriptedCore
from uvirtio.scripted.model import Model
from uvirtio.scripted.parts import ScriptedEvent, Window
from uvirtio.spec import features as f
from uvirtio.spec import pci, ring

BAR = 4
COMMON_AT, ISR_AT, DEVICE_AT, NOTIFY_AT = 0x0000, 0x1000, 0x2000, 0x3000
BAR_SIZE = 0x4000
MSIX_BAR, PBA_AT = 1, 0x8000  # room for 2048 vectors of 16 bytes before the pending bits
MSIX_BAR_SIZE = 0x10000
CAPABILITIES_AT = 0x40

_FEATURE_OF = {
    "queue_notif_config_data": f.NOTIF_CONFIG_DATA,
    "queue_reset": f.RING_RESET,
    "admin_queue_index": f.ADMIN_VQ,
    "admin_queue_num": f.ADMIN_VQ,
}


class ScriptedDevice(ScriptedCore):
    """The PCI function and the virtio device in it."""

    bus = "pci"

    def __init__(
        self,
        model: Model,
        *,
        multiplier: int = 4,
        notify_offs: Mapping[int, int] | None = None,
        common_length: int = pci.COMMON_CFG_MIN_SIZE,
        pci_device: int | None = None,
        capabilities: Sequence[bytes] | None = None,
        **how: object,
    ) -> None:
        """Make the device.

        Args:
            model: What makes it an rng, a balloon, ...
            multiplier: notify_off_multiplier (4.1.4.4).
            notify_offs: queue_notify_off by queue; the queue's index where there is none.
            common_length: The length of the common configuration, in bytes.
            pci_device: The PCI device id; None: the modern one of the model's type.
            capabilities: Raw capabilities, each from its id byte on (the next pointers are filled in), instead of
                the usual ones.
            **how: What ``ScriptedCore`` takes, and fields of ``Faults``.
        """
        super().__init__(model, **how)  # type: ignore[arg-type]
        self.multiplier = multiplier
        self.notify_offs = notify_offs or {}
        self._common_length = common_length
        self._common_fields = {
            (field.offset, field.width): field.name for field in pci.COMMON_CFG if field.width < 8
        }
        for wide in pci.COMMON_CFG:
            if wide.width == 8:
                self._common_fields[wide.offset, 4] = wide.name + ":lo"
                self._common_fields[wide.offset + 4, 4] = wide.name + ":hi"
        if pci_device is None:
            pci_device = pci.DEVICE_MODERN + model.device_id
        if capabilities is None:
            capabilities = self.usual_capabilities()
        self.config_space = _config_space(pci_device, capabilities)
        if self.msix_vectors:
            struct.pack_into("<I", self.config_space, pci.CFG_BAR0 + 4 * MSIX_BAR, 0xFE10_0000)
        if self.faults.memory_off:
            self.config_space[pci.CFG_COMMAND] &= ~pci.Command.MEMORY & 0xFF
        self.config = self._window("config", 256, self._config_read, self._config_write)

    def usual_capabilities(self) -> list[bytes]:
        """MSI-X (if there are vectors), common, isr, device (if there is a configuration), notify, pci_cfg."""
        caps = []
        if self.faults.power_state:
            caps.append(struct.pack("<BBHHH", pci.CapId.PM, 0, 3, self.faults.power_state, 0))
        if self.msix_vectors:
            caps.append(
                struct.pack("<BBHII", pci.CapId.MSIX, 0, self.msix_vectors - 1, MSIX_BAR, PBA_AT | MSIX_BAR)
            )
        caps.append(virtio_capability(pci.CfgType.COMMON, BAR, COMMON_AT, self._common_length))
        caps.append(virtio_capability(pci.CfgType.ISR, BAR, ISR_AT, 1))
        if self.model.config:
            caps.append(virtio_capability(pci.CfgType.DEVICE, BAR, DEVICE_AT, len(self.model.config)))
        notify = struct.pack("<I", self.multiplier)
        caps.append(virtio_capability(pci.CfgType.NOTIFY, BAR, NOTIFY_AT, 0x1000, notify))
        caps.append(virtio_capability(pci.CfgType.PCI_CFG, 0, 0, 0, bytes(4)))
        return caps

    # --- PciFunction ----------------------------------------------------------------------------------------

    def bar(self, index: int) -> BarInfo | None:
        """What the BAR ``index`` is; None where there is none."""
        if index == MSIX_BAR and self.msix_vectors:
            return BarInfo(MSIX_BAR, MSIX_BAR_SIZE, False)
        return BarInfo(BAR, BAR_SIZE, False) if index == BAR else None

    def registers(self, bar: int, offset: int, length: int) -> Window:
        """A window of ``length`` bytes at ``offset`` of BAR ``bar``."""
        self._call("registers", offset)
        if bar != BAR or offset < 0 or length <= 0 or offset + length > BAR_SIZE:
            raise CapabilityError(f"{length} bytes at {offset:#x} of BAR {bar}", seen=bar, expected="inside a BAR")
        region, start = next(
            (name, at)
            for name, at in (("notify", NOTIFY_AT), ("device", DEVICE_AT), ("isr", ISR_AT), ("common", COMMON_AT))
            if offset >= at
        )
        bias = offset - start
        read: Callable[[int, int], int] = getattr(self, f"_{region}_read")
        write: Callable[[int, int, int], None] = getattr(self, f"_{region}_write")

        def shifted_read(at: int, width: int) -> int:
            return (1 << 8 * width) - 1 if self._asleep() else read(at + bias, width)

        def shifted_write(at: int, width: int, value: int) -> None:
            if not self._asleep():
                write(at + bias, width, value)

        return self._window(region, length, shifted_read, shifted_write)

    def _asleep(self) -> bool:
        return self.faults.memory_off or self.faults.power_state != 0

    def doorbell(self, bar: int, offset: int, value: int) -> None:
        """A driver may have this doorbell rung for it; this function has no such way and only records it."""
        self._call("doorbell", offset)

    def enable_msix(self, count: int) -> list[ScriptedEvent]:
        """Turn MSI-X on with ``count`` vectors; their events."""
        self._call("enable_msix", count)
        if self.faults.msix_fails:
            raise OperationFailed("MSI-X cannot be turned on", seen="scripted")
        self.check("PCI-MSX-02", 0 < count <= self.msix_vectors, f"{count} vectors of {self.msix_vectors}")
        self._interrupts_off()
        self.msix = all_or_none(ScriptedEvent, count)
        self._events += self.msix
        return list(self.msix)

    def disable_interrupts(self) -> None:
        """Turn MSI-X and the interrupt line off."""
        self._call("disable_interrupts")
        self._interrupts_off()

    def bus_master(self, on: bool) -> None:
        """Turn bus mastering on or off."""
        self._call("bus_master", int(on))
        self.master = on
        command = self.config_space[pci.CFG_COMMAND] & ~pci.Command.MASTER
        self.config_space[pci.CFG_COMMAND] = command | pci.Command.MASTER * on

    def close(self) -> None:
        """Close the function. Idempotent."""
        super().close()
        self.config.close()

    # --- configuration space --------------------------------------------------------------------------------

    def _config_read(self, offset: int, width: int) -> int:
        at = self._pci_cfg_at()
        if at is not None and offset in range(at + pci.PCI_CFG_CAP_DATA, at + pci.PCI_CFG_CAP_SIZE):
            return self._through_window(at, width, None)
        value = int.from_bytes(self.config_space[offset : offset + width], "little")
        if offset == pci.CFG_STATUS and self.isr and not self.msix:  # 4.1.4.5.1
            value |= pci.STATUS_INTERRUPT
        return value

    def _config_write(self, offset: int, width: int, value: int) -> None:
        at = self._pci_cfg_at()
        if at is None or not at + pci.CAP_BAR <= offset <= at + pci.PCI_CFG_CAP_DATA + 3:
            self.check("PCI-CAP-07", False, f"configuration space was written at {offset:#x}")
            return
        self.config_space[offset : offset + width] = value.to_bytes(width, "little")
        if offset >= at + pci.PCI_CFG_CAP_DATA:
            self._through_window(at, width, value)

    def _pci_cfg_at(self) -> int | None:
        at = self.config_space[pci.CFG_CAPABILITIES_POINTER]
        while at:
            if self.config_space[at] == pci.CapId.VENDOR and self.config_space[at + 3] == pci.CfgType.PCI_CFG:
                return at
            at = self.config_space[at + pci.CAP_NEXT]
        return None

    def _through_window(self, at: int, width: int, value: int | None) -> int:
        """pci_cfg_data was read or written (4.1.4.9)."""
        bar = self.config_space[at + pci.CAP_BAR]
        offset, length = struct.unpack_from("<II", self.config_space, at + pci.CAP_OFFSET)
        self.check(
            "PCI-CFA-03", length in (1, 2, 4) and length == width, f"a window of {length}, {width} accessed"
        )
        self.check("PCI-CFA-01", not length or not offset % length, f"a window of {length} bytes at {offset:#x}")
        inside = bar == BAR and any(
            start <= offset and offset + length <= start + size for start, size in self._structures()
        )
        self.check("PCI-CFA-02", inside, f"a window at {offset:#x} of BAR {bar}")
        if not inside:
            return 0
        window = self.registers(bar, offset, length)
        if value is None:
            return int(getattr(window, f"read{8 * width}")(0))
        getattr(window, f"write{8 * width}")(0, value)
        return 0

    def _structures(self) -> list[tuple[int, int]]:
        sizes = [(COMMON_AT, self._common_length), (ISR_AT, 1), (NOTIFY_AT, 0x1000)]
        return [*sizes, (DEVICE_AT, len(self.model.config))]

    # --- common configuration (4.1.4.3) ---------------------------------------------------------------------

    def _common_name(self, offset: int, width: int) -> str:
        name = self._common_fields.get((offset, width))
        self.check("PCI-ACC", name is not None, f"a {width}-byte access at {offset:#x} of common")
        known = offset + width <= self._common_length
        self.check("PCI-COM-10", known, f"an access at {offset:#x} of {self._common_length:#x}")
        return name or "none"

    def _common_read(self, offset: int, width: int) -> int:
        name = self._common_name(offset, width)
        queue = self._queue()
        if name.startswith("queue_d"):
            wide, half = name.split(":")
            return (queue.addresses[wide] >> (32 if half == "hi" else 0)) & 0xFFFFFFFF
        if name == "device_feature":
            return self._read_feature()
        if name == "device_status":
            return self._read_status()
        if name == "config_generation":
            if self.faults.generation_bumps:
                self.faults.generation_bumps -= 1 if self.faults.generation_bumps > 0 else 0
                self._generation += 1
            self._generation_read = self._generation & 0xFF
            return self._generation_read
        if name == "num_queues":
            count = self.model.shown_queues(len(self.queues)) if self.admin is None else self.admin.first
            return count if self.faults.num_queues is None else self.faults.num_queues
        if name in _FEATURE_OF:
            taken = f.has(self.driver_features, _FEATURE_OF[name])
            self.check("PCI-COM-10", taken, f"{name} was read without its feature")
        if name == "admin_queue_index" and self.admin is not None:
            return self.admin.first
        if name == "admin_queue_num" and self.admin is not None:
            return len(self.admin.queue_sizes)
        if name == "queue_reset":
            if queue.reset_left:
                queue.reset_left -= 1 if queue.reset_left > 0 else 0
                return 1
            return 0
        if name == "queue_enable":
            return int((queue.enable or self.faults.enabled_before) and not self.faults.never_enables)
        word = self._feature_select[1]
        values = {
            "device_feature_select": self._feature_select[0],
            "driver_feature_select": word,
            "driver_feature": (self.driver_features >> (32 * word)) & 0xFFFFFFFF if word < 4 else 0,
            "config_msix_vector": self.config_vector,
            "queue_select": self._queue_select,
            "queue_size": queue.size,
            "queue_msix_vector": queue.vector,
            "queue_notify_off": self.notify_offs.get(self._queue_select, self._queue_select),
            "queue_notif_config_data": self._ident(self._queue_select),
        }
        return values.get(name, 0)

    def _common_write(self, offset: int, width: int, value: int) -> None:
        name = self._common_name(offset, width)
        queue = self._queue()
        self.check("PCI-COM-01", name not in pci.COMMON_CFG_READ_ONLY, f"{name} was written")
        if name.startswith("queue_d"):
            self.check("PCI-COM-04", not queue.enable, f"{name} was written after queue_enable")
            wide, half = name.split(":")
            shift = 32 if half == "hi" else 0
            kept = queue.addresses[wide] & ~(0xFFFFFFFF << shift)
            queue.addresses[wide] = (kept | value << shift) & self.faults.address_mask
        elif name == "device_feature_select":
            self._feature_select[0] = value
        elif name == "driver_feature_select":
            self._feature_select[1] = value
        elif name == "driver_feature":
            self._write_feature(value)
        elif name == "device_status":
            self._write_status(value)
        elif name == "config_msix_vector":
            self.config_vector = self._vector(value)
        elif name == "queue_select":
            self._queue_select = value
        elif name == "queue_size":
            if f.has(self.driver_features, f.RING_PACKED):
                self.check("PCI-COM-02", 0 < value <= ring.MAX_SIZE, f"queue_size {value}")
            else:
                self.check("PCI-COM-03", ring.is_power_of_two(value), f"queue_size {value}")
            self.check("PCI-COM-04", not queue.enable, "queue_size was written after queue_enable")
            packed = f.has(self.driver_features, f.RING_PACKED)
            fits = 0 < value <= queue.size_max and (packed or ring.is_power_of_two(value))
            if fits and not self.faults.queue_size_stuck:
                queue.size = value
        elif name == "queue_msix_vector":
            self.check("PCI-COM-04", not queue.enable, "queue_msix_vector was written after queue_enable")
            queue.vector = self._vector(value)
        elif name == "queue_enable":
            self._enable_queue(queue, value)
        elif name == "queue_reset":
            taken = f.has(self.driver_features, f.RING_RESET)
            self.check("PCI-COM-10", taken and value == 1, f"queue_reset was written {value}")
            queue.reset_left = self.faults.queue_reset_reads
            queue.enable = 0
            queue.ring = None
            # 2.6.1: all that was written for the queue is gone.
            queue.size, queue.vector = queue.size_max, pci.NO_VECTOR
            queue.addresses = dict.fromkeys(queue.addresses, 0)
            self.model.queue_reset(self._queue_select)

    # --- isr, doorbells -------------------------------------------------------------------------------------

    def _isr_read(self, offset: int, width: int) -> int:
        self.check("PCI-ACC-01", width == 1, f"the ISR was read with {width} bytes")
        self.check("PCI-ISR-01", not self.msix, "the ISR was read with MSI-X on")
        value, self.isr = self.isr, 0
        return value

    def _isr_write(self, offset: int, width: int, value: int) -> None:
        self.check("PCI-ISR-02", False, "the ISR was written")

    def _notify_read(self, offset: int, width: int) -> int:
        self.check("PCI-NTF", False, "a doorbell was read")
        return 0

    def _notify_write(self, offset: int, width: int, value: int) -> None:
        value, upper = self._kick_value(width, value)
        here = [
            index
            for index in range(len(self.queues))
            if self.notify_offs.get(index, index) * self.multiplier == offset
        ]
        named = [index for index in here if self._ident(index) == value]
        if not named:
            rule = "PCI-NTF-05" if f.has(self.driver_features, f.NOTIF_CONFIG_DATA) else "PCI-NTF-03"
            self.check(rule, False, f"the value {value:#x} at the doorbell {offset:#x} of queues {here}")
            return
        self._kick(named[0], upper)


def virtio_capability(cfg_type: int, bar: int, offset: int, length: int, extra: bytes = b"") -> bytes:
    """One ``virtio_pci_cap`` (4.1.4), next pointer 0."""
    size = pci.CAP_SIZE + len(extra)
    return struct.pack("<BBBBBBHII", pci.CapId.VENDOR, 0, size, cfg_type, bar, 0, 0, offset, length) + extra


def _config_space(pci_device: int, capabilities: Sequence[bytes]) -> bytearray:
    """256 bytes of configuration space with these capabilities from 0x40 on, linked in order."""
    space = bytearray(pci.CONFIG_SIZE)
    struct.pack_into("<HHHH", space, pci.CFG_VENDOR_ID, pci.VIRTIO_VENDOR, pci_device, 0x2, pci.STATUS_CAP_LIST)
    space[pci.CFG_REVISION_ID] = 1
    struct.pack_into("<I", space, pci.CFG_BAR0 + 4 * BAR, 0xFE00_0000 | pci.BAR_TYPE_64)
    struct.pack_into("<HH", space, pci.CFG_SUBSYSTEM_VENDOR_ID, pci.VIRTIO_VENDOR, 0x1100)
    space[pci.CFG_INTERRUPT_PIN] = 1
    place, link = CAPABILITIES_AT, pci.CFG_CAPABILITIES_POINTER
    for capability in capabilities:
        space[link] = place
        space[place : place + len(capability)] = capability
        link = place + pci.CAP_NEXT
        space[link] = 0
        place = (place + len(capability) + 3) & ~3
    assert place <= len(space)
    return space
