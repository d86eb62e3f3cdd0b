"""The frame around each test: a confirmed reset and one good request before it, and both again after it.

A test of one row says nothing of a device that does not work. So the canary, one good request of the type, is made
before and after; what the device may not write is compared; the device is watched for a moment after its reset. A
device that does not come back is *wedged*: it is made anew where its address can do that, else the run ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from uvirtio import opening
from uvirtio.conform.exchange import Exchange
from uvirtio.conform.result import Result
from uvirtio.conform.row import Level, Row
from uvirtio.conform.trial import Consent, Pace, ResetMissed, Trial
from uvirtio.conform.verdict import BAD, Good, Kind, Severity, Unfit, Verdict, Violated
from uvirtio.device import Device, OpenOptions
from uvirtio.errors import DeviceAbsent, UvirtioError
from uvirtio.interfaces.backend import Backend
from uvirtio.scripted.memory import StrayAccess
from uvirtio.spec.status import Status, describe

LOG_LINES: Final = 1000

Source = str | Backend | Callable[[], Backend]
"""An address; what a back end opened; or a function that opens it anew, each time that it is called."""


class Wedged(Exception):
    """The device does not work any more after a test, or before one."""


class Gone(Exception):
    """The device, or the process that it is part of, is no more; a scripted one that went astray ends there."""

    def __init__(self, seen: str, severity: Severity = Severity.DEAD) -> None:
        """Make it.

        Args:
            seen: How it ended.
            severity: Of that.
        """
        super().__init__(seen)
        self.severity = severity


@dataclass(slots=True)
class _Told:
    """What an act came to, before the frame looked."""

    verdict: Verdict
    seen: str = ""
    expected: str = ""
    severity: Severity | None = None
    kind: Kind | None = None


class Bench:
    """The device under test, which is opened again where a test needs a fresh one; a context manager."""

    def __init__(
        self,
        source: Source,
        options: OpenOptions,
        pace: Pace,
        *,
        renewable: bool,
        consent: Consent,
        request: type[Exchange] | None = None,
        opened: Callable[[Device | None], None] = lambda device: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Note how to open it; ``device`` opens it.

        Args:
            source: What to open.
            options: How.
            pace: How long tests wait.
            renewable: Whether opening it anew makes another device of the same kind.
            consent: What may be done to it.
            request: Its good request, instead of the one of its type.
            opened: Called with each device that is opened, and with None when it is closed.
            check: Called in each wait; raises what ends the run.
        """
        self._source = source
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._told = options.trace
        self._options = options.merged({"trace": self._trace})
        self._opened = opened
        self._check = check
        self._device: Device | None = None
        self._first: int | None = None
        self.pace = pace
        self.renewable = renewable
        self.consent = consent
        self.request = request
        self.healthy = False
        """The canary was the last thing that happened, and it was good."""
        self.used = False
        """A test was made since the device was opened."""
        self.dead: str | None = None
        """Why no test can be made any more."""

    def _trace(self, line: str) -> None:
        self._log.append(line)
        if self._told is not None:
            self._told(line)

    # --- the device -----------------------------------------------------------------------------------------

    @property
    def device(self) -> Device:
        """The device; opened if it is not."""
        if self._device is None:
            source = self._source() if callable(self._source) else self._source
            self._device = opening.open(source, options=self._options)
            self._opened(self._device)
            self._first = self._device.transport.status() if self.renewable else None
            self.healthy = self.used = False
        return self._device

    def renew(self) -> None:
        """Close the device; the next use opens another."""
        self.close()

    def close(self) -> None:
        """Close the device; idempotent."""
        device, self._device = self._device, None
        if device is not None:
            self._opened(None)
            device.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- one row --------------------------------------------------------------------------------------------

    def run(self, row: Row) -> Result:
        """Make the test of a row; whatever the device does, there is a result.

        Args:
            row: It fits the device, and there is consent.
        """
        if row.level is Level.RINGS and self.renewable and self.used:
            self.renew()
        first = self._once(row, self.pace)
        if first.verdict in (Verdict.WEDGED, Verdict.GONE):
            return self._after_loss(row, first)
        return first

    def _after_loss(self, row: Row, first: Result) -> Result:
        """The device is wedged or gone: make it anew, and repeat the test alone to confirm."""
        if not self.renewable:
            self.dead = f"{first.verdict.value} by {row.id}"
            return first
        self.renew()
        again = self._once(row, self.pace)
        if again.verdict in (Verdict.WEDGED, Verdict.GONE):
            self.renew()
            return again
        seen = f"{again.seen} (and once {first.verdict.value}: {first.seen})".strip()
        return replace(again, seen=seen, log=again.log or first.log)

    def _once(self, row: Row, pace: Pace) -> Result:
        self._log.clear()
        clock = self.device.clock
        began = clock.monotonic()
        try:
            told = self._framed(row, pace)
            if told.kind is Kind.LATE:
                # Too slow, or never: repeated alone with more time before it counts.
                self._log.append("# late: again, with four times the time")
                told = self._framed(row, pace.slower())
        except Wedged as wedged:
            told = _Told(Verdict.WEDGED, str(wedged), "a device that works after a reset (2.4)", Severity.DEAD)
        except Gone as gone:
            told = _Told(Verdict.GONE, str(gone), "a device that goes on", gone.severity)
        severity = told.severity or row.severity if told.verdict in BAD else None
        interesting = told.verdict in BAD or told.verdict in (Verdict.REJECT, Verdict.FREE)
        log = tuple(self._log) if interesting else ()
        took = clock.monotonic() - began
        return Result(row, told.verdict, told.seen, told.expected, severity, told.kind, took, log)

    def _framed(self, row: Row, pace: Pace) -> _Told:
        if not self.healthy and row.level is not Level.LOOK:
            wrong = self._broken(pace)
            if wrong is not None and self.used and self.renewable:
                self.renew()
                wrong = self._broken(pace)
            if wrong is not None:
                self.dead = (
                    f"no good request is served before a test ({wrong}): uvirtio diag says which step fails"
                )
                return _Told(Verdict.ERROR, f"the device does not work before the test: {wrong}")
        healthy, self.healthy = self.healthy, False
        self.used = True
        self._log.clear()
        told, touched = self._act(row, pace)
        if not touched:
            self.healthy = healthy
        if row.level is Level.LOOK or not touched:
            return told
        try:
            self._canary(pace)
        except Violated as error:
            raise Wedged(f"after the reset a good request fails: {error.seen}") from error
        except Unfit as error:
            raise Wedged(f"after the reset: {error}") from error
        return told

    def _broken(self, pace: Pace) -> str | None:
        """Make the canary before a test; what is wrong with the device, or None."""
        try:
            self._canary(pace)
        except (Wedged, Violated, Unfit) as error:
            return error.seen if isinstance(error, Violated) else str(error)
        return None

    def _act(self, row: Row, pace: Pace) -> tuple[_Told, bool]:
        """The test itself, between two confirmed resets; and whether more was done than to look."""
        trial = self._trial(pace)
        confirmed = False
        touched = True
        told = _Told(Verdict.ERROR)
        try:
            self._begin(trial)
            told = self._judge(row, trial)
            self._log.extend(trial.words())
            strays = trial.look()
            looked = told.verdict is Verdict.SKIP or row.level is Level.LOOK
            touched = trial.used or not looked
            late = self._leave(trial, watch=touched)
            confirmed = True
            strays += [one for one in (*late, *trial.look()) if one not in strays]
            if strays:
                told = _also(told, strays)
            for fault in trial.ledger():
                trial.note(fault)
        except ResetMissed as error:
            raise Wedged(str(error)) from error
        except StrayAccess as error:
            raise Gone(str(error), Severity.MEMORY) from error
        except DeviceAbsent as error:
            confirmed = True  # an absent device writes nowhere
            raise Gone(str(error)) from error
        finally:
            if not confirmed:
                confirmed = self._last_try(trial)
            trial.release(confirmed=confirmed)
        return told, touched

    def _judge(self, row: Row, trial: Trial) -> _Told:
        try:
            outcome = row.check(trial)
        except Violated as error:
            kind = Kind.LATE if error.late else Kind.ROW
            return _Told(Verdict.FAIL, error.seen, error.expected, error.severity, kind)
        except Unfit as error:
            return _Told(Verdict.SKIP, str(error))
        except (ResetMissed, DeviceAbsent):
            raise
        except UvirtioError as error:
            return _Told(Verdict.ERROR, str(error))
        if isinstance(outcome, Good):
            return _Told(outcome.verdict, outcome.seen)
        return _Told(Verdict.PASS)

    # --- what every use has -----------------------------------------------------------------------------------

    def _trial(self, pace: Pace) -> Trial:
        packed = self._options.ring == "packed"
        device = self.device
        trial = Trial(
            device,
            pace,
            self._log,
            self._check,
            packed=packed,
            consent=self.consent,
            first_status=self._first,
        )
        trial.own_request = self.request
        return trial

    def _begin(self, trial: Trial) -> None:
        trial.reset()
        trial.arrived()

    def _leave(self, trial: Trial, *, watch: bool) -> list[str]:
        """The confirmed reset at the end, and a moment in which nothing may happen; what did.

        Args:
            trial: The test.
            watch: Whether the device was used, so that anything could come.
        """
        trial.arrived()
        trial.confirm_reset()
        trial.arrived()  # those that were under way
        before = trial.contents()
        late = []
        if watch and not trial.quiet(lambda: bool(trial.arrived())):
            late.append("D-RST-02: a notification came after the reset was confirmed")
        if trial.contents() != before:
            late.append("D-RST-03: memory was written after the reset was confirmed")
        trial.after_reset()
        return late

    def _last_try(self, trial: Trial) -> bool:
        """Reset a device in whatever state it is, bus master off; whether that is confirmed."""
        confirmed = False
        with suppress(UvirtioError, ResetMissed):
            trial.confirm_reset()
            confirmed = True
        with suppress(UvirtioError):
            trial.after_reset()
        return confirmed

    def _canary(self, pace: Pace) -> None:
        """One good request, from reset to reset.

        Raises:
            Wedged: A reset was not confirmed.
            Gone: The device is no more.
            Violated: The request was not served.
            Unfit: The device cannot be brought up.
        """
        trial = self._trial(pace)
        confirmed = False
        try:
            self._begin(trial)
            self._serve(trial)
            trial.arrived()
            trial.confirm_reset()
            confirmed = True
            trial.after_reset()
        except ResetMissed as error:
            raise Wedged(str(error)) from error
        except StrayAccess as error:
            raise Gone(str(error), Severity.MEMORY) from error
        except DeviceAbsent as error:
            confirmed = True
            raise Gone(str(error)) from error
        except UvirtioError as error:
            raise Wedged(str(error)) from error
        finally:
            if not confirmed:
                confirmed = self._last_try(trial)
            trial.release(confirmed=confirmed)
        self.healthy = True

    def _serve(self, trial: Trial) -> None:
        if trial.request_type is not None:
            trial.good(trial.start())
        else:
            trial.up()
        status = trial.status()
        if status & (Status.DEVICE_NEEDS_RESET | Status.FAILED) or not status & Status.DRIVER_OK:
            raise Violated(f"status {describe(status)}", "DRIVER_OK")


def _also(told: _Told, strays: list[str]) -> _Told:
    """What an act came to, with what the device wrote or sent though it may not."""
    only_notified = all(one.startswith("D-RST-02") for one in strays)
    severity = Severity.SILENT if only_notified else Severity.MEMORY
    what = "; ".join(strays)
    if told.verdict is Verdict.FAIL:
        return replace(told, seen=f"{told.seen} ({what})", severity=severity, kind=Kind.STRAY)
    expected = "no access but those of 2.7.5.1, and none after a reset"
    return _Told(Verdict.FAIL, what, expected, severity, Kind.STRAY)
