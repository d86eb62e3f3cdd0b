"""Verdicts and severities, and how a test tells its own."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Verdict(Enum):
    """What a test came to."""

    PASS = "pass"
    """The device did what the row says."""
    REJECT = "reject"
    """Invalid input was refused, by an error, DEVICE_NEEDS_RESET or silence; after a reset the device works."""
    FREE = "free"
    """The standard leaves it open; what the device did is told."""
    FAIL = "fail"
    """The row is violated."""
    WEDGED = "wedged"
    """The device does not reset, or does not work after a reset."""
    GONE = "gone"
    """The device, or the process that it is part of, ended."""
    KNOWN = "known"
    """A failure that the quirk list has for this implementation and version."""
    FIXED = "fixed"
    """The quirk list has a failure here, and there was none."""
    SKIP = "skip"
    """Not for this device, or not without consent."""
    ERROR = "error"
    """The test could not be made, for a reason that is not the device's."""


class Severity(Enum):
    """What a violation costs a driver, the worst first."""

    MEMORY = "memory"
    """The device wrote memory that it was not given, or after a confirmed reset."""
    DEAD = "dead"
    """The device cannot be reset, or is gone."""
    SILENT = "silent"
    """A driver cannot notice."""
    VISIBLE = "visible"
    """A careful driver notices."""
    ADVICE = "advice"
    """The standard recommends otherwise."""


class Kind(Enum):
    """In what way a row failed; a failure that is known hides no failure of another kind."""

    ROW = "row"
    """The device did something else than the row says."""
    LATE = "late"
    """What it owed did not come, with four times the time either."""
    STRAY = "stray"
    """It wrote what it was not given, or something came after its reset, whatever the row is about."""


BAD: Final = frozenset({Verdict.FAIL, Verdict.WEDGED, Verdict.GONE, Verdict.ERROR})
FAILURES: Final = frozenset({Verdict.FAIL, Verdict.WEDGED, Verdict.GONE})
"""What a quirk can foretell."""


@dataclass(frozen=True, slots=True)
class Good:
    """The device is right; what a test returns where there is something to tell."""

    seen: str
    verdict: Verdict = Verdict.PASS


def rejected(seen: str) -> Good:
    """The device refused invalid input.

    Args:
        seen: How.
    """
    return Good(seen, Verdict.REJECT)


def free(seen: str) -> Good:
    """The standard leaves it open.

    Args:
        seen: What the device did.
    """
    return Good(seen, Verdict.FREE)


Outcome = Good | None
"""What a test returns: None, or something to tell. It raises ``Violated`` or ``Unfit`` otherwise."""


class Violated(Exception):
    """The device is wrong; raised by a test."""

    def __init__(self, seen: str, expected: str, *, late: bool = False, severity: Severity | None = None) -> None:
        """Make it.

        Args:
            seen: What the device did.
            expected: What the row asks for.
            late: It only shows that something did not happen in time: the test is repeated with more time.
            severity: None: the row's.
        """
        super().__init__(f"{seen}; expected: {expected}")
        self.seen = seen
        self.expected = expected
        self.late = late
        self.severity = severity


class Unfit(Exception):
    """This device, as it is, cannot have this test; raised by a test, with the reason."""
