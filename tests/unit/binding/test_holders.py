"""Who drives a device from user space: by its group's node or its own, under vfio-pci or a variant of it.

The trees are made up, with files as nodes; the processes that hold these open are real ones, and so is their
directory in /proc.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeKernel, FakeSys
from uvirtio.binding import discover, journal
from uvirtio.binding.bind import bind
from uvirtio.binding.doctor import checks
from uvirtio.binding.facts import Facts
from uvirtio.binding.plan import plan
from uvirtio.binding.restore import restore
from uvirtio.binding.rules import check, in_use
from uvirtio.cli.completion import candidates
from uvirtio.errors import Busy, InUse, Refused, UsageError
from uvirtio.host import drivers, process, sysfs

NIC, MATE = "0000:03:00.0", "0000:03:00.1"
VARIANT = "virtio_vfio_pci"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.driver("vfio-pci")
    made.driver("uio_pci_generic")
    return made


@contextmanager
def held(fake: FakeSys, name: str) -> Iterator[int]:
    """A process that has ``/dev/vfio/NAME`` open; its number."""
    program = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(node(fake, name))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"open\n"
        entry = fake.roots.proc / str(child.pid)
        entry.symlink_to(f"/proc/{child.pid}")
        yield child.pid
        entry.unlink()
        child.stdin.close()


def take(fake: FakeSys, driver: str | None = None, *, address: str = NIC, **how: object) -> list[object]:
    found = discover.find(address, fake.roots)
    return bind([found], fake.roots, driver=driver, writer=FakeKernel(fake), sleep=lambda _: None, **how)


def give(fake: FakeSys, address: str = NIC) -> list[object]:
    return restore(fake.roots, [address], writer=FakeKernel(fake), sleep=lambda _: None)


def node(fake: FakeSys, name: str) -> Path:
    return fake.roots.dev / "vfio" / name


# --- either node -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["7", "devices/vfio3"])
def test_bind_takes_nothing_from_a_process_that_has_either_node(fake: FakeSys, way: str) -> None:
    fake.vfio(fake.pci(NIC, "net", group=7, driver=None), 3)
    before = fake.snapshot()
    with held(fake, way) as pid:
        (use,) = in_use(check(discover.find(NIC, fake.roots), fake.roots).findings)
        assert use.rule == "other-use" and not use.forceable
        with pytest.raises(InUse) as caught:
            take(fake, "uio_pci_generic", force=["other-use", "unsafe-dma"])
        assert f"/dev/vfio/{way} is open in process {pid} (" in str(caught.value.seen)
        assert fake.snapshot() == before
    (done,) = take(fake, "uio_pci_generic", force=["unsafe-dma"])
    assert done.driver == "uio_pci_generic"


@pytest.mark.parametrize("way", ["7", "devices/vfio3"])
def test_restore_takes_nothing_from_a_process_that_has_either_node(fake: FakeSys, way: str) -> None:
    device = fake.pci(NIC, "rng", group=7)
    take(fake)
    fake.vfio(device, 3, driver=None)
    with held(fake, way) as pid:
        with pytest.raises(Busy) as caught:
            give(fake)
        assert f"/dev/vfio/{way} is open in process {pid} (" in str(caught.value.seen)
        assert discover.find(NIC, fake.roots).driver == "vfio-pci" and journal.entries(fake.roots)
    (done,) = give(fake)
    assert (done.driver, done.action) == ("virtio-pci", "restored") and not journal.entries(fake.roots)


def test_the_node_of_another_function_in_the_group_counts(fake: FakeSys) -> None:
    """While one is driven, the kernel binds no driver of its own to any function of the group."""
    device = fake.pci(NIC, "rng", group=7)
    take(fake)
    fake.vfio(device, 3, driver=None)
    fake.vfio(fake.pci(MATE, "rng", group=7, driver=None), 4, driver=VARIANT)
    with held(fake, "devices/vfio4"), pytest.raises(Busy):
        give(fake)
    assert discover.find(NIC, fake.roots).driver == "vfio-pci"


def test_a_device_without_a_node_is_found_by_what_the_kernel_tells_of_the_descriptor(tmp_path: Path) -> None:
    """A process may close the group's node once it has the function; Linux 6.18 says in fdinfo which that is."""
    fake = FakeSys(tmp_path)
    fake.vfio(fake.pci(NIC, "net", group=7, driver=None))
    fake.opened("anon_inode:[vfio-device]", fd=9)
    path = "/sys" + sysfs.devpath(fake.sys / "bus/pci/devices" / NIC, fake.roots)
    fdinfo = fake.text(fake.roots.proc / "4242/fdinfo/9", f"pos:\t0\nvfio-device-syspath: {path}\n")
    (use,) = in_use(check(discover.find(NIC, fake.roots), fake.roots).findings)
    assert use.evidence == f"{path} is open in process 4242 (holder --run)"
    fake.text(fdinfo, "pos:\t0\nvfio-device-syspath: /sys/devices/pci0000:00/0000:09:00.0\n")
    assert not in_use(check(discover.find(NIC, fake.roots), fake.roots).findings)


