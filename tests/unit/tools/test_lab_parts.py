"""The lab's own parts that run without a VM: the archive, module order, sources of apt, machines."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

TOOLS = next(top for top in Path(__file__).resolve().parents if (top / "pyproject.toml").exists()) / "tools"
sys.path.insert(0, str(TOOLS))

from lab import (  # noqa: E402
    LabError,
    arches,
    cache,
    cli_matrix,
    cli_test,
    daemons,
    debian,
    initramfs,
    kernels,
    machines,
    modules,
    natives,
    process,
    qemus,
    soft_reserve,
    vm,
)
from lab.commands import Commands  # noqa: E402
from lab.floors import Outcome, Runner  # noqa: E402

VM_TEST = machines.FOLDER / "test_x.py"


def make_kernel(top: Path, dep: str, builtin: str = "") -> kernels.Kernel:
    modules = top / "usr/lib/modules/6.0-test"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(dep)
    (modules / "modules.builtin").write_text(builtin)
    (top / "boot").mkdir()
    (top / "boot/vmlinuz-6.0-test").touch()
    return kernels.unpacked(top)


def test_modules_come_after_what_they_need(tmp_path):
    kernel = make_kernel(tmp_path, "a/a.ko: b/b-b.ko.xz c/c.ko\nb/b-b.ko.xz: c/c.ko\nc/c.ko:\n", "kernel/d.ko\n")
    names = [path.name for path in initramfs.load_order(kernel, ["a", "d", "c"])]
    assert names == ["c.ko", "b-b.ko.xz", "a.ko"]


def test_a_module_that_the_kernel_has_not_is_an_error(tmp_path):
    with pytest.raises(LabError, match="has no module nothing"):
        initramfs.load_order(make_kernel(tmp_path, ""), ["nothing"])


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_cpio_reads_the_archive(tmp_path):
    archive = initramfs.Cpio()
    archive.directory("d")
    for size in range(6):  # every case of the padding
        archive.file(f"d/{'n' * size}x", b"y" * size)
    done = subprocess.run(
        ["busybox", "cpio", "-id"], input=archive.finish(), cwd=tmp_path, capture_output=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    assert found == {f"{'n' * size}x": b"y" * size for size in range(6)}


def test_sources_in_both_formats_are_understood():
    line = debian._one_line(
        "# deb x y z\ndeb [arch=amd64 signed-by=/k.gpg] http://m/debian here main contrib # c\n"
    )
    stanza = debian._deb822(
        "Types: deb deb-src\n# a comment\nURIs: http://m/debian\nSuites: here here-updates\n"
        "Components: main contrib\nSigned-By: /k.gpg\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://n\nSuites: here\nComponents: main\n"
    )
    assert line == stanza[:1]
    assert [source.suite for source in stanza] == ["here", "here-updates"]


def test_the_image_package_is_found_behind_the_meta_package():
    text = "linux-image-amd64\n  Depends: linux-image-6.1.0-50-amd64\n"
    assert kernels._image_package(text) == "linux-image-6.1.0-50-amd64"
    with pytest.raises(LabError):
        kernels._image_package("linux-image-amd64\n")


def test_an_image_that_comes_in_parts_is_fetched_whole():
    text = "linux-image-7.2.13-amd64\n  PreDepends: linux-base\n |Depends: dracut\n  Depends: initramfs-tools\n"
    assert kernels._parts(text) == []
    parts = [f"linux-{part}-7.2.13-amd64" for part in ("base", "binary", "modules")]
    assert kernels._parts(text + "".join(f"  Depends: {part}\n" for part in parts)) == parts


# --- what a suite has today ----------------------------------------------------------------------------------

RELEASE = "Suite: unstable\nDate: Fri, 30 Oct 2026 08:08:01 UTC\n{}SHA256:\n"


@pytest.fixture
def an_apt(tmp_path, monkeypatch):
    """An apt whose index has a Release file with this line in it."""
    monkeypatch.setattr(debian, "run", lambda command, **_: "")
    monkeypatch.setattr(debian, "_sources", lambda suite: f"deb http://mirror.example/debian {suite} main\n")

    def make(line: str) -> debian.Apt:
        apt = debian.Apt(tmp_path / f"apt{len(list(tmp_path.iterdir()))}", "sid")
        (apt._top / "lists/mirror.example_debian_dists_sid_InRelease").write_text(RELEASE.format(line))
        return apt

    return make


def test_an_index_that_has_expired_is_told_and_taken_only_with_consent(an_apt, capsys):
    line = "Valid-Until: Fri, 06 Nov 2026 08:08:01 UTC\n"
    before, after = (datetime(2026, 11, 6, 8, 8, second, tzinfo=UTC) for second in (0, 2))
    apt = an_apt(line)
    apt.check_age(before, accept_expired=False)
    with pytest.raises(LabError, match=r"sid was valid until 2026-11-06 .*--accept-expired") as caught:
        apt.check_age(after, accept_expired=False)
    assert (caught.value.exit_code, apt.expired, capsys.readouterr().out) == (4, "", "")
    apt.check_age(after, accept_expired=True)
    assert apt.expired == "whose index expired 2026-11-06"
    assert "going on (--accept-expired)" in capsys.readouterr().out
    an_apt("").check_age(after, accept_expired=False)  # a release that is out has no such date


def test_each_tool_that_recommends_the_consent_has_an_option_for_it(capsys):
    for tool in ("test", "vm", "demo"):
        with pytest.raises(SystemExit):
            importlib.import_module(f"lab.cli_{tool}").main([*(["run"] if tool == "vm" else []), "--help"])
        assert "--accept-expired" in capsys.readouterr().out, tool


def test_the_newest_is_what_the_suite_has_today_and_old_ones_go(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    versions = iter(["1:11.1.2+ds-3", "1:11.1.3+ds-1", "1:11.1.3+ds-1", "1:11.2.0~rc1-1"])
    built = []

    class Suite:
        expired = ""

        def version(self, package: str) -> str:
            assert package == "qemu"
            return next(versions)

    @contextmanager
    def updated_apt(suite: str, work: Path, *_: object, accept_expired: bool):
        assert suite == "sid"
        yield Suite()

    def build(apt: Suite, work: Path, place: Path) -> None:
        built.append(place.name)

    def ask() -> tuple[str, str]:
        place, origin = debian.newest("qemu", "sid", "qemu", build, accept_expired=False)
        assert place.is_dir()
        return place.name, origin

    monkeypatch.setattr(debian, "updated_apt", updated_apt)
    assert ask() == ("sid-11.1.2+ds-3", "sid")  # no colon: it becomes part of a PATH
    assert ask() == ask() == ("sid-11.1.3+ds-1", "sid")
    assert built == ["sid-11.1.2+ds-3", "sid-11.1.3+ds-1"]
    folder = tmp_path / "uvirtio/qemu"
    (folder / "10.0").mkdir()
    for name in ("10.0", "sid-11.1.2+ds-3"):
        os.utime(folder / name, (0, 0))
    Suite.expired = "whose index expired 2026-11-06"
    assert ask() == ("sid-11.2.0~rc1-1", "sid, whose index expired 2026-11-06")
    assert {path.name for path in folder.iterdir()} == {"10.0", "sid-11.1.3+ds-1", "sid-11.2.0~rc1-1"}
    assert not list(tmp_path.glob("uvirtio/.apt-*"))


def test_the_verdict_tells_which_versions_it_was(tmp_path, capsys):
    kernel = kernels.Kernel("7.2.13+deb14-amd64", tmp_path, tmp_path, "sid")
    outcomes = [
        Outcome("vm a newest", ok=True, seconds=1, passed=1, ran_on=("QEMU 7.2.22", str(kernel))),
        Outcome("qemu", ok=True, seconds=1, passed=1, ran_on=("QEMU 7.2.22",)),
        Outcome("lint", ok=True, seconds=1, passed=1),
    ]
    assert cli_test._verdict(outcomes, 1.0, tmp_path, []) == 0
    assert "\non: Linux 7.2.13+deb14-amd64 (sid), QEMU 7.2.22\n" in capsys.readouterr().out


def test_a_report_is_named_after_the_series_of_the_newest_kernel(tmp_path):
    """tools/matrix takes the kernel from there."""
    pinned = kernels.Kernel("6.12.107+deb13-amd64", tmp_path, tmp_path)
    newest = kernels.Kernel("7.2.13+deb14-amd64", tmp_path, tmp_path, "sid")
    assert Runner._stem("vm mem-online 6.12", pinned) == "vm-mem-online-6.12"
    assert Runner._stem("vm mem-online-newest newest", newest) == "vm-mem-online-newest-7.2"


@pytest.mark.parametrize("said", ["QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)", "no QEMU at all"])
def test_a_qemu_says_its_own_version(said, tmp_path):
    (tmp_path / qemus.X86).write_text(f"#!/bin/sh\necho '{said}'\n")
    (tmp_path / qemus.X86).chmod(0o755)
    qemu = qemus.Qemu(tmp_path, "sid")
    if said.startswith("QEMU"):
        assert str(qemu) == "QEMU 11.1.3 (sid)"
    else:
        with pytest.raises(LabError, match="no QEMU at all"):
            str(qemu)


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def build(work: Path) -> None:
        (work / "half").touch()
        raise LabError("no network")

    target = cache.root() / "kernels" / "x"
    with pytest.raises(LabError):
        cache.build_once(target, build)
    assert list(target.parent.iterdir()) == []
    assert cache.build_once(target, lambda work: (work / "whole").touch()) == target
    assert (target / "whole").exists()


def make_vm(tmp_path, monkeypatch, *devices):
    monkeypatch.setattr(vm.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    kernel = make_kernel(tmp_path / "k", "")
    return vm.Vm(vm.Config(kernel=kernel, command=["true"], devices=list(devices))).command_line()


def make_arm_vm(tmp_path, monkeypatch, **more):
    monkeypatch.setattr(vm.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    config = vm.Config(
        kernel=make_kernel(tmp_path / "k", ""),
        command=["true"],
        arch=arches.AARCH64,
        root=tmp_path / "root",
        **more,
    )
    return vm.Vm(config).command_line()


def after(words: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


def test_an_aarch64_vm_has_programs_of_its_own_and_an_smmu(tmp_path, monkeypatch):
    words = make_arm_vm(tmp_path, monkeypatch, devices=["virtio-rng-pci", "virtio-keyboard-device"])
    assert words[0] == "qemu-system-aarch64"
    assert after(words, "-M") == ["virt,gic-version=3,iommu=smmuv3"]
    assert f"local,id=guestroot,path={tmp_path}/root,security_model=none,multidevs=remap,readonly=on" in words
    [append] = after(words, "-append")
    assert {"console=ttyAMA0", "uvirtio.root=guestroot"} <= set(append.split())
    assert "no_timer_check" not in append
    assert after(words, "-device")[-2:] == [  # each with what it needs, and the function with a port of its own
        "virtio-rng-pci,rng=lab-rng1,bus=lab-port1",
        "virtio-keyboard-device",
    ]
    assert not after(words, "-bios")


def test_an_aarch64_vm_can_have_another_iommu_cpu_and_acpi(tmp_path, monkeypatch):
    words = make_arm_vm(
        tmp_path,
        monkeypatch,
        machine="virt,gic-version=2",
        iommu="virtio",
        cpu="cortex-a72",
        firmware=tmp_path / "fd",
    )
    assert after(words, "-M") == ["virt,gic-version=2"]
    assert "virtio-iommu-pci" in after(words, "-device")
    assert after(words, "-cpu") == ["cortex-a72"]
    assert after(words, "-bios") == [str(tmp_path / "fd")]


def test_a_kernel_is_for_an_architecture(tmp_path):
    x86, arm = arches.X86_64, arches.AARCH64
    assert kernels.names(x86) == ["6.1", "6.12", "newest", "experimental"]
    assert {"6.1", "6.12", "6.12-16k", "newest-16k"} <= set(kernels.names(arm)) - {"6.1-16k"}
    assert [kernels.fits(name, x86) for name in ("6.12", "6.12-16k", "6.9")] == [True, False, True]
    assert [kernels.fits(name, arm) for name in ("6.12", "6.12-16k", "6.9")] == [True, True, True]
    for arch, magic in ((x86, b"    "), (arm, b"ARMd")):
        kernel = make_kernel(tmp_path / arch.name, "")
        kernel.image.write_bytes(b"MZ".ljust(56, b"\0") + magic)
        unpacked = str(tmp_path / arch.name)
        assert [kernels.fits(unpacked, other) for other in (x86, arm)] == [arch is x86, arch is arm]


def test_a_device_gets_a_root_port_and_what_it_needs(tmp_path, monkeypatch):
    words = make_vm(
        tmp_path, monkeypatch, "virtio-rng-pci,id=r", "virtio-blk-pci,bus=pcie.0,drive=mine", "usb-kbd"
    )
    assert "pcie-root-port,id=lab-port1,chassis=1,slot=1" in words
    assert "rng-builtin,id=lab-rng1" in words
    assert words[-5:] == [
        "virtio-rng-pci,id=r,rng=lab-rng1,bus=lab-port1",
        "-device",
        "virtio-blk-pci,bus=pcie.0,drive=mine",
        "-device",
        "usb-kbd",
    ]


def test_a_busy_host_is_no_broken_timer_and_no_lockup(tmp_path, monkeypatch):
    words = make_vm(tmp_path, monkeypatch)
    booted = words[words.index("-append") + 1].split()
    assert {"no_timer_check", "watchdog_thresh=60", "rcupdate.rcu_cpu_stall_timeout=120"} <= set(booted)


def test_every_test_file_of_the_vm_floor_has_a_machine():
    assert {path for machine in machines.load() for path in machine.files}


def test_extra_machines_run_for_all_or_by_name(monkeypatch):
    plain = machines.Machine("plain", ("6.1", "6.12"), (), (VM_TEST,))
    extra = machines.Machine("more", ("6.12",), (), (VM_TEST,), modules=("vdpa",), extra=True)
    monkeypatch.setattr(machines, "load", lambda: [plain, extra])
    both = [(plain, "6.1"), (plain, "6.12")]
    assert cli_test._machines(None, None, extras=False) == (both, ["vm more 6.12"])
    assert cli_test._machines(None, None, extras=True) == ([*both, (extra, "6.12")], [])
    assert cli_test._machines("6.9", "more", extras=False) == ([(extra, "6.9")], [])
    newer = machines.Machine("newer", ("6.12",), (), (VM_TEST,), more_kernels=("6.1",))
    monkeypatch.setattr(machines, "load", lambda: [newer])
    assert cli_test._machines(None, None, extras=False) == ([(newer, "6.12")], ["vm newer 6.1"])
    for chosen in (cli_test._machines(None, None, extras=True), cli_test._machines(None, "newer", extras=False)):
        assert chosen == ([(newer, "6.12"), (newer, "6.1")], [])
    assert cli_test._machines("6.1", None, extras=False) == ([(newer, "6.1")], [])


def test_any_machine_runs_with_another_qemu(monkeypatch):
    plain = machines.Machine("plain", ("6.12",), (), (VM_TEST,))
    monkeypatch.setattr(machines, "load", lambda: [plain])
    [(machine, _)], _ = cli_test._machines(None, None, "10.0", extras=False)
    assert (machine.name, machine.qemu_version) == ("plain", "10.0")


def test_a_quiet_step_shows_what_was_said_only_when_it_fails(tmp_path, capfd):
    runner = Runner(tmp_path, tmp_path)
    command = ["sh", "-c", 'echo "MISS" && echo "no" >&2 && exit "$0"']
    assert runner.tool("good", [*command, "0"], quiet=True).ok
    assert capfd.readouterr() == ("\n=== good ===\n", "")
    assert not runner.tool("bad", [*command, "3"], quiet=True).ok
    assert capfd.readouterr() == ("\n=== bad ===\nMISS\nno\n\n", "")
    assert runner.tool("loud", [*command, "0"]).ok
    assert capfd.readouterr() == ("\n=== loud ===\nMISS\n", "no\n")


def test_the_verdict_tells_the_rounds_of_a_race(tmp_path):
    case = '<testcase name="{}"><properties><property name="rounds" value="{}"/></properties></testcase>'
    suite = '<testsuite tests="2" skipped="0" failures="0" errors="0">{}</testsuite>'
    path = tmp_path / "x.xml"
    path.write_text(suite.format(case.format("a", 1200) + case.format("b", 34)))
    outcome = Runner(tmp_path, tmp_path)._judge("x", 0, path, time.monotonic())
    assert (outcome.ok, outcome.passed, outcome.note) == (True, 2, "1,234 rounds")


@pytest.mark.parametrize(("code", "note"), [(4, "a test that is not there?"), (5, "no test there"), (3, "with 3")])
def test_a_pytest_that_ran_nothing_says_why(code, note, tmp_path):
    outcome = Runner(tmp_path, tmp_path)._judge("x", code, tmp_path / "none.xml", time.monotonic())
    assert (outcome.ok, outcome.failed) == (False, 1) and note in outcome.note
    if code == 5:
        assert Runner(tmp_path, tmp_path, "some")._judge("x", code, tmp_path / "none.xml", time.monotonic()).ok


def test_a_report_that_is_cut_off_fails_its_step(tmp_path):
    path = tmp_path / "x.xml"
    path.write_text('<?xml version="1.0"?><testsuites><testsuite name="pytest" error')
    outcome = Runner(tmp_path, tmp_path)._judge("x", 3, path, time.monotonic())
    assert (outcome.ok, outcome.failed, outcome.note) == (False, 1, "its report is cut off")


def test_a_qemu_that_is_not_to_be_had_fails_its_step_and_no_other(monkeypatch):
    def get(name: str, **_: bool) -> qemus.Qemu:
        if name:
            raise LabError(f"no QEMU {name} any more\nand more of it", 2 if name == "wrong" else 4)
        return qemus.Qemu()

    monkeypatch.setattr(qemus, "get", get)
    chosen = cli_test._whole("qemu")
    assert [name for name, _ in cli_test._qemu_floor(None, chosen)] == ["qemu"]
    [(name, step)] = cli_test._qemu_floor(None, chosen, "10.0")
    outcome = step()
    assert (name, outcome.ok, outcome.note) == ("qemu 10.0", False, "no QEMU 10.0 any more")
    with pytest.raises(LabError, match="wrong"):  # what was written wrong is said before anything runs
        list(cli_test._qemu_floor(None, chosen, "wrong"))


class Passed:
    """Stands for a Runner: says what it was given."""

    def pytest(self, name, arguments, wrapper, **given):
        return name, arguments, given


def test_daemons_of_a_release_are_there_for_the_tests_of_them_alone(monkeypatch):
    monkeypatch.setattr(qemus, "get", lambda name, **_: qemus.Qemu())
    monkeypatch.setattr(daemons, "get", lambda name, **_: Path("/daemons", name))
    whole, other = cli_test._whole("qemu"), [cli_test.Chosen(cli_test.TESTS / "qemu/test_rings.py")]
    for chosen, version, expected in (
        (whole, "10.0", Path("/daemons/10.0")),
        (whole, "", None),
        (other, "10.0", None),
    ):
        [(_, step)] = cli_test._qemu_floor(Passed(), chosen, version)
        assert step()[2]["programs"] == expected
    [(_, step)] = cli_test._own_daemons(Passed(), whole)
    name, arguments, given = step()
    assert name == "vhost-user daemons" and given["programs"] == Path("/daemons")
    assert [Path(one).name for one in arguments] == ["test_vhost_user.py", "test_vhost_user_daemons.py"]
    assert not list(cli_test._own_daemons(Passed(), other))


# --- QEMUs and modules that are fetched and built -------------------------------------------------------------


def test_the_wrapper_gives_a_qemu_its_own_loader_libraries_and_firmware(tmp_path):
    root = tmp_path / "with space"
    (root / "loaders").mkdir(parents=True)
    loader, wrapper = root / "loaders" / arches.X86_64.qemu, tmp_path / arches.X86_64.qemu
    loader.write_text('#!/bin/sh\nfor word; do echo "$word"; done; echo "$QEMU_MODULE_DIR"\n')
    wrapper.write_text(qemus.wrapper_text(root, arches.X86_64.qemu))
    for path in (loader, wrapper):
        path.chmod(0o755)
    said = subprocess.run([str(wrapper), "-M", "a b"], capture_output=True, text=True, timeout=20).stdout
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    assert said.splitlines() == [
        *("--argv0", str(wrapper), "--library-path", libraries, f"{root}/usr/bin/{arches.X86_64.qemu}"),
        *("-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios", "-L", f"{root}/usr/lib/ipxe/qemu"),
        *("-M", "a b", f"{libraries}/qemu"),
    ]


def test_the_wrapper_gives_a_daemon_its_own_loader_and_libraries_and_dpdk_its_plugins(tmp_path):
    root = tmp_path / "with space"
    (root / "loaders").mkdir(parents=True)
    loader, wrapper = root / "loaders/dpdk-testpmd", tmp_path / "dpdk-testpmd"
    loader.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    wrapper.write_text(daemons.wrapper_text(root, root / "usr/bin/dpdk-testpmd", [root / "a.so"]))
    for path in (loader, wrapper):
        path.chmod(0o755)
    said = subprocess.run([str(wrapper), "-l", "0 1"], capture_output=True, text=True, timeout=20).stdout
    assert said.splitlines() == [
        *("--argv0", str(wrapper), "--library-path", f"{root}/usr/lib/x86_64-linux-gnu"),
        *(f"{root}/usr/bin/dpdk-testpmd", "-d", f"{root}/a.so", "-l", "0 1"),
    ]


def test_every_qemu_that_a_machine_wants_can_be_fetched():
    assert {machine.qemu_version for machine in machines.load()} <= {"", *qemus.names()}
    for machine in machines.load():
        assert {*machine.kernels, *machine.more_kernels} <= {*kernels.names(arches.get(machine.arch))}
    with pytest.raises(LabError, match=r"not one of 10\.0, newest"):
        qemus.get("1.0")
    with pytest.raises(LabError, match=r"neither one of 6\.1, 6\.12, newest, experimental nor"):
        kernels.get("1.0")


def test_modules_that_cannot_be_built_fail_their_machine_and_no_other(monkeypatch, tmp_path):
    plain = machines.Machine("plain", ("6.12",), (), (VM_TEST,))
    extra = machines.Machine("more", ("6.12",), (), (VM_TEST,), modules=("vdpa",), extra=True)
    monkeypatch.setattr(cli_test.udev, "get", lambda **_: tmp_path)
    monkeypatch.setattr(kernels, "get", lambda name, *_, **__: kernels.Kernel("6.12.1", tmp_path, tmp_path))

    def add(kernel: kernels.Kernel, names: tuple[str, ...]) -> kernels.Kernel:
        if names:
            raise LabError("no headers any more\nand more of it")
        return kernel

    monkeypatch.setattr(modules, "add", add)
    steps = dict(cli_test.vm_floor(None, [(plain, "6.12"), (extra, "6.12")]))
    assert list(steps) == ["vm plain 6.12", "vm more 6.12"]
    outcome = steps["vm more 6.12"]()
    assert (outcome.ok, outcome.failed, outcome.note) == (False, 1, "no headers any more")


def test_every_set_of_modules_that_a_machine_wants_can_be_built(tmp_path):
    for machine in machines.load():
        for version in machine.kernels:
            assert not {(name, version) for name in machine.modules} - set(modules._RECIPES), machine.name
    with pytest.raises(LabError, match="no way to build"):
        modules.add(kernels.Kernel("6.99.1", tmp_path, tmp_path), ("vdpa",))


def test_the_half_that_the_kernel_left_out_becomes_a_file(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "drivers/iommu/iommufd").mkdir(parents=True)
    (tmp_path / "lib/interval_tree.c").write_text("a\n#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER\nb\n#endif\n")
    modules._span_iterator(tmp_path)
    text = (tmp_path / "drivers/iommu/iommufd/span_iter.c").read_text()
    assert text.splitlines()[-3:] == ["#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER", "b", "#endif"]
    assert "a" not in text.splitlines()


def test_the_job_quotes_every_word(tmp_path, monkeypatch):
    monkeypatch.setattr(vm.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    words = ["printf", "%s|", "a b", "it's", "$HOME", "*", "", "line\nbreak"]
    config = vm.Config(kernel=make_kernel(tmp_path / "k", ""), command=words)
    done = subprocess.run(["sh"], input=vm.Vm(config)._job(), capture_output=True, text=True, timeout=20)
    assert done.stdout == "|".join(words[2:]) + "|"


# --- signals, of which nohup and a shell's & have some ignored -----------------------------------------------


@pytest.fixture
def ignoring():
    before = [signal.signal(number, signal.SIG_IGN) for number in process.LEAVING]
    yield
    for number, handler in zip(process.LEAVING, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("ignoring")
def test_a_child_ignores_no_signal_though_we_do():
    bits = sum(1 << number - 1 for number in process.LEAVING)
    own = Path("/proc/self/status").read_text()
    child = process.start(["cat", "/proc/self/status"], stdout=subprocess.PIPE)
    said = child.communicate(timeout=20)[0].decode()
    ignored = [int(re.search(r"^SigIgn:\s*(\w+)$", text, re.MULTILINE)[1], 16) & bits for text in (own, said)]
    assert ignored == [bits, 0]


@pytest.mark.usefixtures("ignoring")
def test_what_is_ignored_does_not_end_a_tool():
    with process.signals_raise():
        for number in process.LEAVING:
            signal.raise_signal(number)


@pytest.mark.usefixtures("signals_as_in_a_terminal")
@pytest.mark.parametrize("number", process.LEAVING)
def test_what_is_not_ignored_ends_a_tool_in_order(number):
    before = signal.getsignal(number)
    with pytest.raises(process.Interrupted) as caught, process.signals_raise():
        signal.raise_signal(number)
    assert (caught.value.code, signal.getsignal(number)) == (128 + number, before)


@pytest.mark.usefixtures("ignoring")
def test_a_test_of_signals_has_them_as_in_a_terminal(request):
    request.getfixturevalue("signals_as_in_a_terminal")
    assert [signal.getsignal(number) for number in process.LEAVING] == [
        *(signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    ]


INTERRUPTED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from lab import cli_test, process
from lab.floors import Outcome

def endless(note=None):
    child = process.start(["sleep", "1000"])
    try:
        if note:
            Path(note).write_text(f"{child.pid}\\n")
        child.wait()
    finally:
        process.kill(child)

steps = [("short", lambda: Outcome("short", True, 0.1, passed=3)), ("endless", lambda: endless(sys.argv[2]))]
steps += [("never", endless)]
sys.exit(cli_test._run([(steps, 2)], begin=time.monotonic(), reports=Path("reports"), left_out=[]))
"""


