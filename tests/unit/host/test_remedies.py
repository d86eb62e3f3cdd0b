"""What a machine is told to do goes by its architecture: every remedy for x86-64 and for aarch64."""

from __future__ import annotations

import errno
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from uvirtio.binding import doctor
from uvirtio.binding.discover import find
from uvirtio.binding.plan import plan
from uvirtio.errors import NotSupported, UvirtioError
from uvirtio.host import cpu, remedies
from uvirtio.host.memory import huge_pages
from uvirtio.host.proc import interrupt_chips
from uvirtio.host.roots import Roots
from uvirtio.memory.window import dev_mem
from uvirtio.online import KernelView

X86, ARM = "x86_64", "aarch64"
FOREIGN = {
    X86: re.compile(r"SMMU|\bGIC|\bITS\b|device tree|IORT|-machine virt|hugepagesz=|aarch64|EFI_MEMORY_SP"),
    ARM: re.compile(r"intel|VT-d|AMD-Vi|memmap=|intremap|\bE820|e820|x86"),
}
POOL = huge_pages(Roots())
CALLS: dict[str, Callable[[str], str]] = {
    "iommu": remedies.iommu,
    "isolated_interrupts": remedies.isolated_interrupts,
    "huge_pages": lambda machine: remedies.huge_pages(POOL, 24, machine),
    "kept_at_boot": lambda machine: remedies.kept_at_boot(0x100000000, 512 << 20, machine),
    "plugged_memory": lambda _: remedies.plugged_memory(),
    "full_fence": lambda _: remedies.full_fence(),
}


def test_every_remedy_is_walked():
    functions = inspect.getmembers(remedies, inspect.isfunction)
    ours = {name for name, one in functions if one.__module__ == remedies.__name__ and not name.startswith("_")}
    assert ours - {"boot_line"} == set(CALLS)  # that one is x86's, and kept_at_boot decides


@pytest.mark.parametrize("machine", [X86, ARM])
@pytest.mark.parametrize("name", CALLS)
def test_no_remedy_is_another_architectures(name: str, machine: str):
    text = CALLS[name](machine)
    assert text and not FOREIGN[machine].search(text)


@pytest.mark.parametrize("name", ["iommu", "isolated_interrupts", "huge_pages", "kept_at_boot"])
def test_these_differ(name: str):
    assert CALLS[name](X86) != CALLS[name](ARM)
    assert CALLS[name]("riscv64") and not FOREIGN[ARM].search(CALLS[name]("riscv64"))


def test_interrupts_are_isolated_by_what_the_machine_has():
    said = {machine: CALLS["isolated_interrupts"](machine) for machine in (X86, ARM, "riscv64")}
    assert "interrupt remapping" in said[X86] and "a GIC with an ITS" in said[ARM]
    assert "an interrupt controller that isolates them" in said["riscv64"]


def test_the_pool_of_2_mib_is_named_by_its_size():
    for machine in (X86, ARM):
        assert "hugepages-2048kB/nr_hugepages" in CALLS["huge_pages"](machine)
        assert "vm/nr_hugepages" not in CALLS["huge_pages"](machine)
    assert "hugepagesz=2M hugepages=24" in CALLS["huge_pages"](ARM)


def test_what_only_one_architecture_has_is_named_in_one_file():
    """In the program's texts; comments, docstrings and QEMU's own devices may say what they are about."""
    words = re.compile(r"intel_iommu|VT-d|intel-iommu,intremap=on|memmap=|sys/vm/nr_hugepages|smmuv3|hugepagesz")
    top = Path(remedies.__file__).parents[1]
    found = {
        str(path.relative_to(top))
        for path in top.rglob("*.py")
        for line in path.read_text().splitlines()
        if words.search(line) and '"' in line and '"""' not in line
    }
    assert found == {"host/remedies.py"}


# --- where they are said ------------------------------------------------------------------------------------


@pytest.fixture(params=[X86, ARM])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setattr(cpu, "machine", lambda: name)
    return name


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


def test_doctor_says_nothing_of_another_architecture(fake: FakeSys, machine: str):
    for driver in ("vfio-pci", "uio_pci_generic"):
        fake.driver(driver)
    fake.pci("0000:03:00.0", "mem")
    fake.mmio("a003e00.virtio_mmio", compatible=b"virtio,mmio\0", reg=(0xA003E00, 0x200))
    fake.text(fake.roots.proc / "self/status", "CapEff:\t000001ffffffffff\n")
    for check in doctor.checks(fake.roots, qemu_version=lambda _: ""):
        assert not FOREIGN[machine].search(check.remedy.replace("qemu-system-x86", "")), check
    made = {check.name: check for check in doctor.checks(fake.roots, qemu_version=lambda _: "")}
    assert made["iommu"].remedy == remedies.iommu(machine)
    assert ("plugged-memory" in made) is (machine == ARM)


