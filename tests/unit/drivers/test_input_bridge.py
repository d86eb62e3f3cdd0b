"""The bridge between a scripted device and a clone that records, and the making of the clone itself."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.drivers.test_input_driver import (
    ABS,
    KEY,
    LED,
    LONG,
    MSC,
    SHORT,
    SLOT,
    SYN,
    TOUCH,
    TRACKING,
    Rig,
    X,
)
from uvirtio.drivers.input import (
    AbsInfo,
    Bridge,
    Description,
    Feed,
    InputEvent,
    InputIds,
    UinputClone,
    phys_of,
)
from uvirtio.errors import (
    Closed,
    DeviceGone,
    DeviceResetByOther,
    ModuleLack,
    NotSupported,
    OperationFailed,
    PermissionLack,
    UvirtioError,
)
from uvirtio.host.roots import Roots
from uvirtio.spec import input as spec

Triple = tuple[int, int, int]


class FakeClone:
    """A clone that remembers what it was given; ``led`` is a program that writes to it."""

    path = "/dev/input/event7"

    def __init__(self) -> None:
        self.writes: list[list[Triple]] = []
        self.closed = 0
        self.fails: Exception | None = None
        self._back: list[InputEvent] = []
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def events(self) -> list[Triple]:
        return [event for write in self.writes for event in write]

    def led(self, *events: Triple) -> None:
        self._back += [InputEvent(*event) for event in events]
        os.eventfd_write(self._bell, 1)

    def fileno(self) -> int:
        return self._bell

    def write(self, events: Sequence[InputEvent]) -> None:
        if self.fails is not None:
            raise self.fails
        self.writes.append([(one.type, one.code, one.value) for one in events])

    def read(self) -> list[InputEvent]:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return []
        found, self._back = self._back, []
        return found

    def close(self) -> None:
        self.closed += 1
        if self.closed == 1:
            os.close(self._bell)


class Bridged:
    def __init__(self, **how: Any) -> None:
        self.rig = Rig(TOUCH, **how)
        self.clone = FakeClone()
        about = self.rig.driver.describe()
        self.feed = Feed(self.clone, about)
        self.bridge = Bridge(self.rig.driver, self.feed)

    def leave(self) -> None:
        self.feed.close()
        self.rig.leave()
        assert self.clone.closed == 1


@pytest.fixture
def bridged() -> Iterator[Bridged]:
    bridged = Bridged()
    yield bridged
    bridged.leave()


# --- forwarding ---------------------------------------------------------------------------------------------


def test_whole_frames_are_forwarded_each_with_one_write(bridged: Bridged):
    bridged.rig.model.inject((KEY, 0x14A, 1), (ABS, 0, 5), SYN, (ABS, 0, 6), SYN, (KEY, 0x14A, 0))
    assert bridged.bridge.turn()
    assert bridged.clone.writes == [[(KEY, 0x14A, 1), (ABS, 0, 5), SYN], [(ABS, 0, 6), SYN]]
    bridged.rig.model.inject(SYN)
    bridged.bridge.turn()
    assert bridged.clone.writes[2] == [(KEY, 0x14A, 0), SYN]
    assert (bridged.feed.frames, bridged.feed.events, bridged.feed.ignored) == (3, 7, 0)
    assert not bridged.bridge.turn(), "nothing more"


@pytest.mark.spec("INP-07")
def test_what_the_clone_does_not_announce_is_not_forwarded(bridged: Bridged):
    bridged.rig.model.inject((0x99, 1, 1), (KEY, 1, 1), (LED, 1, 1), (MSC, 4, 4), (0, 7, 0), (ABS, 0, 1), SYN)
    bridged.bridge.turn()
    assert bridged.clone.writes == [[(ABS, 0, 1), SYN]]
    assert bridged.feed.ignored == 5


def test_leds_come_back_while_the_bridge_waits(bridged: Bridged):
    timer = threading.Timer(
        0.02, lambda: bridged.clone.led((LED, 1, 1), SYN, (MSC, 5, 9), (LED, 9, 1), (0x12, 1, 440))
    )
    timer.start()
    bridged.bridge.run(timeout=0.3)
    timer.join()
    assert bridged.rig.model.statuses == [(LED, 1, 1), (0x12, 1, 440)]
    assert bridged.bridge.brought_back == 2


def test_leds_that_were_set_before_a_signal_still_come_back(bridged: Bridged):
    bridged.clone.led((LED, 0, 1), (LED, 1, 1))
    bridged.rig.device.interrupt(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        bridged.bridge.run(timeout=LONG)
    assert bridged.bridge.brought_back == 2


def test_a_run_forwards_until_its_time_is_over_also_in_a_flood(bridged: Bridged):
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            bridged.rig.model.inject((ABS, 0, 1), SYN)

    thread = threading.Thread(target=flood)
    thread.start()
    bridged.bridge.run(timeout=0.1)
    stop.set()
    thread.join()
    bridged.bridge.turn()
    assert bridged.feed.frames > 0
    assert bridged.feed.ignored == 0


def test_after_dropped_frames_the_clone_is_brought_to_what_holds_now():
    bridged = Bridged(limit=20)
    model = bridged.rig.model
    model.inject((KEY, 0x14A, 1), (ABS, TRACKING, 1), (ABS, X, 5), SYN)
    bridged.bridge.turn()
    # While nothing forwards: the button is lifted, the finger goes, another one comes.
    model.inject((KEY, 0x14A, 0), (ABS, TRACKING, -1), SYN, (ABS, SLOT, 1), (ABS, TRACKING, 2), (ABS, X, 9), SYN)
    for _ in range(20):
        model.inject((ABS, 0, 7), SYN)
        bridged.rig.driver.service()
    bridged.clone.writes.clear()
    bridged.bridge.turn()
    first = bridged.clone.writes[0]
    assert first[0] == (KEY, 0x14A, 0)
    assert (ABS, TRACKING, -1) in first
    assert first[-1] == SYN
    assert first.index((ABS, SLOT, 1)) < first.index((ABS, TRACKING, 2)) < first.index((ABS, X, 9))
    assert bridged.rig.driver.lost > 0
    bridged.leave()


# --- leaving ------------------------------------------------------------------------------------------------

PRESSED = [(KEY, 0x14A, 1), (ABS, SLOT, 1), (ABS, TRACKING, 4), SYN]
LIFTED = [(KEY, 0x14A, 0), (ABS, SLOT, 1), (ABS, TRACKING, -1), SYN]


@pytest.mark.fault(82)
def test_keys_and_fingers_are_lifted_at_the_end(bridged: Bridged):
    bridged.rig.model.inject(*PRESSED)
    bridged.bridge.run(timeout=SHORT)
    bridged.feed.close()
    assert bridged.clone.writes[-1] == LIFTED
    bridged.feed.close()
    assert bridged.clone.closed == 1
    with pytest.raises(Closed):
        bridged.feed.put([InputEvent(*SYN)])


def test_fingers_without_slots_are_forwarded_and_lifted_at_the_end():
    bridged = Bridged()
    mt = (0, spec.SYN_MT_REPORT, 0)
    bridged.rig.model.inject((ABS, X, 5), mt, (ABS, X, 6), mt, SYN)
    bridged.bridge.turn()
    assert bridged.clone.writes == [[(ABS, X, 5), mt, (ABS, X, 6), mt, SYN]]
    bridged.leave()
    assert bridged.clone.writes[-1] == [mt, SYN]


def test_nothing_is_said_at_the_end_where_nothing_is_pressed(bridged: Bridged):
    bridged.rig.model.inject(*PRESSED, *LIFTED)
    bridged.bridge.turn()
    bridged.feed.close()
    assert bridged.clone.writes == [PRESSED, LIFTED]


@pytest.mark.parametrize("fault", ["reset", "gone", "interrupt"])
def test_keys_are_lifted_on_an_error_too(fault: str):
    bridged = Bridged()
    bridged.rig.model.inject(*PRESSED)
    expected: dict[str, type[BaseException]] = {
        "reset": DeviceResetByOther,
        "gone": DeviceGone,
        "interrupt": KeyboardInterrupt,
    }

    def happen() -> None:
        deadline = time.monotonic() + LONG
        while not bridged.clone.writes and time.monotonic() < deadline:
            time.sleep(0.01)
        if fault == "reset":
            bridged.rig.scripted.reset_by_other()
        elif fault == "gone":
            bridged.rig.scripted.vanish()
        else:
            bridged.rig.device.interrupt(KeyboardInterrupt())

    accident = threading.Thread(target=happen)
    accident.start()
    with pytest.raises(expected[fault]), bridged.feed:
        bridged.bridge.run(timeout=LONG)
    accident.join()
    assert bridged.clone.writes == [PRESSED, LIFTED]
    bridged.leave()


def test_a_clone_that_fails_ends_the_bridge_and_is_closed():
    bridged = Bridged()
    bridged.clone.fails = OperationFailed("the clone takes no events")
    bridged.rig.model.inject(*PRESSED)
    with pytest.raises(OperationFailed), bridged.feed:
        bridged.bridge.run(timeout=LONG)
    assert bridged.clone.closed == 1
    assert bridged.rig.device.broken is None, "the device is not at fault"
    bridged.leave()


# --- the clone ----------------------------------------------------------------------------------------------

EVENT = struct.Struct("@LLHHi")
ABOUT = Description(
    name="ä" * 60,
    ids=InputIds(6, 0x627, 1, 2),
    properties=frozenset({1}),
    events={
        KEY: frozenset({30, 0x2FF, 0x300}),
        ABS: frozenset({0, SLOT}),
        spec.EV_REP: frozenset(),
        spec.EV_FF: frozenset({0x50}),
        LED: frozenset({1}),
    },
    axes={0: AbsInfo(5, -5, 100, -1, 0), SLOT: AbsInfo(0, 1 << 30, 0, 0, 0)},
)


class FakeEvdev(SimpleNamespace):
    """The parts of python-evdev that a clone is made with; the kernel is the other end of a socket pair."""

    def __init__(self) -> None:
        outer = self
        self.made: list[dict[str, Any]] = []
        self.kernel, mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.fails: Exception | None = None
        self.fd = mine.detach()

        class UInputError(Exception):
            pass

        class UInput:
            def __init__(self, **how: Any) -> None:
                outer.made.append(how)
                self.fd = outer.fd
                if outer.fails is not None:
                    raise outer.fails
                self.device = SimpleNamespace(path="/dev/input/event9", close=lambda: None)

            def close(self) -> None:
                os.close(self.fd)
                self.fd = -1

        super().__init__(UInput=UInput, UInputError=UInputError, AbsInfo=lambda **how: tuple(how.items()))


@pytest.fixture
def evdev(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEvdev]:
    fake = FakeEvdev()
    monkeypatch.setitem(sys.modules, "evdev", fake)
    yield fake
    fake.kernel.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fake.fd)


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """A machine whose uinput is a device node that can be opened."""
    roots = Roots.under(tmp_path)
    roots.dev.mkdir()
    roots.proc.mkdir()
    (roots.dev / "uinput").symlink_to("/dev/null")
    return roots


def test_a_clone_is_what_the_kernel_takes(evdev: FakeEvdev, roots: Roots):
    clone = UinputClone(ABOUT, phys="uvirtio/x", roots=roots)
    [how] = evdev.made
    assert how["name"] == "ä" * 39, "79 bytes, and no half of a character"
    assert (how["bustype"], how["vendor"], how["product"], how["version"]) == (6, 0x627, 1, 2)
    assert (how["phys"], how["devnode"], how["input_props"]) == ("uvirtio/x", str(roots.dev / "uinput"), [1])
    assert how["max_effects"] == 0
    events = how["events"]
    assert events[KEY] == [30, 0x2FF]
    assert events[spec.EV_REP] == []
    assert spec.EV_FF not in events
    [(x, about_x), (slot, about_slot)] = events[ABS]
    assert (x, dict(about_x)) == (0, {"value": 0, "min": -5, "max": 5, "fuzz": 10, "flat": 0, "resolution": 0})
    assert (slot, dict(about_slot)["max"]) == (SLOT, 1023)
    assert clone.path == "/dev/input/event9"
    clone.close()
    clone.close()


def test_a_clone_can_have_a_resolution_that_the_device_does_not_tell(evdev: FakeEvdev, roots: Roots):
    codes = frozenset({spec.ABS_X, spec.ABS_Y, spec.ABS_MT_POSITION_X, 0x18})
    axes = {code: AbsInfo(0, 32767, 0, 0, 0) for code in codes} | {spec.ABS_Y: AbsInfo(0, 9, 0, 0, 31)}
    about = Description("tablet", events={ABS: codes}, axes=axes)
    assert about.unscaled == (spec.ABS_X, spec.ABS_MT_POSITION_X), "pressure is no position"
    UinputClone(about.scaled(100), roots=roots).close()
    [how] = evdev.made
    told = {code: dict(axis)["resolution"] for code, axis in how["events"][ABS]}
    assert told == {spec.ABS_X: 100, spec.ABS_Y: 31, 0x18: 0, spec.ABS_MT_POSITION_X: 100}
    assert about.scaled(100).unscaled == ()


@pytest.mark.parametrize("more", [{"events": {ABS: frozenset({0}), KEY: frozenset({0x120})}}, {"properties": {6}}])
def test_axes_of_joysticks_and_accelerometers_are_no_positions(more: dict[str, Any]):
    about = Description("x", **{"events": {ABS: frozenset({0})}, "axes": {0: AbsInfo(0, 9, 0, 0, 0)}, **more})
    assert about.unscaled == ()


@pytest.mark.parametrize(
    ("number", "left"),
    [(0, {5, 0x10, 0x11}), (errno.EINVAL, {5, 0x10}), (errno.ENOTTY, {5, 0x10, 0x11})],
)
def test_a_switch_that_the_kernel_is_too_old_for_does_not_cost_the_clone(
    evdev: FakeEvdev, roots: Roots, monkeypatch: pytest.MonkeyPatch, number: int, left: set[int]
):
    # SW_USB_INSERT came after Linux 6.12, whose UI_SET_SWBIT refuses what is above its SW_MAX.
    asked: list[tuple[int, int]] = []

    def ioctl(fd: int, request: int, code: int) -> int:
        asked.append((request, code))
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    about = Description("switches", events={spec.EV_SW: frozenset({5, 0x10, 0x11}), KEY: frozenset({30, 0x2FE})})
    clone = UinputClone(about, roots=roots)
    assert asked == [(0x4004556D, 0x11)], "_IOW('U', 109, int), for what is new alone"
    assert evdev.made[0]["events"] == {spec.EV_SW: sorted(left), KEY: [30, 0x2FE]}
    assert clone.description.events[spec.EV_SW] == left
    clone.close()


def libinput_group(phys: str) -> str:
    """What libinput's udev/libinput-device-group.c makes of it: devices of one group are taken for one."""
    group = phys.split("/input")[0]
    dot = group.rfind(".")
    return group[:dot] if dot > group.rfind("-") else group


