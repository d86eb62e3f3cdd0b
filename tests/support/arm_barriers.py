"""Which barriers a function of AArch64 machine code executes, instruction by instruction (Arm ARM, C6.2)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

RET = 0xD65F03C0
_BARRIERS = {0xD503309F: "dsb", 0xD50330BF: "dmb", 0xD50330DF: "isb"}  # CRm, the option, is in bits 8 to 11
_OPTIONS = {0b0001: "oshld", 0b0010: "oshst", 0b0011: "osh", 0b0101: "nshld", 0b0110: "nshst", 0b0111: "nsh",
            0b1001: "ishld", 0b1010: "ishst", 0b1011: "ish", 0b1101: "ld", 0b1110: "st", 0b1111: "sy"}  # fmt: skip
_NOP = 0xD503201F
_BTI_C = 0xD503245F  # a landing pad, which does nothing but allow the call


def barriers(code: bytes) -> list[str]:
    """The barriers of a function, from its first instruction to its return.

    Raises:
        ValueError: It has another instruction, so that what it executes cannot be told this way.
    """
    found = []
    for at in range(0, len(code) - 3, 4):
        word = int.from_bytes(code[at : at + 4], "little")
        if word == RET:
            return found
        if word in (_NOP, _BTI_C):
            continue
        name = _BARRIERS.get(word & ~(0xF << 8))
        if name is None:
            raise ValueError(f"{word:#010x} at {at:#x}")
        found.append(f"{name} {_OPTIONS.get(word >> 8 & 0xF, word >> 8 & 0xF)}")
    raise ValueError("no return")


def objdump() -> str | None:
    """A disassembler of AArch64 on this machine: binutils' own, or that of binutils-aarch64-linux-gnu."""
    return shutil.which("aarch64-linux-gnu-objdump") or shutil.which("llvm-objdump")


def disassembled(program: str, library: Path, function: str) -> list[str]:
    """The instructions of a function of a library, as a disassembler prints them (``dmb ish``); no padding."""
    done = subprocess.run(
        [program, "-d", "--no-show-raw-insn", str(library)], capture_output=True, text=True, timeout=60, check=True
    )
    match = re.search(rf"<{function}(?:@@\w[\w.]*)?>:\n((?:.+\n?)+)", done.stdout)
    if match is None:
        raise ValueError(f"{library} has no {function}")
    lines = (line.partition(":")[2].split() for line in match[1].splitlines())
    return [" ".join(words) for words in lines if words and words != ["nop"]]
