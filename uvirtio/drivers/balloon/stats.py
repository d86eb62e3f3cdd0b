"""Memory statistics for the host (5.5.6.3): their tags, where they are read, and the statistics queue."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from uvirtio.device import Device, Queue
from uvirtio.drivers.balloon import cgroup as cgroups
from uvirtio.drivers.base import runs
from uvirtio.errors import NotSupported, OperationFailed, UvirtioError
from uvirtio.host import limits, proc
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots
from uvirtio.spec import balloon as spec
from uvirtio.spec.balloon import Stat
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Block

VIRSH: dict[int, str] = {
    Stat.SWAP_IN: "swap_in",
    Stat.SWAP_OUT: "swap_out",
    Stat.MAJFLT: "major_fault",
    Stat.MINFLT: "minor_fault",
    Stat.MEMFREE: "unused",
    Stat.MEMTOT: "available",
    Stat.AVAIL: "usable",
    Stat.CACHES: "disk_caches",
    Stat.HTLB_PGALLOC: "hugetlb_pgalloc",
    Stat.HTLB_PGFAIL: "hugetlb_pgfail",
}
"""The names that virsh dommemstat uses. (Its ``available`` is MEMTOT, and its ``usable`` is AVAIL.)"""

BYTES = frozenset(
    {
        Stat.SWAP_IN,
        Stat.SWAP_OUT,
        Stat.MEMFREE,
        Stat.MEMTOT,
        Stat.AVAIL,
        Stat.CACHES,
        Stat.ASYNC_SCAN,
        Stat.DIRECT_SCAN,
        Stat.ASYNC_RECLAIM,
        Stat.DIRECT_RECLAIM,
    }
)
"""Tags in bytes; all others count events. The units are those of Linux (drivers/virtio/virtio_balloon.c)."""

STANDARD = frozenset(tag for tag in Stat if tag <= Stat.HTLB_PGFAIL)
"""Tags that the standard has (5.5.6.4); the others came with Linux 6.12, and an old host may refuse them."""

Source = Callable[[], Mapping[int, int]]
"""Returns values by tag. It runs in a thread of its own, and may be slow."""

_MEMINFO = {Stat.MEMFREE: "MemFree", Stat.MEMTOT: "MemTotal", Stat.AVAIL: "MemAvailable"}
_CACHES = ("Cached", "Buffers", "SwapCached")  # together what Linux's driver sends: NR_FILE_PAGES

_VMSTAT: dict[Stat, str] = {
    Stat.SWAP_IN: "pswpin",
    Stat.SWAP_OUT: "pswpout",
    Stat.MAJFLT: "pgmajfault",
    Stat.MINFLT: "pgfault",  # all faults, as Linux's driver has it
    Stat.HTLB_PGALLOC: "htlb_buddy_alloc_success",
    Stat.HTLB_PGFAIL: "htlb_buddy_alloc_fail",
    Stat.OOM_KILL: "oom_kill",
    Stat.ASYNC_SCAN: "pgscan_kswapd",
    Stat.DIRECT_SCAN: "pgscan_direct",
    Stat.ASYNC_RECLAIM: "pgsteal_kswapd",
    Stat.DIRECT_RECLAIM: "pgsteal_direct",
}
"""Their names in /proc/vmstat. What is sent in bytes is counted in pages there."""

_CGROUP_STAT: dict[Stat, str] = {
    Stat.SWAP_IN: "pswpin",
    Stat.SWAP_OUT: "pswpout",
    Stat.MAJFLT: "pgmajfault",
    Stat.MINFLT: "pgfault",
    Stat.ASYNC_SCAN: "pgscan_kswapd",
    Stat.DIRECT_SCAN: "pgscan_direct",
    Stat.ASYNC_RECLAIM: "pgsteal_kswapd",
    Stat.DIRECT_RECLAIM: "pgsteal_direct",
}
"""The same in memory.stat of a cgroup, in the same units; its ``file`` is in bytes."""


class Collector:
    """Reads the memory statistics of this machine, or of a cgroup; a ``Source``.

    Values are in bytes or events, by tag. Values that the kernel does not have are left out; those that it does
    not count for a cgroup (ALLOC_STALL, HTLB_PGALLOC, HTLB_PGFAIL; before Linux 6.13 SWAP_IN and SWAP_OUT) are
    the machine's.
    """

    def __init__(
        self,
        roots: Roots | None = None,
        cgroup: Path | None = None,
        *,
        page_size: int = CPU_PAGE,
        standard: bool = False,
    ) -> None:
        """Choose what to read; nothing is read yet.

        Args:
            roots: Whose /proc to read.
            cgroup: A directory of cgroup v2, for the statistics of what runs in it.
            page_size: Bytes of a page of this machine's kernel, in which it counts some values.
            standard: Leave out the tags that are newer than the standard.
        """
        self._roots = roots or Roots()
        self._cgroup = cgroup
        self._page_size = page_size
        self._standard = standard

    def __call__(self) -> dict[int, int]:
        """Read the current values.

        Returns:
            Values by tag, in bytes or events (see ``BYTES``).

        Raises:
            NotSupported: There is no /proc/meminfo, or the cgroup does not count memory.
            UsageError: There is no such cgroup.
            PermissionLack: A file of the cgroup may not be read.
            OperationFailed: A file of the cgroup cannot be read.
        """
        try:
            meminfo = proc.meminfo(self._roots)
        except OSError as error:
            text = "/proc/meminfo cannot be read"
            raise limits.reached(error, text) or NotSupported(text, seen=error.strerror) from error
        found: dict[int, int] = {tag: meminfo[name] for tag, name in _MEMINFO.items() if name in meminfo}
        if "Cached" in meminfo:
            found[Stat.CACHES] = sum(meminfo.get(name, 0) for name in _CACHES)
        vmstat = proc.vmstat(self._roots)  # without CONFIG_VM_EVENT_COUNTERS Linux sends none of these either
        self._take(found, vmstat, _VMSTAT)
        stalls = [value for name, value in vmstat.items() if name.startswith("allocstall")]
        if stalls:
            found[Stat.ALLOC_STALL] = sum(stalls)
        if self._cgroup is not None:
            self._narrow(found, self._cgroup)
        return {tag: value for tag, value in sorted(found.items()) if not self._standard or tag in STANDARD}

    def _take(self, found: dict[int, int], counted: Mapping[str, int], names: Mapping[Stat, str]) -> None:
        for tag, name in names.items():
            if name in counted:
                found[tag] = counted[name] * (self._page_size if tag in BYTES else 1)

    def _narrow(self, found: dict[int, int], directory: Path) -> None:
        memory = cgroups.read(directory)
        if memory is None:
            return
        self._take(found, memory.stat, _CGROUP_STAT)
        if "file" in memory.stat:
            found[Stat.CACHES] = memory.stat["file"]
        if memory.oom_kills is not None:
            found[Stat.OOM_KILL] = memory.oom_kills
        limited = {Stat.MEMTOT: memory.total, Stat.MEMFREE: memory.free, Stat.AVAIL: memory.available}
        for tag, most in limited.items():
            if most is not None and tag in found:
                found[tag] = min(most, found[tag])


def encode(values: Mapping[int, int], order: Literal["little", "big"] = "little") -> bytes:
    """Encode statistics as packed entries of 10 bytes each: tag 16 bits, value 64 bits (5.5.6.3).

    Args:
        values: Values by tag; reduced modulo 2^64.
        order: Byte order; legacy devices use the guest's (5.5.6.3.3).
    """
    entry = struct.Struct("<HQ" if order == "little" else ">HQ")
    return b"".join(entry.pack(tag, value & (1 << 64) - 1) for tag, value in values.items())


def name_of(tag: int) -> str:
    """Return the standard's name of a tag without its prefix (``MEMFREE``); ``tag N`` for an unknown one."""
    return Stat(tag).name if tag in Stat._value2member_map_ else f"tag {tag}"


