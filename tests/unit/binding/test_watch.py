"""What uevents mean for the virtio devices of a made-up tree."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes.fakesys import FakeSys
from tests.fakes.uevents import SentEvents
from uvirtio.binding.watch import Watcher, WatchEvent
from uvirtio.errors import Closed, NotSupported, UsageError

RNG = "/devices/pci0000:00/0000:00:02.0"
DISK = "/devices/pci0000:00/0000:00:03.0"
NEW = "/devices/pci0000:00/0000:00:09.0"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.pci("0000:00:02.0", "rng", virtio="virtio0")
    disk = made.pci("0000:00:03.0", "blk", virtio="virtio1")
    made.child(disk, "virtio1/block/vda", "block", {"size": "2048", "ro": "0"})
    return made


@pytest.fixture
def events() -> SentEvents:
    return SentEvents()


@pytest.fixture
def watcher(fake: FakeSys, events: SentEvents) -> Iterator[Watcher]:
    with Watcher(fake.roots, events=events, poll=0) as made:
        yield made


def told(found: list[WatchEvent]) -> list[tuple[str, ...]]:
    """(event, address, name, driver) of each."""
    return [(one.event, one.address or "", one.name or "", one.driver or "") for one in found]


def test_it_knows_what_is_there_at_first(watcher):
    assert watcher.devices == ("0000:00:02.0", "0000:00:03.0")
    assert watcher.read(0) == []


def test_hot_plug(fake, events, watcher):
    fake.pci("0000:00:09.0", "input", virtio="virtio7")
    events.send("add", NEW, "pci", PCI_ID="1AF4:1052")
    events.send("add", f"{NEW}/virtio7", "virtio", MODALIAS="virtio:d00000012v00001AF4")
    events.send("bind", f"{NEW}/virtio7", "virtio", DRIVER="virtio_input")
    events.send("bind", NEW, "pci", DRIVER="virtio-pci")
    found = watcher.read(0)
    assert told(found) == [
        ("added", "0000:00:09.0", "0000:00:09.0", ""),
        ("bound", "0000:00:09.0", "virtio7", "virtio_input"),
        ("bound", "0000:00:09.0", "0000:00:09.0", "virtio-pci"),
    ]
    assert [one.sequence for one in found] == [1, 2, 3]
    assert [one.seqnum for one in found] == [1, 3, 4]
    assert {(one.type, one.by) for one in found} == {("input", "uevent")}
    assert [one.bus for one in found] == ["pci", "virtio", "pci"]
    assert found[0].time <= found[1].time <= found[2].time


def test_removal(events, watcher):
    events.send("unbind", f"{RNG}/virtio0", "virtio")
    events.send("remove", f"{RNG}/virtio0", "virtio")
    events.send("unbind", RNG, "pci")
    events.send("remove", RNG, "pci", PCI_ID="1AF4:1044")
    assert told(watcher.read(0)) == [
        ("unbound", "0000:00:02.0", "virtio0", "virtio_rng"),
        ("unbound", "0000:00:02.0", "0000:00:02.0", "virtio-pci"),
        ("removed", "0000:00:02.0", "0000:00:02.0", ""),
    ]


def test_a_function_is_looked_up_where_its_event_does_not_say_what_it_is(fake, events, watcher):
    fake.pci("0000:00:09.0", "input", virtio="virtio7")
    events.send("add", NEW, "pci")
    assert [(one.event, one.address) for one in watcher.read(0)] == [("added", "0000:00:09.0")]


def test_a_device_that_was_gone_again_before_anybody_looked_is_told(events, watcher):
    events.send("add", NEW, "pci", PCI_ID="1AF4:1044")
    events.send("remove", NEW, "pci", PCI_ID="1AF4:1044")
    found = watcher.read(0)
    assert told(found) == [
        ("added", "0000:00:09.0", "0000:00:09.0", ""),
        ("removed", "0000:00:09.0", "0000:00:09.0", ""),
    ]
    assert found[0].type == "rng"


@pytest.mark.parametrize(
    ("subsystem", "where", "address"),
    [
        ("vdpa", "/devices/virtual/vdpa/vduse7", "vdpa:vduse7"),
        ("platform", "/devices/platform/LNRO0005:07", "LNRO0005:07"),
        ("pci", "/devices/pci0000:00/0000:00:09.0:pcie001", None),
        ("pci", "/devices/pci0000:00", None),
        ("platform", "/devices/platform/serial8250", None),
        ("acpi", "/devices/LNXSYSTM:00/LNXSYBUS:00/LNRO0005:07", None),
        ("vdpa", "/devices/virtual/vdpa/LNRO0005:07", "vdpa:LNRO0005:07"),  # names that their owner has chosen
        ("vdpa", "/devices/virtual/vdpa/0000:00:0b.0", "vdpa:0000:00:0b.0"),
        ("net", "/devices/virtual/vdpa/vduse7", None),
        ("pci_express", NEW, None),
    ],
)
def test_what_was_gone_again_is_told_by_its_bus_and_name(events, watcher, subsystem, where, address):
    events.send("add", where, subsystem, PCI_ID="1AF4:1044")
    events.send("remove", where, subsystem, PCI_ID="1AF4:1044")
    expected = [] if address is None else [("added", address), ("removed", address)]
    assert [(one.event, one.address) for one in watcher.read(0)] == expected


@pytest.mark.parametrize("pci_id", ["8086:10C9", "1AF4:1110", "", "1AF4", "x:y"])
def test_other_functions_are_passed_over(events, watcher, pci_id):
    events.send("add", NEW, "pci", PCI_ID=pci_id)
    events.send("remove", NEW, "pci", PCI_ID=pci_id)
    assert watcher.read(0) == []


def test_what_udev_and_udevadm_trigger_repeat_is_told_once(events, watcher):
    events.send("add", RNG, "pci", PCI_ID="1AF4:1044", SYNTH_UUID="0")
    events.send("bind", RNG, "pci", DRIVER="virtio-pci", SYNTH_UUID="0")
    events.send("change", DISK + "/virtio1/block/vda", "block", SYNTH_UUID="0")
    events.send("unbind", RNG, "pci")
    events.send("unbind", RNG, "pci")
    assert told(watcher.read(0)) == [("unbound", "0000:00:02.0", "0000:00:02.0", "virtio-pci")]


def test_a_change_of_hands(events, watcher):
    events.send("unbind", f"{RNG}/virtio0", "virtio")
    events.send("remove", f"{RNG}/virtio0", "virtio")
    events.send("unbind", RNG, "pci")
    events.send("bind", RNG, "pci", DRIVER="vfio-pci")
    assert told(watcher.read(0))[-2:] == [
        ("unbound", "0000:00:02.0", "0000:00:02.0", "virtio-pci"),
        ("bound", "0000:00:02.0", "0000:00:02.0", "vfio-pci"),
    ]


def test_a_resized_disk(fake, events, watcher):
    fake.text(fake.sys / DISK[1:] / "virtio1/block/vda/size", "4096")
    events.send("change", f"{DISK}/virtio1/block/vda", "block", RESIZE="1")
    (one,) = watcher.read(0)
    assert (one.event, one.bus, one.name, one.address) == ("changed", "block", "vda", "0000:00:03.0")
    assert one.changes == {"size": ("2048", "4096")}
    assert one.as_dict()["changes"] == {"size": {"before": "2048", "now": "4096"}}


def test_a_carrier_is_looked_at(fake, events):
    nic = fake.pci("0000:00:05.0", "net", virtio="virtio4")
    fake.child(nic, "virtio4/net/eth0", "net", {"carrier": "1", "mtu": "1500"})
    with Watcher(fake.roots, events=events, poll=0.001) as watcher:
        assert watcher.read(0.01) == []
        fake.text(nic / "virtio4/net/eth0/carrier", "0")
        (one,) = watcher.read(10)
    assert (one.event, one.by, one.bus, one.name) == ("changed", "poll", "net", "eth0")
    assert one.changes == {"carrier": ("1", "0")}


def test_a_carrier_is_looked_at_once_in_an_interval(fake, events):
    nic = fake.pci("0000:00:05.0", "net", virtio="virtio4")
    fake.child(nic, "virtio4/net/eth0", "net", {"carrier": "1", "mtu": "1500"})
    with Watcher(fake.roots, events=events, poll=86400) as watcher:
        fake.text(nic / "virtio4/net/eth0/carrier", "0")
        assert watcher.read(0) == []


@pytest.mark.parametrize("timeout", [None, 86400])
def test_no_wait_is_longer_than_until_the_next_look(fake, events, timeout):
    nic = fake.pci("0000:00:05.0", "net", virtio="virtio4")
    carrier = fake.child(nic, "virtio4/net/eth0", "net", {"carrier": "1"}) / "carrier"
    waits = []

    def poll(milliseconds):
        waits.append(milliseconds)
        fake.text(carrier, "0")
        watcher._polled_at -= 60

    with Watcher(fake.roots, events=events, poll=60) as watcher:
        watcher._poller = SimpleNamespace(poll=poll)
        (one,) = watcher.read(timeout)
    assert one.changes == {"carrier": ("1", "0")} and len(waits) == 1
    assert waits[0] is not None and 0 < waits[0] <= 60_001


def test_without_an_interface_nothing_is_looked_at(watcher):
    assert not watcher._has_polled()


def test_an_event_from_before_the_scan_is_passed_over(fake, events):
    fake.text(fake.sys / "kernel/uevent_seqnum", "10\n")
    with Watcher(fake.roots, events=events, poll=0) as watcher:
        events.send("unbind", RNG, "pci", 10)
        assert watcher.read(0) == []
        events.send("unbind", RNG, "pci", 11)
        assert [one.event for one in watcher.read(0)] == ["unbound"]


# --- loss ---------------------------------------------------------------------------------------------------


def test_after_a_loss_the_devices_are_compared(fake, events, watcher):
    events.send("add", NEW, "pci", PCI_ID="1AF4:1044")
    shutil.rmtree(fake.sys / RNG[1:])
    (fake.sys / "bus/pci/devices/0000:00:02.0").unlink()
    (fake.sys / DISK[1:] / "driver").unlink()
    fake.attach(fake.sys / DISK[1:], "vfio-pci")
    fake.pci("0000:00:09.0", "balloon", virtio="virtio9")
    events.lose()
    found = watcher.read(0)
    assert (found[0].event, found[0].by, found[0].address) == ("lost", "uevent", None)
    assert {one.by for one in found[1:]} == {"scan"}
    assert told(found[1:]) == [
        ("removed", "0000:00:02.0", "0000:00:02.0", ""),
        ("unbound", "0000:00:03.0", "0000:00:03.0", "virtio-pci"),
        ("bound", "0000:00:03.0", "0000:00:03.0", "vfio-pci"),
        ("added", "0000:00:09.0", "0000:00:09.0", ""),
        ("bound", "0000:00:09.0", "0000:00:09.0", "virtio-pci"),
        ("bound", "0000:00:09.0", "virtio9", "virtio_balloon"),
    ]
    assert watcher.read(0) == []


def test_what_changed_hands_during_a_loss_is_told_on_both_buses(fake, events, watcher):
    device = fake.sys / DISK[1:]
    shutil.rmtree(device / "virtio1")
    (fake.sys / "bus/virtio/devices/virtio1").unlink()
    (device / "driver").unlink()
    (fake.sys / "bus/pci/drivers/virtio-pci/0000:00:03.0").unlink()
    fake.attach(device, "vfio-pci")
    events.lose()
    assert [(one.event, one.bus, one.name, one.driver) for one in watcher.read(0)[1:]] == [
        ("unbound", "virtio", "virtio1", "virtio_blk"),
        ("unbound", "pci", "0000:00:03.0", "virtio-pci"),
        ("bound", "pci", "0000:00:03.0", "vfio-pci"),
    ]
    (device / "driver").unlink()
    fake.attach(device, "virtio-pci")
    fake.virtio(device, "virtio5", "blk", 1 << 32)
    events.lose()
    assert [(one.event, one.bus, one.name, one.driver) for one in watcher.read(0)[1:]] == [
        ("unbound", "pci", "0000:00:03.0", "vfio-pci"),
        ("bound", "pci", "0000:00:03.0", "virtio-pci"),
        ("bound", "virtio", "virtio5", "virtio_blk"),
    ]


def test_events_of_a_virtio_device_that_has_no_driver_say_nothing(fake, events, watcher):
    for action in ("change", "unbind", "unbind", "change"):
        events.send(action, f"{RNG}/virtio0", "virtio")
    assert told(watcher.read(0)) == [("unbound", "0000:00:02.0", "virtio0", "virtio_rng")]


def test_a_loss_without_a_difference_is_told_all_the_same(fake, events, watcher):
    fake.text(fake.sys / DISK[1:] / "virtio1/block/vda/size", "4096")
    events.lose()
    found = watcher.read(0)
    assert [one.event for one in found] == ["lost", "changed"]
    assert found[1].changes == {"size": ("2048", "4096")}


def test_another_device_in_the_place_of_one(fake, events, watcher):
    fake.text(fake.sys / RNG[1:] / "device", "0x1052\n")
    events.lose()
    assert [one.event for one in watcher.read(0)][:3] == ["lost", "removed", "added"]


# --- other buses --------------------------------------------------------------------------------------------


def test_a_vdpa_device_goes_by_its_node_while_vhost_vdpa_has_it(fake, events, watcher):
    path = fake.vdpa("vduse0", driver=None)
    where = "/devices/virtual/vdpa/vduse0"
    events.send("add", where, "vdpa")
    assert told(watcher.read(0)) == [("added", "vdpa:vduse0", "vduse0", "")]
    fake.attach(path, "vhost_vdpa", bus="vdpa")
    fake.vhost_vdpa(path, 3)
    events.send("bind", where, "vdpa", DRIVER="vhost_vdpa")
    assert told(watcher.read(0)) == [("bound", "/dev/vhost-vdpa-3", "vduse0", "vhost_vdpa")]
    shutil.rmtree(path / "vhost-vdpa-3")
    events.send("unbind", where, "vdpa")
    events.send("remove", where, "vdpa")
    assert [one[0] for one in told(watcher.read(0))] == ["unbound", "removed"]


def test_a_window_of_virtio_mmio(fake, events, watcher):
    fake.mmio("LNRO0005:03")
    fake.mmio("serial8250")
    events.send("add", "/devices/platform/LNRO0005:03", "platform", MODALIAS="acpi:LNRO0005:")
    events.send("add", "/devices/platform/serial8250", "platform", MODALIAS="platform:serial8250")
    events.send("add", "/devices/platform/a003e00.virtio_mmio", "platform")
    assert told(watcher.read(0)) == [
        ("added", "LNRO0005:03", "LNRO0005:03", ""),
        ("added", "a003e00.virtio_mmio", "a003e00.virtio_mmio", ""),
    ]


# --- waiting ------------------------------------------------------------------------------------------------


def test_interrupt_ends_a_wait_at_its_next_turn(watcher):
    watcher.interrupt(KeyboardInterrupt(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        watcher.read()


def test_interrupt_wakes_the_one_who_waits_though_there_is_no_standard_input(fake, events):
    stdin = os.dup(0)
    os.close(0)
    try:
        with Watcher(fake.roots, events=events, poll=0) as watcher:
            assert watcher._wake == 0
            watcher.interrupt(KeyboardInterrupt(signal.SIGINT))
            assert watcher._poller.poll(0), "a wait would end"
        watcher.interrupt(KeyboardInterrupt(signal.SIGINT))  # too late, and no error
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(0)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
def test_a_time_that_no_clock_passes_is_refused(fake, watcher, seconds):
    with pytest.raises(UsageError, match="timeout"):
        watcher.read(seconds)
    with pytest.raises(UsageError, match="poll"):
        Watcher(fake.roots, poll=seconds)


def test_an_iterator(events, watcher):
    events.send("unbind", RNG, "pci")
    assert next(iter(watcher)).event == "unbound"


def test_closing(events, watcher):
    watcher.close()
    watcher.close()
    assert events.closed
    with pytest.raises(Closed):
        watcher.read(0)


def test_a_made_up_tree_has_no_uevents(fake):
    with pytest.raises(NotSupported, match="cannot be watched"):
        Watcher(fake.roots)