def test_bind_without_an_iommu(fake: FakeSys, machine: str):
    fake.pci("0000:03:00.0", "rng")
    said = "".join(problem.remedy or "" for problem in plan(find("0000:03:00.0", fake.roots), fake.roots).problems)
    assert remedies.iommu(machine) in said and not FOREIGN[machine].search(said)


def test_a_region_that_was_not_kept_at_boot(fake: FakeSys, machine: str):
    fake.text(fake.roots.proc / "iomem", "40000000-7fffffff : System RAM\n")
    with pytest.raises(UvirtioError) as caught:
        _not_kept(KernelView(0x100000000, 512 << 20, fake.roots))
    said = caught.value.remedy or ""
    assert not FOREIGN[machine].search(said)
    assert ("memmap=" in said) is (machine == X86) and ("uvirtio restore" in said) is (machine == ARM)


def _not_kept(kernel: KernelView) -> None:
    raise kernel.not_kept()


def test_plugged_memory_is_never_mapped_as_device_memory(tmp_path: Path, machine: str):
    """arm64 maps through /dev/mem as Device memory what is not in memblock; the first slice of it is SIGBUS."""
    roots = Roots.under(tmp_path)
    roots.dev.mkdir()
    (roots.dev / "mem").write_bytes(bytes(65536))
    if machine == X86:
        dev_mem(0, 65536, roots).close()
        return
    with pytest.raises(NotSupported) as caught:
        dev_mem(0, 65536, roots)
    assert "device memory" in caught.value.seen and "uvirtio restore" in (caught.value.remedy or "")


# --- interrupts ---------------------------------------------------------------------------------------------

HEAD = "           CPU0       CPU1\n"


@pytest.mark.parametrize(
    ("name", "row", "isolated"),
    [
        (X86, " 24:  0  7  IR-PCI-MSI-0000:00:01.0    0-edge      virtio0-config", True),
        (X86, " 24:  0  7  PCI-MSI 524288-edge      virtio0-config", False),
        (X86, "  9:  0  7  IR-IO-APIC    9-fasteoi   acpi", True),
        (X86, "  9:  0  7  IO-APIC    9-fasteoi   acpi", False),
        (X86, "NMI:  0  7  Non-maskable interrupts", None),
        (ARM, " 11:  0  7  GICv3  27 Level     arch_timer\n 45:  0  7  ITS-MSI 16384 Edge  virtio0-config", True),
        (ARM, " 45:  0  7  ITS-PCI-MSIX-0000:00:01.0   0 Edge      virtio0-config", True),
        (ARM, " 11:  0  7  GICv2  27 Level     arch_timer", False),
        (ARM, " 11:  0  7  GICv3  27 Level     arch_timer", None),
        ("riscv64", " 1:  0  7  SiFive PLIC  10 Edge  ttyS0", None),
        (X86, "", None),
    ],
)
def test_isolated_interrupts_by_the_controllers_in_use(fake: FakeSys, name: str, row: str, isolated: bool | None):
    fake.text(fake.roots.proc / "interrupts", HEAD + row + "\n")
    assert cpu.isolates_interrupts(interrupt_chips(fake.roots), name) is isolated


@pytest.mark.parametrize(
    "row", ["", " 11:  0  7  GICv2  27 Level     arch_timer", " 4:  0  7  IO-APIC  4-edge  ttyS0"]
)
def test_doctor_offers_vfio_only_where_it_opens(fake: FakeSys, machine: str, row: str):
    fake.driver("vfio-pci")
    fake.pci("0000:03:00.0", "rng", group=5)
    fake.text(fake.roots.proc / "interrupts", HEAD + row + "\n")
    refused = ("GICv2" in row) if machine == ARM else ("IO-APIC" in row)
    made = {check.name: check for check in doctor.checks(fake.roots, qemu_version=lambda _: "")}
    assert ("vfio-pci" in made["ways"].detail) is not refused
    assert (made["vfio-pci"].remedy == remedies.isolated_interrupts(machine)) is refused
    fake.text(fake.sys / "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n")
    made = {check.name: check for check in doctor.checks(fake.roots, qemu_version=lambda _: "")}
    assert "vfio-pci" in made["ways"].detail


def test_a_refused_iommu_says_how_interrupts_are_isolated(machine: str):
    from uvirtio.backends.vfio.container import Container

    class Refusing:
        def ioctl(self, fd: int, request: int, argument: object) -> int:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    container = Container(3, Path("/dev/vfio/vfio"), Refusing())  # type: ignore[arg-type]
    with pytest.raises(UvirtioError) as caught:
        container.set_iommu(1)
    container._fd = -1
    assert caught.value.remedy == remedies.isolated_interrupts(machine)