def test_what_cannot_be_seen_is_said(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    device = fake.pci(NIC, "rng", group=7)
    take(fake)
    fake.vfio(device, 3, driver=None)
    assert check(discover.find(NIC, fake.roots), fake.roots).unchecked == []
    monkeypatch.setattr(process, "open_files", lambda _roots: process.OpenFiles({}, complete=False))
    assert [one.rule for one in check(discover.find(NIC, fake.roots), fake.roots).unchecked] == ["other-use"]
    (done,) = give(fake)
    assert done.unchecked == ("other-use",)
    fake.vfio(fake.pci(MATE, "rng", group=8, driver=None), 4)
    (bound,) = take(fake, "uio_pci_generic", address=MATE, force=["unsafe-dma"])
    assert bound.unchecked == ("other-use",)


# --- variants of vfio-pci ----------------------------------------------------------------------------------


def with_child(fake: FakeSys, device: Path) -> None:
    """Linux 6.1: the class device, without a node."""
    (device / "vfio-dev/vfio3").mkdir(parents=True)


def with_module(fake: FakeSys, device: Path) -> None:
    """Before: the driver's module uses vfio_pci_core."""
    module = fake.sys / "module/some_module"
    module.mkdir(parents=True)
    fake.link(fake.driver("anything") / "module", module)
    fake.link(fake.sys / "module/vfio_pci_core/holders/some_module", module)


@pytest.mark.parametrize("evidence", [with_child, with_module])
def test_a_variant_is_known_by_what_the_kernel_shows(
    fake: FakeSys, evidence: Callable[[FakeSys, Path], None]
) -> None:
    device = fake.pci(NIC, "net", group=7, driver="anything")
    assert not discover.find(NIC, fake.roots).vfio
    evidence(fake, device)
    found = discover.find(NIC, fake.roots)
    assert found.vfio and (found.driver, found.node) == ("anything", "/dev/vfio/7")
    drivers.require_bound(NIC, "vfio-pci", fake.roots)


def test_a_name_alone_makes_no_variant(fake: FakeSys) -> None:
    fake.pci(NIC, "net", group=7, driver="my_vfio_pci_tuner")
    found = discover.find(NIC, fake.roots)
    assert not found.vfio and found.node is None


@pytest.fixture
def variant(fake: FakeSys) -> FakeSys:
    """A function that another program bound to a variant."""
    fake.vfio(fake.pci(NIC, "net", group=7, driver=None), 3, driver=VARIANT)
    return fake


def test_bind_leaves_a_function_to_the_variant_that_has_it(variant: FakeSys) -> None:
    before = variant.snapshot()
    made = plan(discover.find(NIC, variant.roots), variant.roots)
    assert made.driver == VARIANT and made.nothing_to_do and not made.problems
    (done,) = take(variant)
    assert (done.driver, done.node, done.journal) == (VARIANT, "/dev/vfio/7", None)
    assert variant.snapshot() == before
    with pytest.raises(UsageError):  # others bind them
        take(variant, "mlx5_vfio_pci")


def test_another_driver_is_bound_only_by_force(variant: FakeSys) -> None:
    with pytest.raises(Refused) as caught:
        take(variant, "vfio-pci")
    assert VARIANT in str(caught.value.seen) and "foreign-override" in caught.value.message
    (done,) = take(variant, "vfio-pci", force=["foreign-override"])
    assert done.driver == "vfio-pci"
    (back,) = give(variant)
    assert (back.driver, back.action) == (VARIANT, "restored")


def test_a_variant_in_use_is_never_taken(variant: FakeSys) -> None:
    with held(variant, "devices/vfio3"), pytest.raises(InUse):
        take(variant, "vfio-pci", force=["foreign-override", "other-use"])
    assert discover.find(NIC, variant.roots).driver == VARIANT


def test_restore_does_not_call_a_variant_given_back(variant: FakeSys) -> None:
    with pytest.raises(Refused) as caught:
        give(variant)
    assert f"bound to {VARIANT}" in str(caught.value.seen)


def test_the_owner_of_a_variants_node(variant: FakeSys) -> None:
    (done,) = take(variant, owner=(os.getuid(), os.getgid()), force=["unsafe-owner"])
    assert done.journal is not None and node(variant, "7").stat().st_mode & 0o777 == 0o660
    (back,) = give(variant)
    assert back.driver == VARIANT and node(variant, "7").stat().st_mode & 0o777 == 0o600


def test_a_mate_under_a_variant_does_not_count_as_the_kernels(variant: FakeSys) -> None:
    variant.pci(MATE, "rng", group=7)
    made = plan(discover.find(MATE, variant.roots), variant.roots, group=True)
    assert [member.found.address for member in made.members] == [MATE] and not made.problems


def test_a_virtual_function_of_a_variant_wants_a_token(variant: FakeSys) -> None:
    function = variant.pci("0000:03:10.0", "net", group=8)
    variant.link(function / "physfn", variant.sys / "bus/pci/devices" / NIC)
    findings = check(discover.find("0000:03:10.0", variant.roots), variant.roots).findings
    assert [one.rule for one in findings if VARIANT in one.evidence] == ["vf-pf"]
    (problem,) = plan(discover.find("0000:03:10.0", variant.roots), variant.roots).problems
    assert f"uvirtio restore {NIC}" in str(problem.remedy) and "sriov_numvfs" not in str(problem.remedy)
    variant.text(function / "../0000:03:00.0/sriov_numvfs", "4\n")
    (problem,) = plan(
        discover.find(NIC, variant.roots),
        variant.roots,
        "uio_pci_generic",
        force=["foreign-override", "unsafe-dma"],
    ).problems
    assert problem.remedy == "set sriov_numvfs to 0 first"


def test_doctor_and_completion_know_a_variant(variant: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {one.name: one for one in checks(variant.roots, qemu_version=lambda _: "")}
    assert f"for user space: {NIC} (net, {VARIANT})" in made["devices"].detail
    monkeypatch.setattr(candidates, "_scan", lambda _place: discover.scan(variant.roots))
    assert NIC in str(candidates.complete(["restore", ""]))


# --- the function's own node -------------------------------------------------------------------------------


def test_a_function_is_found_and_denied_by_its_own_node(variant: FakeSys) -> None:
    found = discover.find("/dev/vfio/devices/vfio3", variant.roots)
    assert found.address == NIC and found.nodes == ("/dev/vfio/7", "/dev/vfio/devices/vfio3")
    assert "/dev/vfio/devices/vfio3" in found.names
    variant.text(variant.roots.etc / "uvirtio/deny", "/dev/vfio/devices/vfio3\n")
    problems = plan(found, variant.roots).problems
    assert [one.code for one in problems] == ["UV-REFUSED-DENIED"]


def test_a_kernel_without_groups(fake: FakeSys) -> None:
    """CONFIG_VFIO_GROUP=n: there is a node for each function, and nothing else."""
    device = fake.pci(NIC, "rng", group=7)
    take(fake)
    fake.vfio(device, 3, driver=None)
    node(fake, "7").unlink()
    (fake.sys / "class/vfio/7").rmdir()
    (fake.sys / "class/vfio").rmdir()
    found = discover.find(NIC, fake.roots)
    assert found.nodes == ("/dev/vfio/devices/vfio3",)
    fake.text(fake.roots.dev / "iommu", "")
    access = next(one for one in checks(fake.roots, qemu_version=lambda _: "") if one.name == "vfio-access")
    assert "/dev/vfio/devices/vfio3" in access.detail
    take(fake, owner=(os.getuid(), os.getgid()), force=["unsafe-owner"])
    own = node(fake, "devices/vfio3")
    assert own.stat().st_mode & 0o777 == 0o660
    with held(fake, "devices/vfio3"), pytest.raises(Busy):
        give(fake)
    give(fake)
    assert discover.find(NIC, fake.roots).driver == "virtio-pci"


def test_holders_are_found_below_links(fake: FakeSys) -> None:
    """udev's links, /dev/disk/by-id/..., lead to the nodes that processes hold."""
    fake.vfio(fake.pci(NIC, "net", group=7, driver=None), 3)
    (fake.roots.dev / "uvirtio").mkdir()
    (fake.roots.dev / f"uvirtio/{NIC}").symlink_to("../vfio/7")
    with held(fake, "7") as pid:
        assert [one.pid for one in Facts(fake.roots).holders(f"/dev/uvirtio/{NIC}")] == [pid]
