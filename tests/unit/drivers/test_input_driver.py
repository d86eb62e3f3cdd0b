"""The input driver whole (5.8), on a scripted device: description, frames, floods, a status queue that starves."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from uvirtio import opening
from uvirtio.device import unobserved
from uvirtio.diag import datapath
from uvirtio.drivers.input import SLOTS_MAX, AbsInfo, Description, Frame, InputEvent, InputIds, InputState
from uvirtio.drivers.input import Input as Driver
from uvirtio.errors import DeviceBroken, DeviceResetByOther, NotSupported, UsageError
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.input import Input
from uvirtio.scripted.pci import BAR, DEVICE_AT, ScriptedDevice, virtio_capability
from uvirtio.spec import input as spec
from uvirtio.spec import pci

SHORT, LONG = 0.02, 30.0
Select = spec.Select
KEY, ABS, LED, SND, MSC = spec.EV_KEY, spec.EV_ABS, spec.EV_LED, spec.EV_SND, spec.EV_MSC
SLOT, TRACKING, X = spec.ABS_MT_SLOT, spec.ABS_MT_TRACKING_ID, 0x35
SYN = (0, 0, 0)


def bits(*codes: int) -> bytes:
    mask = bytearray(max(codes) // 8 + 1)
    for code in codes:
        mask[code // 8] |= 1 << code % 8
    return bytes(mask)


def absinfo(*numbers: int) -> bytes:
    return struct.pack("<5i", *numbers)


TOUCH = {
    (Select.PROP_BITS, 0): bits(1),
    (Select.EV_BITS, KEY): bits(0x14A),
    (Select.EV_BITS, ABS): bits(0, SLOT, X, TRACKING),
    (Select.ABS_INFO, 0): absinfo(0, 4095, 8, 16, 31),
    (Select.ABS_INFO, SLOT): absinfo(0, 4, 0, 0, 0),
    (Select.ABS_INFO, X): absinfo(0, 4095, 0, 0, 31),
    (Select.ABS_INFO, TRACKING): absinfo(0, 65535, 0, 0, 0),
}
LEDS = {(Select.EV_BITS, LED): bits(0, 1, 2), (Select.EV_BITS, SND): bits(1)}


class Rig:
    """A driver that is up, and both ends of it."""

    def __init__(self, answers: dict[tuple[int, int], bytes] | None = None, *, limit: int = 8192, **how: object):
        self.model = Input(answers={**LEDS, **(answers or {})})
        self.scripted = ScriptedDevice(self.model, **how)  # type: ignore[arg-type]
        self.device = opening.identify("0000:00:04.0", self.scripted, timeout=LONG)
        self.driver = Driver(self.device, limit=limit)

    def serve(self, *queues: int) -> None:
        """The device, which was silent, does its work."""
        self.scripted.faults.silent_queues = frozenset()
        for queue in queues or (spec.STATUSQ,):
            self.scripted.fetch(queue)

    def leave(self) -> None:
        self.device.close()
        self.scripted.assert_left()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.leave()


@pytest.fixture
def starved() -> Iterator[Rig]:
    """A device that never looks at its status queue."""
    rig = Rig(silent_queues={spec.STATUSQ})
    yield rig
    rig.leave()


# --- what it is (5.8.4, 5.8.5) ------------------------------------------------------------------------------


@pytest.mark.spec("INP-01", "INP-02", "INP-03")
def test_a_description_holds_every_selector():
    rig = Rig(TOUCH)
    about = rig.driver.describe()
    assert (about.name, about.serial, about.ids) == ("scripted keyboard", "1", InputIds(6, 0x0627, 1, 1))
    assert about.properties == {1}
    assert about.events[ABS] == {0, SLOT, X, TRACKING}
    assert about.events[LED] == {0, 1, 2}
    assert about.axes[0] == AbsInfo(0, 4095, 8, 16, 31)
    assert about.slots == 5
    assert about.multi_touch == "B"
    assert about.problems() == []
    assert not rig.driver.findings
    rig.scripted.log.clear()
    assert rig.driver.describe() is about
    assert not rig.scripted.log, "it is asked once"
    rig.leave()


@pytest.mark.fault(80)
@pytest.mark.spec("INP-01")
def test_a_selection_that_does_not_stick_is_no_answer(rig: Rig):
    rig.model.stuck = (Select.ID_NAME, 0)
    assert rig.driver.query(Select.ID_SERIAL) == b""
    assert rig.driver.name == "scripted keyboard", "what is stuck there is there"
    assert rig.driver.findings["selection not kept"] == 1
    assert rig.device.broken is None


def test_the_newest_switch_is_one():
    rig = Rig({(Select.EV_BITS, spec.EV_SW): (1 << 0x11 | 1 << 5).to_bytes(3, "little")})
    assert rig.driver.describe().events[spec.EV_SW] == {5, 0x11}
    assert not rig.driver.findings
    assert spec.code_name(spec.EV_SW, 0x11) == "SW_USB_INSERT"


@pytest.mark.fault(80)
def test_bits_beyond_the_last_code_are_left_out():
    rig = Rig(
        {(Select.EV_BITS, KEY): b"\xff" * 128, (Select.EV_BITS, 0x1F): b"\x01", (Select.PROP_BITS, 0): b"\xff" * 8}
    )
    kinds = rig.driver.event_types()
    assert kinds[KEY] == frozenset(range(0x300))
    assert kinds[0x1F] == {0}, "an unknown type is shown"
    assert rig.driver.codes(KEY) == frozenset(range(0x300))
    assert rig.driver.properties() == frozenset(range(32))
    assert rig.driver.findings["bits beyond the last code"] == 3
    rig.leave()


@pytest.mark.fault(81)
def test_axes_that_cannot_be_are_kept_and_named():
    lie = absinfo(10, -10, -1, 5, -3)
    rig = Rig({**TOUCH, (Select.ABS_INFO, 0): lie, (Select.ABS_INFO, SLOT): absinfo(0, (1 << 31) - 1, 0, 0, 0)})
    about = rig.driver.describe()
    assert about.axes[0] == AbsInfo(10, -10, -1, 5, -3)
    assert about.slots == 1024
    assert "ABS_X: max -10 is below min 10" in rig.driver.findings
    assert "ABS_MT_SLOT: more than 1024 slots" in rig.driver.findings
    rig.leave()


@pytest.mark.parametrize("said", [0, 1, 19])
def test_an_axis_without_a_whole_range_has_none(said: int):
    rig = Rig(TOUCH)
    rig.model.size_lies[Select.ABS_INFO, 0] = said
    about = rig.driver.describe()
    assert 0 not in about.axes
    assert "ABS_X: announced, and no range is given" in rig.driver.findings
    rig.leave()


def test_a_size_beyond_the_payload_is_a_finding(rig: Rig):
    rig.model.size_lies[Select.ID_NAME, 0] = 255
    assert rig.driver.name == "scripted keyboard"
    assert rig.driver.findings["size beyond the payload"] == 1


@pytest.mark.fault(80)
def test_a_longer_configuration_gives_no_longer_payload():
    model = Input(name=b"n" * 128)
    model.size_lies[Select.ID_NAME, 0] = 255
    caps = ScriptedDevice(model).usual_capabilities()
    caps[3] = virtio_capability(pci.CfgType.DEVICE, BAR, DEVICE_AT, 8 + 256)
    scripted = ScriptedDevice(model, capabilities=caps)
    with opening.identify("x", scripted) as device, Driver(device) as driver:
        assert driver.name == "n" * 128
    scripted.assert_left()


# --- frames (5.8.6) -----------------------------------------------------------------------------------------


@pytest.mark.spec("INP-08")
def test_frames_one_by_one(rig: Rig):
    rig.model.inject((KEY, 30, 1), SYN, (KEY, 30, 0), (MSC, 4, 30), SYN, (KEY, 31, 1))
    first, second = rig.driver.frames(timeout=SHORT)
    assert [(one.type, one.code, one.value) for one in first] == [(KEY, 30, 1), SYN]
    assert len(second) == 3
    assert first.time <= second.time
    rig.model.inject(SYN)
    third = rig.driver.read_frame(timeout=LONG)
    assert third is not None
    assert third.events[0] == InputEvent(KEY, 31, 1), "the rest of a frame may come later"


def test_iterating_waits_until_the_device_is_closed(rig: Rig):
    found: list[Frame] = []
    threading.Timer(0.02, lambda: rig.model.inject((KEY, 30, 1), SYN, (KEY, 30, 0), SYN)).start()
    for frame in rig.driver:
        found.append(frame)
        if len(found) == 2:
            break
    assert [frame.events[0].value for frame in found] == [1, 0]


def test_two_fingers_on_a_touch_screen():
    rig = Rig(TOUCH)
    rig.driver.describe()
    rig.model.inject((ABS, TRACKING, 40), (ABS, X, 7), (ABS, SLOT, 1), (ABS, TRACKING, 41), (ABS, X, 9), SYN)
    assert len(rig.driver.read_frame(timeout=LONG) or ()) == 6
    assert [(one.slot, one.id, one.values[X]) for one in rig.driver.state.contacts] == [(0, 40, 7), (1, 41, 9)]
    rig.model.inject((ABS, SLOT, 5), (ABS, X, 1), (ABS, SLOT, 0), (ABS, TRACKING, -1), SYN)
    rig.driver.read_frame(timeout=LONG)
    [left] = rig.driver.state.contacts
    assert (left.slot, left.values[X]) == (1, 1), "a slot that the device has not is ignored"
    rig.leave()


MT = (0, 2, 0)  # SYN_MT_REPORT
Y = spec.ABS_MT_POSITION_Y


def contacts(rig: Rig) -> list[tuple[int, int, dict[int, int]]]:
    rig.driver.read_frame(timeout=LONG)
    return [(one.slot, one.id, dict(one.values)) for one in rig.driver.state.contacts]


def test_fingers_on_a_touch_screen_without_slots():
    """Protocol A: every frame lists all contacts, each ended by SYN_MT_REPORT (multi-touch-protocol.rst)."""
    rig = Rig({(Select.EV_BITS, ABS): bits(X, Y), (Select.ABS_INFO, X): absinfo(0, 9, 0, 0, 0)})
    assert rig.driver.describe().multi_touch == "A"
    rig.model.inject((KEY, 0x14A, 1), (ABS, X, 7), (ABS, Y, 1), MT, (ABS, X, 9), MT, SYN)
    assert contacts(rig) == [(0, 0, {X: 7, Y: 1}), (1, 1, {X: 9})]
    rig.model.inject((ABS, X, 8), (ABS, TRACKING, 40), MT, SYN)
    assert contacts(rig) == [(0, 40, {X: 8, TRACKING: 40})], "the second is lifted: it is not in the frame"
    rig.model.inject((ABS, 0, 3), SYN)
    assert len(contacts(rig)) == 1, "a frame that lists none at all changes none"
    rig.model.inject(MT, SYN)
    assert contacts(rig) == [], "SYN_MT_REPORT alone: there is none"
    rig.model.inject((ABS, X, 5), MT, SYN)
    assert len(contacts(rig)) == 1
    rig.model.inject((KEY, 0x14A, 0), SYN)
    assert contacts(rig) == [], "with BTN_TOUCH the last SYN_MT_REPORT may be left out"
    rig.leave()


def test_a_first_contact_without_a_slot_is_in_none():
    state = InputState(4)
    state.apply(InputEvent(*event) for event in ((ABS, TRACKING, 5), (ABS, X, 9), MT))
    assert state.contacts == (), "its frame is not at its end"
    state.apply([InputEvent(*SYN)])
    assert [one.id for one in state.contacts] == [5]
    state.apply([InputEvent(ABS, SLOT, 1)])
    assert state.contacts == (), "it has slots after all, and nothing was told of them yet"


def test_contacts_without_slots_are_bounded():
    state = InputState()
    state.apply(InputEvent(*event) for _ in range(5000) for event in ((ABS, X, 1), MT))
    state.apply([InputEvent(*SYN)])
    assert len(state.contacts) == SLOTS_MAX


def test_a_device_with_slots_that_reports_contacts_too_keeps_its_slots():
    state = InputState(4)
    state.apply(InputEvent(*event) for event in ((ABS, SLOT, 1), (ABS, TRACKING, 5), (ABS, X, 9), MT, SYN))
    assert [(one.slot, one.id) for one in state.contacts] == [(1, 5)]


def test_from_one_listing_of_contacts_to_another():
    before, after = InputState(), InputState()
    before.apply(InputEvent(*event) for event in ((ABS, X, 1), MT, (ABS, X, 2), MT, SYN))
    after.apply(InputEvent(*event) for event in ((ABS, X, 1), MT, SYN))
    assert before.towards(before.copy()) == []
    assert [(e.type, e.code, e.value) for e in before.towards(after)] == [(ABS, X, 1), MT]
    followed = before.copy()
    followed.apply([*before.towards(after), InputEvent(*SYN)])
    assert [dict(one.values) for one in followed.contacts] == [{X: 1}]
    assert [(e.type, e.code, e.value) for e in before.releases()] == [MT]
    after.apply(InputEvent(*event) for event in (MT, SYN))
    assert after.releases() == []


@pytest.mark.fault(83)
@pytest.mark.spec("INP-04")
def test_a_reader_that_is_too_slow_is_told_and_the_device_is_not_held_up():
    rig = Rig(limit=100)
    sent = 0
    for code in range(1, 101):
        sent += rig.model.inject((KEY, code, 1), SYN, (KEY, code, 0), SYN)
        rig.driver.service()
    assert sent == 400, "every event found a buffer"
    rig.model.inject((KEY, 200, 1), SYN)
    found = list(rig.driver.frames(timeout=SHORT))
    assert found[0].dropped
    assert not any(frame.dropped for frame in found[1:])
    assert sum(map(len, found)) <= 100
    assert rig.driver.lost == 402 - (sum(map(len, found)) - 1), "all but the mark"
    assert rig.driver.state.keys == {200}, "the state knows all of them"
    rig.leave()


@pytest.mark.fault(82)
def test_no_syn_for_ten_thousand_events():
    rig = Rig(limit=20_000)
    for _ in range(200):
        assert rig.model.inject(*[(KEY, 1, 1)] * 50) == 50
        rig.driver.service()
    sizes = [len(frame) for frame in rig.driver.frames(timeout=SHORT)]
    assert sizes == [1024] * 9
    assert rig.driver.read(timeout=SHORT) == [InputEvent(KEY, 1, 1)] * (10_000 - 9 * 1024)
    rig.leave()


@pytest.mark.spec("INP-04")
def test_one_kick_for_a_batch(rig: Rig):
    rig.model.inject(*[(KEY, 1, 1)] * 64)
    before = len([one for one in rig.scripted.log if one.region == "notify"])
    assert len(rig.driver.read(timeout=LONG)) == 64
    assert len([one for one in rig.scripted.log if one.region == "notify"]) <= before + 1


@pytest.mark.spec("INP-07")
def test_events_of_no_known_type_disturb_nothing(rig: Rig):
    rig.model.inject((0x99, 1, 1), (0xFFFF, 0xFFFF, -1), (KEY, 0xFFFF, 1), (KEY, 30, 1), SYN)
    frame = rig.driver.read_frame(timeout=LONG)
    assert frame is not None
    assert len(frame) == 5
    assert rig.driver.state.keys == {30}
    assert not rig.driver.findings
    assert rig.device.broken is None


# --- for an event loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [0, 1, 3])
def test_async_for(vectors: int):
    rig = Rig(vectors=vectors)

    async def some() -> list[int]:
        asyncio.get_running_loop().call_later(
            0.02, lambda: rig.model.inject((KEY, 30, 1), SYN, (KEY, 31, 1), SYN, (KEY, 32, 1), SYN)
        )
        found = []
        async for frame in rig.driver:
            found.append(frame.events[0].code)
            rig.driver.set_led(1, True)
            if len(found) == 3:
                break
        return found

    assert asyncio.run(some()) == [30, 31, 32]
    assert rig.model.statuses == [(LED, 1, 1)] * 3
    rig.leave()


@pytest.mark.parametrize("vectors", [3, 1, 0])
def test_async_for_in_a_storm_of_interrupts(vectors: int):
    rig = Rig(vectors=vectors)
    rig.scripted.storm()

    async def press_when_it_is_noticed() -> None:
        while not rig.device.counters.interrupt_storms:
            await asyncio.sleep(0.01)
        rig.model.inject((KEY, 30, 1), SYN)

    async def first() -> Frame:
        beside = asyncio.create_task(press_when_it_is_noticed())
        async for frame in rig.driver:
            await beside
            return frame
        raise AssertionError("it ended")

    async def in_time() -> Frame:
        return await asyncio.wait_for(first(), LONG)

    assert asyncio.run(in_time()).events[0].code == 30
    rig.scripted.storm(False)
    rig.leave()


def test_async_for_sleeps_while_there_is_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    looks = 0
    service = rig.driver.service

    def counted() -> None:
        nonlocal looks
        looks += 1
        service()

    monkeypatch.setattr(rig.driver, "service", counted)

    async def wait() -> float:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        loop.call_later(0.05, lambda: rig.model.inject((KEY, 30, 1), SYN))
        async for _ in rig.driver:
            return loop.time() - begin
        raise AssertionError

    took = asyncio.run(wait())
    assert 0 < looks <= 4 + 10 * took, "at most ten times a second, and for what came"


def test_async_for_without_interrupts():
    rig = Rig()
    rig.device.close()
    model = Input()
    scripted = ScriptedDevice(model)
    with opening.identify("x", scripted, interrupts=[InterruptMode.POLLING]) as device, Driver(device) as driver:

        async def one() -> Frame:
            model.inject((KEY, 30, 1), SYN)
            async for frame in driver:
                return frame
            raise AssertionError

        assert len(asyncio.run(one())) == 2
    scripted.assert_left()


def test_async_for_ends_with_the_device(rig: Rig):
    async def wait() -> None:
        asyncio.get_running_loop().call_later(0.02, rig.scripted.reset_by_other)
        async for _ in rig.driver:
            pass

    with pytest.raises(DeviceResetByOther):
        asyncio.run(wait())
    with pytest.raises(DeviceBroken):
        rig.driver.service()


def test_a_cancelled_task_leaves_nothing_behind(rig: Rig):
    async def main() -> None:
        async def reader() -> None:
            async for _ in rig.driver:
                pass

        task = asyncio.create_task(reader())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    rig.model.inject((KEY, 30, 1), SYN)
    assert rig.driver.read_frame(timeout=LONG) is not None


# --- the way back (5.8.6) -----------------------------------------------------------------------------------


@pytest.mark.spec("INP-06")
def test_leds_and_sounds_reach_the_device(rig: Rig):
    assert rig.driver.set_led(1, True)
    assert rig.driver.set_led(1, False)
    assert rig.driver.send(SND, 1, 440)
    assert rig.driver.send(LED, 2, -1)
    assert rig.model.statuses == [(LED, 1, 1), (LED, 1, 0), (SND, 1, 440), (LED, 2, -1)]
    assert rig.driver.flush(timeout=LONG)
    assert rig.driver.status_pending == 0
    assert rig.driver.status_lost == 0


def test_a_time_stamp_is_not_sent_back(rig: Rig):
    assert not rig.driver.send(MSC, spec.MSC_TIMESTAMP, 1)
    assert rig.model.statuses == []
    assert rig.driver.status_pending == 0


@pytest.mark.parametrize(
    "most", [(spec.EV_SYN, spec.SYN_REPORT, 0), ((1 << 16) - 1, (1 << 16) - 1, (1 << 31) - 1), (0, 0, -(1 << 31))]
)
def test_every_value_that_fits_is_sent(rig: Rig, most: tuple[int, int, int]):
    assert rig.driver.send(*most)
    assert rig.model.statuses == [most]


@pytest.mark.parametrize(
    "wrong", [(1 << 16, 0, 0), (-1, 0, 0), (0, 1 << 16, 0), (0, -1, 0), (0, 0, 1 << 31), (0, 0, -(1 << 31) - 1)]
)
def test_what_is_no_event_is_not_sent(rig: Rig, wrong: tuple[int, int, int]):
    with pytest.raises(UsageError):
        rig.driver.send(*wrong)
    assert rig.model.statuses == []


def test_an_led_that_is_not_there(rig: Rig):
    with pytest.raises(UsageError, match="LED_MAIL"):
        rig.driver.set_led(9, True)
    assert rig.model.statuses == []


def test_a_device_without_a_status_queue_only_has_no_leds():
    rig = Rig(queue_size={spec.STATUSQ: 0})
    rig.model.inject((KEY, 30, 1), SYN)
    assert rig.driver.read_frame(timeout=LONG) is not None
    with pytest.raises(NotSupported):
        rig.driver.set_led(1, True)
    assert rig.driver.flush(timeout=LONG)
    rig.leave()


@pytest.mark.fault(84)
def test_a_status_queue_that_starves_never_blocks(starved: Rig):
    assert [starved.driver.set_led(1, bool(turn % 2)) for turn in range(64)] == [True] * 64
    for turn in range(1000):
        assert not starved.driver.set_led(turn % 3, turn % 2 == 0)
    assert starved.driver.status_pending == 64 + 3, "the newest of each LED waits"
    assert starved.driver.status_lost == 997
    assert not starved.driver.flush(timeout=SHORT)
    assert starved.device.broken is None, "nothing is owed there"
    starved.model.inject((KEY, 30, 1), SYN)
    assert starved.driver.read_frame(timeout=LONG) is not None, "and events come all the same"


def test_the_newest_values_go_out_when_there_is_room_again(starved: Rig):
    for turn in range(64):
        starved.driver.set_led(0, bool(turn % 2))
    starved.driver.set_led(1, True)
    starved.driver.set_led(2, True)
    starved.driver.set_led(1, False)
    starved.serve()
    starved.driver.service()
    starved.serve()
    assert starved.model.statuses[64:] == [(LED, 2, 1), (LED, 1, 0)]
    assert starved.driver.flush(timeout=LONG)
    assert starved.driver.set_led(2, False)
    starved.serve()
    assert starved.model.statuses[-1] == (LED, 2, 0)


def test_values_that_wait_are_bounded_whatever_the_codes(starved: Rig):
    for code in range(1000):
        starved.driver.send(0x15, code, code)
    assert starved.driver.status_pending == 64 + 64
    assert starved.driver.status_lost == 1000 - 128


def test_the_length_that_the_device_gives_for_a_status_does_not_matter(rig: Rig):
    rig.scripted.lies.used_len = lambda _written: 8  # QEMU says so, of a buffer that it can only read
    rig.driver.send(LED, 1, 1)
    assert rig.driver.flush(timeout=LONG)
    assert rig.driver.send(LED, 1, 0)
    assert rig.device.broken is None


# --- against a model ----------------------------------------------------------------------------------------


class Keyboards(RuleBasedStateMachine):
    """A driver and its device, whatever they do in turn: events in order, LEDs newest last, nothing stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(limit=10_000)
        self.sent: list[InputEvent] = []
        self.got: list[InputEvent] = []
        self.down: set[int] = set()
        self.leds: dict[int, int] = {}

    def teardown(self) -> None:
        self.rig.leave()

    @rule(codes=st.lists(st.integers(1, 40), max_size=30), value=st.integers(0, 1))
    def host_types(self, codes: list[int], value: int) -> None:
        events = [InputEvent(KEY, code, value) for code in codes] + [InputEvent(*SYN)]
        given = self.rig.model.inject(*[(one.type, one.code, one.value) for one in events])
        for one in events[:given]:  # a device without buffers drops the rest, as QEMU's does
            if one.type == KEY:
                (self.down.add if one.value else self.down.discard)(one.code)
        self.sent += events[:given]

    @rule()
    def read(self) -> None:
        self.got += self.rig.driver.read(timeout=0)

    @rule()
    def read_frame(self) -> None:
        self.got += self.rig.driver.read_frame(timeout=0) or ()

    @rule()
    def service(self) -> None:
        self.rig.driver.service()

    @rule(code=st.integers(0, 2), on=st.booleans(), times=st.integers(1, 80))
    def leds_change(self, code: int, on: bool, times: int) -> None:
        for turn in range(times):
            self.leds[code] = int(on) ^ turn & 1
            self.rig.driver.set_led(code, bool(self.leds[code]))

    @rule()
    def host_stops_looking_at_leds(self) -> None:
        self.rig.scripted.faults.silent_queues = frozenset({spec.STATUSQ})

    @rule()
    def host_looks_again(self) -> None:
        self.rig.serve(spec.STATUSQ)

    @rule()
    def all_settles(self) -> None:
        self.rig.serve(spec.STATUSQ)
        self.got += self.rig.driver.read(timeout=0)
        self.rig.serve(spec.STATUSQ)
        assert self.rig.driver.flush(timeout=LONG)
        self.got += self.rig.driver.read(timeout=0)
        assert self.got == self.sent
        assert self.rig.driver.state.keys == self.down
        seen: dict[int, int] = {code: value for _, code, value in self.rig.model.statuses}
        assert seen == self.leds

    @invariant()
    def in_order(self) -> None:
        assert self.got == self.sent[: len(self.got)]
        assert self.rig.driver.lost == 0
        assert self.rig.driver.status_pending <= 64 + 3


TestKeyboards = Keyboards.TestCase
TestKeyboards.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_description_needs_only_a_name():
    assert Description("x").slots == 0
    assert Description("x").can(0, 0)
    assert not Description("x").can(KEY, 30)


# --- what diag makes of it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "answers", "said", "odd"),
    [
        ({}, {}, "it acknowledged an LED", ""),
        ({"silent_queues": {spec.STATUSQ}}, {}, "scripted keyboard", "does not serve its status queue"),
        ({}, {**TOUCH, (Select.ABS_INFO, 0): absinfo(1, 0, 0, 0, 0)}, "5 contacts", "max 0 is below min 1"),
    ],
)
def test_diag_tries_an_led_and_tells_what_is_odd(
    how: dict[str, object], answers: dict[tuple[int, int], bytes], said: str, odd: str
):
    scripted = ScriptedDevice(Input(answers={**LEDS, **answers}), **how)  # type: ignore[arg-type]
    with opening.identify("x", scripted, timeout=0.1) as device:
        path = datapath.for_device(device)
        path.start(unobserved)
        outcome = path.exercise()
        assert said in outcome.detail
        assert odd in outcome.suspicious
        assert not outcome.skipped, "an LED is traffic, although no key can be pressed"
    scripted.assert_left()
