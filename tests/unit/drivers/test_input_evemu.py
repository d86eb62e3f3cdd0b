"""Recordings in evemu's format: written and read back, and everything that is no recording refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.drivers.input import AbsInfo, Description, InputEvent, InputIds, evemu, formats
from uvirtio.drivers.input import recording as recording_module
from uvirtio.errors import UsageError, UvirtioError
from uvirtio.spec import input as spec

# As libevemu 2.7 writes it, without its comments before the description.
FOREIGN = """\
# EVEMU 1.3
# Kernel: 6.1.0
# Input device name: "Some # touchpad"
N: Some # touchpad
I: 0011 0002 0007 01b1
P: 05 00 00 00 00 00 00 00
B: 00 0b 00 00 00 00 00 00 00
B: 01 00 00 00 00 00 00 00 00
B: 01 00 00 00 00 00 00 00 00
B: 01 00 00 00 00 00 00 00 00
B: 01 00 00 00 00 00 00 00 00
B: 01 00 00 01 00 00 00 00 00
B: 02 00 00 00 00 00 00 00 00
B: 03 03 00 00 00 00 00 00 00
B: 11 00 00 00 00 00 00 00 00
A: 00 1472 5472 8 0 60
A: 01 1408 4448 8 0
L: 00 1
S: 00 0
################################
#      Waiting for events      #
################################
E: 12.000001 0003 0000 2000\t# EV_ABS / ABS_X                2000
E: 12.000001 0001 0110 0001\t# EV_KEY / BTN_LEFT             1

