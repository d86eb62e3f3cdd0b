"""What both ring formats keep beside their rings: the books of what is out, the errors, the way out.

The books are private. The device can reach none of them, so that whatever it writes is held against them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

from uvirtio.errors import Closed, DeviceBroken, QueueError, QueueFull, RingCorruption, UsageError
from uvirtio.interfaces.memory import Block, DmaSpace
from uvirtio.memory.access import words64
from uvirtio.memory.fence import Fence, order_fence
from uvirtio.spec.ring import DESC_SIZE
from uvirtio.virtqueue import Completion

INDIRECT_ENTRIES = 16
"""Descriptors in the indirect table of each head: 256 bytes, so that no table crosses a page."""

InFlight = tuple[Any, int, Any, int]
"""What is kept of a chain: cookie, bytes the device may write, its place in the ring, its number."""


@dataclass(frozen=True, slots=True)
class RingOptions:
    """How a ring is made: what was negotiated for it, and what this machine needs."""

    fence: Fence
    """A full fence: the index before the device's wish is read (2.7.13.4.1, 2.8.21.3.1)."""
    order: Fence | None = None
    """A fence that keeps stores in order, and loads, for a device on a bus (ORDER_PLATFORM).

    It stands between what is shown and what shows it, and between an announcement and what it announces. None:
    what this machine needs between CPUs, which is nothing on x86.
    """
    indirect: bool = False
    """INDIRECT_DESC was negotiated: chains of two or more elements go into indirect tables."""
    event_idx: bool = False
    """EVENT_IDX was negotiated."""
    in_order: bool = False
    """IN_ORDER was negotiated."""
    clamp_used_len: bool = False
    """Tolerate a device that reports more bytes written than there was room for (2.7.8.1)."""
    one_region: bool = False
    """Split rings: all three areas in one run of device addresses, as a legacy interface wants them (2.7.2)."""


