"""PCI without firmware: configuration access, base addresses, interrupt routing and the MSI-X table.

What a BIOS does before an operating system runs, for the few functions of one machine, over qtest.
"""

from __future__ import annotations

from dataclasses import dataclass

from uvirtio.backends.qemu.qtest import MemoryRegisters, PortRegisters, Qtest
from uvirtio.errors import CapabilityError, OperationFailed
from uvirtio.memory.access import WidthRegisters
from uvirtio.memory.seams import Registers
from uvirtio.spec import pci as spec

_CONFIG_ADDRESS = 0xCF8
_CONFIG_DATA = 0xCFC
_CONFIG_ENABLE = 1 << 31
_Q35_PCIEXBAR = 0x60  # of the host bridge: where configuration space is mapped
_ECAM = 0xB0000000
_PIIX3_DEVFN = 1 << 3
_PIIX3_PIRQ = 0x60  # four bytes: the interrupt of each PIRQ
_PIIX3_IRQS = (5, 7, 10, 11)  # free on a PC without serial and parallel ports
_Q35_FIRST_GSI = 16
_Q35_LAST_PLAIN_SLOT = 24  # from 25 on the chip set routes by registers of its own

_MEMORY_WINDOW = (0xC0000000, 0xFE000000)
_HIGH_WINDOW = (1 << 39, 1 << 40)
"""For 64-bit BARs that do not fit below 4 GiB. Plugged memory begins right above RAM, far below this."""
_PORT_WINDOW = (0xC000, 0x10000)
_PAGE = 4096


class Windows:
    """Address space for BARs: memory below and above 4 GiB, and I/O ports. Nothing is ever given back."""

    def __init__(self) -> None:
        self._next = {"memory": _MEMORY_WINDOW[0], "high": _HIGH_WINDOW[0], "ports": _PORT_WINDOW[0]}
        self._end = {"memory": _MEMORY_WINDOW[1], "high": _HIGH_WINDOW[1], "ports": _PORT_WINDOW[1]}

    def place(self, size: int, *, is_io: bool, is_64: bool) -> int:
        """An address for a BAR, aligned to its size. Raises OperationFailed when there is no room."""
        kinds = ["ports"] if is_io else ["memory", "high"] if is_64 else ["memory"]
        for kind in kinds:
            # Whole pages for memory, so that no two functions share one.
            grain = size if is_io else max(size, _PAGE)
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
    """The root bus of a q35 or pc machine; a function is named by devfn, slot * 8 + function."""

    def __init__(self, qtest: Qtest, machine: str) -> None:
        self.qtest = qtest
        self.windows = Windows()
        self._express = machine == "q35"
        if self._express:
            ConfigPorts(qtest, 0).write32(_Q35_PCIEXBAR, _ECAM | 1)
        else:
            piix3 = ConfigPorts(qtest, _PIIX3_DEVFN)
            piix3.write32(_PIIX3_PIRQ, int.from_bytes(bytes(_PIIX3_IRQS), "little"))

    def config(self, devfn: int) -> Registers:
        """The configuration space of one function: 4096 bytes if it is PCI Express, else 256."""
        if not self._express:
            return ConfigPorts(self.qtest, devfn)
        config = MemoryRegisters(self.qtest, _ECAM + (devfn << 12), spec.EXPRESS_CONFIG_SIZE)
        if find_capability(config, spec.CapId.EXPRESS) is None:
            config.length = spec.CONFIG_SIZE
        return config

    def gsi(self, devfn: int, pin: int) -> int | None:
        """The I/O APIC input that an interrupt pin (1 is INTA) leads to; None where that is not known."""
        slot = devfn >> 3
        if not 1 <= pin <= 4:
            return None
        if not self._express:
            return _PIIX3_IRQS[(slot - 1 + pin - 1) % 4]
        if slot > _Q35_LAST_PLAIN_SLOT:
            return None
        return _Q35_FIRST_GSI + 4 + (slot + pin - 1) % 4


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
        self.gsi = bridge.gsi(devfn, self.pin)
        self._windows = bridge.windows
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
        address = self._windows.place(size, is_io=is_io, is_64=is_64)
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
        bar = self.bars.get(index)
        if bar is None or offset < 0 or length < 0 or offset + length > bar.size:
            raise CapabilityError(
                f"there is no such window in BAR {index}",
                seen="no BAR" if bar is None else f"a BAR of {bar.size:#x} bytes",
                expected=f"{length:#x} bytes at {offset:#x}",
                remedy="look at the capabilities: uvirtio inspect",
            )
        kind = PortRegisters if bar.is_io else MemoryRegisters
        return kind(self.qtest, bar.address + offset, length)

    # --- MSI-X (PCI 3.0, 6.8.2) ---

    def msix_enable(self, on: bool) -> None:
        """Turn MSI-X on (and the pin off with it), or off."""
        if self._msix is not None:
            self.config.write16(self._msix + spec.MSIX_CONTROL, spec.MSIX_CONTROL_ENABLE if on else 0)

    def _entry(self, vector: int) -> int:
        if not 0 <= vector < self.msix_size:
            raise ValueError(f"vector {vector} of {self.msix_size}")
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
