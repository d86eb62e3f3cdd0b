"""The balloon itself: bringing it up with its options, inflate, deflate, and the way out.

A page in the balloon is named to the host by its guest-physical frame number, whatever address policy the
rings have, and the host may then throw its contents away. So the frame must not change while the host has
it: the pages are pinned by the back end, their numbers are read, sent, and read again.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import ClassVar, Literal

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.balloon.arena import Arena, allocate
from uvirtio.drivers.balloon.follow import Follower, Progress, Shortage, Target
from uvirtio.drivers.balloon.free_memory import FreeMemory, Pressure
from uvirtio.drivers.balloon.hints import Hints
from uvirtio.drivers.balloon.pages import PFN_END, Chunk, Pages
from uvirtio.drivers.balloon.queues import numbered
from uvirtio.drivers.balloon.reporting import Reporting
from uvirtio.drivers.balloon.stats import Collector, Source, StatsQueue
from uvirtio.drivers.base import Driver, runs, settle
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
"""What pinning more memory raises when there is none to be had."""


_AT_ONCE = 16
"""Buffers that may be out together: the pages of one chunk."""

_BUFFER = spec.PFNS_PER_BUFFER * spec.PFN_SIZE


class _Batch:
    """Pages ``first`` to ``end`` of a chunk, that the host is told of in one buffer.

    ``held`` is what the chunk holds once the host has answered; ``back`` says that it has.
    """

    def __init__(self, chunk: Chunk, first: int, end: int, held: int) -> None:
        self.chunk = chunk
        self.held = held
        self.pfns = chunk.pfns[first:end]
        self.back = False


class Balloon(Driver):
    """Inflate, deflate, follow, statistics, hints and reports. Sizes are in pages of 4096 bytes unless a name
    says otherwise.

    ``stats``: where statistics come from (None: they are not offered to the host). ``floor``: bytes of this
    machine's memory that the balloon leaves alone (None: 5%, at least 256 MiB but at most a quarter; nothing in a
    guest of ours, where no operating system runs: ``device.guest``). ``deflate_on_oom``: give pages back under
    memory pressure, if the host allows it. ``hinting``, ``reporting``: take those features, for use with an arena.
    Where hints are offered, ``reporting`` takes them too, and a round of hints is answered with what was lent, or
    with nothing: so all devices agree on the index of the reporting queue. ``poison``: the value (32 bits) that
    free pages hold and keep holding; None: their contents are of no interest.

    Raises NotSupported where it cannot be known which queue is which (``queues.py``), else what ``Driver`` raises.

    Leaving deflates everything and writes ``actual`` = 0, because QEMU keeps ``actual`` over a reset.
    """

    device_id: ClassVar[int] = spec.TYPE
    features: ClassVar[int] = f.mask(f.Balloon.MUST_TELL_HOST, f.Balloon.STATS_VQ, f.Balloon.DEFLATE_ON_OOM)
    """Taken without options; statistics and reclaim can be turned off."""

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
            # Also for reporting: where devices do not agree on its index, it is what comes before it that counts.
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
            with device.session():
                self.stats.begin()
        if self._free is not None and device.has(f.Balloon.DEFLATE_ON_OOM):
            self._pressure = Pressure(roots, self._free)

    def _about(self) -> str:
        return f"{self.held} pages held"

    def _wanted(self) -> int:
        return self._wishes

    def _dependencies(self) -> Iterable[f.Needs] | None:
        # 5.5.3.1: reporting needs poison only for those who expect their free pages to keep a value.
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
        return self.device.read_config(_CONFIG["num_pages"])[0]

    @property
    def actual(self) -> int:
        """What the device has noted as the size of the balloon, in pages (5.5.4)."""
        return self.device.read_config(_CONFIG["actual"])[0]

    @property
    def held(self) -> int:
        """Pages that are in the balloon by our own books: acknowledged and not given back."""
        return self._pages.held

    @property
    def poison_val(self) -> int | None:
        """What free pages hold, as the host was told; None where PAGE_POISON was not negotiated."""
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
        """Put more pages into the balloon. What was acknowledged before an error stays in it and in ``held``.

        Args:
            pages: How many pages of 4096 bytes.
            timeout: Seconds that the device has for each batch of 256 pages; None: its own. A device that is
                always just in time takes ``pages`` / 256 times as long.
            progress: Called with the pages held after each batch.
            force: Let the floor be crossed.

        Returns:
            How many pages the balloon holds then.

        Raises:
            Refused: The floor would be crossed (rule free-memory).
            BadSize: The number is negative, or more than a balloon can count (5.5.6).
            MemlockExceeded: This process may not pin as much.
            PagemapHidden: This process may not know where its pages lie.
            PageMoved: A page was moved in spite of being pinned.
            DeviceTimeout: A batch was not acknowledged in time.
        """
        self._check_count(pages)
        with self.device.session():
            self._settle()
            if not force:
                self._pages.check(pages)
            target = self.held + pages
            short = self.grow(lambda: target, timeout, progress, force=force)
            if short is not None:
                raise short
        return self.held

    def grow(
        self, target: Target, timeout: float | None, progress: Progress | None, *, force: bool = False
    ) -> Exception | None:
        """Inflate until ``target`` is met; returns why there was no memory for more, or None."""
        while (missing := target() - self.held) > 0:
            try:
                chunk = self._pages.with_room(missing, force=force)
            except SHORTAGE as error:
                return error
            first = chunk.held
            while missing > 0 and chunk.room:
                end = chunk.held + min(spec.PFNS_PER_BUFFER, missing, chunk.room)
                self._tell(spec.INFLATEQ, [_Batch(chunk, chunk.held, end, end)], timeout)
                if progress is not None:
                    progress(self.held)
                missing = target() - self.held
            chunk.recheck(first)
        return None

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

        The buffers of a chunk of 4096 pages go out together, and ``actual`` is written once for them. The memory
        of a chunk is freed once the host has acknowledged all of its pages (MUST_TELL_HOST).

        Args:
            pages: How many pages of 4096 bytes.
            timeout: Seconds that the device has for each chunk; None: its own. A device that is always just in
                time takes ``pages`` / 4096 times as long.
            progress: Called with the pages held after each chunk.
            force: Take out pages that the host still asks for.

        Returns:
            How many pages the balloon holds then.

        Raises:
            Refused: Without DEFLATE_ON_OOM: the host still asks for these pages (5.5.6.1; rule host-target).
            BadSize: There are not as many pages in the balloon.
            DeviceTimeout: A chunk was not acknowledged in time.
        """
        self._check_count(pages)
        with self.device.session():
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
            self.shrink(lambda: target, timeout, progress)
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
        """Deflate until ``target`` is met."""
        while (surplus := self.held - target()) > 0:
            chunk = self._pages.chunks[-1]
            batches = self._to_take(chunk, max(0, chunk.held - surplus))
            if batches:
                self._tell(spec.DEFLATEQ, batches, timeout)
            if not chunk.held:
                self._pages.drop_last()
            if progress is not None:
                progress(self.held)

    def _to_take(self, chunk: Chunk, least: int) -> list[_Batch]:
        """What can go out at once of a chunk that is to keep ``least`` pages, the last page first."""
        batches: list[_Batch] = []
        end = chunk.held
        while end > least and len(batches) < min(_AT_ONCE, self.device.queues[spec.DEFLATEQ].ring.size):
            first = max(least, end - spec.PFNS_PER_BUFFER)
            batches.append(_Batch(chunk, first, end, first))
            end = first
        return batches

    # --- as long as it lives --------------------------------------------------------------------------------

    def follow(
        self,
        *,
        limit: int | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
        shortage: Shortage | None = None,
    ) -> None:
        """Go towards the host's ``num_pages`` whenever it changes, until ``close()`` or a signal.

        ``limit`` is the most pages that the balloon will hold. With ``timeout`` (seconds), returns when that
        long nothing has changed. The target is read anew for each batch, so a host that changes its mind is
        followed at once. Where memory runs out, and at the floor, it waits and tries again, later each time;
        ``shortage`` is told why, and the seconds until then. Statistics and hints are answered meanwhile.
        """
        with self.device.session():
            self._settle()
            Follower(self, self._pages, self._pressure, limit, progress, shortage).run(timeout)

    def hold(self, timeout: float | None = None) -> None:
        """Stay as it is for ``timeout`` seconds (None: until ``close()`` or a signal), and answer the host.

        Statistics, hints, and memory pressure (where DEFLATE_ON_OOM lets pages go) are served; the target is not.
        """
        with self.device.session():
            self._settle()
            Follower(self, self._pages, self._pressure, None, None, None).stay(timeout)

    def serve(self) -> None:
        """Answer what the host has asked for, as far as that can be done without waiting."""
        if self.stats is not None:
            self.stats.serve()
        if self.hints is not None:
            self.hints.serve()
        if self.reports is not None:
            self.reports.serve()

    # --- free memory that stays ours ------------------------------------------------------------------------

    def arena(self, size: int) -> Arena:
        """Memory of ``size`` bytes that is held free, for ``report`` and for hints. Raises what memory raises.

        With PAGE_POISON what is taken from it holds the poison value, else zeros.
        """
        if size <= 0 or size % VIRTIO_PAGE:
            raise BadSize("an arena is made of whole pages", seen=size, expected="a multiple of 4096 bytes")
        names = (spec.FREE_PAGE_VQ_NAME, spec.REPORTING_VQ_NAME)
        most = [queue.ring.size for queue in self.device.queues.values() if queue.name in names]
        with self.device.session():
            if self._free is not None:
                self._free.check(size)
            return Arena(allocate(self.device.dma, size), pattern=self._pattern, elements=min([16, *most]))

    def report(self, arena: Arena, *, timeout: float | None = None) -> int:
        """Tell the host what is free in ``arena``; returns the bytes that it acknowledged.

        The host may take the memory behind it (5.5.6.7); touching a range brings memory back, and nobody is
        told. ``timeout`` (seconds) is for each queueful. Raises NotSupported without PAGE_REPORTING,
        DeviceTimeout.
        """
        with self.device.session():
            if self.reports is None:
                raise self._lacks("PAGE_REPORTING", "reporting")
            return self.reports.report(arena, self.device.seconds(timeout))

    def lend(self, arena: Arena) -> None:
        """Hint the free ranges of ``arena`` whenever the host asks for hints. Raises NotSupported without them.

        The host is answered in ``hold``, ``follow`` and ``serve``.
        """
        with self.device.session():
            if self.hints is None:
                raise self._lacks("FREE_PAGE_HINT", "hinting")
            self.hints.lend(arena)

    def _lacks(self, feature: str, option: str) -> NotSupported:
        offered = f.has(self.device.offered, f.Balloon[feature])
        return NotSupported(
            f"{feature} was not negotiated with {self.device.address}",
            seen="offered, not taken" if offered else "not offered",
            expected="negotiated (5.5.3)",
            remedy=f"Balloon(device, {option}=True)" if offered else "a host that offers it",
        )

    # --- the wire -------------------------------------------------------------------------------------------

    def _tell(self, index: int, batches: list[_Batch], timeout: float | None) -> None:
        """Send frame numbers, le32 each (5.5.6), and wait until all are acknowledged."""
        self.serve()
        queue = self.device.queues[index]
        self._out = batches  # stays if the wait is interrupted: the host may have these pages, or may not
        for place, batch in enumerate(batches):
            data = array("I", batch.pfns).tobytes()
            start = place * _BUFFER
            self._buffer.view[start : start + len(data)] = data
            queue.add(runs(self._buffer, start, len(data)), (), batch)
        queue.kick()
        settle(self.device, queue, timeout=self.device.seconds(timeout), note=_note)
        self._acknowledged()

    def _acknowledged(self) -> None:
        out, self._out = self._out, []
        for batch in out:
            if not batch.back:
                continue  # it was interrupted before it went out
            before, batch.chunk.held = batch.chunk.held, batch.held
            if batch.held < before and self.device.has(f.Balloon.PAGE_POISON):
                batch.chunk.fill(batch.held, before, self._pattern)  # 5.5.6.6.1
        # 5.5.6: after the device has acknowledged, in one 4-byte access; once for all is enough (5.5.6.1).
        self.device.write_config(_CONFIG["actual"], self.held)

    def _settle(self) -> None:
        """Interrupted batches: wait for their acknowledgement, so that they can be deflated (5.5.6.1)."""
        if not self._out:
            return
        for index in (spec.INFLATEQ, spec.DEFLATEQ):
            settle(self.device, self.device.queues[index], timeout=self.device.timeout, note=_note)
        self._acknowledged()

    def _check_count(self, pages: int) -> None:
        if pages < 0 or pages >= PFN_END:
            raise BadSize("a number of pages is out of range", seen=pages, expected="0 to 2^32 - 1")

    # --- leaving --------------------------------------------------------------------------------------------

    def _give_back(self, working: bool) -> None:
        """Deflate everything, then ``actual`` = 0; on a device that fails, ``actual`` = 0 alone."""
        if working:
            with suppress(UvirtioError):
                self._settle()
                self.shrink(lambda: 0, None, None)
        for chunk in self._pages.chunks:
            chunk.held = 0  # what is left is forgotten by the host at the reset that follows
        self.device.write_config(_CONFIG["actual"], self.held)

    def close(self) -> None:
        """Deflate everything, ``actual`` = 0, reset, and only then free the pages; idempotent."""
        try:
            super().close()
        finally:
            if self._pressure is not None:
                self._pressure.close()


def _note(done: Sequence[Completion]) -> None:
    """These batches are back, whatever happens to the wait for the others."""
    for one in done:
        if isinstance(one.cookie, _Batch):
            one.cookie.back = True


def _collector(roots: Roots) -> Source | None:
    """This machine's statistics; None where it tells of none."""
    collector = Collector(roots)
    try:
        collector()
    except NotSupported:
        return None
    return collector
