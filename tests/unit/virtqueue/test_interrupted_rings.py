"""What a signal handler raises at any step of a ring: no descriptor and no chain is lost, and it works on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.ring_rigs import A, Rig, name_of, rigs
from tests.support.steps import CtrlC, ended_at_step, within

KINDS = [{**kind, "in_order": on} for kind in rigs() for on in (False, True)]
RING = within("/uvirtio/virtqueue/")

SIZE = 8
SHAPES = ((0, 1), (1, 0), (1, 2), (2, 1), (0, 3))
BUFFERS = [
    (tuple((A + 64 * n, 8) for n in range(reads)), tuple((A + 4096 + 64 * n, 16) for n in range(writes)))
    for reads, writes in SHAPES
]
"""The same tuples each time, so that descriptors hold their chain."""


class Play:
    """A rig, what was handed to its queue, and what came back."""

    def __init__(self, kind: dict[str, Any]) -> None:
        self.rig = Rig(SIZE, **kind)
        self.queue = self.rig.queue
        if kind["indirect"]:
            self.queue._order = lambda: None  # as where a fence is a call
        self.given = 0
        self.back: list[int] = []
        self.held: list[Any] = []

    def chain(self, shape: int, *, new: bool = False) -> tuple[Any, Any, int]:
        readable, writable = BUFFERS[shape % len(BUFFERS)]
        self.given += 1
        return (list(readable) if new else readable, list(writable) if new else writable, self.given)

    def device(self) -> None:
        """Let the device use all that it sees."""
        for chain in self.rig.device.pop_all():
            self.rig.device.push(chain, chain.room)

    def books(self) -> list[int]:
        """Check the books, and return the cookies of the chains in the ring, the oldest first."""
        queue = self.queue
        entries = sorted((entry for entry in queue._out if entry is not None), key=lambda entry: entry[3])
        numbers = [entry[3] for entry in entries]
        assert numbers == list(range(queue.reaped, queue._laid)), "each number once"
        assert queue.reaped <= queue.published <= queue._laid
        if queue.kind == "split":
            used = [number for entry in entries for number in entry[2] or ()]
            used += [head for head, entry in enumerate(queue._out) if entry is not None and entry[2] is None]
            assert queue.free == SIZE - len(used) and len(set(used)) == len(used)
            if not queue._in_order:
                assert sorted([*queue._free, *used]) == list(range(SIZE)), "no descriptor is lost, none is twice"
        else:
            assert queue.free == SIZE - sum(entry[2] for entry in entries)
            out = [ident for ident, entry in enumerate(queue._out) if entry is not None]
            assert sorted([*queue._ids, *out]) == list(range(SIZE)), "no id is lost, none is twice"
        assert queue.cookies() == [entry[0] for entry in queue._out if entry is not None]
        return [entry[0] for entry in entries]

    def settle(self) -> None:
        """Show what is there, have it used and take it back: what the books have comes, once each."""
        there = self.books()
        self.queue.publish()
        assert len(there) == self.queue.in_flight
        self.device()
        came = [done.cookie for done in self.queue.reap()]
        assert came == there
        assert self.books() == [] and self.queue.free == SIZE
        assert not self.queue.pending() and not self.queue.publish()


def added(play: Play) -> None:
    for shape in range(3):
        play.queue.add(*play.chain(shape))
    play.queue.publish()


def added_anew(play: Play) -> None:
    for shape in (2, 0, 1, 0):
        play.queue.add(*play.chain(shape, new=True))
    play.queue.publish()


def added_together(play: Play) -> None:
    play.queue.add_all([play.chain(shape) for shape in (0, 2, 1)])
    play.queue.publish()


def sent(play: Play) -> None:
    for shape in (0, 2):
        play.queue.send(*play.chain(shape))


def reaped(play: Play) -> None:
    added(play)
    play.device()
    play.back += [done.cookie for done in play.queue.reap(1)]
    play.back += [done.cookie for done in play.queue.reap()]


def taken(play: Play) -> None:
    sent(play)
    play.device()
    for _ in range(2):
        came = play.queue.take(3)
        assert came is not None
        play.back.append(came[0])


def reaped_while_used(play: Play) -> None:
    """The device uses some more when it is asked for the next interrupt."""
    added(play)
    chains = list(play.rig.device.pop_all())
    play.rig.device.push(chains[0], 0)
    rest = iter(chains[1:])

    def faster() -> None:
        for chain in rest:
            play.rig.device.push(chain, chain.room)
            break

    play.rig.on_fence = faster
    try:
        play.queue.reap()
        play.queue.want_interrupts(True)
    finally:
        play.rig.on_fence = lambda: None
        for chain in rest:
            play.rig.device.push(chain, 0)


def silent(play: Play) -> None:
    play.queue.want_interrupts(False)
    added(play)
    play.device()
    play.queue.want_interrupts(True)


POSTED: list[Callable[[Play], None]] = [added, added_anew, added_together, sent]
USED: list[Callable[[Play], None]] = [reaped, taken, reaped_while_used, silent]
CASES = [
    *((story, again, kind) for story in POSTED for again in (1, 5) for kind in KINDS if not kind["event_idx"]),
    *((story, 5, kind) for story in USED for kind in KINDS),
]
"""``again``: chains that went through before; from the sixth on these go across the end of the ring."""


@pytest.mark.fault(92)
@pytest.mark.parametrize(
    ("story", "again", "kind"), CASES, ids=[f"{one.__name__}-{n}-{name_of(kind)}" for one, n, kind in CASES]
)
def test_a_ring_works_on_at_any_step(story: Callable[[Play], None], again: int, kind: dict[str, Any]) -> None:
    for number in itertools.count(1):
        play = Play(kind)
        for shape in range(again):
            play.queue.add(*play.chain(shape))
            play.settle()
        with ended_at_step(number, RING) as step:
            try:
                story(play)
            except CtrlC:
                assert step.came
        try:
            play.settle()
            for shape in (0, 1, 3, 0, 2):
                play.queue.add(*play.chain(shape, new=shape == 1))
                if shape:
                    play.settle()
            added(play)
            play.settle()
            assert play.queue.broken is None
            play.rig.dma.memory.assert_clean()
        except BaseException as error:
            raise AssertionError(f"step {number}: {step.where}") from error
        if not step.came:
            break
    assert number > 4, "it came at none of the steps"
