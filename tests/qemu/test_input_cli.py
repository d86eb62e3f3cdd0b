"""``uvirtio input`` as a process, on QEMU's keyboard and tablet: what it prints, what it writes, how it leaves."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.qemu.test_cli import LIMIT, Command, Witness, start, uvirtio  # noqa: F401  # fixtures
from uvirtio.drivers.input import formats

KEYBOARD = "qemu:virtio-keyboard-pci"
Runs = Callable[..., tuple[int, str, str]]


def press(witness: Witness, name: str) -> None:
    for down in (True, False):
        key = {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": name}}}
        witness.execute("input-send-event", events=[key])


def error(out: str) -> dict[str, Any]:
    return dict(json.loads(out)["error"])


@pytest.mark.parametrize(("form", "mark"), [("evemu", "E:"), ("libinput", "    - [")])
def test_a_recording_holds_what_was_typed_and_only_its_owner_reads_it(
    start: Callable[..., Command],  # noqa: F811
    uvirtio: Runs,  # noqa: F811
    tmp_path: Path,
    form: str,
    mark: str,
):
    file, qmp = tmp_path / "a recording", tmp_path / "qmp"
    device = f"qemu:q35,qmp={qmp}/virtio-keyboard-pci"
    command = start("input", "record", device, str(file), "--yes", "--json", "--format", form)
    assert command.event("recording")["name"] == "QEMU Virtio Keyboard"
    host = Witness(qmp)
    press(host, "u")
    press(host, "v")
    host.close()
    deadline = time.monotonic() + LIMIT
    while file.read_text().count(mark) < 8:  # frame by frame
        assert time.monotonic() < deadline
        time.sleep(0.02)
    command.process.terminate()
    code, _, err = command.end()
    assert code == 143
    assert "passwords" in err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    got = formats.read(str(file))
    assert [(one.code, one.value) for _, one in got.events if one.type == 1] == [
        (22, 1),
        (22, 0),
        (47, 1),
        (47, 0),
    ]
    assert got.description.events[0x11] == {0, 1, 2}
    code, out, _ = uvirtio("input", "replay", "-", str(file), "--print")
    assert (code, out.count("KEY_U")) == (0, 2)


def test_a_recording_needs_a_yes_and_a_new_file(uvirtio: Runs, tmp_path: Path):  # noqa: F811
    code, out, _ = uvirtio("input", "record", KEYBOARD, "--json")
    assert (code, error(out)["code"]) == (3, "UV-REFUSED")
    there = tmp_path / "there"
    there.write_text("mine")
    code, out, _ = uvirtio("input", "record", KEYBOARD, str(there), "--yes", "--json")
    assert (code, error(out)["code"]) == (2, "UV-USAGE")
    assert there.read_text() == "mine"


def test_a_recording_goes_to_standard_output_and_is_printed_again(uvirtio: Runs, tmp_path: Path):  # noqa: F811
    code, out, _ = uvirtio("input", "record", "qemu:virtio-tablet-pci", "--yes", "--for", "0.2")
    assert code == 0
    file = tmp_path / "it.evemu"
    file.write_text(out + "E: 0.000000 0003 0001 0123\nE: 0.000000 0000 0000 0000\n")
    code, out, _ = uvirtio("input", "replay", "-", str(file), "--print")
    assert code == 0
    assert out.splitlines() == [
        "Event: time 0.000000, type 3 (EV_ABS), code 1 (ABS_Y), value 123",
        "Event: time 0.000000, -------------- SYN_REPORT ------------",
    ]
    # A keyboard has no axes, so that this cannot be played on one.
    code, out, _ = uvirtio("input", "replay", KEYBOARD, str(file), "--print", "--json")
    assert (code, error(out)["seen"]) == (2, "ABS_Y")
    file.write_text("E: rubbish\n")
    code, out, _ = uvirtio("input", "replay", "-", str(file), "--json")
    assert code == 2
    assert "line 1" in error(out)["message"]


def test_events_alone_want_a_device_or_a_description(uvirtio: Runs, tmp_path: Path):  # noqa: F811
    description, file, joined = tmp_path / "it.desc", tmp_path / "it.events", tmp_path / "joined"
    code, out, _ = uvirtio("input", "record", "qemu:virtio-tablet-pci", "--yes", "--for", "0.2")
    assert code == 0
    description.write_text(out)
    file.write_text("E: 7.000000 0003 0001 0123\nE: 7.000000 0000 0000 0000\n")
    # Nothing is cloned for --print, and a device that has these events is a description.
    for device in ("-", "qemu:virtio-tablet-pci"):
        code, out, _ = uvirtio("input", "replay", device, str(file), "--print")
        assert (code, len(out.splitlines())) == (0, 2) and "ABS_Y), value 123" in out
    code, out, _ = uvirtio("input", "replay", KEYBOARD, str(file), "--json")
    assert (code, error(out)["seen"]) == (2, "ABS_Y")
    assert "replay -" not in str(error(out)["remedy"]), "what describes no device cannot be cloned"
    code, out, _ = uvirtio("input", "replay", "-", str(file), "--json")
    assert (code, error(out)["code"]) == (2, "UV-USAGE")
    # The remedy works.
    command = str(error(out)["remedy"]).partition(": ")[2].partition(" &&")[0]
    assert command.startswith("cat DESCRIPTION ")
    command = command.replace("DESCRIPTION", str(description)).replace("JOINED", str(joined))
    subprocess.run(["sh", "-c", command], check=True, timeout=20)
    code, out, _ = uvirtio("input", "replay", "-", str(joined), "--print")
    assert (code, len(out.splitlines())) == (0, 2)


def test_a_led(uvirtio: Runs):  # noqa: F811
    code, out, _ = uvirtio("input", "led", KEYBOARD, "capslock", "on", "--json")
    assert code == 0
    made = json.loads(out)
    assert (made["led"], made["name"], made["on"]) == (1, "LED_CAPSL", True)
    for name, device, expected in (
        ("none", KEYBOARD, 2),
        ("LED_MAIL", KEYBOARD, 2),
        ("0", "qemu:virtio-mouse-pci", 2),
    ):
        code, out, _ = uvirtio("input", "led", device, name, "off", "--json")
        assert (code, error(out)["code"]) == (expected, "UV-USAGE")


@pytest.mark.parametrize("verb", [["bridge", KEYBOARD], ["replay", "-", "FILE"]])
def test_without_uinput_nothing_is_cloned(uvirtio: Runs, tmp_path: Path, verb: list[str]):  # noqa: F811
    file = tmp_path / "it.evemu"
    file.write_text("N: x\nI: 0 0 0 0\nB: 01 02\n")
    words = [str(file) if word == "FILE" else word for word in verb]
    code, out, _ = uvirtio("input", *words, "--json", "--root", str(tmp_path))
    assert code == 4
    assert error(out)["code"] in ("UV-ENV-MODULE", "UV-ENV-NOT-SUPPORTED")


@pytest.mark.parametrize("verb", [["bridge", KEYBOARD], ["replay", "-", "no-such-file"]])
def test_a_resolution_is_a_number_above_0(uvirtio: Runs, verb: list[str]):  # noqa: F811
    code, out, _ = uvirtio("input", *verb, "--resolution", "0", "--json")
    assert (code, error(out)["code"], "--resolution" in error(out)["message"]) == (2, "UV-USAGE", True)


def test_info_names_what_is_odd_and_the_contacts(uvirtio: Runs):  # noqa: F811
    code, out, _ = uvirtio("input", "info", "qemu:virtio-tablet-pci", "--json")
    assert code == 0
    made = json.loads(out)
    assert made["slots"] == 0
    assert made["findings"] == []
    [warning] = made["warnings"]
    assert warning.startswith("no resolution: ABS_X, ABS_Y.")
    assert "--resolution" in warning
    code, out, _ = uvirtio("input", "info", "qemu:virtio-tablet-pci")
    assert (code, f"warning: {warning}" in out) == (0, True)
    code, out, _ = uvirtio("input", "info", KEYBOARD, "--json")
    assert (code, json.loads(out)["warnings"]) == (0, [])
