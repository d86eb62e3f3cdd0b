"""What came of the data path test of one device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PathResult:
    """The result of one test."""

    detail: str
    """What was done and read."""
    suspicious: str = ""
    """An anomaly of a data path that works."""
    cause: str = "data-path"
    """The id of the cause of the anomaly."""
    skipped: bool = False
    """Whether nothing could be tested."""
