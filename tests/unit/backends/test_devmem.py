"""/dev/mem: what may be mapped, and every way in which this machine can say no. The file is a sparse one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeKernel, FakeSys
from uvirtio import opening
from uvirtio.backends import devmem
from uvirtio.backends.physical import HugeFile
from uvirtio.binding import bind, doctor, rules
from uvirtio.binding.discover import find, scan
from uvirtio.binding.plan import plan
from uvirtio.binding.restore import restore
from uvirtio.errors import (
    Busy,
    Closed,
    Denied,
    ForeignWindow,
    GroupNotViable,
    GuardianLost,
    Misuse,
    NoSuchDevice,
    NotBound,
    NotSupported,
    NotVirtio,
    PermissionLack,
    UnsafeDma,
)
from uvirtio.host import mmio as windows
from uvirtio.host import proc
from uvirtio.host.lock import take_lock
from uvirtio.spec import mmio

ADDRESS = "mmio:0xfeb02e00"
IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-3fffffff : System RAM
  1da00000-1e9fffff : Kernel code
c0000000-dfffffff : PCI Bus 0000:00
  c0000000-c0000fff : 0000:00:01.0
feb02a00-feb02bff : LNRO0005:02
feb02c00-feb02dff : LNRO0005:01
feb02e00-feb02fff : LNRO0005:00
fec00000-fec003ff : IOAPIC 0
fed00000-fed003ff : HPET 0
fed90000-fed9ffff : Reserved
"""

IOMEM_OF_ARM = "09000000-09000fff : 9000000.pl011 pl011@9000000\n40000000-7fffffff : System RAM\n"


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    """Three windows in one page, of which the first holds an rng of version 2."""
    fake = FakeSys(tmp_path)
    fake.text(fake.roots.proc / "iomem", IOMEM)
    for name in ("LNRO0005:00", "LNRO0005:01", "LNRO0005:02"):
        fake.mmio(name)
    put(fake, 0xFEB02E00, mmio.MAGIC, 2, 4)
    put(fake, 0xFEB02C00, mmio.MAGIC, 2, 0)
    put(fake, 0xFEB02A00, 0x12345678, 2, 4)
    return fake


def put(fake: FakeSys, base: int, *words: int) -> None:
    path = fake.roots.dev / "mem"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, 1 << 32)
    with path.open("r+b", buffering=0) as file:
        file.seek(base)
        file.write(b"".join(word.to_bytes(4, "little") for word in words))


def open_device(fake: FakeSys, address: str = ADDRESS, *, unsafe_dma: bool = True):
    return opening.open(address, roots=fake.roots, unsafe_dma=unsafe_dma)


# --- opening ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ADDRESS, "mmio:0xFEB02E00", "LNRO0005:00"])
def test_a_window_is_opened_by_any_of_its_names(fake: FakeSys, name: str):
    with open_device(fake, name) as device:
        assert device.address == ADDRESS
        assert device.type == "rng"
        assert device.transport.kind == "mmio"
        assert device.transport.description == "/dev/mem at 0xfeb02e00, 512 bytes, physical addresses"
        assert device.transport.config_length == 0x100


def test_an_address_given_by_hand_is_opened_if_nobody_has_it(fake: FakeSys):
    put(fake, 0xFEB00E00, mmio.MAGIC, 1, 5)
    with open_device(fake, "mmio:0xfeb00e00") as device:
        assert (device.type, device.transport.legacy) == ("balloon", True)


def test_only_the_window_is_within_reach(fake: FakeSys):
    window = devmem.DevmemWindow.open(ADDRESS, 0xFEB02E00, 0x200, fake.roots, unsafe_dma=True)
    assert window.registers.read32(0) == mmio.MAGIC
    for offset in (-0x200, 0x200):
        with pytest.raises(Misuse, match="access at"):
            window.registers.read32(offset)
    assert window.enable_interrupt() is None
    window.close()
    window.close()


def test_a_wrong_magic_is_told(fake: FakeSys):
    with pytest.raises(NotVirtio) as caught:
        open_device(fake, "mmio:0xfeb02a00")
    assert "0x12345678" in str(caught.value.seen)
    take_and_give(fake, "mmio:0xfeb02a00")  # nothing is held


