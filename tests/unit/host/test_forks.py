"""Forks: of which CPython warns beside threads (from 3.15 on by an exception after the fork), and by signals."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.children import children
from tests.support.descriptors import descriptors
from tests.support.steps import CtrlC
from tests.unit.drivers.test_mem_region import at, region
from uvirtio.drivers.mem import verify
from uvirtio.host import writer
from uvirtio.host.writer import ChildWriter


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """After the test, no child is left."""
    before = children()
    yield
    assert children() <= before


@pytest.fixture
def threaded() -> Iterator[None]:
    """A second thread; after the test, that nothing was warned of."""
    enough = threading.Event()
    other = threading.Thread(target=enough.wait, args=(60,))
    other.start()
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            yield
        assert [str(one.message) for one in noted] == []
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


@pytest.fixture
def raising() -> Iterator[int]:
    """A signal whose handler raises CtrlC."""

    def handler(*_: object) -> None:
        raise CtrlC

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_no_signal_handler_raises_in_the_child(
    raising: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on as this process does, up to the end of the tests."""
    write: Callable[..., Any] = writer._write_and_exit

    def first(path: Path, text: str) -> None:
        try:
            os.kill(os.getpid(), raising)
            write(path, text)
        finally:
            os._exit(99)

    monkeypatch.setattr(writer, "_write_and_exit", first)
    file = tmp_path / "unbind"
    file.touch()
    ChildWriter().write(file, "0000:00:04.0", 10)
    assert file.read_text() == "0000:00:04.0"


def as_it_forks(number: int) -> Callable[[], int]:
    fork = os.fork

    def forked() -> int:
        child = fork()
        if child:
            os.kill(os.getpid(), number)
        return child

    return forked


def test_a_write_that_has_begun_is_waited_for(
    raising: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "unbind"
    file.touch()
    monkeypatch.setattr(os, "fork", as_it_forks(raising))
    with pytest.raises(CtrlC):
        ChildWriter().write(file, "0000:00:04.0", 10)
    assert file.read_text() == "0000:00:04.0"


def test_a_look_that_is_interrupted_leaves_no_child(raising: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with region() as (mem, it, _):
        mem.plug(at(0), 2)
        before = descriptors()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fork", as_it_forks(raising))
            with pytest.raises(CtrlC):
                verify(it, [(0, 2)])
        assert descriptors() == before
