"""``uvirtio diag`` on scripted devices: exit codes, and files that cannot take what they should."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from uvirtio.cli.app import run
from uvirtio.diag import diagnose

PATIENCE = ["--timeout", "0.05"]


@pytest.mark.parametrize("word", ["nonsense", "999", "VERSION_1", ""])
def test_an_option_that_cannot_be_had_is_no_failure_of_the_device(word: str, capsys) -> None:
    assert run(["diag", "scripted:rng", "--without", word, "--bisect"]) == 2
    told = capsys.readouterr()
    assert "verdict" not in told.out and told.err.startswith("uvirtio: UV-USAGE: ")
    assert run(["diag", "scripted:rng", "--without", word, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "UV-USAGE"


@pytest.mark.parametrize("place", ["/dev/full", "/nonexistent/file", "/"])
@pytest.mark.parametrize("address", ["scripted:rng", "scripted:rng,silent"])
def test_the_diagnosis_is_not_lost_with_the_file(address: str, place: str, capsys) -> None:
    assert run(["diag", address, "--junit", place, *PATIENCE]) == 1
    told = capsys.readouterr()
    assert "verdict: " in told.out and f"{place} cannot be written" in told.err
    assert run(["diag", address, "--junit", place, *PATIENCE, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert len(document["steps"]) == 16 and "error" in document


@pytest.mark.parametrize("verb", [["diag", "scripted:rng", "--junit"], ["rng", "read", "scripted:rng", "4", "-o"]])
def test_a_dash_is_not_the_name_of_a_file(verb: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*verb, "-"]) == 2
    assert "/dev/stdout" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert run([*verb, "./-"]) == 0
    assert (tmp_path / "-").stat().st_size


def test_the_file_has_what_is_told(tmp_path: Path, capsys) -> None:
    assert run(["diag", "scripted:rng,silent", "--junit", str(tmp_path / "file.xml"), *PATIENCE]) == 1
    [suite] = ElementTree.parse(tmp_path / "file.xml").getroot()
    assert suite.get("failures") == "1"


def test_a_reset_that_hangs_is_shown_as_it_was() -> None:
    cause = diagnose("scripted:rng,reset-reads=-1", timeout=0.05).cause
    assert cause is not None and cause.id == "reset-hangs"
    assert cause.evidence and not [line for line in cause.evidence if "0x00" in line]


@pytest.mark.parametrize("state", [1, 2, 3])
def test_every_state_of_low_power_is_a_cause(state: int) -> None:
    cause = diagnose(f"scripted:rng,power-state={state}").cause
    assert cause is not None and cause.id == "power-state" and cause.text.endswith(f"D{state}")
