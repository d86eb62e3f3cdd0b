"""The report of a diagnosis: numbered steps, each with a verdict, and an overall verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from uvirtio.errors import UvirtioError

if TYPE_CHECKING:
    from uvirtio.diag.beside import View
    from uvirtio.diag.causes import Cause

VIEW = "device's view"
"""The step that is done only where there is a QEMU to ask."""

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
    cause: Cause | None = None
    """Why, where that is known."""
    data: dict[str, Any] = field(default_factory=dict)
    """What was read, for programs: features, status, queues, by step."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary, for JSON."""
        members = {name: getattr(self, name) for name in self.__slots__}
        members["cause"] = None if self.cause is None else self.cause.as_dict()
        return members


@dataclass(slots=True)
class Report:
    """The steps of a diagnosis, in their order."""

    address: str
    type: str = "unknown"
    """The device type by name; ``unknown`` until the device is open."""
    steps: list[Step] = field(default_factory=list)
    error: UvirtioError | None = None
    """The error that stopped the bring-up; None: none did."""
    view: View | None = None
    """What the QEMU that has the device says of it; None: it was not asked."""

    @property
    def verdict(self) -> Literal["pass", "warn", "fail"]:
        """The worst verdict of the steps; a skipped step counts as passed."""
        verdicts = {step.verdict for step in self.steps}
        if "fail" in verdicts:
            return "fail"
        return "warn" if "warn" in verdicts else "pass"

    @property
    def cause(self) -> Cause | None:
        """The cause of the first step that failed; where none did, of the first that is odd.

        What QEMU itself says of the device comes before what the driver makes of its silence.
        """
        for verdict in ("fail", "warn"):
            for step in sorted(self.steps, key=lambda one: one.name != VIEW):
                if step.verdict == verdict and step.cause is not None:
                    return step.cause
        return None

    @property
    def untried(self) -> str:
        """Why buffers were not exchanged with the device, or not on all queues; empty: they were."""
        paths = [step for step in self.steps if step.name == "data path"]
        return paths[0].detail if paths and paths[0].verdict == "skip" else ""

    @property
    def reached_device(self) -> bool:
        """Whether the device was opened at all; if not, ``error`` says why and decides the exit code."""
        return bool(self.steps) and self.steps[0].verdict != "fail"

    def as_document(self, bisection: dict[str, Any] | None = None) -> dict[str, Any]:
        """What ``uvirtio diag --json`` prints: ``as_dict``, with the error, and what bisection found.

        Args:
            bisection: What it found; None: it was not tried.
        """
        made = self.as_dict()
        if self.error is not None:
            made["error"] = self.error.as_dict()
        if bisection is not None:
            made["bisection"] = bisection
        return made

    def as_dict(self) -> dict[str, Any]:
        """The address, type, verdict and steps as a dictionary, for JSON."""
        return {
            "address": self.address,
            "type": self.type,
            "verdict": self.verdict,
            "data_path_tried": not self.untried,
            "cause": None if self.cause is None else self.cause.as_dict(),
            "steps": [step.as_dict() for step in self.steps],
        } | ({} if self.view is None else {"view": self.view.as_dict()})
