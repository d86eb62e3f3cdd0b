"""report, report merge and diag --html as they are typed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fakesys import FakeSys
from tests.unit.report.test_page import whole
from uvirtio.cli import main
from uvirtio.report.documents import DIAG, DUMP, embedded, script

FILES = Path(__file__).parents[1] / "evidence/files"


def document(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    assert main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("file", sorted(FILES.iterdir()), ids=lambda file: file.name)
def test_every_form_of_dump_is_drawn(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bringup.html"
    told = document(capsys, "report", str(file), "-o", str(out))
    assert out.stat().st_mode & 0o777 == 0o600
    text = out.read_text(encoding="utf-8")
    assert told["bytes"] == len(text.encode())
    read = whole(text)
    shown = read.all("article")
    assert len(shown) == told["devices"]
    inspected = document(capsys, "list", "-F", str(out))["devices"]
    assert [one["address"] for one in inspected] == [
        one["address"] for one in document(capsys, "list", "-F", str(file))["devices"]
    ]
    for one, article in zip(inspected, shown, strict=True):
        assert f"{one['type']} at {one['address'] or 'no address'}" in article.text


def test_one_of_several_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = FILES / "several-xxx.txt"
    first = document(capsys, "list", "-F", str(file))["devices"][0]["address"]
    assert document(capsys, "report", f"{file}#{first}", "-o", str(tmp_path / "one.html"))["devices"] == 1


def test_a_device_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeSys(tmp_path)
    fake.pci("0000:00:02.0", "rng", group=3)
    assert main(["report", "0000:00:02.0", "--root", str(fake.top)]) == 0
    read = whole(capsys.readouterr().out)
    assert read.all("h1")[0].text == "rng at 0000:00:02.0"
    assert "IOMMU group3" in read.all("header")[0].text


def test_diag_html_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = tmp_path / "a.html", tmp_path / "b.html"
    told = document(capsys, "diag", "scripted:rng,silent", "--timeout", "0.1", "--html", str(out), code=1)
    text = out.read_text(encoding="utf-8")
    assert told["cause"]["text"] in whole(text).classed("finding")[0].text
    assert embedded(text, DIAG) == {name: one for name, one in told.items() if name not in ("schema", "command")}
    (device,) = (embedded(text, DUMP) or {})["devices"]
    assert device["queues"][0]["ring"]["stall"] == "untaken"
    assert document(capsys, "inspect", "-F", str(out))["devices"][0]["type"] == "rng"
    document(capsys, "report", str(out), "-o", str(again))
    assert embedded(again.read_text(encoding="utf-8"), DIAG) == embedded(text, DIAG)


def test_a_report_from_standard_input_keeps_its_diagnosis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, again = tmp_path / "a.html", tmp_path / "b.html"
    document(capsys, "diag", "scripted:rng,silent", "--timeout", "0.1", "--html", str(out), code=1)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(out.read_bytes())))
    document(capsys, "report", "-", "-o", str(again))
    told = embedded(out.read_text(encoding="utf-8"), DIAG)
    assert told and embedded(again.read_text(encoding="utf-8"), DIAG) == told


def test_the_serial_number_of_a_disk_is_masked(tmp_path: Path) -> None:
    plain, out = tmp_path / "plain.html", tmp_path / "a.html"
    assert main(["report", "scripted:blk", "--live", "--no-mask", "-o", str(plain)]) == 0
    steps = (embedded(plain.read_text(encoding="utf-8"), DIAG) or {})["steps"]
    (detail,) = [one["detail"] for one in steps if one["name"] == "data path"]
    serial = detail.rpartition("; serial: ")[2]
    assert serial != "none"
    assert main(["diag", "scripted:blk", "--html", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert serial not in text
    assert "; serial: masked" in text


def test_report_live_is_a_diagnosis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.html"
    document(capsys, "report", "scripted:balloon", "--live", "-o", str(out))
    read = whole(out.read_text(encoding="utf-8"))
    assert "DRIVER_OK" in read.classed("path")[0].text
    assert not read.classed("fail")
    document(capsys, "report", "scripted:rng,refuse-features", "--live", "-o", str(out), code=1)


def test_a_device_that_is_not_there_is_still_a_report_of_diag(tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    assert main(["diag", "scripted:rng,memory-off", "--html", str(out)]) == 1
    read = whole(out.read_text(encoding="utf-8"))
    assert "memory decoding is off" in read.classed("finding")[0].text
    assert embedded(out.read_text(encoding="utf-8"), DUMP)


def test_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, address, code in (("a", "scripted:rng", 0), ("b", "scripted:rng,refuse-features", 1)):
        assert main(["diag", address, "--json"]) == code
        (tmp_path / f"{name}.json").write_text(capsys.readouterr().out, encoding="utf-8")
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    assert document(capsys, "report", "merge", *files, "-o", str(tmp_path / "fleet.html"))["devices"] == 2
    read = whole((tmp_path / "fleet.html").read_text(encoding="utf-8"))
    assert "rng, features_ok" in read.one("differences").text


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["report"], "UV-USAGE"),
        (["report", "a", "b"], "UV-USAGE"),
        (["report", "merge"], "UV-USAGE"),
        (["report", "merge", "--live", "x.json"], "UV-USAGE"),
        (["report", "merge", "nowhere.json"], "UV-OPERATION"),
        (["report", str(FILES / "short-x.txt"), "--live"], "UV-USAGE"),
        (["report", str(FILES / "short-x.txt")], "UV-USAGE"),  # --json, and no file
    ],
)
def test_usage(argv: list[str], code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--json"]) in (1, 2)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code


@pytest.mark.parametrize("inside", ["[", "[]", '{"steps": 1}', '{"steps": [{"verdict": []}]}'])
def test_a_damaged_diagnosis(inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = tmp_path / "a.json"
    assert main(["dump", "scripted:rng", "-o", str(dump)]) == 0
    capsys.readouterr()
    file = tmp_path / "a.html"
    told = script(DUMP, json.loads(dump.read_text(encoding="utf-8")))
    file.write_text(f'<!doctype html>{told}<script type="application/json" id="{DIAG}">{inside}</script>')
    assert (
        document(capsys, "report", str(file), "-o", str(tmp_path / "b.html"), code=2)["error"]["code"]
        == "UV-USAGE-DUMP"
    )


@pytest.mark.parametrize("text", ["", "[]", "nothing", "<p>", "\x00"])
def test_a_file_that_cannot_be_merged(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    error = document(capsys, "report", "merge", str(file), "-o", str(tmp_path / "b.html"), code=2)["error"]
    assert error["code"] == "UV-USAGE-DUMP"
    assert error["message"].startswith(f"{file}:1:1: ")
