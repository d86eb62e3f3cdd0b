"""The entropy driver (5.4) on a scripted device, also on one that answers short, empty or too long."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from math import comb

import pytest

from tests.unit.device.test_deadlines import VirtualClock
from uvirtio import opening
from uvirtio.device import Device
from uvirtio.drivers.rng import Rng as Driver
from uvirtio.drivers.rng.health import MOST, RUN, WINDOW, Health
from uvirtio.errors import (
    DeviceBroken,
    DeviceTimeout,
    NotVirtio,
    ProtocolError,
    RingCorruption,
    RngUnhealthy,
    UsageError,
)
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.ring import Chain
from uvirtio.scripted.rng import Rng


def identify(scripted: ScriptedDevice, timeout: float = 30.0) -> Device:
    return opening.identify("0000:00:04.0", scripted, timeout=timeout)


def pattern(count: int) -> bytes:
    return bytes(number & 0xFF for number in range(count))


@pytest.mark.spec("RNG-01", "RNG-02")
@pytest.mark.parametrize("count", [0, 1, 64, 4096, 4097, 10000])
@pytest.mark.parametrize("at_most", [None, 1000, 7])
def test_as_many_bytes_as_asked_for(count: int, at_most: int | None):
    model = Rng(at_most=at_most)
    scripted = ScriptedDevice(model)
    with identify(scripted) as device, Driver(device) as rng:
        assert rng.read(count) == pattern(count)
        assert model.given == pattern(count)
    scripted.assert_left()


@pytest.mark.fault(35)
@pytest.mark.spec("RNG-02")
def test_what_the_device_did_not_write_is_no_answer():
    class Stingy(Rng):
        def handle(self, queue: int, chain: Chain) -> int:
            chain.fill(b"\xee" * chain.room)  # it writes all of it, and says one byte
            return 1

    scripted = ScriptedDevice(Stingy())
    with identify(scripted) as device, Driver(device) as rng:
        assert rng.read(3) == b"\xee" * 3
        assert device.queues[0].kicks == 3
    scripted.assert_left()


@pytest.mark.fault(35)
def test_what_was_there_before_is_no_answer():
    class Lazy(Rng):
        lazy = False

        def handle(self, queue: int, chain: Chain) -> int:
            return chain.room if self.lazy else chain.fill(b"\xee" * chain.room)

    model = Lazy()
    with identify(ScriptedDevice(model)) as device, Driver(device) as rng:
        assert rng.read(8) == b"\xee" * 8
        model.lazy = True
        assert rng.read(8) == bytes(8)


def test_a_read_that_is_late_ends_between_requests_and_breaks_nothing():
    """The time-out is of the whole call, also where each answer comes in time."""

    class Slow(Rng):
        def handle(self, queue: int, chain: Chain) -> int | None:
            clock.now += 0.4
            return super().handle(queue, chain)

    clock, model = VirtualClock(), Slow(at_most=1)
    scripted = ScriptedDevice(model)
    scripted.clock = clock  # type: ignore[attr-defined]
    with identify(scripted) as device, Driver(device) as rng:
        assert rng.read(2, timeout=1) == pattern(2)
        with pytest.raises(DeviceTimeout, match="after 1 s, before all was done: 8 random bytes"):
            rng.read(8, timeout=1)
        assert len(model.given) == 2 + 3 and device.broken is None
    scripted.assert_left()


class Empty(Rng):
    """Answers with nothing, ``left`` times."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def handle(self, queue: int, chain: Chain) -> int | None:
        self.left -= 1
        return 0 if self.left >= 0 else super().handle(queue, chain)


def test_empty_answers_are_asked_again_a_few_times():
    with identify(ScriptedDevice(Empty(15))) as device, Driver(device) as rng:
        assert rng.read(5) == pattern(5)


@pytest.mark.fault(85)
def test_empty_answers_for_ever_are_an_error():
    scripted = ScriptedDevice(Empty(1 << 30))
    with identify(scripted) as device, Driver(device) as rng:
        with pytest.raises(ProtocolError, match="no bytes"):
            rng.read(5)
        with pytest.raises(DeviceBroken):
            rng.read(5)
    scripted.assert_left()


def _too_long(scripted: ScriptedDevice) -> None:
    scripted.lies.used_len = lambda written: written + 1


def _far_too_long(scripted: ScriptedDevice) -> None:
    scripted.lies.used_len = lambda written: 0xFFFFFFFF


def _wrong_id(scripted: ScriptedDevice) -> None:
    scripted.lies.used_id = lambda head: head ^ 1


def _id_with_good_low_bits(scripted: ScriptedDevice) -> None:
    scripted.lies.used_id = lambda head: head | 0x10000


def _twice(scripted: ScriptedDevice) -> None:
    scripted.lies.duplicate = True


def _jump(scripted: ScriptedDevice) -> None:
    scripted.lies.used_idx = lambda index: index + 100


@pytest.mark.parametrize("lie", [_too_long, _far_too_long, _wrong_id, _id_with_good_low_bits, _twice, _jump])
def test_a_lie_about_the_ring_ends_it(lie: Callable[[ScriptedDevice], None]):
    scripted = ScriptedDevice(Rng())
    with identify(scripted) as device, Driver(device) as rng:
        lie(scripted)
        with pytest.raises(RingCorruption):
            rng.read(8)
        with pytest.raises(DeviceBroken):
            rng.read(8)
    scripted.assert_left()


