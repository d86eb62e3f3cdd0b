"""2.1 and 2.4: the device status field, and the reset of the device."""

from __future__ import annotations

from uvirtio.conform.lane import Lane, Posted
from uvirtio.conform.row import ANY, MODERN, REGISTERS, Area, Level
from uvirtio.conform.traffic import expect_notified, not_enabled, same_used_index
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity
from uvirtio.spec import features as f
from uvirtio.spec.status import Status, describe

AREA = Area("status", 10, "2.1, 2.4: device status, and the reset of the device", transports=ANY)

_STEPS = (
    Status.ACKNOWLEDGE,
    Status.ACKNOWLEDGE | Status.DRIVER,
    Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK,
    Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK,
)


@AREA.row(
    "D-STAT-01",
    "2.1.2",
    "MUST NOT",
    "Consume no buffer before DRIVER_OK.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    transports=MODERN,
    witness="host",
)
def nothing_before_driver_ok(t: Trial) -> Outcome:
    """A request is published and kicked while the status is still FEATURES_OK."""
    lane = _kicked_early(t)
    t.expect(t.quiet(lambda: bool(lane.take())), "a buffer was used before DRIVER_OK", "it stays available")
    same_used_index(t, lane)
    return None


@AREA.row(
    "D-STAT-02",
    "2.1.2",
    "MUST NOT",
    "Send no used-buffer notification before DRIVER_OK.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    transports=MODERN,
)
def no_notification_before_driver_ok(t: Trial) -> Outcome:
    """The same, and interrupts are counted."""
    lane = _kicked_early(t, interrupts=True)
    t.expect(t.no_interrupt(lane), "a used-buffer notification came before DRIVER_OK", "none")
    return None


def _kicked_early(t: Trial, *, interrupts: bool = False) -> Lane:
    lane = t.prepare(interrupts=interrupts)
    _, posted = t.request(lane)
    lane.publish(posted)
    t.transport.dma_enable(True)
    lane.kick()
    return lane


@AREA.row(
    "D-STAT-05",
    "2.1",
    "DESC",
    "Status reads 0 when the device is first seen.",
    level=Level.LOOK,
)
def zero_at_first(t: Trial) -> Outcome:
    """What the status read when the device was opened, before anything was written."""
    t.need(t.first_status is not None, "what had the device before is not known")
    t.expect(t.first_status == 0, f"status {describe(t.first_status or 0)}", "status 0")
    return None


@AREA.row("D-STAT-06", "2.1", "DESC", "Status gives back the steps that the driver wrote.", witness="host")
def steps_read_back(t: Trial) -> Outcome:
    """Each step of 3.1.1 is read back."""
    for step in _STEPS:
        if t.legacy:
            step &= ~Status.FEATURES_OK
        if step & Status.FEATURES_OK and not step & Status.DRIVER_OK:
            t.transport.set_driver_features(t.plain)
        t.set_status(step)
        seen = t.status()
        t.expect(seen == step, f"{describe(seen)} after {describe(step)} was written", "the same bits")
        t.witnessed("the status", seen, t.host.status())
    return None


@AREA.row(
    "D-STAT-07",
    "2.1",
    "DESC",
    "DEVICE_NEEDS_RESET is the device's own: a driver's write does not set it.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    transports=REGISTERS,
)
def needs_reset_is_the_devices(t: Trial) -> Outcome:
    """0x4f is written to a running device."""
    t.up()
    t.set_status(_STEPS[-1] | Status.DEVICE_NEEDS_RESET)
    seen = t.status()
    t.expect(not seen & Status.DEVICE_NEEDS_RESET, f"status {describe(seen)}", "DEVICE_NEEDS_RESET clear")
    return None


@AREA.row(
    "D-SUSP-14",
    "2.1",
    "DESC",
    "SUSPEND not negotiated: the bit means nothing and is not mirrored.",
    level=Level.REGISTERS,
    transports=REGISTERS,
)
def suspend_without_the_feature(t: Trial) -> Outcome:
    """0x1f is written to a running device that was not told SUSPEND."""
    t.up()
    t.set_status(_STEPS[-1] | Status.SUSPEND)
    seen = t.status()
    t.expect(not seen & Status.SUSPEND, f"status {describe(seen)}", "SUSPEND clear")
    return None