@pytest.mark.usefixtures("signals_as_in_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [False, True], ids=["", "group"])
def test_a_signal_ends_a_run_with_all_that_it_has_started(number, group, tmp_path):
    note = tmp_path / "pid"
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(TOOLS), str(note)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not (note.exists() and note.read_text().endswith("\n")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        assert child.stdout is not None
        # The third step begins where the short one has ended, and been taken note of.
        first = "".join(iter(child.stdout.readline, "... never begins\n"))
        if group:  # as a terminal does, whose Ctrl-C goes to the lanes as well
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)
        said = first + child.communicate(timeout=60)[0]
    finally:
        child.kill()
    assert child.returncode == 128 + number
    assert said.splitlines()[-3].startswith("not finished: endless, never")
    assert re.fullmatch(r"interrupted after \d+ s", said.splitlines()[-1])
    assert re.search(r"^ok   short +0\.1 s +3 passed", said, re.MULTILINE)
    assert "PASS" not in said and "FAIL" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


# --- commands without a start of Python each ----------------------------------------------------------------


def test_a_forked_command_is_the_command():
    commands = Commands.spawn()
    try:
        done = commands.run("features", "rng", "0x100000000", timeout=60)
        again = subprocess.run(
            [sys.executable, "-m", "uvirtio", "features", "rng", "0x100000000"],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (again.returncode, again.stdout, again.stderr)
        done = commands.run("rng", "read", "nonsense", "8", timeout=60)
        assert done.returncode == 2 and done.stdout == "" and "UV-USAGE" in done.stderr
        assert "Traceback" not in done.stderr
        assert commands.run("--version", timeout=60).stdout.startswith("uvirtio ")
    finally:
        commands.close()


# --- the table of what was tested ---------------------------------------------------------------------------

CASE = """<testcase name="{}"><properties><property name="cell" value="{} pci-modern {} split {}"/>
<property name="other" value="x"/></properties>{}</testcase>"""


def report(backend: str, machine: str = "") -> str:
    cases = [
        CASE.format("one", "rng", backend, f"intx{machine}", ""),
        CASE.format("two", "rng", backend, f"polling{machine}", ""),
        CASE.format("bad", "blk", backend, f"intx{machine}", '<failure message="no"/>'),
    ]
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def test_the_matrix_counts_what_passed_and_says_where(tmp_path):
    (tmp_path / "qemu.xml").write_text(report("qemu", " q35"))
    (tmp_path / "vm-vfio-6.12.xml").write_text(report("vfio-pci"))
    table = cli_matrix.read([tmp_path, tmp_path])  # a test counts once
    assert {key: (one.passed, one.places) for key, one in table.items()} == {
        ("pci-modern", "qemu", "split", "rng"): (2, {"q35"}),
        ("pci-modern", "vfio-pci", "split", "rng"): (2, {"Linux 6.12"}),
    }
    lines = cli_matrix.draw(table).splitlines()
    assert "| pci-modern | qemu | split | built | built | built | q35 (2) | built | built | built |" in lines
    assert (
        "| pci-modern | vfio-pci | split | built | built | built | Linux 6.12 (2) | built | built | built |"
        in lines
    )
    assert "| pci-legacy | qemu | split | built | - | - | built | built | built | built |" in lines
    assert not any("| packed |" in line for line in lines), "where nothing was tested it is not listed"
    short = cli_matrix.glance(table).splitlines()
    assert "| pci-modern | qemu | built | built | built | split | built | built | built |" in short
    assert "| pci-legacy | qemu | built | - | - | built | built | built | built |" in short
    assert "(2)" not in "".join(short)


def test_the_matrix_fills_what_a_run_of_a_part_has_and_leaves_the_rest(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    (whole / "qemu.xml").write_text(report("qemu", " q35"))
    (whole / "vm-vfio-6.12.xml").write_text(report("vfio-pci"))
    page = f"{cli_matrix.BEGIN}\n\n{cli_matrix.draw(cli_matrix.read([whole]))}\n{cli_matrix.END}"
    (part / "vm-uio-6.12.xml").write_text(report("uio_pci_generic"))
    (part / "qemu-10.0.xml").write_text(report("vhost-user").replace("pci-modern", "vhost-user"))
    (part / "vm-vfio-6.1.xml").write_text(report("vfio-pci").replace('name="two"', 'name="bad"'))
    assert cli_matrix.drawn(page) == cli_matrix.read([whole])
    filled = cli_matrix.read([part]) | cli_matrix.drawn(page)
    assert {key[1]: (one.passed, one.places) for key, one in filled.items()} == {
        "qemu": (2, {"q35"}),
        "vfio-pci": (2, {"Linux 6.12"}),  # as it was
        "uio": (2, {"Linux 6.12"}),
        "vhost-user": (2, {"daemons"}),
    }


@pytest.mark.parametrize(
    ("stem", "place"),
    [
        ("vm-vfio-newer-6.12", "Linux 6.12"),
        ("vm-arm-6.12", "Linux 6.12 arm64"),
        ("vm-arm-vfio-6.12-16k", "Linux 6.12-16k arm64"),
        ("vm-arm-mmio-newest-16k", "Linux newest-16k arm64"),
    ],
)
def test_the_matrix_knows_the_kernel_and_the_architecture(tmp_path, stem, place):
    (tmp_path / f"{stem}.xml").write_text(report("vfio-pci"))
    [found] = cli_matrix.read([tmp_path]).values()
    assert found.places == {place}


def test_every_machine_is_one_that_its_architecture_has():
    for machine in machines.load():
        arch = arches.get(machine.arch)
        assert set(machine.kernels) <= set(kernels.names(arch)), machine.name
        assert machine.iommu in ("", *arch.iommus), machine.name
        assert not machine.acpi or arch is arches.AARCH64, machine.name
        assert machine.daemons in ("", *qemus.names()), machine.name
        if machine.soft_reserved:
            assert machine.acpi, machine.name
            assert soft_reserve.parse(machine.soft_reserved)
    with pytest.raises(LabError, match="not one of"):
        arches.get("vax")


@pytest.mark.parametrize(
    "text", ["", "512M", "512M@", "512M@0x80000001", "1K@0x80000000", "0@0x80000000", "-1M@0"]
)
def test_a_range_that_is_set_apart_is_whole_pages(text):
    assert soft_reserve.parse("512M@0x80000000") == (0x80000000, 512 << 20)
    with pytest.raises(LabError, match="SIZE@ADDRESS"):
        soft_reserve.parse(text)


# --- another architecture's guest ---------------------------------------------------------------------------


def test_packages_that_are_compiled_are_found_for_another_architecture(tmp_path):
    site = tmp_path / "lib/python3.11/site-packages"
    for name, pure in (("pydantic_core-2.5", "false"), ("typer-0.29", "true"), ("mypy-1.2", "false")):
        (site / f"{name}.dist-info").mkdir(parents=True)
        (site / f"{name}.dist-info/WHEEL").write_text(f"Wheel-Version: 1.0\nRoot-Is-Purelib: {pure}\n")
    assert natives.compiled(tmp_path) == ["pydantic_core==2.5"]  # the guest runs neither mypy nor a linter
    assert natives.get(arches.X86_64, tmp_path) is None


def test_a_guest_finds_its_own_wheels_first(tmp_path, monkeypatch):
    monkeypatch.setattr(vm.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    kernel = make_kernel(tmp_path / "k", "")
    command = ["sh", "-c", "echo $PYTHONPATH"]
    for env, expected in (({}, "/wheels"), ({"PYTHONPATH": "/tools:/top"}, "/wheels:/tools:/top")):
        config = vm.Config(kernel=kernel, command=command, libraries=Path("/wheels"), env=env)
        done = subprocess.run(["sh"], input=vm.Vm(config)._job(), capture_output=True, text=True, timeout=20)
        assert done.stdout.strip() == expected


def test_the_matrix_is_written_into_two_pages_and_nowhere_else(tmp_path, monkeypatch, capsys):
    (tmp_path / "qemu.xml").write_text(report("qemu", " q35"))
    (tmp_path / "docs").mkdir()
    pages = [tmp_path / "docs/tested.md", tmp_path / "README.md"]
    for page in pages:
        page.write_text(f"head\n\n{cli_matrix.BEGIN}\nold\n{cli_matrix.END}\n\ntail\n")
    monkeypatch.setattr(cli_matrix, "CHECKOUT", tmp_path)
    assert cli_matrix.main(["--check", str(tmp_path)]) == 1
    assert cli_matrix.main([str(tmp_path)]) == 0
    assert cli_matrix.main(["--check", str(tmp_path)]) == 0
    for page, cell in zip(pages, ["q35 (2)", "| split |"], strict=True):
        text = page.read_text()
        assert text.startswith("head\n\n<!--") and text.endswith("-->\n\ntail\n")
        assert cell in text and "old" not in text
    pages[1].write_text("nothing")
    assert cli_matrix.main([str(tmp_path)]) == 1
    assert "has no <!--" in capsys.readouterr().err


def test_the_trace_of_a_killer_that_was_wanted_is_no_alarm():
    killed = "python invoked oom-killer: gfp_mask=0x140dca\nCall Trace:\nOut of memory: Killed process 7 (uvirtio)"
    wanted = f"uvirtio: {vm.OOM_ON_PURPOSE}"
    assert vm.alarms_of(killed) == ["Call Trace:"]
    assert vm.alarms_of(f"{wanted}\n{killed}\n{killed}") == []
    assert vm.alarms_of(f"{wanted}\n{killed}\nBUG: bad page\nCall Trace:") == ["BUG: bad page", "Call Trace:"]
    assert vm.OOM_ON_PURPOSE in (TOOLS.parent / "tests/vm/test_faults.py").read_text()
