"""The diagnosis: each fault of the device is found at its step, with a hint, and nothing is raised."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import pytest

from uvirtio.device import Device
from uvirtio.diag import STEPS, Report, Step, diagnose, diagnose_function
from uvirtio.errors import Denied, EnvironmentLack, NoSuchDevice, OperationFailed, UvirtioError
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.input import Input
from uvirtio.scripted.model import Model
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.ring import Chain
from uvirtio.scripted.rng import Rng
from uvirtio.spec import features as f

ADDRESS = "0000:00:04.0"
SHORT = 0.1
MODES = list(InterruptMode)
NAMES = list(STEPS)


def diagnosis(
    scripted: ScriptedDevice,
    *,
    modes: list[InterruptMode] = MODES,
    opened: Callable[[Device], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    return diagnose_function(
        "04.0", lambda: (ADDRESS, scripted), timeout=SHORT, interrupts=modes, opened=opened, on_step=on_step
    )


def verdicts(report: Report) -> dict[str, str]:
    return {step.name: step.verdict for step in report.steps}


def step(report: Report, name: str) -> Step:
    return next(step for step in report.steps if step.name == name)


# --- healthy devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "skipped"),
    [
        (Rng, {"configuration change"}),
        (Balloon, {"configuration change"}),
        (Input, {"configuration change"}),  # no key can be pressed from here: an LED is the traffic
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_healthy_device_passes(model: type[Model], skipped: set[str], mode: InterruptMode):
    scripted = ScriptedDevice(model())
    report = diagnosis(scripted, modes=[mode])
    assert [step.name for step in report.steps] == NAMES
    if mode is InterruptMode.POLLING:
        skipped = skipped | {"interrupt"}
    assert verdicts(report) == {name: "skip" if name in skipped else "pass" for name in NAMES}
    assert report.error is None and report.address == ADDRESS
    scripted.assert_left()


class Unknown(Model):
    """Some type that no probe here knows."""

    device_id = 34
    queue_sizes = (64, 64)


def test_a_type_without_a_driver_skips_the_data_path_and_says_so():
    scripted = ScriptedDevice(Unknown())
    report = diagnosis(scripted)
    assert report.verdict == "pass"
    assert (
        step(report, "data path").verdict == "skip"
        and "there is no probe for i2c" in step(report, "data path").detail
    )
    assert "queue 1 (8)" in step(report, "queue_enable").detail
    scripted.assert_left()


def test_a_type_that_nobody_knows():
    class Strange(Model):
        device_id = 63

    scripted = ScriptedDevice(Strange(), features=(1 << 128) - 1)
    report = diagnosis(scripted)
    assert report.type == "unknown(63)" and report.verdict in ("pass", "warn")
    scripted.assert_left()


class Hosted:
    """The guest machine of an input device, played: it takes QMP events of one type, and answers in evdev's."""

    def __init__(self, model: Input, name: str, takes: str) -> None:
        self.model = model
        self.name = name
        self.takes = takes
        self.sent: list[dict[str, object]] = []

    def own(self, scripted: ScriptedDevice) -> None:
        """From now on the device is in this machine: a GuestMachine."""
        scripted.id, scripted.ram, scripted.qmp = "dev0", 0, self.qmp  # type: ignore[attr-defined]

    def qmp(self, command: str, **arguments: object) -> object:
        if command == "qom-get":
            assert arguments == {"path": "/machine/peripheral/dev0", "property": "type"}
            return self.name
        assert command == "input-send-event"
        events = arguments["events"]
        assert isinstance(events, list)
        for event in events:
            self.sent.append(event)
            if event["type"] == self.takes:
                self.model.inject((3, 0x2F, 0), (0, 0, 0))
        return {}


