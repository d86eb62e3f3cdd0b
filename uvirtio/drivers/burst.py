"""The fast path of a disk: requests of one kind and size, prepared once, sent and reaped many at a time.

A request costs some microseconds of Python: its header, its chain, its object. Here all of these are made at the
start, one slot for each request that can be in flight. Sending one means writing its address and naming its slot;
the ring submits a batch with one copy and reaps it with one comparison. The checks are the same: the answer of
each request, preset to what is no answer, and ids and lengths against what is in flight.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from uvirtio.device import Queue
from uvirtio.drivers.base import Driver
from uvirtio.errors import BadSize, UsageError
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue.slots import Chain

if TYPE_CHECKING:
    from typing import Any

LOOK = 256
"""Calls of ``take`` or ``wait`` between two checks for configuration changes and removal."""

GLANCES = 16
"""Looks at the ring between two looks at the clock."""

LOOKS = 500
"""Looks of ``read`` at the ring, some 30 us, before it looks at the clock."""

TURN = 16
"""Reads that ``read`` sends and delivers at once, at most: the device works while the caller processes them."""

RELAYED = 8
"""Reads that ``read`` with fewer out than slots replaces by others before it checks and delivers them, at most.

More, and a device with 32 of them is done with the rest and asleep before they are delivered.
"""

FEW_OUT, FEW_LOOKS = 32, 2000
"""The same, and looks for each, with fewer out than ``RELAYED``.

