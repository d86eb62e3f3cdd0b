"""What the drivers share: the way in, the way out, and one request that waits for its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import ClassVar, Self

from uvirtio.device import Device, Observer, Queue, QueueSpec, unobserved
from uvirtio.errors import NotVirtio
from uvirtio.interfaces.memory import Block
from uvirtio.spec import features as f
from uvirtio.spec import ids
from uvirtio.virtqueue import Completion, SgEntry


class Driver:
    """A driver owns the started device, not the open one: ``close()`` leaves in order and keeps it open.

    Raises NotVirtio when the device is of another type, else what ``Device.start`` raises.
    """

    device_id: ClassVar[int]
    features: ClassVar[int] = 0
    """Allow-list of device-type feature bits (2.2.1)."""

    def __init__(self, device: Device, *, observe: Observer = unobserved) -> None:
        if device.device_id != self.device_id:
            raise NotVirtio(
                f"{device.address} is no {ids.type_name(self.device_id)} device",
                seen=device.type,
                expected=ids.type_name(self.device_id),
                remedy="uvirtio list shows what each device is",
            )
        self.device = device
        device.start(
            wanted=self._wanted(),
            dependencies=self._dependencies(),
            queues=self._queues,
            before_ok=self._before_ok,
            give_back=self._give_back,
            observe=observe,
        )

    def _wanted(self) -> int:
        """The feature bits of this instance; those of the class unless it has options."""
        return self.features

    def _dependencies(self) -> Iterable[f.Needs] | None:
        """Which bit needs which, for this instance; None: as the standard has it (2.2.1)."""
        return None

    def _queues(self) -> Sequence[QueueSpec]:
        """The queues, now that ``device.features`` is known."""
        raise NotImplementedError

    def _before_ok(self) -> None:
        """With the queues made and DRIVER_OK not yet set; must not kick (3.1.1)."""

    def _give_back(self, working: bool) -> None:
        """First step of leaving: undo what outlives a reset. Bounded; ``working`` False: don't wait for it."""

    def close(self) -> None:
        """Give back, reset the device, free its memory; idempotent. The device stays open."""
        self.device.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def runs(block: Block, offset: int, length: int) -> list[SgEntry]:
    """These bytes of a block as elements of a chain; contiguous pieces are one element (2.7.4.2)."""
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
    """Post one chain on a queue that has nothing else out, and wait for it. Raises DeviceTimeout.

    If something interrupts the wait, the chain stays with the device: see :func:`settle`.
    """
    mine = cookie or object()
    done: list[Completion] = []

    def ready() -> bool:
        done.extend(completion for completion in queue.reap() if completion.cookie is mine)
        return bool(done)

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
) -> list[Completion]:
    """Wait until nothing is out; returns what came back. Raises DeviceTimeout.

    For several requests at once, and for after an interruption: until a request is back, its buffers are the
    device's (3.3.1). ``note`` is told of completions as they come, for a wait that does not end well.
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
            what=f"{queue.ring.in_flight} buffer{'s' * (queue.ring.in_flight != 1)} on {queue.name}",
        )
    return done
