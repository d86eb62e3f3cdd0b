"""What a test is given: the steps of 3.1.1 as an ordinary driver makes them, good requests, and interrupts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from uvirtio.conform.exchange import BESIDE, EXCHANGES, Elements, Exchange
from uvirtio.conform.lane import Lane, Posted, Used
from uvirtio.conform.levers import Change, lever
from uvirtio.conform.steps import Consent, Pace, ResetMissed, Steps
from uvirtio.conform.verdict import Unfit, Violated
from uvirtio.interfaces.transport import ResetsQueues
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f
from uvirtio.spec.status import Status, describe

__all__ = ["Arrived", "Consent", "Pace", "ResetMissed", "Trial"]


class Arrived(NamedTuple):
    """The interrupts that were taken."""

    vectors: frozenset[int]
    """With MSI-X: the vectors that fired."""
    config: bool
    """A configuration-change notification, or an interrupt that may be one."""
    queues: bool
    """A used-buffer notification, or an interrupt that may be one."""

    def __bool__(self) -> bool:
        return self.config or self.queues or bool(self.vectors)


class Trial(Steps):
    """A device after a confirmed reset, in the hands of a test."""

    own_request: type[Exchange] | None = None
    """The class of the good request that the caller of the run has for the device."""

    # --- bring-up (3.1.1) -------------------------------------------------------------------------------------

    @property
    def plain(self) -> int:
        """The fewest bits with which the device can be used: what every test accepts that says nothing else."""
        wanted = f.mask(f.VERSION_1, f.ACCESS_PLATFORM)
        if self.packed:
            wanted |= f.mask(f.RING_PACKED)
        if self.legacy:
            wanted = f.mask(f.ANY_LAYOUT)
        if self.request_type is not None:
            wanted |= self.request_type.features
        return self.offered & wanted

    @property
    def exchange(self) -> Exchange:
        """The good request of this type.

        Raises:
            Unfit: There is none for this type.
        """
        if self.request_type is None:
            raise Unfit(f"data path not tried: there is no request of {self.type} here")
        return self.request_type()

    @property
    def request_type(self) -> type[Exchange] | None:
        """The class of the good request; None: there is none for this type."""
        return self.own_request or EXCHANGES.get(self.type)

    def prepare(
        self,
        *,
        also: int = 0,
        features: int | None = None,
        queues: Sequence[int] | None = None,
        size: int | None = None,
        interrupts: bool | Sequence[InterruptMode] = False,
    ) -> Lane:
        """Bring the device up to where only DRIVER_OK is missing (3.1.1).

        Args:
            also: Feature bits beside the plain ones.
            features: Instead of the plain ones.
            queues: What to enable; None: the queue of the good request with those beside it, or queue 0.
            size: Entries of each; None: up to 64.
            interrupts: Connect them: True for the best mode that works, or the modes; else the device is polled.

        Returns:
            The first of the queues.

        Raises:
            Unfit: The device does not take the features, or has no such queue.
        """
        features = self.plain | also if features is None else features
        status = self.negotiate(features)
        if not self.legacy and not status & Status.FEATURES_OK:
            raise Unfit(f"it refuses the features {features:#x}: status {describe(status)}")
        if queues is None:
            queues = [0 if self.request_type is None else self.request_type.queue, *BESIDE.get(self.type, ())]
        chosen = tuple(InterruptMode) if interrupts is True else tuple(interrupts or ())
        modes = chosen or (InterruptMode.POLLING,)
        self._order = list(queues)
        self.transport.connect_interrupts(queues, modes)
        for index in queues:
            self.lane(index, size)
        return self.lanes[queues[0]]

    def go(self) -> None:
        """Let the device do DMA, and set DRIVER_OK."""
        self.transport.dma_enable(True)
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK
        self.set_status(status if self.legacy else status | Status.FEATURES_OK)

    def start(
        self,
        *,
        also: int = 0,
        features: int | None = None,
        queues: Sequence[int] | None = None,
        size: int | None = None,
        interrupts: bool | Sequence[InterruptMode] = False,
    ) -> Lane:
        """Bring the device up; parameters and result are those of ``prepare``."""
        lane = self.prepare(also=also, features=features, queues=queues, size=size, interrupts=interrupts)
        self.go()
        return lane

    def up(self, also: int = 0) -> None:
        """Bring the device up without any queue.

        Args:
            also: Feature bits beside the plain ones.
        """
        self.negotiate(self.plain | also)
        self.go()

    # --- traffic --------------------------------------------------------------------------------------------

    def request(self, lane: Lane) -> tuple[Elements, Posted]:
        """Lay one good request, not yet visible.

        Args:
            lane: The queue for it.
        """
        elements = self.exchange.elements(self)
        return elements, lane.chain(*elements)

    def good(self, lane: Lane, count: int = 1) -> list[Posted]:
        """Make good requests one after the other, each with a kick, and check the answers.

        Args:
            lane: The queue for them.
            count: How many.

        Raises:
            Violated: One was not used in time, or was answered wrongly.
        """
        done = []
        for _ in range(count):
            elements, posted = self.request(lane)
            lane.publish(posted)
            lane.kick()
            self.await_used(lane, 1)
            self.right(elements, posted)
            done.append(posted)
        return done

    def right(self, elements: Elements, posted: Posted) -> None:
        """Check the answer to a good request.

        Raises:
            Violated: It did not come back, or is wrong.
        """
        self.expect(posted.length is not None, "the used ring names another chain", "the chain that was posted")
        wrong = self.exchange.wrong(elements, posted)
        if wrong is not None:
            raise Violated(wrong, "a good request that is served")

    def await_used(self, lane: Lane, count: int) -> list[Used]:
        """Wait for used elements.

        Args:
            lane: Their queue.
            count: How many.

        Raises:
            Violated: They did not come in time.
        """
        found: list[Used] = []

        def done() -> bool:
            found.extend(lane.take())
            return len(found) >= count

        self.owe(done, f"{len(found)} of {count} requests were used", f"{count} used elements")
        return found

    def serve(self, lane: Lane, posted: Posted, seconds: float | None = None) -> bool:
        """Wait whether a chain is used, or the device gives up; for tests in which silence is an answer.

        Args:
            lane: Its queue.
            posted: The chain.
            seconds: How long; None: the deadline.
        """

        def done() -> bool:
            lane.take()
            return posted.length is not None or bool(self.status() & Status.DEVICE_NEEDS_RESET)

        self.until(done, self.pace.deadline if seconds is None else seconds)
        lane.take()
        return posted.length is not None

    def again(self, index: int, size: int | None = None) -> Lane:
        """Make and enable a queue again that was reset by itself (2.6.1.2); the old ring is kept for comparison.

        Args:
            index: The queue; ``transport.queue_is_reset`` is asked first, which releases its doorbell.
            size: Entries; None: up to 64.
        """
        if isinstance(self.transport, ResetsQueues):
            self.transport.queue_is_reset(index)
        self.retire(index)
        return self.lane(index, size)

    def lever(self) -> Change:
        """What changes the configuration from outside; the row needs ``host``.

        Raises:
            Unfit: There is no way to do that here.
        """
        return lever(self.device)

    # --- interrupts (2.3, 4.1.5.3, 4.2.3.4) ------------------------------------------------------------------

    def arrived(self) -> Arrived:
        """Take the interrupts that are pending, without waiting."""
        if self._vectors:
            taken = frozenset(number for number, event in enumerate(self._vectors) if event.take())
            return Arrived(taken, bool(taken), bool(taken))
        transport = self.transport
        mode = transport.interrupt_mode
        if transport.kind.startswith("pci") and mode in (InterruptMode.PER_QUEUE, InterruptMode.SHARED):
            removal = getattr(transport.backend, "removal", None)
            events = [event for event in transport.events() if event is not removal]
            fired = frozenset(number for number, event in enumerate(events) if event.take())
            return Arrived(fired, 0 in fired, bool(fired - {0}) or (len(events) == 1 and bool(fired)))
        causes = transport.causes()
        return Arrived(frozenset(), causes.config, causes.queues)

    def notified(self, lane: Lane, arrived: Arrived) -> bool:
        """Whether interrupts that were taken tell of used buffers of a queue.

        Args:
            lane: The queue.
            arrived: What ``arrived()`` returned.
        """
        pci = self.transport.kind.startswith("pci")
        if pci and self.transport.interrupt_mode is InterruptMode.PER_QUEUE:
            return 1 + self._order.index(lane.index) in arrived.vectors
        return arrived.queues

    def await_interrupt(self, lane: Lane) -> None:
        """Wait for a used-buffer notification.

        Args:
            lane: Of this queue.

        Raises:
            Violated: None came in time.
        """
        self.owe(
            lambda: self.notified(lane, self.arrived()), "no used-buffer notification came", "an interrupt (2.3)"
        )

    def no_interrupt(self, lane: Lane) -> bool:
        """Watch that no used-buffer notification comes; whether none came.

        Args:
            lane: Of this queue.
        """
        return self.quiet(lambda: self.notified(lane, self.arrived()))
