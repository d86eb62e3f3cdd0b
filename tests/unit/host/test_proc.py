"""The readers of /proc and sysfs: each shape that a kernel shows, what an ordinary user sees, and garbage."""

from __future__ import annotations

import ipaddress
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.fakesys import FakeSys
from uvirtio.binding.discover import scan
from uvirtio.binding.rules import check
from uvirtio.errors import NoSuchDevice, NotBound, PermissionLack
from uvirtio.host import drivers, memory, proc, process, sysfs, wake_lock
from uvirtio.host.digits import decimal
from uvirtio.host.proc import IoRange
from uvirtio.host.roots import Roots
from uvirtio.host.routes import routes


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


# --- iomem --------------------------------------------------------------------------------------------------


def test_iomem_as_root_and_as_a_user(fake: FakeSys) -> None:
    fake.text(
        fake.roots.proc / "iomem",
        "00000000-00000fff : Reserved\n00001000-3fffffff : System RAM\n  01000000-01ffffff : Kernel code\nx\n",
    )
    assert proc.iomem(fake.roots) == proc.iomem_addresses(fake.roots) == [
        IoRange(0, 0x1000, "Reserved"),
        IoRange(0x1000, 0x40000000, "System RAM"),
        IoRange(0x1000000, 0x2000000, "Kernel code", 1),
    ]  # fmt: skip
    line = IoRange(0x1000, 0x2000, "x")
    assert (line.size, line.hidden, str(line)) == (0x1000, False, "0x1000-0x1fff : x")
    assert line.covers(0x1000, 0x2000) and not line.covers(0x1000, 0x2001)
    assert line.overlaps(0, 0x1001) and not line.overlaps(0, 0x1000) and not line.overlaps(0x2000, 0x3000)
    fake.text(fake.roots.proc / "iomem", "00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n")
    assert [(one.name, one.depth, one.hidden) for one in proc.iomem(fake.roots) or []] == [
        ("System RAM", 0, True), ("Kernel code", 1, True)]  # fmt: skip
    with pytest.raises(PermissionLack, match="hides"):
        proc.iomem_addresses(fake.roots)
    fake.text(fake.roots.proc / "iomem", "")
    with pytest.raises(PermissionLack) as caught:
        proc.iomem_addresses(fake.roots)
    assert caught.value.seen == "no lines"
    (fake.roots.proc / "iomem").unlink()
    assert proc.iomem(fake.roots) is None
    with pytest.raises(PermissionLack, match="cannot be read"):
        proc.iomem_addresses(fake.roots)


def test_system_ram_begins_where_it_begins(fake: FakeSys) -> None:
    fake.text(fake.roots.proc / "iomem", "00000000-3fffffff : System RAM\n40000000-4fffffff : PCI Bus 0000:00\n")
    assert memory.system_ram(fake.roots) == [(0, 1 << 30, "System RAM")]


# --- memory -------------------------------------------------------------------------------------------------


def test_memory_blocks(fake: FakeSys) -> None:
    assert memory.memory_block_size(fake.roots) is None and memory.memory_blocks(fake.roots) == []
    assert memory.blocks_of_range(0, 1 << 40, fake.roots) == []
    top = memory.memory_directory(fake.roots)
    fake.text(top / "block_size_bytes", "8000000\n")
    for name, state in (("memory2", "online"), ("memory10", "offline"), ("memoryx", "online"), ("power", "")):
        fake.text(top / name / "state", state + "\n")
    found = memory.memory_blocks(fake.roots)
    assert [(one.number, one.start, one.size, one.state) for one in found] == [
        (2, 2 << 27, 1 << 27, "online"), (10, 10 << 27, 1 << 27, "offline")]  # fmt: skip
    within = memory.blocks_of_range((2 << 27) - 1, (2 << 27) + 1, fake.roots)
    assert [(one.number, one.state) for one in within] == [(1, None), (2, "online")]
    for text in ("0", "", "30", "-8", "x"):
        fake.text(top / "block_size_bytes", text)
        assert memory.memory_block_size(fake.roots) is None


