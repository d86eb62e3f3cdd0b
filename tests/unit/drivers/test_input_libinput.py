"""Recordings of libinput record: read as libinput writes them, written so that YAML readers understand them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.drivers.test_input_evemu import FOREIGN as EVEMU
from tests.unit.drivers.test_input_evemu import recordings
from uvirtio.drivers.input import AbsInfo, Description, InputEvent, InputIds, formats, libinput
from uvirtio.drivers.input import recording as recording_module
from uvirtio.drivers.input.recording import Recording
from uvirtio.errors import UsageError
from uvirtio.spec import input as spec

# In the form of libinput 1.22: its comments, sections that say nothing of the device, and libinput's own events.
FOREIGN = """\
# libinput record
version: 1
ndevices: 1
libinput:
  version: "1.22.1"
  git: "unknown"
system:
  os: "debian:12"
  kernel: "6.1.0-18-amd64"
  dmi: "dmi:bvnQEMU:bvr1.16:"
devices:
- node: /dev/input/event5
  evdev:
    # Name: Some "touch" pad # 2
    # ID: bus 0x0011 (i8042) vendor 0x0002 product 0x0007 version 0x01b1
    # Size in mm: 66x43
    # Supported Events:
    # Event type 0 (EV_SYN)
    name: "Some "touch" pad # 2"
    id: [17, 2, 7, 433]
    codes:
      0: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] # EV_SYN
      1: [272, 330] # EV_KEY
      3: [0, 1] # EV_ABS
    absinfo:
      0: [1472, 5472, 8, 0, 60]
      1: [1408, 4448, 8, 0, 85]
    properties: [0, 2]
  hid: [
    0x05, 0x01,
  ]
  udev:
    properties:
    - ID_INPUT=1
    - LIBINPUT_DEVICE_GROUP=11/2/7:isa0060/serio1
  quirks:
  - ModelSynapticsSerialTouchpad=1
  events:
  # Current time is 12:34:56
  - evdev:
    - [ 12,      1,   3,   0,    2000] # EV_ABS / ABS_X                2000 (+2000)
    - [ 12,      1,   1, 272,       1] # EV_KEY / BTN_LEFT                1
    - [ 12,      1,   0,   0,       0] # ------------ SYN_REPORT (0) ---------- +0ms
  - libinput:
    - {time: 0.000001, type: POINTER_BUTTON, button: 272, state: pressed, seat_count: 1}
  - evdev:
    - [ 13, 500000,   1, 272,       0] # EV_KEY / BTN_LEFT                0
                                 # Touch device in neutral state
