"""The input device (5.8): what it can do, and its stream of events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from uvirtio.device import QueueSpec
from uvirtio.drivers.base import Driver, runs
from uvirtio.spec import input as spec
from uvirtio.spec.layout import by_name
from uvirtio.virtqueue import Completion

_CONFIG = by_name(spec.CONFIG)
_EV_CNT = 0x20  # <linux/input-event-codes.h>


@dataclass(frozen=True, slots=True)
class InputEvent:
    """One event: ``type`` and ``code`` as in <linux/input-event-codes.h>, ``value`` signed, 32 bits."""

    type: int
    code: int
    value: int


@dataclass(frozen=True, slots=True)
class InputIds:
    """Bus type, vendor, product and version, 16 bits each (5.8.4)."""

    bustype: int
    vendor: int
    product: int
    version: int


@dataclass(frozen=True, slots=True)
class AbsInfo:
    """Range and noise of an absolute axis (5.8.4)."""

    minimum: int
    maximum: int
    fuzz: int
    flat: int
    resolution: int


class Input(Driver):
    """A keyboard, mouse or tablet. Its event queue is kept full of buffers from the start on."""

    device_id: ClassVar[int] = spec.TYPE

    def _queues(self) -> Sequence[QueueSpec]:
        return [
            QueueSpec(spec.EVENTQ, "eventq", size=64),
            QueueSpec(spec.STATUSQ, "statusq", size=64),
        ]

    def _before_ok(self) -> None:
        queue = self.device.queues[spec.EVENTQ]
        self.dropped = 0
        """Answers of the device that were no event (a wrong length), and were left out."""
        self._events: list[InputEvent] = []
        self._buffers = self.device.dma.alloc(queue.ring.size * spec.EVENT_SIZE)
        for slot in range(queue.ring.size):
            self._post(slot)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        # 3.1.1: buffers may be laid out before DRIVER_OK, the kick comes after.
        self.device.queues[spec.EVENTQ].kick()

    def _post(self, slot: int) -> None:
        at = slot * spec.EVENT_SIZE
        self._buffers.view[at : at + spec.EVENT_SIZE] = bytes(spec.EVENT_SIZE)
        self.device.queues[spec.EVENTQ].add((), runs(self._buffers, at, spec.EVENT_SIZE), slot)

    # --- what it is (5.8.4, 5.8.5) --------------------------------------------------------------------------

    def query(self, select: int, subsel: int = 0, *, width: int = 1) -> bytes:
        """The payload of one configuration query; empty where the device has nothing to say.

        ``select`` and ``subsel`` are both written, then ``size`` is read, and only that much of the payload,
        128 bytes at most, in pieces of ``width`` bytes (the width of its fields, 4.1.3.1).
        """
        with self.device.session():
            self.device.write_config(_CONFIG["select"], select)
            self.device.write_config(_CONFIG["subsel"], subsel)
            transport = self.device.transport

            def read() -> bytes:
                announced = transport.read_config(_CONFIG["size"].offset, 1)
                size = min(announced, spec.PAYLOAD_MAX, transport.config_length - spec.PAYLOAD)
                pieces = (
                    transport.read_config(spec.PAYLOAD + at, width).to_bytes(width, "little")
                    for at in range(0, size - size % width, width)
                )
                return b"".join(pieces)

            return self.device.snapshot(read)

    def _text(self, select: int) -> str:
        # 5.8.4: no terminator. What a device says is shown, not obeyed: no control characters.
        text = self.query(select).split(b"\0", 1)[0].decode("utf-8", "replace")
        return "".join(char if char.isprintable() else "�" for char in text)

    @property
    def name(self) -> str:
        return self._text(spec.Select.ID_NAME)

    @property
    def serial(self) -> str:
        return self._text(spec.Select.ID_SERIAL)

    @property
    def ids(self) -> InputIds | None:
        """None where the device has none."""
        data = self.query(spec.Select.ID_DEVIDS, width=2)
        if len(data) < 8:
            return None
        words = [int.from_bytes(data[at : at + 2], "little") for at in range(0, 8, 2)]
        return InputIds(*words)

    def properties(self) -> frozenset[int]:
        """The INPUT_PROP_* numbers of the device."""
        return _bits(self.query(spec.Select.PROP_BITS))

    def codes(self, event_type: int) -> frozenset[int]:
        """The codes of this event type that the device can send (or, for EV_LED and EV_SND, take)."""
        return _bits(self.query(spec.Select.EV_BITS, event_type))

    def event_types(self) -> dict[int, frozenset[int]]:
        """All event types that the device has, with their codes. A type may have none: EV_REP is one such."""
        payloads = {kind: self.query(spec.Select.EV_BITS, kind) for kind in range(_EV_CNT)}
        return {kind: _bits(payload) for kind, payload in payloads.items() if payload}

    def absinfo(self, axis: int) -> AbsInfo | None:
        """Range of an absolute axis; None where the device has no such axis."""
        data = self.query(spec.Select.ABS_INFO, axis, width=4)
        if len(data) < 20:
            return None
        words = [int.from_bytes(data[at : at + 4], "little", signed=True) for at in range(0, 20, 4)]
        return AbsInfo(*words)

    # --- the stream (5.8.6) ---------------------------------------------------------------------------------

    def read(self, *, timeout: float | None = None) -> list[InputEvent]:
        """The events that are there, in order; waits for the first one up to ``timeout`` seconds (None: for ever).

        An empty list means that nothing came; that is no error, nobody owes an event.
        """
        with self.device.session():
            self.device.wait(self._collect, timeout=timeout, what="an event", owed=False)
            found, self._events = self._events, []
            return found

    def events(self, *, timeout: float | None = None) -> Iterator[InputEvent]:
        """The events one by one; ends when for ``timeout`` seconds none came (None: never)."""
        while found := self.read(timeout=timeout):
            yield from found

    def _collect(self) -> bool:
        queue = self.device.queues[spec.EVENTQ]
        completions = queue.reap()
        for done in completions:
            self._take(done)
        if completions:
            queue.kick()
        return bool(self._events)

    def _take(self, done: Completion) -> None:
        at = done.cookie * spec.EVENT_SIZE
        data = bytes(self._buffers.view[at : at + spec.EVENT_SIZE])  # copied once, then looked at
        self._post(done.cookie)
        if done.written != spec.EVENT_SIZE:
            self.dropped += 1
            return
        self._events.append(
            InputEvent(
                int.from_bytes(data[0:2], "little"),
                int.from_bytes(data[2:4], "little"),
                int.from_bytes(data[4:8], "little", signed=True),
            )
        )


def _bits(data: bytes) -> frozenset[int]:
    return frozenset(8 * at + bit for at, byte in enumerate(data) for bit in range(8) if byte >> bit & 1)