def test_huge_pages(fake: FakeSys) -> None:
    assert memory.huge_pages(fake.roots).total is None and memory.huge_page_pools(fake.roots) == []
    top = fake.sys / "kernel/mm/hugepages"
    fake.text(top / "hugepages-2048kB/nr_hugepages", "7\n")
    fake.text(top / "hugepages-2048kB/free_hugepages", "many\n")
    fake.text(top / "hugepages-1048576kB/nr_hugepages", "1\n")
    pool = memory.huge_pages(fake.roots)
    assert (pool.total, pool.free, pool.reserved) == (7, None, None)
    assert pool.switch == top / "hugepages-2048kB/nr_hugepages"
    assert {one.kib: one.total for one in memory.huge_page_pools(fake.roots)} == {2048: 7, 1048576: 1}


def test_numbers_are_bytes_where_the_kernel_says_kb(fake: FakeSys) -> None:
    fake.text(fake.roots.proc / "meminfo", "MemTotal:  100 kB\nHugePages_Total:   3\nbad: x kB\n\n:\n")
    assert proc.meminfo(fake.roots) == {"MemTotal": 102400, "HugePages_Total": 3}
    fake.text(fake.roots.proc / "vmstat", "pgfault 12\nnr_x -1\n")
    assert proc.vmstat(fake.roots) == {"pgfault": 12}
    (fake.roots.proc / "meminfo").unlink()
    (fake.roots.proc / "vmstat").unlink()
    assert proc.vmstat(fake.roots) == {}
    with pytest.raises(OSError, match="meminfo"):
        proc.meminfo(fake.roots)


# --- processes ----------------------------------------------------------------------------------------------


def test_the_status_of_this_process(fake: FakeSys) -> None:
    assert not process.capable(process.CAP_SYS_ADMIN, fake.roots)
    assert process.status_bytes(("VmLck", "VmPin"), fake.roots) == 0
    fake.text(
        fake.roots.proc / "self/status",
        "Name:\tx\nPPid:\t17\nVmLck:\t     12 kB\nVmPin:\t3 kB\nCapEff:\t0000000000200000\n",
    )
    assert process.capable(process.CAP_SYS_ADMIN, fake.roots) and not process.capable(14, fake.roots)
    assert process.status_bytes(("VmLck", "VmPin", "VmNone"), fake.roots) == 15 << 10
    assert process.parent("self", fake.roots) == 17
    for text in ("CapEff:\tmany\nPPid:\t0\n", "CapEff:\n", ""):
        fake.text(fake.roots.proc / "self/status", text)
        assert not process.capable(21, fake.roots) and process.parent("self", fake.roots) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Max locked memory         8388608              8388608              bytes\n", 8388608),
        ("Max locked memory         unlimited            unlimited            bytes\n", resource.RLIM_INFINITY),
        ("Max processes             1                    1                    processes\n", None),
        ("", None),
    ],
)
def test_the_limit_of_locked_memory(fake: FakeSys, text: str, expected: int | None) -> None:
    fake.text(fake.roots.proc / "self/limits", text)
    assert process.locked_memory_limit(fake.roots) == expected


def test_who_has_a_node_open(fake: FakeSys) -> None:
    node = fake.roots.dev / "vfio/7"
    fake.opened(str(node), pid=77)
    fake.opened(str(node), pid=77, fd=4)
    fake.opened("/dev/null", pid=78)
    assert list(map(str, process.holders(node, fake.roots))) == ["process 77 (holder --run)"]
    assert process.holders(fake.roots.dev / "vfio/8", fake.roots) == []
    (fake.roots.proc / "77/cmdline").unlink()
    fake.text(fake.roots.proc / "77/comm", "qemu\n")
    assert list(map(str, process.holders(node, fake.roots))) == ["process 77 (qemu)"]
    (fake.roots.proc / "77/comm").unlink()
    assert list(map(str, process.holders(node, fake.roots))) == ["process 77"]
    assert process.open_files(fake.roots).complete
    assert not process.open_files(fake.roots, limit=0).complete
    assert not process.open_files(Roots.under(fake.top / "nothing")).complete


def test_when_a_process_started(fake: FakeSys) -> None:
    fake.text(fake.roots.proc / "5/stat", "5 (a) b) S " + " ".join(map(str, range(4, 53))) + "\n")
    assert process.start_time(5, fake.roots) == 22
    assert process.start_time(6, fake.roots) is None
    assert process.start_time(os.getpid(), Roots()) == process.start_time("self", Roots()) is not None


