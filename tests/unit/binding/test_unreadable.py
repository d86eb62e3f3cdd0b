"""A directory that cannot be listed is not an empty one: whatever asks for its members says so.

A link that leads to itself cannot be listed by root either.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.fakes.fakesys import FakeSys
from uvirtio.binding import discover, journal
from uvirtio.binding import plan as planning
from uvirtio.binding.doctor import checks
from uvirtio.binding.facts import Facts
from uvirtio.binding.mates import Mates
from uvirtio.binding.plan import plan
from uvirtio.binding.rules import check
from uvirtio.cli import main
from uvirtio.cli.app import run
from uvirtio.errors import EnvironmentLack, PermissionLack, Refused, UvirtioError
from uvirtio.host import process, sysfs

AT, MATE = "0000:03:00.0", "0000:03:00.1"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.driver("vfio-pci")
    made.text(made.roots.proc / "iomem", "00000000-00000000 : System RAM\n")
    return made


def hide(path: Path) -> None:
    if path.exists():
        path.rename(path.with_name("hidden"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)


def unchecked(fake: FakeSys) -> dict[str, str]:
    return {one.rule: one.why for one in check(discover.find(AT, fake.roots), fake.roots).unchecked}


def doctor(fake: FakeSys) -> dict[str, tuple[str, str]]:
    made = checks(fake.roots, qemu_version=lambda _: "")
    assert len({one.name for one in made}) == len(made)
    return {one.name: (one.verdict, one.detail) for one in made}


def test_listed_tells_what_is_not_there_from_what_is_hidden(tmp_path: Path) -> None:
    hide(tmp_path / "hidden-one")
    (tmp_path / "file").touch()
    assert sysfs.listed(tmp_path) == ["file", "hidden-one"]
    assert sysfs.listed(tmp_path / "none") == sysfs.listed(tmp_path / "file") == []
    assert sysfs.listed(tmp_path / "hidden-one") is None and sysfs.names(tmp_path / "hidden-one") == []


# --- the IOMMU group ---------------------------------------------------------------------------------------


@pytest.fixture
def grouped(fake: FakeSys) -> FakeSys:
    """A function whose group has another one, in the kernel's hands, and cannot be listed."""
    fake.pci(AT, "rng", group=7)
    fake.pci(MATE, "net", group=7)
    hide(fake.sys / "kernel/iommu_groups/7/devices")
    return fake