# --- the reset (2.4) --------------------------------------------------------------------------------------------


@AREA.row("D-RST-01", "2.4.1", "MUST", "Present status 0 after a reset.", severity=Severity.DEAD, witness="host")
def zero_after_reset(t: Trial) -> Outcome:
    """0 is written in each state of the bring-up, and after FAILED."""
    for depth in range(len(_STEPS) + 1):
        for step in _STEPS[:depth]:
            if step & Status.FEATURES_OK and not step & Status.DRIVER_OK:
                t.transport.set_driver_features(t.plain)
            t.set_status(step & ~Status.FEATURES_OK if t.legacy else step)
        if depth == len(_STEPS):
            t.set_status(t.status() | Status.FAILED)
        t.reset()
        t.witnessed("the status", 0, t.host.status())
    return None


@AREA.row(
    "D-RST-02",
    "2.4.1",
    "MUST NOT",
    "Send no notification once status read 0.",
    severity=Severity.SILENT,
)
def no_notification_after_reset(t: Trial) -> Outcome:
    """A loaded device is reset, and its vectors are watched."""
    _load(t, interrupts=True)
    t.confirm_reset()
    t.arrived()  # what was sent before
    t.expect(t.quiet(lambda: bool(t.arrived())), "a notification came after the reset", "none")
    return None


@AREA.row(
    "D-RST-03", "2.4.1", "MUST NOT", "Touch no queue once status read 0.", severity=Severity.MEMORY, witness="host"
)
def no_access_after_reset(t: Trial) -> Outcome:
    """A loaded device is reset; rings and buffers are compared."""
    _load(t)
    t.confirm_reset()
    before = t.contents()
    t.expect(t.quiet(lambda: t.status() != 0), "the status did not stay 0", "0 until it is written")
    t.expect(t.contents() == before, "rings or buffers were written after the reset", "no access")
    for index in t.lanes:
        not_enabled(t, index)
    return None


def _load(t: Trial, *, interrupts: bool = False) -> Lane:
    """Half a queue of good requests, one kick, and no wait."""
    lane = t.start(interrupts=interrupts)
    chains: list[Posted] = []
    while len(chains) < 4:
        _, posted = t.request(lane)
        chains.append(posted)
    lane.publish(*chains)
    lane.kick()
    return lane


@AREA.row(
    "D-RST-04",
    "2.4.1",
    "DESC",
    "A reset in the middle of traffic completes within its deadline.",
    severity=Severity.DEAD,
    witness="host",
)
def reset_under_load(t: Trial) -> Outcome:
    """Ten times."""
    for _ in range(10):
        _load(t)
        t.reset()
        t.witnessed("the status", 0, t.host.status())
    return None


@AREA.row(
    "D-RST-05",
    "2.4.1",
    "DESC",
    "A reset ends FAILED, and the device works again.",
    severity=Severity.DEAD,
    witness="host",
)
def works_after_failed(t: Trial) -> Outcome:
    """FAILED, reset, bring-up, one good request."""
    lane = t.start()
    t.set_status(t.status() | Status.FAILED)
    t.reset()
    t.witnessed("the status", 0, t.host.status())
    lane = t.start()
    t.good(lane)
    t.witnessed("the status", t.status(), t.host.status())
    return None


@AREA.row(
    "D-RST-06",
    "2.4",
    "DESC",
    "After a reset the features of before count as none.",
    severity=Severity.SILENT,
    witness="host",
)
def features_end_with_a_reset(t: Trial) -> Outcome:
    """With EVENT_IDX, and after a reset without: each request is notified, whatever used_event says."""
    t.need_feature(f.EVENT_IDX)
    t.good(t.start(also=f.mask(f.EVENT_IDX)))
    t.reset()
    expect_notified(t, t.start(interrupts=True))
    t.witnessed("the accepted word", t.plain, t.host.features(t.type))
    return None
