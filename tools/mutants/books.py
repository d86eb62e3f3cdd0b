"""What is kept of mutants: how each was noticed, and which no test can notice, with the reason."""

from __future__ import annotations

import datetime
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mutants.guards import Mutant
from mutants.runner import Verdict

SEED = 20261129
"""The seed whose verdicts are kept."""
RECORD = Path(__file__).with_name("record.jsonl")
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
    table = tomllib.loads(EQUIVALENTS.read_text(encoding="utf-8")).get("mutant", [])
    return {(one["file"], one["function"], one["before"], one["after"]): one["reason"] for one in table}


def kept() -> dict[Key, Kept]:
    """All verdicts that are kept, by mutant."""
    if not RECORD.exists():
        return {}
    lines = [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]
    return {(file, function, before, after): Kept(*rest) for file, function, before, after, *rest in lines}


def keep(verdicts: Iterable[Verdict], drawn: Iterable[Mutant]) -> None:
    """Put verdicts in the place of those on the same mutants, and drop those on what is not drawn any more.

    Args:
        verdicts: The new ones.
        drawn: All mutants of the draw.
    """
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    table = kept() | {key(one.mutant): Kept(one.end, one.by, today) for one in verdicts}
    names = {key(one) for one in drawn}
    rows = [[*name, *rest] for name, rest in sorted(table.items()) if name in names]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    RECORD.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
