"""Which blocks are plugged: STATE requests (5.15.6.6) about ranges and their halves, many of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from uvirtio.drivers.mem.ranges import BlockRange, Ranges
from uvirtio.errors import ProtocolError
from uvirtio.spec import mem as spec
from uvirtio.spec.mem import State

AT_ONCE = 128
"""The most STATE requests that are of use at once: the entries of the queue that QEMU's device has."""

Ask = Callable[[Sequence[BlockRange]], Sequence[State]]
"""Ask the device for the state of each range; the answers in the same order."""

Wrong = Callable[[str, str], ProtocolError]
"""Make the error about an answer that cannot be, from what was seen and what was expected."""


def pieces(first: int, count: int) -> Iterator[BlockRange]:
    """Yield the blocks of each request: nb_blocks is 16 bits wide (5.15.6).

    Args:
        first: Number of the first block.
        count: How many blocks there are in all.
    """
    most = spec.MAX_BLOCKS
    return ((first + at, min(most, count - at)) for at in range(0, count, most))


def survey(blocks: int, plugged: int, ask: Ask, wrong: Wrong) -> tuple[Ranges, bool]:
    """Halve the ranges that are MIXED, the lowest first and many at once, until all plugged blocks are found.

    Both halves of a MIXED range are asked for, and have to turn out to be of two states; so no block counts as
    plugged because of what the device said about others. The blocks that were not asked for when ``plugged`` are
    found are unplugged, by ``plugged_size``.

    MIXED ranges that do not overlap are at most as many as plugged blocks are missing. So the requests are at
    most one for each 65,535 blocks, and 32 for each plugged block. Where there are more, the device contradicts
    itself: from then on one range is halved at a time, which at most doubles that.

    Args:
        blocks: The usable blocks.
        plugged: How many blocks are plugged, by ``plugged_size``.
        ask: Asks the device.
        wrong: Makes the error.

    Returns:
        The plugged blocks, and whether ``plugged_size`` fits all that the device said of the others.

    Raises:
        ProtocolError: The answers contradict each other.
    """
    found: list[BlockRange] = []
    missing = plugged
    whole = pieces(0, blocks)
    mixed: list[BlockRange] = []  # neither overlapping nor empty of plugged blocks; the lowest is the last
    while missing > 0:
        count = 1 if len(mixed) > missing else min(len(mixed), AT_ONCE // 2)
        asked = [half for _ in range(count) for half in _halves(*mixed.pop())]
        if len(mixed) + count < missing:  # otherwise those that are MIXED hold all that is missing
            asked += islice(whole, AT_ONCE - len(asked))
        if not asked:
            break
        states = ask(asked)
        for left, right in zip(states[: 2 * count : 2], states[1 : 2 * count : 2], strict=True):
            if left is right is not State.MIXED:
                raise wrong(f"MIXED for blocks of which both halves are {left.name}", "MIXED where it is both")
        mixed += [one for one, state in zip(asked, states, strict=True) if state is State.MIXED][::-1]
        if any(length == 1 for _, length in mixed):
            raise wrong("MIXED for one block", "PLUGGED or UNPLUGGED")
        here = [one for one, state in zip(asked, states, strict=True) if state is State.PLUGGED]
        missing -= sum(length for _, length in here)
        found += here
    return Ranges(sorted(found)), missing == 0 and not mixed


def _halves(first: int, count: int) -> tuple[BlockRange, BlockRange]:
    half = count // 2
    return (first, half), (first + half, count - half)
