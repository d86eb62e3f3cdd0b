"""The memory manager: where it goes, by which blocks, and what it does when the device does not want to."""

from __future__ import annotations

import threading
import time

import pytest

from tests.unit.drivers.test_mem import at, driven
from uvirtio.drivers import mem as drivers
from uvirtio.drivers.mem import Consumer, Manager, Mode, Outcome, Request, Response
from uvirtio.drivers.mem import manager as module
from uvirtio.errors import (
    BadSize,
    Closed,
    DeviceTimeout,
    InUse,
    MemBusy,
    MemError,
    MemNack,
    OperationFailed,
    ProtocolError,
)
from uvirtio.scripted.mem import ADDR, BLOCK, Mem

ALL = 64 * BLOCK


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(module, "BUSY_FIRST", 0.001)
    monkeypatch.setattr(module, "BUSY_LAST", 0.01)


def states(manager: Manager) -> list[str]:
    return [unit.state for unit in manager.units()]


# --- modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "step", "mode", "real_step"),
    [
        (None, None, Mode.BIG_BLOCKS, BLOCK),
        (BLOCK, None, Mode.BIG_BLOCKS, BLOCK),
        (BLOCK // 4, None, Mode.BIG_BLOCKS, BLOCK),  # a device block of several units
        (4 * BLOCK, None, Mode.SUB_BLOCKS, BLOCK),
        (4 * BLOCK, 4 * BLOCK, Mode.BIG_BLOCKS, 4 * BLOCK),
        (2 * BLOCK, 8 * BLOCK, Mode.BIG_BLOCKS, 8 * BLOCK),
    ],
)
def test_the_unit_and_the_step_give_the_kernels_two_modes(unit, step, mode, real_step):
    with driven(Mem(requested=16 * BLOCK)) as (mem, _):
        manager = Manager(mem, unit=unit, step=step)
        assert (manager.mode, manager.step) == (mode, real_step)
        assert manager.converge() is Outcome.REACHED
        assert mem.config().plugged_size == 16 * BLOCK
        assert sum(unit.plugged for unit in manager.units()) == 16 * BLOCK


@pytest.mark.parametrize(
    ("unit", "step"), [(3 * BLOCK, None), (None, 5 * BLOCK), (-BLOCK, None), (0, None), (None, 0), (None, -BLOCK)]
)
def test_sizes_that_are_no_powers_of_two(unit, step):
    with driven(Mem()) as (mem, _), pytest.raises(BadSize, match="power of two"):
        Manager(mem, unit=unit, step=step)


def test_a_region_without_a_whole_unit():
    with driven(Mem(blocks=4, addr=ADDR + BLOCK)) as (mem, _), pytest.raises(BadSize, match="no whole"):
        Manager(mem, unit=4 * BLOCK)


def test_what_lies_beyond_whole_units_is_not_plugged_and_leaves_first():
    # The region begins and ends in the middle of a unit.
    model = Mem(blocks=18, addr=ADDR + BLOCK, plugged={0, 17}, requested=18 * BLOCK)
    with driven(model) as (mem, _):
        manager = Manager(mem, unit=8 * BLOCK)
        assert [unit.address for unit in manager.units()] == [ADDR + 8 * BLOCK]
        assert manager.converge() is Outcome.NOTHING_LEFT
        assert model.plugged == {0, 17, *range(7, 15)}
        model.request(8 * BLOCK)
        assert manager.converge() is Outcome.REACHED
        assert model.plugged == set(range(7, 15))


# --- which blocks -------------------------------------------------------------------------------------------


def test_begun_units_are_finished_first():
    model = Mem(plugged={0, 1, 13}, requested=10 * BLOCK)
    with driven(model) as (mem, _):
        manager = Manager(mem, unit=4 * BLOCK)
        manager.converge()
        assert model.plugged == {0, 1, 2, 3, *range(12, 16), 4, 5}