class Enough(BaseException):
    """Why a read was interrupted."""


@pytest.mark.fault(47)
@pytest.mark.spec("CLN-01")
@pytest.mark.parametrize(("first", "second"), [(64, 8), (8, 64), (8, 8)])
def test_the_answer_to_an_interrupted_request_is_not_the_next_ones(first: int, second: int):
    model = Rng()
    scripted = ScriptedDevice(model, auto=False)
    with identify(scripted) as device, Driver(device) as rng:
        device.interrupt(Enough())
        with pytest.raises(Enough):
            rng.read(first)
        assert device.queues[0].ring.in_flight == 1
        buffer = scripted.memory.blocks[-1].view
        scripted.run()
        assert bytes(buffer[:first]) == pattern(first)
        scripted.auto = True
        assert rng.read(second) == bytes((first + number) & 0xFF for number in range(second))
    scripted.assert_left()


@pytest.mark.spec("CLN-01")
def test_a_buffer_that_is_still_out_is_not_given_away_again():
    class Watching(Rng):
        most = 0

        def handle(self, queue: int, chain: Chain) -> int:
            ring = self.device.queues[queue].ring
            assert ring is not None
            self.most = max(self.most, ring.available() + len(ring.out))
            return chain.fill(self.source(chain.room))

    model = Watching()
    scripted = ScriptedDevice(model, auto=False)
    with identify(scripted) as device, Driver(device) as rng:
        device.interrupt(Enough())
        with pytest.raises(Enough):
            rng.read(8)

        def answer() -> None:
            scripted.auto = True
            scripted.run()

        timer = threading.Timer(0.05, answer)
        timer.start()
        assert rng.read(8) == pattern(8)
        timer.join()
        assert model.most == 1
    scripted.assert_left()


@pytest.mark.parametrize("count", [-1, -4096])
def test_a_negative_number_of_bytes(count: int):
    scripted = ScriptedDevice(Rng())
    with identify(scripted) as device, Driver(device) as rng:
        with pytest.raises(UsageError):
            rng.read(count)
        assert device.broken is None


def test_another_type_of_device():
    scripted = ScriptedDevice(Balloon())
    with identify(scripted) as device:
        with pytest.raises(NotVirtio, match="no rng device"):
            Driver(device)
        assert not [access for access in scripted.log if access.op == "write"]


# --- health -------------------------------------------------------------------------------------------------


class Told(Rng):
    """Gives these bytes, over and over."""

    def __init__(self, told: bytes, at_most: int | None = None) -> None:
        super().__init__(at_most=at_most)
        self.told = told

    def source(self, count: int) -> bytes:
        first = len(self.given) % len(self.told)
        return (self.told * (1 + (first + count) // len(self.told)))[first : first + count]


STUCK = b"\x00"
NEARLY = b"\x07" * 8 + b"\x08"  # never nine in a row
LEANING = bytes(value for number in range(27) for value in (0x55, *range(number, number + 18)))


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    ("told", "said"),
    [(STUCK, "9 bytes of 0x00"), (NEARLY, "0x07 occurs 456 times"), (LEANING, "0x55 occurs 27 times")],
)
@pytest.mark.parametrize("at_most", [None, 1, 7])
def test_bytes_that_cannot_be_random_are_not_handed_on(told: bytes, said: str, at_most: int | None):
    scripted = ScriptedDevice(Told(told, at_most))
    with identify(scripted) as device, Driver(device) as rng:
        with pytest.raises(RngUnhealthy) as failure:
            for _ in range(40):
                rng.read(16)  # however it is cut
        assert said in str(failure.value.seen)
        with pytest.raises(DeviceBroken):
            rng.read(1)
    scripted.assert_left()


def test_a_known_source_can_be_had_untested():
    with identify(ScriptedDevice(Told(STUCK))) as device, Driver(device, health=False) as rng:
        assert rng.read(1000) == bytes(1000)


def test_healthy_bytes_pass():
    health = Health()
    source = random.Random(90)
    for size in (1, 511, 1, 4096, 1 << 20):
        assert health.feed(source.randbytes(size)) is None
    assert health.tested == 513 + 4096 + (1 << 20)
    assert health.feed(bytes(8)) is None
    assert health.feed(bytes(1)) is not None


def test_the_cutoffs_are_what_they_say():
    def tail(least: int, of: int) -> float:
        return sum(comb(of, n) * 255 ** (of - n) for n in range(least, of + 1)) / 256**of

    assert 256.0 ** -(RUN - 1) == 2.0**-64
    assert tail(MOST - 1, WINDOW - 1) < 2.0**-64 <= tail(MOST - 2, WINDOW - 1)


def test_short_answers_are_noted():
    with identify(ScriptedDevice(Rng(at_most=10))) as device, Driver(device) as rng:
        rng.read(30)
        assert rng.findings == {"short answer": 2}
    with identify(ScriptedDevice(Empty(3))) as device, Driver(device) as rng:
        rng.read(5)
        assert rng.findings == {"empty answer": 3}
