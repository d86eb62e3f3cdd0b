"""The request queues of a SCSI host device: submitting commands, waiting for them and reaping them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

from uvirtio.drivers.requests import BaseRequestQueues
from uvirtio.drivers.scsi.adapter import Adapter
from uvirtio.drivers.scsi.commands import Command
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.drivers.scsi.request import Request, RequestQueue, Slot
from uvirtio.errors import BadSize, ConfigError, ProtocolError, UsageError, UvirtioError
from uvirtio.spec import scsi as spec
from uvirtio.virtqueue import Completion

_ZEROES = bytes(1 << 16)


class RequestQueues(BaseRequestQueues[RequestQueue, Request]):
    """All request queues of a started device."""

    def __init__(self, adapter: Adapter, *, depth: int, request_size: int) -> None:
        """Allocate the slots of all queues.

        Args:
            adapter: The driver. Its device has its queues, and DRIVER_OK is not set yet.
            depth: Requests of one queue that may be in flight.
            request_size: Bytes of data of one request, at most, where the device's limits are not lower.

        Raises:
            ConfigError: Not even 512 bytes fit the device's limits.
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for the requests.
        """
        self._adapter, device, config = adapter, adapter.device, adapter.config
        hint = config.max_sectors * spec.UNIT
        size = min(request_size, hint) if hint else request_size
        made = [
            RequestQueue(queue, device.dma, config, depth=min(depth, queue.ring.size), size=size)
            for index, queue in sorted(device.queues.items())
            if spec.REQUESTQ <= index < spec.REQUESTQ + config.num_queues
        ]
        super().__init__(adapter, made)
        if not self.request_size:
            raise ConfigError(
                "not even 512 bytes fit into a request of this device",
                seen=f"seg_max {config.seg_max}",
                expected="512 bytes",
                remedy="the device is at fault: seg_max is too small (5.6.4)",
            )
        self.per_lun = max(1, config.cmd_per_lun)
        """Requests of one logical unit that can be in flight (5.6.4.1)."""
        self._of_lun: Counter[Lun] = Counter()
        self._reserved: Counter[Lun] = Counter()
        self._tags = count(1)
        self.watch: Callable[[], None] = lambda: None
        """Called whenever requests are collected: takes events."""

    def tag(self) -> int:
        """Return an identifier that no other request has."""
        return next(self._tags)

    @property
    def free(self) -> bool:
        """Whether there is a queue that is not taken by a burst."""
        return bool(self._free)

    def reserve(self, lun: Lun, count: int) -> int:
        """Keep some of the requests that a unit can have in flight for a burst; a negative count gives them back.

        Returns:
            How many are kept: fewer where no more are left.

        Raises:
            UsageError: None is left.
        """
        kept = min(count, self.per_lun - self._of_lun[lun] - self._reserved[lun])
        if kept == 0 or (count > 0 and kept < 0):
            raise self._none_left(lun)
        self._reserved[lun] += kept
        return kept

    def _none_left(self, lun: Lun) -> UsageError:
        return UsageError(
            f"all commands that logical unit {lun} can have in flight are taken",
            seen=f"{self._of_lun[lun]} in flight, {self._reserved[lun]} of bursts",
            expected=f"fewer than {self.per_lun} (cmd_per_lun)",
            remedy="a burst of a lower depth, and wait() for what is in flight",
        )

    # --- submitting -----------------------------------------------------------------------------------------

    def submit(
        self,
        lun: Lun,
        command: Command,
        *,
        queue: int | None = None,
        kick: bool = True,
        timeout: float | None = None,
    ) -> Request:
        """Submit one command; waits for a slot if all are in flight, or as many to one unit as it takes.

        Args:
            lun: The unit.
            command: The command; its data are copied.
            queue: The index of the queue; None: any with a free slot.
            kick: Notify the device; else the next kick or wait does.
            timeout: Seconds to wait for a slot; the device's own where None.

        Raises:
            BadSize: The data do not fit one request, or the CDB does not.
            DeviceTimeout: All slots are in flight, and no request completed.
            UsageError: There is no such queue, or bursts have taken all queues.
            ProtocolError: A request that completed meanwhile has an invalid answer.
            Closed: The driver was closed.
        """
        size, config = max(command.room, len(command.data)), self._adapter.config
        if size > self.request_size or len(command.cdb) > config.cdb_size:
            raise BadSize(
                f"{command.name} does not fit one request",
                seen=f"{size} bytes of data, {len(command.cdb)} of the CDB",
                expected=f"at most {self.request_size} and {config.cdb_size} bytes",
                remedy="read() and write() split it; or give Scsi a larger request_size",
            )
        self._listen()
        slot = None
        try:
            slot = self._slot(lun, queue, timeout)
            requestq = slot.requestq
            slot.request = request = Request(self, lun, command, self.tag(), requestq.queue.index)
            slot.prepare(request)
            readable, writable = [slot.head], [slot.answer_entry]
            if command.data:
                slot.fill(command.data)
                readable += slot.runs(len(command.data))
            elif command.room:
                # Cleared: what the device does not write must not look like data, nor be that of an earlier
                # request.
                room = command.room
                slot.fill(memoryview(_ZEROES)[:room] if room <= len(_ZEROES) else bytes(room))
                writable += slot.runs(room)
            self._add(requestq, readable, writable, slot, timeout)
            self._of_lun[lun] += 1
        except BaseException:
            self._unsent(slot)
            raise
        if kick:
            requestq.queue.kick()
        return request

    def _slot(self, lun: Lun, index: int | None, timeout: float | None) -> Slot:
        """A free slot; waits for one if all are in flight."""
        requestqs = self._numbered(index)

        def room() -> bool:
            taken = self._of_lun[lun] + self._reserved[lun]
            return taken < self.per_lun and any(requestq.free for requestq in requestqs)

        if self._reserved[lun] >= self.per_lun:
            raise self._none_left(lun)
        if not room():
            self.kick()

            def ready() -> bool:
                self._gather()
                return room()

            self._await(ready, timeout, "one of the requests that are out")
        return next(requestq for requestq in requestqs if requestq.free).free.pop()

    # --- completion -----------------------------------------------------------------------------------------

    def _gather(self) -> int:
        """Take events and reap complete requests; see ``BaseRequestQueues``."""
        self.watch()
        return super()._gather()

    def recover(self) -> None:
        """Put the books in order; see ``BaseRequestQueues``."""
        super().recover()
        slots = (slot for requestq in self._free for slot in requestq.slots)
        self._of_lun = Counter(slot.request.lun for slot in slots if slot.request is not None)

    def _finish(self, requestq: RequestQueue, done: Sequence[Completion]) -> UvirtioError | None:
        invalid: UvirtioError | None = None
        for slot, _ in done:
            request: Request = slot.request
            self._of_lun[request.lun] -= 1
            if not self._of_lun[request.lun]:
                del self._of_lun[request.lun]
            # The answer decides. The used length is no measure: QEMU counts in it what it has read, too.
            moved, request.error = self._adapter.judge(request.lun, request.command, slot.answer())
            if request.error is None and request.command.room:
                request._data = slot.content(moved)
            # Last, and without a call between: what was not finished is found by it (``recover``).
            slot.request, request.done = None, True
            requestq.free.append(slot)
            if isinstance(request.error, ProtocolError):
                invalid = invalid or request.error
        return invalid