def test_unplugging_frees_whole_units_first():
    model = Mem(plugged=set(range(16)) | {20, 24, 25}, requested=ALL)
    with driven(model) as (mem, _):
        manager = Manager(mem, unit=4 * BLOCK)
        used = mem.block_table.pin(at(9) - ADDR, 1, "test")  # in the third unit
        gone = []
        while model.plugged != {9}:
            before = set(model.plugged)
            manager.unplug_size(BLOCK)
            gone += sorted(before - model.plugged)
        # What is begun, the least first; then beside what is used; then whole ones from the top.
        assert gone == [20, 25, 24, 11, 10, 8, 15, 14, 13, 12, 7, 6, 5, 4, 3, 2, 1, 0]
        mem.block_table.release(used)


def test_a_whole_unit_goes_in_one_request():
    model = Mem(plugged=set(range(16)), requested=ALL)
    with driven(model) as (mem, _):
        manager = Manager(mem, unit=4 * BLOCK)
        model.requests.clear()
        manager.unplug_size(9 * BLOCK)
        assert model.requests == [(Request.UNPLUG, at(8), 8), (Request.UNPLUG, at(7), 1)]


@pytest.mark.parametrize("part", [{0}, {0, 1, 2}, {1, 3}, {3}])
def test_a_unit_of_which_blocks_are_missing_is_plugged_in_part(part: set[int]):
    with driven(Mem(requested=len(part) * BLOCK, plugged=part)) as (mem, _):
        one, other, *_ = Manager(mem, unit=4 * BLOCK).units()
        assert (one.plugged, one.state) == (len(part) * BLOCK, "partly")
        assert (other.plugged, other.state) == (0, "unplugged")


def test_big_blocks_come_and_go_whole():
    model = Mem(requested=11 * BLOCK)
    with driven(model) as (mem, _):
        manager = Manager(mem, unit=2 * BLOCK, step=4 * BLOCK)
        assert manager.converge() is Outcome.REACHED  # as near as whole steps allow
        assert model.plugged == set(range(8))
        used = mem.block_table.pin(5 * BLOCK, 1, "test")
        model.request(5 * BLOCK)
        assert manager.converge() is Outcome.REACHED
        assert model.plugged == set(range(4, 8))
        model.request(0)
        assert manager.converge() is Outcome.IN_USE
        assert model.plugged == set(range(4, 8)), "no part of a step goes"
        mem.block_table.release(used)
        assert manager.converge() is Outcome.REACHED
        assert model.plugged == set()


def test_the_limit_is_not_exceeded():
    model = Mem(requested=20 * BLOCK)
    with driven(model) as (mem, _):
        assert Manager(mem, limit=7 * BLOCK + 5).converge() is Outcome.REACHED
        assert len(model.plugged) == 7


