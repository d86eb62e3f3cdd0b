"""Doctor on made-up machines: what it says, and that it only looks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from uvirtio.binding import doctor, journal
from uvirtio.binding.checks import Check
from uvirtio.host.roots import Roots


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


@pytest.fixture(autouse=True)
def no_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def qemu(tmp_path: Path, cpu: str = "x86_64") -> None:
    path = tmp_path / f"bin/qemu-system-{cpu}"
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/false\n")
    path.chmod(0o755)


def run(fake: FakeSys, version: str = "QEMU emulator version 7.2.22") -> dict[str, Check]:
    made = doctor.checks(fake.roots, qemu_version=lambda path: version)
    json.dumps([check.as_dict() for check in made])
    assert all(check.remedy for check in made if check.verdict == "fail")
    assert len({check.name for check in made}) == len(made)
    return {check.name: check for check in made}


def test_a_machine_with_everything(fake: FakeSys, tmp_path: Path) -> None:
    qemu(tmp_path)
    fake.driver("vfio-pci")
    fake.driver("uio_pci_generic")
    fake.pci("0000:03:00.0", "rng", group=7)
    fake.vdpa("vduse0")
    me = fake.roots.proc / "self"
    fake.text(me / "status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
    fake.text(me / "limits", "Max locked memory         8388608              8388608              bytes\n")
    fake.text(fake.sys / "kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "16\n")
    fake.text(fake.sys / "kernel/security/lockdown", "[none] integrity confidentiality\n")
    fake.text(fake.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n")
    fake.text(fake.roots.proc / "pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    before = fake.snapshot()
    made = run(fake)
    assert {check.verdict for check in made.values()} == {"pass", "skip"}
    skipped = [name for name, check in made.items() if check.verdict == "skip"]
    assert skipped == ["vfio-cdev", "vfio-noiommu", "vfio-access", "uio", "devmem"]
    assert made["ways"].detail == "vfio-pci, vhost-vdpa, qemu:"
    assert made["vfio-noiommu"].detail == "not needed: there is an IOMMU"
    assert made["vfio-access"].detail.startswith("no function is bound")
    assert made["uio"].detail.endswith("not needed: vfio-pci is the better way")
    assert made["devmem"].detail == "no virtio-mmio window here"
    assert fake.snapshot() == before and list(fake.roots.run.iterdir()) == []


def test_a_module_that_may_be_there_is_not_called_missing(fake: FakeSys) -> None:
    assert run(fake)["vfio-pci"].detail.endswith("bind tries modprobe")
    for name in ("modules.dep", "modules.builtin"):
        fake.text(fake.top / "lib/modules/6.1.0-test" / name, "kernel/a.ko:\n")
    assert "is not installed for kernel 6.1.0-test" in run(fake)["vfio-pci"].detail


def test_vdpa_nodes_and_a_wait_without_end(fake: FakeSys) -> None:
    made = run(fake)
    assert made["vhost-vdpa"].verdict == "skip" and made["vhost-vdpa"].detail == "no vdpa device here"
    fake.vdpa("vduse0")
    fake.vdpa("vduse1", index=1)
    fake.text(fake.sys / "class/vduse/vduse0/msg_timeout", "0\n")
    fake.text(fake.sys / "class/vduse/vduse1/msg_timeout", "30\n")
    made = run(fake)
    assert made["vhost-vdpa"].verdict == made["vhost-vdpa-access"].verdict == "pass"
    assert made["vduse"].verdict == "warn" and "vduse0" in made["vduse"].remedy
    (fake.roots.dev / "vhost-vdpa-1").unlink()  # as good as closed, for root too
    made = run(fake)
    assert made["vhost-vdpa-access"].verdict == "warn" and "/dev/vhost-vdpa-1" in made["vhost-vdpa-access"].detail


def test_memory_pressure(fake: FakeSys) -> None:
    made = run(fake)["pressure"]
    assert made.verdict == "skip" and "there is no " in made.detail and "psi=1" in made.remedy
    path = fake.roots.proc / "pressure/memory"
    path.mkdir(parents=True)  # as good as turned off: it is there and cannot be opened
    made = run(fake)["pressure"]
    assert made.verdict == "skip" and "cannot be opened" in made.detail
    path.rmdir()
    path.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    made = run(fake)["pressure"]
    assert (made.verdict, made.remedy) == ("pass", "") and "PSI" in made.detail


def test_a_kernel_without_vdpa(fake: FakeSys) -> None:
    (fake.sys / "bus/vdpa/devices").rmdir()
    (fake.sys / "bus/vdpa/drivers").rmdir()
    (fake.sys / "bus/vdpa/drivers_probe").unlink()
    (fake.sys / "bus/vdpa").rmdir()
    assert run(fake)["vhost-vdpa"].detail == "no vdpa device here"  # without an index that cannot be known
    fake.text(fake.top / "lib/modules/6.1.0-test/modules.dep", "kernel/a.ko:\n")
    assert run(fake)["vhost-vdpa"].detail == "this kernel has no vdpa"


@pytest.mark.fault(94)
def test_a_machine_with_nothing(tmp_path: Path) -> None:
    made = {check.name: check for check in doctor.checks(Roots.under(tmp_path / "nothing"))}
    assert made["ways"].verdict == "fail" and "qemu-system-x86" in made["ways"].remedy
    assert made["iommu"].verdict == made["vfio-pci"].verdict == made["qemu"].verdict == "warn"
    assert "intel_iommu=on" in made["iommu"].remedy
    assert (made["kernel"].verdict, made["kernel"].detail) == ("warn", "unknown, without a /sys")


@pytest.mark.fault(94)
def test_ways_without_an_iommu(fake: FakeSys) -> None:
    fake.driver("vfio-pci")
    fake.driver("uio_pci_generic")
    pool = fake.sys / "kernel/mm/hugepages/hugepages-2048kB"
    status = fake.roots.proc / "self/status"
    fake.text(status, "CapEff:\t000001ffffffffff\n")
    fake.text(pool / "nr_hugepages", "0\n")
    fake.text(pool / "free_hugepages", "0\n")
    made = run(fake)
    assert made["vfio-pci"].verdict == "warn" and "no IOMMU" in made["vfio-pci"].detail
    assert made["vfio-noiommu"].verdict == "skip" and "not loaded" in made["vfio-noiommu"].detail
    assert made["uio"].verdict == "warn" and str(pool / "nr_hugepages") in made["uio"].remedy
    switch = fake.text(fake.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n")
    made = run(fake)
    assert made["vfio-noiommu"].verdict == "warn" and f"echo 1 > {switch}" in made["vfio-noiommu"].remedy
    fake.text(switch, "Y\n")
    fake.text(pool / "free_hugepages", "24\n")
    made = run(fake)
    assert made["vfio-noiommu"].verdict == made["uio"].verdict == "pass"
    assert "24 huge pages" in made["uio"].detail
    assert "without an IOMMU" in made["ways"].detail and "uio_pci_generic" in made["ways"].detail
    fake.text(fake.sys / "kernel/security/lockdown", "none [integrity] confidentiality\n")
    assert run(fake)["uio"].verdict == "warn"
    fake.text(fake.sys / "kernel/security/lockdown", "[none] integrity confidentiality\n")
    fake.text(status, "CapEff:\t0000000000000000\n")
    assert "root" in run(fake)["uio"].remedy
    switch.unlink()
    assert "no such mode" in run(fake)["vfio-noiommu"].detail


def test_a_uio_driver_that_is_missing_is_told_with_and_without_an_iommu(fake: FakeSys) -> None:
    """Free huge pages do not make up for it, nor does a group hide it."""
    fake.text(fake.roots.proc / "self/status", "CapEff:\t000001ffffffffff\n")
    fake.text(fake.sys / "kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "24\n")
    for name in ("modules.dep", "modules.builtin"):
        fake.text(fake.top / "lib/modules/6.1.0-test" / name, "kernel/a.ko:\n")
    for group in (None, 7):
        fake.pci(f"0000:0{group or 3}:00.0", "rng", group=group)
        uio = run(fake)["uio"]
        assert uio.verdict == "warn" and "uio_pci_generic is not installed" in uio.detail
        assert uio.remedy.startswith("only needed without an IOMMU: ")


def test_windows_and_what_reaches_them(fake: FakeSys) -> None:
    fake.mmio("LNRO0005:00")
    made = run(fake)["devmem"]
    assert made.detail == f"no {fake.roots.dev / 'mem'}" and "CONFIG_DEVMEM" in made.remedy
    (fake.roots.dev / "mem").touch()
    whole = run(fake)
    made = whole["devmem"]
    assert (made.verdict, made.remedy) == ("pass", "") and "1 windows, which no driver has" in made.detail
    assert "/dev/mem (--unsafe-dma)" in whole["ways"].detail
    fake.mmio("LNRO0005:01", "rng")
    made = run(fake)["devmem"]
    assert made.verdict == "pass" and "reaches 1 of 2 windows" in made.detail
    assert made.remedy == "uvirtio bind LNRO0005:01 --group"
    fake.text(fake.sys / "kernel/security/lockdown", "none [integrity] confidentiality\n")
    made = run(fake)["devmem"]
    assert made.verdict == "warn" and "lockdown (integrity)" in made.detail


def test_character_devices_of_vfio(fake: FakeSys) -> None:
    assert run(fake)["vfio-cdev"].verdict == "skip"
    (fake.roots.dev / "iommu").touch()  # there, whatever an index of modules says; no function has a node
    made = run(fake)["vfio-cdev"]
    assert made.verdict == "pass" and "bind shows" in made.detail
    (fake.roots.dev / "iommu").unlink()
    fake.text(fake.top / "lib/modules/6.1.0-test/modules.dep", "kernel/drivers/iommu/iommufd/iommufd.ko.xz:\n")
    assert run(fake)["vfio-cdev"].verdict == "pass"
    (fake.roots.dev / "vfio/devices").mkdir()
    (fake.roots.dev / "vfio/devices/vfio0").touch()
    made = run(fake)
    assert made["vfio-cdev"].verdict == "warn" and "modprobe iommufd" in made["vfio-cdev"].remedy
    (fake.roots.dev / "iommu").touch()
    made = run(fake)
    assert made["vfio-cdev"].verdict == "pass" and "1 functions" in made["vfio-cdev"].detail


@pytest.mark.fault(94)
def test_an_ordinary_user(fake: FakeSys, tmp_path: Path) -> None:
    qemu(tmp_path)
    me = fake.roots.proc / "self"
    fake.text(me / "status", "CapEff:\t0000000000000000\n")
    fake.text(me / "limits", "Max locked memory         65536              65536              bytes\n")
    made = run(fake)
    assert made["memlock"].verdict == "warn" and "65536" in made["memlock"].detail
    assert made["pagemap"].verdict == "warn" and made["ways"].verdict == "pass"


@pytest.mark.parametrize(
    ("limit", "rights", "verdict", "words"),
    [
        ("8388607", "0", "warn", "only 8388607 bytes"),
        ("8388608", "0", "pass", "8388608 bytes may be pinned"),
        ("unlimited", "0", "pass", "no limit"),
        ("65536", "4000", "pass", "no limit"),  # CAP_IPC_LOCK
        ("", "0", "skip", "does not say"),
    ],
)
def test_the_limit_of_locked_memory(fake: FakeSys, limit: str, rights: str, verdict: str, words: str) -> None:
    me = fake.roots.proc / "self"
    fake.text(me / "status", f"CapEff:\t{rights:>016}\n")
    fake.text(me / "limits", f"Max locked memory         {limit}  {limit}  bytes\n" if limit else "Limit\n")
    made = run(fake)["memlock"]
    assert made.verdict == verdict and words in made.detail


def test_devices_and_a_deny_list_or_none_of_them(fake: FakeSys) -> None:
    made = run(fake)
    assert (made["devices"].verdict, made["devices"].detail) == ("skip", "no virtio device here")
    assert (made["deny-list"].verdict, made["deny-list"].detail) == ("pass", "no device is denied")
    fake.pci("0000:03:00.0", "rng", group=7)
    deny = fake.text(fake.roots.etc / "uvirtio/deny", "0000:03:00.0\n")
    made = run(fake)
    assert made["devices"].verdict != "skip" and made["deny-list"].verdict == "pass"
    assert made["deny-list"].detail == f"{deny} has 1 patterns: 0000:03:00.0"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("QEMU emulator version 11.1.3 (x)", "pass"), ("QEMU emulator version 6.2.0", "warn"), ("", "warn")],
)
def test_the_version_of_qemu(fake: FakeSys, tmp_path: Path, text: str, verdict: str) -> None:
    qemu(tmp_path)
    assert run(fake, text)["qemu"].verdict == verdict


def test_the_machines_of_qemu(fake: FakeSys, tmp_path: Path) -> None:
    qemu(tmp_path, "riscv64")  # it alone: there are qemu: devices without that of x86 too
    made = run(fake)["qemu"]
    assert made.verdict == "pass" and made.detail.endswith(
        "bin/qemu-system-riscv64, version 7.2.22; machines: riscv64"
    )
    qemu(tmp_path)
    assert run(fake)["qemu"].detail.endswith(
        "bin/qemu-system-x86_64, version 7.2.22; machines: q35 pc microvm riscv64"
    )


def test_what_is_bound_and_what_was_left(fake: FakeSys) -> None:
    fake.pci("0000:03:00.0", "rng", group=7, driver="vfio-pci")
    (fake.roots.dev / "vfio/7").touch()
    (fake.roots.dev / "vfio/vfio").touch()
    device = journal.DeviceEntry("0000:03:00.0", "pci", "0000:03:00.0", "vfio-pci", "virtio-pci", None)
    entry = journal.new([device], fake.roots)
    journal.store(entry, fake.roots)
    made = run(fake)
    assert "0000:03:00.0 (rng, vfio-pci)" in made["devices"].detail
    assert made["vfio-access"].verdict == "pass"
    assert made["journal"].verdict == "warn" and "restore" in made["journal"].remedy


def test_deny_lockdown_container(fake: FakeSys) -> None:
    fake.text(fake.roots.etc / "uvirtio/deny", "*\n")
    fake.text(fake.sys / "kernel/security/lockdown", "none [integrity] confidentiality\n")
    fake.mountinfo(["20 1 0:20 / /sys ro,nosuid - sysfs sysfs ro"])
    made = run(fake)
    assert {made[name].verdict for name in ("deny-list", "lockdown", "container")} == {"warn"}


def test_lines_of_the_deny_list_that_deny_nothing(fake: FakeSys) -> None:
    fake.text(fake.roots.etc / "uvirtio/deny", "0000:03:00.0\nballoon\n")
    made = run(fake)["deny-list"]
    assert made.verdict == "warn" and made.detail.endswith(": balloon") and made.remedy
    fake.text(fake.roots.etc / "uvirtio/deny", "0000:03:00.0\n")
    assert run(fake)["deny-list"].verdict == "pass"


def test_no_program_but_qemu_is_run(fake: FakeSys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    qemu(tmp_path)
    ran: list[list[str]] = []

    def spy(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0, "QEMU emulator version 7.2.22", "")

    monkeypatch.setattr(subprocess, "run", spy)
    doctor.checks(fake.roots)
    assert ran == [[str(tmp_path / "bin/qemu-system-x86_64"), "--version"]]
