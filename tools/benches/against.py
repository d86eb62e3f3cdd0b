"""The same benches with the uvirtio of another checkout, in turn: what a change has cost or gained.

A process for each of the two stays for some runs: starting one costs more than a short run, and in a long one the
machine changes. But where a process has its memory, and the order of its dictionaries, makes some per cent of
difference for as long as it lives, so others take over. Each pair is two runs that followed each other, the one or
the other first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benches.measure import Section

_STAY = 4
"""Pairs that one pair of processes does."""

WANTED: dict[str, tuple[float, bool]] = {
    "32 out: futures": (2.9, True),
    "batch path: our CPU for each, polling included": (0.75, False),
}
"""What is wanted of a figure against the build before, and whether more is better."""

_HERE = Path(__file__).resolve().parents[2]


class _Worker:
    """The benches of this checkout on the uvirtio of ``checkout``."""

    def __init__(self, checkout: Path) -> None:
        command = [sys.executable, str(_HERE / "tools/benches"), "--serve"]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        found = Path(self.ask("where")["file"])
        if not found.is_relative_to(checkout.resolve()):
            raise AssertionError(f"{found} was imported, and not the uvirtio of {checkout}")

    def ask(self, *words: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the benches ended at {' '.join(words)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve(run: Callable[[str, bool], Section]) -> None:
    """Be the process of one checkout: a line of a section's name and ``quick`` is answered by its figures."""
    import uvirtio

    for line in sys.stdin:
        name, *more = line.split()
        answer = {"file": uvirtio.__file__} if name == "where" else run(name, bool(more)).as_dict()
        print(json.dumps(answer), flush=True)


def run(names: Sequence[str], runs: int, quick: bool, other: Path) -> list[Section]:
    """For each section: its figures here and there, and here / there for each pair."""
    return [_section(name, runs, quick, other) for name in names]


def _section(name: str, runs: int, quick: bool, other: Path) -> Section:
    found: dict[str, tuple[list[float], list[float]]] = {}
    units: dict[str, str] = {}
    for first in range(0, runs, _STAY):
        workers = [_Worker(_HERE), _Worker(other)]
        try:
            for number in range(first, min(runs, first + _STAY)):
                told: list[dict[str, float]] = [{}, {}]
                for side in (0, 1) if number % 2 else (1, 0):
                    figures = workers[side].ask(name, *(["quick"] if quick else []))["figures"]
                    told[side] = {one["name"]: one["value"] for one in figures}
                    units |= {one["name"]: one["unit"] for one in figures}
                for figure in told[0].keys() & told[1].keys():
                    ours, theirs = found.setdefault(figure, ([], []))
                    ours.append(told[0][figure])
                    theirs.append(told[1][figure])
        finally:
            for worker in workers:
                worker.close()
    section = Section(name, f"here, and with the uvirtio of {other}: {runs} pairs")
    for figure in sorted(found):
        ours, theirs = found[figure]
        section.add(f"{figure}, here", ours, units[figure])
        section.add(f"{figure}, there", theirs, units[figure])
    for figure in sorted(found):
        target, at_least = WANTED.get(figure, (None, True))
        section.compare(f"{figure}: here / there", *found[figure], target, at_least=at_least)
    return section