def test_an_empty_window_is_told(fake: FakeSys):
    with pytest.raises(NoSuchDevice, match="empty"):
        open_device(fake, "mmio:0xfeb02c00")


def take_and_give(fake: FakeSys, address: str) -> None:
    os.close(take_lock(address, fake.roots))


# --- refusals -----------------------------------------------------------------------------------------------


def test_it_wants_the_consent(fake: FakeSys):
    with pytest.raises(UnsafeDma) as caught:
        open_device(fake, unsafe_dma=False)
    assert caught.value.exit_code == 3
    assert "--unsafe-dma" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("mmio:0x12000", "System RAM"),
        ("mmio:0x1da00000", "System RAM"),
        ("mmio:0xfed00000", "HPET 0"),
        ("mmio:0xfed00400", "HPET 0"),  # the same page
        ("mmio:0xc0000000", "0000:00:01.0"),
        ("mmio:0xfffe00", "System RAM"),
        ("mmio:0xfec00000", "IOAPIC 0"),
    ],
)
def test_somebody_elses_addresses_are_never_mapped(fake: FakeSys, address: str, owner: str, monkeypatch):
    monkeypatch.setattr(devmem.mmap, "mmap", None)
    with pytest.raises(ForeignWindow) as caught:
        open_device(fake, address)
    assert owner in str(caught.value.seen)
    assert caught.value.exit_code == 3


def test_half_a_window_is_not_mapped(fake: FakeSys):
    with pytest.raises(ForeignWindow, match="no whole window") as caught:
        open_device(fake, "mmio:0xfeb02d00")
    assert "mmio:0xfeb02c00" in (caught.value.remedy or "")


def test_where_a_read_of_nothing_is_fatal_only_known_windows_are_mapped(fake: FakeSys):
    def window(base: int) -> devmem.DevmemWindow:
        return devmem.DevmemWindow.open("x", base, 0, fake.roots, unsafe_dma=True, machine="aarch64")

    with pytest.raises(ForeignWindow, match="knows of no window"):
        window(0xFEB00E00)
    window(0xFEB02E00).close()


@pytest.mark.parametrize("name", [ADDRESS, "LNRO0005:00"])
def test_a_window_of_the_kernels_is_refused_with_the_way_to_get_it(fake: FakeSys, name: str):
    fake.attach(fake.sys / "devices/platform/LNRO0005:00", "virtio-mmio", bus="platform")
    with pytest.raises(NotBound) as caught:
        open_device(fake, name)
    assert caught.value.remedy == f"uvirtio bind {ADDRESS}"


def test_a_denied_window_is_refused_by_any_name(fake: FakeSys):
    fake.text(fake.roots.etc / "uvirtio/deny", "LNRO0005:00\n")
    with pytest.raises(Denied):
        open_device(fake, ADDRESS)
    fake.text(fake.roots.etc / "uvirtio/deny", "mmio:0xfeb00e00\n")
    for name in ("mmio:0xfeb00e00", "mmio:0x00FEB00E00"):
        with pytest.raises(Denied):
            open_device(fake, name)


def test_an_unknown_name_is_no_device(fake: FakeSys):
    with pytest.raises(NoSuchDevice):
        open_device(fake, "LNRO0005:09")


