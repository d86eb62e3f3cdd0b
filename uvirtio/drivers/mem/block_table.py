"""What is plugged, what nobody has written to yet, and who uses what: the books of one memory device.

Blocks are numbered from the start of the region. Uses are in bytes, because a hand-out may be smaller than a
block; a block is in use as long as any byte of it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from uvirtio.drivers.mem.ranges import Ranges
from uvirtio.errors import InUse, NotPlugged


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """Some bytes of the region that somebody uses; ``offset`` and ``length`` in bytes."""

    offset: int
    length: int
    owner: str
    exclusive: bool
    """A claim: handed out to one owner. Otherwise a pin: somebody looks, or a device may."""


class BlockTable:
    """The books of one device: :class:`Mem` keeps what the device acknowledged, whoever uses memory their uses."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.plugged = Ranges()
        """Blocks that are plugged, by the device's own answers."""
        self.fresh = Ranges()
        """Bytes, by their offset, that we plugged and that nobody has initialised yet (5.15.6.1)."""
        self.uses: list[Use] = []
        self._in_use: Ranges | None = None

    @property
    def in_use(self) -> Ranges:
        """Blocks of which somebody uses at least a byte."""
        if self._in_use is None:
            self._in_use = Ranges(self.blocks_of(use.offset, use.length) for use in self.uses)
        return self._in_use

    def blocks_of(self, offset: int, length: int) -> tuple[int, int]:
        """The blocks, as (first, count), that these bytes of the region lie in."""
        first = offset // self.block_size
        return first, -(-(offset + length) // self.block_size) - first

    # --- what the device said -------------------------------------------------------------------------------

    def was_plugged(self, first: int, count: int) -> None:
        """The device acknowledged a PLUG."""
        self.plugged.add(first, count)
        self.fresh.add(first * self.block_size, count * self.block_size)

    def was_unplugged(self, first: int, count: int) -> None:
        """The device acknowledged an UNPLUG."""
        self.plugged.remove(first, count)
        self.fresh.remove(first * self.block_size, count * self.block_size)

    def set_plugged(self, plugged: Ranges) -> None:
        """The device told, block by block, what is plugged; what we did not know of is not ours to clear."""
        for first, count in self.plugged.without(plugged):
            self.was_unplugged(first, count)
        self.plugged = plugged.copy()

    # --- who uses what --------------------------------------------------------------------------------------

    def require_plugged(self, offset: int, length: int) -> None:
        """Raise NotPlugged unless all of these bytes are in plugged blocks."""
        if length > 0 and offset >= 0 and self.plugged.covers(*self.blocks_of(offset, length)):
            return
        raise NotPlugged(
            f"not all of the {length} bytes at {offset:#x} of the region are plugged",
            seen=f"plugged: {self._say(self.plugged)}",
            expected="plugged blocks only (5.15.6.1)",
            remedy="plug them first; what is not plugged must be neither read nor written",
        )

    def require_unused(self, first: int, count: int) -> None:
        """Raise InUse if somebody uses one of these blocks."""
        used = Ranges(self.in_use.within(first, count))
        if not used:
            return
        start, end = first * self.block_size, (first + count) * self.block_size
        owners = {use.owner for use in self.uses if use.offset < end and start < use.offset + use.length}
        raise InUse(
            f"{used.total} of these {count} blocks are in use",
            seen=f"{self._say(used)} by {', '.join(sorted(owners))}",
            expected="blocks that nobody uses (5.15.6.1)",
            remedy="close what uses them first",
        )

    def claim(self, offset: int, length: int, owner: str) -> Use:
        """Hand these bytes to one owner. Raises NotPlugged, and InUse if another has any of them."""
        self.require_plugged(offset, length)
        for use in self.uses:
            if use.exclusive and use.offset < offset + length and offset < use.offset + use.length:
                raise InUse(
                    f"the {length} bytes at {offset:#x} of the region were handed out before",
                    seen=f"{use.length} bytes at {use.offset:#x} to {use.owner}",
                    expected="one owner",
                )
        return self._used(Use(offset, length, owner, exclusive=True))

    def pin(self, offset: int, length: int, owner: str) -> Use:
        """Keep these bytes plugged until ``release``; several may pin the same. Raises NotPlugged."""
        self.require_plugged(offset, length)
        return self._used(Use(offset, length, owner, exclusive=False))

    def _used(self, use: Use) -> Use:
        self.uses.append(use)
        self._in_use = None
        return use

    def release(self, use: Use) -> None:
        """The end of a use; idempotent."""
        if use in self.uses:
            self.uses.remove(use)
            self._in_use = None

    def _say(self, blocks: Ranges, most: int = 4) -> str:
        said = [f"blocks {first}..{first + count - 1}" for first, count in list(blocks)[:most]]
        more = blocks.runs - most
        return ", ".join(said) + (f" and {more} runs more" if more > 0 else "") or "none"
