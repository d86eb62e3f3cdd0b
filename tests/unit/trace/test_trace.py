"""Records of devices, and their replays: the same values and errors, or the first difference by name."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from uvirtio import scripted
from uvirtio.device import QueueSpec
from uvirtio.diag import diagnose
from uvirtio.errors import BadChain, BadTrace, Diverged, OperationFailed, QueueFull, UvirtioError
from uvirtio.trace import Recorder, Replay, replayed

SHORT, LONG = 0.05, 10.0
"""Seconds for a device that never answers, and for one that does."""


def read_random(device: uvirtio.Device) -> object:
    with uvirtio.Rng(device) as rng:
        return [rng.read(16), rng.read(5)]


def read_disk(device: uvirtio.Device) -> object:
    with uvirtio.Blk(device) as disk:
        return disk.read(0, 1024)


def move_pages(device: uvirtio.Device) -> object:
    with uvirtio.Balloon(device) as balloon:
        balloon.inflate(3)
        held = balloon.actual
        balloon.deflate(3)
        return held, balloon.actual


def read_events(device: uvirtio.Device) -> object:
    with uvirtio.Input(device) as driver:
        told = driver.describe()
        return told.name, sorted(told.events), driver.read(timeout=SHORT)


def ask_memory(device: uvirtio.Device) -> object:
    with uvirtio.Mem(device) as mem:
        config = mem.config()
        mem.unplug_all()
        return mem.state(config.addr, 1), mem.config().plugged_blocks


USES: dict[str, Callable[[uvirtio.Device], object]] = {
    "rng": read_random,
    "blk": read_disk,
    "balloon": move_pages,
    "input": read_events,
    "mem": ask_memory,
}

FAULTS = (
    "silent",
    "refuse-features",
    "used-id=+3",
    "used-len=+1",
    "used-idx=+1",
    "needs-reset-at=driver_ok",
    "needs-reset-at=kick",
    "never-enables",
    "packed,silent",
    "packed,used-id=+3",
    "transport=mmio,silent",
    "transport=mmio-legacy,silent",
    "transport=legacy,used-idx=+1",
)

GOOD = (
    "",
    "packed",
    "access-platform",
    "lose-interrupts",
    "no-vectors=0+1",
    "transport=legacy",
    "transport=transitional",
    "transport=mmio",
    "transport=mmio,packed",
    "transport=mmio-legacy",
)


def outcome(
    where: Any, use: Callable[[uvirtio.Device], object], *, timeout: float = LONG, **options: Any
) -> object:
    """What came of it: a value, or every word of the error."""
    try:
        with uvirtio.open(where, timeout=timeout, **options) as device:
            return use(device)
    except UvirtioError as error:
        return type(error), json.dumps(error.as_dict()), error.about, error.__notes__


def pairs(switches: Sequence[str]) -> list[tuple[str, str]]:
    """Each type with each of these; virtio-mem and virtio-input are younger than the legacy interface."""
    old = ("legacy", "transitional")
    return [(kind, one) for kind in USES for one in switches if kind not in ("mem", "input") or not hit(one, old)]


def hit(switch: str, words: Sequence[str]) -> bool:
    return any(word in switch for word in words)


@pytest.mark.parametrize(("kind", "fault"), pairs(FAULTS))
def test_a_failing_run_is_replayed_to_the_same_error(kind: str, fault: str, tmp_path: Path):
    record = tmp_path / "run.jsonl"
    first = outcome(f"scripted:{kind},{fault}", USES[kind], timeout=SHORT, record=record)
    # No input event comes here, and a length is of no use where the device only reads.
    harmless = "used-len" in fault if kind == "balloon" else kind == "input" and hit(fault, ("used", "silent"))
    assert isinstance(first, tuple) and (harmless or isinstance(first[0], type)), first
    assert outcome(replayed(record), USES[kind], timeout=SHORT) == first


@pytest.mark.parametrize(("kind", "switches"), pairs(GOOD))
def test_a_run_is_replayed_to_the_same_values(kind: str, switches: str, tmp_path: Path):
    record = tmp_path / "run.jsonl"
    first = outcome(f"scripted:{kind},{switches}".rstrip(","), USES[kind], record=record)
    assert not (isinstance(first, tuple) and isinstance(first[0], type)), first
    assert outcome(replayed(record), USES[kind]) == first


@pytest.mark.parametrize("out", [None, 1])
def test_a_burst_is_recorded_chain_by_chain_and_replayed(out: int | None, tmp_path: Path):
    def read(device: uvirtio.Device) -> object:
        with uvirtio.Blk(device) as disk:
            return list(disk.burst(8, depth=8).read(range(0, 160, 8), out=out))

    record = tmp_path / "run.jsonl"
    first = outcome("scripted:blk", read, record=record)
    assert isinstance(first, list) and len(first) == 20
    chains = [line for line in record.read_text().splitlines() if '"chain"' in line]
    assert [sum(f'"way":"{way}"' in line.replace(" ", "") for line in chains) for way in ("out", "back")] == [
        20,
        20,
    ]
    assert outcome(replayed(record), read) == first


@pytest.mark.parametrize("address", ["scripted:rng,lose-interrupts", "scripted:blk,silent", "scripted:mem,busy"])
def test_a_diagnosis_is_replayed_with_every_step(address: str, tmp_path: Path):
    def told(where: Any, **options: Any) -> list[object]:
        report = diagnose(where, timeout=SHORT, **options)
        return [(step.name, step.verdict, step.detail, step.cause, step.data) for step in report.steps]

    record = tmp_path / "run.jsonl"
    first = told(address, record=record)
    assert told(replayed(record)) == first


def test_what_a_ring_refuses_did_not_go_out(tmp_path: Path):
    """``send`` of a chain for which there is no room, or that is none, and ``submit`` of a slot that is out."""
    record = tmp_path / "run.jsonl"
    with uvirtio.open("scripted:rng", record=record) as device:
        device.start(wanted=0, queues=[QueueSpec(0, "requestq", size=2)])
        queue, block = device.queues[0], device.dma.alloc(4096)
        ((address, _),) = block.segments(0, 64)
        for _ in range(2):
            queue.add((), [(address, 64)], None)
        for error, chain in ((QueueFull, [(address, 64)]), (BadChain, [(address, 0)]), (BadChain, [])):
            with pytest.raises(error):
                queue.send((), chain, None)
        block.close()
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["number"] for line in lines if line["op"] == "chain" and line["way"] == "out"] == [1, 2]


def test_what_a_driver_does_is_in_the_record(tmp_path: Path):
    record = tmp_path / "run.jsonl"
    assert isinstance(outcome("scripted:rng", read_random, record=record), list)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert lines[0]["op"] == "uvirtio-trace" and lines[1]["op"] == "open"
    assert lines[1]["device"] == "scripted:rng"
    seen = {line["op"] for line in lines}
    assert {"read", "write", "call", "take", "time", "memory", "chain", "note"} <= seen
    ways = [(line["way"], line["number"]) for line in lines if line["op"] == "chain"]
    assert ways == [("out", 1), ("back", 1), ("out", 2), ("back", 2)]
    back = [line for line in lines if line["op"] == "chain" and line["way"] == "back"]
    assert [line["hex"] for line in back] == [bytes(range(16)).hex(), bytes(range(16, 21)).hex()]
    assert [line["text"] for line in lines if line["op"] == "note"][:2] == [
        "opened: rng, pci-modern; scripted",
        "step reset done",
    ]


def test_a_wait_that_times_out_is_in_the_record(tmp_path: Path):
    record = tmp_path / "run.jsonl"
    outcome("scripted:rng,silent", read_random, timeout=SHORT, record=record)
    notes = [line for line in record.read_text().splitlines() if '"op":"note"' in line]
    assert any("broken: scripted:rng,silent: timed out after 0.05 s" in line for line in notes)


def test_fixed_slots_are_in_the_record_as_chains(tmp_path: Path):
    record = tmp_path / "run.jsonl"
    model = scripted.Input()
    device = scripted.ScriptedDevice(model)
    with uvirtio.open(device, record=record) as opened, uvirtio.Input(opened) as driver:
        model.inject((1, 30, 1), (0, 0, 0))
        assert len(driver.read(timeout=1)) == 2
    chains = [json.loads(line) for line in record.read_text().splitlines() if '"op":"chain"' in line]
    back = [line for line in chains if line["way"] == "back" and line["name"] == "eventq"]
    assert [line["hex"] for line in back] == ["01001e0001000000", "0000000000000000"]
    device.assert_left()


def test_without_a_record_nothing_stands_in_between():
    device = scripted.ScriptedDevice(scripted.Rng())
    with uvirtio.open(device) as opened, uvirtio.Rng(opened):
        assert opened.transport.backend is device
        queue = opened.queues[0]
        assert "reap" not in vars(queue)
        assert isinstance(queue.ring._used, memoryview)  # type: ignore[attr-defined]


# --- the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.jsonl", "run.json"])
@pytest.mark.parametrize("before", [None, 0o644])
def test_only_the_owner_can_read_a_record(name: str, before: int | None, tmp_path: Path):
    path = tmp_path / name
    if before is not None:
        path.write_text("old")
        path.chmod(before)
    outcome("scripted:rng", read_random, record=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.read_text().startswith("old")


def test_a_record_that_cannot_be_written_is_an_error_before_the_device_is_used(tmp_path: Path):
    device = scripted.ScriptedDevice(scripted.Rng())
    with pytest.raises(OperationFailed, match="cannot be written"):
        uvirtio.open(device, record=tmp_path / "none" / "run.jsonl")
    assert device.closed and not device.writes("common")


def test_one_recorder_takes_several_devices(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        first = [outcome(f"scripted:{kind}", USES[kind], record=recorder) for kind in ("rng", "blk")]
    replay = Replay(path)
    assert [outcome("", USES[kind], replay=replay) for kind in ("rng", "blk")] == first
    replay.check_end()


def test_a_trace_for_perfetto_follows_the_trace_event_format(tmp_path: Path):
    path = tmp_path / "run.json"
    outcome("scripted:blk", read_disk, record=path)
    events = json.loads(path.read_text())
    needs = {
        "M": {"args"},
        "X": {"dur", "cat", "args"},
        "i": {"s"},
        "b": {"id", "cat"},
        "e": {"id", "cat"},
        "C": {"args"},
    }
    assert {event["ph"] for event in events} == set(needs)
    flying: set[tuple[str, str]] = set()
    for event in events:
        assert {"ph", "name", "pid", "tid", "ts"} | needs[event["ph"]] <= event.keys(), event
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert isinstance(event["ts"], (int, float)) and event["ts"] >= 0 and event.get("dur", 0) >= 0
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and isinstance(event["args"]["name"], str)
        if event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())
        if event["ph"] == "b":
            flying.add((event["cat"], event["id"]))
        if event["ph"] == "e":
            flying.remove((event["cat"], event["id"]))
    assert not flying
    rows = {(event["pid"], event["tid"]) for event in events if event["ph"] == "M"}
    assert {(event["pid"], event["tid"]) for event in events} <= rows | {(1, 0)}


def test_a_trace_for_perfetto_of_a_killed_process_lacks_its_bracket_alone(tmp_path: Path):
    path = tmp_path / "run.json"
    recorder = Recorder(path)
    outcome("scripted:rng", read_random, record=recorder)
    assert json.loads(path.read_text() + "]")
    recorder.close()
    assert json.loads(path.read_text())


# --- divergence --------------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    assert isinstance(outcome("scripted:rng", read_random, record=path), list)
    return path


def test_another_request_diverges_where_its_chain_is_made(record: Path):
    with (
        pytest.raises(Diverged, match=r"line \d+: the driver does not do what was recorded") as caught,
        uvirtio.open(replayed(record), timeout=SHORT) as device,
        uvirtio.Rng(device) as rng,
    ):
        rng.read(17)
    assert caught.value.seen == "call block 4.segments(0, 17)"
    assert caught.value.expected == "call block 4.segments(0, 16)"


def test_another_driver_diverges_at_the_first_register_that_it_treats_otherwise(record: Path):
    with (
        pytest.raises(Diverged) as caught,
        uvirtio.open(replayed(record), timeout=SHORT, without=["EVENT_IDX"]) as device,
    ):
        read_random(device)
    assert caught.value.seen.startswith("write32 bar4+0x0+0xc <- ")
    assert (
        caught.value.expected.startswith("write32 bar4+0x0+0xc <- ") and caught.value.seen != caught.value.expected
    )


def test_a_driver_that_does_less_diverges(record: Path):
    with (
        pytest.raises(Diverged, match="does not do what was recorded"),
        uvirtio.open(replayed(record), timeout=SHORT) as device,
        uvirtio.Rng(device) as rng,
    ):
        rng.read(16)


def test_a_driver_that_looks_once_more_at_its_ring_diverges(record: Path):
    with (
        pytest.raises(Diverged, match=r"as action|look at the memory"),
        uvirtio.open(replayed(record), timeout=SHORT) as device,
        uvirtio.Rng(device) as rng,
    ):
        device.queues[0].ring.pending()
        rng.read(16)
        rng.read(5)


def test_a_swallowed_divergence_comes_back_when_the_device_is_closed(record: Path):
    device = uvirtio.open(replayed(record), timeout=SHORT)
    with pytest.raises(Diverged):
        device.transport.status()
    with pytest.raises(Diverged):
        device.close()
    device.close()


def test_a_record_of_a_process_that_was_killed_is_replayed_to_its_end(record: Path):
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[: len(lines) // 2]))
    with pytest.raises(Diverged, match="the record ends"), uvirtio.open(replayed(record), timeout=SHORT) as device:
        read_random(device)


# --- damaged files -------------------------------------------------------------------------------------------

HEADER = '{"op":"uvirtio-trace","version":1,"uvirtio":"0","command":[]}\n'
OPEN = '{"n":0,"op":"open","device":"d","bus":"pci","address":"a","description":"","translates":true,'
OPEN += '"has_intx":true,"config":4096,"removal":false}\n'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "empty"),
        ("\n", 1, "no record"),
        ("hello\n", 1, "no record"),
        ("\x00\x01\x02", 1, "no record"),
        ("[]", 1, "to look at"),
        ('[\n{"ph":"M"}', 1, "to look at"),
        ("{}\n", 1, "no record"),
        ('{"traceEvents":[]}', 1, "no record"),
        ("3\n", 1, "no record"),
        (HEADER.replace("1,", "2,", 1), 1, "another format"),
        (HEADER + OPEN[:40], 2, "cut off"),
        (HEADER + "{\n" + OPEN, 2, "not JSON"),
        (HEADER + "[" * 100_000 + "\n" + OPEN, 2, "not JSON"),
        (HEADER + "[]\n", 2, "no object"),
        (HEADER + '{"op":"burn"}\n', 2, "not known"),
        (HEADER + '{"op":[]}\n', 2, "not known"),
        (HEADER + OPEN + '{"op":"read","n":1,"at":"x"}\n', 3, "args of read"),
        (HEADER + OPEN + '{"op":"read","n":"1","at":"x","args":[8],"is":1}\n', 3, "n of read"),
        (HEADER + OPEN + '{"op":"read","n":true,"at":"x","args":[8],"is":1}\n', 3, "n of read"),
        (HEADER + OPEN + '{"op":"read","n":1,"at":"x","args":[8],"raises":3}\n', 3, "raises"),
        (HEADER + OPEN + '{"op":"memory","n":1,"block":0,"offset":0,"hex":"0"}\n', 3, "no bytes"),
        (HEADER + '{"op":"open","n":0,"device":"d"}\n', 2, "bus of open"),
        (HEADER + OPEN.replace('"pci"', '"isa"'), 2, "what was opened"),
        (HEADER + OPEN.replace('"config":4096,', ""), 2, "what was opened"),
        (HEADER + OPEN.replace('"pci"', '"pci","guest":3'), 2, "what was opened"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_with_its_line(text: str, line: int, says: str, tmp_path: Path):
    path = tmp_path / "odd.jsonl"
    path.write_text(text)
    with pytest.raises(BadTrace, match=f"line {line}: .*{says}") as caught:
        replayed(path)
    assert caught.value.seen is not None and caught.value.expected and caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BadTrace, match="cannot be read"):
        replayed(tmp_path / "none")


@pytest.mark.parametrize("size", [0, -1, 1 << 60, "4096", None, True])
def test_a_block_of_an_impossible_size_is_not_believed(size: object, record: Path):
    changed = []
    for text in record.read_text().splitlines():
        line = json.loads(text)
        if line["op"] == "call" and line["at"].endswith(".alloc"):
            line["is"][0] = size
        changed.append(json.dumps(line))
    record.write_text("\n".join(changed) + "\n")
    with pytest.raises(UvirtioError), uvirtio.open(replayed(record), timeout=SHORT) as device:
        read_random(device)


@pytest.mark.parametrize("member", ["block", "offset"])
def test_memory_that_no_block_has_is_named_with_its_line(member: str, record: Path):
    lines = record.read_text().splitlines()
    place = next(number for number, text in enumerate(lines) if '"op":"memory"' in text)
    line = json.loads(lines[place])
    line[member] = 1 << 40
    lines[place] = json.dumps(line)
    record.write_text("\n".join(lines) + "\n")
    with (
        pytest.raises(BadTrace, match=f"line {place + 1}: there is no such memory"),
        uvirtio.open(replayed(record), timeout=SHORT) as device,
    ):
        read_random(device)


def test_any_value_of_any_line_may_be_wrong(record: Path):
    """Each line in turn gets another result: an error of ours, or the same as before, and no other exception."""
    lines = record.read_text().splitlines()
    for place, text in enumerate(lines):
        line = json.loads(text)
        if "is" not in line:
            continue
        for value in (None, "x", [], [[]], {}, 1 << 70, -1, [None, None, None], ["a", "b"]):
            line["is"] = value
            record.write_text("\n".join([*lines[:place], json.dumps(line), *lines[place + 1 :]]) + "\n")
            try:
                outcome(replayed(record), read_random, timeout=SHORT)
            except BadTrace:
                pass


def test_a_hole_in_a_record_is_a_divergence(record: Path):
    lines = record.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"op":"note"' not in line and '"op":"chain"' not in line]
    for place in range(2, len(kept), 7):
        record.write_text("".join([*kept[:place], *kept[place + 1 :]]))
        with pytest.raises(UvirtioError), uvirtio.open(replayed(record), timeout=SHORT) as device:
            read_random(device)


def test_bytes_that_come_again_where_the_driver_cleared_them_are_in_the_record(tmp_path: Path):
    def use(where: Any, **options: Any) -> list[bytes]:
        with uvirtio.open(where, **options) as device, uvirtio.Rng(device, health=False) as rng:
            return [rng.read(200) for _ in range(3)]

    class Same(scripted.Rng):
        def handle(self, queue: int, chain: scripted.Chain) -> int:
            del queue
            return chain.fill(bytes(range(1, 201)))

    record = tmp_path / "run.jsonl"
    first = use(scripted.ScriptedDevice(Same()), record=record)
    assert first == [bytes(range(1, 201))] * 3
    assert use(replayed(record)) == first
