"""Page reports on any cell whose balloon offers them, and hints; what pages lose is the witness."""

from __future__ import annotations

import pytest

from tests.bodies import Cell
from uvirtio.drivers.balloon import Balloon, Use
from uvirtio.spec import features as f

MIB = 1 << 20


@pytest.mark.spec("BAL-R01", "BAL-R04", "BAL-R06")
def test_reported_memory_is_taken_and_given_anew(cell: Cell) -> None:
    with cell.open() as device, Balloon(device, reporting=True, hinting=True) as balloon:
        assert device.queues[4].name == "reporting_vq", "with hints, the fifth queue"
        assert balloon.hints is not None
        with balloon.arena(8 * MIB) as arena:
            taken = [arena.take() for _ in arena.ranges]
            for one in taken:
                with arena.view(one) as view:
                    view[:] = b"\xa5" * one.size
                arena.give(one)
            assert balloon.report(arena) == 8 * MIB
            assert arena.bytes_in(Use.REPORTED) == 8 * MIB
            for one in taken:  # looked at behind the arena's back, which clears what it hands out
                with one.block.view[one.offset : one.offset + one.size] as view:
                    assert not any(view[::512]), "the host took the pages, and gives others"
            for one in [arena.take() for _ in taken]:
                with arena.view(one) as view:
                    view[:] = b"\x5a" * one.size
                    assert set(view[::512]) == {0x5A}
                arena.give(one)
            assert balloon.report(arena) == 8 * MIB
        assert cell.queue(4)["used-idx"] > 0
        balloon.inflate(256)
        balloon.deflate(256)


@pytest.mark.spec("BAL-P02", "BAL-R02")
def test_with_poison_reported_memory_stays_as_it_was(cell: Cell) -> None:
    with cell.open() as device, Balloon(device, reporting=True, poison=0xAAAAAAAA) as balloon:
        assert device.has(f.Balloon.PAGE_POISON)
        with balloon.arena(MIB) as arena:
            balloon.report(arena)
            with arena.view(arena.take()) as view:
                assert set(view[::512]) == {0xAA}
