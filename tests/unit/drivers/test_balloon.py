"""The balloon driver (5.5) on a scripted device: the books, the order of things, and hosts that misbehave."""

from __future__ import annotations

import struct
import threading
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.device.test_deadlines import VirtualClock
from uvirtio import opening, scripted
from uvirtio.device import Device
from uvirtio.drivers.balloon import Balloon as Driver
from uvirtio.drivers.balloon.pages import Chunk, Pages
from uvirtio.errors import (
    BadSize,
    Closed,
    ConfigError,
    DeviceBroken,
    DeviceTimeout,
    NotSupported,
    OperationFailed,
    PagemapHidden,
    PageMoved,
    RingCorruption,
)
from uvirtio.scripted import memory
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.memory import ScriptedBlock, ScriptedDma
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import balloon as spec
from uvirtio.spec import features as f
from uvirtio.spec.page import VIRTIO_PAGE

INFLATE, DEFLATE = spec.INFLATEQ, spec.DEFLATEQ
CHUNK = (16 << 20) // VIRTIO_PAGE
SHORT = 0.1
LONG = 30.0


def identify(scripted: ScriptedDevice, timeout: float = LONG) -> Device:
    return opening.identify("0000:00:04.0", scripted, timeout=timeout)


class Rig:
    """A driver that is up, and both ends of it."""

    def __init__(self, model: Balloon | None = None, *, timeout: float = LONG, **how: object) -> None:
        self.model = model or Balloon()
        self.scripted = ScriptedDevice(self.model, **how)  # type: ignore[arg-type]
        self.device = identify(self.scripted, timeout)
        self.driver = Driver(self.device)

    def answer(self) -> None:
        """Acknowledge what the host kept waiting."""
        for index, queue in enumerate(self.scripted.queues):
            assert queue.ring is not None
            for chain in list(queue.ring.out.values()):
                self.scripted.complete(index, chain)

    def leave(self) -> None:
        self.device.close()
        self.scripted.assert_left()
        assert self.model.actual == 0

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.model.requests]

    @property
    def pinned(self) -> list[ScriptedBlock]:
        return [block for block in self.scripted.memory.open_blocks() if not block.mapped]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.leave()


class Enough(BaseException):
    """Why a call was interrupted."""


# --- the books ----------------------------------------------------------------------------------------------


@pytest.mark.spec("BAL-03", "BAL-07", "BAL-08", "BAL-09")
@pytest.mark.parametrize("pages", [0, 1, 255, 256, 257, 600])
@pytest.mark.parametrize("translated", [False, True])
def test_pages_go_and_come_back(pages: int, translated: bool):
    rig = Rig(access_platform=translated)
    assert rig.driver.inflate(pages) == rig.driver.held == rig.model.actual == pages
    assert len(rig.model.frames) == pages
    assert all(len(pfns) <= spec.PFNS_PER_BUFFER for _, pfns in rig.model.requests)
    assert [frame for _, pfns in rig.model.requests for frame in pfns] == [
        frame for block in rig.pinned for frame in block.frames
    ][:pages], "frames are guest-physical whatever the rings use"
    assert rig.driver.deflate(pages) == rig.model.actual == 0
    assert not rig.model.frames and not rig.pinned
    rig.leave()


@pytest.mark.spec("BAL-07", "BAL-09")
def test_actual_follows_the_acknowledgements_in_one_store(rig: Rig):
    rig.driver.inflate(600)
    rig.driver.deflate(300)
    assert rig.model.actual_writes == [600, 300], "once for the buffers of a chunk"
    assert rig.kinds == ["inflate"] * 3 + ["deflate"] * 2
    stores = [access for access in rig.scripted.log if access[:2] == ("write", "device")]
    assert {(access.offset, access.width) for access in stores} == {(spec.ACTUAL, 4)}


def test_more_than_one_chunk(rig: Rig):
    rig.driver.inflate(CHUNK + 1)
    assert [block.size for block in rig.pinned] == [CHUNK * VIRTIO_PAGE, VIRTIO_PAGE]
    rig.driver.deflate(2)
    assert len(rig.pinned) == 1
    rig.driver.inflate(1)
    assert len(rig.pinned) == 1, "the room of the chunk is used again"
    assert rig.driver.held == CHUNK == len(rig.model.frames)


