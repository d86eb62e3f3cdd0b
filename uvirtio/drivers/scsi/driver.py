"""The SCSI host driver (5.6): the blocks of logical units, read and written one request or many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from operator import index

from uvirtio.drivers.requests import burst_depth
from uvirtio.drivers.scsi import commands as c
from uvirtio.drivers.scsi.burst import Burst
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.drivers.scsi.units import Units
from uvirtio.errors import BadSize


class Scsi(Units):
    """Driver of the SCSI host device (5.6): finds logical units, reads and writes their blocks.

    Blocks have a size of the unit's own, often 512 bytes, and are numbered from 0. ``read``, ``write`` and the
    other calls wait; ``submit`` returns a ``Request``, whose ``result()`` waits. Commands that change nothing are
    repeated after a unit attention, which is a unit's way to say that it was reset or changed; writes are not.

    Buffers in flight belong to the device until their request is complete: an interrupted wait loses no request
    and reuses no buffer, and ``close()`` waits for all requests in flight, up to the device's timeout.
    """

    # --- blocks ---------------------------------------------------------------------------------------------

    def read(self, lun: Lun, block: int, blocks: int, *, timeout: float | None = None) -> bytes:
        """Read blocks.

        Args:
            lun: The unit.
            block: The first one.
            blocks: How many.
            timeout: Seconds in all; None: the device's own for each request of ``request_size`` bytes.

        Raises:
            BadSize: A number is negative, or a block exceeds ``request_size``; nothing was read.
            BeyondEnd: The blocks end after the capacity; nothing was read.
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: A request failed.
            DeviceTimeout: A request did not complete in time.
            ProtocolError: An answer is invalid.
        """
        block, blocks = index(block), index(blocks)  # no NumPy integer, whose sums wrap
        with self.session(timeout):
            size = self.check_range(lun, block, blocks, timeout=timeout)
            pieces = self._pieces(block, blocks, size)
            return b"".join(self._run(lun, (c.read(at, count, size) for at, count in pieces), timeout))

    def write(
        self, lun: Lun, block: int, data: bytes | bytearray | memoryview, *, timeout: float | None = None
    ) -> None:
        """Write whole blocks. They survive a power failure after ``flush()`` (see ``mode``).

        After a failed request, any of the blocks may hold old data, new data or neither.

        Args:
            lun: The unit.
            block: The first one.
            data: Their contents; a multiple of the unit's block size.
            timeout: Seconds in all; None: the device's own for each request of ``request_size`` bytes.

        Raises:
            WriteRefused: Writes are not allowed; nothing was sent.
            BadSize: ``data`` is not whole blocks, or ``block`` is negative; nothing was written.
            BeyondEnd: The blocks end after the capacity; nothing was written.
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: A request failed; also: the unit is read-only, or was
                reset or changed since the last command to it.
            DeviceTimeout: A request did not complete in time.
            ProtocolError: An answer is invalid.
        """
        with self.session(timeout):
            self._require_write("write")
            block = index(block)
            view = memoryview(data).cast("B")
            size = self.check_range(lun, block, 0, timeout=timeout)
            blocks, rest = divmod(len(view), size)
            if rest:
                raise BadSize(
                    "only whole blocks can be written",
                    seen=f"{len(view)} bytes",
                    expected=f"a multiple of {size}",
                    remedy="read the last block, change it, write it",
                )
            self.check_range(lun, block, blocks, timeout=timeout)
            pieces = self._pieces(block, blocks, size)
            made = (c.write(at, view[(at - block) * size :][: count * size], size) for at, count in pieces)
            self._run(lun, made, timeout, repeat=False)

    def flush(self, lun: Lun, *, timeout: float | None = None) -> None:
        """Flush the write cache of a unit (SYNCHRONIZE CACHE): all completed writes are durable then.

        Args:
            lun: The unit.
            timeout: Seconds to wait; the device's own where None.

        Raises:
            ScsiCheck, ScsiStatus, ScsiTransport: The command failed.
        """
        self.execute(lun, c.synchronize_cache(), timeout=timeout)

    def _pieces(self, block: int, blocks: int, size: int) -> Iterator[tuple[int, int]]:
        step = self.request_size // size
        return ((at, min(step, block + blocks - at)) for at in range(block, block + blocks, step))

    # --- bursts ---------------------------------------------------------------------------------------------

    def burst(
        self,
        lun: Lun,
        blocks: int,
        *,
        depth: int | None = None,
        write: bool = False,
        queue: int | None = None,
        timeout: float | None = None,
    ) -> Burst:
        """Reserve a queue for reads or writes of one size to one unit, which are sent many at a time.

        The queue serves nothing else until this driver is closed; if it was the only one, the other calls fail
        with UsageError. The requests count among the ``cmd_per_lun`` of the unit, in flight or not.

        Args:
            lun: The unit.
            blocks: Blocks of each request.
            depth: Requests that can be in flight; the driver's own ``depth`` where None. Fewer where
                ``cmd_per_lun`` leaves no more.
            write: Writes, else reads.
            queue: The index of the queue, 2 or more; None: the last one.
            timeout: Seconds to wait for the unit's capacity; the device's own where None.

        Raises:
            WriteRefused: Writes are not allowed.
            BadSize: ``blocks`` is below 1, or more than the device accepts in one request.
            UsageError: Requests are in flight on the queue, there is no such queue, or none is left; or ``depth``
                is below 1; or the unit takes no more commands.
            QueueFull: The ring has too few descriptors for ``depth`` requests.
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: The unit does not say how large it is.
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for the requests.
        """
        with self.session(timeout):
            if write:
                self._require_write("write")
            blocks = index(blocks)
            if blocks < 1:
                raise BadSize("a request carries whole blocks", seen=blocks, expected="1 or more")
            self.capacity(lun, timeout=timeout)
            requests = self._requests
            requestq = requests.idle(queue)
            wanted = requestq.depth if depth is None else burst_depth(requestq.queue, depth)
            count = requests.reserve(lun, wanted)
            try:
                made = Burst(self, requests, requestq, lun, blocks=blocks, count=count, write=write)
            except BaseException:
                requests.reserve(lun, -count)
                raise
            self._bursts.append(made)
            requests.remove(requestq)
            return made
