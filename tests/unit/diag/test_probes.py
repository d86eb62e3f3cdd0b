"""Probes of types that have no driver: an honest device passes, and a wrong answer is named by what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from uvirtio.diag import Report, Step, diagnose, diagnose_function
from uvirtio.diag.probes.table import PROBES
from uvirtio.scripted import ScriptedCore, ScriptedDevice
from uvirtio.scripted.address import TYPES, build
from uvirtio.scripted.answering import Answering
from uvirtio.spec import console, crypto, gpu, ninep
from uvirtio.spec.crypto import Status
from uvirtio.spec.gpu import Command

CHECKOUT = Path(uvirtio.__file__).parents[1]
PATIENCE = 0.2

ASKED = sorted(name for name, model in TYPES.items() if issubclass(model, Answering))  # type: ignore[arg-type]
"""The types that have no driver here."""

Spoil = Callable[[Any], object]


def diagnosed(device: ScriptedCore, *, intrusive: bool = False) -> Report:
    return diagnose_function(
        device.address, lambda: (device.address, device), timeout=PATIENCE, intrusive=intrusive
    )


def path(report: Report) -> Step:
    return next(step for step in report.steps if step.name == "data path")


@pytest.mark.parametrize("transport", ["pci", "mmio", "pci,packed"])
@pytest.mark.parametrize("name", ASKED)
def test_an_honest_device_passes_and_no_rule_is_broken(name: str, transport: str) -> None:
    device = build(f"scripted:{name},transport={transport}")
    report = diagnosed(device)
    assert report.verdict == "pass", path(report)
    assert not report.untried and path(report).verdict == "pass"
    device.assert_left()
    device.assert_obedient()


@pytest.mark.parametrize("name", ASKED)
def test_a_second_round_is_as_the_first(name: str) -> None:
    from uvirtio.device.bringup import unobserved
    from uvirtio.diag import datapath

    with uvirtio.open(build(f"scripted:{name}"), timeout=PATIENCE) as device:
        one = datapath.for_device(device)
        one.start(unobserved)
        assert [(one.exercise().suspicious, one.exercise().skipped) for _ in range(2)] == [("", False)] * 2


def answers(model: Any, change: Callable[[int, bytes, bytes], bytes]) -> None:
    """Other answers: ``change`` is given the queue, the request and the answer."""
    honest = model.answer

    def answer(queue: int, data: bytes, chain: Any) -> bytes | None:
        made = honest(queue, data, chain)
        return made and change(queue, data, made)

    model.answer = answer


def leaves_out(model: Any, count: int, queue: int, at: int = 0) -> None:
    """In answers of a queue ``count`` bytes from ``at`` on are not written, and count as written."""
    answer, handle = model.answer, model.handle
    given: list[Any] = []

    def noted(number: int, data: bytes, chain: Any) -> bytes | None:
        given[:] = [number, chain, b"".join(chain.memory.read(one.address, one.length) for one in chain.writable)]
        return bytes(answer(number, data, chain) or b"") or None

    def handled(number: int, chain: Any) -> int | None:
        done: int | None = handle(number, chain)
        if number == queue and done:
            before, now = given[2], b"".join(chain.memory.read(e.address, e.length) for e in chain.writable)
            chain.fill(now[:at] + before[at : at + count] + now[at + count :])
        return done

    model.answer, model.handle = noted, handled


# --- console ----------------------------------------------------------------------------------------------------


def to_host_in_capitals(model: Any) -> None:
    receive = model.peer_receive
    model.peer_receive = lambda: receive().upper()


def to_nowhere(model: Any) -> None:
    model.peer_receive = lambda: b""


def receives_another(model: Any) -> None:
    send = model.peer_send
    model.peer_send = lambda data: send(data[::-1])


def receives_nothing(model: Any) -> None:
    send = model.peer_send

    def silent(data: bytes) -> None:
        model.untouched = True
        send(data)

    model.peer_send = silent


def tells_of_port_nine(model: Any) -> None:
    tell = model.tell
    model.tell = lambda port, event, value: tell(9, event, value)


def tells_without_end(model: Any) -> None:
    take = model.answer

    def answer(queue: int, data: bytes, chain: Any) -> bytes | None:
        made: bytes | None = take(queue, data, chain)
        if queue == console.CONTROL_RECEIVEQ and model.ready:
            model.tell(0, console.Control.CONSOLE_PORT, 1)
        return made

    model.answer = answer


# --- gpu --------------------------------------------------------------------------------------------------------


def no_size(model: Any) -> None:
    model.width = 0


def no_edid(model: Any) -> None:
    answers(
        model,
        lambda queue, data, answer: (
            answer[:32] + bytes(1024) if data[:2] == Command.GET_EDID.to_bytes(2, "little") else answer
        ),
    )


def forgets_the_fence(model: Any) -> None:
    answers(model, lambda queue, data, answer: answer[:8] + bytes(8) + answer[16:])


def one_pixel_wrong(model: Any) -> None:
    screen = model.screen
    model.screen = lambda: screen()[:-1] + b"\x77"


def other_screen(model: Any) -> None:
    model.screen = lambda: b"P6\n640 480\n255\n" + bytes(3 * 640 * 480)


def refuses_pictures(model: Any) -> None:
    def refused(queue: int, data: bytes, answer: bytes) -> bytes:
        create = data[:2] == Command.RESOURCE_CREATE_2D.to_bytes(2, "little")
        return gpu.Response.ERR_INVALID_RESOURCE_ID.to_bytes(4, "little") + answer[4:] if create else answer

    answers(model, refused)


# --- crypto -----------------------------------------------------------------------------------------------------


def ciphers_wrongly(model: Any) -> None:
    answers(model, lambda queue, data, answer: bytes([answer[0] ^ 1]) + answer[1:] if queue == 0 else answer)


def writes_the_status_alone(model: Any) -> None:
    leaves_out(model, 16, crypto.DATAQ)


def knows_no_session(model: Any) -> None:
    answers(model, lambda queue, data, answer: answer[:-1] + bytes([Status.INVSESS]) if queue == 0 else answer)


def no_end_of_sessions(model: Any) -> None:
    answers(model, lambda queue, data, answer: bytes([Status.ERR]) if len(answer) == 1 else answer)


# --- 9p ---------------------------------------------------------------------------------------------------------


def another_version(model: Any) -> None:
    answers(model, lambda queue, data, answer: answer.replace(ninep.VERSION, b"9P2000.u"))


def the_root_is_a_file(model: Any) -> None:
    answers(model, lambda queue, data, answer: answer[:7] + b"\0" + answer[8:] if answer[4] == 105 else answer)


def no_root(model: Any) -> None:
    def refused(queue: int, data: bytes, answer: bytes) -> bytes:
        return ninep.HEAD.pack(11, 7, 1) + (2).to_bytes(4, "little") if answer[4] == 105 else answer

    answers(model, refused)


# --- pmem -------------------------------------------------------------------------------------------------------


def flush_fails_later(model: Any) -> None:
    answers(model, lambda queue, data, answer: answer if model.flushes < 2 else b"\1\0\0\0")


def memory_of_its_own(model: Any) -> None:
    model.cpu_read = lambda address, length: bytes(length)


def writes_go_nowhere(model: Any) -> None:
    model.cpu_write = lambda address, data: None


# --- iommu ------------------------------------------------------------------------------------------------------


def takes_a_mapping_twice(model: Any) -> None:
    answers(model, lambda queue, data, answer: bytes(4) if data[0] == 3 else answer)


def writes_no_properties(model: Any) -> None:
    leaves_out(model, 64, 0)


def property_too_long(model: Any) -> None:
    answers(
        model,
        lambda queue, data, answer: answer[:2] + b"\xff\x00" + answer[4:] if len(answer) > 4 else answer,
    )


def junk_behind_the_status(model: Any) -> None:
    answers(model, lambda queue, data, answer: answer[:-1] + b"\7")


# --- sound ------------------------------------------------------------------------------------------------------


def a_third_direction(model: Any) -> None:
    model.directions = (0, 7)


def no_status_of_periods(model: Any) -> None:
    leaves_out(model, 8, 2)


def records_nothing(model: Any) -> None:
    leaves_out(model, 2048, 3)


def never_starts(model: Any) -> None:
    def refused(queue: int, data: bytes, answer: bytes) -> bytes:
        return (0x8001).to_bytes(4, "little") if data[:2] == b"\x04\x01" else answer

    answers(model, refused)


def pages_without_room(model: Any) -> None:
    model.put("page_size_mask", 1 << 63)


# --- rtc --------------------------------------------------------------------------------------------------------


def no_clock(model: Any) -> None:
    answers(model, lambda queue, data, answer: bytes(16) if data[:2] == b"\0\x10" else answer)


def clock_of_no_type(model: Any) -> None:
    answers(
        model,
        lambda queue, data, answer: answer[:8] + b"\x55" + answer[9:] if data[:2] == b"\1\x10" else answer,
    )


def reading_left_out(model: Any) -> None:
    answers(model, lambda queue, data, answer: b"\2" + bytes(7) if data[:2] == b"\1\0" else answer)


# --- vsock ------------------------------------------------------------------------------------------------------


def answers_with_data(model: Any) -> None:
    tell = model.tell
    model.tell = lambda key, op, data=b"", **how: tell(key, 5, b"here", **how)


def for_another_guest(model: Any) -> None:
    get = model.get
    model.get = lambda name: get(name) + 1 if model.connections else get(name)


# --- fs ---------------------------------------------------------------------------------------------------------


def another_fuse(model: Any) -> None:
    answers(model, lambda queue, data, answer: answer[:16] + b"\6" + answer[17:] if len(answer) == 80 else answer)


def no_attributes(model: Any) -> None:
    answers(
        model,
        lambda queue, data, answer: answer[:4] + b"\xf3\xff\xff\xff" + answer[8:] if data[4] == 3 else answer,
    )


def an_error_of_no_errno(model: Any) -> None:
    answers(model, lambda queue, data, answer: answer[:4] + b"\0\0\0\x80" + answer[8:])


def a_file_for_a_root(model: Any) -> None:
    answers(model, lambda queue, data, answer: answer[:92] + bytes(28) if data[4] == 3 else answer)


WRONG: list[tuple[str, Spoil, str, str]] = [
    ("console", to_host_in_capitals, "other-side-differs", "UVIRTIO TO ITS HOST"),
    ("console", to_nowhere, "other-side-differs", "nothing"),
    ("console", receives_another, "other-side-differs", "ot tsoh sti"),
    ("console", receives_nothing, "answer-untouched", "bytes that the other end has sent"),
    ("console", tells_of_port_nine, "answer-wrong", "port 9 of 4"),
    ("console", tells_without_end, "answer-wrong", "messages without end"),
    ("gpu", no_size, "answer-wrong", "0x800"),
    ("gpu", no_edid, "answer-wrong", "EDID of 1024 bytes that begins 00 00"),
    ("gpu", forgets_the_fence, "answer-wrong", "fence_id 0x0"),
    ("gpu", one_pixel_wrong, "other-side-differs", "pixel 63,47"),
    ("gpu", other_screen, "other-side-differs", "640x480 pixels"),
    ("gpu", refuses_pictures, "answer-wrong", "ERR_INVALID_RESOURCE_ID"),
    ("crypto", ciphers_wrongly, "answer-wrong", "7749abac"),
    ("crypto", writes_the_status_alone, "answer-untouched", "ENCRYPT"),
    ("crypto", knows_no_session, "answer-wrong", "INVSESS"),
    ("crypto", no_end_of_sessions, "answer-wrong", "DESTROY_SESSION"),
    ("9p", another_version, "answer-wrong", "9P2000.u"),
    ("9p", the_root_is_a_file, "answer-wrong", "no directory"),
    ("9p", no_root, "answer-wrong", "Rlerror, errno 2"),
    ("pmem", flush_fails_later, "answer-wrong", "ret 0x1"),
    ("pmem", memory_of_its_own, "other-side-differs", "what its file holds"),
    ("pmem", writes_go_nowhere, "other-side-differs", "what the machine writes"),
    ("iommu", takes_a_mapping_twice, "answer-wrong", "INVAL and zeros are right"),
    ("iommu", writes_no_properties, "answer-untouched", "PROBE"),
    ("iommu", property_too_long, "answer-wrong", "of type 1 and 255 bytes"),
    ("iommu", junk_behind_the_status, "answer-wrong", "then 00 00 07"),
    ("iommu", pages_without_room, "answer-wrong", "no four of them fit"),
    ("sound", a_third_direction, "answer-wrong", "direction 7"),
    ("sound", no_status_of_periods, "answer-untouched", "a period to play"),
    ("sound", records_nothing, "answer-untouched", "a period to record"),
    ("sound", never_starts, "answer-wrong", "PCM_START"),
    ("rtc", no_clock, "answer-wrong", "no clock at all"),
    ("rtc", clock_of_no_type, "answer-wrong", "type 85"),
    ("rtc", reading_left_out, "answer-wrong", "EOPNOTSUPP"),
    ("fs", another_fuse, "answer-wrong", "major version 6"),
    ("fs", no_attributes, "answer-wrong", "error -13 (Permission denied)"),
    ("fs", an_error_of_no_errno, "answer-wrong", "error -2147483648 (no errno)"),
    ("fs", a_file_for_a_root, "answer-wrong", "no directory: mode 0o0"),
    ("vsock", answers_with_data, "answer-wrong", "op RW"),
    ("vsock", for_another_guest, "answer-wrong", "to 4:10000 instead of 2:9 to 3:10000"),
]


@pytest.mark.parametrize(
    ("name", "spoil", "cause", "words"), WRONG, ids=lambda one: getattr(one, "__name__", None)
)
def test_a_wrong_answer_is_named(name: str, spoil: Spoil, cause: str, words: str) -> None:
    device = build(f"scripted:{name}")
    spoil(device.model)
    report = diagnosed(device)
    assert report.verdict == "fail" and report.cause is not None
    assert report.cause.id == cause, report.cause
    assert words in f"{report.cause.text} {report.cause.evidence}"
    device.assert_left()


@pytest.mark.parametrize("size", [0, 8189, 0xFFFF_FFFF])
def test_a_room_that_no_probe_needs_is_odd(size: int) -> None:
    device = build("scripted:iommu")
    device.model.put("probe_size", size)
    report = diagnosed(device)
    assert report.verdict == "warn" and f"probe_size is {size}" in path(report).hint
    device.assert_left()


def test_a_clock_that_stands_still_is_odd() -> None:
    device = build("scripted:rtc")
    device.model.tick = 0  # type: ignore[attr-defined]
    report = diagnosed(device)
    assert report.verdict == "warn" and "does not go on" in path(report).hint


def test_a_host_that_does_not_answer_proves_nothing() -> None:
    device = build("scripted:vsock")
    device.model.tell = lambda *what, **how: None  # type: ignore[attr-defined]
    report = diagnosed(device)
    assert report.verdict == "pass" and "no answer came" in report.untried


def test_every_type_without_a_driver_has_wrong_answers_here() -> None:
    assert {name for name in ASKED if sum(name == one[0] for one in WRONG) >= 2} == set(ASKED)


# --- harm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intrusive", [False, True])
def test_a_picture_is_shown_only_where_that_may_be_seen(intrusive: bool) -> None:
    model = TYPES["gpu"]()
    device = ScriptedDevice(model)  # under the address of a real device
    report = diagnosed(device, intrusive=intrusive)
    assert report.verdict == "pass", path(report)
    kinds = {gpu.HEADER.unpack_from(data)[0] for _, data in model.requests}
    assert (Command.SET_SCANOUT in kinds) is intrusive and Command.GET_DISPLAY_INFO in kinds
    assert ("no picture was shown" in path(report).detail) is not intrusive


def test_without_the_other_end_no_bytes_are_sent() -> None:
    model = TYPES["console"]()
    model.other_sides = frozenset()
    report = diagnosed(ScriptedDevice(model))
    assert report.verdict == "pass" and "no bytes were sent" in path(report).detail
    assert not any(queue == 1 for queue, _ in model.requests)


def test_a_type_without_a_probe_says_so_in_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    from uvirtio.scripted.model import Model

    class Strange(Model):
        device_id = 34

    report = diagnosed(ScriptedDevice(Strange()))
    assert report.verdict == "pass" and report.untried.startswith("data path not tried: there is no probe for i2c")


def test_the_page_has_the_table() -> None:
    page = (CHECKOUT / "docs/probes.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9]+) \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)

    def both(first: str, second: str) -> str:
        return f"{first}; *{second}*" if second else first

    assert rows[1:] == [
        (
            name,
            both(one.exchange, one.more),
            one.proves,
            both(one.harm.value, one.more_harm.value if one.more else ""),
        )
        for name, one in PROBES.items()
    ]


def test_the_command_shows_the_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    report = diagnose("scripted:crypto", timeout=PATIENCE)
    assert "7649abac8119b246cee98e9b12e9197d" in path(report).detail
