"""What the drivers of all disks share: their request queues, waiting for room and for what is in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from operator import index as integer
from typing import Any, Generic, Protocol, TypeVar

from uvirtio.device import Queue
from uvirtio.drivers.base import Driver
from uvirtio.drivers.burst import BaseBurst
from uvirtio.errors import BadSize, Closed, QueueFull, UsageError, UvirtioError
from uvirtio.spec.page import VIRTIO_PAGE
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue import Completion, SgEntry

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import DmaSpace

POLL = 200e-6
"""Seconds for which a wait looks at the rings, at most, before it waits for an interrupt."""

_SKIPPED = 16
"""Waits that do not look after several looks in vain, at most: one after the first, then twice as many each."""

_GLANCES = 16
"""Looks at the rings between two looks at the clock."""

LOOK = 256
"""Waits between two checks for configuration changes and removal, at most, which the wait loop makes too."""


REQUEST_SIZE_MAX = 64 << 20
"""Bytes of data of one request, at most: no device here takes as many, and their memory costs seconds."""


class SlottedQueue(Protocol):
    """A request queue and the slots of its requests."""

    queue: Queue
    depth: int
    """Slots."""
    size: int
    """Bytes of data of one request, at most."""

    @property
    def slots(self) -> Sequence[Any]:
        """All slots, free or not."""
        ...

    @property
    def free(self) -> list[Any]:
        """Those that no request has."""
        ...

    @property
    def laid(self) -> Sequence[Any]:
        """Chains that are not in the ring yet; the third of each is its slot."""
        ...

    @property
    def out(self) -> int:
        """Requests in flight."""
        ...


class Submitted(Protocol):
    """A request that was submitted."""

    done: bool


Q = TypeVar("Q", bound=SlottedQueue)
R = TypeVar("R", bound=Submitted)


class BaseRequestQueues(Generic[Q, R]):
    """All request queues of a started driver.

    A subclass submits, and says in ``_finish`` what a completion means.
    """

    def __init__(self, driver: Driver, queues: Iterable[Q]) -> None:
        """Take the queues.

        Args:
            driver: The driver. Its device has its queues, and DRIVER_OK is not set yet.
            queues: The request queues, at least one, by index.
        """
        self._driver, self._device = driver, driver.device
        self._free = list(queues)
        """Queues that are not taken by a burst."""
        self.count = len(self._free)
        """Request queues, including those of bursts."""
        self.depth = min(one.depth for one in self._free)
        """Requests of one queue that can be in flight."""
        self.request_size = min(one.size for one in self._free)
        """Bytes of data of one request, at most."""
        self._first = self._free[0].queue
        self._turn = 0
        self.looks = True
        """Whether waits look at the rings before they sleep, with interrupts suppressed."""
        self._silent = False
        """Whether interrupts are suppressed: a wait looks at the rings itself."""
        self._waits = 0
        self._skip = self._skipping = 0  # waits that do not look at the rings first: of these, how many are left

    def _finish(self, requestq: Q, done: Sequence[Completion]) -> UvirtioError | None:
        """Judge requests that are complete; the first error, where an answer is none of the standard's."""
        raise NotImplementedError

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and are not complete."""
        return sum(one.out for one in self._free)

    # --- which queue ----------------------------------------------------------------------------------------

    def _live(self) -> list[Q]:
        """The queues that take requests; an error if the driver is closed, or bursts have taken all of them."""
        if self._device.queues.get(self._first.index) is not self._first:
            raise Closed(f"the driver of {self._device.address} was closed")
        if not self._free:
            name = type(self._driver).__name__
            raise UsageError(
                f"all request queues of {self._device.address} are taken by bursts",
                seen=self.count,
                expected="a queue that is free",
                remedy=f"{name}(device, queues=2) where the device has several, or a {name} without a burst",
            )
        return self._free

    def _numbered(self, index: int | None) -> list[Q]:
        """Only the queue of this index; None: all, the next one in turn first."""
        live = self._live()
        if index is None:
            if len(live) == 1:
                return live
            self._turn = (self._turn + 1) % len(live)
            return live[self._turn :] + live[: self._turn]
        found = [one for one in live if one.queue.index == index]
        if not found:
            told = ", ".join(str(one.queue.index) for one in live)
            raise UsageError("there is no such queue", seen=index, expected=told)
        return found

    def idle(self, index: int | None) -> Q:
        """Return a queue that has nothing in flight.

        Args:
            index: Its index; None: the last queue.

        Raises:
            UsageError: Requests are in flight on it, there is no such queue, or bursts have taken all queues.
            Closed: The driver was closed.
        """
        requestq = self._live()[-1] if index is None else self._numbered(index)[0]
        if requestq.out:
            raise UsageError(
                f"{requestq.queue.name} has requests in flight",
                seen=requestq.out,
                expected="0",
                remedy="wait() for them first",
            )
        return requestq

    def remove(self, requestq: Q) -> None:
        """Stop using a queue for single requests, because a burst takes it."""
        self._free = [one for one in self._free if one is not requestq]

    # --- submitting -----------------------------------------------------------------------------------------

    def _add(
        self,
        requestq: Q,
        readable: Sequence[SgEntry],
        writable: Sequence[SgEntry],
        slot: Any,
        timeout: float | None,
    ) -> None:
        """Add a chain; its cookie is the slot."""
        ring = requestq.queue.ring
        while True:
            try:
                return requestq.queue.add(readable, writable, slot)
            except QueueFull:
                requestq.queue.kick()
                if not ring.in_flight:
                    raise
                # The ring has too few free descriptors for the chain, though a slot was free.
                self._await(lambda: self._gather() > 0, timeout, "one of the requests that are out")

    def _unsent(self, slot: Any) -> None:
        """Free the slot of a request that was not added. What a signal handler raises may come after it was.

        Args:
            slot: The slot; None: it was taken, at most.
        """
        if slot is not None and not any(one is slot for one in slot.requestq.queue.ring.cookies()):
            slot.request = None
        self.recover()

    def kick(self) -> None:
        """Notify the device of requests that were submitted without a kick.

        Raises:
            UsageError: Bursts have taken all queues.
            Closed: The driver was closed.
        """
        for requestq in self._live():
            self._lay(requestq)
            requestq.queue.kick()

    def _lay(self, requestq: Q) -> None:
        """Put into the ring what was submitted and is not there yet, where a driver keeps such requests back."""

    # --- completion -----------------------------------------------------------------------------------------

    def wait(self, requests: Iterable[R] | None = None, *, timeout: float | None = None) -> None:
        """Wait until requests are complete, successful or not; errors are in the requests.

        Args:
            requests: What to wait for; None: all that are in flight.
            timeout: Seconds, for all of them; the device's own where None.

        Raises:
            DeviceTimeout: They did not complete in time; the device counts as broken then.
            ProtocolError: The answer of one is invalid.
            UsageError: Bursts have taken all queues.
            Closed: The driver was closed.
        """
        with self._driver.session(timeout):
            left = None if requests is None else [one for one in requests if not one.done]
            alone = left is None or len(left) == self.in_flight

            def ready() -> bool:
                self._gather()
                if left is None:
                    return not self.in_flight
                while left and left[-1].done:
                    del left[-1]
                return not left

            try:
                self._look_around()
                if not alone:
                    self._listen()
                elif not self._skipping:
                    self._silence()
                self.kick()
                if not ready():
                    many = "requests in flight" if left is None else f"{len(left)} request{'s' * (len(left) != 1)}"
                    self._look_then_wait(ready, timeout, many)
            except BaseException:
                self._leave_wait()
                raise

    def _await(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        self._look_around()
        if not ready():
            self._look_then_wait(ready, timeout, what)

    def _look_then_wait(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Wait until ``ready()``, which ``collect`` makes true: waking up costs more than most requests take."""
        device = self._device
        seconds = device.seconds(timeout)
        if not self._look(ready, min(POLL, seconds)):
            self._listen()
            device.wait(ready, timeout=seconds, what=what)

    def _look(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Look at the rings for a while, where that has been of use; whether ``ready()``."""
        self._look_around()
        if not self.looks:
            return False
        if self._skipping:
            self._skipping -= 1
            return False
        looks = [requestq.queue.ring.pending for requestq in self._free]
        clock, found = self._device.clock.monotonic, False
        end = clock() + seconds
        while True:  # it looks at least once, however late it is
            for _ in range(_GLANCES):
                for look in looks:
                    if look():
                        found = True
                        if ready():
                            self._skip = 0
                            return True
            if clock() >= end:
                break
        self._skip = self._skipping = 0 if found else min(_SKIPPED, 2 * self._skip or 1)
        return False

    def _look_around(self) -> None:
        """Look now and then at what the wait loop looks at, which does not run where the rings are enough."""
        self._waits += 1
        if not self._waits % LOOK:
            self._device.service()

    def _silence(self) -> None:
        """Suppress interrupts: a device that is looked at need not make one, nor the kernel deliver it.

        Only where no other request is in flight, for which an event loop of the caller's might expect one.
        """
        if self.looks and not self._silent:
            self._silent = True  # first: an exception may come between the two
            for requestq in self._free:
                requestq.queue.ring.want_interrupts(False)

    def _listen(self) -> None:
        """Enable interrupts: before a last look and a wait, or before a device sees what is not waited for."""
        if self._silent:
            for requestq in self._free:
                if requestq.queue.ring.broken is None:
                    requestq.queue.ring.want_interrupts(True)
            self._silent = False

    def _leave_wait(self) -> None:
        """Enable interrupts after an exception: a wait that it ended while looking leaves requests in flight.

        What is complete by then causes no interrupt any more (2.7.14, 2.8.22), and is reaped here.
        """
        self.recover()
        with suppress(UvirtioError):  # the exception is what the caller learns
            # All rings ask again: a reap that was ended may not have asked for the next interrupt.
            self._silent = True
            self._listen()
            self.collect()

    def recover(self) -> None:
        """Put the books in order after an exception of a signal handler's, which may come between any two steps.

        What is neither in the ring nor on its way there is free. If its request was not complete by then, it was
        reaped, and not judged: that is done now, by its answer; the used length is lost.
        """
        for requestq in self._free:
            out = {id(slot) for slot in requestq.queue.ring.cookies()} | {id(entry[2]) for entry in requestq.laid}
            free = {id(slot) for slot in requestq.free}
            for slot in requestq.slots:
                if id(slot) not in out and id(slot) not in free and slot.request is not None:
                    self._finish(requestq, [Completion(slot, slot.full)])
            requestq.free[:] = [slot for slot in requestq.slots[::-1] if id(slot) not in out]

    def collect(self) -> int:
        """Reap complete requests, without waiting.

        Returns:
            How many there were.

        Raises:
            ProtocolError: An answer is invalid; raised when all were reaped.
            UsageError: Bursts have taken all queues.
            Closed: The driver was closed.
        """
        self._live()
        try:
            return self._gather()
        except UvirtioError:
            raise
        except BaseException:
            self._leave_wait()
            raise

    def _gather(self) -> int:
        """Do what ``collect`` does, in a session of the driver's, in which it is not closed."""
        count = 0
        invalid: UvirtioError | None = None
        for requestq in self._free:
            self._lay(requestq)  # before others come back, whose descriptors it would take
            done = requestq.queue.reap()
            if done:
                count += len(done)
                found = self._finish(requestq, done)
                invalid = invalid or found
        if invalid is not None:
            raise invalid
        return count


class RequestDriver(Driver):
    """A driver whose requests are submitted many at a time, one by one or by bursts.

    A subclass sets ``_bursts`` before the device is started, and ``_requests`` before DRIVER_OK.
    """

    _requests: BaseRequestQueues[Any, Any]
    _bursts: Sequence[BaseBurst]

    def _give_back(self, working: bool) -> None:
        """Wait for the requests in flight, if the device still works."""
        if working and self.in_flight:
            self._requests.recover()
            self._requests.wait()
        for burst in self._bursts if working else ():
            burst.settle(self.device.timeout)

    def rely_on_interrupts(self) -> None:
        """Sleep in each wait, with interrupts on, and do not look at the rings first: to see whether they come."""
        with self.session():
            self._requests.looks = False
            self._requests._listen()

    @property
    def queue_count(self) -> int:
        """Request queues, including those of bursts."""
        return self._requests.count

    @property
    def depth(self) -> int:
        """Requests of one queue that can be in flight."""
        return self._requests.depth

    @property
    def request_size(self) -> int:
        """Bytes of data of one request, at most, within the device's limits.

        These are size_max and seg_max of a block device (5.2.4), seg_max and max_sectors of a SCSI host (5.6.4).
        """
        return self._requests.request_size

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and are not complete."""
        return self._requests.in_flight

    def kick(self) -> None:
        """Notify the device of requests that were submitted without a kick."""
        with self.session():
            self._requests._listen()
            self._requests.kick()


def options(depth: int, request_size: int, queues: int, unit: int) -> tuple[int, int, int]:
    """Return the options of a disk's driver as integers, for which its memory can be.

    Args:
        depth: Requests of one queue that can be in flight.
        request_size: Bytes of data of one request, at most.
        queues: Request queues.
        unit: Of what ``request_size`` is a multiple, in bytes.

    Raises:
        UsageError: ``depth`` or ``queues`` is below 1.
        BadSize: ``request_size`` is no multiple of ``unit``, or none that a request can have.
    """
    depth, request_size, queues = integer(depth), integer(request_size), integer(queues)
    if depth < 1 or queues < 1:
        raise UsageError(
            "a disk needs a queue, and a queue a depth", seen=(queues, depth), expected="1 or more of each"
        )
    if not unit <= request_size <= REQUEST_SIZE_MAX or request_size % unit:
        raise BadSize(
            "no request carries so much",
            seen=request_size,
            expected=f"a multiple of {unit} bytes, at most {REQUEST_SIZE_MAX >> 20} MiB",
        )
    return depth, request_size, queues


def burst_depth(queue: Queue, depth: int) -> int:
    """Return the depth of a burst as an integer that its queue can have.

    Raises:
        UsageError: It is below 1.
        QueueFull: The queue has fewer entries.
    """
    depth = integer(depth)
    if depth < 1:
        raise UsageError("a burst has requests in flight", seen=depth, expected="1 or more")
    if depth > queue.ring.size:
        raise QueueFull(
            f"{queue.name} has too few descriptors for so many requests",
            seen=f"{queue.ring.size} descriptors",
            expected=f"{depth} or more",
            remedy="a burst of a lower depth",
        )
    return depth


def carried(dma: DmaSpace, elements: int, element: int) -> int:
    """Return the bytes of data that so many elements of a chain carry, at most, unless by chance; whole pages.

    Args:
        dma: The memory of the device, which may come in short runs.
        elements: Elements.
        element: Bytes of one of them, at most.
    """
    most = elements * min(element, max(VIRTIO_PAGE, dma.contiguous_limit))
    return -(-most // VIRTIO_PAGE) * VIRTIO_PAGE


def first(runs: Sequence[SgEntry], length: int) -> list[SgEntry]:
    """Return the first ``length`` bytes of these runs."""
    made: list[SgEntry] = []
    for address, size in runs:
        if length <= 0:
            break
        made.append((address, min(size, length)))
        length -= size
    return made
