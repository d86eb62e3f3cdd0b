"""RLIMIT_MEMLOCK: what a start needs is told at once, and is enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import uvirtio
from uvirtio import scripted
from uvirtio.errors import MemlockExceeded
from uvirtio.host.pages import CPU_PAGE
from uvirtio.scripted.memory import ScriptedDma

MAKE: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "rng": (scripted.Rng, uvirtio.Rng),
    "balloon": (scripted.Balloon, uvirtio.Balloon),
    "mem": (scripted.Mem, uvirtio.Mem),
    "input": (scripted.Input, uvirtio.Input),
    "blk": (scripted.Disk, uvirtio.Blk),
    "scsi": (scripted.ScsiHost, uvirtio.Scsi),
    "net": (scripted.Net, uvirtio.Net),
}


class _Limited:
    """A space that pins against a limit. Satisfies ``LimitedSpace``."""

    def __init__(self, space: ScriptedDma, limit: int) -> None:
        self._space, self._limit, self._held = space, limit, 0
        self.translated, self.contiguous_limit = space.translated, space.contiguous_limit
        self.close = space.close

    def alloc(self, size: int) -> Any:
        size = -(-size // CPU_PAGE) * CPU_PAGE
        error = self.lack(self._held + size)
        if error is not None:
            raise error
        self._held += size
        return self._space.alloc(size)

    def pin(self, size: int) -> Any:
        return self.alloc(size)

    def lack(self, size: int) -> MemlockExceeded | None:
        if size <= self._limit:
            return None
        return MemlockExceeded("too much", seen=f"limit {self._limit}", expected=f"at least {size} bytes")


def _start(kind: str, limit: int) -> scripted.ScriptedDevice:
    model, driver = MAKE[kind]
    found = scripted.ScriptedDevice(model())
    dma = found.dma
    found.dma = lambda translated: _Limited(dma(translated), limit)  # type: ignore[method-assign,return-value,assignment]
    with uvirtio.open(found, timeout=1) as device:
        try:
            driver(device).close()
        finally:
            assert not found.memory.open_blocks(), "what there was of it was freed"
            assert not found.violations, found.violations
    return found


@pytest.mark.parametrize("kind", MAKE)
def test_the_limit_that_is_asked_for_is_enough_at_once(kind: str) -> None:
    with pytest.raises(MemlockExceeded) as caught:
        _start(kind, 0)
    told = re.fullmatch(r"at least (\d+) bytes", str(caught.value.expected))
    assert told is not None
    need = int(told[1])
    with pytest.raises(MemlockExceeded) as caught:
        _start(kind, need - CPU_PAGE)
    assert str(need) in str(caught.value.expected), "the same wherever it ends"
    _start(kind, need)


def test_a_start_that_is_interrupted_while_it_counts_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("uvirtio.device.core.whole_need", interrupted)
    found = scripted.ScriptedDevice(scripted.Rng())
    dma = found.dma
    found.dma = lambda translated: _Limited(dma(translated), 0)  # type: ignore[method-assign,return-value,assignment]
    with uvirtio.open(found, timeout=1) as device:
        with pytest.raises(KeyboardInterrupt):
            uvirtio.Rng(device)
        assert device.state == "not started" and not found.memory.open_blocks()
