"""QEMU of another Debian release: downloaded by apt and unpacked, never installed.

It brings its own C library and firmware. A wrapper under QEMU's name starts it by its own dynamic loader and
tells it where its files lie: to have the wrapper's folder in PATH is to have this QEMU.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from lab import LabError, cache, debian, unpacked
from lab.arches import AARCH64, X86_64, Arch
from lab.debian import Apt
from lab.process import run

# QEMU series, and the Debian release that ships it; and the name for what a suite has today, as in kernels.py.
SUITES = {"10.0": "trixie"}
MOVING = {"newest": "sid"}

X86 = X86_64.qemu
PROGRAMS = {X86: "qemu-system-x86", AARCH64.qemu: "qemu-system-arm"}
"""What is unpacked, and the package that has it."""

# Of all that an installed QEMU depends on: its libraries, its modules and its firmware.
_NEEDED = re.compile(r"lib.*|qemu-system-.*|seabios|ipxe-qemu")
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU, this machine's own or one that was fetched."""

    programs: Path | None = None
    """The folder with PROGRAMS; None: those in PATH."""
    origin: str = ""
    """The suite that it was the newest of, and what there is to know about that."""

    def program(self, arch: Arch) -> str:
        """The program that runs a lab VM of ``arch``: a path, or a name in PATH."""
        return arch.qemu if self.programs is None else str(self.programs / arch.qemu)

    def __str__(self) -> str:
        program = self.program(X86_64)
        said = run([program, "--version"])
        match = re.match(r"QEMU emulator version (\S+)", said)
        if match is None:
            raise LabError(f"{program} says it is {said.splitlines()[:1]}")
        return f"QEMU {match[1]}" + (f" ({self.origin})" if self.origin else "")


def names() -> list[str]:
    """What ``get`` takes."""
    return [*SUITES, *MOVING]


def get(name: str, *, accept_expired: bool = False) -> Qemu:
    """The QEMU ``name``: of SUITES or MOVING, downloaded on first use; "" is this machine's own.

    LabError if there is no such QEMU. ``accept_expired``: also from an index that is too old to be trusted.
    """
    if not name:
        return Qemu()
    if name in MOVING:
        where, origin = debian.newest(
            "qemu", MOVING[name], PROGRAMS[X86], _download, accept_expired=accept_expired
        )
        return Qemu(where / "programs", origin)
    if name not in SUITES:
        raise LabError(f"QEMU {name}: not one of {', '.join(names())}", 2)
    target = cache.root() / "qemu" / name

    def build(work: Path) -> None:
        with debian.updated_apt(SUITES[name], work, accept_expired=accept_expired) as apt:
            _download(apt, work, target)

    programs = cache.build_once(target, build) / "programs"
    for program in PROGRAMS:
        said = run([str(programs / program), "--version"])
        if not said.startswith(f"QEMU emulator version {name}."):
            raise LabError(f"{programs / program} says it is {said.splitlines()[:1]}; remove {target}")
    return Qemu(programs)


def _download(apt: Apt, work: Path, target: Path) -> None:
    """Unpack the QEMU of the suite into ``work``, which will be at ``target``."""
    print(f"lab: fetching QEMU of {apt.suite} (once; 90 MB, kept in {cache.root()})", flush=True)
    apt.extract([name for name in apt.needed(*PROGRAMS.values()) if _NEEDED.fullmatch(name)], work)
    for program in PROGRAMS:
        unpacked.place(work, program, wrapper_text(target, program))


def wrapper_text(root: Path, program: str) -> str:
    """The script that runs ``program`` of the QEMU below ``root``."""
    firmware = [word for folder in _FIRMWARE for word in ("-L", root / folder)]
    setting = f"export QEMU_MODULE_DIR={shlex.quote(str(root / unpacked.LIBRARIES / 'qemu'))}\n"
    return unpacked.script(root, root / "usr/bin" / program, *firmware, setting=setting)
