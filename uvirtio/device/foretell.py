"""How much memory a start needs in all, told at once where the first map that is too much was refused.

Without this a user who raises RLIMIT_MEMLOCK to what an error asks for meets the next one, map by map.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress

from uvirtio.device.bringup import RingMaker
from uvirtio.device.queue import Queue, QueueSpec
from uvirtio.device.state import DeviceState
from uvirtio.errors import MemlockExceeded, UvirtioError
from uvirtio.host.pages import CPU_PAGE
from uvirtio.interfaces.runtime import LimitedSpace
from uvirtio.spec.page import PFN_SHIFT
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import DmaSpace
    from uvirtio.virtqueue.interface import Virtqueue


class _Counted:
    """Memory that no device has. Satisfies ``Block``."""

    contiguous = True

    def __init__(self, size: int, address: int) -> None:
        self.size = size
        self.address = address
        self.view = memoryview(mmap.mmap(-1, size))

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return addresses that lead nowhere."""
        return [(self.address + offset, length)] if length else []

    def pfns(self) -> list[int]:
        """Return frame numbers that no page has."""
        return list(range(self.address >> PFN_SHIFT, self.address + self.size >> PFN_SHIFT))

    def close(self) -> None:
        """Nothing: views may still be held."""


class _Tally:
    """A DMA space that counts what is asked of it. Satisfies ``DmaSpace``."""

    def __init__(self, like: DmaSpace) -> None:
        self.translated = like.translated
        self.contiguous_limit = like.contiguous_limit
        self.total = 0

    def alloc(self, size: int) -> _Counted:
        """Count so many bytes, rounded up to pages."""
        size = -(-size // CPU_PAGE) * CPU_PAGE
        made = _Counted(size, (1 << 32) + self.total)
        self.total += size
        return made

    pin = alloc

    def close(self) -> None:
        """Nothing: there is no device."""


class _NoDoorbell:
    """Satisfies ``Doorbell``."""

    def ring(self, value: int) -> None:
        """Nothing: there is no device."""

    def close(self) -> None:
        """Nothing."""


def whole_need(
    device: DeviceState,
    maker: Callable[[], RingMaker],
    error: BaseException,
    specs: Sequence[QueueSpec],
    before_ok: Callable[[], None] | None,
) -> Exception | None:
    """The error for all memory of a start, in place of one for the map at which it ended.

    The rings are made once more, and the driver asks for its own, in memory that no device has.

    Args:
        device: The device, which is about to be left; it still answers.
        maker: Makes what makes its rings, in the memory that it has then.
        error: How the start ended.
        specs: The queues that were wanted.
        before_ok: What the driver does before DRIVER_OK.

    Returns:
        The error; None: it is not about RLIMIT_MEMLOCK, or the back end cannot say.
    """
    space = device._dma
    if not isinstance(error, MemlockExceeded) or not isinstance(space, LimitedSpace):
        return None
    rings: list[Virtqueue] = []
    tally, queues = _Tally(space), device.queues
    device._dma = tally
    try:
        with suppress(UvirtioError):
            made = maker().make_all(specs, rings)
            device.queues = {spec.index: Queue(spec, ring, _NoDoorbell()) for spec, ring in made}
            if before_ok is not None:
                before_ok()
    finally:
        device._dma, device.queues = space, queues
    return space.lack(tally.total)