def test_progress_is_told_after_each_chunk(rig: Rig):
    told: list[int] = []
    rig.driver.inflate(CHUNK + 520, progress=told.append)
    rig.driver.deflate(CHUNK + 520, progress=told.append)
    assert told == [CHUNK, CHUNK + 520, CHUNK, 0], "what is sent together counts together"


def test_a_deflate_that_is_late_ends_behind_a_chunk_and_breaks_nothing():
    """The time-out is of the whole call, also where each answer comes at once."""
    clock, scripted_ = VirtualClock(), ScriptedDevice(Balloon())
    scripted_.clock = clock  # type: ignore[attr-defined]
    with identify(scripted_) as device, Driver(device) as driver:
        driver.inflate(CHUNK + 2)
        with pytest.raises(DeviceTimeout, match=f"after 0.1 s, before all was done: {CHUNK - 8} pages less"):
            driver.deflate(CHUNK - 6, timeout=SHORT, progress=lambda _: clock.sleep(2 * SHORT))
        assert driver.held == driver.actual == CHUNK and device.broken is None
    scripted_.assert_left()


def test_the_next_chunk_is_pinned_while_the_host_has_the_last_one(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    out: list[int] = []
    pin = ScriptedDma.pin

    def watched(self: ScriptedDma, size: int) -> ScriptedBlock:
        out.append(len(rig.model.frames) - rig.driver.held)
        return pin(self, size)

    monkeypatch.setattr(ScriptedDma, "pin", watched)
    rig.driver.inflate(2 * CHUNK + 300)
    assert out == [0, CHUNK, CHUNK], "pages that the host has and did not acknowledge yet"
    assert [block.size // VIRTIO_PAGE for block in rig.pinned] == [CHUNK, CHUNK, 300]


@pytest.mark.parametrize("error", [MemoryError, OperationFailed, NotSupported])
def test_a_chunk_that_cannot_be_pinned_ahead_costs_none_of_the_pages_that_are_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
):
    asked = 0

    def none_left(self: ScriptedDma, size: int) -> ScriptedBlock:
        nonlocal asked
        asked += 1
        if asked == 1:
            return pin(self, size)
        raise error("no more")

    pin = ScriptedDma.pin
    with monkeypatch.context() as patched, pytest.raises(error):
        patched.setattr(ScriptedDma, "pin", none_left)
        rig.driver.inflate(CHUNK + 1)
    assert asked == 3, "ahead, and once more to tell why"
    assert rig.driver.held == rig.model.actual == len(rig.model.frames) == CHUNK
    assert rig.driver.inflate(1) == CHUNK + 1, "it is not the device's fault"


def test_what_was_pinned_ahead_and_is_not_wanted_any_more_is_freed(rig: Rig):
    rig.model.set_target(3 * CHUNK)
    rig.driver.follow(timeout=0.01, progress=lambda held: rig.model.set_target(CHUNK))
    assert rig.driver.held == CHUNK
    assert [block.size // VIRTIO_PAGE for block in rig.pinned] == [CHUNK]


class Packed(ScriptedBlock):
    """A block that gives its frame numbers packed."""

    def packed_pfns(self) -> array[int]:
        return array("I", self.frames)


@pytest.mark.parametrize("packed", [False, True])
def test_a_page_in_the_balloon_costs_at_most_ten_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch, packed: bool):
    if packed:  # as the blocks of this kernel's back ends
        monkeypatch.setattr(memory, "ScriptedBlock", Packed)
    rig.driver.inflate(1)  # what does not grow with the pages
    ours = [tracemalloc.Filter(True, f"{Path(opening.__file__).parent}/*"), tracemalloc.Filter(True, __file__)]
    ours.append(tracemalloc.Filter(False, f"{Path(scripted.__file__).parent}/*"))
    tracemalloc.start()
    try:
        rig.driver.inflate(4 * CHUNK)
        kept = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)
    finally:
        tracemalloc.stop()
    assert 4 * 4 * CHUNK <= kept <= 10 * 4 * CHUNK, "bytes; four of a page are its frame number"


@pytest.mark.parametrize(
    ("call", "pages"), [("inflate", -1), ("inflate", 1 << 32), ("deflate", -1), ("deflate", 4)]
)
def test_numbers_that_make_no_sense(rig: Rig, call: str, pages: int):
    rig.driver.inflate(3)
    with pytest.raises(BadSize):
        getattr(rig.driver, call)(pages)
    assert rig.driver.held == 3 and rig.device.broken is None


