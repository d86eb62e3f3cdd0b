"""Plots as SVG text: one bar for each ratio, with its spread and what is wanted; or curves of growing cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from benches.measure import Curve, Ratio, Section, human

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _CAPTION = 900, 380, 90, 56, 26, 18
_INK, _PALE, _BAR, _MISS = "#222222", "#888888", "#3b7dd8", "#c8553d"


def draw(runs: Sequence[tuple[dict[str, Any], Sequence[Section]]]) -> str:
    """The SVG document. Bars are ratios to what was measured beside; the tick across each is what is wanted.

    Args:
        runs: The facts and the sections of each.
    """
    rows = [(section.name, ratio) for _, sections in runs for section in sections for ratio in section.ratios]
    values = [1.0] + [value for _, ratio in rows for value in (ratio.low, ratio.high, ratio.target) if value]
    low, high = math.log2(min(0.25, *values)), math.log2(max(16.0, *values))
    height = _TOP + _ROW * len(rows) + 46 + _CAPTION * len(runs)
    scale = (_WIDTH - _LEFT - _RIGHT) / (high - low)

    def place(value: float) -> float:
        return _LEFT + (math.log2(max(value, 2**low)) - low) * scale

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _text(16, 24, "uvirtio beside what it is compared with, in the same run", size=16),
        _text(16, 42, "ratio, logarithmic; thin line: all runs; black tick: what is wanted", colour=_PALE),
    ]
    bottom = _TOP + _ROW * len(rows)
    for power in range(math.ceil(low), math.floor(high) + 1):
        x = place(2.0**power)
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#dddddd"/>')
        lines.append(_text(x, bottom + 16, f"{2.0**power:g}x", anchor="middle", colour=_PALE))
    for number, (name, ratio) in enumerate(rows):
        lines += _bar(name, ratio, _TOP + _ROW * number, place)
    for number, (facts, sections) in enumerate(runs):
        names = ", ".join(section.name for section in sections)
        about = f"{facts['cpu']}, {facts['cores']} cores, {facts['kernel']}, {facts['python']}; {facts['when']}"
        lines.append(_text(16, bottom + 46 + _CAPTION * number, f"{names}: {about}", colour=_PALE))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _bar(name: str, ratio: Ratio, top: float, place: Any) -> list[str]:
    middle = top + _ROW / 2
    one, value = place(1.0), place(ratio.value)
    colour = _BAR if ratio.met else _MISS
    made = [
        _text(_LEFT - 10, middle + 4, f"{name}: {ratio.name}", anchor="end"),
        f'<rect x="{min(one, value):.1f}" y="{top + 5}" width="{max(abs(value - one), 1):.1f}" '
        f'height="{_ROW - 10}" fill="{colour}"/>',
        f'<line x1="{place(ratio.low):.1f}" y1="{middle}" x2="{place(ratio.high):.1f}" y2="{middle}" '
        f'stroke="{_INK}" stroke-width="1"/>',
        _text(_WIDTH - _RIGHT + 12, middle + 4, f"{ratio.value:.2f}x"),
    ]
    if ratio.target is not None:
        x = place(ratio.target)
        ends = f'x1="{x:.1f}" y1="{top + 2}" x2="{x:.1f}" y2="{top + _ROW - 2}"'
        made.append(f'<line {ends} stroke="{_INK}" stroke-width="2"/>')
    return made


_COLOURS = ("#3b7dd8", "#c8553d", "#3f9b5b", "#8a5fbf", "#b58a1b", "#4aa3a3", "#777777", "#d06ca3")
_PLOT, _LEGEND = 260, 18


def curves(facts: dict[str, Any], sections: Sequence[Section]) -> str:
    """The SVG document of what growing sizes cost: one plot for each kind of curve, both axes logarithmic.

    Curves whose names begin alike, up to a colon, share a plot. A dashed line is what n log n in all would be.
    """
    groups: dict[str, list[Curve]] = {}
    for curve in (curve for section in sections for curve in section.curves):
        groups.setdefault(curve.name.partition(":")[0], []).append(curve)
    lines: list[str] = [_text(16, 24, "What one unit costs at growing sizes", size=16)]
    lines.append(
        _text(16, 42, "both axes logarithmic; dashed: n log n in all; in the legend: the slope", colour=_PALE)
    )
    top = float(_TOP)
    for name, group in groups.items():
        lines += _group(name, group, top)
        top += max(_PLOT, _LEGEND * len(group)) + 72
    about = f"{facts['cpu']}, {facts['cores']} cores, {facts['kernel']}, {facts['python']}; {facts['when']}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top + 20:.0f}" '
        f'viewBox="0 0 {_WIDTH} {top + 20:.0f}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{top + 20:.0f}" fill="white"/>',
    )
    return "\n".join([*head, *lines, _text(16, top + 6, about, colour=_PALE), "</svg>"]) + "\n"


def _group(name: str, group: Sequence[Curve], top: float) -> list[str]:
    left, width = 70.0, 400.0
    sizes = [size for curve in group for size in curve.sizes]
    costs = [cost for curve in group for cost in curve.seconds]
    low, high = math.log10(min(sizes)), math.log10(max(sizes)) or 1.0
    floor, roof = math.floor(math.log10(min(costs))), math.ceil(math.log10(max(costs)))

    def at(size: float, cost: float) -> tuple[float, float]:
        x = left + (math.log10(size) - low) / ((high - low) or 1) * width
        return x, top + 20 + (roof - math.log10(cost)) / ((roof - floor) or 1) * _PLOT

    made = [_text(16, top + 6, f"{name}, for one {group[0].unit}", size=13)]
    for power in range(floor, roof + 1):
        _, y = at(10**low, 10.0**power)
        made.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#dddddd"/>')
        made.append(_text(left - 8, y + 4, human(10.0**power, "s"), anchor="end", colour=_PALE))
    for size in sorted(set(sizes)):
        x, y = at(size, 10.0**floor)
        made.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{y + 4:.1f}" stroke="{_PALE}"/>')
    for size in (min(sizes), max(sizes)):
        x, y = at(size, 10.0**floor)
        made.append(_text(x, y + 18, f"{size:,}", anchor="middle", colour=_PALE))
    first = group[0]
    grown = [first.seconds[0] * math.log2(2 * size) / math.log2(2 * first.sizes[0]) for size in first.sizes]
    made.append(_line([at(*point) for point in zip(first.sizes, grown, strict=True)], _PALE, dashed=True))
    for number, curve in enumerate(group):
        colour = _COLOURS[number % len(_COLOURS)]
        made.append(_line([at(*point) for point in zip(curve.sizes, curve.seconds, strict=True)], colour))
        y = top + 30 + _LEGEND * number
        made.append(f'<rect x="{left + width + 24}" y="{y - 8}" width="12" height="8" fill="{colour}"/>')
        what = curve.name.partition(":")[2].strip() or curve.name
        made.append(_text(left + width + 42, y, f"{what}: {curve.slope:+.2f}"))
    return made


def _line(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{told}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'


def _text(x: float, y: float, said: str, *, anchor: str = "start", size: int = 12, colour: str = _INK) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(said)}</text>'
