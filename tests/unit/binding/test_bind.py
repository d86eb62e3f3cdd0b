"""Plan, bind and restore on a made-up tree whose kernel answers; killed at every single change."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time
from pathlib import Path
from types import FrameType

import pytest

from tests.fakes.fakesys import FakeKernel, FakeSys
from uvirtio.binding import bind as binding
from uvirtio.binding import discover, journal
from uvirtio.binding.bind import bind
from uvirtio.binding.owner import owner_ids
from uvirtio.binding.plan import plan, plans
from uvirtio.binding.restore import restore
from uvirtio.binding.sysfs_ops import SysfsOps, device_lock
from uvirtio.errors import (
    Blocked,
    Busy,
    Claimed,
    Denied,
    EnvironmentLack,
    InUse,
    LimitReached,
    ModuleLack,
    NoIommu,
    OperationFailed,
    Refused,
    UsageError,
)
from uvirtio.host.lock import lock_path
from uvirtio.host.writer import ChildWriter

RNG, DISK, NIC = "0000:03:00.0", "0000:04:00.0", "0000:05:00.0"


def no_sleep(seconds: float) -> None:
    del seconds


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.driver("vfio-pci")
    made.driver("uio_pci_generic")
    made.text(made.roots.proc / "iomem", "00000000-00000000 : System RAM\n")
    return made


def at(fake: FakeSys, *addresses: str) -> list[discover.DiscoveredDevice]:
    return [discover.find(address, fake.roots) for address in addresses]


def changed(before: dict[str, object], after: dict[str, object]) -> dict[str, tuple[object, object]]:
    keys = before.keys() | after.keys()
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


# --- plan --------------------------------------------------------------------------------------------------


def test_a_plan_is_the_exact_writes_and_changes_nothing(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    before = fake.snapshot()
    made = plan(*at(fake, RNG), fake.roots)
    assert made.driver == "vfio-pci" and made.problems == () and not made.nothing_to_do
    writes = [(str(step.path.relative_to(fake.sys)), step.value) for step in made.members[0].steps]
    assert writes == [
        (f"bus/pci/devices/{RNG}/driver_override", "vfio-pci"),
        ("bus/pci/drivers/virtio-pci/unbind", RNG),
        ("bus/pci/drivers_probe", RNG),
        (f"bus/pci/devices/{RNG}/driver_override", "\n"),
    ]
    assert {check.name: check.verdict for check in made.checks} == {
        "iommu": "pass", "module": "pass", "way-back": "pass", "rights": "pass"}  # fmt: skip
    json.dumps(made.as_dict())
    assert fake.snapshot() == before and not (fake.roots.run / "uvirtio").exists()


def test_no_iommu_explains_the_choices(fake: FakeSys) -> None:
    fake.pci(RNG, "rng")
    (found,) = at(fake, RNG)
    (problem,) = plan(found, fake.roots).problems
    assert isinstance(problem, NoIommu) and problem.exit_code == 4
    assert "intel-iommu" in str(problem.remedy) and "uio_pci_generic" in str(problem.remedy)
    assert isinstance(plan(found, fake.roots, driver="vfio-pci").problems[0], NoIommu)
    explicit = plan(found, fake.roots, driver="uio_pci_generic")
    assert explicit.problems == () and explicit.driver == "uio_pci_generic"
    assert ("unsafe-dma", "warn") in [(f.rule, f.severity) for f in explicit.members[0].findings]


def test_noiommu_mode_still_wants_consent(fake: FakeSys) -> None:
    fake.pci(RNG, "rng")
    fake.text(fake.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    (found,) = at(fake, RNG)
    assert isinstance(plan(found, fake.roots).problems[0], NoIommu), "who has not named a driver has not chosen"
    (problem,) = plan(found, fake.roots, driver="vfio-pci").problems
    assert type(problem) is Refused and "unsafe-dma" in problem.message
    assert plan(found, fake.roots, driver="vfio-pci", force=["unsafe-dma"]).problems == ()


def test_unknown_words_are_usage(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    (found,) = at(fake, RNG)
    with pytest.raises(UsageError):
        plan(found, fake.roots, force=["mounte"])
    with pytest.raises(UsageError):
        plan(found, fake.roots, driver="nvme")


@pytest.mark.fault(94)
def test_a_missing_module_is_found_before_anything(fake: FakeSys) -> None:
    for name in ("unbind", "bind"):
        (fake.sys / "bus/pci/drivers/vfio-pci" / name).unlink()
    (fake.sys / "bus/pci/drivers/vfio-pci").rmdir()
    fake.text(fake.top / "lib/modules/6.1.0-test/modules.dep", "kernel/a.ko:\n")
    fake.pci(RNG, "rng", group=7)
    before = fake.snapshot()
    with pytest.raises(ModuleLack) as error:
        bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    assert error.value.exit_code == 4 and "6.1.0-test" in str(error.value.seen)
    assert fake.snapshot() == before and journal.entries(fake.roots) == []


def test_a_module_is_loaded_when_it_can_be(fake: FakeSys) -> None:
    home = fake.sys / "bus/pci/drivers/vfio-pci"
    for name in ("unbind", "bind"):
        (home / name).unlink()
    home.rmdir()
    fake.text(fake.top / "lib/modules/6.1.0-test/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko.xz: a.ko\n")
    fake.pci(RNG, "rng", group=7)
    loaded: list[str] = []

    def modprobe(module: str) -> None:
        assert journal.entries(fake.roots) == []
        loaded.append(module)
        fake.driver("vfio-pci")

    bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), modprobe=modprobe, sleep=no_sleep)
    assert loaded == ["vfio-pci"] and at(fake, RNG)[0].driver == "vfio-pci"


def test_no_module_is_loaded_for_a_tree_that_is_not_the_machine(fake: FakeSys) -> None:
    home = fake.sys / "bus/pci/drivers/vfio-pci"
    for name in ("unbind", "bind"):
        (home / name).unlink()
    home.rmdir()
    fake.text(fake.top / "lib/modules/6.1.0-test/modules.builtin", "kernel/drivers/vfio/pci/vfio_pci.ko\n")
    fake.pci(RNG, "rng", group=7)
    with pytest.raises(ModuleLack, match="not loaded"):
        bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)


# --- bind --------------------------------------------------------------------------------------------------


def test_bind_and_restore(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    before = fake.snapshot()
    kernel = FakeKernel(fake)
    (bound,) = bind(at(fake, RNG), fake.roots, writer=kernel, sleep=no_sleep, argv=["uvirtio", "bind", RNG])
    assert (bound.address, bound.driver, bound.node) == (RNG, "vfio-pci", "/dev/vfio/7")
    (found,) = at(fake, RNG)
    assert found.driver_override is None and found.kernel_driver is None
    (entry,) = journal.entries(fake.roots)
    assert entry.state == "bound" and entry.argv == ("uvirtio", "bind", RNG) and entry.id == bound.journal
    assert entry.devices[0].steps == ("override", "unbind", "probe", "override-cleared")
    (back,) = restore(fake.roots, [RNG], writer=kernel, sleep=no_sleep)
    assert (back.driver, back.action) == ("virtio-pci", "restored")
    assert fake.snapshot() == before and journal.entries(fake.roots) == []


def test_bind_does_exactly_what_the_plan_says(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    (found,) = at(fake, RNG)
    steps = [(str(s.path.relative_to(fake.sys)), s.value) for s in plan(found, fake.roots).members[0].steps]
    kernel = FakeKernel(fake)
    bind([found], fake.roots, writer=kernel, sleep=no_sleep)
    assert kernel.log == steps


def test_twenty_cycles_leave_sysfs_as_it_was(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    fake.pci(NIC, "balloon", group=8)
    before = fake.snapshot()
    for _ in range(20):
        kernel = FakeKernel(fake)
        bind(at(fake, RNG, NIC), fake.roots, writer=kernel, sleep=no_sleep)
        restore(fake.roots, writer=kernel, sleep=no_sleep)
        assert fake.snapshot() == before
    assert list(journal.directory(fake.roots).iterdir()) == []


def test_bind_twice_is_once(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    (first,) = bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    kernel = FakeKernel(fake)
    (second,) = bind(at(fake, RNG), fake.roots, writer=kernel, sleep=no_sleep)
    assert (second.driver, second.node, second.journal) == (first.driver, first.node, None)
    assert kernel.log == [] and len(journal.entries(fake.roots)) == 1


def test_a_second_bind_elsewhere_is_refused(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    with pytest.raises(Refused) as error:
        bind(at(fake, RNG), fake.roots, driver="uio_pci_generic", writer=FakeKernel(fake), sleep=no_sleep)
    assert "earlier run" in error.value.message and "restore" in str(error.value.remedy)


def test_an_override_of_others_survives_when_forced(fake: FakeSys) -> None:
    path = fake.pci(RNG, "rng", group=7)
    fake.text(path / "driver_override", "virtio-pci\n")
    before = fake.snapshot()
    with pytest.raises(Refused):
        bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    kernel = FakeKernel(fake)
    bind(at(fake, RNG), fake.roots, force=["foreign-override"], writer=kernel, sleep=no_sleep)
    assert at(fake, RNG)[0].driver_override == "virtio-pci"
    restore(fake.roots, writer=kernel, sleep=no_sleep)
    assert fake.snapshot() == before


def test_the_deny_list_comes_first(fake: FakeSys) -> None:
    disk = fake.pci(DISK, "blk", group=8)
    fake.child(disk, "virtio0/block/vda", "block", {"dev": "254:0\n"})
    fake.mountinfo(["20 1 254:0 / / rw - ext4 /dev/vda rw"])
    for line in ("*", DISK, "0000:04:*", "virtio0"):
        fake.text(fake.roots.etc / "uvirtio/deny", line + "\n")
        kernel = FakeKernel(fake)
        with pytest.raises(Denied) as error:
            bind(at(fake, DISK), fake.roots, writer=kernel, sleep=no_sleep)
        assert error.value.exit_code == 3 and kernel.log == []


def test_all_checks_of_all_devices_come_before_the_first_write(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    disk = fake.pci(DISK, "blk", group=8)
    fake.child(disk, "virtio1/block/vda", "block", {"dev": "254:0\n"})
    fake.mountinfo(["20 1 254:0 / /srv rw - ext4 /dev/vda rw"])
    before, kernel = fake.snapshot(), FakeKernel(fake)
    with pytest.raises(InUse) as error:
        bind(at(fake, RNG, DISK), fake.roots, writer=kernel, sleep=no_sleep)
    assert "mounted" in error.value.message and "/srv" in str(error.value.seen)
    assert kernel.log == [] and fake.snapshot() == before
    bind(at(fake, RNG, DISK), fake.roots, force=["mounted"], writer=kernel, sleep=no_sleep)
    assert [f.driver for f in at(fake, RNG, DISK)] == ["vfio-pci", "vfio-pci"]


def test_facts_are_read_again_under_the_lock(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = fake.pci(DISK, "blk", group=8)
    fake.child(disk, "virtio0/block/vda", "block", {"dev": "254:0\n"})
    real = binding.device_lock

    def late(key: str, roots: object) -> object:
        fake.mountinfo(["20 1 254:0 / /srv rw - ext4 /dev/vda rw"])
        return real(key, fake.roots)

    monkeypatch.setattr(binding, "device_lock", late)
    kernel = FakeKernel(fake)
    with pytest.raises(InUse):
        bind(at(fake, DISK), fake.roots, writer=kernel, sleep=no_sleep)
    assert kernel.log == []


def test_the_rest_of_the_group(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    fake.pci("0000:03:00.1", "balloon", group=7)
    fake.pci("0000:00:1c.0", None, pci_id=(0x8086, 1), driver="pcieport", pci_class=0x060400, group=7)
    before, kernel = fake.snapshot(), FakeKernel(fake)
    with pytest.raises(Refused) as error:
        bind(at(fake, RNG), fake.roots, writer=kernel, sleep=no_sleep)
    assert error.value.exit_code == 3 and "--group" in str(error.value.remedy) and kernel.log == []
    bind(at(fake, RNG), fake.roots, group=True, writer=kernel, sleep=no_sleep)
    drivers = {f.address: f.driver for f in discover.pci_functions(fake.roots)}
    assert drivers == {RNG: "vfio-pci", "0000:03:00.1": "vfio-pci", "0000:00:1c.0": "pcieport"}
    restore(fake.roots, writer=kernel, sleep=no_sleep)
    assert not changed(before, fake.snapshot())


def test_a_driver_that_keeps_its_device_is_an_error(fake: FakeSys) -> None:
    class Inert(FakeKernel):
        def write(self, path: Path, text: str, timeout: float) -> None:
            self.log.append((str(path.relative_to(self.fake.sys)), text))

    fake.pci(RNG, "rng", group=7)
    kernel = Inert(fake)
    with pytest.raises(OperationFailed, match="not free after unbind") as caught:
        SysfsOps(fake.roots, kernel, lambda _: None, 1.0).unbind("pci", RNG, "virtio-pci")
    assert caught.value.seen == "driver virtio-pci" and kernel.log == [("bus/pci/drivers/virtio-pci/unbind", RNG)]


def test_group_members_named_together_need_no_option(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    fake.pci("0000:03:00.1", "balloon", group=7)
    bind(at(fake, RNG, "0000:03:00.1"), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    assert {f.driver for f in discover.scan(fake.roots)} == {"vfio-pci"}


def test_group_members_are_held_to_the_same_rules(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    other = fake.pci("0000:03:00.1", None, pci_id=(0x8086, 0x2922), driver="ahci", pci_class=0x010601, group=7)
    fake.child(other, "ata1/host0/target0/0/block/sda", "block", {"dev": "8:0\n"})
    fake.mountinfo(["20 1 8:0 / / rw - ext4 /dev/sda rw"])
    kernel = FakeKernel(fake)
    with pytest.raises(InUse) as error:
        bind(at(fake, RNG), fake.roots, group=True, force=["mounted"], writer=kernel, sleep=no_sleep)
    assert "0000:03:00.1" in error.value.message and kernel.log == []


def test_a_slow_driver_is_waited_for(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    kernel = FakeKernel(fake)
    kernel.slow_probes = 9
    slept: list[float] = []
    bind(at(fake, RNG), fake.roots, writer=kernel, sleep=slept.append)
    assert slept == [0.5] * 9 and at(fake, RNG)[0].driver == "vfio-pci"


# --- failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["probe", "override", "write"])
def test_failures_are_rolled_back(fake: FakeSys, what: str) -> None:
    fake.pci(NIC, "balloon", group=8)
    fake.pci(RNG, "rng", group=7)
    before, kernel = fake.snapshot(), FakeKernel(fake)
    if what == "probe":
        kernel.refuses = {"vfio-pci"}
    elif what == "override":
        kernel.forget_override = True
    else:
        kernel.fail = {"unbind": errno.EIO}
    with pytest.raises(OperationFailed) as error:
        bind(at(fake, NIC, RNG), fake.roots, writer=kernel, sleep=no_sleep)
    assert "put back" in error.value.message and error.value.exit_code == 1
    first = {"probe": "does not take", "override": "does not read back", "write": "unbind failed"}
    assert first[what] in error.value.message
    assert fake.snapshot() == before and journal.entries(fake.roots) == []


def test_a_failed_roll_back_keeps_the_journal_and_says_both(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    before, kernel = fake.snapshot(), FakeKernel(fake)
    kernel.refuses = {"vfio-pci", "virtio-pci"}
    with pytest.raises(OperationFailed) as error:
        bind(at(fake, RNG), fake.roots, writer=kernel, sleep=no_sleep)
    assert "vfio-pci does not take" in error.value.seen and "virtio-pci does not take" in error.value.seen
    assert len(journal.entries(fake.roots)) == 1
    restore(fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    assert fake.snapshot() == before


def test_ctrl_c_is_rolled_back(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    before = fake.snapshot()
    for index in range(4):

        class Interrupted(FakeKernel):
            stop = index

            def write(self, path: Path, text: str, timeout: float) -> None:
                super().write(path, text, timeout)
                if self.count == self.stop + 1:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            bind(at(fake, RNG), fake.roots, writer=Interrupted(fake), sleep=no_sleep)
        assert fake.snapshot() == before and journal.entries(fake.roots) == []


@pytest.mark.fault(95)
def test_a_blocked_write_leaves_a_pending_entry(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    before = fake.snapshot()

    class Blocking(FakeKernel):
        def write(self, path: Path, text: str, timeout: float) -> None:
            if path.name == "unbind":
                raise Blocked("blocked")
            super().write(path, text, timeout)

    with pytest.raises(Blocked):
        bind(at(fake, RNG), fake.roots, writer=Blocking(fake), sleep=no_sleep)
    assert journal.entries(fake.roots)[0].state == "pending"
    restore(fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    assert fake.snapshot() == before


def test_strangers_taken_by_the_driver_are_noticed(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    other = fake.pci(NIC, "net", group=8, driver=None)
    before = fake.snapshot()

    class Greedy(FakeKernel):
        def _probe(self, bus: Path, name: str) -> None:
            super()._probe(bus, name)
            if not (other / "driver").is_symlink():
                self.fake.attach(other, "vfio-pci")

    with pytest.raises(OperationFailed) as error:
        bind(at(fake, RNG), fake.roots, writer=Greedy(fake), sleep=no_sleep)
    assert NIC in str(error.value.seen)
    assert at(fake, RNG)[0].driver == "virtio-pci" and before


@pytest.mark.fault(98)
def test_nothing_is_changed_without_a_journal(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    before, kernel = fake.snapshot(), FakeKernel(fake)
    fake.text(fake.roots.run / "uvirtio/journal.d", "a file where the directory should be")
    with pytest.raises(EnvironmentLack) as error:
        bind(at(fake, RNG), fake.roots, writer=kernel, sleep=no_sleep)
    assert error.value.exit_code == 4 and kernel.log == [] and fake.snapshot() == before


# --- owner -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\u0663", "\u0663:0", "0:\u0663", "\u00b2", "", ":", ":0", " 0"])
def test_an_owner_is_a_name_or_ascii_digits(text: str) -> None:
    with pytest.raises(UsageError, match="no owner"):
        owner_ids(text)


def test_the_node_is_given_only_where_the_iommu_holds_the_device(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7, features=1 << 32 | 1 << 33)
    fake.pci(NIC, "rng", group=8)
    fake.pci(DISK, "balloon", group=9, features=1 << 32 | 1 << 33)
    kernel = FakeKernel(fake)
    bind(at(fake, RNG), fake.roots, owner=(1000, 1000), writer=kernel, sleep=no_sleep)
    assert kernel.log[-1] == ("dev/vfio/7", "1000:1000")
    (entry,) = journal.entries(fake.roots)
    assert entry.devices[0].node == "7" and entry.devices[0].node_before is not None
    for address, why in ((NIC, "ACCESS_PLATFORM"), (DISK, "physical address")):
        kernel = FakeKernel(fake)
        with pytest.raises(Refused) as error:
            bind(at(fake, address), fake.roots, owner=(1000, 1000), writer=kernel, sleep=no_sleep)
        assert why in str(error.value.seen) and kernel.log == []
    bind(at(fake, DISK), fake.roots, owner=(0, 0), force=["unsafe-owner"], writer=kernel, sleep=no_sleep)
    assert kernel.log[-1] == ("dev/vfio/9", "0:0")


@pytest.mark.parametrize("force", [["unsafe-dma"], ["unsafe-dma", "unsafe-owner"]])
def test_a_node_of_uio_is_given_to_nobody(fake: FakeSys, force: list[str]) -> None:
    fake.pci(RNG, "rng", features=1 << 32 | 1 << 33)
    kernel = FakeKernel(fake)
    with pytest.raises(Refused, match="of no use") as error:
        bind(
            at(fake, RNG),
            fake.roots,
            driver="uio_pci_generic",
            force=force,
            owner=(1000, 1000),
            writer=kernel,
            sleep=no_sleep,
        )
    assert "as root" in str(error.value.remedy) and kernel.log == []


def test_a_node_without_an_iommu_is_given_to_nobody(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", features=1 << 32 | 1 << 33)  # in no group yet: VFIO makes one up when it binds
    fake.text(fake.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    kernel = FakeKernel(fake)
    with pytest.raises(Refused) as error:
        bind(
            at(fake, RNG),
            fake.roots,
            driver="vfio-pci",
            force=["unsafe-dma"],
            owner=(1000, 1000),
            writer=kernel,
            sleep=no_sleep,
        )
    assert "anywhere in memory" in str(error.value.seen) and kernel.log == []


PLATFORM = 1 << 32 | 1 << 33


@pytest.mark.parametrize(
    ("kind", "features", "why"),
    [
        ("balloon", PLATFORM, "whole guest"),
        ("mem", PLATFORM, "whole guest"),
        ("rng", 1 << 32, "ACCESS_PLATFORM"),
        ("rng", PLATFORM, None),
    ],
)
def test_whose_vdpa_node_may_be_given_away(fake: FakeSys, kind: str, features: int, why: str | None) -> None:
    path = fake.vdpa("vdpa0", driver=None)
    fake.attach(path, "virtio_vdpa", bus="vdpa")
    fake.virtio(path, "virtio0", kind, features)
    node = fake.roots.dev / "vhost-vdpa-0"
    before = fake.snapshot()
    if why is not None:
        with pytest.raises(Refused) as caught:
            bind(at(fake, "vdpa:vdpa0"), fake.roots, owner=(1000, 1000), writer=FakeKernel(fake), sleep=no_sleep)
        assert why in caught.value.seen and not changed(before, fake.snapshot())
        return
    kernel = FakeKernel(fake)
    kernel.kind = lambda device, bus: kind  # type: ignore[method-assign]
    bind(at(fake, "vdpa:vdpa0"), fake.roots, owner=(1000, 1000), writer=kernel, sleep=no_sleep)
    assert ("dev/vhost-vdpa-0", "1000:1000") in kernel.log and node.exists()
    restore(fake.roots, writer=kernel, sleep=no_sleep)
    assert not node.exists() and [line for line in kernel.log if line[0].startswith("dev/")][1:] == []


def test_an_unknown_type_may_be_a_balloon_but_vduse_has_none(fake: FakeSys) -> None:
    fake.vdpa("vdpa0")
    fake.vdpa("vdpa1", driver=None)
    with pytest.raises(Refused) as caught:
        bind(at(fake, "vdpa:vdpa0"), fake.roots, owner=(1000, 1000), writer=FakeKernel(fake), sleep=no_sleep)
    assert "its type is not known" in caught.value.seen
    # The process behind VDUSE is no balloon either: the kernel takes net and block from it, with ACCESS_PLATFORM.
    fake.link(fake.sys / "devices/virtual/vdpa/subsystem", fake.sys / "class/vduse")
    kernel = FakeKernel(fake)
    bind(at(fake, "vdpa:vdpa0"), fake.roots, owner=(1000, 1000), writer=kernel, sleep=no_sleep)
    restore(
        fake.roots, writer=kernel, sleep=no_sleep
    )  # it was vhost_vdpa's before: the node stays, and gets its owner back
    assert [text for path, text in kernel.log if path == "dev/vhost-vdpa-0"] == [
        "1000:1000",
        f"{os.getuid()}:{os.getgid()}",
    ]


def test_a_node_number_that_is_another_devices_by_now_keeps_its_owner(fake: FakeSys) -> None:
    path = fake.vdpa("vdpa0", driver="virtio_vdpa")
    fake.link(fake.sys / "devices/virtual/vdpa/subsystem", fake.sys / "class/vduse")
    kernel = FakeKernel(fake)
    bind(at(fake, "vdpa:vdpa0"), fake.roots, owner=(1000, 1000), writer=kernel, sleep=no_sleep)
    kernel._unbind(fake.sys / "bus/vdpa/drivers/vhost_vdpa", "vdpa0")
    fake.vdpa("vdpa1", index=0)
    del kernel.log[:]
    restore(fake.roots, writer=kernel, sleep=no_sleep)
    assert (path / "driver").readlink().name == "virtio_vdpa"
    assert not [line for line in kernel.log if line[0].startswith("dev/")]


def test_owner_words() -> None:
    assert owner_ids("root") == (0, 0) and owner_ids("0:0") == (0, 0) and owner_ids("root:root") == (0, 0)
    assert owner_ids("54321:54322") == (54321, 54322)
    for text in ("", "nobody-by-this-name", "root:no-such-group", "99999999999", "54321", "4294967295:0"):
        with pytest.raises(UsageError):
            owner_ids(text)


# --- restore -----------------------------------------------------------------------------------------------


def test_restore_leaves_another_device_at_the_same_address_alone(fake: FakeSys) -> None:
    path = fake.pci(RNG, "rng", group=7)
    bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    fake.text(path / "device", "0x1045\n")
    kernel = FakeKernel(fake)
    (done,) = restore(fake.roots, [RNG], writer=kernel, sleep=no_sleep)
    assert done.action == "replaced" and kernel.log == [] and journal.entries(fake.roots) == []


def test_restore_forgets_a_device_that_is_gone(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    (fake.sys / "bus/pci/devices" / RNG).unlink()
    (done,) = restore(fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    assert done.action == "gone" and journal.entries(fake.roots) == []


def test_restore_when_another_program_was_faster(fake: FakeSys) -> None:
    path = fake.pci(RNG, "rng", group=7)
    bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    kernel = FakeKernel(fake)
    kernel.write(fake.sys / "bus/pci/drivers/vfio-pci/unbind", RNG, 1)
    fake.attach(path, "pci-stub")
    with pytest.raises(Refused) as error:
        restore(fake.roots, writer=kernel, sleep=no_sleep)
    assert "pci-stub" in str(error.value.seen) and len(journal.entries(fake.roots)) == 1


def test_restore_of_what_a_process_uses(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    bind(at(fake, RNG), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    fake.opened("/dev/vfio/7")
    kernel = FakeKernel(fake)
    with pytest.raises(Busy) as error:
        restore(fake.roots, [RNG], writer=kernel, sleep=no_sleep)
    assert "4242" in str(error.value.seen) and "holder" in str(error.value.seen) and kernel.log == []


def test_restore_without_a_journal(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7, driver="vfio-pci")
    fake.pci(NIC, "net", group=8)
    with pytest.raises(Refused) as error:
        restore(fake.roots, [RNG], writer=FakeKernel(fake), sleep=no_sleep)
    assert "unbind" in str(error.value.remedy)
    (done,) = restore(fake.roots, [NIC], writer=FakeKernel(fake), sleep=no_sleep)
    assert done.action == "already"


def test_restore_goes_on_after_one_failure(fake: FakeSys) -> None:
    path = fake.pci(RNG, "rng", group=7)
    fake.pci(NIC, "rng", group=8)
    bind(at(fake, RNG, NIC), fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    fake.text(path / "driver_override", "pci-stub\n")
    with pytest.raises(Claimed):
        restore(fake.roots, writer=FakeKernel(fake), sleep=no_sleep)
    assert at(fake, NIC)[0].driver == "virtio-pci"
    (entry,) = journal.entries(fake.roots)
    assert [device.address for device in entry.devices] == [RNG]


# --- locks and the child that writes -----------------------------------------------------------------------


def test_two_processes_cannot_bind_one_device(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    path = lock_path(RNG, fake.roots)
    path.parent.mkdir(parents=True)
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("1\n")
        other.flush()
        kernel = FakeKernel(fake)
        with pytest.raises(Busy) as error:
            bind(at(fake, RNG), fake.roots, writer=kernel, sleep=no_sleep)
        assert error.value.exit_code == 3 and "process 1" in str(error.value.seen) and kernel.log == []
    with device_lock(RNG, fake.roots):
        pass


def test_lock_names_hold_no_slash(fake: FakeSys) -> None:
    assert lock_path("/dev/vhost-vdpa-0", fake.roots).name == "dev_vhost-vdpa-0.lock"


def test_the_child_writes_and_reports_errno(tmp_path: Path) -> None:
    writer = ChildWriter()
    target = tmp_path / "file"
    target.write_text("")
    writer.write(target, "0000:03:00.0", 10)
    assert target.read_text() == "0000:03:00.0"
    with pytest.raises(FileNotFoundError):
        writer.write(tmp_path / "none/such", "x", 10)


def test_no_room_for_the_child_is_a_limit(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    fake.pci(RNG, "rng")
    ops = SysfsOps(fake.roots, ChildWriter(), time.sleep, 10)
    monkeypatch.setattr(os, "fork", no_process)
    with pytest.raises(LimitReached, match="driver_override cannot be written: there are too many") as caught:
        ops.set_override("pci", RNG, "vfio-pci")
    assert caught.value.code == "UV-ENV-LIMIT" and "ulimit -u" in str(caught.value.remedy)


@pytest.mark.fault(95)
def test_a_write_that_blocks_has_a_deadline(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # it has no reader: open(2) for writing sleeps
    start = time.monotonic()
    with pytest.raises(Blocked) as error:
        ChildWriter().write(fifo, "x", 0.2)
    assert time.monotonic() - start >= 0.2
    assert "restore" in str(error.value.remedy)


def test_ctrl_c_waits_for_the_write_and_then_comes(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if frame is None or frame.f_code is not ChildWriter._wait.__code__:  # a busy machine: it does not wait yet
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        with fifo.open("rb", buffering=0) as reader:  # lets the child's open(2) through
            got.append(reader.read())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            ChildWriter().write(fifo, "x", 30)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert got == [b"x"]


def test_a_child_that_hangs_keeps_no_lock(fake: FakeSys, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with device_lock(RNG, fake.roots), pytest.raises(Blocked):
        ChildWriter().write(fifo, "x", 0.2)
    with device_lock(RNG, fake.roots):
        pass


def test_plans_of_several_know_each_other(fake: FakeSys) -> None:
    fake.pci(RNG, "rng", group=7)
    fake.pci("0000:03:00.1", "balloon", group=7)
    made = plans(at(fake, RNG, "0000:03:00.1"), fake.roots, group=True)
    assert [[m.found.address for m in p.members] for p in made] == [[RNG], ["0000:03:00.1"]]
