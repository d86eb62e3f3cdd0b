"""What all drivers share: starting and stopping the device, and one request with its response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from operator import index
from types import TracebackType

from uvirtio.device import Device, Observer, Queue, QueueSpec, Session, unobserved
from uvirtio.errors import NotVirtio
from uvirtio.memory.forks import StaysHere
from uvirtio.spec import features as f
from uvirtio.spec import ids
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue import Completion, SgEntry

if TYPE_CHECKING:
    from typing import ClassVar, Self

    from uvirtio.interfaces.memory import Block


class Driver(StaysHere):
    """Base of the drivers: owns the started device, not the open one. ``close()`` resets it and keeps it open."""

    device_id: ClassVar[int]
    features: ClassVar[int] = 0
    """Allow-list of device-type feature bits (2.2.1)."""

    findings: Counter[str]
    """What the device did against the standard that could be tolerated: how often, by a line of text.

    Empty for a device that keeps to the standard. The texts are for people, and may change.
    """

    def __init__(self, device: Device, *, observe: Observer = unobserved) -> None:
        """Start the device (3.1.1): negotiate features, set up its queues, set DRIVER_OK.

        Args:
            device: An open device that is not started.
            observe: Called after each step of the initialisation.

        Raises:
            NotVirtio: The device is of another type.
            ResetTimeout: Status did not return to 0 in time (2.4.2).
            FeatureMissing: The device does not offer a feature that it was opened with (such as a packed ring).
            FeaturesRefused: The device cleared FEATURES_OK (3.1.1).
            QueueError: A required queue is missing, or the device refused it.
            ConfigError, ConfigUnstable: The configuration is invalid, or changes at every read.
            MemlockExceeded, HugePagesLack, MemoryScattered, PagemapHidden: There is no suitable DMA memory.
            NotSupported, OperationFailed: The back end cannot do what is needed, or failed at it.
        """
        if device.device_id != self.device_id:
            raise NotVirtio(
                f"{device.address} is no {ids.type_name(self.device_id)} device",
                seen=device.type,
                expected=ids.type_name(self.device_id),
                remedy="uvirtio list, or uvirtio.list(), shows what each device is",
            )
        self.device = device
        self._session = Session(device, type(self).__name__)
        self.findings = Counter()

        def give_back(working: bool) -> None:
            with device.session(device.timeout + self._leaving_takes):
                self._give_back(working)

        device.start(
            wanted=self._wanted(),
            dependencies=self._dependencies(),
            queues=self._queues,
            before_ok=self._before_ok,
            give_back=give_back,
            observe=observe,
            session=self._session,
        )

    def session(self, timeout: float | None = None) -> AbstractContextManager[None]:
        """The context manager for one operation of this driver (see ``Device.session``).

        Args:
            timeout: Seconds that the caller has for all of the operation.

        Raises:
            Closed: On entry: this driver or its device is closed.
        """
        return self.device.session(timeout, self._session)

    def _wanted(self) -> int:
        """The feature bits of this instance; those of the class unless it has options."""
        return self.features

    def _dependencies(self) -> Iterable[f.Needs] | None:
        """Which bit needs which, for this instance; None: as the standard has it (2.2.1)."""
        return None

    def _queues(self) -> Sequence[QueueSpec]:
        """The queues to set up; ``device.features`` is known by now."""
        raise NotImplementedError

    def _before_ok(self) -> None:
        """Device-specific setup between the queues and DRIVER_OK; must not kick (3.1.1)."""

    def _give_back(self, working: bool) -> None:
        """Before the reset: undo what outlives it. ``working`` False: do not wait for the device.

        All of it has one deadline: the device's time-out, and what ``_leaving_takes`` adds.
        """

    @property
    def _leaving_takes(self) -> float:
        """Seconds that ``_give_back`` may take beyond the device's time-out, where there is much to give back."""
        return 0.0

    def _finding(self, what: str) -> None:
        """Count something that the device should not have done, and that is tolerated."""
        self.findings[what] += 1

    def _about(self) -> str:
        """What a person wants to know of this driver, from its own books: the device is not asked."""
        return ""

    def __repr__(self) -> str:
        name, device = type(self).__name__, self.__dict__.get("device")
        if device is None:
            return f"<{name}, no device>"
        try:
            about = self._about()
        except AttributeError:  # in the middle of __init__, in a debugger
            about = ""
        return f"<{name} {device.address}, {f'{about}, ' * bool(about)}{device.state}>"

    def close(self) -> None:
        """Stop the driver: reset the device and free its memory. The device stays open. Idempotent."""
        self.device.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def integer(value: int | None) -> int | None:
    """Return an option as an integer, or None (``operator.index``: no fraction, and no integer that wraps)."""
    return None if value is None else index(value)


def runs(block: Block, offset: int, length: int) -> list[SgEntry]:
    """Return bytes of a block as elements of a descriptor chain; contiguous pieces are one element (2.7.4.2).

    Args:
        block: DMA memory.
        offset: Where the bytes begin in the block.
        length: How many bytes.
    """
    return block.segments(offset, length)


def transact(
    device: Device,
    queue: Queue,
    readable: Sequence[SgEntry],
    writable: Sequence[SgEntry],
    *,
    timeout: float,
    what: str,
    cookie: object = None,
) -> Completion:
    """Send one descriptor chain on a queue that has nothing else in flight, and wait until it is used.

    If something interrupts the wait, the chain stays with the device: see ``settle``.

    Args:
        device: The device of the queue.
        queue: The virtqueue.
        readable: Elements that the device reads.
        writable: Elements that the device writes; after the readable ones (2.7.4.2).
        timeout: Seconds to wait for the used buffer.
        what: What is waited for, for the error.
        cookie: Identifies the chain; one of its own where None.

    Returns:
        The completion, which says how many bytes the device wrote.

    Raises:
        DeviceTimeout: The device did not use the buffer in time.
        RingCorruption: The used ring holds what cannot be.
    """
    mine = cookie or object()
    done: list[Completion] = []

    def ready() -> bool:
        done.extend(completion for completion in queue.reap() if completion.cookie is mine)
        return bool(done)

    with device.session(timeout):
        queue.add(readable, writable, mine)
        queue.kick()
        device.wait(ready, timeout=timeout, what=what)
    return done[0]


def settle(
    device: Device,
    queue: Queue,
    *,
    timeout: float,
    note: Callable[[Sequence[Completion]], None] = lambda _: None,
    what: str | None = None,
) -> list[Completion]:
    """Wait until the device has used every buffer of a queue.

    For several requests at once, and after an interrupted wait: until a request is used, its buffers belong to
    the device (3.3.1).

    Args:
        device: The device of the queue.
        queue: The virtqueue.
        timeout: Seconds to wait, for all of them.
        note: Called with the completions as they arrive, for a wait that fails later.
        what: What is waited for, for the error; None: how many buffers.

    Returns:
        All completions, in the device's order.

    Raises:
        DeviceTimeout: The device still has buffers after ``timeout``.
        RingCorruption: The used ring holds what cannot be.
    """
    done: list[Completion] = []

    def ready() -> bool:
        came = queue.reap()
        note(came)
        done.extend(came)
        return queue.ring.in_flight == 0

    if queue.ring.in_flight:
        device.wait(
            ready,
            timeout=timeout,
            what=what or f"{queue.ring.in_flight} buffer{'s' * (queue.ring.in_flight != 1)} on {queue.name}",
        )
    return done
