"""``uvirtio top`` without its screen: lines of text, JSON, exit codes; and the screen on a terminal of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from tests.unit.sampling.test_seen import ADDRESS, Machine
from uvirtio.cli.app import run
from uvirtio.errors import Busy

QUICK = ["--interval", "0.1"]


def test_lines_of_text_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "scripted:balloon", *QUICK, "--load", "50", "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len({line.split("s  ")[1][:7] for line in lines})
    assert re.match(
        r" +0\.\d s  balloon at scripted:balloon  DRIVER_OK  msix-per-queue  interrupts \d+ \(", lines[0]
    )
    assert re.search(r"queue 0 inflateq  split  descriptors 0 of \d+  in flight 0  kicks \d+ \(\d", lines[1])


def test_once_is_one_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "scripted:rng", *QUICK, "--once", "--json"]) == 0
    *_, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (last["command"], last["event"], last["number"]) == ("top", "sample", 1)
    (queue,) = last["queues"]
    assert queue["addresses"][0].startswith("0x") and queue["stall"] == "idle"


def test_a_failure_of_the_device_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "scripted:rng,silent", *QUICK, "--timeout", "0.4", "--load", "10"]) == 1
    told = capsys.readouterr()
    assert re.search(r"in flight 1  oldest \d+\.\d ms .* untaken: kicked", told.out)
    assert "log  UV-DEV-TIMEOUT" in told.out and told.err.startswith("uvirtio: UV-DEV-TIMEOUT: ")
    # Served alone, it is not asked for anything, and cannot fail.
    assert run(["top", "scripted:rng,silent", *QUICK, "--timeout", "0.4", "--count", "1"]) == 0


def test_a_device_that_the_kernel_drives_is_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = Machine(tmp_path).fake
    before = fake.snapshot()
    assert run(["top", ADDRESS, "--root", str(tmp_path), *QUICK, "--count", "1", "--load", "5"]) == 0
    out = capsys.readouterr().out
    assert "virtio_blk drives it, so it is not opened; --load has no effect" in out
    assert "in use: /dev/vda is mounted on /" in out
    assert "irq 36  virtio1-req.0  100 (0.0/s)" in out
    assert fake.snapshot() == before
    # Nor is one without a driver.
    fake.pci("0000:00:07.0", "rng", driver=None)
    assert run(["top", "0000:00:07.0", "--root", str(tmp_path), *QUICK, "--once"]) == 0
    assert "no driver has it: uvirtio bind" in capsys.readouterr().out


def test_a_device_that_another_process_has_is_looked_at_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSys(tmp_path)
    fake.pci("0000:00:04.0", "rng", driver="vfio-pci", group=5)
    opened: list[str] = []

    def busy(address: str, **_: object) -> None:
        opened.append(address)
        raise Busy("0000:00:04.0 is held by another process", seen="qemu-system-x86, pid 4242")

    monkeypatch.setattr("uvirtio.opening.open", busy)
    assert run(["top", "0:4.0", "--root", str(tmp_path), *QUICK, "--once"]) == 0
    out = capsys.readouterr().out
    assert opened == ["0000:00:04.0"]  # one that is for user space is tried
    assert "log  not opened: 0000:00:04.0 is held by another process" in out
    assert "rng at 0000:00:04.0" in out and "driver vfio-pci" in out
    # Any other refusal is an error.
    fake.text(fake.roots.etc / "uvirtio/deny", "*\n")
    monkeypatch.undo()
    assert run(["top", "0:4.0", "--root", str(tmp_path), "--once"]) == 3
    assert "UV-REFUSED-DENIED" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--interval", "0"], ["--interval", "nan"], ["--interval", "1e9"], ["--load", "-1"], ["--count", "0"]],
    ids=" ".join,
)
def test_options_that_make_no_sense(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "scripted:rng", "--once", *words]) == 2
    assert capsys.readouterr().err.startswith("uvirtio: UV-USAGE: ")


def test_the_extra_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "textual.app", None)
    monkeypatch.delitem(sys.modules, "uvirtio.cli.screen", raising=False)
    monkeypatch.setattr("uvirtio.cli.output.fancy", lambda: True)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert run(["top", "scripted:rng"]) == 4
    err = capsys.readouterr().err
    assert "UV-ENV-NOT-SUPPORTED" in err and "pip install 'uvirtio[tui]', or uvirtio top --batch" in err
    # What it names works.
    assert run(["top", "scripted:rng", "--batch", *QUICK, "--count", "1"]) == 0


def test_textual_is_loaded_for_the_screen_alone() -> None:
    script = (
        "import sys; from uvirtio.cli.app import run; code = run(sys.argv[1:]); "
        "print(code, 'textual' in sys.modules, file=sys.stderr)"
    )
    argv = [sys.executable, "-c", script, "top", "scripted:rng", "--once", *QUICK]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.stderr == "0 False\n"


def test_a_record_replays_with_the_same_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = str(tmp_path / "record.jsonl")
    words = ["top", "scripted:rng,silent", *QUICK, "--load", "10", "--timeout", "0.25", "--trace", record]
    assert run(words) == 1
    recorded = capsys.readouterr()
    assert run(["replay", record]) == 1
    replayed = capsys.readouterr()
    assert replayed.out == recorded.out and "untaken" in recorded.out
    assert replayed.err.startswith(recorded.err)


# --- on a terminal ----------------------------------------------------------------------------------------------


class Terminal:
    """``uvirtio top`` on a terminal of its own."""

    def __init__(self, *argv: str) -> None:
        env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uvirtio", "top", *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
            start_new_session=True,
        )
        os.close(theirs)
        self._poll = select.poll()
        self._poll.register(self._ours, select.POLLIN)
        self.shown = ""

    def until(self, wanted: Callable[[str], bool]) -> None:
        """Read what is drawn until it is as wanted."""
        deadline = time.monotonic() + 60
        while not wanted(self.shown):
            assert time.monotonic() < deadline, self.shown[-2000:]
            if not self._poll.poll(100):
                continue
            try:
                self.shown += os.read(self._ours, 65536).decode(errors="replace")
            except OSError:  # EIO: it has ended
                self.process.wait(60)
                assert wanted(self.shown), self.shown[-2000:]

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it said when the screen of before was back."""
        self.until(lambda shown: "\x1b[?1049l" in shown and self.process.poll() is not None)
        return self.process.wait(60), self.shown.rpartition("\x1b[?1049l")[2]

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        (lambda top: top.press(b"q"), 0, ""),
        (lambda top: top.process.send_signal(signal.SIGTERM), 143, "uvirtio: SIGTERM: cleaned up and exited"),
    ],
    ids=["q", "SIGTERM"],
)
def test_the_screen_is_left_in_order(how: Callable[[Terminal], None], code: int, said: str) -> None:
    pytest.importorskip("textual")
    with Terminal("scripted:rng,silent", "--load", "10", "--timeout", "30", *QUICK) as top:
        top.until(lambda shown: "untaken" in shown)  # the device is being waited for
        how(top)
        ended, last = top.end()
        assert ended == code and (said in last if said else "uvirtio" not in last)
