"""Requests in other shapes than the good one, and many of them: for the tests of rings of either format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from uvirtio.conform.exchange import blk_header
from uvirtio.conform.lane import UNKNOWN, Element, Lane, Posted, Used
from uvirtio.conform.memory import Buffer, Piece
from uvirtio.conform.packed_lane import UNKNOWN_SLOT
from uvirtio.conform.trial import Trial
from uvirtio.spec import blk

_RUN: Final = 8
"""Bytes that keep their pattern by chance with a probability of 2**-64."""


def cut(elements: Sequence[Buffer], count: int) -> list[Piece]:
    """The buffers in ``count`` pieces each, as far as they have bytes for it.

    Args:
        elements: The buffers.
        count: Pieces of each.
    """
    pieces: list[Piece] = []
    for buffer in elements:
        many = min(count, buffer.size)
        bounds = [buffer.size * number // many for number in range(many + 1)]
        pieces += [buffer.part(start, end - start) for start, end in pairwise(bounds)]
    return pieces


def ordered(t: Trial) -> tuple[Buffer, ...]:
    """The buffers of a good request that is another one if its bytes are taken in another order.

    Args:
        t: A trial whose device is running.
    """
    elements = t.exchange.elements(t)
    if t.type == "blk":
        # Sector 0 is read with a header of zeros, which hides their order.
        last = t.config_field(blk.CONFIG, "capacity") - 1
        return t.readable(blk_header(blk.Request.IN, last)), *elements[1:]
    return elements


def unwritten(elements: Sequence[Element], length: int) -> str | None:
    """Where the first ``length`` writable bytes hold what they held; None: nowhere for long.

    Args:
        elements: What a chain was made of.
        length: What its used element says, in bytes.
    """
    start = 0
    for buffer in elements:
        if not isinstance(buffer, Buffer) or not buffer.writable:
            continue
        for begin, end in buffer.untouched():
            end = min(end, length - start)
            if end - begin >= min(_RUN, buffer.size):
                return f"bytes {start + begin} to {start + end} are as they were, and len is {length}"
        start += buffer.size
    return None


def batch(t: Trial, lane: Lane, count: int) -> list[Posted]:
    """Publish good requests together, with one kick.

    Args:
        t: A trial whose device is running.
        lane: The queue for them.
        count: How many.
    """
    chains = [t.request(lane)[1] for _ in range(count)]
    lane.publish(*chains)
    lane.kick()
    return chains


def fitting(t: Trial, lane: Lane) -> int:
    """How many good requests fit a lane, up to eight.

    Args:
        t: A trial whose device is running.
        lane: The queue for them.
    """
    return max(1, min(8, lane.size // len(t.exchange.elements(t))))


def all_used(t: Trial, lane: Lane) -> list[Used]:
    """Wait until nothing is out; what was used meanwhile. A violation if something stays out.

    Args:
        t: A trial whose device is running.
        lane: The queue.
    """
    found: list[Used] = []

    def done() -> bool:
        found.extend(lane.take())
        return not lane.out

    t.owe(done, f"{len(lane.out)} requests were not used", "all used")
    return found


def nothing_more(t: Trial, lane: Lane) -> None:
    """Watch that nothing is used, and look whether anything was used that was not posted; that is a violation.

    Args:
        t: A trial whose device is running.
        lane: The queue.
    """
    quiet = t.quiet(lambda: bool(lane.take()))
    wrong = [fault for fault in lane.faults if fault.startswith((UNKNOWN, UNKNOWN_SLOT))]
    t.expect(quiet and not wrong, "; ".join(wrong) or "more was used", "as much as was posted")