def test_mounts_with_odd_names(fake: FakeSys) -> None:
    fake.mountinfo(
        [
            "20 1 0:20 / /sys rw,nosuid - sysfs sysfs rw",
            "21 20 0:20 / /sys ro - sysfs sysfs rw",
            r"22 1 254:1 / /a\040b rw shared:1 - ext4 /dev/x\134y rw,z",
            "garbage",
        ]
    )
    found = process.mounts("self", fake.roots) or []
    assert [mount.point for mount in found] == ["/sys", "/sys", "/a b"]
    assert (found[2].source, found[2].super_options, found[2].read_only) == ("/dev/x\\y", "rw,z", False)
    assert process.sysfs_read_only(fake.roots), "the last mount lies on top"
    fake.mountinfo(["20 1 0:20 / /sys rw,nosuid - sysfs sysfs rw"])
    assert not process.sysfs_read_only(fake.roots)
    assert process.mounts(99, fake.roots) is None


def test_routes(fake: FakeSys) -> None:
    fake.text(
        fake.roots.proc / "net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
        "eth0\t00000000\t0102A8C0\t3\t0\t0\t0\t00000000\n"
        "eth1\t0002A8C0\t0\t1\t0\t0\t0\t00FFFFFF\nbad\n",
    )
    fake.text(
        fake.roots.proc / "net/ipv6_route",
        "20010db8000000000000000000000000 20 " + "0" * 32 + " 00 " + "0" * 32 + " 1 1 0 1 eth2\n"
        "00000000000000000000000000000000 00 " + "0" * 32 + " 00 " + "0" * 32 + " 1 1 0 1 lo\n",
    )
    found = routes(fake.roots) or []
    assert [(one.interface, str(one.network), one.default) for one in found] == [
        ("eth0", "0.0.0.0/0", True),
        ("eth1", "192.168.2.0/24", False),
        ("eth2", "2001:db8::/32", False),
    ]
    assert ipaddress.ip_address("192.168.2.9") in found[1].network
    for name, left in (("route", ["eth2"]), ("ipv6_route", None)):
        (fake.roots.proc / "net" / name).unlink()
        rest = routes(fake.roots)
        assert (rest and [one.interface for one in rest]) == left


# --- sysfs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode", "locked"),
    [
        ("[none] integrity confidentiality", "none", None),
        ("none [integrity] confidentiality", "integrity", "integrity"),
        ("none integrity [confidentiality]", "confidentiality", "confidentiality"),
        ("", None, None),
        ("none integrity", None, None),
    ],
)
def test_lockdown(fake: FakeSys, text: str, mode: str | None, locked: str | None) -> None:
    assert sysfs.lockdown(fake.roots) is None
    fake.text(fake.sys / "kernel/security/lockdown", text + "\n")
    assert (sysfs.lockdown(fake.roots), sysfs.locked_down(fake.roots)) == (mode, locked)


def test_what_holds_a_function(fake: FakeSys) -> None:
    fake.pci("0000:03:00.0", "rng", driver="vfio-pci", group=7)
    fake.pci("0000:04:00.0", "rng", driver=None)
    drivers.require_bound("0000:03:00.0", drivers.VFIO, fake.roots)
    with pytest.raises(NotBound) as caught:
        drivers.require_bound("0000:03:00.0", drivers.UIO, fake.roots)
    assert caught.value.seen == "vfio-pci" and caught.value.remedy.endswith("--driver uio_pci_generic")
    with pytest.raises(NotBound, match="not bound"):
        drivers.require_bound("0000:04:00.0", drivers.VFIO, fake.roots)
    with pytest.raises(NoSuchDevice):
        drivers.require_bound("0000:05:00.0", drivers.VFIO, fake.roots)
    here, there = (sysfs.device("pci", name, fake.roots) for name in ("0000:03:00.0", "0000:04:00.0"))
    assert (sysfs.iommu_group(here), sysfs.iommu_group(there)) == (7, None)
    assert sysfs.iommu_group_members(7, fake.roots) == ["0000:03:00.0"] and sysfs.iommu_groups(fake.roots) == ["7"]
    fake.text(here / "iommu_group/name", "vfio-noiommu\n")
    assert sysfs.is_noiommu(here) and sysfs.iommu_groups(fake.roots) == []


