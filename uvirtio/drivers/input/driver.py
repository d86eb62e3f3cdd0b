"""The input driver (5.8): the device's description, its stream of events, and the status queue (LEDs, sounds)."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from operator import index
from typing import ClassVar

from uvirtio.device import Device, Observer, Queue, QueueSpec, unobserved
from uvirtio.drivers.base import Driver, runs
from uvirtio.drivers.input.description import AbsInfo, Description, InputIds
from uvirtio.drivers.input.events import EVENTS_MAX, EventQueue, Frame, InputEvent
from uvirtio.drivers.input.state import InputState
from uvirtio.errors import NotSupported, UsageError
from uvirtio.spec import input as spec
from uvirtio.spec.layout import by_name
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Block

_CONFIG = by_name(spec.CONFIG)
_EMPTY = bytes(spec.EVENT_SIZE)
_SLICE = 0.1
"""Seconds between checks of a silent device while an event loop waits for it."""


class Input(Driver):
    """Driver of a keyboard, mouse, tablet or touch screen (5.8). It keeps the event queue full of buffers.

    Events are taken from the device during the calls that read, service or wait. Between calls the event queue
    holds up to 64 of them, and the device drops the rest.
    """

    device_id: ClassVar[int] = spec.TYPE

    def __init__(self, device: Device, *, observe: Observer = unobserved, limit: int = EVENTS_MAX) -> None:
        """Start the device; ``Driver.__init__`` lists how that can fail.

        Args:
            device: An open input device.
            observe: Called after each step of the initialisation.
            limit: Events that may wait for a slow reader, 2 or more; see ``EventQueue``.

        Raises:
            NotVirtio: The device is of another type.
            UsageError: ``limit`` is below 2.
        """
        self._waiting = EventQueue(limit)
        super().__init__(device, observe=observe)
        # 3.1.1: buffers may be added before DRIVER_OK, the kick comes after.
        self._stock()

    def _queues(self) -> Sequence[QueueSpec]:
        return [
            QueueSpec(spec.EVENTQ, "eventq", size=64, owed=False),
            QueueSpec(spec.STATUSQ, "statusq", size=64, required=False),
        ]

    def _before_ok(self) -> None:
        queue = self.device.queues[spec.EVENTQ]
        self.dropped = 0
        """Used buffers that were discarded because their length is not that of an event."""
        self.state = InputState()
        """Pressed keys, axes and contacts after all events that were taken, including those dropped since."""
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
        """Refill the event queue after ``Device.reset_queue`` of it (2.6.1).

        Raises:
            UsageError: Buffers are still in flight, so the queue was not reset.
        """
        with self.session():
            self._lay()
            self._stock()

    # --- what it is (5.8.4, 5.8.5) --------------------------------------------------------------------------

    def query(self, select: int, subsel: int = 0, *, width: int = 1) -> bytes:
        """Read one selection of the configuration (5.8.4).

        ``select`` and ``subsel`` are both written, then ``size`` is read, and that much of the payload, 128 bytes
        at most. A device that shows another selection afterwards has answered something else: its answer is
        ignored and counted in ``findings``.

        Args:
            select: What to read, a ``spec.input.Select``.
            subsel: The event type or axis, where ``select`` needs one.
            width: Bytes of each read: the width of the payload's fields (4.1.3.1).

        Returns:
            The payload; empty where the device has none.

        Raises:
            UsageError: A number does not fit its field.
            ConfigError: The configuration is too short.
            ConfigUnstable: It changes at every read.
        """
        select, subsel, width = index(select), index(subsel), index(width)
        if not (0 <= select < 1 << 8 and 0 <= subsel < 1 << 8 and width in (1, 2, 4)):
            raise UsageError(
                "a selection is two bytes, and a field has 1, 2 or 4",
                seen=(select, subsel, width),
                expected="numbers that fit (5.8.4)",
            )
        with self.session():
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
        # 5.8.4: no terminator. No control characters either: the text may be printed on a terminal.
        text = self.query(select).split(b"\0", 1)[0].decode("utf-8", "replace")
        return "".join(char if char.isprintable() else "�" for char in text)

    @property
    def name(self) -> str:
        """The name that the device reports (ID_NAME); unprintable characters are replaced."""
        return self._text(spec.Select.ID_NAME)

    @property
    def serial(self) -> str:
        """The serial number that the device reports (ID_SERIAL); unprintable characters are replaced."""
        return self._text(spec.Select.ID_SERIAL)

    @property
    def ids(self) -> InputIds | None:
        """Bus type, vendor, product and version (ID_DEVIDS); None where the device has none."""
        data = self.query(spec.Select.ID_DEVIDS, width=2)
        if len(data) < spec.DEVIDS_SIZE:
            return None
        words = [int.from_bytes(data[at : at + 2], "little") for at in range(0, spec.DEVIDS_SIZE, 2)]
        return InputIds(*words)

    def properties(self) -> frozenset[int]:
        """Return the INPUT_PROP_* numbers of the device (PROP_BITS)."""
        return self._within(_bits(self.query(spec.Select.PROP_BITS)), spec.PROP_COUNT)

    def codes(self, event_type: int) -> frozenset[int]:
        """Return the codes of ``event_type`` that the device can send, or take for EV_LED and EV_SND (EV_BITS)."""
        return self._within(_bits(self.query(spec.Select.EV_BITS, event_type)), spec.CODE_COUNTS.get(event_type))

    def event_types(self) -> dict[int, frozenset[int]]:
        """Return all event types of the device with their codes. A type may have no codes, such as EV_REP."""
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
        """Return the range of an absolute axis, as the device reports it (ABS_INFO).

        Args:
            axis: A code of EV_ABS.

        Returns:
            The range; None where the device has no such axis.
        """
        data = self.query(spec.Select.ABS_INFO, axis, width=4)
        if len(data) < spec.ABSINFO_SIZE:
            return None
        words = [int.from_bytes(data[at : at + 4], "little", signed=True) for at in range(0, spec.ABSINFO_SIZE, 4)]
        return AbsInfo(*words)

    def describe(self) -> Description:
        """Return the whole description. It is read once, because it cannot change.

        What is invalid in it is counted in ``findings``.

        Raises:
            ConfigError: The configuration is too short.
            ConfigUnstable: It changes at every read.
        """
        with self.session():
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
        """Events that were dropped because the reader was too slow; a SYN_DROPPED marks their place."""
        return self._waiting.lost

    def read(self, *, timeout: float | None = None) -> list[InputEvent]:
        """Return all waiting events, in order; wait for the first one.

        Args:
            timeout: Seconds to wait; None: no limit.

        Returns:
            The events; empty if none arrived in time, which is no error.
        """
        with self.session():
            self.device.wait(self._some_event, timeout=timeout, what="an event", owed=False)
            return self._waiting.take()

    def read_frame(self, *, timeout: float | None = None) -> Frame | None:
        """Return the next whole frame; wait for it.

        Args:
            timeout: Seconds to wait; None: no limit.

        Returns:
            The frame; None if none was complete in time.
        """
        with self.session():
            self.device.wait(self._some_frame, timeout=timeout, what="a frame of events", owed=False)
            return self._waiting.take_frame()

    def events(self, *, timeout: float | None = None) -> Iterator[InputEvent]:
        """Iterate over events; ends after ``timeout`` seconds without one (None: never)."""
        while found := self.read(timeout=timeout):
            yield from found

    def frames(self, *, timeout: float | None = None) -> Iterator[Frame]:
        """Iterate over whole frames; ends after ``timeout`` seconds without one (None: never)."""
        while (frame := self.read_frame(timeout=timeout)) is not None:
            yield frame

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Iterate over whole frames with ``async for``, on the thread of the event loop, without blocking it.

        Ends with the error that ends the device; leave it with ``aclose()``, ``break`` or by cancelling the task.
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
                if backoff := self.device.storm_backoff(done):
                    listen(False)
                    await asyncio.sleep(backoff)
                    listen(True)
                else:
                    # An interrupt can be lost, so no wait is longer than this.
                    with suppress(TimeoutError):
                        await asyncio.wait_for(told.wait(), _SLICE)
                self.device.check()
        finally:
            listen(False)

    def service(self) -> None:
        """Take the device's events without waiting, and give it the buffers back; the events wait for a reader."""
        with self.session():
            self.device.wait(self._collected, timeout=0, what="events", owed=False)

    def _collected(self) -> bool:
        self._collect()
        return True

    def take_frame(self) -> Frame | None:
        """Return the oldest whole frame that ``service`` or a wait took in; None if there is none.

        Does not access the device.
        """
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
        try:
            self._take(queue, queue.reap_slots())
        except BaseException:
            queue.post_idle()
            raise

    def _take(self, queue: Queue, slots: array[int]) -> None:
        if not slots:
            return
        view, written = self._buffers.view, self._slots.written
        taken = []
        for slot in slots:
            at = slot * spec.EVENT_SIZE
            if written[slot] == spec.EVENT_SIZE:
                taken.append(bytes(view[at : at + spec.EVENT_SIZE]))  # copied once, then decoded
            else:
                self.dropped += 1
            view[at : at + spec.EVENT_SIZE] = _EMPTY
        queue.submit(slots)  # 5.8.6.1: give the device its buffers back before anything else
        now = self.device.clock.monotonic()
        events = [decode(data) for data in taken]
        self.state.apply(events)
        for event in events:
            self._waiting.push(event, now)

    # --- the way back (5.8.6: statusq) ----------------------------------------------------------------------

    @property
    def status_lost(self) -> int:
        """Values that were never sent, because a newer one for the same code replaced them."""
        return self._status.lost

    @property
    def status_pending(self) -> int:
        """Values that the device has not used yet, including those that wait to be sent."""
        return self._status.pending

    def set_led(self, code: int, on: bool) -> bool:
        """Turn an LED on or off.

        Args:
            code: Which one (LED_NUML is 0).
            on: The new state.

        Returns:
            Whether it was sent, as for ``send``.

        Raises:
            UsageError: The device has no such LED.
            NotSupported: The device has no status queue.
            ConfigError: The configuration is too short.
            ConfigUnstable: It changes at every read.
        """
        with self.session():
            here = self.describe().events.get(spec.EV_LED, frozenset())
            if code not in here:
                raise UsageError(
                    f"{self.device.address} has no LED {spec.code_name(spec.EV_LED, code)}",
                    seen=code,
                    expected=", ".join(spec.code_name(spec.EV_LED, one) for one in sorted(here)) or "none at all",
                    remedy="Input.describe(), or uvirtio input info DEV, shows them",
                )
            return self.send(spec.EV_LED, code, int(bool(on)))

    def send(self, event_type: int, code: int, value: int) -> bool:
        """Send a value to the device (EV_LED, EV_SND, ...) through the status queue. Never waits.

        MSC_TIMESTAMP is not sent: a device that forwards events would get its own back with every frame
        (virtio_input.c).

        Args:
            event_type: EV_*, 16 bits.
            code: The code, 16 bits.
            value: The value, signed, 32 bits.

        Returns:
            True if the value was sent. False if the queue is full: it is sent later, unless a newer value for the
            same code replaces it.

        Raises:
            UsageError: A number does not fit.
            NotSupported: The device has no status queue.
        """
        event_type, code, value = index(event_type), index(code), index(value)
        if not (0 <= event_type < 1 << 16 and 0 <= code < 1 << 16 and -(1 << 31) <= value < 1 << 31):
            raise UsageError(
                "an event has 16 bits of type, 16 of code, 32 of value",
                seen=(event_type, code, value),
                expected="numbers that fit (5.8.6)",
            )
        with self.session():
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
        """Wait until the device has used all values that were sent.

        Args:
            timeout: Seconds to wait.

        Returns:
            Whether it has used all of them.
        """
        with self.session():
            return self.device.wait(self._all_told, timeout=timeout, what="the values to be taken", owed=False)

    def _all_told(self) -> bool:
        self._collect()
        return self._status.pending == 0


