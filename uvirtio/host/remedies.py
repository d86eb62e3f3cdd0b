"""What to do about a machine that lacks something: texts for people, each a function of the architecture.

A parameter of the kernel, an option of QEMU or a page size that only one architecture has is named only here.
``machine`` is an architecture as ``uname -m`` prints it; None: this machine's.
"""

from __future__ import annotations

from uvirtio.host import cpu
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.host.memory import HugePages


def iommu(machine: str | None = None) -> str:
    """How a machine gets an IOMMU that the kernel uses."""
    if cpu.is_x86(machine):
        return (
            "switch the IOMMU on: VT-d or AMD-Vi in the firmware, and intel_iommu=on on the kernel's command line "
            "where that is off by default; for a VM, QEMU's -device intel-iommu,intremap=on"
        )
    if cpu.is_arm64(machine):
        return (
            "the machine needs an SMMU that its firmware tells the kernel of (ACPI's IORT, or iommu-map in the "
            "device tree); for a VM, QEMU's -machine virt,gic-version=3,iommu=smmuv3"
        )
    return "the machine needs an IOMMU that the kernel has a driver for; for a VM, QEMU's -device virtio-iommu-pci"


def isolated_interrupts(machine: str | None = None) -> str:
    """How a machine gets message-signalled interrupts that a device cannot forge, which VFIO wants."""
    accept = (
        "or accept the risk as root: echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts "
        "(with iommufd: /sys/module/iommufd/parameters/allow_unsafe_interrupts)"
    )
    if cpu.is_x86(machine):
        return (
            f"switch interrupt remapping on (firmware; for a VM, QEMU's -device intel-iommu,intremap=on), {accept}"
        )
    if cpu.is_arm64(machine):
        return f"use a GIC with an ITS (for a VM, QEMU's -machine virt,gic-version=3,its=on), {accept}"
    return f"use an interrupt controller that isolates them, {accept}"


def huge_pages(pool: HugePages, wanted: int, machine: str | None = None) -> str:
    """How the pool of huge pages of 2 MiB gets so many pages.

    The pool is named by its size: ``vm.nr_hugepages`` and a bare ``hugepages=`` are that of the default size,
    which is 2 MiB on x86-64, and on arm64 goes by the size of a page (2, 32 or 512 MiB).

    Args:
        pool: The pool.
        wanted: How many pages it is to have in all.
        machine: The architecture.
    """
    size = "" if cpu.is_x86(machine) else "hugepagesz=2M "
    return (
        f"as root: echo {wanted} > {pool.switch} (or {size}hugepages={wanted} on the kernel's command line, "
        "before memory is fragmented)"
    )


def kept_at_boot(addr: int, size: int, machine: str | None = None) -> str:
    """How the kernel is told to keep a range of memory from itself, to be brought online piece by piece.

    Args:
        addr: Its first physical address.
        size: Bytes.
        machine: The architecture.
    """
    if cpu.is_x86(machine):
        return f"add this to the kernel's command line and boot again: {boot_line(addr, size)}"
    return (
        f"Linux has no parameter for that on {machine or cpu.machine()}: the firmware's memory map has to set "
        f"{addr:#x}-{addr + size - 1:#x} apart (EFI_MEMORY_SP), beside dax_hmem.region_idle=1 on the kernel's "
        "command line. Where that cannot be, Linux's own driver takes plugged memory: uvirtio restore DEV"
    )


def boot_line(addr: int, size: int) -> str:
    """The parameters by which an x86 kernel reserves a range at boot, so that it can be brought online in pieces.

    ``+0xefffffff`` makes type 1 (RAM), or 12 (persistent), into type 0xefffffff: E820_TYPE_SOFT_RESERVED.
    Without ``region_idle`` dax_hmem makes one device of the whole range, which udev then binds to kmem, also
    memory that is not plugged.

    Args:
        addr: The first physical address.
        size: Bytes.
    """
    return f"memmap={_short(size)}%{addr:#x}+0xefffffff dax_hmem.region_idle=1"


def _short(size: int) -> str:
    for shift, letter in ((30, "G"), (20, "M"), (10, "K")):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{letter}"
    return str(size)


def plugged_memory() -> str:
    """How plugged memory of virtio-mem is used where a program cannot map it as ordinary memory."""
    return (
        "Linux can use it: give the device back to its own driver (uvirtio restore DEV), which takes plugged "
        "memory as ordinary memory; plug and unplug, without using it, work here too"
    )


def full_fence() -> str:
    """How Python gets a memory fence where a lock is none."""
    return "install GCC's libatomic: apt-get install libatomic1, dnf install libatomic, apk add libatomic"
