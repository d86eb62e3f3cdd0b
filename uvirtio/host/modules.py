"""Whether a kernel module can be loaded: by the indexes of modules, modprobe, and the kernel's configuration.

``/lib/modules/RELEASE`` is not everywhere: NixOS and Guix keep it elsewhere and tell modprobe so, containers and
small images have none. So where no index is found, that says nothing, and modprobe is asked.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import Final, Literal

from uvirtio.host import sysfs
from uvirtio.host.proc import kernel_release
from uvirtio.host.roots import Roots

Presence = Literal["installed", "missing", "unknown"]

_INDEXES = ("modules.dep", "modules.builtin")
_LIMIT = 1 << 24
"""Bytes. An index or a configuration is shorter."""
NOT_FOUND: Final = "not found"
"""What modprobe (kmod's and busybox's) says of a module that is not installed."""
_SBIN = ("/usr/sbin", "/sbin", "/run/current-system/sw/bin", "/run/current-system/profile/sbin")
"""Where modprobe is, also for users whose PATH does not have these."""
_OPTIONS: Final = {
    "vfio-pci": "VFIO_PCI",
    "uio_pci_generic": "UIO_PCI_GENERIC",
    "vhost_vdpa": "VHOST_VDPA",
    "vdpa": "VDPA",
    "iommufd": "IOMMUFD",
}
"""The options of the kernel's configuration that build modules (drivers/vfio/pci/Kconfig ...)."""


def directories(roots: Roots) -> list[Path]:
    """The places where the modules of the running kernel may be; the first one is the usual one."""
    release = kernel_release(roots)
    name = release if release and "/" not in release else "unknown"
    tops = [
        roots.etc.parent / "lib/modules",
        roots.etc.parent / "usr/lib/modules",
        roots.run / "booted-system/kernel-modules/lib/modules",  # NixOS
        roots.run / "current-system/kernel-modules/lib/modules",
        roots.run / "booted-system/kernel/lib/modules",  # Guix System
    ]
    return [top / name for top in tops]


def refcount(module: str, roots: Roots) -> int | None:
    """How many uses keep a loaded module from being removed; None where it is built in, or not loaded."""
    return sysfs.number(roots.sys / "module" / module.replace("-", "_") / "refcnt")


def presence(module: str, roots: Roots) -> Presence:
    """Whether a module of the running kernel is installed, or built in.

    Args:
        module: Its name; ``-`` and ``_`` are the same.
        roots: Where ``/lib/modules``, ``/run`` and ``/proc`` are; below other roots than the real ones modprobe is
            not asked.

    Returns:
        ``unknown`` where there is no index, and no modprobe that answers.
    """
    pattern = re.compile(
        r"(?:^|/)" + re.sub("[-_]", "[-_]", re.escape(module).replace("\\-", "-")) + r"\.ko\b", re.M
    )
    indexed = False
    for directory in directories(roots):
        for name in _INDEXES:
            text = sysfs.read(directory / name, _LIMIT)
            if text is not None:
                indexed = indexed or (name == "modules.dep" and bool(text))
                if pattern.search(text):
                    return "installed"
    if indexed:
        return "missing"
    built = configured(module, roots)
    if built == "y":
        return "installed"
    if roots.live and (answer := _asked(module)) is not None:
        return "installed" if answer else "missing"
    return "missing" if built == "n" else "unknown"


def why_missing(module: str, roots: Roots) -> str:
    """What shows that a module is missing, or that this cannot be known: for errors and checks."""
    every = directories(roots)
    having = [str(directory) for directory in every if sysfs.exists(directory / "modules.dep")]
    if having:
        return f"none in {' or '.join(having)}"
    if configured(module, roots) == "n":
        return f"CONFIG_{_OPTIONS[module]} is not set in {roots.proc / 'config.gz'}"
    if roots.live and modprobe_path() is not None:
        return f"no {every[0] / 'modules.dep'}, and modprobe finds none"
    return f"no {every[0] / 'modules.dep'}"


def remedy(module: str, roots: Roots) -> str:
    """What to do about a module that is missing."""
    if configured(module, roots) == "n":
        return f"boot a kernel that has CONFIG_{_OPTIONS[module]}"
    return f"install the kernel's module package that has {module}"


def configured(module: str, roots: Roots) -> Literal["y", "m", "n"] | None:
    """How the running kernel was configured, by ``/proc/config.gz``.

    Returns:
        ``y`` built in, ``m`` a module, ``n`` not built; None where there is no such file, or nothing is known
        about this module.
    """
    option = _OPTIONS.get(module)
    if option is None:
        return None
    try:
        with open(roots.proc / "config.gz", "rb", opener=sysfs.unwaiting) as file:
            packed = file.read(_LIMIT)
        text = zlib.decompressobj(wbits=31).decompress(packed, _LIMIT).decode("ascii", "replace")  # 31: gzip
    except (OSError, zlib.error):
        return None
    if "CONFIG_MODULES" not in text:
        return None  # cut short, or no configuration
    match = re.search(rf"^CONFIG_{option}=([ym])$", text, re.M)
    if match is None:
        return "n"
    return "y" if match[1] == "y" else "m"


def modprobe_path() -> str | None:
    """The path of modprobe; None: it is not installed."""
    import shutil  # here: list needs none

    return shutil.which("modprobe", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN)))


def _asked(module: str) -> bool | None:
    """Whether modprobe finds the module; None where it does not say. Nothing is loaded."""
    import subprocess

    path = modprobe_path()
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "--dry-run", "--", module],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return True
    return False if NOT_FOUND in done.stderr else None  # busybox's has no --dry-run
