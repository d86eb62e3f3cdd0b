"""Input on any cell with a keyboard; the host presses the keys."""

from __future__ import annotations

import pytest

from tests.bodies import Cell
from uvirtio.drivers.input import Input, InputEvent
from uvirtio.interfaces.values import InterruptMode

EV_SYN, EV_KEY, EV_LED, EV_REP = 0x00, 0x01, 0x11, 0x14
KEY_A, KEY_B = 30, 48


def press(cell: Cell, *keys: str, down: bool) -> None:
    cell.qmp(
        "input-send-event",
        events=[{"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": key}}} for key in keys],
    )


def collect(device_input: Input, count: int) -> list[InputEvent]:
    """Events until there are ``count``, or none come any more."""
    found: list[InputEvent] = []
    while len(found) < count:
        more = device_input.read(timeout=10)
        if not more:
            break
        found += more
    return found


@pytest.mark.spec("INP-01", "INP-03", "INP-08")
def test_it_says_what_it_is(cell: Cell) -> None:
    with cell.open() as device, Input(device) as keyboard:
        assert keyboard.name == "QEMU Virtio Keyboard"
        ids = keyboard.ids
        assert ids is not None
        assert (ids.bustype, ids.vendor, ids.product) == (6, 0x0627, 1)
        kinds = keyboard.event_types()
        assert {EV_KEY, EV_LED, EV_REP} <= set(kinds)
        assert {KEY_A, KEY_B} <= kinds[EV_KEY]
        assert kinds[EV_LED] == {0, 1, 2}
        assert keyboard.absinfo(0) is None
        assert keyboard.properties() == frozenset()


@pytest.mark.spec("INP-04", "INP-05", "INP-08")
def test_keys_arrive_in_order(cell: Cell) -> None:
    with cell.open() as device, Input(device) as keyboard:
        for _ in range(10):
            press(cell, "a", down=True)
            press(cell, "a", down=False)
        found = collect(keyboard, 40)
        frame = [InputEvent(EV_KEY, KEY_A, 1), InputEvent(EV_SYN, 0, 0)]
        frame += [InputEvent(EV_KEY, KEY_A, 0), InputEvent(EV_SYN, 0, 0)]
        assert found == frame * 10
        assert keyboard.dropped == 0


@pytest.mark.spec("INP-04", "SPL-15")
def test_the_event_queue_stays_stocked(cell: Cell) -> None:
    # More events than the queue has buffers, taken as they come.
    with cell.open() as device, Input(device) as keyboard:
        size = device.queues[0].ring.size
        seen = 0
        for _ in range(size // 2):
            press(cell, "b", down=True)
            press(cell, "b", down=False)
            seen += len(collect(keyboard, 4))
        assert seen == size // 2 * 4
        assert device.queues[0].ring.in_flight == size


@pytest.mark.spec("INP-08")
def test_what_happens_at_once_is_one_frame(cell: Cell) -> None:
    with cell.open() as device, Input(device) as keyboard:
        press(cell, "a", "b", down=True)
        frame = keyboard.read_frame(timeout=10)
        assert frame is not None
        assert list(frame) == [
            InputEvent(EV_KEY, KEY_A, 1),
            InputEvent(EV_KEY, KEY_B, 1),
            InputEvent(EV_SYN, 0, 0),
        ]
        assert keyboard.state.keys == {KEY_A, KEY_B}
        press(cell, "a", "b", down=False)
        assert keyboard.read_frame(timeout=10) is not None
        assert keyboard.state.keys == frozenset()


@pytest.mark.spec("INP-06")
def test_the_device_takes_more_leds_than_its_queue_holds(cell: Cell) -> None:
    with cell.open() as device, Input(device) as keyboard:
        for turn in range(2 * device.queues[1].ring.size + 1):
            keyboard.set_led(turn % 3, bool(turn % 2))
        assert keyboard.flush(timeout=10)
        assert keyboard.status_pending == 0
        assert device.queues[1].ring.in_flight == 0


def test_nothing_pressed_is_no_error(cell: Cell) -> None:
    with cell.open() as device, Input(device) as keyboard:
        assert keyboard.read(timeout=0.05) == []
        assert list(keyboard.events(timeout=0.05)) == []
        assert device.broken is None


def test_events_come_by_interrupt(cell: Cell) -> None:
    with cell.open() as device, Input(device) as keyboard:
        press(cell, "a", down=True)
        press(cell, "a", down=False)
        assert len(collect(keyboard, 4)) == 4
        if cell.mode is not InterruptMode.POLLING:
            assert device.counters.interrupts_taken > 0
            assert device.counters.missed_interrupts == 0
