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

    # --- /proc/iomem ----------------------------------------------------------------------------------------

    def soft_reserved(self) -> IoRange:
        """The Soft Reserved range that the region lies in.

        Raises:
            NotSupported: There is none; the remedy has the kernel's parameters.
            PermissionLack: The kernel hides the addresses from this user.
        """
        kept = [span for span in iomem_addresses(self.roots) if span.name == SOFT_RESERVED]
        for span in kept:
            if span.covers(self.addr, self.addr + self.size):
                return span
        near = [f"{span.start:#x}-{span.end - 1:#x} {span.name}" for span in kept if self._touches(span)]
        raise NotSupported(
            f"the kernel did not keep the region {self.addr:#x}-{self.addr + self.size - 1:#x} for this at boot",
            seen=", ".join(near) or "nothing Soft Reserved there in /proc/iomem",
            expected=f"a Soft Reserved range with all {self.size} bytes of it",
            remedy=remedies.kept_at_boot(self.addr, self.size),
        )

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

    def dax_region(self) -> Path | None:
        """The directory ``dax_region`` of the dax region that contains this one; None where there is none (yet).

        Raises:
            NotSupported: The region is not Soft Reserved.
            PermissionLack: The kernel hides the addresses from this user.
        """
        kept = self.soft_reserved()
        for directory in self.devices():
            at = sysfs.number(directory / "resource")  # without a range of its own: the start of the region
            region = sysfs.real(directory).parent / "dax_region"
            if at is not None and kept.start <= at < kept.end and region.is_dir():
                return region
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
