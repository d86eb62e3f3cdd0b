"""The traditional memory balloon (5.5): pages that the host may take, and give back.

A page in the balloon is named to the host by its guest-physical frame number, whatever address policy the
rings have, and the host may then throw its contents away. So the frame must not change while the host has
it: the pages are pinned by the back end, their numbers are read, sent, and read again.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar

from uvirtio.device import QueueSpec
from uvirtio.drivers.base import Driver, runs, settle, transact
from uvirtio.errors import BadSize, NotSupported, PagemapHidden, PageMoved, UvirtioError
from uvirtio.memory.seams import Block
from uvirtio.spec import balloon as spec
from uvirtio.spec import features as f
from uvirtio.spec.layout import by_name

_CONFIG = by_name(spec.CONFIG)
_CHUNK = 16 << 20
"""Bytes that are pinned by one map: few maps for a large balloon, small steps back for a shrinking one."""

_REST = 0.01
"""Seconds between looks at a target that moved though no notification said so."""

_PFN_END = 1 << 32  # 5.5.6: a PFN is 32 bits wide

Progress = Callable[[int], None]
"""Called with the number of pages in the balloon after each batch."""

Target = Callable[[], int]
"""Where to go, in pages; asked again before each batch."""


class _Chunk:
    """A pinned block whose first ``held`` pages are in the balloon."""

    def __init__(self, block: Block, pfns: list[int]) -> None:
        self.block = block
        self.pfns = pfns
        self.held = 0


class _Batch:
    """Pages that the host was told about; ``held`` is what the chunk holds once it has answered."""

    def __init__(self, chunk: _Chunk, held: int) -> None:
        self.chunk = chunk
        self.held = held


class Balloon(Driver):
    """Inflate, deflate and follow. Sizes are in pages of 4096 bytes unless a name says otherwise.

    Leaving deflates everything and writes ``actual`` = 0, because QEMU keeps ``actual`` over a reset.
    """

    device_id: ClassVar[int] = spec.TYPE
    # DEFLATE_ON_OOM, statistics, hinting and reporting are not driven here yet, so they are not taken.
    features: ClassVar[int] = f.mask(f.Balloon.MUST_TELL_HOST)

    def _queues(self) -> Sequence[QueueSpec]:
        return [
            QueueSpec(spec.INFLATEQ, "inflateq", size=16),
            QueueSpec(spec.DEFLATEQ, "deflateq", size=16),
        ]

    def _before_ok(self) -> None:
        self._chunks: list[_Chunk] = []
        self._out: _Batch | None = None
        self._buffer = self.device.dma.alloc(spec.PFNS_PER_BUFFER * spec.PFN_SIZE)

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
        return sum(chunk.held for chunk in self._chunks)

    def _write_actual(self) -> None:
        # 5.5.6: after the device has acknowledged, in one 4-byte access.
        self.device.write_config(_CONFIG["actual"], self.held)

    # --- inflate --------------------------------------------------------------------------------------------

    def inflate(self, pages: int, *, timeout: float | None = None, progress: Progress | None = None) -> int:
        """Put ``pages`` more pages into the balloon; returns how many it holds then.

        ``timeout`` is for each batch of 256 pages (seconds). Raises BadSize, MemlockExceeded, PagemapHidden,
        PageMoved, DeviceTimeout; what was acknowledged before the error stays in the balloon and in ``held``.
        """
        self._check_count(pages)
        with self.device.session():
            self._settle()
            target = self.held + pages
            self._grow(lambda: target, timeout, progress)
        return self.held

    def _grow(self, target: Target, timeout: float | None, progress: Progress | None) -> None:
        while (missing := target() - self.held) > 0:
            chunk = self._chunk_with_room(missing)
            first = chunk.held
            while missing > 0 and chunk.held < len(chunk.pfns):
                count = min(spec.PFNS_PER_BUFFER, missing, len(chunk.pfns) - chunk.held)
                pfns = chunk.pfns[chunk.held : chunk.held + count]
                self._tell(spec.INFLATEQ, pfns, _Batch(chunk, chunk.held + count), timeout)
                if progress is not None:
                    progress(self.held)
                missing = target() - self.held
            self._recheck(chunk, first)

    def _chunk_with_room(self, missing: int) -> _Chunk:
        if self._chunks and self._chunks[-1].held < len(self._chunks[-1].pfns):
            return self._chunks[-1]
        block = self.device.dma.pin(min(missing * spec.PAGE_SIZE, _CHUNK))
        try:
            pfns = block.pfns()
            _check_pfns(pfns)
        except BaseException:
            block.close()
            raise
        chunk = _Chunk(block, pfns)
        self._chunks.append(chunk)
        return chunk

    def _recheck(self, chunk: _Chunk, first: int) -> None:
        now = chunk.block.pfns()
        for index in range(first, chunk.held):
            if now[index] != chunk.pfns[index]:
                raise PageMoved(
                    "a page of the balloon moved while the host was told about it",
                    seen=f"page {index}: frame {now[index]:#x}",
                    expected=f"frame {chunk.pfns[index]:#x}",
                    remedy="the back end did not pin this memory; leave the device and report this",
                )

    # --- deflate --------------------------------------------------------------------------------------------

    def deflate(self, pages: int, *, timeout: float | None = None, progress: Progress | None = None) -> int:
        """Take ``pages`` pages out of the balloon; returns how many it holds then.

        The memory of a chunk is freed once the host has acknowledged all of its pages (MUST_TELL_HOST).
        Raises BadSize when there are not as many, DeviceTimeout.
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
            self._shrink(lambda: target, timeout, progress)
        return self.held

    def _shrink(self, target: Target, timeout: float | None, progress: Progress | None) -> None:
        while (surplus := self.held - target()) > 0:
            chunk = self._chunks[-1]
            count = min(spec.PFNS_PER_BUFFER, surplus, chunk.held)
            first = chunk.held - count
            if count:
                self._tell(spec.DEFLATEQ, chunk.pfns[first : chunk.held], _Batch(chunk, first), timeout)
            if not chunk.held:
                self._chunks.pop().block.close()
            if progress is not None:
                progress(self.held)

    # --- follow ---------------------------------------------------------------------------------------------

    def follow(
        self,
        *,
        limit: int | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Go towards the host's ``num_pages`` whenever it changes, until ``close()`` or a signal.

        ``limit`` is the most pages that the balloon will hold. With ``timeout`` (seconds), returns when that
        long nothing has changed. The target is read anew for each batch, so a host that changes its mind is
        followed at once.
        """
        with self.device.session():
            self._settle()
            while True:
                seen = self.device.config_changes
                steady = self._approach(limit, progress)
                changed = self.device.wait(
                    lambda seen=seen: self.device.config_changes != seen,  # type: ignore[misc]
                    timeout=timeout if steady else _REST,
                    what="a new target",
                    owed=False,
                )
                if steady and not changed:
                    return

    def _approach(self, limit: int | None, progress: Progress | None) -> bool:
        """Go one way, up or down, until the target is met or lies behind us; whether it is met."""

        def target() -> int:
            wanted = self.num_pages
            return wanted if limit is None else min(wanted, limit)

        if target() > self.held:
            self._grow(target, None, progress)
        else:
            self._shrink(target, None, progress)
        return target() == self.held

    # --- the wire -------------------------------------------------------------------------------------------

    def _tell(self, queue: int, pfns: list[int], batch: _Batch, timeout: float | None) -> None:
        """Send frame numbers, le32 each (5.5.6), and wait for the acknowledgement."""
        data = array("I", pfns).tobytes()
        self._buffer.view[: len(data)] = data
        self._out = batch  # stays if the wait is interrupted: the host may have these pages, or may not
        transact(
            self.device,
            self.device.queues[queue],
            runs(self._buffer, 0, len(data)),
            (),
            timeout=self.device.timeout if timeout is None else timeout,
            what=f"the acknowledgement of {len(pfns)} pages on {self.device.queues[queue].name}",
            cookie=batch,
        )
        self._acknowledged(batch)

    def _acknowledged(self, batch: _Batch) -> None:
        self._out = None
        batch.chunk.held = batch.held
        self._write_actual()

    def _settle(self) -> None:
        """An interrupted batch: wait for its acknowledgement, so that it can be deflated (5.5.6.1)."""
        batch = self._out
        if batch is None:
            return
        for queue in self.device.queues.values():
            for done in settle(self.device, queue, timeout=self.device.timeout):
                if done.cookie is batch:
                    self._acknowledged(batch)
        self._out = None

    def _check_count(self, pages: int) -> None:
        if pages < 0 or pages >= _PFN_END:
            raise BadSize("a number of pages is out of range", seen=pages, expected="0 to 2^32 - 1")

    # --- leaving --------------------------------------------------------------------------------------------

    def _give_back(self, working: bool) -> None:
        """Deflate everything, then ``actual`` = 0; on a device that fails, ``actual`` = 0 alone."""
        if working:
            with suppress(UvirtioError):
                self._settle()
                self._shrink(lambda: 0, None, None)
        for chunk in self._chunks:
            chunk.held = 0  # what is left is forgotten by the host at the reset that follows
        self._write_actual()

    def close(self) -> None:
        """Deflate everything, ``actual`` = 0, reset, and only then free the pages; idempotent."""
        super().close()


def _check_pfns(pfns: Sequence[int]) -> None:
    if 0 in pfns:
        raise PagemapHidden(
            "this process may not know the frame numbers of its pages",
            seen="frame 0 in /proc/self/pagemap",
            expected="real frame numbers",
            remedy="the balloon needs CAP_SYS_ADMIN: run as root, or try qemu:virtio-balloon-pci",
        )
    if max(pfns) >= _PFN_END:
        raise NotSupported(
            "a page lies above what a balloon can name",
            seen=f"frame {max(pfns):#x}",
            expected="below 2^32 (5.5.6)",
            remedy="the balloon takes memory below 16 TiB only",
        )
