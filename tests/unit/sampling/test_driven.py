"""A device looked at while it runs: rates, ages, what changes, and that looking disturbs nothing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

import uvirtio
from uvirtio import scripted
from uvirtio.device import OpenOptions
from uvirtio.errors import ConfigUnstable, DeviceTimeout
from uvirtio.sampling.driven import Driven
from uvirtio.sampling.sample import Sample, Stopped
from uvirtio.spec import features as f


def samples(
    device: Any, count: int, *, interval: float = 0.1, load: float = 0.0, timeout: float = 5.0, **options: Any
) -> list[Sample]:
    """The first sample and ``count`` more."""
    found: list[Sample] = []

    def tell(sample: Sample) -> None:
        found.append(sample)
        if sample.number == count:
            raise Stopped

    Driven(device, OpenOptions(timeout=timeout, **options), interval=interval, load=load).run(tell)
    return found


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_rates_go_by_the_time_that_passed(ring: str) -> None:
    device = scripted.ScriptedDevice(scripted.Rng(), features=0b101 << 32)
    first, *rest = samples(device, 3, load=200, ring=ring)
    assert first.number == 0 and first.queues[0].kicks_per_s == 0 and first.interrupts_per_s == 0
    for before, now in zip([first, *rest], rest, strict=False):
        (queue,), (earlier,) = now.queues, before.queues
        assert queue.format == ring
        passed = now.time - before.time
        assert passed > 0
        assert queue.kicks > earlier.kicks  # else the rate says nothing
        assert queue.kicks_per_s == pytest.approx((queue.kicks - earlier.kicks) / passed)
        assert queue.completions_per_s == pytest.approx((queue.completions - earlier.completions) / passed)
        assert now.interrupts is not None and before.interrupts is not None
        assert now.interrupts_per_s == pytest.approx((now.interrupts - before.interrupts) / passed)
        assert queue.stall == "idle" and not queue.ages
        assert now.counters["rounds"] > before.counters.get("rounds", 0)
    device.assert_obedient()
    device.assert_left()


@pytest.mark.parametrize("kind", [scripted.Rng, scripted.Balloon, scripted.Input, scripted.Disk, scripted.Mem])
@pytest.mark.parametrize("load", [0, 50])
def test_every_type_is_served_and_left_in_order(kind: Callable[[], scripted.Model], load: float) -> None:
    device = scripted.ScriptedDevice(kind())
    *_, last = samples(device, 1, load=load)
    assert last.state == "DRIVER_OK" and last.driver == "uvirtio"
    assert bool(load) == any(queue.completions for queue in last.queues)
    device.assert_obedient()
    device.assert_left()


def test_a_type_without_a_driver_is_looked_at_too() -> None:
    class Odd(scripted.Model):
        device_id = 63
        queue_sizes = (16, 16)

    *_, last = samples(scripted.ScriptedDevice(Odd()), 1, load=10)
    assert [queue.index for queue in last.queues] == [0, 1]


def test_a_silent_device_is_looked_at_until_its_time_is_up() -> None:
    found: list[Sample] = []
    with pytest.raises(DeviceTimeout):
        source = Driven("scripted:rng,silent", OpenOptions(timeout=0.6), interval=0.1, load=10)
        source.run(found.append)
    stuck = [sample for sample in found if sample.queues[0].in_flight]
    assert len(stuck) >= 3  # while the driver waits
    ages = [sample.queues[0].ages[0] for sample in stuck]
    assert ages == sorted(ages) and ages[0] < ages[-1]
    assert {sample.queues[0].stall for sample in stuck} == {"untaken"}
    last = found[-1]
    assert last.state == "broken" and ages[-1] >= 0.6
    assert [event for event in last.events if "UV-DEV-TIMEOUT" in event]


class Growing(scripted.Disk):
    """A disk that grows by a sector with each request."""

    interrupt = True

    def handle(self, queue: int, chain: scripted.Chain) -> int | None:
        (sectors,) = struct.unpack_from("<Q", self.config)
        self.device.change_config(0, struct.pack("<Q", sectors + 1), interrupt=self.interrupt)
        return super().handle(queue, chain)


@pytest.mark.parametrize("interrupt", [True, False])
def test_what_changed_in_the_configuration_is_named(interrupt: bool) -> None:
    model = Growing()
    model.interrupt = interrupt
    found = samples(scripted.ScriptedDevice(model), 2, load=50)
    (event, *_) = [event for sample in found for event in sample.events]
    assert event.startswith("configuration: capacity ")
    assert event.endswith(" (without a notification)") is not interrupt
    assert bool(found[-1].config_changes) is interrupt
    assert found[-1].config["capacity"] > found[0].config["capacity"]  # type: ignore[operator]


def test_what_the_driver_writes_itself_is_no_change() -> None:
    class Toggling(scripted.Disk):
        count = 0

        def handle(self, queue: int, chain: scripted.Chain) -> int | None:
            self.count += 1
            self.device.change_config(32, bytes([self.count & 0x7F]), interrupt=False)
            return super().handle(queue, chain)

    found = samples(scripted.ScriptedDevice(Toggling(features=f.mask(f.Blk.CONFIG_WCE))), 2, load=30)
    assert len({sample.config["writeback"] for sample in found}) > 1
    assert not [event for sample in found for event in sample.events]


def test_a_configuration_that_never_stands_still_ends_it() -> None:
    found: list[Sample] = []
    with pytest.raises(ConfigUnstable):
        Driven("scripted:blk,generation-bumps=-1", OpenOptions(timeout=0.2), interval=0.1).run(found.append)


def test_what_is_odd_is_told_once() -> None:
    found = samples("scripted:blk,status=1", 2, load=50)
    events = [event for sample in found for event in sample.events]
    assert len([event for event in events if event.startswith("data path: sector 0 cannot be read")]) == 1


def test_an_interruption_before_the_device_is_open_is_not_lost() -> None:
    class Signal(BaseException):
        pass

    source = Driven("scripted:rng", OpenOptions(), interval=0.1)
    source.interrupt(Signal())
    with pytest.raises(Signal):
        source.run(lambda _: None)


def test_the_pulse_of_a_device_can_end_its_wait() -> None:
    class Enough(BaseException):
        pass

    beats = []

    def pulse() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise Enough

    with uvirtio.open("scripted:rng") as device, uvirtio.Rng(device) as rng:
        device.pulse = pulse
        with pytest.raises(Enough):
            device.wait(lambda: False, timeout=None, what="the pulse")
        device.pulse = None
        assert len(rng.read(16)) == 16  # the device works on
