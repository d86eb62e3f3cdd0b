"""Guest memory of a scripted device: blocks with guards, and an IOMMU that knows every page.

The device reaches memory only through ``Memory``, by device address. An address that is not mapped, or
that was freed, raises ``StrayAccess``. Around each block lie guard pages full of a canary byte.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

from uvirtio.errors import Closed, Misuse, PagemapHidden

PAGE = 4096
CANARY = 0xA5
POISON = 0xDD  # what freed memory holds

FIRST_IOVA = 0x1_0000_0000
FIRST_FRAME = 0x8_0000


class StrayAccess(AssertionError):
    """Somebody touched memory that was not theirs."""


class ScriptedBlock:
    """A ``Block``; ``frames`` are the guest-physical frame numbers, ``device_pages`` what the device uses."""

    def __init__(self, memory: Memory, size: int, frames: list[int], device_pages: list[int]) -> None:
        self._memory = memory
        self._map = mmap.mmap(-1, size + 2 * PAGE)
        whole = memoryview(self._map)
        for guard in (whole[:PAGE], whole[PAGE + size :]):
            guard[:] = bytes([CANARY]) * PAGE
            guard.release()
        self.view = whole[PAGE : PAGE + size]
        whole.release()
        self.size = size
        self.frames = frames
        self.device_pages = device_pages
        self.contiguous = device_pages == list(range(device_pages[0], device_pages[0] + len(device_pages)))
        self.mapped = False
        self.closed = False

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The (device address, length) runs behind ``length`` bytes at ``offset``."""
        if offset < 0 or length <= 0 or offset + length > self.size:
            raise Misuse(
                f"{length} bytes at {offset} of a block of {self.size}",
                seen=f"{length} bytes at {offset}",
                expected=f"inside {self.size} bytes",
            )
        runs: list[tuple[int, int]] = []
        while length:
            page, within = divmod(offset, PAGE)
            step = min(length, PAGE - within)
            address = self.device_pages[page] * PAGE + within
            if runs and sum(runs[-1]) == address:
                runs[-1] = (runs[-1][0], runs[-1][1] + step)
            else:
                runs.append((address, step))
            offset += step
            length -= step
        return runs

    def pfns(self) -> list[int]:
        """The guest-physical frame number of each 4 KiB page."""
        if self._memory.pagemap_hidden:
            raise PagemapHidden("this process may not know its frames")
        return list(self.frames)

    def move(self, page: int) -> None:
        """The kernel moves a page, as it may with memory that is not pinned."""
        self.frames[page] = self._memory.take_frames(1)[0]

    def guards_intact(self) -> bool:
        """Whether no guard byte was touched."""
        if self.closed:
            return True
        return self._map[:PAGE] == self._map[PAGE + self.size :] == bytes([CANARY]) * PAGE

    def close(self) -> None:
        """Free the block: its bytes are poisoned and its addresses unmapped. Idempotent."""
        if self.closed:
            return
        if not self.guards_intact():
            raise StrayAccess("a guard page was written to")
        self._memory.forget(self)
        self.view[:] = bytes([POISON]) * self.size
        self.view.release()  # BufferError if a cast of it is still held
        self.closed = True
        self._map.close()


class OtherMemory:
    """Memory that the device reaches and that is no block of the driver's, such as what a memory device plugs."""

    def __init__(self, view: memoryview) -> None:
        self.view = view


