"""Memory that says which process made it."""

from __future__ import annotations

import copy
import mmap
import os
import pickle
from collections.abc import Callable

import pytest

import uvirtio
from uvirtio import scripted
from uvirtio.errors import Misuse
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


@pytest.mark.parametrize("send", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_is_open_is_not_copied(send: Callable[[object], object]) -> None:
    """A copy would close it a second time; multiprocessing sends what it starts a process with."""
    with uvirtio.open(scripted.ScriptedDevice(scripted.Rng())) as device, uvirtio.Rng(device) as rng:
        for one in (device, rng, device.queues[0]):
            with pytest.raises(Misuse, match="open one there"):
                send(one)
        assert rng.read(4)
