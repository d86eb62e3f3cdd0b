"""Sets of numbers as runs: what a region of a million blocks needs a few entries for."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

BlockRange = tuple[int, int]
"""(first, count); ``count`` is above 0 wherever a run comes out of here."""


class Ranges:
    """A set of integers, kept as sorted runs that neither overlap nor touch. Mutable; iterates over its runs."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, runs: Iterable[BlockRange] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
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
        return sum(self._ends) - sum(self._starts)

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return len(self._starts)

    def copy(self) -> Ranges:
        made = Ranges()
        made._starts, made._ends = self._starts.copy(), self._ends.copy()
        return made

    def add(self, first: int, count: int) -> None:
        """Put ``first`` .. ``first + count - 1`` into the set; what is there already stays."""
        if count <= 0:
            return
        end = first + count
        low = bisect_left(self._ends, first)  # the first run that reaches us, or touches
        high = bisect_right(self._starts, end)
        if low < high:
            first = min(first, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [first]
        self._ends[low:high] = [end]

    def remove(self, first: int, count: int) -> None:
        """Take them out; what is not there is no matter."""
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
        self._starts[low:high] = starts
        self._ends[low:high] = ends

    def within(self, first: int, count: int) -> Iterator[BlockRange]:
        """The parts of the set's runs that lie in these numbers, ascending."""
        end = first + count
        for index in range(bisect_right(self._ends, first), bisect_left(self._starts, end)):
            start, stop = max(first, self._starts[index]), min(end, self._ends[index])
            if start < stop:
                yield start, stop - start

    def gaps(self, first: int, count: int) -> Iterator[BlockRange]:
        """The runs of these numbers that are not in the set, ascending."""
        at, end = first, first + count
        for start, length in self.within(first, count):
            if start > at:
                yield at, start - at
            at = start + length
        if at < end:
            yield at, end - at

    def count(self, first: int, count: int) -> int:
        """How many of these numbers are in the set."""
        return sum(length for _, length in self.within(first, count))

    def covers(self, first: int, count: int) -> bool:
        """Whether all of these numbers are in the set."""
        return self.count(first, count) == max(0, count)

    def overlaps(self, first: int, count: int) -> bool:
        """Whether any of these numbers is in the set."""
        return next(self.within(first, count), None) is not None

    def without(self, other: Ranges) -> Ranges:
        """A new set: these numbers and not those."""
        made = self.copy()
        for first, count in other:
            made.remove(first, count)
        return made
