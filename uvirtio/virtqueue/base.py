"""What both ring formats share: the private record of chains in flight, the errors, closing.

The device cannot access that record, so whatever it writes is compared with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from uvirtio.errors import Closed, DeviceBroken, QueueError, QueueFull, RingCorruption, UsageError
from uvirtio.interfaces.runtime import WatchesWords
from uvirtio.memory.access import words64
from uvirtio.memory.fence import Fence, order_fence
from uvirtio.spec.ring import DESC_SIZE
from uvirtio.typed import TYPE_CHECKING, NamedTuple
from uvirtio.virtqueue import Completion, SgEntry

if TYPE_CHECKING:
    from typing import Any, ClassVar, Literal, NoReturn, TypeVar

    from uvirtio.interfaces.memory import Block, DmaSpace

    InFlight = tuple[Any, int, Any, int]
    """The record of a chain: cookie, bytes the device may write, its place in the ring, its number."""

INDIRECT_ENTRIES = 16
"""Number of descriptors in the indirect table of each head: 256 bytes, so that no table crosses a page."""

make_tuple = tuple.__new__
"""What a NamedTuple does to make one, without its function: completions are most of what reaping costs."""

NOT_OUT: InFlight = (None, 0, None, sys.maxsize)
"""What stands for a chain that is not in flight: its number is beyond all that were published."""


class RingOptions(NamedTuple):
    """How a ring is operated: the negotiated features, and the fences of this machine."""

    fence: Fence
    """A full fence: the index before the device's event word is read (2.7.13.4.1, 2.8.21.3.1)."""

    order: Fence | None = None
    """A fence that keeps stores in order, and loads, for a device on a bus (ORDER_PLATFORM).

    It is executed between descriptors and what makes them visible, and between an announcement and what it
    announces. None: what this machine needs between CPUs, which is nothing on x86.
    """

    indirect: bool = False
    """INDIRECT_DESC was negotiated: chains of two or more elements go into indirect tables."""
    event_idx: bool = False
    """EVENT_IDX was negotiated."""
    in_order: bool = False
    """IN_ORDER was negotiated."""
    clamp_used_len: bool = False
    """Tolerate a device that reports more bytes written than fit into the buffer (2.7.8.1)."""

    one_region: bool = False
    """Split rings: all three areas in one run of device addresses, as the legacy interface requires (2.7.2)."""


