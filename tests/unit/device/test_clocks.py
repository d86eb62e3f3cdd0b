"""Clocks that jump and machines that sleep: deadlines are of the monotonic clock, which does neither."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeKernel, FakeSys
from uvirtio import opening
from uvirtio.binding import discover, journal
from uvirtio.binding.bind import bind
from uvirtio.binding.restore import restore
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.drivers.rng import Rng as RngDriver
from uvirtio.errors import DeviceBroken, DeviceResetByOther, DeviceTimeout
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng

PACKAGE = next(top for top in Path(__file__).resolve().parents if (top / "pyproject.toml").exists()) / "uvirtio"

WALL_CLOCK = {
    "binding/journal.py": "when a device was bound, for people, and the order of entries",
    "cli/verbs/bind.py": "how that is shown",
    "cli/verbs/input.py": "the time of an event in a recording",
    "cli/verbs/net.py": "the time of a frame in a capture",
    "evidence/collect.py": "when a dump was made",
}
"""The only modules that may ask what time it is."""

ASKS = re.compile(
    r"\btime\.(time(_ns)?|localtime|gmtime|strftime|ctime|clock_gettime)\b|\b(datetime|date)\.(now|utcnow|today)\("
    r"|^from time import",
    re.MULTILINE,
)


@pytest.mark.fault(99)
def test_no_module_asks_for_the_wall_clock_but_to_show_it() -> None:
    asking = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if ASKS.search(path.read_text())}
    assert asking == set(WALL_CLOCK)


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A wall clock that is an hour, a year and thirty years off, to and fro, at each look."""
    real, jumps = time.time, itertools.cycle([0.0, -3600.0, 31e6, -9.5e8, 3600.0, 9.5e8])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + next(jumps)) * 1e9))
    yield
    monkeypatch.undo()


@pytest.mark.fault(99)
@pytest.mark.usefixtures("jumping")
def test_a_wall_clock_that_jumps_ends_no_wait_and_makes_none_longer() -> None:
    with (
        opening.identify("0000:00:04.0", ScriptedDevice(Balloon()), timeout=30) as device,
        BalloonDriver(device) as balloon,
    ):
        balloon.inflate(1000)
        begin = time.monotonic()
        balloon.follow(timeout=0.05)
        assert balloon.held == 0 and time.monotonic() - begin >= 0.05
    silent = ScriptedDevice(Rng(), silent=True)
    with opening.identify("0000:00:04.0", silent, timeout=30) as device, RngDriver(device) as rng:
        begin = time.monotonic()
        with pytest.raises(DeviceTimeout):
            rng.read(16, timeout=0.05)
        assert 0.05 <= time.monotonic() - begin < 10


@pytest.mark.fault(99, level="X")
@pytest.mark.usefixtures("jumping")
def test_the_journal_needs_no_order_of_times(tmp_path: Path) -> None:
    fake = FakeSys(tmp_path)
    fake.driver("vfio-pci")
    names = [f"0000:0{number}:00.0" for number in range(3, 7)]
    for group, name in enumerate(names):
        fake.pci(name, "rng", group=group)
    before = fake.snapshot()
    for name in (*names, *names):  # bound again: its first entry keeps the state before
        found = discover.find(name, fake.roots)
        bind([found], fake.roots, writer=FakeKernel(fake), sleep=lambda seconds: None)
    times = [entry.time for entry in journal.entries(fake.roots)]
    assert len(times) == len(names) and max(times) - min(times) > 31e6
    restore(fake.roots, writer=FakeKernel(fake), sleep=lambda seconds: None)
    assert fake.snapshot() == before and journal.entries(fake.roots) == []


@pytest.mark.fault(99)
def test_a_device_that_lost_its_state_while_the_machine_slept_is_told_as_reset() -> None:
    """In suspend the monotonic clock stands still, so the wait goes on; what lost power reads status 0 (2.1)."""
    scripted = ScriptedDevice(Rng(), silent=True)
    with opening.identify("0000:00:04.0", scripted, timeout=30) as device, RngDriver(device) as rng:
        looks = 0

        def asleep() -> bool:
            nonlocal looks
            looks += 1
            if looks == 1:
                scripted.reset_by_other()
            return False

        begin = time.monotonic()
        with pytest.raises(DeviceResetByOther):
            device.wait(asleep, timeout=30, what="an answer after the sleep")
        assert time.monotonic() - begin < 10
        writes = len(scripted.violations)
        with pytest.raises(DeviceBroken):
            rng.read(16)
        assert len(scripted.violations) == writes, "nothing was written to the old rings"
    scripted.assert_left()
