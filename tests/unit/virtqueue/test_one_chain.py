"""One chain at a time: ``send`` does what ``add`` and ``publish`` do, ``take`` what ``reap`` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.ring_rigs import A, Rig, both, every_kind, name_of, rigs, traced
from uvirtio.errors import BadChain, Closed, DeviceBroken, QueueFull, RingCorruption, UsageError

KINDS = [*rigs(), {"format": "split", "in_order": True}, {"format": "packed", "in_order": True, "event_idx": True}]
any_kind = pytest.mark.parametrize("kind", KINDS, ids=name_of)


@any_kind
@pytest.mark.parametrize("made", [tuple, list])
@pytest.mark.parametrize(("reads", "writes"), [(0, 1), (1, 0), (1, 2), (2, 3)])
@pytest.mark.parametrize("on", [True, False])
def test_they_do_what_the_others_do(kind: dict[str, Any], made: Any, reads: int, writes: int, on: bool):
    """Held against a ring of the other calls: descriptors, indices, event words, kicks, fences, books."""
    here, there = Rig(8, start=65_530, **kind), Rig(8, start=65_530, **kind)
    readable = made((A + 4096 * number, 16) for number in range(reads))
    writable = made((A + 4096 * number, 32) for number in range(8, 8 + writes))
    for rig in (here, there):
        rig.queue.want_interrupts(on)
    for number in range(20):
        entry = (readable, writable) if number % 5 else (tuple(readable), tuple(writable))  # not held
        for rig in (here, there):
            rig.fences = 0
            rig.device.ask_for_kicks(number % 3 > 0)
        there.queue.add(*entry, number)
        assert here.queue.send(*entry, number) is there.queue.publish()
        assert (here.visible(), here.fences) == (there.visible(), there.fences)
        assert here.queue.cookies() == [number] and here.queue.in_flight == 1
        assert here.queue.take() is None and here.queue.take(3) is None
        written = min(32 * writes, number)
        for rig in (here, there):
            [chain] = rig.device.pop_all()
            assert [part.length for part in chain.elements] == [16] * reads + [32] * writes
            rig.device.push(chain, written)
        assert [here.queue.take(1 + number % 3)] == there.queue.reap()
        assert (here.visible(), here.fences) == (there.visible(), there.fences)
        assert (here.queue.free, here.queue.in_flight, here.queue.cookies()) == (8, 0, [])
    here.dma.memory.assert_clean()


@any_kind
def test_of_several_used_chains_one_is_taken_at_a_time(kind: dict[str, Any]):
    rig = Rig(**kind)
    for chain in rig.out(*range(5)):
        rig.device.push(chain, 7)
    assert [rig.queue.take() for _ in range(6)] == [*((number, 7) for number in range(5)), None]


@any_kind
def test_others_that_were_added_before_are_shown_with_it(kind: dict[str, Any]):
    rig = Rig(**kind)
    entry = (), ((A, 8),)
    rig.queue.add(*entry, 0)
    assert rig.queue.send(*entry, 1) and rig.queue.published == 2
    for chain in rig.device.pop_all():
        rig.device.push(chain, 8)
    assert rig.queue.reap() == [(0, 8), (1, 8)]
    rig.device.ask_for_kicks()
    assert rig.queue.send(*entry, 2)


@every_kind
def test_what_cannot_be_added_is_not_sent(kind: dict[str, Any]):
    rig = Rig(4, **kind)
    before = rig.visible()
    with pytest.raises(BadChain):
        rig.queue.send((), (), None)
    assert rig.visible() == before
    for number in range(4):
        rig.queue.send((), ((A, 8),), number)
    with pytest.raises(QueueFull):
        rig.queue.send((), ((A, 8),), 4)
    assert rig.queue.cookies() == [0, 1, 2, 3]


# --- a device that lies -----------------------------------------------------------------------------------------


def _dead(rig: Rig) -> RingCorruption:
    with pytest.raises(RingCorruption) as caught:
        rig.queue.take(3)
    assert caught.value.expected and caught.value.remedy and rig.queue.broken
    entry = (), ((A, 64),)
    for call in (rig.queue.take, lambda: rig.queue.send(*entry, None), rig.queue.reap):
        with pytest.raises(DeviceBroken):
            call()
    rig.dma.memory.assert_clean()
    return caught.value


@pytest.mark.fault(28, 29)
@every_kind
@pytest.mark.parametrize("wrong", [1, 7, 8, 0x7FFF])
def test_an_id_that_is_not_in_flight(kind: dict[str, Any], wrong: int):
    rig = Rig(**kind)
    [chain] = rig.out("c")
    rig.device.lies.used_id = lambda head: head + wrong
    rig.device.push(chain, 0)
    assert _dead(rig).about == "used-id"
    assert rig.queue.abandon() == ["c"]


@pytest.mark.fault(29)
@every_kind
def test_an_id_that_was_not_shown_yet(kind: dict[str, Any]):
    rig = Rig(**kind)
    [chain] = rig.out("c")
    heads = {chain.head}
    rig.queue.add((), [(A, 64)], "hidden")
    [other] = [number for number, entry in enumerate(rig.queue._out) if entry is not None and number not in heads]
    rig.device.lies.used_id = lambda _: other
    rig.device.push(chain, 0)
    assert _dead(rig).about == "used-id"


@pytest.mark.fault(32)
@pytest.mark.parametrize("kind", rigs("split"), ids=name_of)
@pytest.mark.parametrize(("out", "told"), [(0, 1), (1, 2), (1, 0xFFFF), (2, 0x8000)])
def test_an_index_that_is_out_of_range(kind: dict[str, Any], out: int, told: int):
    rig = Rig(**kind)
    rig.out(*range(out))
    rig.device.write_used_idx(told)
    assert _dead(rig).about == "used-idx"


@pytest.mark.fault(34)
@any_kind
def test_more_written_than_there_was_room(kind: dict[str, Any]):
    rig = Rig(**kind)
    rig.device.push(rig.out("c", room=64)[0], 65)
    assert _dead(rig).about == "used-len"
    rig = Rig(clamp=True, **kind)
    rig.device.push(rig.out("c", room=64)[0], 65)
    assert rig.queue.take() == ("c", 64) and rig.queue.findings == {"used-length-clamped": 1}


@pytest.mark.fault(30)
@every_kind
def test_the_same_one_twice(kind: dict[str, Any]):
    rig = Rig(**kind)
    first, second = rig.out(1, 2)
    rig.device.push(first, 0)
    assert rig.queue.take() == (1, 0)
    rig.device.lies.used_id = lambda _: first.head
    rig.device.push(second, 0)
    assert _dead(rig).about == "used-id"


class _Shown:
    """Words of the device's: it shows ``first`` at the first look, and then what is there."""

    def __init__(self, words: Any, first: int) -> None:
        self.words, self.first = words, [first]

    def __getitem__(self, place: int) -> int:
        return self.first.pop() if self.first else self.words[place]


