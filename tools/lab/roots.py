"""The guest's own programs, where this machine's do not run in it: a root of another architecture.

Downloaded by apt and unpacked below the cache; nothing of it is ever installed or executed here. It is of this
machine's own release, so its Python is the one that the environment was made with, and takes the same compiled
files.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lab import LabError, cache, debian, setup
from lab.arches import X86_64, Arch
from lab.process import run

# All that the guest's half of the lab and the tests run; apt adds what these depend on.
_PACKAGES = (
    "bash",
    "busybox-static",
    "coreutils",
    "dash",
    "findutils",
    "grep",
    "kmod",
    "libatomic1",
    "libc-bin",
    "mount",
    "pciutils",
    "python3",
    "sed",
    "util-linux",
    "util-linux-extra",
)
_FIRMWARE = "qemu-efi-aarch64"
_PASSWD = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
_GROUP = "root:x:0:\nkvm:x:105:\nnogroup:x:65534:\n"


def get(arch: Arch) -> Path:
    """The root with the programs of ``arch``; this machine's own for its own. Downloaded on first use."""
    if arch is X86_64:
        return Path("/")
    suite = debian.machine_suite()
    root = cache.build_once(
        cache.root() / "roots" / f"{arch.name}-{suite}", lambda work: _download(arch, suite, work)
    )
    wanted = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not (root / "usr/bin" / wanted).is_file():
        raise LabError(f"{root} has no {wanted}: remove it, and it is fetched again")
    return root


def firmware(arch: Arch) -> Path:
    """UEFI for QEMU's virt machine, which gives the kernel ACPI tables; downloaded on first use."""
    suite = debian.machine_suite()

    def download(work: Path) -> None:
        print(f"lab: fetching the firmware for {arch.name} (once; 3 MB)", flush=True)
        debian.unpack(_FIRMWARE, suite, work)
        for image in (work / "usr/share").rglob("*.fd"):
            if image.name != "QEMU_EFI.fd":  # 64 MiB each, of zeroes
                image.unlink()

    root = cache.build_once(cache.root() / "firmware" / f"{arch.name}-{suite}", download)
    image = root / "usr/share/qemu-efi-aarch64/QEMU_EFI.fd"
    if not image.is_file():
        raise LabError(f"{_FIRMWARE} of {suite} has no QEMU_EFI.fd")
    return image


def _download(arch: Arch, suite: str, work: Path) -> None:
    print(f"lab: fetching a root of {arch.name} (once; 27 MB, kept in {cache.root()})", flush=True)
    with debian.updated_apt(suite, work, arch) as apt:
        apt.extract(apt.needed(*_PACKAGES), work)
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "etc"):
        (work / name).mkdir(exist_ok=True)
    # What installing would have written.
    (work / "etc/passwd").write_text(_PASSWD)
    (work / "etc/group").write_text(_GROUP)
    for folder in ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/info"):
        run(["rm", "-rf", str(work / folder)])
    _compile(work)


def _compile(root: Path) -> None:
    """Compile the root's Python modules as installing would have done: with this machine's, which is the same."""
    for folder in sorted((root / "usr/lib").glob("python3*")):
        words = [setup.PYTHON, "-m", "compileall", "-qq", "-s", str(root), "-p", "/", str(folder)]
        subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
