"""The journal on the disk: whole or not at all, private, and not believed when it is nonsense."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.fakesys import FakeSys
from uvirtio.binding import journal
from uvirtio.binding.journal import DeviceEntry
from uvirtio.binding.standing import drop_ended, node_to_return, standing
from uvirtio.errors import EnvironmentLack
from uvirtio.host.lock import take_lock

DEVICE = DeviceEntry(
    "0000:03:00.0", "pci", "0000:03:00.0", "vfio-pci", "virtio-pci", None, pci_id="1af4:1044",
    subsystem_id="1af4:1100", type="rng", iommu_group=7, node="7", node_before=(0, 0, 0o600), steps=("override",),
)  # fmt: skip


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


def test_what_is_stored_comes_back(fake: FakeSys) -> None:
    fake.text(
        fake.roots.proc / f"{os.getpid()}/stat", f"{os.getpid()} (a) b) R " + " ".join(str(n) for n in range(30))
    )
    entry = journal.new([DEVICE], fake.roots, ["uvirtio", "bind"])
    journal.store(entry, fake.roots)
    assert journal.entries(fake.roots) == [entry]
    assert entry.pid == os.getpid() and entry.pid_start == 18 and entry.kernel == "6.1.0-test"
    assert journal.entries_of("0000:03:00.0", fake.roots) == [(entry, DEVICE)]
    assert journal.entries_of("0000:04:00.0", fake.roots) == []
    (path,) = journal.directory(fake.roots).iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    json.dumps(entry.as_dict())


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 1e400, "x", None])
def test_a_record_with_an_impossible_number_hides_no_other(fake: FakeSys, number: object) -> None:
    entry = journal.new([DEVICE], fake.roots)
    journal.store(entry, fake.roots)
    (path,) = journal.directory(fake.roots).iterdir()
    raw = json.loads(path.read_bytes())
    raw["devices"].append({**raw["devices"][0], "address": "0000:04:00.0", "node_before": [0, 0, number]})
    path.write_text(json.dumps(raw))
    assert journal.entries(fake.roots) == [entry] and journal.damaged(fake.roots) == []


def test_store_replaces_and_remove_removes(fake: FakeSys) -> None:
    entry = journal.new([DEVICE], fake.roots)
    journal.store(entry, fake.roots)
    later = entry._replace(state="bound").with_device(DEVICE._replace(steps=("a", "b")))
    journal.store(later, fake.roots)
    assert journal.entries(fake.roots) == [later]
    journal.remove(later, fake.roots)
    assert journal.entries(fake.roots) == [] and list(journal.directory(fake.roots).iterdir()) == []


def test_entries_of_another_boot_are_passed_over(fake: FakeSys) -> None:
    journal.store(journal.new([DEVICE], fake.roots), fake.roots)
    fake.text(fake.roots.proc / "sys/kernel/random/boot_id", "another\n")
    assert journal.entries(fake.roots) == []
    assert len(journal.entries(fake.roots, every_boot=True)) == 1


@pytest.mark.fault(98)
@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_a_full_disk_is_an_error_and_leaves_nothing(
    fake: FakeSys, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*args: object, **more: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal.directory(fake.roots).mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(EnvironmentLack) as error:
            journal.store(journal.new([DEVICE], fake.roots), fake.roots)
    assert "No space" in str(error.value.seen) and error.value.exit_code == 4
    assert list(journal.directory(fake.roots).iterdir()) == []


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A read-only file system at ``folder``, with what is in it; it takes the right to mount one."""
    made = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no mounts: {made.stderr}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.fault(98)
def test_a_read_only_file_system_is_an_error_of_the_environment(fake: FakeSys) -> None:
    entry = journal.new([DEVICE], fake.roots)
    journal.store(entry, fake.roots)
    kept = sorted(journal.directory(fake.roots).iterdir())
    with read_only(fake.roots.run):
        for change in (
            lambda: journal.store(journal.new([DEVICE], fake.roots), fake.roots),
            lambda: journal.update(entry, DEVICE, fake.roots),
            lambda: journal.drop(entry, DEVICE.address, fake.roots),
        ):
            with pytest.raises(EnvironmentLack) as error:
                change()
            assert "Read-only" in str(error.value.seen) and error.value.exit_code == 4
        with pytest.raises(EnvironmentLack, match="lock"):
            take_lock("0000:00:04.0", fake.roots)
    assert sorted(journal.directory(fake.roots).iterdir()) == kept