def test_hidden_addresses_want_root(fake: FakeSys, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # root is told something else
    hidden = "\n".join(f"00000000-00000000 : {line.split(' : ')[1]}" for line in IOMEM.splitlines())
    fake.text(fake.roots.proc / "iomem", hidden + "\n")
    for name in ("LNRO0005:00", "mmio:0xfeb00e00"):
        with pytest.raises(PermissionLack) as caught:
            open_device(fake, name)
        assert caught.value.exit_code == 4
        assert caught.value.remedy == "run as root"


def test_without_the_list_nothing_is_mapped(fake: FakeSys):
    (fake.roots.proc / "iomem").unlink()
    with pytest.raises(PermissionLack, match="cannot be read"):
        open_device(fake, "mmio:0xfeb00e00")


def test_one_process_at_a_time(fake: FakeSys):
    with open_device(fake), pytest.raises(Busy) as caught:
        open_device(fake)
    assert str(os.getpid()) in str(caught.value.seen)
    open_device(fake).close()


def test_bind_and_restore_wait_for_its_driver(fake: FakeSys):
    found = find(ADDRESS, fake.roots)
    with open_device(fake), pytest.raises(Busy):
        bind.bind([found], fake.roots, force=["no-way-back"])
    with open_device(fake), pytest.raises(Busy):
        restore(fake.roots, [ADDRESS])


# --- what the kernel may say --------------------------------------------------------------------------------


def test_registers_are_not_cached(fake: FakeSys, monkeypatch):
    flags: list[int] = []
    real = os.open

    def spy(path, flag: int, *mode: int) -> int:
        if str(path).endswith("/mem"):
            flags.append(flag)
        return real(path, flag, *mode)

    monkeypatch.setattr(devmem.os, "open", spy)
    open_device(fake).close()
    assert [flag & os.O_SYNC == os.O_SYNC and flag & os.O_CLOEXEC != 0 for flag in flags] == [True]


@pytest.mark.fault(94)
def test_no_dev_mem(fake: FakeSys):
    (fake.roots.dev / "mem").unlink()
    with pytest.raises(NotSupported, match="cannot be opened") as caught:
        open_device(fake)
    assert "CONFIG_DEVMEM" in str(caught.value.expected)


def failing(number: int):
    def fail(*_: object, **__: object):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.fault(94)
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (None, "run as root"),
        ("[none] integrity", "run as root"),
        ("none [integrity] confidentiality", "secure boot"),
    ],
)
def test_a_closed_dev_mem_says_why(fake: FakeSys, mode: str | None, words: str, monkeypatch):
    if mode is not None:
        fake.text(fake.sys / "kernel/security/lockdown", mode + "\n")
    real, memory = os.open, fake.roots.dev / "mem"

    def refuse(path: str | Path, *flags: int, **more: int) -> int:
        if Path(path) == memory:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return real(path, *flags, **more)

    monkeypatch.setattr(devmem.os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionLack) as caught:
        devmem._open(fake.roots)
    assert words in (caught.value.remedy or "")


@pytest.mark.fault(94)
def test_a_page_that_a_driver_closes_names_the_siblings(fake: FakeSys, monkeypatch):
    for name in ("LNRO0005:01", "LNRO0005:02"):
        fake.attach(fake.sys / f"devices/platform/{name}", "virtio-mmio", bus="platform")
    monkeypatch.setattr(devmem.mmap, "mmap", failing(errno.EPERM))
    with pytest.raises(GroupNotViable) as caught:
        open_device(fake)
    assert "mmio:0xfeb02c00 (LNRO0005:01, virtio-mmio)" in str(caught.value.seen)
    assert "mmio:0xfeb02a00 (LNRO0005:02, virtio-mmio)" in str(caught.value.seen)
    assert "LNRO0005:00" not in str(caught.value.seen)
    assert "--group" in (caught.value.remedy or "")
    take_and_give(fake, ADDRESS)


def test_a_window_that_was_taken_meanwhile_is_not_bound(fake: FakeSys, monkeypatch):
    def late(*_: object, **__: object):
        fake.attach(fake.sys / "devices/platform/LNRO0005:00", "virtio-mmio", bus="platform")
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(devmem.mmap, "mmap", late)
    with pytest.raises(NotBound):
        open_device(fake)


@pytest.mark.fault(94)
@pytest.mark.parametrize("mode", [None, "none [confidentiality]"])
def test_any_other_no_is_told_as_what_it_may_be(fake: FakeSys, mode: str | None, monkeypatch):
    if mode is not None:
        fake.text(fake.sys / "kernel/security/lockdown", mode + "\n")
    monkeypatch.setattr(devmem.mmap, "mmap", failing(errno.EPERM))
    with pytest.raises(PermissionLack) as caught:
        open_device(fake)
    assert "STRICT_DEVMEM" in (caught.value.remedy or "")
    assert ("confidentiality" in str(caught.value.seen)) is (mode is not None)


# --- /proc/iomem --------------------------------------------------------------------------------------------


