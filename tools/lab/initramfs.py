"""The initramfs: busybox, an /init, and the few modules without which the host's root can't be mounted.

Written as a "newc" cpio archive (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
No root is needed: the archive says who owns what.
"""

from __future__ import annotations

import lzma
import os
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab import LabError
from lab.kernels import Kernel

# What it takes to see the host's root; everything else the guest loads itself, from there.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


class Cpio:
    """A newc archive in memory; everything in it belongs to root."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._inode = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        """A directory; its parents have to come first."""
        self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        """A regular file."""
        self._entry(name, stat.S_IFREG | mode, data, mtime)

    def node(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> bytes:
        """The archive with its trailer."""
        self._entry("TRAILER!!!", 0)
        return bytes(self._out)

    def _entry(
        self, name: str, mode: int, data: bytes = b"", mtime: int = 0, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, mtime, len(data), 0, 0, *device, len(path), 0)
        self._out += b"070701" + b"".join(b"%08x" % field for field in fields) + path
        self._pad()
        self._out += data
        self._pad()

    def _pad(self) -> None:
        self._out += bytes(-len(self._out) % 4)


def build(kernel: Kernel, init: bytes, *, root: Path = Path("/"), first: tuple[str, ...] = ()) -> bytes:
    """The initramfs for ``kernel``, with ``init`` as /init.

    ``root`` has the busybox that goes in; ``first`` are modules that are loaded before all others.
    """
    archive = Cpio()
    for name in ("bin", "dev", "proc", "sys", "lab", "lab/modules"):
        archive.directory(name)
    archive.node("dev/console", 5, 1)
    busybox = static_busybox(root)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755, int(busybox.stat().st_mtime))
    archive.file("init", init, 0o755)
    for number, path in enumerate(load_order(kernel, (*first, *MODULES))):
        name = path.name.split(".ko")[0]
        archive.file(f"lab/modules/{number:02}-{name}.ko", plain_module(path))
    return archive.finish()


def load_order(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """The files of the modules ``names`` and of all they need, each after what it needs (modules.dep(5)).

    Built-in modules are left out; LabError for one that this kernel does not have.
    """
    top = kernel.modules / kernel.version
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in (top / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        by_name[_module_name(path)] = path
    built_in = {_module_name(line) for line in (top / "modules.builtin").read_text().splitlines()}
    order: list[str] = []

    def add(path: str) -> None:
        # A line of modules.dep has all that is needed, the deepest last.
        for other in [*reversed(needs[path]), path]:
            if other not in order:
                order.append(other)

    for name in names:
        if name in by_name:
            add(by_name[name])
        elif name not in built_in:
            raise LabError(f"kernel {kernel.version} has no module {name}")
    return [top / path for path in order]


def _module_name(path: str) -> str:
    return os.path.basename(path).split(".ko")[0].replace("-", "_")  # noqa: PTH119 - text, not a file


def plain_module(path: Path) -> bytes:
    """A module as insmod of busybox takes it: uncompressed."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return _decompress("zstd", data)
    if path.suffix == ".gz":
        return _decompress("gzip", data)
    return data


def _decompress(program: str, data: bytes) -> bytes:
    try:
        done = subprocess.run([program, "-dc"], input=data, capture_output=True, check=True, timeout=60)
    except FileNotFoundError:
        raise LabError(f"this kernel's modules need {program}; as root: apt-get install {program}") from None
    return done.stdout


def static_busybox(root: Path = Path("/")) -> Path:
    """The busybox of ``root`` that runs without any library; LabError if there is none."""
    for path in (root / "usr/bin/busybox", root / "bin/busybox"):
        if path.is_file() and not _needs_loader(path):
            return path
    raise LabError("a static busybox is missing; as root: apt-get install busybox-static")


def _needs_loader(path: Path) -> bool:
    """Whether the ELF file (64-bit, little endian) asks for a dynamic loader: has a PT_INTERP segment."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return True
    table = int.from_bytes(data[32:40], "little")
    size = int.from_bytes(data[54:56], "little")
    count = int.from_bytes(data[56:58], "little")
    kinds = (int.from_bytes(data[table + i * size : table + i * size + 4], "little") for i in range(count))
    return 3 in kinds
