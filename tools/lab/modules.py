"""Kernel modules that Debian does not build: made from its source and header packages, on demand, and kept.

They are compiled by the compiler of the kernel's own suite, with that suite's tools, in a folder that is
entered by chroot: nothing is installed, and no privilege is needed beside user namespaces. What comes out is
a module tree like the kernel's own, with ours below ``updates``, where modprobe prefers them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lab import LabError, cache, debian, kernels
from lab.kernels import Kernel
from lab.process import run


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to make one set of modules: which files of the kernel's tree, which Makefiles, which options."""

    sources: tuple[str, ...]
    makefiles: dict[str, str]
    """By folder of the build."""
    options: tuple[str, ...] = ()
    """Kernel options that the code shall see as switched on, though the kernel was built without them."""
    prepare: Callable[[Path], None] | None = None


def _span_iterator(tree: Path) -> None:
    """The half of lib/interval_tree.c that the kernel left out, as a file for iommufd to take in."""
    text = (tree / "lib/interval_tree.c").read_text()
    begin, end = text.index("#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER"), text.rindex("#endif")
    head = "#include <linux/interval_tree.h>\n#include <linux/export.h>\n#include <linux/limits.h>\n"
    (tree / "drivers/iommu/iommufd/span_iter.c").write_text(head + text[begin:end] + "#endif\n")


_RECIPES: dict[tuple[str, str], _Recipe] = {
    ("vdpa", "6.12"): _Recipe(
        sources=(
            "drivers/vhost/vringh.c",
            "drivers/vdpa/virtio_pci/vp_vdpa.c",
            "drivers/vdpa/vdpa_sim/vdpa_sim.c",
            "drivers/vdpa/vdpa_sim/vdpa_sim.h",
            "drivers/vdpa/vdpa_sim/vdpa_sim_blk.c",
            "drivers/vdpa/vdpa_sim/vdpa_sim_net.c",
        ),
        makefiles={
            "": "obj-m := drivers/vhost/ drivers/vdpa/virtio_pci/ drivers/vdpa/vdpa_sim/\n",
            "drivers/vhost": "obj-m := vringh.o\n",
            "drivers/vdpa/virtio_pci": "obj-m := vp_vdpa.o\n",
            "drivers/vdpa/vdpa_sim": "obj-m := vdpa_sim.o vdpa_sim_blk.o vdpa_sim_net.o\n",
        },
    ),
    ("vfio", "6.1"): _Recipe(
        sources=("drivers/vfio/*.c", "drivers/vfio/*.h"),
        makefiles={
            "": "obj-m := drivers/vfio/\n",
            "drivers/vfio": "obj-m := vfio.o\nvfio-y := vfio_main.o iova_bitmap.o container.o\n",
        },
        options=("VFIO_NOIOMMU",),
    ),
    ("vfio", "6.12"): _Recipe(
        sources=(
            "drivers/iommu/*.h",
            "drivers/iommu/iommufd/*.[ch]",
            "drivers/vfio/*.[ch]",
            "drivers/vfio/pci/*.[ch]",
            "lib/interval_tree.c",
        ),
        makefiles={
            "": "obj-m := drivers/iommu/iommufd/ drivers/vfio/ drivers/vfio/pci/\n",
            "drivers/iommu/iommufd": "obj-m := iommufd.o\n"
            "iommufd-y := device.o fault.o hw_pagetable.o io_pagetable.o ioas.o main.o pages.o vfio_compat.o"
            " iova_bitmap.o span_iter.o\n",
            "drivers/vfio": "obj-m := vfio.o vfio_iommu_type1.o\n"
            "vfio-y := vfio_main.o device_cdev.o group.o iommufd.o container.o virqfd.o\n",
            "drivers/vfio/pci": "obj-m := vfio-pci-core.o vfio-pci.o\n"
            "vfio-pci-core-y := vfio_pci_core.o vfio_pci_intrs.o vfio_pci_rdwr.o vfio_pci_config.o\n"
            "vfio-pci-y := vfio_pci.o vfio_pci_igd.o\n",
        },
        options=(
            "IOMMUFD",
            "IOMMUFD_DRIVER",
            "VFIO_DEVICE_CDEV",
            "VFIO_NOIOMMU",
            "INTERVAL_TREE_SPAN_ITER",
        ),
        prepare=_span_iterator,
    ),
}
"""By the name that machines.toml uses, and the kernel series.

``vdpa``: vp_vdpa, vdpa_sim, vdpa_sim_blk and vdpa_sim_net with what they need. ``vfio``: VFIO with the no-IOMMU
mode, and in 6.12 with iommufd and a character device for each function.
"""

_COMPILERS = {"6.1": "12", "6.12": "14"}
_TOOLS = ("make", "dash", "coreutils", "sed", "grep", "mawk", "findutils", "base-files")
# What the header package would have installed beside it, and a build does not run.
_UNUSED = re.compile(
    r"linux-image-.*|linux-base|initramfs-tools.*|dracut.*|systemd|libsystemd-shared|udev|klibc-utils|libklibc|"
    r"cpio|kmod|logsave|mount|pahole|lib(a|l|t|hwa|ub)san\d+"
)
_SOURCES = ("drivers/vfio", "drivers/vdpa", "drivers/vhost", "drivers/iommu", "lib/interval_tree.c")


