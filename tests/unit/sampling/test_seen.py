"""A device that another driver has: what sysfs, /proc/interrupts and uevents show of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from tests.fakes.uevents import SentEvents
from uvirtio.binding.watch import Watcher
from uvirtio.errors import NoSuchDevice
from uvirtio.sampling import seen
from uvirtio.sampling.sample import Sample, Stopped

ADDRESS = "0000:00:03.0"


class Machine:
    """A made-up machine with a disk that is mounted."""

    def __init__(self, top: Path) -> None:
        self.fake = FakeSys(top)
        self.other = self.fake.pci("0000:00:02.0", "rng", group=3)
        disk = self.fake.pci(ADDRESS, "blk", group=4)
        self.fake.child(disk, "virtio1/block/vda", "block", {"dev": "254:0", "size": "2048"})
        self.fake.mountinfo(["25 1 254:0 / / rw,relatime - ext4 /dev/vda rw"])
        for number in (35, 36):
            self.fake.text(disk / f"msi_irqs/{number}", "msix\n")
        self.disk = disk
        self.interrupts(1, 100)

    def interrupts(self, *counts: int) -> None:
        rows = "".join(
            f" {number}:  {count}  0  PCI-MSI 49152-edge  virtio1-{name}\n"
            for number, name, count in zip((35, 36), ("config", "req.0"), counts, strict=True)
        )
        self.fake.text(self.fake.roots.proc / "interrupts", f"       CPU0  CPU1\n{rows}")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_interrupts_are_counted_and_their_rate_is_that_of_the_time(machine: Machine) -> None:
    found: list[Sample] = []

    def tell(sample: Sample) -> None:
        found.append(sample)
        machine.interrupts(1, 100 + 50 * len(found))
        if len(found) == 3:
            raise Stopped

    seen.Seen("vda", machine.fake.roots, interval=0.1, why="why").run(tell)
    first, second, third = found
    assert (first.address, first.type, first.driver) == (ADDRESS, "blk", "virtio_blk")
    assert first.events[0] == "why" and any("mounted" in event for event in first.events)
    assert [vector.name for vector in first.vectors] == ["virtio1-config", "virtio1-req.0"]
    assert first.interrupts == 101 and first.interrupts_per_s == 0
    assert third.interrupts == 201
    passed = third.time - second.time
    assert third.vectors[1].per_s == pytest.approx(50 / passed) and third.vectors[0].per_s == 0
    assert third.interrupts_per_s == pytest.approx(50 / passed)
    assert not third.queues and third.config_changes is None and "rings" in third.about["not seen"]


def test_its_uevents_are_told_and_those_of_others_are_not(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, events = machine.fake, SentEvents()
    monkeypatch.setattr(seen, "Watcher", partial(Watcher, events=events))
    told: list[str] = []

    def tell(sample: Sample) -> None:
        told.extend(sample.events)
        if sample.number == 0:
            events.send("unbind", "/" + str(machine.other.relative_to(fake.sys)), "pci")
            fake.text(machine.disk / "virtio1/block/vda/size", "4096\n")
            path = "/" + str((machine.disk / "virtio1/block/vda").relative_to(fake.sys))
            events.send("change", path, "block", DEVNAME="vda", RESIZE="1")
        elif sample.number == 2:
            raise Stopped

    seen.Seen(ADDRESS, fake.roots, interval=0.1).run(tell)
    assert "changed vda size 2048 -> 4096" in told
    assert not [text for text in told if "unbound" in text]
    assert events.closed


def test_a_device_that_goes_away_ends_it(machine: Machine) -> None:
    def tell(sample: Sample) -> None:
        (machine.fake.sys / "bus/pci/devices" / ADDRESS).unlink()

    with pytest.raises(NoSuchDevice):
        seen.Seen(ADDRESS, machine.fake.roots, interval=0.1).run(tell)


def test_it_can_be_interrupted(machine: Machine) -> None:
    class Signal(BaseException):
        pass

    source = seen.Seen(ADDRESS, machine.fake.roots, interval=60)
    with pytest.raises(Signal):
        source.run(lambda _: source.interrupt(Signal()))
