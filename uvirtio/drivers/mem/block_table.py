"""The state of the blocks of one memory device: plugged, initialised, in use.

Blocks are numbered from the start of the region. Uses are in bytes, because a hand-out may be smaller than a
block; a block is in use as long as any byte of it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from uvirtio.drivers.mem.ranges import Ranges
from uvirtio.errors import InUse, NotPlugged


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A part of the region that is in use."""

    offset: int
    """Bytes from the start of the region."""
    length: int
    """Bytes."""
    owner: str
    exclusive: bool
    """True for a claim: handed out to one owner. False for a pin: mapped for this process or for a device."""


class BlockTable:
    """The block states of one device. ``Mem`` records what the device acknowledged, users of memory their uses."""

    def __init__(self, block_size: int) -> None:
        """Start with nothing plugged; ``block_size`` in bytes."""
        self.block_size = block_size
        self.plugged = Ranges()
        """Plugged blocks, by the device's responses."""
        self.fresh = Ranges()
        """Bytes, by offset, that were plugged by us and not initialised yet (5.15.6.1)."""
        self._uses: dict[Use, None] = {}
        self._claimed = Ranges()
        """Bytes, by offset, that have one owner."""
        self._in_use: Ranges | None = None

    @property
    def uses(self) -> list[Use]:
        """All claims and pins, the oldest first."""
        return list(self._uses)

    @property
    def in_use(self) -> Ranges:
        """Blocks of which at least a byte is in use."""
        if self._in_use is None:
            self._in_use = Ranges(self.blocks_of(use.offset, use.length) for use in self._uses)
        return self._in_use

    def blocks_of(self, offset: int, length: int) -> tuple[int, int]:
        """Return the blocks that contain ``length`` bytes from ``offset``, as (first, count)."""
        first = offset // self.block_size
        return first, -(-(offset + length) // self.block_size) - first

    # --- responses of the device ----------------------------------------------------------------------------

    def was_plugged(self, first: int, count: int) -> None:
        """Record that the device acknowledged a PLUG of ``count`` blocks."""
        self.plugged.add(first, count)
        self.fresh.add(first * self.block_size, count * self.block_size)

    def was_unplugged(self, first: int, count: int) -> None:
        """Record that the device acknowledged an UNPLUG of ``count`` blocks."""
        self.plugged.remove(first, count)
        self.fresh.remove(first * self.block_size, count * self.block_size)

    def set_plugged(self, plugged: Ranges) -> None:
        """Record which blocks are plugged, as STATE requests found; blocks new to us do not count as fresh."""
        size, lost = self.block_size, self.plugged.without(plugged)
        self.fresh = self.fresh.without(Ranges((first * size, count * size) for first, count in lost))
        self.plugged = plugged.copy()

    # --- uses -----------------------------------------------------------------------------------------------

    def require_plugged(self, offset: int, length: int) -> None:
        """Check that ``length`` bytes from ``offset`` are in plugged blocks.

        Raises:
            NotPlugged: Not all of them are.
        """
        if length > 0 and offset >= 0 and self.plugged.covers(*self.blocks_of(offset, length)):
            return
        raise NotPlugged(
            f"not all of the {length} bytes at {offset:#x} of the region are plugged",
            seen=f"plugged: {self._say(self.plugged)}",
            expected="plugged blocks only (5.15.6.1)",
            remedy="plug them first; what is not plugged must be neither read nor written",
        )

    def require_unused(self, first: int, count: int) -> None:
        """Check that none of these blocks is in use.

        Raises:
            InUse: One is.
        """
        used = Ranges(self.in_use.within(first, count))
        if not used:
            return
        start, end = first * self.block_size, (first + count) * self.block_size
        owners = {use.owner for use in self._uses if use.offset < end and start < use.offset + use.length}
        raise InUse(
            f"{used.total} of these {count} blocks are in use",
            seen=f"{self._say(used)} by {', '.join(sorted(owners))}",
            expected="blocks that are not in use (5.15.6.1)",
            remedy="close what uses them first",
        )

    def claim(self, offset: int, length: int, owner: str) -> Use:
        """Claim a part of the region for one owner.

        Args:
            offset: Where it begins in the region, in bytes.
            length: Bytes.
            owner: Who uses it, for errors and listings.

        Returns:
            The use, for ``release``.

        Raises:
            NotPlugged: Not all of it is plugged.
            InUse: Another owner has claimed a part of it.
        """
        self.require_plugged(offset, length)
        if self._claimed.overlaps(offset, length):
            raise self._handed_out(offset, length)
        self._claimed.add(offset, length)
        return self._used(Use(offset, length, owner, exclusive=True))

    def _handed_out(self, offset: int, length: int) -> InUse:
        use = next(
            use
            for use in self._uses
            if use.exclusive and use.offset < offset + length and offset < use.offset + use.length
        )
        return InUse(
            f"the {length} bytes at {offset:#x} of the region are handed out already",
            seen=f"{use.length} bytes at {use.offset:#x} to {use.owner}",
            expected="one owner",
        )

    def pin(self, offset: int, length: int, owner: str) -> Use:
        """Keep a part of the region plugged until ``release``; pins may overlap.

        Args:
            offset: Where it begins in the region, in bytes.
            length: Bytes.
            owner: Who uses it, for errors and listings.

        Returns:
            The use, for ``release``.

        Raises:
            NotPlugged: Not all of it is plugged.
        """
        self.require_plugged(offset, length)
        return self._used(Use(offset, length, owner, exclusive=False))

    def _used(self, use: Use) -> Use:
        self._uses[use] = None
        if self._in_use is not None:
            self._in_use.add(*self.blocks_of(use.offset, use.length))
        return use

    def release(self, use: Use) -> None:
        """End a use; idempotent."""
        if use in self._uses:
            del self._uses[use]
            if use.exclusive:
                self._claimed.remove(use.offset, use.length)
            self._in_use = None

    def _say(self, blocks: Ranges, most: int = 4) -> str:
        said = [f"blocks {first}..{first + count - 1}" for first, count in list(blocks)[:most]]
        more = blocks.runs - most
        return ", ".join(said) + (f" and {more} runs more" if more > 0 else "") or "none"
