"""CPython warns of a fork beside threads; from 3.15 on that can be an exception, which comes after the fork."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.drivers.test_mem_region import at, region
from uvirtio.drivers.mem import verify
from uvirtio.host.writer import ChildWriter


def children() -> str:
    """Those of this thread; a test before may have some, which are not to be reaped here."""
    return Path("/proc/thread-self/children").read_text()


@pytest.fixture
def threaded() -> Iterator[None]:
    """A second thread; after the test, that nothing was warned of and no child was left."""
    before, enough = children(), threading.Event()
    other = threading.Thread(target=enough.wait, args=(60,))
    other.start()
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            yield
        assert [str(one.message) for one in noted] == []
        assert children() == before
    finally:
        enough.set()
        other.join()


def test_a_write_to_sysfs(threaded: None, tmp_path: Path) -> None:
    file = tmp_path / "unbind"
    file.touch()
    with warnings.catch_warnings(action="error"):
        ChildWriter().write(file, "0000:00:04.0", 10)
    assert file.read_text() == "0000:00:04.0"
    ChildWriter().write(file, "0000:00:05.0", 10)
    assert file.read_text() == "0000:00:05.0"


def test_a_look_at_plugged_memory(threaded: None) -> None:
    with region() as (mem, it, _):
        mem.plug(at(0), 2)
        with warnings.catch_warnings(action="error"):
            assert verify(it, [(0, 2)]) == []
        assert verify(it, [(0, 2)]) == []