def test_two_functions_are_two_devices_for_libinput():
    addresses = [
        "0000:01:00.0",
        "0000:01:00.1",
        "mmio:0xfeb02e00",
        "mmio:0xfeb02c00",
        "/dev/vhost-vdpa-0",
        "/dev/vhost-vdpa-1",
        "qemu:pc/virtio-keyboard-pci",
        "qemu:q35,binary=/opt/input/v1.0/qemu/virtio-keyboard-pci",
        "qemu:q35,binary=/opt/input/v1.0/qemu/virtio-tablet-pci",
    ]
    groups = [libinput_group(phys_of(address)) for address in addresses]
    assert len({*groups}) == len(addresses)
    assert phys_of("0000:01:00.0") == "uvirtio/0000:01:00-0"
    assert not any("." in phys_of(address) for address in addresses)
    assert len(phys_of("qemu:" + "x" * 500)) == 79
    # What it was before.
    assert libinput_group("uvirtio/0000:01:00.0") == libinput_group("uvirtio/0000:01:00.1")


def test_a_clone_of_a_device_that_can_nothing_gets_no_keyboard(evdev: FakeEvdev, roots: Roots):
    UinputClone(Description(""), roots=roots).close()
    assert evdev.made[0]["name"] == "virtio input"
    assert evdev.made[0]["events"] == {MSC: [0]}


