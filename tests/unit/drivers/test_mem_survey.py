"""Which blocks are plugged: found with few notifications, and each answer is believed for its own blocks alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.drivers.test_mem import at, driven
from uvirtio.drivers import mem as drivers
from uvirtio.drivers.mem import Ranges, Response, State
from uvirtio.drivers.mem.ranges import BlockRange
from uvirtio.drivers.mem.survey import AT_ONCE, survey
from uvirtio.errors import MemNack, ProtocolError
from uvirtio.opening import identify
from uvirtio.scripted import Chain
from uvirtio.scripted.mem import ADDR, BLOCK, Mem
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import features as f
from uvirtio.spec.mem import MAX_BLOCKS

SIZES = st.sampled_from([1, 2, 3, 64, 200, MAX_BLOCKS, 3 * MAX_BLOCKS + 77])


class Lie(ProtocolError):
    pass


def wrong(seen: str, expected: str) -> ProtocolError:
    return Lie("a lie", seen=seen, expected=expected)


class Asked:
    """A device that answers by what is plugged, or by what it is told to say, and what it was asked."""

    def __init__(self, plugged: set[int]) -> None:
        self.plugged = Ranges((block, 1) for block in sorted(plugged))
        self.told: dict[BlockRange, State] = {}
        self.batches: list[list[BlockRange]] = []

    def say(self, first: int, count: int) -> State:
        inside = self.plugged.count(first, count)
        return State.UNPLUGGED if not inside else State.PLUGGED if inside == count else State.MIXED

    def __call__(self, asked: Sequence[BlockRange]) -> list[State]:
        self.batches.append(list(asked))
        assert 0 < len(asked) <= AT_ONCE
        for one in asked:
            assert one not in self.told, "nothing is asked for twice"
            self.told[one] = self.say(*one)
        return [self.told[one] for one in asked]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_an_honest_device_is_asked_for_no_more_than_it_takes(data):
    blocks = data.draw(SIZES)
    plugged = data.draw(st.sets(st.integers(0, blocks - 1), max_size=80))
    device = Asked(plugged)
    found, fits = survey(blocks, len(plugged), device, wrong)
    assert list(found) == list(device.plugged) and fits
    assert len(device.told) <= -(-blocks // MAX_BLOCKS) + 32 * len(plugged)


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_whatever_a_device_says_what_counts_as_plugged_was_said_to_be(data):
    """MIXED where nothing is mixed, another sum, in any combination: bounded, and no block by inference."""
    blocks, plugged = data.draw(SIZES), data.draw(st.integers(0, 60))
    lies = data.draw(st.lists(st.sampled_from(State), max_size=12))
    device = Asked(data.draw(st.sets(st.integers(0, blocks - 1), max_size=60)))
    honest, rest = device.say, data.draw(st.sampled_from([None, *State]))

    def say(first: int, count: int) -> State:
        return lies.pop() if lies else honest(first, count) if rest is None else rest

    device.say = say  # type: ignore[method-assign]
    try:
        found, fits = survey(blocks, plugged, device, wrong)
    except Lie:
        pass
    else:
        said = Ranges(sorted(one for one, state in device.told.items() if state is State.PLUGGED))
        assert list(found) == list(said)
        open_ = [one for one, state in device.told.items() if state is State.MIXED and one not in split(device)]
        assert fits == (found.total == plugged and not open_)
        for first, count in split(device):  # each MIXED that was looked into held what it said, as far as was told
            assert 0 < found.count(first, count) < count or any(first <= at < first + count for at, _ in open_)
    assert len(device.told) <= -(-blocks // MAX_BLOCKS) + 64 * plugged + 2


def split(device: Asked) -> list[BlockRange]:
    return [(at, count) for at, count in device.told if count > 1 and (at, count // 2) in device.told]


@pytest.mark.fault(73)
def test_of_two_halves_that_are_alike_neither_is_believed():
    """A block is never plugged because of what the device said about its neighbour."""
    for half in (State.PLUGGED, State.UNPLUGGED):
        device = Asked({0, 1} if half is State.PLUGGED else set())
        honest = device.say
        device.say = lambda first, count, say=honest: State.MIXED if count > 1 else say(first, count)  # type: ignore[method-assign]
        with pytest.raises(Lie) as caught:
            survey(2, 1, device, wrong)
        assert half.name in caught.value.seen
        assert device.batches == [[(0, 2)], [(0, 1), (1, 1)]]


def test_many_runs_take_few_notifications():
    """2,000 alternating blocks of 524,288 are 8,003 requests; asked for one by one as many notifications."""
    device = Asked(set(range(262_144, 266_144, 2)))
    found, fits = survey(1 << 19, 2000, device, wrong)
    assert fits and found.runs == 2000
    assert len(device.told) < 8_100
    assert len(device.batches) <= len(device.told) // AT_ONCE + 17 + 1


# --- on the ring ----------------------------------------------------------------------------------------------


def test_requests_are_with_the_device_together():
    model = Mem(plugged=set(range(0, 64, 2)), requested=64 * BLOCK)
    with driven(model) as (mem, function):
        assert mem.leftover.total == mem.leftover.runs == 32
        assert len(model.requests) == 127
        assert mem.device.queues[0].kicks <= 127 // 16 + 8, "the ring of this device has 16 entries"
        function.assert_obedient()


class Backwards(Mem):
    """Uses what is there in the order that it likes (2.7.9): the newest first, and late."""

    def __init__(self, plugged: set[int]) -> None:
        super().__init__(plugged=plugged)
        self.kept: list[Chain] = []
        self.most = 0

    def handle(self, queue: int, chain: Chain) -> None:
        self.kept.append(chain)
        self.most = max(self.most, len(self.kept))

    def give_back(self) -> None:
        while self.kept:
            chain = self.kept.pop()
            self.device.complete(0, chain, super().handle(0, chain) or 0)


@pytest.mark.parametrize("indirect", [True, False])
def test_answers_in_any_order_are_those_to_their_requests(indirect):
    model = Backwards({1, 5, 6, 7, 40, 62})
    function = ScriptedDevice(model, features=None if indirect else f.mask(f.VERSION_1))
    with identify(function.address, function, timeout=5) as opened:
        opened.pulse = model.give_back
        with drivers.Mem(opened) as mem:
            assert list(mem.leftover) == [(1, 1), (5, 3), (40, 1), (62, 1)]
    assert 2 < model.most <= (16 if indirect else 8)
    function.assert_left()


def test_a_request_of_an_interrupted_wait_is_waited_for_first():
    """3.3.1: until it is used its buffer is the device's, which may write there late."""
    model = Backwards({5, 9})
    function = ScriptedDevice(model)
    with identify(function.address, function, timeout=5) as opened:
        opened.pulse = model.give_back
        with drivers.Mem(opened) as mem:
            opened.pulse = lambda: opened.interrupt(KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                mem.state(at(5), 1)
            assert len(model.kept) == 1
            opened.pulse = model.give_back
            assert list(mem.resync()) == [(5, 1), (9, 1)]
            assert mem.findings == {}
    function.assert_left()


def test_a_refusal_among_many_answers_says_how_far_it_was():
    model = Mem(blocks=1 << 18, block_size=4096)
    with driven(model) as (mem, _):
        model.script.extend([None, None, Response.NACK])
        with pytest.raises(MemNack) as caught:
            mem.state(ADDR, 1 << 18)
        assert caught.value.done == 2 * MAX_BLOCKS
        assert len(model.requests) == 5 and mem.counts[Response.NACK] == 1, "all answers were taken"
        assert mem.state(ADDR, 1 << 18) is State.UNPLUGGED


@pytest.mark.fault(73)
def test_a_sum_that_is_less_than_what_is_mixed_is_a_finding():
    model = Mem(plugged={0, 63})
    model.size_lie = -BLOCK
    model.put("plugged_size", BLOCK)
    with driven(model) as (mem, _):
        assert list(mem.block_table.plugged) == [(0, 1)], "the first block is the one that plugged_size has"
        assert mem.findings == {"plugged_size is not the number of plugged blocks": 1}
        assert mem.state(at(63), 1) is State.PLUGGED
