"""Blocks of memory that are one run of device addresses. How this process has the memory is not their business."""

from __future__ import annotations

from array import array

from uvirtio.errors import Misuse
from uvirtio.spec.page import PFN_SHIFT
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap


class LinearBlock:
    """A block that is one run of device addresses from ``address`` on."""

    contiguous = True
    address: int
    """The device address of the first byte."""
    size: int
    """Length in bytes."""

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the device addresses of these bytes: always one run.

        Raises:
            Misuse: The bytes are not all in the block.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Misuse(f"{length} bytes at {offset} of a block of {self.size}")
        return [(self.address + offset, length)] if length else []


class GuestBlock(LinearBlock):
    """Memory at a known guest-physical address, which is its address for every device of the machine.

    Satisfies ``Block``. The mapping stays the caller's.
    """

    def __init__(self, mapping: mmap.mmap, physical: int) -> None:
        """View a mapping as a block.

        Args:
            mapping: The mapping; the whole of it.
            physical: Its guest-physical address, in bytes.
        """
        self.view = memoryview(mapping)
        self.size = len(self.view)
        self.address = physical

    def pfns(self) -> list[int]:
        """Return the guest-physical frame numbers; they never change."""
        return list(self._frames())

    def packed_pfns(self) -> array[int]:
        """Return the same packed; see ``PackedFrames``."""
        frames = self._frames()
        return array("I" if frames.stop <= 1 << 32 else "Q", frames)

    def _frames(self) -> range:
        first = self.address >> PFN_SHIFT
        return range(first, first + (-(-self.size >> PFN_SHIFT)))

    def close(self) -> None:
        """Release the view of the mapping; idempotent."""
        self.view.release()
