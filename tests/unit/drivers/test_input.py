"""The input driver (5.8) on a scripted device: queries that lie, and events of every kind."""

from __future__ import annotations

import struct
import threading

import pytest

from uvirtio import opening
from uvirtio.device import Device
from uvirtio.drivers.input import AbsInfo, InputEvent, InputIds
from uvirtio.drivers.input import Input as Driver
from uvirtio.errors import RingCorruption
from uvirtio.scripted.input import Input
from uvirtio.scripted.pci import BAR, DEVICE_AT, ScriptedDevice, virtio_capability
from uvirtio.spec import input as spec
from uvirtio.spec import pci

SHORT = 0.02
LONG = 30.0
Select = spec.Select


class Rig:
    """A driver that is up, and both ends of it."""

    def __init__(self, model: Input | None = None, **how: object) -> None:
        self.model = model or Input()
        self.scripted = ScriptedDevice(self.model, **how)  # type: ignore[arg-type]
        self.device: Device = opening.identify("0000:00:04.0", self.scripted, timeout=LONG)
        self.driver = Driver(self.device)

    def leave(self) -> None:
        self.device.close()
        self.scripted.assert_left()


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.leave()


def keys(count: int) -> list[tuple[int, int, int]]:
    return [(1, number & 0xFF, 1) for number in range(count)]


# --- queries (5.8.5) ----------------------------------------------------------------------------------------


@pytest.mark.spec("INP-01", "INP-02", "INP-03", "INP-08")
def test_a_query_writes_both_selectors_and_then_reads_the_size(rig: Rig):
    rig.scripted.log.clear()
    assert rig.driver.query(Select.ID_NAME) == b"scripted keyboard"
    log = [access[2:] for access in rig.scripted.log if access.region == "device"]
    assert log[:3] == [(0, 1, 1), (1, 1, 0), (2, 1, 17)]
    assert [offset for offset, _, _ in log[3:]] == [*range(8, 25), 0, 1], "and at last, whether they were kept"
    writes = [access for access in rig.scripted.log if access[:2] == ("write", "device")]
    assert {access.offset for access in writes} == {0, 1}


@pytest.mark.spec("INP-03")
def test_nothing_is_read_where_the_device_has_nothing_to_say(rig: Rig):
    rig.scripted.log.clear()
    assert rig.driver.query(Select.ABS_INFO, 0) == b""
    assert {access.offset for access in rig.scripted.log if access[:2] == ("read", "device")} == {2}
    assert rig.driver.absinfo(0) is None


def test_what_it_is():
    axes = struct.pack("<5i", -100, 100, 1, 2, -3)
    answers = {
        (Select.ABS_INFO, 1): axes,
        (Select.EV_BITS, 0x14): b"\x00",
        (Select.EV_BITS, 0x11): b"\x07",
        (Select.PROP_BITS, 0): b"\x21",
    }
    rig = Rig(Input(answers=answers))
    assert rig.driver.serial == "1"
    assert rig.driver.ids == InputIds(6, 0x0627, 1, 1)
    assert rig.driver.properties() == {0, 5}
    assert rig.driver.event_types() == {
        0x01: frozenset(range(128)) - {8 * byte for byte in range(16)},
        0x11: frozenset({0, 1, 2}),
        0x14: frozenset(),
    }
    assert rig.driver.absinfo(1) == AbsInfo(-100, 100, 1, 2, -3)
    rig.leave()


@pytest.mark.fault(55)
@pytest.mark.parametrize("said", [129, 200, 255])
@pytest.mark.parametrize("payload", [b"", b"short", b"x" * 128])
def test_a_size_beyond_the_payload_is_cut(said: int, payload: bytes):
    model = Input(name=payload)
    model.size_lies[Select.ID_NAME, 0] = said
    rig = Rig(model)
    assert rig.driver.query(Select.ID_NAME) == payload.ljust(128, b"\0")
    assert rig.driver.name == payload.decode()
    rig.leave()


@pytest.mark.parametrize("length", [8, 9, 20, 135])
def test_a_short_configuration_is_read_as_far_as_it_goes(length: int):
    model = Input(name=b"n" * 128)
    caps = ScriptedDevice(model).usual_capabilities()
    caps[3] = virtio_capability(pci.CfgType.DEVICE, BAR, DEVICE_AT, length)
    rig = Rig(model, capabilities=caps)
    assert rig.driver.name == "n" * (length - 8)
    assert rig.device.broken is None
    rig.leave()


@pytest.mark.parametrize(
    ("said", "ids"), [(0, None), (7, None), (8, InputIds(6, 0x0627, 1, 1)), (9, InputIds(6, 0x0627, 1, 1))]
)
def test_ids_are_there_or_not(said: int, ids: InputIds | None):
    model = Input()
    model.size_lies[Select.ID_DEVIDS, 0] = said
    rig = Rig(model)
    assert rig.driver.ids == ids
    rig.leave()