class VirtqueueBase:
    """The part of a queue that is the same for split and packed rings.

    What a signal handler raises in the middle of a call leaves the books right: a chain is in the ring or not
    (``cookies``), and was reaped or not. Lost is what the call would have returned: whether the device is to be
    notified, and completions that were reaped by then. Nor may the next interrupt have been asked for.
    """

    kind: Literal["split", "packed"]
    AREAS: ClassVar[tuple[tuple[str, int], ...]]
    """Name and alignment (in bytes) of the three areas."""

    # Beyond 30 attributes an instance finds each of them by a look into its dictionary, several for each chain.
    __slots__ = (
        "_addresses",
        "_broken",
        "_clamp",
        "_closed",
        "_desc",
        "_event_idx",
        "_fence",
        "_in_order",
        "_interrupts",
        "_laid",
        "_order",
        "_out",
        "_owned",
        "_shut",
        "_table_words",
        "_tables",
        "_told",
        "_told_written",
        "_undelivered",
        "_views",
        "dead",
        "findings",
        "index",
        "overclaimed",
        "published",
        "reaped",
        "size",
    )

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
        """Initialise a ring in blocks of at least ``area_sizes`` bytes, each contiguous over its area.

        Args:
            index: The queue's number.
            size: Number of entries.
            desc: Memory of the descriptor area.
            driver: Memory of the driver area.
            device: Memory of the device area.
            options: What was negotiated.
            tables: With INDIRECT_DESC: memory for one table of ``INDIRECT_ENTRIES`` descriptors for each id. A
                chain of two or more elements that fits a table is written there and takes one descriptor of the
                ring.

        Raises:
            UsageError: The format does not allow this size.
            QueueError: An area is not contiguous, or not aligned (2.7.1, 2.8.11).
        """
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
        """How often the device deviated from the standard in ways that are tolerated, by name."""

        self.overclaimed = 0
        """The most bytes that the device claimed to have written to a chain that it may only read."""

        self._fence = options.fence
        self._order = options.order or order_fence()
        self._event_idx = options.event_idx
        self._in_order = options.in_order
        self._clamp = options.clamp_used_len

        self._tables: list[int] = [] if tables is None else table_addresses(index, tables, size)
        """Device addresses of the indirect tables, one for each id; none without INDIRECT_DESC."""

        # Chains in flight, by the id that the device uses for them.
        self._out: list[InFlight | None] = [None] * size
        self._laid = 0
        """Number of chains that were added since the start."""

        self.published = 0
        """Number of chains that were made visible to the device since the start."""

        self.reaped = 0
        """Number of chains that were reaped since the start."""

        self._interrupts = True
        self._broken: str | None = None
        self._closed = False
        self.dead = False
        """Broken or closed: the one flag that every call checks. ``refuse()`` raises the reason."""

        self._shut = False
        """Single chains cannot be added or reaped: dead, or fixed slots own the ring."""

        self._undelivered: list[Completion] = []
        self._told = -1
        """With IN_ORDER: the number of the last chain that the device has named as used."""
        self._told_written = 0

        self._owned: list[Block] = []
        self._desc = watched(desc, 0, words64(desc.view, 0, 2 * size))
        self._views = [self._desc]
        self._table_words = None
        if tables is not None:
            self._table_words = words64(tables.view, 0, 2 * INDIRECT_ENTRIES * size)
            self._views.append(self._table_words)
        self._begin(desc, driver, device)

    def _begin(self, desc: Block, driver: Block, device: Block) -> None:
        """Make the views and the records of this format, and write the initial state of the ring."""
        raise NotImplementedError

    @staticmethod
    def area_sizes(size: int) -> tuple[int, int, int]:
        """Return the lengths of the descriptor, driver and device area, in bytes.

        Raises:
            UsageError: The format does not allow this size.
        """
        raise NotImplementedError

    def add(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> None:
        """Write one chain into the ring; see ``Virtqueue``."""
        raise NotImplementedError

    def add_all(self, chains: list[Any]) -> None:
        """Write several chains into the ring; see ``Virtqueue``."""
        before = self._laid
        try:
            for readable, writable, cookie in chains:
                self.add(readable, writable, cookie)
        finally:
            del chains[: self._laid - before]  # not counted here: a signal may come between the two

    def publish(self) -> bool:
        """Make all added chains visible; see ``Virtqueue``."""
        raise NotImplementedError

    def send(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> bool:
        """Add one chain, and make it visible; see ``Virtqueue``."""
        self.add(readable, writable, cookie)
        return self.publish()

    def pending(self) -> bool:
        """Whether the device has used a chain that was not reaped."""
        raise NotImplementedError

    def reap(self, limit: int | None = None) -> list[Completion]:
        """Return used chains; see ``Virtqueue``."""
        raise NotImplementedError

    def want_interrupts(self, on: bool) -> bool:
        """Enable or suppress used buffer notifications; see ``Virtqueue``."""
        raise NotImplementedError

    def take(self, looks: int = 1) -> tuple[Any, int] | None:
        """Return one used chain; see ``Virtqueue``."""
        if self._shut:
            self.refuse()
        for _ in range(looks):
            # It is looked at twice: the device may take back what it has shown.
            if self.pending() and (done := self.reap(1)):
                if self._event_idx and self._interrupts:
                    self.want_interrupts(True)  # a reap that ends at its limit does not ask for the next one
                return done[0]
        return None

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Device addresses of the descriptor, driver and device areas (2.6)."""
        return self._addresses

    def needs(self, elements: int) -> int:
        """Return how many descriptors of the ring a chain takes: one where it fits an indirect table."""
        return 1 if self._tables and 1 < elements <= INDIRECT_ENTRIES else elements

    @property
    def in_flight(self) -> int:
        """Number of chains that are published and not reaped."""
        return self.published - self.reaped

    def numbers(self) -> list[int]:
        """The numbers of the chains in flight; see ``Virtqueue``."""
        return sorted(entry[3] for entry in self._out if entry is not None and entry[3] < self.published)

    def cookies(self) -> list[Any]:
        """The cookies of the chains that were added and not reaped; see ``Virtqueue``."""
        return [entry[0] for entry in self._out if entry is not None]

    @property
    def broken(self) -> str | None:
        """Why the queue accepts no calls any more; None while it works."""
        return self._broken

    def abandon(self) -> list[Any]:
        """Give up the queue after a confirmed reset, and return the cookies of all chains that were not reaped."""
        posted = sorted((entry for entry in self._out if entry is not None), key=lambda entry: entry[3])
        cookies = [entry[0] for entry in posted]
        self.dead = self._shut = True
        if self._broken is None:
            self._broken = "the device was reset since this queue was enabled"
        else:
            cookies = [completion.cookie for completion in self._undelivered] + cookies
        self._out = [None] * self.size
        self._forget()
        self.reaped = self.published = self._laid
        self._undelivered = []
        return cookies

    def _hand_over(self) -> None:
        """Leave the ring to the fixed slots (slots.py): no single chains from now on."""
        self._forget()
        self._shut = True

    def _forget(self) -> None:
        """Mark no descriptor as free."""
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
        """Add blocks that ``close()`` closes too."""
        self._owned += blocks

    @property
    def areas(self) -> tuple[Block, Block, Block]:
        """The blocks of the descriptor, driver and device area of a queue that allocated them. For diag/raw.py."""
        desc, driver, device = self._owned[:3]
        return desc, driver, device

    def too_long(self, written: int, room: int) -> int:
        """Handle a used length that exceeds the buffer: note a finding or break the queue.

        Args:
            written: The length that the device reported, in bytes.
            room: The bytes that it was allowed to write.

        Returns:
            ``room``, the length to continue with.

        Raises:
            RingCorruption: The buffer is writable, and ``clamp_used_len`` is not set.
        """
        if not room:
            # Harmless, and some devices do it: there is no buffer that could be read by mistake.
            self._find("used-length-on-read-only-chain")
            self.overclaimed = max(self.overclaimed, written)
        elif self._clamp:
            self._find("used-length-clamped")
        else:
            self._corrupt(
                "a used element reports more bytes than the buffer holds",
                seen=written,
                expected=f"at most {room} bytes",
                about="used-len",
            )
        return room

    def _find(self, name: str) -> None:
        self.findings[name] = self.findings.get(name, 0) + 1

    def _full(self, count: int, free: int) -> QueueFull:
        return QueueFull(
            f"queue {self.index} has too few free descriptors for this chain",
            seen=f"{free} free descriptors of {self.size}",
            expected=f"{count} or more",
            remedy="reap completions first",
        )

    def _corrupt(self, what: str, *, seen: int, expected: str, about: str) -> NoReturn:
        self._broken, self.dead, self._shut = what, True, True
        raise RingCorruption(
            f"queue {self.index}: {what} (2.7.8, 2.8.4)",
            seen=seen,
            expected=expected,
            remedy="reset the device; report this to its developers",
            about=about,
        )

    def no_such_chain(self, seen: int) -> NoReturn:
        """Break the queue because a used element names an id that is not in flight.

        Raises:
            RingCorruption: Always.
        """
        self._corrupt(
            "a used element names a chain that is not in flight",
            seen=seen,
            expected=f"the id of one of {self.published - self.reaped} chains in flight",
            about="used-id",
        )

    def refuse(self) -> NoReturn:
        """Fail with the reason why this queue does not accept a call (any more).

        Raises:
            Closed: The queue is closed.
            UsageError: The queue works, but has fixed slots.
            DeviceBroken: The queue is broken or abandoned.
        """
        if self._closed:
            raise Closed(f"queue {self.index} is closed")
        if not self.dead:
            raise UsageError(
                f"queue {self.index} has fixed slots",
                seen="a single chain",
                expected="submit() and reap() of its slots",
            )
        raise DeviceBroken(
            f"queue {self.index} cannot be used any more",
            seen=self._broken,
            expected="a working queue",
            remedy="open the device again",
        )


# --- memory -------------------------------------------------------------------------------------------------


def watched(block: Block, offset: int, words: memoryview) -> memoryview:
    """Return ``words``; or what stands for them, where the block notes what is read of it.

    Args:
        block: The block that they belong to.
        offset: Where they begin in it, in bytes.
        words: A view of the block that the device writes to.
    """
    return block.watched(offset, words) if isinstance(block, WatchesWords) else words


def scattered(index: int, what: str, runs: int) -> QueueError:
    """Return the error for memory that is not one run of device addresses.

    Args:
        index: The queue.
        what: What is not contiguous.
        runs: Number of runs of device addresses.
    """
    return QueueError(
        f"queue {index}: {what} is not contiguous for the device",
        seen=f"{runs} runs of device addresses",
        expected="one run",
        remedy="use a smaller queue, huge pages, or a device behind an IOMMU",
    )


def area_address(index: int, what: str, block: Block, length: int, align: int) -> int:
    """Return the device address of an area.

    Args:
        index: The queue, for errors.
        what: The name of the area, for errors.
        block: Its memory.
        length: Its length, in bytes.
        align: Its alignment, in bytes.

    Raises:
        QueueError: The area is not one aligned run of device addresses (2.7.1, 2.8.11).
    """
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
    """Check that each area longer than ``limit`` bytes is one run of device addresses.

    Raises:
        QueueError: One is not.
    """
    for area, block in zip(sizes, blocks, strict=False):
        if area > limit and not block.contiguous:
            raise scattered(index, f"an area of {area} bytes", len(block.segments(0, area)))


def table_addresses(index: int, block: Block, size: int) -> list[int]:
    """Return the device address of each head's indirect table.

    Raises:
        QueueError: A table is not one run of device addresses.
    """
    step = INDIRECT_ENTRIES * DESC_SIZE
    tables: list[int] = []
    for address, length in block.segments(0, step * size):
        if length % step:
            raise scattered(index, "an indirect table", 2)
        tables += range(address, address + length, step)
    return tables


if TYPE_CHECKING:
    Made = TypeVar("Made", bound=VirtqueueBase)


def allocate_queue(
    made: type[Made],
    index: int,
    size: int,
    dma: DmaSpace,
    options: RingOptions,
    areas: Callable[[int, int, DmaSpace], list[Block]] | None = None,
) -> Made:
    """Allocate a queue of either format in memory of its own, which its ``close()`` frees.

    Args:
        made: The format's class.
        index: The queue's number, for errors.
        size: Number of entries.
        dma: Where its memory comes from.
        options: What was negotiated.
        areas: Allocates the three areas where they cannot be three blocks.

    Raises:
        UsageError: The format does not allow this size.
        QueueError: An area would not be one run of device addresses.
        MemoryScattered: The one region of a legacy queue would not be one run.
        MemlockExceeded: RLIMIT_MEMLOCK does not allow the memory.
        HugePagesLack: The pool has no huge page for the memory.
        PagemapHidden: This process may not read physical addresses.
        OperationFailed: The memory cannot be allocated or mapped. Nothing stays allocated in any case.
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
