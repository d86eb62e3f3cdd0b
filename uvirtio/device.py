"""One device: bringing it up (3.1.1), sessions with it, its configuration, and leaving it in order.

A driver calls ``Device.start``, which runs the initialisation sequence once, for everybody: drivers,
diagnostics and tests see the same steps. There is one wait loop (``waiting.py``), and one way out.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from uvirtio.errors import (
    Closed,
    ConfigError,
    ConfigUnstable,
    DeviceAbsent,
    DeviceBroken,
    DeviceFailure,
    DeviceNeedsReset,
    DeviceResetByOther,
    DeviceTimeout,
    FeatureMissing,
    FeaturesRefused,
    NotSupported,
    QueueError,
    ResetTimeout,
    UvirtioError,
)
from uvirtio.memory.access import require_little_endian
from uvirtio.memory.fence import full_fence, platform_fence
from uvirtio.memory.seams import (
    DmaSpace,
    Doorbell,
    HasAdminQueues,
    InterruptMode,
    QueueLayout,
    ResetsQueues,
    Transport,
)
from uvirtio.spec import features as f
from uvirtio.spec import ids
from uvirtio.spec.layout import Field
from uvirtio.spec.ring import MAX_SIZE, is_power_of_two
from uvirtio.spec.status import Status, describe
from uvirtio.virtqueue import Completion, Run, Virtqueue
from uvirtio.virtqueue.packed import make_packed
from uvirtio.virtqueue.slots import Chain, Slots, fixed_slots
from uvirtio.virtqueue.split import make_split
from uvirtio.waiting import POLL_FIRST, POLL_LAST, WaitLoop, gone

T = TypeVar("T")

DEFAULT_TIMEOUT = 5.0
QUEUE_SIZE_MAX = 256
"""Entries. Enough for every driver here, and each ring area fits one page, which guest-physical memory needs."""

RING_FEATURES = f.mask(
    f.INDIRECT_DESC,
    f.EVENT_IDX,
    f.RING_PACKED,
    f.IN_ORDER,
    f.NOTIFICATION_DATA,
    f.NOTIF_CONFIG_DATA,
    f.RING_RESET,
)

RingChoice = Literal["auto", "split", "packed"]
"""Which ring format to take: ``auto`` is packed where it is offered, as 6.1 wants it."""

LEGACY_FEATURES = f.mask(f.ANY_LAYOUT)
"""Taken where a legacy interface offers it (6.3): our chains then may be laid out as on a modern one (2.7.4)."""

_CONFIG_TRIES, _CONFIG_PATIENCE = 16, 0.5
"""Readings of a configuration that moves before we pause between them, and seconds until we give up. A host that
sweeps a value through a hundred others is busy, not broken; one that never holds still is."""


ADMIN_QUEUE = "adminq"
"""The name of the administration queue, where there is one."""


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue that a driver wants: its index (chapter 5), a name for people, and the most entries of use."""

    index: int
    name: str
    size: int = QUEUE_SIZE_MAX
    required: bool = True


