"""Whether a module can be loaded: by the indexes wherever they are, by modprobe, by the kernel's configuration."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeKernel, FakeSys
from uvirtio.binding import discover, doctor, journal
from uvirtio.binding.bind import bind
from uvirtio.binding.checks import driver_state
from uvirtio.binding.plan import plan
from uvirtio.errors import ModuleLack
from uvirtio.host import modules, writer
from uvirtio.host.roots import Roots

RELEASE = "6.1.0-test"
RNG = "0000:03:00.0"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


@pytest.mark.parametrize(
    ("file", "line", "there"),
    [
        ("modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/x.ko\n", True),
        ("modules.dep", "kernel/drivers/vfio/pci/vfio_pci.ko:\n", True),
        ("modules.builtin", "kernel/drivers/vfio/pci/vfio-pci.ko\n", True),
        ("modules.dep", "kernel/drivers/vfio/pci/vfio-pci-core.ko.xz:\n", False),
        ("modules.dep", "kernel/my-vfio-pci.ko:\n", False),
    ],
)
@pytest.mark.parametrize(
    "top",
    [
        "lib/modules",
        "usr/lib/modules",
        "run/booted-system/kernel-modules/lib/modules",
        "run/current-system/kernel-modules/lib/modules",
        "run/booted-system/kernel/lib/modules",
    ],
)
def test_an_index_is_found_wherever_it_is(fake: FakeSys, top: str, file: str, line: str, there: bool) -> None:
    fake.text(fake.top / top / RELEASE / "modules.dep", "kernel/a.ko:\n")
    fake.text(fake.top / top / RELEASE / file, "kernel/a.ko:\n" + line)
    assert modules.presence("vfio-pci", fake.roots) == ("installed" if there else "missing")
    assert driver_state("vfio-pci", "pci", fake.roots) == ("loadable" if there else "missing")
    if not there:
        assert str(fake.top / top / RELEASE) in modules.why_missing("vfio-pci", fake.roots)


@pytest.mark.parametrize("kept", [{}, {"modules.dep": ""}, {"modules.builtin": "kernel/a.ko\n"}])
def test_without_an_index_it_is_not_known(fake: FakeSys, kept: dict[str, str]) -> None:
    for name, text in kept.items():
        fake.text(fake.top / "lib/modules" / RELEASE / name, text)
    assert modules.presence("vfio-pci", fake.roots) == "unknown"


def configuration(fake: FakeSys, *lines: str) -> None:
    text = "\n".join(["CONFIG_MODULES=y", *lines, ""]).encode()
    fake.text(fake.roots.proc / "config.gz", gzip.compress(text))


@pytest.mark.parametrize(
    ("line", "found", "presence"),
    [
        ("CONFIG_VFIO_PCI=m", "m", "unknown"),
        ("CONFIG_VFIO_PCI=y", "y", "installed"),
        ("# CONFIG_VFIO_PCI is not set", "n", "missing"),
        ("CONFIG_VFIO_PCI_CORE=m", "n", "missing"),
    ],
)
def test_the_configuration_of_the_kernel(fake: FakeSys, line: str, found: str, presence: str) -> None:
    configuration(fake, line)
    assert modules.configured("vfio-pci", fake.roots) == found
    assert modules.presence("vfio-pci", fake.roots) == presence
    if presence == "missing":
        assert "CONFIG_VFIO_PCI is not set" in modules.why_missing("vfio-pci", fake.roots)
        assert modules.remedy("vfio-pci", fake.roots) == "boot a kernel that has CONFIG_VFIO_PCI"
    assert modules.configured("another", fake.roots) is None


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"no gzip", gzip.compress(b"x", mtime=0)])
def test_a_configuration_that_is_none(fake: FakeSys, content: bytes) -> None:
    fake.text(fake.roots.proc / "config.gz", content)
    assert modules.configured("vfio-pci", fake.roots) is None


# --- modprobe -------------------------------------------------------------------------------------------------


def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Path:
    """A modprobe of ours, first in PATH. It notes how it is called."""
    path = tmp_path / "bin/modprobe"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return tmp_path / "calls"


def live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats the made-up tree as the machine's own, for which alone modprobe is asked."""
    monkeypatch.setattr(Roots, "live", property(lambda self: True))


def test_only_this_machines_own_sysfs_is_live(tmp_path: Path) -> None:
    assert Roots().live and Roots("/sys/").live and Roots.under("/").live
    assert not Roots.under(tmp_path).live


