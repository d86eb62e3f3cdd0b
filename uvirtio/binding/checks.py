"""Checks of the environment, shared by plan and doctor: modules, drivers, permissions. Read only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uvirtio.host import modules, sysfs
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


def driver_state(driver: str, bus: str, roots: Roots) -> Literal["loaded", "loadable", "missing", "unknown"]:
    """Whether a driver is registered with its bus, could be loaded or is missing; perhaps only modprobe knows."""
    if sysfs.is_dir(sysfs.bus(bus, roots) / "drivers" / driver):
        return "loaded"
    found = modules.presence(driver, roots)
    return "loadable" if found == "installed" else found


def writable(path: Path) -> bool:
    """Whether this process may write the file; False on a read-only file system, even for root."""
    try:
        return os.access(path, os.W_OK)
    except (OSError, ValueError):
        return False
