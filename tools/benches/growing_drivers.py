"""Drivers on scripted devices of growing size: memory devices, balloons, many devices in one process."""

from __future__ import annotations

import random
import tracemalloc
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benches.measure import cpu
from uvirtio.device import Device
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.mem import BlockTable, Mem, Ranges
from uvirtio.drivers.rng import Rng
from uvirtio.opening import identify
from uvirtio.scripted import Balloon as BalloonModel
from uvirtio.scripted import Chain, ScriptedDevice
from uvirtio.scripted import Mem as MemModel
from uvirtio.scripted import Rng as RngModel
from uvirtio.scripted.faults import Access
from uvirtio.scripted.memory import ScriptedBlock, ScriptedDma
from uvirtio.spec.mem import Response, State

GIB = 1 << 30
_BLOCK = 2 << 20


class Forgets(list[Access]):
    """A log of accesses that stays empty: what is measured is not the scripted device."""

    def append(self, item: Access) -> None:
        """Drop it."""


def at_work(function: ScriptedDevice) -> Device:
    """The scripted device, open, with an hour for each call."""
    function.log = Forgets()
    backend: Any = function
    return identify(function.address, backend, timeout=3600)


# --- memory devices -------------------------------------------------------------------------------------------

REGIONS = tuple(gib * GIB for gib in (1, 4, 16, 64, 256, 1024, 4096))
BOOKS = tuple(1 << power for power in range(6, 21, 2))


