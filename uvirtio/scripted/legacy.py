"""A virtio-pci device with a legacy interface (4.1.4.10), made of Python; see ``scripted``.

    device = ScriptedLegacy(Rng())                      # a legacy device: nothing but I/O BAR 0
    device = ScriptedLegacy(Rng(), transitional=True)   # both interfaces; the modern one is ScriptedDevice's

Faults of ``Faults`` mean here what they mean there, as far as the legacy interface has such a thing:
``enabled_before`` and ``never_enables`` are about queue_address, ``address_mask`` about the page frame.
"""

from __future__ import annotations

import struct

from uvirtio.errors import CapabilityError
from uvirtio.interfaces.values import BarInfo
from uvirtio.scripted.core import QueueState
from uvirtio.scripted.model import Model
from uvirtio.scripted.parts import Window
from uvirtio.scripted.pci import BAR, ScriptedDevice
from uvirtio.spec import features as f
from uvirtio.spec import ids, pci, ring
from uvirtio.spec.status import Status

LEGACY_RING_FEATURES = f.mask(f.ANY_LAYOUT, f.INDIRECT_DESC, f.EVENT_IDX)
QEMU_EXTRAS = f.mask(f.NOTIFY_ON_EMPTY, f.Reserved.UNUSED)
"""What QEMU offers on top, and a driver must not take."""

_HEADER = {
    (pci.LEGACY_DEVICE_FEATURES, 4): "device_features",
    (pci.LEGACY_DRIVER_FEATURES, 4): "driver_features",
    (pci.LEGACY_QUEUE_ADDRESS, 4): "queue_address",
    (pci.LEGACY_QUEUE_SIZE, 2): "queue_size",
    (pci.LEGACY_QUEUE_SELECT, 2): "queue_select",
    (pci.LEGACY_QUEUE_NOTIFY, 2): "queue_notify",
    (pci.LEGACY_DEVICE_STATUS, 1): "status",
    (pci.LEGACY_ISR, 1): "isr",
}
_VECTORS = {
    (pci.LEGACY_CONFIG_VECTOR, 2): "config_vector",
    (pci.LEGACY_QUEUE_VECTOR, 2): "queue_vector",
}
_READ_ONLY = ("device_features", "queue_size", "isr")