def test_the_lines_of_iomem(fake: FakeSys):
    found = proc.iomem_addresses(fake.roots)
    assert len(found) == len(IOMEM.splitlines())
    assert found[3] == proc.IoRange(0x1DA00000, 0x1EA00000, "Kernel code", 1)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("LNRO0005:05", True),
        ("LNRO0005:05 LNRO0005:05", True),
        ("a003e00.virtio_mmio virtio_mmio@a003e00", True),
        ("10008000.virtio virtio@10008000", True),
        ("virtio-mmio.3 virtio-mmio.3", True),
        ("LNRO0005:05 System RAM", False),
        ("10009000.serial serial@10009000", False),
        ("0000:00:05.0", False),
    ],
)
def test_lines_of_windows(fake: FakeSys, name: str, ours: bool):
    fake.mmio("10008000.virtio", compatible=b"virtio,mmio\0")
    fake.mmio("10009000.serial", compatible=b"ns16550a\0")
    fake.text(fake.roots.proc / "iomem", f"00001000-0009fbff : System RAM\nfeb00000-feb001ff : {name}\n")
    if ours:
        assert windows.check_window(0xFEB00000, 0x200, fake.roots, address="x") == [name.split()[0]]
    else:
        with pytest.raises(ForeignWindow):
            windows.check_window(0xFEB00000, 0x200, fake.roots, address="x")


def test_a_window_of_a_device_tree_is_known_when_no_driver_has_it(fake: FakeSys):
    """Linux lists these in /proc/iomem only while a driver holds them."""
    fake.text(fake.roots.proc / "iomem", IOMEM_OF_ARM)
    fake.mmio("a003e00.virtio", compatible=b"virtio,mmio\0", reg=(0xA003E00, 0x200))
    fake.mmio("b000000.virtio", compatible=b"virtio,mmio\0")  # its node has no reg that we can read

    def window(base: int, length: int = 0) -> devmem.DevmemWindow:
        return devmem.DevmemWindow.open("x", base, length, fake.roots, unsafe_dma=True, machine="aarch64")

    put(fake, 0xA003E00, mmio.MAGIC, 2, 4)
    window(0xA003E00, 0x200).close()
    window(0xB000000).close()
    with pytest.raises(ForeignWindow, match="no whole window") as caught:
        window(0xA003E80, 0x100)
    assert caught.value.remedy == "write mmio:0xa003e00"
    with pytest.raises(ForeignWindow, match="knows of no window"):
        window(0xA003C00)


@pytest.mark.parametrize("name", ["a003e00.virtio", "mmio:0xa003e00"])
def test_a_window_of_any_node_name_is_opened_and_taken(fake: FakeSys, name: str):
    fake.text(fake.roots.proc / "iomem", IOMEM_OF_ARM)
    path = fake.mmio("a003e00.virtio", compatible=b"virtio,mmio\0", reg=(0xA003E00, 0x200))
    put(fake, 0xA003E00, mmio.MAGIC, 2, 4)
    with open_device(fake, name) as device:
        assert (device.address, device.type) == ("mmio:0xa003e00", "rng")
    fake.attach(path, "virtio-mmio", bus="platform")
    fake.virtio(path, fake.next_virtio(), "rng", 1 << 32)
    fake.text(fake.roots.proc / "iomem", "0a003e00-0a003fff : a003e00.virtio virtio@a003e00\n" + IOMEM_OF_ARM)
    with pytest.raises(NotBound) as caught:
        open_device(fake, name)
    assert caught.value.remedy == "uvirtio bind mmio:0xa003e00"
    made = plan(find(name, fake.roots), fake.roots)
    assert not made.problems and len(made.members[0].steps) == 1