def bits(*codes: int) -> bytes:
    return sum(1 << code for code in codes).to_bytes(max(codes) // 8 + 1, "little")


@pytest.mark.parametrize(
    ("events", "takes"),
    [
        ({1: bits(30, 57)}, "key"),
        ({1: bits(0x110), 2: bits(0, 1)}, "rel"),
        ({1: bits(0x110), 3: bits(0, 1)}, "abs"),
        # A touch screen has buttons too, and QEMU's model takes no key: that went to another keyboard.
        ({1: bits(0x110, 0x14A), 3: bits(0x2F, 0x35, 0x36, 0x39)}, "mtt"),
        ({1: bits(0x110, 0x111)}, "btn"),
    ],
)
def test_the_host_sends_an_event_that_the_device_has(events: dict[int, bytes], takes: str):
    ranges = {(0x12, axis): struct.pack("<5i", 0, 10, 0, 0, 0) for axis in range(0x40)}
    model = Input(answers={(0x11, kind): events.get(kind, b"") for kind in (1, 2, 3)} | ranges)
    scripted = ScriptedDevice(model)
    host = Hosted(model, f"virtio-{takes}-pci", takes)
    host.own(scripted)
    report = diagnosis(scripted)
    assert step(report, "data path").verdict == "pass", step(report, "data path")
    assert [event["type"] for event in host.sent] == [takes] * (2 if takes in ("key", "mtt", "btn") else 1)
    scripted.assert_left()


@pytest.mark.parametrize(
    ("name", "codes"),
    [("virtio-input-host-pci", bits(30)), ("vhost-user-input-pci", bits(30)), ("virtio-keyboard-pci", bits(0x74))],
)
def test_where_the_host_can_send_nothing_the_data_path_is_skipped(name: str, codes: bytes):
    model = Input(answers={(0x11, 1): codes, (0x11, 0x11): b""})
    scripted = ScriptedDevice(model)
    host = Hosted(model, name, "key")
    host.own(scripted)
    report = diagnosis(scripted)
    assert step(report, "data path").verdict == "skip" and not host.sent
    assert report.untried
    assert "no key can be pressed from here" in step(report, "data path").detail
    scripted.assert_left()


def test_an_event_that_does_not_arrive_is_a_warning():
    model = Input()
    scripted = ScriptedDevice(model)
    Hosted(model, "virtio-keyboard-pci", "mtt").own(scripted)
    report = diagnosis(scripted)
    assert step(report, "data path").verdict == "warn" and "none arrived" in (step(report, "data path").hint or "")
    scripted.assert_left()


# --- faults -------------------------------------------------------------------------------------------------


class Constant(Rng):
    def handle(self, queue: int, chain: Chain) -> int:
        return chain.fill(b"\x42" * chain.room)


class Empty(Rng):
    def handle(self, queue: int, chain: Chain) -> int:
        return 0


class StuckActual(Balloon):
    def write_config(self, offset: int, width: int, value: int) -> None:
        pass


def device(model: type[Model] = Rng, **faults: object) -> ScriptedDevice:
    return ScriptedDevice(model(), **faults)  # type: ignore[arg-type]


def _liar(**lies: object) -> ScriptedDevice:
    scripted = device()
    for name, value in lies.items():
        setattr(scripted.lies, name, value)
    return scripted


def _at_first_reset(scripted: ScriptedDevice) -> ScriptedDevice:
    scripted._status = 0xF
    return scripted


FAULTS: list[tuple[str, str, Callable[[], ScriptedDevice]]] = [
    ("capabilities", "UV-NODEV-NOT-VIRTIO", lambda: device(pci_device=0x1234)),
    ("capabilities", "UV-DEV-CAPABILITY", lambda: device(capabilities=[])),
    ("capabilities", "UV-NODEV-GONE", lambda: device(num_queues=0xFFFF)),
    ("reset", "UV-DEV-RESET-TIMEOUT", lambda: _at_first_reset(device(reset_reads=-1))),
    ("features", "UV-DEV-FEATURE-MISSING", lambda: device(features=f.mask(f.EVENT_IDX))),
    ("features_ok", "UV-DEV-FEATURES", lambda: device(refuse_features=True)),
    ("queues", "UV-DEV-QUEUE", lambda: device(num_queues=0)),
    ("queues", "UV-DEV-QUEUE", lambda: device(queue_size={0: 0})),
    ("queues", "UV-DEV-QUEUE", lambda: device(queue_size={0: 100})),
    ("queue_enable", "UV-DEV-QUEUE", lambda: device(queue_size_stuck=True, queue_size={0: 64})),
    ("queue_enable", "UV-DEV-QUEUE", lambda: device(address_mask=0xFFFF)),
    ("queue_enable", "UV-DEV-QUEUE", lambda: device(never_enables=True)),
    ("queue_enable", "UV-DEV-QUEUE", lambda: device(enabled_before=True)),
    ("queue_enable", "UV-DEV-QUEUE", lambda: device(notify_offs={0: 0x7FFF})),
    ("driver_ok", "UV-DEV-NEEDS-RESET", lambda: device(needs_reset_at="driver_ok")),
    ("data path", "UV-DEV-NEEDS-RESET", lambda: device(needs_reset_at="kick")),
    ("data path", "UV-DEV-TIMEOUT", lambda: device(silent=True)),
    ("data path", "UV-DEV-TIMEOUT", lambda: device(Balloon, silent=True)),
    ("data path", "UV-DEV-TIMEOUT", lambda: device(Balloon, silent_queues={1})),
    ("data path", "UV-DEV-PROTOCOL", lambda: device(Empty)),
    ("data path", "UV-DEV-RING", lambda: _liar(used_id=lambda head: head + 1)),
    ("data path", "UV-DEV-RING", lambda: _liar(used_len=lambda written: written + 1)),
    ("data path", "UV-DEV-RING", lambda: _liar(used_idx=lambda index: index + 9)),
    ("data path", "UV-DEV-CONFIG-UNSTABLE", lambda: device(Balloon, generation_bumps=-1)),
    ("data path", "UV-DEV-CONFIG-UNSTABLE", lambda: device(Input, generation_bumps=-1)),
]


@pytest.mark.parametrize(("failing", "code", "make"), FAULTS)
def test_a_fault_is_found_at_its_step_and_nothing_is_raised(
    failing: str, code: str, make: Callable[[], ScriptedDevice]
):
    scripted = make()
    report = diagnosis(scripted)
    assert report.verdict == "fail"
    assert [step.name for step in report.steps] == NAMES
    found = verdicts(report)
    place = NAMES.index(failing)
    assert all(found[name] in ("pass", "warn") for name in NAMES[:place])
    bad = step(report, failing)
    assert bad.verdict == "fail" and bad.detail.startswith(code) and bad.hint
    assert report.error is not None and report.error.code == code
    later = {found[name] for name in NAMES[place + 1 :] if name not in ("reset again", "leave")}
    assert later <= {"skip"}
    assert scripted.closed and not scripted.master
    scripted.assert_obedient()


@pytest.mark.parametrize("mode", [InterruptMode.PER_QUEUE, InterruptMode.SHARED, InterruptMode.INTX])
def test_lost_interrupts_are_told_apart_from_lost_answers(mode: InterruptMode):
    scripted = device(lose_interrupts=True)
    report = diagnosis(scripted, modes=[mode])
    found = verdicts(report)
    assert (found["data path"], found["interrupt"], report.verdict) == ("pass", "fail", "fail")
    assert step(report, "interrupt").cause.id == "interrupts-lost"
    scripted.assert_left()


@pytest.mark.parametrize(
    ("make", "name", "word"),
    [
        (lambda: device(Constant), "data path", "not random"),
        (lambda: device(StuckActual), "data path", "actual reads 0"),
        (lambda: device(Balloon, features=f.mask(f.VERSION_1, 20)), "features", "bit 20;"),
        (lambda: device(features_later=f.mask(f.VERSION_1)), "features", "other features at each reading"),
        (lambda: device(vectors=0, intx=False), "vectors", "polled"),
    ],
)
def test_what_is_odd_but_works_is_a_warning(make: Callable[[], ScriptedDevice], name: str, word: str):
    report = diagnosis(make())
    assert report.verdict == "warn"
    assert step(report, name).verdict == "warn" and word in step(report, name).hint


@pytest.mark.parametrize("target", [1, 5])
def test_a_balloon_whose_host_wants_pages_is_no_fault(target: int):
    model = Balloon()
    model.config[:4] = target.to_bytes(4, "little")  # num_pages
    scripted = ScriptedDevice(model)
    report = diagnosis(scripted)
    assert step(report, "data path").verdict == "pass" and report.verdict != "fail", report.cause
    scripted.assert_left()


@pytest.mark.parametrize("name", NAMES[2:13])
def test_a_device_that_vanishes_after_any_step(name: str):
    scripted = device(Balloon)

    def on_step(step: Step) -> None:
        if step.name == name:
            scripted.vanish()

    report = diagnosis(scripted, on_step=on_step)
    assert [step.name for step in report.steps] == NAMES
    assert report.verdict == "fail"
    assert report.error is not None and report.error.code == "UV-NODEV-GONE"
    scripted.assert_left()


@pytest.mark.parametrize("can_reset", [True, False])
def test_a_device_that_does_not_reset_when_it_is_left(can_reset: bool):
    scripted = device(can_reset=can_reset)

    def on_step(step: Step) -> None:
        if step.name == "interrupt":
            scripted.faults.reset_reads = -1

    report = diagnosis(scripted, on_step=on_step)
    assert (verdicts(report)["reset again"], verdicts(report)["leave"]) == ("fail", "skip")
    assert report.error is not None and report.error.code == "UV-DEV-RESET-TIMEOUT"
    assert step(report, "reset again").hint
    assert scripted.closed and not scripted.master


@pytest.mark.parametrize(
    "error", [NoSuchDevice("none"), EnvironmentLack("lack", remedy="get one"), OperationFailed("no")]
)
def test_what_cannot_be_opened_has_all_steps_and_the_error(error: UvirtioError):
    def fail() -> tuple[str, ScriptedDevice]:
        raise error

    report = diagnose_function(ADDRESS, fail)
    assert report.error is error and not report.reached_device and report.verdict == "fail"
    assert verdicts(report) == {name: "fail" if name == "discover" else "skip" for name in NAMES}
    assert report.steps[0].hint


def test_an_address_that_the_administrator_denied(tmp_path):
    roots = Roots.under(tmp_path)
    (roots.etc / "uvirtio").mkdir(parents=True)
    (roots.etc / "uvirtio" / "deny").write_text("*\n")
    report = diagnose("00:04.0", roots=roots)
    assert isinstance(report.error, Denied) and report.verdict == "fail"


def test_memory_that_cannot_be_had_is_no_fault_of_the_device():
    scripted = device(Balloon)
    scripted.memory.pagemap_hidden = True
    report = diagnosis(scripted)
    assert step(report, "data path").verdict == "warn"
    assert "UV-ENV-PAGEMAP" in step(report, "data path").detail
    assert report.verdict == "warn"
    scripted.assert_left()


class Enough(BaseException):
    """Why a diagnosis was interrupted."""


@pytest.mark.fault(45)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode is not InterruptMode.POLLING])
def test_a_storm_is_a_warning(mode: InterruptMode):
    scripted = ScriptedDevice(Rng())

    def begin(one: Step) -> None:
        if one.name == "driver_ok":
            scripted.storm()

    report = diagnosis(scripted, modes=[mode], on_step=begin)
    assert step(report, "interrupt").verdict == "warn"
    assert "do not stop" in (step(report, "interrupt").hint or "")
    assert report.verdict == "warn"
    scripted.assert_left()


