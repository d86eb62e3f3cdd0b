"""A balloon against a model of it: any order of orders, targets, hints, questions and interruptions."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from tests.bodies.balloon_model import PAGES, BalloonOrders
from uvirtio import opening
from uvirtio.drivers.balloon import Balloon as Driver
from uvirtio.drivers.balloon import Use
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.balloon import Balloon, Numbering
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import balloon as spec
from uvirtio.spec import features as f
from uvirtio.spec.balloon import Stat
from uvirtio.spec.page import VIRTIO_PAGE

MIB = 1 << 20


class Model(BalloonOrders):
    """On the scripted device, which checks every rule by itself."""

    @initialize(
        features=st.sets(st.sampled_from(list(f.Balloon))),
        mode=st.sampled_from([InterruptMode.PER_QUEUE, InterruptMode.INTX, InterruptMode.POLLING]),
        numbering=st.sampled_from(["standard", "offered", "negotiated"]),
        poison=st.sampled_from([None, 0, 0xAAAAAAAA]),
    )
    def start(
        self, features: set[f.Balloon], mode: InterruptMode, numbering: Numbering, poison: int | None
    ) -> None:
        self.host = Balloon(features=f.mask(*features), numbering=numbering)
        self.scripted = ScriptedDevice(self.host, access_platform=True, vectors=6)
        self.device = opening.identify("0000:00:04.0", self.scripted, timeout=30.0, interrupts=[mode])
        self.driver = Driver(
            self.device, stats=lambda: {Stat.MEMFREE: 1}, floor=0, hinting=True, reporting=True, poison=poison
        )
        self.arena = self.driver.arena(5 * MIB)
        self.taken = []
        self.held = self.target = 0
        self.ident = 1
        if self.driver.hints is not None:
            self.driver.lend(self.arena)

    # --- orders, beside those of any device -----------------------------------------------------------------

    @rule()
    def follow(self) -> None:
        self.driver.follow(timeout=0.002)
        self.held = self.target

    # --- the host -----------------------------------------------------------------------------------------

    @rule(pages=PAGES)
    def wants(self, pages: int) -> None:
        self.target = pages
        self.host.set_target(pages)

    @rule()
    def asks(self) -> None:
        if self.host.stats_chain is not None:  # no precondition: when it is back depends on the clock
            self.host.ask_for_stats()

    @rule(step=st.integers(0, 1), end=st.sampled_from([None, spec.CMD_ID_STOP, spec.CMD_ID_DONE]))
    def hints(self, step: int, end: int | None) -> None:
        self.ident = max(2, self.ident + step)  # 0: a stale one
        self.host.set_hint_id(self.ident if end is None else end)

    @rule()
    def time_passes(self) -> None:
        self.driver.hold(timeout=0.002)

    # --- the arena ----------------------------------------------------------------------------------------

    @rule()
    def take(self) -> None:
        if not self.arena.bytes_in(Use.FREE, Use.HINTED, Use.REPORTED):  # as above
            return
        one = self.arena.take()
        with self.arena.view(one) as view:
            pattern = (self.driver.poison_val or 0).to_bytes(4, "little")
            assert bytes(view[:4]) == bytes(view[-4:]) == pattern
        self.taken.append(one)

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
        assert pinned >= self.held * VIRTIO_PAGE

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.device.close()
            self.scripted.assert_left()
            assert self.host.actual == 0 and not self.host.frames


Model.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@pytest.mark.fault(60, 63, 64, level="H")
class TestModel(Model.TestCase):  # type: ignore[name-defined,misc]
    """Hypothesis runs the machine."""