class Queue:
    """A live virtqueue: the ring and its doorbell."""

    def __init__(self, spec: QueueSpec, ring: Virtqueue, doorbell: Doorbell, *, with_data: bool = False) -> None:
        self.index = spec.index
        self.name = spec.name
        self.spec = spec
        self.ring = ring
        self._doorbell = doorbell
        self._with_data = with_data
        self.kicks = 0
        self.completions = 0
        """Chains that came back, since the start."""
        self._slots: Slots | None = None

    def add(self, readable: Sequence[Run], writable: Sequence[Run], cookie: Any) -> None:
        """Lay down a chain; the device does not see it before ``kick``."""
        self.ring.add(readable, writable, cookie)

    def kick(self) -> None:
        """Publish what was added and ring the doorbell if the device wants that (2.7.13)."""
        if self.ring.publish():
            self.notify()

    def notify(self) -> None:
        """Ring the doorbell unasked: for what was published before DRIVER_OK, when no kick was allowed (3.1.1)."""
        # 2.9: with NOTIFICATION_DATA a kick says where what is new ends.
        self._doorbell.ring(self.index | self.ring.kick_data << 16 if self._with_data else self.index)
        self.kicks += 1

    def renew(self, ring: Virtqueue, doorbell: Doorbell) -> None:
        """After a reset of this queue: another ring, without chains and without slots."""
        self.ring, self._doorbell, self._slots = ring, doorbell, None

    @property
    def slots(self) -> Slots | None:
        """The fixed slots, if there are any."""
        return self._slots

    def reap(self, limit: int | None = None) -> list[Completion]:
        done = self.ring.reap(limit)
        self.completions += len(done)
        return done

    def lay(self, chains: Sequence[Chain]) -> Slots:
        """Lay chains down for good, one slot each; from then on the queue goes by ``post`` and ``take``."""
        self._slots = fixed_slots(self.ring, chains)
        return self._slots

    def post(self, slots: Sequence[int]) -> None:
        """Give these slots to the device, and ring the doorbell if it wants that. Only after DRIVER_OK (3.1.1)."""
        assert self._slots is not None
        if self._slots.post(slots):
            self.notify()

    def take(self) -> array[int]:
        """The slots that came back, in the device's order."""
        assert self._slots is not None
        found = self._slots.reap()
        self.completions += len(found)
        return found


