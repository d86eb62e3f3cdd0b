"""The command line of tools/bench, and its runs that are kept for the page on performance."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from benches import __main__ as benches  # noqa: E402
from benches import against, counters, document, options, report, rings  # noqa: E402
from benches.measure import Section  # noqa: E402
from lab import LabError, cli_bench, process  # noqa: E402

PERFORMANCE = (ROOT / "docs/performance.md").read_text()
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


# --- what the pages quote ------------------------------------------------------------------------------------

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
QUOTED = re.compile(
    r"(?P<value>\d[\d.]*)(?: (?:(?P<prefix>[kM]?) ?(?:pages)?/s|(?P<unit>[mun]?s)\b(?: with evdev)?))?"
    r"(?:\*\*)?(?: x)? \[(?P<low>\d[\d.]*) \.\. (?P<high>\d[\d.]*)\]"
)
"""``477 k/s** [358 .. 527]``, ``1.23** [1.20 .. 1.27]``: a median, the lowest and the highest."""


def _rounds_to(told: str, scale: float, found: float) -> bool:
    """Whether a number, with as many digits as are told, is what was found."""
    step = scale * 10.0 ** -len(told.partition(".")[2])
    return abs(float(told) * scale - found) <= step * 0.501


def _unknown(text: str) -> list[str]:
    """What the tables of a page quote that no run has which was kept; rows that say "not kept" may."""
    runs = [document.read(path) for path in KEPT]
    found = [one for run in runs for section in run.sections for one in (*section.figures, *section.ratios)]
    wrong = []
    for line in text.splitlines():
        if not line.startswith("|") or "not kept" in line:
            continue
        for quoted in QUOTED.finditer(line):
            scale = UNITS[quoted["prefix"] or quoted["unit"] or ""]
            told = [quoted[name] for name in ("value", "low", "high")]
            if not any(all(map(_rounds_to, told, [scale] * 3, (one.value, one.low, one.high))) for one in found):
                wrong.append(f"{quoted[0]} in {line}")
    return wrong


@pytest.mark.parametrize("page", ["performance.md", "growth.md"])
def test_a_figure_in_a_table_is_that_of_a_run_that_was_kept(page):
    assert _unknown((ROOT / "docs" / page).read_text()) == []


def test_the_slopes_and_the_bytes_of_growth_are_those_of_the_runs():
    rows = {
        line.split("|")[1].strip(): line
        for line in (ROOT / "docs/growth.md").read_text().splitlines()
        if "|" in line
    }
    growth, kept = (document.read(ROOT / f"docs/bench/{name}.json").sections[0] for name in ("growth", "kept"))
    wanted = [(one.name.partition(": ")[2], f" {round(one.slope, 2) + 0.0:.2f} ") for one in growth.curves]
    wanted = [(name, slope) for name, slope in wanted if name in rows]
    wanted += [(one.name.removesuffix(": kept"), f" {one.value:,.0f} ") for one in kept.figures]
    assert len(wanted) >= 13 + len(kept.figures)
    assert [(name, value) for name, value in wanted if value not in rows[name]] == []


def test_a_figure_that_no_run_has_is_seen():
    (one, *_) = document.read(ROOT / "docs/bench/vm.json").sections[0].ratios
    row = f"| what | **{one.value:.2f}** [{one.low:.2f} .. {one.high:.2f}] | 1 |"
    assert _unknown(row) == [] and len(_unknown(row.replace(" [", " [9"))) == 1
    assert _unknown(row.replace(" [", " [9") + " not kept |") == []


def test_most_figures_are_looked_at():
    assert sum(len(QUOTED.findall(line)) for line in PERFORMANCE.splitlines() if line.startswith("|")) > 70


@pytest.mark.parametrize(
    ("plot", "kept"), [("performance.svg", ("rings", "startup", "vm")), ("growth.svg", ("growth",))]
)
def test_a_plot_is_of_the_runs_that_are_kept(plot, kept):
    runs = [document.read(ROOT / f"docs/bench/{name}.json") for name in kept]
    names = " ".join(f"docs/bench/{name}.json" for name in kept)
    assert (ROOT / "docs" / plot).read_text() == document.svg(runs), (
        f"tools/bench --show {names} --svg docs/{plot}"
    )


def test_what_is_told_of_what_was_wanted_is_what_the_bench_wants():
    """A ratio in bold is one that reaches it; one that is not bold, beside a figure of "wanted", misses it."""
    runs = [document.read(path) for path in KEPT]
    ratios = [one for run in runs for section in run.sections for one in section.ratios if one.target is not None]
    for line in PERFORMANCE.splitlines():
        if not line.startswith("|") or "not kept" in line:
            continue
        for quoted in QUOTED.finditer(line):
            if quoted["prefix"] is not None or quoted["unit"] is not None:
                continue
            told = [quoted[name] for name in ("value", "low", "high")]
            same = [one for one in ratios if all(map(_rounds_to, told, [1.0] * 3, (one.value, one.low, one.high)))]
            if same:
                assert quoted[0].count("**") == any(one.met for one in same), line


# --- the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def outside(monkeypatch):
    monkeypatch.delenv("UVIRTIO_LAB", raising=False)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--boot quiet", "they go with --vm"),
        ("--boot=quiet", "they go with --vm"),
        ("--quick --boot a=b --runs 1", "they go with --vm"),
        ("--cpu max", "they go with --vm"),
        ("--only rings vm:disk", "--only vm:disk goes with --vm"),
        ("--vm --only rings", "rings goes without it"),
        ("--vm --against .", "--vm does not go with --against"),
        ("--profile --only rings", "--profile does not go with --only"),
        ("--profile --json f", "--profile does not go with --json"),
        ("--show f --only rings", "--show does not go with --only"),
        ("--only nothing", "invalid choice"),
        ("--runs 0", "1 or more"),
        ("--runs -1", "1 or more"),
        ("--runs x", "1 or more"),
        ("--against /nowhere", "no checkout of uvirtio"),
        ("--json /nowhere/run.json", "--json /nowhere/run.json: No such file"),
        ("--svg /", "--svg /: Is a directory"),
        ("--jso f", "unrecognized arguments"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured_or_fetched(words, why, outside, monkeypatch, capsys):
    monkeypatch.setattr(cli_bench.setup, "packages", lambda _: pytest.fail("packages"))
    with pytest.raises(SystemExit) as ended:
        cli_bench.main(words.split())
    assert ended.value.code == 2 and why in capsys.readouterr().err


def test_help_names_each_section_and_exit_code_and_needs_nothing(outside, monkeypatch, capsys):
    monkeypatch.setattr(cli_bench.setup, "packages", lambda _: pytest.fail("packages"))
    with pytest.raises(SystemExit) as ended:
        cli_bench.main(["--vm", "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and "exit code:" in told
    assert all(f"  {name} " in told for name in (*options.SECTIONS, *options.APART, *options.GUEST))


@pytest.mark.parametrize("name", [*options.SECTIONS, *options.APART])
def test_each_name_is_a_bench(name):
    assert callable(benches._run(name))


@pytest.mark.parametrize(
    ("words", "runs"),
    [("", 7), ("--quick", 1), ("--quick --runs 5", 5), (f"--quick --against {ROOT}", 7), ("--runs 2", 2)],
)
def test_how_often(words, runs, outside):
    assert options.parse(words.split()).runs == runs


def test_a_file_that_can_be_written_keeps_what_is_in_it(tmp_path, outside):
    (tmp_path / "old").write_text("before")
    options.parse(["--json", str(tmp_path / "old"), "--svg", str(tmp_path / "new")])
    assert (tmp_path / "old").read_text() == "before" and not (tmp_path / "new").exists()


def test_sessions_that_cannot_be_raised_are_told(outside, monkeypatch):
    monkeypatch.setattr(cli_bench.os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="--raised"):
        cli_bench.main(["--raised", "--only", "memory"])


@pytest.mark.parametrize("form", [lambda name, word: [name, word], lambda name, word: [f"{name}={word}"]])
@pytest.mark.parametrize("interrupted", [False, True])
def test_what_concerns_the_vm_is_taken_in_both_forms(form, interrupted, outside, monkeypatch, tmp_path):
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
            if interrupted:
                raise process.Interrupted(signal.SIGINT)
            return 0

        def alarms(self):
            return []

        faults = alarms

    monkeypatch.setattr(cli_bench.setup, "packages", lambda _: None)
    monkeypatch.setattr(cli_bench.setup, "venv", lambda: Path("/venv"))
    monkeypatch.setattr(cli_bench.kernels, "get", lambda _: None)
    monkeypatch.setattr(cli_bench, "Vm", Machine)
    kept = tmp_path / "kept"
    words = [*form("--boot", "quiet a=b"), *form("--cpu", "max"), *form("--json", str(kept)), "--runs", "3"]
    if interrupted:
        with pytest.raises(process.Interrupted):
            cli_bench.main(["--only", "vm:disk", "--vm", *words])
    else:
        assert cli_bench.main(["--only", "vm:disk", "--vm", *words]) == 0
    (config,) = booted
    assert (config.append, config.cpu) == ("quiet a=b", "max") and kept.read_text() == "figures"
    assert config.command[2:] == ["--only", "vm:disk", "--runs", "3", "--json", "/run/lab/out/benchjson"]


# --- a run ---------------------------------------------------------------------------------------------------


def _bench(monkeypatch, words, **sections):
    """The exit code of a run whose sections are these functions."""
    monkeypatch.setattr(benches, "_run", lambda name: sections[name])
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    return benches.main()


def _found(runs, quick):
    section = Section("rings", "found")
    section.add("a", [1.0] * runs, "s")
    return section


def _broken(runs, quick):
    raise RuntimeError("no\nQEMU")


def _interrupted(runs, quick):
    raise KeyboardInterrupt


def test_a_bench_that_fails_is_told_and_the_others_are_measured(outside, monkeypatch, tmp_path, capsys):
    kept = tmp_path / "run.json"
    words = ["--only", "disk", "rings", "disk", "--quick", "--json", str(kept), "--svg", str(tmp_path / "svg")]
    assert _bench(monkeypatch, words, disk=_broken, rings=_found) == 1
    told = capsys.readouterr().out
    assert "FAILED RuntimeError: no QEMU (test_benches.py:" in told and told.index("disk") < told.index("rings")
    run = document.read(kept)
    assert [bool(one.failed) for one in run.sections] == [True, False] and not run.left
    assert (tmp_path / "svg").read_text().startswith("<svg")


def test_what_was_measured_before_an_interrupt_is_kept(outside, monkeypatch, tmp_path, capsys):
    kept = tmp_path / "run.json"
    words = ["--only", "rings", "disk", "net", "--quick", "--json", str(kept)]
    assert _bench(monkeypatch, words, rings=_found, disk=_interrupted, net=_found) == 130
    told = capsys.readouterr()
    assert "== rings: found" in told.out and "not measured: disk, net" in told.err
    assert document.show([kept], None) == 0
    assert "interrupted: disk, net not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("{", "no JSON"),
        ("[]", "its schema is None"),
        ('{"schema": "uvirtio-list/1"}', "its schema is 'uvirtio-list/1'"),
        ('{"schema": "uvirtio-bench/1"}', "broken: KeyError: 'sections'"),
        ('{"schema": "uvirtio-bench/1", "facts": {}, "sections": [{"name": 1}]}', "broken: KeyError"),
        ('{"schema": "uvirtio-bench/1", "facts": 3, "sections": []}', "broken: TypeError"),
    ],
)
def test_a_file_that_is_no_run_is_told(content, why, tmp_path, capsys):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    assert cli_bench.main(["--show", str(path)]) == 2
    assert f"tools/bench: {path}: " in (told := capsys.readouterr().err) and why in told


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    words = [sys.executable, str(ROOT / "tools/benches"), "--show", *map(str, KEPT)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait(60) == 1


# --- the processor's counters ---------------------------------------------------------------------------------

SOFTWARE = {"nanoseconds": (1, 1)}  # PERF_COUNT_SW_TASK_CLOCK: of the kernel's own, so a virtual machine has it


def test_a_loop_is_counted_without_the_device():
    with counters.Counters(SOFTWARE) as found:
        if not found.of(list):
            pytest.skip("this kernel lets us have no counter")
        each = rings.Engine(32, shuffled=False).counted(found, 64)
    assert each.keys() == {"nanoseconds"} and 50 < each["nanoseconds"] < 1e5


def test_a_machine_without_counters_has_none_of_these_figures():
    with counters.Counters({"nothing": (99, 99)}) as found:
        assert found.of(list) == {} and rings.Fixed(32, shuffled=False).counted(found, 8) == {}


# --- beside another checkout ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "why"),
    [
        ("", "ModuleNotFoundError: No module named 'uvirtio."),
        ("(", "SyntaxError"),
        ("import os; os._exit(3)", "the benches ended at where"),
    ],
)
def test_a_uvirtio_that_has_not_what_a_bench_uses_is_not_compared(package, why, tmp_path):
    (tmp_path / "uvirtio").mkdir()
    (tmp_path / "uvirtio/__init__.py").write_text(package)
    (section,) = against.run(["memory"], 1, True, tmp_path)
    (failed,) = section.failed
    assert failed.startswith(f"not compared: with the uvirtio of {tmp_path}") and why in failed
    assert not section.figures and not section.ratios


def _answer(**figures):
    section = Section("x", "")
    for name, value in figures.items():
        section.add(name, [value], "s")
    return section.as_dict()


def test_what_one_side_alone_has_is_named():
    pairs = against._Pairs()
    pairs.add(_answer(a=1.0, b=2.0, none=1.0), _answer(a=2.0, c=2.0, none=0.0))
    section = pairs.section("x", Path("/other"), [])
    assert section.about.endswith("1 pairs; on one side alone: b, c")
    assert [(one.name, one.value) for one in section.ratios] == [("a: here / there", 0.5)]


def test_the_pairs_before_an_interrupt_are_kept(monkeypatch):
    def measure(pairs, *_):
        pairs.add(_answer(a=1.0), _answer(a=1.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(against, "_measure", measure)
    found = against.run(["rings", "disk"], 9, True, Path("/other"))
    assert next(found).failed == ["interrupted after 1 pairs"]
    with pytest.raises(KeyboardInterrupt):
        next(found)
