"""The steps of one use of a device, from a confirmed reset to the next, each by itself, and memory for it.

It speaks to the device through its ``Transport``, so that each step of 3.1.1 can be made, left out or made
wrongly. What a test does not say is done as an ordinary driver does it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, cast

from uvirtio.conform.lane import Lane, SplitLane
from uvirtio.conform.memory import Arena, Buffer
from uvirtio.conform.packed_lane import PackedLane
from uvirtio.conform.verdict import Unfit, Violated
from uvirtio.conform.witness import Host
from uvirtio.device import Device
from uvirtio.errors import DeviceGone, OperationFailed, UvirtioError
from uvirtio.interfaces.backend import MmioWindow, PciFunction
from uvirtio.interfaces.memory import Block, DmaSpace, Event, Registers
from uvirtio.memory.quarantine import keep_for_ever
from uvirtio.memory.trace import TracedRegisters
from uvirtio.spec import features as f
from uvirtio.spec import mmio
from uvirtio.spec.layout import Field, Layout, by_name
from uvirtio.spec.status import Status, describe
from uvirtio.transports.pci import PciModern
from uvirtio.transports.register_names import MmioNames, of_pci
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.packed import PackedQueue, make_packed
from uvirtio.virtqueue.split import SplitQueue, make_split

QUEUE_SIZE: Final = 64
"""Entries, where a test names no size and the device has as many; areas then fit a page."""

_STEP: Final = 0.002
_PAGES: Final = 16


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a test waits, in seconds."""

    deadline: float = 1.0
    """For what the device owes."""
    watch: float = 0.02
    """To see that nothing happens."""
    reset: float | None = None
    """For a reset; None: the device's own time-out."""

    def slower(self) -> Pace:
        """Four times as long, for the repetition of a test that found something late."""
        return Pace(4 * self.deadline, 4 * self.watch, self.reset)


@dataclass(frozen=True, slots=True)
class Consent:
    """What may be done to the device that is never done to one of somebody else's by default."""

    faults: bool = False
    """Input that the standard forbids: the levels from L3 on."""
    write: range | None = None
    """The sectors of a disk that may be written, discarded and erased."""
    host: bool = False
    """Levers of its host: QMP, a peer; and what is seen from outside, such as a MAC address."""
    flr: bool = False
    """A function-level reset."""


class ResetMissed(Exception):
    """A reset was not confirmed: the device is wedged."""


