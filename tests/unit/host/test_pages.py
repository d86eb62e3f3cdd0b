"""The CPU's page and virtio's: what is mapped goes by the one, what the device is told by the other.

The parts that touch no device run in a process of their own, which takes the CPU's page for a larger one. The
kernel below has pages of 4096 bytes, and takes multiples of them.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from uvirtio.backends.pages import merged
from uvirtio.backends.physical import HugeFile, PhysicalDmaSpace
from uvirtio.backends.qemu.ivshmem import Bells
from uvirtio.backends.qemu.memory import FIRST, GuestMemory, QemuDma
from uvirtio.binding.discover import scan
from uvirtio.binding.facts import Facts
from uvirtio.binding.mates import Mates
from uvirtio.binding.plan import plan
from uvirtio.drivers.balloon.pages import Pages
from uvirtio.errors import ForeignWindow, Misuse
from uvirtio.host.mmio import check_window
from uvirtio.host.pagemap import Pagemap
from uvirtio.host.pages import CPU_PAGE, HUGE_PAGE
from uvirtio.host.roots import Roots
from uvirtio.memory.fence import full_fence
from uvirtio.memory.iova import IovaAllocator
from uvirtio.memory.window import FileWindow
from uvirtio.spec.page import PFN_SHIFT, VIRTIO_PAGE
from uvirtio.spec.ring import legacy_layout
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.split import make_split

PER_PAGE = CPU_PAGE // VIRTIO_PAGE
FIRST_FRAME = 0x200


class Frames(Pagemap):
    """Whatever is asked for lies in frames of the CPU from 0x200 on."""

    def _entries(self, first: int, count: int) -> array[int]:
        return array("Q", (1 << 63 | FIRST_FRAME + at for at in range(count)))


def frames_of_a_page_are_counted_in_units_of_4096_bytes(folder: Path) -> None:
    pfns = Frames(Roots.under(folder)).pfns(64 * CPU_PAGE, 2 * CPU_PAGE)
    assert pfns == list(range(FIRST_FRAME * PER_PAGE, (FIRST_FRAME + 2) * PER_PAGE))
    assert merged(pfns) == [(0, FIRST_FRAME * CPU_PAGE, 2 * CPU_PAGE)]


def memory_in_huge_pages_is_cut_at_pages_of_the_cpu(folder: Path) -> None:
    roots = Roots.under(folder)
    file = HugeFile(roots, create=lambda: os.memfd_create("test", os.MFD_CLOEXEC))
    with PhysicalDmaSpace(roots, file=file, pagemap=Frames(roots)) as space:
        blocks = [space.alloc(1) for _ in range(HUGE_PAGE // CPU_PAGE + 1)]
        assert {block.size for block in blocks} == {CPU_PAGE}
        assert [block.first for block in blocks] == [CPU_PAGE * at for at in range(len(blocks))]
        assert len(blocks[0].pfns()) == PER_PAGE


def memory_of_a_machine_lies_at_pages_of_the_cpu(folder: Path) -> None:
    guest = GuestMemory(32 << 20)
    first, second = guest.alloc(1), guest.alloc(VIRTIO_PAGE + 1)
    assert (first.address, second.address) == (FIRST, FIRST + CPU_PAGE)
    assert second.pfns()[0] == (FIRST + CPU_PAGE) >> PFN_SHIFT and len(second.pfns()) == 2
    guest.close()


def device_addresses_are_given_by_the_page(folder: Path) -> None:
    iova = IovaAllocator([(0, (1 << 32) - 1)])
    assert iova.alloc(1) + CPU_PAGE == iova.alloc(1)


def a_window_takes_whole_pages(folder: Path) -> None:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4 * CPU_PAGE)
    window = FileWindow(fd, 0, 4 * CPU_PAGE, what="a file")
    window.map(CPU_PAGE, 2 * CPU_PAGE).close()
    for offset, length in ((CPU_PAGE // 2, CPU_PAGE), (CPU_PAGE, CPU_PAGE // 2)):
        with pytest.raises(Misuse):
            window.map(offset, length)
    window.close()


def what_else_is_in_the_page_of_a_window_counts(folder: Path) -> None:
    """A page that begins at 0x100000 has the window, and another device in its last 512 bytes."""
    fake = FakeSys(folder / "page")
    end = 0x100000 + CPU_PAGE
    other = f"{end - 512:08x}-{end - 1:08x} : a serial port"
    fake.text(fake.top / "proc/iomem", f"00100000-001001ff : LNRO0005:00\n{other}\n")
    with pytest.raises(ForeignWindow, match="its page has"):
        check_window(0x100000, 0x200, fake.roots, address="mmio:0x100000")


def the_group_of_a_window_is_a_page_of_the_cpu(folder: Path) -> None:
    """Windows at both ends of a page, one at the start of the next, and one that is in two pages."""
    fake = FakeSys(folder / "group")
    last = CPU_PAGE - 0x200
    bases = (0x10000000, 0x10000000 + last, 0x10000000 + CPU_PAGE)
    for base in bases:
        fake.mmio(f"{base:x}.virtio_mmio", "rng", compatible=b"virtio,mmio\0", reg=(base, 0x200))
    facts = Facts(fake.roots)
    first, second, third = scan(fake.roots)
    assert [one.address for one in facts.mates.page_members(first)] == [second.address]
    assert [one.address for one in facts.mates.page_members(second)] == [first.address]
    assert facts.mates.page_members(third) == []
    refused = plan(first, fake.roots).problems[0]
    assert f"{CPU_PAGE >> 10} KiB" in str(refused.seen) and second.address in str(refused.seen)
    taken = plan(first, fake.roots, group=True)
    assert not taken.problems and [one.found.address for one in taken.members] == [first.address, second.address]
    base = 0x10000000 + 2 * CPU_PAGE - 0x200
    fake.mmio(f"{base:x}.virtio_mmio", "rng", compatible=b"virtio,mmio\0", reg=(base, 0x400))
    assert [one.name for one in Mates(fake.roots).page_members(third)] == [f"{base:x}.virtio_mmio"]
    whole = (1 << 63).to_bytes(8, "big")  # firmware claims half of the address space, and no page of it is counted
    fake.text(fake.sys / f"firmware/devicetree/base/virtio_mmio@{bases[0]:x}/reg", bytes(8) + whole)
    facts = Facts(fake.roots)
    found = {one.name: facts.mates.page_members(one) for one in scan(fake.roots)}
    assert {len(mates) for name, mates in found.items() if name != "a000000.virtio_mmio"} == {1, 2, 3}


def shared_memory_of_the_doorbells_is_whole_pages(folder: Path) -> None:
    """QEMU rounds it up to the pages of the host, and refuses a file that is shorter (qemu_ram_alloc_from_fd)."""
    bells = Bells()
    size = os.fstat(bells._shared).st_size
    assert size and size % CPU_PAGE == 0
    bells.close()


def a_legacy_queue_is_named_by_its_page_of_4096_bytes(folder: Path) -> None:
    assert legacy_layout(256).used == 2 * VIRTIO_PAGE
    guest = GuestMemory(32 << 20)
    dma = QemuDma(guest, translated=False)
    queue = make_split(0, 256, dma, RingOptions(full_fence(), one_region=True))
    desc, driver, device = queue.addresses
    assert (driver - desc, device - desc) == (4096, 8192)
    queue.close()
    guest.close()


def a_balloon_counts_in_units_of_4096_bytes(folder: Path) -> None:
    roots = Roots.under(folder)
    file = HugeFile(roots, create=lambda: os.memfd_create("test", os.MFD_CLOEXEC))
    with PhysicalDmaSpace(roots, file=file, pagemap=Frames(roots)) as space:
        chunk = Pages(space, None).with_room(1, force=False)
        assert chunk.block.size == CPU_PAGE
        first = chunk.pfns[0]
        assert chunk.room == PER_PAGE and chunk.pfns.tolist() == list(range(first, first + PER_PAGE))
        chunk.fill(0, 1, b"\1\2\3\4")
        assert bytes(chunk.block.view[:VIRTIO_PAGE]) == b"\1\2\3\4" * 1024
        assert bytes(chunk.block.view[VIRTIO_PAGE:]) == bytes(CPU_PAGE - VIRTIO_PAGE)


CHECKS = {
    check.__name__: check
    for check in (
        frames_of_a_page_are_counted_in_units_of_4096_bytes,
        memory_in_huge_pages_is_cut_at_pages_of_the_cpu,
        memory_of_a_machine_lies_at_pages_of_the_cpu,
        device_addresses_are_given_by_the_page,
        a_window_takes_whole_pages,
        what_else_is_in_the_page_of_a_window_counts,
        the_group_of_a_window_is_a_page_of_the_cpu,
        shared_memory_of_the_doorbells_is_whole_pages,
        a_legacy_queue_is_named_by_its_page_of_4096_bytes,
        a_balloon_counts_in_units_of_4096_bytes,
    )
}


LARGER = ("backends/test_vfio_memory.py", "backends/test_physical.py", "backends/test_vhost_vdpa.py",
          "backends/test_qemu_memory.py", "backends/test_vfio_iova.py", "backends/test_devmem.py",
          "memory/test_access.py", "virtqueue/test_split.py", "virtqueue/test_packed.py")  # fmt: skip
"""The tests of all that maps, pins or looks up memory, and of rings in it."""

_SUITE = """
import mmap, sys
mmap.PAGESIZE = int(sys.argv[1])
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def test_what_maps_memory_has_the_same_tests_with_a_larger_page(tmp_path: Path):
    """With 64 KiB, of which all that holds for 16 KiB follows; the kernel below has pages of 4096 bytes."""
    folder = Path(__file__).parents[1]
    words = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not one_call_is_one_access and not idioms",
        f"--basetemp={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", _SUITE, "65536", *words, *(str(folder / name) for name in LARGER)],
        cwd=folder.parents[1],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_cpu_page_is_the_one_of_this_machine():
    assert mmap.PAGESIZE == CPU_PAGE and os.sysconf("SC_PAGE_SIZE") == CPU_PAGE


@pytest.mark.parametrize("name", CHECKS)
def test_with_the_page_of_this_machine(name: str, tmp_path: Path):
    CHECKS[name](tmp_path)


_PROGRAM = """
import mmap, sys
from pathlib import Path
mmap.PAGESIZE = int(sys.argv[1])
from tests.unit.host import test_pages
assert test_pages.CPU_PAGE == mmap.PAGESIZE
for name, check in test_pages.CHECKS.items():
    print(name, flush=True)
    check(Path(sys.argv[2]) / name)
"""


@pytest.mark.parametrize("page", [16384, 65536])
def test_with_a_larger_page(page: int, tmp_path: Path):
    for name in CHECKS:
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(page), str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(CHECKS)
