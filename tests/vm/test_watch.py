"""``uvirtio watch``, ``bind --wait`` and names of hardware on a real kernel: real hot plug, real changes of hands.

Each without udev, where libudev hands on what the kernel says, and under a systemd-udevd.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.commands import PATIENCE, Command, read_until, running, uvirtio
from tests.vm.qmp_witness import Witness
from tests.vm.test_commands import PCI, driver_of, until
from tests.vm.test_udev import Udev
from uvirtio.binding.watch import SUBSYSTEMS, Watcher, WatchEvent
from uvirtio.host.uevents import KernelEvents, UdevEvents, Uevents

MACHINE = "vfio"
"""It has a root port without a device."""

HWDB = Path("/etc/udev/hwdb.d/20-virtio.hwdb")


@pytest.fixture
def udevd(tmp_path: Path) -> Iterator[Udev]:
    """A systemd-udevd with the part of the hardware database that has virtio's ids."""
    package = os.environ.get("UVIRTIO_UDEV")
    if not package:
        pytest.skip("UVIRTIO_UDEV does not name an unpacked udev (python -m lab.udev makes one)")
    every = next(Path(package).glob("**/hwdb.d/20-pci-vendor-model.hwdb")).read_text(errors="replace")
    udev = Udev(Path(package), tmp_path)
    try:
        HWDB.parent.mkdir()
        HWDB.write_text("\n\n".join(one for one in every.split("\n\n") if one.startswith("pci:v00001AF4")) + "\n")
        udev.compile_hwdb()
        udev.start()
        udev.trigger("--action=add", "--subsystem-match=pci")
        yield udev
        print(udev.log())
    finally:
        udev.stop()


def entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def plugged(witness: Witness) -> Iterator[Callable[[], str]]:
    """``plugged()`` plugs a device in, and gives its address; it is unplugged at the end."""

    def plug() -> str:
        witness.execute("device_add", driver="virtio-rng-pci", id="plugged", bus="lab-spare")
        until(lambda: witness.pci_addresses().get("plugged", "") in entries(PCI), "the function to come")
        return witness.pci_addresses()["plugged"]

    yield plug
    if "plugged" in witness.pci_addresses():
        unplug(witness)


def unplug(witness: Witness) -> None:
    witness.execute("device_del", id="plugged")
    witness.wait_event("DEVICE_DELETED", PATIENCE)


