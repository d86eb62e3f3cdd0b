"""Waiting for udev after a change of drivers, on a made-up tree."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes.fakesys import FakeSys
from tests.fakes.uevents import SentEvents
from uvirtio.binding import settle
from uvirtio.binding.settle import Settling
from uvirtio.errors import OperationFailed
from uvirtio.host.roots import Roots

RNG = "/devices/pci0000:00/0000:00:02.0"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.pci("0000:00:02.0", "rng")
    (made.roots.run / "udev").mkdir()
    return made


@pytest.fixture
def device(fake: FakeSys) -> Path:
    return fake.sys / "bus/pci/devices/0000:00:02.0"


def change(fake: FakeSys, driver: str | None) -> None:
    """Other hands."""
    (fake.sys / RNG[1:] / "driver").unlink()
    if driver is not None:
        fake.attach(fake.sys / RNG[1:], driver)


def test_without_udevd_there_is_nothing_to_wait_for(fake, device):
    with Settling([device], fake.roots) as udev:
        change(fake, "vfio-pci")
        assert udev.wait(60) is False
        assert udev.why == "no udevd runs here"


def test_on_a_machine_without_udevd_libudev_is_not_asked(monkeypatch):
    monkeypatch.setattr(settle, "UdevEvents", lambda group: pytest.fail("its group has no sender"))
    monkeypatch.setattr(settle, "udev_runs", lambda roots: False)
    with Settling([], Roots()) as udev:
        assert udev.wait(60) is False and udev.why == "no udevd runs here"


def test_a_tree_that_is_not_this_machines_has_no_udev_of_this_machines(fake, device, monkeypatch):
    fake.text(fake.roots.run / "udev/control", "")
    monkeypatch.setattr(settle, "UdevEvents", lambda group: pytest.fail("libudev listens on this machine"))
    with Settling([device], fake.roots) as udev:
        assert udev.wait(60) is False and udev.why == "no udevd runs here"
    with Settling([device], fake.roots, events=SentEvents()) as udev:
        assert udev.why is None, "there is something to wait for"


def test_the_devices_own_event_is_waited_for(fake, device):
    events = SentEvents()
    with Settling([device], fake.roots, events=events) as udev:
        change(fake, "vfio-pci")
        events.send("unbind", RNG, "pci")
        with pytest.raises(OperationFailed, match="not done") as caught:
            udev.wait(0.01)
        assert f"no bind of {RNG}" in caught.value.seen
        events.send("bind", "/devices/pci0000:00/0000:00:07.0", "pci", DRIVER="vfio-pci")
        events.send("bind", RNG, "pci", DRIVER="vfio-pci")
        assert udev.wait(60) is True
    assert events.closed


def test_at_its_deadline_it_waits_no_longer(fake, device, monkeypatch):
    clock = iter([5.0, 5.0])
    monkeypatch.setattr(settle, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Settling([device], fake.roots, events=SentEvents()) as udev:
        change(fake, "vfio-pci")
        with pytest.raises(OperationFailed, match="not done after 0 s"):
            udev.wait(0)


def test_then_the_rest_of_udevs_work(fake, device):
    events = SentEvents()
    with Settling([device], fake.roots, events=events) as udev:
        change(fake, None)
        events.send("unbind", RNG, "pci")
        queue = fake.text(fake.roots.run / "udev/queue", "")
        with pytest.raises(OperationFailed) as caught:
            udev.wait(0.01)
        assert caught.value.seen == "it has events left"
        queue.unlink()
        assert udev.wait(60) is True


def test_a_device_that_kept_its_driver_has_no_event(fake, device):
    with Settling([device], fake.roots, events=SentEvents()) as udev:
        assert udev.wait(60) is True


def test_an_event_from_before_does_not_count(fake, device):
    fake.text(fake.sys / "kernel/uevent_seqnum", "10\n")
    events = SentEvents()
    with Settling([device], fake.roots, events=events) as udev:
        change(fake, "vfio-pci")
        events.send("bind", RNG, "pci", 10, DRIVER="vfio-pci")
        with pytest.raises(OperationFailed):
            udev.wait(0.01)


def test_after_an_overrun_the_queue_alone_tells(fake, device):
    events = SentEvents()
    with Settling([device], fake.roots, events=events) as udev:
        change(fake, "vfio-pci")
        queue = fake.text(fake.roots.run / "udev/queue", "")
        events.lose()
        with pytest.raises(OperationFailed):
            udev.wait(0.01)
        queue.unlink()
        assert udev.wait(60) is True
