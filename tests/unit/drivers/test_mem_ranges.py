"""Sets of runs, against plain sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.drivers.mem import Ranges

TOP = 40
RUNS = st.lists(
    st.tuples(st.booleans(), st.integers(0, TOP), st.integers(0, TOP)),
    max_size=12,
)


def made(changes) -> tuple[Ranges, set[int]]:
    ranges, plain = Ranges(), set()
    for adds, first, count in changes:
        if adds:
            ranges.add(first, count)
            plain |= set(range(first, first + count))
        else:
            ranges.remove(first, count)
            plain -= set(range(first, first + count))
    return ranges, plain


def plain_of(runs) -> set[int]:
    return {number for first, count in runs for number in range(first, first + count)}


@given(RUNS)
def test_it_holds_what_was_put_in_in_the_fewest_runs(changes):
    ranges, plain = made(changes)
    runs = list(ranges)
    assert plain_of(runs) == plain
    assert all(count > 0 for _, count in runs)
    assert all(a[0] + a[1] < b[0] for a, b in pairwise(runs))
    assert ranges.total == len(plain) and ranges.runs == len(runs) and bool(ranges) == bool(plain)
    assert list(reversed(ranges)) == runs[::-1]
    assert ranges == Ranges((number, 1) for number in plain)


@given(RUNS, st.integers(0, TOP), st.integers(0, TOP))
def test_what_lies_within_and_what_does_not(changes, first, count):
    ranges, plain = made(changes)
    asked = set(range(first, first + count))
    assert plain_of(ranges.within(first, count)) == plain & asked
    assert plain_of(ranges.gaps(first, count)) == asked - plain
    assert all(length > 0 for runs in (ranges.within, ranges.gaps) for _, length in runs(first, count))
    assert ranges.count(first, count) == len(plain & asked)
    assert ranges.covers(first, count) == (asked <= plain)
    assert ranges.overlaps(first, count) == bool(asked & plain)


@given(RUNS, RUNS)
def test_the_difference_of_two(one, other):
    (a, plain_a), (b, plain_b) = made(one), made(other)
    assert plain_of(a.without(b)) == plain_a - plain_b
    assert plain_of(a) == plain_a


@pytest.mark.parametrize("count", [0, -1, -3])
def test_what_is_no_run_changes_nothing(count):
    """Of an empty set too, which an empty run would make true."""
    for plain in ([], [(2, 4)]):
        ranges = Ranges(plain)
        ranges.add(4, count)
        ranges.add(9, count)
        ranges.remove(4, count)
        assert (list(ranges), ranges.total, bool(ranges)) == (plain, sum(many for _, many in plain), bool(plain))
        assert [*ranges.within(4, count), *ranges.gaps(4, count), *ranges.gaps(9, count)] == []


def test_a_copy_goes_its_own_way():
    ranges = Ranges([(0, 4)])
    other = ranges.copy()
    other.remove(1, 2)
    assert list(ranges) == [(0, 4)] and list(other) == [(0, 1), (3, 1)]
    assert ranges != other and ranges != [(0, 4)]
    assert repr(other) == "Ranges([(0, 1), (3, 1)])"
