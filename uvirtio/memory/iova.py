"""Allocation of device addresses: first fit over the ranges that the IOMMU reports."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from uvirtio.errors import BadSize, Misuse, OperationFailed
from uvirtio.host.pages import CPU_PAGE


class IovaAllocator:
    """Device addresses of one I/O address space, in bytes, in whole pages.

    Address 0 is never allocated: it means "no queue" on a legacy device (4.1.5.1.3.1). Neither is the last page of
    64 bits, which an IOMMU may report as usable (virtio-iommu does): the end of what is in it is 2^64, which no
    64-bit sum holds. The type1 IOMMU of Linux 6.12 maps it and cannot unmap it.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]], page: int = CPU_PAGE) -> None:
        """Set the usable ranges.

        Args:
            ranges: (first byte, last byte) of each, as VFIO_IOMMU_GET_INFO and VHOST_VDPA_GET_IOVA_RANGE report
                them; what is between them is reserved.
            page: Granularity in bytes, a power of two.

        Raises:
            Misuse: ``page`` is not a power of two.
        """
        if page <= 0 or page & (page - 1):
            raise Misuse(f"a page of {page} bytes")
        self.page = page
        pieces: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            start = max(-(-first // page) * page, page)
            if pieces:
                start = max(start, pieces[-1][1])
            end = min((last + 1) // page * page, (1 << 64) - page)
            if start >= end:
                continue
            if pieces and pieces[-1][1] == start:
                pieces[-1] = (pieces[-1][0], end)
            else:
                pieces.append((start, end))
        self._all = tuple(pieces)
        self._free = pieces  # sorted (start, end), end excluded; touching neighbours are merged by free()
        self._taken: dict[int, int] = {}

    def _rounded(self, size: int) -> int:
        if size <= 0:
            raise BadSize(f"{size} bytes of device addresses", seen=size, expected="1 or more")
        return -(-size // self.page) * self.page

    def alloc(self, size: int, *, highest: bool = False) -> int:
        """Allocate the lowest free run of device addresses that is large enough.

        Args:
            size: Length in bytes; rounded up to pages.
            highest: Take the highest free run instead.

        Returns:
            Its first device address.

        Raises:
            BadSize: ``size`` is not positive.
            OperationFailed: No free run is large enough.
        """
        size = self._rounded(size)
        order = range(len(self._free) - 1, -1, -1) if highest else range(len(self._free))
        for index in order:
            start, end = self._free[index]
            if end - start >= size:
                iova = end - size if highest else start
                self._carve(index, iova, size)
                return iova
        raise OperationFailed(
            f"no free run of {size} bytes of device addresses",
            seen=f"{sum(end - start for start, end in self._free)} bytes free, in {len(self._free)} pieces",
            expected=f"one piece of {size}",
        )

    def take(self, iova: int, size: int) -> None:
        """Allocate exactly these pages.

        Args:
            iova: First device address, in bytes; the start of a page.
            size: Length in bytes; rounded up to pages.

        Raises:
            BadSize: ``size`` is not positive.
            Misuse: ``iova`` is not the start of a page.
            OperationFailed: The addresses are reserved, allocated, or in no range.
        """
        size = self._rounded(size)
        if iova % self.page:
            raise Misuse(f"{iova:#x} is not the start of a page of {self.page}")
        index = bisect_left(self._free, (iova + 1, 0)) - 1
        if index < 0 or not (self._free[index][0] <= iova and iova + size <= self._free[index][1]):
            inside = any(start <= iova and iova + size <= end for start, end in self._all)
            raise OperationFailed(
                f"the device addresses {iova:#x} to {iova + size - 1:#x} cannot be used",
                seen="in use already" if inside else "reserved by the IOMMU, or beyond its width",
                expected=", ".join(f"{start:#x}-{end - 1:#x}" for start, end in self._all),
            )
        self._carve(index, iova, size)

    def _carve(self, index: int, iova: int, size: int) -> None:
        start, end = self._free[index]
        rest = [(a, b) for a, b in ((start, iova), (iova + size, end)) if a < b]
        self._free[index : index + 1] = rest
        self._taken[iova] = size

    def free(self, iova: int) -> None:
        """Free what ``alloc`` or ``take`` allocated.

        Raises:
            Misuse: Nothing was allocated at ``iova``.
        """
        size = self._taken.pop(iova, 0)
        if not size:
            raise Misuse(f"{iova:#x} was not handed out")
        start, end = iova, iova + size
        index = bisect_left(self._free, (start, end))
        first = last = index
        # What touches lies in one reported range: between two ranges there is at least one reserved page.
        if index > 0 and self._free[index - 1][1] == start:
            first, start = index - 1, self._free[index - 1][0]
        if index < len(self._free) and self._free[index][0] == end:
            last, end = index + 1, self._free[index][1]
        self._free[first:last] = [(start, end)]

    @property
    def taken(self) -> dict[int, int]:
        """The allocated runs: first address to length, in bytes."""
        return dict(self._taken)
