"""The report of a diagnosis: numbered steps, each with a verdict, and an overall verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from uvirtio.errors import UvirtioError

Verdict = Literal["pass", "fail", "warn", "skip"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the bring-up and its result."""

    name: str
    """Its name, one of ``STEPS``."""
    verdict: Verdict
    spec: str
    """The sections of the standard that describe it."""
    took_s: float
    """Seconds that it took."""
    detail: str
    """What was read or done, or the error."""
    hint: str = ""
    """What to do about a verdict other than ``pass``."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary, for JSON."""
        return asdict(self)


@dataclass(slots=True)
class Report:
    """The steps of a diagnosis, in their order."""

    address: str
    type: str = "unknown"
    """The device type by name; ``unknown`` until the device is open."""
    steps: list[Step] = field(default_factory=list)
    error: UvirtioError | None = None
    """The error that stopped the bring-up; None: none did."""

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
        """The address, type, verdict and steps as a dictionary, for JSON."""
        return {
            "address": self.address,
            "type": self.type,
            "verdict": self.verdict,
            "steps": [step.as_dict() for step in self.steps],
        }