def test_lines_of_a_resource_file(fake: FakeSys) -> None:
    path = fake.pci("0000:03:00.0")
    found = sysfs.resources(path) or []
    assert [(line.size, line.is_io) for line in found if line and line.used] == [
        (64, True), (4096, False), (0x4000, False)]  # fmt: skip
    fake.text(path / "resource", "0x1 0x2\n0x0 0x0 0x0\n0x1000 0x1fff 0x200\n")
    assert [line and line.used for line in sysfs.resources(path) or []] == [None, False, True]
    (path / "resource").unlink()
    assert sysfs.resources(path) is None


def test_wake_locks(fake: FakeSys) -> None:
    assert not wake_lock.supported(fake.roots)
    for name in ("wake_lock", "wake_unlock"):
        fake.text(fake.sys / "power" / name, "")
    assert wake_lock.supported(fake.roots)
    wake_lock.take("a", fake.roots)
    wake_lock.drop("a", fake.roots)
    assert (fake.sys / "power/wake_lock").read_text() == (fake.sys / "power/wake_unlock").read_text() == "a"


# --- garbage ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_no_content_is_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    fake = FakeSys(tmp_path_factory.mktemp("tree"))
    for name in ("iomem", "vmstat", "meminfo", "swaps", "consoles", "crypto", "cmdline", "net/route",
                 "net/ipv6_route", "self/status", "self/limits", "self/mountinfo", "self/stat",
                 "self/environ"):  # fmt: skip
        fake.text(fake.roots.proc / name, content)
    proc.iomem(fake.roots)
    memory.system_ram(fake.roots)
    proc.meminfo(fake.roots)
    proc.vmstat(fake.roots)
    proc.swaps(fake.roots)
    proc.consoles(fake.roots)
    proc.crypto(fake.roots)
    routes(fake.roots)
    process.capable(21, fake.roots)
    process.locked_memory_limit(fake.roots)
    process.mounts("self", fake.roots)
    process.start_time("self", fake.roots)
    process.environment("self", fake.roots)
    assert process.status_bytes(("VmPin",), fake.roots) >= 0


@pytest.mark.fault(96)
@pytest.mark.parametrize("odd", ["9" * 5000, "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT THREE}", "-1"])
def test_a_number_that_no_kernel_prints_is_none(fake: FakeSys, odd: str) -> None:
    """int() raises for more than 4300 digits, and str.isdigit() is true of what int() refuses."""
    assert decimal(odd) is None
    head = "1 (x) S " + " ".join(["0"] * 5)
    for name, text in {
        "vmstat": f"a {odd}\nb 2\n",
        "meminfo": f"MemTotal: {odd} kB\nMemFree: 2 kB\n",
        "interrupts": f"  CPU0\n {odd}: 1 MSI 1-edge a\n 24: {odd} MSI 1-edge b\n 25: 7 MSI 2-edge c\n",
        "self/stat": f"{head} {odd} " + " ".join([odd] * 40),
        "self/status": f"PPid:\t{odd}\nVmPin:\t{odd} kB\nVmLck:\t1 kB\n",
        "self/limits": f"Max locked memory         {odd}      8388608   bytes\n",
        "crypto": f"name : x\ndriver : virtio_crypto_aes\nrefcnt : {odd}\n",
    }.items():
        fake.text(fake.roots.proc / name, text)
    assert proc.vmstat(fake.roots) == {"b": 2} and proc.meminfo(fake.roots) == {"MemFree": 2048}
    assert list(proc.interrupts(fake.roots)) == [25]
    assert process.start_time("self", fake.roots) is None and process.parent("self", fake.roots) is None
    assert not process.ending("self", fake.roots) and process.locked_memory_limit(fake.roots) is None
    assert process.status_bytes(("VmPin", "VmLck"), fake.roots) == 1024
    fake.pci("0000:03:00.0", "crypto")
    assert not [one for one in check(scan(fake.roots)[0], fake.roots).findings if "refcnt" in one.evidence]