@pytest.mark.fault(55)
@pytest.mark.spec("INP-08")
@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        (b"ends\0here", "ends"),
        (b"\x1b[31mred\x1b]0;title\x07", "�[31mred�]0;title�"),
        (b"line\nbreak\ttab\x7f", "line�break�tab�"),
        ("\u202eevil\u2066".encode(), "�evil�"),
        (b"\xff\xfe\xc3", "���"),
        ("Tästatur €".encode(), "Tästatur €"),
        (b"y" * 128, "y" * 128),
    ],
)
def test_a_name_is_shown_and_not_obeyed(raw: bytes, shown: str):
    rig = Rig(Input(name=raw))
    assert rig.driver.name == shown
    rig.leave()


# --- the stream (5.8.6) -------------------------------------------------------------------------------------


@pytest.mark.spec("INP-04", "INP-05", "INIT-07")
def test_the_event_queue_is_full_of_buffers_from_the_start(rig: Rig):
    rig.scripted.fetch(spec.EVENTQ)
    assert len(rig.model.buffers) == 64
    assert all(chain.room == 8 and not chain.readable for chain in rig.model.buffers)


@pytest.mark.spec("INP-08")
def test_events_come_as_they_were_sent(rig: Rig):
    sent = [(1, 30, 1), (0, 0, 0), (2, 8, -1), (3, 0, 0x7FFFFFFF), (3, 1, -0x80000000), (0, 0, 0)]
    rig.model.inject(*sent)
    assert rig.driver.read(timeout=LONG) == [InputEvent(*event) for event in sent]
    assert rig.driver.read(timeout=SHORT) == []


@pytest.mark.parametrize("event", [(0x99, 1, 1), (0xFFFF, 0xFFFF, -1), (1, 0x2FF, 5), (0x1F, 0, 0)])
def test_strange_events_are_passed_on_as_numbers(rig: Rig, event: tuple[int, int, int]):
    rig.model.inject(event, (1, 30, 1))
    assert rig.driver.read(timeout=LONG) == [InputEvent(*event), InputEvent(1, 30, 1)]


@pytest.mark.fault(82)
@pytest.mark.parametrize("written", [0, 1, 7])
def test_a_piece_of_an_event_is_dropped_and_counted(rig: Rig, written: int):
    rig.model.inject((1, 30, 1), (1, 31, 1), written=written)
    rig.model.inject((1, 32, 1))
    assert rig.driver.read(timeout=LONG) == [InputEvent(1, 32, 1)]
    assert rig.driver.dropped == 2


def test_a_piece_of_an_event_alone_wakes_nobody(rig: Rig):
    rig.model.inject((1, 30, 1), written=4)
    assert rig.driver.read(timeout=SHORT) == []
    assert rig.driver.dropped == 1


def test_an_event_longer_than_its_buffer_is_a_lie():
    rig = Rig()
    rig.model.inject((1, 30, 1), written=9)
    with pytest.raises(RingCorruption):
        rig.driver.read(timeout=LONG)
    rig.leave()


@pytest.mark.spec("INP-04")
def test_a_flood_is_taken_in_order_and_the_queue_is_filled_again(rig: Rig):
    found: list[InputEvent] = []
    sent = keys(1000)
    given = 0
    while given < len(sent):
        took = rig.model.inject(*sent[given : given + 100])
        assert took <= 64, "a device has no more than the buffers that it was given"
        given += took
        found += rig.driver.read(timeout=LONG)
    assert found == [InputEvent(*event) for event in sent]
    rig.scripted.fetch(spec.EVENTQ)
    assert len(rig.model.buffers) == 64


@pytest.mark.spec("INP-04")
def test_a_starved_device_goes_on_when_somebody_reads(rig: Rig):
    assert rig.model.inject(*keys(65)) == 64
    assert rig.model.inject(*keys(1)) == 0
    assert len(rig.driver.read(timeout=LONG)) == 64
    assert rig.model.inject((1, 5, 0)) == 1
    assert rig.driver.read(timeout=LONG) == [InputEvent(1, 5, 0)]


@pytest.mark.fault(39)
def test_what_the_device_writes_later_changes_nothing(rig: Rig):
    rig.model.inject((1, 30, 1))
    [event] = rig.driver.read(timeout=LONG)
    rig.scripted.fetch(spec.EVENTQ)
    for chain in rig.model.buffers:
        chain.fill(b"\xff" * 8)
    assert event == InputEvent(1, 30, 1)


def test_events_one_by_one_until_none_come(rig: Rig):
    timer = threading.Timer(0.03, lambda: rig.model.inject((1, 30, 1), (0, 0, 0)))
    timer.start()
    assert [event.code for event in rig.driver.events(timeout=0.5)] == [30, 0]
    timer.join()
