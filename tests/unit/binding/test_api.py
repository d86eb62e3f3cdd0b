"""uvirtio.list, find, bind, restore, bound and check_denied, on made-up trees whose kernel answers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import uvirtio
from tests.fakes.fakesys import FakeKernel, FakeSys
from uvirtio.binding import bind as binding
from uvirtio.binding import journal, sysfs_ops
from uvirtio.binding import restore as restoring
from uvirtio.cli import main
from uvirtio.errors import (
    BadAddress,
    Busy,
    Denied,
    InUse,
    NoSuchDevice,
    NotVirtio,
    OperationFailed,
    UsageError,
)
from uvirtio.host.writer import Blocked

RNG, DISK, BALLOON = "0000:03:00.0", "0000:04:00.0", "0000:05:00.0"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    made = FakeSys(tmp_path)
    made.driver("vfio-pci")
    made.text(made.roots.proc / "iomem", "00000000-00000000 : System RAM\n")
    made.pci(RNG, "rng", group=7)
    made.pci(DISK, "blk", group=8)
    made.pci(BALLOON, "balloon", group=9, transitional=True)
    return made


@pytest.fixture
def kernel(fake: FakeSys, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """The kernel that answers what is written, in the place of the child that writes."""
    made = FakeKernel(fake)
    for module in (binding, restoring):
        monkeypatch.setattr(module, "ChildWriter", lambda: made)
    monkeypatch.setattr(sysfs_ops, "PROBE_INTERVAL", 0)
    return made


def driver_of(fake: FakeSys, address: str) -> str | None:
    return uvirtio.find(address=address, roots=fake.roots).driver


# --- list and find -------------------------------------------------------------------------------------------


def test_list_says_what_the_command_says(fake: FakeSys, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", "--root", str(fake.top)]) == 0
    told = json.loads(capfd.readouterr().out)["devices"]
    assert [one.as_dict() for one in uvirtio.list(roots=fake.roots)] == told
    assert [one["address"] for one in told] == [RNG, DISK, BALLOON]


def test_list_of_a_type(fake: FakeSys) -> None:
    (only,) = uvirtio.list("virtio-blk", roots=fake.roots)
    assert isinstance(only, uvirtio.DeviceInfo)
    assert (only.address, only.type, only.device_id, only.driver) == (DISK, "blk", 2, "virtio-pci")
    assert uvirtio.list("net", roots=fake.roots) == []
    with pytest.raises(UsageError, match="not a type") as caught:
        uvirtio.list("toaster", roots=fake.roots)
    assert "balloon" in caught.value.expected


def test_a_device_in_use_says_why(fake: FakeSys) -> None:
    fake.child(fake.sys / "bus/pci/devices" / DISK, "virtio1/block/vda", "block", {"dev": "254:0\n"})
    fake.mountinfo(["20 1 254:0 / / rw - ext4 /dev/vda rw"])
    info = uvirtio.find("blk", roots=fake.roots)
    assert [use.rule for use in info.in_use] and info.in_use[0].rule == "mounted"
    assert "/dev/vda is mounted on /" in info.in_use[0].evidence
    assert uvirtio.find("blk", in_use=True, roots=fake.roots) == info
    with pytest.raises(NoSuchDevice, match="in_use=False"):
        uvirtio.find("blk", in_use=False, roots=fake.roots)
    with pytest.raises(InUse):
        uvirtio.bind(DISK, roots=fake.roots)


def test_find_gives_the_one_device_that_fits(fake: FakeSys) -> None:
    def found(**how: object) -> str:
        return uvirtio.find(roots=fake.roots, **how).address  # type: ignore[arg-type]

    assert found(type="rng") == RNG
    assert found(address="03:00.0") == RNG
    assert found(address="virtio1") == DISK
    assert found(interface="transitional") == BALLOON
    assert found(type="balloon", driver="virtio-pci", address=BALLOON) == BALLOON


def test_find_of_none_and_of_several(fake: FakeSys) -> None:
    with pytest.raises(NoSuchDevice, match="type='net'") as none:
        uvirtio.find("net", roots=fake.roots)
    assert none.value.seen == [RNG, DISK, BALLOON]
    with pytest.raises(NoSuchDevice):
        uvirtio.find("rng", address=DISK, roots=fake.roots)
    with pytest.raises(UsageError, match="2 devices have interface='modern'") as several:
        uvirtio.find(interface="modern", roots=fake.roots)
    assert several.value.seen == [RNG, DISK]
    with pytest.raises(UsageError, match="3 virtio devices"):
        uvirtio.find(roots=fake.roots)
    with pytest.raises(BadAddress):
        uvirtio.find(address="03:00", roots=fake.roots)
    fake.pci("0000:06:00.0", None, pci_id=(0x8086, 0x100E), driver=None)
    with pytest.raises(NotVirtio):
        uvirtio.find(address="06:00.0", roots=fake.roots)


def test_a_machine_without_devices(tmp_path: Path) -> None:
    roots = uvirtio.Roots.under(tmp_path)
    assert uvirtio.list(roots=roots) == []
    with pytest.raises(NoSuchDevice, match="there is no virtio device here"):
        uvirtio.find(roots=roots)


# --- bind and restore ------------------------------------------------------------------------------------------


def test_bind_and_restore(fake: FakeSys, kernel: FakeKernel) -> None:
    before = fake.snapshot()
    one, two = uvirtio.bind(["03:00.0", DISK, RNG], roots=fake.roots)
    assert (one.address, one.driver, two.address) == (RNG, "vfio-pci", DISK)
    assert isinstance(one, uvirtio.Bound)
    done = uvirtio.restore([RNG], roots=fake.roots)
    assert [(each.address, each.driver, each.action) for each in done] == [(RNG, "virtio-pci", "restored")]
    assert isinstance(done[0], uvirtio.Restored)
    assert [each.address for each in uvirtio.restore(all=True, roots=fake.roots)] == [DISK]
    assert fake.snapshot() == before


def test_what_bind_and_restore_refuse(fake: FakeSys, kernel: FakeKernel) -> None:
    for wrong in ({}, {"addresses": RNG, "all": True}, {"addresses": []}):
        with pytest.raises(UsageError, match="all=True"):
            uvirtio.restore(roots=fake.roots, **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadAddress, match="for looking only"):
        uvirtio.bind("rng", roots=fake.roots)
    with pytest.raises(UsageError, match="no owner"):
        uvirtio.bind(RNG, owner="nobody-of-this-name", roots=fake.roots)
    fake.text(fake.roots.etc / "uvirtio/deny", "03:00.0\n")
    with pytest.raises(Denied):
        uvirtio.bind([DISK, RNG], roots=fake.roots)
    assert uvirtio.bind([], roots=fake.roots) == []
    assert kernel.log == []


# --- bound -----------------------------------------------------------------------------------------------------


class Left(BaseException):
    """What a signal handler may throw."""


def raises(error: BaseException) -> Callable[[], None]:
    def throw() -> None:
        raise error

    return throw


WAYS_OUT: dict[str, tuple[Callable[[], None], type[BaseException] | None]] = {
    "its end": (lambda: None, None),
    "an exception": (raises(OSError("x")), OSError),
    "an error of ours": (raises(OperationFailed("x")), OperationFailed),
    "sys.exit": (raises(SystemExit(3)), SystemExit),
    "what a handler throws": (raises(Left()), Left),
    "Ctrl-C": (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_bound_gives_back_on_every_way_out(fake: FakeSys, kernel: FakeKernel, way: str) -> None:
    before = fake.snapshot()
    act, expected = WAYS_OUT[way]
    seen = []

    def use() -> None:
        with uvirtio.bound("03:00.0", roots=fake.roots) as bound:
            seen.append((bound.address, bound.driver, driver_of(fake, RNG)))
            act()

    if expected is None:
        use()
    else:
        with pytest.raises(expected):
            use()
    assert seen == [(RNG, "vfio-pci", "vfio-pci")]
    assert fake.snapshot() == before
    assert journal.entries(fake.roots) == []


def test_a_second_ctrl_c_does_not_tear_the_giving_back(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fake.snapshot()
    write = kernel.write

    def impatient(path: Path, text: str, timeout: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(path, text, timeout)

    with pytest.raises(KeyboardInterrupt), uvirtio.bound(RNG, roots=fake.roots):
        monkeypatch.setattr(kernel, "write", impatient)
    assert fake.snapshot() == before


def test_a_signal_at_any_moment_of_the_binding_leaves_nothing_bound(fake: FakeSys, kernel: FakeKernel) -> None:
    """The handler throws after each of the writes in turn, the last of which bind does not know to be the last."""
    before = fake.snapshot()
    with uvirtio.bound(RNG, roots=fake.roots):
        writes = len(kernel.log)
    assert writes == 4
    for which in range(writes):
        count = 0
        write = kernel.write

        def thrown(path: Path, text: str, timeout: float) -> None:
            nonlocal count
            write(path, text, timeout)  # noqa: B023
            count += 1
            if count == which + 1:  # noqa: B023
                raise Left

        kernel.write = thrown  # type: ignore[method-assign]
        with pytest.raises(Left), uvirtio.bound(RNG, roots=fake.roots):
            pytest.fail("it was not bound")
        kernel.write = write  # type: ignore[method-assign]
        assert fake.snapshot() == before, which


def test_an_exception_between_the_binding_and_the_block_gives_back_too(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fake.snapshot()
    bind = binding.bind

    def late(*args: object, **how: object) -> None:
        bind(*args, **how)  # type: ignore[arg-type]
        raise Left

    monkeypatch.setattr(binding, "bind", late)
    with pytest.raises(Left), uvirtio.bound(RNG, roots=fake.roots):
        pytest.fail("the block is not entered")
    assert fake.snapshot() == before


def test_bound_leaves_alone_what_was_bound_before(fake: FakeSys, kernel: FakeKernel) -> None:
    uvirtio.bind(RNG, roots=fake.roots)
    with uvirtio.bound(RNG, roots=fake.roots) as bound:
        assert bound.journal is None
        with uvirtio.bound(DISK, roots=fake.roots):
            assert driver_of(fake, DISK) == "vfio-pci"
    assert (driver_of(fake, RNG), driver_of(fake, DISK)) == ("vfio-pci", "virtio-pci")


def test_bound_gives_the_group_back_that_it_took_along(fake: FakeSys, kernel: FakeKernel) -> None:
    fake.pci("0000:03:00.1", "rng", group=7)
    before = fake.snapshot()
    with uvirtio.bound(RNG, group=True, roots=fake.roots):
        assert driver_of(fake, "0000:03:00.1") != "virtio-pci"
    assert fake.snapshot() == before


def test_a_device_that_cannot_be_bound_enters_no_block(fake: FakeSys, kernel: FakeKernel) -> None:
    kernel.refuses.add("vfio-pci")
    before = fake.snapshot()
    with pytest.raises(OperationFailed, match="everything was put back"), uvirtio.bound(RNG, roots=fake.roots):
        pytest.fail("the block is not entered")
    assert fake.snapshot() == before


def test_a_write_that_hangs_is_not_tried_again_on_the_way_out(
    fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(path: Path, text: str, timeout: float) -> None:
        kernel.log.append((path.name, text))
        raise Blocked("it hangs")

    monkeypatch.setattr(kernel, "write", hang)
    with pytest.raises(Blocked), uvirtio.bound(RNG, roots=fake.roots):
        pytest.fail("the block is not entered")
    assert len(kernel.log) == 1
    assert [entry.state for entry in journal.entries(fake.roots)] == ["pending"], "restore can go on from there"


def test_a_device_that_is_still_open_is_said_to_be(fake: FakeSys, kernel: FakeKernel) -> None:
    descriptor = fake.roots.proc / "4242/fd/3"
    with pytest.raises(Busy), uvirtio.bound(RNG, roots=fake.roots):
        fake.opened("/dev/vfio/7")
    descriptor.unlink()
    assert [one.action for one in uvirtio.restore(RNG, roots=fake.roots)] == ["restored"]


def test_a_process_that_is_killed_in_the_block_leaves_a_journal(fake: FakeSys, kernel: FakeKernel) -> None:
    before = fake.snapshot()
    child = os.fork()
    if not child:
        try:
            with uvirtio.bound(RNG, roots=fake.roots):
                os._exit(7)
        finally:
            os._exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert driver_of(fake, RNG) == "vfio-pci"
    assert [one.address for one in uvirtio.restore(all=True, roots=fake.roots)] == [RNG]
    assert fake.snapshot() == before


# --- the deny list -----------------------------------------------------------------------------------------------


@pytest.fixture
def denied(fake: FakeSys) -> Iterator[Callable[[str], Callable[[str], None]]]:
    def write(line: str) -> Callable[[str], None]:
        fake.text(fake.roots.etc / "uvirtio/deny", line + "\n")
        return lambda address: uvirtio.check_denied(address, roots=fake.roots)

    yield write


def test_the_deny_list_is_asked_by_every_name(denied: Callable[[str], Callable[[str], None]]) -> None:
    check = denied("virtio0")
    for name in (RNG, "03:00.0", "virtio0", "rng"):
        with pytest.raises(Denied):
            check(name)
    check(DISK)
    check("0000:0f:00.0")  # not there, and not on the list
    with pytest.raises(BadAddress):
        check("0f:00")
    check = denied("0f:00.0")
    with pytest.raises(Denied):
        check("0000:0f:00.0")
    check = denied("*")
    check("qemu:virtio-rng-pci")
    with pytest.raises(Denied):
        check("0000:0f:00.0")
    check = denied("qemu:*")
    with pytest.raises(Denied):
        check("qemu:virtio-rng-pci")
