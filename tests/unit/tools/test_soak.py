"""tools/soak: each thing that a workload can leave is seen."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

TOOLS = next(top for top in Path(__file__).resolve().parents if (top / "pyproject.toml").exists()) / "tools"
sys.path.insert(0, str(TOOLS))

from soaks import soak  # noqa: E402
from soaks.work import ALL, Work  # noqa: E402

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


def test_the_day_is_as_long_as_promised() -> None:
    day = {work.name: work.day for work in ALL}
    assert day["balloon"] == day["mem"] == 86_400 and day["input"] == 10_000_000
    assert day["open"] == day["open-vu"] == 10_000 and day["reset"] == day["reset-vu"] == 1_000
