"""What a balloon is told, against a model of it: the rules that hold on any device that says what it has."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from uvirtio.device import Device
from uvirtio.drivers.balloon import Arena, Balloon, Range, Use
from uvirtio.errors import BadSize, Refused
from uvirtio.spec import features as f

PAGES = st.integers(0, 900)
"""More than the three batches that an interruption counts."""


class Enough(BaseException):
    """An interruption."""


class BalloonOrders(RuleBasedStateMachine):
    """``held`` and ``target`` are what the model says, ``taken`` what of the arena is in use."""

    device: Device
    driver: Balloon
    arena: Arena
    held: int
    target: int
    taken: list[Range]

    @rule(pages=PAGES)
    def inflate(self, pages: int) -> None:
        self.held += pages
        assert self.driver.inflate(pages) == self.held

    @rule(pages=PAGES)
    def deflate(self, pages: int) -> None:
        left = self.held - pages
        allowed = self.device.has(f.Balloon.DEFLATE_ON_OOM) or left >= self.target or not pages
        if left < 0 or not allowed:
            with pytest.raises((BadSize, Refused)):
                self.driver.deflate(pages)
        else:
            self.held = left
            assert self.driver.deflate(pages) == left

    @rule(pages=PAGES, at=st.integers(1, 3), down=st.booleans())
    def interrupted(self, pages: int, at: int, down: bool) -> None:
        """Ctrl-C after some batches: what was acknowledged counts, what was not is settled later."""
        told = 0

        def progress(held: int) -> None:
            nonlocal told
            told += 1
            if told == at:
                self.device.interrupt(Enough())

        try:
            if down:
                self.driver.deflate(min(pages, self.held), progress=progress, force=True)
            else:
                self.driver.inflate(pages, progress=progress)
            self.driver.hold(timeout=0)  # where it comes now if that was the last batch
        except Enough:
            pass
        self.driver.inflate(0)  # settles
        self.held = self.driver.held

    @precondition(lambda self: self.driver.reports is not None)
    @rule()
    def report(self) -> None:
        free = self.arena.bytes_in(Use.FREE)
        assert self.driver.report(self.arena) == free

    @rule()
    def give(self) -> None:
        # No precondition: what could be taken depends on what the host had hinted by then, and so on the clock. A
        # step that may be chosen in one run and not in the next is an error to hypothesis.
        if self.taken:
            self.arena.give(self.taken.pop())
