"""restore after others have had the device: claims, devices that are gone, the journal that ends by itself.

Each remedy that is printed is followed, and has to work.
"""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeKernel, FakeSys
from tests.fakes.remedies import Driverctl, commands, follow
from uvirtio.binding import discover, doctor, journal, rules
from uvirtio.binding.bind import bind
from uvirtio.binding.facts import Facts
from uvirtio.binding.plan import plan
from uvirtio.binding.restore import Failed, forget, restore, restore_each
from uvirtio.cli import main
from uvirtio.errors import Busy, Claimed, OperationFailed, PermissionLack, Refused, UsageError
from uvirtio.host import privilege

RNG, NIC, DISK = "0000:03:00.0", "0000:05:00.0", "0000:04:00.0"


def no_sleep(seconds: float) -> None:
    del seconds


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    for driver in ("vfio-pci", "uio_pci_generic", "pci-stub"):
        made.driver(driver)
    made.text(made.roots.proc / "iomem", "00000000-00000000 : System RAM\n")
    return made


@pytest.fixture
def kernel(fake: FakeSys) -> FakeKernel:
    return FakeKernel(fake)


def take(fake: FakeSys, kernel: FakeKernel, *addresses: str, force: tuple[str, ...] = ()) -> None:
    founds = [discover.find(address, fake.roots) for address in addresses]
    bind(founds, fake.roots, writer=kernel, sleep=no_sleep, force=force)


def back(fake: FakeSys, kernel: FakeKernel, *names: str) -> list[tuple[str, str]]:
    done = restore(fake.roots, names or None, writer=kernel, sleep=no_sleep)
    return [(one.address, one.action) for one in done]


def driver_of(fake: FakeSys, address: str) -> str | None:
    return discover.find(address, fake.roots).driver


def alternatives(remedy: object) -> tuple[str, str]:
    """The two halves of a remedy that offers to end a claim, or to leave the device as it is."""
    first, second = str(remedy).split(" Or leave it as it is: ")
    return first, second


