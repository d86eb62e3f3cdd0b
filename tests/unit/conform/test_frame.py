"""The frame around each test: what it notices by itself, and what it does with a device that is lost."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from uvirtio.conform import Pace, battery, expect, junit, page, quirks
from uvirtio.conform.implementation import Implementation
from uvirtio.conform.row import Area, Level
from uvirtio.conform.run import run
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Kind, Severity, Verdict, Violated, rejected
from uvirtio.errors import Misuse, UsageError
from uvirtio.scripted.address import build

from .mutants import around

PACE = Pace(deadline=0.01, watch=0.0, reset=0.01)


def row_of(check, level=Level.LEGAL, ident="D-TEST-01", needs=frozenset()):
    area = Area("test", 1, "a test", level=level)
    area.row(ident, "2", "MUST", "Do it.", needs=needs)(check)
    return area.rows[0]


def served(t: Trial):
    t.good(t.start())


def verdicts(device, *rows, **how):
    report = run(device, rows=rows, pace=PACE, **how)
    return [result.verdict.value for result in report.results], report


def spoilt(spoil, on="scripted:rng"):
    def make():
        device = build(on)
        spoil(device)
        made.append(device)
        return device

    made = []
    return make, made


def test_a_device_that_wedges_is_made_anew_and_the_test_is_repeated_to_confirm():
    def stuck(t: Trial):
        served(t)
        t.transport.backend.faults.reset_reads = -1

    make, made = spoilt(lambda device: None)
    found, report = verdicts(make, row_of(stuck), row_of(served, Level.ODD, "D-TEST-02"))
    assert found == ["wedged", "pass"]
    assert report.results[0].severity is Severity.DEAD
    assert report.exit_code() == 1
    assert len(made) == 3


def test_a_device_that_wedges_once_is_told_and_not_blamed():
    def stuck(t: Trial):
        if len(made) == 1:
            t.transport.backend.faults.reset_reads = -1
        t.up()

    make, made = spoilt(lambda device: None)
    found, report = verdicts(make, row_of(stuck))
    assert found == ["pass"]
    assert "once wedged" in report.results[0].seen


def test_elsewhere_the_run_ends_and_the_memory_is_kept_for_ever():
    def stuck(t: Trial):
        served(t)
        t.transport.backend.faults.reset_reads = -1

    device = build("scripted:rng")
    device.can_reset = False
    found, report = verdicts(device, row_of(stuck), row_of(served, Level.ODD, "D-TEST-02"))
    assert found == ["wedged", "skip"]
    assert report.stopped == report.results[1].seen == "wedged by D-TEST-01"
    assert device.memory.open_blocks(), "a device that did not confirm its reset may still write there"


def test_no_rows_are_none():
    report = run("scripted:rng", rows=[])
    assert (report.results, report.verdict()) == ([], "pass")


def test_a_device_that_leaves_is_gone():
    def leaves(t: Trial):
        t.up()
        t.transport.backend.vanish()
        t.status()

    make, _ = spoilt(lambda device: None)
    assert verdicts(make, row_of(leaves), row_of(served, Level.ODD))[0] == ["gone", "pass"]


@pytest.mark.parametrize("what", ["guard", "readable", "descriptors", "late"])
def test_what_the_device_may_not_write_fails_any_row(what):
    def writes(t: Trial):
        lane = t.start(interrupts=what == "late")
        buffer, given = t.writable(16), t.readable(b"given")
        t.good(lane)
        memory = t.transport.backend.memory
        at = {"guard": buffer.address + 16, "readable": given.address, "descriptors": lane.queue.addresses[0]}
        if what in at:
            memory.write(at[what], b"\x66")
        else:
            backend = t.transport.backend
            around(backend, "_finish_reset", lambda finish: (finish(), backend.storm()))

    make, _ = spoilt(lambda device: None)
    found, report = verdicts(make, row_of(writes))
    assert found == ["fail"]
    ids = {"guard": "D-DESC-04", "readable": "D-DESC-01", "descriptors": "D-DESC-03", "late": "D-RST-02"}
    assert ids[what] in report.results[0].seen
    assert report.results[0].severity is (Severity.SILENT if what == "late" else Severity.MEMORY)
    assert report.results[0].log


def test_a_device_that_does_not_work_is_an_error_and_the_end():
    make, _ = spoilt(lambda device: setattr(device.faults, "silent", True))
    found, report = verdicts(make, row_of(served), row_of(served, ident="D-TEST-02"))
    assert found == ["error", "skip"]
    assert report.exit_code() == 4
    assert "uvirtio diag" in (report.stopped or "")


def test_what_is_late_is_repeated_with_four_times_the_time():
    waits = []

    def late(t: Trial):
        waits.append(t.pace.deadline)
        if len(waits) == 1:
            t.owe(lambda: False, "nothing came", "something")

    make, _ = spoilt(lambda device: None)
    assert verdicts(make, row_of(late))[0] == ["pass"]
    assert waits == [0.01, 0.04]


def test_a_device_of_somebody_else_gets_no_forbidden_input_without_consent():
    def never(t: Trial):
        raise AssertionError("this must not be tried")

    rows = [row_of(never, Level.REGISTERS), row_of(never, Level.RINGS)]
    rows += [row_of(never, needs=frozenset({need})) for need in ("write", "host", "flr")]
    found, report = verdicts(build("scripted:rng"), *rows)
    assert found == ["skip"] * 5
    words = sorted(result.seen.split()[-1] for result in report.results)
    assert words == ["--allow-write", "--faults", "--faults", "--flr", "--host"]


def test_a_signal_ends_the_run_at_the_next_wait_and_the_device_is_reset():
    class Stop(BaseException):
        pass

    reasons = []

    def check():
        if reasons:
            raise reasons.pop()

    def waits(t: Trial):
        t.start()
        reasons.append(Stop())
        t.until(lambda: False, 10)

    make, made = spoilt(lambda device: None)
    with pytest.raises(Stop):
        run(make, rows=[row_of(waits)], pace=PACE, check=check)
    made[0].assert_left()


# --- quirks, lists of verdicts, files ---------------------------------------------------------------------------

QUIRK = """
[[quirk]]
rows = ["D-TEST-01"]
implementation = "thing"
versions = ">=1.2, <=1.4"
types = ["rng"]
expect = "fail"
seen = "it is wrong"
source = "observed"
driver = "none"
"""


def bad(t: Trial):
    raise Violated("this", "that")


@pytest.mark.parametrize(
    ("check", "version", "verdict"),
    [
        (bad, "1.3", "known"),
        (bad, "1.4.9", "known"),
        (bad, "1.5", "fail"),
        (bad, "1.1", "fail"),
        (served, "1.3", "fixed"),
        (served, "1.5", "pass"),
    ],
)
def test_a_quirk_makes_a_failure_known_in_its_versions(check, version, verdict):
    make, _ = spoilt(lambda device: None)
    found, report = verdicts(
        make, row_of(check), implementation=Implementation("thing", version), quirks=quirks.parse(QUIRK)
    )
    assert found == [verdict]
    assert report.exit_code() == (1 if verdict == "fail" else 0)
    assert report.exit_code(strict=True) == (1 if verdict in ("fail", "fixed") else 0)


def test_a_quirk_hides_nothing_that_is_worse_than_it_foretells():
    def leaves(t: Trial):
        t.up()
        t.transport.backend.vanish()
        t.status()

    make, _ = spoilt(lambda device: None)
    thing = Implementation("thing", "1.3")
    assert verdicts(make, row_of(leaves), implementation=thing, quirks=quirks.parse(QUIRK))[0] == ["gone"]
    foretold = quirks.parse(QUIRK.replace('"fail"', '"gone"'))
    assert verdicts(make, row_of(leaves), implementation=thing, quirks=foretold)[0] == ["known"]


def writes_after_its_violation(t: Trial):
    """The row is violated, and a readable buffer is written as well."""
    lane = t.start()
    given = t.readable(b"given")
    t.good(lane)
    t.transport.backend.memory.write(given.address, b"\x66")
    bad(t)


def owes(t: Trial):
    t.owe(lambda: False, "nothing came", "something")


@pytest.mark.parametrize(("check", "kind"), [(bad, "row"), (owes, "late"), (writes_after_its_violation, "stray")])
def test_a_quirk_hides_no_failure_of_another_kind(check, kind):
    make, _ = spoilt(lambda device: None)
    for known in ("row", "late", "stray"):
        quirk = quirks.parse(f'{QUIRK}kinds = ["{known}"]')
        thing = Implementation("thing", "1.3")
        found, report = verdicts(make, row_of(check), implementation=thing, quirks=quirk)
        assert found == ["known" if known == kind else "fail"]
        assert report.as_document()["tests"][0]["kind"] == kind
    assert not quirks.parse(QUIRK)[0].foretells("fail", Kind.STRAY), "unless a quirk says otherwise"


def test_a_stray_write_in_a_row_that_is_known_to_fail_has_its_severity():
    make, _ = spoilt(lambda device: None)
    how = {"implementation": Implementation("thing", "1.3"), "quirks": quirks.parse(QUIRK)}
    _, report = verdicts(make, row_of(writes_after_its_violation), **how)
    (result,) = report.bad
    assert result.severity is Severity.MEMORY and "D-DESC-01" in result.seen and result.seen.startswith("this (")


@pytest.mark.parametrize(
    "spoil",
    [
        ("source = ", "sauce = "),
        ('"fail"', '"pass"'),
        (">=1.2", "from 1.2"),
        ("driver = ", 'kinds = ["odd"]\ndriver = '),
    ],
)
def test_a_quirk_that_cannot_be_read_is_an_error(spoil):
    with pytest.raises(Misuse):
        quirks.parse(QUIRK.replace(*spoil))


def test_the_quirks_of_the_package_name_rows_that_there_are():
    known = {row.id for row in battery.all_rows()}
    for quirk in quirks.all_quirks():
        assert set(quirk.rows) <= known, quirk


def test_a_list_of_verdicts_is_written_and_compared(tmp_path):
    make, _ = spoilt(lambda device: None)
    _, report = verdicts(make, row_of(served), row_of(bad, ident="D-TEST-02"))
    file = tmp_path / "list"
    assert expect.read(str(file)) is None
    file.write_text(expect.text_of(report))
    assert expect.differences(report, expect.read(str(file)) or {}) == []
    file.write_text(file.read_text().replace("fail", "pass"))
    assert len(expect.differences(report, expect.read(str(file)) or {})) == 1
    file.write_text("D-TEST-01 maybe\n")
    with pytest.raises(UsageError):
        expect.read(str(file))


def test_files_and_documents_have_every_result():
    make, _ = spoilt(lambda device: None)
    rows = [row for row in battery.all_rows() if row.area == "status"]
    report = run(make, rows=rows, pace=PACE)
    root = ElementTree.fromstring(junit.junit_xml(report))
    assert {case.get("name") for case in root.iter("testcase")} == {row.id for row in rows}
    told = json.loads(json.dumps(report.as_document()))
    assert [test["id"] for test in told["tests"]] == [result.row.id for result in report.results]
    html = page.page(report)
    assert all(row.id in html for row in rows)


def test_rejected_is_good():
    make, _ = spoilt(lambda device: None)
    found, report = verdicts(make, row_of(lambda t: rejected("NEEDS_RESET")))
    assert found == ["reject"] and report.verdict() == "pass" and report.results[0].verdict is Verdict.REJECT
