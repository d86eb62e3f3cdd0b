"""Access to plugged memory, mapped piece by piece, so that unplugged memory cannot be touched.

Each piece is a mapping of its own and pins its blocks. An unplugged block is in no mapping of this process and in
no DMA map (5.15.6.1); a block with a piece on it cannot be unplugged.
"""

from __future__ import annotations

from typing import Self

from uvirtio.drivers.mem.block_table import Use
from uvirtio.drivers.mem.driver import Mem
from uvirtio.drivers.mem.kernel_use import of_this_machine
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
    """Plugged memory, mapped and pinned until ``close()``; a ``Block`` for devices of the same machine.

    Attributes:
        offset: Where it begins in the region, in bytes.
        size: Bytes.
        address: Its guest-physical address.
        view: Its bytes.
    """

    contiguous = True

    def __init__(self, region: Region, use: Use, shown: DmaSpace | None) -> None:
        """Map a part of a region; ``Region.view`` and ``Region.alloc`` call this.

        Args:
            region: The region.
            use: The pin or claim of the bytes; the piece releases it.
            shown: The DMA space of another device that is to reach them too.

        Raises:
            NotSupported: The other device's back end cannot map this memory.
            PermissionLack, OperationFailed: The memory could not be mapped.
        """
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
        """Return the device addresses of a part: guest-physical, or those of the DMA space that it is shown in.

        Args:
            offset: Where the part begins in the piece, in bytes.
            length: Bytes.

        Returns:
            (address, bytes) of each contiguous part.

        Raises:
            Closed: The piece was closed.
            Misuse: The part exceeds the piece.
        """
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
        """Return the guest-physical frame numbers of its pages of 4096 bytes; they never change."""
        end = -(-(self.address + self.size) >> PFN_SHIFT)
        return list(range(self.address >> PFN_SHIFT, end))

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._region.is_closed(self)

    def close(self) -> None:
        """Unmap it from the device and the process, and unpin its blocks; idempotent.

        Raises:
            BufferError: A view made from ``view`` is still held; the blocks stay pinned.
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
    """Access to the plugged memory of a memory device. Offsets are from the start of the region, in bytes.

    Closing the region closes its pieces.
    """

    def __init__(self, mem: Mem, window: MemoryWindow) -> None:
        """Use a given window; ``Region.open`` finds one.

        Args:
            mem: The driver.
            window: Maps the region's memory for the CPU; the region owns it.

        Raises:
            NotSupported: Blocks are no multiple of the CPU's page, and cannot be mapped one by one.
        """
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
        """Open the region through the memory's own file (``qemu:``), else through /dev/mem of this machine.

        Args:
            mem: The driver.
            roots: Whose /dev/mem to open.

        Raises:
            NotSupported: There is no /dev/mem, it does not map plugged memory as ordinary memory (all CPUs but
                x86), blocks are no multiple of the CPU's page, or the device is one of a ``scripted:`` or
                ``vhost-user:`` address, which has no memory of this machine.
            PermissionLack: /dev/mem may not be opened.
        """
        backend = mem.device.transport.backend
        if isinstance(backend, ProvidesMemory):
            window: MemoryWindow = backend.plugged_memory()
        elif not of_this_machine(mem.device):
            raise NotSupported(
                f"the memory of {mem.device.address} is that of another program",
                seen="a vhost-user device",
                expected="a device of this machine, or of QEMU",
            )
        else:
            window = dev_mem(mem.addr, mem.config().region_size, roots or Roots())
        try:
            return cls(mem, window)
        except BaseException:
            window.close()
            raise

    # --- pieces ---------------------------------------------------------------------------------------------

    def view(self, offset: int, length: int, *, owner: str = "a view", shown: DmaSpace | None = None) -> Piece:
        """Map plugged memory. What was plugged and not initialised yet is zeroed first (5.15.6.1).

        Args:
            offset: Where it begins in the region, in bytes.
            length: Bytes.
            owner: Who uses it, for errors and listings.
            shown: The DMA space of another device of the same machine that is to reach it too.

        Returns:
            The memory, pinned until it is closed.

        Raises:
            NotPlugged: Not all of it is plugged.
            NotSupported: The other device's back end cannot map this memory.
            PermissionLack, OperationFailed: It could not be mapped.
        """
        self._initialise(offset, length)
        return self._piece(self.mem.block_table.pin(offset, length, owner), shown)

    def alloc(self, size: int, *, owner: str = "a buffer", shown: DmaSpace | None = None) -> Piece:
        """Allocate zeroed plugged memory that is not in use, in whole pages, for buffers of another driver.

        Args:
            size: Bytes; rounded up to whole pages of the CPU.
            owner: Who uses it, for errors and listings.
            shown: The DMA space of another device of the same machine that is to reach it too.

        Returns:
            The memory, claimed until it is closed.

        Raises:
            BadSize: ``size`` is not above 0.
            OperationFailed: No contiguous plugged memory of this size is free, or it could not be mapped.
            NotSupported: The other device's back end cannot map this memory.
            PermissionLack: It may not be mapped.
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
                remedy="plug more: plug_size(), or uvirtio mem plug DEV SIZE",
            )
        use = table.claim(found, length, owner)
        try:
            self.zero(found, length)
        except BaseException:
            table.release(use)
            raise
        return self._piece(use, shown)

    def show(self, space: DmaSpace, *, owner: str = "a device") -> list[Piece]:
        """Map all plugged memory for another device: one piece for each plugged run, none for the gaps.

        Args:
            space: The DMA space of the other device.
            owner: Who uses it, for errors and listings.

        Returns:
            The pieces; the memory is reachable until they are closed.

        Raises:
            NotSupported: The other device's back end cannot map this memory.
            PermissionLack, OperationFailed: It could not be mapped.
        """
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
        """Return a copy of ``length`` plugged bytes from ``offset``.

        Raises:
            NotPlugged: Not all of them are plugged.
        """
        with self.view(offset, length) as piece:
            return bytes(piece.view)

    def write(self, offset: int, data: bytes) -> None:
        """Write plugged memory from ``offset``.

        Raises:
            NotPlugged: Not all of it is plugged.
        """
        with self.view(offset, len(data)) as piece:
            piece.view[:] = data

    def zero(self, offset: int, length: int) -> None:
        """Zero ``length`` plugged bytes from ``offset``.

        Raises:
            NotPlugged: Not all of them are plugged.
        """
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

    # --- called by pieces -----------------------------------------------------------------------------------

    def is_closed(self, piece: Piece) -> bool:
        """Return whether a piece was closed."""
        return id(piece) not in self._pieces

    def closed_piece(self, piece: Piece, use: Use) -> None:
        """Forget a piece that was unmapped, and release its use."""
        del self._pieces[id(piece)]
        self.mem.block_table.release(use)

    def close(self) -> None:
        """Close all pieces and the window; idempotent.

        Raises:
            BufferError: A view of a piece is still held.
        """
        for piece in list(self._pieces.values()):
            piece.close()
        self.window.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
