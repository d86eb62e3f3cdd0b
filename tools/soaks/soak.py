"""A workload for so many cycles or so long, and what of it stays."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soaks import state
from soaks.work import Work

GROWTH = 256 << 10
"""Bytes that a workload may add to the memory of the process after its warm-up."""

_WARM_UP = 0.25
"""Of a run that is too short for memory to settle."""

_WARM_UP_MOST = 0.5
"""Of a run that has a time: what its warm-up may take."""

_SAMPLES = 20


@dataclass(slots=True)
class Result:
    """What a workload came to."""

    name: str
    about: str
    day: int
    cycles: int = 0
    seconds: float = 0.0
    warm_up: int = 0
    judged: bool = False
    """Whether memory had settled after the warm-up, so that its growth counts."""
    growth: int = 0
    """Bytes of memory from the end of the warm-up to the end."""
    descriptors: int = 0
    maps: int = 0
    """More at the end than after the warm-up, as with descriptors."""
    left: list[str] = field(default_factory=list)
    """What is there after the workload and was not before: descriptors, maps, child processes, files."""
    trend: list[tuple[int, int]] = field(default_factory=list)
    """(cycles, bytes of memory) along the way."""
    cut: bool = False
    """Whether its time was over before its cycles were done."""

    @property
    def faults(self) -> list[str]:
        """What is wrong, in words."""
        found = list(self.left)
        if self.judged and self.growth >= GROWTH:
            found.append(f"memory grew by {self.growth >> 10} KiB")
        if self.descriptors > 0:
            found.append(f"{self.descriptors} more descriptors")
        if self.maps > 0:
            found.append(f"{self.maps} more maps")
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "about": self.about,
            "cycles": self.cycles,
            "of_a_day": self.day,
            "seconds": round(self.seconds, 3),
            "warm_up_cycles": self.warm_up,
            "growth_bytes": self.growth,
            "growth_judged": self.judged,
            "more_descriptors": self.descriptors,
            "more_maps": self.maps,
            "left": self.left,
            "trend": self.trend,
            "cut": self.cut,
            "faults": self.faults,
        }

    def line(self) -> str:
        """For people."""
        rate = self.cycles / max(self.seconds, 1e-9)
        settled = "" if self.judged else "(not settled) "
        cut = " (its time was over)" if self.cut else ""
        return (
            f"{'FAIL' if self.faults else 'ok  '} {self.name:9} {self.cycles:10,} of {self.day:10,} "
            f"{self.seconds:7.1f} s {rate:9,.0f}/s  {self.growth / 1024:+7.0f} KiB "
            f"{settled}{self.descriptors:+d} descriptors {self.maps:+d} maps{cut}"
            f"{''.join(f'; {one}' for one in self.faults)}"
        )


def run(
    work: Work,
    cycles: int,
    seconds: float | None,
    scratch: Path,
    watched: tuple[Path, ...],
    most: float | None = None,
) -> Result:
    """Run a workload.

    Args:
        work: What to do.
        cycles: How often, at least, after the warm-up.
        seconds: For so long instead, and as many cycles as that makes.
        scratch: A folder for its files, empty.
        watched: Folders in which nothing may stay.
        most: Seconds after which it ends in any case, with the cycles that were done by then.
    """
    result = Result(work.name, work.about, work.day)
    first = work.settles if cycles >= work.day or cycles >= work.settles else round(cycles * _WARM_UP)
    whole = first + cycles
    before = state.look(watched)
    begin = time.monotonic()
    with work.begin(scratch) as once:
        warm: state.State | None = None
        following = 0.0
        while True:
            result.cycles += once()
            part = result.cycles / whole if seconds is None else (time.monotonic() - begin) / seconds
            if warm is None and _warmed(part, result.cycles, first, work.settles, seconds is None):
                warm, result.warm_up = state.look(watched), result.cycles
                result.judged = result.cycles >= work.settles
            if part >= following:
                result.trend.append((result.cycles, state.rss()))
                following = part + 1 / _SAMPLES
            result.cut = part < 1 and most is not None and time.monotonic() - begin >= most
            if result.cut and warm is None:
                warm, result.warm_up = state.look(watched), result.cycles
            if warm is not None and (part >= 1 or result.cut):
                break
        result.seconds = time.monotonic() - begin
        end = state.look(watched)
        result.growth, result.descriptors = end.rss - warm.rss, end.descriptors - warm.descriptors
        result.maps = end.maps - warm.maps
    result.left = _left(before, state.look(watched))
    return result


def _warmed(part: float, cycles: int, first: int, settles: int, counted: bool) -> bool:
    if counted:
        return cycles >= first
    return part >= _WARM_UP and (cycles >= settles or part >= _WARM_UP_MOST)


def _left(before: state.State, after: state.State) -> list[str]:
    found = []
    if after.descriptors > before.descriptors:
        found.append(f"{after.descriptors - before.descriptors} descriptors left")
    if after.children - before.children:
        found.append(f"processes left: {sorted(after.children - before.children)}")
    if after.files - before.files:
        found.append(f"files left: {', '.join(sorted(after.files - before.files)[:5])}")
    return found
