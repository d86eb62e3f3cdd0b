"""A kernel that finds a range of memory set apart at boot, where its command line cannot say so.

On x86 ``memmap=`` does it. On ARM64 only the firmware's memory map can (EFI_MEMORY_SP), and QEMU's firmware sets
nothing apart: so a small UEFI program (soft_reserve.c) stands before the kernel, adds the line, and starts it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from lab import LabError, cache, setup
from lab.kernels import Kernel
from lab.process import run

_SOURCE = Path(__file__).with_suffix(".c")
_TARGET = "--target=aarch64-unknown-windows"  # whose executables are UEFI's
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_CARRIED = """\
.section .rdata,"dr"
.balign 4096
.global kernel_start, kernel_end
kernel_start: .incbin "{image}"
kernel_end: .byte 0
"""


def parse(text: str) -> tuple[int, int]:
    """Address and bytes of ``SIZE@ADDRESS`` (``512M@0x80000000``), both in whole pages; LabError otherwise."""
    match = re.fullmatch(r"(\d+)([KMG]?)@(0x[0-9a-fA-F]+|\d+)", text)
    size = int(match[1]) << _UNITS[match[2]] if match else 0
    base = int(match[3], 0) if match else 0
    if not size or (size | base) % 65536:
        raise LabError(f"{text}: not SIZE@ADDRESS in whole pages, such as 512M@0x80000000", 2)
    return base, size


def add(kernel: Kernel, text: str) -> Kernel:
    """``kernel`` with this range set apart; built on first use, with clang (90 MB of packages)."""
    base, size = parse(text)
    setup.packages(setup.FOR_UEFI)
    key = hashlib.sha256(_SOURCE.read_bytes() + _CARRIED.encode()).hexdigest()[:8]
    where = cache.root() / "soft-reserved" / f"{kernel.version}-{base:x}-{size:x}-{key}"

    def build(work: Path) -> None:
        (work / "kernel.S").write_text(_CARRIED.format(image=kernel.image))
        common = ["clang", _TARGET, "-ffreestanding", "-O2", "-Wall", "-Wextra", "-Werror", "-c"]
        run([*common, f"-DBASE={base}ULL", f"-DSIZE={size}ULL", str(_SOURCE), "-o", str(work / "program.o")])
        run([*common, str(work / "kernel.S"), "-o", str(work / "kernel.o")])
        link = ["lld-link", "/subsystem:efi_application", "/entry:efi_main", "/nodefaultlib"]
        run([*link, f"/out:{work / 'image.efi'}", str(work / "program.o"), str(work / "kernel.o")])
        (work / "kernel.o").unlink()

    return replace(kernel, image=cache.build_once(where, build) / "image.efi")