@pytest.mark.spec("BAL-F01", "BAL-F02")
@pytest.mark.parametrize("bit", [None, *f.Balloon])
def test_only_what_is_driven_is_accepted(bit: int | None):
    rig = Rig(Balloon(features=0 if bit is None else f.mask(bit)))
    driven = (f.Balloon.MUST_TELL_HOST, f.Balloon.STATS_VQ, f.Balloon.DEFLATE_ON_OOM)
    taken = f.mask(bit) if bit in driven else 0  # the others need an option
    assert rig.device.features & f.DEVICE_TYPE_MASK == taken
    rig.driver.inflate(2)
    rig.leave()


@pytest.mark.spec("CFG-04")
@pytest.mark.parametrize("length", [8, 12, 16])
def test_optional_configuration_is_not_touched(length: int):
    rig = Rig(Balloon(config_length=length))
    rig.driver.inflate(2)
    assert (rig.driver.num_pages, rig.driver.actual) == (0, 2)
    rig.leave()
    assert all(access.offset < 8 for access in rig.scripted.log if access.region == "device")


@pytest.mark.spec("CFG-06")
def test_a_configuration_without_actual_is_an_error_and_not_a_crash():
    rig = Rig(Balloon(config_length=4))
    with pytest.raises(ConfigError):
        rig.driver.inflate(1)
    rig.device.close()
    rig.scripted.assert_left()


# --- the order of things (5.5.6.1) --------------------------------------------------------------------------


@pytest.mark.spec("BAL-05", "BAL-06", "CLN-01")
def test_an_interrupted_inflate_is_settled_before_anything_else():
    rig = Rig()
    rig.driver.inflate(10)
    rig.model.hold = True
    rig.device.interrupt(Enough())
    with pytest.raises(Enough):
        rig.driver.inflate(5)
    assert (rig.driver.held, rig.model.actual) == (10, 10), "not acknowledged, so not counted"
    timer = threading.Timer(0.05, rig.answer)
    rig.model.hold = False
    timer.start()
    assert rig.driver.deflate(15) == 0  # waits for the inflate first
    timer.join()
    assert rig.kinds == ["inflate", "inflate", "deflate", "deflate"]
    assert rig.model.actual_writes == [10, 15, 10, 0]
    assert not rig.model.frames
    rig.leave()


@pytest.mark.spec("BAL-04", "BAL-05", "CLN-01")
def test_an_interrupted_deflate_of_many_buffers_is_settled_as_one():
    rig = Rig()
    rig.driver.inflate(5000)  # two chunks
    rig.model.hold = True
    rig.device.interrupt(Enough())
    with pytest.raises(Enough):
        rig.driver.deflate(900)  # less than the second chunk has
    assert rig.kinds[-4:] == ["deflate"] * 4
    assert rig.driver.held == rig.model.actual == 5000, "not acknowledged, so not counted"
    rig.answer()
    rig.model.hold = False
    assert rig.driver.deflate(0) == rig.model.actual == 4100
    assert rig.driver.deflate(4100) == 0
    assert not rig.model.frames
    rig.leave()


@pytest.mark.fault(58)
@pytest.mark.spec("BAL-04", "BAL-05")
@pytest.mark.parametrize("features", [0, f.mask(f.Balloon.MUST_TELL_HOST)])
def test_an_interrupted_deflate_is_settled_before_the_page_is_free(features: int):
    rig = Rig(Balloon(features=features))
    rig.driver.inflate(10)
    rig.model.hold = True
    rig.device.interrupt(Enough())
    with pytest.raises(Enough):
        rig.driver.deflate(10)
    assert rig.kinds == ["inflate", "deflate"]
    assert len(rig.pinned) == 1 and rig.driver.held == 10, "the host has not let go of them yet"
    rig.answer()
    rig.model.hold = False
    assert rig.driver.inflate(3) == 3
    assert rig.kinds == ["inflate", "deflate", "inflate"]
    rig.leave()


@pytest.mark.parametrize("call", ["inflate", "deflate"])
def test_an_interruption_in_mid_batch_and_then_leaving(call: str):
    rig = Rig()
    rig.driver.inflate(600)
    rig.model.hold = True
    rig.device.interrupt(Enough())
    with pytest.raises(Enough):
        getattr(rig.driver, call)(300)
    rig.model.hold = False
    rig.answer()
    rig.leave()
    assert rig.kinds[-1] == "deflate"
    deflated = [frame for kind, pfns in rig.model.requests if kind == "deflate" for frame in pfns]
    inflated = [frame for kind, pfns in rig.model.requests if kind == "inflate" for frame in pfns]
    assert sorted(deflated) == sorted(inflated), "each page once in, once out"