class Steps:
    """A device after a confirmed reset, and memory for it."""

    def __init__(
        self,
        device: Device,
        pace: Pace,
        log: deque[str],
        check: Callable[[], None],
        *,
        packed: bool,
        consent: Consent,
        first_status: int | None = None,
    ) -> None:
        """Begin; the device is not touched.

        Args:
            device: Open, and reset.
            pace: How long to wait.
            log: Where ``note`` writes.
            check: Called in each wait; raises what ends the run.
            packed: Whether requests go over packed rings where a test leaves the choice and the device has them.
            consent: What may be done to the device.
            first_status: What the status read when the device was opened; None: it may be another driver's.
        """
        self.device = device
        self.transport = device.transport
        self.type = device.type
        self.pace = pace
        self.log = log
        self._packed = packed
        self.consent = consent
        self.first_status = first_status
        self.host = Host(device)
        """What its host shows of the device."""
        self.host_has: int | None = None
        """The features that the host had as accepted when ``accepts`` was asked last; None: it does not tell."""
        self.accepted = 0
        """The features that were written last."""
        self.behind_features: Callable[[], object] = lambda: None
        """Called when the features were written, before FEATURES_OK: for what else a test writes there."""
        self.used = False
        """The status was written, beside resets, or registers were asked for, which may be written."""
        self.lanes: dict[int, Lane] = {}
        """The queues that are enabled, by index."""
        self.strays: list[str] = []
        """What the device wrote though it may not, each with a row's id."""
        self._check = check
        self._clock = device.clock
        self._offered: int | None = None
        self._spaces: list[DmaSpace] = []
        self._dma: DmaSpace | None = None
        self._arena: Arena | None = None
        self._arenas: list[Arena] = []
        self._past: list[Lane] = []
        self._registers: list[Registers] = []
        self._pinned: Block | None = None
        self._pages: list[int] = []
        self._order: list[int] = []
        self._vectors: list[Event] = []

    # --- telling --------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Add a line to the log of the result."""
        self.log.append(f"# {text}")

    def expect(self, holds: bool, seen: str, expected: str) -> None:
        """Say that the row is violated, unless it holds.

        Args:
            holds: Whether it does.
            seen: What the device did.
            expected: What the row asks for.

        Raises:
            Violated: It does not.
        """
        if not holds:
            raise Violated(seen, expected)

    def witnessed(self, what: str, seen: object, shown: object | None) -> None:
        """Say that the row is violated if the device's host shows something else.

        Args:
            what: What was seen of the device, for people.
            seen: It.
            shown: The same by ``host``; None: the host does not tell.

        Raises:
            Violated: The two differ.
        """
        if shown is not None:
            mine, theirs = (f"{value!r:.80}" for value in (seen, shown))
            self.note(f"its host has {what}: {theirs}")
            self.expect(shown == seen, f"{what} is {mine}, and {theirs} by the host's word", "the same")

    def need(self, holds: bool, reason: str) -> None:
        """Leave the test out, unless this device can have it.

        Args:
            holds: Whether it can.
            reason: Why not, for people.

        Raises:
            Unfit: It cannot.
        """
        if not holds:
            raise Unfit(reason)

    def need_feature(self, *bits: int) -> None:
        """Leave the test out, unless the device offers these bits.

        Args:
            *bits: Numbers of feature bits.

        Raises:
            Unfit: It does not.
        """
        for bit in bits:
            self.need(f.has(self.offered, bit), f"{f.feature(self.type, bit).name} is not offered")

    # --- time -----------------------------------------------------------------------------------------------

    def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Poll until something holds; whether it did within the time.

        Args:
            done: What.
            seconds: How long.
        """
        end = self._clock.monotonic() + seconds
        pause = _STEP / 16
        while True:
            late = self._clock.monotonic() >= end
            if done():
                return True
            if late:
                return False
            self._check()
            self._clock.sleep(pause)
            pause = min(2 * pause, _STEP)

    def owe(self, done: Callable[[], bool], seen: str, expected: str) -> None:
        """Wait for something that the device has to do in time.

        Args:
            done: Whether it has.
            seen: What to say if it has not.
            expected: What the row asks for.

        Raises:
            Violated: It did not; the test is repeated with more time before that counts.
        """
        if not self.until(done, self.pace.deadline):
            raise Violated(f"{seen} within {self.pace.deadline:g} s", expected, late=True)

    def quiet(self, changed: Callable[[], bool]) -> bool:
        """Watch that something does not happen; whether it did not.

        Args:
            changed: Whether it did.
        """
        return not self.until(changed, self.pace.watch)

    # --- status and features (2.1, 2.2, 3.1.1) --------------------------------------------------------------

    @property
    def legacy(self) -> bool:
        """Whether this is a legacy interface (2.2.3)."""
        return self.transport.legacy

    @property
    def packed(self) -> bool:
        """Whether requests go over packed rings where a test leaves the choice."""
        return self._packed and f.has(self.offered, f.RING_PACKED)

    @property
    def offered(self) -> int:
        """The offered features; read once."""
        if self._offered is None:
            self._offered = self.transport.device_features()
        return self._offered

    def status(self) -> int:
        """Read the status (2.1).

        Raises:
            DeviceGone: It reads 0xff.
        """
        value = self.transport.status()
        if value == 0xFF:
            raise DeviceGone(f"{self.device.address} is gone", seen="status 0xff", expected="a device")
        return value

    def set_status(self, value: int) -> None:
        """Write the status as it is, without the rules of 2.1.1."""
        self.used = self.used or value != 0
        self.transport.set_status(value)

    def acknowledge(self) -> None:
        """Set ACKNOWLEDGE, then DRIVER."""
        self.set_status(Status.ACKNOWLEDGE)
        self.set_status(Status.ACKNOWLEDGE | Status.DRIVER)

    def negotiate(self, features: int) -> int:
        """Go from 0 to FEATURES_OK with exactly these features, offered or not; what the status reads then.

        Args:
            features: The word.
        """
        self.acknowledge()
        self.transport.set_driver_features(features)
        self.behind_features()
        self.accepted = features
        if not self.legacy:
            self.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        return self.status()

    def accepts(self, features: int) -> bool:
        """Whether FEATURES_OK stays with exactly these features; the device is reset afterwards.

        Where features are accepted by a call (vhost), its error is a refusal too.

        Args:
            features: The word.
        """
        try:
            stays = bool(self.negotiate(features) & Status.FEATURES_OK)
            self.host_has = self.host.features(self.type) if stays else None
        except OperationFailed:
            stays = False
        self.reset()
        return stays

    def has(self, bit: int) -> bool:
        """Whether a bit was accepted."""
        return f.has(self.accepted, bit)

    # --- queues ---------------------------------------------------------------------------------------------

    def lane(self, index: int, size: int | None = None) -> Lane:
        """Make a queue in memory of its own, and enable it.

        Args:
            index: The queue.
            size: Entries; None: up to 64.

        Raises:
            Unfit: There is no such queue, or none of this size.
        """
        layout = self.transport.queue_layout(index)
        self.need(layout.size_max > 0, f"there is no queue {index}")
        if layout.size_fixed:
            size = layout.size_max
        size = min(layout.size_max, QUEUE_SIZE) if size is None else size
        self.need(size <= layout.size_max, f"queue {index} has no {size} entries")
        options = RingOptions(fence=lambda: None, one_region=layout.one_region)
        how = {"with_data": self.has(f.NOTIFICATION_DATA), "in_order": self.has(f.IN_ORDER)}
        queue: PackedQueue | SplitQueue
        lane: Lane
        if self.has(f.RING_PACKED):
            queue = make_packed(index, size, self.dma, options)
        else:
            queue = make_split(index, size, self.dma, options)
        try:
            doorbell = self.transport.enable_queue(index, size, *queue.addresses)
            if isinstance(queue, PackedQueue):
                lane = PackedLane(queue, doorbell, **how)
            else:
                lane = SplitLane(queue, doorbell, **how)
        except BaseException:
            self._rings_left(queue.close)
            raise
        self.lanes[index] = lane
        return lane

    def _rings_left(self, close: Callable[[], None]) -> None:
        """Free a ring that no queue has; without an enabled queue the device does not know of it."""
        with suppress(UvirtioError):
            close()

    @property
    def dma(self) -> DmaSpace:
        """Memory under the address policy that was negotiated."""
        if self._dma is None:
            self._dma = self.transport.dma(self.has(f.ACCESS_PLATFORM))
            self._spaces.append(self._dma)
        return self._dma

    def readable(self, content: bytes) -> Buffer:
        """A buffer that the device reads.

        Args:
            content: What it holds.
        """
        return self._memory().readable(content)

    def writable(self, size: int, *, inverted: bool = False) -> Buffer:
        """A buffer that the device writes, full of a pattern and between guard bytes.

        Args:
            size: Bytes.
            inverted: With the complement of the pattern.
        """
        return self._memory().writable(size, inverted=inverted)

    def _memory(self) -> Arena:
        if self._arena is None:
            self._arena = Arena(self.dma)
            self._arenas.append(self._arena)
        return self._arena

    def own_page(self) -> int:
        """The frame number of a pinned page of ours, each time another one."""
        if not self._pages:
            self._pinned = self.dma.pin(_PAGES << 12)
            self._pages = self._pinned.pfns()
        return self._pages.pop()

    # --- registers and configuration ------------------------------------------------------------------------

    def registers(self, structure: str) -> Registers:
        """A structure's registers as they are (PCI), or the whole window (virtio-mmio); closed with the trial.

        Args:
            structure: ``common``, ``notify``, ``isr`` or ``device``; ignored on virtio-mmio.

        Raises:
            Unfit: The device has no such structure.
        """
        self.used = True
        if self.transport.kind.startswith("mmio"):
            names = MmioNames()
            names.layout = mmio.layout(self.legacy)
            window = cast(MmioWindow, self.transport.backend).registers  # the transport closes it
            return TracedRegisters(window, "mmio", self.log.append, names)
        if not isinstance(self.transport, PciModern):
            raise Unfit("this transport has no such registers")
        try:
            found = self.transport.raw_registers(structure)
        except UvirtioError as error:
            raise Unfit(f"there is no {structure} structure") from error
        found = TracedRegisters(found, structure, self.log.append, of_pci(structure, self.type, lambda: True))
        self._registers.append(found)
        return found

    def msix(self, count: int) -> list[Event]:
        """Enable MSI-X by hand: vectors are then written by the test, as it wants them; until the next reset.

        Args:
            count: Vectors.

        Raises:
            Unfit: The device has no so many.
        """
        self.need(self.transport.kind == "pci-modern", "MSI-X is PCI's")
        function = cast(PciFunction, self.transport.backend)
        self.need(function.msix_vectors >= count, f"it has {function.msix_vectors} MSI-X vectors")
        self._vectors = list(function.enable_msix(count))
        return self._vectors

    def config_field(self, layout: Layout, name: str) -> int:
        """Read a field of the device configuration.

        Args:
            layout: The configuration of the type, from ``spec``.
            name: The field.
        """
        return self.read_field(by_name(layout)[name])

    def read_field(self, field: Field) -> int:
        """Read a field of the device configuration, in pieces of 4 bytes at most.

        Args:
            field: Where it is.
        """
        if field.width in (1, 2, 4, 8):
            return self.transport.read_config(field.offset, field.width)
        data = bytes(self.transport.read_config(field.offset + place, 1) for place in range(field.width))
        return int.from_bytes(data, "little")

    # --- leaving --------------------------------------------------------------------------------------------

    def confirm_reset(self) -> None:
        """Write 0 to the status and wait until it reads 0 (2.4.2).

        Raises:
            ResetMissed: It did not.
        """
        self.set_status(0)
        limit = self.device.timeout if self.pace.reset is None else self.pace.reset
        if not self.until(lambda: self.status() == 0, limit):
            raise ResetMissed(f"status reads {describe(self.status())} {limit:g} s after 0 was written")

    def reset(self) -> None:
        """A confirmed reset in the middle of a test; the rings and the memory of before are kept for comparison.

        Raises:
            ResetMissed: It was not confirmed.
        """
        self.confirm_reset()
        self.after_reset()

    def after_reset(self) -> None:
        """Let go of what a confirmed reset ended: bus mastering, doorbells, interrupts, queues."""
        with suppress(UvirtioError):
            self.transport.dma_enable(False)
        if self._vectors:
            cast(PciFunction, self.transport.backend).disable_interrupts()
        for event in self._vectors:
            event.close()
        self._vectors = []
        self._past += self.lanes.values()
        self.lanes = {}
        self.accepted = 0
        self._dma = self._arena = None
        self._pages = []
        self.transport.release_queues()

    def retire(self, index: int) -> None:
        """Keep the ring of a queue that is no longer enabled for comparison.

        Args:
            index: The queue.
        """
        self._past.append(self.lanes.pop(index))

    def contents(self) -> list[object]:
        """All memory that the device was given, as it is now."""
        found: list[object] = [arena.contents() for arena in self._arenas]
        return found + [lane.contents() for lane in (*self._past, *self.lanes.values())]

    def look(self) -> list[str]:
        """What the device wrote though it may not, until now."""
        found = list(self.strays)
        for lane in (*self._past, *self.lanes.values()):
            lane.compare()
            found += lane.strays
        for arena in self._arenas:
            found += arena.strays()
        return list(dict.fromkeys(found))

    def ledger(self) -> list[str]:
        """What the used rings had that they should not."""
        return [fault for lane in (*self._past, *self.lanes.values()) for fault in lane.faults]

    def words(self) -> list[str]:
        """Indices and flags of each ring, for the log."""
        return [lane.words() for lane in (*self._past, *self.lanes.values())]

    def release(self, *, confirmed: bool) -> None:
        """Free the memory; without a confirmed reset it is never freed, because the device may still write there.

        Args:
            confirmed: The device was reset, or is no more.
        """
        for registers in self._registers:
            registers.close()
        self._registers = []
        lanes = [*self._past, *self.lanes.values()]
        self._past, self.lanes = [], {}
        if not confirmed:
            keep_for_ever((lanes, self._arenas, self._spaces))
        else:
            for lane in lanes:
                lane.close()
            for arena in self._arenas:
                arena.close()
            for space in self._spaces:
                with suppress(UvirtioError):
                    space.close()
        self._arenas, self._spaces = [], []
        self._dma = self._arena = None
