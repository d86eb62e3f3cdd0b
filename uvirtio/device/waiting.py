"""The wait loop, which every wait for a device goes through.

Each iteration takes the pending interrupts, checks the condition, and sleeps until the next event or for a while.
The loop relies on no interrupt for longer than a tenth of a second, keeps its deadline, backs off during interrupt
storms, and can be ended from a signal handler and from another thread. The lifecycle stays in ``Device``; the loop
needs only the ``Waited`` protocol.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import inf

from uvirtio.device.counters import Counters
from uvirtio.device.evidence import of_queue
from uvirtio.device.listener import Listener
from uvirtio.device.polling import PollWindow
from uvirtio.device.storm import InterruptStorm
from uvirtio.errors import Closed, DeviceGone, DeviceTimeout, UvirtioError
from uvirtio.host import limits
from uvirtio.interfaces.runtime import USED, HasQueueEvents, after_removal
from uvirtio.interfaces.values import InterruptMode
from uvirtio.memory.clock import clock_of
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.device.evidence import HasBooks
    from uvirtio.interfaces.transport import Transport
    from uvirtio.typed import Protocol

    class Waited(Protocol):
        """The part of a device that the wait loop needs; ``Device`` documents its members."""

        address: str
        closing: bool
        leaving: bool
        pulse: Callable[[], None] | None

        @property
        def queues(self) -> Mapping[int, HasBooks]:
            """The enabled queues by their index."""
            ...

        @property
        def completions(self) -> int:
            """Chains that the device returned on all queues."""
            ...

        def check_owner(self) -> None:
            """Check that this process opened the device."""
            ...

        def given(self, seconds: float) -> float:
            """The time-out that a wait of so many seconds had, for errors."""
            ...

        def put_off(self, seconds: float) -> None:
            """Put off the deadline of the session."""
            ...

        def check_status(self) -> int:
            """Read the status and check that the device still works."""
            ...


POLL_FIRST, POLL_LAST = 50e-6, 10e-3
"""Seconds between polls of something that causes no interrupt, growing from the first to the last."""

_SLICE = 0.1
"""Seconds. No wait relies on an interrupt for longer than this: a lost one costs time, never progress."""

_LIKELY = 1e-3
"""Seconds. For as long a vector that fired at each look is tried without a look at the other events."""

_OVERSLEPT = 0.5
"""Seconds. Waking this much later than asked means that this process was stopped, not that the device was slow."""


Fired = tuple[tuple[int, int], ...]
"""File descriptors that can be read, each with its epoll events."""


class WaitLoop:
    """The wait loop of one device, and its counters."""

    def __init__(self, device: Waited, transport: Transport, poll: float) -> None:
        """Make the loop; it opens an eventfd, which ``close`` closes.

        Args:
            device: The device.
            transport: Its transport, whose events the loop takes.
            poll: The longest time to busy-poll before sleeping, in seconds; 0: none.
        """
        self._device = device
        self._transport = transport
        self.counters = Counters()
        self.interrupted = False
        self._clock = clock_of(transport)
        self._monotonic = self._clock.monotonic
        self._poll = PollWindow(poll)
        self._storm = InterruptStorm()
        self._interruption: BaseException | None = None
        self._closed = False
        self._waking = threading.RLock()  # reentrant: a signal handler may wake, too
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._listener = Listener(self._clock.epoll)
        self._done = 0  # chains that had come back at the last sleep: only an interrupt can be for nothing
        self._takers: Mapping[Fired, Callable[[], bool]] = {}
        """By what fired, while ``_listener`` has it: what takes it, where that says nothing but used buffers."""
        self._taker: Callable[[], bool] | None = None  # the one of the last look
        self._found: Callable[[], bool] | None = None  # the one of the last wait's first look
        self._likely: Callable[[], bool] = _nothing_fired
        self._likely_until = 0.0
        """Until then the first look of a wait is ``_likely``, as long as that takes an interrupt each time."""
        self._fired: Sequence[tuple[int, int]] | None = None  # what woke the loop just now; None: not asked yet
        self._look_at = 0.0  # when all events are looked at again, fired or not

    # --- from outside ---------------------------------------------------------------------------------------

    def interrupt(self, reason: BaseException) -> None:
        """Make the loop raise ``reason`` at its next iteration. Safe in a signal handler."""
        self._interruption = reason
        self.wake()

    def wake(self) -> None:
        """End the loop's sleep, from any thread, also when another one has closed the loop."""
        with self._waking:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def quieten(self) -> None:
        """Take back ``wake``, which would end each later sleep, too."""
        with self._waking, suppress(BlockingIOError):
            if not self._closed:
                os.eventfd_read(self._wake)

    def forget(self) -> None:
        """Stop listening to the device's events, before they are closed."""
        self._listener.forget()
        self._fired, self._takers, self._found, self._likely_until = None, {}, None, 0.0

    def close(self) -> None:
        """Close the eventfd; nothing may wait any more. Idempotent."""
        self.forget()
        with self._waking:
            closed, self._closed = self._closed, True
            if not closed:
                os.close(self._wake)

    # --- the loop -------------------------------------------------------------------------------------------

    def wait(
        self, ready: Callable[[], bool], timeout: float | None, what: str, owed: bool, watch: Sequence[int]
    ) -> bool:
        """Wait until ``ready()``; ``Device.wait`` documents it, and holds a session around this.

        Args:
            ready: Whether the wait is over.
            timeout: Seconds; None: no limit.
            what: What is waited for, for errors.
            owed: Whether a time-out is an error of the device.
            watch: File descriptors of the caller's own that also end a sleep.

        Returns:
            False where the time-out passed and ``owed`` is False.

        Raises:
            DeviceTimeout: The time-out passed and ``owed`` is True.
            DeviceNeedsReset: DEVICE_NEEDS_RESET or FAILED is set (2.1.1).
            DeviceResetByOther: The status reads 0, and this process did not reset the device.
            DeviceGone: The device was removed.
            Closed: The device was closed during the wait.
        """
        now = begin = self._monotonic()
        if now < self._likely_until and self._interruption is None and self._likely():
            self.interrupted = True
            self.counters.interrupts_taken += 1
        elif self._take(now):
            self._expect(now)
        else:
            self._found, self._likely_until = None, 0.0
        if ready():  # for most waits, so before all that is needed to sleep
            return True
        device, monotonic, polled = self._device, self._monotonic, False
        deadline = inf if timeout is None else begin + timeout
        next_check = begin + _SLICE
        if deadline <= next_check:  # else at the first check
            self._kick_owed()
        while True:
            if now >= next_check:
                device.check_status()
                self._kick_owed()
                next_check = now + _SLICE
                if device.pulse is not None:
                    device.pulse()
            if now >= deadline:  # ``now`` is from before the look, so that the last look is after the deadline
                if not owed:
                    return False
                assert timeout is not None
                device.check_status()
                raise DeviceTimeout(
                    f"{device.address}: timed out after {device.given(timeout):g} s waiting for {what}",
                    seen=self._stalled(),
                    expected=what,
                    remedy="see the log of the device or its host",
                )
            asleep = monotonic()
            left = deadline - asleep
            longest = _SLICE if left > _SLICE else max(0.0, left)
            if self._poll.most and not polled:
                polled = True
                if self._look(ready, longest):
                    return True
            # What can be done before the sleep is done here, while the device works: after it the device is idle.
            device.check_owner()  # ``ready`` may have forked
            done, self._done = self._done, device.completions
            back_off = self.storm_backoff(done) if self.interrupted or self._storm.row else 0.0
            slept = self._sleep(asleep - begin, longest, back_off, watch)
            now = monotonic()
            if now - asleep > _SLICE + _OVERSLEPT:
                # This process was stopped (SIGSTOP, a suspended machine), so its deadline is put off by that time.
                deadline += now - asleep - _SLICE
                device.put_off(now - asleep - _SLICE)
                next_check = now + _SLICE
            told = self._take(now)
            if ready():
                if slept and not told and self._transport.interrupt_mode is not InterruptMode.POLLING:
                    self.counters.missed_interrupts += 1
                if polled:
                    self._poll.slept(now - begin)
                return True

    def _kick_owed(self) -> None:
        for queue in [*self._device.queues.values()]:
            queue.kick_owed()

    def _stalled(self) -> str:
        """Where the buffers of the queues are that have any out."""
        found = [of_queue(queue) for queue in self._device.queues.values() if queue.ring.in_flight]
        return "; ".join(str(one) for one in found if one is not None) or "no buffer is with the device"

    def service(self) -> bool:
        """Take and dispatch pending interrupts, without waiting; ``Device.service`` documents it."""
        self._device.check_owner()
        return self._take(self._clock.monotonic())

    def storm_backoff(self, done: int) -> float:
        """Back-off, in seconds, before the events are polled again; ``Device.storm_backoff`` documents it.

        Args:
            done: The value of ``completions`` before the last look at the events.
        """
        useful = self.interrupted and self._device.completions != done
        pause = self._storm.note(self._clock.monotonic(), told=self.interrupted, useful=useful)
        self.counters.interrupt_storms = self._storm.count
        return pause

    def pause(self, seconds: float) -> None:
        """Sleep between two polls of something that causes no interrupt, at most ``POLL_LAST``.

        Args:
            seconds: How long.

        Raises:
            Closed: The device is being closed.
            BaseException: The reason that was given to ``interrupt``.
        """
        if (self._device.closing or self._interruption is not None) and not self._device.leaving:
            self._end()
        self._clock.sleep(seconds)

    # --- a look at the events -------------------------------------------------------------------------------

    def _take(self, now: float) -> bool:
        """Take the pending events; whether one of them was a cause to check the condition.

        Raises:
            DeviceGone: The host removed the device.
            Closed: The device is being closed.
            BaseException: The reason that was given to ``interrupt``.
        """
        device = self._device
        if (device.closing or self._interruption is not None) and not device.leaving:
            self._end()
        fired, self._fired = self._fired, None
        known: Collection[int] | None = None
        if now < self._look_at and (self._listener.ready or self._listening()):
            if fired is None:
                fired = self._listener.look(0, self._listener.most)
            if not fired:
                self.interrupted = False
                return False
            self._taker = take = self._takers.get(tuple(fired))
            if take is not None:  # what most interrupts are, without the transport's function
                self.interrupted = told = take()
                self.counters.interrupts_taken += told
                return told
            known = [number for number, _ in fired]
        else:
            # All events are read now and then in any case: one may hold what was read together with another
            # (see the Event protocol), and its descriptor does not show that; nor is there any where none exist.
            self._look_at, self._taker = now + _SLICE, None
        causes = self._transport.causes(known)
        if causes is USED:
            self.interrupted = True
            self.counters.interrupts_taken += 1
            return True
        if causes.removal:
            raise gone(device.address, self._transport, "the host removed the device (hot-unplug)")
        if causes.config:
            self.counters.config_changes += 1
            device.check_status()
        self.interrupted = told = causes.config or causes.queues
        if causes.spurious:
            self.interrupted = True
        if told and (known or self._transport.interrupt_mode is not InterruptMode.POLLING):
            self.counters.interrupts_taken += 1
        return told

    def _expect(self, now: float) -> None:
        """Note what the first look of a wait took; of two in a row that are the same vector of queues, expect it.

        The first looks of the next waits only try to take that vector, which saves a system call for each: until
        one finds nothing, and for a millisecond at most, because they do not see the other events. A change of the
        configuration, or the removal, waits no longer than that, or until a wait sleeps.
        """
        before, self._found = self._found, self._taker
        if before is None or before is not self._found:
            self._likely_until = 0.0
        else:
            self._likely, self._likely_until = before, now + _LIKELY

    def _listening(self) -> bool:
        """Whether one call says which events fired; without descriptors, each has to be asked."""
        listener = self._listener
        if listener.ready:
            return True
        if self._device.leaving or self._transport.interrupt_mode is InterruptMode.POLLING:
            return False
        with limits.told(f"{self._device.address} cannot be waited for"):
            listener.listen([self._wake, *(event.fileno() for event in self._transport.events())])
            if isinstance(self._transport, HasQueueEvents):
                events = self._transport.queue_events()
                self._takers = {((event.fileno(), select.EPOLLIN),): event.take for event in events}
        return True

    def _end(self) -> None:
        if self._device.closing:
            raise Closed(f"{self._device.address} was closed while something waited for it")
        reason, self._interruption = self._interruption, None
        if reason is not None:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            raise reason

    # --- sleeping -------------------------------------------------------------------------------------------

    def _sleep(self, waited: float, longest: float, back_off: float, watch: Sequence[int]) -> bool:
        """Block until an event, or for a limited time; True where the time passed without an event.

        Args:
            waited: Seconds since the wait began; a device without interrupts is polled again after as long again.
            longest: The longest sleep, in seconds.
            back_off: Seconds to sleep without the device's events, during an interrupt storm; 0: with them.
            watch: File descriptors of the caller's own that also end the sleep.
        """
        leaving = self._device.leaving
        if not (back_off or leaving or watch) and self._listening():
            self._fired = fired = self._listener.look(longest, self._listener.most)
            return not fired
        polling = self._transport.interrupt_mode is InterruptMode.POLLING
        pause = min(max(POLL_FIRST, waited), POLL_LAST)
        if polling and pause < 1e-3:
            self._clock.sleep(min(pause, longest))
            return False
        seconds = min(back_off or pause, longest) if polling or back_off else longest
        poller = self._clock.poll()
        if not leaving:  # else it has done its work, and stays readable
            poller.register(self._wake, select.POLLIN)
        events = () if back_off else self._transport.events()
        for number in (*(event.fileno() for event in events), *watch):
            poller.register(number, select.POLLIN)
        return not poller.poll(max(1.0, seconds * 1000))

    # --- polling first --------------------------------------------------------------------------------------

    def _look(self, ready: Callable[[], bool], longest: float) -> bool:
        """Busy-poll for at most ``longest`` seconds with all queues' interrupts off; whether ``ready()``."""
        window = min(self._poll.seconds, longest)
        if not window or self._transport.interrupt_mode is InterruptMode.POLLING:
            return False
        rings = [queue.ring for queue in self._device.queues.values()]
        try:
            for ring in rings:
                ring.want_interrupts(False)
            end = self._clock.monotonic() + window
            found = ready()
            while not found and self._clock.monotonic() < end:
                found = ready()
            pending = [ring.want_interrupts(True) for ring in rings]  # all: any() would stop at the first
        except BaseException:  # of ``ready``, or of a signal handler at any place above
            for ring in rings:
                with suppress(UvirtioError):  # a ring that is broken now, which keeps no other silent
                    ring.want_interrupts(True)
            raise
        if any(pending) and not found:
            found = ready()  # 2.7.14, 2.8.22: what was used while interrupts were enabled causes no interrupt
        if found:
            self.counters.polled += 1
            self._poll.found()
        return found


def _nothing_fired() -> bool:
    return False


def gone(address: str, transport: Transport, seen: str) -> DeviceGone:
    """The error for a device that was removed while it was in use.

    Args:
        address: The device's address.
        transport: Its transport, whose back end knows the remedy.
        seen: What shows that it is gone.
    """
    return DeviceGone(
        f"{address} is gone",
        seen=seen,
        expected="a device that answers",
        remedy=after_removal(transport.backend),
    )