def add(kernel: Kernel, names: tuple[str, ...]) -> Kernel:
    """``kernel`` with the sets of modules ``names`` beside its own; built on first use."""
    if not names:
        return kernel
    series = ".".join(kernel.version.split(".")[:2])
    for name in names:
        if (name, series) not in _RECIPES:
            raise LabError(f"machines.toml: there is no way to build the modules {name!r} for {series}")
    recipes = {name: _RECIPES[name, series] for name in names}
    parts = [(recipe.sources, recipe.makefiles, recipe.options) for recipe in recipes.values()]
    mark = hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
    target = cache.root() / "modules" / f"{kernel.version}-{'-'.join(names)}-{mark}"
    where = cache.build_once(target, lambda work: _tree(kernel, series, recipes, work))
    return replace(kernel, modules=where / "usr/lib/modules")


def _tree(kernel: Kernel, series: str, recipes: dict[str, _Recipe], work: Path) -> None:
    """The kernel's module tree (hard links) with the built modules in ``updates``, and its modules.dep."""
    chroot = cache.build_once(
        cache.root() / "modules" / f"build-{kernel.version}", lambda folder: _build_root(kernel, series, folder)
    )
    own = work / "usr/lib/modules" / kernel.version
    shutil.copytree(kernel.modules / kernel.version, own, copy_function=_link, symlinks=True)
    for listing in own.glob("modules.*"):
        if not listing.name.startswith(("modules.builtin", "modules.order")):
            listing.unlink()  # depmod writes them again, and the links lead to the kernel's own
    (own / "updates").mkdir()
    for name, recipe in recipes.items():
        print(f"lab: building the modules {name} for {kernel.version}", flush=True)
        build = work / "build"
        _build(kernel, series, chroot, recipe, build)
        for module in build.rglob("*.ko"):
            shutil.copy(module, own / "updates" / module.name)
        shutil.rmtree(build)
    (work / "lib").symlink_to("usr/lib")
    run([kernels.sbin("depmod"), "-b", str(work), kernel.version])


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _build(kernel: Kernel, series: str, chroot: Path, recipe: _Recipe, build: Path) -> None:
    build.mkdir()
    source = chroot / "usr/src/linux"
    for pattern in recipe.sources:
        found = sorted(source.glob(pattern))
        if not found:
            raise LabError(f"the source of {kernel.version} has no {pattern}")
        for path in found:
            (build / path.relative_to(source).parent).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, build / path.relative_to(source))
    if recipe.prepare is not None:
        recipe.prepare(build)
    for folder, text in recipe.makefiles.items():
        (build / folder / "Makefile").write_text(text)
    flags = " ".join(f"-DCONFIG_{option}=1" for option in recipe.options)
    compiler = f"x86_64-linux-gnu-gcc-{_COMPILERS[series]}"
    make = ["make", "-C", f"/usr/src/linux-headers-{kernel.version}", "M=/mnt", f"KCFLAGS={flags}"]
    make += [f"CC={compiler}", "CONFIG_DEBUG_INFO_BTF_MODULES=", f"-j{os.cpu_count() or 1}", "modules"]
    _inside(chroot, build, make)


def _inside(chroot: Path, build: Path, command: list[str]) -> None:
    """Run ``command`` in ``chroot``, with ``build`` at /mnt; the mounts go with its namespace."""
    script = (
        'mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc" && mount --bind "$2" "$1/mnt" || exit 1\n'
        'root=$1; shift 2; exec chroot "$root" "$@"'
    )
    namespace = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    environment = {"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "LC_ALL": "C", "HOME": "/mnt"}
    done = subprocess.run(
        [*namespace, "sh", "-c", script, "sh", str(chroot), str(build), *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise LabError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-4000:].strip()}")


def _build_root(kernel: Kernel, series: str, work: Path) -> None:
    """A folder with the headers of ``kernel``, its compiler, and the parts of its source that recipes name."""
    suite, headers = kernels.SUITES[series], f"linux-headers-{kernel.version}"
    print(f"lab: fetching compiler, headers and source of {kernel.version} (once; 250 MB)", flush=True)
    for name in ("dev", "proc", "mnt", "tmp"):
        (work / name).mkdir()
    with debian.updated_apt(suite, work) as apt:
        version = apt.version(headers)
        needed = apt.needed(headers, f"gcc-{_COMPILERS[series]}", *_TOOLS)
        wanted = [package for package in needed if not _UNUSED.fullmatch(package)]
        apt.extract([*wanted, f"linux-source-{series}={version}"], work)
    (work / "usr/bin/awk").unlink(missing_ok=True)
    (work / "usr/bin/awk").symlink_to("mawk")  # an install would have made this link
    archive = work / f"usr/src/linux-source-{series}.tar.xz"
    _extract_source(archive, work / "usr/src/linux")
    archive.unlink()


def _extract_source(archive: Path, target: Path) -> None:
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if member.isreg() and name.startswith(_SOURCES):
                data = tar.extractfile(member)
                assert data is not None
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(data.read())
