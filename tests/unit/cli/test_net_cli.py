"""``uvirtio net`` on a scripted card: files that cannot be read or written, and words that make no sense."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from uvirtio.cli.app import run
from uvirtio.drivers.net import pcap

CARD = "scripted:net"
LONG = "ff" * 6 + "00" * 1513


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    code = run(["net", *argv, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_capture_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = told(capsys, "capture", CARD, "-o", "/dev/full", "--for", "0.01")
    assert (code, answer["error"]["code"]) == (1, "UV-OPERATION")
    assert answer["error"]["message"] == "/dev/full cannot be written"


@pytest.mark.parametrize("name", ["/proc/self/mem", "/", "/nonexistent"])
def test_a_capture_that_cannot_be_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = told(capsys, "send", CARD, "--in", name)
    assert (code, answer["error"]["code"]) == (1, "UV-OPERATION")
    assert answer["error"]["message"] == f"{name} cannot be read"


def test_a_frame_of_a_capture_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "with a space.pcap"
    with source.open("wb") as file:
        pcap.Writer(file).write([bytes(60)] * 256 + [bytes(2000)], 0)
    code, answer = told(capsys, "send", CARD, "--in", str(source))
    assert (code, answer["error"]["code"]) == (2, "UV-USAGE-FRAME")
    assert answer["error"]["seen"] == "frame 257, 2000 bytes; 256 frames before it were sent"
    assert answer["error"]["remedy"] == f"leave it out: editcap -F pcap '{source}' OTHER 257"


@pytest.mark.parametrize("frame", ["", "00", "00" * 13, "zz", "0" * 29, LONG])
def test_what_is_no_frame(frame: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = told(capsys, "send", CARD, "00" * 14, frame)
    assert code == 2 and answer["error"]["code"] in ("UV-USAGE", "UV-USAGE-FRAME")


@pytest.mark.parametrize("mac", ["zz", "525400123456", "01:00:5e:00:00:01", "00:00:00:00:00:00"])
def test_an_address_that_a_card_cannot_have(mac: str, capsys: pytest.CaptureFixture[str]) -> None:
    ours, other = socket.socketpair()
    with ours, other:
        code, answer = told(capsys, "bridge", CARD, "--to", f"fd:{ours.fileno()}", "--mac", mac)
        assert (code, answer["error"]["code"]) == (2, "UV-USAGE")


@pytest.mark.parametrize(
    ("end", "seen"),
    [("unix:/" + "x" * 107, "unix:/" + "x" * 107), ("tap:\udcff" + "x" * 15, None), ("fd:{}", "neither a socket")],
)
def test_what_is_no_end_of_a_bridge(
    end: str, seen: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "file").open("w+b") as file:
        code, answer = told(capsys, "bridge", CARD, "--to", end.format(file.fileno()))
        assert os.get_blocking(file.fileno())
    assert (code, answer["error"]["code"]) == (2, "UV-USAGE")
    assert seen is None or answer["error"]["seen"].startswith(seen)
