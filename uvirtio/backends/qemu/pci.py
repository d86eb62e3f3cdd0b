"""PCI without firmware: configuration access, base addresses, interrupt routing and the MSI-X table.

What firmware does before an operating system runs, for the few functions of one machine, over qtest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from uvirtio.backends.bars import bar_of
from uvirtio.backends.capability_list import capabilities
from uvirtio.backends.qemu.config_space import ConfigPorts, config_space
from uvirtio.backends.qemu.models import PciBus
from uvirtio.backends.qemu.qtest import MemoryRegisters, PortRegisters, Qtest
from uvirtio.errors import CapabilityError, Misuse, OperationFailed
from uvirtio.memory.access import exchange, read_field
from uvirtio.spec import pci as spec
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Registers, Step
    from uvirtio.typed import Protocol

    class Bridge(Protocol):
        """Access to a bus; a function on it is named by devfn, slot * 8 + function."""

        qtest: Qtest
        windows: Windows

        def config(self, devfn: int) -> Registers:
            """Return the configuration space of a function: 4096 bytes if it is PCI Express, else 256."""
            ...

        def line(self, devfn: int, pin: int) -> int | None:
            """Return the interrupt controller's input for a pin (1 is INTA); None where it is not known."""
            ...

        def ports(self, port: int, length: int) -> Registers:
            """Return a window of I/O ports."""
            ...


_ALL_ONES = 0xFFFFFFFF
_GRAIN = 4096  # what PCI recommends for memory BARs (PCI 3.0, 6.2.5.1)