def test_a_group_that_cannot_be_listed_is_not_called_alone(
    grouped: FakeSys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", AT, "--root", str(grouped.top)]) == 0
    out = capsys.readouterr().out
    assert "7, with others that cannot be listed, or alone" in out
    assert "rule group unchecked: the members of IOMMU group 7" in out
    assert main(["inspect", AT, "--json", "--root", str(grouped.top)]) == 0
    assert json.loads(capsys.readouterr().out)["group_members"] is None


def test_the_rest_of_such_a_group_is_not_taken(grouped: FakeSys) -> None:
    found = discover.find(AT, grouped.roots)
    (problem,) = plan(found, grouped.roots, group=True).problems
    assert isinstance(problem, PermissionLack) and "IOMMU group 7" in problem.message
    assert not plan(found, grouped.roots).problems


@pytest.mark.parametrize("lost", ["vendor", "device"])
def test_a_member_that_does_not_say_what_it_is_is_one(fake: FakeSys, lost: str) -> None:
    fake.pci(AT, "rng", group=7)
    (fake.pci(MATE, "net", group=7) / lost).unlink()
    assert Mates(fake.roots).group_members(discover.find(AT, fake.roots)) is None
    (fake.sys / "bus/pci/devices" / MATE).unlink()  # gone between two reads
    assert Mates(fake.roots).group_members(discover.find(AT, fake.roots)) == []


def test_a_function_without_a_group_is_alone(fake: FakeSys) -> None:
    fake.pci(AT, "rng", group=None)
    fake.pci(MATE, "net", group=None)
    assert Mates(fake.roots).group_members(discover.find(AT, fake.roots)) == []


def test_a_group_with_none_but_the_function_is_alone(fake: FakeSys) -> None:
    fake.pci(AT, "rng", group=7)
    assert Mates(fake.roots).group_members(discover.find(AT, fake.roots)) == [] and unchecked(fake) == {}


def test_a_driver_for_user_space_may_be_held_through_a_member_that_cannot_be_listed(fake: FakeSys) -> None:
    fake.vfio(fake.pci(AT, "rng", group=7, driver=None))
    hide(fake.sys / "kernel/iommu_groups/7/devices")
    assert set(unchecked(fake)) == {"group", "other-use"}


# --- the rules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "kind", "rule"),
    [
        ("devices/pci0000:00/0000:03:00.0/virtio0/block/vda/holders", "blk", "mounted"),
        ("fs/ext4", "blk", "mounted"),
        ("fs/btrfs", "blk", "mounted"),
        ("class/block", "blk", "mounted"),
        ("class/tty", "console", "console"),
        ("bus/vdpa/devices", "rng", "other-use"),
        ("fs/virtiofs", "fs", "root-share"),
    ],
)
def test_a_rule_that_cannot_list_says_so(fake: FakeSys, place: str, kind: str, rule: str) -> None:
    device = fake.pci(AT, kind, group=7)
    if kind == "blk":
        fake.child(device, "virtio0/block/vda", "block", {"dev": "254:0\n"})
    assert unchecked(fake) == {}
    hide(fake.sys / place)
    assert unchecked(fake) == {rule: f"{fake.sys / place} cannot be listed"}


