"""Plugged memory in use: mapped piece by piece, so that what is not plugged is not there to be touched.

Each piece is a mapping of its own and pins its blocks. An unplugged block is in no mapping of this process and
in no DMA map (5.15.6.1); a block with a piece on it cannot be unplugged.
"""

from __future__ import annotations

from typing import Self

from uvirtio.drivers.mem.block_table import Use
from uvirtio.drivers.mem.driver import Mem
from uvirtio.drivers.mem.ranges import Ranges
from uvirtio.errors import BadSize, Closed, Misuse, NotSupported, OperationFailed
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots
from uvirtio.interfaces.backend import ProvidesMemory
from uvirtio.interfaces.memory import AdoptsMemory, Block, DmaSpace, MemoryWindow
from uvirtio.memory.window import dev_mem
from uvirtio.spec.page import PFN_SHIFT

_ZEROES = 1 << 20


class Piece:
    """Plugged bytes, mapped and pinned until ``close()``; a ``Block`` for devices of the same machine.

    ``offset``: where it begins in the region; ``address``: its guest-physical address.
    """

    contiguous = True

    def __init__(self, region: Region, use: Use, shown: DmaSpace | None) -> None:
        self._region = region
        self._use = use
        self.offset = use.offset
        self.size = use.length
        self.address = region.mem.addr + use.offset
        self._within = use.offset % CPU_PAGE  # mappings begin at a page
        whole = -(-(self._within + use.length) // CPU_PAGE) * CPU_PAGE
        self._mapping = region.window.map(use.offset - self._within, whole)
        self._block: Block | None = None
        self._runs: list[tuple[int, int]] | None = None
        try:
            if shown is not None:
                self._show(shown)
        except BaseException:
            self._mapping.close()
            raise
        with memoryview(self._mapping) as view:
            self.view = view[self._within : self._within + use.length]

    def _show(self, space: DmaSpace) -> None:
        if isinstance(space, AdoptsMemory):
            self._block = space.adopt(self._mapping, self.address - self._within)
            self.contiguous = self._block.contiguous
        elif space.translated:
            raise NotSupported(
                "the other device uses translated addresses, and its back end cannot map this memory for it",
                seen="a DMA space that adopts nothing",
                expected="one that does, or guest-physical addresses",
            )

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The device addresses of these bytes: guest-physical, or those of the space that it is shown in."""
        if self.closed:
            raise Closed("this piece of plugged memory is closed")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Misuse(f"{length} bytes at {offset} of a piece of {self.size}")
        if not length:
            return []
        if self._block is not None:
            return self._block.segments(self._within + offset, length)
        return [(self.address + offset, length)]

    def pfns(self) -> list[int]:
        """The guest-physical frame numbers; they never change."""
        end = -(-(self.address + self.size) >> PFN_SHIFT)
        return list(range(self.address >> PFN_SHIFT, end))

    @property
    def closed(self) -> bool:
        return self._region.is_closed(self)

    def close(self) -> None:
        """Take it from the device, unmap it, unpin its blocks; idempotent.

        Raises BufferError while somebody holds a view made from ``view``: the blocks stay pinned then.
        """
        if self.closed:
            return
        if self._block is not None:
            self._block.close()
            self._block = None
        self.view.release()
        self._mapping.close()
        self._region.closed_piece(self, self._use)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Region:
    """The plugged blocks of a memory device as memory. Offsets are from the start of the region, in bytes.

    ``window`` is how the CPU gets there; :meth:`open` finds it. Closing the region closes its pieces.
    """

    def __init__(self, mem: Mem, window: MemoryWindow) -> None:
        if mem.block_size % CPU_PAGE:
            raise NotSupported(
                "blocks smaller than a page cannot be mapped one by one",
                seen=f"block_size {mem.block_size}",
                expected=f"a multiple of {CPU_PAGE}",
            )
        self.mem = mem
        self.window = window
        self._pieces: dict[int, Piece] = {}

    @classmethod
    def open(cls, mem: Mem, *, roots: Roots | None = None) -> Self:
        """The region through the memory's own file (``qemu:``), else through /dev/mem of this machine.

        Raises NotSupported, PermissionLack.
        """
        backend = mem.device.transport.backend
        if isinstance(backend, ProvidesMemory):
            window: MemoryWindow = backend.plugged_memory()
        else:
            window = dev_mem(mem.addr, mem.config().region_size, roots or Roots())
        try:
            return cls(mem, window)
        except BaseException:
            window.close()
            raise

    # --- pieces ---------------------------------------------------------------------------------------------

    def view(self, offset: int, length: int, *, owner: str = "a view", shown: DmaSpace | None = None) -> Piece:
        """These plugged bytes, mapped. What was plugged and never used is zeroed first (5.15.6.1).

        ``shown``: the DMA space of another device of the same machine that is to reach them too.
        Raises NotPlugged, and what mapping them may raise.
        """
        self._initialise(offset, length)
        return self._piece(self.mem.block_table.pin(offset, length, owner), shown)

    def alloc(self, size: int, *, owner: str = "a buffer", shown: DmaSpace | None = None) -> Piece:
        """``size`` zeroed bytes that nobody else uses, in whole pages, for buffers of another driver.

        Raises OperationFailed when there is no such run of plugged memory.
        """
        if size <= 0:
            raise BadSize(f"{size} bytes of memory", seen=size, expected="1 or more")
        length = -(-size // CPU_PAGE) * CPU_PAGE
        table = self.mem.block_table
        block = table.block_size
        free = Ranges((first * block, count * block) for first, count in table.plugged)
        for use in table.uses:
            free.remove(use.offset // CPU_PAGE * CPU_PAGE, use.length + use.offset % CPU_PAGE)
        starts = ((-(-first // CPU_PAGE) * CPU_PAGE, first + count) for first, count in free)
        found = next((offset for offset, end in starts if offset + length <= end), None)
        if found is None:
            raise OperationFailed(
                f"no {length} bytes of plugged memory in a row are free",
                seen=f"{free.total} bytes free, in {free.runs} runs",
                expected=f"a run of {length}",
                remedy="plug more: uvirtio mem plug DEV SIZE",
            )
        use = table.claim(found, length, owner)
        try:
            self.zero(found, length)
        except BaseException:
            table.release(use)
            raise
        return self._piece(use, shown)

    def show(self, space: DmaSpace, *, owner: str = "a device") -> list[Piece]:
        """All plugged memory in another device's DMA space: a map for each plugged run, none for the gaps."""
        block = self.mem.block_size
        made: list[Piece] = []
        try:
            for first, count in list(self.mem.block_table.plugged):
                made.append(self.view(first * block, count * block, owner=owner, shown=space))
        except BaseException:
            for piece in made:
                piece.close()
            raise
        return made

    def read(self, offset: int, length: int) -> bytes:
        """A copy of these plugged bytes. Raises NotPlugged."""
        with self.view(offset, length) as piece:
            return bytes(piece.view)

    def write(self, offset: int, data: bytes) -> None:
        """Write plugged bytes. Raises NotPlugged."""
        with self.view(offset, len(data)) as piece:
            piece.view[:] = data

    def zero(self, offset: int, length: int) -> None:
        """Clear plugged bytes. Raises NotPlugged."""
        table = self.mem.block_table
        with self._piece(table.pin(offset, length, "being cleared"), None) as piece:
            for at in range(0, length, _ZEROES):
                count = min(_ZEROES, length - at)
                piece.view[at : at + count] = bytes(count)
        table.fresh.remove(offset, length)

    def _initialise(self, offset: int, length: int) -> None:
        table = self.mem.block_table
        table.require_plugged(offset, length)
        for first, count in list(table.fresh.within(offset, length)):
            self.zero(first, count)

    def _piece(self, use: Use, shown: DmaSpace | None) -> Piece:
        try:
            piece = Piece(self, use, shown)
        except BaseException:
            self.mem.block_table.release(use)
            raise
        self._pieces[id(piece)] = piece
        return piece

    # --- the pieces' own ------------------------------------------------------------------------------------

    def is_closed(self, piece: Piece) -> bool:
        return id(piece) not in self._pieces

    def closed_piece(self, piece: Piece, use: Use) -> None:
        """A piece was unmapped."""
        del self._pieces[id(piece)]
        self.mem.block_table.release(use)

    def close(self) -> None:
        """Close all pieces and the window; idempotent. Raises BufferError while a view is held elsewhere."""
        for piece in list(self._pieces.values()):
            piece.close()
        self.window.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
