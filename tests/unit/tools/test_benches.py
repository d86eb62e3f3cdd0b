"""The command line of tools/bench, and its runs that are kept for the page on performance."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from benches import __main__ as benches  # noqa: E402
from benches import report  # noqa: E402
from benches.measure import Section  # noqa: E402
from lab import cli_bench  # noqa: E402

KEPT = sorted((ROOT / "docs/bench").glob("*.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_run_that_was_kept_can_be_shown(path: Path):
    document = json.loads(path.read_text())
    sections = [Section.from_dict(one) for one in document["sections"]]
    assert [one.as_dict() for one in sections] == document["sections"]
    shown = "\n".join(report.text(document["facts"], sections))
    assert all(f"== {one.name}" in shown for one in sections) and any(
        f"bench/{path.name}" in (ROOT / "docs" / page).read_text() for page in ("performance.md", "growth.md")
    )


def test_there_is_one():
    assert KEPT


# --- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [("--boot", "quiet"), ("--boot=quiet",), ("--quick", "--boot", "a=b", "--runs", "1"), ("--cpu", "max")],
)
def test_words_for_a_vm_that_is_not_booted_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli_bench.main(list(words))
    assert ended.value.code == 2 and "they go with --vm" in capsys.readouterr().err


@pytest.mark.parametrize("form", [lambda name, word: [name, word], lambda name, word: [f"{name}={word}"]])
def test_what_concerns_the_vm_is_taken_in_both_forms(form, monkeypatch, tmp_path):
    booted = []

    class Machine:
        def __init__(self, config):
            booted.append(config)
            self.out = tmp_path
            (tmp_path / "benchjson").write_text("figures")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self, tick):
            return 0

        def alarms(self):
            return []

        faults = alarms

    monkeypatch.setattr(cli_bench.setup, "packages", lambda _: None)
    monkeypatch.setattr(cli_bench.setup, "venv", lambda: Path("/venv"))
    monkeypatch.setattr(cli_bench.kernels, "get", lambda _: None)
    monkeypatch.setattr(cli_bench, "Vm", Machine)
    kept = tmp_path / "kept"
    words = [*form("--boot", "quiet a=b"), *form("--cpu", "max"), *form("--json", str(kept))]
    assert cli_bench.main(["--only", "vm:disk", "--vm", *words]) == 0
    (config,) = booted
    assert (config.append, config.cpu) == ("quiet a=b", "max") and kept.read_text() == "figures"
    assert config.command[2:] == ["--only", "vm:disk", "--json", "/run/lab/out/benchjson"]


def test_what_the_vm_alone_has_is_refused_outside_of_it(monkeypatch, capsys):
    monkeypatch.delenv("UVIRTIO_LAB", raising=False)
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "rings", "vm:disk"])
    with pytest.raises(SystemExit) as ended:
        benches.main()
    assert ended.value.code == 2 and "--only vm:disk goes with --vm" in capsys.readouterr().err
