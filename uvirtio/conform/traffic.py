"""Requests in other shapes than the good one, and many of them: for the tests of rings of either format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from uvirtio.conform.exchange import blk_header
from uvirtio.conform.lane import UNKNOWN, Element, Lane, Posted, SplitLane, Used
from uvirtio.conform.memory import Buffer, Piece
from uvirtio.conform.packed_lane import UNKNOWN_SLOT
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, rejected
from uvirtio.spec import blk
from uvirtio.spec.status import Status, describe

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


def requests(t: Trial, lane: Lane, count: int) -> list[tuple[tuple[Buffer, ...], Posted]]:
    """Publish good requests together, with one kick; the buffers and the chain of each.

    Args:
        t: A trial whose device is running.
        lane: The queue for them.
        count: How many.
    """
    laid = [t.request(lane) for _ in range(count)]
    lane.publish(*(posted for _, posted in laid))
    lane.kick()
    return laid


def batch(t: Trial, lane: Lane, count: int) -> list[Posted]:
    """Publish good requests together, with one kick; the chain of each.

    Args:
        t: A trial whose device is running.
        lane: The queue for them.
        count: How many.
    """
    return [posted for _, posted in requests(t, lane, count)]


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


def taken_until_quiet(t: Trial, lane: Lane) -> None:
    """Take what the device returns by itself until nothing more comes: each of its buffers once, at most.

    Args:
        t: A trial whose device is running.
        lane: A queue whose buffers wait for the device.
    """
    for _ in range(len(lane.out) + 1):
        if t.quiet(lambda: bool(lane.take())):
            return


def same_used_index(t: Trial, lane: Lane) -> None:
    """A violation if the device's host has another used index than the ring; not of packed rings.

    Args:
        t: A trial whose device is running, with nothing under way.
        lane: The queue.
    """
    shown = t.host.queue(lane.index) if isinstance(lane, SplitLane) else None
    if shown is not None and isinstance(lane, SplitLane):
        t.witnessed("the used index", lane.used_idx, shown.used_idx)


def not_enabled(t: Trial, index: int) -> None:
    """A violation if the device's host still has a ring for a queue that was reset.

    Args:
        t: A trial.
        index: The queue.
    """
    shown = t.host.queue(index)
    t.witnessed("the address of a queue that was reset", 0, None if shown is None else shown.desc)


def expect_no_stray(t: Trial, lane: Lane, ident: str) -> None:
    """Make three good requests; a violation if the device wrote what a row forbids.

    Args:
        t: A trial whose device is running.
        lane: The queue.
        ident: The id of the row.
    """
    t.good(lane, 3)
    strays = [one for one in t.look() if one.startswith(ident)]
    t.expect(not strays, "; ".join(strays), "no such write")


def expect_any_framing(t: Trial, lane: Lane) -> None:
    """Make a good request with its buffers cut into 1, 2, 7 and 16 pieces each; a violation if one is not served.

    Args:
        t: A trial whose device is running.
        lane: The queue.
    """
    for count in (1, 2, 7, 16):
        elements = ordered(t)
        pieces = cut(elements, count)
        if len(pieces) > lane.size:
            continue
        posted = lane.post(*pieces)
        served = t.serve(lane, posted)
        t.expect(served, f"a request in {len(pieces)} pieces is not served: {describe(t.status())}", "service")
        t.right(elements, posted)


def longest(t: Trial, lane: Lane) -> str:
    """Post one-byte buffers in as many descriptors as the queue has; what became of them, in words.

    Args:
        t: A trial whose device is running.
        lane: The queue.
    """
    served = t.serve(lane, lane.post(*cut([t.writable(lane.size)], lane.size)))
    return f"of {lane.size} descriptors is {'served' if served else 'not served'}"


def expect_in_order(t: Trial, lane: Lane, what: str) -> None:
    """Make three batches with IN_ORDER; a violation if one is used and was not written (2.7.9, 2.8.8).

    Args:
        t: A trial whose device is running.
        lane: The queue.
        what: What one of a batch is called.
    """
    for _ in range(3):
        laid = requests(t, lane, fitting(t, lane))
        all_used(t, lane)
        for number, (elements, posted) in enumerate(laid):
            wrong = unwritten(elements, posted.room)
            t.expect(wrong is None, f"{what} {number} of a batch counts as used, and {wrong}", "their own order")


def expect_notified(t: Trial, lane: Lane) -> None:
    """Make three requests, and wait for the interrupt of each.

    Args:
        t: A trial whose device is running.
        lane: The queue.
    """
    for _ in range(3):
        t.good(lane)
        t.await_interrupt(lane)


def expect_quiet(t: Trial, lane: Lane, seen: str) -> None:
    """Make one request, then three, on a queue that asked for no notification; a violation if one comes for these.

    Args:
        t: A trial whose device is running.
        lane: The queue.
        seen: What a notification is called in the verdict.
    """
    t.good(lane)
    t.no_interrupt(lane)  # of the start: QEMU 10's input device notifies its empty status queue at DRIVER_OK
    t.good(lane, 3)
    t.expect(t.no_interrupt(lane), seen, "none")


def gave_up(t: Trial, *, otherwise: str) -> Outcome:
    """The verdict of invalid input that was not served: the status says so, or the device said nothing.

    Args:
        t: A trial whose device is running.
        otherwise: What is said if it does not need a reset.
    """
    return rejected("DEVICE_NEEDS_RESET" if t.status() & Status.DEVICE_NEEDS_RESET else otherwise)
