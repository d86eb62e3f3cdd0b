"""``/proc/self/pagemap``: the physical addresses of this process's pages."""

from __future__ import annotations

import os
import sys
from array import array

from uvirtio.errors import PagemapHidden
from uvirtio.host import privilege
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots
from uvirtio.spec.page import VIRTIO_PAGE

_PRESENT = 1 << 63
_PFN_MASK = (1 << 55) - 1
_READ_LIMIT = 1 << 20


class Pagemap:
    """``/proc/self/pagemap``: the physical page of each virtual page. Owns a file descriptor once it was read."""

    def __init__(self, roots: Roots) -> None:
        """Make it; the file is opened at the first read.

        Args:
            roots: Where ``/proc`` is.
        """
        self._roots = roots
        self._path = roots.proc / "self" / "pagemap"
        self._fd = -1

    def pfns(self, vaddr: int, size: int) -> list[int]:
        """The page frame numbers (PFNs) of a range of memory, in units of 4096 bytes on every machine.

        Args:
            vaddr: The virtual address of its start, aligned to a page of the CPU.
            size: Its length, in bytes.

        Returns:
            The PFN of each 4096-byte piece, in order.

        Raises:
            PagemapHidden: The file cannot be read, shows zeros (no CAP_SYS_ADMIN), or a page is not present.
        """
        return self.frames(vaddr, size).tolist()

    def frames(self, vaddr: int, size: int) -> array[int]:
        """The same as ``pfns``, packed: 4 bytes a PFN ("I") where all of them have 32 bits, else 8 ("Q").

        Args:
            vaddr: As for ``pfns``.
            size: As for ``pfns``, in bytes.

        Raises:
            PagemapHidden: As for ``pfns``.
        """
        found = _packed(self._entries(vaddr // CPU_PAGE, -(-size // CPU_PAGE)))
        if found is None:
            raise self._hidden("a page that is not present", "pages that are pinned")
        if has_zero(found):
            raise self._hidden(
                "frame number 0", "real frame numbers, which the kernel shows to CAP_SYS_ADMIN only"
            )
        if CPU_PAGE == VIRTIO_PAGE:
            return found
        per_page = CPU_PAGE // VIRTIO_PAGE
        pieces = [pfn * per_page + piece for pfn in found for piece in range(per_page)]
        return array("I" if max(pieces, default=0) < 1 << 32 else "Q", pieces)

    def hold(self) -> None:
        """Open the file now: it shows frame numbers to who opened it with CAP_SYS_ADMIN, also without that later.

        Raises:
            PagemapHidden: The file cannot be opened.
        """
        self._read(0, 0)

    def _entries(self, first: int, count: int) -> array[int]:
        entries = array("Q")
        position, end = first * 8, (first + count) * 8
        while position < end:
            data = self._read(min(end - position, _READ_LIMIT), position)
            if not data or len(data) % 8:
                raise self._hidden(f"{len(data)} bytes at {position:#x}", "8 bytes a page")
            entries.frombytes(data)
            position += len(data)
        return entries

    def _read(self, length: int, position: int) -> bytes:
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, length, position)
        except OSError as error:
            raise self._hidden(os.strerror(error.errno or 0), "a readable file") from error

    def _hidden(self, seen: str, expected: str) -> PagemapHidden:
        return PagemapHidden(
            f"{self._path} does not tell physical addresses",
            seen=seen,
            expected=expected,
            remedy=privilege.remedy(
                "run as root (CAP_SYS_ADMIN)",
                also="use a device that offers ACCESS_PLATFORM (QEMU: iommu_platform=on)",
                roots=self._roots,
            ),
        )

    def close(self) -> None:
        """Close the file; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def has_zero(pfns: array[int]) -> bool:
    """Whether one of these PFNs is 0, which hides the page: most arrays need no look at each of them."""
    return bytes(pfns.itemsize) in pfns.tobytes() and 0 in pfns


def _packed(entries: array[int]) -> array[int] | None:
    """The PFNs of pagemap's entries, of 4 bytes each where that is enough; None if a page is not present.

    Neighbours mostly share the upper half of their entries, the flags: then the lower halves are the PFNs, and no
    entry is looked at by itself.
    """
    upper, lower = (1, 0) if sys.byteorder == "little" else (0, 1)
    halves = array("I", entries.tobytes())
    flags = halves[upper::2]
    if len(flags) and flags.tobytes() == flags[:1].tobytes() * len(flags):
        if not flags[0] << 32 & _PRESENT:
            return None
        if not flags[0] << 32 & _PFN_MASK:
            return halves[lower::2]
    if min(entries, default=_PRESENT) < _PRESENT:
        return None
    found = [entry & _PFN_MASK for entry in entries]
    return array("I" if max(found, default=0) < 1 << 32 else "Q", found)
