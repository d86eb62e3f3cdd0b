"""One question to a device and its answer, for types that have no driver here; all who ask use the same.

A room for an answer is filled with a pattern before the device gets it, and the verdict is about what lies in the
room then. The length in the used ring proves nothing: there are devices that count bytes which they have not
written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from uvirtio.device import Device, Observer, QueueSpec
from uvirtio.diag.probes.outcome import Around, Idle, PathResult
from uvirtio.drivers.base import runs, transact
from uvirtio.errors import ProtocolError
from uvirtio.interfaces.memory import Block

QUEUE_SIZE: Final = 16
_UNTOUCHED, _WRONG, _DIFFERS = CAUSES = ("answer-untouched", "answer-wrong", "other-side-differs")
"""The ids of the causes: what can be wrong with an answer."""
_FILL: Final = 0xEE
_MEMORY: Final = 16384
_SHOWN: Final = 24
"""Bytes of an answer that an error shows."""
_ANSWERS: Final = 4096
"""Where answers begin in the memory, in bytes."""
_OFFERED: Final = 12288
"""Where the buffers begin that wait for what the device sends by itself."""
ANSWER_MAX: Final = _OFFERED - _ANSWERS
"""Bytes of all rooms of a request together, at most."""


class Room(NamedTuple):
    """A buffer that the device was to write."""

    data: bytes
    """What lies in it."""
    untouched: bool
    """Whether that is what lay in it before."""


UNTOUCHED: Final = "nothing was written into the room for it"
"""What ``Ask.wrong`` says of a room that was not written, beside others that were."""


class Ask(NamedTuple):
    """One request of one chain, and how its answer is judged."""

    what: str
    """What the standard calls it."""
    queue: int
    given: tuple[bytes, ...]
    """What the device reads, an element each."""
    rooms: tuple[int, ...]
    """What it may write, bytes of an element each."""
    wrong: Callable[[Sequence[Room]], str | None] = lambda rooms: None
    """What is wrong with the answer; None: nothing."""


def in_words(value: int, kinds: type[IntEnum], none: str) -> str:
    """A number that a device has written, with its name.

    Args:
        value: The number.
        kinds: The numbers that there are.
        none: What is said of another.
    """
    return f"{value:#x} ({next((one.name for one in kinds if one == value), none)})"


def judged(ask: Ask, rooms: Sequence[Room]) -> str | None:
    """What is wrong with the answer to a request; None: nothing.

    Args:
        ask: The request.
        rooms: Its rooms, as they came back.
    """
    if rooms and all(room.untouched for room in rooms):
        return UNTOUCHED
    return ask.wrong(rooms)


class AskingPath(Idle):
    """A data path of questions: the queues are started, and each answer is judged by its content."""

    wanted: int = 0
    """Feature bits of the type that are accepted."""

    def __init__(self, device: Device, around: Around) -> None:
        """Take over the device; ``start`` brings it up.

        Args:
            device: An open device of this type.
            around: What stands around it.
        """
        self._device = device
        self._around = around
        self._offers: dict[int, Offers] = {}

    # --- what a type says -----------------------------------------------------------------------------------

    def queues(self) -> list[QueueSpec]:
        """The queues to start; the configuration may be read."""
        raise NotImplementedError

    def exercise(self) -> PathResult:
        """Exchange buffers with the device."""
        raise NotImplementedError

    def change_configuration(self) -> PathResult | None:
        """Return None: there is no lever of the host's for this type."""
        return None

    # --- what all have --------------------------------------------------------------------------------------

    def start(self, observe: Observer) -> None:
        """Bring the device up with the queues of its type."""
        self._offers = {}
        self._device.start(wanted=self.wanted, queues=self.queues, observe=observe, before_ok=self._make_memory)

    def _make_memory(self) -> None:
        self.memory: Block = self._device.dma.alloc(_MEMORY)

    def put(self, ask: Ask) -> tuple[Room, ...]:
        """Send a request and wait until it comes back; its rooms, whatever lies in them.

        Raises:
            DeviceTimeout: It does not come back in time.
        """
        view, readable, writable, place = self.memory.view, [], [], 0
        for piece in ask.given:
            view[place : place + len(piece)] = piece
            readable += runs(self.memory, place, len(piece))
            place += len(piece)
        starts, place = [], _ANSWERS
        for size in ask.rooms:
            view[place : place + size] = bytes([_FILL]) * size
            writable += runs(self.memory, place, size)
            starts.append(place)
            place += size
        queue = self._device.queues[ask.queue]
        transact(
            self._device, queue, readable, writable, timeout=self._device.timeout, what=f"{ask.what} to be used"
        )
        found = [bytes(view[start : start + size]) for start, size in zip(starts, ask.rooms, strict=True)]
        return tuple(Room(data, not data.strip(bytes([_FILL]))) for data in found)

    def ask(self, ask: Ask) -> tuple[bytes, ...]:
        """Send a request; the content of its rooms.

        Raises:
            ProtocolError: The answer is wrong; ``about`` is the id of the cause.
            DeviceTimeout: It does not come back in time.
        """
        rooms = self.put(ask)
        wrong = judged(ask, rooms)
        if wrong is not None:
            raise self.fault(f"answers {ask.what} wrongly", wrong, b"".join(room.data for room in rooms))
        return tuple(room.data for room in rooms)

    def fault(self, did: str, wrong: str, data: bytes) -> ProtocolError:
        """The error for an answer that is wrong.

        Args:
            did: What the device did, as a verb and its object.
            wrong: What is wrong with it.
            data: The answer.
        """
        untouched = wrong == UNTOUCHED
        begins = f"{len(data)} bytes that begin {data[:_SHOWN].hex(' ')}"
        return ProtocolError(
            f"{self._device.address} {did}: {wrong}",
            seen=f"{begins}, as they were before" if untouched else begins,
            expected="an answer to the request, in the buffers that were given for it",
            remedy="does the device write to the addresses of the writable descriptors, all of them?"
            if untouched
            else "compare the request with what the device makes of it: its own log, or its host's",
            about=_UNTOUCHED if untouched else _WRONG,
        )

    def differs(self, what: str, seen: str, expected: str) -> ProtocolError:
        """The error for data that does not come out on the other side as it went in.

        Args:
            what: The way that it went.
            seen: What came out.
            expected: What went in.
        """
        return ProtocolError(
            f"{self._device.address}: {what} is not what went in",
            seen=seen,
            expected=expected,
            remedy="the device answers, and what it does is something else: compare both ends",
            about=_DIFFERS,
        )

    # --- buffers that wait ----------------------------------------------------------------------------------

    def offer(self, queue: int, size: int, count: int) -> Offers:
        """Give the device buffers for what it sends by itself; once for each queue.

        Args:
            queue: The queue.
            size: Bytes of each.
            count: How many; together with those of other queues at most 4096 bytes.
        """
        if queue not in self._offers:
            place = _OFFERED + sum(other.size * other.count for other in self._offers.values())
            self._offers[queue] = Offers(self, self._device, queue, place, size, count)
        return self._offers[queue]


