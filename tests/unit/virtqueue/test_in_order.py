"""IN_ORDER on both ring formats: where chains lie, and batches of which the device names only the last."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from tests.fakes.ring_rigs import A, Rig, both, corrupt, every_kind
from uvirtio.errors import QueueFull


def room_of(number: int) -> int:
    return 10 + number % 50


def post(rig: Rig, numbers: range, elements: int = 1) -> list[Any]:
    for number in numbers:
        rig.queue.add((), [(A, room_of(number))] * elements, number)
    rig.queue.publish()
    return list(rig.device.pop_all())


@pytest.mark.spec("SPL-05", "SPL-06", "SPL-11")
@every_kind
def test_descriptors_go_round_and_link_their_neighbours(kind: dict[str, Any]):
    """The scripted split ring holds each descriptor against its place; a packed one has no other order."""
    rig = Rig(8, **kind, in_order=True)
    heads: list[int] = []
    for number in range(30):
        count = 1 + number % 5
        rig.queue.add([(A, 1)], [(A, 1)] * (count - 1), number)
        rig.queue.publish()
        [chain] = rig.device.pop_all()
        assert len(chain.elements) == count
        heads += chain.descriptors
        rig.device.push(chain, 0)
        assert [done.cookie for done in rig.queue.reap()] == [number]
    assert heads == [place % 8 for place in range(len(heads))]


@pytest.mark.spec("SPL-27", "PKD-23")
@every_kind
@pytest.mark.parametrize("start", [0, 5, 65_533])
def test_the_last_of_a_batch_stands_for_all_of_it(kind: dict[str, Any], start: int):
    rig = Rig(8, **kind, in_order=True, start=start)
    rig.device._next_descriptor = 0
    chains = post(rig, range(6))
    rig.device.batching = True
    for chain in chains[:4]:
        rig.device.push(chain, 3)
    assert not rig.queue.pending(), "nothing is written before the batch ends"
    rig.device.flush()
    assert rig.queue.pending()
    # What was skipped was used in full; the last has the length that the device gave.
    assert [(done.cookie, done.written) for done in rig.queue.reap()] == [
        *((number, room_of(number)) for number in range(3)),
        (3, 3),
    ]
    assert not rig.queue.pending() and rig.queue.in_flight == 2
    rig.device.batching = False
    for chain in chains[4:]:
        rig.device.push(chain, 1)
    assert [(done.cookie, done.written) for done in rig.queue.reap()] == [(4, 1), (5, 1)]
    assert rig.queue.free == 8


@pytest.mark.spec("SPL-27", "PKD-23")
@every_kind
def test_a_limit_may_end_inside_a_batch(kind: dict[str, Any]):
    rig = Rig(8, **kind, in_order=True)
    rig.device.batching = True
    for chain in post(rig, range(8)):
        rig.device.push(chain, 2)
    rig.device.flush()
    found: list[int] = []
    while rig.queue.pending():
        more = rig.queue.reap(3)
        assert 0 < len(more) <= 3
        found += [done.cookie for done in more]
    assert found == list(range(8)) and rig.queue.free == 8


@pytest.mark.fault(41)
@every_kind
def test_out_of_order_is_a_lie_unless_it_is_a_batch(kind: dict[str, Any]):
    rig = Rig(8, **kind, in_order=True)
    first, second = post(rig, range(2))
    rig.device.push(first, 0)
    assert [done.cookie for done in rig.queue.reap()] == [0]
    rig.device.lies.used_id = lambda ident: first.head
    rig.device.push(second, 0)
    corrupt(rig, first.head)


@pytest.mark.fault(29)
@both
@pytest.mark.parametrize("in_order", [False, True])
def test_what_was_added_and_not_shown_cannot_have_been_used(format: str, in_order: bool):
    hidden = post(Rig(8, format=format, in_order=in_order), range(3))[2].head
    rig = Rig(8, format=format, in_order=in_order)
    first, _ = post(rig, range(2))
    rig.queue.add((), [(A, 10)], 2)
    rig.device.lies.used_id = lambda ident: hidden
    rig.device.push(first, 0)
    corrupt(rig, hidden)


def test_a_split_index_that_falls_short_of_the_chain_named_is_a_lie():
    rig = Rig(8, in_order=True)
    post(rig, range(4))
    rig.device.write_used_element(0, 2, 0)
    rig.device.write_used_idx(2)  # the chain named is the third
    corrupt(rig, 2)


@both
def test_a_length_beyond_the_room_of_the_last(format: str):
    rig = Rig(8, format=format, in_order=True)
    rig.device.batching = True
    for chain in post(rig, range(3)):
        rig.device.push(chain, 1000)
    rig.device.flush()
    corrupt(rig, 1000)


@every_kind
@pytest.mark.parametrize("size", [1, 2, 16])
def test_soak_with_random_batches(kind: dict[str, Any], size: int):
    rig = Rig(size, **kind, in_order=True)
    rng = random.Random(size)
    number = done = 0
    waiting: list[Any] = []
    rig.device.batching = True
    while done < 500:
        try:
            for _ in range(rng.randrange(size + 1)):
                rig.queue.add((), [(A, room_of(number))] * rng.randrange(1, min(4, size) + 1), number)
                number += 1
        except QueueFull:
            pass
        rig.queue.publish()
        waiting += rig.device.pop_all()
        batch, waiting = waiting[: 1 + len(waiting) // 2], waiting[1 + len(waiting) // 2 :]
        for chain in batch:
            rig.device.push(chain, chain.room)
        rig.device.flush()
        for completion in rig.queue.reap():
            assert completion.cookie == done and completion.written % room_of(done) == 0
            done += 1


class _CtrlC(BaseException):
    """What a signal handler of the caller's raises."""


@both
def test_what_a_signal_handler_raises_while_one_is_taken_back_leaves_the_books_right(
    format: str, monkeypatch: pytest.MonkeyPatch
):
    """Python looks for signals after a call; the chain is counted by then, and the next ones come as ever."""
    rig = Rig(8, format=format, in_order=True)
    for chain in post(rig, range(3)):
        rig.device.push(chain, 3)
    queue: Any = rig.queue
    name, plain = ("_free", deque) if format == "split" else ("_ids", list)

    class Interrupted(plain):  # type: ignore[misc, valid-type]
        def extendleft(self, items: Any) -> None:
            super().extendleft(items)
            raise _CtrlC

        def append(self, item: Any) -> None:
            super().append(item)
            raise _CtrlC

    with monkeypatch.context() as patch:
        patch.setattr(queue, name, Interrupted(getattr(queue, name)))
        with pytest.raises(_CtrlC):
            queue.reap()
        given = getattr(queue, name)
    setattr(queue, name, plain(given))
    assert (queue.reaped, queue.in_flight, queue.cookies(), queue.free) == (1, 2, [1, 2], 6)
    assert queue.reap() == [(1, 3), (2, 3)]
    assert queue.free == 8
