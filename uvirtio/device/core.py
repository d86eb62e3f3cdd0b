"""One device: bringing it up (3.1.1), sessions with it, its configuration, and leaving it in order.

A driver calls ``Device.start``, which runs the initialisation sequence for drivers,
diagnostics and tests alike. There is one wait loop (``waiting.py``), and one way to leave a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from uvirtio.device import log
from uvirtio.device.bringup import GiveBack, Observer, RingMaker, admin_queue, negotiate, unobserved
from uvirtio.device.counters import Counters, moved
from uvirtio.device.evidence import of_queue
from uvirtio.device.foretell import whole_need
from uvirtio.device.leaving import Ending, free
from uvirtio.device.options import OpenOptions
from uvirtio.device.queue import Queue, QueueSpec
from uvirtio.device.signals import signals_held
from uvirtio.device.snapshot import snapshot
from uvirtio.device.state import DeviceState, Session
from uvirtio.device.status import poll_until
from uvirtio.device.waiting import WaitLoop
from uvirtio.errors import (
    ConfigError,
    DeviceAbsent,
    DeviceFailure,
    DeviceTimeout,
    EnvironmentLack,
    NotSupported,
    ResetTimeout,
    UvirtioError,
)
from uvirtio.host import limits
from uvirtio.interfaces.runtime import Ends, ResetsQueues
from uvirtio.interfaces.values import TIMEOUT_MAX
from uvirtio.memory.fence import full_fence, platform_fence
from uvirtio.memory.quarantine import keep_for_ever, keep_no_longer
from uvirtio.spec import features as f
from uvirtio.spec.layout import Field
from uvirtio.spec.status import Status
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self, TypeVar

    from uvirtio.interfaces.memory import DmaSpace
    from uvirtio.interfaces.transport import Transport
    from uvirtio.virtqueue.interface import Virtqueue

    T = TypeVar("T")


class Device(DeviceState):
    """An open virtio device, as ``uvirtio.open`` returns it; a context manager.

    One thread calls its methods; ``close()`` may come from any. Addresses and sizes: bytes; times: seconds.
    """

    def __init__(self, address: str, transport: Transport, options: OpenOptions | None = None) -> None:
        """Take over a transport; the device itself is not touched.

        Args:
            address: What the device is called in errors and logs.
            transport: The transport of the device, which the device owns from now on and closes.
            options: How to use it; None: the defaults of OpenOptions.

        Raises:
            NotSupported: The machine is big-endian, or the interpreter is not CPython.
        """
        options = OpenOptions() if options is None else options
        super().__init__(address, transport, options)
        self._fence = full_fence()
        self._platform_fence = platform_fence()
        self._rings: list[Virtqueue] = []
        self._kept: list[tuple[DmaSpace, list[Virtqueue]]] = []
        self._give_back: GiveBack | None = None
        self._waiting = WaitLoop(self, transport, options.poll_us / 1e6)
        self.counters: Counters = self._waiting.counters
        """Counts since the device was opened: configuration changes, interrupts, interrupt storms."""
        kept, backend = (transport, self._fence), getattr(transport, "backend", None)
        self._ending = Ending(self, backend, kept, in_machine=self.guest is not None)
        self._say(log.INFO, "opened: %s, %s; %s", self.type, transport.kind, transport.description)

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
        session: Session | None = None,
    ) -> None:
        """Initialise the device up to DRIVER_OK (3.1.1).

        On a legacy interface (3.1.2) the steps are the same without FEATURES_OK, and the choice is not read back.
        When a step fails, FAILED is set (3.1.1), the device is reset, and its queues and memory are released.

        Args:
            wanted: The driver's allow-list of device-type feature bits; the transport's and the ring's are added
                here.
            queues: The queues that the driver uses; or a function that returns them, where they depend on the
                features that were negotiated.
            required: Feature bits that the device must offer.
            dependencies: Which feature bit needs which others; None: all that the standard has for this type.
            observe: Called with the name of each step, which runs inside the context that it returns.
            before_ok: Called when the queues are set up and DRIVER_OK is not yet set; it must kick no queue.
            give_back: Called first when the device is left; its argument says whether the device still works.
            admin: Use an administration queue where one is offered (ADMIN_VQ); it is among ``Device.queues``,
                under the name ``adminq``.
            session: The session of the driver, which ends with this start; None: it uses the device's own.

        Raises:
            FeatureMissing: The device does not offer a required feature bit.
            FeaturesRefused: The device cleared FEATURES_OK.
            QueueError: A required queue does not exist, or has a size that the standard does not allow.
            ResetTimeout: The status did not become 0 in time (2.4.2).
            DeviceNeedsReset: The device set DEVICE_NEEDS_RESET or FAILED, or cleared DRIVER_OK.
            DeviceGone: The device was removed.
            MemlockExceeded, LimitReached: RLIMIT_MEMLOCK is too small to pin the queues' memory; another limit is.
            HugePagesLack: Without an IOMMU: too few huge pages are left.
            MemoryScattered: There is no contiguous memory for a legacy queue (2.7.2).
            PagemapHidden: Without an IOMMU: this user cannot see physical addresses.
            OperationFailed: The kernel refused an operation on memory or interrupts.
            NotSupported: This machine, kernel or back end cannot do it.
        """
        with self.session(), limits.told(f"{self.address} cannot be started"):
            if self._status.live:
                self.stop()  # another driver had it: what that one took is given back first
                self._check_usable()
            self.queues_left, specs = (), list[QueueSpec]()
            try:
                with self._step(observe, "reset"):
                    self.reset()
                self._used_by = session
                with self._step(observe, "acknowledge"):
                    self._status.add(Status.ACKNOWLEDGE)
                with self._step(observe, "driver"):
                    self._status.add(Status.DRIVER)
                with self._step(observe, "features"):
                    needs = f.dependencies(self.type) if dependencies is None else dependencies
                    self._negotiate(wanted, required, needs, admin)
                with self._step(observe, "features_ok"):
                    if not self.transport.legacy:  # 3.1.2: no such step there, and nothing to read back
                        self._status.confirm_features(self.features)
                with self._step(observe, "queues"):
                    # 6.1: with ACCESS_PLATFORM the device's addresses go through the platform (IOVAs); without
                    # it they are guest-physical, whatever IOMMU there is.
                    self._dma = self.transport.dma(self.has(f.ACCESS_PLATFORM))
                    asked = queues() if callable(queues) else queues
                    specs = [*asked, *admin_queue(self.transport, self.features)]
                    made = self._ring_maker().make_all(specs, self._rings)
                with self._step(observe, "vectors"):
                    self.transport.connect_interrupts([spec.index for spec, _ in made], self.interrupts)
                with self._step(observe, "queue_enable"):
                    self._enable_queues(made)
                    if before_ok is not None:
                        before_ok()
                with self._step(observe, "driver_ok"):
                    self.transport.dma_enable(True)
                    self._status.confirm_running()
                self._give_back = give_back
            except BaseException as error:
                self._say(log.INFO, "bring-up failed: %s", error)
                try:
                    whole = whole_need(self, self._ring_maker, error, specs, before_ok)
                finally:
                    self._fail(error)
                if whole is not None:
                    raise whole from error
                raise
            mode, ring = self.transport.interrupt_mode.value, "packed" if self.has(f.RING_PACKED) else "split"
            self._say(log.INFO, "started: features %#x, %s rings, interrupts %s", self.features, ring, mode)

    @contextmanager
    def _step(self, observe: Observer, name: str) -> Iterator[None]:
        """One step of the sequence; the session inside lets the observer see a removed device as DeviceGone."""
        with observe(name), self.session():
            yield
        self._say(log.DEBUG, "step %s done", name)

    def reset(self, *, flr: bool = False) -> bool:
        """Write 0 to the status and wait until it reads 0 (2.4.2); then release the queues and their memory.

        Args:
            flr: Also reset the function by the means of its bus (PCI: a function-level reset), and so too where
                the device did not finish the first reset.

        Returns:
            Whether the device finished the first reset; False only with ``flr``.

        Raises:
            ResetTimeout: The status did not become 0 in time.
            DeviceGone: The device was removed.
            NotSupported: ``flr``, and the function has no such reset; or another process opened the device.
        """
        self.check_owner()
        with self._lock:
            hung: ResetTimeout | None = None
            try:
                self._status.reset(self.seconds(None), self._waiting.pause)
            except ResetTimeout as error:
                if not flr:
                    raise
                hung = error
            with suppress(UvirtioError):
                self.transport.dma_enable(False)
            if flr:
                self._reset_function(hung)
            self._release()
        return hung is None

    def _reset_function(self, hung: ResetTimeout | None) -> None:
        """The reset of the bus, after one by the status that was confirmed, or ended in ``hung``."""
        if self.transport.function_reset():
            # The device model resets its status with the rest, maybe not at once.
            self._status.await_reset(
                self.seconds(None),
                lambda: "a function-level reset did not help: whatever provides the device is at fault",
                self._waiting.pause,
            )
            return
        if hung is not None:
            raise hung
        self._release()
        raise NotSupported(
            f"{self.address} has no function-level reset",
            seen="no reset method that this back end can use",
            expected="a function with FLR or another reset method",
            remedy="the virtio reset was done; leave --flr out (flr=False)",
        )

    def _negotiate(self, wanted: int, required: int, dependencies: Iterable[f.Needs], admin: bool) -> None:
        done = negotiate(
            self.transport,
            self.address,
            self.type,
            wanted=wanted,
            required=required,
            dependencies=dependencies,
            ring=self.ring,
            without=self.without,
            platform_order=self._platform_fence is not None,
            admin=admin,
        )
        self.offered, self.features, self.unsteady_features = done.offered, done.features, done.unsteady
        self.wanted = done.wanted

    def _ring_maker(self) -> RingMaker:
        return RingMaker(self.address, self.transport, self.dma, self.features, self._fence, self._platform_fence)

    def _enable_queues(self, made: Sequence[tuple[QueueSpec, Virtqueue]]) -> None:
        for spec, ring in made:
            doorbell = self.transport.enable_queue(spec.index, ring.size, *ring.addresses)
            data = self.has(f.NOTIFICATION_DATA)
            queue = Queue(spec, ring, doorbell, with_data=data, monotonic=self.clock.monotonic)
            self.queues[spec.index] = queue
            if self._witness is not None:
                self._witness.watch(queue)

    # --- the reset of one queue (2.6.1) -----------------------------------------------------------------------

    def reset_queue(self, queue: Queue, *, timeout: float | None = None) -> list[Any]:
        """Reset one queue and enable it again, while the other queues keep working (2.6.1).

        Args:
            queue: The queue. Its fixed slots, if any, have to be set again with ``Queue.set_fixed``.
            timeout: Seconds to wait for the device; None: the device's own time-out.

        Returns:
            The cookies of the chains that the device had not returned, in the order in which they were added; for
            a queue with fixed slots, the numbers of those slots.

        Raises:
            NotSupported: RING_RESET was not negotiated.
            DeviceTimeout: The reset did not finish in time; the device is broken then.
        """
        with self.session(timeout):
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
            # The new ring first: so it lies elsewhere, and what comes late all the same does not meet it.
            ring = self._ring_maker().make(queue.spec, transport.queue_layout(queue.index))
            self._rings.append(ring)
            self._rings.remove(old)
            old.close()
            # 2.6.1.2.2: all parameters are written again, even those that did not change.
            doorbell = transport.enable_queue(queue.index, ring.size, *ring.addresses)
            queue.replace_ring(ring, doorbell)
            if self._witness is not None:
                self._witness.watch(queue)
            return out

    def _await_queue_reset(self, transport: ResetsQueues, queue: Queue, timeout: float) -> None:
        if not poll_until(lambda: transport.queue_is_reset(queue.index), timeout, self.clock, self._waiting.pause):
            raise DeviceTimeout(
                f"{self.address} did not finish the reset of {queue.name} within {timeout:g} s",
                seen="queue_reset 1",
                expected="queue_reset 0 (2.6.1, 4.1.4.3.2)",
                remedy="close the device: that resets it whole",
            )

    def _fail(self, error: BaseException) -> None:
        """Set FAILED (3.1.1), then reset the device and release it."""
        with signals_held(), self._own_time():
            if self._status.live and not isinstance(error, (DeviceAbsent, ResetTimeout)):
                with suppress(UvirtioError):
                    self._status.fail()
            self._quiet(may_reset=not isinstance(error, ResetTimeout))

    # --- configuration (2.5) --------------------------------------------------------------------------------

    def snapshot(self, read: Callable[[], T]) -> T:
        """Read several fields of the configuration consistently: between two equal generations (2.5.1).

        Where a transport has no generation, ``read`` is repeated until two results agree (2.5.4).

        Args:
            read: Reads the fields with ``transport.read_config``; it is called again when they changed.

        Returns:
            What ``read`` returned.

        Raises:
            ConfigUnstable: The device kept changing it for half a second (or for its time-out, where that is
                shorter).
        """
        with self.session():
            return snapshot(
                self.transport,
                self.address,
                read,
                check=self.check_status,
                patience=self.seconds(None),
                clock=self.clock,
                sleep=self._waiting.pause,
            )

    def read_config(self, *fields: Field) -> tuple[int, ...]:
        """Read fields of the device configuration, as one snapshot (2.5.1).

        Args:
            *fields: The fields; each is read with one access of its width.

        Returns:
            Their values, in the same order.

        Raises:
            ConfigError: A field lies beyond the device's configuration.
            ConfigUnstable: The device kept changing it.
        """
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
        """Write one field of the device configuration, with one access of its width (2.5).

        Args:
            field: The field.
            value: What to write.
        """
        with self.session():
            self.transport.write_config(field.offset, field.width, value)

    # --- waiting --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Read the status and check that the device still works. For callers with their own event loop.

        Raises:
            DeviceNeedsReset: DEVICE_NEEDS_RESET or FAILED is set (2.1.1).
            DeviceResetByOther: The status reads 0, and this process did not reset the device.
            DeviceGone: The device was removed.
            Closed: The device is closed.
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
        """Wait until ``ready()`` is true, taking interrupts meanwhile.

        Args:
            ready: Whether the wait is over; called again after each event.
            timeout: Seconds; None: no limit but that of the session, until ``close()`` or ``interrupt()``.
            what: What is waited for, for the text of DeviceTimeout.
            owed: Whether the device must respond in time: if it does not, the device is broken.
            watch: File descriptors of the caller's own; ``ready`` is called as soon as one can be read.

        Returns:
            True, or False where the time-out passed and ``owed`` is False.

        Raises:
            DeviceTimeout: The time-out passed and ``owed`` is True.
            DeviceNeedsReset: DEVICE_NEEDS_RESET or FAILED is set (2.1.1).
            DeviceResetByOther: The status reads 0, and this process did not reset the device.
            DeviceGone: The device was removed.
            Closed: The device was closed, possibly during the wait.
            UsageError: ``timeout`` is NaN or infinite.
        """
        limit = self._limit  # of this session: the accesses of this wait have its deadline already
        if limit is not None or (timeout is not None and not 0.0 <= timeout < TIMEOUT_MAX):
            timeout = self.seconds(timeout)
        own = limit is None and self._hurries is not None and timeout is not None and timeout < self.timeout
        if own or not self._made_here[0]:
            with self.session(timeout if own else None):
                return self._waiting.wait(ready, timeout, what, owed, watch)
        self._acquire()  # the device's own session, without its calls: a wait is as short as an interrupt
        try:
            if (self.closing or self._broken is not None) and not self.leaving:
                self._check_usable()
            try:
                return self._waiting.wait(ready, timeout, what, owed, watch)
            except BaseException as error:
                self._left_by(error)
                raise
        finally:
            self._release_lock()

    def interrupt(self, reason: BaseException) -> None:
        """Make the wait loop raise ``reason`` at its next iteration. For signal handlers: it only sets a flag.

        An exception that a handler raises itself could come between any two instructions, also while a chain is
        being added; this one comes where the rings and their bookkeeping are consistent.

        Args:
            reason: The exception to raise.
        """
        if self._ours() and not self._closed:  # a forked child shares the descriptor that wakes the loop
            self._waiting.interrupt(reason)

    def service(self) -> bool:
        """Take and dispatch pending interrupts, without waiting. For callers with their own event loop.

        Returns:
            Whether there were any.

        Raises:
            DeviceGone: The device was removed.
            DeviceNeedsReset: DEVICE_NEEDS_RESET or FAILED is set (2.1.1).
            DeviceResetByOther: The status reads 0, and this process did not reset the device.
            Closed: The device is being closed.
            NotSupported: Another process opened the device.
        """
        return self._waiting.service()

    def storm_backoff(self, done: int) -> float:
        """Back-off before the device's events are polled again. For callers with their own event loop.

        Args:
            done: The value of ``completions`` before the last ``service()``.

        Returns:
            Seconds: above 0.0 during an interrupt storm (spurious interrupts without end), 0.0 otherwise.
        """
        return self._waiting.storm_backoff(done)

    @property
    def interrupted(self) -> bool:
        """Whether the last look at the events found an interrupt, even one without a cause in the device."""
        return self._waiting.interrupted

    if not TYPE_CHECKING:  # their names here before 0.2; a __getattr__ would make all other attributes slow
        config_changes, interrupts_taken = moved("config_changes"), moved("interrupts_taken")
        missed_interrupts, interrupt_storms = moved("missed_interrupts"), moved("interrupt_storms")
        polled = moved("polled")

    def check_status(self) -> int:
        """Do what ``check`` does, inside a session of the caller's.

        Returns:
            The status bits (2.1).

        Raises:
            DeviceNeedsReset: DEVICE_NEEDS_RESET or FAILED is set (2.1.1).
            DeviceResetByOther: The status reads 0, and this process did not reset the device.
            DeviceGone: The device was removed.
        """
        return self._status.check()

    # --- leaving --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop the device and keep it open: give back, reset (2.4), bus master off, free memory. Idempotent.

        From any thread. Giving back has the device's time-out, in all (``Driver``), and the reset has it, too.
        """
        if self._closed or not self._ours():
            return
        with self._alone(self._waiting.wake, self._waiting.quieten), signals_held():
            if self._closed:
                return
            self.leaving = True
            try:
                with self._own_time():
                    try:
                        self._hand_back()
                    finally:
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
        """Reset with confirmation, bus master off, then free. Without confirmation the memory is never freed."""
        was_live = self._status.live
        confirmed = not was_live
        if self.queues and self._witness is None:  # a record has what a driver does, and no look at the rings
            found = (of_queue(queue) for queue in self.queues.values())
            self.queues_left = tuple(one for one in found if one is not None)
        if was_live and may_reset:
            try:
                self._status.reset(self.timeout)
                confirmed = True
            except DeviceAbsent as error:
                self._break(error)
                confirmed = True  # an absent device writes nowhere
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
            self._kept.append((self._dma, self._rings))
            keep_for_ever(self._kept[-1])
            self._dma, self._rings = None, []
        self._status.live = False
        self._release()
        if was_live:
            self._say(log.INFO, "left: %s", "reset" if confirmed else "reset without an answer")

    def _release(self) -> None:
        """Release queues, interrupts and memory; the device was reset, or its memory is in quarantine."""
        self._used_by = None
        self._waiting.forget()
        self.queues.clear()
        rings, self._rings = self._rings, []
        dma, self._dma = self._dma, None
        views, self._before_free = self._before_free, []
        with ExitStack() as stack:
            stack.callback(free, dma, rings, self.transport.release_queues)
            for release in reversed(views):
                stack.callback(release)

    def _release_kept(self) -> None:
        """Free what ``_quiet`` kept if the device's process has ended: then nothing writes there any more."""
        backend = getattr(self.transport, "backend", None)
        if not self._kept or not isinstance(backend, Ends) or not backend.ended:
            return
        while self._kept:
            pair = self._kept.pop()
            free(*pair)
            keep_no_longer(pair)

    def close(self) -> None:
        """Stop the device (see ``stop``) and close its transport; idempotent, from any thread.

        A device that does not answer, or is gone, is no error here: it is logged as a warning. In a forked child
        this does nothing: the device is the parent's.
        """
        if self._closed or not self._ours():
            return
        self._for_good = self.closing = True
        self._waiting.wake()
        with self._lock, signals_held():
            if self._closed:
                return
            self.closing = True  # a ``stop()`` of another thread may have ended with False
            try:
                self.stop()
            finally:
                self._closed = True
                self._say(log.INFO, "closed")
                try:
                    self.transport.close()
                except (DeviceFailure, DeviceAbsent, EnvironmentLack) as error:
                    # Everything is freed or kept by now, and an error would hide that of the caller's block.
                    self._break(error)
                    self._say(log.WARNING, "closed: %s", error)
                finally:
                    self._release_kept()
                    self._waiting.close()
                    self._ending.done()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_ending" in self.__dict__ and not self._closed and self._ours():
            self._ending.dropped(self)
