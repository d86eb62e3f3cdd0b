"""3.4: the suspend of a device, and its resume."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.areas.split import only, split
from uvirtio.conform.exchange import SERVED
from uvirtio.conform.lane import Lane, SplitLane
from uvirtio.conform.row import MODERN, Area, Level
from uvirtio.conform.traffic import batch, fitting
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, free, rejected
from uvirtio.spec import features as f
from uvirtio.spec.device_config import FIELDS
from uvirtio.spec.status import Status, describe

AREA = Area("suspend", 28, "3.4: the suspend of a device", transports=MODERN, types=SERVED)

_SUSPEND: Final = f.mask(f.SUSPEND)
_STEPS: Final = (Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.DRIVER)
_READY: Final = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
_RUNNING: Final = _READY | Status.DRIVER_OK
_SUSPENDED: Final = _READY | Status.SUSPEND

_WRITABLE: Final = {"balloon": "actual", "input": "select", "blk": "writeback"}
"""A field that a driver may write, by type."""


def _start(t: Trial, *, interrupts: bool = False) -> SplitLane:
    """Bring the device up with SUSPEND accepted."""
    t.need_feature(f.SUSPEND)
    return split(t, also=_SUSPEND, interrupts=interrupts)


def _ask(t: Trial) -> None:
    t.set_status(t.status() | Status.SUSPEND)


def _gave_up(t: Trial) -> bool:
    return bool(t.status() & Status.DEVICE_NEEDS_RESET)


def _is_suspended(t: Trial) -> bool:
    """What 3.4.1 has a driver look at."""
    return t.status() & (Status.SUSPEND | Status.DRIVER_OK) == Status.SUSPEND


def _runs(t: Trial) -> bool:
    return t.status() & (Status.SUSPEND | Status.DRIVER_OK) == Status.DRIVER_OK


def _await_suspended(t: Trial) -> None:
    """Wait until it is suspended; a device that cannot be is no matter of this row."""
    t.until(lambda: _is_suspended(t) or _gave_up(t), t.pace.deadline)
    t.need(_is_suspended(t), f"it is not suspended, which D-SUSP-08 is about: status {describe(t.status())}")


def _suspend(t: Trial) -> None:
    _ask(t)
    _await_suspended(t)


def _resume(t: Trial) -> None:
    """Set DRIVER_OK, and wait until the device works; one that does not is no matter of this row."""
    t.set_status(t.status() | Status.DRIVER_OK)
    t.until(lambda: _runs(t) or _gave_up(t), t.pace.deadline)
    t.need(_runs(t), f"it does not resume, which D-SUSP-09 is about: status {describe(t.status())}")


# --- the status (3.4.2) -----------------------------------------------------------------------------------------


@AREA.row(
    "D-SUSP-01",
    "3.4.2",
    "MUST",
    "Ignore SUSPEND before the initialization is complete.",
    level=Level.REGISTERS,
)
def ignored_before_driver_ok(t: Trial) -> Outcome:
    """It is written at ACKNOWLEDGE, DRIVER and FEATURES_OK; then the device is brought up, and serves."""
    t.need_feature(f.SUSPEND)
    only(t)

    def ignores(step: int) -> None:
        t.set_status(step | Status.SUSPEND)
        seen = t.status()
        t.expect(seen == step, f"status {describe(seen)} after SUSPEND was written", describe(step))

    for step in _STEPS:
        t.set_status(step)
        ignores(step)
    t.reset()
    lane = t.prepare(also=_SUSPEND)
    ignores(_READY)
    t.go()
    t.good(lane)
    return None


@AREA.row(
    "D-SUSP-08", "3.4.2", "MUST", "On SUSPEND either suspend, or set DEVICE_NEEDS_RESET.", severity=Severity.DEAD
)
def suspends(t: Trial) -> Outcome:
    """A device that has served a request is told to; the status is polled."""
    t.good(_start(t))
    _ask(t)
    t.owe(
        lambda: _is_suspended(t) or _gave_up(t),
        f"status {describe(t.status())} after SUSPEND was written",
        "SUSPEND without DRIVER_OK, or DEVICE_NEEDS_RESET,",
    )
    return rejected("DEVICE_NEEDS_RESET: it does not suspend") if _gave_up(t) else None


@AREA.row(
    "D-SUSP-09", "3.4.2", "MUST", "On DRIVER_OK either resume, or set DEVICE_NEEDS_RESET.", severity=Severity.DEAD
)
def resumes(t: Trial) -> Outcome:
    """A suspended device is told to; the status is polled, and a request made."""
    lane = _start(t)
    t.good(lane)
    _suspend(t)
    t.set_status(t.status() | Status.DRIVER_OK)
    t.owe(
        lambda: _runs(t) or _gave_up(t),
        f"status {describe(t.status())} after DRIVER_OK was written",
        "DRIVER_OK without SUSPEND, or DEVICE_NEEDS_RESET,",
    )
    if _gave_up(t):
        return rejected("DEVICE_NEEDS_RESET: it does not resume")
    t.good(lane)
    return None


@AREA.row("D-SUSP-13", "3.4.2", "DESC", "Suspended SUSPEND is 1 and DRIVER_OK is 0, resumed the reverse.")
def shows_its_state(t: Trial) -> Outcome:
    """The whole status after each of two rounds."""
    _start(t)
    for _ in range(2):
        _suspend(t)
        seen = t.status()
        t.expect(seen == _SUSPENDED, f"suspended: status {describe(seen)}", describe(_SUSPENDED))
        _resume(t)
        seen = t.status()
        t.expect(seen == _RUNNING, f"resumed: status {describe(seen)}", describe(_RUNNING))
    return None


# --- queues (3.4.2) ---------------------------------------------------------------------------------------------


def _kicked_suspended(t: Trial, *, interrupts: bool = False) -> Lane:
    """A suspended device, to which a request is published and kicked."""
    lane = _start(t, interrupts=interrupts)
    t.good(lane)
    _suspend(t)
    t.arrived()  # of what was used before
    _, posted = t.request(lane)
    lane.publish(posted)
    return lane


@AREA.row(
    "D-SUSP-03",
    "3.4.2",
    "MUST NOT",
    "Suspended: send no notification for a queue.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
)
def no_notification_while_suspended(t: Trial) -> Outcome:
    """A request is published and kicked; interrupts are counted."""
    lane = _kicked_suspended(t, interrupts=True)
    lane.kick()
    t.expect(t.no_interrupt(lane), "a used-buffer notification came while suspended", "none")
    return None


@AREA.row(
    "D-SUSP-04",
    "3.4.2",
    "MUST NOT",
    "Suspended: access no virtqueue.",
    level=Level.REGISTERS,
    severity=Severity.MEMORY,
)
def no_access_while_suspended(t: Trial) -> Outcome:
    """A request is published and kicked; rings and buffers are compared, and it is served after the resume."""
    lane = _kicked_suspended(t)
    before = t.contents()
    lane.kick()
    t.quiet(lambda: t.contents() != before)
    t.expect(t.contents() == before, "rings or buffers were written while suspended", "no access")
    _resume(t)
    t.await_used(lane, 1)
    return None


@AREA.row(
    "D-SUSP-10",
    "3.4.2",
    "SHOULD",
    "Before SUSPEND shows: take no further buffers.",
    level=Level.REGISTERS,
)
def takes_no_further_buffers(t: Trial) -> Outcome:
    """A request is published and kicked between the write of SUSPEND and its first reading."""
    lane = _start(t)
    t.good(lane)
    used = lane.used_idx
    _, posted = t.request(lane)
    _ask(t)
    lane.publish(posted)
    lane.kick()
    _await_suspended(t)
    t.expect(lane.used_idx == used, "a request that came after SUSPEND was used", "it waits for the resume")
    _resume(t)
    t.await_used(lane, 1)
    return None


@AREA.row("D-SUSP-11", "3.4.2", "SHOULD", "Before SUSPEND shows: finish the buffers in hand.")
def finishes_what_it_has(t: Trial) -> Outcome:
    """A batch is kicked and SUSPEND written at once; none of it may be lost."""
    lane = _start(t)
    chains = batch(t, lane, fitting(t, lane))
    _suspend(t)
    done = len(lane.take())
    _resume(t)
    t.await_used(lane, len(chains) - done)
    if done < len(chains):
        # Those may have been taken late, or not have been in hand: a driver cannot tell.
        return free(f"{done} of {len(chains)} requests were used before SUSPEND, the others after the resume")
    return None


@AREA.row(
    "D-SUSP-12",
    "3.4.2",
    "SHOULD",
    "Before SUSPEND shows: notify what was used.",
    severity=Severity.SILENT,
)
def notifies_what_was_used(t: Trial) -> Outcome:
    """A batch is kicked and SUSPEND written at once; if some of it was used, an interrupt came."""
    lane = _start(t, interrupts=True)
    batch(t, lane, fitting(t, lane))
    _suspend(t)
    if not lane.take():
        return free("nothing was used before SUSPEND")
    t.await_interrupt(lane)
    return None


# --- the configuration (3.4.2) ----------------------------------------------------------------------------------


@AREA.row(
    "D-SUSP-02",
    "3.4.2",
    "SHOULD",
    "Suspended: ignore writes to the configuration.",
    level=Level.REGISTERS,
    types=frozenset(_WRITABLE),
)
def ignores_writes_while_suspended(t: Trial) -> Outcome:
    """A field that a driver may write is written while suspended, and read after the resume."""
    name = _WRITABLE[t.type]
    field, bit = next((field, bit) for field, bit in FIELDS[t.type] if field.name == name)
    also = _SUSPEND
    if bit is not None:
        t.need_feature(bit)
        also |= f.mask(bit)
    t.need_feature(f.SUSPEND)
    only(t)
    t.start(also=also)
    before = t.read_field(field)
    _suspend(t)
    t.transport.write_config(field.offset, field.width, before ^ 1)
    _resume(t)
    seen = t.read_field(field)
    t.expect(seen == before, f"{name} {seen:#x} was written while suspended, and stays", f"{before:#x}, as before")
    return None


def _config(t: Trial) -> tuple[int, ...]:
    return tuple(t.read_field(field) for field, bit in FIELDS[t.type] if bit is None or f.has(t.offered, bit))


def _changed_suspended(t: Trial) -> tuple[int, ...]:
    """Have the host change the configuration of a suspended device; what it was."""
    t.need_feature(f.SUSPEND)
    change = t.lever()
    change(0)
    _start(t, interrupts=True)
    before = _config(t)
    _suspend(t)
    t.arrived()  # of what changed before
    change(1)
    return before


@AREA.row(
    "D-SUSP-05",
    "3.4.2",
    "MUST NOT",
    "Suspended: modify no field of the configuration.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def no_change_while_suspended(t: Trial) -> Outcome:
    """The host changes the configuration of a suspended device; it shows after the resume."""
    before = _changed_suspended(t)
    t.expect(t.quiet(lambda: _config(t) != before), "the configuration changed while suspended", "no change")
    _resume(t)
    t.owe(
        lambda: _config(t) != before, "the host's change does not show after the resume", "another configuration"
    )
    return None


@AREA.row(
    "D-SUSP-06",
    "3.4.2",
    "MUST NOT",
    "Suspended: send no notification of a change of the configuration.",
    needs=frozenset({"host"}),
)
def no_config_notification_while_suspended(t: Trial) -> Outcome:
    """The host changes the configuration of a suspended device; interrupts are counted."""
    _changed_suspended(t)
    t.expect(
        t.quiet(lambda: t.arrived().config), "a configuration-change notification came while suspended", "none"
    )
    return None


@AREA.row(
    "D-SUSP-07",
    "3.4.2",
    "MUST",
    "Send the notification that was held back when it resumes.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def notifies_after_the_resume(t: Trial) -> Outcome:
    """The host changes the configuration of a suspended device, which is then resumed."""
    _changed_suspended(t)
    _resume(t)
    t.owe(lambda: t.arrived().config, "no configuration-change notification after the resume", "one")
    return None
