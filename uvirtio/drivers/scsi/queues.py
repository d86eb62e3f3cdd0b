"""The request queues of a SCSI host device: submitting commands, waiting for them and reaping them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from uvirtio.drivers.scsi.adapter import Adapter
from uvirtio.drivers.scsi.commands import Command
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.drivers.scsi.request import Request, RequestQueue, Slot
from uvirtio.errors import BadSize, Closed, ConfigError, ProtocolError, QueueFull, UsageError, UvirtioError
from uvirtio.spec import scsi as spec
from uvirtio.virtqueue import Completion

_ZEROES = bytes(1 << 16)


class RequestQueues:
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
        self._adapter = adapter
        self._device = device = adapter.device
        config = adapter.config
        hint = config.max_sectors * spec.UNIT
        size = min(request_size, hint) if hint else request_size
        self._free = [
            RequestQueue(queue, device.dma, config, depth=min(depth, queue.ring.size), size=size)
            for index, queue in sorted(device.queues.items())
            if spec.REQUESTQ <= index < spec.REQUESTQ + config.num_queues
        ]
        """Queues that are not taken by a burst."""
        self.count = len(self._free)
        """Request queues, including those of bursts."""
        self.depth = min(one.depth for one in self._free)
        """Requests of one queue that can be in flight."""
        self.request_size = min(one.size for one in self._free)
        """Bytes of data of one request, at most."""
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
        self._first = self._free[0].queue
        self._turn = 0
        self._tags = count(1)
        self.watch: Callable[[], None] = lambda: None
        """Called whenever requests are collected: takes events."""

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and are not complete."""
        return sum(one.out for one in self._free)

    def tag(self) -> int:
        """Return an identifier that no other request has."""
        return next(self._tags)

    def _live(self) -> list[RequestQueue]:
        """The queues that take requests; an error if the driver is closed, or bursts have taken all of them."""
        if self._device.queues.get(self._first.index) is not self._first:
            raise Closed(f"the driver of {self._device.address} was closed")
        if not self._free:
            raise UsageError(
                f"all request queues of {self._device.address} are taken by bursts",
                seen=self.count,
                expected="a queue that is free",
                remedy="Scsi(device, queues=2) where the device has several, or a Scsi without a burst",
            )
        return self._free

    def _numbered(self, index: int | None) -> list[RequestQueue]:
        """Only the queue of this index; None: all, the next one in turn first."""
        live = self._live()
        if index is None:
            self._turn = (self._turn + 1) % len(live)
            return live[self._turn :] + live[: self._turn]
        found = [one for one in live if one.queue.index == index]
        if not found:
            told = ", ".join(str(one.queue.index) for one in live)
            raise UsageError("there is no such request queue", seen=index, expected=told)
        return found

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

    def idle(self, index: int | None) -> RequestQueue:
        """Return a queue that has nothing in flight.

        Args:
            index: Its index; None: the last queue.

        Raises:
            UsageError: Requests are in flight on it, there is no such queue, or bursts have taken all queues.
            Closed: The driver was closed.
        """
        requestq = self._live()[-1] if index is None else self._numbered(index)[0]
        if requestq.out:
            raise UsageError(
                f"{requestq.queue.name} has requests in flight",
                seen=requestq.out,
                expected="0",
                remedy="wait() for them first",
            )
        return requestq

    def remove(self, requestq: RequestQueue) -> None:
        """Stop using a queue for single requests, because a burst takes it."""
        self._free = [one for one in self._free if one is not requestq]

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
        slot = self._slot(lun, queue, timeout)
        requestq = slot.requestq
        slot.request = request = Request(self, lun, command, self.tag(), requestq.queue.index)
        slot.prepare(request)
        readable, writable = [slot.head], [slot.answer_entry]
        if command.data:
            slot.fill(command.data)
            readable += slot.runs(len(command.data))
        elif command.room:
            # Cleared: what the device does not write must not look like data, nor be that of an earlier request.
            room = command.room
            slot.fill(memoryview(_ZEROES)[:room] if room <= len(_ZEROES) else bytes(room))
            writable += slot.runs(room)
        try:
            self._add(requestq, readable, writable, slot, timeout)
        except BaseException:
            requestq.free.append(slot)
            raise
        self._of_lun[lun] += 1
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
                self.collect()
                return room()

            self._await(ready, timeout, "one of the requests that are out")
        return next(requestq for requestq in requestqs if requestq.free).free.pop()

    def _add(
        self,
        requestq: RequestQueue,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        slot: Slot,
        timeout: float | None,
    ) -> None:
        ring = requestq.queue.ring
        while True:
            try:
                return requestq.queue.add(readable, writable, slot)
            except QueueFull:
                requestq.queue.kick()
                if not ring.in_flight:
                    raise
                # The ring has too few free descriptors for the chain, though a slot was free.
                self._await(lambda: self.collect() > 0, timeout, "one of the requests that are out")

    def kick(self) -> None:
        """Notify the device of requests that were submitted without a kick.

        Raises:
            UsageError: Bursts have taken all queues.
            Closed: The driver was closed.
        """
        for requestq in self._live():
            requestq.queue.kick()

    # --- completion -----------------------------------------------------------------------------------------

    def wait(self, requests: Iterable[Request] | None = None, *, timeout: float | None = None) -> None:
        """Wait until requests are complete, successful or not; errors are in the requests.

        Args:
            requests: What to wait for; None: all that are in flight.
            timeout: Seconds, for all of them; the device's own where None.

        Raises:
            DeviceTimeout: They did not complete in time; the device counts as broken then.
            ProtocolError: An answer is invalid.
            UsageError: Bursts have taken all queues.
            Closed: The driver was closed.
        """
        with self._adapter.session():
            self.kick()
            left = None if requests is None else [one for one in requests if not one.done]

            def ready() -> bool:
                self.collect()
                if left is None:
                    return not self.in_flight
                while left and left[-1].done:
                    left.pop()
                return not left

            many = "requests in flight" if left is None else f"{len(left)} request{'s' * (len(left) != 1)}"
            self._await(ready, timeout, many)

    def _await(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        if not ready():
            self._device.wait(ready, timeout=self._device.seconds(timeout), what=what)

    def collect(self) -> int:
        """Reap complete requests, without waiting.

        Returns:
            How many there were.

        Raises:
            ProtocolError: An answer is invalid; raised when all were reaped.
            UsageError: Bursts have taken all queues.
            Closed: The driver was closed.
        """
        done = 0
        senseless: UvirtioError | None = None
        for requestq in self._live():
            for completion in requestq.queue.reap():
                done += 1
                error = self._finish(requestq, completion)
                senseless = senseless or error
        self.watch()
        if senseless is not None:
            raise senseless
        return done

    def _finish(self, requestq: RequestQueue, completion: Completion) -> UvirtioError | None:
        slot: Slot = completion.cookie
        request, slot.request = slot.request, None
        assert request is not None
        self._of_lun[request.lun] -= 1
        if not self._of_lun[request.lun]:
            del self._of_lun[request.lun]
        # The answer decides. The used length is no measure: QEMU counts in it what it has read, too.
        moved, request.error = self._adapter.judge(request.lun, request.command, slot.answer())
        if request.error is None and request.command.room:
            request._data = slot.content(moved)
        request.done = True
        requestq.free.append(slot)
        return request.error if isinstance(request.error, ProtocolError) else None
