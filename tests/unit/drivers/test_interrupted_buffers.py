"""What a signal handler raises while buffers are read: the device has all of them back, for frames and events."""

from __future__ import annotations

import itertools

import pytest

from tests.support.steps import CtrlC, ended_at_step, within
from tests.unit.drivers.test_net import driven, frames_of, offer
from uvirtio import opening
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.drivers.input import Input as InputDriver
from uvirtio.errors import UvirtioError
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.input import Input
from uvirtio.scripted.net import Net as Card
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import net as net_spec

STEPS = within(
    "/uvirtio/virtqueue/", "/uvirtio/device/queue.py", "/uvirtio/drivers/net/receive.py", "/input/driver.py"
)


@pytest.mark.fault(92)
@pytest.mark.parametrize("count", [1, 12])
def test_a_card_has_its_buffers_back(count: int) -> None:
    for number in itertools.count(1):
        model = Card()
        with driven(model, build={"features": offer()}) as (_, device, net):
            queue = device.queues[net_spec.RECEIVEQ]
            assert queue.slots is not None
            everything = queue.slots.count
            model.inject(*frames_of(number, *[100] * count))
            with ended_at_step(number, STEPS) as step:
                try:
                    net.receive(timeout=0)
                except CtrlC:
                    assert step.came
                except UvirtioError as error:
                    raise AssertionError(step.where) from error
            net.receive(timeout=0)
            assert len(queue.slots.out()) == everything, step.where
            (frame,) = frames_of(1, 200)
            model.inject(frame)
            assert list(map(bytes, net.receive(timeout=1)))[-1:] == [frame], step.where
        if not step.came:
            break
    assert number > 10, "it came at none of the steps"


@pytest.mark.fault(92)
def test_a_frame_of_several_buffers_is_lost_as_a_whole() -> None:
    """What comes next is no piece of it."""
    for number in itertools.count(1):
        model = Card()
        with driven(model, build={"features": offer()}) as (_, _, net):
            first, *after = frames_of(number, 6000, 6000, 100, 3000)
            model.inject(first)
            with ended_at_step(number, STEPS) as step:
                try:
                    net.receive(timeout=0)
                except CtrlC:
                    assert step.came
            kept = list(map(bytes, net.receive(timeout=0)))
            assert kept in ([], [first]), step.where
            model.inject(*after)
            assert list(map(bytes, net.receive(timeout=1))) == after, step.where
            assert not net.dropped, step.where
        if not step.came:
            break
    assert number > 10, "it came at none of the steps"


@pytest.mark.fault(92)
def test_an_input_device_has_its_buffers_back() -> None:
    for number in itertools.count(1):
        model = Input()
        found = ScriptedDevice(model)
        with opening.identify(found.address, found, timeout=2) as device, InputDriver(device) as driver:
            queue = device.queues[0]
            assert queue.slots is not None
            model.inject((1, 30, 1), (0, 0, 0))
            with ended_at_step(number, STEPS) as step:
                try:
                    driver.service()
                except CtrlC:
                    assert step.came
            driver.service()
            assert len(queue.slots.out()) == queue.slots.count, step.where
            model.inject((1, 31, 1), (0, 0, 0))
            driver.service()
        found.assert_left()
        if not step.came:
            break
    assert number > 10, "it came at none of the steps"


@pytest.mark.fault(92)
@pytest.mark.parametrize("count", [1, 12])
def test_a_card_sends_from_all_its_slots(count: int) -> None:
    """None is lost, and what goes out of each afterwards has its own length, and no header of an earlier one."""
    steps = within("/uvirtio/virtqueue/", "/uvirtio/device/queue.py", "/uvirtio/drivers/net/transmit.py")
    for number in itertools.count(1):
        model = Card()
        with driven(model, build={"features": offer()}) as (_, _, net):
            sender = net._transmitters[0]
            with ended_at_step(number, steps) as step:
                try:
                    net.send(frames_of(number, *[90 + at % 3 for at in range(count)]))
                except CtrlC:
                    assert step.came
            net.flush(timeout=1)
            sender.reap()
            assert sorted(sender._free) == list(range(sender.count)), step.where
            del model.sent[:]
            after = frames_of(1, *[100] * sender.count)
            net.send(after)
            net.flush(timeout=1)
            assert model.sent == after, step.where
        if not step.came:
            break
    assert number > 10, "it came at none of the steps"


@pytest.mark.fault(92)
def test_a_balloon_knows_which_pages_the_host_has() -> None:
    """A batch that was reaped, and not returned, is acknowledged; one that was added, and not shown, is sent."""
    steps = within("/uvirtio/virtqueue/split.py", "/uvirtio/device/queue.py")
    for number in itertools.count(1):
        model = Balloon()
        found = ScriptedDevice(model)
        with opening.identify(found.address, found, timeout=2) as device, BalloonDriver(device, floor=0) as driver:
            with ended_at_step(number, steps) as step:
                try:
                    driver.inflate(3)
                    driver.deflate(2, force=True)
                except CtrlC:
                    assert step.came
            driver.inflate(1)
            assert driver.held == len(model.frames), step.where
        assert not model.frames
        found.assert_left()
        if not step.came:
            break
    assert number > 10, "it came at none of the steps"