def test_list_doctor_bind_and_open_agree_about_a_device_tree(fake: FakeSys, tmp_path: Path):
    """Three windows of one page, as on QEMU's virt: the kernel has one, and then none."""
    fake = FakeSys(tmp_path / "virt")
    bases = (0xA000000, 0xA000200, 0xA000400)
    for base in bases:
        fake.mmio(f"{base:x}.virtio_mmio", compatible=b"virtio,mmio\0", reg=(base, 0x200))
        put(fake, base, mmio.MAGIC, 2, 4)
    path = fake.sys / "devices/platform/a000200.virtio_mmio"
    fake.attach(path, "virtio-mmio", bus="platform")
    virtio = fake.virtio(path, "virtio0", "rng", 1 << 32)
    line = "0a000200-0a0003ff : a000200.virtio_mmio virtio_mmio@a000200\n"
    fake.text(fake.roots.proc / "iomem", line + IOMEM_OF_ARM)
    assert [found.address for found in scan(fake.roots)] == [f"mmio:{base:#x}" for base in bases]
    assert "reaches 0 of 3" in devmem_row(fake).detail
    assert devmem_row(fake).remedy == "uvirtio bind mmio:0xa000200 --group"
    bind.bind([find("mmio:0xa000200", fake.roots)], fake.roots, group=True, writer=FakeKernel(fake))
    assert not virtio.exists()
    fake.text(fake.roots.proc / "iomem", IOMEM_OF_ARM)  # Linux takes the line away with the driver
    assert "reaches 3 windows" in devmem_row(fake).detail
    for base in bases:
        devmem.DevmemWindow.open(
            f"mmio:{base:#x}", base, 0x200, fake.roots, unsafe_dma=True, machine="aarch64"
        ).close()


def test_a_window_in_a_range_that_is_only_set_aside_is_nobodys(fake: FakeSys):
    for base in (0xFED90000, 0xD0000000):
        assert windows.check_window(base, 0x200, fake.roots, address="x") == []
    fake.text(fake.roots.proc / "iomem", IOMEM + "fed91800-fed91fff : Reserved\n")
    with pytest.raises(ForeignWindow, match="its page has"):
        windows.check_window(0xFED91000, 0x200, fake.roots, address="x")  # set aside in part: for something in it
    names = windows.check_window(0xFEB02E00, 0x200, fake.roots, address="x")
    assert names == ["LNRO0005:02", "LNRO0005:01", "LNRO0005:00"]


# --- bind, doctor -------------------------------------------------------------------------------------------


def bound(fake: FakeSys) -> None:
    for name in ("LNRO0005:00", "LNRO0005:01", "LNRO0005:02"):
        path = fake.sys / f"devices/platform/{name}"
        fake.attach(path, "virtio-mmio", bus="platform")
        fake.virtio(path, fake.next_virtio(), "rng", 1 << 32)


def test_bind_names_the_siblings_of_the_page_and_takes_them_with_group(fake: FakeSys):
    bound(fake)
    found = find(ADDRESS, fake.roots)
    alone = plan(found, fake.roots)
    assert [problem.code for problem in alone.problems] == ["UV-REFUSED"]
    assert "mmio:0xfeb02c00" in str(alone.problems[0].seen)
    assert "--group" in (alone.problems[0].remedy or "")
    whole = plan(found, fake.roots, group=True)
    assert not whole.problems
    assert [member.found.address for member in whole.members] == [ADDRESS, "mmio:0xfeb02a00", "mmio:0xfeb02c00"]
    assert all(len(member.steps) == 1 for member in whole.members)


def test_a_window_alone_needs_no_force(fake: FakeSys):
    path = fake.sys / "devices/platform/LNRO0005:00"
    fake.attach(path, "virtio-mmio", bus="platform")
    fake.virtio(path, fake.next_virtio(), "rng", 1 << 32)
    made = plan(find(ADDRESS, fake.roots), fake.roots)
    assert not made.problems
    assert [(f.rule, f.severity) for f in made.members[0].findings if f.rule == "unsafe-dma"] == [
        ("unsafe-dma", "warn")
    ]


def devmem_row(fake: FakeSys):
    return next(check for check in doctor.checks(fake.roots, qemu_version=lambda _: "") if check.name == "devmem")


def test_doctor_looks_at_dev_mem(fake: FakeSys):
    assert (devmem_row(fake).verdict, "3 windows" in devmem_row(fake).detail) == ("pass", True)
    bound(fake)
    assert "0 of 3" in devmem_row(fake).detail
    assert "--group" in devmem_row(fake).remedy
    fake.text(fake.sys / "kernel/security/lockdown", "none [integrity]\n")
    assert devmem_row(fake).verdict == "warn"
    (fake.roots.dev / "mem").unlink()
    assert "CONFIG_DEVMEM" in devmem_row(fake).remedy


def test_doctor_says_nothing_of_dev_mem_where_there_is_no_window(tmp_path: Path):
    assert devmem_row(FakeSys(tmp_path)).verdict == "skip"