Observer = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a step of the sequence; the step runs inside the context it returns."""


GiveBack = Callable[[bool], None]
"""What a driver does first when the device is left; the argument says whether the device still works."""


def unobserved(_step: str) -> AbstractContextManager[None]:
    """Nobody watches."""
    return nullcontext()


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

    def __init__(
        self,
        address: str,
        transport: Transport,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        interrupts: Sequence[InterruptMode] = tuple(InterruptMode),
        ring: RingChoice = "auto",
        poll_us: float = 0,
    ) -> None:
        require_little_endian()
        self.address = address
        self.transport = transport
        self.timeout = timeout
        self.interrupts = tuple(interrupts)
        self.ring = ring
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
        self._status = 0  # the bits that we have set since the last reset
        self._live = False  # between the first status write and a confirmed reset
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
        self._waiting = WaitLoop(self, transport, poll_us / 1e6)
        atexit.register(self.close)

    # --- state ----------------------------------------------------------------------------------------------

    @property
    def dma(self) -> DmaSpace:
        """Memory for this device, under the address policy that was negotiated. Raises Closed before start."""
        if self._dma is None:
            raise Closed(f"{self.address} is not started: its address policy is not known before FEATURES_OK")
        return self._dma

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

    def has(self, bit: int) -> bool:
        """Whether feature ``bit`` was negotiated."""
        return bool(self.features >> bit & 1)

    def session(self) -> AbstractContextManager[None]:
        """Around every operation of a driver: refuses closed, broken and forked devices, and takes the lock.

        A DeviceFailure or DeviceGone that leaves the block makes the device broken: all later calls fail at
        once instead of each waiting for its own deadline. Sessions nest; what a driver does while it leaves
        is let through.
        """
        return self._session

    def _left_by(self, error: BaseException) -> None:
        """An exception leaves a session: whether it makes the device broken."""
        if isinstance(error, DeviceFailure) and self._vanished():
            # A removed device answers with ones, which look like many other faults.
            removed = gone(self.address, "status reads 0xff")
            self._break(removed)
            raise removed from error
        if isinstance(error, (DeviceFailure, DeviceAbsent)):
            self._break(error)

    def _vanished(self) -> bool:
        try:
            return self.transport.status() == 0xFF
        except DeviceAbsent:
            return True
        except UvirtioError:
            return False

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
        if self._broken is not None:
            raise DeviceBroken(
                f"{self.address} failed before: {self._broken}",
                seen=self._broken.code,
                expected="a device that works",
                remedy="close it and open it again",
            ) from self._broken

    def _break(self, error: UvirtioError) -> None:
        if self._broken is None and not isinstance(error, DeviceBroken):
            self._broken = error

    # --- the initialisation sequence (3.1.1) ----------------------------------------------------------------

    def start(
        self,
        *,
        wanted: int,
        queues: Sequence[QueueSpec] | Callable[[], Sequence[QueueSpec]],
        required: int = 0,
        couplings: Iterable[f.Needs] | None = None,
        observe: Observer = unobserved,
        before_ok: Callable[[], None] | None = None,
        give_back: GiveBack | None = None,
        admin: bool = False,
    ) -> None:
        """Bring the device up to DRIVER_OK.

        ``wanted`` is the driver's allow-list of device-type feature bits; the transport's and the ring's are
        added here. ``required`` bits must be offered. ``couplings`` (None: all that the standard has for this
        type) say which bit needs which. ``queues`` may be a function, for queues that depend on what was
        negotiated. ``before_ok`` runs with the queues made and DRIVER_OK not yet set; nothing may be kicked
        there. ``give_back`` runs first when the device is left. ``admin``: take an administration queue where one
        is offered (ADMIN_VQ); it is among ``queues`` under the name ``adminq``.

        On a legacy interface (3.1.2) the steps are the same without FEATURES_OK, and the choice is not read back.

        Raises FeatureMissing, FeaturesRefused, QueueError, ResetTimeout, or what memory raises; FAILED is set
        then (3.1.1) and the device is reset and let go of.
        """
        with self.session():
            if self._live:
                self.stop()  # another driver had it: what that one took is given back first
                self._check_usable()
            try:
                with self._step(observe, "reset"):
                    self.reset()
                with self._step(observe, "acknowledge"):
                    self._add_status(Status.ACKNOWLEDGE)
                with self._step(observe, "driver"):
                    self._add_status(Status.DRIVER)
                with self._step(observe, "features"):
                    rules = f.dependencies(self.type) if couplings is None else couplings
                    self._negotiate(wanted, required, rules, admin)
                with self._step(observe, "features_ok"):
                    self._confirm_features()
                with self._step(observe, "queues"):
                    self._dma = self._dma_for(bool(self.has(f.ACCESS_PLATFORM)))
                    asked = queues() if callable(queues) else queues
                    made = self._make_rings([*asked, *self._admin_queue()])
                with self._step(observe, "vectors"):
                    self.transport.connect_interrupts([spec.index for spec, _ in made], self.interrupts)
                    self._enable_queues(made)
                    if before_ok is not None:
                        before_ok()
                with self._step(observe, "driver_ok"):
                    self.transport.dma_enable(True)
                    self._add_status(Status.DRIVER_OK)
                    self._confirm_running()
                self._give_back = give_back
            except BaseException as error:
                self._fail(error)
                raise

    @contextmanager
    def _step(self, observe: Observer, name: str) -> Iterator[None]:
        """One step of the sequence; a failure in it is named for what it is before the observer sees it."""
        with observe(name), self.session():
            yield

    def reset(self) -> None:
        """Write 0 to status and wait until it reads 0 (2.4.2). Raises ResetTimeout, DeviceGone.

        Whatever rings the device had are dead afterwards, and their memory is freed.
        """
        self.check_owner()
        with self._lock:
            self._reset_device()
            with suppress(UvirtioError):
                self.transport.dma_enable(False)
            self._release()

    def _reset_device(self) -> None:
        self.transport.set_status(0)
        deadline = time.monotonic() + self.timeout
        pause = POLL_FIRST
        while True:
            late = time.monotonic() >= deadline  # asked before the look: the last look is after the deadline
            status = self.transport.status()
            if status == 0:
                break
            if status == 0xFF:
                self._live = False
                raise gone(self.address, "status reads 0xff")
            if late:
                raise ResetTimeout(
                    f"{self.address} did not finish its reset within {self.timeout:g} s",
                    seen=f"status {describe(status)}",
                    expected="status 0 (2.4.2)",
                    remedy="try a function-level reset: uvirtio reset DEV --flr",
                )
            time.sleep(pause)
            pause = min(pause * 2, POLL_LAST)
        self._live = False

    def _add_status(self, bit: Status) -> None:
        # 2.1.1: bits are added, never taken away. Ours are known, so the device's are not read into them.
        self._live = True
        if bit is Status.ACKNOWLEDGE:
            self._status = 0
        self._status |= int(bit)
        self.transport.set_status(self._status)

    def _negotiate(self, wanted: int, required: int, couplings: Iterable[f.Needs], admin: bool) -> None:
        legacy = self.transport.legacy
        offered, again = self.transport.device_features(), self.transport.device_features()
        # A device that changes its mind is taken at what it said both times; FEATURES_OK has the last word.
        self.offered, self.unsteady_features = offered & again, offered ^ again
        # 2.2.3: on a legacy interface VERSION_1 is not there to be taken, nor is anything above bit 31.
        must = required if legacy else required | f.mask(f.VERSION_1)
        if self.ring == "packed":
            must |= f.mask(f.RING_PACKED)
        missing = must & ~self.offered
        if missing:
            names = ", ".join(bit.name for bit in f.names(self.type, missing))
            raise FeatureMissing(
                f"{self.address} does not offer {names}",
                seen=f"{self.offered:#x}",
                expected=f"the bits {must:#x} (2.2.1)",
                remedy=_without(missing, legacy),
            )
        # 2.2.1: from allow-lists only, so that what nobody here knows is never acknowledged.
        ours = wanted | required | RING_FEATURES
        ours |= LEGACY_FEATURES if legacy else f.mask(f.VERSION_1, f.ACCESS_PLATFORM)
        if self.ring == "split":
            ours &= ~f.mask(f.RING_PACKED)
        if self._platform_fence is not None:
            ours |= f.mask(f.ORDER_PLATFORM)  # 6.1: only with barriers that a device on a bus heeds
        if admin:
            ours |= f.mask(f.ADMIN_VQ)
        carried = self.transport.features_allowed | f.DEVICE_TYPE_MASK
        self.features = f.resolve(self.offered, ours & carried, couplings)
        self.transport.set_driver_features(self.features)

    def _confirm_features(self) -> None:
        if self.transport.legacy:
            return  # 3.1.2: no such step, and nothing to read back
        self._add_status(Status.FEATURES_OK)
        status = self.check_status()
        if not status & Status.FEATURES_OK:
            raise FeaturesRefused(
                f"{self.address} refuses this choice of features",
                seen=f"status {describe(status)} after writing {self.features:#x}",
                expected="FEATURES_OK to stay set (3.1.1)",
                remedy=f"the device offered {self.offered:#x}; look at what was left out: "
                f"{self.offered & ~self.features:#x}",
            )

    def _confirm_running(self) -> None:
        status = self.check_status()
        if not status & Status.DRIVER_OK:
            raise DeviceNeedsReset(
                f"{self.address} does not take DRIVER_OK",
                seen=f"status {describe(status)}",
                expected="DRIVER_OK to stay set (3.1.1)",
                remedy="the device gave up at the last step; its own log says why",
            )

    def _dma_for(self, access_platform: bool) -> DmaSpace:
        # 6.1: with ACCESS_PLATFORM the device's addresses go through the platform (IOVAs); without it they
        # are guest-physical, whatever IOMMU there is.
        return self.transport.dma(access_platform)

    def _make_rings(self, specs: Sequence[QueueSpec]) -> list[tuple[QueueSpec, Virtqueue]]:
        made: list[tuple[QueueSpec, Virtqueue]] = []
        for spec in specs:
            layout = self.transport.queue_layout(spec.index)
            if layout.size_max == 0:
                if spec.required:
                    raise QueueError(
                        f"{self.address} has no {spec.name} (queue {spec.index})",
                        seen=f"queue_size 0, {self.transport.num_queues} queues",
                        expected="a queue (4.1.5.1.3)",
                    )
                continue
            ring = self._make_ring(spec, layout)
            self._rings.append(ring)
            made.append((spec, ring))
        return made

    def _make_ring(self, spec: QueueSpec, layout: QueueLayout) -> Virtqueue:
        """The ring of one queue, in the format that was negotiated."""
        packed, most = self.has(f.RING_PACKED), layout.size_max
        if most > MAX_SIZE or not (packed or is_power_of_two(most)):
            raise QueueError(
                f"the size of {spec.name} (queue {spec.index}) is no "
                f"{'number' if packed else 'power of two'} up to 32768",
                seen=most,
                expected="1 to 32768 (2.8)" if packed else "a power of two (2.7)",
            )
        # 2.7.2: a legacy queue may have one size only, whatever we would like.
        size = most if layout.size_fixed else min(most, spec.size, QUEUE_SIZE_MAX)
        order = self._platform_fence if self.has(f.ORDER_PLATFORM) else None
        indirect, event_idx, in_order = self.has(f.INDIRECT_DESC), self.has(f.EVENT_IDX), self.has(f.IN_ORDER)
        if packed:
            return make_packed(
                spec.index,
                size,
                self.dma,
                fence=self._fence,
                indirect=indirect,
                event_idx=event_idx,
                in_order=in_order,
                order=order,
            )
        return make_split(
            spec.index,
            size,
            self.dma,
            fence=self._fence,
            indirect=indirect,
            event_idx=event_idx,
            in_order=in_order,
            # 2.7.8.1: many devices fill in a wrong length on the legacy interface.
            clamp_used_len=self.transport.legacy,
            one_region=layout.one_region,
            order=order,
        )

    def _admin_queue(self) -> list[QueueSpec]:
        """One administration queue where ADMIN_VQ was negotiated: with one, commands keep their order (2.13.2)."""
        if not self.has(f.ADMIN_VQ) or not isinstance(self.transport, HasAdminQueues):
            return []
        return [QueueSpec(index, ADMIN_QUEUE, size=16) for index in self.transport.admin_queues()[:1]]

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
            self._await_queue_reset(transport, queue, self.timeout if timeout is None else timeout)
            # 2.6.1.1: from here on the device touches nothing of this queue.
            old = queue.ring
            out: list[Any] = old.abandon() if queue.slots is None else list(queue.slots.out())
            old.abandon()
            self._rings.remove(old)
            old.close()
            ring = self._make_ring(queue.spec, transport.queue_layout(queue.index))
            self._rings.append(ring)
            # 2.6.1.2.2: everything is written again, whatever it was before.
            doorbell = transport.enable_queue(queue.index, ring.size, *ring.addresses)
            queue.renew(ring, doorbell)
            return out

    def _await_queue_reset(self, transport: ResetsQueues, queue: Queue, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        pause = POLL_FIRST
        while True:
            late = time.monotonic() >= deadline  # asked before the look: the last look is after the deadline
            if transport.queue_is_reset(queue.index):
                return
            if late:
                raise DeviceTimeout(
                    f"{self.address} did not finish the reset of {queue.name} within {timeout:g} s",
                    seen="queue_reset 1",
                    expected="queue_reset 0 (2.6.1, 4.1.4.3.2)",
                    remedy="close the device: that resets it whole",
                )
            time.sleep(pause)
            pause = min(pause * 2, POLL_LAST)

    def _fail(self, error: BaseException) -> None:
        """Tell the device that we gave up (3.1.1: FAILED), and get out of its way."""
        with _signals_held():
            if isinstance(error, DeviceAbsent):
                self._live = False
            elif self._live and not isinstance(error, ResetTimeout):
                with suppress(UvirtioError):
                    self.transport.set_status(self._status | int(Status.FAILED))
            self._quiet(may_reset=not isinstance(error, ResetTimeout))

    # --- configuration (2.5) --------------------------------------------------------------------------------

    def snapshot(self, read: Callable[[], T]) -> T:
        """What ``read`` returns, read between two equal generations, so that its fields belong together.

        Raises ConfigUnstable when the device changed it all the time for half a second (or for its time-out,
        where that is shorter). Where a transport has no generation, ``read`` is repeated until two results
        agree (2.5.4).
        """
        with self.session():
            return self._snapshot(read)

    def _snapshot(self, read: Callable[[], T]) -> T:
        patience = min(self.timeout, _CONFIG_PATIENCE)
        deadline = time.monotonic() + patience
        for tries in count(1):
            before = self.transport.generation()
            value = read()
            if before is None:
                if read() == value:
                    return value
            elif self.transport.generation() == before:
                if before == 0xFF:
                    self.check_status()  # or is it a device that is gone, and answers with ones?
                return value
            if time.monotonic() >= deadline:
                break
            if tries >= _CONFIG_TRIES:
                time.sleep(min(1e-3, patience))
        raise ConfigUnstable(
            f"the configuration of {self.address} changes faster than it can be read",
            seen=f"something new at each of {tries} reads in {patience:g} s",
            expected="the same generation before and after (2.5.1); without one, the same values twice (2.5.4)",
            remedy="the device is at fault: its configuration must stand still while nothing changes",
        )

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

    def deaf(self, done: int) -> float:
        """Seconds to stay away from the device's events after a look; for who waits in a loop of his own.

        ``done``: the ``completions`` before the look. More than 0 while interrupts come for nothing, without end.
        """
        return self._waiting.deaf(done)

    @property
    def roused(self) -> bool:
        """An interrupt came at the last look, whether the device names a cause or not."""
        return self._waiting.roused

    @property
    def config_changes(self) -> int:
        """Configuration-change notifications seen since the device was opened."""
        return self._waiting.config_changes

    @property
    def interrupts_taken(self) -> int:
        """Times that an interrupt was taken since the device was opened."""
        return self._waiting.interrupts_taken

    @property
    def missed_interrupts(self) -> int:
        """Times that something was there though no interrupt had said so."""
        return self._waiting.missed_interrupts

    @property
    def interrupt_storms(self) -> int:
        """Times that interrupts for nothing came faster than anybody can want them, since it was opened."""
        return self._waiting.storms

    @property
    def polled(self) -> int:
        """Waits that polling ended before they had to sleep."""
        return self._waiting.polled

    def check_status(self) -> int:
        """The status of a device that goes on; inside a session. Raises as :meth:`check`."""
        status = self.transport.status()
        if status == 0xFF:
            raise gone(self.address, "status reads 0xff")
        if status & (Status.DEVICE_NEEDS_RESET | Status.FAILED):
            raise DeviceNeedsReset(
                f"{self.address} needs a reset",
                seen=f"status {describe(status)}",
                expected="a device that goes on (2.1.1)",
                remedy="it met an error in what it was given, its own log says which; close it and open it again",
            )
        if status == 0 and self._live:
            self._live = False
            raise DeviceResetByOther(
                f"{self.address} was reset by somebody else",
                seen="status 0",
                expected=f"status {self._status:#04x}",
                remedy="close and open it again",
            )
        return status

    # --- leaving --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Leave the device in order and stay open: give back, reset, bus master off, free. Idempotent."""
        if self._closed or not self._ours():
            return
        with self._lock, _signals_held():
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
        if give_back is None or not self._live or isinstance(self._broken, DeviceAbsent):
            return
        try:
            give_back(self._broken is None)
        except UvirtioError as error:
            self._break(error)

    def _quiet(self, *, may_reset: bool) -> None:
        """Reset with confirmation, bus master off, then free. Without confirmation the memory is kept for ever."""
        confirmed = not self._live
        if self._live and may_reset:
            try:
                self._reset_device()
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
            _keep_for_ever((self._dma, self._rings))
            self._dma, self._rings = None, []
        self._live = False
        self._release()

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
        with self._lock, _signals_held():
            if self._closed:
                return
            try:
                self.stop()
            finally:
                self._closed = True
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


def _without(missing: int, legacy: bool) -> str:
    """What to do about feature bits that are not offered."""
    if legacy and missing & ~f.LEGACY_MASK:
        return (
            "the legacy interface has the bits 0 to 31 alone; take the modern one: leave --force-legacy out, "
            "or start the device without disable-modern=on"
        )
    if missing & f.mask(f.VERSION_1):
        return "a device without VERSION_1 is a legacy device: try --force-legacy"
    return "this driver cannot do without"


@contextmanager
def _signals_held() -> Iterator[None]:
    """Keep a second Ctrl-C from tearing the way out, which is bounded anyway; it is delivered afterwards.

    A signal mask would not do: another thread takes the signal then, and its handler runs in the main thread
    all the same. In other threads no handler runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _keep_for_ever(thing: object) -> None:
    """Quarantine: one reference that nobody gives back, so that this memory is never reused by this process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