def test_what_lies_below_a_device_may_be_hidden(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    device = fake.pci(AT, "net", group=7)
    hidden = str(device / "virtio0")
    scandir = os.scandir

    def some(here: Path) -> object:
        if str(here) == hidden:
            raise PermissionError(13, "Permission denied")
        return scandir(here)

    monkeypatch.setattr(sysfs.os, "scandir", some)
    why = f"{hidden} cannot be listed"
    assert unchecked(fake) == dict.fromkeys(("mounted", "display-input", "other-use"), why)  # network refuses


def test_driverctls_directory(fake: FakeSys) -> None:
    fake.pci(AT, "rng", group=7)
    hide(fake.roots.etc / "driverctl.d")
    assert "driverctl.d cannot be listed" in unchecked(fake)["foreign-override"]


# --- the journal -------------------------------------------------------------------------------------------


RECORD = journal.DeviceEntry(AT, "pci", AT, "vfio-pci", "virtio-pci", None, type="rng")


def test_what_a_device_had_before_may_be_in_a_journal_that_cannot_be_read(fake: FakeSys) -> None:
    fake.vfio(fake.pci(AT, "rng", group=7, driver=None))
    found = discover.find(AT, fake.roots)

    def way_back() -> str:
        return next(one.detail for one in plan(found, fake.roots).checks if one.name == "way-back")

    assert "and not by uvirtio" in way_back()
    hide(journal.directory(fake.roots))
    assert "in a journal that cannot be read here" in way_back()


def test_a_virtual_functions_remedy_is_that_of_its_rule(fake: FakeSys) -> None:
    device = fake.pci(AT, "net", group=7)
    fake.link(device / "physfn", fake.pci(MATE, "net", group=8, driver=None))
    found = discover.find(AT, fake.roots)
    assert planning._remedy("vf-pf", found).endswith(f"uvirtio restore {MATE}")
    assert "this one carries the running system" in planning._remedy("mounted", found)


def test_drivers_that_this_user_may_not_change(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.pci(AT, "rng", group=7)
    found = discover.find(AT, fake.roots)
    (fake.sys / "bus/pci/drivers_probe").unlink()  # what is not there needs no rights
    assert not plan(found, fake.roots).problems
    monkeypatch.setattr(planning, "writable", lambda path: False)
    made = plan(found, fake.roots)
    assert [type(one) for one in made.problems] == [PermissionLack]
    assert [one.verdict for one in made.checks if one.name == "rights"] == ["fail"]


def lock_out(fake: FakeSys, monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Refuse to open these files, as the kernel refuses an ordinary user what is 0600."""
    real, refused = os.open, {*map(str, paths)}

    def opened(path: Any, *more: Any, **how: Any) -> int:
        if os.fspath(path) in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return real(path, *more, **how)

    monkeypatch.setattr(os, "open", opened)


def entry_of(fake: FakeSys) -> Path:
    entry = journal.new([RECORD], fake.roots)
    journal.store(entry, fake.roots)
    return journal.directory(fake.roots) / f"{entry.id}.json"


def unread_by(fake: FakeSys, how: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], str, int]:
    """Make a part of the journal unreadable; which paths are to be named, with which code, and the exit code."""
    home = journal.directory(fake.roots)
    one, two = entry_of(fake), entry_of(fake)
    if how == "directory":
        lock_out(fake, monkeypatch, home)
        monkeypatch.setattr(Path, "iterdir", _refusing(Path.iterdir, lambda path: path == home, ""))
        return [home], "UV-ENV-PERMISSION", 4
    if how == "file":
        lock_out(fake, monkeypatch, one, two)
        return [one, two], "UV-ENV-PERMISSION", 4
    for path in (one, two):
        path.unlink()
    if how == "link":
        one.symlink_to(one)
        two.symlink_to(home / "none")
        return [one, two], "UV-ENV", 4
    for path in (one, two):
        path.write_text('{"schema": "uvirtio-journal/0"}')
    return [one, two], "UV-OPERATION", 1


@pytest.mark.parametrize("good", [False, True], ids=["nothing else", "a good one too"])
@pytest.mark.parametrize("how", ["directory", "file", "link", "damaged"])
def test_what_cannot_be_read_of_the_journal_is_named(
    fake: FakeSys, how: str, good: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By each command that would else say that nothing is bound; what can be read is told, or done, too."""
    other = "0000:04:00.0"
    seen = good and how != "directory"
    if good:  # its device is gone: restore ends it
        journal.store(journal.new([RECORD._replace(address=other, name=other)], fake.roots), fake.roots)
    paths, code, exit_code = unread_by(fake, how, monkeypatch)
    root = ["--root", str(fake.top)]
    assert main(["journal", *root]) == exit_code
    out, err = capsys.readouterr()
    assert code in err and all(str(path) in err for path in paths)
    assert (other in out) == seen and ("as far as" in out) == (not seen)
    assert main(["journal", "--json", *root]) == exit_code
    made = json.loads(capsys.readouterr().out)
    assert made["error"]["code"] == code and len(made["entries"]) == seen
    assert made["damaged" if how == "damaged" else "hidden"] == sorted(map(str, paths))
    verdict, detail = doctor(fake)["journal"]
    assert verdict == "warn" and all(str(path) in detail for path in paths)
    assert main(["restore", "--all", "--json", *root]) == exit_code
    made = json.loads(capsys.readouterr().out)
    assert made["error"]["code"] == code and [one["action"] for one in made["devices"]] == ["gone"] * seen
    assert main(["restore", "--all", *root]) == exit_code
    out, err = capsys.readouterr()
    assert code in err and all(str(path) in err for path in paths)
    assert out == "nothing to restore, as far as the journal can be read\n"
    with pytest.raises(UvirtioError) as raised:
        uvirtio.restore(all=True, roots=fake.roots)
    assert raised.value.code == code


@pytest.mark.parametrize("how", ["directory", "file", "link"])
def test_a_device_is_not_called_foreign_where_its_entry_may_be_hidden(
    fake: FakeSys, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.pci(AT, "rng", group=7, driver="vfio-pci")
    with pytest.raises(Refused, match="was not bound by uvirtio"):
        uvirtio.restore(AT, roots=fake.roots)
    _, code, _ = unread_by(fake, how, monkeypatch)
    assert "journal" in unchecked(fake)["earlier-bind"]
    for forget in (False, True):
        with pytest.raises(EnvironmentLack) as raised:
            uvirtio.restore(AT, forget=forget, roots=fake.roots)
        assert raised.value.code == code


@pytest.mark.parametrize("gone", ["run", "run/uvirtio", "run/uvirtio/journal.d"])
def test_a_journal_that_is_not_there_has_nothing(fake: FakeSys, gone: str, capsys) -> None:
    entry_of(fake)
    (fake.top / gone).rename(fake.top / "elsewhere")
    assert main(["restore", "--all", "--root", str(fake.top)]) == 0
    assert main(["journal", "--root", str(fake.top)]) == 0
    assert capsys.readouterr().out == "nothing to restore\nnothing is bound by uvirtio\n"
    assert doctor(fake)["journal"] == ("pass", "nothing is left bound")


# --- doctor and list ---------------------------------------------------------------------------------------


def test_doctor_does_not_call_hidden_groups_none(fake: FakeSys) -> None:
    fake.text(fake.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n")
    fake.driver("uio_pci_generic")
    hide(fake.sys / "kernel/iommu_groups")
    made = doctor(fake)
    assert made["iommu"] == ("warn", "the IOMMU groups cannot be listed")
    assert made["vfio-pci"][0] == "pass" and "no IOMMU" not in made["vfio-pci"][1]
    assert made["vfio-noiommu"][0] == made["uio"][0] == "skip"


def test_doctor_does_not_call_hidden_nodes_none(fake: FakeSys) -> None:
    hide(fake.roots.dev / "vfio")
    assert doctor(fake)["vfio-access"] == ("warn", "/dev/vfio cannot be listed")


@pytest.mark.parametrize("bus", ["pci", "platform", "vdpa"])
def test_devices_that_cannot_be_listed(fake: FakeSys, capsys: pytest.CaptureFixture[str], bus: str) -> None:
    place = fake.sys / "bus" / bus / "devices"
    hide(place)
    verdict, detail = doctor(fake)["devices"]
    assert verdict == "warn" and f"{place} cannot be listed" in detail
    assert main(["list", "--root", str(fake.top)]) == 0
    assert f"not visible: {place} cannot be listed\n" in capsys.readouterr().out
    assert main(["list", "--json", "--root", str(fake.top)]) == 0
    assert json.loads(capsys.readouterr().out)["hidden"] == [f"{place} cannot be listed"]


# --- processes ---------------------------------------------------------------------------------------------


def test_processes_that_are_not_listed(fake: FakeSys) -> None:
    """In a container, and where /proc is mounted with hidepid, no entry of /proc says that others are missing."""
    assert process.all_visible(fake.roots) and process.open_files(fake.roots).complete
    (fake.roots.proc / "self/ns/pid").symlink_to("pid:[4026531836]")
    assert process.all_visible(fake.roots)
    (fake.roots.proc / "self/ns/pid").unlink()
    (fake.roots.proc / "self/ns/pid").symlink_to("pid:[4026532999]")
    assert not process.open_files(fake.roots).complete and not Facts(fake.roots).mounts_complete
    (fake.roots.proc / "self/ns/pid").unlink()
    (fake.roots.proc / "1").rename(fake.roots.proc / "init")
    assert not process.open_files(fake.roots).complete


# --- directories that may not even be entered -------------------------------------------------------------------


@pytest.fixture
def close(fake: FakeSys, monkeypatch: pytest.MonkeyPatch):
    """Forbids what is below a directory: root, which the tests may run as, is forbidden nothing by its mode."""

    def closed(part: str) -> None:
        top = str(fake.top / part)

        def refused(path: object) -> bool:
            return os.fspath(path).startswith(top + "/")  # type: ignore[call-overload, no-any-return]

        for name in ("stat", "lstat", "open", "readlink", "listdir", "scandir"):
            monkeypatch.setattr(os, name, _refusing(getattr(os, name), refused, top))

    return closed


def _refusing(real: Any, refused: Callable[[object], bool], top: str) -> Callable[..., Any]:
    def call(path: Any = ".", *more: Any, **how: Any) -> Any:
        if not isinstance(path, int) and (
            refused(path) or (os.fspath(path) == top and real.__name__ == "listdir")
        ):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return real(path, *more, **how)

    return call


@pytest.mark.parametrize("part", ["sys", "sys/bus", "sys/bus/pci/devices", "proc", "dev", "run"])
@pytest.mark.parametrize("verb", [["list"], ["doctor"], ["plan", AT], ["inspect", AT], ["restore", "--all"]])
def test_a_directory_that_is_closed_is_no_bug(fake: FakeSys, close, part: str, verb: list[str], capsys) -> None:
    fake.pci(AT, "rng")
    close(part)
    run([*verb, "--root", str(fake.top)])
    told = capsys.readouterr()
    assert "UV-BUG" not in told.out + told.err


@pytest.mark.unprivileged
@pytest.mark.parametrize("part", ["sys", "sys/bus", "sys/bus/pci/devices", "proc", "dev", "run"])
def test_a_directory_with_mode_0_is_no_bug(fake: FakeSys, part: str, capsys) -> None:
    """The same with the kernel's own refusals, which root does not get."""
    fake.pci(AT, "rng")
    closed = fake.top / part
    closed.mkdir(parents=True, exist_ok=True)
    closed.chmod(0)
    try:
        for verb in (["list"], ["doctor"], ["plan", AT], ["restore", "--all"]):
            run([*verb, "--root", str(fake.top)])
        told = capsys.readouterr()
    finally:
        closed.chmod(0o755)
    assert "UV-BUG" not in told.out + told.err


@pytest.mark.unprivileged
def test_an_entry_with_mode_0_is_told(fake: FakeSys, capsys: pytest.CaptureFixture[str]) -> None:
    entry = fake.text(journal.directory(fake.roots) / "0-0-0.json", "{}")
    entry.chmod(0)
    assert journal.hidden(fake.roots) == [entry]
    for verb in (["journal"], ["restore", "--all"]):
        assert main([*verb, "--root", str(fake.top)]) == 4
        assert str(entry) in capsys.readouterr().err


def test_what_may_not_be_seen_is_not_gone(fake: FakeSys, close) -> None:
    device = fake.pci(AT, "rng")
    assert sysfs.exists(device) and not sysfs.gone(device)
    close("sys")
    assert not sysfs.exists(device) and not sysfs.is_dir(device) and not sysfs.gone(device)
    assert sysfs.gone(fake.roots.run / "none") and sysfs.gone(fake.roots.proc / "iomem" / "none")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(fake: FakeSys) -> None:
    """One file after the other: only a foreign tree can have a pipe there, whose opening waits for a writer."""
    fake.pci(AT, "rng", driver="virtio-pci")
    fake.mmio("LNRO0005:01", "blk")
    fake.text(fake.roots.etc / "uvirtio/deny", "# none\n")
    fake.text(fake.roots.proc / "config.gz", b"")
    fake.text(fake.roots.proc / "meminfo", "MemTotal: 1 kB\n")

    def hangs(*_: object) -> None:
        raise AssertionError(f"{place} was waited for")

    before = signal.signal(signal.SIGALRM, hangs)
    try:
        for place in sorted(path for path in fake.roots.sys.parent.rglob("*") if path.is_file()):
            kept = place.with_name("kept")
            place.rename(kept)
            os.mkfifo(place)
            signal.alarm(20)
            checks(fake.roots, qemu_version=lambda _: "")
            with suppress(UvirtioError):
                plan(discover.find(AT, fake.roots), fake.roots)
            signal.alarm(0)
            place.unlink()
            kept.rename(place)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
