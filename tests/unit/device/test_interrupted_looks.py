"""Python's own Ctrl-C, at any line: a wait that looks at the rings, ended there, has interrupts on again.

An event loop of the caller's waits for the requests that are still in flight, and gets no interrupt otherwise.
"""

from __future__ import annotations

import itertools
import linecache
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.fakes.ring_rigs import A, Rig, name_of, rigs
from tests.fakes.slot_rigs import chains
from tests.support.locks import is_free
from tests.support.steps import CtrlC, ended_at_step, within
from tests.unit.device.test_polling import LONG_US, WORDS, Late, posted, started
from uvirtio import opening
from uvirtio.device import Queue, QueueSpec
from uvirtio.device.state import DeviceState, Session, _Timed
from uvirtio.device.waiting import WaitLoop
from uvirtio.drivers import requests
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.blk.queues import RequestQueues
from uvirtio.drivers.requests import BaseRequestQueues
from uvirtio.drivers.scsi import Lun, Scsi, commands
from uvirtio.drivers.scsi.queues import RequestQueues as ScsiQueues
from uvirtio.errors import BadChain, ProtocolError, QueueFull, UsageError
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.blk import Disk
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.scsi import ScsiHost
from uvirtio.spec import features as f

every_word = pytest.mark.parametrize("word", WORDS.values(), ids=WORDS.keys())


def codes(functions: Iterable[Callable[..., Any]]) -> set[CodeType]:
    """The code of functions, and of those that are defined in them."""
    found = [function.__code__ for function in functions]
    for code in found:
        found += [one for one in code.co_consts if isinstance(one, CodeType)]
    return set(found)


@contextmanager
def ended_at(line: int, functions: Iterable[Callable[..., Any]]) -> Iterator[Callable[[], bool]]:
    """Raise CtrlC once, before the n-th line that is run in one of these functions; yields whether that was."""
    inside, left, before = codes(functions), line, sys.gettrace()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if frame.f_code not in inside:
            return None
        # Python looks for signals at calls and jumps; at a ``try:`` of its own line there is neither.
        if event == "line" and linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() != "try:":
            left -= 1
            if not left:
                raise CtrlC
        return trace

    sys.settrace(trace)
    try:
        yield lambda: left <= 0
    finally:
        sys.settrace(before)


def listens(device: Any) -> bool:
    return all(queue.ring._interrupts for queue in device.queues.values())


@every_word
def test_the_wait_loop_listens_again(word: int) -> None:
    model = Late()
    scripted = ScriptedDevice(model, features=word)
    with started(scripted) as device:
        for line in itertools.count(1):
            posted(device)
            done: list[Any] = []
            looks = itertools.count()

            def ready(done: list[Any] = done, looks: Iterator[int] = looks) -> bool:
                if next(looks) == 3:
                    model.release(interrupt=False)
                done += device.queues[0].reap()
                return bool(done)

            with ended_at(line, [WaitLoop._look]) as came:
                try:
                    device.wait(ready, timeout=10, what="an answer")
                except CtrlC:
                    assert came()
            assert listens(device), f"after line {line}"
            if not done:
                model.release()
                assert device.wait(ready, timeout=10, what="an answer")
            if not came():
                break
        assert line > 15, "it came at none of the lines"
    scripted.assert_left()


def test_one_broken_ring_keeps_no_other_silent() -> None:
    """A ``ready`` that breaks the first ring, while all are silent."""
    model = Late()
    model.queue_sizes = (8, 8)
    scripted = ScriptedDevice(model)
    opened = opening.identify(
        scripted.address, scripted, timeout=2, interrupts=[InterruptMode.SHARED], poll_us=LONG_US
    )
    with opened as device:
        device.start(wanted=0, queues=[QueueSpec(0, "first", size=8), QueueSpec(1, "second", size=8)])

        def ready() -> bool:
            if not device.queues[0].ring._interrupts:  # type: ignore[attr-defined]
                device.queues[0].ring.dead = True  # type: ignore[attr-defined]
                raise CtrlC
            return False

        with pytest.raises(CtrlC):
            device.wait(ready, timeout=2, what="an answer")
        assert device.queues[1].ring._interrupts  # type: ignore[attr-defined]
        device.queues[0].ring.dead = False  # type: ignore[attr-defined]


# --- requests of disks, which scsi shares --------------------------------------------------------------------


