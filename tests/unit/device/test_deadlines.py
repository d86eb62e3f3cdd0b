"""Each public call with a time-out ends by then, on a device that is silent or slow. The time is the device's own.

Nothing here waits: ``VirtualClock`` moves on where a wait would sleep, and by a microsecond where it is read. So
the figures are the same however busy the machine is.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from math import inf, nan
from typing import Any

import pytest

import uvirtio
from tests.support.deadlines import ELSEWHERE, ROWS, calls
from uvirtio import scripted
from uvirtio.drivers.mem import Response, State
from uvirtio.errors import DeviceTimeout, MemBusy, NetStalled, ProtocolError, UsageError
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.spec import features as f

SLACK = 0.1
"""Seconds that a call may take beyond its time-out: RESPONSE_LEAST, which ``follow`` gives to a step at least."""

READING = 0.001
"""Seconds that reading the clock takes, a thousand times."""

STEP = 0.08
"""Seconds after which a slow device answers one request: each in time, several not."""

PATIENCE = 5.0

ENDS = (DeviceTimeout, NetStalled, MemBusy)
"""How a call ends whose time is over; others return what there is."""


class _Poller:
    """A set of descriptors whose waits take the clock's time."""

    def __init__(self, clock: VirtualClock, real: Any, unit: float) -> None:
        self._clock, self._real, self._unit = clock, real, unit

    def register(self, *arguments: Any) -> object:
        return self._real.register(*arguments)

    def poll(self, timeout: float = -1, *_: Any) -> list[Any]:
        end = self._clock.now + (timeout * self._unit if timeout >= 0 else 1e6)
        while not (found := self._real.poll(0)) and self._clock.now < end:
            self._clock.advance(end)
        return list(found)

    def close(self) -> None:
        self._real.close()


