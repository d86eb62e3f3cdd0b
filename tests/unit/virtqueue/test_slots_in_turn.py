"""Fixed slots that are taken in turn: what waits to be shown is not idle."""

from __future__ import annotations

import random
from array import array
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
