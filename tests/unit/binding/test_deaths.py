"""Bind and restore killed at every single change, on machines of many kinds: all comes back, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fakesys import IDS, FakeKernel, FakeSys
from uvirtio.binding import discover, journal
from uvirtio.binding.bind import bind
from uvirtio.binding.restore import restore

RNG, DISK, NIC = "0000:03:00.0", "0000:04:00.0", "0000:05:00.0"
UIO, VFIO = "uio_pci_generic", "vfio-pci"
FORCE = ["foreign-override", "unsafe-dma", "unsafe-owner", "many", "earlier-bind"]
ME = (os.getuid(), os.getgid())


def no_sleep(seconds: float) -> None:
    del seconds


def at(fake: FakeSys, *addresses: str) -> list[discover.DiscoveredDevice]:
    return [discover.find(address, fake.roots) for address in addresses]


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[object, object]]:
    keys = before.keys() | after.keys()
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def in_child(run: Callable[[], object]) -> int:
    """Run in a process of its own, which may be ended at any moment; its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Kernel(FakeKernel):
    """A kernel that also makes a group for vfio-pci where there is no IOMMU and its parameter says so.

    It knows the type of a device with an old id by the subsystem (4.1.2.3).
    """

    def kind(self, device: Path, bus: str) -> str | None:
        number = int((device / "device").read_text(), 0) if bus == "pci" else 0
        if 0x1000 <= number < 0x1040:
            subsystem = int((device / "subsystem_device").read_text(), 0)
            return next(name for name, value in IDS.items() if value == subsystem)
        return super().kind(device, bus)

    def _probe(self, bus: Path, name: str) -> None:
        device = (bus / "devices" / name).resolve(strict=True)
        override = (device / "driver_override").read_text().strip()
        mode = self.fake.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode"
        made = override == VFIO and mode.exists() and not (device / "iommu_group").is_symlink()
        if made:
            self.fake.group(device, 0)
            self.fake.text(device / "iommu_group/name", "vfio-noiommu\n")
        super()._probe(bus, name)
        if made:
            (self.fake.roots.dev / "vfio/0").rename(self.fake.roots.dev / "vfio/noiommu-0")

    def _unbind(self, driver: Path, name: str) -> None:
        device = (driver / name).resolve()
        super()._unbind(driver, name)
        node = self.fake.roots.dev / "vfio/noiommu-0"
        if driver.name == VFIO and node.exists():
            node.unlink()
            group = (device / "iommu_group").resolve()
            (group / "devices" / name).unlink()
            (group / "devices").rmdir()
            (group / "name").unlink()
            group.rmdir()
            (device / "iommu_group").unlink()


Made = Callable[[FakeSys], list[str]]
"""Fills a tree; returns the addresses to bind."""


@dataclass
class Topology:
    """A kind of machine: how its tree is made, and how its devices are bound."""

    make: Made
    how: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] | None = None
    """How they were bound by an earlier run, which came to its end."""
    by_turns: bool = False
    """Whether that run bound the first of the devices alone."""
    restored_halfway: bool = False
    """Whether that run's restore was killed after its first change."""


def one(*, kind: str = "rng", group: int | None = 7, **more: Any) -> Made:
    def make(fake: FakeSys) -> list[str]:
        fake.pci(RNG, kind, group=group, **more)
        return [RNG]

    return make


def two(fake: FakeSys) -> list[str]:
    fake.pci(RNG, "rng", group=7)
    fake.pci(NIC, "net", group=8, driver=None)
    return [RNG, NIC]


def override(fake: FakeSys) -> list[str]:
    fake.text(fake.pci(RNG, "rng", group=7) / "driver_override", "virtio-pci\n")
    return [RNG]


def driverctl(fake: FakeSys) -> list[str]:
    fake.text(fake.roots.etc / f"driverctl.d/pci-{RNG}", "virtio-pci\n")
    return override(fake)


def mates(fake: FakeSys) -> list[str]:
    for address, kind in ((RNG, "rng"), (DISK, "balloon"), (NIC, "input")):
        fake.pci(address, kind, group=7)
    fake.pci("0000:06:00.0", None, pci_id=(0x8086, 0x2934), group=7, driver=None)
    return [RNG]


def several(fake: FakeSys) -> list[str]:
    names = [f"0000:0{number}:00.0" for number in range(3, 7)]
    for group, name in enumerate(names):
        fake.pci(name, "rng", group=group, driver="virtio-pci" if group % 3 else None)
    return names


def virtual_function(fake: FakeSys) -> list[str]:
    parent = fake.pci(NIC, "net", group=8)
    fake.text(parent / "sriov_numvfs", "0\n")
    path = fake.pci("0000:05:00.1", "net", group=9, driver=None)
    fake.link(path / "physfn", parent)
    return ["0000:05:00.1"]


def passthrough(fake: FakeSys) -> list[str]:
    fake.pci(RNG, "rng", group=7)
    fake.text(fake.sys / "kernel/iommu_groups/7/type", "identity\n")
    return [RNG]


