"""virtio-mem on any cell; query-memory-devices, the size-change event and the host's memory are the witnesses."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.bodies import Cell
from uvirtio.drivers.mem import Manager, Mem, Mode, Outcome, Ranges, Region, Request, Response, State
from uvirtio.errors import BadSize, InUse, MemNack, NotPlugged
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f

MIB = 1 << 20
ROUNDS = 10_000


def witness(cell: Cell) -> dict[str, int]:
    """What QEMU says of this device."""
    for device in cell.qmp("query-memory-devices"):
        if device["data"].get("id") == cell.extra["id"]:
            return dict(device["data"])
    raise AssertionError("QEMU does not know the device")


def request(cell: Cell, size: int) -> None:
    """The host wants ``size`` bytes plugged."""
    path = f"/machine/peripheral/{cell.extra['id']}"
    cell.qmp("qom-set", path=path, property="requested-size", value=size)


@pytest.fixture
def emptied(cell: Cell):
    """Nothing plugged before, and nothing left behind."""

    def empty() -> None:
        request(cell, 0)
        with cell.open() as device, Mem(device) as mem:
            mem.unplug_all()

    empty()
    yield
    empty()


@pytest.mark.spec("MEM-04")
def test_the_configuration_is_what_qemu_says(cell: Cell, emptied: None) -> None:
    request(cell, 64 * MIB)
    with cell.open() as device, Mem(device) as mem:
        seen, config = witness(cell), mem.config()
        assert (config.block_size, config.addr) == (seen["block-size"], seen["memaddr"])
        assert (config.region_size, config.requested_size) == (seen["max-size"], 64 * MIB)
        assert (config.plugged_size, seen["size"]) == (0, 0)
        assert config.node_id in (None, seen["node"])
        offered = device.offered & Mem.features
        assert device.features & Mem.features == offered
        assert mem.unplugged_inaccessible == bool(offered & f.mask(f.Mem.UNPLUGGED_INACCESSIBLE))


@pytest.mark.fault(69, 71)
@pytest.mark.spec("MEM-16", "MEM-17", "MEM-18", "MEM-19", "MEM-21")
def test_plug_unplug_and_state(cell: Cell, emptied: None) -> None:
    request(cell, 64 * MIB)
    with cell.open() as device, Mem(device) as mem:
        block = mem.block_size
        at = mem.config().address_of
        mem.plug(at(1), 4)
        assert witness(cell)["size"] == 4 * block == mem.config().plugged_size
        assert mem.state(at(1), 4) is State.PLUGGED
        assert mem.state(at(0), 1) is State.UNPLUGGED
        assert mem.state(at(0), 3) is State.MIXED
        mem.unplug(at(2), 1)
        assert witness(cell)["size"] == 3 * block
        assert list(mem.resync()) == [(1, 1), (3, 2)]
        # What this driver would not send, and what the device says to it.
        assert mem.ask(Request.PLUG, at(1), 1).type is Response.ERROR
        assert mem.ask(Request.UNPLUG, at(2), 1).type is Response.ERROR
        assert mem.ask(Request.PLUG, at(2) + 1, 1).type is Response.ERROR
        assert mem.ask(Request.STATE, at(mem.config().blocks), 1).type is Response.ERROR
        assert mem.ask(Request.PLUG, at(5), 64 * MIB // block).type is Response.NACK
        with pytest.raises(MemNack):
            mem.plug(at(5), 64 * MIB // block)
        with pytest.raises(BadSize):
            mem.plug(at(1), 1)
        assert witness(cell)["size"] == 3 * block
        mem.unplug_all()
        assert witness(cell)["size"] == 0 == mem.config().plugged_size
        assert mem.findings == {}


@pytest.mark.fault(79)
def test_plugged_memory_outlives_the_driver_and_a_reset(cell: Cell, emptied: None) -> None:
    request(cell, 64 * MIB)
    with cell.open() as device:
        with Mem(device) as mem:
            at = mem.config().address_of
            mem.plug(at(0), 3)
            mem.plug(at(7), 2)
            mem.plug(at(12), 1)
            left = mem.block_table.plugged
        assert witness(cell)["size"] == 6 * mem.block_size
    with cell.open() as device, Mem(device) as mem:
        assert mem.leftover == left
        assert witness(cell)["size"] == 6 * mem.block_size


def test_answers_come_by_interrupt(cell: Cell, emptied: None) -> None:
    request(cell, 64 * MIB)
    with cell.open() as device, Mem(device) as mem:
        mem.plug(mem.config().addr, 1)
        if cell.mode is InterruptMode.POLLING:
            assert device.counters.interrupts_taken == 0
        else:
            device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")


@pytest.mark.spec("MEM-05")
def test_leftovers_go_on_demand(cell: Cell, emptied: None) -> None:
    request(cell, 32 * MIB)
    with cell.open() as device, Mem(device) as mem:
        mem.plug(mem.addr, 3)
    with cell.open() as device, Mem(device, leftover="unplug") as mem:
        assert not mem.leftover
        assert witness(cell)["size"] == 0


def test_the_host_is_told_by_an_event(cell: Cell, emptied: None) -> None:
    cell.events("MEMORY_DEVICE_SIZE_CHANGE", 0)
    request(cell, 32 * MIB)
    with cell.open() as device, Mem(device) as mem:
        mem.plug(mem.addr, 2)
        wanted = 2 * mem.block_size
        deadline = time.monotonic() + 20
        # QEMU sends one a second at the most.
        seen: list[int] = []
        while wanted not in seen and time.monotonic() < deadline:
            found = cell.events("MEMORY_DEVICE_SIZE_CHANGE", 3)
            seen += [event["data"]["size"] for event in found if event["data"]["id"] == cell.extra["id"]]
        assert wanted in seen


# --- following ----------------------------------------------------------------------------------------------


@pytest.mark.spec("MEM-13", "MEM-22")
@pytest.mark.parametrize("unit", [None, 128 * MIB], ids=["big-blocks", "sub-blocks"])
def test_following_the_host(cell: Cell, emptied: None, unit: int | None) -> None:
    with cell.open() as device, Mem(device) as mem:
        manager = Manager(mem, unit=unit)
        assert manager.mode is (Mode.BIG_BLOCKS if unit is None else Mode.SUB_BLOCKS)
        failures: list[BaseException] = []

        def host() -> None:
            try:
                for size in (96, 160, 32, 0, 130):
                    request(cell, size * MIB)
                    _until(lambda size=size: witness(cell)["size"] == size * MIB)  # type: ignore[misc]
                # Changes faster than they can be followed.
                for size in (200, 10, 150, 64, 256, 48):
                    request(cell, size * MIB)
                _until(lambda: witness(cell)["size"] == 48 * MIB)
            except BaseException as error:  # noqa: BLE001  # raised in the test's own thread
                failures.append(error)
            finally:
                device.interrupt(StopIteration())

        thread = threading.Thread(target=host, daemon=True)
        thread.start()
        with pytest.raises(StopIteration):
            manager.follow()
        thread.join(30)
        if failures:
            raise failures[0]
        assert mem.findings == {}
        if cell.mode is not InterruptMode.POLLING:
            assert device.counters.config_changes > 0


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


# --- the memory ---------------------------------------------------------------------------------------------


@pytest.mark.spec("MEM-06", "MEM-10", "MEM-11", "MEM-12")
def test_patterns_stay_while_others_are_unplugged(cell: Cell, emptied: None) -> None:
    request(cell, 32 * MIB)
    chance = random.Random(1)
    with cell.open() as device, Mem(device) as mem, Region.open(mem) as region:
        block, at = mem.block_size, mem.config().address_of
        count = 32 * MIB // block
        mem.plug(at(0), count)
        patterns = {number: chance.randbytes(4096) for number in range(count)}
        for number, pattern in patterns.items():
            assert region.read(number * block, 4096) == bytes(4096)
            region.write(number * block, pattern)
            region.write(number * block + block - 4096, pattern)
        order = list(patterns)
        chance.shuffle(order)
        for number in order[: count // 2]:
            mem.unplug(at(number), 1)
            del patterns[number]
            with pytest.raises(NotPlugged):
                region.read(number * block, 1)
        for number, pattern in patterns.items():
            assert region.read(number * block, 4096) == pattern
            assert region.read(number * block + block - 4096, 4096) == pattern
        # What comes back, comes back empty.
        back = order[0]
        mem.plug(at(back), 1)
        assert region.read(back * block, 4096) == bytes(4096)
        with region.view(back * block, 1), pytest.raises(InUse):
            mem.unplug(at(back), 1)
        mem.unplug(at(back), 1)


def test_the_hosts_memory_falls(cell: Cell, emptied: None) -> None:
    if cell.backing is None:
        pytest.skip("the host's memory cannot be seen from here")
    request(cell, 64 * MIB)
    with cell.open() as device, Mem(device) as mem, Region.open(mem) as region:
        assert cell.backing() == 0
        mem.plug(mem.addr, 64 * MIB // mem.block_size)
        region.zero(0, 64 * MIB)
        assert cell.backing() == 64 * MIB
        Manager(mem).unplug_size(32 * MIB)
        assert cell.backing() == 32 * MIB
        mem.unplug_all()
        assert cell.backing() == 0


def test_hand_outs_and_the_host_wanting_them_back(cell: Cell, emptied: None) -> None:
    request(cell, 64 * MIB)
    with cell.open() as device, Mem(device) as mem, Region.open(mem) as region:
        manager = Manager(mem, unit=16 * MIB, region=region)
        assert manager.converge() is Outcome.REACHED
        units = manager.hand_out("test")
        assert len(units) == 4
        for number, unit in enumerate(units):
            region.write(unit.address - mem.addr, bytes([number]) * 64)
        request(cell, 16 * MIB)
        assert manager.converge() is Outcome.IN_USE
        assert witness(cell)["size"] == 64 * MIB
        for unit in units[:3]:
            manager.give_back(unit)
        assert manager.converge() is Outcome.REACHED
        assert witness(cell)["size"] == 16 * MIB
        assert region.read(units[3].address - mem.addr, 64) == bytes([3]) * 64


# --- a model ------------------------------------------------------------------------------------------------


@pytest.mark.fault(73)
@pytest.mark.spec("MEM-20", "MEM-21", "MEM-22")
def test_random_requests_against_a_model(cell: Cell, emptied: None) -> None:
    chance = random.Random(20_240_601)
    rounds = ROUNDS // (1 if cell.backing is not None else 10)  # an emulated CPU is slower
    request(cell, 96 * MIB)
    with cell.open() as device, Mem(device) as mem:
        block, at = mem.block_size, mem.config().address_of
        most = 96 * MIB // block
        usable = mem.config().usable_blocks
        model: set[int] = set()
        for _ in range(rounds):
            kind = chance.choice([Request.PLUG, Request.UNPLUG, Request.STATE])
            first = chance.randrange(most + 8) if chance.random() < 0.97 else chance.randrange(usable + 4)
            count = chance.randint(1, 6)
            crooked = chance.random() < 0.01
            meant = set(range(first, first + count))
            answer = mem.ask(kind, at(first) + crooked, count)
            expected, state = Response.ACK, None
            if crooked or first + count > usable:
                expected = Response.ERROR
            elif kind is Request.STATE:
                there = meant & model
                state = State.UNPLUGGED if not there else State.PLUGGED if there == meant else State.MIXED
            elif kind is Request.PLUG:
                if meant & model:
                    expected = Response.ERROR
                elif len(model) + count > most:
                    expected = Response.NACK
                else:
                    model |= meant
            elif meant <= model:
                model -= meant
            else:
                expected = Response.ERROR
            # Which of two errors comes first is the device's affair.
            both = {Response.ERROR, Response.NACK} if expected is not Response.ACK else {Response.ACK}
            assert answer.type in both and answer.state is state, (kind, first, count)
        assert mem.resync() == Ranges((number, 1) for number in model)
        assert witness(cell)["size"] == len(model) * block
        assert sum(mem.counts.values()) >= rounds
        assert all(mem.counts[kind] for kind in (Response.ACK, Response.ERROR))
