"""Whatever is asked for in whatever order: the books are the device's, and what is in use stays."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from uvirtio.drivers import mem as drivers
from uvirtio.drivers.mem import HandOut, Manager, Mode, Outcome, Request, Response, State, Use
from uvirtio.errors import BadSize, DeviceTimeout, InUse, MemBusy, MemError, MemNack, OperationFailed
from uvirtio.opening import identify
from uvirtio.scripted.mem import ADDR, BLOCK, Mem
from uvirtio.scripted.pci import ScriptedDevice

BLOCKS = 24
BLOCK_NUMBERS = st.integers(-1, BLOCKS)
COUNTS = st.integers(0, 9)


class Machine(RuleBasedStateMachine):
    @initialize(
        unit=st.sampled_from([BLOCK // 2, BLOCK, 2 * BLOCK, 8 * BLOCK]),
        step=st.sampled_from([BLOCK, 4 * BLOCK]),
        skew=st.integers(0, 7),
        left=st.sets(st.integers(0, BLOCKS - 1)),
    )
    def begin(self, unit: int, step: int, skew: int, left: set[int]) -> None:
        self.unit, self.step = unit, step
        self.addr = ADDR + skew * BLOCK
        self.model = Mem(blocks=BLOCKS, addr=self.addr, plugged=left, requested=BLOCKS * BLOCK)
        self.function = ScriptedDevice(self.model)
        self.device = identify(self.function.address, self.function)
        self.open()
        assert {block for block in range(BLOCKS) if self.mem.leftover.covers(block, 1)} == left

    def open(self) -> None:
        self.mem = drivers.Mem(self.device)
        self.manager = Manager(self.mem, unit=self.unit, step=self.step)
        self.out: list[HandOut] = []
        self.pins: list[Use] = []

    def teardown(self) -> None:
        if hasattr(self, "device"):
            self.device.close()
            self.function.assert_left()

    # --- the driver's user ----------------------------------------------------------------------------------

    @rule(first=BLOCK_NUMBERS, count=COUNTS, kind=st.sampled_from(["plug", "unplug"]))
    def ask_for_these(self, first: int, count: int, kind: str) -> None:
        meant = set(range(first, first + count))
        before = set(self.model.plugged)
        forced = self.model.script[0] if self.model.script else None
        fits = bool(meant) and meant <= set(range(BLOCKS))
        uniform = meant.isdisjoint(before) if kind == "plug" else meant <= before
        used = kind == "unplug" and self.mem.block_table.in_use.overlaps(first, count)
        beyond = kind == "plug" and (len(before) + count) * BLOCK > self.model.get("requested_size")
        expected: type[Exception] | None = None
        if not fits or not uniform:
            expected = BadSize
        elif used:
            expected = InUse
        elif forced is not None:
            expected = {Response.BUSY: MemBusy, Response.NACK: MemNack, Response.ERROR: MemError}[forced]
        elif beyond:
            expected = MemNack
        if expected is None:
            getattr(self.mem, kind)(self.addr + first * BLOCK, count)
            assert self.model.plugged == (before | meant if kind == "plug" else before - meant)
        else:
            with pytest.raises(expected):
                getattr(self.mem, kind)(self.addr + first * BLOCK, count)
            assert self.model.plugged == before

    @rule(first=st.integers(0, BLOCKS - 1), count=st.integers(1, BLOCKS))
    @precondition(lambda self: not self.model.script)
    def ask_how_they_are(self, first: int, count: int) -> None:
        meant = set(range(first, min(BLOCKS, first + count)))
        there = meant & self.model.plugged
        expected = State.UNPLUGGED if not there else State.PLUGGED if there == meant else State.MIXED
        assert self.mem.state(self.addr + first * BLOCK, len(meant)) is expected

    @rule(blocks=st.integers(1, BLOCKS), kind=st.sampled_from(["plug_size", "unplug_size"]))
    def ask_for_a_size(self, blocks: int, kind: str) -> None:
        before = len(self.model.plugged)
        try:
            getattr(self.manager, kind)(blocks * BLOCK, timeout=0.0)
        except (BadSize, DeviceTimeout, InUse, MemNack, MemBusy, MemError, OperationFailed):
            return
        after = len(self.model.plugged)
        assert after <= before + blocks if kind == "plug_size" else after <= before - blocks

    @rule()
    def follow(self) -> None:
        try:
            outcome = self.manager._converge(None, 0.0, None, None)
        except (MemBusy, MemError):
            return
        surplus = len(self.model.plugged) * BLOCK - self.model.get("requested_size")
        if outcome is Outcome.REACHED:
            assert -self.manager.step < surplus <= 0
        elif outcome is Outcome.IN_USE:
            assert surplus > 0 and self.mem.block_table.in_use
        elif outcome is Outcome.NOTHING_LEFT:
            assert surplus < 0

    @rule(count=st.integers(1, 3))
    def hand_out(self, count: int) -> None:
        self.out += self.manager.hand_out("somebody", count=count)

    @rule(data=st.data())
    @precondition(lambda self: self.out)
    def give_back(self, data: st.DataObject) -> None:
        self.manager.give_back(self.out.pop(data.draw(st.integers(0, len(self.out) - 1))))

    @rule(data=st.data(), length=st.integers(1, BLOCK))
    @precondition(lambda self: self.model.plugged)
    def pin(self, data: st.DataObject, length: int) -> None:
        block = data.draw(st.sampled_from(sorted(self.model.plugged)))
        self.pins.append(self.mem.block_table.pin(block * BLOCK, length, "a pin"))

    @rule()
    @precondition(lambda self: self.pins)
    def unpin(self) -> None:
        self.mem.block_table.release(self.pins.pop(0))

    @rule()
    @precondition(lambda self: not self.model.script)
    def unplug_all(self) -> None:
        if self.mem.block_table.uses:
            with pytest.raises(InUse):
                self.mem.unplug_all(timeout=0.0)
        else:
            self.mem.unplug_all(timeout=0.0)
            assert not self.model.plugged

    @rule()
    @precondition(lambda self: not self.model.script)
    def leave_and_come_back(self) -> None:
        left = self.mem.block_table.plugged
        self.mem.close()
        self.open()
        assert self.mem.leftover == left

    # --- the host -------------------------------------------------------------------------------------------

    @rule(blocks=st.integers(0, BLOCKS), told=st.booleans())
    def request(self, blocks: int, told: bool) -> None:
        self.model.put("requested_size", blocks * BLOCK, interrupt=told)

    @rule(answer=st.sampled_from([Response.BUSY, Response.NACK, Response.ERROR]))
    @precondition(lambda self: not self.model.script)
    def refuse_the_next(self, answer: Response) -> None:
        self.model.script.append(answer)
        self.model.before = self.only_changes

    def only_changes(self, kind: int, addr: int, blocks: int) -> None:
        """A resync after an ERROR asks for states: these are answered honestly."""
        if kind == Request.STATE:
            self.model.script.appendleft(None)  # type: ignore[arg-type]

    # --- always ---------------------------------------------------------------------------------------------

    @invariant()
    def the_books_are_the_devices(self) -> None:
        if not hasattr(self, "mem"):
            return
        books = self.mem.block_table
        assert books.plugged.total == len(self.model.plugged)
        assert all(books.plugged.covers(block, 1) for block in self.model.plugged)
        assert not books.in_use.without(books.plugged)
        assert self.mem.findings == {}
        assert self.mem.device.broken is None

    @invariant()
    def units_add_up(self) -> None:
        if not hasattr(self, "mem"):
            return
        places = sorted(one.address for one in self.out)
        assert all(a + self.manager.unit <= b for a, b in pairwise(places))
        for unit in self.manager.units():
            assert 0 <= unit.plugged <= unit.size
            assert unit.in_use or unit.address not in places
        sub = self.manager.step < self.manager.unit
        assert self.manager.mode is (Mode.SUB_BLOCKS if sub else Mode.BIG_BLOCKS)


TestMachine = pytest.mark.fault(69, 70, 71, 73, 75)(Machine.TestCase)
TestMachine.settings = settings(max_examples=60, stateful_step_count=40)