def test_the_mapping_is_not_inherited_and_goes_with_the_window(fake: FakeSys):
    maps = Path("/proc/self/maps")
    with open_device(fake):
        assert str(fake.roots.dev / "mem") in maps.read_text()
    assert str(fake.roots.dev / "mem") not in maps.read_text()


# --- the guardian -------------------------------------------------------------------------------------------


@pytest.fixture
def window(fake: FakeSys, monkeypatch) -> devmem.DevmemWindow:
    """A window whose DMA memory is of ordinary pages."""

    def plain(roots) -> HugeFile:
        return HugeFile(roots, create=lambda: os.memfd_create("test"))

    monkeypatch.setattr(devmem, "HugeFile", plain)
    return devmem.DevmemWindow.open(ADDRESS, 0xFEB02E00, 0x200, fake.roots, unsafe_dma=True)


def status_of(fake: FakeSys) -> int:
    with (fake.roots.dev / "mem").open("rb") as file:
        file.seek(0xFEB02E00 + mmio.STATUS)
        return int.from_bytes(file.read(4), "little")


def test_a_window_that_is_left_running_is_reset_by_its_guardian(fake: FakeSys, window: devmem.DevmemWindow):
    window.guard(mmio.STATUS)
    window.registers.write32(mmio.STATUS, 0xF)
    window.close()
    assert status_of(fake) == 0
    take_and_give(fake, ADDRESS)


def test_a_killed_driver_leaves_a_device_that_is_reset_and_then_a_free_lock(fake: FakeSys, window):
    # The child is the driver; it inherits the parent's window only to be killed with it.
    window.close()
    child = os.fork()
    if child == 0:
        mine = devmem.DevmemWindow.open(ADDRESS, 0xFEB02E00, 0x200, fake.roots, unsafe_dma=True)
        mine.guard(mmio.STATUS)
        mine.registers.write32(mmio.STATUS, 0xF)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    # The guardian holds the lock until the device is quiet, and the next driver waits for that.
    devmem.DevmemWindow.open(ADDRESS, 0xFEB02E00, 0x200, fake.roots, unsafe_dma=True).close()
    assert status_of(fake) == 0


def test_a_device_that_is_reset_needs_no_guardian_any_more(fake: FakeSys, window: devmem.DevmemWindow):
    window.guard(mmio.STATUS)
    guardian = window._guardian
    window.guard(mmio.STATUS)
    assert window._guardian is guardian is not None
    window.close()
    assert not guardian.alive
    with pytest.raises(Closed):
        window.guard(mmio.STATUS)
    with pytest.raises(Closed):
        window.dma(False)


def test_a_guardian_that_is_gone_is_told_once(window: devmem.DevmemWindow):
    window.guard(mmio.STATUS)
    guardian = window._guardian
    assert guardian is not None
    os.kill(guardian.pid, 9)
    guardian._process.wait(5)
    with pytest.raises(GuardianLost):
        window.registers.read32(mmio.MAGIC_VALUE_REG)
    assert window.registers.read32(mmio.MAGIC_VALUE_REG) == mmio.MAGIC
    window.close()


def test_a_lock_of_the_living_is_not_waited_for(fake: FakeSys):
    fd = take_lock(ADDRESS, fake.roots)
    fake.text(fake.roots.proc / str(os.getpid()) / "cmdline", "driver\0of\0it")
    with pytest.raises(Busy, match="another process") as caught:
        take_lock(ADDRESS, fake.roots, patience=600)
    assert "driver of" in str(caught.value.seen)
    os.close(fd)


@pytest.mark.spec("MMIO-09", "MMIO-08")
def test_windows_without_a_device_raise_no_alarm(fake: FakeSys, capsys: pytest.CaptureFixture[str]):
    # Most windows of a machine are empty; only who asks for one by its address is told so, as an error.
    assert [found.notes for found in scan(fake.roots)] == [
        ("type: no driver has it, and only its registers tell",),
    ] * 3
    assert not [
        finding for found in scan(fake.roots) for finding in rules.in_use(rules.check(found, fake.roots)[0])
    ]
    assert devmem_row(fake).verdict == "pass"
    assert capsys.readouterr() == ("", "")
