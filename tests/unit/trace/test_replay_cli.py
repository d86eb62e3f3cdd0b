"""``--trace FILE`` and ``uvirtio replay FILE``: the same output and the same error, without the device."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from uvirtio.cli import main

COMMANDS = (
    "rng read scripted:rng 16",
    "rng read scripted:rng,silent 16 --timeout 0.05",
    "rng read scripted:rng,used-len=+1 16",
    "rng read scripted:rng,transport=mmio,used-idx=+1 16 --json",
    "blk info scripted:blk",
    "blk read scripted:blk,status=1 0 512",
    "balloon status scripted:balloon",
    "balloon inflate scripted:balloon,silent 1M --timeout 0.05",
    "mem status scripted:mem",
    "mem plug scripted:mem,size-lie=4096 2M --timeout 0.05",
    "input info scripted:input,size=200",
    "input led scripted:input,refuse-features caps_lock on",
    "reset scripted:rng",
    "diag scripted:blk,silent --timeout 0.05",
    "diag scripted:rng,lose-interrupts --timeout 0.05 --json",
    "diag scripted:blk,refuse-with=EVENT_IDX --bisect",
)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    told = capsys.readouterr()
    return code, timeless(told.out), timeless(told.err)


def timeless(text: str) -> str:
    return re.sub(r" +[0-9.]+ ms|\"took_s\": ?[0-9.e-]+|[0-9.]+ MiB/s|in [0-9.]+ s", "", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_replayed_with_its_output_and_its_error(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    record = str(tmp_path / "run.jsonl")
    first = run(capsys, *command.split(), "--trace", record)
    assert Path(record).exists(), first
    assert stat.S_IMODE(Path(record).stat().st_mode) == 0o600
    code, out, err = run(capsys, "replay", record)
    assert (code, out) == first[:2]
    assert err.startswith(first[2]) and err[len(first[2]) :].startswith(f"uvirtio: replayed: {command}, ")
    end = json.loads(Path(record).read_text().splitlines()[-1])
    assert end["op"] == "end" and end["exit"] == code


def test_a_changed_record_ends_in_a_divergence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = tmp_path / "run.jsonl"
    run(capsys, "rng", "read", "scripted:rng", "16", "--trace", str(record))
    record.write_text(record.read_text().replace('"16"', '"17"', 1))
    code, _, err = run(capsys, "replay", str(record))
    assert code == 1 and "UV-DIVERGED" in err and "segments(0, 17), instead of call" in err


def test_a_replay_writes_no_file_that_the_record_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, junit, record = tmp_path / "bytes", tmp_path / "junit.xml", tmp_path / "run.jsonl"
    html = tmp_path / "a.html"
    for words in (
        ("rng", "read", "scripted:rng", "16", "-o", str(out)),
        ("rng", "read", "scripted:rng", "16", f"--output={out}"),
        ("diag", "scripted:rng", "--junit", str(junit)),
        ("diag", "scripted:rng", f"--junit={junit}"),
        ("diag", "scripted:rng", "--html", str(html)),
        ("diag", "scripted:input,transport=mmio", f"--html={html}"),
        ("diag", "scripted:blk,transport=legacy", "--html", str(html)),
        ("diag", "scripted:balloon", "--html", str(html)),
    ):
        assert run(capsys, *words, "--trace", str(record))[0] == 0
        out.unlink(missing_ok=True)
        junit.unlink(missing_ok=True)
        html.unlink(missing_ok=True)
        before = record.read_bytes()
        assert run(capsys, "replay", str(record))[0] == 0
        assert not out.exists() and not junit.exists() and not html.exists()
        assert record.read_bytes() == before


@pytest.mark.parametrize(
    "words", [["bind", "0000:03:00.0"], ["restore"], ["input", "bridge", "x"], ["replay", "x"], ["rng"], []]
)
def test_a_record_cannot_run_another_verb(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = tmp_path / "run.jsonl"
    record.write_text(json.dumps({"op": "uvirtio-trace", "version": 1, "command": words}) + "\n")
    code, out, err = run(capsys, "replay", str(record))
    assert code == 2 and not out and "no command that can be replayed" in err


@pytest.mark.parametrize("text", ["", "lspci", '{"op": "uvirtio-trace", "version": 1}\n{"op": "re'])
def test_what_is_no_record_is_a_usage_error(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = tmp_path / "run.jsonl"
    record.write_text(text)
    code, _, err = run(capsys, "replay", str(record))
    assert code == 2 and "UV-USAGE-TRACE" in err and ", line " in err


def test_a_record_that_cannot_be_written_is_an_error(capsys: pytest.CaptureFixture[str]):
    code, _, err = run(capsys, "rng", "read", "scripted:rng", "16", "--trace", "/proc/none/run.jsonl")
    assert code == 1 and "/proc/none/run.jsonl cannot be written" in err