class Memory:
    """All memory of one scripted guest, as the device sees it."""

    def __init__(self) -> None:
        self.blocks: list[ScriptedBlock] = []
        self.pagemap_hidden = False
        self.on_free: Callable[[ScriptedBlock], None] = lambda block: None
        self.reads = 0
        self.writes = 0
        self._pages: dict[int, tuple[ScriptedBlock | OtherMemory, int]] = {}
        self._next_iova_page = FIRST_IOVA // PAGE
        self._next_frame = FIRST_FRAME

    def take_frames(self, count: int, run: int = 1) -> list[int]:
        """Frame numbers in runs of ``run``, with gaps between the runs so that none touch."""
        frames: list[int] = []
        while len(frames) < count:
            frames += range(self._next_frame, self._next_frame + run)
            self._next_frame += 2 * run + 1
        return frames[:count]

    def take_iova_pages(self, count: int) -> list[int]:
        """``count`` consecutive I/O virtual page numbers that were never used."""
        first = self._next_iova_page
        self._next_iova_page += count + 1
        return list(range(first, first + count))

    def add(self, block: ScriptedBlock, *, mapped: bool) -> None:
        """Take a block in; ``mapped``: the device reaches it."""
        self.blocks.append(block)
        block.mapped = mapped
        if mapped:
            for number, page in enumerate(block.device_pages):
                self._pages[page] = (block, number * PAGE)

    def forget(self, block: ScriptedBlock) -> None:
        """Unmap a block that is being freed."""
        self.on_free(block)
        for page in block.device_pages:
            if self._pages.get(page, (None,))[0] is block:
                del self._pages[page]

    def show(self, address: int, view: memoryview) -> None:
        """Let the device reach other memory, in whole pages, at a device address."""
        other = OtherMemory(view)
        for start in range(0, len(view), PAGE):
            self._pages[(address + start) // PAGE] = (other, start)

    def hide(self, address: int, length: int) -> None:
        """Let it no longer reach what was shown."""
        for page in range(address // PAGE, (address + length) // PAGE):
            self._pages.pop(page, None)

    def open_blocks(self) -> list[ScriptedBlock]:
        """The blocks that are not freed."""
        return [block for block in self.blocks if not block.closed]

    def frame_owner(self, frame: int) -> ScriptedBlock | None:
        """The block that a guest-physical frame belongs to."""
        for block in self.blocks:
            if not block.closed and frame in block.frames:
                return block
        return None

    def is_mapped(self, address: int, length: int) -> bool:
        """Whether the device reaches all of ``length`` bytes at ``address``."""
        return all(page in self._pages for page in range(address // PAGE, (address + length - 1) // PAGE + 1))

    def _pieces(self, address: int, length: int) -> list[tuple[ScriptedBlock | OtherMemory, int, int]]:
        pieces = []
        while length:
            page, within = divmod(address, PAGE)
            if page not in self._pages:
                raise StrayAccess(f"the device reached for {address:#x}, where nothing is mapped")
            block, start = self._pages[page]
            step = min(length, PAGE - within)
            pieces.append((block, start + within, step))
            address += step
            length -= step
        return pieces

    def read(self, address: int, length: int) -> bytes:
        """What the device reads by DMA."""
        self.reads += 1
        return b"".join(
            bytes(block.view[start : start + step]) for block, start, step in self._pieces(address, length)
        )

    def write(self, address: int, data: bytes) -> None:
        """What the device writes by DMA."""
        self.writes += 1
        place = 0
        for block, start, step in self._pieces(address, len(data)):
            block.view[start : start + step] = data[place : place + step]
            place += step

    def read_int(self, address: int, width: int) -> int:
        """A little-endian integer of ``width`` bytes, read by DMA."""
        return int.from_bytes(self.read(address, width), "little")

    def write_int(self, address: int, width: int, value: int) -> None:
        """Write a little-endian integer of ``width`` bytes by DMA."""
        self.write(address, (value & ((1 << 8 * width) - 1)).to_bytes(width, "little"))

    def assert_clean(self) -> None:
        """No guard was written to. (Stray accesses of the device raise where they happen.)"""
        for block in self.blocks:
            if not block.guards_intact():
                raise StrayAccess("a guard page was written to")


class ScriptedDma:
    """A ``DmaSpace`` over a ``Memory``.

    Translated: contiguous IOVAs. Not translated: guest-physical addresses in runs of ``contiguous_limit``.
    """

    def __init__(
        self, memory: Memory | None = None, *, translated: bool = True, contiguous_limit: int | None = None
    ) -> None:
        self.memory = memory or Memory()
        self.translated = translated
        if contiguous_limit is None:
            contiguous_limit = 1 << 30 if translated else PAGE
        self.contiguous_limit = contiguous_limit
        self.closed = False
        self._own: list[ScriptedBlock] = []

    def _make(self, size: int, *, mapped: bool) -> ScriptedBlock:
        if self.closed:
            raise Closed("this DMA space is closed")
        pages = max(1, -(-size // PAGE))
        run = max(1, min(self.contiguous_limit // PAGE, pages))
        frames = self.memory.take_frames(pages, 1 if self.translated else run)
        device_pages = self.memory.take_iova_pages(pages) if self.translated else list(frames)
        block = ScriptedBlock(self.memory, pages * PAGE, frames, device_pages)
        self.memory.add(block, mapped=mapped)
        self._own.append(block)
        return block

    def alloc(self, size: int) -> ScriptedBlock:
        """A block that the device reaches, of at least ``size`` bytes."""
        return self._make(size, mapped=True)

    def pin(self, size: int) -> ScriptedBlock:
        """A block that stays where it is and that the device does not reach."""
        return self._make(size, mapped=False)

    def close(self) -> None:
        """Free all blocks. Idempotent."""
        if not self.closed:
            self.closed = True
            for block in self._own:
                block.close()