@pytest.mark.parametrize("call", ["inflate", "deflate"])
def test_an_interruption_while_acknowledgements_are_noted_loses_none(monkeypatch: pytest.MonkeyPatch, call: str):
    rig = Rig()
    rig.driver.inflate(1000)
    noted, note = 0, Pages.note

    def interrupted(self: Pages, chunk: Chunk, held: int) -> None:
        nonlocal noted
        noted += 1
        if noted == 2:
            raise Enough
        note(self, chunk, held)

    with monkeypatch.context() as patched, pytest.raises(Enough):
        patched.setattr(Pages, "note", interrupted)
        getattr(rig.driver, call)(700)
    assert (
        rig.driver.inflate(0) == rig.model.actual == len(rig.model.frames) == (1700 if call == "inflate" else 300)
    )
    rig.leave()


@pytest.mark.fault(57)
@pytest.mark.spec("BAL-04", "BAL-05", "BAL-06", "CLN-02")
@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
def test_an_acknowledgement_that_never_comes(queue: int):
    rig = Rig(timeout=SHORT)
    rig.driver.inflate(10)
    marked = rig.pinned
    for block in marked:
        block.view[:] = b"\x77" * block.size
    rig.scripted.faults.silent_queues = {queue}
    with pytest.raises(DeviceTimeout):
        rig.driver.inflate(5) if queue == INFLATE else rig.driver.deflate(5)
    assert rig.driver.held == 10
    with pytest.raises(DeviceBroken):
        rig.driver.inflate(1)
    freed: list[tuple[int, bool]] = []
    untouched: list[bool] = []

    def on_free(block: ScriptedBlock) -> None:
        freed.append((rig.scripted.status_now, rig.scripted.master))
        if block in marked:
            untouched.append(bytes(block.view) == b"\x77" * block.size)

    rig.scripted.memory.on_free = on_free
    rig.leave()
    assert set(freed) == {(0, False)}, "the pages are kept until the reset is confirmed"
    assert untouched == [True]
    assert rig.model.actual_writes[-1] == 0 and rig.driver.held == 0


@pytest.mark.fault(58)
def test_a_host_that_stays_silent_while_everything_is_given_back():
    rig = Rig(timeout=SHORT)
    rig.driver.inflate(600)
    rig.scripted.faults.silent = True
    rig.leave()
    assert isinstance(rig.device.broken, DeviceTimeout)


def _twice(scripted: ScriptedDevice) -> None:
    scripted.lies.duplicate = True


def _wrong_id(scripted: ScriptedDevice) -> None:
    scripted.lies.used_id = lambda head: head + 5


def _jump(scripted: ScriptedDevice) -> None:
    scripted.lies.used_idx = lambda index: index + 9


@pytest.mark.parametrize("lie", [_twice, _wrong_id, _jump])
def test_a_lie_about_the_ring_ends_it(lie: Callable[[ScriptedDevice], None]):
    rig = Rig(timeout=SHORT)
    rig.driver.inflate(10)
    lie(rig.scripted)
    with pytest.raises(RingCorruption):
        rig.driver.inflate(10)
    assert rig.driver.held == 10
    rig.leave()


@pytest.mark.fault(36)
def test_a_used_length_where_nothing_was_writable_is_let_go(rig: Rig):
    rig.scripted.lies.used_len = lambda written: 1024
    assert rig.driver.inflate(10) == 10
    assert rig.device.queues[INFLATE].ring.findings == {"used-length-on-read-only-chain": 1}


# --- frame numbers ------------------------------------------------------------------------------------------


def _pin_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[ScriptedBlock], None]) -> None:
    pin = ScriptedDma.pin

    def changed(self: ScriptedDma, size: int) -> ScriptedBlock:
        block = pin(self, size)
        change(block)
        return block

    monkeypatch.setattr(ScriptedDma, "pin", changed)


def _zero(block: ScriptedBlock) -> None:
    block.frames[-1] = 0


def _too_high(block: ScriptedBlock) -> None:
    block.frames[-1] = 1 << 32


