"""Kernels: Debian's packages of them, unpacked and never installed (debian.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from lab import LabError, cache
from lab.arches import AARCH64, ALL, X86_64, Arch
from lab.debian import Apt, newest, updated_apt
from lab.process import run

# Kernel series, and the Debian release that ships it.
SUITES = {"6.1": "bookworm", "6.12": "trixie"}
# Names for what a suite has today, which is asked each time: for tools/test --all and for trying, not for the
# plain run, which shall not change from day to day. sid has releases, experimental has candidates of the next one.
MOVING = {"newest": "sid", "experimental": "experimental"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package."""

    version: str
    image: Path
    modules: Path  # the directory that has <version>/modules.dep; goes on /usr/lib/modules in the guest
    origin: str = ""
    """The suite that it was the newest of, and what there is to know about that."""

    def __str__(self) -> str:
        return f"Linux {self.version}" + (f" ({self.origin})" if self.origin else "")


def names(arch: Arch = X86_64) -> list[str]:
    """The kernels that can be downloaded for ``arch``: a series, and perhaps a flavour (``6.12-16k``)."""
    every = [f"{series}{flavour}" for series in [*SUITES, *MOVING] for flavour in arch.flavours]
    return [name for name in every if not name.startswith("6.1-")]  # bookworm has one flavour


def get(name: str, arch: Arch = X86_64, *, accept_expired: bool = False) -> Kernel:
    """The kernel ``name``: one of names(), downloaded on first use, or the path of an unpacked package.

    ``accept_expired``: also from an index that is too old to be trusted.
    """
    series, dash, rest = name.partition("-")
    flavour = f"{dash}{rest}"
    meta = f"{arch.image}{flavour}"
    if name in names(arch) and series in SUITES:
        suite = SUITES[series]

        def build(work: Path) -> None:
            with updated_apt(suite, work, arch, accept_expired=accept_expired) as apt:
                _download(apt, work, meta)

        place = name if arch is X86_64 else f"{arch.name}-{name}"
        return unpacked(cache.build_once(cache.root() / "kernels" / place, build))
    if name in names(arch):
        suite = MOVING[series]
        where, origin = newest(
            "kernels" if arch is X86_64 else f"kernels/{arch.name}{flavour}",
            suite,
            meta,
            lambda apt, work, _: _download(apt, work, meta),
            arch,
            accept_expired=accept_expired,
        )
        return replace(unpacked(where), origin=origin)
    if "/" in name or Path(name).is_dir():
        return unpacked(Path(name).resolve())
    known = ", ".join(names(arch))
    raise LabError(f"--kernel {name}: neither one of {known} nor an unpacked package", 2)


def is_here(name: str) -> bool:
    """Whether ``get`` takes the x86 kernel ``name`` from this machine alone, without a mirror."""
    series = name.partition("-")[0]
    return name not in names() or (series in SUITES and (cache.root() / "kernels" / name).is_dir())


def fits(name: str, arch: Arch) -> bool:
    """Whether the kernel ``name`` may be one for ``arch``; of an unpacked package the image tells."""
    if not Path(name).is_dir():
        return name in names(arch) or not any(name in names(other) for other in ALL.values())
    with unpacked(Path(name)).image.open("rb") as image:
        head = image.read(64)
    # Linux, Documentation/arch/arm64/booting.rst: the magic number in the header of the image.
    return (head[56:60] == b"ARM\x64") == (arch is AARCH64)


def unpacked(where: Path) -> Kernel:
    """The kernel in an unpacked package; LabError if it is not one, or has no modules.dep."""
    images = sorted((where / "boot").glob("vmlinuz-*"))
    if not images:
        raise LabError(f"{where} has no boot/vmlinuz-*: not an unpacked kernel package", 2)
    version = images[-1].name.removeprefix("vmlinuz-")
    for modules in (where / "usr/lib/modules", where / "lib/modules"):
        if (modules / version / "modules.dep").is_file():
            return Kernel(version, images[-1], modules)
        if (modules / version).is_dir():
            raise LabError(f"{modules / version} has no modules.dep; run: depmod -b {where} {version}", 2)
    raise LabError(f"{where} has no modules for {version}", 2)


def _download(apt: Apt, work: Path, meta: str) -> None:
    """Download the kernel of the suite, on which ``meta`` depends, and unpack it into ``work``."""
    what = "the kernel" if meta == X86_64.image else meta
    print(f"lab: fetching {what} of {apt.suite} (once; kept in {cache.root()})", flush=True)
    image = _image_package(apt.run("apt-cache", "depends", "--important", meta), meta)
    for package in (image, *_parts(apt.run("apt-cache", "depends", "--important", image))):
        apt.unpack(package, work)
    _settle(work)


def _image_package(depends: str, meta: str = X86_64.image) -> str:
    """The package with the image, from what ``apt-cache depends`` says about the meta package."""
    match = re.search(r"^\s*Depends: (linux-image-\d\S*)$", depends, re.MULTILINE)
    if match is None:
        raise LabError(f"{meta} depends on no linux-image package: {depends!r}")
    return match.group(1)


def _parts(depends: str) -> list[str]:
    """The packages that newer releases split the image into, from what ``apt-cache depends`` says about it."""
    return re.findall(r"^\s*Depends: (linux-(?:base|binary|modules)-\d\S*)$", depends, re.MULTILINE)


def _settle(work: Path) -> None:
    """Bring the layouts of packages to one, and write modules.dep as an install would.

    Modules lie in lib/modules or in usr/lib/modules, the image in boot or beside its modules. Device trees of real
    boards are of no use here.
    """
    for trees in (work / "usr/lib").glob("linux-image-*"):
        run(["rm", "-rf", str(trees)])
    new = work / "usr/lib/modules"
    if not new.is_dir():
        new.parent.mkdir(parents=True, exist_ok=True)
        (work / "lib/modules").rename(new)
    if (work / "lib").is_dir() and not any((work / "lib").iterdir()):
        (work / "lib").rmdir()
    if not (work / "lib").exists():
        (work / "lib").symlink_to("usr/lib")  # depmod -b looks below lib/
    for version in new.iterdir():
        run([sbin("depmod"), "-b", str(work), version.name])
        for link in ("build", "source"):  # they point to headers that are not there
            (version / link).unlink(missing_ok=True)
        image = version / "vmlinuz"  # where newer releases have it
        if image.exists():
            (work / "boot").mkdir(exist_ok=True)
            image.rename(work / "boot" / f"vmlinuz-{version.name}")


def sbin(name: str) -> str:
    """The path of a program that may lie in sbin, outside an ordinary user's PATH."""
    for folder in ("/usr/sbin", "/sbin", "/usr/bin", "/bin"):
        if Path(folder, name).exists():
            return f"{folder}/{name}"
    raise LabError(f"{name} is missing; as root: apt-get install kmod")
