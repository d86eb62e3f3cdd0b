"""Balloon on any cell; query-balloon and the host's memory are the witnesses."""

from __future__ import annotations

import threading
import time

import pytest

from tests.bodies import Cell
from uvirtio.drivers.balloon import Balloon
from uvirtio.errors import BadSize, Closed
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import balloon as spec

PAGE = 4096
MIB = 256  # pages


def _size(cell: Cell) -> int:
    return int(cell.qmp("query-balloon")["actual"])


@pytest.mark.spec("BAL-03", "BAL-07", "BAL-08", "BAL-09")
def test_the_host_sees_the_balloon_grow_and_shrink(cell: Cell) -> None:
    with cell.open() as device:
        with Balloon(device) as balloon:
            full = _size(cell) + balloon.held * PAGE
            assert balloon.inflate(4 * MIB) == 4 * MIB
            assert _size(cell) == full - 4 * MIB * PAGE
            assert balloon.actual == balloon.held == 4 * MIB
            assert balloon.deflate(3 * MIB + 7) == MIB - 7
            assert _size(cell) == full - (MIB - 7) * PAGE
            assert balloon.inflate(300) == MIB - 7 + 300
            assert _size(cell) == full - (MIB - 7 + 300) * PAGE
        assert _size(cell) == full


@pytest.mark.spec("BAL-07")
def test_leaving_gives_everything_back(cell: Cell) -> None:
    with cell.open() as device:
        with pytest.raises(ZeroDivisionError), Balloon(device) as balloon:
            balloon.inflate(MIB)
            raise ZeroDivisionError
        with Balloon(device) as balloon:
            assert balloon.actual == 0


def test_pages_that_do_not_fill_a_buffer(cell: Cell) -> None:
    with cell.open() as device, Balloon(device) as balloon:
        for pages in (1, 255, 257, 0):
            before = balloon.held
            assert balloon.inflate(pages) == before + pages
            assert balloon.actual == before + pages


def test_more_than_is_there_cannot_be_deflated(cell: Cell) -> None:
    with cell.open() as device, Balloon(device) as balloon:
        balloon.inflate(10)
        with pytest.raises(BadSize):
            balloon.deflate(11)
        with pytest.raises(BadSize):
            balloon.inflate(-1)
        assert balloon.held == balloon.actual == 10
        assert device.broken is None


@pytest.mark.spec("BAL-01", "PCI-CHG-01", "CFG-03")
def test_the_target_is_followed_both_ways(cell: Cell) -> None:
    with cell.open() as device, Balloon(device) as balloon:
        full = _size(cell)
        try:
            cell.qmp("balloon", value=full - 2 * MIB * PAGE)
            balloon.follow(timeout=0.2)
            assert balloon.held == balloon.num_pages == balloon.actual == 2 * MIB
            assert _size(cell) == full - 2 * MIB * PAGE
            cell.qmp("balloon", value=full - MIB * PAGE)
            balloon.follow(timeout=0.2)
            assert balloon.held == MIB
        finally:
            cell.qmp("balloon", value=full)
        balloon.follow(timeout=0.2)
        assert balloon.held == 0


@pytest.mark.spec("BAL-01")
def test_a_change_while_following_wakes_it(cell: Cell) -> None:
    with cell.open() as device, Balloon(device) as balloon:
        full = _size(cell)
        stopped: list[BaseException] = []

        def follow() -> None:
            try:
                balloon.follow()
            except Closed as error:
                stopped.append(error)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            cell.qmp("balloon", value=full - MIB * PAGE)
            deadline = time.monotonic() + 20
            while _size(cell) != full - MIB * PAGE:
                assert time.monotonic() < deadline, "the balloon never reached the host's target"
                time.sleep(0.02)
        finally:
            cell.qmp("balloon", value=full)
            device.close()  # from another thread than the owner
            thread.join(20)
        assert not thread.is_alive()
        assert stopped
        assert _size(cell) == full


def test_completions_and_changes_come_by_interrupt(cell: Cell) -> None:
    with cell.open() as device, Balloon(device) as balloon:
        full = _size(cell)
        balloon.inflate(1)
        if cell.mode is InterruptMode.POLLING:
            assert device.counters.interrupts_taken == 0
            return
        device.wait(lambda: device.counters.interrupts_taken > 0, timeout=5, what="an interrupt")
        before = device.counters.config_changes
        try:
            cell.qmp("balloon", value=full - MIB * PAGE)
            assert device.wait(
                lambda: device.counters.config_changes > before, timeout=5, what="a change", owed=False
            )
        finally:
            cell.qmp("balloon", value=full)


@pytest.mark.fault(56)
def test_the_limit_is_kept(cell: Cell) -> None:
    with cell.open() as device, Balloon(device) as balloon:
        full = _size(cell)
        try:
            cell.qmp("balloon", value=full - 2 * MIB * PAGE)
            balloon.follow(limit=100, timeout=0.2)
            assert balloon.held == 100
        finally:
            cell.qmp("balloon", value=full)


def test_the_host_gets_the_memory(cell: Cell) -> None:
    if cell.backing is None:
        pytest.skip("the memory of this machine cannot be looked at from here")
    with cell.open() as device, Balloon(device) as balloon:
        held = device.dma.pin(8 * MIB * PAGE)
        before = cell.backing()
        held.view[:] = b"x" * len(held.view)
        grown = cell.backing()
        assert grown >= before + 7 * MIB * PAGE
        held.close()
        balloon.inflate(8 * MIB)
        assert cell.backing() <= grown - 7 * MIB * PAGE


@pytest.mark.fault(62)
def test_the_inflate_queue_carries_one_buffer_for_256_pages(cell: Cell) -> None:
    with cell.open() as device, Balloon(device) as balloon:
        balloon.inflate(4 * MIB)
        assert cell.queue(spec.INFLATEQ)["last-avail-idx"] == 4
        assert cell.queue(spec.DEFLATEQ)["last-avail-idx"] == 0