class LateDisk(Disk):
    """Keeps requests until ``release``."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.kept: list[Any] = []

    def handle(self, queue: int, chain: Any) -> int | None:
        self.kept.append((queue, chain))
        return None

    def release(self) -> None:
        kept, self.kept = self.kept, []
        for queue, chain in kept:
            self.device.complete(queue, chain, super().handle(queue, chain) or 0)


LOOKING = [BaseRequestQueues._look, BaseRequestQueues._silence, BaseRequestQueues._listen]
CALLS = [RequestQueues.call, RequestQueues._await_one, RequestQueues._beside, Queue.send, Queue.take, Queue.note]


def interrupted(device: Any, model: Any, queues: Any, begin: Callable[[], Any], functions: Any) -> int:
    """Begin a wait again and again, and end it at each line in turn; how many lines there are.

    Args:
        device: The device.
        model: Which keeps requests.
        queues: The driver's request queues.
        begin: Begins a wait, which goes to sleep at last.
        functions: Whose lines.
    """
    sleep = device._waiting._sleep

    def sleeping(*args: Any) -> Any:
        assert listens(device), "it sleeps without interrupts"
        model.release()
        return sleep(*args)

    device._waiting._sleep = sleeping
    for line in itertools.count(1):
        queues._skip = queues._skipping = 0
        with ended_at(line, functions) as came:
            try:
                begin()
            except CtrlC:
                assert came()
        if not came():
            return line
        if queues.in_flight:
            assert listens(device), f"after line {line}"
            taken = device.counters.interrupts_taken
            model.release()
            assert device.service() and device.counters.interrupts_taken > taken
            assert queues.collect() > 0
        assert not queues.in_flight
        model.kept.clear()
    raise AssertionError


@pytest.mark.parametrize("calls", ["call", "wait"])
@pytest.mark.parametrize("without", [(), ("EVENT_IDX",)])
def test_a_disk_listens_again(calls: str, without: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "POLL", 0.0)
    monkeypatch.setattr(requests, "_GLANCES", 2)
    model = LateDisk()
    scripted = ScriptedDevice(model)
    mode = [InterruptMode.SHARED]
    with (
        opening.identify(scripted.address, scripted, timeout=10, interrupts=mode, without=without) as device,
        Blk(device) as blk,
    ):

        def begin() -> None:
            if calls == "call":
                blk.read(0, 1)
            else:
                blk.submit_read(0, 1)
                blk.submit_read(1, 1)
                blk.wait()

        lines = interrupted(device, model, blk._requests, begin, [*LOOKING, *CALLS])
        assert lines > 20, "it came at none of the lines"
    scripted.assert_left()


@pytest.mark.parametrize("without", [(), ("EVENT_IDX",)])
def test_a_look_of_an_event_loop_asks_for_the_next_interrupt(without: Any) -> None:
    """``poll`` takes one request and is ended at any step: the interrupt of the other one comes all the same."""
    model = LateDisk()
    scripted = ScriptedDevice(model)
    mode = [InterruptMode.SHARED]
    steps = within("/uvirtio/virtqueue/", "/uvirtio/drivers/requests.py", "/uvirtio/drivers/blk/")
    with (
        opening.identify(scripted.address, scripted, timeout=10, interrupts=mode, without=without) as device,
        Blk(device) as blk,
    ):
        for number in itertools.count(1):
            out = [blk.submit_read(0, 1), blk.submit_read(1, 1)]
            later = model.kept.pop()
            model.release()
            device.service()
            with ended_at_step(number, steps) as step:
                try:
                    blk.poll()
                except CtrlC:
                    assert step.came
            blk.poll()  # as a caller does before it sleeps
            assert out[0].done and not out[1].done, step.where
            model.kept.append(later)
            model.release()
            assert device.service(), step.where
            blk.poll()
            assert out[1].result(), step.where
            if not step.came:
                break
        assert number > 10, "it came at none of the steps"
    scripted.assert_left()


LUN = Lun(0)
SUBMITS = {
    "blk": (Disk, Blk, RequestQueues, lambda disk, at: disk.submit_read(at, 1), lambda disk: disk.read(3, 1)),
    "scsi": (
        ScsiHost,
        Scsi,
        ScsiQueues,
        lambda host, _: host.submit(LUN, commands.inquiry()),
        lambda host: host.inquiry(LUN),
    ),
}


def use(disk: Any, how: str, submit: Callable[..., Any], call: Callable[..., Any], sent: list[Any]) -> None:
    """Have a disk read; ``sent`` has the requests that were submitted by then."""
    if how == "call":
        call(disk)
    else:
        sent += [submit(disk, 0)]
        sent += [submit(disk, 1)]
        disk.wait(sent) if how == "wait" else disk.poll()


def works_on(disk: Any, call: Callable[..., Any], sent: list[Any], where: str) -> None:
    """What was submitted gets its result, and all slots are there."""
    for one in sent:
        assert one.result(), where
    disk.wait()
    assert call(disk), where
    assert disk.in_flight == 0
    (requestq,) = disk._requests._free
    assert sorted(map(id, requestq.free)) == sorted(map(id, requestq.slots)), where
    assert not getattr(disk._requests, "_of_lun", {}), where


@pytest.mark.fault(92)
@pytest.mark.parametrize("how", ["wait", "poll", "call"])
@pytest.mark.parametrize("kind", SUBMITS)
def test_no_slot_and_no_request_is_lost_wherever_it_is_interrupted(kind: str, how: str) -> None:
    """At each line that submits, reaps and judges: what was submitted gets its result, and all slots are there."""
    model, driver, queues, submit, call = SUBMITS[kind]
    found = ScriptedDevice(model())
    functions = [BaseRequestQueues._gather, BaseRequestQueues.collect, queues._finish, queues.submit, *LOOKING]
    functions.append(Queue.kick)
    if kind == "blk":
        functions += CALLS
    with opening.identify(found.address, found, timeout=2) as device, driver(device, depth=4) as disk:
        for line in itertools.count(1):
            sent: list[Any] = []
            with ended_at(line, functions) as came:
                try:
                    use(disk, how, submit, call, sent)
                except CtrlC:
                    assert came()
            works_on(disk, call, sent, f"after line {line}")
            if not came():
                break
        assert line > 20, "it came at none of the lines"
    found.assert_left()


@pytest.mark.fault(92)
@pytest.mark.parametrize("how", ["wait", "poll", "call"])
@pytest.mark.parametrize("kind", SUBMITS)
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_nor_at_any_step_of_the_rings_below(ring: Any, kind: str, how: str) -> None:
    """The same with the queue and its ring."""
    model, driver, _, submit, call = SUBMITS[kind]
    word = f.mask(f.VERSION_1, f.RING_PACKED) if ring == "packed" else f.mask(f.VERSION_1)
    found = ScriptedDevice(model(), features=model().features | word)
    steps = within("/uvirtio/virtqueue/", "/uvirtio/device/queue.py", "/uvirtio/drivers/")
    with opening.identify(found.address, found, timeout=2, ring=ring) as device, driver(device, depth=4) as disk:
        for number in itertools.count(1):
            sent: list[Any] = []
            with ended_at_step(number, steps) as step:
                try:
                    use(disk, how, submit, call, sent)
                except CtrlC:
                    assert step.came
            works_on(disk, call, sent, step.where)
            if not step.came:
                break
        assert number > 20, "it came at none of the steps"
    found.assert_left()


@pytest.mark.fault(92)
def test_a_notification_that_did_not_come_to_pass_comes_with_the_next_kick() -> None:
    """The device was shown requests, and asks to be told: it would sleep for ever."""
    found = ScriptedDevice(Disk())
    with opening.identify(found.address, found, timeout=2) as device, Blk(device) as disk:
        for line in itertools.count(1):
            with ended_at(line, [Queue.show_added]) as came:
                try:
                    for at in range(8):
                        disk.submit_read(at, 1, kick=False)
                except CtrlC:
                    assert came()
            disk.wait()
            assert not device.queues[0]._owed
            if not came():
                break
        assert line > 4, "it came at none of the lines"
    found.assert_left()


@pytest.mark.fault(92)
@every_word
@pytest.mark.parametrize("timeout", [None, 0.05])
def test_a_wait_notifies_the_device_of_slots_that_it_was_not_told_of(word: int, timeout: float | None) -> None:
    """It answers only when it is notified: what was made available before an exception, it would never see."""
    model = Disk()
    found, late = ScriptedDevice(model, features=word | model.features), 0
    with opening.identify(found.address, found, timeout=5) as device, Blk(device, depth=4) as disk:
        burst = disk.burst(1)
        queue = device.queues[0]
        for line in itertools.count(1):
            with ended_at(line, [Queue.submit, Queue.notify]) as came:
                try:
                    burst.post(burst.slots, [0, 1, 2, 3])
                except CtrlC:
                    assert came()
            kicks = queue.kicks
            while burst.in_flight:
                burst.wait(timeout, poll=0)
            late += queue.kicks > kicks
            assert not came() or burst.post(burst.slots, [3, 2, 1, 0]) is None
            while burst.in_flight:
                burst.wait()
            assert not queue._owed
            with pytest.raises(UsageError):
                queue.submit([9])
            assert not queue._owed, "nothing is owed for what was refused"
            if not came():
                break
        assert late, "it came at no line between the two"
    found.assert_left()


class Bell:
    """A doorbell. At the numbered ring a signal handler of the caller's raises, before the device hears it."""

    def __init__(self, ended: int, heard: Callable[[], None]) -> None:
        self.rung, self._left, self._heard = 0, ended, heard

    def ring(self, _value: int) -> None:
        self._left -= 1
        if not self._left:
            raise CtrlC
        self.rung += 1
        self._heard()

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.fault(92)
@pytest.mark.parametrize("kind", rigs(), ids=name_of)
@pytest.mark.parametrize("ended", [1, 2])
def test_of_what_a_relay_shows_step_by_step_each_notification_is_owed(kind: dict[str, Any], ended: int) -> None:
    """The first may have been given when the second is kept back."""
    rig = Rig(8, **kind)
    device, out = rig.device, list[Any]()

    def works() -> None:
        """Complete one chain, and ask to be told of the next."""
        out.extend(device.pop_all())
        device.push(out.pop(0), 64)
        device.ask_for_kicks()

    bell = Bell(ended, works)
    queue = Queue(QueueSpec(0, "requestq", size=8), rig.queue, bell)
    queue.set_fixed(chains(8))
    device.ask_for_kicks(False)
    queue.submit(array("H", range(6)), show=False)
    queue.show(2)
    works()
    with pytest.raises(CtrlC):
        for _ in range(2):  # a packed ring shows what it may and returns
            queue.relay(4, 2)
    assert bell.rung == ended - 1
    for _ in range(2):
        queue.kick_owed()
        assert bell.rung == ended, "it is given once"


