"""Virtio over PCI, legacy interface (4.1.4.10): one header of registers at the start of BAR 0.

The standard has it in an I/O BAR. Some clouds' devices have it in a memory BAR; Linux and DPDK map whatever BAR 0
is, and so does this.

A *legacy* device has nothing else; a *transitional* one has it beside the modern interface. The differences
for a driver: 32 feature bits, no FEATURES_OK, no generation, queues of a fixed size whose one region is given
by its page frame, and a device configuration that moves by four bytes when MSI-X is enabled, because the vector
fields are before it then. Bytes of rings and configuration are in the guest's order (2.5.3, 2.7.3); this package
runs on little-endian machines alone, where both interfaces have the same order. The header is little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.errors import CapabilityError, Misuse, NotSupported
from uvirtio.interfaces.runtime import QueueLayout
from uvirtio.spec import features as f
from uvirtio.spec import ids, pci, ring
from uvirtio.transports import pci_caps
from uvirtio.transports.pci_base import PciBase, config_reader, device_ids, not_virtio
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Doorbell, Registers

QUEUES_ASKED = 16
"""Number of queues that are probed to find how many there are: no register has it."""

_PFN_LIMIT = 1 << 32
_MOST = 4096


def _kind(is_io: bool) -> str:
    return "I/O ports" if is_io else "memory"


class PciLegacy(PciBase):
    """A ``Transport`` over the legacy PCI interface."""

    kind = "pci-legacy"
    legacy = True
    features_allowed = f.mask(f.ANY_LAYOUT, f.INDIRECT_DESC, f.EVENT_IDX)

    def _identify(self) -> int:
        function = self._function
        vendor, device = device_ids(function)
        if not ids.is_virtio_pci(vendor, device):
            raise not_virtio(function, vendor, device)
        if not ids.is_transitional_pci(vendor, device):
            raise NotSupported(
                f"{function.address} has no legacy interface",
                seen=f"{vendor:04x}:{device:04x}, the ID of a device with only the modern interface",
                expected="1af4:1000 to 1af4:103f (4.1.2.1)",
                remedy="omit --force-legacy; QEMU gives a device both interfaces with disable-legacy=off",
            )
        # 4.1.2.3: the subsystem ID is the type; it should agree with the device ID where the table has that.
        read = config_reader(function)
        told, listed = read(pci.CFG_SUBSYSTEM_ID, 2), ids.device_id_of_pci(vendor, device)
        found = listed or told
        if not found:
            raise not_virtio(function, vendor, device)
        self._oddities: list[str] = []
        if told != found:
            self._oddities.append(
                f"the subsystem id is {told}, and {device:04x} is {ids.type_name(found)} ({found})"
            )
        revision = read(pci.CFG_REVISION_ID, 1)
        if revision:
            self._oddities.append(f"the PCI revision is {revision}, where a legacy interface has 0 (4.1.2.3)")
        return found

    def _find(self) -> None:
        bar = self._function.bar(pci.LEGACY_BAR)
        if bar is None or not bar.size:
            raise self._unreachable("no BAR 0", is_io=True)
        if not bar.is_io:
            self._check_memory()
            self._oddities.append("BAR 0 is memory, where a legacy interface has I/O ports (4.1.4.10)")
        least = pci.legacy_config_offset(self._function.msix_vectors > 0)
        if bar.size < least:
            raise CapabilityError(
                f"the legacy interface of {self._function.address} is too short",
                seen=f"{bar.size} bytes of {_kind(bar.is_io)}",
                expected=f"at least {least} (4.1.4.10)",
            )
        # 4.1.4.1: no more is mapped than is needed; no driver here reads past the first page.
        self._bar_size, self._bar_is_io = min(bar.size, _MOST), bar.is_io
        self._header = self._open_window(pci.LEGACY_BAR, 0, self._bar_size, "legacy")
        self._num_queues: int | None = None
        if self.status() == 0xFF:
            device_ids(self._function)  # is it gone?
            # Its configuration space responds and its BAR does not: a bridge in between has no window for it.
            raise self._unreachable("all ones", is_io=bar.is_io)

    def _check_memory(self) -> None:
        """Check that a memory BAR 0 is not the modern interface's: a status would be written over it."""
        capabilities = pci_caps.walk_capabilities(config_reader(self._function), self._function.bar)
        lies = [cap.type for cap in capabilities if cap.type in pci_caps.STRUCTURES and cap.bar == pci.LEGACY_BAR]
        if lies:
            raise NotSupported(
                f"{self._function.address} has no legacy interface: its BAR 0 is of the modern one",
                seen=f"{', '.join(lies)} in BAR 0, which is memory",
                expected="a BAR 0 of the legacy interface alone (4.1.4.10)",
                remedy="leave --force-legacy out (force_legacy=False)",
            )

    def _unreachable(self, seen: str, *, is_io: bool) -> NotSupported:
        what = _kind(is_io)
        return NotSupported(
            f"the legacy interface of {self._function.address} cannot be reached: it has no {what}",
            seen=seen,
            expected="a BAR 0 that responds (4.1.4.10)",
            remedy="behind a PCI Express port there are often no I/O ports: put the device on the root bus, "
            "or use its modern interface (QEMU: disable-modern=off)"
            if is_io
            else "see which memory the bridges above it forward: lspci -vv",
        )

    @property
    def other_interface(self) -> str:
        """How to reach the modern interface."""
        return "take its modern interface: leave --force-legacy out, or start it without disable-modern=on (QEMU)"

    @property
    def interface(self) -> str:
        """One line for people: the BAR."""
        kind = "I/O" if self._bar_is_io else "memory"
        return f"legacy interface: {kind} BAR {pci.LEGACY_BAR}, {self._bar_size} bytes"

    @property
    def quirks(self) -> Sequence[str]:
        """Deviations of the PCI function from the standard, a line each."""
        return self._oddities

    # --- features and status --------------------------------------------------------------------------------

    def device_features(self) -> int:
        """Return the offered features, 32 bits."""
        return self._header.read32(pci.LEGACY_DEVICE_FEATURES)

    def set_driver_features(self, features: int) -> None:
        """Write the accepted features, 32 bits."""
        self._num_queues = None
        self._header.write32(pci.LEGACY_DRIVER_FEATURES, features)

    def _status_place(self) -> tuple[int, int, int]:
        return pci.LEGACY_BAR, pci.LEGACY_DEVICE_STATUS, 1

    def status(self) -> int:
        """Return the device status (2.1)."""
        return self._header.read8(pci.LEGACY_DEVICE_STATUS)

    def set_status(self, value: int) -> None:
        """Write the device status (2.1); 0 resets the device."""
        self._header.write8(pci.LEGACY_DEVICE_STATUS, value)

    # --- device configuration ---------------------------------------------------------------------------------

    def generation(self) -> int | None:
        """Return None: without one, fields are read until two readings agree (2.5.4)."""
        return None

    @property
    def config_length(self) -> int:
        """Bytes from the header to the end of the BAR, whose size is a power of two: the device may have fewer."""
        return self._bar_size - self._config_start

    @property
    def _config_start(self) -> int:
        return pci.legacy_config_offset(self._msix_on)

    def _config_place(self, offset: int, width: int) -> tuple[Registers, int]:
        if offset + width > self.config_length:
            raise self._beyond_config(offset + width, self.config_length)
        return self._header, self._config_start + offset

    # --- queues (4.1.5.1.3.1) -----------------------------------------------------------------------------------

    @property
    def num_queues(self) -> int:
        """Number of the last queue that exists among the first 16, plus one."""
        if self._num_queues is None:
            there = [index for index in range(QUEUES_ASKED) if self.queue_layout(index).size_max]
            self._num_queues = max(there, default=-1) + 1
        return self._num_queues

    def _select(self, index: int) -> None:
        self._header.write16(pci.LEGACY_QUEUE_SELECT, index)

    def queue_layout(self, index: int) -> QueueLayout:
        """Return what is known of a queue before memory is allocated for it."""
        self._select(index)
        size = self._header.read16(pci.LEGACY_QUEUE_SIZE)
        return QueueLayout(size_max=size, size_fixed=True, one_region=True)

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
        """Set up and enable a queue; see ``Transport``."""
        header = self._header
        self._select(index)
        self._expect(index, "queue_size", header.read16(pci.LEGACY_QUEUE_SIZE), size, "4.1.5.1.3.1")
        if header.read32(pci.LEGACY_QUEUE_ADDRESS):
            raise self._queue_fault(
                f"queue {index} has an address already",
                seen=f"{header.read32(pci.LEGACY_QUEUE_ADDRESS):#x}",
                expected="queue_address 0 after a reset (4.1.5.1.3.1)",
                about="queue_enable before",
            )
        frame = self._frame(index, size, desc, driver, device)
        doorbell = self._doorbell_at(index, pci.LEGACY_BAR, pci.LEGACY_QUEUE_NOTIFY)
        header.write32(pci.LEGACY_QUEUE_ADDRESS, frame)  # last of all: it is what enables
        self._expect(index, "queue_address", header.read32(pci.LEGACY_QUEUE_ADDRESS), frame, "4.1.5.1.3.1")
        return doorbell

    def _frame(self, index: int, size: int, desc: int, driver: int, device: int) -> int:
        """Return the page frame that stands for all three areas: the device computes them from it (2.7.2)."""
        layout = ring.legacy_layout(size, pci.LEGACY_QUEUE_ALIGN)
        frame = desc >> pci.LEGACY_QUEUE_ADDRESS_SHIFT
        if desc % pci.LEGACY_QUEUE_ALIGN or (driver, device) != (desc + layout.avail, desc + layout.used):
            raise Misuse(f"queue {index} is not in one region: {desc:#x}, {driver:#x}, {device:#x}")
        if not 0 < frame < _PFN_LIMIT:
            raise NotSupported(
                f"the memory of queue {index} is out of the legacy interface's range",
                seen=f"{desc:#x}",
                expected="a page frame of 32 bits, and not 0 (4.1.5.1.3.1)",
                remedy="use the modern interface",
            )
        return frame

    # --- interrupts ---------------------------------------------------------------------------------------------

    def _take_config_vector(self, vector: int) -> int:
        self._header.write16(pci.LEGACY_CONFIG_VECTOR, vector)
        return self._header.read16(pci.LEGACY_CONFIG_VECTOR)

    def _take_queue_vector(self, index: int, vector: int) -> int:
        self._select(index)
        self._header.write16(pci.LEGACY_QUEUE_VECTOR, vector)
        return self._header.read16(pci.LEGACY_QUEUE_VECTOR)

    def _read_isr(self) -> int:
        return self._header.read8(pci.LEGACY_ISR)
