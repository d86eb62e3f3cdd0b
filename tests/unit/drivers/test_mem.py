"""virtio-mem's protocol against a device that is honest, odd, or a liar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from uvirtio.drivers import mem as drivers
from uvirtio.drivers.mem import Answer, Ranges, Request, Response, State
from uvirtio.drivers.mem.config import MemConfig, broken_invariants
from uvirtio.errors import (
    BadChain,
    BadSize,
    ConfigError,
    DeviceBroken,
    DeviceTimeout,
    InUse,
    MemBusy,
    MemError,
    MemNack,
    NotPlugged,
    NotVirtio,
    ProtocolError,
)
from uvirtio.opening import identify
from uvirtio.scripted.mem import ADDR, BLOCK, FIELDS, MIB, Mem
from uvirtio.scripted.memory import ScriptedBlock, ScriptedDma
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import features as f
from uvirtio.spec import mem as spec

GIB = 1 << 30


@contextmanager
def driven(model: Mem, timeout: float = 5.0, **device: object) -> Iterator[tuple[drivers.Mem, ScriptedDevice]]:
    """The driver on a scripted device; at the end everything was left in order."""
    function = ScriptedDevice(model, **device)  # type: ignore[arg-type]
    with identify(function.address, function, timeout=timeout) as opened, drivers.Mem(opened) as mem:
        yield mem, function
    function.assert_left()
    assert function.writes("device") == []
    model.close()


def at(block: int) -> int:
    return ADDR + block * BLOCK


# --- configuration ------------------------------------------------------------------------------------------


@pytest.mark.spec("MEM-01", "MEM-02", "MEM-03", "MEM-04")
def test_the_configuration_is_read_as_it_stands_and_never_written():
    with driven(Mem(requested=8 * BLOCK)) as (mem, function):
        config = mem.config()
        assert (config.block_size, config.addr, config.region_size) == (BLOCK, ADDR, 64 * BLOCK)
        assert (config.requested_size, config.plugged_size, config.node_id) == (8 * BLOCK, 0, 3)
        assert mem.device.features & f.mask(f.Mem.UNPLUGGED_INACCESSIBLE)
        assert mem.unplugged_inaccessible and not mem.survives_suspend
        # Never the padding: no access of any width reaches into 10..15.
        touched = {
            byte
            for access in function.log
            if access.region == "device"
            for byte in range(access.offset, access.offset + access.width)
        }
        assert touched.isdisjoint(range(10, 16))


@pytest.mark.spec("MEM-03")
def test_without_acpi_pxm_there_is_no_node():
    with driven(Mem(features=0, node_id=7)) as (mem, function):
        assert mem.config().node_id is None
        assert function.reads("device", FIELDS["node_id"].offset) == []


@pytest.mark.spec("MEM-15")
def test_persistent_suspend_is_taken_where_offered():
    with driven(Mem(features=f.mask(f.Mem.PERSISTENT_SUSPEND))) as (mem, _):
        assert mem.survives_suspend


def test_features_that_nobody_knows_are_left_alone():
    with driven(Mem(features=0b1111_1000)) as (mem, _):
        assert mem.device.features & 0xFF == 0


def test_a_queue_of_one_entry_is_refused_by_its_chain_and_not_by_the_memory(monkeypatch: pytest.MonkeyPatch):
    alloc, sizes = ScriptedDma.alloc, []

    def noted(self: ScriptedDma, size: int) -> ScriptedBlock:
        sizes.append(size)
        return alloc(self, size)

    monkeypatch.setattr(ScriptedDma, "alloc", noted)
    model = Mem(plugged={3})
    model.queue_sizes = (1,)
    function = ScriptedDevice(model)
    with identify(function.address, function, without=("INDIRECT_DESC",)) as device, pytest.raises(BadChain):
        drivers.Mem(device)
    assert min(sizes) > 0, "which no back end allocates"


BROKEN = {
    "block_size 0": ({"block_size": 0}, ["block_size 0 is no power of two"]),
    "block_size odd": ({"block_size": 3 * MIB}, ["no power of two"]),
    "block above region": ({"block_size": GIB}, ["block_size exceeds region_size", "no multiple"]),
    "addr 0": ({"addr": 0}, ["addr is 0"]),
    "addr crooked": ({"addr": ADDR + 4096}, ["addr 0x140001000 is no multiple"]),
    "region crooked": ({"region_size": 64 * BLOCK + 1}, ["region_size", "no multiple"]),
    "region 0": ({"region_size": 0, "usable_region_size": 0}, ["region_size is 0"]),
    "wraps": ({"addr": (1 << 64) - BLOCK}, ["beyond 64 bits"]),
    "usable above region": ({"usable_region_size": 65 * BLOCK}, ["usable_region_size exceeds region_size"]),
    "requested above usable": (
        {"usable_region_size": BLOCK, "requested_size": 2 * BLOCK},
        ["requested_size exceeds"],
    ),
    "requested crooked": ({"requested_size": 5}, ["requested_size 0x5 is no multiple"]),
    "plugged above region": ({"plugged_size": 65 * BLOCK}, ["plugged_size exceeds region_size"]),
    "plugged crooked": ({"plugged_size": 7}, ["plugged_size 0x7 is no multiple"]),
    "three at once": (
        {"addr": 0, "usable_region_size": 65 * BLOCK, "plugged_size": 7},
        ["addr is 0", "usable_region_size exceeds", "plugged_size 0x7"],
    ),
}


@pytest.mark.fault(68)
@pytest.mark.parametrize("case", BROKEN)
def test_a_configuration_that_cannot_be_is_refused_with_all_that_is_wrong(case):
    values, said = BROKEN[case]
    model = Mem()
    for name, value in values.items():
        model.put(name, value)
    function = ScriptedDevice(model)
    with identify(function.address, function) as opened:
        with pytest.raises(ConfigError) as caught:
            drivers.Mem(opened)
        for words in said:
            assert words in caught.value.message
        assert caught.value.remedy
    assert model.requests == []
    function.assert_left()


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({}, []),
        ({"addr": 0}, ["addr is 0, so the device has no memory"]),
        ({"region_size": 0, "usable_region_size": 0}, ["region_size is 0"]),
        ({"region_size": BLOCK, "usable_region_size": BLOCK, "requested_size": BLOCK, "plugged_size": BLOCK}, []),
        ({"addr": (1 << 64) - 64 * BLOCK}, []),
    ],
)
def test_nothing_else_is_wrong(values: dict[str, int], wrong: list[str]):
    config = MemConfig(BLOCK, ADDR, 64 * BLOCK, 64 * BLOCK, 0, 0)
    assert broken_invariants(replace(config, **values)) == wrong


@pytest.mark.fault(68)
def test_a_configuration_that_goes_wrong_later_breaks_the_device():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        model.put("usable_region_size", 65 * BLOCK, interrupt=True)
        with pytest.raises(ConfigError):
            mem.plug(ADDR, 1)
        with pytest.raises(DeviceBroken):
            mem.config()


def test_a_region_that_moves_is_no_region():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        model.put("addr", ADDR + GIB, interrupt=True)
        with pytest.raises(ProtocolError):
            mem.plug(ADDR, 1)
        assert mem.findings


def test_another_type_is_not_driven():
    from uvirtio.scripted.rng import Rng

    function = ScriptedDevice(Rng())
    with identify(function.address, function) as opened, pytest.raises(NotVirtio):
        drivers.Mem(opened)


@pytest.mark.fault(52)
def test_a_short_configuration_is_refused():
    model = Mem()
    del model.config[40:]
    function = ScriptedDevice(model)
    with identify(function.address, function) as opened, pytest.raises(ConfigError):
        drivers.Mem(opened)


# --- the four answers ---------------------------------------------------------------------------------------


@pytest.mark.spec("MEM-16", "MEM-17", "MEM-18", "MEM-19")
def test_plug_unplug_state_and_junk_behind_the_answers():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        mem.plug(at(2), 4)
        assert model.plugged == {2, 3, 4, 5}
        assert list(mem.block_table.plugged) == [(2, 4)]
        assert mem.state(at(2), 4) is State.PLUGGED
        assert mem.state(at(0), 2) is State.UNPLUGGED
        assert mem.state(at(0), 4) is State.MIXED
        mem.unplug(at(3), 2)
        assert list(mem.block_table.plugged) == [(2, 1), (5, 1)]
        mem.unplug_all()
        assert model.plugged == set() and not mem.block_table.plugged
        assert mem.counts[Response.ACK] == len(model.requests) == 6
        assert mem.findings == {}


@pytest.mark.fault(71)
@pytest.mark.parametrize("kind", ["plug", "unplug", "unplug_all", "state"])
@pytest.mark.parametrize("answer", [Response.NACK, Response.BUSY, Response.ERROR])
@pytest.mark.spec("MEM-20")
def test_each_refusal_is_an_error_of_its_own(kind, answer):
    model = Mem(requested=8 * BLOCK)
    wanted = {Response.NACK: MemNack, Response.BUSY: MemBusy, Response.ERROR: MemError}[answer]
    with driven(model) as (mem, _):
        mem.plug(at(0), 2)
        before = mem.block_table.plugged.copy()
        model.script.extend([(answer, State.PLUGGED)] * 30)  # a state that must not be looked at
        if answer is Response.ERROR:
            model.script.clear()
            model.script.append((answer, State.PLUGGED))
        call = {
            "plug": lambda: mem.plug(at(4), 1),
            "unplug": lambda: mem.unplug(at(0), 1),
            "unplug_all": lambda: mem.unplug_all(timeout=0.1),
            "state": lambda: mem.state(at(0), 1),
        }[kind]
        with pytest.raises(wanted) as caught:
            call()
        assert caught.value.done == 0 and caught.value.exit_code == 1
        assert answer.name in str(caught.value.seen) and caught.value.remedy
        assert mem.block_table.plugged == before
        assert mem.counts[answer] >= 1
        model.script.clear()
        assert mem.device.broken is None
        assert mem.state(at(0), 2) is State.PLUGGED  # it works on


@pytest.mark.spec("MEM-20")
def test_an_error_that_speaks_of_a_state_is_an_error():
    model = Mem()
    model.script.append((Response.ERROR, State.PLUGGED))
    with driven(model) as (mem, _):
        assert mem.ask(Request.STATE, at(0), 1) == Answer(Response.ERROR, None)


@pytest.mark.fault(72)
@pytest.mark.parametrize("kind", [4, 255, 65535])
def test_an_unknown_answer_breaks_the_device_and_is_not_repeated(kind):
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        model.script.append(kind)
        with pytest.raises(ProtocolError, match="invalid response"):
            mem.plug(at(0), 1)
        assert len(model.requests) == 1
        with pytest.raises(DeviceBroken):
            mem.plug(at(0), 1)


@pytest.mark.fault(35, 72)
@pytest.mark.parametrize("written", [0, 1, 2, 9])
def test_a_short_answer_breaks_the_device(written):
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        model.written = written
        with pytest.raises(ProtocolError):
            mem.plug(at(0), 1)


def test_a_state_that_is_none():
    model = Mem()
    with driven(model) as (mem, _):
        model.script.append((Response.ACK, 3))
        with pytest.raises(ProtocolError, match="invalid response"):
            mem.state(at(0), 1)


def test_silence_has_a_deadline():
    model = Mem(requested=8 * BLOCK)
    with driven(model, silent=True) as (mem, _):
        with pytest.raises(DeviceTimeout):
            mem.plug(at(0), 1, timeout=0.05)
        with pytest.raises(DeviceBroken):
            mem.unplug_all()


# --- before sending -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addr", "blocks"),
    [
        (ADDR + 1, 1),
        (ADDR + BLOCK // 2, 1),
        (ADDR - BLOCK, 1),
        (ADDR, 0),
        (ADDR, -1),
        (ADDR + 64 * BLOCK, 1),
        (ADDR + 63 * BLOCK, 2),
        (0, 1),
        (ADDR, 1 << 70),
    ],
)
@pytest.mark.parametrize("call", ["plug", "unplug", "state"])
@pytest.mark.spec("MEM-21")
def test_what_the_device_would_have_to_refuse_is_not_sent(call, addr, blocks):
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        with pytest.raises(BadSize) as caught:
            getattr(mem, call)(addr, blocks)
        assert caught.value.expected
        assert model.requests == []


@pytest.mark.spec("MEM-21")
def test_blocks_that_are_not_uniform_are_not_sent():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        mem.plug(at(1), 2)
        sent = len(model.requests)
        with pytest.raises(BadSize, match="plugged already"):
            mem.plug(at(0), 2)
        with pytest.raises(BadSize, match="not plugged"):
            mem.unplug(at(2), 2)
        assert len(model.requests) == sent


@pytest.mark.spec("MEM-21")
def test_blocks_beyond_the_usable_region_are_not_sent():
    model = Mem(usable=10 * BLOCK, requested=8 * BLOCK)
    with driven(model) as (mem, _):
        with pytest.raises(BadSize, match="usable"):
            mem.plug(at(9), 2)
        model.put("usable_region_size", 12 * BLOCK, interrupt=True)
        mem.plug(at(9), 2)  # it grew, and was read again


@pytest.mark.fault(75)
@pytest.mark.spec("MEM-21")
def test_more_blocks_than_a_request_can_name_take_several():
    count = 65535 * 2 + 10
    model = Mem(blocks=1 << 18, block_size=4096, requested=4096 << 18)
    with driven(model) as (mem, _):
        mem.plug(ADDR, count)
        assert [blocks for _, _, blocks in model.requests] == [65535, 65535, 10]
        assert len(model.plugged) == count
        assert mem.state(ADDR, count) is State.PLUGGED
        assert mem.state(ADDR, count + 1) is State.MIXED
        model.script.extend([None, Response.NACK])
        with pytest.raises(MemNack) as caught:
            mem.unplug(ADDR, count)
        assert caught.value.done == 65535
        assert mem.block_table.plugged.total == count - 65535 == len(model.plugged)


# --- books --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plugged",
    [set(), {0}, {63}, set(range(64)), {1, 5, 6, 7, 40}, set(range(0, 64, 2)), set(range(10, 50))],
    ids=lambda found: f"{len(found)}-blocks",
)
def test_what_somebody_left_plugged_is_found_and_kept(plugged):
    model = Mem(plugged=plugged, requested=64 * BLOCK)
    with driven(model) as (mem, _):
        assert mem.leftover == mem.block_table.plugged == Ranges((block, 1) for block in plugged)
        assert model.plugged == plugged
        assert all(kind == Request.STATE for kind, _, _ in model.requests)
        assert len(model.requests) < 2 * 64
        assert mem.findings == {}


def test_plugged_memory_outlives_the_driver():
    model = Mem(requested=8 * BLOCK)
    function = ScriptedDevice(model)
    with identify(function.address, function) as opened:
        with drivers.Mem(opened) as mem:
            mem.plug(at(3), 2)
        assert model.plugged == {3, 4}
        with drivers.Mem(opened) as mem:
            assert list(mem.leftover) == [(3, 2)]


@pytest.mark.spec("MEM-05")
def test_leftovers_are_unplugged_on_demand_until_it_succeeds():
    model = Mem(plugged={1, 2, 9})
    model.script.extend([Response.BUSY, Response.BUSY, Response.BUSY])
    function = ScriptedDevice(model)
    with identify(function.address, function) as opened, drivers.Mem(opened, leftover="unplug") as mem:
        assert model.plugged == set() and not mem.leftover
        assert [kind for kind, _, _ in model.requests] == [Request.UNPLUG_ALL] * 4
        assert mem.counts[Response.BUSY] == 3
    function.assert_left()


def test_without_leftovers_none_are_unplugged():
    model = Mem()
    function = ScriptedDevice(model)
    with identify(function.address, function) as opened, drivers.Mem(opened, leftover="unplug") as mem:
        assert model.requests == [] and not mem.leftover
    function.assert_left()


@pytest.mark.fault(73)
def test_mixed_for_one_block_is_a_lie():
    model = Mem(plugged={1})
    model.script.extend([(Response.ACK, State.MIXED)] * 100)
    function = ScriptedDevice(model)
    with identify(function.address, function) as opened, pytest.raises(ProtocolError, match="invalid response"):
        drivers.Mem(opened)
    assert len(model.requests) <= 1 + 2 * 6
    function.assert_left()


@pytest.mark.fault(74)
@pytest.mark.spec("MEM-22")
def test_a_plugged_size_that_is_not_what_was_acknowledged_is_looked_into():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        mem.plug(at(0), 2)

        def silently(kind: int, addr: int, blocks: int) -> None:
            if kind == Request.PLUG:
                model.plugged |= {20, 21}

        model.before = silently
        mem.plug(at(2), 1)
        assert list(mem.block_table.plugged) == [(0, 3), (20, 2)]
        assert mem.findings == {"plugged_size is not what was acknowledged": 1}


@pytest.mark.fault(74)
def test_a_plugged_size_that_is_not_what_the_states_say_is_a_finding():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        mem.plug(at(0), 2)
        mem.resync()
        assert mem.findings == {}
        model.size_lie = BLOCK
        model.put("plugged_size", 3 * BLOCK)
        assert list(mem.resync()) == [(0, 2)]
        assert mem.findings == {"plugged_size is not the number of plugged blocks": 1}


@pytest.mark.fault(75)
@pytest.mark.spec("MEM-22")
def test_unplug_all_may_shrink_the_region_without_a_word():
    model = Mem(requested=8 * BLOCK)
    model.shrinks = True
    with driven(model) as (mem, _):
        mem.plug(at(0), 2)
        seen = mem.device.counters.config_changes
        mem.unplug_all()
        assert mem.config().usable_region_size == 8 * BLOCK
        assert mem.device.counters.config_changes == seen
        with pytest.raises(BadSize, match="usable"):
            mem.plug(at(8), 1)


@pytest.mark.fault(73)
def test_the_device_is_the_truth():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        mem.plug(at(0), 4)
        pin = mem.block_table.pin(0, BLOCK, "test")
        model.plugged = {3, 4, 5, 6}
        model.script.append(Response.ERROR)
        with pytest.raises(MemError):
            mem.unplug(at(1), 1)
        assert list(mem.block_table.plugged) == [(3, 4)]
        assert mem.findings == {"blocks in use were unplugged behind our back": 1}
        mem.block_table.release(pin)


# --- blocks in use ------------------------------------------------------------------------------------------


@pytest.mark.fault(77)
@pytest.mark.spec("MEM-11")
def test_blocks_in_use_are_never_offered():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        mem.plug(at(0), 8)
        sent = len(model.requests)
        first = mem.block_table.pin(BLOCK, 10, "a reader")
        second = mem.block_table.pin(BLOCK + 5, BLOCK, "another")  # reaches into the next block
        for call in (lambda: mem.unplug(at(0), 8), lambda: mem.unplug(at(2), 1), mem.unplug_all):
            with pytest.raises(InUse) as caught:
                call()
            assert "another" in caught.value.seen
        mem.block_table.release(second)
        with pytest.raises(InUse, match="1 of these 2"):
            mem.unplug(at(1), 2)
        assert len(model.requests) == sent
        mem.unplug(at(2), 1)
        mem.block_table.release(first)
        mem.block_table.release(first)
        mem.unplug(at(0), 2)


def test_no_two_owners_and_no_unplugged_block():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, _):
        mem.plug(at(0), 2)
        mem.block_table.claim(0, BLOCK, "one")
        with pytest.raises(InUse, match="handed out already"):
            mem.block_table.claim(BLOCK - 1, 2, "two")
        with pytest.raises(NotPlugged):
            mem.block_table.claim(BLOCK, BLOCK + 1, "two")
        with pytest.raises(NotPlugged):
            mem.block_table.pin(-1, 1, "two")
        mem.block_table.claim(BLOCK, BLOCK, "two")


def test_requests_are_what_the_standard_says():
    model = Mem(requested=8 * BLOCK)
    with driven(model) as (mem, function):
        mem.plug(at(1), 2)
        mem.state(at(1), 2)
        mem.unplug(at(1), 2)
        mem.unplug_all()
        assert model.requests == [(0, at(1), 2), (3, at(1), 2), (1, at(1), 2), (2, 0, 0)]
        function.assert_obedient()
    assert spec.REQUEST_SIZE == 24 and spec.RESPONSE_SIZE == 10