class Region(MemModel):
    """A memory device whose plugged blocks are ranges, which costs the same however large they are."""

    def __init__(self, blocks: int, plugged: Ranges) -> None:
        self.ranges = plugged
        super().__init__(blocks=blocks, addr=1 << 40, requested=blocks * _BLOCK)
        self.put("plugged_size", plugged.total * _BLOCK)

    def _book(self) -> None:
        pass

    def decide(self, kind: int, addr: int, blocks: int) -> tuple[int, int | None]:
        self.requests.clear()
        inside = self.ranges.count((addr - self.addr) // self.block_size, blocks)
        return Response.ACK, State.UNPLUGGED if not inside else State.PLUGGED if inside == blocks else State.MIXED


def few(blocks: int) -> Ranges:
    """Eight runs of a sixteenth of the region each, which begin nowhere that halving leads to at once."""
    return Ranges((place * blocks // 8 + 5, blocks // 16) for place in range(8))


def many(blocks: int) -> Ranges:
    """One block in 256."""
    return Ranges((first, 1) for first in range(0, blocks, 256))


def opened(plugged: Callable[[int], Ranges], *, each: bool) -> Callable[[int, bool], float]:
    """``Mem`` on a region of so many bytes with blocks of 2 MiB: seconds, for each run of blocks or in all."""

    def cost(size: int, quick: bool) -> float:
        blocks = size // _BLOCK
        found = plugged(blocks)
        function = ScriptedDevice(Region(blocks, found))
        with at_work(function) as device, Mem(device) as mem:
            spent = cpu(mem.resync)
            assert mem.block_table.plugged == found and not mem.findings
        return spent / (found.runs if each else 1)

    return cost


def booked(work: Callable[[BlockTable, int], object]) -> Callable[[int, bool], float]:
    """What the books cost for a request where there are so many runs of plugged blocks."""

    def cost(runs: int, quick: bool) -> float:
        table = BlockTable(_BLOCK)
        table.set_plugged(Ranges((4 * place, 2) for place in range(runs)))
        draw = random.Random(7)
        places = [4 * draw.randrange(runs) for _ in range(100 if quick else 2000)]
        return cpu(lambda: [work(table, place) for place in places]) / len(places)

    return cost


def replug(table: BlockTable, place: int) -> None:
    """A block is unplugged and plugged again."""
    table.was_unplugged(place, 1)
    table.was_plugged(place, 1)
    assert table.plugged.total


def claim(table: BlockTable, place: int) -> None:
    """A run gets an owner, and loses it."""
    use = table.claim(place * _BLOCK, 2 * _BLOCK, "bench")
    assert table.in_use.total
    table.release(use)


def compared(runs: int, quick: bool) -> float:
    """The books compared with what STATE requests found, half of it gone: seconds for each run of blocks."""
    table = BlockTable(_BLOCK)
    table.set_plugged(Ranges((4 * place, 2) for place in range(runs)))
    found = Ranges((4 * place, 2) for place in range(0, runs, 2))
    return cpu(lambda: table.set_plugged(found)) / runs


# --- balloons -------------------------------------------------------------------------------------------------

BALLOONS = tuple(mib << 20 for mib in (64, 256, 1024, 4096, 16384, 65536))


class Host(BalloonModel):
    """A host that takes whatever frames it is told, and keeps no record."""

    def handle(self, queue: int, chain: Chain) -> int:
        assert len(chain.data()) % 4 == 0
        self.actual_writes.clear()
        return 0


class _Frames(ScriptedBlock):
    """Pinned memory without memory: frame numbers alone."""

    def __init__(self, first: int, pages: int) -> None:
        self._frames = (first, pages)

    def packed_pfns(self) -> array[int]:
        first, pages = self._frames
        return array("I", range(first, first + pages))

    def close(self) -> None:
        pass


class _Dma(ScriptedDma):
    """More memory than this machine has."""

    _next = 1 << 20

    def pin(self, size: int) -> ScriptedBlock:
        pages = size >> 12
        self._next += pages
        return _Frames(self._next - pages, pages)


class Machine(ScriptedDevice):
    def dma(self, translated: bool) -> ScriptedDma:
        """The memory of the driver."""
        space = _Dma(self.memory, translated=translated)
        self.spaces.append(space)
        return space


def inflated(*, down: bool = False) -> Callable[[int, bool], float]:
    """A balloon of so many bytes: seconds for each page, to inflate it, or to deflate it."""

    def cost(size: int, quick: bool) -> float:
        function, pages = Machine(Host()), size >> 12
        with (
            at_work(function) as device,
            Balloon(device, floor=None, stats=None) as balloon,
        ):
            up = cpu(lambda: balloon.inflate(pages, force=True))
            assert balloon.actual == pages
            back = cpu(lambda: balloon.deflate(pages, force=True))
            assert balloon.actual == 0
        return (back if down else up) / pages

    return cost


def bytes_a_page(size: int) -> float:
    """Bytes of Python objects for each page of an inflated balloon."""
    function, pages = Machine(Host()), size >> 12
    with (
        at_work(function) as device,
        Balloon(device, floor=None, stats=None) as balloon,
    ):
        balloon.inflate(1, force=True)
        tracemalloc.start(1)
        try:
            before = tracemalloc.get_traced_memory()[0]
            balloon.inflate(pages, force=True)
            return (tracemalloc.get_traced_memory()[0] - before) / pages
        finally:
            tracemalloc.stop()
            balloon.deflate(pages + 1, force=True)


# --- many devices ---------------------------------------------------------------------------------------------

DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def together(*, opening: bool) -> Callable[[int, bool], float]:
    """So many rngs open in one process: seconds to open and close one more, or to read 64 bytes from each."""

    def cost(count: int, quick: bool) -> float:
        rounds = 1 if quick else max(1, 512 // count)
        with ExitStack() as stack:
            rngs = [_rng(stack, number) for number in range(count)]
            if not opening:
                return cpu(lambda: [rng.read(64) for _ in range(rounds) for rng in rngs]) / rounds / count
            return cpu(lambda: _again(count, 4 if quick else 64)) / (4 if quick else 64)

    return cost


def _rng(stack: ExitStack, number: int) -> Rng:
    function = ScriptedDevice(RngModel(), address=f"0000:{number >> 5:02x}:{number & 31:02x}.0")
    return stack.enter_context(Rng(stack.enter_context(at_work(function))))


def _again(number: int, times: int) -> None:
    for _ in range(times):
        with ExitStack() as stack:
            _rng(stack, number)