At each delivery the device is done with these and goes to sleep, so there are few deliveries, and its waking is
waited for.
"""

POLL = 50e-6
"""Seconds to poll the ring before waiting for an interrupt."""


class BaseBurst:
    """What the bursts of all disks share. There are no views of the data: one that is kept would keep the memory.

    A subclass lays out the memory, calls ``_lay``, and sets the views that are written for each request:
    ``_answers`` with ``_none`` as their preset, and ``_at``, the addresses. It says what addresses are, and what
    they may be, in ``_words``, and what an answer means in ``_check``.
    """

    _answers: memoryview
    """By slot: the answer, or that part of it which is 0 where the request succeeded."""
    _none: bytes | array[int]
    """The preset of the answers, one for each slot: a slice of it can be assigned to a slice of them."""
    _at: memoryview
    """By slot: the address, as the device reads it."""
    _data: list[memoryview]
    """By slot: its data."""
    _copies: list[Callable[[], bytes]]
    """By slot: what copies its data."""

    def __init__(self, driver: Driver, queue: Queue, *, size: int, length: int, count: int, reads: bool) -> None:
        """Take a queue.

        Args:
            driver: The driver.
            queue: A queue that has nothing in flight, used by this burst alone.
            size: Bytes of data of each request.
            length: The same in sectors or blocks, the unit of addresses.
            count: How many requests can be in flight.
            reads: Whether the requests read.
        """
        self.count = count
        """Number of slots."""
        self.slots = array("H", range(count))
        """All slots, for the first ``post``."""
        self.returned = array("H")
        """The slots that the last ``take`` or ``wait`` reaped, also if it raised."""
        self._numbers = self.slots * 2
        self._waits = 0
        self._driver, self._device, self._queue = driver, driver.device, queue
        self._session = driver._session
        self._size, self._length, self._reads = size, length, reads

    def _lay(self, chains: Sequence[Chain]) -> None:
        self._slots = self._queue.set_fixed(chains)
        self._queue.ring.want_interrupts(False)

    def _divide(self, data: memoryview) -> None:
        """Take the memory of the data: that of each slot after that of the one before."""
        size = self._size
        self._data = [data[slot * size : (slot + 1) * size] for slot in range(self.count)]
        self._copies = [view.tobytes for view in self._data]

    def _words(self, starts: Sequence[int]) -> array[int]:
        """The addresses, at least one, as the device reads them; all of each request is checked to be there."""
        raise NotImplementedError

    def _check(self, back: array[int]) -> None:
        """Check the answers of these slots; the first that is none, or an error, is raised."""
        raise NotImplementedError

    def content(self, slot: int) -> bytes:
        """Return a copy of the data of a slot: what was read, once its request is complete."""
        copies = self._copies
        try:
            return copies[slot]()
        except ValueError:
            self._check_open()
            raise

    def contents(self, slots: Iterable[int]) -> list[bytes]:
        """Return copies of the data of several slots, in their order."""
        copies = self._copies
        try:
            return [copies[slot]() for slot in slots]
        except ValueError:
            self._check_open()
            raise

    def _check_open(self) -> None:
        """Raise Closed where the driver was closed: its memory, and the views of it, are gone."""
        with self._session:
            pass

    def fill(self, slot: int, data: bytes | bytearray | memoryview) -> None:
        """Set the data of a write, before its slot is posted.

        Args:
            slot: A slot that is not in flight.
            data: As many bytes as a request has; copied.

        Raises:
            BadSize: ``data`` has another size.
            UsageError: The slot is in flight, or there is none of that number.
        """
        if len(data) != self._size:
            raise BadSize("this does not fill the slot", seen=len(data), expected=f"{self._size} bytes")
        self._check_open()
        self._slots.check([slot])
        self._data[slot][:] = data

    @property
    def in_flight(self) -> int:
        """Requests that were posted and are not complete."""
        return self._queue.ring.in_flight

    def _send(self, slots: array[int], starts: Sequence[int]) -> None:
        """``post``, in a session."""
        session = self._session
        if session.made_here[0]:
            with session.lock:  # what ``with session`` does, without its calls
                if session.works():
                    try:
                        self._post(slots, starts)
                    except BaseException as error:
                        session.left_by(error)
                        raise
                    return
        with session:
            self._post(slots, starts)

    def _come(self, *waiting: Any) -> array[int]:
        """``wait``, in a session, with its arguments, or ``take`` without any."""
        session = self._session
        if session.made_here[0]:
            with session.lock:
                if session.works():
                    try:
                        return self._wait(*waiting) if waiting else self._take()
                    except BaseException as error:
                        session.left_by(error)
                        raise
        with session:
            return self._wait(*waiting) if waiting else self._take()

    def _post(self, slots: array[int], starts: Sequence[int], *, show: bool = True) -> None:
        count = len(slots)
        if count != len(starts):
            raise UsageError("each slot needs an address", seen=len(starts), expected=count)
        if not count:
            return
        words = self._words(starts)
        self._slots.check(slots)
        first, answers, at, none = slots[0], self._answers, self._at, self._none
        end = first + count
        if slots != self._numbers[first:end]:
            nothing = none[0]
            for slot, word in zip(slots, words, strict=True):
                answers[slot] = nothing
                at[slot] = word
        elif end <= self.count:  # consecutive
            answers[first:end] = none[:count]
            at[first:end] = words
        else:  # with a wrap at the end
            fits, over = self.count - first, end - self.count
            answers[first:], answers[:over] = none[:fits], none[fits:count]
            at[first:], at[:over] = words[:fits], words[fits:]
        self._queue.submit(slots, show=show)

    def _take(self) -> array[int]:
        self._waits += 1
        if not self._waits % LOOK:
            self._device.service()  # as the wait loop does, which does not run here
        self.returned = back = self._queue.reap_slots()
        if back:
            self._check(back)
        return back

    def _wait(self, timeout: float | None, poll: float) -> array[int]:
        """Wait for complete requests, at least one; within a session."""
        device = self._device
        self._waits += 1
        if not self._waits % LOOK:
            device.service()  # as the wait loop does, which does not run here
        back = self._queue.reap_slots()
        if not back:
            if not self.in_flight:
                raise UsageError("no request is in flight", expected="post() before wait()")
            self._await(device.seconds(timeout), poll)
            back = self._queue.reap_slots()
        self.returned = back
        self._check(back)
        return back

    def _await(self, timeout: float, poll: float) -> int:
        """Poll, then sleep, until a request is complete; how many are, at least. What is laid is sent then."""
        relay, clock = self._queue.relay, time.perf_counter
        until = clock() + min(poll, timeout)
        while clock() < until:
            count = relay(GLANCES)
            if count:
                return count
        ready = self._slots.ready
        self._sleep(lambda: ready() > 0, timeout, "a request in flight")
        return relay(1)

    def _sleep(self, ready: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait for interrupts, which are suppressed otherwise."""
        ring = self._queue.ring
        ring.want_interrupts(True)
        try:
            self._device.wait(ready, timeout=timeout, what=what)
        finally:
            if ring.broken is None:
                ring.want_interrupts(False)

    def _read(self, starts: Iterable[int], out: int | None) -> Iterator[tuple[int, bytes]]:
        """Read from many addresses, with as many requests in flight as there are slots, or ``out``.

        With fewer in flight than there are slots, the next requests are in the ring before they are due, and are
        sent as soon as others are complete, even before those are checked: within a microsecond or two, so that a
        device which has nothing else to do has no time to go to sleep.
        """
        if not self._reads:
            raise UsageError("this burst writes", seen="writes", expected="reads")
        if out is not None and not 0 < out <= self.count:
            raise UsageError("a burst has no more requests in flight than slots", seen=out, expected=self.count)
        if out is not None and out < self.count:
            return self._read_ahead(iter(starts), out)
        return self._read_all(iter(starts))

    def _read_all(self, wanted: Iterator[int]) -> Iterator[tuple[int, bytes]]:
        """``read`` with as many in flight as there are slots."""
        session, copies = self._session, self._copies
        where = [0] * self.count
        idle, came = self.slots[:], self.slots[:0]
        try:
            while True:
                batch = list(islice(wanted, min(len(idle), TURN)))
                with session:
                    if batch:  # on the slots that came back last
                        rest = len(idle) - len(batch)
                        now, idle = idle[rest:], idle[:rest]
                        for slot, start in zip(now, batch, strict=True):
                            where[slot] = start
                        self._post(now, batch)
                    if not came and self.in_flight:
                        came = self._take() if batch and idle else self._wait(None, POLL)
                    elif not (batch or came):
                        return
                back, came = came[:TURN], came[TURN:]
                # Copies, so that their slots can be sent again.
                found = [(where[slot], copies[slot]()) for slot in back]
                idle += back
                yield from found
        finally:
            self._leave()

    def _read_ahead(self, wanted: Iterator[int], most: int) -> Iterator[tuple[int, bytes]]:
        """``read`` with at most this many in flight; the other slots have been delivered, or are laid already."""
        where = [0] * self.count
        device, copies, session = self._device, self._copies, self._session
        ring, relay = self._queue.ring, self._queue.relay
        idle, many, more, behind = self.slots[:], min(self.count // 2, self.count - most), True, True
        turn, looks = (FEW_OUT, FEW_LOOKS) if most < RELAYED else (RELAYED, LOOKS)
        turn = min(turn, many)
        try:
            while True:
                batch: list[int] = []
                if more and len(idle) >= many:  # else some are laid; many at a time cost little more than one
                    batch = list(islice(wanted, min(len(idle), max(many, most - ring.in_flight))))
                    more = len(batch) > 0
                with session:
                    if batch:
                        now, idle = idle[: len(batch)], idle[len(batch) :]
                        for slot, start in zip(now, batch, strict=True):
                            where[slot] = start
                        self._post(now, batch, show=False)
                    if behind:
                        self._show(most - ring.in_flight)
                        if not ring.in_flight:
                            return
                    if not relay(looks, turn):  # others are sent before what has come is looked at
                        self._await(device.timeout, POLL)
                    back = self._take()
                    behind = ring.in_flight < most
                found = [(where[slot], copies[slot]()) for slot in back]
                idle += back
                yield from found
        finally:
            self._leave()

    def _show(self, count: int) -> None:
        """Send the requests that were laid first: as many as others are complete, or were never sent."""
        count = min(count, self._slots.laid)
        if count > 0:
            self._queue.show(count)

    def _leave(self) -> None:
        """Leave nothing in flight, which later calls would take for their own."""
        if self._device.broken is None and (self.in_flight or self._slots.laid):
            self._show(self._slots.laid)
            self.settle(self._device.timeout)

    def settle(self, timeout: float) -> None:
        """Wait until nothing is in flight; what completes is discarded.

        Args:
            timeout: Seconds to wait.

        Raises:
            DeviceTimeout: Requests are still in flight.
            RingCorruption: The used ring holds what cannot be.
        """

        def ready() -> bool:
            self._queue.reap_slots()
            return not self.in_flight

        if not ready():
            self._sleep(ready, timeout, "the requests of a burst")

    def release(self) -> None:
        """Release the views of the device's memory, before it is freed."""
        for view in (self._answers, self._at, *self._data):
            view.release()
