"""The same benches with the uvirtio of another checkout, in turn: what a change has cost or gained.

A process for each of the two stays for some runs: starting one costs more than a short run, and in a long one the
machine changes. But where a process has its memory, and the order of its dictionaries, makes some per cent of
difference for as long as it lives, so others take over. Each pair is two runs that followed each other, the one or
the other first.

The benches are those of this checkout on either side. A uvirtio that has not what one of them uses cannot be
compared there: the section says so, and the others are measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benches.measure import Section, told

_STAY = 4
"""Pairs that one pair of processes does."""

WANTED: dict[str, tuple[float, bool]] = {
    "32 out: futures": (2.9, True),
    "batch path: our CPU for each, polling included": (0.75, False),
}
"""What is wanted of a figure against the build before, and whether more is better."""

_HERE = Path(__file__).resolve().parents[2]


class NotMeasured(Exception):
    """One of the two sides could not run a section; the message says which, and why."""


class _Worker:
    """The benches of this checkout on the uvirtio of ``checkout``."""

    def __init__(self, checkout: Path) -> None:
        command = [sys.executable, str(_HERE / "tools/benches"), "--serve"]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        self._checkout = checkout
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self) -> None:
        found = Path(self.ask("where")["file"])
        if not found.is_relative_to(self._checkout):
            raise NotMeasured(f"{found} was imported, and not the uvirtio of {self._checkout}")

    def ask(self, *words: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(*words, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            raise NotMeasured(f"with the uvirtio of {self._checkout} the benches ended at {' '.join(words)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NotMeasured(f"with the uvirtio of {self._checkout}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve(run: Callable[[str, bool], Section]) -> None:
    """Be the process of one checkout: a line of a section's name and ``quick`` is answered by its figures."""
    for line in sys.stdin:
        name, *more = line.split()
        try:
            answer = _where() if name == "where" else run(name, bool(more)).as_dict()
        except Exception as error:  # noqa: BLE001  # whatever another build has not, or does otherwise
            answer = {"error": told(error)}
        print(json.dumps(answer), flush=True)


def _where() -> dict[str, Any]:
    import uvirtio

    return {"file": str(Path(uvirtio.__file__).resolve())}


def run(names: Sequence[str], runs: int, quick: bool, other: Path) -> Iterator[Section]:
    """For each section: its figures here and there, and here / there for each pair.

    Raises:
        KeyboardInterrupt: After the section that was under way, with the pairs that it has.
    """
    for name in names:
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        pairs = _Pairs()
        failed, interrupted = [], False
        try:
            _measure(pairs, name, runs, quick, other.resolve())
        except NotMeasured as error:
            failed = [f"not compared {'any further' if pairs.done else ''}".strip() + f": {error}"]
        except KeyboardInterrupt:
            failed, interrupted = [f"interrupted after {pairs.done} pairs"], True
        yield pairs.section(name, other, failed)
        if interrupted:
            raise KeyboardInterrupt


class _Pairs:
    """What was found on both sides so far."""

    def __init__(self) -> None:
        self.done = 0
        self._found: dict[str, tuple[list[float], list[float]]] = {}
        self._units: dict[str, str] = {}
        self._one_sided: set[str] = set()
        self._failed: dict[str, None] = {}

    def add(self, here: dict[str, Any], there: dict[str, Any]) -> None:
        """The answers of one pair of runs."""
        told = [{one["name"]: one["value"] for one in side["figures"]} for side in (here, there)]
        self._units |= {one["name"]: one["unit"] for side in (here, there) for one in side["figures"]}
        self._failed |= dict.fromkeys([*here["failed"], *there["failed"]])
        self._one_sided |= told[0].keys() ^ told[1].keys()
        for figure in told[0].keys() & told[1].keys():
            for side, values in zip(told, self._found.setdefault(figure, ([], [])), strict=True):
                values.append(side[figure])
        self.done += 1

    def section(self, name: str, other: Path, failed: list[str]) -> Section:
        about = f"here, and with the uvirtio of {other}: {self.done} pairs"
        if self._one_sided:
            about += f"; on one side alone: {', '.join(sorted(self._one_sided))}"
        section = Section(name, about, failed=[*self._failed, *failed])
        for figure in sorted(self._found):
            ours, theirs = self._found[figure]
            section.add(f"{figure}, here", ours, self._units[figure])
            section.add(f"{figure}, there", theirs, self._units[figure])
        for figure in sorted(self._found):
            if not all(self._found[figure][1]):
                continue  # nothing there: no ratio
            target, at_least = WANTED.get(figure, (None, True))
            section.compare(f"{figure}: here / there", *self._found[figure], target, at_least=at_least)
        return section


def _measure(pairs: _Pairs, name: str, runs: int, quick: bool, other: Path) -> None:
    for first in range(0, runs, _STAY):
        workers: list[_Worker] = []
        try:
            for checkout in (_HERE, other):
                workers.append(_Worker(checkout))
            for worker in workers:
                worker.begin()
            for number in range(first, min(runs, first + _STAY)):
                answers: dict[int, dict[str, Any]] = {}
                for side in (0, 1) if number % 2 else (1, 0):
                    answers[side] = workers[side].ask(name, *(["quick"] if quick else []))
                pairs.add(answers[0], answers[1])
        finally:
            for worker in workers:
                worker.close()
