"""What tools/bench compares vhost-user with: a program on libblkio, and a back end that both drive.

Both are of another Debian release, because Debian 12 has no libblkio: downloaded by apt and unpacked, never
installed. They run on the C library of that release, by its own dynamic loader. The program is compiled here, from
tools/benches/blkio_reads.c.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from lab import CHECKOUT, LabError, cache, debian, unpacked
from lab.process import run

SUITE = "trixie"
READS = "blkio_reads"
DAEMON = "qemu-storage-daemon"
_PACKAGES = ("libblkio-dev", "qemu-utils")
_SOURCE = CHECKOUT / f"tools/benches/{READS}.c"


def get() -> Path:
    """The folder with READS and DAEMON; downloaded on first use, and compiled again when the source changes.

    LabError where that fails.
    """
    if platform.machine() != "x86_64":
        raise LabError(f"libblkio is fetched for x86_64 alone, and this machine is {platform.machine()}")
    root = cache.build_once(_root(), _download)
    return cache.build_once(_programs(), lambda work: _compile(root, work))


def found() -> Path | None:
    """The folder that ``get`` has made; None: it has not, or from another source."""
    return _programs() if _programs().is_dir() else None


def _root() -> Path:
    return cache.root() / "blkio" / SUITE


def _programs() -> Path:
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    return cache.root() / "blkio" / f"{SUITE}-programs-{digest}"


def _download(work: Path) -> None:
    print(f"lab: fetching libblkio and {DAEMON} of {SUITE} (once; 12 MB, kept in {cache.root()})", flush=True)
    with debian.updated_apt(SUITE, work) as apt:
        apt.extract(apt.needed(*_PACKAGES), work)


def _compile(root: Path, work: Path) -> None:
    library = root / unpacked.LIBRARIES / "libblkio.so"
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{root}/usr/include"]
    # What libblkio itself needs is of a newer C library than the one here.
    command += [str(_SOURCE), str(library), "-Wl,--allow-shlib-undefined", "-o", str(work / f"{READS}.bin")]
    try:
        run(command, timeout=120)
    except FileNotFoundError as error:
        raise LabError("no gcc on this machine; as root: apt-get install gcc libc6-dev") from error
    for name, program in ((READS, _programs() / f"{READS}.bin"), (DAEMON, root / "usr/bin" / DAEMON)):
        unpacked.write(work / name, unpacked.script(root, program, loader=root / unpacked.LOADER))
