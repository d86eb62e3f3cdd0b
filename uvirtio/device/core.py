"""One device: bringing it up (3.1.1), sessions with it, its configuration, and leaving it in order.

A driver calls ``Device.start``, which runs the initialisation sequence once, for everybody: drivers,
diagnostics and tests see the same steps. There is one wait loop (``waiting.py``), and one way out.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from uvirtio.device import log
from uvirtio.device.bringup import GiveBack, Observer, RingMaker, admin_queue, negotiate, unobserved
from uvirtio.device.counters import Counters
from uvirtio.device.options import OpenOptions
from uvirtio.device.queue import Queue, QueueSpec
from uvirtio.device.signals import signals_held
from uvirtio.device.snapshot import snapshot
from uvirtio.device.status import StatusField, poll_until
from uvirtio.device.waiting import WaitLoop, gone
from uvirtio.errors import (
    Closed,
    ConfigError,
    DeviceAbsent,
    DeviceBroken,
    DeviceFailure,
    DeviceGone,
    DeviceTimeout,
    NotSupported,
    ResetTimeout,
    UsageError,
    UvirtioError,
)
from uvirtio.interfaces.backend import GuestMachine
from uvirtio.interfaces.memory import DmaSpace
from uvirtio.interfaces.transport import ResetsQueues, Transport
from uvirtio.memory.access import require_little_endian
from uvirtio.memory.fence import full_fence, platform_fence
from uvirtio.spec import features as f
from uvirtio.spec import ids
from uvirtio.spec.layout import Field
from uvirtio.spec.status import Status
from uvirtio.virtqueue import Virtqueue

T = TypeVar("T")


class _Session:
    """What ``Device.session`` gives; the same one each time, since all that it knows is the device's.

    Each call of a driver's goes through two or three of these. A generator would do, at four times the cost.
    """

    __slots__ = ("_device",)

    def __init__(self, device: Device) -> None:
        self._device = device

    def __enter__(self) -> None:
        device = self._device
        if os.getpid() != device._owner_pid:
            device.check_owner()  # before the lock: in a forked child its holder may not exist
        device._lock.acquire()
        if (device.closing or device._broken is not None) and not device.leaving:
            try:
                device._check_usable()
            except BaseException:
                device._lock.release()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        device = self._device
        try:
            if error is not None:
                device._left_by(error)
        finally:
            device._lock.release()


class Device:
    """An open virtio device. Made by :func:`uvirtio.open`; a context manager.

    One thread owns a device and calls its methods; ``close()`` may come from any thread. Addresses and sizes
    are in bytes, times in seconds.
    """

    def __init__(self, address: str, transport: Transport, options: OpenOptions | None = None) -> None:
        require_little_endian()
        options = OpenOptions() if options is None else options
        self.address = address
        self.transport = transport
        self.timeout = options.timeout
        """Seconds that the device has for each response, where a call is given no time-out of its own."""
        self.interrupts = tuple(options.interrupts)
        self.ring = options.ring
        self.warning: str | None = None
        """What a person has to know before the device is started: nothing holds it. None: something does."""
        self.device_id = transport.device_id
        self.type = ids.type_name(transport.device_id)
        self.offered = 0
        """Feature bits that the device offered at the last start, 128 bits wide."""
        self.features = 0
        """Feature bits that were negotiated at the last start."""
        self.unsteady_features = 0
        """Feature bits that were offered in one of two readings at the last start, and not in the other."""
        self.queues: dict[int, Queue] = {}
        self._fence = full_fence()
        self._platform_fence = platform_fence()
        self._dma: DmaSpace | None = None
        self._rings: list[Virtqueue] = []
        self._status = StatusField(address, transport)
        self._broken: UvirtioError | None = None
        self.closing = False
        """``close()`` was called; it may still be at work."""
        self.leaving = False
        """The device is being left: what its driver does meanwhile is let through, whatever else is so."""
        self._closed = False
        self._give_back: GiveBack | None = None
        self._owner_pid = os.getpid()
        self._lock = threading.RLock()
        self._session = _Session(self)
        self._waiting = WaitLoop(self, transport, options.poll_us / 1e6)
        self._log = log.logger()
        atexit.register(self.close)
        self._say(log.INFO, "opened: %s, %s; %s", self.type, transport.kind, transport.description)

    def _say(self, level: int, text: str, *values: object) -> None:
        if self._log is not None:
            self._log.log(level, "%s: " + text, self.address, *values)

    # --- state ----------------------------------------------------------------------------------------------

    @property
    def dma(self) -> DmaSpace:
        """Memory for this device, under the address policy that was negotiated. Raises Closed before start."""
        if self._dma is None:
            raise Closed(f"{self.address} is not started: its address policy is not known before FEATURES_OK")
        return self._dma

    @property
    def state(self) -> str:
        """What is known of the device without asking it.

        The status bit that was set last (3.1.1), which is ``DRIVER_OK`` while a driver has the device; or one of
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
        """Chains that came back on all queues, since the start."""
        count = 0
        for queue in self.queues.values():
            count += queue.completions
        return count

    @property
    def guest(self) -> GuestMachine | None:
        """The guest machine that the device is in, where this process runs it; None: it is this machine's."""
        backend = self.transport.backend
        return backend if isinstance(backend, GuestMachine) else None

    def seconds(self, timeout: float | None) -> float:
        """The time-out of one call, in seconds: ``timeout``, or the device's own where that is None.

        Raises:
            UsageError: It is NaN, which no clock ever passes.
        """
        if timeout is None:
            return self.timeout
        if timeout != timeout:
            raise UsageError("a time-out cannot be NaN", seen=timeout, expected="seconds, or None")
        return timeout

    def has(self, bit: int) -> bool:
        """Whether feature ``bit`` was negotiated."""
        return bool(self.features >> bit & 1)

    def session(self) -> AbstractContextManager[None]:
        """Around every operation of a driver: refuses closed, broken and forked devices, and takes the lock.

        A DeviceFailure or DeviceGone that leaves the block makes the device broken: all later calls fail at
        once instead of each waiting for its own deadline, with DeviceGone where the device is gone and
        DeviceBroken otherwise. Sessions nest; what a driver does while it leaves is let through.
        """
        return self._session

    def _left_by(self, error: BaseException) -> None:
        """An exception leaves a session: whether it makes the device broken."""
        if isinstance(error, DeviceFailure) and self._status.vanished():
            # A removed device answers with ones, which look like many other faults.
            removed = gone(self.address, self.transport, "status reads 0xff")
            self._break(removed)
            raise removed from error
        if isinstance(error, (DeviceFailure, DeviceAbsent)):
            self._break(error)

    def _ours(self) -> bool:
        return os.getpid() == self._owner_pid

    def check_owner(self) -> None:
        """Raises NotSupported in a forked child: the device is the parent's."""
        if os.getpid() != self._owner_pid:
            raise NotSupported(
                f"{self.address} was opened by another process",
                seen=f"pid {os.getpid()}",
                expected=f"pid {self._owner_pid}",
                remedy="open the device after the fork",
            )

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

    # --- the initialisation sequence (3.1.1) ----------------------------------------------------------------

    def start(
        self,
        *,
        wanted: int,
        queues: Sequence[QueueSpec] | Callable[[], Sequence[QueueSpec]],
        required: int = 0,
        dependencies: Iterable[f.Needs] | None = None,
        observe: Observer = unobserved,
        before_ok: Callable[[], None] | None = None,
        give_back: GiveBack | None = None,
        admin: bool = False,
    ) -> None:
        """Bring the device up to DRIVER_OK.

        ``wanted`` is the driver's allow-list of device-type feature bits; the transport's and the ring's are
        added here. ``required`` bits must be offered. ``dependencies`` (None: all that the standard has for this
        type) say which bit needs which. ``queues`` may be a function, for queues that depend on what was
        negotiated. ``before_ok`` runs with the queues made and DRIVER_OK not yet set; nothing may be kicked
        there. ``give_back`` runs first when the device is left. ``admin``: take an administration queue where one
        is offered (ADMIN_VQ); it is among ``queues`` under the name ``adminq``.

        On a legacy interface (3.1.2) the steps are the same without FEATURES_OK, and the choice is not read back.

        Raises FeatureMissing, FeaturesRefused, QueueError, ResetTimeout, or what memory raises; FAILED is set
        then (3.1.1) and the device is reset and let go of.
        """
        with self.session():
            if self._status.live:
                self.stop()  # another driver had it: what that one took is given back first
                self._check_usable()
            try:
                with self._step(observe, "reset"):
                    self.reset()
                with self._step(observe, "acknowledge"):
                    self._status.add(Status.ACKNOWLEDGE)
                with self._step(observe, "driver"):
                    self._status.add(Status.DRIVER)
                with self._step(observe, "features"):
                    needs = f.dependencies(self.type) if dependencies is None else dependencies
                    self._negotiate(wanted, required, needs, admin)
                with self._step(observe, "features_ok"):
                    if not self.transport.legacy:  # 3.1.2: no such step there, and nothing to read back
                        self._status.confirm_features(self.offered, self.features)
                with self._step(observe, "queues"):
                    # 6.1: with ACCESS_PLATFORM the device's addresses go through the platform (IOVAs); without
                    # it they are guest-physical, whatever IOMMU there is.
                    self._dma = self.transport.dma(self.has(f.ACCESS_PLATFORM))
                    asked = queues() if callable(queues) else queues
                    specs = [*asked, *admin_queue(self.transport, self.features)]
                    made = self._ring_maker().make_all(specs, self._rings)
                with self._step(observe, "vectors"):
                    self.transport.connect_interrupts([spec.index for spec, _ in made], self.interrupts)
                    self._enable_queues(made)
                    if before_ok is not None:
                        before_ok()
                with self._step(observe, "driver_ok"):
                    self.transport.dma_enable(True)
                    self._status.confirm_running()
                self._give_back = give_back
            except BaseException as error:
                self._say(log.INFO, "bring-up failed: %s", error)
                self._fail(error)
                raise
            mode, ring = self.transport.interrupt_mode.value, "packed" if self.has(f.RING_PACKED) else "split"
            self._say(log.INFO, "started: features %#x, %s rings, interrupts %s", self.features, ring, mode)

    @contextmanager
    def _step(self, observe: Observer, name: str) -> Iterator[None]:
        """One step of the sequence; a failure in it is named for what it is before the observer sees it."""
        with observe(name), self.session():
            yield
        self._say(log.DEBUG, "step %s done", name)

    def reset(self) -> None:
        """Write 0 to status and wait until it reads 0 (2.4.2). Raises ResetTimeout, DeviceGone.

        Whatever rings the device had are dead afterwards, and their memory is freed.
        """
        self.check_owner()
        with self._lock:
            self._status.reset(self.timeout)
            with suppress(UvirtioError):
                self.transport.dma_enable(False)
            self._release()

    def _negotiate(self, wanted: int, required: int, dependencies: Iterable[f.Needs], admin: bool) -> None:
        done = negotiate(
            self.transport,
            self.address,
            self.type,
            wanted=wanted,
            required=required,
            dependencies=dependencies,
            ring=self.ring,
            platform_order=self._platform_fence is not None,
            admin=admin,
        )
        self.offered, self.features, self.unsteady_features = done.offered, done.features, done.unsteady

    def _ring_maker(self) -> RingMaker:
        return RingMaker(self.address, self.transport, self.dma, self.features, self._fence, self._platform_fence)

    def _enable_queues(self, made: Sequence[tuple[QueueSpec, Virtqueue]]) -> None:
        for spec, ring in made:
            doorbell = self.transport.enable_queue(spec.index, ring.size, *ring.addresses)
            data = self.has(f.NOTIFICATION_DATA)
            self.queues[spec.index] = Queue(spec, ring, doorbell, with_data=data)

    # --- the reset of one queue (2.6.1) -----------------------------------------------------------------------

    def reset_queue(self, queue: Queue, *, timeout: float | None = None) -> list[Any]:
        """Take back all that is out on one queue and set it up anew, while the others go on.

        Returns the cookies of what was out, in the order in which it was given, or the numbers of its slots; slots
        have to be laid anew. ``timeout`` in seconds (the device's own where None).
        Raises NotSupported unless RING_RESET was negotiated; DeviceTimeout, and the device is broken then.
        """
        with self.session():
            transport = self.transport
            if not self.has(f.RING_RESET) or not isinstance(transport, ResetsQueues):
                raise NotSupported(
                    f"{self.address} cannot reset a queue by itself",
                    seen="RING_RESET was not negotiated",
                    expected="RING_RESET (2.6.1)",
                    remedy="reset the whole device",
                )
            transport.start_queue_reset(queue.index)
            self._await_queue_reset(transport, queue, self.seconds(timeout))
            # 2.6.1.1: from here on the device touches nothing of this queue.
            old = queue.ring
            out: list[Any] = old.abandon() if queue.slots is None else list(queue.slots.out())
            old.abandon()
            self._rings.remove(old)
            old.close()
            ring = self._ring_maker().make(queue.spec, transport.queue_layout(queue.index))
            self._rings.append(ring)
            # 2.6.1.2.2: everything is written again, whatever it was before.
            doorbell = transport.enable_queue(queue.index, ring.size, *ring.addresses)
            queue.replace_ring(ring, doorbell)
            return out

    def _await_queue_reset(self, transport: ResetsQueues, queue: Queue, timeout: float) -> None:
        if not poll_until(lambda: transport.queue_is_reset(queue.index), timeout):
            raise DeviceTimeout(
                f"{self.address} did not finish the reset of {queue.name} within {timeout:g} s",
                seen="queue_reset 1",
                expected="queue_reset 0 (2.6.1, 4.1.4.3.2)",
                remedy="close the device: that resets it whole",
            )

    def _fail(self, error: BaseException) -> None:
        """Tell the device that we gave up (3.1.1: FAILED), and get out of its way."""
        with signals_held():
            if isinstance(error, DeviceAbsent):
                self._status.live = False
            elif self._status.live and not isinstance(error, ResetTimeout):
                with suppress(UvirtioError):
                    self._status.fail()
            self._quiet(may_reset=not isinstance(error, ResetTimeout))

    # --- configuration (2.5) --------------------------------------------------------------------------------

    def snapshot(self, read: Callable[[], T]) -> T:
        """What ``read`` returns, read between two equal generations, so that its fields belong together.

        Raises ConfigUnstable when the device changed it all the time for half a second (or for its time-out,
        where that is shorter). Where a transport has no generation, ``read`` is repeated until two results
        agree (2.5.4).
        """
        with self.session():
            return snapshot(self.transport, self.address, read, check=self.check_status, patience=self.timeout)

    def read_config(self, *fields: Field) -> tuple[int, ...]:
        """The values of these fields, as one snapshot. Raises ConfigError where the device has them not."""
        for field in fields:
            if field.offset + field.width > self.transport.config_length:
                raise ConfigError(
                    f"{self.address} has no configuration field {field.name}",
                    seen=f"{self.transport.config_length} bytes of configuration",
                    expected=f"at least {field.offset + field.width} bytes (2.5.1)",
                )
        read = self.transport.read_config
        return self.snapshot(lambda: tuple(read(field.offset, field.width) for field in fields))

    def write_config(self, field: Field, value: int) -> None:
        """Write one field, with one access of its width."""
        with self.session():
            self.transport.write_config(field.offset, field.width, value)

    # --- waiting --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Look whether the device still goes on; for who waits in a loop of his own.

        Raises DeviceNeedsReset, DeviceResetByOther, DeviceGone, Closed.
        """
        with self.session():
            self.check_status()

    def wait(
        self,
        ready: Callable[[], bool],
        *,
        timeout: float | None,
        what: str,
        owed: bool = True,
        watch: Sequence[int] = (),
    ) -> bool:
        """Wait until ``ready()``; the one wait loop.

        ``owed``: the device owes this. Then a miss raises DeviceTimeout and the device is broken. Otherwise a
        miss returns False. ``timeout`` None waits for ever, until ``close()`` or a signal.
        ``watch``: descriptors of the caller's own; ``ready`` is asked again as soon as one can be read.
        Raises DeviceNeedsReset, DeviceResetByOther, DeviceGone, Closed.
        """
        if timeout is not None:
            timeout = self.seconds(timeout)
        with self._session:
            return self._waiting.wait(ready, timeout, what, owed, watch)

    def interrupt(self, reason: BaseException) -> None:
        """Make the wait loop raise ``reason`` at its next turn. For signal handlers: it only sets a flag.

        An exception thrown by a handler itself could come between any two instructions, also in the middle of
        laying down a chain; this one comes where the rings and the books are in order.
        """
        if self._ours() and not self._closed:  # a forked child shares the descriptor that wakes the loop
            self._waiting.interrupt(reason)

    def service(self) -> bool:
        """Take and dispatch pending interrupts, without waiting; whether there were any.

        Raises DeviceGone, DeviceNeedsReset, DeviceResetByOther, Closed.
        """
        return self._waiting.service()

    def storm_backoff(self, done: int) -> float:
        """Seconds to stay away from the device's events after a look; for who waits in a loop of his own.

        ``done``: the ``completions`` before the look. More than 0 while interrupts come for nothing, without end.
        """
        return self._waiting.storm_backoff(done)

    @property
    def interrupted(self) -> bool:
        """An interrupt came at the last look, whether the device names a cause or not."""
        return self._waiting.interrupted

    @property
    def counters(self) -> Counters:
        """What was counted since the device was opened: configuration changes, interrupts, storms."""
        return self._waiting.counters

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> int:
            """The counters by the names that they had here before 0.2. Goes with 0.3."""
            if name not in Counters.__slots__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(f"Device.{name} is Device.counters.{name} now", DeprecationWarning, stacklevel=2)
            return getattr(self.counters, name)

    def check_status(self) -> int:
        """The status of a device that goes on; inside a session. Raises as :meth:`check`."""
        return self._status.check()

    # --- leaving --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Leave the device in order and stay open: give back, reset, bus master off, free. Idempotent."""
        if self._closed or not self._ours():
            return
        with self._lock, signals_held():
            if self._closed:
                return
            self.leaving = True
            try:
                self._hand_back()
            finally:
                try:
                    self._quiet(may_reset=not isinstance(self._broken, ResetTimeout))
                finally:
                    self.leaving = False

    def _hand_back(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is None or not self._status.live or isinstance(self._broken, DeviceAbsent):
            return
        try:
            give_back(self._broken is None)
        except UvirtioError as error:
            self._break(error)
        self._say(log.DEBUG, "given back what outlives a reset")

    def _quiet(self, *, may_reset: bool) -> None:
        """Reset with confirmation, bus master off, then free. Without confirmation the memory is kept for ever."""
        was_live = self._status.live
        confirmed = not was_live
        if was_live and may_reset:
            try:
                self._status.reset(self.timeout)
                confirmed = True
            except DeviceAbsent as error:
                self._break(error)
                confirmed = True  # what is not there writes nowhere
            except UvirtioError as error:
                self._break(error)
        with suppress(UvirtioError):
            self.transport.dma_enable(False)
        if not confirmed:
            with suppress(UvirtioError):
                confirmed = self.transport.function_reset()
        if not confirmed and self._dma is not None:
            # The device may still write there. Leaking the memory is the lesser evil.
            self._say(log.WARNING, "its reset is not confirmed, so its memory is kept for ever")
            _quarantine((self._dma, self._rings))
            self._dma, self._rings = None, []
        self._status.live = False
        self._release()
        if was_live:
            self._say(log.INFO, "left: %s", "reset" if confirmed else "reset without an answer")

    def _release(self) -> None:
        """Let go of queues, interrupts and memory; the device was reset, or its memory is in quarantine."""
        self._waiting.forget()
        self.queues.clear()
        rings, self._rings = self._rings, []
        dma, self._dma = self._dma, None
        with ExitStack() as stack:
            if dma is not None:
                stack.callback(dma.close)
            for ring in rings:
                stack.callback(ring.close)
            with suppress(UvirtioError):
                self.transport.release_queues()

    def close(self) -> None:
        """Leave the device in order and let it go; idempotent, from any thread.

        In a forked child it does nothing: the device is the parent's.
        """
        if self._closed or not self._ours():
            return
        self.closing = True
        self._waiting.wake()
        with self._lock, signals_held():
            if self._closed:
                return
            try:
                self.stop()
            finally:
                self._closed = True
                self._say(log.INFO, "closed")
                try:
                    self.transport.close()
                finally:
                    self._waiting.close()
                    atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def _quarantine(thing: object) -> None:
    """One reference that is never given back, so that this memory is never reused by this process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
