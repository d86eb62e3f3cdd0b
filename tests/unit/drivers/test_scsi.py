"""The SCSI host driver (5.6) on a scripted device: what it sends, believes, and refuses to send."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from uvirtio import opening
from uvirtio.drivers.scsi import EventType, Lun, ResetReason, Scsi, Task
from uvirtio.drivers.scsi import commands as c
from uvirtio.drivers.scsi import events as event_module
from uvirtio.errors import (
    BadSize,
    BeyondEnd,
    ConfigError,
    DeviceBroken,
    DeviceTimeout,
    ProtocolError,
    RingCorruption,
    ScsiAnswer,
    ScsiCheck,
    ScsiStatus,
    ScsiTransport,
    UsageError,
    UvirtioError,
    WriteRefused,
)
from uvirtio.scripted import scsi as scsi_model
from uvirtio.scripted.cases import hostile_cases
from uvirtio.scripted.legacy import ScriptedLegacy
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.scsi import ScsiDisk, ScsiHost
from uvirtio.spec import features as f
from uvirtio.spec.scsi import Opcode, Response, Status

HD = Lun(0, 0)
PACKED = f.mask(f.VERSION_1, f.RING_PACKED, f.INDIRECT_DESC, f.EVENT_IDX)


@contextmanager
def driven(model: ScsiHost, *, timeout: float = 30.0, **more: Any) -> Iterator[tuple[ScriptedDevice, Scsi]]:
    """The driver on the model; at the end everything was left in order, and no rule was broken."""
    options = {key: more.pop(key) for key in ("allow_write", "depth", "request_size", "queues") if key in more}
    scripted = ScriptedDevice(model, **more)
    with opening.identify("0000:00:04.0", scripted, timeout=timeout) as device, Scsi(device, **options) as scsi:
        yield scripted, scsi
    scripted.assert_left()


def opcodes(model: ScsiHost) -> list[int]:
    return [seen.cdb[0] for seen in model.requests]


# --- what is sent -------------------------------------------------------------------------------------------


@pytest.mark.spec("SCSI-01", "SCSI-06", "SCSI-L03")
@pytest.mark.parametrize("extra", [{}, {"features": f.mask(f.VERSION_1)}, {"features": PACKED}])
@pytest.mark.parametrize("blocks", [1, 3, 64, 65, 700])
def test_what_is_written_is_read(blocks: int, extra: dict[str, int]):
    model = ScsiHost()
    data = os.urandom(blocks * 512)
    with driven(model, allow_write=True, **extra) as (_, scsi):
        scsi.write(HD, 5, data)
        assert model.disks[0, 0].content[5 * 512 :][: len(data)] == data
        assert scsi.read(HD, 5, blocks) == data
        assert scsi.read(HD, 4, 1) == bytes(512)
        assert not scsi.findings
        assert scsi.counts["CHECK_CONDITION"] == 1  # after the reset of the device, before the first write
    assert opcodes(model)[:2] == [Opcode.SERVICE_ACTION_IN_16] * 2
    assert len({seen.tag for seen in model.requests}) == len(model.requests)


@pytest.mark.spec("SCSI-L01", "SCSI-L02", "SCSI-L03", "SCSI-L04", "SCSI-L05", "SCSI-L06")
def test_the_same_on_the_legacy_interface():
    model = ScsiHost()
    model.counts_out = True
    scripted = ScriptedLegacy(model, bar_size=128)
    with opening.identify("0000:00:04.0", scripted) as device, Scsi(device, allow_write=True) as scsi:
        assert scsi.config.cmd_per_lun == 128
        scsi.write(HD, 9, b"x" * 512)
        assert scsi.read(HD, 9, 1) == b"x" * 512
        scsi.reset_lun(HD)
        model.grow((0, 0), 4096)
        assert [str(event) for event in scsi.events()] == ["0:0 changed: capacity data has changed"]
        assert scsi.read(HD, 4095, 1) == bytes(512)
    assert model.tasks == [(Task.LOGICAL_UNIT_RESET, (0, 0), 0)]
    scripted.assert_left()


@pytest.mark.parametrize("block_size", [512, 2048, 4096])
def test_blocks_have_the_size_of_the_unit(block_size: int):
    model = ScsiHost(disks={(3, 300): ScsiDisk(64, block_size)})
    with driven(model, allow_write=True) as (_, scsi):
        lun = Lun(3, 300)
        assert scsi.capacity(lun) == c.Capacity(64, block_size, True)
        scsi.write(lun, 63, b"e" * block_size)
        assert scsi.read(lun, 62, 2) == bytes(block_size) + b"e" * block_size
        with pytest.raises(BadSize, match="whole blocks"):
            scsi.write(lun, 0, bytes(block_size - 1))
        with pytest.raises(BeyondEnd):
            scsi.read(lun, 63, 2)
    assert all(seen.place == (3, 300) for seen in model.requests)


def test_a_unit_without_long_commands_and_one_with_a_serial():
    model = ScsiHost(disks={(0, 0): ScsiDisk(long_commands=False, serial="uv7"), (1, 1): ScsiDisk(read_only=True)})
    with driven(model) as (_, scsi):
        assert scsi.capacity(HD) == c.Capacity(2048, 512)
        assert scsi.serial(HD) == "uv7" and scsi.vpd_pages(HD) == [0, 0x80, 0x83]
        assert [name.text for name in scsi.identifications(HD)] == ["uv7"]
        assert scsi.mode(Lun(1, 1)).write_protected and scsi.mode(HD).write_cache


def test_a_unit_that_cannot_say_how_large_it_is():
    """It has more blocks than the short command can tell, and no other."""
    disk = ScsiDisk(1 << 32, long_commands=False, content=bytearray(512))
    with driven(ScsiHost(disks={(0, 0): disk})) as (_, scsi):
        for ask in (lambda: scsi.capacity(HD), lambda: scsi.read(HD, 0, 1)):
            with pytest.raises(ScsiCheck) as refused:
                ask()
            assert refused.value.key == 5, "of the long command, which it does not know"
        assert scsi.known_capacity(HD) is None


def test_a_block_that_does_not_fit_a_request():
    disks = {(0, number): ScsiDisk(4, size) for number, size in enumerate((1024, 2048))}
    with driven(ScsiHost(disks=disks), request_size=1024) as (_, scsi):
        assert scsi.read(HD, 0, 4) == bytes(4096)
        with pytest.raises(BadSize, match="a block does not fit one request"):
            scsi.read(Lun(0, 1), 0, 1)


@pytest.mark.spec("SCSI-02", "SCSI-03")
def test_commands_of_one_unit_keep_to_its_limit():
    model = ScsiHost(disks={(0, 0): ScsiDisk(), (0, 1): ScsiDisk()}, cmd_per_lun=3, queue_size=16)
    with driven(model, depth=16) as (_, scsi):
        for lun in (HD, Lun(0, 1)):
            assert scsi.read(lun, 0, 1) == bytes(512)
        model.hold = True
        out = [scsi.submit(lun, c.read(0, 1, 512)) for _ in range(3) for lun in (HD, Lun(0, 1))]
        assert len(model.kept) == 6  # the model counts what is out, by unit
        model.release([*range(6)][::-1])
        assert scsi.poll() == 6 and all(request.done for request in out)
        model.hold = True
        more = [scsi.submit(HD, c.read(0, 1, 512)) for _ in range(3)]
        scripted_release = model.release
        scsi.device.wait = lambda ready, **_: (scripted_release(), ready())[1]  # type: ignore[assignment,method-assign,func-returns-value]
        more.append(scsi.submit(HD, c.read(0, 1, 512)))  # waits for one of the three
        assert sum(request.done for request in more) >= 3
        del scsi.device.wait
        scsi.wait()
        assert scsi.in_flight == 0


# --- what is believed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_used_length_that_counts_what_was_read_is_a_finding(packed: bool):
    """QEMU (7.2 to 11.1): WRITE of 512 bytes says 620 where 108 were writable."""
    model = ScsiHost()
    model.counts_out = True
    with driven(model, allow_write=True, **({"features": PACKED} if packed else {})) as (_, scsi):
        for block in range(40):
            scsi.write(HD, block, bytes([block]) * 512)
        assert scsi.read(HD, 39, 1) == bytes([39]) * 512
        assert scsi.device.queues[2].ring.findings["used-length-clamped"] == 40
        assert "used-length-clamped" not in scsi.device.queues[0].ring.findings


def test_on_the_control_queue_it_is_not_tolerated():
    model = ScsiHost()
    with driven(model, allow_write=True) as (scripted, scsi):
        scripted.lies.used_len = lambda written: written + 100
        with pytest.raises(RingCorruption):
            scsi.reset_lun(HD)
        with pytest.raises(DeviceBroken):
            scsi.read(HD, 0, 1)


@pytest.mark.parametrize("written", [0, 1, 11, 12, 108, 0xFFFF_FFFF])
def test_the_used_length_is_no_measure(written: int):
    model = ScsiHost()
    model.disks[0, 0].content[:] = b"d" * len(model.disks[0, 0].content)
    with driven(model) as (_, scsi):
        model.written = written
        assert scsi.read(HD, 0, 8) == b"d" * 4096


def test_a_residual_that_is_larger_than_the_data_is_a_finding():
    """QEMU (7.2 to 11.1) subtracts the buffer: 512 of 4096 bytes are 0xfffff200."""
    model = ScsiHost()
    model.disks[0, 0].content[:] = b"d" * len(model.disks[0, 0].content)
    with driven(model) as (_, scsi):
        model.residual = 0xFFFF_F200
        assert scsi.read(HD, 0, 1) == b"d" * 512
        assert set(scsi.findings) == {"the residual is larger than the data"}
        model.residual = 512
        with pytest.raises(ScsiAnswer, match="moved less") as short:
            scsi.read(HD, 0, 2)
        assert (short.value.seen, short.value.expected) == ("512 bytes", "1024 bytes")
        model.residual = 60
        assert len(scsi.execute(HD, c.inquiry())) == 36


def test_a_buffer_that_is_too_small_moves_nothing():
    model = ScsiHost()
    with driven(model) as (_, scsi):
        scsi.capacity(HD)
        whole = c.read(0, 8, 512)
        with pytest.raises(ScsiTransport) as overrun:
            scsi.execute(HD, c.Command(whole.name, whole.cdb, 512))
        assert overrun.value.response == Response.OVERRUN
        assert scsi.read(HD, 0, 8) == bytes(4096)


@pytest.mark.parametrize("response", [*range(1, 13), 13, 0xFE, 0xFF])
def test_every_response(response: int):
    model = ScsiHost()
    model.response = response
    with driven(model) as (_, scsi):
        expected = ScsiTransport if response <= 12 else ProtocolError
        with pytest.raises(expected) as failure:
            scsi.read(HD, 0, 1)
        assert failure.value.remedy
        if response <= 12:
            assert failure.value.response == response  # type: ignore[attr-defined]
            assert scsi.counts[Response(response).name] == 1


@pytest.mark.spec("SCSI-07")
def test_a_target_that_failed_is_not_tried_elsewhere():
    model = ScsiHost(queues=3)
    model.response = Response.TARGET_FAILURE
    with driven(model, queues=3) as (_, scsi), pytest.raises(ScsiTransport, match="did not carry out"):
        scsi.execute(HD, c.inquiry())
    assert len(model.requests) == 1


@pytest.mark.parametrize("status", [*Status, 1, 3, 0x10, 0x22, 0xFF])
def test_every_status(status: int):
    model = ScsiHost()
    with driven(model) as (_, scsi):
        scsi.capacity(HD)
        model.always = status
        if status in (Status.GOOD, Status.CONDITION_MET):
            scsi.check_ready(HD)
            return
        known: dict[int, type[UvirtioError]] = dict.fromkeys(map(int, Status), ScsiStatus)
        known[Status.CHECK_CONDITION] = ScsiCheck
        with pytest.raises(known.get(status, ProtocolError)):
            scsi.check_ready(HD)


@pytest.mark.parametrize("claimed", [0, 1, 2, 18, 96, 97, 0xFFFF_FFFF])
def test_sense_data_are_taken_as_far_as_there_are_any(claimed: int):
    model = ScsiHost()
    with driven(model) as (_, scsi):
        scsi.capacity(HD)
        model.sense_len = claimed
        with pytest.raises(ScsiCheck) as failure:
            scsi.execute(HD, c.read(5000, 1, 512))
        told = (failure.value.key, failure.value.asc)
        assert told == ((5, 0x21) if claimed >= 18 else (0, 0))
        assert bool(scsi.findings) is (claimed > 96)


def test_attentions_are_repeated_for_reads_and_shown_for_writes():
    model = ScsiHost()
    disk = model.disks[0, 0]
    with driven(model, allow_write=True) as (_, scsi):
        scsi.capacity(HD)
        disk.attentions.extend([(6, 0x29, 0)] * 4)
        assert scsi.read(HD, 0, 1) == bytes(512)
        disk.attentions.append((6, 0x29, 0))
        before = len(model.requests)
        with pytest.raises(ScsiCheck, match="power on, reset") as shown:
            scsi.execute(HD, c.write(0, b"w" * 512, 512))
        assert len(model.requests) == before + 1 and not any(disk.content) and "repeat" in str(shown.value.remedy)
        scsi.capacity(HD)
        disk.attentions.append((6, 0x2A, 0x09))
        with pytest.raises(ScsiCheck, match="capacity data has changed"):
            scsi.write(HD, 0, b"w" * 512)
        assert not any(disk.content)
        scsi.write(HD, 0, b"w" * 512)
        disk.attentions.extend([(6, 0x29, 0)] * 6)
        with pytest.raises(ScsiCheck):
            scsi.read(HD, 0, 1)
        assert len(disk.attentions) == 1  # it has tried five times


def test_a_recovered_error_is_a_success():
    model = ScsiHost()
    disk = model.disks[0, 0]
    with driven(model) as (_, scsi):
        scsi.capacity(HD)
        disk.script.append((1, 0x17, 0))
        scsi.check_ready(HD)
        assert set(scsi.findings) == {"a unit recovered from an error"}


@pytest.mark.parametrize("sense", ["710001000000000a0000000017000000 0000", "7301170000000000"])
def test_a_recovery_of_an_earlier_command_is_no_success_of_this_one(sense: str, monkeypatch: pytest.MonkeyPatch):
    """SPC-5, 4.4.7: a command that is told of a deferred error was not carried out."""

    class Earlier(scsi_model._Check):
        def __init__(self, *codes: int) -> None:
            super().__init__(*codes)
            self.sense = bytes.fromhex(sense)

    model = ScsiHost()
    with driven(model) as (_, scsi):
        scsi.capacity(HD)
        monkeypatch.setattr(scsi_model, "_Check", Earlier)
        model.disks[0, 0].script.append((1, 0x17, 0))
        with pytest.raises(ScsiCheck, match="of an earlier command"):
            scsi.execute(HD, c.read(0, 1, 512))
        assert not scsi.findings


def test_an_answer_that_is_not_written_is_none():
    model = ScsiHost()
    model.no_status = True
    with driven(model) as (_, scsi):
        with pytest.raises(ProtocolError, match="without an answer"):
            scsi.inquiry(HD)
        with pytest.raises(DeviceBroken):
            scsi.inquiry(HD)


@pytest.mark.parametrize(
    "wrong", [{"cdb_size": 0}, {"cdb_size": 300}, {"sense_size": 0}, {"sense_size": 70000}, {"num_queues": 0},
              {"event_info_size": 8}, {"event_info_size": 1 << 20}]
)  # fmt: skip
def test_sizes_that_no_request_can_have(wrong: dict[str, int]):
    model = ScsiHost(**wrong)
    scripted = ScriptedDevice(model)
    with opening.identify("0000:00:04.0", scripted) as device, pytest.raises(ConfigError, match=next(iter(wrong))):
        Scsi(device)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("cdb_size", 16, 260), ("sense_size", 18, 1024), ("event_info_size", 16, 4096)]
)
def test_sizes_at_their_limits_are_taken_and_beyond_them_refused(name: str, least: int, most: int):
    for value, good in ((least - 1, False), (least, True), (most, True), (most + 1, False)):
        with opening.identify("0000:00:04.0", ScriptedDevice(ScsiHost(**{name: value}))) as device:
            if good:
                Scsi(device)
                continue
            with pytest.raises(ConfigError, match=name):
                Scsi(device)


def test_limits_of_a_small_device():
    model = ScsiHost(seg_max=1, max_sectors=2, sense_size=18, cdb_size=16)
    with driven(model, allow_write=True) as (_, scsi):
        assert scsi.request_size == 1024
        scsi.write(HD, 0, os.urandom(5 * 512))
        assert scsi.read(HD, 0, 5) == model.disks[0, 0].content[: 5 * 512]
        with pytest.raises(BadSize, match="does not fit one request"):
            scsi.submit(HD, c.read(0, 3, 512))
        with pytest.raises(BadSize, match="does not fit one request"):
            scsi.execute(HD, c.Command("long", bytes([0x12, *bytes(31)])))


# --- bursts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"features": f.mask(f.VERSION_1)}, {"features": PACKED}])
@pytest.mark.parametrize("long", [False, True])
def test_a_burst_reads_and_writes(extra: dict[str, int], long: bool):
    blocks = 1 << 33 if long else 2048  # READ(16) where the unit has more blocks than READ(10) can name
    model = ScsiHost(disks={(1, 300): ScsiDisk(blocks, content=bytearray(os.urandom(1 << 20)))}, queues=3)
    model.counts_out = True
    disk, lun = model.disks[1, 300], Lun(1, 300)
    content = bytes(disk.content)
    with driven(model, depth=8, allow_write=True, queues=3, **extra) as (_, scsi):
        order = random.Random(3).choices(range(0, 2000, 4), k=100)
        found = list(scsi.burst(lun, 4).read(order))
        assert sorted(block for block, _ in found) == sorted(order)
        assert all(data == content[block * 512 :][:2048] for block, data in found)
        ahead = list(scsi.burst(lun, 4, queue=2).read(order, out=2))
        assert ahead and sorted(ahead) == sorted(found)
        assert model.requests[-1].cdb[0] == (Opcode.READ_16 if long else Opcode.READ_10)
        assert len({seen.tag for seen in model.requests}) == len(model.requests) - 200 + 16
        writes = scsi.burst(lun, 2, write=True, depth=4)
        for turn in range(3):
            for slot in writes.slots:
                writes.fill(slot, bytes([turn * 4 + slot]) * 1024)
            writes.post(writes.slots, [turn * 8 + 2 * slot for slot in writes.slots])
            assert sorted(writes.wait()) == [0, 1, 2, 3]
        assert disk.content[:12288] == b"".join(bytes([number]) * 1024 for number in range(12))
        assert not scsi.findings
        with pytest.raises(UsageError, match="taken by bursts"):
            scsi.read(lun, 0, 1)
        with pytest.raises(BeyondEnd):
            writes.post(writes.slots[:1], [blocks - 1])
        with pytest.raises(BadSize):
            writes.post(writes.slots[:1], [-1])
        assert scsi.manage(Task.QUERY_TASK_SET, lun) == Response.OK  # the control queue is not taken


def test_a_burst_believes_what_other_reads_believe():
    model = ScsiHost()
    disk = model.disks[0, 0]
    with driven(model, queues=1, depth=4) as (_, scsi):
        burst = scsi.burst(HD, 1)
        for lie, expected in (
            ({"residual": 256}, ScsiAnswer),
            ({"residual": 0xFFFF_F200}, None),
            ({"always": Status.BUSY}, ScsiStatus),
            ({"response": Response.ABORTED}, ScsiTransport),
        ):
            for name, value in lie.items():
                setattr(model, name, value)
            burst.post(burst.slots[:2], [5, 6])
            if expected is None:
                assert list(burst.wait()) == [0, 1]
            else:
                with pytest.raises(expected):
                    burst.wait()
            assert list(burst.returned) == [0, 1] and burst.in_flight == 0
            for name in lie:
                setattr(model, name, None)
        disk.attentions.append((6, 0x2A, 0x09))
        burst.post(burst.slots[:1], [0])
        with pytest.raises(ScsiCheck, match="capacity data has changed"):
            burst.wait()
        burst.post(burst.slots[:1], [2047])  # it works on, with the capacity that it knows
        assert list(burst.wait()) == [0]
        model.no_status = True
        burst.post(burst.slots[:1], [0])
        with pytest.raises(ProtocolError):
            burst.wait()


def test_a_burst_and_the_limit_of_its_unit():
    model = ScsiHost(cmd_per_lun=6, queues=3)
    with driven(model, queues=3, depth=4) as (_, scsi):
        assert scsi.burst(HD, 1).count == 4
        assert scsi.read(HD, 0, 9) == bytes(9 * 512)  # with the two that are left
        assert scsi.burst(HD, 1).count == 2
        with pytest.raises(UsageError, match="can have in flight are taken"):
            scsi.read(HD, 0, 1)
        with pytest.raises(WriteRefused):
            scsi.burst(HD, 1, write=True)
        with pytest.raises(BadSize):
            scsi.burst(HD, 0)


# --- which units there are ----------------------------------------------------------------------------------


def test_a_scan_finds_what_is_there():
    disks = {place: ScsiDisk(8) for place in ((0, 0), (0, 3), (0, 300), (7, 1), (255, 16383))}
    model = ScsiHost(disks=disks)
    with driven(model) as (_, scsi):
        found = scsi.scan()
        assert [str(unit.lun) for unit in found] == ["0:0", "0:3", "0:300", "7:1", "255:16383"]
        assert {unit.inquiry.product for unit in found} == {"SCRIPTED DISK"}
        assert scsi.report_luns(7) == [Lun(7, 0), Lun(7, 1)]  # LUN 0 is in the list where there is none
        with pytest.raises(ScsiTransport, match="BAD_TARGET"):
            scsi.report_luns(8)
    assert set(opcodes(model)) == {Opcode.REPORT_LUNS, Opcode.INQUIRY}


def test_a_long_list_of_units_is_asked_for_again():
    model = ScsiHost(disks={(0, number): ScsiDisk(1) for number in range(600)}, max_target=0)
    with driven(model) as (_, scsi):
        assert len(scsi.scan()) == 600
    assert opcodes(model).count(Opcode.REPORT_LUNS) == 2


@pytest.mark.parametrize("claimed", [0, 7, 0x100, 0xFFFF_FFF8, 0xFFFF_FFFF])
def test_a_list_that_is_longer_than_it_is(claimed: int):
    model = ScsiHost(max_target=0)
    model.listed = claimed
    with driven(model) as (_, scsi):
        assert [str(unit.lun) for unit in scsi.scan()] == (["0:0"] if claimed > 7 else [])
        assert bool(scsi.findings) is (claimed > 8)


# --- tasks --------------------------------------------------------------------------------------------------


def test_a_command_is_aborted():
    model = ScsiHost()
    with driven(model) as (_, scsi):
        scsi.capacity(HD)
        model.hold = True
        first, second = (scsi.submit(HD, c.read(block, 1, 512)) for block in (0, 1))
        assert scsi.is_pending(first) and scsi.is_pending(second)
        scsi.abort(first)
        assert first.done and not second.done and not scsi.is_pending(first)
        with pytest.raises(ScsiTransport, match="did not carry out") as aborted:
            first.result()
        assert aborted.value.response == Response.ABORTED
        model.release()
        assert second.result() == bytes(512)
        model.hold = True
        third = scsi.submit(HD, c.read(0, 1, 512))
        scsi.abort_all(HD)
        assert third.done and isinstance(third.error, ScsiTransport)


def test_resets_take_consent_and_end_what_is_out():
    model = ScsiHost()
    with driven(model) as (_, scsi):
        for act in (
            lambda: scsi.reset_lun(HD),
            lambda: scsi.reset_target(0),
            lambda: scsi.manage(Task.CLEAR_ACA, HD),
        ):
            with pytest.raises(WriteRefused):
                act()
    assert model.tasks == []
    with driven(model, allow_write=True) as (_, scsi):
        scsi.capacity(HD)
        model.hold = True
        request = scsi.submit(HD, c.read(0, 1, 512))
        scsi.reset_target(0)
        assert isinstance(request.error, ScsiTransport) and request.error.response == Response.RESET
        with pytest.raises(ScsiTransport, match="INCORRECT_LUN"):
            scsi.reset_lun(Lun(0, 5))


def test_a_function_that_is_not_known_writes_nothing():
    model = ScsiHost()
    with driven(model, allow_write=True) as (_, scsi):
        model.no_status = True
        with pytest.raises(ProtocolError, match="response 0xff"):
            scsi.reset_lun(HD)


# --- events -------------------------------------------------------------------------------------------------


@pytest.mark.spec("SCSI-05", "SCSI-08", "SCSI-09", "SCSI-10", "SCSI-11", "SCSI-13")
def test_units_come_go_and_change():
    model = ScsiHost(event_info_size=48)
    with driven(model) as (_, scsi):
        assert len(model.buffers) == event_module.BUFFERS
        assert scsi.read(HD, 0, 1) == bytes(512)
        for _ in range(3 * event_module.BUFFERS):  # each buffer is posted again
            model.plug((2, 300), ScsiDisk(8))
            model.unplug((2, 300))
            there, gone = scsi.events()
            assert (there.lun, there.reason, there.rescan) == (Lun(2, 300), ResetReason.RESCAN, True)
            assert (gone.lun, gone.reason, gone.name) == (Lun(2, 300), ResetReason.REMOVED, "is gone")
        model.grow((0, 0), 4096)
        event = scsi.wait_for_event(timeout=5)
        assert event is not None and str(event) == "0:0 changed: capacity data has changed" and not event.rescan
        assert scsi.read(HD, 4095, 1) == bytes(512)  # it has forgotten the old capacity
        assert scsi.wait_for_event(timeout=0.01) is None

        def pulse() -> None:
            scsi.device.pulse = None
            model.grow((0, 0), 8192)

        scsi.device.pulse = pulse
        event = scsi.wait_for_event(timeout=20)
        assert event is not None and event.name == "changed: capacity data has changed", "it came while we waited"
        model.tell(EventType.ASYNC_NOTIFY, (0, 0), 16)
        model.tell(EventType.TRANSPORT_RESET, (0, 0), ResetReason.HARD)
        assert [event.name for event in scsi.events()] == ["notifies, events 0x10", "was reset"]
        assert not scsi.findings


@pytest.mark.spec("SCSI-12")
def test_events_that_were_lost_are_told():
    model = ScsiHost(max_target=3)
    with driven(model) as (_, scsi):
        scsi.capacity(HD)
        for number in range(1, event_module.BUFFERS + 3):
            model.plug((3, number), ScsiDisk(8))
        found = scsi.events() + scsi.events()  # the buffers that were posted again say so
        assert len(found) == event_module.BUFFERS + 1 and found[-1].missed and found[-1].rescan
        assert found[-1].lun is None and str(found[-1]) == "events were lost"
        assert len(scsi.scan()) == event_module.BUFFERS + 3  # all of them, also those without an event
        assert scsi._known == {}


def test_a_reader_that_never_comes_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_module, "EVENTS_MAX", 4)
    model = ScsiHost()
    with driven(model) as (_, scsi):
        for number in range(1, 6):
            model.plug((3, number), ScsiDisk(8))
            scsi.poll()
        found = scsi.events()
        assert [event.missed for event in found] == [True, False]


def test_without_an_event_queue_there_are_no_events():
    model = ScsiHost()
    model.queue_sizes = (64, 0, 64)  # as some back ends have it, though 5.6.2 has the queue always
    with driven(model) as (_, scsi):
        assert scsi.read(HD, 0, 1) == bytes(512)
        assert scsi.wait_for_event(timeout=None) is None and scsi.events() == []


@pytest.mark.parametrize(
    "lie",
    [lambda model: model.tell(0, (0, 0), 0), lambda model: model.tell(77, (0, 0), 0)],
    ids=["none", "unknown"],
)
def test_events_of_no_meaning(lie: Callable[[ScsiHost], None]):
    model = ScsiHost()
    with driven(model) as (_, scsi):
        lie(model)
        (event,) = scsi.events()
        assert str(event) in ("no event", "0:0 event 0x4d") and not event.rescan


def test_an_event_that_is_too_short_is_one_that_was_lost():
    model = ScsiHost()
    with driven(model) as (scripted, scsi):
        scripted.lies.used_len = lambda written: 4
        model.plug((1, 1), ScsiDisk(8))
        (event,) = scsi.events()
        assert event.missed and "an event is shorter than 16 bytes" in scsi.findings


# --- the rest -----------------------------------------------------------------------------------------------


def test_nothing_changes_without_consent():
    model = ScsiHost()
    with driven(model) as (_, scsi):
        for act in (
            lambda: scsi.write(HD, 0, bytes(512)),
            lambda: scsi.execute(HD, c.write(0, bytes(512), 512)),
            lambda: scsi.submit(HD, c.Command("FORMAT UNIT", bytes([4, *bytes(5)]))),
            lambda: scsi.execute(HD, c.Command("UNMAP", bytes([0x42, *bytes(9)]))),
        ):
            with pytest.raises(WriteRefused):
                act()
        scsi.flush(HD)
    assert set(opcodes(model)) == {Opcode.SYNCHRONIZE_CACHE_10}


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"queues": 0}, {"request_size": 700}, {"request_size": 0}])
def test_arguments_that_make_no_sense(wrong: dict[str, int]):
    with opening.identify("0000:00:04.0", ScriptedDevice(ScsiHost())) as device, pytest.raises(UsageError):
        Scsi(device, **wrong)  # type: ignore[arg-type]


def test_a_silent_device_ends_in_a_timeout():
    with driven(ScsiHost(), silent=True, timeout=0.05) as (_, scsi):
        with pytest.raises(DeviceTimeout):
            scsi.inquiry(HD)
        with pytest.raises(DeviceBroken):
            scsi.scan()


@pytest.mark.parametrize("address", hostile_cases("scsi"))
def test_a_hostile_device_is_an_answer_or_an_error(address: str):
    try:
        with opening.open(address, timeout=0.05) as device, Scsi(device, allow_write=True) as scsi:
            for unit in scsi.scan():
                scsi.write(unit.lun, 0, scsi.read(unit.lun, 0, 2))
                scsi.reset_lun(unit.lun)
            scsi.events()
    except UvirtioError as error:
        assert error.code.startswith("UV-")
