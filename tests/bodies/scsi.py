"""Scsi on any cell with one SCSI disk; its file is the witness where it can be seen, and QMP makes the events."""

from __future__ import annotations

import os
import random

import pytest

from tests.bodies import Cell
from uvirtio.drivers.scsi import EventType, Lun, ResetReason, Response, Scsi, Task
from uvirtio.drivers.scsi import commands as c
from uvirtio.errors import BeyondEnd, ScsiCheck, ScsiTransport, WriteRefused
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import scsi as spec
from uvirtio.spec.layout import by_name

KIB = 1 << 10
HD = Lun(0, 0)
BLOCK = 512
_FIELDS = by_name(spec.CONFIG)


def in_file(cell: Cell, block: int, blocks: int) -> bytes | None:
    """The same blocks in the file behind the disk; None where it cannot be seen from here."""
    fd = cell.extra.get("file")
    return None if fd is None else os.pread(fd, blocks * BLOCK, block * BLOCK)


def findings(scsi: Scsi) -> dict[str, int]:
    """What the rings of the request queues tolerated."""
    found: dict[str, int] = {}
    for index, queue in scsi.device.queues.items():
        if index >= 2:
            found |= queue.ring.findings
    return found


@pytest.mark.spec("SCSI-04", "SCSI-06")
def test_what_is_written_is_on_the_disk(cell: Cell) -> None:
    with cell.open() as device, Scsi(device, allow_write=True) as scsi:
        capacity = scsi.capacity(HD)
        assert capacity.block_size == BLOCK and capacity.bytes >= 8 << 20
        for block, blocks in ((0, 1), (9, 7), (100, 1000), (capacity.blocks - 3, 3)):
            data = os.urandom(blocks * BLOCK)
            scsi.write(HD, block, data)
            assert in_file(cell, block, blocks) in (data, None)
            assert scsi.read(HD, block, blocks) == data
        scsi.flush(HD)
        assert scsi.findings == {}
        # QEMU's used lengths count the data that it read; on packed rings it does not say WRITE with them either.
        assert set(findings(scsi)) <= {"used-length-clamped", "used-length-without-write"}
        assert "used-length-clamped" in findings(scsi)
        with pytest.raises(BeyondEnd):
            scsi.read(HD, capacity.blocks - 1, 2)


@pytest.mark.spec("SCSI-01")
def test_who_is_there(cell: Cell) -> None:
    with cell.open() as device, Scsi(device) as scsi:
        before = (scsi.config.sense_size, scsi.config.cdb_size)
        assert [(str(unit.lun), unit.inquiry.type_name) for unit in scsi.scan()] == [("0:0", "disk")]
        told = scsi.inquiry(HD)
        assert (told.vendor, told.product, told.present) == ("QEMU", "QEMU HARDDISK", True)
        assert not scsi.inquiry(Lun(0, 7)).present
        assert 0x83 in scsi.vpd_pages(HD) and scsi.identifications(HD)
        assert scsi.vpd(HD, 0x99) is None
        assert scsi.mode(HD).write_protected is False
        scsi.check_ready(HD)
        with pytest.raises(ScsiTransport, match="BAD_TARGET") as absent:
            scsi.inquiry(Lun(3, 0))
        assert absent.value.response == Response.BAD_TARGET
        with pytest.raises(ScsiCheck) as nothing:
            scsi.capacity(Lun(0, 7))
        assert (nothing.value.key, nothing.value.asc) == (5, 0x25)
        assert before == (96, 32)
        assert device.read_config(_FIELDS["sense_size"], _FIELDS["cdb_size"]) == before


def test_what_a_unit_refuses(cell: Cell) -> None:
    with cell.open() as device:
        with Scsi(device, allow_write=True) as scsi:
            end = scsi.capacity(HD).blocks
            with pytest.raises(ScsiCheck, match="logical block address out of range") as beyond:
                scsi.execute(HD, c.read(end, 1, BLOCK))
            assert (beyond.value.key, beyond.value.asc) == (5, 0x21)
            with pytest.raises(ScsiCheck, match="invalid command operation code"):
                scsi.execute(HD, c.Command("no command", bytes([0xFF] + [0] * 9)))
            short = c.read(0, 2, BLOCK)
            with pytest.raises(ScsiTransport, match="OVERRUN"):
                scsi.execute(HD, c.Command(short.name, short.cdb, BLOCK))
        with Scsi(device) as scsi:
            kept = in_file(cell, 0, 1)
            with pytest.raises(WriteRefused):
                scsi.write(HD, 0, bytes(BLOCK))
            with pytest.raises(WriteRefused):
                scsi.execute(HD, c.write(0, b"x" * BLOCK, BLOCK))
            with pytest.raises(WriteRefused):
                scsi.reset_lun(HD)
            assert in_file(cell, 0, 1) == kept