@pytest.mark.parametrize(("change", "error"), [(_zero, PagemapHidden), (_too_high, NotSupported)])
def test_a_frame_that_cannot_be_told_is_not_told(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[ScriptedBlock], None],
    error: type[Exception],
):
    with monkeypatch.context() as patched:
        _pin_with(patched, change)
        with pytest.raises(error):
            rig.driver.inflate(3)
    assert not rig.model.requests and not rig.pinned
    assert rig.driver.inflate(3) == 3, "it is not the device's fault"


def test_the_last_frame_that_can_be_told(monkeypatch: pytest.MonkeyPatch):
    rig = Rig()
    with monkeypatch.context() as patched:
        _pin_with(patched, lambda block: block.frames.__setitem__(-1, (1 << 32) - 1))
        rig.driver.inflate(3)
    assert rig.model.requests[0][1][-1] == 0xFFFFFFFF
    rig.leave()


@pytest.mark.fault(61)
def test_a_hidden_pagemap():
    rig = Rig()
    rig.scripted.memory.pagemap_hidden = True
    with pytest.raises(PagemapHidden):
        rig.driver.inflate(1)
    assert not rig.pinned and not rig.model.requests
    rig.leave()


@pytest.mark.fault(61)
@pytest.mark.parametrize("page", [0, 2, 299])
def test_a_page_that_moved_is_noticed(page: int):
    rig = Rig()

    def move(held: int) -> None:
        if held == 300:
            rig.pinned[0].move(page)

    with pytest.raises(PageMoved) as caught:
        rig.driver.inflate(300, progress=move)
    assert str(caught.value.seen).startswith(f"page {page}: frame ")
    with pytest.raises(DeviceBroken):
        rig.driver.inflate(1)
    rig.leave()


# --- following the target -----------------------------------------------------------------------------------


@pytest.mark.spec("BAL-01", "BAL-02")
def test_the_target_is_followed_up_and_down_and_not_beyond(rig: Rig):
    for target, kinds in ((300, ["inflate"] * 2), (300, []), (400, ["inflate"]), (20, ["deflate"] * 3)):
        rig.model.requests.clear()
        rig.model.set_target(target)
        rig.driver.follow(timeout=0.01)
        assert rig.driver.held == rig.model.actual == target
        assert rig.kinds == kinds


@pytest.mark.fault(56)
@pytest.mark.spec("BAL-02")
@pytest.mark.parametrize(("features", "left"), [(0, 50), (f.mask(f.Balloon.DEFLATE_ON_OOM), 20)])
def test_the_limit_is_kept_and_obeyed_downwards_where_that_is_allowed(features: int, left: int):
    rig = Rig(Balloon(features=features))
    rig.model.set_target(0xFFFFFFFF)
    rig.driver.follow(limit=50, timeout=0.01)
    assert rig.driver.held == 50
    rig.driver.follow(limit=20, timeout=0.01)
    assert rig.driver.held == left, "what the host has asked for and got is not taken back (5.5.6.1)"
    rig.leave()


@pytest.mark.fault(56)
@pytest.mark.spec("BAL-01", "BAL-02")
@pytest.mark.parametrize("features", [0, f.mask(f.Balloon.DEFLATE_ON_OOM)])
def test_a_target_below_the_limit_is_followed_as_it_is(features: int):
    rig = Rig(Balloon(features=features))
    for target in (30, 50, 49, 10, 0):
        rig.model.set_target(target)
        rig.driver.follow(limit=50, timeout=0.01)
        assert rig.driver.held == target, "a limit is not a target"
    rig.leave()


@pytest.mark.fault(60)
@pytest.mark.parametrize(("first", "then"), [(9000, 100), (5000, 8200), (4600, 0)])
def test_a_host_that_changes_its_mind_is_followed_within_a_chunk(rig: Rig, first: int, then: int):
    highest = 0

    def progress(held: int) -> None:
        nonlocal highest
        highest = max(highest, held)
        if held == CHUNK:
            rig.model.set_target(then)

    rig.model.set_target(first)
    rig.driver.follow(timeout=0.01, progress=progress)
    assert rig.driver.held == then
    assert highest == max(then, CHUNK)


