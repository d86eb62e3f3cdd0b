"""Bursts of a disk's requests (the batch path) on a scripted disk: as strict as single requests, lies and all."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.drivers.test_blk import ALL, Enough, driven, fill
from uvirtio import opening
from uvirtio.drivers.blk import Blk
from uvirtio.errors import (
    BadSize,
    BeyondEnd,
    BlkIoError,
    BlkUnsupported,
    Closed,
    DeviceBroken,
    DeviceTimeout,
    ProtocolError,
    QueueFull,
    RingCorruption,
    UsageError,
    WriteRefused,
)
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.blk import FEATURES, Disk, Shuffling
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import features as f
from uvirtio.spec.blk import SECTOR_SIZE, Status
from uvirtio.spec.blk import Request as Kind

KIB4 = 8  # sectors


def at(data: bytes | bytearray, sector: int, sectors: int = KIB4) -> bytes:
    return bytes(data[sector * SECTOR_SIZE : (sector + sectors) * SECTOR_SIZE])


@pytest.mark.spec("BLK-13", "BLK-L05")
@pytest.mark.parametrize(
    "features", [None, FEATURES | f.mask(f.VERSION_1), ALL | f.mask(f.VERSION_1, f.EVENT_IDX)]
)
@pytest.mark.parametrize("interrupts", [tuple(InterruptMode), [InterruptMode.POLLING]])
def test_what_is_read_is_what_is_there(features: int | None, interrupts: Any):
    model = Disk(sectors=4096, features=ALL)
    data = fill(model)
    with driven(model, features=features, interrupts=interrupts) as (_, device, blk):
        burst = blk.burst(KIB4, depth=16)
        sectors = [random.randrange(4096 - KIB4) for _ in range(1000)]
        found = list(burst.read(sectors))
        assert sorted(sector for sector, _ in found) == sorted(sectors)
        assert all(content == at(data, sector) for sector, content in found)
        assert burst.in_flight == 0
        assert device.queues[0].kicks < 200
    assert all(seen.elements[0] == (16, False) and seen.elements[-1] == (1, True) for seen in model.requests)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 16),
    depth=st.integers(1, 20),
    out=st.integers(1, 20),
    count=st.integers(0, 100),
    indirect=st.booleans(),
)
def test_no_more_are_out_than_were_asked_for(seed: int, depth: int, out: int, count: int, indirect: bool) -> None:
    model, most = Shuffling(seed, sectors=1024), 0
    data = fill(model)
    features = FEATURES | f.mask(f.VERSION_1, f.EVENT_IDX) | (f.mask(f.INDIRECT_DESC) if indirect else 0)
    with driven(model, features=features, depth=depth, timeout=1.0) as (_, _, blk):
        burst = blk.burst(1)
        if out > depth:
            with pytest.raises(UsageError, match="more requests in flight"):
                next(burst.read([0], out=out))
            return
        look = burst._slots.relay, burst._slots.ready

        def then(number: int, *arguments: Any) -> Any:
            nonlocal most
            most = max(most, len(model.kept))
            model.let_go()  # when it is looked at, some are complete
            return look[number](*arguments)

        burst._slots.relay, burst._slots.ready = partial(then, 0), partial(then, 1)  # type: ignore[method-assign]
        sectors = [model.random.randrange(1024) for _ in range(count)]
        found = list(burst.read(sectors, out=out))
        assert sorted(sector for sector, _ in found) == sorted(sectors)
        assert all(content == at(data, sector, 1) for sector, content in found)
        assert burst.in_flight == 0 and most == min(count, out)
    assert len(model.requests) == count


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("indirect", [False, True])
def test_a_disk_that_answers_at_any_moment_in_any_order_and_in_order_again(seed: int, indirect: bool) -> None:
    """Also between the look that sends others and the one that takes what has come: none is out, and many laid."""
    model = Shuffling(seed, sectors=1024, queue_size=16 if indirect else 64)
    data, rng, shuffled = fill(model), random.Random(seed), False
    features = FEATURES | f.mask(f.VERSION_1, f.EVENT_IDX) | (f.mask(f.INDIRECT_DESC) if indirect else 0)
    with driven(model, features=features, depth=16, timeout=1.0) as (_, _, blk):
        burst = blk.burst(1)
        slots = burst._slots
        look = {"relay": slots.relay, "ready": slots.ready, "reap": slots.reap}

        def then(name: str, *arguments: Any) -> Any:
            nonlocal shuffled
            shuffled ^= rng.random() < 0.02
            if shuffled:
                rng.shuffle(model.kept)
            for _ in range(rng.randint(int(name != "reap"), len(model.kept)) if model.kept else 0):
                model.device.complete(*model.kept.pop(0))
            return look[name](*arguments)

        for name in look:
            setattr(slots, name, partial(then, name))
        for _ in range(60):
            sectors = [rng.randrange(1024) for _ in range(rng.randint(1, 60))]
            found = list(burst.read(sectors, out=rng.choice((2, 2, 3))))
            assert sorted(sector for sector, _ in found) == sorted(sectors)
            assert all(content == at(data, sector, 1) for sector, content in found)


def test_one_at_a_time_from_a_disk_that_is_asked_before_its_answer_is_looked_at():
    model = Disk()
    data = fill(model)
    model.script.extend([None, Status.IOERR])
    with driven(model, depth=4) as (_, device, blk):
        burst = blk.burst(1)
        with pytest.raises(BlkIoError, match="IN of 1 sectors at 1"):
            list(burst.read(range(10), out=1))
        assert burst.in_flight == 0 and device.broken is None
        for sector, content in burst.read(range(100), out=2):
            assert content == at(data, sector, 1)
            if sector == 7:
                break
        assert burst.in_flight == 0
        assert dict(burst.read([7, 9], out=1)) == {7: at(data, 7, 1), 9: at(data, 9, 1)}


@pytest.mark.parametrize(("depth", "out", "together"), [(64, 1, 32), (64, 7, 32), (64, 8, 8), (16, 1, 8)])
def test_a_reader_with_few_out_stops_seldom_for_a_delivery(depth: int, out: int, together: int):
    """A device that has answered all that is out goes to sleep, and waking it is dearer than a read."""
    model = Disk()
    data = fill(model)
    with driven(model, depth=depth) as (_, _, blk):
        burst, deliveries = blk.burst(1), []
        take = burst._take

        def taken() -> array[int]:
            deliveries.append(len(back := take()))
            return back

        burst._take = taken  # type: ignore[method-assign]
        assert dict(burst.read(range(640), out=out)) == {sector: at(data, sector, 1) for sector in range(640)}
    assert len(deliveries) <= 640 / together + 4 and min(deliveries) > 0, deliveries


def test_what_is_written_is_there():
    model = Disk()
    with driven(model, allow_write=True, depth=8) as (_, _, blk):
        burst = blk.burst(2, write=True)
        assert burst.count == 8 and list(burst.slots) == list(range(8))
        for slot in burst.slots:
            burst.fill(slot, bytes([slot + 1]) * 1024)
        burst.post(burst.slots, range(0, 16, 2))
        back = burst.wait()
        assert sorted(back) == list(range(8))
        assert model.content[: 16 * 512] == b"".join(bytes([slot + 1]) * 1024 for slot in range(8))
        with pytest.raises(BadSize, match="fill"):
            burst.fill(0, b"x")
        with pytest.raises(UsageError, match="writes"):
            burst.read([0])  # at the call
    assert {seen.type for seen in model.requests} == {Kind.OUT}


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 16),
    depth=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=30),
    indirect=st.booleans(),
)
def test_any_order_of_posts_and_answers(
    seed: int, depth: int, steps: list[tuple[int, bool]], indirect: bool
) -> None:
    model = Shuffling(seed, sectors=1024)
    data = fill(model)
    features = FEATURES | f.mask(f.VERSION_1, f.EVENT_IDX) | (f.mask(f.INDIRECT_DESC) if indirect else 0)
    with driven(model, features=features, depth=depth) as (_, _, blk):
        burst = blk.burst(1)
        idle, where = list(burst.slots), {}
        for count, shuffle in steps:
            if shuffle:
                model.random.shuffle(idle)
            now = array("H", idle[:count])
            idle = idle[count:]
            sectors = [model.random.randrange(1024) for _ in now]
            where.update(zip(now, sectors, strict=True))
            burst.post(now, sectors)
            model.let_go(0)
            back = burst.take()
            assert burst.contents(back) == [burst.content(slot) for slot in back]
            assert all(burst.content(slot) == at(data, where.pop(slot), 1) for slot in back)
            idle += back
            assert burst.in_flight == len(where) == depth - len(idle)
        while burst.in_flight:
            model.let_go()
            assert all(burst.content(slot) == at(data, where.pop(slot), 1) for slot in burst.wait())


@pytest.mark.spec("BLK-09", "CLN-01")
@pytest.mark.parametrize(
    ("slots", "sectors", "error"),
    [
        ([0], [1024], BeyondEnd),
        ([0, 1], [0, 1021], BeyondEnd),
        ([0], [-1], BadSize),
        ([0, 1], [-1, 0], BadSize),
        ([0, 1], [0, 1 << 64], BeyondEnd),
        ([0, 1], [0], UsageError),
        ([4], [0], UsageError),
        ([0, 0], [0, 0], UsageError),
        ([3], [0], UsageError),
        ([2, 3], [0, 0], UsageError),
        ([3, 0], [0, 0], UsageError),
    ],
)
def test_what_cannot_be_posted_changes_nothing(slots: list[int], sectors: list[int], error: type[Exception]):
    model = Disk(sectors=1024)
    data = fill(model)
    with driven(model, depth=4) as (scripted, device, blk):
        burst = blk.burst(4)
        scripted.auto = False
        burst.post(array("H", [3]), [8])  # is out
        with pytest.raises(error):
            burst.post(array("H", slots), sectors)
        assert burst.in_flight == 1 and device.broken is None
        scripted.auto = True
        scripted.run()
        assert list(burst.wait()) == [3]
        assert burst.content(3) == at(data, 8, 4)
    assert len(model.requests) == 1


def test_a_status_belongs_to_its_slot():
    model = Disk()
    model.script.extend([None, Status.IOERR, None, Status.UNSUPP])
    with driven(model, depth=4) as (_, device, blk):
        burst = blk.burst(1)
        burst.post(burst.slots[:3], [10, 11, 12])
        with pytest.raises(BlkIoError, match="IN of 1 sectors at 11"):
            burst.wait()
        assert list(burst.returned) == [0, 1, 2] and burst.in_flight == 0
        burst.post(burst.returned[1:2], [13])
        with pytest.raises(BlkUnsupported):
            burst.wait()
        burst.post(burst.slots, [0, 1, 2, 3])
        assert len(burst.wait()) == 4 and device.broken is None


@pytest.mark.parametrize("status", [3, 0xFE, None])
def test_what_is_no_status_ends_it(status: int | None):
    model = Disk()
    model.no_status = status is None
    model.script.extend([] if status is None else [status])
    with driven(model) as (_, _, blk):
        burst = blk.burst(1)
        burst.post(burst.slots[:2], [0, 1])
        with pytest.raises(ProtocolError, match="without a status"):
            burst.wait()
        with pytest.raises(DeviceBroken):
            burst.wait()


def test_an_ok_for_less_than_was_asked_for_is_not_believed():
    model = Disk()
    with driven(model) as (_, _, blk):
        burst = blk.burst(2)
        model.written = 513
        burst.post(burst.slots[:1], [0])
        with pytest.raises(ProtocolError, match="wrote less"):
            burst.wait()


def _too_long(scripted: ScriptedDevice) -> None:
    scripted.lies.used_len = lambda written: written + 1


def _wrong_id(scripted: ScriptedDevice) -> None:
    scripted.lies.used_id = lambda head: head ^ 8


def _high_bits(scripted: ScriptedDevice) -> None:
    scripted.lies.used_id = lambda head: head | 0x10000


def _twice(scripted: ScriptedDevice) -> None:
    scripted.lies.duplicate = True


def _jump(scripted: ScriptedDevice) -> None:
    scripted.lies.used_idx = lambda index: index + 100


@pytest.mark.parametrize("lie", [_too_long, _wrong_id, _high_bits, _twice, _jump])
@pytest.mark.parametrize("rounds", [0, 3])
def test_a_lie_about_the_ring_ends_it(lie: Callable[[ScriptedDevice], None], rounds: int):
    with driven(Disk(), depth=8) as (scripted, _, blk):
        burst = blk.burst(1)
        for _ in range(rounds):
            burst.post(burst.slots[:4], [0, 1, 2, 3])
            assert len(burst.wait()) == 4
        lie(scripted)
        with pytest.raises(RingCorruption):
            burst.post(burst.slots[:4], [0, 1, 2, 3])
            burst.wait()
        with pytest.raises(DeviceBroken):
            burst.take()


@pytest.mark.parametrize("lie", [_too_long, _wrong_id, _high_bits, _twice, _jump])
def test_a_lie_ends_a_reader_that_sends_ahead(lie: Callable[[ScriptedDevice], None]):
    with driven(Disk(), depth=8) as (scripted, _, blk):
        reader = blk.burst(1).read(range(100), out=2)
        for _ in range(20):
            next(reader)
        lie(scripted)
        with pytest.raises(RingCorruption):
            list(reader)


@pytest.mark.spec("CLN-01")
def test_an_interrupted_wait_and_one_that_comes_too_late():
    model = Disk()
    data = fill(model)
    with driven(model, timeout=0.05, depth=4) as (_, device, blk):
        burst = blk.burst(1)
        with pytest.raises(UsageError, match="no request is in flight"):
            burst.wait()
        model.hold = True
        burst.post(burst.slots[:2], [5, 6])
        device.interrupt(Enough())
        with pytest.raises(Enough):
            burst.wait()
        assert burst.in_flight == 2
        model.release([1, 0])
        assert list(burst.wait()) == [1, 0] and burst.content(1) == at(data, 6, 1)
        model.hold = True
        burst.post(burst.slots[:1], [0])
        with pytest.raises(DeviceTimeout):
            burst.wait()
        with pytest.raises(DeviceBroken):
            burst.take()


def test_a_reader_that_leaves_early_leaves_nothing_out():
    model = Disk()
    data = fill(model)
    with driven(model, depth=4) as (_, _, blk):
        burst = blk.burst(1)
        for sector, content in burst.read(range(100)):
            assert content == at(data, sector, 1)
            break
        assert burst.in_flight == 0
        assert dict(burst.read([7, 9])) == {7: at(data, 7, 1), 9: at(data, 9, 1)}
        assert list(burst.read([])) == []


def test_a_wait_that_has_seen_an_answer_neither_polls_on_nor_sleeps(monkeypatch: pytest.MonkeyPatch):
    model = Disk()
    with driven(model) as (_, _, blk):
        burst = blk.burst(1)
        model.hold = True
        burst.post(burst.slots[:2], [5, 6])
        monkeypatch.setattr(burst, "_sleep", lambda *_: pytest.fail("it sleeps"))
        relay, asked = burst._queue.relay, []

        def late(glances: int) -> int:
            asked.append(glances)
            if len(asked) == 3:
                model.release([0, 1])
            return relay(glances)

        monkeypatch.setattr(burst._queue, "relay", late)
        assert burst._await(30.0, 0.5) == 2 and len(asked) == 3


def test_leaving_a_burst_sleeps_with_interrupts(monkeypatch: pytest.MonkeyPatch):
    """They are suppressed while a burst looks at the ring, and enabled before each sleep."""
    model = Disk()
    with driven(model) as (_, device, blk):
        burst = blk.burst(1)
        model.hold = True
        burst.post(burst.slots[:2], [5, 6])
        wait, told = device.wait, []

        def answered(ready: Callable[[], bool], **how: Any) -> bool:
            model.release([0, 1])
            told.append(device.service())
            return wait(ready, **how)

        monkeypatch.setattr(device, "wait", answered)
        burst.settle(1)
        assert told == [True] and burst.in_flight == 0


def test_the_queue_is_the_bursts_and_comes_back_with_the_next_driver():
    model = Disk(features=ALL, queues=2)
    data = fill(model)
    scripted = ScriptedDevice(model)
    with opening.identify("0000:00:04.0", scripted) as device:
        with Blk(device, queues=2, depth=4) as blk:
            burst = blk.burst(1)
            assert blk.queue_count == 2
            burst.post(burst.slots[:1], [3])
            assert blk.read(0, 4) == data[:2048]  # by the other queue
            assert blk.submit_read(1, 1, queue=0).result() == at(data, 1, 1)
            with pytest.raises(UsageError, match="no such queue"):
                blk.submit_read(1, 1, queue=1)
            assert list(burst.wait()) == [0]
            second = blk.burst(1)
            for call in (lambda: blk.read(0, 1), lambda: blk.burst(1), blk.wait, blk.poll):
                with pytest.raises(UsageError, match="taken by bursts"):
                    call()
            assert [content for _, content in second.read([2])] == [at(data, 2, 1)]
        for call in (lambda: blk.burst(1), lambda: blk.read(0, 1)):
            with pytest.raises(Closed):
                call()
        with Blk(device) as again:
            assert again.read(0, 1) == data[:512]
    scripted.assert_left()
    assert {seen.queue for seen in model.requests} == {0, 1}


def test_what_a_burst_cannot_be():
    model = Disk(queue_size=16)
    with driven(model, features=FEATURES | f.mask(f.VERSION_1)) as (_, _, blk):
        with pytest.raises(WriteRefused):
            blk.burst(1, write=True)
        with pytest.raises(BadSize):
            blk.burst(0)
        with pytest.raises(QueueFull):
            blk.burst(1, depth=6)  # three descriptors each
        with pytest.raises(BadSize, match="one request"):
            blk.burst(200, depth=1)  # 25 pages that do not touch
        with pytest.raises(UsageError, match="no such queue"):
            blk.burst(1, queue=1)
        model.hold = True
        blk.submit_read(0, 1)
        with pytest.raises(UsageError, match="has requests in flight"):
            blk.burst(1)
        model.release()
        blk.wait()
        assert len(list(blk.burst(1, depth=5).read(range(9)))) == 9


def test_leaving_waits_for_what_is_out():
    model = Disk()
    with driven(model, allow_write=True) as (scripted, _, blk):
        burst = blk.burst(1, write=True)
        scripted.auto = False
        burst.fill(0, b"x" * 512)
        burst.post(burst.slots[:1], [0])
        scripted.auto = True
        scripted.run()
    assert model.content[:512] == b"x" * 512


@pytest.mark.spec("BLK-08")
def test_a_disk_that_shrinks_under_a_burst():
    model = Disk(sectors=100)
    with driven(model) as (_, _, blk):
        burst = blk.burst(1, depth=2)
        assert len(list(burst.read([99]))) == 1
        model.grow(50)
        for sector in [0] * 600:  # it looks now and then, also while it is never idle
            burst.post(burst.slots[:1], [sector])
            burst.wait()
        with pytest.raises(BeyondEnd):
            burst.post(burst.slots[:1], [99])


def test_a_burst_may_have_as_many_elements_as_the_device_accepts():
    for most in (8, 7):
        with driven(Disk(features=ALL, size_max=512, seg_max=most)) as (_, _, blk):
            if most == 8:
                assert [sector for sector, _ in blk.burst(KIB4, depth=2).read([0, 8])] == [0, 8]
            else:
                with pytest.raises(BadSize, match="more than the device accepts"):
                    blk.burst(KIB4, depth=2)


def test_a_burst_keeps_to_the_limits_of_its_own_queue():
    """Without a limit of the device, it is the ring that a request has to fit: 14 elements here, 62 there."""
    model = Disk(features=f.mask(f.Blk.MQ), queues=2)
    model.queue_sizes = (16, 64)
    with driven(model, queues=2, depth=1) as (_, _, blk):
        with pytest.raises(BadSize, match="one request"):
            blk.burst(200, queue=0)
        assert blk.burst(200, queue=1).count == 1
