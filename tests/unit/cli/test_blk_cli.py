"""``uvirtio blk`` on a scripted disk: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.drivers.test_blk import ALL
from uvirtio import opening
from uvirtio.cli.app import run
from uvirtio.cli.command import Command
from uvirtio.cli.content import dump, give
from uvirtio.device import Device
from uvirtio.errors import DeviceTimeout, OperationFailed
from uvirtio.opening import identify
from uvirtio.scripted.blk import FEATURES, Disk
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import features as f
from uvirtio.spec.blk import Request, Status

DEV = "0000:00:04.0"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(features=ALL)
    functions = []

    def open_it(address: str, **_: Any) -> Device:
        functions.append(ScriptedDevice(made))
        return identify(address, functions[-1])

    monkeypatch.setattr(opening, "open", open_it)
    yield made
    for function in functions:
        function.assert_left()


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_info(model, capsys):
    assert run(["blk", "info", DEV, "--json"]) == 0
    made = answer(capsys)
    assert made["capacity_bytes"] == 1 << 20 and made["sectors"] == 2048 and made["id"] == "scripted disk"
    assert made["discard"] == {"max_sectors": 256, "max_segments": 4, "alignment": 8, "may_unmap": False}
    assert made["topology"]["opt_io_size"] == 64 and made["geometry"] == [3, 2, 1]
    assert made["lifetime"] == {
        "pre_eol_info": 1,
        "device_lifetime_est_typ_a": 2,
        "device_lifetime_est_typ_b": 3,
    }
    assert run(["blk", "info", DEV]) == 0
    out = capsys.readouterr().out
    assert "capacity:     1 MiB, 2048 sectors of 512 bytes" in out
    assert "up to 4 ranges of 128 KiB, best at multiples of 4 KiB" in out
    assert "physical block 4 KiB, minimum I/O 8 blocks, optimal I/O 64 blocks\n" in out


def test_info_of_a_disk_that_tells_little(model, capsys):
    model.features = f.mask(f.Blk.RO)
    model.script.append(Status.UNSUPP)
    assert run(["blk", "info", DEV]) == 0
    out = capsys.readouterr().out
    assert "serial:       none" in out and "writable:     no (RO)" in out and "cache:        none" in out


def test_a_disk_that_does_not_say_how_large_requests_are_best(model, capsys):
    for name in ("min_io_size", "opt_io_size"):
        model.put(name, 0)
    assert run(["blk", "info", DEV]) == 0
    assert "physical block 4 KiB\n" in capsys.readouterr().out


def test_an_error_of_the_device_is_not_one_of_the_file_that_is_written(tmp_path):
    def pieces() -> Iterator[bytes]:
        yield b"first"
        raise DeviceTimeout("the disk is silent")

    made = Command("blk read")
    with pytest.raises(DeviceTimeout, match="silent"):
        give(made, pieces(), hex=False, raw=False, out=str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"first"
    with pytest.raises(OperationFailed, match="cannot be written"):
        give(made, pieces(), hex=False, raw=False, out=str(tmp_path / "no" / "out"))


@pytest.mark.parametrize(("offset", "size"), [("8s", "2s"), ("4K", "1024"), ("4096", "1K"), ("0x", None)])
def test_read(model, capsys, offset, size, tmp_path):
    if size is None:
        assert run(["blk", "read", DEV, offset, "1s"]) == 2
        assert "OFFSET: '0x' is not a size" in capsys.readouterr().err
        return
    data = os.urandom(1024)
    model.content[4096:5120] = data
    assert run(["blk", "read", DEV, offset, size, "--json"]) == 0
    made = answer(capsys)
    assert (made["offset"], made["bytes"], made["hex"]) == (4096, 1024, data.hex())
    assert run(["blk", "read", DEV, offset, size, "--hex"]) == 0
    assert capsys.readouterr().out == data.hex() + "\n"
    assert run(["blk", "read", DEV, offset, size, "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == data
    assert run(["blk", "read", DEV, offset, size]) == 0
    assert capsys.readouterr().out.startswith(f"00001000  {data[:8].hex(' ')}")


def test_a_dump_leaves_out_what_repeats():
    rows = list(dump([bytes(48), b"a" * 16 + b"b" * 8], base=0x200))
    assert [row.split("  ")[0] for row in rows] == ["00000200", "*", "00000230", "00000240"]
    rows = list(dump([b"a" * 16, b"b" * 16, b"b" * 16, b"b" * 16]))
    assert [row.split("  ")[0] for row in rows] == ["00000000", "00000010", "*", "00000040"]


def test_write_from_a_file_and_from_standard_input(model, capsys, tmp_path, monkeypatch):
    data = os.urandom(100 * 512)
    (tmp_path / "in").write_bytes(data)
    assert run(["blk", "write", DEV, "4K", "--in", str(tmp_path / "in"), "--allow-write"]) == 0
    assert capsys.readouterr().out == "wrote 50 KiB at sector 8; flushed\n"
    assert model.durable[4096:][: len(data)] == data
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data[:1024])))
    assert run(["blk", "write", DEV, "0", "--allow-write", "--json"]) == 0
    assert answer(capsys)["bytes"] == 1024
    assert model.durable[:1024] == data[:1024]
    assert run(["blk", "write", DEV, "0", "--zeroes", "8s", "--allow-write"]) == 0
    assert model.content[:4096] == bytes(4096)
    assert model.requests[-2].type == Request.WRITE_ZEROES


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["write", DEV, "0"], 3, "UV-REFUSED-WRITE"),
        (["discard", DEV, "0", "4K"], 3, "add --allow-write"),
        (["write", DEV, "0", "--in", "x", "--zeroes", "1s", "--allow-write"], 2, "exclude each other"),
        (["write", DEV, "0", "--in", "/nonexistent", "--allow-write"], 1, "cannot be read"),
        (["write", DEV, "0", "--in", "ODD", "--allow-write"], 2, "truncate -s %512"),
        (["write", DEV, "2047s", "--zeroes", "2s", "--allow-write"], 2, "UV-USAGE-BEYOND-END"),
        (["read", DEV, "100", "1s"], 2, "OFFSET: '100' is not a multiple of 512"),
        (["read", DEV, "0", "100"], 2, "SIZE: '100' is not a multiple of 512"),
        (["read", DEV, "2048s", "1s"], 2, "UV-USAGE-BEYOND-END"),
        (["read", DEV, "0", "1s", "--hex", "--raw"], 2, "exclude each other"),
        (["discard", DEV, "2048s", "1s", "--allow-write"], 2, "UV-USAGE-BEYOND-END"),
    ],
)
def test_what_is_refused(model, capsys, tmp_path, argv, code, said):
    (tmp_path / "odd").write_bytes(b"x" * 700)
    assert run(["blk", *(str(tmp_path / "odd") if word == "ODD" else word for word in argv)]) == code
    assert said in capsys.readouterr().err
    assert model.content == bytes(1 << 20)


def test_flush_and_discard(model, capsys):
    model.content[:] = b"x" * (1 << 20)
    assert run(["blk", "discard", DEV, "4K", "8K", "--allow-write"]) == 0
    assert capsys.readouterr().out == "discarded 8 KiB at sector 8\n"
    assert run(["blk", "flush", DEV]) == 0
    assert capsys.readouterr().out == "flushed\n"
    assert [seen.type for seen in model.requests] == [Request.DISCARD, Request.FLUSH]
    model.features = FEATURES & ~f.mask(f.Blk.FLUSH)
    assert run(["blk", "flush", DEV, "--json"]) == 0
    assert answer(capsys)["flushed"] is False


def test_a_disk_that_fails(model, capsys):
    model.script.append(Status.IOERR)
    assert run(["blk", "read", DEV, "0", "1s", "--json"]) == 1
    assert answer(capsys)["error"]["code"] == "UV-BLK-IOERR"