E: 12.000001 0000 0000 0000\t# ------------ SYN_REPORT (0) ---------- +0ms
E: 13.500000 0001 0110 0000
"""


def lines(text: str = FOREIGN) -> list[str]:
    return text.splitlines(keepends=True)


def test_a_recording_of_another_program():
    got = evemu.parse(lines())
    about = got.description
    assert about is not None and about.name == "Some # touchpad"
    assert about.ids == InputIds(0x11, 2, 7, 0x1B1)
    assert about.properties == {0, 2}
    assert about.events == {1: frozenset({0x110}), 3: frozenset({0, 1})}
    assert about.axes == {0: AbsInfo(1472, 5472, 8, 0, 60), 1: AbsInfo(1408, 4448, 8, 0, 0)}
    assert [at for at, _ in got.events] == [0, 0, 0, 1_499_999]
    assert got.events[0][1] == InputEvent(3, 0, 2000)
    first, last = got.frames()
    assert (first[0], len(first[1])) == (0, 3)
    assert last == (1_499_999, (InputEvent(1, 0x110, 0),))


def test_a_description_alone_is_a_recording():
    got = evemu.parse(line for line in lines() if not line.startswith("E:"))
    assert got.events == ()
    assert list(got.frames()) == []


ALONE = "".join(line for line in lines() if line.startswith(("#", "E:")))
"""The events without the device, as many recordings are; evemu plays them into a device that is there."""


def test_events_alone_are_a_recording_without_a_device():
    got, whole = evemu.parse(lines(ALONE)), evemu.parse(lines())
    assert got.description is None
    assert got.events == whole.events
    # Put behind a description they are what was recorded.
    described = "".join(line for line in lines() if not line.startswith("E:"))
    assert evemu.parse(lines(described + ALONE)) == whole


@pytest.mark.parametrize(
    "text",
    [
        "# EVEMU 1.3\n",
        ALONE + "N: late\n",
        ALONE + "L: 00 1\n",
        "L: 00 1\n" + ALONE,
        "B: 01 00 00 01 00 00 00 00 00\n" + ALONE,
        "E: 0.000000 0003 0040 0001\n",
        "E: 0.000000 0001 0300 0001\n",
        "E: 0.000000 0006 0000 0001\n",
        "E: 0.000000 0000 0010 0000\n",
        "E: 1.000000 0001 001e 0001\nE: 0.000000 0001 001e 0000\n",
    ],
)
def test_events_alone_are_looked_at_as_well(text: str):
    with pytest.raises(UsageError):
        evemu.parse(lines(text))


def test_an_event_as_evemu_writes_it():
    assert evemu.event_line(12_000_034, InputEvent(1, 30, 1)) == "E: 12.000034 0001 001e 0001\t# EV_KEY / KEY_A"
    assert evemu.event_line(0, InputEvent(2, 0, -1)).startswith("E: 0.000000 0002 0000 -001\t")
    assert "SYN_REPORT (0)" in evemu.event_line(0, InputEvent(0, 0, 0))


def changed(old: str, new: str) -> str:
    assert old in FOREIGN
    return FOREIGN.replace(old, new, 1)


@pytest.mark.parametrize(
    "text",
    [
        changed("N: Some # touchpad\n", ""),
        changed("N: Some # touchpad\n", "N: \n"),
        changed("N: Some # touchpad\n", "N: a\nN: b\n"),
        changed("N: Some # touchpad\n", "N: a\x1b[31m\n"),
        changed("I: 0011 0002 0007 01b1", ""),
        changed("I: 0011 0002 0007 01b1", "I: 0011 0002 0007"),
        changed("I: 0011", "I: 00011"),
        changed("I: 0011 0002 0007 01b1", "I: 0011 0002 0007 01b1\nI: 0011 0002 0007 01b1"),
        changed("P: 05", "P: 5"),
        changed("P: 05", "P: 00 05"),
        changed("B: 02 00", "B: 20 00"),
        changed("B: 02 00 00 00 00 00 00 00 00", "B: 02"),
        changed("B: 02", "B: zz"),
        changed("B: 02", "B: -2"),
        changed("B: 02 00", "B: 02  " + "00 " * 97),
        changed("A: 00 1472", "A: 40 1472"),
        changed("A: 01 1408", "A: 00 1408"),
        changed("A: 01 1408 4448 8 0", "A: 01 1408 4448 8"),
        changed("A: 01 1408", "A: 01 4000000000"),
        changed("A: 01 1408", "A: 01 0x10"),
        changed("A: 01 1408", "A: 01 ١٤"),
        changed("L: 00 1", "L: 00 2"),
        changed("S: 00 0", "S: 00"),
        changed("S: 00 0", "X: 00"),
        changed("S: 00 0", "no letter"),
        changed("E: 13.500000", "E: 11.500000"),
        changed("E: 13.500000", "E: -1.500000"),
        changed("E: 13.500000", "E: 13.5"),
        changed("E: 13.500000", "E: 99999999999.000000"),
        changed("E: 13.500000 0001", "E: 13.500000 0002"),
        changed("0110 0000", "0111 0000"),
        changed("0110 0000", "0110 3000000000"),
        changed("0110 0000", "0110"),
        changed("0000 0000 0000\t", "0000 0010 0000\t"),
        FOREIGN + "N: late\n",
        FOREIGN + "B: 01 ff\n",
        FOREIGN + "#" * 2000 + "\n",
        "",
        "\0" * 100,
    ],
)
def test_what_is_not_understood_is_refused(text: str):
    with pytest.raises(UsageError) as refused:
        evemu.parse(lines(text))
    assert refused.value.exit_code == 2
    assert "line " in refused.value.message


def test_a_refusal_names_the_line():
    with pytest.raises(UsageError, match="line 5 of the recording"):
        evemu.parse(lines(changed("I: 0011", "I: x")))


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recording_module, "EVENTS_MAX", 4)
    evemu.parse(lines())
    with pytest.raises(UsageError, match="too many events"):
        evemu.parse(lines(FOREIGN + "E: 14.000000 0000 0000 0000\n"))
    monkeypatch.setattr(recording_module, "LINES_MAX", 10)
    with pytest.raises(UsageError, match="too many lines"):
        evemu.parse(lines())


def test_a_file_is_read_in_bounded_pieces(tmp_path: Path):
    file = tmp_path / "it.evemu"
    file.write_text(FOREIGN)
    assert len(formats.read(str(file)).events) == 4
    file.write_bytes(b"x" * 5_000_000)
    with pytest.raises(UsageError, match="too long"):
        formats.read(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no text"):
        formats.read(str(file))
    for wrong in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="cannot be read"):
            formats.read(str(wrong))


# --- for all recordings -------------------------------------------------------------------------------------

word, s32 = st.integers(0, 0xFFFF), st.integers(-(1 << 31), (1 << 31) - 1)


@st.composite
def recordings(draw: st.DrawFn) -> evemu.Recording:
    kinds = draw(st.sets(st.sampled_from([1, 2, 3, 4, 5, 0x11, 0x12, 0x15, 0x14]), max_size=5))
    events = {
        kind: frozenset({0, 1})
        if kind == spec.EV_REP
        else draw(st.frozensets(st.integers(0, spec.CODE_COUNTS[kind] - 1), min_size=1, max_size=8))
        for kind in kinds
    }
    about = Description(
        name=draw(st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=40)),
        ids=InputIds(draw(word), draw(word), draw(word), draw(word)),
        properties=draw(st.frozensets(st.integers(0, 31))),
        events=events,
        axes={code: AbsInfo(*(draw(s32) for _ in range(5))) for code in events.get(3, ())},
    )
    possible = [(kind, code) for kind, codes in events.items() for code in codes] + [(0, 0)]
    made = draw(st.lists(st.tuples(st.integers(0, 10**7), st.sampled_from(possible), s32), max_size=20))
    times, at = [], 0
    for number, (gap, _, _) in enumerate(made):
        at += gap if number else 0
        times.append(at)
    return evemu.Recording(
        about, tuple((at, InputEvent(*code, value)) for at, (_, code, value) in zip(times, made, strict=True))
    )


@given(recordings())
def test_what_is_written_is_read_back(recording: evemu.Recording):
    text = list(evemu.header(recording.description))
    text += [evemu.event_line(at, event) for at, event in recording.events]
    assert evemu.parse(text) == recording
    assert sum(len(events) for _, events in recording.frames()) == len(recording.events)


@pytest.mark.fault(55)
@given(st.text(max_size=300))
def test_a_name_never_breaks_a_recording(name: str):
    got = evemu.parse(evemu.header(Description(name)))
    assert got.description.name
    assert got.events == ()


snippets = st.one_of(
    st.sampled_from(lines()),
    st.text(max_size=60),
    st.from_regex(r"[NIPBALSE]: [0-9a-f. \-#]{0,40}", fullmatch=True),
    st.from_regex(r"E: [0-9]{1,11}\.[0-9]{5,7} [0-9a-f]{1,5} [0-9a-f]{1,5} -?[0-9]{1,12}", fullmatch=True),
)


@pytest.mark.fault(97)
@given(st.lists(snippets, max_size=40), st.booleans())
def test_no_text_does_anything_but_parse_or_be_refused(text: list[str], with_head: bool):
    try:
        got = evemu.parse(lines()[:17] + text if with_head else text)
    except UvirtioError as error:
        assert type(error) is UsageError
    else:
        about = got.description
        assert about is not None or got.events
        assert about is None or all(about.can(one.type, one.code) for _, one in got.events)
        assert [at for at, _ in got.events] == sorted(at for at, _ in got.events)
        if about is not None:
            about.sane()
