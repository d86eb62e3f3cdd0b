"""What both interfaces of a virtio PCI function have in common: identity, interrupt modes, closing.

The function comes from a back end (VFIO, QEMU, ...) as a ``PciFunction``; the two interfaces differ in where the
fields are: ``pci`` (4.1.4) and ``pci_legacy`` (4.1.4.10). Nothing here waits: deadlines belong to ``device``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence

from uvirtio.errors import DeviceGone, NotVirtio
from uvirtio.interfaces.runtime import USED, Causes, Guarded, after_removal
from uvirtio.interfaces.values import InterruptMode, Trace
from uvirtio.memory.access import FdDoorbell, FdRegisters, read_field, write_field
from uvirtio.spec import ids, pci
from uvirtio.transports import pci_caps
from uvirtio.transports.base import TransportBase
from uvirtio.transports.doorbells import DataDoorbell, IndexDoorbell
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.backend import PciFunction
    from uvirtio.interfaces.memory import Doorbell, Event, Registers
    from uvirtio.memory.trace import TracedRegisters


def config_reader(function: PciFunction) -> Callable[[int, int], int]:
    """Return ``read(offset, width)`` of configuration space, for a capability walk."""
    config = function.config
    readers = {1: config.read8, 2: config.read16, 4: config.read32}
    return lambda offset, width: readers[width](offset)


def device_ids(function: PciFunction) -> tuple[int, int]:
    """Return the PCI vendor ID and device ID.

    Raises:
        DeviceGone: The function does not respond.
    """
    read = config_reader(function)
    vendor = read(pci.CFG_VENDOR_ID, 2)
    refuse_all_ones(function, vendor, 16, "the PCI vendor id")
    return vendor, read(pci.CFG_DEVICE_ID, 2)


def is_legacy_only(function: PciFunction) -> bool:
    """Whether a function with a transitional device ID has none of the modern structures (4.1.5.1.1.1).

    Raises:
        DeviceGone: The function does not respond.
    """
    if not ids.is_transitional_pci(*device_ids(function)):
        return False
    return not pci_caps.modern(pci_caps.each_capability(config_reader(function)))


def refuse_all_ones(function: PciFunction, value: int, bits: int, what: str) -> None:
    """Check that a value is not all ones, which is what PCI returns for a function that does not respond.

    Args:
        function: The function, for the error.
        value: What was read.
        bits: Its width, in bits.
        what: Its name, for the error.

    Raises:
        DeviceGone: It is all ones.
    """
    if value == (1 << bits) - 1:
        raise DeviceGone(
            f"{function.address} does not respond any more",
            seen=f"{what} reads {value:#x}",
            expected="a value",
            remedy=after_removal(function),
        )


class PciBase(TransportBase):
    """The part of a ``Transport`` over PCI that does not depend on the interface.

    An interface finds its registers in ``_find`` and implements the small methods at the end of this class.
    """

    def __init__(self, function: PciFunction, *, trace: Trace | None = None) -> None:
        """Identify the function, take it over and find its registers.

        Args:
            function: The function; ``close()`` closes it.
            trace: Called with a line for each access; None: no trace.

        Raises:
            NotVirtio: The function is not a virtio device.
            NotSupported: The function does not have this interface.
            CapabilityError: The registers cannot be found.
            DeviceGone: The function does not respond.
        """
        super().__init__(function, trace=trace)
        self._function = function
        self._windows: list[Registers] = []
        self._events: list[Event] = []
        self._vectors: dict[int, int] = {}
        """MSI-X vectors by the descriptors of their events, kept because every interrupt is looked up in them."""

        self._msix_on = False
        self._config_shares_vector = False
        self._doorbells: dict[int, Doorbell] = {}
        self._queue_vectors: dict[int, int] = {}

        self._config_space: TracedRegisters | None = None
        """Configuration space as the back end uses it while a trace is on; None: there is no trace."""

        if trace is not None:
            self._trace_config_space(trace)
        try:
            self.device_id = self._identify()
            self._find()
            if isinstance(function, Guarded):
                function.guard(*self._status_place())
        except BaseException:
            self._let_go_of_config_space()
            self._close_windows()
            raise

    # --- the trace ------------------------------------------------------------------------------------------

    def _trace_config_space(self, trace: Trace) -> None:
        """Put the trace between the back end and its configuration space, so that its own accesses are told."""
        from uvirtio.memory.trace import TracedRegisters
        from uvirtio.transports.register_names import PciConfigNames

        function = self._function
        traced = TracedRegisters(function.config, "pci", trace, PciConfigNames())
        try:
            function.config = traced
        except AttributeError:  # a back end that has it as a property; what it does itself is not told
            return
        self._config_space = traced

    def _let_go_of_config_space(self) -> None:
        traced, self._config_space = self._config_space, None
        if traced is not None:
            self._function.config = traced.inner

    def _tell(self, text: str) -> None:
        if self._trace is not None:
            self._trace(text)

    # --- identity -----------------------------------------------------------------------------------------

    def _identify(self) -> int:
        # 4.1.2: the revision ID has no meaning and is not read.
        vendor, device = device_ids(self._function)
        found = ids.device_id_of_pci(vendor, device)
        if found is None:
            raise not_virtio(self._function, vendor, device)
        return found

    def _refuse_all_ones(self, value: int, bits: int, what: str) -> None:
        refuse_all_ones(self._function, value, bits, what)

    def _open_window(self, bar: int, offset: int, length: int, name: str) -> Registers:
        registers: Registers = self._function.registers(bar, offset, length)
        if self._trace is not None:
            from uvirtio.memory.trace import TracedRegisters  # only where there is a trace
            from uvirtio.transports.register_names import of_pci

            self._trace(f"{name}: {length} bytes at BAR {bar}+{offset:#x}")
            naming = of_pci(name, ids.type_name(self.device_id), lambda: self._msix_on)
            registers = TracedRegisters(registers, name, self._trace, naming)
        self._windows.append(registers)
        return registers

    def _close_windows(self) -> None:
        while self._windows:
            self._windows.pop().close()

    @property
    def translates(self) -> bool:
        """True where an IOMMU stands between the function and memory."""
        return self._function.translates

    @property
    def backend(self) -> PciFunction:
        """The back end's object."""
        return self._function

    # --- device configuration (4.1.3.1) ---------------------------------------------------------------------

    def read_config(self, offset: int, width: int) -> int:
        """Read one field of the device configuration; see ``Transport``."""
        return read_field(*self._config_place(offset, width), width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Write one field of the device configuration; see ``Transport``."""
        write_field(*self._config_place(offset, width), width, value)

    # --- queues -------------------------------------------------------------------------------------------

    def _expect(self, index: int, name: str, seen: int, expected: int, section: str = "4.1.4.3") -> None:
        if seen != expected:
            raise self._queue_fault(
                f"{name} of queue {index} does not read back what was written",
                seen=f"{seen:#x}",
                expected=f"{expected:#x} ({section})",
                about=name,
            )

    def _doorbell_at(
        self, index: int, bar: int, offset: int, *, ident: int | None = None, data: bool = False
    ) -> Doorbell:
        """Return the doorbell of queue ``index``, an event or a register; ``release_queues`` closes it.

        ``ident`` is the device's identifier of the queue, where that is not its index. With ``data`` each kick has
        a value of its own, which an event cannot carry.
        """
        ident = index if ident is None else ident
        doorbell: Doorbell | None
        if data:
            doorbell = DataDoorbell(self._function.registers(bar, offset, pci.NOTIFY_DATA_WIDTH), ident)
        else:
            doorbell = self._function.doorbell(bar, offset, ident)
        by_event = doorbell is not None and not data
        if doorbell is None:
            window = self._function.registers(bar, offset, pci.NOTIFY_WIDTH)
            if isinstance(window, FdRegisters):
                doorbell = FdDoorbell(window, ident)
            else:
                doorbell = IndexDoorbell(window, ident)
        if self._trace is not None:
            width = pci.NOTIFY_DATA_WIDTH if data else pci.NOTIFY_WIDTH
            place = f"BAR {bar}+{offset:#x} {'eventfd' if by_event else f'write{8 * width}'}"
            mask = 0xFFFF_0000 if data else 0
            from uvirtio.memory.trace import TracedDoorbell

            doorbell = TracedDoorbell(doorbell, index, place, self._trace, lambda value: value & mask | ident)
        self._doorbells[index] = doorbell
        return doorbell

    # --- interrupts (4.1.5.1.2, 4.1.5.3, 4.1.5.4) -----------------------------------------------------------

    def _try_mode(self, mode: InterruptMode, queues: Sequence[int]) -> str | None:
        if mode is InterruptMode.POLLING:
            return None
        if mode is InterruptMode.INTX:
            event = self._function.enable_intx() if self._function.has_intx else None
            if event is None:
                return "the function has no interrupt pin"
            self._tell("interrupts: INTx on")
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
        count = max([config_vector, *queue_vectors]) + 1
        self._events = self._function.enable_msix(count)
        self._tell(f"interrupts: MSI-X on, {count} vectors")
        self._vectors = {event.fileno(): vector for vector, event in enumerate(self._events)}
        self._msix_on = True
        # 4.1.5.1.2.2: a vector that reads back as NO_VECTOR was refused.
        if (back := self._take_config_vector(config_vector)) != config_vector:
            return self._refused(mode, "config_msix_vector", config_vector, back)
        self._queue_vectors = dict(zip(queues, queue_vectors, strict=True))
        for index, vector in self._queue_vectors.items():
            if (back := self._take_queue_vector(index, vector)) != vector:
                return self._refused(mode, f"queue_msix_vector of queue {index}", vector, back)
        return None

    def _refused(self, mode: InterruptMode, register: str, vector: int, back: int) -> str:
        why = f"{register} reads {back:#x} after {vector} was written"
        self.interrupt_failures.append(f"{mode.value}: {why}")
        return why

    def _disconnect(self) -> None:
        events, self._events, self._vectors = self._events, [], {}
        self._mode = InterruptMode.POLLING
        self._msix_on = False
        self._config_shares_vector = False
        self._queue_vectors = {}
        try:
            if events:
                self._function.disable_interrupts()
                self._tell("interrupts: off")
        finally:
            for event in events:
                event.close()

    def events(self) -> Sequence[Event]:
        """Return the events to wait for: interrupts, and the removal of the device."""
        removal = self._function.removal
        return self._events if removal is None else [*self._events, removal]

    def queue_events(self) -> Sequence[Event]:
        """Return the vectors that only queues have; see ``HasQueueEvents``."""
        return self._events[1:] if self._msix_on else []  # vector 0 has the configuration too

    def causes(self, fired: Collection[int] | None = None) -> Causes:
        """Take what is pending, read its cause and rearm; see ``Transport``."""
        removal = self._function.removal
        if self._msix_on:
            # 4.1.4.5.2: the ISR is not read then.
            vectors, events = self._vectors, self._events
            config = queues = False
            other = fired is None
            for number in vectors if fired is None else fired:
                vector = vectors.get(number, -1)
                if vector < 0:
                    other = True
                elif events[vector].take():
                    if vector:
                        queues = True
                    else:
                        config, queues = True, queues or self._config_shares_vector
            if queues and not (config or other):
                return USED
            gone = other and removal is not None and _taken(removal, fired)
            return Causes(config, queues, gone)
        gone = removal is not None and _taken(removal, fired)
        if self._mode is InterruptMode.POLLING:
            return self._isr_causes(gone)
        line = self._events[0]
        if not _taken(line, fired):
            return Causes(removal=gone)
        causes = self._isr_causes(gone)
        line.rearm()
        return causes

    def _isr_causes(self, removal: bool) -> Causes:
        # 4.1.4.5: reading clears, so it is read once and both bits are used.
        isr = self._read_isr()
        if isr == 0xFF:
            self._refuse_all_ones(self.status(), 8, "the ISR and the status")
        config, queues = bool(isr & pci.ISR_CONFIG), bool(isr & pci.ISR_QUEUE)
        spurious = self._mode is InterruptMode.INTX and not (config or queues)
        return Causes(config=config, queues=queues, removal=removal, spurious=spurious)

    # --- the rest -------------------------------------------------------------------------------------------

    def dma_enable(self, on: bool) -> None:
        """Set or clear Bus Master Enable."""
        self._function.bus_master(on)
        self._tell(f"bus master: {'on' if on else 'off'}")

    def function_reset(self) -> bool:
        """Reset the function; False where it has no such reset."""
        done = self._function.reset()
        self._tell(f"function reset: {'done' if done else 'there is none'}")
        return done

    def release_queues(self) -> None:
        """Close the doorbells and the interrupt events, after the device has been reset."""
        try:
            for doorbell in self._doorbells.values():
                doorbell.close()
            self._doorbells.clear()
        finally:
            self._disconnect()

    def _let_go(self) -> None:
        try:
            self.release_queues()
        finally:
            self._let_go_of_config_space()
            self._close_windows()

    # --- where the fields are: specific to each interface ----------------------------------------------------

    def _find(self) -> None:
        """Find the registers."""
        raise NotImplementedError

    def _status_place(self) -> tuple[int, int, int]:
        """Return BAR, offset and width of the device status."""
        raise NotImplementedError

    def _config_place(self, offset: int, width: int) -> tuple[Registers, int]:
        """Return where a field of the device configuration is; ConfigError beyond its end."""
        raise NotImplementedError

    def _take_config_vector(self, vector: int) -> int:
        """Set the vector for configuration changes; returns what it reads back."""
        raise NotImplementedError

    def _take_queue_vector(self, index: int, vector: int) -> int:
        """Set the vector of a queue; returns what it reads back."""
        raise NotImplementedError

    def _read_isr(self) -> int:
        raise NotImplementedError

    def status(self) -> int:
        """Return the device status (2.1)."""
        raise NotImplementedError

    def is_absent(self) -> bool:
        """Whether revision and class in configuration space read all ones, too.

        Not the vendor: VFIO has that of a virtual function from a copy.
        """
        return self._function.config.read32(pci.CFG_REVISION_ID) == 0xFFFFFFFF


def not_virtio(function: PciFunction, vendor: int, device: int) -> NotVirtio:
    """Return the error for a function that is not a virtio device.

    Args:
        function: The function.
        vendor: Its PCI vendor ID.
        device: Its PCI device ID.
    """
    return NotVirtio(
        f"{function.address} is not a virtio device",
        seen=f"{vendor:04x}:{device:04x}",
        expected="1af4:1000 to 1af4:107f (4.1.2)",
        remedy="list the virtio devices of this machine: uvirtio list",
    )


def _taken(event: Event, fired: Container[int] | None) -> bool:
    """Take an event, unless it is known that nothing is pending."""
    return (fired is None or event.fileno() in fired) and event.take()
