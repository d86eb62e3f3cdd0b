"""Memory that says which process made it."""

from __future__ import annotations

import mmap
import os

import pytest

from uvirtio.memory.forks import made_here


def test_a_forked_child_reads_0():
    mark = made_here()
    child = os.fork()
    if not child:
        os._exit(10 + mark[0])
    _, status = os.waitpid(child, 0)
    assert (mark[0], os.waitstatus_to_exitcode(status)) == (1, 10)


def test_a_kernel_that_wipes_nothing_is_asked_each_time(monkeypatch: pytest.MonkeyPatch):
    class Old(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr("uvirtio.memory.forks.mmap.mmap", Old)
    assert made_here()[0] == 0
