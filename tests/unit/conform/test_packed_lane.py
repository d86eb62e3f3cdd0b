"""The packed ring of a test: what it notices by itself, and which rows run on it."""

from __future__ import annotations

import pytest

from uvirtio.conform import battery
from uvirtio.conform.packed_lane import PackedLane
from uvirtio.conform.run import run
from uvirtio.conform.traffic import all_used
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Severity, Verdict
from uvirtio.device import OpenOptions
from uvirtio.scripted import Rng, ScriptedDevice
from uvirtio.scripted.address import build
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.spec import features as f
from uvirtio.spec import ring

from .mutants.packed import batches
from .test_frame import PACE, row_of

PACKED = OpenOptions(ring="packed")


def trial(check, device="scripted:rng,packed"):
    made = []

    def anew():
        made.append(build(device) if isinstance(device, str) else device())
        return made[-1]

    report = run(anew, rows=[row_of(check)], options=PACKED, pace=PACE)
    return report.results[0], made


@pytest.mark.parametrize("where", ["slot", "other", "driver event", "behind"])
def test_what_the_device_may_not_write_fails_any_row(where):
    def writes(t: Trial):
        lane = t.start()
        assert isinstance(lane, PackedLane)
        t.good(lane, 2)
        desc, driver, device = lane.queue.addresses
        at = {"slot": desc + 8, "other": desc + 16 * 9, "driver event": driver, "behind": device + 4}
        t.transport.backend.memory.write(at[where], b"\x66")

    result, _ = trial(writes)
    assert result.verdict is Verdict.FAIL and result.severity is Severity.MEMORY
    assert ("D-PKD-06" if where in ("slot", "other") else "D-DESC-04") in result.seen


def test_a_slot_that_is_the_devices_may_be_written():
    def writes(t: Trial):
        lane = t.start()
        t.transport.backend.auto = False
        t.request(lane)
        lane.publish(t.request(lane)[1])
        t.transport.backend.memory.write(lane.queue.addresses[0] + 16, b"\x66")
        t.transport.backend.auto = True
        t.expect(not t.look(), "a stray", "none")

    result, _ = trial(writes)
    assert result.verdict is Verdict.PASS, result.seen


def test_the_ledger_follows_batches_and_kicks_with_data_and_ids_that_return():
    def data() -> ScriptedDevice:
        device = batches()
        device.offered |= f.mask(f.NOTIFICATION_DATA)
        return device

    def serves(t: Trial):
        lane = t.start(also=f.mask(f.NOTIFICATION_DATA, f.IN_ORDER), size=5)
        for _ in range(4):
            chains = [t.request(lane)[1] for _ in range(3)]
            lane.publish(*chains)
            lane.kick()
            used = all_used(t, lane)
            t.expect([one.posted for one in used] == [chains[-1]], f"{used}", "one used slot for the batch")
        t.expect(not lane.faults, f"{lane.faults}", "none")

    result, made = trial(serves, data)
    assert result.verdict is Verdict.PASS, result.seen
    assert not [what for device in made for what in device.violations]


def test_a_length_without_write_means_nothing_where_nothing_may_be_written():
    def serves(t: Trial):
        [posted] = t.good(t.start())
        t.expect(posted.length == 0, f"len {posted.length}", "0")

    def junk():
        device = build("scripted:input,packed")
        device.lies.used_len = lambda written: 8
        device.lies.slot_flags = lambda flags: flags & ~ring.DESC_F_WRITE
        return device

    result, _ = trial(serves, junk)
    assert result.verdict is Verdict.PASS, result.seen


def test_the_rows_of_a_type_and_of_its_rings_run_on_packed_rings_but_for_those_of_the_split_layout():
    both = "D-STAT-01", "D-RNG-01", "D-FRM-01", "D-USED-02", "D-USED-06", "D-AVS-03", "D-NOTE-01", "D-DESC-04"
    rows = [battery.find(ident) for ident in (*both, "D-AVS-01", "D-RNG-04")]
    report = run("scripted:rng,packed", rows=rows, options=PACKED, pace=PACE)
    assert report.ring == "packed"
    found = {one.row.id: one.verdict for one in report.results}
    assert found == {**dict.fromkeys(both, Verdict.PASS), "D-AVS-01": Verdict.SKIP, "D-RNG-04": Verdict.SKIP}


def test_without_the_feature_requests_go_over_split_rings_and_the_report_says_so():
    rows = [battery.find(ident) for ident in ("D-AVS-01", "D-PKD-10")]
    device = ScriptedDevice(Rng(), address="scripted:rng", features=RING_FEATURES)
    report = run(device, rows=rows, options=PACKED, pace=PACE)
    assert report.ring == "split"
    assert [one.verdict for one in report.results] == [Verdict.PASS, Verdict.SKIP]
    assert "RING_PACKED" in report.results[1].seen