class _StatusQueue:
    """Values for the device. Bounded, and never waits: the newest value for each code waits for a free buffer."""

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
        """Values in flight and values that wait for a buffer."""
        out = self.queue.ring.in_flight if self.queue is not None else 0
        return out + len(self._later)

    def send(self, event: InputEvent) -> bool:
        """Send a value, or keep it for later; return whether it was sent."""
        self.advance()
        key = (event.type, event.code)
        if not self._free:  # else nothing waits any longer
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
        """Reap used buffers, and send values that wait for one."""
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
"""Codes for which a value may wait, at most."""


def decode(data: bytes) -> InputEvent:
    """Decode the 8 bytes of an event (5.8.6: le16, le16, le32; the value is signed in evdev)."""
    return InputEvent(
        int.from_bytes(data[0:2], "little"),
        int.from_bytes(data[2:4], "little"),
        int.from_bytes(data[4:8], "little", signed=True),
    )


def encode(event: InputEvent) -> bytes:
    """Encode an event as 8 bytes (5.8.6)."""
    head = event.type.to_bytes(2, "little") + event.code.to_bytes(2, "little")
    return head + event.value.to_bytes(4, "little", signed=True)


def _bits(data: bytes) -> frozenset[int]:
    return frozenset(8 * at + bit for at, byte in enumerate(data) for bit in range(8) if byte >> bit & 1)
