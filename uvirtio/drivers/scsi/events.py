"""The event queue (5.6.6.3): units that came, went or changed, and events that were lost."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from uvirtio.device import Device, Queue
from uvirtio.drivers.base import runs
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.spec import scsi as spec
from uvirtio.spec.scsi import ASC, EventType, ResetReason

BUFFERS = 16
"""Buffers on the event queue; 5.6.6.3 calls 10 to 15 enough."""

EVENTS_MAX = 1024
"""Events that may wait for a reader; then all are dropped, and one that says so takes their place."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event (5.6.6.3)."""

    type: int
    """An ``EventType``."""
    lun: Lun | None
    """The unit; None where the event names none, or one that cannot be."""
    reason: int
    """By type: a ``ResetReason``, ASC | ASCQ << 8, or the asynchronous events."""
    missed: bool
    """Whether events before this one were lost: scan again, and look at each unit."""
    time: float
    """When it was taken from the device, in seconds of time.monotonic()."""

    @property
    def name(self) -> str:
        """What happened, in words."""
        if self.type == EventType.NO_EVENT:
            return "events were lost" if self.missed else "no event"
        if self.type == EventType.TRANSPORT_RESET:
            words = {ResetReason.HARD: "was reset", ResetReason.RESCAN: "appeared", ResetReason.REMOVED: "is gone"}
            found = next((text for reason, text in words.items() if reason == self.reason), None)
            return found or f"was reset, reason {self.reason:#x}"
        if self.type == EventType.PARAM_CHANGE:
            code = (self.reason & 0xFF, self.reason >> 8 & 0xFF)
            return f"changed: {ASC.get(code, f'{code[0]:02x}/{code[1]:02x}')}"
        if self.type == EventType.ASYNC_NOTIFY:
            return f"notifies, events {self.reason:#x}"
        return f"event {self.type:#x}"

    @property
    def rescan(self) -> bool:
        """Whether the list of units may be another one now (5.6.6.3.1)."""
        return self.missed or (
            self.type == EventType.TRANSPORT_RESET and self.reason in (ResetReason.RESCAN, ResetReason.REMOVED)
        )

    def __str__(self) -> str:
        return f"{self.lun} {self.name}" if self.lun is not None else self.name


class EventQueue:
    """The buffers of the event queue, and the events that wait for a reader."""

    def __init__(self, device: Device, queue: Queue, size: int, finding: Callable[[str], None]) -> None:
        """Allocate the buffers and write their descriptors; ``stock`` posts them.

        Args:
            device: The device.
            queue: Its event queue.
            size: Bytes of each buffer (``event_info_size``).
            finding: Counts what the device should not have done.

        Raises:
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for the buffers.
        """
        self._queue = queue
        self._size = size
        self._finding = finding
        count = min(queue.ring.size, BUFFERS)
        self._buffers = device.dma.alloc(count * size)
        self._slots = queue.set_fixed([((), runs(self._buffers, slot * size, size)) for slot in range(count)])
        self._events: deque[Event] = deque()

    def stock(self) -> None:
        """Post all buffers; only after DRIVER_OK (3.1.1)."""
        self._queue.submit(range(self._slots.count))

    def take(self, heard: Callable[[Event], None]) -> None:
        """Take the events that are there, and post their buffers again.

        Args:
            heard: Called with each event.
        """
        try:
            self._take(self._queue.reap_slots(), heard)
        except BaseException:
            self._queue.post_idle()
            raise

    def _take(self, slots: array[int], heard: Callable[[Event], None]) -> None:
        if not slots:
            return
        for slot in slots:
            at = slot * self._size
            event = self._decode(self._slots.written[slot], bytes(self._buffers.view[at : at + spec.EVENT_SIZE]))
            heard(event)
            if len(self._events) >= EVENTS_MAX:
                self._events.clear()
                self._events.append(Event(EventType.NO_EVENT, None, 0, True, event.time))
            self._events.append(event)
        self._queue.submit(slots)

    def _decode(self, written: int, data: bytes) -> Event:
        now = time.monotonic()
        if written < spec.EVENT_SIZE:
            self._finding("an event is shorter than 16 bytes")  # it is lost
            return Event(EventType.NO_EVENT, None, 0, True, now)
        word, reason = int.from_bytes(data[:4], "little"), int.from_bytes(data[12:16], "little")
        kind, missed = word & ~spec.EVENTS_MISSED, bool(word & spec.EVENTS_MISSED)
        lun = None if kind == EventType.NO_EVENT else Lun.decode(data[4:12])
        if kind != EventType.NO_EVENT and (lun is None or kind not in list(EventType)):
            self._finding("an event names no unit, or is of no type of 5.6.6.3")
        return Event(kind, lun, reason, missed, now)

    def pop(self) -> Event | None:
        """Remove and return the oldest event; None if there is none."""
        return self._events.popleft() if self._events else None

    def __len__(self) -> int:
        return len(self._events)
