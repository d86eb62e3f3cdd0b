"""tools/soak: each thing that a workload can leave is seen."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

import uvirtio

TOOLS = next(top for top in Path(__file__).resolve().parents if (top / "pyproject.toml").exists()) / "tools"
sys.path.insert(0, str(TOOLS))

from soaks import kills, soak  # noqa: E402
from soaks.work import ALL, PROMISED, Work  # noqa: E402

KEPT: list[object] = []


def _memory(_folder: Path) -> None:
    # Not of the allocator, which may have as much from before.
    block = mmap.mmap(-1, 64 << 10, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(b"x" * (64 << 10))
    KEPT.append(block)


def _descriptor(_folder: Path) -> None:
    KEPT.append(os.fdopen(os.open("/dev/null", os.O_RDONLY)))


def _mapping(_folder: Path) -> None:
    number = os.memfd_create("left")
    os.truncate(number, 4096)
    KEPT.append(mmap.mmap(number, 4096))
    os.close(number)


def _process(_folder: Path) -> None:
    KEPT.append(subprocess.Popen(["sleep", "60"]))


def _file(folder: Path) -> None:
    (folder / f"{len(list(folder.iterdir()))}.lock").touch()


def _nothing(_folder: Path) -> None:
    bytearray(1 << 20)


@pytest.fixture
def run(tmp_path: Path):
    """Soak ``what``, 40 times."""
    watched = tmp_path / "watched"
    watched.mkdir()

    def soaked(what: Callable[[Path], None]) -> soak.Result:
        @contextmanager
        def begin(_scratch: Path):
            def once() -> int:
                what(watched)
                return 1

            yield once

        return soak.run(Work("made", "for a test", 100, begin, 10), 40, None, tmp_path, (watched,))

    yield soaked
    for one in KEPT:
        if isinstance(one, subprocess.Popen):
            one.kill()
            one.wait()
        elif hasattr(one, "close"):
            one.close()
    KEPT.clear()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (_memory, "memory grew by"),
        (_descriptor, "40 more descriptors"),
        (_mapping, "40 more maps"),
        (_process, "processes left: ["),
        (_file, "files left: "),
    ],
)
def test_what_stays_is_a_fault(run, what: Callable[[Path], None], told: str) -> None:
    result = run(what)
    assert any(fault.startswith(told) for fault in result.faults), result.faults
    assert result.line().startswith("FAIL made") and told in result.line()


def test_what_does_not_stay_is_none(run) -> None:
    result = run(_nothing)
    assert result.faults == [] and result.line().startswith("ok")
    assert (result.cycles, result.warm_up, result.judged) == (50, 10, True) and 10 <= len(result.trend) <= 21


def test_memory_that_has_not_settled_is_told_and_not_judged(tmp_path: Path) -> None:
    @contextmanager
    def begin(_scratch: Path):
        def once() -> int:
            _memory(tmp_path)
            return 1

        yield once

    result = soak.run(Work("made", "for a test", 10_000, begin, 1000), 40, None, tmp_path, ())
    KEPT.clear()
    assert (result.warm_up, result.cycles, result.judged, result.faults) == (10, 50, False, [])
    assert result.growth > soak.GROWTH and "(not settled)" in result.line()


def test_what_has_no_more_time_is_cut_off_and_told(tmp_path: Path) -> None:
    @contextmanager
    def begin(_scratch: Path):
        yield lambda: 1

    work = Work("made", "for a test", 10, begin, 5)
    cut = soak.run(work, 10, None, tmp_path, (), 0.0)
    assert (cut.cut, cut.cycles, cut.judged, cut.faults) == (True, 1, False, [])
    assert cut.line().endswith("(its time was over)") and cut.as_dict()["cut"] is True
    whole = soak.run(work, 10, None, tmp_path, (), 60.0)
    assert (whole.cut, whole.cycles, whole.judged) == (False, 15, True) and "over" not in whole.line()


def test_the_day_is_as_long_as_promised() -> None:
    day = {work.name: work.day for work in ALL}
    assert set(PROMISED) == {"balloon", "mem", "input", "open", "open-vu", "reset", "reset-vu"}
    assert day["balloon"] == day["mem"] == 86_400 and day["input"] == 10_000_000
    assert day["open"] == day["open-vu"] == 10_000 and day["reset"] == day["reset-vu"] == 1_000


# --- deaths --------------------------------------------------------------------------------------------------


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Kill a shell that runs ``script`` instead of uvirtio, twice; ``next_start`` comes after each."""
    watched = tmp_path / "watched"
    watched.mkdir()
    monkeypatch.setattr(kills, "_MAIN", "import os, sys; os.execvp('sh', ['sh', '-c', sys.argv[1]])")
    monkeypatch.setattr(kills, "_LAST", 0.5)
    monkeypatch.setattr(kills, "_COMES", 0.2)

    def run(
        script: str,
        next_start: Callable[[str], None] = lambda _disk: None,
        *,
        stop: bool = False,
        until: Callable[[str], object] | None = None,
    ) -> kills.Tally:
        killing = kills.Killing(tmp_path, (watched,), 1)
        if until is not None:  # it has come so far, however busy this machine is

            def come(_child: object, mark: str, _longest: float, *, busy: bool) -> None:
                deadline = time.monotonic() + 60
                while not until(mark) and time.monotonic() < deadline:
                    time.sleep(0.01)

            monkeypatch.setattr(killing, "_moment", come)
        monkeypatch.setattr(killing, "_whole", lambda _victim: 0.3)
        monkeypatch.setattr(killing, "_draw", random.Random(3))
        victim = kills.Victim("made", (script.replace("WATCHED", str(watched)),), next_start, "sleep")
        return killing.stops(victim, 2) if stop else killing.kills(victim, 2)

    return run


def test_a_command_that_dies_alone(killed) -> None:
    tally = killed("exec sleep 60")
    assert (tally.kills, tally.late, tally.faults) == (2, 0, [])


def test_a_process_that_outlives_its_command_is_a_fault(killed) -> None:
    tally = killed("sleep 60 & wait", until=lambda mark: len(kills.marked(mark)) > 1)
    assert any(fault.startswith("orphans: [") for fault in tally.faults) and tally.with_child


def test_a_file_of_a_dead_command_is_a_fault(killed, tmp_path: Path) -> None:
    tally = killed(
        "touch WATCHED/socket; exec sleep 60", until=lambda _mark: (tmp_path / "watched/socket").exists()
    )
    assert any(fault.startswith("files left: ") for fault in tally.faults)


def test_a_next_start_that_fails_is_a_fault(killed) -> None:
    def refused(_disk: str) -> None:
        raise uvirtio.DeviceGone("held by the dead")

    assert len(killed("exec sleep 60", refused).faults) == 2


def test_a_command_that_ends_before_it_is_killed_counts_as_late(killed) -> None:
    tally = killed("exit 0")
    assert tally.kills + tally.late >= 2 and tally.late


def test_what_was_stopped_goes_on(killed) -> None:
    assert killed("sleep 0.5", stop=True).faults == []
    tally = killed("sleep 0.5; echo UV-WHAT >&2; exit 3", stop=True)
    assert tally.missed == 0 and len(tally.faults) == 2 and tally.faults[0].endswith("was stopped: UV-WHAT")
    tally = killed("sleep 0.5; echo uvirtio: UV-DEV-TIMEOUT: nothing >&2; exit 1", stop=True)
    assert tally.missed == 1 and len(tally.faults) == 1, "of the command itself it is a fault"
