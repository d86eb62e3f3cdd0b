"""A plot of what was compared, as SVG text: one bar for each ratio, with its spread and what is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from benches.measure import Ratio, Section

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 900, 380, 90, 56, 26
_INK, _PALE, _BAR, _MISS = "#222222", "#888888", "#3b7dd8", "#c8553d"


def draw(facts: dict[str, Any], sections: Sequence[Section]) -> str:
    """The SVG document. Bars are ratios to what was measured beside; the tick across each is what is wanted."""
    rows = [(section.name, ratio) for section in sections for ratio in section.ratios]
    values = [1.0] + [value for _, ratio in rows for value in (ratio.low, ratio.high, ratio.target) if value]
    low, high = math.log2(min(0.25, *values)), math.log2(max(16.0, *values))
    height = _TOP + _ROW * len(rows) + 64
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
    about = f"{facts['cpu']}, {facts['cores']} cores, {facts['kernel']}, {facts['python']}, {facts['qemu']}"
    lines += [_text(16, height - 14, f"{about}; {facts['when']}", colour=_PALE), "</svg>"]
    return "\n".join(lines) + "\n"


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


def _text(x: float, y: float, said: str, *, anchor: str = "start", size: int = 12, colour: str = _INK) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(said)}</text>'