# --- claims --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["vfio-pci", "virtio-pci", "pci-stub", "none"])
def test_what_driverctl_has_claimed_since_is_left_to_it(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    fake.pci(RNG, "rng", group=7)
    before = fake.snapshot()
    take(fake, kernel, RNG)
    Driverctl(fake, kernel).set_override(RNG, driver)
    claimed = fake.snapshot()
    with pytest.raises(Claimed) as caught:
        back(fake, kernel, RNG)
    assert fake.snapshot() == claimed and len(journal.entries(fake.roots)) == 1
    assert caught.value.exit_code == 3 and "driverctl" in caught.value.message
    assert f"driver_override is {driver}" in caught.value.seen and f"pci-{RNG} names {driver}" in caught.value.seen
    assert caught.value.expected == "no driver_override, as bind found it and left it"
    first, _ = alternatives(caught.value.remedy)
    assert follow(first, fake, kernel, monkeypatch) == [0]
    assert fake.snapshot() == before and journal.entries(fake.roots) == []


@pytest.mark.parametrize("driver", ["vfio-pci", "virtio-pci", "pci-stub"])
def test_an_override_without_a_saved_one_is_a_claim_too(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    """libvirt, or driverctl --nosave. vfio-pci is what bind had set for a moment, and it was cleared since."""
    fake.pci(RNG, "rng", group=7)
    before = fake.snapshot()
    take(fake, kernel, RNG)
    Driverctl(fake, kernel).set_override(RNG, driver, save=False)
    claimed = fake.snapshot()
    with pytest.raises(Claimed, match="another program has claimed") as caught:
        back(fake, kernel, RNG)
    assert fake.snapshot() == claimed
    assert caught.value.seen == f"driver_override is {driver}"
    first, _ = alternatives(caught.value.remedy)
    assert follow(first, fake, kernel, monkeypatch) == [0]
    assert fake.snapshot() == before and journal.entries(fake.roots) == []


def test_a_claimed_device_may_be_left_as_it_is(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.pci(RNG, "rng", group=7)
    take(fake, kernel, RNG)
    Driverctl(fake, kernel).set_override(RNG, "vfio-pci")
    claimed = fake.snapshot()
    with pytest.raises(Claimed) as caught:
        back(fake, kernel)
    _, second = alternatives(caught.value.remedy)
    assert follow(second, fake, kernel, monkeypatch) == [0]
    assert fake.snapshot() == claimed and journal.entries(fake.roots) == []


def test_what_driverctl_had_before_bind_is_no_claim(fake: FakeSys, kernel: FakeKernel) -> None:
    path = fake.pci(RNG, "rng", group=7)
    fake.text(path / "driver_override", "virtio-pci\n")
    fake.text(fake.roots.etc / f"driverctl.d/pci-{RNG}", "virtio-pci\n")
    before = fake.snapshot()
    take(fake, kernel, RNG, force=("foreign-override",))
    assert back(fake, kernel, RNG) == [(RNG, "restored")]
    assert fake.snapshot() == before


def test_an_override_that_was_removed_since_stays_removed(fake: FakeSys, kernel: FakeKernel) -> None:
    path = fake.pci(RNG, "rng", group=7)
    fake.text(path / "driver_override", "virtio-pci\n")
    take(fake, kernel, RNG, force=("foreign-override",))
    kernel.write(path / "driver_override", "\n", 1)
    assert back(fake, kernel, RNG) == [(RNG, "restored")]
    assert driver_of(fake, RNG) == "virtio-pci" and discover.find(RNG, fake.roots).driver_override is None


def test_a_vdpa_device_is_claimed_by_driverctl_on_its_bus(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.vdpa("vduse0", driver="virtio_vdpa")
    before = fake.snapshot()
    take(fake, kernel, "vdpa:vduse0")
    Driverctl(fake, kernel).set_override("vduse0", "vhost_vdpa", bus="vdpa")
    with pytest.raises(Claimed) as caught:
        back(fake, kernel)
    assert "driverctl --bus vdpa unset-override vduse0" in str(caught.value.remedy)
    first, _ = alternatives(caught.value.remedy)
    assert follow(first, fake, kernel, monkeypatch) == [0]
    assert fake.snapshot() == before


def test_bind_and_restore_do_not_send_one_another_in_a_circle(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bind says to restore first; restore says what ends that; then bind goes ahead."""
    fake.pci(RNG, "rng", group=7)
    take(fake, kernel, RNG)
    Driverctl(fake, kernel).set_override(RNG, "virtio-pci")
    with pytest.raises(Refused) as bound:
        take(fake, kernel, RNG, force=("foreign-override",))
    assert "earlier-bind" in bound.value.message
    assert follow(str(bound.value.remedy), fake, kernel, monkeypatch) == [3]
    with pytest.raises(Claimed) as caught:
        back(fake, kernel, RNG)
    first, _ = alternatives(caught.value.remedy)
    follow(first, fake, kernel, monkeypatch)
    take(fake, kernel, RNG)
    assert driver_of(fake, RNG) == "vfio-pci"


def test_another_driver_without_an_override(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake.pci(RNG, "rng", group=7)
    before = fake.snapshot()
    take(fake, kernel, RNG)
    kernel.write(fake.sys / "bus/pci/drivers/vfio-pci/unbind", RNG, 1)
    fake.attach(path, "pci-stub")
    with pytest.raises(Refused, match="another program has bound") as caught:
        back(fake, kernel, RNG)
    first, _ = alternatives(caught.value.remedy)
    assert follow(first.removesuffix("."), fake, kernel, monkeypatch) == [0]
    assert fake.snapshot() == before and journal.entries(fake.roots) == []


def test_the_plan_knows_of_a_claim(fake: FakeSys, kernel: FakeKernel) -> None:
    fake.pci(RNG, "rng", group=7)
    take(fake, kernel, RNG)
    Driverctl(fake, kernel).set_override(RNG, "vfio-pci")
    checks = {check.name: check for check in plan(discover.find(RNG, fake.roots), fake.roots).checks}
    assert checks["way-back"].verdict == "warn" and "claimed" in checks["way-back"].detail
    told = {check.name: check for check in doctor.checks(fake.roots, qemu_version=lambda path: "")}["journal"]
    assert told.verdict == "warn" and RNG in told.detail and f"restore {RNG}" in told.remedy


# --- devices that are gone, or others ------------------------------------------------------------------------


def unplug(fake: FakeSys, address: str) -> None:
    device = fake.sys / "bus/pci/devices" / address
    path = device.resolve()
    if (path / "driver").is_symlink():
        ((path / "driver").resolve() / address).unlink()
    if (path / "iommu_group").is_symlink():
        group = (path / "iommu_group").resolve()
        (group / "devices" / address).unlink()
        (fake.roots.dev / "vfio" / group.name).unlink(missing_ok=True)
    for child in path.glob("virtio*"):
        (fake.sys / "bus/virtio/devices" / child.name).unlink()
    device.unlink()
    shutil.rmtree(path)


def replace(fake: FakeSys, address: str, kind: str | None = "balloon", **how: object) -> None:
    unplug(fake, address)
    fake.pci(address, kind, group=7, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [(RNG,), ()])
def test_another_device_at_the_address_ends_the_entry(
    fake: FakeSys, kernel: FakeKernel, names: tuple[str, ...]
) -> None:
    fake.pci(RNG, "rng", group=7)
    fake.pci(NIC, "net", group=8, driver=None)
    take(fake, kernel, RNG, NIC)
    replace(fake, RNG)
    before = fake.snapshot()
    assert (RNG, "replaced") in back(fake, kernel, *names)
    kept = {key for key in before if NIC not in key and "vfio/8" not in key and "/8/" not in key}
    assert {key: before[key] for key in kept} == {key: fake.snapshot()[key] for key in kept}
    assert [device.address for entry in journal.entries(fake.roots) for device in entry.devices] == (
        [NIC] if names else []
    )


def test_another_device_that_is_no_virtio_device(fake: FakeSys, kernel: FakeKernel) -> None:
    fake.pci(RNG, "rng", group=7)
    take(fake, kernel, RNG)
    replace(fake, RNG, None, pci_id=(0x8086, 0x100E), driver="e1000")
    assert back(fake, kernel, RNG) == [(RNG, "replaced")] and journal.entries(fake.roots) == []


def test_another_device_at_the_address_can_be_bound(fake: FakeSys, kernel: FakeKernel) -> None:
    fake.pci(RNG, "rng", group=7)
    take(fake, kernel, RNG)
    replace(fake, RNG)
    before = fake.snapshot()
    take(fake, kernel, RNG)
    (entry,) = journal.entries(fake.roots)
    assert [(one.address, one.type, one.driver) for one in entry.devices] == [(RNG, "balloon", "virtio-pci")]
    assert back(fake, kernel) == [(RNG, "restored")]
    assert fake.snapshot() == before


def test_an_entry_of_before_hides_no_later_one(fake: FakeSys, kernel: FakeKernel) -> None:
    """A record of a device that is gone, and a younger one of the device that is there."""
    fake.pci(RNG, "rng", group=7)
    take(fake, kernel, RNG)
    (old,) = journal.entries(fake.roots)
    replace(fake, RNG)
    before = fake.snapshot()
    take(fake, kernel, RNG)
    journal.store(old, fake.roots)
    having = Facts(fake.roots).live(RNG)
    assert having is not None and having[1].type == "balloon"
    assert back(fake, kernel) == [(RNG, "restored")]
    assert fake.snapshot() == before and journal.entries(fake.roots) == []


def test_a_device_that_is_as_it_was_is_bound_again(fake: FakeSys, kernel: FakeKernel) -> None:
    """Another of the same model was plugged in, or someone bound it back by hand."""
    fake.pci(RNG, "rng", group=7)
    before = fake.snapshot()
    take(fake, kernel, RNG)
    kernel.write(fake.sys / "bus/pci/drivers/vfio-pci/unbind", RNG, 1)
    kernel.write(fake.sys / "bus/pci/drivers_probe", RNG, 1)
    assert fake.snapshot() == before
    found = discover.find(RNG, fake.roots)
    assert not [
        f for f in rules.check(found, fake.roots).findings if f.rule in ("foreign-override", "earlier-bind")
    ]
    told = {check.name: check for check in doctor.checks(fake.roots, qemu_version=lambda path: "")}["journal"]
    assert told.verdict == "pass" and "ended" in told.detail
    (old,) = journal.entries(fake.roots)
    take(fake, kernel, RNG)
    (fresh,) = journal.entries(fake.roots)
    assert fresh.id != old.id
    assert back(fake, kernel) == [(RNG, "restored")] and fake.snapshot() == before


def test_a_refused_bind_ends_no_entry(fake: FakeSys, kernel: FakeKernel) -> None:
    fake.pci(RNG, "rng", group=7)
    take(fake, kernel, RNG)
    replace(fake, RNG)
    fake.text(fake.roots.etc / "uvirtio/deny", RNG + "\n")
    with pytest.raises(Refused):
        take(fake, kernel, RNG)
    assert len(journal.entries(fake.roots)) == 1


def test_a_write_that_still_waits_keeps_its_entry(fake: FakeSys, kernel: FakeKernel) -> None:
    """The device looks as before, until the kernel finishes the write: only that it takes another one tells."""
    fake.mmio("a003e00.virtio_mmio", "rng")
    take(fake, kernel, "mmio:0xa003e00", force=("unsafe-dma",))
    (entry,) = journal.entries(fake.roots)
    journal.store(entry._replace(state="pending"), fake.roots)
    kernel.write(fake.sys / "bus/platform/drivers_probe", "a003e00.virtio_mmio", 1)
    found = discover.find("mmio:0xa003e00", fake.roots)
    assert [f.rule for f in rules.check(found, fake.roots).findings if f.rule == "earlier-bind"] == [
        "earlier-bind"
    ]
    kernel.fail = {"driver_override": errno.EIO}
    with pytest.raises(OperationFailed):
        back(fake, kernel)
    assert len(journal.entries(fake.roots)) == 1
    kernel.fail = {}
    assert back(fake, kernel) == [("mmio:0xa003e00", "already")] and journal.entries(fake.roots) == []


# --- one after another ---------------------------------------------------------------------------------------


def test_every_device_is_reported(fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is claimed, one in use, one's node fails with an error of the operating system; the last is restored."""
    fake.pci(RNG, "rng", group=7)
    fake.pci(DISK, "blk", group=8)
    fake.pci(NIC, "net", group=9, driver=None)
    fake.pci("0000:06:00.0", "rng", group=10)
    take(fake, kernel, RNG, DISK, NIC, "0000:06:00.0")
    Driverctl(fake, kernel).set_override(RNG, "pci-stub")
    fake.opened("/dev/vfio/8")

    class Broken(FakeKernel):
        def write(self, path: Path, text: str, timeout: float) -> None:
            if text == NIC:
                raise OSError(errno.EIO, "x")
            super().write(path, text, timeout)

    each = restore_each(fake.roots, writer=Broken(fake), sleep=no_sleep)
    told = {one.address: type(one.error) if isinstance(one, Failed) else one.action for one in each}
    assert told == {RNG: Claimed, DISK: Busy, NIC: OperationFailed, "0000:06:00.0": "restored"}
    left = [device.address for entry in journal.entries(fake.roots) for device in entry.devices]
    assert sorted(left) == [RNG, DISK, NIC]


def test_an_error_of_the_operating_system_stops_no_other(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.pci(RNG, "rng", group=7)
    fake.pci(NIC, "rng", group=8)
    take(fake, kernel, RNG, NIC)
    drop = journal.drop

    def once(entry: journal.Entry, address: str, roots: object) -> None:
        if address == RNG:
            raise OSError(errno.EIO, "Input/output error")
        drop(entry, address, fake.roots)

    monkeypatch.setattr(journal, "drop", once)
    with pytest.raises(OperationFailed, match=f"{RNG} could not be given back"):
        back(fake, kernel)
    assert driver_of(fake, NIC) == "virtio-pci"


def test_the_command_reports_each(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for address, group in ((RNG, 7), (DISK, 8), (NIC, 9)):
        fake.pci(address, "rng", group=group)
    take(fake, kernel, RNG, DISK, NIC)
    Driverctl(fake, kernel).set_override(RNG, "pci-stub")
    Driverctl(fake, kernel).set_override(DISK, "pci-stub")
    monkeypatch.setattr("uvirtio.binding.restore.ChildWriter", lambda: kernel)
    assert main(["restore", "--all", "--json", "--root", str(fake.top)]) == 1
    told = json.loads(capfd.readouterr().out)
    assert {one["address"]: one["action"] for one in told["devices"]} == {
        RNG: "failed", DISK: "failed", NIC: "restored"}  # fmt: skip
    assert told["error"]["code"] == "UV-OPERATION"
    assert {one["error"]["code"] for one in told["devices"] if one["action"] == "failed"} == {"UV-REFUSED-CLAIMED"}
    assert main(["restore", "--all", "--root", str(fake.top)]) == 1
    shown = capfd.readouterr().err
    assert shown.count("UV-REFUSED-CLAIMED") == 2 and RNG in shown and DISK in shown
    assert shown.count("remedy:") == 2
    assert main(["restore", RNG, "--root", str(fake.top)]) == 3, "one failure keeps its own exit code"


def test_the_journal_says_what_became_of_each(
    fake: FakeSys, kernel: FakeKernel, capfd: pytest.CaptureFixture[str]
) -> None:
    for address, group in ((RNG, 7), (DISK, 8), (NIC, 9)):
        fake.pci(address, "rng", group=group)
    take(fake, kernel, RNG, DISK, NIC)
    Driverctl(fake, kernel).set_override(RNG, "pci-stub")
    unplug(fake, DISK)
    assert main(["journal", "--root", str(fake.top)]) == 0
    shown = {line.split()[3]: line for line in capfd.readouterr().out.splitlines()}
    assert shown[RNG].endswith("  claimed by another program") and shown[DISK].endswith("  gone")
    assert shown[NIC].endswith("  bound")
    assert main(["journal", "--json", "--root", str(fake.top)]) == 0
    (entry,) = json.loads(capfd.readouterr().out)["entries"]
    assert {one["address"]: one["now"] for one in entry["devices"]} == {
        RNG: "claimed", DISK: "gone", NIC: "bound"}  # fmt: skip


# --- forget --------------------------------------------------------------------------------------------------


def test_forgetting_changes_no_device(fake: FakeSys, kernel: FakeKernel) -> None:
    fake.pci(RNG, "rng", group=7)
    fake.pci(NIC, "rng", group=8)
    take(fake, kernel, RNG, NIC)
    before = fake.snapshot()
    ((done, was),) = forget(fake.roots, [RNG])
    assert (done.address, done.driver, done.action, was.driver) == (RNG, "vfio-pci", "forgotten", "virtio-pci")
    assert fake.snapshot() == before
    assert [device.address for entry in journal.entries(fake.roots) for device in entry.devices] == [NIC]
    with pytest.raises(UsageError, match="not in the journal"):
        forget(fake.roots, [NIC, RNG])
    assert len(journal.entries(fake.roots)) == 1, "refused, it forgets nothing"
    unplug(fake, NIC)
    assert [one.driver for one, _ in forget(fake.roots, [NIC])] == [None]
    assert journal.entries(fake.roots) == []


def test_forgetting_by_command(fake: FakeSys, kernel: FakeKernel, capfd: pytest.CaptureFixture[str]) -> None:
    fake.pci(RNG, "rng", group=7)
    take(fake, kernel, RNG)
    root = ["--root", str(fake.top)]
    assert main(["restore", "--forget", "--all", *root]) == 2
    assert main(["restore", "--forget", *root]) == 2
    assert main(["restore", "--forget", "3:0.0", *root]) == 0
    assert capfd.readouterr().out == (
        f"{RNG}: no longer in the journal; it has vfio-pci, and had virtio-pci before bind\n"
    )
    assert main(["restore", "--forget", RNG, *root]) == 2
    take(fake, kernel, RNG)  # bound already: no entry, and so no way back
    assert main(["restore", RNG, *root]) == 3


# --- what is bound by others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["override", "driverctl", "neither"])
def test_the_way_back_of_what_another_program_has_bound(
    fake: FakeSys,
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    how: str,
) -> None:
    """plan promises nothing that restore refuses, and the commands of both end with the kernel's driver."""
    path = fake.pci(RNG, "rng", group=7)
    if how == "driverctl":
        Driverctl(fake, kernel).set_override(RNG, "vfio-pci")
    else:
        Driverctl(fake, kernel).set_override(RNG, "vfio-pci", save=False)
        if how == "neither":
            kernel.write(path / "driver_override", "\n", 1)
    made = plan(discover.find(RNG, fake.roots), fake.roots)
    checks = {check.name: check for check in made.checks}
    assert made.nothing_to_do and made.problems == ()
    assert checks["way-back"].verdict == "warn" and "not by uvirtio" in checks["way-back"].detail
    assert {finding.severity for member in made.members for finding in member.findings} <= {"warn"}
    assert main(["plan", RNG, "--root", str(fake.top)]) == 0
    shown = capfd.readouterr().out
    assert "refuse" not in shown and "go ahead" not in shown and shown.endswith("bind would change nothing\n")
    with pytest.raises(Refused, match="was not bound by uvirtio") as caught:
        back(fake, kernel, RNG)
    assert commands(str(caught.value.remedy))
    assert str(caught.value.remedy) == checks["way-back"].remedy
    follow(str(caught.value.remedy), fake, kernel, monkeypatch)
    found = discover.find(RNG, fake.roots)
    assert (found.driver, found.driver_override) == ("virtio-pci", None)
    assert not (fake.roots.etc / f"driverctl.d/pci-{RNG}").exists()


def test_a_vdpa_device_by_hand(fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.vdpa("vduse0")
    with pytest.raises(Refused, match="was not bound by uvirtio") as caught:
        back(fake, kernel, "vdpa:vduse0")
    follow(str(caught.value.remedy), fake, kernel, monkeypatch)
    assert driver_of(fake, "vdpa:vduse0") == "virtio_vdpa"


def test_the_way_back_of_what_bind_has_bound(fake: FakeSys, kernel: FakeKernel) -> None:
    fake.pci(RNG, "rng", group=7)
    fake.pci(NIC, "net", group=8, driver=None)
    found = discover.find(RNG, fake.roots)
    assert {c.name: c.detail for c in plan(found, fake.roots).checks}[
        "way-back"
    ] == "restore gives it back to virtio-pci"
    take(fake, kernel, RNG, NIC)
    for address, detail in ((RNG, "gives it back to virtio-pci"), (NIC, "leave it without one")):
        made = plan(discover.find(address, fake.roots), fake.roots)
        assert detail in {check.name: check.detail for check in made.checks}["way-back"]


# --- rights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_refused_write_is_about_rights(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fake.pci(RNG, "rng", group=7)
    take(fake, kernel, RNG)
    before = fake.snapshot()
    kernel.fail = {"unbind": code}
    monkeypatch.setattr(privilege.os, "geteuid", lambda: 0)
    with pytest.raises(PermissionLack) as caught:
        back(fake, kernel)
    assert "security module" in str(caught.value.remedy), "to tell root to be root would be no help"
    assert fake.snapshot() == before and len(journal.entries(fake.roots)) == 1
    monkeypatch.setattr(privilege.os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionLack, match="cannot be written") as caught:
        back(fake, kernel)
    assert caught.value.remedy == "run this as root"
