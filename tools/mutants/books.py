"""What is kept of mutants: how each was noticed, and which no test can notice, with the reason."""

from __future__ import annotations

import datetime
import functools
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mutants.guards import Mutant, drawn, of_file
from mutants.runner import Verdict

SEED, COUNT = 20261129, 150
"""The draw whose verdicts are kept."""
RECORD = Path(__file__).with_name("record.jsonl")
ONCE = Path(__file__).with_name("once.toml")
EQUIVALENTS = Path(__file__).with_name("equivalents.toml")

Key = tuple[str, str, str, str]


class Kept(NamedTuple):
    """A verdict as it is kept."""

    end: str
    by: str
    """The node id of the test that noticed the mutant."""
    date: str

    def of(self, mutant: Mutant) -> Verdict:
        """The verdict on a mutant."""
        return Verdict(mutant, self.end, self.by, 0.0)


def key(mutant: Mutant) -> Key:
    """What a mutant is known by, wherever its line goes."""
    return mutant.file, mutant.function, mutant.before, mutant.after


def equivalents() -> dict[Key, str]:
    """Mutants that no test can notice, with the reason."""
    return {name: one["reason"] for name, one in _listed(EQUIVALENTS)}


def once() -> list[Mutant]:
    """Mutants that survived once, which are judged beside every draw.

    Raises:
        LookupError: One is none any more.
    """
    found = []
    for name, _ in _listed(ONCE):
        fitting = [one for guard in of_file(name[0]) for one in guard if key(one) == name]
        if not fitting:
            raise LookupError(f"there is no such guard any more, or no such change of it: {name}")
        found.append(fitting[0])
    return found


def _listed(path: Path) -> list[tuple[Key, dict[str, str]]]:
    table = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [((one["file"], one["function"], one["before"], one["after"]), one) for one in table]


def kept() -> dict[Key, Kept]:
    """All verdicts that are kept, by mutant."""
    if not RECORD.exists():
        return {}
    lines = [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]
    return {(file, function, before, after): Kept(*rest) for file, function, before, after, *rest in lines}


@functools.cache
def _kept_names() -> frozenset[Key]:
    return frozenset(key(one) for one in (*drawn(SEED, COUNT), *once()))


def keep(verdicts: Iterable[Verdict]) -> None:
    """Put verdicts in the place of those on the same mutants; those on what is not drawn any more are dropped."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    table = kept() | {key(one.mutant): Kept(one.end, one.by, today) for one in verdicts}
    rows = [[*name, *rest] for name, rest in sorted(table.items()) if name in _kept_names()]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    RECORD.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