@pytest.mark.spec("MEM-14")
@pytest.mark.parametrize("unit", [BLOCK, 4 * BLOCK])
def test_only_what_the_consumer_can_use_is_plugged(unit):
    class Picky(Consumer):
        def usable(self, address: int, size: int) -> bool:
            assert size == unit
            return (address - ADDR) // unit % 3 == 1

    model = Mem(requested=ALL)
    with driven(model) as (mem, _):
        manager = Manager(mem, unit=unit, consumer=Picky())
        assert manager.converge() is Outcome.NOTHING_LEFT
        per = unit // BLOCK
        assert model.plugged == {block for block in range(64) if block // per % 3 == 1}
        with pytest.raises(OperationFailed, match="no other block"):
            manager.plug_size(BLOCK)


def test_a_consumer_that_can_use_all_of_it_is_not_asked():
    class Greedy(Consumer):
        anywhere = True

        def usable(self, address: int, size: int) -> bool:
            raise AssertionError("it was asked")

    model = Mem(requested=ALL)
    with driven(model) as (mem, _):
        assert Manager(mem, consumer=Greedy()).converge() is Outcome.REACHED
        assert model.plugged == set(range(64))


def test_blocks_beyond_the_usable_region_wait_until_it_grows():
    model = Mem(usable=10 * BLOCK, requested=10 * BLOCK)
    with driven(model) as (mem, _):
        manager = Manager(mem, unit=8 * BLOCK)
        assert manager.converge() is Outcome.REACHED
        model.put("usable_region_size", 30 * BLOCK, interrupt=True)
        model.request(20 * BLOCK)
        assert manager.converge() is Outcome.REACHED
        assert model.plugged == set(range(20))


# --- sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -BLOCK, 1, BLOCK + 1])
def test_sizes_that_are_no_multiple_are_refused_with_the_nearest(size):
    with driven(Mem(requested=ALL)) as (mem, function):
        manager = Manager(mem)
        for call in (manager.plug_size, manager.unplug_size):
            with pytest.raises(BadSize) as caught:
                call(size)
            assert str(BLOCK) in caught.value.remedy
        assert function.model.requests == []


def test_more_than_there_is_changes_nothing():
    model = Mem(requested=10 * BLOCK, plugged={0, 1})
    with driven(model) as (mem, _):
        manager = Manager(mem)
        model.requests.clear()
        with pytest.raises(BadSize, match="more than the region has left"):
            manager.plug_size(63 * BLOCK)
        with pytest.raises(MemNack, match="does not request"):
            manager.plug_size(9 * BLOCK)
        with pytest.raises(BadSize, match="more than is plugged"):
            manager.unplug_size(3 * BLOCK)
        with mem_pin(mem), pytest.raises(InUse):
            manager.unplug_size(2 * BLOCK)
        assert model.requests == [] and model.plugged == {0, 1}
        manager.plug_size(8 * BLOCK)
        assert len(model.plugged) == 10


class mem_pin:
    def __init__(self, mem: drivers.Mem) -> None:
        self.mem = mem

    def __enter__(self) -> None:
        self.use = self.mem.block_table.pin(0, 1, "test")

    def __exit__(self, *_: object) -> None:
        self.mem.block_table.release(self.use)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.fault(70)
def test_busy_is_waited_out():
    model = Mem(requested=4 * BLOCK)
    model.script.extend([Response.BUSY] * 5)
    with driven(model) as (mem, _):
        manager = Manager(mem)
        assert manager.converge() is Outcome.REACHED
        assert manager.retries == manager.counts[Response.BUSY] == 5


@pytest.mark.fault(70)
def test_busy_for_ever_has_an_end():
    model = Mem(requested=4 * BLOCK)
    model.busy = True
    with driven(model) as (mem, _):
        manager = Manager(mem)
        with pytest.raises(MemBusy):
            manager.plug_size(BLOCK, timeout=0.05)
        assert mem.device.broken is None and manager.counts[Response.BUSY] > 1


@pytest.mark.fault(70)
def test_a_busy_device_is_not_asked_again_when_its_answer_would_be_late():
    """DeviceTimeout would be the error then, with a request that is still out."""
    with driven(Mem()) as (mem, _):
        began: list[float] = []

        def act(seconds: float) -> None:
            began.append(seconds)
            time.sleep(min(0.03, seconds))
            if seconds < 0.03:
                raise DeviceTimeout("too late")
            raise MemBusy("busy")

        with pytest.raises(MemBusy):
            mem.patiently(act, timeout=0.2)
    assert len(began) > 1


@pytest.mark.fault(69)
def test_a_nack_is_not_repeated_until_the_request_changes():
    model = Mem(requested=4 * BLOCK)
    model.script.append(Response.NACK)
    with driven(model) as (mem, _):
        manager = Manager(mem)
        assert manager.converge() is Outcome.NACK
        assert len(model.requests) == 1
        # With another request on the table by then, the plan is made again.
        model.script.append(Response.NACK)
        model.before = lambda kind, addr, blocks: model.put("requested_size", 2 * BLOCK)
        assert manager.converge() is Outcome.REACHED
        assert len(model.plugged) == 2


def test_an_error_is_none_of_the_managers_business():
    model = Mem(requested=4 * BLOCK)
    model.script.append(Response.ERROR)
    with driven(model) as (mem, _), pytest.raises(MemError):
        Manager(mem).converge()


def test_nonsense_breaks():
    model = Mem(requested=4 * BLOCK)
    model.script.append(77)
    with driven(model) as (mem, _):
        with pytest.raises(ProtocolError):
            Manager(mem).follow(timeout=0.1)
        assert mem.device.broken is not None


# --- follow -------------------------------------------------------------------------------------------------


class Host(threading.Thread):
    """Does one thing after the other, each when ``done`` says that the last has come true."""

    def __init__(self, mem: drivers.Mem, *steps) -> None:
        super().__init__(daemon=True)
        self.mem = mem
        self.steps = steps
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for act, done in self.steps:
                act()
                deadline = time.monotonic() + 20
                while not done():
                    assert time.monotonic() < deadline, "the manager did not follow"
                    time.sleep(0.002)
        except Exception as error:  # noqa: BLE001  # raised in the test's own thread
            self.error = error
        finally:
            self.mem.device.interrupt(StopIteration())


def followed(model: Mem, manager: Manager, *steps) -> None:
    host = Host(manager.mem, *steps)
    host.start()
    with pytest.raises(StopIteration):
        manager.follow()
    host.join(20)
    if host.error is not None:
        raise host.error


@pytest.mark.spec("MEM-13", "MEM-22")
def test_it_goes_where_the_host_wants():
    model = Mem()
    with driven(model) as (mem, function):
        manager = Manager(mem, unit=4 * BLOCK)
        notified = function.msix[function.config_vector]

        def wants(blocks: int):
            def met() -> bool:  # the driver has noted it, too: what ends it now interrupts no answer
                return len(model.plugged) == blocks == mem.block_table.plugged.total

            return (lambda: model.request(blocks * BLOCK)), met

        followed(model, manager, wants(10), wants(64), wants(3), wants(0), wants(17))
        assert mem.block_table.plugged.total == 17
        # One notification for each wish; those that come while a wish is being answered are seen as one.
        assert notified.fired == 5
        assert 1 <= mem.device.counters.config_changes <= 5


@pytest.mark.spec("MEM-22")
def test_a_change_without_a_notification_is_seen(monkeypatch):
    monkeypatch.setattr(module, "_LOOK", 0.02)
    model = Mem()
    with driven(model) as (mem, _):
        followed(
            model,
            Manager(mem),
            (lambda: model.put("requested_size", 5 * BLOCK, interrupt=False), lambda: len(model.plugged) == 5),
        )


@pytest.mark.fault(75)
def test_two_changes_while_one_is_worked_on():
    model = Mem(requested=40 * BLOCK)
    changes = iter([10 * BLOCK, 25 * BLOCK])

    def meanwhile(kind: int, addr: int, blocks: int) -> None:
        wanted = next(changes, None)
        if wanted is not None:
            model.request(wanted)

    with driven(model) as (mem, _):
        model.before = meanwhile
        Manager(mem).follow(timeout=0.05)
        assert len(model.plugged) == 25


@pytest.mark.fault(54)
def test_a_storm_of_changes():
    model = Mem()
    with driven(model) as (mem, _):

        def storm() -> None:
            for number in range(300):
                model.request((number * 7 % 65) * BLOCK)
            model.request(12 * BLOCK)

        followed(model, Manager(mem, unit=8 * BLOCK), (storm, lambda: len(model.plugged) == 12))


def test_it_follows_through_nack_and_busy():
    model = Mem(requested=5 * BLOCK)
    model.script.extend([Response.BUSY, Response.BUSY, Response.NACK])
    told = []
    with driven(model) as (mem, _):
        manager = Manager(mem)
        manager.follow(timeout=0.1, told=told.append)
        assert told == [Outcome.BUSY, Outcome.NACK] and not model.plugged
        model.request(6 * BLOCK)
        manager.follow(timeout=0.1, told=told.append)
        assert told[-1] is Outcome.REACHED and len(model.plugged) == 6


def test_close_ends_it_from_another_thread():
    with driven(Mem()) as (mem, _):
        timer = threading.Timer(0.05, mem.device.close)
        timer.start()
        with pytest.raises(Closed):
            Manager(mem).follow()
        timer.join()


# --- hand-outs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [BLOCK // 2, BLOCK, 4 * BLOCK])
def test_whole_units_have_one_owner(unit):
    model = Mem(requested=6 * BLOCK)
    with driven(model) as (mem, _):
        manager = Manager(mem, unit=unit)
        manager.converge()
        whole = 6 * BLOCK // unit
        first = manager.hand_out("one", count=1)
        rest = manager.hand_out("two")
        assert len(first) + len(rest) == whole
        assert manager.hand_out("three") == []
        assert len({one.address for one in [*first, *rest]}) == whole
        assert states(manager).count("in-use") == whole
        manager.give_back(first[0])
        manager.give_back(first[0])
        assert [one.address for one in manager.hand_out("three", near=first[0].address)] == [first[0].address]


def test_a_block_of_several_units_goes_when_all_of_them_are_back():
    model = Mem(requested=2 * BLOCK)
    with driven(model) as (mem, _):
        manager = Manager(mem, unit=BLOCK // 4)
        manager.converge()
        out = manager.hand_out("test")
        assert len(out) == 8
        model.request(0)
        for one in out[:-1]:
            manager.give_back(one)
        assert manager.converge() is Outcome.IN_USE
        assert model.plugged == {1}
        manager.give_back(out[-1])
        assert manager.converge() is Outcome.REACHED and not model.plugged


def test_a_consumer_takes_what_arrives_and_gives_back_what_it_can():
    class Linux(Consumer):
        def __init__(self) -> None:
            self.has: list[drivers.HandOut] = []
            self.stubborn = 1
            self.asked: list[int] = []

        def arrived(self, manager: Manager) -> None:
            self.has += manager.hand_out("linux")

        def wanted_back(self, manager: Manager, size: int) -> None:
            self.asked.append(size)
            while size > 0 and len(self.has) > self.stubborn:
                manager.give_back(self.has.pop())
                size -= manager.unit

    model = Mem(requested=10 * BLOCK, plugged={0, 1, 2, 3})
    with driven(model) as (mem, _):
        linux = Linux()
        manager = Manager(mem, unit=4 * BLOCK, consumer=linux)
        manager.follow(timeout=0.05)
        assert [one.address for one in linux.has] == [at(0), at(4)]
        model.request(4 * BLOCK)
        manager.follow(timeout=0.05)
        assert len(linux.has) == 1 and model.plugged == {0, 1, 2, 3}
        model.request(0)
        manager.follow(timeout=0.05)
        assert manager.retries > 0 and model.plugged == {0, 1, 2, 3}  # it does not give the last one
        linux.stubborn = 0
        manager.follow(timeout=0.05)
        assert not linux.has and not model.plugged


@pytest.mark.parametrize("wants", [False, True])
def test_a_consumer_that_wants_more_is_asked_again_though_nothing_moved(wants: bool):
    class Picky(Consumer):
        asked = 0

        def arrived(self, manager: Manager) -> None:
            self.asked += 1

        def wants(self) -> bool:
            return wants

    with driven(Mem(requested=4 * BLOCK, plugged={0, 1, 2, 3})) as (mem, _):
        picky = Picky()
        Manager(mem, consumer=picky).follow(timeout=0)
        assert picky.asked == 1 + wants, "for what was there, and for what could not be taken of it"


def test_what_went_down_and_came_up_again_in_one_go_arrives_too():
    class Taker(Consumer):
        def __init__(self) -> None:
            self.has: list[drivers.HandOut] = []

        def arrived(self, manager: Manager) -> None:
            self.has += manager.hand_out("taker")

        def wanted_back(self, manager: Manager, size: int) -> None:
            while self.has:
                manager.give_back(self.has.pop())

    model = Mem(requested=4 * BLOCK)
    with driven(model) as (mem, _):
        taker = Taker()
        manager = Manager(mem, unit=2 * BLOCK, consumer=taker)
        manager.follow(timeout=0.05)
        assert len(taker.has) == 2
        model.request(0)

        def change_its_mind(kind: int, _addr: int, _blocks: int) -> None:
            if kind == Request.UNPLUG:
                model.put("requested_size", 4 * BLOCK)  # noted in the configuration when the last block goes

        model.before = change_its_mind
        manager.follow(timeout=0.05)
        assert len(model.plugged) == 4
        assert sum(one.size for one in taker.has) == 4 * BLOCK, "as much as before, and again in use"


def test_an_owner_from_before_us_is_noted():
    with driven(Mem(plugged={4, 5, 6, 7}, requested=4 * BLOCK)) as (mem, _):
        manager = Manager(mem, unit=4 * BLOCK)
        one = manager.adopt(at(4), "linux")
        assert manager.hand_out("other") == []
        with pytest.raises(InUse):
            manager.unplug_size(BLOCK)
        manager.give_back(one)
        manager.unplug_size(BLOCK)
