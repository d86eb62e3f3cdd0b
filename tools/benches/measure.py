"""How something is measured here: several runs, their median, and a spread that says what the median is worth."""

from __future__ import annotations

import math
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number: the median of its runs, and the lowest and highest of them."""

    name: str
    value: float
    unit: str
    low: float
    high: float
    runs: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two figures of one run: the median of the quotients of each pair, taken one after the other."""

    name: str
    value: float
    low: float
    high: float
    target: float | None
    """What is wanted; None where nothing is wanted."""
    at_least: bool = True
    """Whether more is better: ``target`` is the least; otherwise the most."""
    note: str = ""

    @property
    def met(self) -> bool:
        if self.target is None:
            return True
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass(frozen=True, slots=True)
class Curve:
    """What one unit of work costs at each size."""

    name: str
    unit: str
    sizes: list[int]
    seconds: list[float]
    slope: float
    """Of the line through the points, in logarithms of both: 0 is flat, 1 in proportion to the size."""


@dataclass(slots=True)
class Section:
    """What one module measured."""

    name: str
    about: str
    figures: list[Figure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """What could not be measured, and why; then the bench's exit code is 1."""

    def add(self, name: str, values: list[float], unit: str, note: str = "") -> None:
        self.figures.append(figure(name, values, unit, note))

    def curve(
        self, name: str, unit: str, sizes: list[int], seconds: list[float], most: float, why: str = ""
    ) -> None:
        """Points of a curve, and the steepest slope that is wanted of it."""
        logs = [[math.log(value) for value in values] for values in (sizes, seconds)]
        slope = statistics.linear_regression(*logs).slope
        self.curves.append(Curve(name, unit, sizes, seconds, slope))
        self.ratios.append(Ratio(f"{name}: slope", slope, slope, slope, most, False, why))

    def compare(
        self,
        name: str,
        ours: list[float],
        theirs: list[float],
        target: float | None,
        *,
        at_least: bool = True,
        note: str = "",
    ) -> None:
        """``ours`` / ``theirs``, pair by pair: what disturbed one run mostly disturbed its neighbour too."""
        quotients = [one / other for one, other in zip(ours, theirs, strict=True)]
        median = statistics.median(quotients)
        self.ratios.append(Ratio(name, median, min(quotients), max(quotients), target, at_least, note))

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Section:
        """What ``as_dict`` told of a section."""
        ratios = [{name: value for name, value in one.items() if name != "met"} for one in told["ratios"]]
        figures = [Figure(**one) for one in told["figures"]]
        curves = [Curve(**one) for one in told.get("curves", ())]
        return cls(told["name"], told["about"], figures, [Ratio(**one) for one in ratios], curves, told["failed"])

    def as_dict(self) -> dict[str, Any]:
        made = asdict(self)
        for ratio, told in zip(self.ratios, made["ratios"], strict=True):
            told["met"] = ratio.met
        if not self.curves:
            del made["curves"]
        return made


def figure(name: str, values: list[float], unit: str, note: str = "") -> Figure:
    return Figure(name, statistics.median(values), unit, min(values), max(values), len(values), note)


def told(error: BaseException) -> str:
    """An exception as one line: its type, what it says, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def cpu(work: Callable[[], object]) -> float:
    """Seconds that this process computed for ``work``: what else a busy machine does takes none of them."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def interleaved(runs: int, *works: Callable[[], float]) -> list[list[float]]:
    """``runs`` results of each, taken in turn, so that each pair saw the same machine."""
    results: list[list[float]] = [[] for _ in works]
    for _ in range(runs):
        for kept, work in zip(results, works, strict=True):
            kept.append(work())
    return results


def human(value: float, unit: str) -> str:
    """``2.41 M desc/s``, ``830 ns``: three digits that matter."""
    for size, prefix in _SCALES.get(unit, _THOUSANDS if unit.endswith("/s") else ()):
        if value >= size:
            return f"{_digits(value / size)} {prefix}{'' if unit in _SCALES else unit}"
    return f"{_digits(value)} {unit}".strip()


_THOUSANDS = ((1e6, "M "), (1e3, "k "))
_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "B": ((1 << 20, "MiB"), (1 << 10, "KiB")),
}


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
