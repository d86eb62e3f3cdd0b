"""virtio-mmio windows in physical memory, and whether an address is one: ``/proc/iomem`` has the last word.

/dev/mem reaches everything, RAM and other drivers' devices included, so nothing is mapped before it was held
against that list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from uvirtio.errors import ForeignWindow
from uvirtio.host import addresses
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.proc import IoRange, iomem_addresses
from uvirtio.host.roots import Roots

# What only says that firmware or a bus has the addresses, and not that somebody uses them.
_PASSIVE = re.compile(r"reserved|PCI Bus .*|pnp [0-9a-f:]+", re.ASCII | re.IGNORECASE)


def windows_of(line: IoRange) -> list[str]:
    """The virtio-mmio devices that a line of /proc/iomem names; a device tree's line names one twice."""
    words = line.name.split()
    return list(dict.fromkeys(words)) if words and all(map(addresses.is_mmio_platform_name, words)) else []


def check_window(base: int, length: int, roots: Roots, *, address: str, named_only: bool = False) -> list[str]:
    """Make sure that ``length`` bytes at ``base`` are a virtio-mmio window or nobody's, and so is their page.

    Returns the names of the windows in these pages. ``named_only``: nobody's will not do. Raises ForeignWindow,
    PermissionLack.
    """
    start, end = base & -CPU_PAGE, (base + length + CPU_PAGE - 1) & -CPU_PAGE
    there = [region for region in iomem_addresses(roots) if region.overlaps(start, end)]
    names: list[str] = []
    for region in there:
        if windows := windows_of(region):
            names += windows
        elif not (_PASSIVE.fullmatch(region.name) and region.covers(start, end)):
            inside = region.overlaps(base, base + length)
            raise ForeignWindow(
                f"{address} is not mapped: " + ("it is" if inside else "its page has") + " somebody else's memory",
                seen=str(region),
                expected="a virtio-mmio window",
                remedy="uvirtio list shows the windows of this machine; compare the address with /proc/iomem",
            )
    _check_names(base, length, there, address, named_only)
    return list(dict.fromkeys(names))


def _check_names(base: int, length: int, there: Sequence[IoRange], address: str, named_only: bool) -> None:
    windows = [region for region in there if windows_of(region) and region.overlaps(base, base + length)]
    for region in windows:
        if base < region.start or region.end < base + length:
            raise ForeignWindow(
                f"{address} is not mapped: it is no whole window",
                seen=f"{base:#x}-{base + length - 1:#x} across {region}",
                expected="the beginning of a window",
                remedy=f"write mmio:{region.start:#x}",
            )
    if named_only and not windows:
        # On x86 a read of nothing gives ones; elsewhere it is a bus error, which ends this process.
        raise ForeignWindow(
            f"{address} is not mapped: the kernel knows of no window there",
            seen="no line of a virtio-mmio device in /proc/iomem",
            expected="one: on this CPU a read of nothing is fatal",
            remedy="uvirtio list shows the windows of this machine",
        )