@pytest.mark.spec("BAL-01", "PCI-CHG-01")
def test_a_new_target_wakes_the_follower():
    rig = Rig()
    thread = threading.Timer(0.05, lambda: rig.model.set_target(77))
    thread.start()

    def progress(held: int) -> None:
        rig.device.interrupt(Enough())

    with pytest.raises(Enough):
        rig.driver.follow(progress=progress)
    thread.join()
    assert rig.model.actual == 77
    rig.leave()


class Oscillating(Balloon):
    """Names another target at each look, without a notification."""

    def __init__(self, targets: list[int], until: int, stop: Callable[[], None]) -> None:
        super().__init__()
        self.targets, self.until, self.stop = targets, until, stop
        self.looks = 0

    def read_config(self, offset: int, width: int) -> int:
        if offset != spec.NUM_PAGES:
            return super().read_config(offset, width)
        self.looks += 1
        if self.looks == self.until:
            self.stop()
        return self.targets[self.looks % len(self.targets)]


@pytest.mark.fault(56)
@pytest.mark.parametrize("targets", [[0, 5], [5, 0], [0, 0, 5], [3, 9, 1], [0, 1000]])
def test_a_host_that_oscillates_can_be_left(targets: list[int]):
    model = Oscillating(targets, 60, lambda: rig.device.interrupt(Enough()))
    rig = Rig(model)
    with pytest.raises(Enough):
        while True:
            rig.driver.follow(timeout=0.001)  # ends where two looks happen to agree
    assert model.looks < 80, "it can be interrupted at each turn"
    rig.device.close()
    rig.scripted.assert_left()


@pytest.mark.parametrize("moves_at", range(1, 5))  # the fourth look is the last of a pass
def test_a_target_that_moves_without_a_word_while_it_is_looked_at_is_met(moves_at: int):
    class Silent(Oscillating):
        def read_config(self, offset: int, width: int) -> int:
            target = super().read_config(offset, width)
            return target if offset != spec.NUM_PAGES else 5 if self.looks < moves_at else 9

    rig = Rig(Silent([0], -1, lambda: None))
    watchdog = threading.Timer(20, rig.device.close)
    watchdog.start()

    def progress(held: int) -> None:
        if held == 9:
            rig.device.interrupt(Enough())

    with pytest.raises(Enough):
        rig.driver.follow(progress=progress)
    watchdog.cancel()
    rig.device.close()
    rig.scripted.assert_left()


def test_following_ends_when_the_device_is_closed():
    rig = Rig()
    timer = threading.Timer(0.05, rig.device.close)
    timer.start()
    with pytest.raises(Closed):
        rig.driver.follow()
    timer.join()
    rig.leave()


def test_a_target_that_was_set_before_the_start():
    model = Balloon()
    model.config[:4] = struct.pack("<I", 9)
    rig = Rig(model)
    rig.driver.follow(timeout=0.01)
    assert rig.driver.held == 9
    rig.leave()


@pytest.mark.fault(67)
@pytest.mark.parametrize("shown", [0, 7, 0xFFFFFFFF])
def test_an_actual_that_is_not_what_was_written_is_a_finding_and_no_more(shown: int):
    """The books are the driver's: what the host acknowledged is in the balloon, whatever it shows."""
    rig = Rig()
    rig.driver.inflate(5)
    rig.driver.deflate(1)
    assert rig.driver.actual == 4 and rig.driver.findings == {}
    rig.model.actual_stays = shown
    rig.driver.inflate(300)
    assert (rig.driver.held, rig.model.actual_writes[-1]) == (304, 304)
    assert rig.driver.actual == shown
    assert rig.driver.findings == {"actual is not what was written": 2}
    rig.model.set_target(9)
    rig.driver.follow(timeout=0.01)
    assert (rig.driver.held, rig.driver.findings.total()) == (9, 4)  # after the change, and at the end
    rig.device.close()
    rig.scripted.assert_left()
    assert rig.model.actual_writes[-1] == 0


@pytest.mark.fault(67)
def test_an_actual_that_changes_by_itself_is_seen_at_the_next_look():
    rig = Rig()
    rig.driver.inflate(3)
    rig.scripted.change_config(spec.ACTUAL, struct.pack("<I", 2))
    rig.driver.hold(0.01)
    assert rig.driver.findings == {}
    assert rig.driver.actual == 2 and rig.driver.findings == {"actual is not what was written": 1}
    rig.driver.inflate(1)
    assert rig.driver.actual == 4 and rig.driver.findings.total() == 1  # written again: all is well
    rig.leave()
