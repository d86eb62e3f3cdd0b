"""What the host changes while a driver starts: before DRIVER_OK no device notifies it, and QEMU's says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from uvirtio import opening
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.base import Driver
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.mem import Mem
from uvirtio.drivers.net import Net
from uvirtio.scripted import ScriptedDevice
from uvirtio.scripted.balloon import Balloon as BalloonModel
from uvirtio.scripted.blk import Disk
from uvirtio.scripted.mem import Mem as MemModel
from uvirtio.scripted.net import Net as Card

MIB = 1 << 20


def started(model, kind: type[Driver], change: Callable[[], None], **options) -> Driver:
    """A driver whose host changes the configuration before DRIVER_OK; no interrupt and no generation tells."""
    device = ScriptedDevice(model)

    @contextmanager
    def observe(step: str) -> Iterator[None]:
        if step == "driver_ok":
            change()
        yield

    opened = opening.identify("0000:00:04.0", device)
    driver = kind(opened, observe=observe, **options)
    assert opened.counters.config_changes == 0, "it was not notified"
    return driver


@pytest.mark.spec("CFG-03")
def test_a_disk_has_the_size_that_it_has_now() -> None:
    for ask in (lambda disk: disk.capacity, lambda disk: disk.known_capacity):
        model = Disk(sectors=64)
        with started(model, Blk, partial(model.put, "capacity", 128)) as disk:
            assert ask(disk) == 128


def test_a_disk_that_stands_still_is_not_told_as_changed() -> None:
    with started(Disk(sectors=64), Blk, lambda: None) as disk:
        assert not disk.wait_for_change(timeout=0)


def test_a_cable_that_was_pulled_is_pulled() -> None:
    model = Card()
    with started(model, Net, lambda: model.put("status", 0)) as net:
        assert net.send([bytes(60)]) == 0, "nothing is sent without a link"
        assert not net.config.link and not net.link


def test_a_balloon_and_memory_have_the_target_of_now() -> None:
    balloon = BalloonModel()
    with started(balloon, Balloon, partial(balloon.set_target, 7)) as driver:
        assert driver.num_pages == 7
    memory = MemModel()
    with started(memory, Mem, lambda: memory.put("requested_size", 8 * MIB)) as mem:
        assert mem.config().requested_size == 8 * MIB
