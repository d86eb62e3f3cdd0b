"""Keyboard, mouse and tablet of QEMU, fed by QMP and by a VNC client at full speed; LEDs as that client sees."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from uvirtio.drivers.input import Frame, Input, InputEvent, evemu
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec import input as spec

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from lab.rfb import CAPS, NUM, SCROLL, Vnc

PER_QUEUE, SHARED, INTX, POLLING = InterruptMode
KEY, REL, ABS, LED = spec.EV_KEY, spec.EV_REL, spec.EV_ABS, spec.EV_LED
SYN = InputEvent(0, 0, 0)
PATIENCE = 20.0
LAST = 44  # KEY_Z

# (QMP's name, evdev's code, X's keysym); the XT scan code of these is evdev's code.
TYPED = [("a", 30, 0x61), ("s", 31, 0x73), ("d", 32, 0x64), ("f", 33, 0x66), ("spc", 57, 0x20), ("1", 2, 0x31)]


@contextmanager
def machine_with(device: str, tmp_path: Path) -> Iterator[tuple[Machine, Callable[..., Input], str]]:
    """A machine with this device and a VNC server; ``bring_up(modes...)`` gives a driver."""
    path = f"{tmp_path}/vnc"
    with Machine("q35", [device], arguments=["-vnc", f"unix:{path},key-delay-ms=0", "-device", "VGA"]) as machine:
        function = machine.functions[0]
        opened = []

        def bring_up(*modes: InterruptMode) -> Input:
            opened.append(identify(function.address, function, interrupts=modes or tuple(InterruptMode)))
            # More than any test here sends: what is dropped without a reader is the unit tests' matter.
            return Input(opened[-1], limit=1 << 17)

        try:
            yield machine, bring_up, path
        finally:
            for one in opened:
                one.close()


def frames(driver: Input, count: int) -> list[Frame]:
    """So many frames, or those that came."""
    found = []
    while len(found) < count and (frame := driver.read_frame(timeout=PATIENCE)) is not None:
        found.append(frame)
    return found


def key_event(name: str, down: bool) -> dict[str, Any]:
    return {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": name}}}


# --- by QMP -------------------------------------------------------------------------------------------------


@pytest.mark.spec("INP-04", "INP-08")
@pytest.mark.parametrize("mode", [PER_QUEUE, INTX, POLLING])
def test_a_keyboard_fed_by_qmp(mode: InterruptMode, tmp_path: Path):
    with machine_with("virtio-keyboard-pci,vectors=3", tmp_path) as (machine, bring_up, _):
        driver = bring_up(mode)
        expected = []
        for _ in range(10):
            for name, code, _ in TYPED:
                for down in (True, False):
                    machine.qmp("input-send-event", events=[key_event(name, down)])
                    expected.append([InputEvent(KEY, code, int(down)), SYN])
            assert [list(frame) for frame in frames(driver, len(expected))] == expected
            expected.clear()
        # Several events in one command are one frame.
        machine.qmp("input-send-event", events=[key_event("a", True), key_event("s", True)])
        [chord] = frames(driver, 1)
        assert list(chord) == [InputEvent(KEY, 30, 1), InputEvent(KEY, 31, 1), SYN]
        assert driver.state.keys == {30, 31}
        assert driver.dropped == driver.lost == 0
        assert not driver.findings


def test_a_mouse_fed_by_qmp(tmp_path: Path):
    with machine_with("virtio-mouse-pci", tmp_path) as (machine, bring_up, _):
        driver = bring_up()
        about = driver.describe()
        assert about.name == "QEMU Virtio Mouse"
        assert {0, 1, 8} <= about.events[REL]
        assert 0x110 in about.events[KEY]
        machine.qmp(
            "input-send-event",
            events=[
                {"type": "rel", "data": {"axis": "x", "value": -7}},
                {"type": "rel", "data": {"axis": "y", "value": 9}},
            ],
        )
        for down in (True, False):
            machine.qmp("input-send-event", events=[{"type": "btn", "data": {"down": down, "button": "left"}}])
        machine.qmp("input-send-event", events=[{"type": "btn", "data": {"down": True, "button": "wheel-up"}}])
        found = [list(frame) for frame in frames(driver, 4)]
        assert found == [
            [InputEvent(REL, 0, -7), InputEvent(REL, 1, 9), SYN],
            [InputEvent(KEY, 0x110, 1), SYN],
            [InputEvent(KEY, 0x110, 0), SYN],
            [InputEvent(REL, 8, 1), SYN],
        ]


def test_a_tablet_fed_by_qmp(tmp_path: Path):
    with machine_with("virtio-tablet-pci", tmp_path) as (machine, bring_up, _):
        driver = bring_up()
        about = driver.describe()
        assert about.axes[0].maximum == about.axes[1].maximum == 32767
        assert about.slots == 0
        for x, y in ((0, 0), (32767, 16384), (12345, 1)):
            machine.qmp(
                "input-send-event",
                events=[
                    {"type": "abs", "data": {"axis": "x", "value": x}},
                    {"type": "abs", "data": {"axis": "y", "value": y}},
                ],
            )
            [frame] = frames(driver, 1)
            assert list(frame) == [InputEvent(ABS, 0, x), InputEvent(ABS, 1, y), SYN]
        assert driver.state.axes == {0: 12345, 1: 1}
        text = [*evemu.header(about), *(evemu.event_line(0, event) for event in frame)]
        assert evemu.parse(text).description.axes == about.axes


@pytest.mark.qemu_since(8, 1)
def test_a_touch_screen_fed_by_qmp(tmp_path: Path):
    with machine_with("virtio-multitouch-pci", tmp_path) as (machine, bring_up, _):
        driver = bring_up()
        about = driver.describe()
        assert about.slots == 11 and about.events[ABS] == {0x2F, 0x35, 0x36, 0x39}

        def touch(kind: str, slot: int, ident: int, axis: str = "x", value: int = 0) -> list[InputEvent]:
            data = {"type": kind, "slot": slot, "tracking-id": ident, "axis": axis, "value": value}
            machine.qmp("input-send-event", events=[{"type": "mtt", "data": data}])
            [frame] = frames(driver, 1)
            return list(frame)

        assert touch("begin", 2, 7) == [InputEvent(ABS, 0x2F, 2), InputEvent(ABS, 0x39, 7), SYN]
        assert touch("data", 2, 7, "x", 32767) == [InputEvent(ABS, 0x35, 32767), SYN]
        assert touch("data", 2, 7, "y", 1) == [InputEvent(ABS, 0x36, 1), SYN]
        [contact] = driver.state.contacts
        assert (contact.slot, contact.id) == (2, 7)
        assert touch("end", 2, -1) == [InputEvent(ABS, 0x2F, 2), InputEvent(ABS, 0x39, -1), SYN]
        assert not driver.state.contacts


# --- by VNC, at full speed ----------------------------------------------------------------------------------


@pytest.mark.spec("INP-04")
def test_typing_at_full_speed_arrives_in_order_and_whole(tmp_path: Path):
    turns = 1000
    with machine_with("virtio-keyboard-pci", tmp_path) as (_, bring_up, path):
        driver = bring_up()
        with Vnc(path) as client:
            burst = [(sym, code, down) for _, code, sym in TYPED for down in (True, False)]
            expected = [[InputEvent(KEY, code, int(down)), SYN] for _, code, down in burst]
            # QEMU drops a frame for which the guest has no buffers. 12 frames of 2 events fit into 64, so that
            # each burst is sent when the one before has been seen: what is lost then is lost by us.
            for _ in range(turns):
                client.keys(*burst)
                assert [list(frame) for frame in frames(driver, len(burst))] == expected
        assert driver.dropped == driver.lost == 0
        assert driver.state.keys == frozenset()


@pytest.mark.fault(83)
def test_a_flood_loses_whole_frames_and_nothing_is_torn(tmp_path: Path):
    # As fast as it goes: QEMU drops frames for which there are no buffers just then, but none comes torn.
    with machine_with("virtio-keyboard-pci", tmp_path) as (_, bring_up, path):
        driver = bring_up()
        with Vnc(path) as client:
            flood = [(sym, code, down) for _ in range(2000) for _, code, sym in TYPED for down in (True, False)]
            thread = threading.Thread(target=client.keys, args=flood)
            thread.start()
            found: list[Frame] = []
            deadline = time.monotonic() + 2 * PATIENCE
            # The end is another key, typed again and again, for it can be dropped like all others.
            while not found or found[-1].events[0].code != LAST:
                assert time.monotonic() < deadline
                frame = driver.read_frame(timeout=0.1)
                if frame is not None:
                    found.append(frame)
                elif not thread.is_alive():
                    client.keys((0x7A, LAST, True), (0x7A, LAST, False))
            thread.join(PATIENCE)
        assert driver.lost == 0
        assert len(found) >= 32, "what the queue holds was never dropped"
        codes = {LAST, *(code for _, code, _ in TYPED)}
        assert all(len(frame) == 2 and frame.complete and frame.events[0].code in codes for frame in found)
        assert driver.dropped == driver.lost == 0


def test_a_tablet_moved_by_a_vnc_client(tmp_path: Path):
    with machine_with("virtio-tablet-pci", tmp_path) as (_, bring_up, path):
        driver = bring_up()
        with Vnc(path) as client:
            last = (client.width - 1, client.height - 1)
            client.point((0, 0, 0), (1, *last), (0, *last))
            events = []
            while len([one for one in events if one.type == KEY]) < 2:
                frame = driver.read_frame(timeout=PATIENCE)
                assert frame is not None, events
                events += frame
        assert InputEvent(KEY, 0x110, 1) in events
        assert driver.state.keys == frozenset()
        assert driver.state.axes == {0: 32767 * last[0] // client.width, 1: 32767 * last[1] // client.height}


# --- LEDs ---------------------------------------------------------------------------------------------------


@pytest.mark.spec("INP-06")
@pytest.mark.parametrize("mode", [PER_QUEUE, SHARED, INTX, POLLING])
def test_leds_are_seen_by_a_vnc_client(mode: InterruptMode, tmp_path: Path):
    with machine_with("virtio-keyboard-pci,vectors=3", tmp_path) as (_, bring_up, path):
        driver = bring_up(mode)
        with Vnc(path) as client:
            lit = 0
            for led, bit in ((1, CAPS), (0, NUM), (2, SCROLL)):
                assert driver.set_led(led, True)
                assert driver.flush(timeout=PATIENCE)
                lit |= bit
                assert client.wait_leds(lit), client.leds
            driver.set_led(0, False)
            assert client.wait_leds(CAPS | SCROLL)
            # Many more than the queue holds, without a pause: the last of each counts.
            for turn in range(501):
                driver.set_led(turn % 3, turn < 498)
            assert driver.flush(timeout=PATIENCE)
            assert client.wait_leds(0), client.leds
        assert driver.status_pending == 0
