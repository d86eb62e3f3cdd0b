"""A balloon against a model of it: any order of orders, targets, hints, questions and interruptions."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.scripted import Balloon, ScriptedDevice
from uvirtio import opening
from uvirtio.drivers.balloon import Balloon as Driver
from uvirtio.drivers.balloon import Use
from uvirtio.errors import BadSize, Refused
from uvirtio.memory.seams import InterruptMode
from uvirtio.spec import balloon as spec
from uvirtio.spec import features as f
from uvirtio.spec.balloon import Stat

PAGES = st.integers(0, 900)
MIB = 1 << 20


class Enough(BaseException):
    """An interruption."""


class Model(RuleBasedStateMachine):
    """``held`` and ``target`` are what the model says; the scripted device checks every rule by itself."""

    driver: Driver

    @initialize(
        features=st.sets(st.sampled_from(list(f.Balloon))),
        mode=st.sampled_from([InterruptMode.PER_QUEUE, InterruptMode.INTX, InterruptMode.POLLING]),
        compact=st.booleans(),
        poison=st.sampled_from([None, 0, 0xAAAAAAAA]),
    )
    def start(self, features: set[f.Balloon], mode: InterruptMode, compact: bool, poison: int | None) -> None:
        self.host = Balloon(features=f.mask(*features), compact=compact)
        self.scripted = ScriptedDevice(self.host, access_platform=True, vectors=6)
        self.device = opening.identify("0000:00:04.0", self.scripted, timeout=30.0, interrupts=[mode])
        self.driver = Driver(
            self.device, stats=lambda: {Stat.MEMFREE: 1}, floor=0, hinting=True, reporting=True, poison=poison
        )
        self.arena = self.driver.arena(5 * MIB)
        self.taken: list[object] = []
        self.held = self.target = 0
        self.ident = 1
        if self.driver.hints is not None:
            self.driver.lend(self.arena)

    def _has(self, bit: f.Balloon) -> bool:
        return self.device.has(bit)

    # --- orders -------------------------------------------------------------------------------------------

    @rule(pages=PAGES)
    def inflate(self, pages: int) -> None:
        self.held += pages
        assert self.driver.inflate(pages) == self.held

    @rule(pages=PAGES)
    def deflate(self, pages: int) -> None:
        left = self.held - pages
        allowed = self._has(f.Balloon.DEFLATE_ON_OOM) or left >= self.target or not pages
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

    @rule()
    def follow(self) -> None:
        self.driver.follow(timeout=0.002)
        self.held = self.target

    # --- the host -----------------------------------------------------------------------------------------

    @rule(pages=PAGES)
    def wants(self, pages: int) -> None:
        self.target = pages
        self.host.set_target(pages)

    @precondition(lambda self: self.host.stats_chain is not None)
    @rule()
    def asks(self) -> None:
        self.host.ask_for_stats()

    @rule(step=st.integers(0, 1), end=st.sampled_from([None, spec.CMD_ID_STOP, spec.CMD_ID_DONE]))
    def hints(self, step: int, end: int | None) -> None:
        self.ident = max(2, self.ident + step)  # 0: a stale one
        self.host.set_hint_id(self.ident if end is None else end)

    @rule()
    def time_passes(self) -> None:
        self.driver.hold(timeout=0.002)

    # --- the arena ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.driver.reports is not None)
    @rule()
    def report(self) -> None:
        free = self.arena.bytes_in(Use.FREE)
        assert self.driver.report(self.arena) == free

    @precondition(lambda self: self.arena.bytes_in(Use.FREE, Use.HINTED, Use.REPORTED))
    @rule()
    def take(self) -> None:
        one = self.arena.take()
        with self.arena.view(one) as view:
            pattern = (self.driver.poison_val or 0).to_bytes(4, "little")
            assert bytes(view[:4]) == bytes(view[-4:]) == pattern
        self.taken.append(one)

    @precondition(lambda self: self.taken)
    @rule()
    def give(self) -> None:
        self.arena.give(self.taken.pop())  # type: ignore[arg-type]

    # --- always -------------------------------------------------------------------------------------------

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "driver"):
            return
        assert self.driver.held == self.held == len(self.host.frames)
        assert self.held in (self.host.actual, *([0] if not self.host.requests else []))
        assert not self.scripted.violations, self.scripted.violations
        assert self.device.broken is None
        pinned = sum(block.size for block in self.scripted.memory.open_blocks() if not block.mapped)
        assert pinned >= self.held * spec.PAGE_SIZE

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.device.close()
            self.scripted.assert_left()
            assert self.host.actual == 0 and not self.host.frames


Model.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


class TestModel(Model.TestCase):  # type: ignore[name-defined,misc]
    """Hypothesis runs the machine."""
