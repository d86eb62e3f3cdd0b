"""A region of memory as the kernel shows it: /proc/iomem, memory blocks, dax devices. Reads only.

Addresses are guest-physical, sizes in bytes. Sources: Documentation/admin-guide/mm/memory-hotplug.rst and
Documentation/ABI/testing/sysfs-bus-dax of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from uvirtio.errors import NotSupported
from uvirtio.host import memory, remedies, sysfs
from uvirtio.host.drivers import KMEM
from uvirtio.host.proc import SOFT_RESERVED, SYSTEM_RAM, IoRange, iomem_addresses, meminfo
from uvirtio.host.roots import Roots

_DAX_NAME = re.compile(r"^dax\d+\.(?P<id>\d+)$")


class PieceState(Enum):
    """The state of a dax device and its memory blocks."""

    ONLINE = "online"
    """Bound to kmem, every memory block online: System RAM."""
    PARTLY = "partly"
    """Bound to kmem, some memory blocks offline."""
    OFFLINE = "offline"
    """Bound to kmem, every memory block offline."""
    IDLE = "idle"
    """Bound to no driver; Linux uses none of it."""
    STUCK = "stuck"
    """Unbound while memory was online: it stays System RAM until the next boot."""
    FOREIGN = "foreign"
    """Bound to another driver, so not ours."""


@dataclass(frozen=True, slots=True)
class DaxRegion:
    """A dax region: memory that Linux does not use by itself, and makes dax devices of."""

    directory: Path
    """Its directory ``dax_region``, below the device of its driver (dax_hmem)."""
    lowest: int
    """The lowest address that it may start at."""
    highest: int
    """The highest address that it may start at; ``lowest`` where the kernel shows the address itself."""
    size: int

    def __str__(self) -> str:
        return f"{self.highest:#x}-{self.highest + self.size - 1:#x} dax region"

    def may_cover(self, start: int, end: int) -> bool:
        """Whether it has every address in ``start`` to ``end - 1``, as far as the kernel tells where it starts."""
        return max(self.lowest, end - self.size) <= min(self.highest, start)


@dataclass(frozen=True, slots=True)
class DaxPiece:
    """One dax device of the region, and the memory blocks in it."""

    name: str
    start: int
    size: int
    driver: str | None
    state: PieceState

    @property
    def used(self) -> bool:
        """Whether its memory may be in use, so that none of it must be unplugged."""
        return self.state is not PieceState.IDLE


class KernelView:
    """One region of guest-physical addresses, as this machine's kernel sees it."""

    def __init__(self, addr: int, size: int, roots: Roots | None = None) -> None:
        """Make the view; nothing is read yet.

        Args:
            addr: The guest-physical address of the region.
            size: Its length, in bytes.
            roots: Where ``/sys`` and ``/proc`` are; None: this machine's.
        """
        self.addr = addr
        self.size = size
        self.roots = roots or Roots()
        self.memory = memory.memory_directory(self.roots)
        self.dax = sysfs.bus("dax", self.roots)

    # --- memory blocks --------------------------------------------------------------------------------------

    def block_size(self) -> int:
        """Bytes in a memory block, the unit of memory hotplug.

        Raises:
            NotSupported: The kernel has no memory blocks.
        """
        size = memory.memory_block_size(self.roots)
        if size is None:
            raise NotSupported(
                "this kernel has no memory blocks that come and go",
                seen=f"no power of two in {self.memory}/block_size_bytes",
                expected="the size of a memory block",
                remedy="the kernel needs CONFIG_MEMORY_HOTPLUG",
            )
        return size

    def blocks(self, start: int, size: int) -> dict[Path, str]:
        """The directories of the memory blocks that exist in this range, and their states."""
        self.block_size()
        states = ((one.path, one.state) for one in memory.blocks_of_range(start, start + size, self.roots))
        return {path: state for path, state in states if state is not None}

    def total(self) -> int:
        """MemTotal in bytes; 0 where it cannot be read."""
        try:
            return meminfo(self.roots).get("MemTotal", 0)
        except OSError:
            return 0

    # --- what was kept at boot ------------------------------------------------------------------------------

    def kept(self) -> bool | None:
        """Whether the kernel kept the region at boot: None where only dax_hmem can tell.

        A range of /proc/iomem says so. Linux 7.2 does not show these ranges: that it has any is seen from the
        device ``hmem_platform``, and which they are from the dax regions that dax_hmem makes of them.

        Raises:
            PermissionLack: The kernel hides the addresses from this user.
        """
        if self.dax_region() is not None:
            return True
        shown = self._soft_reserved()
        if any(span.covers(self.addr, self.addr + self.size) for span in shown):
            return True
        hidden = any(name.startswith("hmem_platform") for name in sysfs.device_names("platform", self.roots))
        return None if hidden and not shown and not self.dax_regions() else False

    def not_kept(self) -> NotSupported:
        """The error for a region that the kernel did not keep at boot; the remedy has the kernel's parameters.

        Raises:
            PermissionLack: The kernel hides the addresses from this user.
        """
        near = [f"{span.start:#x}-{span.end - 1:#x} {span.name}" for span in self._soft_reserved()]
        return NotSupported(
            f"the kernel did not keep the region {self.addr:#x}-{self.addr + self.size - 1:#x} for this at boot",
            seen=", ".join([*near, *map(str, self.dax_regions())])
            or "nothing Soft Reserved there in /proc/iomem, and no dax region",
            expected=f"a Soft Reserved range with all {self.size} bytes of it",
            remedy=remedies.kept_at_boot(self.addr, self.size),
        )

    def _soft_reserved(self) -> list[IoRange]:
        return [span for span in iomem_addresses(self.roots) if span.name == SOFT_RESERVED]

    # --- /proc/iomem ----------------------------------------------------------------------------------------

    def _touches(self, span: IoRange) -> bool:
        return span.overlaps(self.addr, self.addr + self.size)

    def ram(self) -> list[IoRange]:
        """The parts of the region that are System RAM, also those that no dax device has.

        Raises:
            PermissionLack: The kernel hides the addresses from this user.
        """
        return [
            span
            for span in iomem_addresses(self.roots)
            if span.name.startswith(SYSTEM_RAM) and self._touches(span)
        ]

    # --- dax devices ----------------------------------------------------------------------------------------

    def devices(self) -> Iterator[Path]:
        """The directories of all dax devices."""
        top = self.dax / "devices"
        for name in sysfs.names(top):
            if _DAX_NAME.match(name):
                yield top / name

    def dax_regions(self) -> list[DaxRegion]:
        """The dax regions that dax_hmem and its like have made; empty for a user who may not see addresses."""
        found: dict[Path, list[Path]] = {}
        for directory in self.devices():
            found.setdefault(sysfs.real(directory).parent / "dax_region", []).append(directory)
        regions = (self._dax_region(directory, devices) for directory, devices in found.items())
        return [region for region in regions if region is not None]

    def _dax_region(self, directory: Path, devices: list[Path]) -> DaxRegion | None:
        size = sysfs.number(directory / "size")
        if not size:
            return None
        idle, spans = [], []
        for device in devices:
            mappings = self.mappings(device)
            at = sysfs.number(device / "resource")
            if mappings:
                spans += mappings
            elif at is not None and not sysfs.number(device / "size"):
                idle.append(at)  # without addresses of its own: the start of the region
        if idle:
            return DaxRegion(directory, idle[0], idle[0], size)
        if spans:
            ends = max(span.end for span in spans)
            return DaxRegion(directory, max(0, ends - size), min(span.start for span in spans), size)
        return None

    def dax_region(self) -> Path | None:
        """The directory ``dax_region`` of the dax region that has all of this one; None: none yet."""
        for region in self.dax_regions():
            if region.may_cover(self.addr, self.addr + self.size):
                return region.directory
        return None

    def mappings(self, directory: Path) -> list[IoRange]:
        """The physical address ranges of a dax device."""
        found = []
        for name in sysfs.names(directory):
            if re.fullmatch(r"mapping\d+", name):
                start, end = sysfs.number(directory / name / "start"), sysfs.number(directory / name / "end")
                if start is not None and end is not None and start <= end:
                    found.append(IoRange(start, end + 1, directory.name))
        return found

    def pieces(self) -> list[DaxPiece]:
        """The dax devices that have memory of the region, sorted by address."""
        found = []
        for directory in self.devices():
            for span in self.mappings(directory):
                if self._touches(span):
                    found.append(self._piece(directory, span))
        return sorted(found, key=lambda piece: piece.start)

    def _piece(self, directory: Path, span: IoRange) -> DaxPiece:
        driver = sysfs.driver_of(directory)
        states = list(self.blocks(span.start, span.size).values())
        if driver == KMEM:
            away = states.count("offline")
            state = PieceState.OFFLINE if away == len(states) else PieceState.PARTLY if away else PieceState.ONLINE
        elif driver is not None:
            state = PieceState.FOREIGN
        else:
            state = PieceState.STUCK if states else PieceState.IDLE
        return DaxPiece(directory.name, span.start, span.size, driver, state)