def test_events_go_through_in_one_piece_and_come_back(evdev: FakeEvdev, roots: Roots):
    clone = UinputClone(ABOUT, roots=roots)
    clone.write([InputEvent(KEY, 30, 1), InputEvent(ABS, 0, -3), InputEvent(*SYN)])
    data = evdev.kernel.recv(4096)
    assert [fields[2:] for fields in EVENT.iter_unpack(data)] == [(KEY, 30, 1), (ABS, 0, -3), SYN]
    assert clone.read() == []
    evdev.kernel.send(EVENT.pack(1, 2, LED, 1, 1) + EVENT.pack(1, 2, *SYN) + b"half")
    assert clone.read() == [InputEvent(LED, 1, 1), InputEvent(*SYN)]
    evdev.kernel.close()
    with pytest.raises(OperationFailed):
        clone.write([InputEvent(*SYN)])
    clone.close()
    with pytest.raises(Closed):
        clone.fileno()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EINVAL, "Invalid argument"), OperationFailed),
        (PermissionError(errno.EACCES, "no"), PermissionLack),
    ],
)
def test_a_clone_that_is_half_made_is_undone(
    evdev: FakeEvdev, roots: Roots, error: Exception, kind: type[Exception]
):
    evdev.fails = error
    with pytest.raises(kind):
        UinputClone(ABOUT, roots=roots)


