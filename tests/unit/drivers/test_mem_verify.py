"""Memory that was acknowledged and is not there: told by a child process, which the access ends."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import time

import pytest

from tests.support.children import children
from tests.unit.drivers.test_mem_region import ADDR, BLOCK, SIZE, at, region
from uvirtio.drivers.mem import verify
from uvirtio.errors import InUse, LimitReached, NotPlugged, NotSupported, OperationFailed, PermissionLack
from uvirtio.memory.window import FileWindow
from uvirtio.scripted.mem import JUNK


class Odd(FileWindow):
    """A window whose blocks are odd: without memory, not to be mapped, slow to map, or another block's memory."""

    def __init__(self, inner: FileWindow, **odd: int) -> None:
        super().__init__(os.dup(inner._fd), 0, inner.size, what="odd memory")
        inner.close()
        self.odd = {at * BLOCK: how for how, at in odd.items()}

    def map(self, offset: int, length: int) -> mmap.mmap:
        match self.odd.get(offset):
            case "absent":  # an access beyond the end of a file is SIGBUS, as one that finds no huge page
                made = super().map(offset, length)
                os.ftruncate(self._fd, offset)
                return made
            case "refused":
                raise PermissionLack("it cannot be mapped", seen="EPERM\nand a second line")
            case "slow":
                time.sleep(60)
            case "another":
                return super().map(0, length)
        return super().map(offset, length)


@pytest.mark.fault(76)
def test_memory_that_is_there_is_found_good_and_left_zeroed() -> None:
    with region() as (mem, it, model):
        mem.plug(at(0), 5)
        assert os.pread(model.fd, 1, 0) == bytes([JUNK])
        assert verify(it, [(0, 2), (3, 2)]) == []
        for block in (0, 1, 3, 4):
            assert all(not any(os.pread(model.fd, 8, block * BLOCK + page)) for page in range(0, BLOCK, 4096))
        assert os.pread(model.fd, 8, 2 * BLOCK) == bytes([JUNK]) * 8  # it was not named
        assert mem.block_table.uses == [] and mem.block_table.fresh.total == 5 * BLOCK


@pytest.mark.fault(76)
def test_memory_that_is_not_there_ends_a_child_and_no_more() -> None:
    before = signal.getsignal(signal.SIGBUS), children()
    with region() as (mem, it, model):
        mem.plug(at(0), 8)
        it.window = Odd(it.window, absent=5)
        found = verify(it, [(1, 2), (5, 3)])
        assert [bad.address for bad in found] == [at(5), at(6), at(7)]
        assert found[0].as_dict() == {"address": ADDR + 5 * BLOCK, "why": "SIGBUS at an access"}
        assert {bad.why.partition(" at ")[0] for bad in found[1:]} == {"odd memory cannot be mapped"}
        assert mem.block_table.uses == []
        os.ftruncate(model.fd, SIZE)
    assert (signal.getsignal(signal.SIGBUS), children()) == before


@pytest.mark.fault(76)
def test_memory_of_another_block_and_memory_that_cannot_be_mapped_are_told() -> None:
    with region() as (mem, it, _):
        mem.plug(at(0), 4)
        it.window = Odd(it.window, another=1, refused=3)
        found = verify(it, [(0, 4)])
    assert [bad.address for bad in found] == [at(0), at(3)]  # the second was written last, over the first
    assert f"{at(0):#x} reads" in found[0].why and "was written" in found[0].why
    assert found[1].why == "it cannot be mapped; EPERM and a second line"


@pytest.mark.fault(76)
def test_an_access_that_does_not_return_costs_one_deadline() -> None:
    with region() as (mem, it, _):
        mem.plug(at(0), 4)
        it.window = Odd(it.window, slow=1)
        begin = time.monotonic()
        found = verify(it, [(0, 4)], timeout=0.3)
        assert time.monotonic() - begin < 20
    assert [bad.address for bad in found] == [at(1), at(2), at(3)]
    assert [bad.why for bad in found] == ["no answer to an access within 0.3 s", "not looked at", "not looked at"]


@pytest.mark.parametrize(
    ("lack", "error"),
    [
        (OSError(errno.EAGAIN, "try again"), LimitReached),
        (OSError(errno.EPERM, "no"), OperationFailed),
        (RuntimeError("fork not supported for isolated subinterpreters"), NotSupported),
        (RuntimeError("it fails otherwise"), RuntimeError),
    ],
)
def test_where_there_can_be_no_child_the_cause_is_told(
    lack: Exception, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes: list[int] = []
    real = os.pipe

    def pipe() -> tuple[int, int]:
        pipes.extend(real())
        return pipes[0], pipes[1]

    def fork() -> int:
        raise lack

    with region() as (mem, it, _):
        mem.plug(at(0), 1)
        with monkeypatch.context() as changed:
            changed.setattr(os, "fork", fork)
            changed.setattr(os, "pipe", pipe)
            with pytest.raises(error, match=r"cannot be verified|otherwise") as told:
                verify(it, [(0, 1)])
        for end in pipes:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(end)
        assert told.value is lack or told.value.__cause__ is lack
        assert mem.block_table.uses == [] and verify(it, [(0, 1)]) == []


def test_only_plugged_blocks_that_nothing_uses_are_touched() -> None:
    with region() as (mem, it, model):
        mem.plug(at(0), 4)
        with it.view(2 * BLOCK, 16), pytest.raises(InUse):
            verify(it, [(0, 4)])
        with pytest.raises(NotPlugged):
            verify(it, [(0, 1), (3, 2)])
        assert os.pread(model.fd, 1, 0) == bytes([JUNK])
        assert mem.block_table.uses == []
