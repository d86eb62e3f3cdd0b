"""Reads without a kick: they are prepared one by one, and go into the ring together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.unit.device.test_interrupted_looks import CtrlC, ended_at
from tests.unit.drivers.test_blk import driven, fill
from uvirtio.drivers import burst, requests
from uvirtio.drivers.blk import Blk, queues
from uvirtio.drivers.blk.queues import RequestQueues
from uvirtio.drivers.blk.request import Slot
from uvirtio.errors import BadSize, BeyondEnd, Closed, DeviceBroken, DeviceGone, NotSupported, UvirtioError
from uvirtio.scripted import Disk, ScriptedDevice
from uvirtio.spec import features as f
from uvirtio.trace import replayed


def later(blk: Blk, *sectors: int) -> list[Any]:
    return [blk.submit_read(sector, 1, kick=False) for sector in sectors]


def test_they_are_in_the_ring_before_any_other_and_before_others_come_back():
    model = Disk()
    data = fill(model)
    with driven(model, allow_write=True) as (_, device, blk):
        ring = device.queues[0].ring
        requestq = blk._requests._free[0]
        out = later(blk, 0, 1, 2)
        assert (len(requestq.laid), ring.published, blk.in_flight) == (3, 0, 3)
        out.append(blk.submit_write(9, bytes(512), kick=False))
        assert not requestq.laid
        out += later(blk, 3)
        assert blk.poll() == 0 and not requestq.laid and ring.published == 0 and ring.free == ring.size - 5
        out += later(blk, 4)
        out.append(blk.submit_read(5, 1))  # with a kick, which is for all
        assert all(request.done for request in out) or blk.poll() == 7
        assert [request.sector for request in model.requests] == [0, 1, 2, 9, 3, 4, 5]
        assert [request.result() for request in out if request.sector != 9] == [
            data[at * 512 : at * 512 + 512] for at in range(6)
        ]


def test_with_several_queues_they_are_not_shown_either_while_there_are_slots():
    """Only who has to wait for a slot has the device told of the others."""
    model = Disk(features=f.mask(f.Blk.MQ), queues=2)
    with driven(model, vectors=3, queues=2, depth=2) as (_, device, blk):
        for number in range(4):
            later(blk, number)
            assert not any(queue.kicks or queue.ring.published for queue in device.queues.values())
        later(blk, 4)
        assert sum(queue.kicks for queue in device.queues.values()) == 2
        blk.wait()


def test_the_eighth_request_of_any_kind_shows_the_others():
    with driven(Disk(), allow_write=True) as (_, device, blk):
        ring = device.queues[0].ring
        for number in range(7):
            blk.submit_write(number, bytes(512), kick=False)
            assert ring.published == 0
        blk.submit_write(7, bytes(512), kick=False)
        assert ring.published == 8


def test_the_configuration_is_read_when_it_changed_and_only_then(monkeypatch: pytest.MonkeyPatch):
    model = Disk()
    with driven(model) as (_, device, blk):
        reads: list[int] = []
        read = device.transport.read_config
        monkeypatch.setattr(device.transport, "read_config", lambda *where: (reads.append(1), read(*where))[1])
        assert blk.config.capacity == 2048 and not reads
        model.grow(4096)
        assert blk.config.capacity == 2048 and not reads, "no one has looked at the events yet"
        device.service()
        assert blk.config.capacity == 4096 and reads
        reads.clear()
        assert blk.config.capacity == 4096 and not reads


LOOK = 16
"""Waits between two looks at the other events; 256 take long."""


def read_all(blk: Blk, out: int | None) -> None:
    for _ in blk.burst(1, depth=32).read([0] * (LOOK * 18), out=out):
        pass


def post_and_take(blk: Blk) -> None:
    pair = blk.burst(1, depth=2)
    for _ in range(LOOK):
        pair.post(pair.slots, [0, 1])
        while pair.in_flight:
            pair.take()


def one_by_one(blk: Blk) -> None:
    for _ in range(LOOK):
        blk.read(0, 1)


def many(blk: Blk) -> None:
    for _ in range(LOOK):
        blk.wait(later(blk, 0, 1))


def slots(blk: Blk) -> None:
    """Each has its answer when the next one wants its slot."""
    for _ in range(LOOK + 1):
        blk.submit_read(0, 1)
    blk.wait()


WAYS: dict[str, tuple[dict[str, Any], Callable[[Blk], None]]] = {
    "read": ({}, one_by_one),
    "several queues": ({"queues": 2}, one_by_one),
    "wait": ({}, many),
    "slots": ({"depth": 1}, slots),
    "burst": ({}, lambda blk: read_all(blk, None)),
    "burst, few out": ({}, lambda blk: read_all(blk, 2)),
    "post and take": ({}, post_and_take),
}


@pytest.mark.parametrize("way", WAYS)
def test_whoever_looks_at_the_rings_alone_still_learns_what_the_host_changes(
    way: str, monkeypatch: pytest.MonkeyPatch
):
    """Such waits do not sleep, so nothing wakes them: now and then one looks at the other events."""
    options, busy = WAYS[way]
    for module in (burst, queues, requests):
        monkeypatch.setattr(module, "LOOK", LOOK)
    model = Disk(features=f.mask(f.Blk.MQ), queues=2)
    with driven(model, vectors=3, **options) as (_, device, blk):
        device.service()
        model.grow(4096)
        busy(blk)
        assert device.counters.config_changes == 1 and blk.capacity == 4096


def test_one_buffer_is_of_one_request_whatever_was_in_it():
    """Short after long, reads after writes: a slot has the shape of its request, and nothing of an earlier one."""
    model = Disk()
    data = fill(model)
    with driven(model, depth=2, allow_write=True) as (_, _, blk):
        for number, sectors in enumerate((1, 8, 1, 3, 3, 2, 64, 1)):
            out = [blk.submit_read(number, sectors, kick=False), blk.submit_read(0, 1, kick=False)]
            blk.wait()
            assert out[0].result() == data[number * 512 : (number + sectors) * 512]
            assert out[1].result() == data[:512]
            blk.write(100, data[:1024])
        assert not blk.findings


def test_leaving_waits_for_them():
    model = Disk()
    data = fill(model)
    with driven(model) as (_, _, blk):
        out = later(blk, 3, 4)
    assert [request.result() for request in out] == [data[1536:2048], data[2048:2560]]


@pytest.mark.parametrize(
    ("sector", "sectors", "error"),
    [
        (-1, 1, BadSize),
        (0, 0, BadSize),
        (0, -1, BadSize),
        (2047, 2, BeyondEnd),
        (2048, 1, BeyondEnd),
        (0, 65, BadSize),
    ],
)
def test_what_cannot_be_is_not_submitted(sector: int, sectors: int, error: type[UvirtioError]):
    with driven(Disk(sectors=2048)) as (_, _, blk):
        with pytest.raises(error):
            blk.submit_read(sector, sectors, kick=False)
        assert not blk.in_flight


def test_after_the_configuration_changed_it_is_read_first():
    model = Disk(sectors=100)
    with driven(model) as (_, _, blk):
        model.grow(50)
        assert blk.wait_for_change(timeout=5)
        with pytest.raises(BeyondEnd, match="has no sector 50"):
            later(blk, 50)


@pytest.mark.parametrize("broken", [False, True])
def test_on_a_device_that_is_left_or_broken_there_are_none(broken: bool):
    scripted = ScriptedDevice(Disk())
    with uvirtio.open(scripted) as device, Blk(device) as blk:
        if broken:
            device._break(BadSize("it is over"))
        else:
            blk.close()
        with pytest.raises(DeviceBroken if broken else Closed):
            later(blk, 0)
        assert not blk._requests._free[0].laid
        if not broken:
            with Blk(device), pytest.raises(Closed):
                later(blk, 0)


def test_a_device_that_is_gone_when_it_is_notified_of_the_eighth_is_broken():
    scripted = ScriptedDevice(Disk())
    with uvirtio.open(scripted) as device, Blk(device) as blk:
        out = later(blk, *range(7))

        def ring(_value: int) -> None:
            raise DeviceGone("it was pulled out")

        device.queues[0]._doorbell.ring = ring  # type: ignore[method-assign]
        with pytest.raises(DeviceGone):
            later(blk, 7)
        assert isinstance(device.broken, DeviceGone) and not any(request.done for request in out)
        with pytest.raises(DeviceGone, match="after an earlier error"):
            later(blk, 8)


def test_in_a_child_there_are_none():
    with driven(Disk()) as (_, device, blk):
        made_here, pid = device._made_here, device._owner_pid
        made_here[0], device._owner_pid = 0, os.getpid() + 1
        with pytest.raises(NotSupported, match="another process"):
            later(blk, 0)
        made_here[0], device._owner_pid = 1, pid
        assert not blk.in_flight


def test_an_exception_at_any_line_loses_no_slot_and_no_request():
    functions: list[Callable[..., Any]] = [
        RequestQueues.read_later,
        RequestQueues._show,
        Slot.shape,
        Blk.submit_read,
    ]
    model = Disk()
    data = fill(model)
    with driven(model, depth=16) as (_, _, blk):
        requestq = blk._requests._free[0]
        for line in range(1, 400):
            sectors = 1 + line % 2
            with ended_at(line, functions) as came:
                try:
                    for number in range(9):
                        blk.submit_read(number, sectors, kick=False)
                except CtrlC:
                    assert came()
            assert len(requestq.free) + blk.in_flight == 16 == len({*requestq.free}) + blk.in_flight
            blk.wait()
            assert len({*requestq.free}) == len(requestq.free) == 16
            assert blk.submit_read(7, sectors, kick=False).result() == data[7 * 512 : (7 + sectors) * 512]
            if not came():
                break
        assert 100 < line < 399 and not blk.findings


def test_they_are_in_a_record_in_their_order(tmp_path: Path):
    def read(device: uvirtio.Device) -> list[bytes]:
        with Blk(device) as blk:
            out = later(blk, 3, 1, 2)
            blk.wait()
            return [request.result() for request in out]

    record = tmp_path / "run.jsonl"
    with uvirtio.open("scripted:blk", record=record) as device:
        told = read(device)
    chains = [line for line in record.read_text().splitlines() if '"op":"chain"' in line]
    assert ['"way":"out"' in line for line in chains] == [True] * 3 + [False] * 3
    with uvirtio.open(replayed(record)) as device:
        assert read(device) == told