def test_it_is_synced_before_it_has_its_name(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        seen.append(sorted(p.suffix for p in journal.directory(fake.roots).iterdir()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    journal.store(journal.new([DEVICE], fake.roots), fake.roots)
    assert seen == [[".tmp"], [".json"]]  # the file, then the directory


@pytest.mark.parametrize(
    "spoil",
    [
        {"schema": "other"},
        {"devices": [{}]},
        {"devices": None},
        {"id": "../../etc/passwd"},
        {"extra": 1},
        {"boot_id": None},
        {"boot_id": ["x"]},
        {"time": "yesterday"},
        {"time": [1]},
        {"time": 10**400},
        {"time": 1e300},
        {"time": float("nan")},
        {"state": {}},
    ],
)
def test_nonsense_is_passed_over(fake: FakeSys, spoil: dict[str, object]) -> None:
    entry = journal.new([DEVICE], fake.roots)
    raw = {"schema": journal.SCHEMA, **entry.as_dict(), **spoil}
    fake.text(journal.directory(fake.roots) / f"{entry.id}.json", json.dumps(raw))
    good = journal.new([DEVICE], fake.roots)
    journal.store(good, fake.roots)
    assert journal.entries(fake.roots) == [good]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../../etc"},
        {"driver": "a/b"},
        {"driver": ".."},
        {"bus": "usb"},
        {"target": "x\0y"},
        {"name": 3},
        {"node": "../../x"},
        {"node_before": [0, 0]},
        {"steps": 3},
        {"address": 5},
        {"address": []},
        {"address": "../x"},
        {"address": "a\0b"},
        {"address": "\ud800"},
        {"name": "A" * 256},
        {"iommu_group": "3"},
    ],
)
def test_a_record_cannot_lead_a_path_astray(fake: FakeSys, change: dict[str, object]) -> None:
    entry = journal.new([DEVICE], fake.roots)
    raw = {"schema": journal.SCHEMA, **entry.as_dict()}
    raw["devices"] = [{**DEVICE.as_dict(), **change}]
    fake.text(journal.directory(fake.roots) / f"{entry.id}.json", json.dumps(raw))
    assert journal.entries(fake.roots) == []


def test_an_owner_without_its_node_is_no_ones(fake: FakeSys) -> None:
    """Hands may have been at the file: what it says of no node is not looked for."""
    fake.pci("0000:03:00.0", "rng", group=7)
    device = DEVICE._replace(name="0000:03:00.0", driver="virtio-pci", pci_id=None, node=None)
    assert device.node_before is not None and node_to_return(device, fake.roots) is None
    assert standing(device, fake.roots) == "as-before"


def test_only_records_of_devices_that_are_locked_end(fake: FakeSys) -> None:
    """Both are gone; another process may be at work with the second."""
    other = DEVICE._replace(address="0000:04:00.0", name="0000:04:00.0")
    entry = journal.new([DEVICE, other], fake.roots)
    journal.store(entry, fake.roots)
    drop_ended({DEVICE.address}, fake.roots)
    (left,) = journal.entries(fake.roots)
    assert left.devices == (other,)


def test_a_bad_record_hides_no_good_one(fake: FakeSys) -> None:
    entry = journal.new([DEVICE], fake.roots)
    raw = {"schema": journal.SCHEMA, **entry.as_dict()}
    raw["devices"] = [{"address": 3}, DEVICE.as_dict(), "x", {**DEVICE.as_dict(), "bus": "usb"}]
    fake.text(journal.directory(fake.roots) / f"{entry.id}.json", json.dumps(raw))
    assert journal.entries(fake.roots) == [entry] and journal.damaged(fake.roots) == []


def test_any_override_is_kept(fake: FakeSys) -> None:
    """The kernel takes any text as an override, and no path is made of it."""
    device = DEVICE._replace(driver_override="../a/b", driverctl="x")
    entry = journal.new([device], fake.roots)
    journal.store(entry, fake.roots)
    assert journal.entries(fake.roots) == [entry]


def test_an_entry_of_an_earlier_version(fake: FakeSys) -> None:
    entry = journal.new([DEVICE], fake.roots)
    raw = {"schema": journal.SCHEMA, **entry.as_dict()}
    for device in raw["devices"]:
        del device["driverctl"]
    fake.text(journal.directory(fake.roots) / f"{entry.id}.json", json.dumps(raw))
    assert journal.entries(fake.roots) == [entry]


def test_what_is_damaged_is_known(fake: FakeSys) -> None:
    journal.store(journal.new([DEVICE], fake.roots), fake.roots)
    bad = fake.text(journal.directory(fake.roots) / "0.json", "{")
    fake.text(journal.directory(fake.roots) / ".0.1.tmp", "{")
    assert journal.damaged(fake.roots) == [bad]


def test_drop_takes_one_device_and_then_the_file(fake: FakeSys) -> None:
    other = DEVICE._replace(address="0000:04:00.0", name="0000:04:00.0")
    entry = journal.new([DEVICE, other], fake.roots)
    journal.store(entry, fake.roots)
    journal.drop(entry, DEVICE.address, fake.roots)
    assert journal.entries_of(DEVICE.address, fake.roots) == []
    journal.drop(entry, other.address, fake.roots)  # the entry in memory still has both
    assert list(journal.directory(fake.roots).iterdir()) == []


def test_update_brings_back_no_record_that_another_process_dropped(fake: FakeSys) -> None:
    other = DEVICE._replace(address="0000:04:00.0", name="0000:04:00.0")
    entry = journal.new([DEVICE, other], fake.roots)
    journal.store(entry, fake.roots)
    journal.drop(entry, DEVICE.address, fake.roots)
    begun = other._replace(steps=("restore",))
    journal.update(entry, begun, fake.roots)  # the entry in memory still has both
    assert journal.entries(fake.roots) == [entry._replace(devices=(begun,))]


@pytest.mark.fault(97)
@given(st.binary(max_size=200))
def test_any_bytes_are_survived(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    fake = FakeSys(tmp_path_factory.mktemp("tree"))
    fake.text(journal.directory(fake.roots) / "0.json", content)
    fake.text(journal.directory(fake.roots) / ".0.1.tmp", content)
    assert journal.entries(fake.roots) == []
