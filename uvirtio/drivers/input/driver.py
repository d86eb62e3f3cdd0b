"""The input driver (5.8): what the device can do, its stream of events, and what it is told (LEDs, sounds)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import ClassVar

from uvirtio.device import Device, Observer, Queue, QueueSpec, unobserved
from uvirtio.drivers.base import Driver, runs
from uvirtio.drivers.input.description import AbsInfo, Description, InputIds
from uvirtio.drivers.input.events import EVENTS_MAX, EventQueue, Frame, InputEvent
from uvirtio.drivers.input.state import InputState
from uvirtio.errors import NotSupported, UsageError
from uvirtio.interfaces.memory import Block
from uvirtio.spec import input as spec
from uvirtio.spec.layout import by_name

_CONFIG = by_name(spec.CONFIG)
_EMPTY = bytes(spec.EVENT_SIZE)
_SLICE = 0.1
"""Seconds between looks at a device that says nothing, while an event loop waits for it."""


class Input(Driver):
    """A keyboard, mouse, tablet or touch screen. Its event queue is kept full of buffers from the start on.

    ``limit``: events that wait here for a slow reader, 2 or more; see :class:`EventQueue`. Events are taken while
    the driver is read, or serviced, or waits for something; one that nobody calls has 64 at most, in the ring, and
    the device drops the rest.
    """

    device_id: ClassVar[int] = spec.TYPE

    def __init__(self, device: Device, *, observe: Observer = unobserved, limit: int = EVENTS_MAX) -> None:
        self._waiting = EventQueue(limit)
        super().__init__(device, observe=observe)
        # 3.1.1: buffers may be laid out before DRIVER_OK, the kick comes after.
        self._stock()

    def _queues(self) -> Sequence[QueueSpec]:
        return [
            QueueSpec(spec.EVENTQ, "eventq", size=64),
            QueueSpec(spec.STATUSQ, "statusq", size=64, required=False),
        ]

    def _before_ok(self) -> None:
        queue = self.device.queues[spec.EVENTQ]
        self.dropped = 0
        """Answers of the device that were no event (a wrong length), and were left out."""
        self.state = InputState()
        """The keys that are down, the axes, the contacts: all events that were taken, also those lost since."""
        self._known: Description | None = None
        self._buffers = self.device.dma.alloc(queue.ring.size * spec.EVENT_SIZE)
        self._status = _StatusQueue(self.device)
        self._lay()

    def _about(self) -> str:
        return repr(self._known.name) if self._known is not None else ""

    def _lay(self) -> None:
        queue = self.device.queues[spec.EVENTQ]
        self._slots = queue.set_fixed(
            [((), runs(self._buffers, slot * spec.EVENT_SIZE, spec.EVENT_SIZE)) for slot in range(queue.ring.size)]
        )

    def _stock(self) -> None:
        self.device.queues[spec.EVENTQ].submit(range(self._slots.count))

    def relay(self) -> None:
        """After ``Device.reset_queue`` of the event queue: give the device its buffers anew."""
        with self.device.session():
            self._lay()
            self._stock()

    # --- what it is (5.8.4, 5.8.5) --------------------------------------------------------------------------

    def query(self, select: int, subsel: int = 0, *, width: int = 1) -> bytes:
        """The payload of one configuration query; empty where the device has nothing to say.

        ``select`` and ``subsel`` are both written, then ``size`` is read, and only that much of the payload,
        128 bytes at most, in pieces of ``width`` bytes (the width of its fields, 4.1.3.1). A device that shows
        another selection afterwards has answered something else: that counts as nothing, and as a finding.
        """
        with self.device.session():
            self.device.write_config(_CONFIG["select"], select)
            self.device.write_config(_CONFIG["subsel"], subsel)
            transport = self.device.transport

            def read() -> tuple[int, bytes, tuple[int, int]]:
                announced = transport.read_config(spec.SIZE, 1)
                size = min(announced, spec.PAYLOAD_MAX, transport.config_length - spec.PAYLOAD)
                pieces = [
                    transport.read_config(spec.PAYLOAD + at, width).to_bytes(width, "little")
                    for at in range(0, size - size % width, width)
                ]
                # 5.8.5.2: without an answer the rest may be zero, the selectors with it.
                shown = (select, subsel)
                if announced:
                    shown = (transport.read_config(spec.SELECT, 1), transport.read_config(spec.SUBSEL, 1))
                return announced, b"".join(pieces), shown

            announced, payload, shown = self.device.snapshot(read)
            if announced > spec.PAYLOAD_MAX:
                self.findings["size beyond the payload"] += 1
            if shown != (select, subsel):
                self.findings["selection not kept"] += 1
                return b""
            return payload

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
        if len(data) < spec.DEVIDS_SIZE:
            return None
        words = [int.from_bytes(data[at : at + 2], "little") for at in range(0, spec.DEVIDS_SIZE, 2)]
        return InputIds(*words)

    def properties(self) -> frozenset[int]:
        """The INPUT_PROP_* numbers of the device."""
        return self._within(_bits(self.query(spec.Select.PROP_BITS)), spec.PROP_COUNT)

    def codes(self, event_type: int) -> frozenset[int]:
        """The codes of this event type that the device can send (or, for EV_LED and EV_SND, take)."""
        return self._within(_bits(self.query(spec.Select.EV_BITS, event_type)), spec.CODE_COUNTS.get(event_type))

    def event_types(self) -> dict[int, frozenset[int]]:
        """All event types that the device has, with their codes. A type may have none: EV_REP is one such."""
        found = {}
        for kind in range(spec.EV_CNT):
            payload = self.query(spec.Select.EV_BITS, kind)
            if payload:
                found[kind] = self._within(_bits(payload), spec.CODE_COUNTS.get(kind))
        return found

    def _within(self, bits: frozenset[int], count: int | None) -> frozenset[int]:
        """Without the bits that no event code has."""
        if count is None:
            return bits
        kept = frozenset(bit for bit in bits if bit < count)
        if kept != bits:
            self.findings["bits beyond the last code"] += 1
        return kept

    def absinfo(self, axis: int) -> AbsInfo | None:
        """Range of an absolute axis, as the device gives it; None where it has no such axis."""
        data = self.query(spec.Select.ABS_INFO, axis, width=4)
        if len(data) < spec.ABSINFO_SIZE:
            return None
        words = [int.from_bytes(data[at : at + 4], "little", signed=True) for at in range(0, spec.ABSINFO_SIZE, 4)]
        return AbsInfo(*words)

    def describe(self) -> Description:
        """All of the above in one; asked once, for it cannot change. What makes no sense in it is a finding."""
        with self.device.session():
            if self._known is None:
                events = self.event_types()
                axes = {axis: self.absinfo(axis) for axis in sorted(events.get(spec.EV_ABS, ()))}
                self._known = Description(
                    name=self.name,
                    serial=self.serial,
                    ids=self.ids or InputIds(0, 0, 0, 0),
                    properties=self.properties(),
                    events=events,
                    axes={axis: info for axis, info in axes.items() if info is not None},
                )
                self.findings.update(self._known.problems())
                if self._known.slots:
                    self.state.slots = self._known.slots
            return self._known

    # --- the stream (5.8.6) ---------------------------------------------------------------------------------

    @property
    def lost(self) -> int:
        """Events that were dropped because nobody read them in time; a SYN_DROPPED stands in their place."""
        return self._waiting.lost

    def read(self, *, timeout: float | None = None) -> list[InputEvent]:
        """The events that are there, in order; waits for the first one up to ``timeout`` seconds (None: for ever).

        An empty list means that nothing came; that is no error, nobody owes an event.
        """
        with self.device.session():
            self.device.wait(self._some_event, timeout=timeout, what="an event", owed=False)
            return self._waiting.take()

    def read_frame(self, *, timeout: float | None = None) -> Frame | None:
        """The next whole frame; None when none was there within ``timeout`` seconds (None: waits for ever)."""
        with self.device.session():
            self.device.wait(self._some_frame, timeout=timeout, what="a frame of events", owed=False)
            return self._waiting.take_frame()

    def events(self, *, timeout: float | None = None) -> Iterator[InputEvent]:
        """The events one by one; ends when for ``timeout`` seconds none came (None: never)."""
        while found := self.read(timeout=timeout):
            yield from found

    def frames(self, *, timeout: float | None = None) -> Iterator[Frame]:
        """The frames one by one; ends when for ``timeout`` seconds none came (None: never)."""
        while (frame := self.read_frame(timeout=timeout)) is not None:
            yield frame

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Frames for ``async for``, on the thread of the event loop, which goes on meanwhile.

        It ends with the error that ends the device; leave it with ``aclose()``, ``break`` or a cancelled task.
        """
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        watched = [event.fileno() for event in self.device.transport.events()]

        def listen(on: bool) -> None:
            for number in watched:
                if on:
                    loop.add_reader(number, told.set)
                else:
                    loop.remove_reader(number)

        listen(True)
        try:
            while True:
                told.clear()
                done = self.device.completions
                self.service()
                while (frame := self._waiting.take_frame()) is not None:
                    yield frame
                    self.service()
                if deaf := self.device.storm_backoff(done):
                    listen(False)
                    await asyncio.sleep(deaf)
                    listen(True)
                else:
                    # An interrupt can be lost, so that no wait is longer than this.
                    with suppress(TimeoutError):
                        await asyncio.wait_for(told.wait(), _SLICE)
                self.device.check()
        finally:
            listen(False)

    def service(self) -> None:
        """Take what is there, without waiting: the device gets its buffers back, and the events wait here."""
        with self.device.session():
            self.device.wait(self._collected, timeout=0, what="events", owed=False)

    def _collected(self) -> bool:
        self._collect()
        return True

    def take_frame(self) -> Frame | None:
        """The oldest whole frame that ``service`` or a wait brought in; None when there is none. Asks nobody."""
        return self._waiting.take_frame()

    def _some_event(self) -> bool:
        self._collect()
        return len(self._waiting) > 0

    def _some_frame(self) -> bool:
        self._collect()
        return self._waiting.has_frame

    def _collect(self) -> None:
        self._status.advance()
        queue = self.device.queues[spec.EVENTQ]
        slots = queue.reap_slots()
        if not slots:
            return
        view, written = self._buffers.view, self._slots.written
        taken = []
        for slot in slots:
            at = slot * spec.EVENT_SIZE
            if written[slot] == spec.EVENT_SIZE:
                taken.append(bytes(view[at : at + spec.EVENT_SIZE]))  # copied once, then looked at
            else:
                self.dropped += 1
            view[at : at + spec.EVENT_SIZE] = _EMPTY
        queue.submit(slots)  # 5.8.6.1: the device has its buffers back before anything else is done
        now = time.monotonic()
        events = [decode(data) for data in taken]
        self.state.apply(events)
        for event in events:
            self._waiting.push(event, now)

    # --- the way back (5.8.6: statusq) ----------------------------------------------------------------------

    @property
    def status_lost(self) -> int:
        """Values that never went out, because a newer one for the same code came before the device took them."""
        return self._status.lost

    @property
    def status_pending(self) -> int:
        """Values that the device has not taken yet."""
        return self._status.pending

    def set_led(self, code: int, on: bool) -> bool:
        """Turn an LED on or off (LED_NUML is 0); what ``send`` returns.

        Raises UsageError where the device has no such LED, NotSupported without a status queue.
        """
        with self.device.session():
            here = self.describe().events.get(spec.EV_LED, frozenset())
            if code not in here:
                raise UsageError(
                    f"{self.device.address} has no LED {spec.code_name(spec.EV_LED, code)}",
                    seen=code,
                    expected=", ".join(spec.code_name(spec.EV_LED, one) for one in sorted(here)) or "none at all",
                    remedy="uvirtio input info DEV shows them",
                )
            return self.send(spec.EV_LED, code, int(on))

    def send(self, event_type: int, code: int, value: int) -> bool:
        """Tell the device a value (EV_LED, EV_SND, ...). Never waits.

        True: it is in the device's hands. False: the device has all that it can hold, and gets this later, or
        never; of several values for one code the newest counts. MSC_TIMESTAMP is not sent: a device that passes
        it on would get its own back with every frame (virtio_input.c). Raises NotSupported, UsageError.
        """
        if not (0 <= event_type < 1 << 16 and 0 <= code < 1 << 16 and -(1 << 31) <= value < 1 << 31):
            raise UsageError(
                "an event has 16 bits of type, 16 of code, 32 of value",
                seen=(event_type, code, value),
                expected="numbers that fit (5.8.6)",
            )
        with self.device.session():
            if self._status.queue is None:
                raise NotSupported(
                    f"{self.device.address} has no status queue",
                    seen=f"{self.device.transport.num_queues} queues",
                    expected="2 (5.8.2)",
                )
            if (event_type, code) == (spec.EV_MSC, spec.MSC_TIMESTAMP):
                return False
            return self._status.send(InputEvent(event_type, code, value))

    def flush(self, *, timeout: float) -> bool:
        """Wait until the device has taken all that it was told; False if it has not after ``timeout`` seconds."""
        with self.device.session():
            return self.device.wait(self._all_told, timeout=timeout, what="the values to be taken", owed=False)

    def _all_told(self) -> bool:
        self._collect()
        return self._status.pending == 0


