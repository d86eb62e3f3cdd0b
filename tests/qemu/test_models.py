"""The three drivers on QEMU's device models, each against a model of it, in any order of orders and events.

QMP is the witness at every step: query-balloon, query-memory-devices, and where the device is in its queues.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.bodies.balloon_model import PAGES, BalloonOrders
from tests.support.virtio_state import state
from uvirtio.device import Device
from uvirtio.drivers.balloon import Balloon, Use
from uvirtio.drivers.input import Input, InputEvent
from uvirtio.drivers.mem import HandOut, Manager, Mem, Outcome
from uvirtio.errors import BadSize, InUse, MemNack
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec import input as spec

_, _, INTX, POLLING = InterruptMode
MIB = 1 << 20
PATIENCE = 20.0

each_starts_a_qemu = settings(
    max_examples=8,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class OnQemu(RuleBasedStateMachine):
    """What the three share: one machine, one device, and the way out."""

    machine: Machine
    device: Device

    def open(self, argument: str, mode: InterruptMode) -> None:
        self.machine = Machine("q35", [argument])
        function = self.machine.functions[0]
        self.path = f"/machine/peripheral/{function.id}"
        self.device = identify(function.address, function, interrupts=[mode], timeout=PATIENCE)

    @property
    def ready(self) -> bool:
        return hasattr(self, "device")

    def teardown(self) -> None:
        if self.ready:
            with self.machine:  # each example has its own: the next must not find that of a failed one running
                broken = state(self.machine.qmp, f"{self.path}/virtio-backend").broken
                self.device.close()
            assert not broken
            assert self.device.broken is None


# --- the balloon --------------------------------------------------------------------------------------------


class BalloonModel(OnQemu, BalloonOrders):
    """What QEMU's device says at every step is the model's."""

    @initialize(
        oom=st.booleans(),
        reporting=st.booleans(),
        mode=st.sampled_from([INTX, POLLING]),
        iova=st.booleans(),
        packed=st.booleans(),
    )
    def start(self, oom: bool, reporting: bool, mode: InterruptMode, iova: bool, packed: bool) -> None:
        options = ["virtio-balloon-pci", f"deflate-on-oom={'on' if oom else 'off'}"]
        options += ["free-page-reporting=on"] if reporting else []
        options += ["iommu_platform=on", "disable-legacy=on"] if iova else []
        options += ["packed=on"] if packed else []
        self.open(",".join(options), mode)
        self.full = self.machine.qmp("query-balloon")["actual"]
        self.target = 0
        self.begin()

    def begin(self) -> None:
        self.driver = Balloon(self.device, reporting=True)
        self.arena = self.driver.arena(4 * MIB)
        self.taken = []
        self.held = 0

    @rule(pages=PAGES)
    def the_host_wants(self, pages: int) -> None:
        self.target = pages
        self.machine.qmp("balloon", value=self.full - pages * 4096)

    @rule(first=PAGES, second=PAGES)
    def the_host_changes_its_mind(self, first: int, second: int) -> None:
        self.the_host_wants(first)
        self.the_host_wants(second)

    @rule(other=st.none() | PAGES)
    def follow(self, other: int | None) -> None:
        """To the target, also where the host changes it on the way."""

        def progress(held: int) -> None:
            nonlocal other
            if other is not None:
                wanted, other = other, None
                self.the_host_wants(wanted)

        self.driver.follow(timeout=0.05, progress=progress)
        self.held = self.target

    @rule()
    def take(self) -> None:
        if not self.arena.bytes_in(Use.FREE, Use.REPORTED):
            return
        one = self.arena.take()
        with self.arena.view(one) as view:
            assert not any(view[::512])
            view[:] = b"\xa5" * one.size
        self.taken.append(one)

    @rule()
    def leave_and_come_back(self) -> None:
        self.driver.close()
        assert self.machine.qmp("query-balloon")["actual"] == self.full
        self.begin()

    @invariant()
    def the_host_says_so(self) -> None:
        if self.ready:
            assert self.driver.held == self.held == self.driver.actual
            assert self.machine.qmp("query-balloon")["actual"] == self.full - self.held * 4096
            assert self.driver.num_pages == self.target


# --- the memory device --------------------------------------------------------------------------------------


class MemModel(OnQemu):
    """Requests by hand, and a manager that follows; ``out`` is what a consumer uses."""

    @initialize(units=st.sampled_from([1, 2, 4]), mode=st.sampled_from([INTX, POLLING]), packed=st.booleans())
    def start(self, units: int, mode: InterruptMode, packed: bool) -> None:
        self.open(f"virtio-mem-pci,block-size=2M,packed={'on' if packed else 'off'}", mode)
        self.requested = 0
        self.units = units
        self.begin()

    def begin(self) -> None:
        self.mem = Mem(self.device)
        self.block = self.mem.block_size
        self.manager = Manager(self.mem, unit=self.units * self.block)
        self.out: list[HandOut] = []

    def plugged(self) -> int:
        return int(self.machine.qmp("query-memory-devices")[0]["data"]["size"]) // self.block

    @rule(blocks=st.integers(0, 20))
    def the_host_requests(self, blocks: int) -> None:
        self.requested = blocks
        self.machine.qmp("qom-set", path=self.path, property="requested-size", value=blocks * self.block)

    @rule(first=st.integers(0, 24), count=st.integers(1, 6), plug=st.booleans())
    def ask_for_these(self, first: int, count: int, plug: bool) -> None:
        before = self.plugged()
        there = self.mem.block_table.plugged.count(first, count)
        used = not plug and self.mem.block_table.in_use.overlaps(first, count)
        beyond = plug and before + count > self.requested
        wrong = (there if plug else there != count) or first + count > self.mem.config().usable_blocks
        call = self.mem.plug if plug else self.mem.unplug
        expected = BadSize if wrong else InUse if used else MemNack if beyond else None
        if expected is None:
            call(self.mem.addr + first * self.block, count)
            assert self.plugged() == before + (count if plug else -count)
        else:
            with pytest.raises(expected):
                call(self.mem.addr + first * self.block, count)
            assert self.plugged() == before

    @rule()
    def follow(self) -> None:
        outcome = self.manager.converge(timeout=PATIENCE)
        surplus = self.plugged() - self.requested
        if outcome is Outcome.REACHED:
            assert -self.units < surplus <= 0
        else:
            assert outcome is Outcome.IN_USE and surplus > 0 and self.out

    @rule(count=st.integers(1, 3))
    def hand_out(self, count: int) -> None:
        self.out += self.manager.hand_out("somebody", count=count)

    @precondition(lambda self: self.out)
    @rule()
    def give_back(self) -> None:
        self.manager.give_back(self.out.pop())

    @rule()
    def leave_and_come_back(self) -> None:
        before = self.plugged()
        self.mem.close()
        self.begin()
        assert self.mem.leftover.total == before == self.plugged()

    @invariant()
    def the_host_says_so(self) -> None:
        if self.ready:
            assert self.mem.block_table.plugged.total == self.plugged()
            assert not self.mem.findings
            for one in self.out:
                assert self.mem.block_table.plugged.covers((one.address - self.mem.addr) // self.block, self.units)


# --- the keyboard -------------------------------------------------------------------------------------------


class KeyboardModel(OnQemu):
    """``waiting`` are the frames that the host has sent and that were not read."""

    KEYS: ClassVar[dict[str, int]] = {"a": 30, "s": 31, "shift": 42, "spc": 57, "f1": 59}
    ROOM = 60
    """Events that the device has buffers for while it is not served (64), less some for what is under way."""

    @initialize(mode=st.sampled_from(list(InterruptMode)))
    def start(self, mode: InterruptMode) -> None:
        self.open("virtio-keyboard-pci,vectors=3", mode)
        self.begin()

    def begin(self) -> None:
        self.driver = Input(self.device)
        self.waiting: list[list[InputEvent]] = []
        self.down: set[int] = set()
        self.told = 0
        self.leds: dict[int, bool] = {}

    @rule(keys=st.lists(st.tuples(st.sampled_from(sorted(KEYS)), st.booleans()), min_size=1, max_size=6))
    def press(self, keys: list[tuple[str, bool]]) -> None:
        frame = [InputEvent(spec.EV_KEY, self.KEYS[key], int(down)) for key, down in keys]
        if sum(map(len, self.waiting)) + len(frame) + 1 > self.ROOM:
            self.driver.service()  # the device has its buffers back; the events wait in the process
            self.device.wait(self._all_here, timeout=PATIENCE, what="the events", owed=False)
        self._send(keys)
        self.waiting.append([*frame, InputEvent(0, 0, 0)])

    def _all_here(self) -> bool:
        self.driver.service()
        return len(self.driver._waiting) >= sum(map(len, self.waiting))

    def _send(self, keys: list[tuple[str, bool]]) -> None:
        events = [
            {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": key}}} for key, down in keys
        ]
        self.machine.qmp("input-send-event", events=events)

    @precondition(lambda self: self.waiting)
    @rule()
    def read_a_frame(self) -> None:
        frame = self.driver.read_frame(timeout=PATIENCE)
        assert frame is not None
        assert list(frame) == self.waiting.pop(0)
        assert frame.complete

    @rule()
    def read_all(self) -> None:
        while self.waiting:
            self.read_a_frame()
        self.driver.service()
        assert self.driver.take_frame() is None

    @rule(code=st.sampled_from([0, 1, 2]), on=st.booleans())
    def led(self, code: int, on: bool) -> None:
        assert self.driver.set_led(code, on), "there is always room for one more: each is flushed"
        assert self.driver.flush(timeout=PATIENCE)
        self.told += 1

    @rule(keys=st.lists(st.tuples(st.sampled_from(sorted(KEYS)), st.booleans()), min_size=1, max_size=3))
    def leave_and_come_back(self, keys: list[tuple[str, bool]]) -> None:
        self.driver.close()
        self._send(keys)  # lost: a device that was reset has no buffers
        self.begin()
        self.driver.service()
        assert self.driver.take_frame() is None

    @invariant()
    def the_host_says_so(self) -> None:
        if not self.ready:
            return
        queue = self.machine.qmp(
            "x-query-virtio-queue-status", path=f"{self.path}/virtio-backend", queue=spec.STATUSQ
        )
        assert queue["used-idx"] == self.told & 0xFFFF
        assert self.driver.lost == self.driver.dropped == self.driver.status_lost == 0
        if not self.waiting:
            assert not len(self.driver._waiting)


BalloonModel.TestCase.settings = each_starts_a_qemu
MemModel.TestCase.settings = each_starts_a_qemu
KeyboardModel.TestCase.settings = each_starts_a_qemu


class TestBalloon(BalloonModel.TestCase):  # type: ignore[name-defined,misc]
    """Hypothesis runs the machine."""


class TestMem(MemModel.TestCase):  # type: ignore[name-defined,misc]
    """Hypothesis runs the machine."""


class TestKeyboard(KeyboardModel.TestCase):  # type: ignore[name-defined,misc]
    """Hypothesis runs the machine."""