class VirtqueueBase:
    """The part of a queue that is the same for split and packed rings.

    ``desc``, ``driver`` and ``device`` are blocks of at least :meth:`area_sizes` bytes, each contiguous over its
    area. ``tables`` (given when INDIRECT_DESC was negotiated) holds one table of ``INDIRECT_ENTRIES``
    descriptors for each id: a chain of two or more elements that fits a table goes there and takes one descriptor
    of the ring.

    Not safe against exceptions raised in the middle by a signal handler: let the handler set a flag.

    Raises UsageError for a size that the format does not allow, QueueError for an area that is not contiguous or
    not aligned (2.7.1, 2.8.11).
    """

    kind: Literal["split", "packed"]
    AREAS: ClassVar[tuple[tuple[str, int], ...]]
    """What the three areas are called, and how they are aligned, in bytes."""

    def __init__(
        self,
        index: int,
        size: int,
        desc: Block,
        driver: Block,
        device: Block,
        options: RingOptions,
        *,
        tables: Block | None = None,
    ) -> None:
        desc_size, driver_size, device_size = self.area_sizes(size)
        self.index = index
        self.size = size
        (desc_name, desc_align), (driver_name, driver_align), (device_name, device_align) = self.AREAS
        self._addresses = (
            area_address(index, desc_name, desc, desc_size, desc_align),
            area_address(index, driver_name, driver, driver_size, driver_align),
            area_address(index, device_name, device, device_size, device_align),
        )
        self.findings: dict[str, int] = {}
        """How often the device did something odd that is tolerated, by name."""

        self._fence = options.fence
        self._order = options.order or order_fence()
        self._event_idx = options.event_idx
        self._in_order = options.in_order
        self._clamp = options.clamp_used_len

        self._tables: list[int] = [] if tables is None else table_addresses(index, tables, size)
        """Device addresses of the indirect tables, one for each id; none without INDIRECT_DESC."""

        # What is out, by the id that the device names it by.
        self._out: list[InFlight | None] = [None] * size
        self._laid = 0
        """Chains that were laid down since the start."""
        self.published = 0
        """Chains that were shown to the device since the start."""
        self.reaped = 0
        """Chains that came back since the start."""
        self._interrupts = True
        self._broken: str | None = None
        self._closed = False
        self.dead = False
        """Broken or closed: the one thing that every call asks. ``refuse()`` raises why."""
        self._shut = False
        """No chain goes or comes by itself: dead, or handed over to fixed slots."""
        self._undelivered: list[Completion] = []
        self._told = -1
        """With IN_ORDER: the number of the last chain that the device has named as used."""
        self._told_written = 0

        self._owned: list[Block] = []
        self._desc = words64(desc.view, 0, 2 * size)
        self._views = [self._desc]
        self._table_words = None
        if tables is not None:
            self._table_words = words64(tables.view, 0, 2 * INDIRECT_ENTRIES * size)
            self._views.append(self._table_words)
        self._begin(desc, driver, device)

    def _begin(self, desc: Block, driver: Block, device: Block) -> None:
        """Take the views and make the books of this format, and write what a ring starts from."""
        raise NotImplementedError

    @staticmethod
    def area_sizes(size: int) -> tuple[int, int, int]:
        """Bytes of the descriptor, driver and device area. Raises UsageError for a size that cannot be."""
        raise NotImplementedError

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Device addresses of the descriptor, driver and device areas (2.6)."""
        return self._addresses

    def needs(self, elements: int) -> int:
        """How many descriptors of the ring a chain of so many elements takes: one where it fits a table."""
        return 1 if self._tables and 1 < elements <= INDIRECT_ENTRIES else elements

    @property
    def in_flight(self) -> int:
        return self.published - self.reaped

    @property
    def broken(self) -> str | None:
        return self._broken

    def abandon(self) -> list[Any]:
        posted = sorted((entry for entry in self._out if entry is not None), key=lambda entry: entry[3])
        cookies = [entry[0] for entry in posted]
        self.dead = self._shut = True
        if self._broken is None:
            self._broken = "the device was reset, and this queue belongs to the time before"
        else:
            cookies = [completion.cookie for completion in self._undelivered] + cookies
        self._out = [None] * self.size
        self._forget()
        self.reaped = self.published = self._laid
        self._undelivered = []
        return cookies

    def _hand_over(self) -> None:
        """From now on chains go and come through fixed slots alone (slots.py)."""
        self._forget()
        self._shut = True

    def _forget(self) -> None:
        """Nothing is free any more."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the views; then the blocks, if the queue made them. Idempotent.

        Only after a confirmed reset: until then the device may write to this memory.
        """
        if self._closed:
            return
        self._closed = self.dead = self._shut = True
        for view in self._views:
            view.release()
        for block in self._owned:
            block.close()

    def own(self, *blocks: Block) -> None:
        """From now on ``close()`` closes these too."""
        self._owned += blocks

    @property
    def areas(self) -> tuple[Block, Block, Block]:
        """The memory of a queue that made it itself: descriptor, driver and device area. For diag/raw.py."""
        desc, driver, device = self._owned[:3]
        return desc, driver, device

    def too_long(self, written: int, room: int) -> int:
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
        self._broken, self.dead, self._shut = what, True, True
        raise RingCorruption(
            f"queue {self.index}: {what} (2.7.8, 2.8.4)",
            seen=seen,
            expected=expected,
            remedy=remedy or "reset the device; report this to whoever makes it",
        )

    def no_such_chain(self, seen: int) -> NoReturn:
        self._corrupt(
            "a used element names no chain that the device was given",
            seen=seen,
            expected=f"the id of one of {self.published - self.reaped} chains in flight",
        )

    def refuse(self) -> NoReturn:
        """Raise for a call that this queue does not take (any more)."""
        if self._closed:
            raise Closed(f"queue {self.index} is closed")
        if not self.dead:
            raise UsageError(
                f"queue {self.index} has fixed slots",
                seen="a single chain",
                expected="submit() and reap() of its slots",
            )
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


Made = TypeVar("Made", bound=VirtqueueBase)


def allocate_queue(
    made: type[Made],
    index: int,
    size: int,
    dma: DmaSpace,
    options: RingOptions,
    areas: Callable[[int, int, DmaSpace], list[Block]] | None = None,
) -> Made:
    """A queue of either format in memory of its own, which its ``close()`` gives back.

    Args:
        made: The format's class.
        index: The queue's number, for errors.
        size: Entries of the ring.
        dma: Where its memory comes from.
        options: What was negotiated.
        areas: Makes the three areas where they may not be three blocks.

    Raises:
        UsageError: The format does not allow this size.
        QueueError: An area would not be one run of device addresses.
        MemlockExceeded, HugePagesLack, OperationFailed: There is no such memory. Nothing stays allocated.
    """
    sizes = list(made.area_sizes(size))
    if options.indirect:
        sizes.append(INDIRECT_ENTRIES * DESC_SIZE * size)
    blocks: list[Block] = []
    try:
        if areas is not None:
            blocks += areas(index, size, dma)
        for area in sizes[len(blocks) :]:
            blocks.append(dma.alloc(area))
        check_contiguous(index, sizes[:3], blocks, dma.contiguous_limit)
        desc, driver, device = blocks[:3]
        tables = blocks[3] if options.indirect else None
        queue = made(index, size, desc, driver, device, options, tables=tables)
    except BaseException:
        for block in blocks:
            block.close()
        raise
    queue.own(*blocks)
    return queue
