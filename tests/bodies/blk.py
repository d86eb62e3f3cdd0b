"""Blk on any cell with a disk; QMP's books about the disk are the witness, and its file where it can be seen."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from tests.bodies import Cell
from uvirtio.drivers.blk import SECTOR_SIZE, Blk
from uvirtio.errors import BeyondEnd, WriteRefused
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f

KIB = 1 << 10


def is_ours(cell: Cell, entry: dict[str, Any]) -> bool:
    """Whether QEMU speaks of this device: by the id of a virtio-mmio one, by the path of one inside a function."""
    name = str(entry.get("qdev", ""))
    return name.startswith(cell.path) or name == cell.path.rpartition("/")[2]


def stats(cell: Cell) -> dict[str, Any]:
    """What the host counted so far at this device's disk; nothing where the host keeps no such books."""
    if cell.extra.get("no books"):
        return {}
    mine = [entry for entry in cell.qmp("query-blockstats") if is_ours(cell, entry)]
    assert len(mine) == 1
    return dict(mine[0]["stats"])


def in_file(cell: Cell, sector: int, sectors: int) -> bytes | None:
    """The same sectors in the file behind the disk; None where it cannot be seen from here."""
    fd = cell.extra.get("file")
    return None if fd is None else os.pread(fd, sectors * SECTOR_SIZE, sector * SECTOR_SIZE)


@pytest.mark.spec("BLK-13", "BLK-L05")
def test_what_is_written_is_on_the_disk(cell: Cell) -> None:
    with cell.open() as device, Blk(device, allow_write=True) as blk:
        before = stats(cell)
        assert blk.capacity * SECTOR_SIZE >= 8 << 20
        total = 0
        for sector, sectors in ((0, 1), (9, 7), (100, 1000), (blk.capacity - 3, 3)):
            data = os.urandom(sectors * SECTOR_SIZE)
            blk.write(sector, data)
            assert in_file(cell, sector, sectors) in (data, None)
            assert blk.read(sector, sectors) == data
            total += len(data)
        assert blk.findings == {}
        after = stats(cell)
        assert not before or after["wr_bytes"] - before["wr_bytes"] == total
        assert not before or after["rd_bytes"] - before["rd_bytes"] == total


@pytest.mark.spec("BLK-11", "BLK-12", "BLK-02")
def test_the_host_counts_the_flushes(cell: Cell) -> None:
    with cell.open() as device, Blk(device, allow_write=True) as blk:
        assert blk.write_cache
        before = stats(cell)["flush_operations"]
        blk.write(0, bytes(SECTOR_SIZE))
        assert blk.flush()
        assert stats(cell)["flush_operations"] == before + 1
        if device.has(f.Blk.CONFIG_WCE):
            blk.set_write_cache(False)
            assert not blk.write_cache
            blk.set_write_cache(True)
            assert blk.write_cache


@pytest.mark.spec("BLK-14", "BLK-18", "BLK-20", "BLK-16")
def test_zeroes_and_discards(cell: Cell) -> None:
    with cell.open() as device, Blk(device, allow_write=True) as blk:
        data = os.urandom(300 * SECTOR_SIZE)
        blk.write(1000, data)
        blk.write_zeroes(1010, 200)
        expected = data[: 10 * SECTOR_SIZE] + bytes(200 * SECTOR_SIZE) + data[210 * SECTOR_SIZE :]
        assert blk.read(1000, 300) == expected
        assert in_file(cell, 1000, 300) in (expected, None)
        blk.discard(1000, 8)
        assert blk.read(1008, 292) == expected[8 * SECTOR_SIZE :]  # of the others nothing is known


@pytest.mark.spec("BLK-15")
def test_it_says_who_it_is(cell: Cell) -> None:
    with cell.open() as device, Blk(device) as blk:
        assert blk.identify() == cell.extra.get("serial", "")
        config = blk.config
        assert config.blk_size == SECTOR_SIZE and config.topology is not None
        assert not blk.read_only


def test_many_at_once(cell: Cell) -> None:
    with cell.open() as device, Blk(device, allow_write=True, queues=4, depth=16) as blk:
        data = os.urandom(256 * KIB)
        blk.write(0, data)
        blk.rely_on_interrupts()
        order = list(range(0, 64 * 8, 8))
        random.Random(7).shuffle(order)
        out = [(sector, blk.submit_read(sector, 8, kick=sector % 16 == 0)) for sector in order]
        for sector, request in out:
            assert request.result() == data[sector * SECTOR_SIZE :][: 4 * KIB]
        assert blk.in_flight == 0
        assert {request.queue for _, request in out} == set(device.queues)
        if cell.mode is not InterruptMode.POLLING:
            device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")


def test_bursts(cell: Cell) -> None:
    data = [os.urandom(4 * KIB) for _ in range(64)]
    order = random.Random(9).choices(range(64), k=300)
    with cell.open() as device:
        with Blk(device, allow_write=True, depth=16) as blk:
            burst = blk.burst(8, write=True)
            for first in range(0, 64, 16):
                for slot in burst.slots:
                    burst.fill(slot, data[first + slot])
                burst.post(burst.slots, range(first * 8, (first + 16) * 8, 8))
                done = 0
                while done < 16:
                    done += len(burst.wait())
            assert in_file(cell, 0, 512) in (b"".join(data), None)
        with Blk(device, depth=16) as blk:
            found = list(blk.burst(8).read([number * 8 for number in order]))
            assert sorted(sector // 8 for sector, _ in found) == sorted(order)
            assert all(content == data[sector // 8] for sector, content in found)


@pytest.mark.spec("BLK-08", "BLK-09")
def test_the_host_makes_it_larger(cell: Cell) -> None:
    disk = next(one for one in cell.qmp("query-block") if is_ours(cell, one))
    size = disk["inserted"]["image"]["virtual-size"]
    with cell.open() as device, Blk(device) as blk:
        before = blk.capacity
        assert before * SECTOR_SIZE == size
        with pytest.raises(BeyondEnd):
            blk.read(before, 1)
        try:
            cell.qmp("block_resize", device=disk["device"], size=size + (1 << 20))
            assert blk.wait_for_change(timeout=10)
            assert blk.capacity == before + 2048
            assert blk.read(before, 2048) == bytes(1 << 20)
        finally:
            cell.qmp("block_resize", device=disk["device"], size=size)
        assert blk.wait_for_change(timeout=10)
        assert blk.capacity == before


def test_nothing_is_written_without_consent(cell: Cell) -> None:
    with cell.open() as device, Blk(device) as blk:
        before = stats(cell), in_file(cell, 0, 1)
        with pytest.raises(WriteRefused):
            blk.write(0, b"x" * SECTOR_SIZE)
        assert in_file(cell, 0, 1) == before[1]
        assert stats(cell).get("wr_operations") == before[0].get("wr_operations")


def test_leaving_waits_for_what_is_out(cell: Cell) -> None:
    with cell.open() as device:
        data = os.urandom(32 * KIB)
        with Blk(device, allow_write=True) as blk:
            for at in range(8):
                blk.submit_write(at * 8, data[at * 4 * KIB :][: 4 * KIB], kick=False)
        with Blk(device) as blk:
            assert blk.read(0, 64) == data
