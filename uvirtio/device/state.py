"""What is known of an open device, and its sessions: who may use it now, and which errors make it unusable."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from math import inf
from types import TracebackType

from uvirtio.device import log
from uvirtio.device.evidence import QueueEvidence
from uvirtio.device.options import OpenOptions
from uvirtio.device.queue import Queue
from uvirtio.device.status import StatusField
from uvirtio.errors import (
    Closed,
    DeviceAbsent,
    DeviceBroken,
    DeviceFailure,
    DeviceGone,
    DeviceTimeout,
    UsageError,
    UvirtioError,
)
from uvirtio.host.cpu import require_host
from uvirtio.interfaces.runtime import GuestMachine, Hurries, Witnesses
from uvirtio.interfaces.values import TIMEOUT_MAX
from uvirtio.memory.clock import clock_of
from uvirtio.memory.forks import StaysHere, check_process, made_here
from uvirtio.spec import features as f
from uvirtio.spec import ids
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import DmaSpace
    from uvirtio.interfaces.transport import Transport


class Session:
    """The context manager that ``DeviceState.session`` returns: one for each device and each driver of it.

    It keeps nothing between two uses. Each call of a driver enters two or three sessions; a generator would work
    too, at four times the cost.

    What a signal handler raises as ``__exit__`` is entered leaves the lock with its thread, and a deadline:
    CPython looks for signals at the first instruction of each Python function, which no handler of that
    function covers, and a ``with`` statement calls its exit outside of all that it protects. Only an exit in
    C has no such place: that of the lock itself, which is used where it is enough (``lock``). A finaliser
    would lose the exception.
    """

    __slots__ = ("_acquire", "_device", "_driver", "_release", "lock", "made_here")

    def __init__(self, device: DeviceState, driver: str = "") -> None:
        """Make the session of a device, or of one driver of it.

        Args:
            device: The device.
            driver: The driver's name, for the error after it was closed; empty: no driver's.
        """
        self._device = device
        self._driver = driver
        self._acquire, self._release = device._lock.acquire, device._lock.release
        self.lock = device._lock
        """What a session holds; alone it will do where ``made_here[0]`` is 1 and ``works()``, with ``left_by``."""
        self.made_here = device._made_here
        """Its first byte: 1 in the process that opened the device, 0 in its children."""

    def works(self) -> bool:
        """Whether ``__enter__`` would succeed now, for a caller that has the lock."""
        device = self._device
        return device._used_by is self and device._broken is None and not device.closing

    def left_by(self, error: BaseException) -> None:
        """Do what ``__exit__`` does of an exception, for a caller that has the lock alone.

        Args:
            error: The exception; where it says so, the device is marked as broken.

        Raises:
            DeviceFailure, DeviceGone: In its place: why the device failed, where its status says that.
        """
        self._device._left_by(error)

    def __enter__(self) -> None:
        device = self._device
        if not device._made_here[0]:
            device.check_owner()  # before the lock: in a forked child its holder may not exist
        try:
            self._acquire()
            if (device.closing or device._broken is not None) and not device.leaving:
                device._check_usable()
            if self._driver and device._used_by is not self:
                name = self._driver
                raise Closed(
                    f"the {name} driver of {device.address} is closed: the device was stopped or started again"
                )
        except BaseException:
            with suppress(RuntimeError):  # a signal handler raised while it was waited for
                self._release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._device._left_by(error)
        finally:
            self._release()


class _Timed:
    """A session with a deadline: all waits in it end by then, those for the answers of a back end included.

    Inside another one it can end earlier than that one, never later.
    """

    __slots__ = ("_before", "_device", "_ends", "_hurried", "_seconds", "_session")

    def __init__(self, session: Session, device: DeviceState, seconds: float) -> None:
        self._session = session
        self._device = device
        self._seconds = seconds
        self._ends = device.clock.monotonic() + seconds

    def __enter__(self) -> None:
        device = self._device
        self._session.__enter__()
        try:
            self._before = before = device._limit
            if before is None or self._ends < before[0]:
                device._limit = [self._ends, self._seconds]
            self._hurried = device._hurry(device._left())
        except BaseException:  # of a signal handler: what is left here would end each later call
            device._limit = getattr(self, "_before", device._limit)
            self._session._release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        device = self._device
        device._limit = self._before  # while the lock is held
        try:
            if error is not None:
                device._left_by(error)
        finally:
            try:
                self._session._release()
            finally:
                if device._hurries is not None:
                    device._hurries.hurry(self._hurried)


class _Queues(dict[int, Queue]):
    """The live queues by index; what is not there was closed, or never asked for."""

    __slots__ = ("_device",)

    def __init__(self, device: DeviceState) -> None:
        self._device = device

    def __missing__(self, index: int) -> Queue:
        there = ", ".join(map(str, self)) or "none: it is not started, or was stopped"
        raise Closed(f"{self._device.address} has no queue {index} now", seen=index, expected=there)


class DeviceState(StaysHere):
    """The part of a device that its methods share: what it is, what was negotiated, its sessions and errors."""

    def __init__(self, address: str, transport: Transport, options: OpenOptions | None = None) -> None:
        """Note what is known before the device is touched.

        Args:
            address: What the device is called in errors and logs.
            transport: Its transport.
            options: How to use it; None: the defaults of OpenOptions.

        Raises:
            NotSupported: The machine is big-endian, or the interpreter is not CPython.
        """
        require_host()
        options = OpenOptions() if options is None else options
        self.address = address
        self.transport = transport
        self.timeout = options.timeout
        """Seconds that the device has for each response, where a call gives no time-out of its own."""
        self.interrupts = tuple(options.interrupts)
        self.ring = options.ring
        self.without = tuple(options.without)
        self.warning: str | None = None
        """A warning for the user where no IOMMU restricts the device's DMA; None: one does."""
        self.device_id = transport.device_id
        self.type = ids.type_name(transport.device_id)
        self.offered = 0
        """Feature bits that the device offered at the last start, 128 bits wide."""
        self.features = 0
        """Feature bits that were negotiated at the last start."""
        self.unsteady_features = 0
        """Feature bits that only one of two readings offered at the last start."""
        self.wanted = 0
        """Feature bits that were asked for at the last start, offered or not."""
        self.queues: dict[int, Queue] = _Queues(self)
        self.queues_left: tuple[QueueEvidence, ...] = ()
        """What the queues showed when the device was last left, before its reset; empty where it is recorded."""
        self._dma: DmaSpace | None = None
        self._before_free: list[Callable[[], None]] = []
        self._status = StatusField(address, transport)
        self._broken: UvirtioError | None = None
        self.closing = False
        """``close()`` was called; it may not have finished."""
        self.leaving = False
        """The device is being left: its driver may use it meanwhile, even if it is closing or broken."""
        self.pulse: Callable[[], None] | None = None
        """Called ten times a second by whatever wait goes on, for displays. It must neither add nor reap chains;
        what it raises ends the wait, as the reason given to ``interrupt`` does."""
        self._closed = False
        self._for_good = False
        """``close`` was called: ``closing`` stays."""
        self._owner_pid = os.getpid()
        self._made_here = made_here()
        self._lock = threading.RLock()
        self._acquire, self._release_lock = self._lock.acquire, self._lock.release
        self._session = Session(self)
        self._used_by: Session | None = None
        self._log = log.logger()
        self.clock = clock_of(transport)
        """The clock that waits and time-outs go by."""
        backend = getattr(transport, "backend", None)
        self._limit: list[float] | None = None
        """The earliest deadline of the sessions, by ``clock``, and the seconds that its session was given."""
        self._excused: UvirtioError | None = None
        self._hurries = backend if isinstance(backend, Hurries) else None
        self._witness = backend if isinstance(backend, Witnesses) else None

    def _say(self, level: int, text: str, *values: object) -> None:
        if self._log is not None:
            self._log.log(level, "%s: " + text, self.address, *values)
        if self._witness is not None:
            self._witness.note(text % values)

    @property
    def dma(self) -> DmaSpace:
        """Memory for this device, under the address policy that was negotiated (ACCESS_PLATFORM, 6.1).

        Raises:
            Closed: The device is not started.
        """
        if self._dma is None:
            raise Closed(f"{self.address} is not started: its address policy is not known before FEATURES_OK")
        return self._dma

    @property
    def state(self) -> str:
        """The state of the device as far as this process knows it; the device is not accessed.

        The status bit that was set last (3.1.1), which is ``DRIVER_OK`` while a driver uses the device; or one of
        "not started", "broken", "gone", "closed".
        """
        if self._closed:
            return "closed"
        if self._broken is not None:
            return "gone" if isinstance(self._broken, DeviceAbsent) else "broken"
        return self._status.state

    def __repr__(self) -> str:
        about = [self.state]
        if self.queues and not self._closed:
            about.append("packed" if self.has(f.RING_PACKED) else "split")
            about.append(self.transport.interrupt_mode.value)
        return f"<Device {self.address} {self.type}, {', '.join(about)}>"

    @property
    def broken(self) -> UvirtioError | None:
        """The error that made the device unusable, or None."""
        return self._broken

    @property
    def completions(self) -> int:
        """Chains that the device returned on all queues since the start."""
        count = 0
        for queue in self.queues.values():
            count += queue.completions
        return count

    @property
    def guest(self) -> GuestMachine | None:
        """The guest machine that has the device, where this process runs it; None: this machine has it."""
        backend = self.transport.backend
        return backend if isinstance(backend, GuestMachine) else None

    def before_free(self, release: Callable[[], None]) -> None:
        """Have ``release`` called before the memory of this start is freed, however the device is left.

        For whoever keeps views of it: memory with a view cannot be freed (``Block.close``).

        Args:
            release: Releases them; it must not fail.
        """
        self._before_free.append(release)

    def seconds(self, timeout: float | None) -> float:
        """The time-out of one call, in seconds: the one place that says what a time-out may be.

        Args:
            timeout: Seconds; None: what is left to the session, or the device's own time-out where that has no
                deadline. What is negative is a deadline that has passed: as 0, which takes what is there and does
                not wait.

        Returns:
            Seconds; no more than are left to the session.

        Raises:
            UsageError: ``timeout`` is NaN or infinite, which no clock ever passes.
        """
        limit = self._limit  # once, as in ``_left``
        if timeout is None:
            timeout = self.timeout if limit is None else inf
        elif not 0.0 <= timeout < TIMEOUT_MAX:
            if not -inf < timeout < inf:
                raise UsageError(f"a time-out cannot be {timeout}", seen=timeout, expected="seconds, or None")
            timeout = 0.0 if timeout < 0 else TIMEOUT_MAX
        return timeout if limit is None else max(0.0, min(timeout, limit[0] - self.clock.monotonic()))

    def _left(self) -> float:
        """Seconds until the deadline of the session; infinite where it has none."""
        limit = self._limit  # once: the thread that closes the device has sessions, too
        return inf if limit is None else limit[0] - self.clock.monotonic()

    def given(self, seconds: float) -> float:
        """The time-out that passed in a wait of so many seconds, for errors: the session's, or the wait's own."""
        return seconds if self._limit is None or self._left() > 0 else self._limit[1]

    def put_off(self, seconds: float) -> None:
        """Put off the deadline of the session by the time that this process was stopped for."""
        if self._limit is not None:
            self._limit[0] += seconds

    def _hurry(self, seconds: float) -> float | None:
        """Give the accesses of this thread a deadline in so many seconds; the deadline before."""
        if self._hurries is None:
            return None
        return self._hurries.hurry(None if seconds == inf else time.monotonic() + seconds)

    def check_time(self, what: str) -> None:
        """Check that the deadline of the session has not passed, before one more request of a call.

        The device owes nothing then, so that it does not count as broken.

        Args:
            what: What the call is for, for the error.

        Raises:
            DeviceTimeout: It has passed.
        """
        if self._limit is None or self._left() > 0:
            return
        self._excused = DeviceTimeout(
            f"{self.address}: timed out after {self._limit[1]:g} s, before all was done: {what}",
            seen="each answer so far came in time",
            expected="all of them within the time-out of the call",
            remedy="ask for less at a time, or give it a longer time-out",
        )
        raise self._excused

    def has(self, bit: int) -> bool:
        """Whether feature ``bit`` was negotiated."""
        return bool(self.features >> bit & 1)

    def session(self, timeout: float | None = None, driver: Session | None = None) -> AbstractContextManager[None]:
        """The context manager for one operation of a driver: it checks that the device is usable, and locks it.

        Args:
            timeout: Seconds for all that is done inside, as one deadline: waits, however many, and accesses of
                registers. None: each wait has its own time-out, and each access what the back end gives it.
            driver: The session of the driver that calls; None: the device's own.

        A DeviceFailure or DeviceGone that leaves the block makes the device broken: all later calls fail at
        once instead of each waiting for its own deadline. Sessions nest; while the device is being left, its
        driver may enter one even if the device is closing or broken.

        Raises:
            Closed: On entry: the device or the driver is closed.
            DeviceGone: On entry, or at the end of a block that failed: the device was removed.
            DeviceBroken: On entry: an earlier error made the device unusable.
            NotSupported: On entry: another process opened the device, as in a forked child.
            UsageError: ``timeout`` is NaN or infinite.
        """
        if timeout is None:
            return driver or self._session
        return _Timed(driver or self._session, self, self.seconds(timeout))

    @contextmanager
    def _alone(self, wake: Callable[[], None], quieten: Callable[[], None]) -> Iterator[None]:
        """Hold the lock. A call of another thread that has it, and may wait without end, is ended as by ``close``.

        Args:
            wake: Ends the sleep of a wait.
            quieten: Takes that back.
        """
        if not self._acquire(blocking=False):
            self.closing = True
            wake()
            try:
                self._acquire()
            finally:  # also where a signal handler raises: then the device goes on
                if not self._for_good:
                    self.closing = False
                    quieten()
        try:
            yield
        finally:
            self._release_lock()

    @contextmanager
    def _own_time(self) -> Iterator[None]:
        """Leave without the deadline of the call that ends in it: it may have passed, and a reset takes time."""
        limit, self._limit = self._limit, None
        hurried = self._hurry(inf)
        try:
            yield
        finally:
            self._limit = limit
            if self._hurries is not None:
                self._hurries.hurry(hurried)

    def _left_by(self, error: BaseException) -> None:
        """Mark the device broken where the exception that leaves a session says so."""
        if error is self._excused:
            return
        cause = self._status.explains() if isinstance(error, DeviceFailure) else None
        if cause is not None and type(cause) is not type(error):
            self._break(cause)
            raise cause from error
        if isinstance(error, (DeviceFailure, DeviceAbsent)):
            self._break(error)

    def _ours(self) -> bool:
        return os.getpid() == self._owner_pid

    def check_owner(self) -> None:
        """Check that this process opened the device.

        Raises:
            NotSupported: Another one did: this is a forked child.
        """
        if not self._made_here[0]:
            check_process(self.address, self._owner_pid)

    def _check_usable(self) -> None:
        if self._closed or self.closing:
            raise Closed(f"{self.address} is closed")
        first = self._broken
        if first is None:
            return
        message = f"{self.address} is unusable after an earlier error: {first}"
        if isinstance(first, DeviceGone):  # for a caller that calls in a loop until the device is gone
            raise DeviceGone(message, seen=first.seen, expected=first.expected, remedy=first.remedy) from first
        raise DeviceBroken(
            message,
            seen=first.code,
            expected="a device that works",
            remedy="close it and open it again",
        ) from first

    def _break(self, error: UvirtioError) -> None:
        if self._broken is None and not isinstance(error, DeviceBroken):
            self._broken = error
            self._say(log.INFO, "%s: %s", self.state, error)