class ScriptedLegacy(ScriptedDevice):
    """``legacy_features``: what the legacy interface offers, 32 bits. ``bar_size``, ``bar_is_io``: BAR 0."""

    def __init__(
        self,
        model: Model,
        *,
        transitional: bool = False,
        legacy_features: int | None = None,
        bar_size: int = 64,
        bar_is_io: bool = True,
        pci_device: int | None = None,
        subsystem: int | None = None,
        revision: int = 0,
        **how: object,
    ) -> None:
        if legacy_features is None:
            legacy_features = (LEGACY_RING_FEATURES | QEMU_EXTRAS | model.features) & f.LEGACY_MASK
        self.legacy_offered = legacy_features
        self.legacy_spoken = False
        self.bar_size, self.bar_is_io = bar_size, bar_is_io
        if pci_device is None:
            pci_device = next(number for number, kind in ids.TRANSITIONAL.items() if kind == model.device_id)
        if not transitional:
            how.setdefault("capabilities", [])
        how.setdefault("contiguous_limit", 1 << 21)  # a huge page
        super().__init__(model, pci_device=pci_device, **how)  # type: ignore[arg-type]
        subsystem = model.device_id if subsystem is None else subsystem
        struct.pack_into("<H", self.config_space, pci.CFG_SUBSYSTEM_ID, subsystem)
        self.config_space[pci.CFG_REVISION_ID] = revision

    @property
    def speaks_legacy(self) -> bool:
        """Whether anything was written to the legacy interface."""
        return self.legacy_spoken

    # --- PciFunction ----------------------------------------------------------------------------------------

    def bar(self, index: int) -> BarInfo | None:
        """What the BAR ``index`` is; None where there is none."""
        if index == pci.LEGACY_BAR:
            return BarInfo(index, self.bar_size, self.bar_is_io) if self.bar_size else None
        return super().bar(index)

    def registers(self, bar: int, offset: int, length: int) -> Window:
        """A window of ``length`` bytes at ``offset`` of BAR ``bar``."""
        if bar == BAR:
            return super().registers(bar, offset, length)
        self._call("registers", offset)
        if bar != pci.LEGACY_BAR or offset < 0 or length <= 0 or offset + length > self.bar_size:
            raise CapabilityError(f"{length} bytes at {offset:#x} of BAR {bar}", seen=bar, expected="inside a BAR")

        def read(at: int, width: int) -> int:
            return self._legacy_read(at + offset, width)

        def write(at: int, width: int, value: int) -> None:
            self._legacy_write(at + offset, width, value)

        return self._window("legacy" if not offset else "kick", length, read, write)

    # --- the header -----------------------------------------------------------------------------------------

    def _name(self, offset: int, width: int) -> str | None:
        """The field of the header, or None for the device configuration."""
        fields: dict[tuple[int, int], str] = {**_HEADER, **(_VECTORS if self.msix else {})}
        if offset >= pci.legacy_config_offset(bool(self.msix)):
            return None
        name = fields.get((offset, width))
        self.check("PCI-LEG-07", name is not None, f"a {width}-byte access at {offset:#x} of the header")
        return name or "none"

    def _legacy_read(self, offset: int, width: int) -> int:
        name = self._name(offset, width)
        if name is None:
            return self._device_read(offset - pci.legacy_config_offset(bool(self.msix)), width)
        queue = self._queue()
        if name == "status":
            return self._read_status()
        if name == "isr":
            self.check("PCI-ISR-01", not self.msix, "the ISR was read with MSI-X on")
            value, self.isr = self.isr, 0
            return value
        if name == "queue_address":
            if self.faults.never_enables:
                return 0
            frame = queue.addresses["queue_desc"] >> pci.LEGACY_QUEUE_ADDRESS_SHIFT
            return frame or int(self.faults.enabled_before)
        values = {
            "device_features": self._offer(),
            "driver_features": self.driver_features,
            "queue_size": queue.size,
            "queue_select": self._queue_select,
            "config_vector": self.config_vector,
            "queue_vector": queue.vector,
        }
        return values.get(name, 0)

    def _offer(self) -> int:
        self._feature_reads += 1
        if self.faults.features_later is not None and self._feature_reads > 1:
            return self.faults.features_later
        return self.legacy_offered

    def _legacy_write(self, offset: int, width: int, value: int) -> None:
        name = self._name(offset, width)
        self.legacy_spoken = True
        if name is None:
            self.check("INIT-02", bool(self._status & Status.DRIVER), "configuration was written before DRIVER")
            self._legacy_config_write(offset - pci.legacy_config_offset(bool(self.msix)), width, value)
            return
        self.check("PCI-LEG-05", name not in _READ_ONLY, f"{name} was written")
        if name == "status":
            self._write_status(value)
        elif name == "driver_features":
            self.check("INIT-03", not self._status & Status.DRIVER_OK, "features were written after DRIVER_OK")
            self.driver_features = value
            extra = value & ~self.legacy_offered
            self.check("FEAT-01", not extra, f"features {extra:#x} were never offered")
        elif name == "queue_select":
            self._queue_select = value
        elif name == "queue_address":
            self._place_queue(self._queue(), value)
        elif name == "queue_notify":
            self._legacy_kick(value)
        elif name == "config_vector":
            self.config_vector = self._vector(value)
        elif name == "queue_vector":
            self._queue().vector = self._vector(value)

    def _legacy_config_write(self, offset: int, width: int, value: int) -> None:
        if offset + width > len(self.model.config):
            self.check("CFG-04", False, f"a write at {offset:#x} of {len(self.model.config)} bytes")
            return
        self.model.write_config(offset, width, value)

    def _write_status(self, value: int) -> None:
        if not self.legacy_spoken or value == 0:
            super()._write_status(value)
            return
        # 3.1.2: the same phases without FEATURES_OK.
        self.check("FEAT-L02", not value & Status.FEATURES_OK, "FEATURES_OK on a legacy interface")
        before = self._status
        self.check("STAT-02", value & before == before, f"status went from {before:#x} to {value:#x}")
        self.check("STAT-03", not before & Status.FAILED, f"status {value:#x} was written after FAILED")
        fresh = value & ~before
        if not value & Status.FAILED:
            for bit, needs in ((Status.DRIVER, Status.ACKNOWLEDGE), (Status.DRIVER_OK, Status.DRIVER)):
                self.check("INIT-L01", not fresh & bit or bool(value & needs), f"{bit.name} without {needs.name}")
        self._status = value
        if fresh & Status.DRIVER_OK:
            self._go()

    def _place_queue(self, queue: QueueState, frame: int) -> None:
        self.check("INIT-L01", bool(self._status & Status.DRIVER), "queue_address before DRIVER")
        self.check("PCI-LEG-05", frame != 0 and queue.size != 0, f"frame {frame:#x}, {queue.size} entries")
        if not frame or not queue.size:
            return
        desc = (frame << pci.LEGACY_QUEUE_ADDRESS_SHIFT) & self.faults.address_mask
        layout = ring.legacy_layout(queue.size)
        queue.addresses = {
            "queue_desc": desc,
            "queue_driver": desc + layout.avail,
            "queue_device": desc + layout.used,
        }
        if self.faults.never_enables:
            return
        self._serve(queue)

    def _legacy_kick(self, value: int) -> None:
        self.check("INIT-07", bool(self._status & Status.DRIVER_OK), "a kick before DRIVER_OK")
        there = value < len(self.queues) and self.queues[value].enable == 1
        self.check("PCI-NTF-07", there, f"a kick of queue {value}, which is not enabled")
        if not there:
            return
        if self.faults.needs_reset_at == "kick":
            self.needs_reset()
        self.kicked.append(value)
        if self.auto:
            self.run()
