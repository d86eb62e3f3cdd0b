"""The balloon driver: starting with options, inflate, deflate, and closing.

The host knows a page in the balloon by its guest-physical frame number, whatever kind of addresses the rings use,
and may discard its contents. So the frame must not change while the host has it: the pages are pinned by the back
end, and their frame numbers are read, sent, and read again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from operator import index
from typing import ClassVar, Literal

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.balloon.arena import Arena, allocate
from uvirtio.drivers.balloon.follow import Follower, Progress, Shortage, Target
from uvirtio.drivers.balloon.free_memory import FreeMemory, Pressure
from uvirtio.drivers.balloon.hints import Hints
from uvirtio.drivers.balloon.pages import Chunk, Pages, counted
from uvirtio.drivers.balloon.queues import numbered
from uvirtio.drivers.balloon.reporting import Reporting
from uvirtio.drivers.balloon.stats import Collector, Source, StatsQueue
from uvirtio.drivers.base import Driver, integer, runs, settle
from uvirtio.errors import (
    BadSize,
    ConfigError,
    HugePagesLack,
    MemlockExceeded,
    NotSupported,
    OperationFailed,
    Refused,
    UsageError,
    UvirtioError,
)
from uvirtio.host.roots import Roots
from uvirtio.spec import balloon as spec
from uvirtio.spec import features as f
from uvirtio.spec.layout import by_name
from uvirtio.spec.page import VIRTIO_PAGE
from uvirtio.virtqueue import Completion

_CONFIG = by_name(spec.CONFIG)

SHORTAGE = (MemoryError, OperationFailed, MemlockExceeded, HugePagesLack, Refused)
"""What pinning more memory raises when there is none."""


_AT_ONCE = 16
"""Buffers that may be in flight together: the pages of one chunk."""

_BUFFER = spec.PFNS_PER_BUFFER * spec.PFN_SIZE


class _Batch:
    """Pages ``first`` to ``end`` (exclusive) of a chunk, whose frame numbers are sent in one buffer.

    Once the device has used the buffer (``back``), the chunk has ``held`` pages in the balloon.
    """

    def __init__(self, chunk: Chunk, first: int, end: int, held: int) -> None:
        self.chunk = chunk
        self.held = held
        self.pfns = chunk.pfns[first:end]
        self.added = self.back = False


class Balloon(Driver):
    """Driver of the traditional memory balloon (5.5). Sizes are in pages of 4096 bytes.

    Closing it deflates everything and writes ``actual`` = 0, because QEMU keeps ``actual`` over a reset.
    """

    device_id: ClassVar[int] = spec.TYPE
    features: ClassVar[int] = f.mask(f.Balloon.MUST_TELL_HOST, f.Balloon.STATS_VQ, f.Balloon.DEFLATE_ON_OOM)
    """Accepted by default; STATS_VQ and DEFLATE_ON_OOM can be turned off."""

    def __init__(
        self,
        device: Device,
        *,
        observe: Observer = unobserved,
        stats: Source | Literal["auto"] | None = "auto",
        floor: int | None = None,
        deflate_on_oom: bool = True,
        hinting: bool = False,
        reporting: bool = False,
        poison: int | None = None,
        roots: Roots | None = None,
    ) -> None:
        """Start the device; ``Driver.__init__`` lists how that can fail.

        Args:
            device: An open balloon.
            observe: Called after each step of the initialisation.
            stats: The source of statistics: a function, or this machine's (``auto``); None: STATS_VQ is not
                accepted.
            floor: Bytes of this machine's memory that the balloon does not take; None: 5%, at least 256 MiB but
                at most a quarter. On ``qemu:``, where no system uses the guest's memory, None means no floor.
            deflate_on_oom: Give pages back under memory pressure, if the host allows it (DEFLATE_ON_OOM).
            hinting: Accept FREE_PAGE_HINT, for use with an arena.
            reporting: Accept PAGE_REPORTING, for use with an arena. Where hints are offered they are accepted
                too, because then all devices agree on the index of the reporting queue; a round of hints is
                answered with what was lent, or with nothing.
            poison: The value of 32 bits that free pages hold and keep (PAGE_POISON); None: their contents do not
                matter.
            roots: Whose /proc to read, for memory and statistics.

        Raises:
            NotVirtio: The device is of another type.
            UsageError: ``poison`` does not fit 32 bits.
            BadSize: ``floor`` is negative.
            NotSupported: Which queue is which cannot be known (``queues.py``).
            QueueError: The device has no queue for a feature that it offers.
            ConfigError: PAGE_POISON is offered, but the configuration has no ``poison_val``.
            OperationFailed: The statistics could not be collected.
        """
        poison, floor = integer(poison), integer(floor)
        if poison is not None and not 0 <= poison < 1 << 32:
            raise UsageError("a poison value has 32 bits", seen=poison, expected="0 to 2^32 - 1 (5.5.4)")
        if floor is not None and floor < 0:
            raise BadSize("a floor is a number of bytes", seen=floor, expected="0 or more")
        roots = roots or Roots()
        self._source: Source | None = _collector(roots) if stats == "auto" else stats
        self._poison = poison
        self._wishes = f.mask(
            f.Balloon.MUST_TELL_HOST,
            *([f.Balloon.STATS_VQ] if self._source is not None else []),
            *([f.Balloon.DEFLATE_ON_OOM] if deflate_on_oom else []),
            # Also for reporting: devices that disagree on its index count the queues before it.
            *([f.Balloon.FREE_PAGE_HINT] if hinting or reporting else []),
            *([f.Balloon.PAGE_REPORTING] if reporting else []),
            *([f.Balloon.PAGE_POISON] if poison is not None else []),
        )
        guarded = floor is not None or device.guest is None
        self._free = FreeMemory(roots, floor) if guarded else None
        self._roots = roots
        self._pressure: Pressure | None = None
        super().__init__(device, observe=observe)
        if self.stats is not None:
            with self.session():
                self.stats.begin()
        if self._free is not None and device.has(f.Balloon.DEFLATE_ON_OOM):
            self._pressure = Pressure(roots, self._free)

    def _about(self) -> str:
        return f"{self.held} pages held"

    def _wanted(self) -> int:
        return self._wishes

    def _dependencies(self) -> Iterable[f.Needs] | None:
        # 5.5.3.1: reporting needs poison only for a driver that expects its free pages to keep a value.
        return f.RESERVED_DEPENDS if self._poison is None else None

    def _queues(self) -> Sequence[QueueSpec]:
        device = self.device
        return [
            QueueSpec(spec.INFLATEQ, "inflateq", size=16),
            QueueSpec(spec.DEFLATEQ, "deflateq", size=16),
            *numbered(
                device.address,
                device.offered,
                device.features,
                device.transport.num_queues,
                lambda index: device.transport.queue_layout(index).size_max > 0,
            ),
        ]

    def _before_ok(self) -> None:
        device = self.device
        queues = {queue.name: queue for queue in device.queues.values()}
        # 5.5.6.3.3, 5.5.6.5.3: without VERSION_1 these two are in the guest's order. (Configuration never is.)
        order: Literal["little", "big"] = "little" if device.has(f.VERSION_1) else sys.byteorder
        self._out: list[_Batch] = []
        self._reported: int | None = None  # what was written into actual
        self._buffer = device.dma.alloc(_AT_ONCE * _BUFFER)
        self._pages = Pages(device.dma, self._free)
        self._pattern = bytes(4)
        if device.has(f.Balloon.PAGE_POISON):
            self._tell_poison()
        self.stats: StatsQueue | None = None
        self.hints: Hints | None = None
        self.reports: Reporting | None = None
        if (hints := queues.get(spec.FREE_PAGE_VQ_NAME)) is not None:
            self.hints = Hints(device, hints, order)
        if (reports := queues.get(spec.REPORTING_VQ_NAME)) is not None:
            self.reports = Reporting(device, reports)
        if (stats := queues.get(spec.STATSQ_NAME)) is not None and self._source is not None:
            self.stats = StatsQueue(device, stats, self._source, order)
            self.stats.prepare()

    def _tell_poison(self) -> None:
        # 5.5.6.6.1: before DRIVER_OK, and never again.
        value, field = self._poison or 0, _CONFIG["poison_val"]
        if field.offset + field.width > self.device.transport.config_length:
            raise ConfigError(
                f"{self.device.address} offers PAGE_POISON and has no poison_val",
                seen=f"{self.device.transport.config_length} bytes of configuration",
                expected=f"{field.offset + field.width} bytes (5.5.4)",
            )
        self.device.write_config(field, value)
        self._pattern = value.to_bytes(4, sys.byteorder)

    # --- configuration --------------------------------------------------------------------------------------

    @property
    def num_pages(self) -> int:
        """The host's target, in pages (5.5.4)."""
        with self.session():
            return self.device.read_config(_CONFIG["num_pages"])[0]

    @property
    def actual(self) -> int:
        """The size of the balloon as the driver last reported it to the device, in pages (5.5.4)."""
        with self.session():
            return self.check_actual()

    def check_actual(self) -> int:
        """Read ``actual``, and count it as a finding where it is not what was written; ``held`` stays."""
        with self.session():
            seen = self.device.read_config(_CONFIG["actual"])[0]
            if self._reported is not None and seen != self._reported:
                self._finding("actual is not what was written")
            return seen

    @property
    def held(self) -> int:
        """Pages in the balloon by the driver's own count: acknowledged by the host and not deflated since."""
        return self._pages.held

    @property
    def poison_val(self) -> int | None:
        """The value that free pages hold, as reported to the host; None where PAGE_POISON was not negotiated."""
        return self._poison if self.device.has(f.Balloon.PAGE_POISON) else None

    # --- inflate --------------------------------------------------------------------------------------------

    def inflate(
        self,
        pages: int,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
        force: bool = False,
    ) -> int:
        """Put pages into the balloon. Those that were acknowledged before an error stay in it.

        The buffers of a chunk of 4096 pages are sent together, and ``actual`` is written once for them; the next
        chunk is pinned while the host works on them.

        Args:
            pages: How many.
            timeout: Seconds in all; None: the device's own for each chunk of 4096 pages.
            progress: Called after each chunk.
            force: Ignore the floor.

        Returns:
            How many pages are in the balloon now.

        Raises:
            BadSize: ``pages`` is negative or exceeds 32 bits.
            Refused: The floor would be crossed (rule free-memory).
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory to pin.
            PagemapHidden: The frame numbers are hidden from this process.
            NotSupported: A frame number exceeds 32 bits.
            PageMoved: A page changed its frame while it was sent.
            DeviceTimeout: The device did not acknowledge a chunk in time.
        """
        pages = counted(pages)
        with self.session(timeout):
            self._settle()
            if not force:
                self._pages.check(pages)
            target = self.held + pages
            short = self.grow(lambda: target, None, progress, force=force)
            self.check_actual()
            if short is not None:
                raise short
        return self.held

    def grow(
        self, target: Target, timeout: float | None, progress: Progress | None, *, force: bool = False
    ) -> Exception | None:
        """Inflate until ``target`` is met. For ``follow``; ``inflate`` checks its argument and raises instead.

        Args:
            target: Returns the desired size.
            timeout: Seconds for each chunk of 4096 pages; the device's own where None.
            progress: Called after each chunk.
            force: Ignore the floor.

        Returns:
            Why there was no memory for more; None if the target is met.

        Raises:
            PagemapHidden, PageMoved, NotSupported: Pages cannot be put into the balloon.
            DeviceTimeout: The device did not acknowledge a chunk in time.
        """
        begun = False
        with self.session():
            while (missing := target() - self.held) > 0:
                try:
                    chunk = self._pages.with_room(missing, force=force)
                except SHORTAGE as error:
                    return error
                if begun:
                    self.device.check_time(f"{missing} pages more")
                begun = True
                first = chunk.held
                batches = self._to_give(chunk, missing)
                ahead = missing - chunk.room if batches[-1].held == len(chunk.pfns) else 0
                meanwhile = partial(self._pages.look_ahead, ahead, force=force)
                self._tell(spec.INFLATEQ, batches, timeout, meanwhile)
                if progress is not None:
                    progress(self.held)
                chunk.recheck(first)
            self._pages.drop_unused()
        return None

    def _to_give(self, chunk: Chunk, most: int) -> list[_Batch]:
        """The buffers to send at once for at most ``most`` pages of a chunk that are not in the balloon yet."""
        batches: list[_Batch] = []
        first, last = chunk.held, chunk.held + min(most, chunk.room)
        while first < last and len(batches) < min(_AT_ONCE, self.device.queues[spec.INFLATEQ].ring.size):
            end = min(last, first + spec.PFNS_PER_BUFFER)
            batches.append(_Batch(chunk, first, end, end))
            first = end
        return batches

    # --- deflate --------------------------------------------------------------------------------------------

    def deflate(
        self,
        pages: int,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
        force: bool = False,
    ) -> int:
        """Take pages out of the balloon.

        The buffers of a chunk of 4096 pages are sent together, and ``actual`` is written once for them. The memory
        of a chunk is freed once the host has acknowledged all of its pages (MUST_TELL_HOST). Without
        DEFLATE_ON_OOM, pages that the host still asks for stay in the balloon (5.5.6.1).

        Args:
            pages: How many.
            timeout: Seconds in all; None: the device's own for each chunk of 4096 pages.
            progress: Called after each chunk.
            force: Also take out pages that the host still asks for.

        Returns:
            How many pages are in the balloon now.

        Raises:
            BadSize: ``pages`` is out of range, or more than there are in the balloon.
            Refused: The host still asks for the pages (rule host-target).
            DeviceTimeout: The device did not acknowledge a chunk in time.
        """
        pages = counted(pages)
        with self.session(timeout):
            self._settle()
            if pages > self.held:
                raise BadSize(
                    "there are fewer pages in the balloon than are to be taken out",
                    seen=pages,
                    expected=f"at most {self.held}",
                )
            target = self.held - pages
            if pages and not force and not self.device.has(f.Balloon.DEFLATE_ON_OOM):
                self._check_reclaim(target)
            self.shrink(lambda: target, None, progress)
            self.check_actual()
        return self.held

    def _check_reclaim(self, target: int) -> None:
        wanted = self.num_pages
        if target < wanted:
            raise Refused(
                "host-target: the host still asks for these pages",
                seen=f"{target} pages would be left, {wanted} are asked for",
                expected=f"at least {wanted} left, for DEFLATE_ON_OOM was not negotiated (5.5.6.1)",
                remedy="have the host lower its target, or take fewer out",
            )

    def shrink(self, target: Target, timeout: float | None, progress: Progress | None) -> None:
        """Deflate until ``target`` is met. For ``follow``; ``deflate`` checks its argument.

        Args:
            target: Returns the desired size.
            timeout: Seconds for each chunk of 4096 pages; the device's own where None.
            progress: Called after each chunk.

        Raises:
            DeviceTimeout: The device did not acknowledge a chunk in time.
        """
        begun = False
        with self.session():
            while (surplus := self.held - target()) > 0:
                if begun:
                    self.device.check_time(f"{surplus} pages less")
                begun = True
                chunk = self._pages.chunks[-1]
                batches = self._to_take(chunk, max(0, chunk.held - surplus))
                if batches:
                    self._tell(spec.DEFLATEQ, batches, timeout, lambda: None)
                if not chunk.held:
                    self._pages.drop_last()
                if progress is not None:
                    progress(self.held)

    def _to_take(self, chunk: Chunk, least: int) -> list[_Batch]:
        """The buffers to send at once for a chunk that is to keep ``least`` pages, the last page first."""
        batches: list[_Batch] = []
        end = chunk.held
        while end > least and len(batches) < min(_AT_ONCE, self.device.queues[spec.DEFLATEQ].ring.size):
            first = max(least, end - spec.PFNS_PER_BUFFER)
            batches.append(_Batch(chunk, first, end, first))
            end = first
        return batches

    # --- following the host ---------------------------------------------------------------------------------

    def follow(
        self,
        *,
        limit: int | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
        shortage: Shortage | None = None,
    ) -> None:
        """Track the host's target (``num_pages``) until ``close()`` or a signal.

        The target is read before each chunk of 4096 pages. When memory runs out, or at the floor, it waits with
        growing pauses. Statistics and hints are answered meanwhile.

        Args:
            limit: Pages that the balloon may hold at most; None: as many as the host wants.
            timeout: Return after so many seconds without a change; each chunk has as many, 0.1 at least. None:
                never; each chunk has the device's own.
            progress: Called after each chunk.
            shortage: Called when there is no memory, with the reason and the seconds until the next attempt.

        Raises:
            BadSize: ``limit`` is negative or exceeds 32 bits.
            PagemapHidden, PageMoved, NotSupported: Pages cannot be put into the balloon.
            DeviceTimeout: The device did not acknowledge a chunk in time.
        """
        with self.session():
            self._settle()
            Follower(self, self._pages, self._pressure, limit, progress, shortage).run(timeout)

    def hold(self, timeout: float | None = None) -> None:
        """Keep the balloon as it is, and answer the host.

        Statistics and hints are answered, and pages are given back under memory pressure where DEFLATE_ON_OOM
        allows it; the host's target is not followed.

        Args:
            timeout: Seconds; None: until ``close()`` or a signal.

        Raises:
            DeviceTimeout: The device did not acknowledge a batch in time.
        """
        with self.session():
            self._settle()
            Follower(self, self._pages, self._pressure, None, None, None).stay(timeout)

    def serve(self) -> None:
        """Answer requests for statistics and hints, as far as that is possible without waiting.

        Raises:
            RingCorruption: A used ring holds what cannot be.
        """
        with self.session():
            if self.stats is not None:
                self.stats.serve()
            if self.hints is not None:
                self.hints.serve()
            if self.reports is not None:
                self.reports.serve()

    # --- free memory that is not in the balloon -------------------------------------------------------------

    def arena(self, size: int) -> Arena:
        """Allocate memory that is kept free, for ``report`` and for ``lend``.

        With PAGE_POISON, what is taken from it holds the poison value, else zeros.

        Args:
            size: Bytes, a multiple of 4096.

        Raises:
            BadSize: ``size`` is no multiple of 4096, or 0.
            Refused: The floor would be crossed.
            MemlockExceeded, HugePagesLack, PagemapHidden, OperationFailed: There is not that much DMA memory.
        """
        size = index(size)
        if size <= 0 or size % VIRTIO_PAGE:
            raise BadSize("an arena is made of whole pages", seen=size, expected="a multiple of 4096 bytes")
        names = (spec.FREE_PAGE_VQ_NAME, spec.REPORTING_VQ_NAME)
        most = [queue.ring.size for queue in self.device.queues.values() if queue.name in names]
        with self.session():
            if self._free is not None:
                self._free.check(size)
            return Arena(allocate(self.device.dma, size), pattern=self._pattern, elements=min([16, *most]))

    def report(self, arena: Arena, *, timeout: float | None = None) -> int:
        """Report the free ranges of an arena to the host, which may take the memory behind them (5.5.6.7).

        Touching a range brings memory back, without a message to the host.

        Args:
            arena: Memory of this balloon.
            timeout: Seconds in all; None: the device's own for each queueful of ranges.

        Returns:
            The bytes that the host acknowledged.

        Raises:
            NotSupported: PAGE_REPORTING was not negotiated.
            DeviceTimeout: The device did not acknowledge the ranges in time.
        """
        with self.session(timeout):
            if self.reports is None:
                raise self._lacks("PAGE_REPORTING", "reporting")
            return self.reports.report(arena)

    def lend(self, arena: Arena) -> None:
        """Hint the free ranges of an arena whenever the host asks for hints (5.5.6.5).

        The host is answered in ``hold``, ``follow`` and ``serve``.

        Args:
            arena: Memory of this balloon.

        Raises:
            NotSupported: FREE_PAGE_HINT was not negotiated.
        """
        with self.session():
            if self.hints is None:
                raise self._lacks("FREE_PAGE_HINT", "hinting")
            self.hints.lend(arena)

    def _lacks(self, feature: str, option: str) -> NotSupported:
        offered = f.has(self.device.offered, f.Balloon[feature])
        return NotSupported(
            f"{feature} was not negotiated with {self.device.address}",
            seen="offered, not accepted" if offered else "not offered",
            expected="negotiated (5.5.3)",
            remedy=f"Balloon(device, {option}=True)" if offered else "a host that offers it",
        )

    # --- inflateq and deflateq ------------------------------------------------------------------------------

    def _tell(
        self, index: int, batches: list[_Batch], timeout: float | None, meanwhile: Callable[[], None]
    ) -> None:
        """Send frame numbers, le32 each (5.5.6), and wait until all are acknowledged.

        ``meanwhile`` is called once the device has them; what that takes is not counted as the device's time.
        """
        self.serve()
        queue = self.device.queues[index]
        self._out = batches  # stays if the wait is interrupted: the host may have these pages, or may not
        with self.session(timeout):
            for place, batch in enumerate(batches):
                data = batch.pfns.tobytes()
                start = place * _BUFFER
                self._buffer.view[start : start + len(data)] = data
                queue.add(runs(self._buffer, start, len(data)), (), batch)
                batch.added = True
            queue.kick()
        meanwhile()
        with self.session(timeout):
            settle(self.device, queue, timeout=self.device.seconds(timeout), note=_note)
            self._acknowledged()

    def _acknowledged(self) -> None:
        for batch in self._out:
            if not (batch.back or batch.added):  # an exception may have come between the two
                continue  # interrupted before it was sent
            before = batch.chunk.held
            self._pages.note(batch.chunk, batch.held)
            if batch.held < before and self.device.has(f.Balloon.PAGE_POISON):
                batch.chunk.fill(batch.held, before, self._pattern)  # 5.5.6.6.1
        self._out = []  # when all are noted: an exception before that leaves them to ``_settle``
        # 5.5.6: after the device has acknowledged, in one 4-byte access; once for all is enough (5.5.6.1).
        self._write_actual()

    def _write_actual(self) -> None:
        self._reported = self.held
        self.device.write_config(_CONFIG["actual"], self.held)

    def _settle(self) -> None:
        """Wait for the acknowledgement of interrupted batches, so that they can be deflated (5.5.6.1)."""
        if not self._out:
            return
        for which in (spec.INFLATEQ, spec.DEFLATEQ):
            self.device.queues[which].kick()  # they may not have been shown yet
            settle(self.device, self.device.queues[which], timeout=self.device.seconds(None), note=_note)
        self._acknowledged()

    # --- closing --------------------------------------------------------------------------------------------

    @property
    def _leaving_takes(self) -> float:
        """A second for each GiB: more than a host needs that works, and no hours with one that is slow."""
        return self.held * VIRTIO_PAGE / (1 << 30)

    def _give_back(self, working: bool) -> None:
        """Deflate everything, then ``actual`` = 0; on a device that fails, only ``actual`` = 0."""
        if working:
            with suppress(UvirtioError):
                self._settle()
                self.shrink(lambda: 0, self.device.timeout, None)
        for chunk in self._pages.chunks:
            self._pages.note(chunk, 0)  # the host drops the rest at the reset that follows
        self._write_actual()

    def close(self) -> None:
        """Deflate everything, ``actual`` = 0, reset, and only then free the pages; idempotent.

        Deflating has the device's time-out and a second for each GiB, in all; the reset drops what is left then.
        """
        try:
            super().close()
        finally:
            if self._pressure is not None:
                self._pressure.close()


def _note(done: Sequence[Completion]) -> None:
    """Mark these batches as used, whatever happens to the wait for the others."""
    for one in done:
        if isinstance(one.cookie, _Batch):
            one.cookie.back = True


def _collector(roots: Roots) -> Source | None:
    """A source of this machine's statistics; None where it has none."""
    collector = Collector(roots)
    try:
        collector()
    except NotSupported:
        return None
    return collector