class Offers:
    """Buffers of one queue that wait for what the device sends; each is offered again when it was taken."""

    def __init__(self, path: AskingPath, device: Device, queue: int, place: int, size: int, count: int) -> None:
        """Offer them.

        Args:
            path: Whose buffers they are.
            device: Its device, which runs.
            queue: Their queue.
            place: Where the first begins in the memory, in bytes.
            size: Bytes of each.
            count: How many.
        """
        self.size, self.count = size, count
        self._path, self._device, self._memory, self._place = path, device, path.memory, place
        self._queue = device.queues[queue]
        for number in range(count):
            self._add(number)
        self._queue.kick()

    def _add(self, number: int) -> None:
        start = self._place + number * self.size
        self._memory.view[start : start + self.size] = bytes([_FILL]) * self.size
        self._queue.add([], runs(self._memory, start, self.size), number)

    def take(self, timeout: float, what: str, *, owed: bool = True) -> list[bytes]:
        """Wait for at least one; what lies in those that came back, as far as the device says that it wrote.

        Args:
            timeout: Seconds to wait.
            what: What is waited for, for the error.
            owed: Whether it is an error that nothing comes.

        Returns:
            The buffers in their order; empty where nothing came and nothing was owed.

        Raises:
            ProtocolError: One came back and nothing was written into it.
            DeviceTimeout: Nothing came in time, and something was owed.
        """
        found: list[bytes] = []

        def ready() -> bool:
            for completion in self._queue.reap():
                number = int(completion.cookie)
                start = self._place + number * self.size
                data = bytes(self._memory.view[start : start + completion.written])
                if not data.strip(bytes([_FILL])):
                    raise self._path.fault(f"returns a buffer for {what}", UNTOUCHED, data)
                found.append(data)
                self._add(number)
            return bool(found)

        with self._device.session(timeout):
            self._device.wait(ready, timeout=timeout, what=what, owed=owed)
            if found:
                self._queue.kick()
        return found
