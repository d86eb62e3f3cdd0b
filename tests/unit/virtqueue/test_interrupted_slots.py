"""What a signal handler raises at any step of fixed slots: none is lost or given away twice, and all work on."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.ring_rigs import name_of
from tests.fakes.slot_rigs import Bench, no_kick
from tests.support.steps import CtrlC, ended_at_step, within
from uvirtio.errors import UsageError

SLOTS = within("/uvirtio/virtqueue/")
COUNT = 8


class Play:
    """A bench, and the chains that its device has taken and not used."""

    def __init__(self, kind: dict[str, Any], *, loose: bool, size: int = 8) -> None:
        self.bench = Bench(kind, size, COUNT)
        self.slots: Any = self.bench.slots
        self.rig = self.bench.rig
        self.with_device: list[Any] = []
        for turn in range(5):
            self.slots.submit(array("H", [turn % COUNT]))
            self.look()
            self.use(1)
            self.slots.reap()
        if loose:
            self.slots.submit(array("H", [0, 1, 2]))
            self.look()
            self.with_device.reverse()
            self.use(2)
            self.slots.reap()
            self.slots.submit(array("H", [3]))
            self.look()

    def look(self) -> None:
        """Let the device take what it sees."""
        self.with_device += self.rig.device.pop_all()

    def use(self, count: int = COUNT) -> None:
        self.look()
        now, self.with_device = self.with_device[:count], self.with_device[count:]
        self.bench.finish(*now)

    def settle(self) -> None:
        """Show what waits, have all used and take it back: each slot is idle then, and can be posted once."""
        if self.slots.laid:
            self.slots.show(self.slots.laid)
        self.look()
        out = self.slots.out()
        there = [self.bench.slot_of(chain) for chain in self.with_device]
        assert sorted([*self.slots.reap(), *there]) == out, "what was used by then, and what is with the device"
        self.use()
        came = list(self.slots.reap())
        assert sorted(came) == sorted(there), "what is with the device comes back, once each"
        assert self.slots.out() == [] and self.slots.laid == 0
        everything = array("H", range(COUNT))
        self.slots.check(everything)
        self.slots.submit(everything)
        with pytest.raises(UsageError):
            self.slots.submit([0])
        self.use()
        assert list(self.slots.reap()) == [*everything]


def idle(play: Play) -> list[int]:
    out = set(play.slots.out())
    return [slot for slot in range(COUNT) if slot not in out]


def posted(play: Play) -> None:
    play.slots.submit(array("H", idle(play)[1:4]))
    play.slots.submit(idle(play)[:1])


def posted_and_reaped(play: Play) -> None:
    for _ in range(2):
        play.slots.submit(array("H", idle(play)[:3]))
        play.use(2)
        again = play.slots.reap()
        play.slots.submit(again)
        play.use()
        play.slots.reap()


def laid(play: Play) -> None:
    now = idle(play)
    play.slots.submit(array("H", now[:3]), show=False)
    play.slots.show(1)
    play.use(1)
    play.slots.submit(array("H", now[3:4]), show=False)
    play.slots.relay(2, no_kick)
    play.slots.reap()
    play.slots.relay(1, no_kick)
    play.slots.show(play.slots.laid)


def out_of_order(play: Play) -> None:
    play.slots.submit(array("H", idle(play)[:4]))
    play.look()
    play.with_device.reverse()
    play.use(3)
    again = play.slots.reap()
    play.slots.submit(again)
    play.use()
    play.slots.reap()


def of_other_lengths(play: Play) -> None:
    play.slots.submit(array("H", idle(play)[:4]))
    play.look()
    now, play.with_device = play.with_device[:3], play.with_device[3:]
    for at, chain in enumerate(now):
        play.bench.finish(chain, written=7 + at)
    play.slots.reap()


STORIES: list[Callable[[Play], None]] = [posted, posted_and_reaped, laid, out_of_order, of_other_lengths]
KINDS = [
    {"format": "split", "event_idx": True},
    {"format": "split", "event_idx": False},
    {"format": "packed", "event_idx": True},
    {"format": "split", "event_idx": True, "in_order": True},
]
CASES = [
    (story, kind, loose)
    for story in STORIES
    for kind in KINDS
    for loose in (False, True)
    if not (kind.get("in_order") and (loose or story is out_of_order))  # such a device uses nothing out of order
]


@pytest.mark.fault(92)
@pytest.mark.parametrize(
    ("story", "kind", "loose"),
    CASES,
    ids=[f"{s.__name__}-{name_of(k)}{'-loose' * on}" for s, k, on in CASES],
)
def test_slots_work_on_at_any_step(story: Callable[[Play], None], kind: dict[str, Any], loose: bool) -> None:
    for number in itertools.count(1):
        play = Play(kind, loose=loose)
        with ended_at_step(number, SLOTS) as step:
            try:
                story(play)
            except CtrlC:
                assert step.came
        try:
            play.settle()
            play.settle()
            posted_and_reaped(play)
            if loose:
                out_of_order(play)
            play.settle()
            assert play.rig.queue.broken is None
            play.rig.dma.memory.assert_clean()
        except BaseException as error:
            raise AssertionError(f"step {number}: {step.where}") from error
        if not step.came:
            break
    assert number > 4, "it came at none of the steps"