def events_until(child: Command, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that ``watch --json`` prints, up to one with these members."""
    found = []
    for line in child.stdout:
        found.append(json.loads(line))
        if wanted.items() <= found[-1].items():
            return found
    raise AssertionError(f"no {wanted} in {found}")


def steps(found: list[dict[str, Any]], address: str) -> list[tuple[str, str, str | None]]:
    """(event, bus, driver) of what happened to one device."""
    return [(one["event"], one["bus"], one["driver"]) for one in found if one.get("address") == address]


PLUGGED = [("added", "pci", None), ("bound", "virtio", "virtio_rng"), ("bound", "pci", "virtio-pci")]
UNPLUGGED = [("unbound", "virtio", "virtio_rng"), ("unbound", "pci", "virtio-pci"), ("removed", "pci", None)]


def watch_hot_plug(source: str, plugged: Callable[[], str], witness: Witness) -> None:
    with running("watch", "--json", merged=False) as child:
        first = json.loads(child.stdout.readline())
        assert (first["event"], first["sequence"], first["source"]) == ("watching", 0, source)
        address = plugged()
        assert address not in first["devices"]
        found = events_until(child, {"event": "bound", "address": address, "bus": "pci"})
        assert steps(found, address) == PLUGGED
        unplug(witness)
        found += events_until(child, {"event": "removed", "address": address})
        assert steps(found, address) == PLUGGED + UNPLUGGED
        assert [one["sequence"] for one in found] == list(range(1, len(found) + 1))
        assert [one["time"] for one in found] == sorted(one["time"] for one in found)
        assert {one["type"] for one in found if one["address"] == address} == {"rng"}
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 130
        assert child.stdout.read() == ""


def watch_binding(address: str) -> None:
    with running("watch", "--count", "6") as child:
        read_until(child, "watching")
        assert uvirtio("bind", address).returncode == 0
        try:
            assert driver_of(address) == "vfio-pci"
        finally:
            assert uvirtio("restore", "--all").returncode == 0
        lines = [line.split()[2:] for line in child.stdout]
        assert child.wait(PATIENCE) == 0
    ours = [line for line in lines if line[1] == address]
    assert [(line[0], line[-1]) for line in ours] == [
        ("unbound", "virtio_rng"),
        ("unbound", "virtio-pci"),
        ("bound", "vfio-pci"),
        ("unbound", "vfio-pci"),
        ("bound", "virtio_rng"),
        ("bound", "virtio-pci"),
    ]


def test_hot_plug_without_udev(plugged, witness):
    watch_hot_plug("kernel", plugged, witness)


def test_hot_plug_under_udev(udevd, plugged, witness):
    del udevd
    watch_hot_plug("udev", plugged, witness)


def test_hot_plug_by_the_kernels_socket(plugged, witness):
    events = KernelEvents()
    with Watcher(events=events) as watcher:
        address = plugged()
        found = read_to(watcher, lambda one: (one.event, one.bus, one.address) == ("bound", "pci", address))
        unplug(witness)
        found += read_to(watcher, lambda one: (one.event, one.address) == ("removed", address))
    assert [(one.event, one.bus, one.driver) for one in found if one.address == address] == PLUGGED + UNPLUGGED


def read_to(watcher: Watcher, wanted: Callable[[WatchEvent], bool]) -> list[WatchEvent]:
    found: list[WatchEvent] = []
    while not any(wanted(one) for one in found):
        more = watcher.read(PATIENCE)
        assert more, f"nothing more after {found}"
        found += more
    return found


def test_a_function_that_changes_hands(lab_devices):
    watch_binding(lab_devices["rng"])


def test_a_disk_that_grows(lab_devices, witness):
    (drive,) = [one["device"] for one in witness.execute("query-block") if "/disk/" in one.get("qdev", "")]
    (attribute,) = (PCI / lab_devices["disk"]).glob("virtio*/block/*/size")
    sectors = int(attribute.read_text())
    with Watcher() as watcher:
        witness.execute("block_resize", device=drive, size=(sectors + 2048) * 512)
        try:
            found = read_to(watcher, lambda one: one.event == "changed")
        finally:
            witness.execute("block_resize", device=drive, size=sectors * 512)
    assert (found[-1].address, found[-1].bus, found[-1].by) == (lab_devices["disk"], "block", "uevent")
    assert found[-1].changes == {"size": (str(sectors), str(sectors + 2048))}


def test_a_carrier_that_goes(lab_devices, witness):
    (name,) = [path.name for path in (PCI / lab_devices["nic"]).glob("virtio*/net/*")]
    link(name, up=True)
    carrier = Path("/sys/class/net", name, "carrier")
    try:
        until(lambda: carrier.read_text().strip() == "1", "the carrier")
        with Watcher(poll=0.05) as watcher:
            witness.execute("set_link", name="nic", up=False)
            (one,) = read_to(watcher, lambda one: one.event == "changed")
        assert (one.by, one.name, one.changes) == ("poll", name, {"carrier": ("1", "0")})
    finally:
        witness.execute("set_link", name="nic", up=True)
        link(name, up=False)


def link(name: str, *, up: bool) -> None:
    """``ip link set NAME up|down`` (netdevice(7)), where there is no ip."""
    get_flags, set_flags, interface_up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, get_flags, struct.pack("16sh14x", name.encode(), 0))
        flags = struct.unpack("16sh14x", request)[1] & ~interface_up | (interface_up if up else 0)
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", name.encode(), flags))


def test_uevents_that_are_not_read_in_time_are_lost_and_it_is_told(lab_devices):
    overrun(KernelEvents(buffer=32 << 10), lab_devices["rng"])


def test_an_overrun_of_libudevs_buffer_is_told_too(lab_devices):
    overrun(UdevEvents("kernel", SUBSYSTEMS, buffer=32 << 10), lab_devices["rng"])


def overrun(events: Uevents, address: str) -> None:
    uevent = PCI / address / "uevent"
    with Watcher(events=events) as watcher:
        for _ in range(1000):
            uevent.write_text("change")
        assert uvirtio("bind", address).returncode == 0
        try:
            found = read_to(watcher, lambda one: one.event == "bound" and one.address == address)
            assert found[0].event == "lost"
            assert [(one.event, one.by, one.driver) for one in found[1:] if one.address == address] == [
                ("unbound", "scan", "virtio_rng"),
                ("unbound", "scan", "virtio-pci"),
                ("bound", "scan", "vfio-pci"),
            ]
        finally:
            assert uvirtio("restore", address).returncode == 0
        found = read_to(watcher, lambda one: one.event == "bound" and one.driver == "virtio-pci")
        assert {one.by for one in found} == {"uevent"}, "after the scan, events come one by one again"


# --- --wait, and names ----------------------------------------------------------------------------------------


def test_wait_without_udev_says_so(lab_devices):
    done = uvirtio("bind", lab_devices["rng"], "--wait", "30")
    assert done.returncode == 0, done.stderr
    assert "no udevd runs here" in done.stderr
    assert uvirtio("restore", "--all").returncode == 0


def test_after_wait_udev_has_applied_its_rules(udevd, lab_devices):
    """A rule takes as long as a file is there; what it makes is there when bind returns, and not before."""
    address, link = lab_devices["rng-iova"], Path("/dev/uvirtio-slow")
    hold, rule = Path("/run/uvirtio-hold"), udevd.rules / "90-slow.rules"
    loop = f"while [ -e {hold} ]; do sleep 0.1; done"
    rule.write_text(f'SUBSYSTEM=="vfio", ACTION=="add", PROGRAM="/bin/sh -c \'{loop}\'", SYMLINK+="{link.name}"\n')
    try:
        hold.touch()
        udevd.reload()
        with running("bind", address, "--wait", str(PATIENCE)) as child:
            read_until(child, "bound to vfio-pci")
            assert not link.is_symlink()
            assert child.poll() is None
            hold.unlink()
            assert child.wait(PATIENCE) == 0, child.stdout.read()
        assert link.is_symlink()
        done = uvirtio("restore", "--all", "--wait", str(PATIENCE), "--json")
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout)["udev"] == "settled"
        assert not link.is_symlink()
        hold.touch()
        done = uvirtio("bind", address, "--wait", "0.5", "--json")
        assert done.returncode == 1
        told = json.loads(done.stdout)
        assert told["devices"][0]["driver"] == "vfio-pci", "it is bound, and udev is not done"
        assert "udev is not done" in told["error"]["message"]
    finally:
        hold.unlink(missing_ok=True)
        rule.unlink()
        uvirtio("restore", "--all")
        udevd.settle()


def test_names_of_hardware_come_from_the_database(udevd, lab_devices):
    del udevd
    address = lab_devices["rng"]
    names = json.loads(uvirtio("inspect", address, "--json").stdout)["hardware"]
    assert names["vendor"] == "Red Hat, Inc."
    assert "RNG" in names["model"]
    listed = {
        one["address"]: one["hardware"]
        for one in json.loads(uvirtio("list", "--names", "--json").stdout)["devices"]
    }
    assert listed[address] == names