"""


def lines(text: str = FOREIGN) -> list[str]:
    return text.splitlines(keepends=True)


def test_what_encloses_a_line_is_forgotten_behind_it():
    parser = libinput._Parser()
    parser.read(lines() + 50 * ["    - [ 14, 0,   0,   0,       0]\n"])
    assert parser.open == [(0, "devices"), (0, None), (2, "events"), (2, None), (4, "evdev"), (4, None)]


def test_a_recording_of_libinput():
    got = libinput.parse(lines())
    about = got.description
    assert about is not None and about.name == 'Some "touch" pad # 2'
    assert about.ids == InputIds(0x11, 2, 7, 0x1B1)
    assert about.properties == {0, 2}
    assert about.events == {1: frozenset({272, 330}), 3: frozenset({0, 1})}
    assert about.axes == {0: AbsInfo(1472, 5472, 8, 0, 60), 1: AbsInfo(1408, 4448, 8, 0, 85)}
    assert got.events == (
        (0, InputEvent(3, 0, 2000)),
        (0, InputEvent(1, 272, 1)),
        (0, InputEvent(0, 0, 0)),
        (1_499_999, InputEvent(1, 272, 0)),
    )
    assert [len(events) for _, events in got.frames()] == [3, 1]


def test_a_list_may_stand_further_in_than_its_key():
    """As newer versions of libinput have it; and a YAML library writes each item of a list of lists so."""
    begin = lines().index("devices:\n") + 1
    other = lines()[:begin] + ["  " + line for line in lines()[begin:]]
    assert libinput.parse(other) == libinput.parse(lines())


@pytest.mark.parametrize("blank", ["\n", "   \n", "\t\n", "        # and more\n"])
def test_lines_that_say_nothing_end_nothing(blank: str):
    """Wherever they stand and however far in: within a list, a frame, or brackets."""
    spaced = [part for line in lines() for part in (line, blank)]
    assert libinput.parse(spaced) == libinput.parse(lines())


def test_events_about_the_stream_do_not_end_a_frame():
    """Only SYN_REPORT does: SYN_MT_REPORT stands between contacts, SYN_DROPPED before the rest of a frame."""
    frame = (InputEvent(3, 53, 1), InputEvent(0, 2, 0), InputEvent(3, 53, 7), InputEvent(0, 3, 0))
    ends = InputEvent(0, 0, 0)
    events = tuple((at, one) for at, one in enumerate((*frame, ends, *frame)))
    assert list(Recording(None, events).frames()) == [(4, (*frame, ends)), (8, frame)]


def test_the_format_is_found_out(tmp_path: Path):
    file = tmp_path / "a recording"
    file.write_text(FOREIGN)
    assert formats.read(str(file)) == libinput.parse(lines())
    file.write_text(EVEMU)
    assert formats.read(str(file)).description.name == "Some # touchpad"
    file.write_text("version: 2\n")
    with pytest.raises(UsageError, match="line 1 of the recording: a version that is not known"):
        formats.read(str(file))
    file.write_text("versions: 1\n")
    with pytest.raises(UsageError, match="no known letter"):
        formats.read(str(file))
    file.write_text("# nothing\n\n")
    with pytest.raises(UsageError, match="no device is described"):
        formats.read(str(file))


def changed(old: str, new: str) -> str:
    assert old in FOREIGN
    return FOREIGN.replace(old, new, 1)


@pytest.mark.parametrize(
    "text",
    [
        changed("version: 1\n", "version: 12\n"),
        changed("version: 1\n", ""),
        changed('    name: "Some "touch" pad # 2"\n', ""),
        changed('name: "Some', 'name: "Ab\x07c'),
        changed('    name: "Some "touch" pad # 2"\n', '    name: ""\n'),
        changed("    id:", "    name: x\n    id:"),
        changed("id: [17, 2, 7, 433]", "id: [17, 2, 7]"),
        changed("id: [17, 2, 7, 433]", "id: [17, 2, 7, 65536]"),
        changed("id: [17, 2, 7, 433]", "id: [17, 2, 7, 0x1b1]"),
        changed("    id: [17, 2, 7, 433]", "    id: [17, 2, 7, 433]\n    id: [17, 2, 7, 433]"),
        changed("1: [272, 330]", "1: [272, 768]"),
        changed("1: [272, 330]", "1: [272,\n        330]"),
        changed("1: [272, 330]", "99: [1]"),
        changed("1: [272, 330]", "x: [272]"),
        changed("1: [272, 330]", "1: [272, 330"),
        changed("3: [0, 1] # EV_ABS", "1: [3]"),
        changed("0: [1472, 5472, 8, 0, 60]", "0: [1472, 5472, 8, 0]"),
        changed("0: [1472, 5472, 8, 0, 60]", "0: [1472, 5472, 8, 0, 2147483648]"),
        changed("0: [1472, 5472, 8, 0, 60]", "64: [1, 2, 3, 4, 5]"),
        changed("1: [1408,", "0: [1408,"),
        changed("properties: [0, 2]", "properties: [0, 32]"),
        changed("properties: [0, 2]", "properties: [-1]"),
        changed("properties: [0, 2]", "properties: {}"),
        changed("properties: [0, 2]", "what is this"),
        changed("  hid: [", "\thid: ["),
        changed("  events:\n", "- node: /dev/input/event6\n  events:\n"),
        changed("- [ 12,      1,   3,   0,    2000]", "- [ 12,      1,   3,   0]"),
        changed("- [ 12,      1,   3,   0,    2000]", "- [ 12,      1,   3,   2,    2000]"),
        changed("- [ 12,      1,   3,   0,    2000]", "- [ 12,      1,   3,   0,    2147483648]"),
        changed("- [ 12,      1,   3,   0,    2000]", "- [ 12, 1000000,   3,   0,    2000]"),
        changed("- [ 12,      1,   3,   0,    2000]", "- [ -1,      1,   3,   0,    2000]"),
        changed("- [ 12,      1,   3,   0,    2000]", "- [ 14,      1,   3,   0,    2000]"),
        changed("- [ 12,      1,   3,   0,    2000]", "- [ 12,      1,  -3,   0,    2000]"),
        changed("- [ 12,      1,   3,   0,    2000]", "  x: 1"),
        changed("- [ 12,      1,   3,   0,    2000]", "- &anchor"),
        changed("  - evdev:\n    - [ 12", "    - [ 12"),
        changed("    codes:\n", "    codes:\n    - 1\n"),
        changed("    absinfo:\n      0:", "    absinfo:\n    - 0:"),
        FOREIGN + " " * 9000 + "x\n",
        "",
        "version: 1\n",
        "\0" * 100,
        "- " * 100 + "\n",
    ],
)
def test_what_is_not_understood_is_refused(text: str):
    with pytest.raises(UsageError) as refused:
        libinput.parse(lines(text))
    assert refused.value.exit_code == 2
    assert "line " in refused.value.message


def test_a_refusal_names_the_line():
    with pytest.raises(UsageError, match="line 20 of the recording: no ids"):
        libinput.parse(lines(changed("id: [17, 2, 7, 433]", "id: [17]")))


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recording_module, "EVENTS_MAX", 3)
    with pytest.raises(UsageError, match="too many events"):
        libinput.parse(lines())
    monkeypatch.setattr(recording_module, "LINES_MAX", 10)
    with pytest.raises(UsageError, match="too many lines"):
        libinput.parse(lines())


# --- for all recordings -------------------------------------------------------------------------------------


def written(recording: Recording) -> list[str]:
    text = list(libinput.header(recording.description))
    for at, frame in _frames(recording):
        text += libinput.frame_lines(at, frame)
    return text


def _frames(recording: Recording) -> list[tuple[int, list[InputEvent]]]:
    """As the command writes them: one time for each line of ``- evdev:``."""
    return [(at, [event]) for at, event in recording.events]


@given(recordings())
def test_what_is_written_is_read_back(recording: Recording):
    assert libinput.parse(written(recording)) == recording


@given(recordings())
def test_what_is_written_is_yaml_as_libinput_has_it(recording: Recording):
    """By the keys that libinput replay asks for."""
    got = yaml.safe_load("\n".join(written(recording)))
    about = recording.description
    assert (got["version"], got["ndevices"]) == (1, 1)
    [device] = got["devices"]
    evdev = device["evdev"]
    assert evdev["name"] == about.name
    assert InputIds(*evdev["id"]) == about.ids
    assert {kind: set(codes) for kind, codes in evdev["codes"].items() if kind} == about.events
    assert {code: AbsInfo(*axis) for code, axis in evdev.get("absinfo", {}).items()} == about.axes
    assert set(evdev["properties"]) == about.properties
    events = [one for frame in device["events"] or [] for one in frame["evdev"]]
    assert [InputEvent(*one[2:]) for one in events] == [event for _, event in recording.events]
    assert [1_000_000 * one[0] + one[1] for one in events] == [at for at, _ in recording.events]


@given(st.text(max_size=300))
def test_a_name_never_breaks_a_recording(name: str):
    text = list(libinput.header(Description(name)))
    got = libinput.parse(text)
    assert got.description is not None
    assert got.description.name == yaml.safe_load("\n".join(text))["devices"][0]["evdev"]["name"]


def test_what_a_device_claims_beyond_the_kernel_is_left_out():
    about = Description("x", events={spec.EV_KEY: frozenset({30, 9999}), 0x1F: frozenset({1}), spec.EV_ABS: {0}})
    got = libinput.parse(libinput.header(about)).description
    assert got is not None
    assert got.events == {spec.EV_KEY: {30}, spec.EV_ABS: {0}}
    assert got.axes == {0: AbsInfo(0, 0, 0, 0, 0)}


@given(st.text(alphabet='-: []0123456789#\n"aevdnodesvrsion', max_size=200))
def test_nothing_but_a_usage_error_comes_out(text: str):
    try:
        libinput.parse(lines("version: 1\ndevices:\n- node: x\n" + text))
    except UsageError:
        pass
