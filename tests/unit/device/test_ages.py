"""How long chains are in flight: noted when they are published, in both formats, with and without fixed slots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from uvirtio.device import Device, QueueSpec
from uvirtio.device.evidence import of_queue
from uvirtio.device.queue import Queue
from uvirtio.evidence import collect
from uvirtio.evidence.difference import compare
from uvirtio.memory.clock import HostClock
from uvirtio.opening import identify
from uvirtio.scripted import ScriptedDevice
from uvirtio.scripted.model import Model
from uvirtio.scripted.ring import Chain
from uvirtio.spec import features as f
from uvirtio.spec import rng

SIZE = 8
FORMATS = pytest.mark.parametrize("ring", [f.VERSION_1, f.RING_PACKED], ids=["split", "packed"])


class Holding(Model):
    """Keeps every chain until the test gives it back."""

    device_id = rng.TYPE
    queue_sizes = (SIZE,)

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Chain] = []

    def handle(self, queue: int, chain: Chain) -> int | None:
        self.kept.append(chain)
        return None

    def give(self, place: int = 0) -> None:
        """Return one of the kept chains, by its place among them."""
        self.device.complete(0, self.kept.pop(place))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in its one element, which stands still until a test moves it."""
    made = [1000.0]
    monkeypatch.setattr(HostClock, "monotonic", staticmethod(lambda: made[0]))
    return made


@contextmanager
def held(ring: int) -> Iterator[tuple[Device, Queue, Holding]]:
    """A started device that keeps what it gets."""
    model = Holding()
    scripted = ScriptedDevice(model, features=f.mask(f.VERSION_1, ring))
    with identify(scripted.address, scripted) as device:
        device.start(wanted=0, queues=[QueueSpec(0, "requestq", size=SIZE)])
        yield device, device.queues[0], model
    scripted.assert_left()


def added(device: Device, queue: Queue, count: int) -> None:
    for _ in range(count):
        block = device.dma.alloc(64)
        queue.add((), block.segments(0, 64), block)


@FORMATS
def test_each_chain_is_as_old_as_its_publication(ring: int, now: list[float]) -> None:
    with held(ring) as (device, queue, model):
        assert queue.ages() == []
        added(device, queue, 2)
        assert queue.ages() == [], "not published yet"
        queue.kick()
        now[0] += 5
        added(device, queue, 1)
        queue.kick()
        now[0] += 1
        queue.kick()  # nothing new: no chain gets younger
        assert queue.ages() == [(0, 6.0), (1, 6.0), (2, 1.0)]
        model.give(1)
        queue.reap()
        assert queue.ages() == [(0, 6.0), (2, 1.0)], "in whichever order they come back"


@FORMATS
@pytest.mark.parametrize("fixed", [False, True], ids=["chains", "slots"])
def test_one_that_never_comes_back_stays_known_while_others_pass_it(
    ring: int, fixed: bool, now: list[float]
) -> None:
    with held(ring) as (device, queue, model):
        if fixed:
            blocks = [device.dma.alloc(64) for _ in range(SIZE)]
            queue.set_fixed([((), block.segments(0, 64)) for block in blocks])
        for turn in range(500):
            if fixed:
                queue.submit([0] if turn == 0 else [1 + turn % 3])
            else:
                added(device, queue, 1)
                queue.kick()
            now[0] += 1
            if turn:
                model.give(1)
                assert len(queue.reap_slots() if fixed else queue.reap()) == 1
        [(number, age)] = queue.ages()
        # A slot that was overtaken by a whole lap of the ring has lost its number: then it is at least so old.
        assert (number, age) == (0, 500.0) if not fixed else (number < 500 and SIZE <= age <= 500.0)
        assert len(queue._marks) <= 2 * 64 + 1, "times of chains that came back are dropped"


@FORMATS
def test_a_dump_has_the_ages_and_a_comparison_leaves_them_out(ring: int, now: list[float]) -> None:
    with held(ring) as (device, queue, model):
        added(device, queue, 2)
        queue.kick()
        now[0] += 0.25
        first = collect.of_open(device, live=True)
        now[0] += 2
        second = collect.of_open(device, live=True)
        ages = [one["queues"][0]["ring"]["ages"] for one in (first, second)]
        assert ages[0] == [{"chain": 0, "seconds": 0.25}, {"chain": 1, "seconds": 0.25}]
        assert [each["seconds"] for each in ages[1]] == [2.25, 2.25]
        assert compare(first, second).same
        model.give()
        queue.reap()
        assert not compare(first, collect.of_open(device, live=True)).same, "what is in flight does count"
        assert str(of_queue(queue)).count("2.25") == 0, "an error is the same in a replay"
    # What was out when the device was left is still told.
    [left] = device.queues_left
    assert (left.published, left.in_flight, left.ages) == (2, 1, ((1, 2.25),))
