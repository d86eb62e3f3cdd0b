"""What a run came to: the results of one device, counted, and as a document."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from uvirtio.conform.result import Result
from uvirtio.conform.verdict import BAD, Verdict


@dataclass(slots=True)
class Report:
    """The results of one device."""

    address: str
    type: str
    transport: str
    """``Transport.kind``."""
    ring: str
    """``split`` or ``packed``: of the requests whose rows leave the choice."""
    implementation: str = ""
    version: str = ""
    offered: int = 0
    """The feature word."""
    seed: int | None = None
    results: list[Result] = field(default_factory=list)
    stopped: str | None = None
    """Why the run ended before its last row; None: it did not."""

    @property
    def counts(self) -> dict[str, int]:
        """How many results of each verdict there are; those that there are none of are left out."""
        counted = Counter(result.verdict for result in self.results)
        return {verdict.value: counted[verdict] for verdict in Verdict if counted[verdict]}

    @property
    def bad(self) -> list[Result]:
        """The results that are not good."""
        return [result for result in self.results if result.verdict in BAD]

    @property
    def tried(self) -> bool:
        """Whether any test was made."""
        return any(result.verdict not in (Verdict.SKIP, Verdict.ERROR) for result in self.results)

    def verdict(self, *, strict: bool = False) -> str:
        """``pass`` or ``fail``.

        Args:
            strict: A failure that the quirk list has and that did not show is bad too.
        """
        fixed = strict and any(result.verdict is Verdict.FIXED for result in self.results)
        return "fail" if self.bad or fixed else "pass"

    def exit_code(self, *, strict: bool = False) -> int:
        """0: nothing bad; 1: something is; 4: no test could be made.

        Args:
            strict: As for ``verdict``.
        """
        if self.results and not self.tried and any(one.verdict is Verdict.ERROR for one in self.results):
            return 4
        return 1 if self.verdict(strict=strict) == "fail" else 0

    def as_document(self, *, strict: bool = False) -> dict[str, Any]:
        """The members of the command's document.

        Args:
            strict: As for ``verdict``.
        """
        return {
            "device": {
                "address": self.address,
                "type": self.type,
                "transport": self.transport,
                "ring": self.ring,
                "implementation": self.implementation,
                "version": self.version,
                "offered": f"{self.offered:#x}",
            },
            "seed": self.seed,
            "tests": [result.as_dict() for result in self.results],
            "counts": self.counts,
            "stopped": self.stopped,
            "verdict": self.verdict(strict=strict),
        }
