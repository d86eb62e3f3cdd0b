"""Following the host's target: waiting for memory, and giving pages back under memory pressure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from uvirtio.device import Device
from uvirtio.drivers.balloon.free_memory import Pressure
from uvirtio.drivers.balloon.pages import CHUNK, Pages, counted
from uvirtio.interfaces.values import RESPONSE_LEAST
from uvirtio.spec import features as f
from uvirtio.spec.page import VIRTIO_PAGE

REST = 0.01
"""Seconds between reads of a target that changes without a notification."""

RETRY_FIRST, RETRY_LAST = 0.2, 30.0
"""Seconds between attempts to get memory: 200 ms as in Linux's driver, then doubled each time."""

CALM = 10.0
"""Seconds after memory pressure in which the balloon does not grow."""

Progress = Callable[[int], None]
"""Called with the number of pages in the balloon after each chunk."""

Target = Callable[[], int]
"""Returns the desired balloon size, in pages; called before each chunk."""

Shortage = Callable[[Exception, float], None]
"""Called with the reason why there is no memory, and the seconds until the next attempt."""


class MemoryPressure(Exception):
    """Why the balloon stays below its target: this machine is short of memory. Passed to a ``Shortage``."""


class Followed(Protocol):
    """What a follower needs of its balloon; see ``Balloon``."""

    @property
    def device(self) -> Device:
        """The device of the balloon."""
        ...

    @property
    def num_pages(self) -> int:
        """The host's target, in pages."""
        ...

    @property
    def held(self) -> int:
        """Pages in the balloon."""
        ...

    def grow(self, target: Target, timeout: float | None, progress: Progress | None) -> Exception | None:
        """Inflate to the target; return why there was no memory for more, or None."""
        ...

    def shrink(self, target: Target, timeout: float | None, progress: Progress | None) -> None:
        """Deflate to the target."""
        ...

    def serve(self) -> None:
        """Answer the host, as far as that is possible without waiting."""
        ...

    def check_actual(self) -> int:
        """Read ``actual``, and count it as a finding where it is not what was written."""
        ...


class Follower:
    """One call of ``Balloon.follow`` or ``Balloon.hold``."""

    def __init__(
        self,
        balloon: Followed,
        pages: Pages,
        pressure: Pressure | None,
        limit: int | None,
        progress: Progress | None,
        shortage: Shortage | None,
    ) -> None:
        """Prepare to follow.

        Args:
            balloon: The balloon.
            pages: Its pages.
            pressure: Detects memory pressure; None: pages are never given back for it.
            limit: Pages that the balloon may hold at most; None: as many as the host wants.
            progress: Called after each chunk.
            shortage: Called when there is no memory.

        Raises:
            BadSize: ``limit`` is negative or exceeds 32 bits.
        """
        self._balloon = balloon
        self._device = balloon.device
        self._pages = pages
        self._pressure = pressure
        self._limit = None if limit is None else counted(limit)
        self._progress = progress
        self._shortage = shortage
        self._each: float | None = None  # seconds for each batch
        self._retry_at = 0.0
        self._delay = RETRY_FIRST

    # --- the target --------------------------------------------------------------------------------------

    def _goal(self) -> int:
        with self._device.session(self._each):
            wanted = self._balloon.num_pages
        if self._limit is None or wanted <= self._limit:
            return wanted
        if self._device.has(f.Balloon.DEFLATE_ON_OOM):
            return self._limit
        # 5.5.6.1: pages that the host has and still asks for must stay in the balloon.
        return max(self._limit, min(wanted, self._balloon.held))

    def run(self, timeout: float | None) -> None:
        """Follow until nothing has changed for ``timeout`` seconds (None: without end).

        Raises:
            PagemapHidden, PageMoved, NotSupported: Pages cannot be put into the balloon.
            DeviceTimeout: The device did not acknowledge a batch in time.
        """
        quiet_since = self._device.clock.monotonic()
        if timeout is not None:
            timeout = self._device.seconds(timeout)
        self._each = None if timeout is None else max(timeout, RESPONSE_LEAST)
        while True:
            seen, held = self._device.counters.config_changes, self._balloon.held
            met = self._approach()
            self._balloon.check_actual()
            now = self._device.clock.monotonic()
            if self._balloon.held != held:
                quiet_since = now
            short = not met and now < self._retry_at
            pause = timeout
            if not met:
                pause = self._retry_at - now if short else REST
                if short and timeout is not None:
                    pause = min(pause, max(0.0, timeout - (now - quiet_since)))
            if self._wait(seen, pause):
                quiet_since = self._device.clock.monotonic()
            elif met or (
                short and timeout is not None and self._device.clock.monotonic() - quiet_since >= timeout
            ):
                return

    def _approach(self) -> bool:
        """Inflate or deflate until the goal is met or passed; whether it is met."""
        if self._goal() > self._balloon.held:
            if self._device.clock.monotonic() >= self._retry_at:
                short = self._balloon.grow(self._goal, self._each, self._progress)
                if short is not None:
                    self._back_off(short)
                else:
                    self._delay = RETRY_FIRST
        else:
            self._balloon.shrink(self._goal, self._each, self._progress)
        return self._goal() == self._balloon.held

    def _back_off(self, why: Exception, least: float = 0.0) -> None:
        delay = max(self._delay, least)
        self._delay = min(self._delay * 2, RETRY_LAST)
        self._retry_at = self._device.clock.monotonic() + delay
        if self._shortage is not None:
            self._shortage(why, delay)

    # --- waiting -----------------------------------------------------------------------------------------

    def stay(self, timeout: float | None) -> None:
        """Answer the host for ``timeout`` seconds (None: without end), without following its target.

        Raises:
            DeviceTimeout: The device did not acknowledge a batch in time.
        """
        if timeout is not None:
            timeout = self._device.seconds(timeout)
            self._each = max(timeout, RESPONSE_LEAST)
        deadline = None if timeout is None else self._device.clock.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - self._device.clock.monotonic())
            if not self._wait(None, left):
                return

    def _wait(self, seen: int | None, timeout: float | None) -> bool:
        """Wait for a configuration change after ``seen``, or for memory pressure; False: neither happened."""
        pressed = False

        def ready() -> bool:
            nonlocal pressed
            self._balloon.serve()
            pressed = self._pressure is not None and self._balloon.held > 0 and self._pressure.rose()
            return pressed or (seen is not None and self._device.counters.config_changes != seen)

        changed = self._device.wait(ready, timeout=timeout, what="a new target", owed=False)
        if pressed:
            self._relieve()
        return changed

    def _relieve(self) -> None:
        """Deflate a chunk, or what is missing up to the floor if that is more (5.5.6.1, DEFLATE_ON_OOM)."""
        missing = max(CHUNK, -(self._pages.spare() or 0))
        left = max(0, self._balloon.held - -(-missing // VIRTIO_PAGE))
        self._balloon.shrink(lambda: left, self._each, self._progress)
        self._back_off(MemoryPressure("this machine is short of memory"), CALM)
