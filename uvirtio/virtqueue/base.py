"""What both ring formats keep beside their rings: the books of what is out, the errors, the way out.

The books are private. The device can reach none of them, so that whatever it writes is held against them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class VirtqueueBase:
    """The part of a queue that is the same for split and packed rings.

    ``desc``, ``driver`` and ``device`` are blocks of at least :meth:`area_sizes` bytes, each contiguous over its
    area. ``indirect`` (given when INDIRECT_DESC was negotiated) holds one table of ``INDIRECT_ENTRIES``
    descriptors for each id: a chain of two or more elements that fits a table goes there and takes one descriptor
    of the ring.

    ``fence`` is a full fence. ``order`` is None on CPUs that keep stores in order, and loads in order (x86);
    elsewhere it is a fence that keeps them so: what is shown after what it shows, what was announced after the
    announcement.

    ``in_order``: IN_ORDER was negotiated. ``clamp_used_len`` tolerates devices that report more bytes written
    than there was room for. Not safe against exceptions raised in the middle by a signal handler: let the handler
    set a flag.

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
        *,
        fence: Fence,
        indirect: Block | None = None,
        event_idx: bool,
        in_order: bool = False,
        order: Fence | None = None,
        clamp_used_len: bool = False,
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

        self._fence = fence
        self._order = order
        self._event_idx = event_idx
        self._in_order = in_order
        self._clamp = clamp_used_len

        self._tables: list[int] = [] if indirect is None else table_addresses(index, indirect, size)
        """Device addresses of the indirect tables, one for each id; none without INDIRECT_DESC."""

        # What is out, by the id that the device names it by.
        self._out: list[InFlight | None] = [None] * size
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
        self._told = -1
        """With IN_ORDER: the number of the last chain that the device has named as used."""
        self._told_written = 0

        self._owned: list[Block] = []
        self._desc = words64(desc.view, 0, 2 * size)
        self._views = [self._desc]
        self._table_words = None
        if indirect is not None:
            self._table_words = words64(indirect.view, 0, 2 * INDIRECT_ENTRIES * size)
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
            expected="submit() and reap() of its slots",
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


Made = TypeVar("Made", bound=VirtqueueBase)


def allocate_queue(
    made: type[Made],
    index: int,
    size: int,
    dma: DmaSpace,
    *,
    fence: Fence,
    indirect: bool,
    event_idx: bool,
    in_order: bool,
    order: Fence | None,
    clamp_used_len: bool,
    areas: Callable[[int, int, DmaSpace], list[Block]] | None = None,
) -> Made:
    """A queue of either format in memory of its own, which its ``close()`` gives back.

    ``order``: an ordering fence instead of what this machine needs between CPUs (ORDER_PLATFORM).
    ``areas(index, size, dma)`` makes the three areas where they may not be three blocks.

    Raises UsageError for a bad size, QueueError where an area would not be one run of device addresses, and what
    ``dma.alloc`` and ``areas`` raise; then nothing stays allocated.
    """
    sizes = list(made.area_sizes(size))
    if indirect:
        sizes.append(INDIRECT_ENTRIES * DESC_SIZE * size)
    blocks: list[Block] = []
    try:
        if areas is not None:
            blocks += areas(index, size, dma)
        for area in sizes[len(blocks) :]:
            blocks.append(dma.alloc(area))
        check_contiguous(index, sizes[:3], blocks, dma.contiguous_limit)
        queue = made(
            index,
            size,
            *blocks[:3],
            fence=fence,
            indirect=blocks[3] if indirect else None,
            event_idx=event_idx,
            in_order=in_order,
            order=order or order_fence(),
            clamp_used_len=clamp_used_len,
        )
    except BaseException:
        for block in blocks:
            block.close()
        raise
    queue.own(*blocks)
    return queue
