"""What was measured, as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benches.measure import Section, human


def text(facts: dict[str, Any], sections: Sequence[Section]) -> Iterator[str]:
    """Lines: the machine, then each section."""
    yield head(facts)
    for section in sections:
        yield from table(section)


def head(facts: dict[str, Any]) -> str:
    """Where it was measured."""
    return "; ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def table(section: Section) -> Iterator[str]:
    """What was measured, then what was compared."""
    yield ""
    yield f"== {section.name}: {section.about}"
    for curve in section.curves:
        yield f"   {curve.name}: a {curve.unit} costs, by n"
        for size, seconds in zip(curve.sizes, curve.seconds, strict=True):
            yield f"      {size:>9,}  {human(seconds, 's'):>9}"
    names = [one.name for one in section.figures] + [one.name for one in section.ratios]
    width = max(map(len, names), default=0)
    for figure in section.figures:
        spread = f"[{human(figure.low, figure.unit)} .. {human(figure.high, figure.unit)}]"
        line = f"   {figure.name:<{width}}  {human(figure.value, figure.unit):>16}  {spread}"
        yield f"{line}  {figure.note}".rstrip()
    for ratio in section.ratios:
        line = f"   {ratio.name:<{width}}  {ratio.value:>13.2f} x  [{ratio.low:.2f} .. {ratio.high:.2f}]"
        if ratio.target is not None:
            word, sign = "ok  " if ratio.met else "MISS", ">=" if ratio.at_least else "<="
            line += f"  {word} (wanted {sign} {ratio.target:g})"
        yield f"{line}  {ratio.note}".rstrip()
    yield from (f"   FAILED {what}" for what in section.failed)
