"""The commands, as a person types them, on a real kernel: taking devices, giving them back, and wrong use."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.virtio_state import started
from tests.vm.commands import PATIENCE, USER, program, read_until, running, uvirtio
from tests.vm.qmp_witness import Witness
from uvirtio.binding import bind as binding
from uvirtio.binding import restore as restoring
from uvirtio.binding.discover import find
from uvirtio.host.roots import Roots

PCI = Path("/sys/bus/pci/devices")
MIB = 1 << 20


def refusal(*words: str, prefix: Sequence[str] = ()) -> tuple[int, dict[str, Any]]:
    """The exit code and the error of a command that must not work; never a traceback."""
    done = program(*words, "--json", prefix=prefix) if prefix else uvirtio(*words, "--json")
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)["error"]


def driver_of(address: str) -> str:
    link = PCI / address / "driver"
    return link.resolve().name if link.exists() else ""


def until(true: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.fixture
def bound(lab_devices: dict[str, str]) -> Iterator[Callable[..., list[str]]]:
    """``bound("rng", "keyboard")`` binds these devices and gives their addresses; all are restored."""

    def take(*names: str) -> list[str]:
        for name in names:
            if name not in lab_devices:
                pytest.skip(f"this machine has no {name}")
        addresses = [lab_devices[name] for name in names]
        done = uvirtio("bind", *addresses)
        assert done.returncode == 0, done.stderr
        return addresses

    yield take
    done = uvirtio("restore", "--all")
    assert done.returncode == 0, done.stderr


def balloon_size(witness: Witness) -> int:
    return int(witness.execute("query-balloon")["actual"])


# --- taking and giving back ---------------------------------------------------------------------------------


def portrait(address: str) -> dict[str, str]:
    """What sysfs shows of a function that its drivers may change."""
    device = PCI / address
    found = {"driver": driver_of(address), "override": (device / "driver_override").read_text()}
    for name in ("enable", "resource", "irq", "class", "modalias"):
        found[name] = (device / name).read_text()
    found["entries"] = " ".join(sorted(entry.name for entry in device.iterdir() if entry.name != "msi_irqs"))
    return found


def without_number(portrait_of: dict[str, str]) -> dict[str, str]:
    """virtioN gets a new N each time that it is made."""
    return {name: re.sub(r"virtio\d+", "virtioN", text) for name, text in portrait_of.items()}


def test_twenty_cycles_leave_sysfs_as_it_was(lab_devices):
    names = [name for name in ("rng", "balloon") if name in lab_devices]
    addresses = [lab_devices[name] for name in names]
    before = [without_number(portrait(address)) for address in addresses]
    roots = Roots()
    for _ in range(20):
        binding.bind([find(address, roots) for address in addresses], roots)
        assert [driver_of(address) for address in addresses] == ["vfio-pci"] * len(addresses)
        restoring.restore(roots, None)
        assert [driver_of(address) for address in addresses] == ["virtio-pci"] * len(addresses)
    assert [without_number(portrait(address)) for address in addresses] == before
    assert uvirtio("journal").stdout.strip() == "nothing is bound by uvirtio"


def test_a_dump_and_a_report_of_a_function(bound, tmp_path):
    [address] = bound("rng")
    dump, page = tmp_path / "rng.json", tmp_path / "rng.html"
    assert uvirtio("dump", address, "--live", "-o", str(dump)).returncode == 0
    done = uvirtio("report", address, "--live", "-o", str(page))
    assert done.returncode == 0, done.stderr
    assert page.stat().st_size < 400 << 10
    [record] = json.loads(dump.read_text())["devices"]
    assert (record["address"], record["driver"], record["type"]) == (address, "vfio-pci", "rng")
    assert "DRIVER_OK" in record["status"]["names"]
    assert record["queues"][0]["ring"]["published"] >= 1 and record["books"]["requestq completions"] >= 1
    # What came back out of the page is the same function, and both agree about it.
    told = json.loads(uvirtio("inspect", "-F", str(page), "--json").stdout)["devices"]
    assert [one["address"] for one in told] == [address]
    assert uvirtio("report", str(dump), "-o", str(page)).returncode == 0


def test_the_kernels_drivers_work_again(lab_devices, bound, witness):
    bound("balloon", "rng", "keyboard")
    assert uvirtio("restore", "--all").returncode == 0
    with Path("/dev/hwrng").open("rb") as source:
        assert len(source.read(16)) == 16
    inputs = Path("/sys/class/input").glob("event*/device/name")
    assert any(name.read_text().strip() == "QEMU Virtio Keyboard" for name in inputs)
    full = balloon_size(witness)
    witness.execute("balloon", value=full - 16 * MIB)
    try:
        until(lambda: balloon_size(witness) == full - 16 * MIB, "virtio_balloon to follow")
    finally:
        witness.execute("balloon", value=full)
        until(lambda: balloon_size(witness) == full, "virtio_balloon to come back")


def test_a_bound_device_can_be_diagnosed(bound):
    for address in bound("rng-iova", "rng", "keyboard", "balloon"):
        done = uvirtio("diag", address, "--json")
        report = json.loads(done.stdout)
        assert done.returncode == 0, report
        assert report["verdict"] in ("pass", "warn")
        steps = {step["name"]: step["verdict"] for step in report["steps"]}
        assert steps["driver_ok"] == steps["leave"] == "pass"
        assert "fail" not in steps.values()


@pytest.mark.fault(66, level="K")
def test_a_killed_process_loses_nothing(bound, witness):
    # kill -9 with the balloon full: the kernel resets the device, and restore still knows the way back.
    (address,) = bound("balloon")
    full = balloon_size(witness)
    with running("balloon", "inflate", address, "32M") as child:
        read_until(child, "holding")
        assert balloon_size(witness) == full - 32 * MIB
        child.kill()
        child.wait(PATIENCE)
        done = uvirtio("balloon", "status", address)
        assert done.returncode == 0, done.stderr
        until(lambda: balloon_size(witness) == full, "actual to be 0 again")
        assert uvirtio("restore", address).returncode == 0
        assert driver_of(address) == "virtio-pci"


def test_an_owner_can_drive_what_the_iommu_holds(lab_devices):
    address = lab_devices.get("rng-iova") or pytest.skip("this machine has no rng-iova")
    try:
        done = uvirtio("bind", address, "--owner", "1234:1234")
        assert done.returncode == 0, done.stderr
        done = program("rng", "read", address, "32", "--json", prefix=USER)
        assert done.returncode == 0, done.stderr
        assert len(bytes.fromhex(json.loads(done.stdout)["hex"])) == 32
    finally:
        uvirtio("restore", "--all")


# --- what inspect says, and what lspci says -----------------------------------------------------------------

LSPCI_CAP = re.compile(r"Vendor Specific Information: VirtIO: (.*)")
LSPCI_PLACE = re.compile(r"BAR=(\d) offset=([0-9a-f]{8}) size=([0-9a-f]{8})(?: multiplier=([0-9a-f]{8}))?")
LSPCI_TYPE = {
    "CommonCfg": "common",
    "Notify": "notify",
    "ISR": "isr",
    "DeviceCfg": "device",
    "<unknown>": "pci_cfg",
}


def by_lspci(address: str) -> list[tuple[str, int, int, int]]:
    lines = subprocess.run(
        ["lspci", "-vv", "-D", "-s", address], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        kind = LSPCI_CAP.search(line)
        place = LSPCI_PLACE.search(following)
        if kind and place:
            bar, offset, size = int(place[1]), int(place[2], 16), int(place[3], 16)
            found.append((LSPCI_TYPE[kind[1]], bar, offset, size))
    return found


def test_inspect_agrees_with_lspci(lab_devices):
    for address in lab_devices.values():
        document = json.loads(uvirtio("inspect", address, "--json").stdout)
        ours = [
            (cap["type"], cap["bar"], cap["offset"], cap["length"])
            for cap in document["capabilities"]
            if cap["type"] != "pci_cfg"
        ]
        theirs = [cap for cap in by_lspci(address) if cap[0] != "pci_cfg"]
        assert theirs, "lspci shows no virtio capability"
        assert sorted(ours) == sorted(theirs)


def test_list_agrees_with_lspci(lab_devices):
    done = program("list", "--json")
    assert done.stdout == uvirtio("list", "--json").stdout
    listed = {d["address"]: d for d in json.loads(done.stdout)["devices"]}
    seen = subprocess.run(["lspci", "-Dn", "-d", "1af4:"], capture_output=True, text=True, check=True).stdout
    theirs = {line.split()[0]: line.split()[2] for line in seen.splitlines()}
    assert {address: device["pci_id"] for address, device in listed.items()} == theirs


# --- wrong use ----------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_changes(lab_devices: dict[str, str]) -> Iterator[None]:
    """A refused command has changed no driver and no override."""

    def everything() -> dict[str, tuple[str, str]]:
        return {
            device.name: (driver_of(device.name), (device / "driver_override").read_text())
            for device in PCI.iterdir()
        }

    before = everything()
    yield
    assert everything() == before
    assert json.loads(uvirtio("journal", "--json").stdout)["entries"] == []


def test_no_such_device(nothing_changes):
    for verb in (["bind"], ["plan"], ["inspect"], ["diag"], ["rng", "read"]):
        words = [*verb, "0000:ee:1f.7", *(["8"] if verb[0] == "rng" else [])]
        code, error = refusal(*words)
        if verb[0] == "diag":
            continue  # its document is a report; see test_cli.py
        assert (code, error["code"]) == (5, "UV-NODEV-NONE"), words


@pytest.mark.fault("R12")
def test_not_virtio(nothing_changes):
    code, error = refusal("bind", "0000:00:1f.2")
    assert (code, error["code"]) == (5, "UV-NODEV-NOT-VIRTIO")


def test_denied(lab_devices, nothing_changes):
    deny = Path("/etc/uvirtio/deny")
    deny.parent.mkdir(exist_ok=True)
    deny.write_text("*\n")
    try:
        address = lab_devices["balloon"] if "balloon" in lab_devices else next(iter(lab_devices.values()))
        for words in (("bind", address), ("balloon", "status", address)):
            code, error = refusal(*words)
            assert (code, error["code"]) == (3, "UV-REFUSED-DENIED")
    finally:
        deny.unlink()


def test_no_root(lab_devices, nothing_changes):
    address = next(iter(lab_devices.values()))
    code, error = refusal("bind", address, prefix=USER)
    assert (code, error["code"]) == (4, "UV-ENV-PERMISSION")
    assert "root" in error["remedy"]


def test_a_device_of_the_kernel_is_not_opened(lab_devices, nothing_changes):
    address = next(iter(lab_devices.values()))
    code, error = refusal("reset", address)
    assert (code, error["code"]) == (3, "UV-REFUSED-NOT-BOUND")
    assert "uvirtio bind" in error["remedy"]


@pytest.mark.fault("R1")
def test_a_mounted_disk_is_not_taken(lab_devices, nothing_changes):
    address = lab_devices.get("disk") or pytest.skip("this machine has no disk")
    disk = next((PCI / address).glob("virtio*/block/*")).name
    subprocess.run(["mkfs.ext2", "-q", f"/dev/{disk}"], check=True, timeout=PATIENCE, capture_output=True)
    Path("/run/mounted").mkdir(exist_ok=True)
    subprocess.run(["mount", f"/dev/{disk}", "/run/mounted"], check=True, timeout=PATIENCE)
    try:
        code, error = refusal("bind", address)
        assert (code, error["code"]) == (3, "UV-REFUSED-IN-USE")
        assert "mounted" in json.dumps(error)
        assert "/run/mounted" in json.dumps(error)
    finally:
        subprocess.run(["umount", "/run/mounted"], check=True, timeout=PATIENCE)


@pytest.mark.fault("R2")
def test_the_nic_in_use_is_not_taken(lab_devices, nothing_changes):
    address = lab_devices.get("nic") or pytest.skip("this machine has no nic")
    nic = next((PCI / address).glob("virtio*/net/*")).name
    subprocess.run(["ip", "link", "set", nic, "up"], check=True, timeout=PATIENCE)
    subprocess.run(["ip", "addr", "add", "10.0.2.15/24", "dev", nic], check=True, timeout=PATIENCE)
    subprocess.run(["ip", "route", "add", "default", "via", "10.0.2.2", "dev", nic], check=True, timeout=PATIENCE)
    try:
        code, error = refusal("bind", address)
        assert (code, error["code"]) == (3, "UV-REFUSED-IN-USE")
        assert "network" in json.dumps(error)
    finally:
        subprocess.run(["ip", "addr", "flush", "dev", nic], check=True, timeout=PATIENCE)
        subprocess.run(["ip", "link", "set", nic, "down"], check=True, timeout=PATIENCE)


@pytest.mark.fault(90)
def test_a_second_process_is_refused(bound, witness):
    (address,) = bound("balloon")
    with running("balloon", "inflate", address, "4M") as child:
        read_until(child, "holding")
        code, error = refusal("balloon", "status", address)
        assert (code, error["code"]) == (3, "UV-REFUSED-BUSY")
        assert str(child.pid) in json.dumps(error)
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 130


@pytest.mark.fault(92)
@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("where", ["inflating", "holding"])
def test_a_signal_leaves_in_order(bound, witness, name, code, where):
    (address,) = bound("balloon")
    full = balloon_size(witness)
    with running("balloon", "inflate", address, "256M") as child:
        if where == "holding":
            read_until(child, "holding")
        else:
            until(lambda: balloon_size(witness) < full, "the first pages")
        child.send_signal(getattr(signal, name))
        assert child.wait(PATIENCE) == code
    assert balloon_size(witness) == full
    assert driver_of(address) == "vfio-pci"
    assert not started(witness.execute, "/machine/peripheral/balloon/virtio-backend")