class VirtualClock:
    """A clock that only waits move on. Satisfies ``Clock``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._number = count()

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now

    def at(self, seconds: float, do: Callable[[], object]) -> None:
        """Have something done in so many seconds."""
        self._due.append((self.now + seconds, next(self._number), do))

    def advance(self, end: float) -> None:
        """Move on to ``end``, or to what is due before."""
        first = min(self._due, default=None)
        if first is None or first[0] > end:
            self.now = max(self.now, end)
            return
        self._due.remove(first)
        self.now = max(self.now, first[0])
        first[2]()

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.advance(end)

    def random(self) -> float:
        return 0.5

    def epoll(self) -> _Poller:
        return _Poller(self, select.epoll(), 1.0)

    def poll(self) -> _Poller:
        return _Poller(self, select.poll(), 1e-3)


def _mem() -> scripted.Mem:
    return scripted.Mem(requested=16 << 21)


def _disk() -> scripted.Disk:
    return scripted.Disk(features=f.mask(*f.Blk) & ~f.mask(f.Blk.RO), max_discard_sectors=4, max_discard_seg=1)


MODELS: dict[str, Callable[[], scripted.Model]] = {
    "rng": lambda: scripted.Rng(at_most=1),
    "balloon": lambda: scripted.Balloon(features=f.mask(f.Balloon.PAGE_REPORTING)),
    "mem": _mem,
    "input": scripted.Input,
    "blk": _disk,
    "scsi": scripted.ScsiHost,
    "net": lambda: scripted.Net(features=f.mask(*f.Net) & ~f.mask(f.Net.MQ), status=3),
}


def _slow(device: scripted.ScriptedDevice, clock: VirtualClock) -> None:
    """Answer one request of each queue at a time, ``STEP`` seconds after what came before."""
    armed = False

    def work() -> None:
        nonlocal armed
        armed = False
        served = [index for index in range(len(device.queues)) if device.step(index)]
        for index in served:
            device.interrupt_queue(index)
        if served:
            arm()
        else:  # ask for the next kick; what came meanwhile is answered
            for index in range(len(device.queues)):
                if device.fetch(index):
                    device.interrupt_queue(index)

    def arm() -> None:
        nonlocal armed
        if not armed:
            armed = True
            clock.at(STEP, work)

    device.auto = False
    device.on_kick = arm
    device.faults.queue_reset_reads = -1


def _silent(device: scripted.ScriptedDevice, _: VirtualClock) -> None:
    device.faults.silent = True
    device.faults.queue_reset_reads = -1


HOW = {"silent": _silent, "slow": _slow}


def _made(kind: str) -> tuple[scripted.ScriptedDevice, VirtualClock]:
    model, clock = MODELS[kind](), VirtualClock()
    found = scripted.ScriptedDevice(
        model, features=RING_FEATURES | model.features | f.mask(f.RING_RESET), common_length=0x40
    )
    found.clock = clock  # type: ignore[attr-defined]
    return found, clock


def test_every_public_call_with_a_time_out_has_a_row() -> None:
    public = set(calls())
    assert public - set(ROWS) - set(ELSEWHERE) == set()
    assert set(ELSEWHERE) - public == set()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ROWS)
def test_a_call_ends_by_its_time_out(name: str, how: str) -> None:
    kind, make = ROWS[name]
    for given in (0.2, 0, -1, PATIENCE + 1) if how == "silent" else (0.2, 0):
        found, clock = _made(kind)
        with uvirtio.open(found, timeout=PATIENCE) as device:
            call = make(device)
            if name.endswith(".follow") and how == "silent":
                _more_wanted(found)
            HOW[how](found, clock)
            begin = clock.now
            for wrong in (nan, inf):
                with pytest.raises(UsageError, match="a time-out cannot be"):
                    call(wrong)
            with suppress(*ENDS):
                call(given)
            took = clock.now - begin
            assert took <= max(0, given) + SLACK + READING, f"{name}({given}) took {took:.3f} s"
            if how == "silent" and given > 0:
                assert took >= given, "this row does not wait, so it proves nothing"
        assert not found.violations, found.violations


def _more_wanted(found: scripted.ScriptedDevice) -> None:
    model = found.model
    if isinstance(model, scripted.Balloon):
        model.set_target(1 << 16)
    else:
        assert isinstance(model, scripted.Mem)
        model.put("requested_size", 32 << 21)


# --- of several requests: one deadline -------------------------------------------------------------------------


class _Liar(scripted.Mem):
    """A terabyte of which 2 MiB are plugged, or many: every range holds some of each, down to two blocks."""

    cost = 1e-4
    answers = "MIXED"

    def decide(self, kind: int, addr: int, blocks: int) -> tuple[int, int]:
        assert len(self.requests) < 20_000, "there is no end of it"
        self.device.clock.advance(self.device.clock.now + self.cost)  # type: ignore[attr-defined]
        if blocks > 1:
            return Response.ACK, State.MIXED
        even = (addr - self.addr) // self.block_size % 2 == 0
        return Response.ACK, State.PLUGGED if even and self.answers == "MIXED" else State.UNPLUGGED


def _survey(plugged_blocks: int, answers: str, **how: Any) -> tuple[_Liar, VirtualClock, Any]:
    model = _Liar(blocks=1 << 19, requested=1 << 40)
    model.answers = answers
    model.put("plugged_size", plugged_blocks * model.block_size)
    found, clock = scripted.ScriptedDevice(model), VirtualClock()
    found.clock = clock  # type: ignore[attr-defined]
    return model, clock, uvirtio.open(found, **how)


@pytest.mark.parametrize("cost", [1e-4, 1e-2])
def test_what_is_plugged_is_found_by_one_deadline(cost: float) -> None:
    model, clock, device = _survey(1 << 18, "MIXED", timeout=0.3)
    model.cost = cost
    with device, pytest.raises(DeviceTimeout, match=r"after 0.3 s, before all was done: which blocks"):
        begin = clock.now
        uvirtio.Mem(device)
    assert clock.now - begin <= 0.3 + SLACK
    assert len(model.requests) * cost > 0.1, "it went on for as long as it might"
    assert device.broken is None, "each answer came in time"


@pytest.mark.parametrize("plugged", [1, 40])
def test_the_requests_of_a_survey_follow_what_is_plugged(plugged: int) -> None:
    model, _, device = _survey(plugged, "MIXED", timeout=60)
    with device, uvirtio.Mem(device) as mem:
        assert mem.leftover.total == plugged
    assert len(model.requests) <= (1 << 19) // 65535 + 1 + 32 * plugged


def test_a_mixed_range_with_nothing_in_it_is_a_lie() -> None:
    model, _, device = _survey(1, "UNPLUGGED", timeout=60)
    with device, pytest.raises(ProtocolError, match="invalid response") as caught:
        uvirtio.Mem(device)
    assert "both halves" in str(caught.value.seen)
    assert len(model.requests) <= (1 << 19) // 65535 + 1 + 32


def test_a_region_without_end_ends_by_the_deadline() -> None:
    model = scripted.Mem(blocks=1 << 40, block_size=4096, addr=1 << 62)
    model.size_lie = 4096
    model._book()
    model.always = (Response.ACK, State.UNPLUGGED)  # type: ignore[assignment]
    found, clock = scripted.ScriptedDevice(model), VirtualClock()
    found.clock = clock  # type: ignore[attr-defined]
    model.before = lambda *_: clock.advance(clock.now + 0.001)
    with uvirtio.open(found, timeout=0.3) as device, pytest.raises(DeviceTimeout):
        uvirtio.Mem(device)
    assert 290 < len(model.requests) <= 301


@pytest.mark.parametrize("chunks", [1, 64])
def test_leaving_a_balloon_has_one_deadline(chunks: int) -> None:
    """A host that answers each buffer just in time: 64 chunks of 16 MiB are 1024 buffers."""
    found, clock = _made("balloon")
    with uvirtio.open(found, timeout=0.2) as device:
        balloon = uvirtio.Balloon(device, stats=None, floor=0)
        balloon.inflate(chunks * 256)
        _slow(found, clock)
        found.faults.queue_reset_reads = 0
        begin = clock.now
    took, gib = clock.now - begin, chunks * 256 * 4096 / (1 << 30)
    assert took <= 0.2 + gib + 0.2 + SLACK
    assert found.model.actual == 0  # type: ignore[attr-defined]
    found.assert_left()