@pytest.mark.fault(32)
@pytest.mark.parametrize("first", [2, 0x8000])
@pytest.mark.parametrize("in_order", [False, True])
def test_an_index_that_is_taken_back_after_a_look(first: int, in_order: bool):
    """One that is out of range breaks the queue, whatever it is by then; with IN_ORDER it is looked at again."""
    rig = Rig(in_order=in_order)
    [chain] = rig.out("c")
    queue = rig.queue
    queue._used = _Shown(queue._used, first)
    if not in_order:
        assert _dead(rig).about == "used-idx"
    else:
        assert queue.take() is None
        rig.device.push(chain, 8)
        assert queue.take() == ("c", 8)


@pytest.mark.fault(32)
def test_flags_that_are_taken_back_after_a_look():
    rig = Rig(format="packed")
    [chain] = rig.out("c")
    queue = rig.queue
    shown = iter([True])
    look = queue._is_used
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(queue), "_is_used", lambda _, slot: next(shown, False) or look(slot))
        assert queue.take() is None
    rig.device.push(chain, 8)
    assert queue.take() == ("c", 8)


# --- order, and the end -----------------------------------------------------------------------------------------


def test_the_index_is_loaded_before_the_element_and_stored_after_the_rest():
    rig = Rig()
    entry = (), ((A, 8),)
    rig.queue.send(*entry, 0)
    rig.device.push(rig.device.pop_all()[0], 8)
    assert rig.queue.take() == (0, 8)
    trace = traced(rig, weak=True)
    rig.queue.send(*entry, 1)  # the descriptors hold it
    assert [one[:2] for one in trace] == [
        ("store", "_ring"),
        ("fence", "order"),
        ("store", "_avail"),
        ("fence", "full"),
        ("load", "_used"),
    ]
    rig.device.push(rig.device.pop_all()[0], 8)
    trace.clear()
    assert rig.queue.take() == (1, 8)
    assert [one[:2] for one in trace] == [
        ("load", "_used"),
        ("fence", "order"),
        ("load", "_elements"),
        ("load", "_elements"),
    ]


@both
def test_where_no_single_chain_is_taken_any_more(format: str):
    entry = (), ((A, 8),)

    def both_fail(rig: Rig, error: type[Exception]) -> None:
        calls: list[Callable[[], Any]] = [rig.queue.take, lambda: rig.queue.send(*entry, 0)]
        for call in calls:
            with pytest.raises(error):
                call()

    rig = Rig(format=format)
    rig.queue.set_fixed_slots([entry])
    both_fail(rig, UsageError)
    rig = Rig(format=format)
    rig.queue.send(*entry, 0)
    rig.device.push(rig.device.pop_all()[0], 8)
    rig.queue.take()
    rig.queue.abandon()
    both_fail(rig, DeviceBroken)
    rig.queue.close()
    both_fail(rig, Closed)
