"""Sets of numbers as ranges, so that a region of a million blocks needs only a few entries."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

BlockRange = tuple[int, int]
"""(first, count); ``count`` is above 0 in every range that is returned here."""


class Ranges:
    """A mutable set of integers, kept as sorted ranges that neither overlap nor touch; iterates over these."""

    __slots__ = ("_ends", "_starts", "_total")

    def __init__(self, runs: Iterable[BlockRange] = ()) -> None:
        """Make the union of ``runs``, which may overlap."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._total = 0
        for first, count in runs:
            self.add(first, count)

    def __iter__(self) -> Iterator[BlockRange]:
        for start, end in zip(self._starts, self._ends, strict=True):
            yield start, end - start

    def __reversed__(self) -> Iterator[BlockRange]:
        for start, end in zip(reversed(self._starts), reversed(self._ends), strict=True):
            yield start, end - start

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ranges):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"

    @property
    def total(self) -> int:
        """How many numbers are in the set."""
        return self._total

    @property
    def runs(self) -> int:
        """How many ranges there are."""
        return len(self._starts)

    def copy(self) -> Ranges:
        """Return an independent copy."""
        made = Ranges()
        made._starts, made._ends, made._total = self._starts.copy(), self._ends.copy(), self._total
        return made

    def add(self, first: int, count: int) -> None:
        """Add ``first`` .. ``first + count - 1``, whether or not some are in the set already."""
        if count <= 0:
            return
        end = first + count
        low = bisect_left(self._ends, first)  # the first range that overlaps or touches
        high = bisect_right(self._starts, end)
        if low < high:
            first = min(first, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._total += end - first - self._sum(low, high)
        self._starts[low:high] = [first]
        self._ends[low:high] = [end]

    def remove(self, first: int, count: int) -> None:
        """Remove ``first`` .. ``first + count - 1``, whether or not all are in the set."""
        if count <= 0:
            return
        end = first + count
        low = bisect_right(self._ends, first)
        high = bisect_left(self._starts, end)
        if low >= high:
            return
        starts, ends = [], []
        if self._starts[low] < first:
            starts.append(self._starts[low])
            ends.append(first)
        if self._ends[high - 1] > end:
            starts.append(end)
            ends.append(self._ends[high - 1])
        self._total += sum(ends) - sum(starts) - self._sum(low, high)
        self._starts[low:high] = starts
        self._ends[low:high] = ends

    def _sum(self, low: int, high: int) -> int:
        return sum(self._ends[low:high]) - sum(self._starts[low:high])

    def within(self, first: int, count: int) -> Iterator[BlockRange]:
        """Yield the parts of the set within ``first`` .. ``first + count - 1``, ascending."""
        end = first + count
        for index in range(bisect_right(self._ends, first), bisect_left(self._starts, end)):
            start, stop = max(first, self._starts[index]), min(end, self._ends[index])
            if start < stop:
                yield start, stop - start

    def gaps(self, first: int, count: int) -> Iterator[BlockRange]:
        """Yield the ranges within ``first`` .. ``first + count - 1`` that are not in the set, ascending."""
        at, end = first, first + count
        for start, length in self.within(first, count):
            if start > at:
                yield at, start - at
            at = start + length
        if at < end:
            yield at, end - at

    def count(self, first: int, count: int) -> int:
        """Return how many of ``first`` .. ``first + count - 1`` are in the set."""
        return sum(length for _, length in self.within(first, count))

    def covers(self, first: int, count: int) -> bool:
        """Return whether all of ``first`` .. ``first + count - 1`` are in the set."""
        return self.count(first, count) == max(0, count)

    def overlaps(self, first: int, count: int) -> bool:
        """Return whether any of ``first`` .. ``first + count - 1`` is in the set."""
        return next(self.within(first, count), None) is not None

    def without(self, other: Ranges) -> Ranges:
        """Return a new set: this one without the numbers of ``other``."""
        return Ranges(rest for first, count in self for rest in other.gaps(first, count))
