"""Following the host's target, and what stands in the way: no memory left, and memory that others need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from uvirtio.device import Device
from uvirtio.drivers.balloon.free_memory import Pressure
from uvirtio.drivers.balloon.pages import CHUNK, Pages
from uvirtio.spec import features as f
from uvirtio.spec.page import VIRTIO_PAGE

REST = 0.01
"""Seconds between looks at a target that moved though no notification said so."""

RETRY_FIRST, RETRY_LAST = 0.2, 30.0
"""Seconds until memory is asked for again: 200 ms as in Linux's driver, then twice as long each time."""

CALM = 10.0
"""Seconds after memory pressure in which the balloon does not grow."""

Progress = Callable[[int], None]
"""Called with the number of pages in the balloon after each batch."""

Target = Callable[[], int]
"""Where to go, in pages; asked again before each batch."""

Shortage = Callable[[Exception, float], None]
"""Told why there is no memory, and the seconds until it is tried again."""


class MemoryPressure(Exception):
    """Why the balloon stays below its target: others needed the memory."""


class Followed(Protocol):
    """What a follower needs of its balloon."""

    @property
    def device(self) -> Device: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def held(self) -> int: ...
    def grow(self, target: Target, timeout: float | None, progress: Progress | None) -> Exception | None: ...
    def shrink(self, target: Target, timeout: float | None, progress: Progress | None) -> None: ...
    def serve(self) -> None: ...


class Follower:
    """One ``follow()`` or ``hold()`` of a balloon."""

    def __init__(
        self,
        balloon: Followed,
        pages: Pages,
        pressure: Pressure | None,
        limit: int | None,
        progress: Progress | None,
        shortage: Shortage | None,
    ) -> None:
        self._balloon = balloon
        self._device = balloon.device
        self._pages = pages
        self._pressure = pressure
        self._limit = limit
        self._progress = progress
        self._shortage = shortage
        self._retry_at = 0.0
        self._delay = RETRY_FIRST

    # --- where to ----------------------------------------------------------------------------------------

    def _goal(self) -> int:
        wanted = self._balloon.num_pages
        if self._limit is None or wanted <= self._limit:
            return wanted
        if self._device.has(f.Balloon.DEFLATE_ON_OOM):
            return self._limit
        # 5.5.6.1: what the host asks for and has, it keeps.
        return max(self._limit, min(wanted, self._balloon.held))

    def run(self, timeout: float | None) -> None:
        """Follow until nothing has changed for ``timeout`` seconds (None: for ever)."""
        quiet_since = time.monotonic()
        while True:
            seen, held = self._device.counters.config_changes, self._balloon.held
            met = self._approach()
            now = time.monotonic()
            if self._balloon.held != held:
                quiet_since = now
            short = not met and now < self._retry_at
            pause = timeout
            if not met:
                pause = self._retry_at - now if short else REST
                if short and timeout is not None:
                    pause = min(pause, max(0.0, timeout - (now - quiet_since)))
            if self._wait(seen, pause):
                quiet_since = time.monotonic()
            elif met or (short and timeout is not None and time.monotonic() - quiet_since >= timeout):
                return

    def _approach(self) -> bool:
        """Go one way, up or down, until the goal is met or lies behind us; whether it is met."""
        if self._goal() > self._balloon.held:
            if time.monotonic() >= self._retry_at:
                short = self._balloon.grow(self._goal, None, self._progress)
                if short is not None:
                    self._back_off(short)
                else:
                    self._delay = RETRY_FIRST
        else:
            self._balloon.shrink(self._goal, None, self._progress)
        return self._goal() == self._balloon.held

    def _back_off(self, why: Exception, least: float = 0.0) -> None:
        delay = max(self._delay, least)
        self._delay = min(self._delay * 2, RETRY_LAST)
        self._retry_at = time.monotonic() + delay
        if self._shortage is not None:
            self._shortage(why, delay)

    # --- waiting -----------------------------------------------------------------------------------------

    def stay(self, timeout: float | None) -> None:
        """Answer the host for ``timeout`` seconds (None: for ever), wherever its target goes."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._wait(None, left):
                return

    def _wait(self, seen: int | None, timeout: float | None) -> bool:
        """Until the configuration is no longer that of change ``seen``, or there was pressure; False: neither."""
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
        """Give a chunk back, or what is missing up to the floor if that is more (5.5.6.1, DEFLATE_ON_OOM)."""
        missing = max(CHUNK, -(self._pages.spare() or 0))
        left = max(0, self._balloon.held - -(-missing // VIRTIO_PAGE))
        self._balloon.shrink(lambda: left, None, self._progress)
        self._back_off(MemoryPressure("this machine is short of memory"), CALM)