class _Collection:
    """One run of the source, beside the driver."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.values: Mapping[int, int] | None = None
        self.error: Exception | None = None
        with limits.no_task_told("statistics cannot be collected"):
            self._thread = threading.Thread(target=self._run, name="balloon statistics", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self.values = dict(self._source())
        except Exception as error:  # noqa: BLE001  # it is handed to the caller of values
            self.error = error

    def done(self, timeout: float) -> bool:
        """Return whether the source has returned; waits up to ``timeout`` seconds for that."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


class StatsQueue:
    """The statistics queue: keeps exactly one buffer with the host (5.5.6.3.1). Only ``prepare`` waits.

    The host returns the buffer to ask for new values; they are sent when they have been collected, at most ten
    times a second. The tags are those of the first collection: a value that is missing later keeps its old value.
    """

    INTERVAL = 0.1  # seconds
    _PATIENCE = 0.005  # seconds; reading /proc takes less, so that most answers are sent at once

    def __init__(self, device: Device, queue: Queue, source: Source, order: Literal["little", "big"]) -> None:
        """Remember the queue and the source; ``prepare`` adds the first buffer.

        Args:
            device: The balloon.
            queue: Its statsq.
            source: Where values come from.
            order: Byte order of entries; legacy devices use the guest's (5.5.6.3.3).
        """
        self._device = device
        self._queue = queue
        self._source = source
        self._order = order
        self._collection: _Collection | None = None
        self._asked = False
        self._sent_at = 0.0
        self.values: dict[int, int] = {}
        """The values that were sent last, by tag."""
        self.requests = 0
        """How often the host returned the buffer, which asks for new values."""
        self.failures: list[Exception] = []
        """Why collections failed; the last ten errors."""
        self._buffer: Block

    def prepare(self) -> None:
        """Collect the first values and add the first buffer, before DRIVER_OK (5.5.5).

        An error of this package that the source raises passes through.

        Raises:
            OperationFailed: The source failed, returned no values, or took longer than ``device.timeout`` seconds.
        """
        first = _Collection(self._source)
        if not first.done(self._device.timeout):
            raise OperationFailed(
                "the statistics of this machine could not be collected",
                seen=f"nothing in {self._device.timeout:g} s",
                expected="values",
                remedy="leave the statistics out: Balloon(device, stats=None)",
            )
        if first.error is not None:
            raise first.error if isinstance(first.error, UvirtioError) else _failed(first.error)
        self.values = dict(first.values or {})
        if not self.values:
            raise OperationFailed("there are no statistics", seen="no values", expected="at least one")
        self._buffer = self._device.dma.alloc(len(self.values) * spec.STAT_SIZE)
        self._lay()
        self._queue.publish()

    def begin(self) -> None:
        """Notify the device of the first buffer, after DRIVER_OK (5.5.5)."""
        self._queue.notify()

    def _lay(self) -> None:
        data = encode(self.values, self._order)
        self._buffer.view[: len(data)] = data
        self._queue.add(runs(self._buffer, 0, len(data)), (), self)
        self._sent_at = self._device.clock.monotonic()

    def serve(self) -> None:
        """Send new values if the host has asked for them and they have been collected. Never waits.

        Raises:
            RingCorruption: The used ring holds what cannot be.
        """
        if self._queue.reap():
            self._asked = True
            self.requests += 1
        if not self._asked:
            return
        if self._collection is None:
            if self._device.clock.monotonic() - self._sent_at < self.INTERVAL:
                return
            self._collection = _Collection(self._source)
            if not self._collection.done(self._PATIENCE):
                return
        if not self._collection.done(0):
            return
        collection, self._collection = self._collection, None
        self._asked = False
        if collection.error is not None:
            self.failures = [*self.failures[-9:], collection.error]
        for tag, value in (collection.values or {}).items():
            if tag in self.values:
                self.values[tag] = value
        self._lay()
        self._queue.kick()


def _failed(error: Exception) -> OperationFailed:
    return OperationFailed("the statistics could not be collected", seen=f"{type(error).__name__}: {error}")