def test_a_clone_that_was_not_even_opened_is_an_error_of_its_own(evdev: FakeEvdev, roots: Roots):
    os.close(evdev.fd)
    evdev.fd, evdev.fails = -1, evdev.UInputError("no")
    with pytest.raises(OperationFailed, match="no"):
        UinputClone(ABOUT, roots=roots)


def test_a_clone_that_is_half_made_is_undone_also_where_there_was_no_standard_input(
    evdev: FakeEvdev, roots: Roots, monkeypatch: pytest.MonkeyPatch
):
    """The kernel gives the lowest number that is free, which is 0 then."""
    real, close, closed = evdev.fd, os.close, []

    def note(fd: int) -> None:
        closed.append(fd)
        close(fd or real)

    evdev.fd, evdev.fails = 0, OSError(errno.EINVAL, "Invalid argument")
    with monkeypatch.context() as changed:
        changed.setattr(os, "close", note)
        with pytest.raises(OperationFailed):
            UinputClone(ABOUT, roots=roots)
    assert closed.count(0) == 1
    evdev.fd = real


@pytest.mark.parametrize(
    ("number", "loaded", "user", "kind", "message", "remedy"),
    [
        (errno.ENOENT, False, 0, ModuleLack, "there is no", "modprobe uinput"),
        (errno.ENOENT, True, 0, ModuleLack, "though the kernel has uinput", "--device"),
        # A node that systemd made of modules.devname, and no module behind it: what mknod and open really give.
        (errno.ENODEV, False, 0, ModuleLack, "is not loaded", "modprobe uinput"),
        (errno.ENXIO, False, 0, ModuleLack, "is not loaded", "modprobe uinput"),
        # open() as root in a container: the device cgroup says EPERM, a file system without devices EACCES.
        (errno.EPERM, True, 0, PermissionLack, "device cgroup", "DeviceAllow="),
        (errno.EACCES, True, 0, PermissionLack, "even by root", "nodev"),
        (errno.EACCES, True, 1000, PermissionLack, "may not be opened", "group input"),
        (errno.EIO, True, 0, OperationFailed, "cannot be opened", ""),
    ],
)
def test_a_uinput_that_cannot_be_opened_is_told_by_its_cause(
    evdev: FakeEvdev,
    roots: Roots,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    loaded: bool,
    user: int,
    kind: type[UvirtioError],
    message: str,
    remedy: str,
):
    node = str(roots.dev / "uinput")
    (roots.proc / "misc").write_text("223 uinput\n232 kvm\n" if loaded else "232 kvm\n")
    real = os.open

    def open_(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == node:
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(kind, match=message) as lack:
        UinputClone(ABOUT, roots=roots)
    assert node in lack.value.message and os.strerror(number) in str(lack.value.seen)
    assert remedy in (lack.value.remedy or "")
    assert not evdev.made, "python-evdev is not asked: its error has no errno"
    os.close(evdev.fd)


def test_a_file_in_the_place_of_uinput_is_no_node(evdev: FakeEvdev, roots: Roots):
    (roots.dev / "uinput").unlink()
    (roots.dev / "uinput").write_text("an event that went astray")
    with pytest.raises(ModuleLack, match="no device node"):
        UinputClone(ABOUT, roots=roots)
    assert not evdev.made
    os.close(evdev.fd)


def test_without_evdev(monkeypatch: pytest.MonkeyPatch, roots: Roots):
    monkeypatch.setitem(sys.modules, "evdev", None)
    with pytest.raises(NotSupported) as lack:
        UinputClone(ABOUT, roots=roots)
    assert lack.value.exit_code == 4
    assert "uvirtio[input]" in str(lack.value.remedy)