@pytest.mark.parametrize(
    ("script", "presence"),
    [
        ("exit 0", "installed"),
        ("echo 'modprobe: FATAL: Module vfio-pci not found in directory /lib/modules/x' >&2; exit 1", "missing"),
        ("echo 'modprobe: unrecognized option: dry-run' >&2; exit 1", "unknown"),
    ],
)
def test_modprobe_is_asked_where_there_is_no_index(
    fake: FakeSys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, presence: str
) -> None:
    live(monkeypatch)
    calls = played(monkeypatch, tmp_path, script)
    assert modules.presence("vfio-pci", fake.roots) == presence
    assert calls.read_text() == "--dry-run -- vfio-pci\n"
    fake.text(fake.top / "lib/modules" / RELEASE / "modules.dep", "kernel/vfio-pci.ko:\n")
    assert modules.presence("vfio-pci", fake.roots) == "installed"
    assert calls.read_text().count("\n") == 1, "an index is enough"


def test_no_modprobe_at_all(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    live(monkeypatch)
    monkeypatch.setattr(modules, "modprobe_path", lambda: None)
    assert modules.presence("vfio-pci", fake.roots) == "unknown"


def test_modprobe_is_found_beside_the_path_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    played(monkeypatch, tmp_path, "exit 0")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(modules, "_SBIN", (str(tmp_path / "bin"),))
    assert modules.modprobe_path() == str(tmp_path / "bin/modprobe")


def test_what_modprobe_says_becomes_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = played(monkeypatch, tmp_path, "echo 'Module uvirtio-none not found in directory /x' >&2; exit 1")
    with pytest.raises(ModuleLack, match="is not installed") as caught:
        writer.modprobe("uvirtio-none", "a=1")
    assert caught.value.seen == "Module uvirtio-none not found in directory /x"
    assert calls.read_text() == "-- uvirtio-none a=1\n"
    played(monkeypatch, tmp_path, "echo 'Operation not permitted' >&2; exit 1")
    with pytest.raises(ModuleLack, match="modprobe uvirtio-none failed") as caught:
        writer.modprobe("uvirtio-none")
    assert "outside of this container" in str(caught.value.remedy)


# --- bind, plan and doctor --------------------------------------------------------------------------------------


def test_bind_tries_where_it_cannot_know(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    made = plan(discover.find(RNG, fake.roots), fake.roots)
    check = {check.name: check for check in made.checks}["module"]
    assert made.problems == () and check.verdict == "warn" and "bind will try modprobe" in check.detail
    loaded: list[str] = []

    def load(module: str) -> None:
        loaded.append(module)
        fake.driver("vfio-pci")

    kernel = FakeKernel(fake)
    bind([discover.find(RNG, fake.roots)], fake.roots, writer=kernel, modprobe=load, sleep=lambda seconds: None)
    assert loaded == ["vfio-pci"] and discover.find(RNG, fake.roots).driver == "vfio-pci"


def test_a_modprobe_that_fails_changes_nothing(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    before, kernel = fake.snapshot(), FakeKernel(fake)

    def load(module: str) -> None:
        raise ModuleLack(
            f"the module {module} is not installed", seen="modprobe: FATAL: Module vfio-pci not found"
        )

    with pytest.raises(ModuleLack) as caught:
        bind([discover.find(RNG, fake.roots)], fake.roots, writer=kernel, modprobe=load)
    assert "FATAL" in caught.value.seen and caught.value.exit_code == 4
    assert kernel.log == [] and fake.snapshot() == before and journal.entries(fake.roots) == []


def test_doctor_says_what_it_does_not_know(fake: FakeSys) -> None:
    def checks() -> dict[str, doctor.Check]:
        return {check.name: check for check in doctor.checks(fake.roots, qemu_version=lambda path: "")}

    unknown = checks()["vfio-pci"]
    assert unknown.verdict == "warn" and "bind tries modprobe" in unknown.detail
    assert "modules.dep" in checks()["vfio-cdev"].detail
    fake.text(
        fake.roots.run / "booted-system/kernel-modules/lib/modules" / RELEASE / "modules.dep", "a/vfio-pci.ko:\n"
    )
    assert "can be loaded" in checks()["vfio-pci"].detail
    fake.text(fake.roots.run / "booted-system/kernel-modules/lib/modules" / RELEASE / "modules.dep", "a/x.ko:\n")
    assert "not installed" in checks()["vfio-pci"].detail
