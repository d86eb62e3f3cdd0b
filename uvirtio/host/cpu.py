"""The architecture of this machine's CPU, and what this package's answers depend on in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection

from uvirtio.errors import NotSupported

_X86 = frozenset({"x86_64", "AMD64", "i686", "i586", "i486", "i386"})
_ARM64 = frozenset({"aarch64", "arm64", "aarch64_be"})


def machine() -> str:
    """The architecture as ``uname -m`` prints it: ``x86_64``, ``aarch64``, ``riscv64`` ..."""
    return os.uname().machine


def is_x86(name: str | None = None) -> bool:
    """Whether it is x86, of 32 or 64 bits; None: this machine."""
    return (machine() if name is None else name) in _X86


def is_arm64(name: str | None = None) -> bool:
    """Whether it is 64-bit ARM; None: this machine."""
    return (machine() if name is None else name) in _ARM64


def maps_any_memory_as_normal(name: str | None = None) -> bool:
    """Whether memory that Linux did not find at boot is ordinary memory when /dev/mem maps it.

    x86 has its memory type by address (MTRR, PAT), and allows unaligned accesses to each of them. arm64 and RISC-V
    map as Device memory or I/O what is not in memblock (``phys_mem_access_prot``), and there an unaligned access,
    as ``memcpy`` and so a slice of a memoryview make them, is a fault: SIGBUS.

    Args:
        name: An architecture; None: this machine's.
    """
    return is_x86(name)


def reads_of_nothing_are_harmless(name: str | None = None) -> bool:
    """Whether a read of an address that no device decodes gives all ones; elsewhere it is a bus error.

    Args:
        name: An architecture; None: this machine's.
    """
    return is_x86(name)


def isolates_interrupts(chips: Collection[str], name: str | None = None) -> bool | None:
    """Whether message-signalled interrupts are isolated, so that no device can forge those of others.

    x86 does it by interrupt remapping, whose controllers begin with ``IR-``; arm64 by the ITS of GICv3 and later,
    and not by the frames of GICv2m. Without it VFIO refuses an IOMMU.

    Args:
        chips: The interrupt controllers in use, by the kernel's names.
        name: An architecture; None: this machine's.

    Returns:
        None where the names do not tell.
    """
    if is_x86(name):
        if any(chip.startswith("IR-") for chip in chips):
            return True
        return False if any(chip.startswith(("IO-APIC", "PCI-MSI")) for chip in chips) else None
    if is_arm64(name):
        if any(chip.startswith("ITS-") for chip in chips):
            return True
        return False if any(chip.startswith(("GICv2", "GIC-0")) for chip in chips) else None
    return None


def require_host() -> None:
    """Check that views of shared memory are what ``memory.access`` takes them for: little-endian, under CPython.

    Raises:
        NotSupported: The host is big-endian, or the interpreter is another one.
    """
    if sys.implementation.name != "cpython":
        raise NotSupported(
            "uvirtio drives devices under CPython alone",
            seen=f"{sys.implementation.name}, Python {'.'.join(map(str, sys.version_info[:3]))}",
            expected="cpython: it stores a register or an index of a ring by one instruction, PyPy byte by byte, "
            "and a device could see half of it",
            remedy="run it with CPython 3.11 or later; list, inspect, plan and doctor work with this interpreter",
        )
    if sys.byteorder != "little":
        raise NotSupported(
            "this host is big-endian, and uvirtio's views of shared memory are little-endian",
            seen=sys.byteorder,
            expected="little",
        )
