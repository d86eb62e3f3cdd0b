"""Checks of the environment, shared by plan and doctor: modules, drivers, permissions. Read only."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uvirtio.host import sysfs
from uvirtio.host.proc import kernel_release
from uvirtio.host.roots import Roots

Outcome = Literal["pass", "fail", "warn", "skip"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; ``remedy`` is empty where there is nothing to do."""

    name: str
    verdict: Outcome
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The check as a member of ``checks`` in the JSON of ``doctor`` and ``plan``."""
        return {"name": self.name, "verdict": self.verdict, "detail": self.detail, "remedy": self.remedy}


def driver_state(driver: str, bus: str, roots: Roots) -> Literal["loaded", "loadable", "missing"]:
    """Whether a driver is registered with its bus, could be loaded by modprobe, or is missing."""
    if (sysfs.bus(bus, roots) / "drivers" / driver).is_dir():
        return "loaded"
    return "loadable" if module_installed(driver, roots) else "missing"


def modules_directory(roots: Roots) -> Path:
    """``/lib/modules/RELEASE``, beside the ``/etc`` of these roots."""
    release = kernel_release(roots)
    return roots.etc.parent / "lib/modules" / (release if release and "/" not in release else "unknown")


def module_installed(module: str, roots: Roots) -> bool:
    """Whether modules.dep or modules.builtin of the running kernel names the module."""
    pattern = re.compile(
        r"(?:^|/)" + re.sub("[-_]", "[-_]", re.escape(module).replace("\\-", "-")) + r"\.ko\b", re.M
    )
    directory = modules_directory(roots)
    for name in ("modules.dep", "modules.builtin"):
        text = sysfs.read(directory / name, 1 << 24)
        if text is not None and pattern.search(text):
            return True
    return False


def writable(path: Path) -> bool:
    """Whether this process may write the file; False on a read-only file system, even for root."""
    try:
        return os.access(path, os.W_OK)
    except (OSError, ValueError):
        return False
