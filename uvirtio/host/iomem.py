"""/proc/iomem: what this machine's physical addresses belong to.

/dev/mem reaches everything, RAM and other drivers' devices included, so nothing is mapped before it was held
against this list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from uvirtio.errors import ForeignWindow, PermissionLack
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots

_LINE = re.compile(r"( *)([0-9a-f]+)-([0-9a-f]+) : (.*)", re.ASCII)
_VIRTIO_MMIO = re.compile(
    r"LNRO0005:[0-9a-f]{2,8}|[0-9a-f]{1,16}\.virtio_mmio|virtio-mmio\.[0-9]{1,10}", re.ASCII | re.IGNORECASE
)
# What only says that firmware or a bus has the addresses, and not that somebody uses them.
_PASSIVE = re.compile(r"reserved|PCI Bus .*|pnp [0-9a-f:]+", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Region:
    """One line: the addresses ``start`` to ``end - 1``, and whose they are."""

    start: int
    end: int
    name: str
    depth: int

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end - 1:#x} : {self.name}"

    def overlaps(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end

    @property
    def windows(self) -> list[str]:
        """The virtio-mmio devices that the line names; a device tree's line names one twice."""
        words = self.name.split()
        return list(dict.fromkeys(words)) if words and all(map(_VIRTIO_MMIO.fullmatch, words)) else []


def regions(roots: Roots) -> list[Region]:
    """All lines. Raises PermissionLack where the addresses are hidden, as they are from ordinary users."""
    path = roots.proc / "iomem"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise PermissionLack(
            f"{path} cannot be read, so nothing says what may be mapped",
            seen=error.strerror,
            expected="the list of this machine's addresses",
            remedy="run as root",
        ) from error
    matches = [match for line in text.splitlines() if (match := _LINE.fullmatch(line))]
    found = [
        Region(int(match[2], 16), int(match[3], 16) + 1, match[4].strip(), len(match[1]) // 2) for match in matches
    ]
    if all(region.end <= 1 for region in found):
        raise PermissionLack(
            f"{path} hides its addresses, so nothing says what may be mapped",
            seen="zeros" if found else "no lines",
            expected="addresses, which the kernel shows to CAP_SYS_ADMIN only",
            remedy="run as root",
        )
    return found


def check_window(base: int, length: int, roots: Roots, *, address: str, named_only: bool = False) -> list[str]:
    """Make sure that ``length`` bytes at ``base`` are a virtio-mmio window or nobody's, and so is their page.

    Returns the names of the windows in these pages. ``named_only``: nobody's will not do. Raises ForeignWindow,
    PermissionLack.
    """
    start, end = base & -CPU_PAGE, (base + length + CPU_PAGE - 1) & -CPU_PAGE
    there = [region for region in regions(roots) if region.overlaps(start, end)]
    names: list[str] = []
    for region in there:
        if region.windows:
            names += region.windows
        elif not (_PASSIVE.fullmatch(region.name) and region.start <= start and end <= region.end):
            inside = region.overlaps(base, base + length)
            raise ForeignWindow(
                f"{address} is not mapped: " + ("it is" if inside else "its page has") + " somebody else's memory",
                seen=str(region),
                expected="a virtio-mmio window",
                remedy="uvirtio list shows the windows of this machine; compare the address with /proc/iomem",
            )
    _check_names(base, length, there, address, named_only)
    return list(dict.fromkeys(names))


def _check_names(base: int, length: int, there: Sequence[Region], address: str, named_only: bool) -> None:
    windows = [region for region in there if region.windows and region.overlaps(base, base + length)]
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
