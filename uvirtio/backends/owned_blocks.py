"""The blocks of one DMA space, of whichever kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

from uvirtio.backends.pages import PagedBlock
from uvirtio.errors import BadSize, Closed, OperationFailed
from uvirtio.host.pagemap import Pagemap

AnyBlock = TypeVar("AnyBlock", bound=PagedBlock)


class OwnedBlocks(Generic[AnyBlock]):
    """The blocks that a DMA space has allocated and that are still open; they end with the space."""

    def __init__(self, pagemap: Pagemap) -> None:
        """Set up an empty space that reads frame numbers from ``pagemap``, which it closes."""
        self._pagemap = pagemap
        self._blocks: dict[int, AnyBlock] = {}
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this DMA space is closed")

    def _rounded(self, size: int, unit: int) -> int:
        """Return ``size`` bytes rounded up to whole units; Closed after ``close()``, BadSize unless positive."""
        self._check_open()
        if size <= 0:
            raise BadSize(f"{size} bytes of memory", seen=size, expected="1 or more")
        return -(-size // unit) * unit

    def _keep(self, block: AnyBlock) -> AnyBlock:
        self._blocks[id(block)] = block
        return block

    def _forget(self, block: AnyBlock) -> None:
        self._blocks.pop(id(block), None)

    def rights(self) -> dict[str, str]:
        """Open what frame numbers are read from; nothing else is opened later. See ``KeepsRights``."""
        self._pagemap.hold()
        return {}

    def _closers(self) -> Iterator[Callable[[], None]]:
        """Yield what else is closed with the space, after its blocks; each idempotent."""
        yield self._pagemap.close

    def close(self) -> None:
        """Unmap and free all blocks; idempotent. All are tried before the first error is reported.

        Raises:
            OperationFailed: The kernel refused to unmap a block.
            BufferError: A view of a block is still held.
        """
        self._closed = True
        first: BaseException | None = None
        for close in [*(block.close for block in self._blocks.values()), *self._closers()]:
            try:
                close()
            except (OperationFailed, Closed, BufferError) as error:
                first = first or error
        if first is not None:
            raise first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
