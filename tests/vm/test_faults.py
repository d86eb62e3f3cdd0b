"""What a machine does to a driver: it runs out of memory, moves pages, sets its clock, has no room for a file."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import uvirtio as library
from tests.vm.commands import PATIENCE, PROGRAM, USER, program, read_until, running, uvirtio
from tests.vm.qmp_witness import Witness
from tests.vm.test_commands import balloon_size, bound, driver_of, until  # noqa: F401  # one is a fixture
from uvirtio.backends.vfio_pci import VfioPciFunction
from uvirtio.drivers.rng import Rng
from uvirtio.host.pagemap import Pagemap
from uvirtio.host.roots import Roots

MIB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
COLLAPSE, PAGEOUT = 25, 21
"""MADV_COLLAPSE: what khugepaged does, now; MADV_PAGEOUT: what reclaim does, now."""

HOG = """
import mmap
taken = []
while True:  # until the kernel ends a process; this one is its second choice
    taken.append(mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x8000))  # MAP_POPULATE
"""

Take = Callable[..., list[str]]


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program in the background; killed at the end if it still runs."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


@contextmanager
def group_with(limit: int) -> Iterator[Callable[..., list[str]]]:
    """Starts programs in a cgroup that may have ``limit`` bytes; they have to have ended at its end.

    Not the memory of the whole machine: what a driver pinned comes back when its files are closed, which is after
    the killer has ceased to wait for it. Meanwhile it would look for the next, and may end what runs the tests.
    """
    top = Path("/run/short-of-memory")
    top.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "none", str(top)], check=True)
    group = top / "group"
    try:
        (top / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        (group / "memory.max").write_text(str(limit))
        yield lambda *words: ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *words]
        until(lambda: "populated 0" in (group / "cgroup.events").read_text(), "the cgroup to be empty")
        group.rmdir()
        (top / "cgroup.subtree_control").write_text("-memory")
    finally:
        subprocess.run(["umount", str(top)], check=True)
        top.rmdir()


@pytest.mark.fault(59, 66, level="K")
def test_out_of_memory_the_balloon_is_ended_first_and_has_its_memory_back(bound: Take, witness) -> None:  # noqa: F811
    (address,) = bound("balloon")
    full = balloon_size(witness)
    Path("/dev/kmsg").write_text("uvirtio: out of memory on purpose\n")  # as tools/lab/vm.py has it
    with ExitStack() as stack:
        # Nothing is compacted afterwards: an emulated CPU may be a minute at that, which RCU complains of.
        stack.enter_context(setting("/proc/sys/vm/compaction_proactiveness", "0"))
        within = stack.enter_context(group_with(512 * MIB))
        words = ("balloon", "inflate", address, "256M", "--hold", "600", "--force", "free-memory")
        child = stack.enter_context(started(within(PROGRAM, *words)))
        assert child.stdout is not None
        assert any("holding" in line for line in child.stdout)
        assert balloon_size(witness) == full - 256 * MIB
        hog = stack.enter_context(started(within(sys.executable, "-c", HOG)))
        until(lambda: child.poll() is not None, "the killer", 120)
        assert child.wait(PATIENCE) == -signal.SIGKILL
        hog.kill()
    messages = subprocess.run(["dmesg"], capture_output=True, text=True).stdout
    assert re.findall(r"out of memory: Killed process (\d+)", messages)[0] == str(child.pid)
    done = uvirtio("balloon", "inflate", address, "1M", "--hold", "0")
    assert done.returncode == 0, done.stderr
    until(lambda: balloon_size(witness) == full, "actual to be 0 again")


def place_of(memory: mmap.mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def advise(memory: mmap.mmap | memoryview, advice: int) -> None:
    """madvise(2); that it is refused is an answer, too."""
    libc.madvise(ctypes.c_void_p(place_of(memory)), ctypes.c_size_t(8 * MIB), advice)


def pfns_of(memory: mmap.mmap) -> list[int]:
    pagemap = Pagemap(Roots())
    try:
        return pagemap.pfns(place_of(memory), len(memory))
    finally:
        pagemap.close()


@contextmanager
def setting(path: str, value: str) -> Iterator[None]:
    """A file of the kernel with this value, and afterwards with the one that it had."""
    file = Path(path)
    before = file.read_text()
    if "[" in before:
        before = before.partition("[")[2].partition("]")[0]
    file.write_text(value)
    try:
        yield
    finally:
        file.write_text(before)


@pytest.mark.fault(61)
def test_pinned_pages_are_neither_collapsed_nor_swapped(bound: Take, lab_devices: dict[str, str]) -> None:  # noqa: F811
    """Both move what is not pinned, which is seen, and leave alone what is."""
    disk = next(Path("/sys/bus/pci/devices", lab_devices["disk"]).glob("virtio*/block/vd*")).name
    enabled = "/sys/kernel/mm/transparent_hugepage/enabled"
    with ExitStack() as stack:
        with setting(enabled, "never"):
            plain = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            plain.write(b"\xa5" * len(plain))
            function = stack.enter_context(VfioPciFunction.open(bound("balloon")[0]))
            space = stack.enter_context(function.dma(False))
            block = space.pin(8 * MIB)
        pfns, others = block.pfns(), pfns_of(plain)
        stack.enter_context(setting(enabled, "always"))
        for memory in (plain, block.view):
            advise(memory, COLLAPSE)
        assert pfns_of(plain) != others, "nothing was collapsed: this shows nothing"
        assert block.pfns() == pfns
        subprocess.run(["mkswap", f"/dev/{disk}"], check=True, capture_output=True)
        subprocess.run(["swapon", f"/dev/{disk}"], check=True, capture_output=True)
        stack.callback(subprocess.run, ["swapoff", f"/dev/{disk}"], check=True)
        for memory in (plain, block.view):
            advise(memory, PAGEOUT)
        used = sum(int(line.split()[3]) for line in Path("/proc/swaps").read_text().splitlines()[1:])
        assert used > 0, "nothing was swapped: this shows nothing"
        assert block.pfns() == pfns
        assert plain[-1] == 0xA5


@pytest.mark.fault(99)
def test_a_wall_clock_that_jumps_does_not_matter(bound: Take) -> None:  # noqa: F811
    (address,) = bound("rng")
    real, begin = time.clock_gettime(time.CLOCK_REALTIME), time.monotonic()
    try:
        with library.open(address, timeout=10) as device, Rng(device) as rng:
            for jump in (-3600, 86400 * 365, -86400 * 365 * 20):
                looks = 0

                def jumps(jump: int = jump) -> bool:
                    nonlocal looks
                    looks += 1
                    if looks == 1:
                        time.clock_settime(time.CLOCK_REALTIME, real + jump)
                    return False

                start = time.monotonic()
                assert device.wait(jumps, timeout=0.3, what="nothing", owed=False) is False
                assert 0.3 <= time.monotonic() - start < 5
                assert len(rng.read(64)) == 64
            assert uvirtio("journal").stdout.count(address) == 1
    finally:
        time.clock_settime(time.CLOCK_REALTIME, real + time.monotonic() - begin)


FROZEN = 5.0
"""Seconds that a driver is stopped, beyond the time-out that its device has."""


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(FROZEN)
    os.kill(pid, signal.SIGCONT)


def freeze(pid: int) -> None:
    """By the freezer of control groups, as `systemctl freeze` does it."""
    top = Path("/run/frozen")
    top.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "none", str(top)], check=True)
    group = top / "driver"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
        (group / "cgroup.freeze").write_text("1")
        until(lambda: "frozen 1" in (group / "cgroup.events").read_text(), "the process to be frozen")
        time.sleep(FROZEN)
        (group / "cgroup.freeze").write_text("0")
        (top / "cgroup.procs").write_text(str(pid))
        group.rmdir()
    finally:
        subprocess.run(["umount", str(top)], check=True)
        top.rmdir()


def fall_asleep(_pid: int) -> None:
    """With all of the machine, by the kernel's own suspend up to where all processes are frozen (pm_test).

    Further it may not go here: this machine has its own programs over 9p, whose driver cannot be suspended.
    """
    level, state = Path("/sys/power/pm_test"), Path("/sys/power/state")
    level.write_text("freezer")
    try:
        state.write_text("freeze")  # returns when the machine is awake: 5 s later (pm_test_delay)
    finally:
        level.write_text("none")


@pytest.mark.fault(99)
@pytest.mark.parametrize("hold_up", [stop, freeze, fall_asleep])
def test_a_driver_that_is_frozen_goes_on_where_it_was(
    bound: Take,  # noqa: F811
    hold_up: Callable[[int], None],
    witness: Witness,
) -> None:
    """For longer than the device has for an answer, which comes meanwhile: no fault is the device's."""
    (address,) = bound("balloon")
    full = balloon_size(witness)
    words = ("256M", "--timeout", "2", "--force", "free-memory", "--hold", "0.1")
    with running("balloon", "inflate", address, *words) as child:
        until(lambda: balloon_size(witness) < full, "the first pages")
        begin = time.monotonic()
        hold_up(child.pid)
        assert time.monotonic() - begin >= FROZEN - 0.5
        assert balloon_size(witness) > full - 256 * MIB, "it was done before: this shows nothing"
        read_until(child, "^done: 65536 pages")
        assert child.wait(PATIENCE) == 0
    assert balloon_size(witness) == full


