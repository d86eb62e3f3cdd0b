"""The report of a diagnosis: numbered steps, each with a verdict, and an overall verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from uvirtio.errors import UvirtioError

Verdict = Literal["pass", "fail", "warn", "skip"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the bring-up: its section of the standard, what was read, and what to do about it."""

    name: str
    verdict: Verdict
    spec: str
    took_s: float
    detail: str
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Report:
    """The steps in their order. ``error`` is what stopped the bring-up, or None."""

    address: str
    type: str = "unknown"
    steps: list[Step] = field(default_factory=list)
    error: UvirtioError | None = None

    @property
    def verdict(self) -> Literal["pass", "warn", "fail"]:
        """The worst verdict of the steps; a skipped step counts as passed."""
        verdicts = {step.verdict for step in self.steps}
        if "fail" in verdicts:
            return "fail"
        return "warn" if "warn" in verdicts else "pass"

    @property
    def reached_device(self) -> bool:
        """Whether the device was opened at all; if not, ``error`` says why and decides the exit code."""
        return bool(self.steps) and self.steps[0].verdict != "fail"

    def as_dict(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "type": self.type,
            "verdict": self.verdict,
            "steps": [step.as_dict() for step in self.steps],
        }
