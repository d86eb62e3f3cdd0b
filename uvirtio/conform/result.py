"""What one row came to on one device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from uvirtio.conform.row import Row
from uvirtio.conform.verdict import Kind, Severity, Verdict


@dataclass(frozen=True, slots=True)
class Result:
    """What one row came to on one device."""

    row: Row
    verdict: Verdict
    seen: str = ""
    """What the device did, or why there was no test."""
    expected: str = ""
    severity: Severity | None = None
    """Of a bad verdict, and of a known one."""
    kind: Kind | None = None
    """Of a row that failed, known or not."""
    took_s: float = 0.0
    log: tuple[str, ...] = field(default=(), repr=False)
    """Each register access and kick, what the test noted, and the rings; of verdicts that are not plainly good."""

    def as_dict(self) -> dict[str, Any]:
        """The result as a member of the document."""
        row = self.row
        return {
            "id": row.id,
            "area": row.area,
            "section": row.section,
            "keyword": row.keyword,
            "level": f"L{row.level.value}",
            "title": row.title,
            "verdict": self.verdict.value,
            "severity": None if self.severity is None else self.severity.value,
            "kind": None if self.kind is None else self.kind.value,
            "seen": self.seen,
            "expected": self.expected,
            "took_s": round(self.took_s, 6),
            "log": list(self.log),
        }