def test_many_at_once(cell: Cell) -> None:
    with cell.open() as device, Scsi(device, allow_write=True, queues=4, depth=16) as scsi:
        data = os.urandom(256 * KIB)
        scsi.write(HD, 0, data)
        scsi.rely_on_interrupts()
        order = list(range(0, 64 * 8, 8))
        random.Random(7).shuffle(order)
        out = [(block, scsi.submit(HD, c.read(block, 8, BLOCK), kick=block % 16 == 0)) for block in order]
        for block, request in out:
            assert request.result() == data[block * BLOCK :][: 4 * KIB]
        assert scsi.in_flight == 0
        assert {request.queue for _, request in out} == set(device.queues) - {0, 1}
        if cell.mode is not InterruptMode.POLLING:
            device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")


def test_bursts(cell: Cell) -> None:
    data = [os.urandom(4 * KIB) for _ in range(64)]
    order = random.Random(9).choices(range(64), k=300)
    with cell.open() as device:
        with Scsi(device, allow_write=True, depth=16) as scsi:
            burst = scsi.burst(HD, 8, write=True)
            for first in range(0, 64, 16):
                for slot in burst.slots:
                    burst.fill(slot, data[first + slot])
                burst.post(burst.slots, range(first * 8, (first + 16) * 8, 8))
                done = 0
                while done < 16:
                    done += len(burst.wait())
            assert in_file(cell, 0, 512) in (b"".join(data), None)
            assert "used-length-clamped" in findings(scsi)
        with Scsi(device, depth=16) as scsi:
            found = list(scsi.burst(HD, 8).read([number * 8 for number in order]))
            assert sorted(block // 8 for block, _ in found) == sorted(order)
            assert all(content == data[block // 8] for block, content in found)


def test_tasks_are_managed(cell: Cell) -> None:
    with cell.open() as device, Scsi(device, allow_write=True) as scsi:
        scsi.write(HD, 0, bytes(BLOCK))
        scsi.reset_lun(HD)
        with pytest.raises(ScsiCheck, match="power on, reset, or bus device reset") as attention:
            scsi.execute(HD, c.write(0, bytes(BLOCK), BLOCK))
        assert (attention.value.key, attention.value.asc) == (6, 0x29)
        scsi.reset_target(0)
        assert scsi.read(HD, 0, 1) == bytes(BLOCK)  # repeated
        request = scsi.submit(HD, c.read(0, 8, BLOCK))
        scsi.abort(request)
        assert request.done  # 5.6.6.2: before the function is complete
        assert not scsi.is_pending(request)
        scsi.abort_all(HD)
        with pytest.raises(ScsiTransport, match="FUNCTION_REJECTED"):
            scsi.manage(Task.CLEAR_ACA, HD)
        with pytest.raises(ScsiTransport, match="INCORRECT_LUN"):
            scsi.reset_lun(Lun(0, 9))
        with pytest.raises(ScsiTransport, match="BAD_TARGET"):
            scsi.reset_lun(Lun(9))


@pytest.mark.spec("SCSI-05")
def test_the_host_makes_it_larger(cell: Cell) -> None:
    with cell.open() as device, Scsi(device) as scsi:
        before = scsi.capacity(HD)
        disk = cell.extra["disk"]
        try:
            cell.qmp("block_resize", device=disk, size=before.bytes + (1 << 20))
            event = scsi.wait_for_event(timeout=10)
            assert event is not None and event.lun == HD and not event.missed
            assert event.type == EventType.PARAM_CHANGE and "capacity data has changed" in event.name
            assert scsi.read(HD, before.blocks, 8) == bytes(4 * KIB)
            assert scsi.capacity(HD).bytes == before.bytes + (1 << 20)
        finally:
            cell.qmp("block_resize", device=disk, size=before.bytes)
        assert scsi.wait_for_event(timeout=10) is not None
        with pytest.raises(BeyondEnd):
            scsi.read(HD, before.blocks, 1)


@pytest.mark.spec("SCSI-08", "SCSI-13")
def test_units_come_and_go(cell: Cell) -> None:
    more = {"node-name": "more", "driver": "null-co", "size": 1 << 20, "read-zeroes": True}
    with cell.open() as device, Scsi(device) as scsi:
        assert len(scsi.scan()) == 1
        cell.qmp("blockdev-add", **more)
        try:
            bus = cell.extra.get("bus") or f"{cell.extra['id']}.0"
            place = {"scsi-id": 2, "lun": 300}
            cell.qmp("device_add", driver="scsi-hd", id="more-hd", drive="more", bus=bus, serial="uv2", **place)
            event = scsi.wait_for_event(timeout=10)
            assert event is not None and event.rescan and event.lun == Lun(2, 300)
            assert (event.type, event.reason) == (EventType.TRANSPORT_RESET, ResetReason.RESCAN)
            assert [str(unit.lun) for unit in scsi.scan()] == ["0:0", "2:300"]
            assert scsi.serial(Lun(2, 300)) == "uv2"
            assert scsi.read(Lun(2, 300), 0, 8) == bytes(4 * KIB)
            cell.qmp("device_del", id="more-hd")
            event = scsi.wait_for_event(timeout=10)
            assert event is not None and event.reason == ResetReason.REMOVED and event.rescan
            assert len(scsi.scan()) == 1
            assert cell.events("DEVICE_DELETED", 10)
        finally:
            cell.qmp("blockdev-del", **{"node-name": "more"})
        assert scsi.events() == []