class Windows:
    """Address space for BARs as (start, end): memory below and above 4 GiB, and I/O ports."""

    def __init__(self, memory: tuple[int, int], high: tuple[int, int], ports: tuple[int, int]) -> None:
        """Set up the address space.

        Args:
            memory: Below 4 GiB.
            high: Above 4 GiB.
            ports: I/O ports.
        """
        self._windows = {"memory": memory, "high": high, "ports": ports}
        self._used: dict[str, list[tuple[int, int]]] = {kind: [] for kind in self._windows}  # sorted

    def place(self, size: int, *, is_io: bool, is_64: bool) -> int:
        """Return an address for a BAR, aligned to its size.

        Args:
            size: Length of the BAR, in bytes; a power of two.
            is_io: The BAR decodes I/O ports.
            is_64: The BAR may be above 4 GiB.

        Raises:
            OperationFailed: No address space is left.
        """
        kinds = ["ports"] if is_io else ["memory", "high"] if is_64 else ["memory"]
        # Multiples of 4 KiB for memory, so that no two functions share one.
        grain = size if is_io else max(size, _GRAIN)
        for kind in kinds:
            start, end = self._windows[kind]
            used = self._used[kind]
            for taken, after in [*used, (end, end)]:
                start = -(-start // grain) * grain
                if start + grain <= taken:
                    used.append((start, start + grain))
                    used.sort()
                    return start
                start = max(start, after)
        raise OperationFailed(
            "no address space is left for a BAR",
            seen=f"a BAR of {size} bytes",
            expected=f"space in {' or '.join(kinds)}",
            remedy="put fewer devices into one machine",
        )

    def give_back(self, address: int) -> None:
        """Free the address space of the BAR at an address."""
        for kind, used in self._used.items():
            self._used[kind] = [one for one in used if one[0] != address]


class HostBridge:
    """Access to the root bus of a machine. Satisfies ``Bridge``."""

    def __init__(self, qtest: Qtest, bus: PciBus) -> None:
        """Program what firmware would, and set up the address space for BARs.

        Args:
            qtest: The qtest connection.
            bus: The root bus of the machine.
        """
        self.qtest = qtest
        self.bus = bus
        self.windows = Windows(bus.memory, bus.high, bus.ports)
        self.set_up()

    def set_up(self) -> None:
        """Program what firmware would: at the start, and after a reset of the machine."""
        for devfn, offset, value in self.bus.setup:
            ConfigPorts(self.qtest, devfn).write32(offset, value)

    def config(self, devfn: int, bus: int = 0) -> Registers:
        """Return the configuration space of a function: 4096 bytes if it is PCI Express, else 256."""
        return config_space(self.qtest, self.bus.ecam, devfn, bus)

    def line(self, devfn: int, pin: int) -> int | None:
        """Return the interrupt controller's input for a pin (1 is INTA); None where it is not known."""
        slot = devfn >> 3
        if not 1 <= pin <= 4 or slot > self.bus.last_slot:
            return None
        return self.bus.lines[(slot + pin + self.bus.shift) % 4]

    def ports(self, port: int, length: int) -> Registers:
        """Return a window of I/O ports."""
        if self.bus.ports_at is None:
            return PortRegisters(self.qtest, port, length)
        return MemoryRegisters(self.qtest, self.bus.ports_at + port, length)


def find_capability(config: Registers, wanted: int) -> int | None:
    """Return the offset of the first standard capability with this id, or None."""
    listed = capabilities(partial(read_field, config))
    return next((at for at, kind in listed if kind == wanted), None)


class Bar(NamedTuple):
    """A base address register with its assigned address."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    size: int
    is_io: bool
    address: int


def _present() -> None:
    """The check of a function that cannot be unplugged: never fails."""


class CheckedRegisters:
    """The same registers, with a check before each access: of a function that may have been unplugged."""

    def __init__(self, inner: Registers, check: Callable[[], None]) -> None:
        """Wrap registers.

        Args:
            inner: The registers; closed together with this object.
            check: Called before each access; its exceptions prevent the access.
        """
        self._inner = inner
        self._check = check
        self.length = inner.length

    def read8(self, offset: int) -> int:
        """Read 8 bits at ``offset``."""
        self._check()
        return self._inner.read8(offset)

    def read16(self, offset: int) -> int:
        """Read 16 bits at ``offset``."""
        self._check()
        return self._inner.read16(offset)

    def read32(self, offset: int) -> int:
        """Read 32 bits at ``offset``."""
        self._check()
        return self._inner.read32(offset)

    def write8(self, offset: int, value: int) -> None:
        """Write 8 bits at ``offset``."""
        self._check()
        self._inner.write8(offset, value)

    def write16(self, offset: int, value: int) -> None:
        """Write 16 bits at ``offset``."""
        self._check()
        self._inner.write16(offset, value)

    def write32(self, offset: int, value: int) -> None:
        """Write 32 bits at ``offset``."""
        self._check()
        self._inner.write32(offset, value)

    def exchange(self, steps: Sequence[Step]) -> list[int]:
        """Make several accesses in one round trip; see ``Exchanges``."""
        self._check()
        return exchange(self._inner, steps)

    def close(self) -> None:
        """Close the inner registers."""
        self._inner.close()


class PciAccess:
    """One function as firmware accesses it."""

    def __init__(self, bridge: Bridge, devfn: int, check: Callable[[], None] = _present) -> None:
        """Read what the function has.

        Args:
            bridge: The bus that it is on.
            devfn: Its place there, slot * 8 + function.
            check: Called before each access; fails once the function is unplugged.
        """
        self.qtest = bridge.qtest
        self.devfn = devfn
        self._check = check
        self.config: Registers = CheckedRegisters(bridge.config(devfn), check)
        self.bars: dict[int, Bar] = {}
        self._assigned: list[Step] = []
        """The writes that give the BARs their addresses."""
        self.pin = self.config.read8(spec.CFG_INTERRUPT_PIN)
        self.line = bridge.line(devfn, self.pin)
        self._bridge = bridge
        self._msix = find_capability(self.config, spec.CapId.MSIX)
        self.msix_size = 0
        self._msix_table = (0, 0)
        if self._msix is not None:
            words: list[Step] = [
                (self._msix + spec.MSIX_CONTROL, 2, None),
                (self._msix + spec.MSIX_TABLE, 4, None),
            ]
            control, table = exchange(self.config, words)
            self.msix_size = (control & spec.MSIX_CONTROL_SIZE_MASK) + 1
            self._msix_table = (table & spec.MSIX_BIR_MASK, table & spec.MSIX_OFFSET_MASK)

    def assign_bars(self) -> None:
        """Size every BAR and assign an address to it, as firmware does (PCI 3.0, 6.2.5.1); decoding is off.

        Raises:
            OperationFailed: No address space is left.
        """
        if self.bars:
            return
        # Sized all at once, in one round trip; then the addresses in another.
        places = [spec.CFG_BAR0 + 4 * index for index in range(spec.BARS)]
        sizing = [step for place in places for step in ((place, 4, _ALL_ONES), (place, 4, None))]
        masks = exchange(self.config, sizing)
        addresses: list[Step] = []
        index = 0
        while index < spec.BARS:
            low = masks[index]
            if low & spec.BAR_IO:
                last = (~low & spec.BAR_IO_MASK & 0xFFFF) | 3
                addresses += self._assign(index, last, is_io=True, is_64=False)
                index += 1
                continue
            is_64 = low & spec.BAR_TYPE_MASK == spec.BAR_TYPE_64
            if is_64 and index < spec.MAX_BAR:
                mask = low & spec.BAR_MEMORY_MASK | masks[index + 1] << 32
                addresses += self._assign(index, ~mask & (1 << 64) - 1, is_io=False, is_64=True)
                index += 2
            else:
                if low:
                    last = ~(low & spec.BAR_MEMORY_MASK) & _ALL_ONES
                    addresses += self._assign(index, last, is_io=False, is_64=False)
                index += 1
        self._assigned = addresses
        exchange(self.config, addresses)

    def restore(self, *, bus_master: bool = False) -> None:
        """Give the BARs their addresses again, after a reset of the machine, and enable decoding.

        Args:
            bus_master: Allow the function to do DMA.
        """
        exchange(self.config, self._assigned)
        self.enable(bus_master=bus_master)

    def _assign(self, index: int, last: int, *, is_io: bool, is_64: bool) -> list[Step]:
        """Assign an address to one BAR of ``last + 1`` bytes; returns the writes that set it."""
        size = last + 1
        address = self._bridge.windows.place(size, is_io=is_io, is_64=is_64)
        place = spec.CFG_BAR0 + 4 * index
        self.bars[index] = Bar(index, size, is_io, address)
        low: Step = (place, 4, address & _ALL_ONES)
        return [low, (place + 4, 4, address >> 32)] if is_64 else [low]

    def enable(self, *, bus_master: bool = False, intx: bool = False) -> None:
        """Enable decoding of memory and I/O.

        Args:
            bus_master: Allow the function to do DMA.
            intx: Enable the interrupt pin.
        """
        command = spec.Command.IO | spec.Command.MEMORY
        if bus_master:
            command |= spec.Command.MASTER
        if not intx:
            command |= spec.Command.INTX_DISABLE
        self.config.write16(spec.CFG_COMMAND, command)

    def registers(self, index: int, offset: int, length: int) -> Registers:
        """Return a window of a BAR.

        Raises:
            CapabilityError: The BAR is absent or too small.
        """
        bar = bar_of(self.bars, index, offset, length, address="the function", look="uvirtio diag -v")
        if bar.is_io:
            return CheckedRegisters(self._bridge.ports(bar.address + offset, length), self._check)
        return CheckedRegisters(MemoryRegisters(self.qtest, bar.address + offset, length), self._check)

    def release_bars(self) -> None:
        """Free the addresses of a function that was unplugged, once nothing uses its registers any more."""
        while self.bars:
            self._bridge.windows.give_back(self.bars.popitem()[1].address)

    # --- MSI-X (PCI 3.0, 6.8.2) ---

    def msix_enable(self, on: bool) -> None:
        """Enable MSI-X (which disables the pin), or disable it."""
        if self._msix is not None:
            self.config.write16(self._msix + spec.MSIX_CONTROL, spec.MSIX_CONTROL_ENABLE if on else 0)

    def _entry(self, vector: int) -> int:
        if not 0 <= vector < self.msix_size:
            raise Misuse(f"vector {vector} of {self.msix_size}")
        index, offset = self._msix_table
        bar = self.bars.get(index)
        if bar is None or bar.is_io or offset + self.msix_size * spec.MSIX_ENTRY_SIZE > bar.size:
            raise CapabilityError(
                "the MSI-X table is not in a memory BAR",
                seen=f"{self.msix_size} entries at {offset:#x} of BAR {index}",
                expected="a table within its BAR",
            )
        return bar.address + offset + vector * spec.MSIX_ENTRY_SIZE

    def msix_set(self, vector: int, address: int, data: int) -> None:
        """Program one entry of the MSI-X table, masked while it changes, and unmask it; posted.

        Args:
            vector: The entry.
            address: The address of the message.
            data: The data of the message, 32 bits.

        Raises:
            Misuse: There is no such entry.
            CapabilityError: The table is not in a memory BAR.
        """
        self._check()
        entry = self._entry(vector)
        self.qtest.post(
            [
                (entry + 12, 4, spec.MSIX_ENTRY_MASKED),
                (entry, 4, address & 0xFFFFFFFF),
                (entry + 4, 4, address >> 32),
                (entry + 8, 4, data),
                (entry + 12, 4, 0),
            ]
        )

    def msix_mask(self, vector: int) -> None:
        """Mask one entry of the MSI-X table.

        Raises:
            Misuse: There is no such entry.
            CapabilityError: The table is not in a memory BAR.
        """
        self.qtest.write(4, self._entry(vector) + 12, spec.MSIX_ENTRY_MASKED)
