"""From a fault to its cause: every switch of the scripted devices over all types, and pairs of them."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree

import pytest

import uvirtio
from tests.support import tool
from uvirtio.diag import diagnose
from uvirtio.diag.bisect import bisect
from uvirtio.diag.junit import junit_xml
from uvirtio.errors import UsageError
from uvirtio.spec import features as f

TOOL = tool.load("gen-causes")

QUEUE_KEPT = {"queue-untaken", "queue-kept", "queue-silent", "kick-suppressed"}

CAUSES: dict[str, set[str]] = {
    "memory-off": {"memory-decode"},
    "power-state": {"power-state"},
    "refuse-features": {"features-refused"},
    "refuse-with": {"features-refused"},
    "refuse-without": {"features-refused"},
    "features-later": {"offer-changes"},
    "status-or": {"status-stuck"},
    "needs-reset-at": {"needs-reset"},
    "reset-reads": {"reset-hangs"},
    "reset-seconds": {"reset-hangs"},
    "generation-bumps": {"generation-unstable"},
    "num-queues": {"queue-missing"},
    "queue-size": {"queue-missing"},
    "queue-size-stuck": {"queue-size"},
    "address-mask": {"queue-address"},
    "enabled-before": {"queue-enabled"},
    "never-enables": {"queue-enable"},
    "no-vectors": {"vectors"},
    "msix-fails": {"vectors"},
    "silent": {"queue-untaken"},
    "silent-queues": {"queue-untaken"},
    "silent-with": {"queue-untaken"},
    "lose-interrupts": {"interrupts-lost"},
    "used-id": {"used-id"},
    "used-len": {
        "used-len",
        "ring",
        "dev-protocol",
    },  # ring: a chain that is only read; last: mem, 9 bytes
    "used-idx": {"used-idx", "queue-kept"},  # the second where only some of many come back
    "avail-event": {"kick-suppressed"},
    "used-flags": {"ring", "kick-suppressed"},  # the second where EVENT_IDX was not accepted
    "duplicate": {"used-idx"},
    "status": {"io-error", "dev-protocol"},
    "no-status": {"dev-protocol"},
    "response": {"io-error"},
    "residual": {"data-path"},
    "sense-len": {"data-path"},
    "luns": {"data-path"},
    "written": {
        "used-len",
        "data-path",
        "dev-protocol",
    },  # the others: of net, of mem
    "num-buffers": {"data-path"},
    "header-flags": {"data-path"},
    "ack": {"data-path"},
    "answer": {"mem-error"},
    "hold": {"queue-kept"},
    "size": {"data-path"},
    "stuck": {"data-path"},
    "actual": {"data-path"},
    "untouched": {"answer-untouched"},
    "garbled": {"answer-wrong"},
}
"""The causes that each switch may lead to."""


def name_of(fault: str) -> str:
    return fault.partition("=")[0]


@pytest.mark.parametrize(("type_name", "fault"), TOOL.alone())
def test_each_fault_alone_leads_to_its_cause(type_name: str, fault: str) -> None:
    report = TOOL.diagnosed(f"scripted:{type_name},{fault}")
    if name_of(fault) in TOOL.HARMLESS or (type_name, name_of(fault)) in TOOL.UNSEEN:
        assert report.verdict == "pass"
        return
    assert report.cause is not None, report.steps
    assert report.cause.id in CAUSES[name_of(fault)], report.cause


@pytest.mark.parametrize(("type_name", "first", "second"), list(TOOL.pairs()))
def test_of_two_faults_one_is_named(type_name: str, first: str, second: str) -> None:
    report = TOOL.diagnosed(f"scripted:{type_name},{first},{second}")
    assert report.cause is not None, report.steps
    assert report.cause.id in CAUSES[name_of(first)] | CAUSES[name_of(second)], report.cause


@pytest.mark.parametrize("transport", ["pci", "mmio", "legacy", "transitional"])
@pytest.mark.parametrize("type_name", ["rng", "blk", "balloon", "mem", "input", "scsi", "net"])
@pytest.mark.parametrize("more", ["", ",no-intx", ",packed"])
def test_a_good_device_is_not_blamed(type_name: str, transport: str, more: str) -> None:
    if transport in ("legacy", "transitional") and (type_name in ("mem", "input") or more == ",packed"):
        pytest.skip("there is no such device")
    if transport == "mmio" and more == ",no-intx":
        more = ""
    report = diagnose(f"scripted:{type_name},transport={transport}{more}", timeout=1)
    assert (report.verdict, report.cause) == ("pass", None), report.steps


def test_the_page_is_what_diag_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TOOL.page() == TOOL.PAGE.read_text(encoding="utf-8"), "run tools/gen-causes"
    monkeypatch.setattr(sys, "argv", ["gen-causes", "--check"])
    assert TOOL.main() == 0


def test_a_silent_queue_shows_what_splits_its_causes() -> None:
    report = diagnose("scripted:rng,silent", timeout=0.05)
    assert report.cause is not None
    told = "\n".join(report.cause.evidence)
    for word in (
        "avail.idx 1",
        "used.idx 0",
        "1 kicks",
        "avail_event 0",
        "bus master on",
        "8 entries",
        "driver area 0x",
    ):
        assert word in told


def test_a_timeout_says_where_the_buffers_are() -> None:
    with (
        uvirtio.open("scripted:blk,hold", timeout=0.05) as device,
        uvirtio.Blk(device) as disk,
        pytest.raises(uvirtio.DeviceTimeout) as caught,
    ):
        disk.read(0, 1)
    assert "the device took the buffers and has not returned them" in str(caught.value.seen)


def test_json_has_fields_and_no_prose_to_parse() -> None:
    document = json.loads(json.dumps(diagnose("scripted:rng,silent", timeout=0.05).as_dict()))
    steps = {step["name"]: step for step in document["steps"]}
    assert steps["features"]["data"]["accepted"] == f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX)
    assert steps["driver"]["data"]["status"] == 3
    assert steps["queue_enable"]["data"]["queues"][0]["name"] == "requestq"
    assert document["cause"]["id"] == steps["data path"]["cause"]["id"] == "queue-untaken"


# --- which bit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "blame", "names"),
    [
        ("scripted:blk,refuse-with=EVENT_IDX", "accepted", ("EVENT_IDX",)),
        ("scripted:blk,refuse-with=SEG_MAX", "accepted", ("SEG_MAX",)),
        ("scripted:blk,refuse-with=FLUSH", "accepted", ("FLUSH",)),
        ("scripted:rng,refuse-with=INDIRECT_DESC", "accepted", ("INDIRECT_DESC",)),
        ("scripted:blk,refuse-with=BLK_SIZE+DISCARD", "together", ("BLK_SIZE", "DISCARD")),
        ("scripted:blk,refuse-with=SEG_MAX+EVENT_IDX", "together", ("SEG_MAX", "EVENT_IDX")),
        ("scripted:rng,features=0x180000000000004,refuse-without=2", "declined", ("bit 2",)),
        ("scripted:rng,refuse-features", "none", ()),
        ("scripted:rng,silent-with=EVENT_IDX", "accepted", ("EVENT_IDX",)),
        ("scripted:blk,silent-with=INDIRECT_DESC", "accepted", ("INDIRECT_DESC",)),
        ("scripted:rng,silent", "none", ()),
    ],
)
def test_the_guilty_bits_are_found(address: str, blame: str, names: tuple[str, ...]) -> None:
    if "0x18" in address:
        address = address.replace("0x180000000000004", hex(f.mask(f.VERSION_1, 2, 3, 29)))
    report = diagnose(address, timeout=0.05)
    assert report.verdict == "fail"
    found = bisect(address, report, timeout=0.05)
    assert found is not None
    assert (found.blame, found.names) == (blame, names)
    if blame == "accepted":
        optional = len(f.bits(next(step.data["accepted"] for step in report.steps if "accepted" in step.data))) - 1
        assert found.probes <= 2 * optional.bit_length() + 4


def test_every_device_of_a_search_can_be_interrupted() -> None:
    opened: list[uvirtio.Device] = []
    address = "scripted:rng,silent-with=EVENT_IDX"
    found = bisect(address, diagnose(address, timeout=0.05), timeout=0.05, opened=opened.append)
    assert found is not None and len(opened) == found.probes > 1


def test_nothing_is_bisected_where_bits_do_not_decide() -> None:
    report = diagnose("scripted:rng,reset-reads=-1,enabled-before", timeout=0.05)
    assert bisect("scripted:rng,reset-reads=-1,enabled-before", report, timeout=0.05) is None


# --- withheld bits ----------------------------------------------------------------------------------------------


def test_a_withheld_bit_is_not_accepted() -> None:
    with uvirtio.open("scripted:rng,refuse-with=EVENT_IDX", without=["event_idx"]) as device:
        assert len(uvirtio.Rng(device).read(4)) == 4
        assert not device.has(f.EVENT_IDX) and device.has(f.INDIRECT_DESC)
    with uvirtio.open("scripted:rng", without=["VIRTIO_F_EVENT_IDX", "28"]) as device:
        uvirtio.Rng(device).read(4)
        assert device.features == f.mask(f.VERSION_1)


@pytest.mark.parametrize("word", ["NONESUCH", "", "128", "-1", "0x1ff", "VERSION_1"])
def test_what_cannot_be_withheld_is_refused(word: str) -> None:
    with uvirtio.open("scripted:rng", without=[word]) as device, pytest.raises(UsageError):
        uvirtio.Rng(device)


def test_without_is_a_sequence_of_words() -> None:
    with pytest.raises(UsageError):
        uvirtio.open("scripted:rng", without="EVENT_IDX")


# --- for CI systems ---------------------------------------------------------------------------------------------


def test_junit_has_a_case_for_each_step() -> None:
    report = diagnose("scripted:rng,silent", timeout=0.05)
    [suite] = ElementTree.fromstring(junit_xml(report))
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [step.name for step in report.steps]
    [failed] = [case for case in cases if case.find("failure") is not None]
    failure = failed.find("failure")
    assert failure is not None
    assert (failed.get("name"), failure.get("type")) == ("data path", "queue-untaken")
    assert suite.get("failures") == "1"
    assert len([case for case in cases if case.find("skipped") is not None]) == int(suite.get("skipped", "0"))


def test_junit_holds_what_a_hostile_device_says() -> None:
    from uvirtio.scripted import Input, ScriptedDevice

    report = diagnose(ScriptedDevice(Input(name=b"<&\x01\x0b\xff]]>")), timeout=0.05)
    assert ElementTree.fromstring(junit_xml(report)) is not None
