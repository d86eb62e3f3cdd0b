"""QEMU of another Debian release: downloaded by apt and unpacked, never installed.

It brings its own C library and firmware. A wrapper under QEMU's name starts it by its own dynamic loader and
tells it where its files lie: to have the wrapper's folder in PATH is to have this QEMU.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from lab import LabError, cache, kernels

# QEMU series, and the Debian release that ships it.
SUITES = {"10.0": "trixie"}

X86 = "qemu-system-x86_64"
PROGRAMS = {X86: "qemu-system-x86", "qemu-system-aarch64": "qemu-system-arm"}
"""What is unpacked, and the package that has it."""

# Of all that an installed QEMU depends on: its libraries, its modules and its firmware.
_NEEDED = re.compile(r"lib.*|qemu-system-.*|seabios|ipxe-qemu")
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARIES}/ld-linux-x86-64.so.2"
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")

_WRAPPER = """\
#!/bin/sh
export QEMU_MODULE_DIR={root}/{libraries}/qemu
exec {root}/loaders/{program} --argv0 "$0" --library-path {root}/{libraries} \\
    {root}/usr/bin/{program} {firmware} "$@"
"""


def get(series: str) -> Path:
    """The folder with the PROGRAMS of this QEMU; downloaded on first use. LabError if there is no such series."""
    if series not in SUITES:
        raise LabError(f"QEMU {series}: not one of {', '.join(SUITES)}", 2)
    target = cache.root() / "qemu" / series
    programs = cache.build_once(target, lambda work: _download(series, work, target)) / "programs"
    for name in PROGRAMS:
        said = kernels.run([str(programs / name), "--version"])
        if not said.startswith(f"QEMU emulator version {series}."):
            raise LabError(f"{programs / name} says it is {said.splitlines()[:1]}; remove {target}")
    return programs


def system_x86(series: str) -> str:
    """The program of this series that runs a lab VM; of no series, this machine's own."""
    return str(get(series) / X86) if series else X86


def _download(series: str, work: Path, target: Path) -> None:
    """Unpack this QEMU into ``work``, which will be at ``target``."""
    print(f"lab: fetching QEMU {series} (once; 90 MB, kept in {cache.root()})", flush=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (work / "usr" / name).mkdir(parents=True)
        (work / name).symlink_to(f"usr/{name}")
    with kernels.updated_apt(SUITES[series], work) as apt:
        apt.extract([name for name in apt.needed(*PROGRAMS.values()) if _NEEDED.fullmatch(name)], work)
    for name in ("loaders", "programs"):
        (work / name).mkdir()
    for program in PROGRAMS:
        # The kernel names a process by the file that it started, and that is the loader.
        (work / "loaders" / program).symlink_to(f"../{_LOADER}")
        wrapper = work / "programs" / program
        wrapper.write_text(wrapper_text(target, program))
        wrapper.chmod(0o755)


def wrapper_text(root: Path, program: str) -> str:
    """The script that runs ``program`` of the QEMU below ``root``."""
    quoted = shlex.quote(str(root))
    firmware = " ".join(f"-L {quoted}/{folder}" for folder in _FIRMWARE)
    return _WRAPPER.format(root=quoted, libraries=_LIBRARIES, program=program, firmware=firmware)