def without_iommu(fake: FakeSys) -> list[str]:
    fake.text(fake.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    fake.pci(RNG, "rng")
    return [RNG]


def windows(fake: FakeSys) -> list[str]:
    """Two windows of one page, which change hands together."""
    for number in (0, 2):
        fake.mmio(f"a003{number:x}00.virtio_mmio", "rng")
    return ["mmio:0xa003000"]


def large_domain(fake: FakeSys) -> list[str]:
    fake.pci("10000:e1:00.0", "rng", group=7)
    return ["10000:e1:00.0"]


def mmio(fake: FakeSys) -> list[str]:
    fake.mmio("a003e00.virtio_mmio", "rng")
    return ["mmio:0xa003e00"]


def vdpa(fake: FakeSys) -> list[str]:
    fake.vdpa("vduse0", driver="virtio_vdpa")
    return ["vdpa:vduse0"]


TOPOLOGIES = {
    "pci": Topology(one(), {"owner": ME}),
    "two": Topology(two, {"owner": ME}),
    "override": Topology(override),
    "uio": Topology(one(group=None), {"driver": UIO}),
    "mmio": Topology(mmio),
    "vdpa": Topology(vdpa, {"owner": ME}),
    "group mates": Topology(mates, {"group": True}),
    "several": Topology(several),
    "driverctl": Topology(driverctl),
    "virtual function": Topology(virtual_function, {"owner": ME}),
    "identity domain": Topology(passthrough, {"driver": UIO}),
    "no-iommu": Topology(without_iommu, {"driver": VFIO}),
    "legacy id": Topology(one(kind="balloon", transitional=True)),
    "unbound": Topology(one(driver=None)),
    "large domain": Topology(large_domain),
    "page of windows": Topology(windows, {"group": True}),
    "second bind": Topology(two, first={}, by_turns=True),
    "another owner": Topology(one(), {"owner": ME}, first={}),
    "restore half done": Topology(two, {"owner": ME}, first={}, restored_halfway=True),
}
"""By name."""


def made(top: Path, name: str) -> tuple[FakeSys, list[str]]:
    fake = FakeSys(top)
    fake.driver(VFIO)
    fake.driver(UIO)
    fake.text(fake.roots.proc / "iomem", "00000000-00000000 : System RAM\n")
    return fake, TOPOLOGIES[name].make(fake)


def die_twice(top: Path, name: str, n: int, m: int, after: bool) -> tuple[int, int]:
    """Kill bind at change n, restore at change m, then restore to the end; the exit codes of the first two."""
    fake, addresses = made(top, name)
    before, case = fake.snapshot(), TOPOLOGIES[name]

    def run(kernel: FakeKernel, names: list[str], **how: Any) -> object:
        return bind(at(fake, *names), fake.roots, force=FORCE, writer=kernel, sleep=no_sleep, **how)

    if case.first is not None:
        run(Kernel(fake), addresses[:1] if case.by_turns else addresses, **case.first)
        if case.restored_halfway:
            dying = Kernel(fake, die_at=0, die_after=True)
            assert in_child(lambda: restore(fake.roots, writer=dying, sleep=no_sleep)) == 9
    bound = in_child(lambda: run(Kernel(fake, die_at=n, die_after=after), addresses[case.by_turns :], **case.how))
    dying = Kernel(fake, die_at=m, die_after=after)
    restored = in_child(lambda: restore(fake.roots, writer=dying, sleep=no_sleep))
    restore(fake.roots, writer=Kernel(fake), sleep=no_sleep)
    assert not changed(before, fake.snapshot()), (n, m, bound, restored)
    assert journal.entries(fake.roots) == []
    assert bound in (0, 9) and restored in (0, 9), (n, m, bound, restored)
    return bound, restored


@pytest.mark.fault(66, 89, level="K")
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_killed_at_any_change_restore_gives_back_the_very_tree(tmp_path: Path, name: str) -> None:
    """In one topology restore dies at every place, too, before and after; elsewhere at one that moves along."""
    for after in (False, True) if name == "pci" else (True,):
        deaths = 0
        for n in range(60):
            for m in range(20) if name == "pci" else (n % 7,):
                bound, restored = die_twice(tmp_path / f"{after}-{n}-{m}", name, n, m, after)
                deaths += bound == 9
                if restored == 0:
                    break
            if bound == 0:
                break
        assert bound == 0  # the loop went on until no process died
        assert deaths > 0


def test_killed_between_the_steps_of_the_journal(tmp_path: Path) -> None:
    """The journal's own writes are places to die at, too."""
    for n in range(100):
        fake = FakeSys(tmp_path / str(n))
        fake.driver("vfio-pci")
        fake.pci(RNG, "rng", group=7)
        before = fake.snapshot()
        founds = at(fake, RNG)

        def run(limit: int = n, fake: FakeSys = fake, founds: list[discover.DiscoveredDevice] = founds) -> None:
            count, fsync = 0, os.fsync

            def dying(fd: int) -> None:
                nonlocal count
                if count == limit:
                    os._exit(9)
                count += 1
                fsync(fd)

            os.fsync = dying
            bind(founds, fake.roots, writer=FakeKernel(fake), sleep=no_sleep)

        ended = in_child(run)
        restore(fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
        assert not changed(before, fake.snapshot())
        if ended == 0:
            return
    pytest.fail("bind never came to its end")