class _StatusQueue:
    """Values for the device. Bounded, and it never waits: what does not fit is kept, the newest for each code."""

    def __init__(self, device: Device) -> None:
        self.queue: Queue | None = device.queues.get(spec.STATUSQ)
        self.lost = 0
        self._later: dict[tuple[int, int], InputEvent] = {}
        self._free: list[int] = []
        if self.queue is not None:
            self._free = list(range(self.queue.ring.size))
            self._buffers: Block = device.dma.alloc(self.queue.ring.size * spec.EVENT_SIZE)

    @property
    def pending(self) -> int:
        out = self.queue.ring.in_flight if self.queue is not None else 0
        return out + len(self._later)

    def send(self, event: InputEvent) -> bool:
        self.advance()
        key = (event.type, event.code)
        if not self._free:  # then what waits has gone out before
            if self._later.pop(key, None) is not None:
                self.lost += 1
            elif len(self._later) >= _LATER_MAX:
                self._later.pop(next(iter(self._later)))
                self.lost += 1
            self._later[key] = event
            return False
        self._post(event)
        self._kick()
        return True

    def advance(self) -> None:
        """Take back what the device has used, and send what had to wait."""
        if self.queue is None or not self.queue.ring.in_flight:
            return
        used = self.queue.reap()
        self._free += [done.cookie for done in used]
        if not used or not self._later:
            return
        while self._later and self._free:
            key = next(iter(self._later))
            self._post(self._later.pop(key))
        self._kick()

    def _post(self, event: InputEvent) -> None:
        assert self.queue is not None
        slot = self._free.pop()
        at = slot * spec.EVENT_SIZE
        self._buffers.view[at : at + spec.EVENT_SIZE] = encode(event)
        self.queue.add(runs(self._buffers, at, spec.EVENT_SIZE), (), slot)

    def _kick(self) -> None:
        assert self.queue is not None
        self.queue.kick()


_LATER_MAX = 64
"""Codes for which a value may wait."""


def decode(data: bytes) -> InputEvent:
    """The event in these 8 bytes (5.8.6: le16, le16, le32; the value is signed in evdev)."""
    return InputEvent(
        int.from_bytes(data[0:2], "little"),
        int.from_bytes(data[2:4], "little"),
        int.from_bytes(data[4:8], "little", signed=True),
    )


def encode(event: InputEvent) -> bytes:
    """The 8 bytes of an event."""
    head = event.type.to_bytes(2, "little") + event.code.to_bytes(2, "little")
    return head + event.value.to_bytes(4, "little", signed=True)


def _bits(data: bytes) -> frozenset[int]:
    return frozenset(8 * at + bit for at, byte in enumerate(data) for bit in range(8) if byte >> bit & 1)
