"""A device that another driver has, looked at from outside: what the kernel shows of it; it is not accessed."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from uvirtio.binding import discover
from uvirtio.binding.facts import Facts
from uvirtio.binding.rules import check
from uvirtio.binding.watch import Watcher, WatchEvent
from uvirtio.errors import UvirtioError
from uvirtio.evidence import collect
from uvirtio.host.roots import Roots
from uvirtio.sampling.sample import Sample, Stopped, Tell, VectorSample, rate
from uvirtio.spec.status import describe

_NOT_SEEN = "rings, kicks and the configuration: only the driver that has the device can see them"


class Seen:
    """Looks at a device of this machine in sysfs and /proc/interrupts, and at its uevents; a ``Source``."""

    def __init__(
        self,
        name: str,
        roots: Roots,
        *,
        interval: float,
        why: str = "",
        opened: Callable[[Seen], None] = lambda _: None,
    ) -> None:
        """Note what to look at.

        Args:
            name: The device's address, or what else names it.
            roots: Where ``/sys`` and ``/proc`` are.
            interval: Seconds from one sample to the next.
            why: Why the device is not opened.
            opened: Called when ``interrupt`` has an effect.
        """
        self._name, self._roots, self._interval, self._why = name, roots, interval, why
        self._opened = opened
        self._uevents: Watcher | _Pause | None = None
        self._reason: BaseException | None = None

    def interrupt(self, reason: BaseException) -> None:
        """Make ``run`` raise ``reason``; see ``Source``."""
        self._reason = reason
        if self._uevents is not None:
            self._uevents.interrupt(reason)

    def run(self, tell: Tell) -> None:
        """Take samples until it is interrupted; see ``Source``.

        Raises:
            NoSuchDevice: There is no such device, or no more.
        """
        notes = [self._why] if self._why else []
        with ExitStack() as stack:
            uevents = self._listen(notes)
            stack.callback(uevents.close)
            self._uevents = uevents
            self._opened(self)
            try:
                if self._reason is not None:
                    raise self._reason
                self._look(uevents, notes, tell)
            except Stopped:
                pass
            finally:
                self._uevents = None

    def _listen(self, notes: list[str]) -> Watcher | _Pause:
        try:
            watcher = Watcher(self._roots)
        except UvirtioError as error:
            notes.append(f"no uevents: {error.message}")
            return _Pause()
        if watcher.note is not None:
            notes.append(watcher.note)
        return watcher

    def _look(self, uevents: Watcher | _Pause, notes: list[str], tell: Tell) -> None:
        begin = before = time.monotonic()
        counts: dict[int, int] = {}
        number = 0
        while True:
            now = time.monotonic()
            sample = self._sample(number, now - begin, now - before if number else 0.0, counts, notes)
            notes.clear()
            before = now
            tell(sample)
            number += 1
            due = now + self._interval
            while (left := due - time.monotonic()) > 0:
                notes += [told(one) for one in uevents.read(left) if one.address == sample.address]

    def _sample(self, number: int, at: float, passed: float, counts: dict[int, int], notes: list[str]) -> Sample:
        found = discover.find(self._name, self._roots)
        status = collect.status_of(found)
        features = discover.negotiated_features(found)
        vectors = []
        for one in collect.interrupts(None, found, self._roots)["vectors"]:
            irq, count = one["irq"], one["count"]
            per_s = 0.0 if count is None else rate(count, counts.get(irq, count), passed)
            if count is not None:
                counts[irq] = count
            vectors.append(VectorSample(irq, one["name"] or "", count, per_s))
        known = [vector.count for vector in vectors if vector.count is not None]
        about = {"bound to": found.driver or "no driver"}
        if number == 0:
            # Who uses it is asked once: some of the rules take a while.
            uses = check(found, self._roots, Facts(self._roots)).findings
            notes += [f"in use: {one.evidence}" for one in uses if one.severity == "refuse"]
        if features is not None:
            about["features"] = f"{features:#x}"
        about["not seen"] = _NOT_SEEN
        return Sample(
            number=number,
            time=at,
            address=found.address,
            type=found.type,
            state="-" if status is None else describe(status),
            driver=found.kernel_driver or found.driver or "no driver",
            interrupt_mode="",
            queues=(),
            vectors=tuple(vectors),
            interrupts=sum(known) if known else None,
            interrupts_per_s=sum(vector.per_s for vector in vectors),
            counters={},
            config_changes=None,
            config={},
            about=about,
            events=tuple(notes),
        )


def told(event: WatchEvent) -> str:
    """An event of ``watch`` as a line of text.

    Args:
        event: The event.
    """
    words: list[Any] = [event.event]
    if event.name is not None and event.name != event.address:
        words.append(event.name)
    if event.driver is not None:
        words.append(event.driver)
    words += [f"{name} {old or '-'} -> {new or '-'}" for name, (old, new) in event.changes.items()]
    return " ".join(map(str, words))


class _Pause:
    """Stands in for a watcher where there are no uevents: it passes the time, and can be interrupted."""

    def __init__(self) -> None:
        self._reason: BaseException | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def read(self, timeout: float) -> list[WatchEvent]:
        """Wait, and return nothing."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if self._reason is None:
            poller.poll(int(timeout * 1000) + 1)
        if self._reason is not None:
            raise self._reason
        return []

    def interrupt(self, reason: BaseException) -> None:
        """Make ``read`` raise ``reason``."""
        self._reason = reason
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close the eventfd."""
        os.close(self._wake)
