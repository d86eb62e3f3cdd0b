"""``uvirtio conform`` on scripted devices: what is chosen, what is printed, exit codes, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uvirtio.cli.app import run


def test_a_good_device_is_0_and_its_rows_are_counted(capsys) -> None:
    assert run(["conform", "scripted:rng", "--area", "status"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("scripted:rng: rng, pci-modern, split rings, scripted; ")
    assert told[-1].endswith(f"{len(told) - 2} pass")


def test_a_bad_device_is_1_and_quiet_prints_what_is_bad(capsys) -> None:
    assert run(["conform", "scripted:rng,features=0x100000001", "-k", "d-feat-0*", "-q", "--level", "1"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told[1:-1]] and all("fail" in line for line in told[1:-1])


def test_json_has_one_document(capsys) -> None:
    assert run(["conform", "scripted:blk", "-k", "D-RST-0[12]", "--json", "--seed", "7"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "conform" and document["verdict"] == "pass" and document["seed"] == 7
    assert {test["id"] for test in document["tests"]} == {"D-RST-01", "D-RST-02"}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["scripted:rng", "-k", "D-NOTHING*"],
        ["scripted:rng", "--area", "nothing"],
        ["scripted:rng", "--level", "5"],
        ["--explain", "D-NOTHING-01"],
        ["scripted:rng", "--implementation", "qemu"],
        ["scripted:rng", "--implementation", "qemu\udcff/1"],
        ["scripted:rng", "--implementation", "qemu\nD-RST-01 fail/1"],
        ["scripted:blk", "--allow-write", "all"],
        ["scripted:blk", "--allow-write", "8:00"],
        ["scripted:blk", "--allow-write", f"8:{'9' * 5000}"],
    ],
)
def test_what_cannot_be_asked_is_2(words: list[str], capsys) -> None:
    assert run(["conform", *words]) == 2
    assert capsys.readouterr().err.startswith("uvirtio: UV-USAGE: ")


def test_rows_are_listed_and_explained(capsys) -> None:
    assert run(["conform", "--list", "--area", "status"]) == 0
    assert "D-STAT-01" in capsys.readouterr().out
    assert run(["conform", "--list", "scripted:rng,transport=legacy", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows and all("pci-legacy" in row["transports"] for row in rows)
    assert run(["conform", "--explain", "d-stat-01"]) == 0
    assert "2.1.2, MUST NOT" in capsys.readouterr().out


def test_files_are_written_and_verdicts_compared(tmp_path: Path, capsys) -> None:
    expected, junit, html = tmp_path / "list", tmp_path / "junit.xml", tmp_path / "page.html"
    files = ["--expect", str(expected), "--junit", str(junit), "--html", str(html)]
    rows = ["-k", "D-FEAT-0[79]"]
    assert run(["conform", "scripted:rng", *rows, *files]) == 0
    assert b"D-FEAT-07" in junit.read_bytes() and b"D-FEAT-07" in html.read_bytes()
    bad = "scripted:rng,features=0x100000001"
    assert run(["conform", bad, *rows, *files]) == 1
    assert "unexpected: D-FEAT-07: fail, expected pass" in capsys.readouterr().out
    expected.write_text("D-FEAT-09 pass\nD-FEAT-07 fail\n")
    assert run(["conform", bad, *rows, *files]) == 0, "as expected"
    assert run(["conform", bad, *rows, "--junit", "/dev/full"]) == 1
    assert "cannot be written" in capsys.readouterr().err
    expected.write_text("D-FEAT-09 good\n")
    assert run(["conform", bad, *rows, *files]) == 2
    told = capsys.readouterr()
    assert f"{expected}:1 is no line of a list of verdicts" in told.err and not told.out, "told before the run"