@pytest.mark.fault(92)
@pytest.mark.parametrize("kind", rigs(), ids=name_of)
def test_nothing_is_owed_for_a_chain_that_was_refused(kind: dict[str, Any]) -> None:
    rig = Rig(8, **kind)
    bell = Bell(0, lambda: None)
    queue = Queue(QueueSpec(0, "requestq", size=8), rig.queue, bell)
    rig.device.ask_for_kicks(False)
    for refused, error in ((((A, 0),), BadChain), (((A, 64),) * 9, BadChain)):
        with pytest.raises(error):
            queue.send((), refused, "bad")
    for at in range(8):
        queue.send((), ((A, 64),), at)
    with pytest.raises(QueueFull):
        queue.send((), ((A, 64),), "one more")
    queue.kick_owed()
    assert bell.rung == 0


def test_no_lock_and_no_deadline_is_left() -> None:
    """Where a call begins: one that is left holds up each thread for ever, and the other ends each later call."""
    found = ScriptedDevice(Disk())
    with opening.identify(found.address, found, timeout=2) as device, Blk(device) as disk:
        for line in itertools.count(1):
            with ended_at(line, [Session.__enter__, _Timed.__enter__, DeviceState._left]) as came:
                try:
                    disk.read(0, 1, timeout=1)
                except CtrlC:
                    assert came()
            if not came():
                break
            assert device._limit is None, f"after line {line}"
            assert is_free(device, 0.2), f"after line {line}"
        assert line > 10, "it came at none of the lines"
        assert disk.read(0, 1)
    found.assert_left()


def test_what_came_before_is_reaped_and_the_first_error_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is none, beside another request: the error comes out, and the other one has its interrupt."""
    model = LateDisk()
    scripted = ScriptedDevice(model)
    mode = [InterruptMode.SHARED]
    with opening.identify(scripted.address, scripted, timeout=10, interrupts=mode) as device, Blk(device) as blk:
        bad, good = blk.submit_read(0, 1), blk.submit_read(1, 1)
        looks = itertools.count()
        ring = type(device.queues[0].ring)
        pending = ring.pending

        def looking(this: Any) -> bool:
            if next(looks) == 3:
                model.script.append(77)  # no status (5.2.6)
                keep = model.kept.pop()
                model.release()
                model.kept.append(keep)
            return pending(this)

        monkeypatch.setattr(ring, "pending", looking)
        with pytest.raises(ProtocolError):
            blk.wait()
        assert bad.done and not good.done and listens(device)
        model.release()
        assert device.service() and blk._requests.collect() == 1 and good.result() == bytes(512)
    scripted.assert_left()