def test_an_interrupted_diagnosis_leaves_the_device_in_order():
    scripted = device(silent=True)
    with pytest.raises(Enough):
        diagnosis(scripted, opened=lambda opened: opened.interrupt(Enough()))
    scripted.assert_left()


def test_the_shape_of_the_report():
    seen: list[Step] = []
    document = json.loads(json.dumps(diagnosis(device(), on_step=seen.append).as_dict()))
    assert set(document) == {"address", "type", "verdict", "data_path_tried", "cause", "steps"}
    assert (document["address"], document["type"], document["verdict"]) == (ADDRESS, "rng", "pass")
    assert [entry["name"] for entry in document["steps"]] == NAMES == [step.name for step in seen]
    for entry in document["steps"]:
        assert set(entry) == {"name", "verdict", "spec", "took_s", "detail", "hint", "cause", "data"}
        assert entry["verdict"] in ("pass", "fail", "warn", "skip")
        assert entry["spec"] == STEPS[entry["name"]] and entry["took_s"] >= 0


def test_a_device_that_stops_answering_when_it_is_left():
    scripted = device(Balloon)
    devices: list[Device] = []

    def never_comes(working: bool) -> None:
        devices[0].wait(lambda: False, timeout=SHORT, what="the last acknowledgement")

    def on_step(step: Step) -> None:
        if step.name == "configuration change":
            devices[0]._give_back = never_comes

    report = diagnosis(scripted, on_step=on_step, opened=devices.append)
    assert step(report, "reset again").detail.startswith("UV-DEV-TIMEOUT")
    assert report.verdict == "fail"
    scripted.assert_left()
