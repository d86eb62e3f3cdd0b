"""Frames, the bounded queue they wait in, and the state that they add up to: against a model, without a device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from uvirtio.drivers.input import (
    FRAME_MAX,
    SLOTS_MAX,
    AbsInfo,
    Description,
    EventQueue,
    Frame,
    InputEvent,
    InputState,
)
from uvirtio.drivers.input.driver import decode, encode
from uvirtio.errors import UsageError
from uvirtio.spec import input as spec

SYN = InputEvent(0, 0, 0)
DROPPED = InputEvent(0, 3, 0)
KEY, REL, ABS, SW = spec.EV_KEY, spec.EV_REL, spec.EV_ABS, spec.EV_SW
SLOT, TRACKING, X = spec.ABS_MT_SLOT, spec.ABS_MT_TRACKING_ID, 0x35

words = st.integers(0, 0xFFFF)
values = st.integers(-(1 << 31), (1 << 31) - 1)
any_event = st.builds(InputEvent, words, words, values)


def key(code: int, value: int = 1) -> InputEvent:
    return InputEvent(KEY, code, value)


def queue_of(*events: InputEvent, limit: int = 100) -> EventQueue:
    queue = EventQueue(limit)
    for event in events:
        queue.push(event, 1.5)
    return queue


def all_frames(queue: EventQueue) -> list[Frame]:
    found = []
    while (frame := queue.take_frame()) is not None:
        found.append(frame)
    return found


# --- the codec ----------------------------------------------------------------------------------------------


@pytest.mark.spec("INP-08")
def test_an_event_is_little_endian_and_its_value_signed():
    assert decode(bytes.fromhex("0300350018fcffff")) == InputEvent(3, 0x35, -1000)
    assert encode(InputEvent(0x0102, 0x0304, -2)) == bytes.fromhex("02010403feffffff")


@given(any_event)
def test_the_codec_goes_both_ways(event: InputEvent):
    assert decode(encode(event)) == event


# --- frames -------------------------------------------------------------------------------------------------


@pytest.mark.spec("INP-08")
def test_a_frame_ends_with_its_syn_report():
    queue = queue_of(key(30), SYN, key(30, 0), InputEvent(4, 4, 30), SYN, key(31))
    first, second = all_frames(queue)
    assert first == Frame((key(30), SYN), 1.5)
    assert list(second) == [key(30, 0), InputEvent(4, 4, 30), SYN]
    assert first.complete
    assert not first.dropped
    assert len(queue) == 1, "what is not closed waits"
    assert queue.take() == [key(31)]


def test_events_and_frames_come_from_one_queue():
    queue = queue_of(key(30), SYN, key(31), SYN)
    assert list(queue.take_frame() or ()) == [key(30), SYN]
    assert queue.take() == [key(31), SYN]
    assert queue.take_frame() is None
    assert len(queue) == 0


def test_a_frame_without_an_end_is_ended():
    queue = EventQueue(10 * FRAME_MAX)
    for _ in range(2 * FRAME_MAX + 5):
        queue.push(key(1), 0.0)
    queue.push(SYN, 0.0)
    sizes = [(len(frame), frame.complete) for frame in all_frames(queue)]
    assert sizes == [(FRAME_MAX, False), (FRAME_MAX, False), (6, True)]
    assert queue.lost == 0


def test_a_full_queue_drops_all_and_says_so():
    queue = queue_of(key(1), SYN, key(2), SYN, key(3), key(4), SYN, key(5), SYN, limit=5)
    dropped, after = all_frames(queue)
    assert dropped.dropped
    assert list(dropped) == [DROPPED, SYN]
    assert list(after) == [key(5), SYN]
    assert queue.overflows == 1
    assert queue.lost == 6, "key 1 to 4 and two SYN_REPORTs; the third closes the new frame"


def test_a_full_queue_whose_last_event_closes_a_frame():
    queue = queue_of(key(1), key(2), SYN, limit=2)
    assert [list(frame) for frame in all_frames(queue)] == [[DROPPED, SYN]]
    assert queue.lost == 2


def test_the_rest_of_a_dropped_frame_is_dropped_too():
    queue = queue_of(key(1), key(2), key(3), key(4), key(5), key(6), SYN, key(7), SYN, limit=4)
    assert [list(frame) for frame in all_frames(queue)] == [[DROPPED, SYN], [key(7), SYN]]
    assert queue.lost == 6


def test_a_queue_of_less_than_two_makes_no_sense():
    with pytest.raises(UsageError):
        EventQueue(1)


class Queues(RuleBasedStateMachine):
    """The queue against a plain list: no event is lost uncounted, none comes twice, order holds."""

    LIMIT = 12

    def __init__(self) -> None:
        super().__init__()
        self.queue = EventQueue(self.LIMIT)
        self.sent = 0
        self.got: list[InputEvent] = []
        self.said_dropped = 0

    def _took(self, events: list[InputEvent]) -> None:
        self.said_dropped += events.count(DROPPED)
        self.got += [event for event in events if event != DROPPED]

    @rule(count=st.integers(1, 20))
    def press(self, count: int) -> None:
        for _ in range(count):
            self.sent += 1
            self.queue.push(InputEvent(KEY, 1, self.sent), 0.0)

    @rule()
    def close_frame(self) -> None:
        self.sent += 1
        self.queue.push(InputEvent(0, 0, self.sent), 0.0)

    @rule()
    def take_frame(self) -> None:
        frame = self.queue.take_frame()
        if frame is not None:
            assert frame.complete or len(frame) == FRAME_MAX
            self._took(list(frame))

    @rule()
    def take_all(self) -> None:
        self._took(self.queue.take())

    @precondition(lambda self: self.queue.overflows)
    @rule()
    def empty(self) -> None:
        self._took(self.queue.take())
        assert self.said_dropped == self.queue.overflows or len(self.queue) == 0

    @invariant()
    def nothing_is_lost_uncounted(self) -> None:
        assert len(self.queue) <= self.LIMIT
        numbers = [event.value for event in self.got]
        assert numbers == sorted(set(numbers)), "in order, and none twice"
        waiting = len(self.queue)
        # Those that wait may include one SYN_DROPPED, which was never sent.
        assert 0 <= len(numbers) + waiting + self.queue.lost - self.sent <= 1


TestQueues = Queues.TestCase


# --- state --------------------------------------------------------------------------------------------------


def after(*events: tuple[int, int, int], slots: int = 10) -> InputState:
    state = InputState(slots)
    state.apply(InputEvent(*event) for event in events)
    return state


def test_keys_switches_and_axes():
    state = after((KEY, 30, 1), (KEY, 31, 1), (KEY, 30, 2), (KEY, 31, 0), (SW, 0, 1), (ABS, 0, 5), (ABS, 0, 7))
    assert state.keys == {30}
    assert state.switches == {0}
    assert state.axes == {0: 7}
    assert state.contacts == ()


def test_two_fingers_come_move_and_go():
    state = after((ABS, TRACKING, 7), (ABS, X, 100), (ABS, SLOT, 1), (ABS, TRACKING, 8), (ABS, X, 200))
    assert [(one.slot, one.id, one.values[X]) for one in state.contacts] == [(0, 7, 100), (1, 8, 200)]
    state.apply([InputEvent(ABS, SLOT, 0), InputEvent(ABS, X, 150)])
    assert [(one.slot, one.values[X]) for one in state.contacts] == [(0, 150), (1, 200)]
    state.apply([InputEvent(ABS, TRACKING, -1)])
    assert [one.id for one in state.contacts] == [8]
    assert [event.value for event in state.releases()] == [1, -1]


@pytest.mark.parametrize("slot", [-1, 10, 1024, (1 << 31) - 1, -(1 << 31)])
def test_a_slot_that_is_not_there_is_ignored(slot: int):
    state = after((ABS, SLOT, 3), (ABS, SLOT, slot), (ABS, TRACKING, 5))
    assert [one.slot for one in state.contacts] == [3]


@pytest.mark.fault(82)
@pytest.mark.spec("INP-07")
@given(st.lists(any_event, max_size=200))
def test_whatever_comes_the_state_is_bounded_and_unknown_events_change_nothing(events: list[InputEvent]):
    state = InputState()
    state.apply(events)
    assert all(code < spec.CODE_COUNTS[KEY] for code in state.keys)
    assert all(code < SLOT for code in state.axes)
    assert all(0 <= one.slot < SLOTS_MAX and one.id >= 0 for one in state.contacts)
    unknown = [event for event in events if event.code >= spec.CODE_COUNTS.get(event.type, 0)]
    before = state.copy()
    state.apply(unknown)
    assert not before.towards(state)


plausible = st.one_of(
    st.builds(InputEvent, st.just(KEY), st.integers(0, 6), st.integers(0, 2)),
    st.builds(InputEvent, st.just(SW), st.integers(0, 3), st.integers(0, 1)),
    st.builds(InputEvent, st.just(ABS), st.integers(0, 3), st.integers(-5, 5)),
    st.builds(InputEvent, st.just(ABS), st.just(SLOT), st.integers(-1, 5)),
    st.builds(InputEvent, st.just(ABS), st.sampled_from([X, X + 1, TRACKING]), st.integers(-1, 5)),
)


@given(st.lists(plausible), st.lists(plausible))
def test_the_way_from_one_state_to_another_leads_there(first: list[InputEvent], second: list[InputEvent]):
    here, there = InputState(4), InputState(4)
    here.apply(first)
    there.apply(second)
    here.apply(here.towards(there))
    assert (here.keys, here.switches, here.slot) == (there.keys, there.switches, there.slot)
    assert [(one.slot, one.id) for one in here.contacts] == [(one.slot, one.id) for one in there.contacts]
    for mine, wanted in zip(here.contacts, there.contacts, strict=True):
        assert wanted.values.items() <= mine.values.items()
    assert there.axes.items() <= here.axes.items()
    assert not [event for event in here.towards(there) if event.type != ABS], "and there is no way left"


@given(st.lists(plausible))
def test_after_the_releases_nothing_is_pressed(events: list[InputEvent]):
    state = InputState(4)
    state.apply(events)
    state.apply(state.releases())
    assert not state.keys
    assert not state.contacts
    assert state.releases() == []


# --- axes that cannot be ------------------------------------------------------------------------------------

axis = st.builds(AbsInfo, values, values, values, values, values)


@pytest.mark.fault(81)
@given(axis)
def test_a_sane_axis_is_one_that_the_kernel_takes(info: AbsInfo):
    sane = info.sane()
    reach = sane.maximum - sane.minimum
    assert 0 <= reach < 1 << 31
    assert 0 <= sane.flat <= reach
    assert 0 <= sane.fuzz <= reach
    assert sane.resolution >= 0
    assert all(-(1 << 31) <= one < 1 << 31 for one in (sane.minimum, sane.maximum))
    assert not sane.problems()
    assert sane.sane() == sane
    if not info.problems():
        assert sane == info


def touch(**slot: int) -> Description:
    info = AbsInfo(**{"minimum": 0, "maximum": 9, "fuzz": 0, "flat": 0, "resolution": 0, **slot})
    return Description("touch", events={ABS: frozenset({SLOT, X, TRACKING})}, axes={SLOT: info})


@pytest.mark.fault(81)
@pytest.mark.parametrize(
    ("maximum", "slots"), [(0, 1), (9, 10), (1023, 1024), (1024, 1024), ((1 << 31) - 1, 1024), (-5, 1)]
)
def test_slots_are_few(maximum: int, slots: int):
    about = touch(maximum=maximum)
    assert about.slots == slots
    sane = about.sane()
    assert sane.axes[SLOT] == AbsInfo(0, slots - 1, 0, 0, 0)
    assert sane.axes[X] == AbsInfo(0, 0, 0, 0, 0), "an axis that gave no range"


def test_what_makes_no_sense_is_named():
    said = touch(minimum=5, maximum=1 << 20, fuzz=-1, flat=1 << 30, resolution=-2).problems()
    text = "\n".join(said)
    for word in (
        "ABS_MT_SLOT: fuzz is negative",
        "resolution is negative",
        "flat 1073741824 is wider",
        "1024 slots",
    ):
        assert word in text
    assert "ABS_MT_POSITION_X: announced, and no range is given" in text


@given(st.dictionaries(st.integers(0, 0x1F), st.frozensets(st.integers(0, 1023), max_size=20), max_size=6))
def test_a_sane_description_has_only_what_the_kernel_has_room_for(events: dict[int, frozenset[int]]):
    sane = Description("x", events=events, properties=frozenset({0, 31, 32, 900})).sane()
    assert sane.properties == {0, 31}
    for kind, codes in sane.events.items():
        assert kind in spec.CODE_COUNTS
        assert kind not in (spec.EV_SYN, spec.EV_FF)
        assert all(code < spec.CODE_COUNTS[kind] for code in codes)
    assert set(sane.axes) == set(sane.events.get(ABS, ()))
