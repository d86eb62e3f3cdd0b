"""The lock of a device: who waits for it, how long, and who does not wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from uvirtio.errors import Busy
from uvirtio.host import lock

RNG = "0000:00:05.0"
DEAD = "4194999"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Have time pass only where the lock is waited for; ``then`` is called at the third time."""

    def begin(then: Callable[[], None] = lambda: None) -> list[float]:
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            assert len(slept) < 100, "it is waited for beyond the deadline"
            if len(slept) == 3:
                then()

        monkeypatch.setattr(lock.time, "sleep", sleep)
        monkeypatch.setattr(lock.time, "monotonic", lambda: 1000.0 + sum(slept))
        return slept

    return begin


def held(fake: FakeSys, taker: str) -> int:
    fd = lock.take_lock(RNG, fake.roots)
    os.ftruncate(fd, 0)
    os.pwrite(fd, taker.encode(), 0)
    return fd


@pytest.mark.parametrize("taker", [DEAD, "", "x1", "²"])
def test_a_lock_whose_taker_is_not_alive_is_waited_for(
    fake: FakeSys, naps: Callable[..., list[float]], taker: str
) -> None:
    fd = held(fake, taker)
    slept = naps(lambda: os.close(fd))
    os.close(lock.take_lock(RNG, fake.roots, patience=1.0))
    assert len(slept) == 3


def test_a_lock_whose_taker_lives_is_not_waited_for(fake: FakeSys, naps: Callable[..., list[float]]) -> None:
    (fake.roots.proc / "4321").mkdir(parents=True)
    fd = held(fake, "4321\n")
    slept = naps()
    with pytest.raises(Busy):
        lock.take_lock(RNG, fake.roots, patience=1.0)
    assert not slept
    os.close(fd)


@pytest.mark.parametrize(("patience", "tries"), [(0.0, 0), (0.05, 1), (0.12, 3)])
def test_the_wait_has_an_end(fake: FakeSys, naps: Callable[..., list[float]], patience: float, tries: int) -> None:
    fd = held(fake, DEAD)
    slept = naps()
    with pytest.raises(Busy) as refused:
        lock.take_lock(RNG, fake.roots, patience=patience)
    assert len(slept) == tries
    assert "as the guardian of process" in refused.value.seen and "which has ended" in refused.value.seen
    os.close(fd)
