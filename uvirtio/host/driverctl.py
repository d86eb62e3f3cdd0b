"""What driverctl(8) has saved: a file a device in ``/etc/driverctl.d`` with the driver that it is to have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from uvirtio.host import sysfs
from uvirtio.host.roots import Roots


class Saved(NamedTuple):
    """One saved override."""

    path: Path
    driver: str
    """The driver's name; ``none`` keeps the device without a driver."""


def saved(bus: str, name: str, roots: Roots) -> Saved | None:
    """The override that driverctl has saved for a device; None where it has none.

    Args:
        bus: The device's bus: ``pci``, ``platform``, ``vdpa``.
        name: Its name on that bus.
        roots: Where ``/etc`` is.
    """
    path = roots.etc / "driverctl.d" / f"{bus}-{name}"
    match = re.match(r"[\w.+-]{1,64}", sysfs.read(path, 4096) or "", re.ASCII)
    return None if match is None else Saved(path, match[0])


def unset(bus: str, name: str) -> str:
    """The command that ends driverctl's override: driver_override is cleared, and the kernel's driver probed."""
    return f"driverctl unset-override {name}" if bus == "pci" else f"driverctl --bus {bus} unset-override {name}"
