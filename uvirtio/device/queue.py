"""A queue of a device: the driver's specification, and the live virtqueue with its doorbell."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress

from uvirtio.errors import Misuse, UvirtioError
from uvirtio.memory.clock import HostClock
from uvirtio.memory.forks import StaysHere
from uvirtio.typed import TYPE_CHECKING, NamedTuple
from uvirtio.virtqueue import Completion, SgEntry
from uvirtio.virtqueue.chain import measure

if TYPE_CHECKING:
    from typing import Any

    from uvirtio.interfaces.memory import Doorbell
    from uvirtio.virtqueue.interface import Virtqueue
    from uvirtio.virtqueue.slots import Chain, Slots

_MARKS = 64
"""Times of publication that are kept before those of chains that came back are dropped."""

QUEUE_SIZE_MAX = 256
"""Entries. Enough for every driver here; each ring area fits one page, as guest-physical memory requires."""


class QueueSpec(NamedTuple):
    """A queue that a driver wants."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    """Its index (chapter 5)."""
    name: str
    """Its name, for errors and reports."""
    size: int = QUEUE_SIZE_MAX
    """The most entries that are of use; the device may have fewer."""
    required: bool = True
    """Whether the driver cannot work without it."""
    clamp_used_len: bool = False
    """Whether a used length beyond the buffer is a finding (``used-length-clamped``), not a broken ring (2.7.8).

    For devices that are known to count bytes there that they have read; the driver must not use the length then.
    """
    owed: bool = True
    """Whether the device owes each buffer back in time; False where it keeps them for what may come: events."""


class Queue(StaysHere):
    """A live virtqueue: the ring and its doorbell."""

    def __init__(
        self,
        spec: QueueSpec,
        ring: Virtqueue,
        doorbell: Doorbell,
        *,
        with_data: bool = False,
        monotonic: Callable[[], float] = HostClock.monotonic,
    ) -> None:
        """Put a ring and its doorbell together.

        Args:
            spec: The driver's specification.
            ring: The ring, whose addresses the device has.
            doorbell: Notifies the device (2.3).
            with_data: Whether NOTIFICATION_DATA was negotiated (2.9).
            monotonic: The device's clock, in seconds, by which chains in flight have an age.
        """
        self.index = spec.index
        self.name = spec.name
        self.spec = spec
        self.ring = ring
        self._doorbell = doorbell
        self._with_data = with_data
        self.kicks = 0
        self.kicked = 0
        """The chains of this ring that were published before the last kick."""
        self.completions = 0
        """Chains that the device returned since the start."""
        self._slots: Slots | None = None
        self._monotonic = monotonic
        self._owed = False
        """The device may have asked for a notification, at a publication, that it was not given yet."""
        self._noted = 0
        self._marks: dict[int, float] = {}
        """When so many chains had been published, by the clock."""
        self._marks_most = _MARKS

    def add(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> None:
        """Write the descriptors of a chain (2.7.5); the device does not see it before ``kick``.

        Args:
            readable: The buffers that the device reads, as device addresses and lengths in bytes.
            writable: The buffers that the device writes.
            cookie: What ``reap`` returns with the completion.

        Raises:
            BadChain: The chain breaks a rule of 2.7.5.
            QueueFull: There are not enough free descriptors.
        """
        self.ring.add(readable, writable, cookie)

    def takes(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry]) -> bool:
        """Return whether ``add`` would take a chain now; its parameters are those of ``add``."""
        ring = self.ring
        with suppress(UvirtioError):
            measure(readable, writable, ring.size)
            return ring.broken is None and ring.free >= ring.needs(len(readable) + len(writable))
        return False

    def add_all(self, chains: list[Any]) -> None:
        """Do what ``add`` does for several chains, which costs less than one by one.

        Args:
            chains: (readable, writable, cookie) of each. Those that were added are taken out, so that after an
                exception the others are left.

        Raises:
            BadChain: A chain breaks a rule of 2.7.5.
            QueueFull: There are not enough free descriptors.
        """
        self.ring.add_all(chains)

    def send(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> None:
        """Add a chain and show it to the device, as ``add`` and ``kick`` do; the caller looks at the ring then.

        When that was is not noted: ``note`` does it, for a chain that does not come back at once.

        Args:
            readable: The buffers that the device reads, as device addresses and lengths in bytes.
            writable: The buffers that the device writes.
            cookie: What ``reap`` returns with the completion.

        Raises:
            BadChain: The chain breaks a rule of 2.7.5.
            QueueFull: There are not enough free descriptors.
        """
        ring = self.ring
        owed, self._owed = self._owed, True  # as in ``kick``
        try:
            wanted = ring.send(readable, writable, cookie)
        except UvirtioError:  # nothing was sent
            self._owed = owed
            raise
        if wanted or (owed and ring.wants_kick()):
            # What ``notify`` does, without its call.
            self._doorbell.ring(self.index | ring.kick_data << 16 if self._with_data else self.index)
            self.kicks += 1
            self.kicked = ring.published
        self._owed = False

    def kick(self) -> None:
        """Make the added chains available, and notify the device unless it suppresses that (2.7.13)."""
        owed, self._owed = self._owed, True  # until it was given: what a signal handler raises may come before
        if self.ring.publish() or (owed and self.ring.wants_kick()):
            self.notify()  # before all else: the device may be asleep
        self._owed = False
        self.note()

    def show_added(self) -> None:
        """Make the added chains available; the notification, if the device asks for one, comes with ``kick``.

        It comes at once where the device has no other chain: it wakes up while others are added.
        """
        idle = not self.ring.in_flight
        owed, self._owed = self._owed, True  # as in ``kick``
        if not self.ring.publish():
            self._owed = owed
        elif idle:
            self.notify()
            self._owed = False
        self.note()

    def publish(self) -> bool:
        """Make the added chains available, without a notification; whether the device asks for one."""
        wanted = self.ring.publish()
        self.note()
        return wanted

    def note(self) -> None:
        """Note when chains were published."""
        count = self.ring.published
        if count == self._noted:
            return
        now = self._monotonic()
        self._marks[count] = now
        self._noted = count
        if len(self._marks) > self._marks_most:
            self._marks = self._marks_needed()
            self._marks_most = 2 * len(self._marks) + _MARKS

    def _numbers(self) -> list[int]:
        return self.ring.numbers() if self._slots is None else self._slots.numbers()

    def _marks_needed(self) -> dict[int, float]:
        """The times of publication of the chains that are in flight."""
        counts = [*self._marks]  # in their order: they only grow
        places = {bisect_right(counts, number) for number in self._numbers()}
        return {counts[at]: self._marks[counts[at]] for at in sorted(places) if at < len(counts)}

    def ages(self) -> list[tuple[int, float]]:
        """The chains in flight, oldest first: the number of each since the start, and for how many seconds.

        Of fixed slots one that was overtaken by more chains than the ring is long may be older than that.
        """
        now = self._monotonic()
        counts = [*self._marks]
        found = ((number, bisect_right(counts, number)) for number in self._numbers())
        return [(number, now - self._marks[counts[at]]) for number, at in found if at < len(counts)]

    def notify(self) -> None:
        """Notify the device unconditionally: for chains published before DRIVER_OK (3.1.1 forbids it then).

        Whether more is owed the caller knows: other chains may be made available in the same step.
        """
        # 2.9: with NOTIFICATION_DATA a kick carries the end of the new entries.
        self._doorbell.ring(self.index | self.ring.kick_data << 16 if self._with_data else self.index)
        self.kicks += 1
        self.kicked = self.ring.published

    def kick_owed(self) -> None:
        """Notify the device where an exception came between making chains available and that.

        A wait does it when nothing has happened for a while. One that the device did not ask for does no harm.
        """
        if self._owed and self.ring.broken is None:
            self.notify()
            self._owed = False

    def replace_ring(self, ring: Virtqueue, doorbell: Doorbell) -> None:
        """Put in a new ring after a reset of this queue (2.6.1); chains and fixed slots are dropped.

        Args:
            ring: The new ring.
            doorbell: Its doorbell.
        """
        self.ring, self._doorbell, self._slots, self.kicked = ring, doorbell, None, 0
        self._noted, self._marks, self._owed = 0, {}, False

    @property
    def slots(self) -> Slots | None:
        """The fixed slots; None without ``set_fixed``."""
        return self._slots

    def reap(self, limit: int | None = None) -> list[Completion]:
        """Take the chains that the device has used, oldest first (2.7.8).

        Args:
            limit: The most completions to take; None takes all that are there.

        Returns:
            The cookies of the chains, with the bytes that the device says it wrote.

        Raises:
            RingCorruption: A used entry or the used index is invalid.
        """
        done = self.ring.reap(limit)
        self.completions += len(done)
        return done

    def take(self, looks: int = 1) -> tuple[Any, int] | None:
        """Take one chain that the device has used, as ``reap`` does, where the caller has one in flight.

        Args:
            looks: How often to look whether it is used, at most.

        Returns:
            Its cookie, with the bytes that the device says it wrote; None where it is not used yet.

        Raises:
            RingCorruption: A used entry or the used index is invalid.
        """
        came = self.ring.take(looks)
        if came is not None:
            self.completions += 1
        return came

    def set_fixed(self, chains: Sequence[Chain]) -> Slots:
        """Write the descriptors of these chains once, one slot each; then use ``submit`` and ``reap_slots``.

        Args:
            chains: The readable and writable entries of each slot.

        Returns:
            The slots, numbered in the order of ``chains``.
        """
        from uvirtio.virtqueue.slots import fixed_slots  # here: single chains want none of it

        self._slots = fixed_slots(self.ring, chains)
        return self._slots

    def submit(self, slots: Sequence[int], *, show: bool = True) -> None:
        """Make slots available, and notify the device unless it suppresses that. Only after DRIVER_OK (3.1.1).

        Args:
            slots: Numbers of slots that are not with the device.
            show: Let the device see them, and those before them; else ``show`` or ``relay`` does.

        Raises:
            Misuse: The queue has no fixed slots.
            UsageError: A slot is with the device already, or there is none of that number.
        """
        fixed = self._slots or self._fixed()
        owed, self._owed = self._owed, True  # as in ``kick``
        try:
            wanted = fixed.submit(slots, show=show)
        except UvirtioError:  # nothing was submitted
            self._owed = owed
            raise
        if wanted or owed:
            self.notify()
        self._owed = False
        if self.ring.published != self._noted:
            self.note()

    def show(self, count: int) -> None:
        """Let the device see slots that were submitted without, in their order, and notify it if it asks for that.

        Args:
            count: How many, at most ``slots.laid``.

        Raises:
            Misuse: The queue has no fixed slots.
        """
        fixed = self._slots or self._fixed()
        owed, self._owed = self._owed, True  # as in ``kick``
        if fixed.show(count) or owed:
            self.notify()
        self._owed = False
        if self.ring.published != self._noted:
            self.note()

    def relay(self, looks: int, goal: int = 1) -> int:
        """Look for used slots; as soon as there are any, show the device others, at most as many.

        Args:
            looks: How often to look for one more, at most.
            goal: Go on until as many are used, while slots are laid; some rings return sooner.

        Returns:
            A number of slots that are used and not reaped: some, if there are any.

        Raises:
            Misuse: The queue has no fixed slots.
            RingCorruption: The used ring is invalid.
        """
        fixed = self._slots or self._fixed()
        owed, self._owed, kicks = self._owed, True, self.kicks  # as in ``kick``
        came = fixed.relay(looks, self.notify, goal)
        if owed and self.kicks == kicks:
            self.notify()
        self._owed = False
        if self.ring.published != self._noted:
            self.note()
        return came

    def reap_slots(self) -> array[int]:
        """The numbers of the slots that the device returned, in the device's order.

        Raises:
            Misuse: The queue has no fixed slots.
            RingCorruption: A used entry or the used index is invalid.
        """
        slots = self._slots or self._fixed()
        found = slots.reap()
        self.completions += len(found)
        return found

    def post_idle(self) -> None:
        """Submit all slots that are not with the device: where it has all of them but while they are read.

        After an exception of a signal handler's, which may have come in between; what was in them is lost.
        """
        fixed = self._slots or self._fixed()
        with suppress(UvirtioError):  # of a ring that is broken or closed: the caller has an exception already
            if fixed.laid:
                self.show(fixed.laid)
            idle = sorted({*range(fixed.count)}.difference(fixed.out()))
            if idle:
                self.submit(idle)

    def _fixed(self) -> Slots:
        if self._slots is None:
            raise Misuse(
                f"{self.name} (queue {self.index}) has no fixed slots",
                seen="a queue of single chains",
                expected="set_fixed() after the start of the device",
                remedy="call set_fixed() first, or use add(), kick() and reap()",
            )
        return self._slots

    def __repr__(self) -> str:
        return f"<Queue {self.index} {self.name}, {self.ring.kind}, {self.ring.size} entries>"
