"""``uvirtio scsi`` on scripted units: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uvirtio import opening
from uvirtio.cli.app import run
from uvirtio.device import Device
from uvirtio.opening import identify
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.scsi import ScsiDisk, ScsiHost

DEV = "0000:00:04.0"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScsiHost]:
    made = ScsiHost(disks={(0, 0): ScsiDisk(serial="uv1"), (2, 300): ScsiDisk(64, 4096, read_only=True)})
    functions = []

    def open_it(address: str, **_: Any) -> Device:
        functions.append(ScriptedDevice(made))
        return identify(address, functions[-1])

    monkeypatch.setattr(opening, "open", open_it)
    yield made
    for function in functions:
        function.assert_left()


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out))


def test_list(model: ScsiHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scsi", "list", DEV]) == 0
    rows = [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [
        "0:0 disk UVIRTIO SCRIPTED DISK 0.2 1 MiB",
        "2:300 disk UVIRTIO SCRIPTED DISK 0.2 256 KiB",
    ]
    model.disks[2, 300].script.extend([(2, 0x3A, 0)] * 3)  # INQUIRY is answered with it, too
    model.disks.pop((0, 0))
    assert run(["scsi", "list", DEV, "--json"]) == 1
    assert answer(capsys)["error"]["code"] == "UV-SCSI-CHECK"
    model.disks.clear()
    assert run(["scsi", "list", DEV]) == 0
    assert capsys.readouterr().out == "no logical units\n"


def test_info(model: ScsiHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scsi", "info", DEV]) == 0
    assert "targets:    0 to 255, LUNs up to 16383" in capsys.readouterr().out
    assert run(["scsi", "info", DEV, "--json"]) == 0
    assert answer(capsys)["cmd_per_lun"] == 128
    assert run(["scsi", "info", DEV, "2:300"]) == 0
    out = capsys.readouterr().out
    assert "writable: no (write protected)" in out and "capacity: 256 KiB, 64 blocks of 4 KiB" in out
    assert run(["scsi", "info", DEV, "0", "--json"]) == 0
    told = answer(capsys)
    assert (told["lun"], told["serial"], told["vpd_pages"]) == ("0:0", "uv1", [0, 128, 131]) and told[
        "write_cache"
    ]
    assert run(["scsi", "info", DEV, "0:7", "--json"]) == 1
    assert answer(capsys)["error"]["code"] == "UV-SCSI-CHECK"


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["read", DEV, "x", "0", "1s"], 2, "UV-USAGE"),
        (["read", DEV, "0", "7", "1s"], 2, "UV-USAGE-SIZE"),
        (["read", DEV, "2:300", "8s", "1s"], 2, "UV-USAGE-SIZE"),
        (["read", DEV, "2:300", "1s", "8s"], 2, "UV-USAGE-SIZE"),
        (["read", DEV, "0", "1M", "1s"], 2, "UV-USAGE-BEYOND-END"),
        (["read", DEV, "5:0", "0", "1s"], 1, "UV-SCSI-TRANSPORT"),
        (["write", DEV, "0", "0"], 3, "UV-REFUSED-WRITE"),
    ],
)
def test_what_is_refused(
    model: ScsiHost, capsys: pytest.CaptureFixture[str], words: list[str], code: int, error: str
) -> None:
    before = bytes(model.disks[0, 0].content)
    assert run(["scsi", *words, "--json"]) == code
    assert answer(capsys)["error"]["code"] == error
    assert model.disks[0, 0].content == before


def test_read_and_write(
    model: ScsiHost, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(5 * 512)
    (tmp_path / "in").write_bytes(data)
    assert run(["scsi", "write", DEV, "0", "1K", "-i", str(tmp_path / "in"), "--allow-write"]) == 0
    assert capsys.readouterr().out == "wrote 2.5 KiB at block 2 of 0:0; flushed\n"
    assert model.disks[0, 0].content[1024:3584] == data
    assert run(["scsi", "read", DEV, "0:0", "2s", "5s", "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == data
    assert run(["scsi", "read", DEV, "0:0", "2s", "1s"]) == 0
    assert capsys.readouterr().out.startswith(f"00000400  {data[:8].hex(' ')}")
    model.disks[2, 300].read_only = False
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(4096) + b"x" * 512)))
    assert run(["scsi", "write", DEV, "2:300", "0", "--allow-write", "--json"]) == 2
    told = answer(capsys)["error"]
    assert told["code"] == "UV-USAGE-SIZE" and "0 of them were written" in told["seen"]
    assert "dd bs=4096 conv=sync iflag=fullblock" in told["remedy"]
