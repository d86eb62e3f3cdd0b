"""PCI without firmware: configuration access, base addresses, interrupt routing and the MSI-X table.

What a BIOS does before an operating system runs, for the few functions of one machine, over qtest.
"""

from __future__ import annotations

from dataclasses import dataclass

from uvirtio.backends.pci_function import bar_of
from uvirtio.backends.qemu.models import PciBus
from uvirtio.backends.qemu.qtest import MemoryRegisters, PortRegisters, Qtest
from uvirtio.errors import CapabilityError, Misuse, OperationFailed
from uvirtio.interfaces.memory import Registers
from uvirtio.memory.access import WidthRegisters
from uvirtio.spec import pci as spec

_CONFIG_ADDRESS = 0xCF8
_CONFIG_DATA = 0xCFC
_CONFIG_ENABLE = 1 << 31
_GRAIN = 4096  # what PCI recommends for memory BARs (PCI 3.0, 6.2.5.1)


class Windows:
    """Address space for BARs: memory below and above 4 GiB, and I/O ports. Nothing is ever given back."""

    def __init__(self, bus: PciBus) -> None:
        windows = {"memory": bus.memory, "high": bus.high, "ports": bus.ports}
        self._next = {kind: start for kind, (start, _) in windows.items()}
        self._end = {kind: end for kind, (_, end) in windows.items()}

    def place(self, size: int, *, is_io: bool, is_64: bool) -> int:
        """An address for a BAR, aligned to its size. Raises OperationFailed when there is no room."""
        kinds = ["ports"] if is_io else ["memory", "high"] if is_64 else ["memory"]
        for kind in kinds:
            # Multiples of 4 KiB for memory, so that no two functions share one.
            grain = size if is_io else max(size, _GRAIN)
            start = -(-self._next[kind] // grain) * grain
            if start + size <= self._end[kind]:
                self._next[kind] = start + grain
                return start
        raise OperationFailed(
            "no address space is left for a BAR",
            seen=f"a BAR of {size} bytes",
            expected=f"room in {' or '.join(kinds)}",
            remedy="put fewer devices into one machine",
        )


class ConfigPorts(WidthRegisters):
    """Configuration space through the ports 0xCF8 and 0xCFC: an index and a data register."""

    def __init__(self, qtest: Qtest, devfn: int) -> None:
        super().__init__(0, spec.CONFIG_SIZE)
        self._qtest = qtest
        self._select = _CONFIG_ENABLE | devfn << 8

    def _read(self, place: int, width: int) -> int:
        index, port = self._select | place & 0xFC, _CONFIG_DATA + (place & 3)
        return self._qtest.indexed_in(_CONFIG_ADDRESS, index, width, port)

    def _write(self, place: int, width: int, value: int) -> None:
        index, port = self._select | place & 0xFC, _CONFIG_DATA + (place & 3)
        self._qtest.indexed_out(_CONFIG_ADDRESS, index, width, port, value)


class HostBridge:
    """The root bus of a machine; a function is named by devfn, slot * 8 + function."""

    def __init__(self, qtest: Qtest, bus: PciBus) -> None:
        self.qtest = qtest
        self.bus = bus
        self.windows = Windows(bus)
        for devfn, offset, value in bus.setup:
            ConfigPorts(qtest, devfn).write32(offset, value)

    def config(self, devfn: int) -> Registers:
        """The configuration space of one function: 4096 bytes if it is PCI Express, else 256."""
        if self.bus.ecam is None:
            return ConfigPorts(self.qtest, devfn)
        config = MemoryRegisters(self.qtest, self.bus.ecam + (devfn << 12), spec.EXPRESS_CONFIG_SIZE)
        if find_capability(config, spec.CapId.EXPRESS) is None:
            config.length = spec.CONFIG_SIZE
        return config

    def line(self, devfn: int, pin: int) -> int | None:
        """The input of the interrupt controller that a pin (1 is INTA) leads to; None where that is not known."""
        slot = devfn >> 3
        if not 1 <= pin <= 4 or slot > self.bus.last_slot:
            return None
        return self.bus.lines[(slot + pin + self.bus.shift) % 4]

    def ports(self, port: int, length: int) -> Registers:
        """A window of I/O ports."""
        if self.bus.ports_at is None:
            return PortRegisters(self.qtest, port, length)
        return MemoryRegisters(self.qtest, self.bus.ports_at + port, length)


def find_capability(config: Registers, wanted: int) -> int | None:
    """The offset of the first standard capability with this id; the walk is bounded."""
    if not config.read16(spec.CFG_STATUS) & spec.STATUS_CAP_LIST:
        return None
    place = config.read8(spec.CFG_CAPABILITIES_POINTER) & spec.CAP_NEXT_MASK
    for _ in range(spec.MAX_CAPABILITIES):
        if place < spec.CAP_FIRST:
            return None
        header = config.read16(place)
        if header & 0xFF == wanted:
            return place
        place = header >> 8 & spec.CAP_NEXT_MASK
    return None


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register with the address it was given."""

    index: int
    size: int
    is_io: bool
    address: int


class PciAccess:
    """One function as firmware sees it."""

    def __init__(self, bridge: HostBridge, devfn: int) -> None:
        self.qtest = bridge.qtest
        self.devfn = devfn
        self.config = bridge.config(devfn)
        self.bars: dict[int, Bar] = {}
        self.pin = self.config.read8(spec.CFG_INTERRUPT_PIN)
        self.line = bridge.line(devfn, self.pin)
        self._bridge = bridge
        self._msix = find_capability(self.config, spec.CapId.MSIX)
        self.msix_size = 0
        self._msix_table = (0, 0)
        if self._msix is not None:
            control = self.config.read16(self._msix + spec.MSIX_CONTROL)
            self.msix_size = (control & spec.MSIX_CONTROL_SIZE_MASK) + 1
            table = self.config.read32(self._msix + spec.MSIX_TABLE)
            self._msix_table = (table & spec.MSIX_BIR_MASK, table & spec.MSIX_OFFSET_MASK)

    def assign_bars(self) -> None:
        """Size every BAR and give it an address, as firmware does (PCI 3.0, 6.2.5.1); decoding is off."""
        config = self.config
        index = 0
        while index < spec.BARS:
            place = spec.CFG_BAR0 + 4 * index
            config.write32(place, 0xFFFFFFFF)
            low = config.read32(place)
            if low & spec.BAR_IO:
                self._assign(index, (~low & spec.BAR_IO_MASK & 0xFFFF) | 3, is_io=True, is_64=False)
                index += 1
                continue
            is_64 = low & spec.BAR_TYPE_MASK == spec.BAR_TYPE_64
            if is_64 and index < spec.MAX_BAR:
                config.write32(place + 4, 0xFFFFFFFF)
                mask = low & spec.BAR_MEMORY_MASK | config.read32(place + 4) << 32
                self._assign(index, ~mask & (1 << 64) - 1, is_io=False, is_64=True)
                index += 2
            else:
                if low:
                    self._assign(index, ~(low & spec.BAR_MEMORY_MASK) & 0xFFFFFFFF, is_io=False, is_64=False)
                index += 1

    def _assign(self, index: int, last: int, *, is_io: bool, is_64: bool) -> None:
        """Place one BAR of ``last + 1`` bytes."""
        size = last + 1
        address = self._bridge.windows.place(size, is_io=is_io, is_64=is_64)
        place = spec.CFG_BAR0 + 4 * index
        self.config.write32(place, address & 0xFFFFFFFF)
        if is_64:
            self.config.write32(place + 4, address >> 32)
        self.bars[index] = Bar(index, size, is_io, address)

    def enable(self, *, bus_master: bool = False, intx: bool = False) -> None:
        """Decode memory and I/O; let the function be bus master and raise its pin only if asked to."""
        command = spec.Command.IO | spec.Command.MEMORY
        if bus_master:
            command |= spec.Command.MASTER
        if not intx:
            command |= spec.Command.INTX_DISABLE
        self.config.write16(spec.CFG_COMMAND, command)

    def registers(self, index: int, offset: int, length: int) -> Registers:
        """A window of a BAR. Raises CapabilityError if the BAR is absent or too small."""
        bar = bar_of(self.bars, index, offset, length, address="the function")
        if bar.is_io:
            return self._bridge.ports(bar.address + offset, length)
        return MemoryRegisters(self.qtest, bar.address + offset, length)

    # --- MSI-X (PCI 3.0, 6.8.2) ---

    def msix_enable(self, on: bool) -> None:
        """Turn MSI-X on (and the pin off with it), or off."""
        if self._msix is not None:
            self.config.write16(self._msix + spec.MSIX_CONTROL, spec.MSIX_CONTROL_ENABLE if on else 0)

    def _entry(self, vector: int) -> int:
        if not 0 <= vector < self.msix_size:
            raise Misuse(f"vector {vector} of {self.msix_size}")
        index, offset = self._msix_table
        bar = self.bars.get(index)
        if bar is None or bar.is_io or offset + self.msix_size * spec.MSIX_ENTRY_SIZE > bar.size:
            raise CapabilityError(
                "the MSI-X table does not lie in a memory BAR",
                seen=f"{self.msix_size} entries at {offset:#x} of BAR {index}",
                expected="a table within its BAR",
            )
        return bar.address + offset + vector * spec.MSIX_ENTRY_SIZE

    def msix_set(self, vector: int, address: int, data: int) -> None:
        """Program one entry, masked while it changes, and unmask it."""
        entry = self._entry(vector)
        self.qtest.write_many(
            4,
            [
                (entry + 12, spec.MSIX_ENTRY_MASKED),
                (entry, address & 0xFFFFFFFF),
                (entry + 4, address >> 32),
                (entry + 8, data),
                (entry + 12, 0),
            ],
        )

    def msix_mask(self, vector: int) -> None:
        """Mask one entry."""
        self.qtest.write(4, self._entry(vector) + 12, spec.MSIX_ENTRY_MASKED)
