"""The legacy interface through vfio-pci: which one is shown and taken, and where contiguous memory comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import uvirtio
from tests.vm.test_drivers import hand_over
from uvirtio.binding import discover
from uvirtio.diag import diagnose
from uvirtio.errors import MemoryScattered, NotSupported
from uvirtio.host.roots import Roots

MACHINE = "legacy"

LEGACY, TRANSITIONAL = "rng-legacy", "balloon-transitional"
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
POOL = Path("/proc/sys/vm/nr_hugepages")
FREE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
HUGE = 2 << 20


@pytest.fixture
def taken(lab_devices: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """Hands a device to vfio-pci; all go back to the kernel's drivers."""
    out: list[str] = []

    def take(name: str) -> str:
        address = lab_devices[name]
        hand_over(address, "vfio-pci")
        out.append(address)
        return address

    yield take
    for address in out:
        hand_over(address, "virtio-pci")


@pytest.mark.parametrize(("name", "interface"), [(LEGACY, "legacy"), (TRANSITIONAL, "transitional")])
def test_list_and_inspect_show_the_interface(name: str, interface: str, lab_devices: dict[str, str]) -> None:
    found = discover.find(lab_devices[name], Roots())
    assert found.as_dict()["interface"] == interface
    common = [cap for cap in discover.capabilities(found) if cap.type == "common"]
    assert bool(common) is (interface == "transitional")


@pytest.mark.fault(20)
@pytest.mark.spec("PCI-LEG-01", "PCI-LEG-03")
@pytest.mark.parametrize(
    ("name", "force", "interface"),
    [
        (LEGACY, False, "legacy interface"),
        (TRANSITIONAL, False, "modern interface"),
        (TRANSITIONAL, True, "legacy interface"),
    ],
)
def test_diag_passes_and_says_which_interface_it_took(
    name: str, force: bool, interface: str, taken: Callable[[str], str]
) -> None:
    report = diagnose(taken(name), timeout=10, force_legacy=force)
    steps = {step.name: step for step in report.steps}
    assert interface in steps["capabilities"].detail
    assert (steps["features_ok"].verdict == "skip") is ("legacy" in interface)
    assert steps["data path"].verdict == "pass"
    assert report.verdict != "fail"


def test_a_legacy_device_where_no_io_ports_are_forwarded(taken: Callable[[str], str]) -> None:
    """The kernel shows an I/O BAR with an address, and nothing answers there."""
    with pytest.raises(NotSupported, match="no I/O ports") as caught:
        uvirtio.open(taken("rng-noports"), timeout=10)
    assert "root bus" in str(caught.value.remedy)


@pytest.fixture
def memory_knobs() -> Iterator[None]:
    """What the kernel gives huge pages from is put back as it was."""
    thp, pool = THP.read_text().partition("[")[2].partition("]")[0], POOL.read_text()
    yield
    THP.write_text(thp)
    POOL.write_text(pool)


@pytest.mark.spec("SPL-L02", "PCI-LEG-05")
@pytest.mark.usefixtures("memory_knobs")
def test_contiguous_memory_is_a_huge_page_of_either_kind_or_a_clear_refusal(taken: Callable[[str], str]) -> None:
    address = taken(LEGACY)

    def read() -> int:
        """A hundred bytes, over rings in a huge page; how many of those are left in the pool."""
        with uvirtio.open(address, timeout=10) as device, uvirtio.Rng(device) as rng:
            assert len(rng.read(100)) == 100
            assert device.dma.contiguous_limit == HUGE
            return int(FREE.read_text())

    THP.write_text("always")
    POOL.write_text("0")
    assert read() == 0

    THP.write_text("never")
    with pytest.raises(MemoryScattered) as caught:
        read()
    assert "nr_hugepages" in str(caught.value.remedy)

    POOL.write_text("8")
    assert read() < 8
    assert int(FREE.read_text()) == int(POOL.read_text()) == 8, "they are back in the pool"
