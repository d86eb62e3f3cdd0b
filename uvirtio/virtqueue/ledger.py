"""What both ring formats keep beside their rings: the books of what is out, the errors, the way out.

The books are private. The device can reach none of them, so that whatever it writes is held against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from uvirtio.errors import Closed, DeviceBroken, QueueError, QueueFull, RingCorruption, UsageError
from uvirtio.memory.fence import Fence
from uvirtio.memory.seams import Block
from uvirtio.spec.ring import DESC_SIZE
from uvirtio.virtqueue import Completion

INDIRECT_ENTRIES = 16
"""Descriptors in the indirect table of each head: 256 bytes, so that no table crosses a page."""

Posted = tuple[Any, int, Any, int]
"""What is kept of a chain: cookie, bytes the device may write, its place in the ring, its number."""


class Ledger:
    """The part of a queue that is the same for split and packed rings.

    ``fence`` is a full fence. ``order`` is None on CPUs that keep stores in order, and loads in order (x86);
    elsewhere it is a fence that keeps them so.
    """

    index: int
    size: int

    def __init__(
        self,
        index: int,
        size: int,
        *,
        fence: Fence,
        order: Fence | None,
        event_idx: bool,
        in_order: bool,
        clamp_used_len: bool,
    ) -> None:
        self.index = index
        self.size = size
        self.findings: dict[str, int] = {}
        """How often the device did something odd that is tolerated, by name."""

        self._fence = fence
        self._order = order
        self._event_idx = event_idx
        self._in_order = in_order
        self._clamp = clamp_used_len

        self._tables: list[int] = []
        """Device addresses of the indirect tables, one for each id; none without INDIRECT_DESC."""

        # What is out, by the id that the device names it by.
        self._out: list[Posted | None] = [None] * size
        # Chains since the start: laid down, published, reaped.
        self._laid = 0
        self._published = 0
        self._reaped = 0
        self._interrupts = True
        self._broken: str | None = None
        self._closed = False
        self._dead = False
        """Broken or closed: the one thing that every call asks."""
        self._undelivered: list[Completion] = []
        self._owned: list[Block] = []
        self._views: list[memoryview] = []

    def needs(self, elements: int) -> int:
        """How many descriptors of the ring a chain of so many elements takes: one where it fits a table."""
        return 1 if self._tables and 1 < elements <= INDIRECT_ENTRIES else elements

    @property
    def in_flight(self) -> int:
        return self._published - self._reaped

    @property
    def broken(self) -> str | None:
        return self._broken

    def abandon(self) -> list[Any]:
        posted = sorted((entry for entry in self._out if entry is not None), key=lambda entry: entry[3])
        cookies = [entry[0] for entry in posted]
        self._dead = True
        if self._broken is None:
            self._broken = "the device was reset, and this queue belongs to the time before"
        else:
            cookies = [completion.cookie for completion in self._undelivered] + cookies
        self._out = [None] * self.size
        self._forget()
        self._reaped = self._published = self._laid
        self._undelivered = []
        return cookies

    def _hand_over(self) -> None:
        """From now on chains go and come through fixed slots alone (slots.py)."""
        self._forget()
        for name in ("add", "publish", "reap"):
            setattr(self, name, self._slots_only)

    def _slots_only(self, *_: object) -> NoReturn:
        raise UsageError(
            f"queue {self.index} has fixed slots",
            seen="a single chain",
            expected="post() and reap() of its slots",
        )

    def _forget(self) -> None:
        """Nothing is free any more."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the views; then the blocks, if the queue made them. Idempotent.

        Only after a confirmed reset: until then the device may write to this memory.
        """
        if self._closed:
            return
        self._closed = self._dead = True
        for view in self._views:
            view.release()
        for block in self._owned:
            block.close()

    def own(self, *blocks: Block) -> None:
        """From now on ``close()`` closes these too."""
        self._owned += blocks

    @property
    def areas(self) -> tuple[Block, Block, Block]:
        """The memory of a queue that made it itself: descriptor, driver and device area. For raw.py."""
        desc, driver, device = self._owned[:3]
        return desc, driver, device

    def _too_long(self, written: int, room: int) -> int:
        if not room:
            # Harmless, and shipped devices do it: there is nothing that could be read by mistake.
            self._find("used-length-on-read-only-chain")
        elif self._clamp:
            self._find("used-length-clamped")
        else:
            self._corrupt(
                "a used element says that more was written than there was room for",
                seen=written,
                expected=f"at most {room} bytes",
                remedy="if this device is known for it, open it with the quirk clamp-used-len",
            )
        return room

    def _find(self, name: str) -> None:
        self.findings[name] = self.findings.get(name, 0) + 1

    def _full(self, count: int, free: int) -> QueueFull:
        return QueueFull(
            f"queue {self.index} has no room for this chain",
            seen=f"{free} free descriptors of {self.size}",
            expected=f"{count} or more",
            remedy="reap completions first",
        )

    def _corrupt(self, what: str, *, seen: int, expected: str, remedy: str | None = None) -> NoReturn:
        self._broken, self._dead = what, True
        raise RingCorruption(
            f"queue {self.index}: {what} (2.7.8, 2.8.4)",
            seen=seen,
            expected=expected,
            remedy=remedy or "reset the device; report this to whoever makes it",
        )

    def _no_such_chain(self, seen: int) -> NoReturn:
        self._corrupt(
            "a used element names no chain that the device was given",
            seen=seen,
            expected=f"the id of one of {self._published - self._reaped} chains in flight",
        )

    def _refuse(self) -> NoReturn:
        if self._closed:
            raise Closed(f"queue {self.index} is closed")
        raise DeviceBroken(
            f"queue {self.index} takes nothing more",
            seen=self._broken,
            expected="a working queue",
            remedy="open the device again",
        )


# --- memory -------------------------------------------------------------------------------------------------


def scattered(index: int, what: str, runs: int) -> QueueError:
    return QueueError(
        f"queue {index}: {what} is not contiguous for the device",
        seen=f"{runs} runs of device addresses",
        expected="one run",
        remedy="use a smaller queue, huge pages, or a device behind an IOMMU",
    )


def area_address(index: int, what: str, block: Block, length: int, align: int) -> int:
    """The device address of an area; raises QueueError where it is not one aligned run (2.7.1, 2.8.11)."""
    runs = block.segments(0, length)
    if len(runs) != 1:
        raise scattered(index, f"the {what} of {length} bytes", len(runs))
    address = runs[0][0]
    if address % align:
        raise QueueError(
            f"queue {index}: the {what} is not aligned (2.7.1, 2.8.11)",
            seen=hex(address),
            expected=f"a multiple of {align}",
        )
    return address


def check_contiguous(index: int, sizes: Sequence[int], blocks: Sequence[Block], limit: int) -> None:
    """Raise QueueError where an area longer than ``limit`` came out in pieces."""
    for area, block in zip(sizes, blocks, strict=False):
        if area > limit and not block.contiguous:
            raise scattered(index, f"an area of {area} bytes", len(block.segments(0, area)))


def table_addresses(index: int, block: Block, size: int) -> list[int]:
    """The device address of each head's indirect table; each must lie in one run."""
    step = INDIRECT_ENTRIES * DESC_SIZE
    tables: list[int] = []
    for address, length in block.segments(0, step * size):
        if length % step:
            raise scattered(index, "an indirect table", 2)
        tables += range(address, address + length, step)
    return tables