@pytest.mark.fault(98)
@pytest.mark.parametrize("way", ["size=4k", "ro"])
def test_without_room_for_the_journal_nothing_is_changed(way: str, lab_devices: dict[str, str]) -> None:
    address, journal = lab_devices["rng"], Path("/run/uvirtio/journal.d")
    journal.mkdir(parents=True, exist_ok=True, mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", way, "full", str(journal)], check=True)
    try:
        if way != "ro":
            with pytest.raises(OSError, match="No space left"), (journal / "fill").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        before = (Path("/sys/bus/pci/devices") / address / "driver_override").read_text()
        done = uvirtio("bind", address, "--json")
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["code"]) == (4, "UV-ENV"), done.stdout
        assert driver_of(address) == "virtio-pci"
        assert (Path("/sys/bus/pci/devices") / address / "driver_override").read_text() == before
        assert [path.name for path in journal.iterdir() if path.name != "fill"] == []
    finally:
        subprocess.run(["umount", str(journal)], check=True)


@pytest.mark.fault(93)
def test_a_user_with_little_locked_memory_is_told_how_much_is_needed(
    lab_devices: dict[str, str],
) -> None:
    address = lab_devices["rng-iova"]
    try:
        assert uvirtio("bind", address, "--owner", "1234:1234").returncode == 0
        limited = ("prlimit", "--memlock=4096:4096", "--", *USER)
        done = program("rng", "read", address, "32", "--json", prefix=limited)
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["code"]) == (4, "UV-ENV-MEMLOCK"), done.stdout
        assert "4096" in str(error["seen"]) and "limits" in str(error["remedy"])
        assert program("rng", "read", address, "32", "--json", prefix=USER).returncode == 0
    finally:
        uvirtio("restore", "--all")
