"""Which ring format a device gets, and the drivers on each of them."""

from __future__ import annotations

import pytest

from uvirtio import opening
from uvirtio.device import Device, RingChoice
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.drivers.input import Input as InputDriver
from uvirtio.drivers.input import InputEvent
from uvirtio.drivers.mem import Mem as MemDriver
from uvirtio.drivers.mem import State
from uvirtio.drivers.rng import Rng as RngDriver
from uvirtio.errors import FeatureMissing, QueueError, RingCorruption
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.input import Input
from uvirtio.scripted.mem import Mem
from uvirtio.scripted.model import Model
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng
from uvirtio.spec import features as f
from uvirtio.spec import mem as mem_spec
from uvirtio.virtqueue.packed import PackedQueue
from uvirtio.virtqueue.split import SplitQueue

PACKED = f.mask(f.VERSION_1, f.RING_PACKED)
PLAIN = f.mask(f.VERSION_1)

WORDS = {
    "packed": PACKED,
    "packed+indirect": PACKED | f.mask(f.INDIRECT_DESC),
    "packed+event_idx": PACKED | f.mask(f.EVENT_IDX),
    "packed+all": PACKED | f.mask(f.INDIRECT_DESC, f.EVENT_IDX),
    "packed+in_order": PACKED | f.mask(f.INDIRECT_DESC, f.EVENT_IDX, f.IN_ORDER),
    "split+in_order": PLAIN | f.mask(f.INDIRECT_DESC, f.EVENT_IDX, f.IN_ORDER),
    "split+in_order alone": PLAIN | f.mask(f.IN_ORDER),
}
every_word = pytest.mark.parametrize("word", WORDS.values(), ids=WORDS.keys())


def identify(scripted: ScriptedDevice, ring: RingChoice = "auto") -> Device:
    return opening.identify(scripted.address, scripted, timeout=2, ring=ring)


def scripted(model: Model, word: int, **how: object) -> ScriptedDevice:
    return ScriptedDevice(model, features=word | model.features, **how)  # type: ignore[arg-type]


@pytest.mark.spec("RSV-05")
@pytest.mark.parametrize(
    ("choice", "format"), [("auto", PackedQueue), ("packed", PackedQueue), ("split", SplitQueue)]
)
def test_packed_is_taken_where_it_is_offered_unless_split_is_asked_for(choice: RingChoice, format: type):
    device_ = scripted(Rng(), WORDS["packed+all"])
    with identify(device_, choice) as device, RngDriver(device) as rng:
        assert isinstance(device.queues[0].ring, format)
        assert device.has(f.RING_PACKED) is (format is PackedQueue)
        assert rng.read(100) == bytes(range(100))
    device_.assert_left()


def test_where_it_is_not_offered_auto_is_split_and_packed_is_an_error():
    device_ = scripted(Rng(), PLAIN)
    with identify(device_) as device, RngDriver(device):
        assert isinstance(device.queues[0].ring, SplitQueue)
    device_ = scripted(Rng(), PLAIN)
    with identify(device_, "packed") as device:
        with pytest.raises(FeatureMissing, match="RING_PACKED"):
            RngDriver(device)
        assert device_.status_now == 0, "it was left in order"


@pytest.mark.spec("PCI-COM-02", "PKD-20")
@pytest.mark.parametrize("size", [1, 3, 5, 100, 255, 32767])
def test_a_packed_queue_may_have_any_size(size: int):
    device_ = scripted(Rng(), PACKED, queue_size={0: size})
    with identify(device_) as device, RngDriver(device) as rng:
        assert device.queues[0].ring.size == min(size, 8)
        for _ in range(2 * size if size < 10 else 20):
            assert len(rng.read(3)) == 3
    device_.assert_left()


@pytest.mark.fault(13)
@pytest.mark.parametrize(("word", "size"), [(PLAIN, 3), (PLAIN, 65535), (PACKED, 32769)])
def test_a_size_that_the_format_does_not_have_is_refused(word: int, size: int):
    device_ = scripted(Rng(), word, queue_size={0: size})
    with identify(device_) as device, pytest.raises(QueueError) as caught:
        RngDriver(device)
    assert caught.value.seen == size
    device_.assert_left()


@every_word
def test_rng(word: int):
    device_ = scripted(Rng(at_most=7), word)
    with identify(device_) as device, RngDriver(device) as rng:
        assert device.features == word
        assert rng.read(300) == bytes(number & 0xFF for number in range(300))
    device_.assert_left()


@every_word
def test_balloon(word: int):
    device_ = scripted(Balloon(features=f.mask(f.Balloon.STATS_VQ)), word)
    with identify(device_) as device, BalloonDriver(device) as balloon:
        assert balloon.inflate(600) == 600
        assert len(device_.model.frames) == 600
        assert balloon.deflate(500) == 100
    assert not device_.model.frames
    device_.assert_left()


@every_word
def test_input(word: int):
    device_ = scripted(Input(), word)
    with identify(device_) as device, InputDriver(device) as keyboard:
        for turn in range(5):
            assert device_.model.inject(*[(1, 30 + turn, 1), (0, 0, 0)] * 20) == 40
            assert keyboard.read(timeout=2) == [InputEvent(1, 30 + turn, 1), InputEvent(0, 0, 0)] * 20
        assert keyboard.dropped == 0
    device_.assert_left()


@every_word
def test_mem(word: int):
    device_ = scripted(Mem(), word)
    with identify(device_) as device, MemDriver(device) as mem:
        answered = device.queues[mem_spec.GUEST_REQUESTQ].completions
        assert mem.state(mem.addr, 1) is State.UNPLUGGED
        assert device.queues[mem_spec.GUEST_REQUESTQ].completions == answered + 1
    device_.assert_left()


@every_word
def test_a_lie_on_any_of_them_breaks_the_device_and_is_left_in_order(word: int):
    device_ = scripted(Rng(), word)
    device_.lies.used_id = lambda ident: ident + 1
    with identify(device_) as device, RngDriver(device) as rng:
        with pytest.raises(RingCorruption):
            rng.read(10)
        assert device.broken is not None
    device_.assert_left()
