"""A run as a JSON document: written while it is measured, and read again to be shown or drawn."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benches import plot, report
from benches.measure import Section

SCHEMA = "uvirtio-bench/1"


class NoRun(Exception):
    """A file that is not a run of tools/bench; the message says why."""


@dataclass(slots=True)
class Run:
    """What was measured, and where."""

    facts: dict[str, Any]
    sections: list[Section] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Names that are still to be measured: not empty in the document of a run that was interrupted."""

    def as_json(self) -> str:
        document: dict[str, Any] = {"schema": SCHEMA, "facts": self.facts}
        if self.left:
            document["left"] = self.left
        document["sections"] = [one.as_dict() for one in self.sections]
        return json.dumps(document, indent=1) + "\n"


def read(path: Path) -> Run:
    """The run that ``--json`` wrote.

    Raises:
        NoRun: It cannot be read, or is something else.
    """
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise NoRun(f"{path}: {error.strerror}") from error
    except ValueError as error:  # broken JSON, or no UTF-8
        raise NoRun(f"{path}: no JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise NoRun(f"{path}: no run of tools/bench: its schema is {schema!r}, not {SCHEMA!r}")
    try:
        sections = [Section.from_dict(one) for one in document["sections"]]
        run = Run(dict(document["facts"]), sections, list(document.get("left", ())))
        list(text(run))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NoRun(f"{path}: a run that is broken: {type(error).__name__}: {error}") from error
    return run


def text(run: Run) -> Iterator[str]:
    """Lines for people."""
    yield from report.text(run.facts, run.sections)
    if run.left:
        yield ""
        yield f"interrupted: {', '.join(run.left)} not measured"


def svg(runs: Sequence[Run]) -> str:
    """The plot: the curves of the first run, if it has any, or else all ratios."""
    first = runs[0]
    if any(one.curves for one in first.sections):
        return plot.curves(first.facts, first.sections)
    return plot.draw([(run.facts, run.sections) for run in runs])


def show(files: Iterable[Path], plot_to: Path | None) -> int:
    """Print runs that were kept, and draw them where that is asked for; the exit code."""
    try:
        runs = [read(path) for path in files]
    except NoRun as error:
        print(f"tools/bench: {error}", file=sys.stderr)
        return 2
    if plot_to is not None:
        plot_to.write_text(svg(runs))
    try:
        for number, run in enumerate(runs):
            print("\n".join([*[""] * bool(number), *text(run)]), flush=True)
    except BrokenPipeError:
        read_no_more()
        return 1
    return 0


def read_no_more() -> None:
    """Whoever read our output has seen enough: what is left of it goes nowhere, without another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
