"""Fixed slots that are taken in turn: what waits to be shown, and what a signal handler raises in between."""

from __future__ import annotations

import itertools
import random
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from tests.fakes.slot_rigs import Bench, fast_kind
from uvirtio.errors import UsageError


def gone_round(kind: dict[str, Any], size: int, count: int, more: int = 0) -> Bench:
    """A bench whose record repeats one round of slots: it went round some laps, and posted so many more slots."""
    bench = Bench(kind, size, count)
    for turn in range(8 * size + more):
        bench.slots.submit(array("H", [turn % count]))
        bench.finish(*bench.rig.device.pop_all())
        assert bench.reap() == [turn % count]
    return bench


@fast_kind
@pytest.mark.parametrize("laid", [[0], [0, 1], [1], [3, 2], [2, 0, 1]], ids=str)
def test_what_was_laid_in_a_round_is_not_idle(kind: dict[str, Any], laid: list[int]):
    """Neither the slots of the round that wait to be shown, nor others that do, are accepted again."""
    bench = gone_round(kind, 8, 4)
    bench.slots.submit(array("H", laid), show=False)
    for slot in laid:
        for show in (True, False):
            with pytest.raises(UsageError):
                bench.slots.submit(array("H", [slot]), show=show)
    rest = [slot for slot in range(4) if slot not in laid]
    for slot in rest:
        bench.slots.submit(array("H", [slot]), show=False)
        with pytest.raises(UsageError):
            bench.slots.submit(array("H", [slot]), show=False)
    assert bench.slots.laid == 4
    bench.slots.show(4)
    assert [bench.slot_of(chain) for chain in bench.rig.device.pop_all()] == laid + rest


@fast_kind
@pytest.mark.parametrize("seed", range(8))
def test_what_is_laid_in_turn_or_not_is_posted_once(kind: dict[str, Any], seed: int):
    """Against a plain record: slots are laid in turn, now and then others, some twice; some are shown later."""
    rng, size, count = random.Random(seed), 8, 8 if seed % 2 else 4
    bench = gone_round(kind, size, count)
    idle, laid, out = list(range(count)), list[int](), list[Any]()
    refused = 0
    for turn in range(1500):
        wild = turn % 150 > 130
        now = idle[: rng.randint(1, 2)]
        if rng.random() < 0.2:
            now = (laid or [0])[-1:]  # it waits to be shown
        elif wild and rng.random() < 0.5:
            now = [rng.randrange(count)]
        show = rng.random() < 0.3
        if set(now) <= set(idle):
            bench.slots.submit(array("H", now), show=show)
            idle, laid = [slot for slot in idle if slot not in now], laid + now
            if show and now:
                shown, laid = laid, []
            else:
                many = rng.randint(0, len(laid))
                bench.slots.show(many)
                shown, laid = laid[:many], laid[many:]
            came = list(bench.rig.device.pop_all())
            assert [bench.slot_of(chain) for chain in came] == shown
            out += came
        else:
            refused += 1
            with pytest.raises(UsageError):
                bench.slots.submit(array("H", now), show=show)
        assert bench.slots.laid == len(laid)
        back = rng.randint(0, len(out))
        bench.finish(*out[:back])
        assert bench.reap() == [bench.slot_of(chain) for chain in out[:back]]
        idle += [bench.slot_of(chain) for chain in out[:back]]
        out = out[back:]
    assert refused > 50


class CtrlC(BaseException):
    """What a signal handler of the caller's raises."""


@contextmanager
def ended_at_call(number: int) -> Iterator[list[str]]:
    """Raise CtrlC as the n-th function of the slots is entered, which is where Python looks for signals."""
    calls, seen, before = itertools.count(1), list[str](), sys.gettrace()

    def trace(frame: FrameType, event: str, _argument: Any) -> None:
        inside = event == "call" and frame.f_code.co_filename.endswith(("_slots.py", "/slot_books.py"))
        if inside and next(calls) == number:
            seen.append(frame.f_code.co_name)
            raise CtrlC

    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


@fast_kind
@pytest.mark.parametrize("across", [False, True], ids=["", "across the end"])
def test_a_place_that_was_to_get_another_slot_has_the_one_that_is_posted(kind: dict[str, Any], across: bool):
    """A submit that is interrupted leaves no slot in the ring that the record does not have."""
    for number in itertools.count(1):
        bench = gone_round(kind, 8, 4, 7 if across else 0)
        in_turn, others = ([3, 0], [1, 2]) if across else ([0, 1], [3, 2])
        with ended_at_call(number) as seen:
            try:
                bench.slots.submit(array("H", others))
            except CtrlC:
                assert seen
        if not seen:
            break
        assert list(bench.rig.device.pop_all()) == []
        bench.slots.submit(array("H", in_turn))
        chains = list(bench.rig.device.pop_all())
        assert [bench.slot_of(chain) for chain in chains] == in_turn, f"after it came in {seen}"
        bench.finish(*chains)
        assert bench.reap() == in_turn
    assert number > 3, "it came nowhere"


@contextmanager
def ended_in_check(number: int) -> Iterator[list[int]]:
    """Raise CtrlC before the n-th instruction of the functions that check slots."""
    steps, seen, before = itertools.count(1), list[int](), sys.gettrace()

    def step(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "opcode" and next(steps) == number:
            seen.append(frame.f_lineno)
            raise CtrlC
        return step

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if event != "call" or frame.f_code.co_name not in ("check", "_comes_round", "_look_up"):
            return None
        frame.f_trace_opcodes = True
        return step

    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


@fast_kind
@pytest.mark.parametrize("checked", [[0, 1], [2, 1]], ids=["in turn", "looked up"])
def test_a_check_that_is_interrupted_leaves_no_bytes_of_others(kind: dict[str, Any], checked: list[int]):
    """Between any two steps: what is known of the slots that came last, and of those that are checked, fits."""
    for number in itertools.count(1):
        bench = gone_round(kind, 8, 4)  # slot 3 came last
        with ended_in_check(number) as seen:
            try:
                bench.slots.check(array("H", checked))
            except CtrlC:
                assert seen
        if not seen:
            break
        length = len(bench.slots._expected)
        for slots in ([3], [0, 1], [2, 0]):
            bench.slots.submit(array("H", slots), show=False)
            bench.slots.show(len(slots))
            chains = list(bench.rig.device.pop_all())
            assert [bench.slot_of(chain) for chain in chains] == slots, f"after it came in line {seen}"
            bench.finish(*chains)
            assert bench.reap() == slots
        assert len(bench.slots._expected) == length, f"after it came in line {seen}"
    assert number > 20, "it came nowhere"
