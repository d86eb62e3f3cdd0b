"""Runs of the benches that are kept for the page on performance."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from benches import report  # noqa: E402
from benches.measure import Section  # noqa: E402

KEPT = sorted((ROOT / "docs/bench").glob("*.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_run_that_was_kept_can_be_shown(path: Path):
    document = json.loads(path.read_text())
    sections = [Section.from_dict(one) for one in document["sections"]]
    assert [one.as_dict() for one in sections] == document["sections"]
    shown = "\n".join(report.text(document["facts"], sections))
    assert all(f"== {one.name}" in shown for one in sections) and any(
        f"bench/{path.name}" in (ROOT / "docs" / page).read_text() for page in ("performance.md", "growth.md")
    )


def test_there_is_one():
    assert KEPT
