"""The memory device's protocol (5.15.6): requests, their four responses, and a block table that follows them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import ClassVar, Literal, NoReturn

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.base import Driver, runs, settle
from uvirtio.drivers.mem import config as configuration
from uvirtio.drivers.mem.block_table import BlockTable
from uvirtio.drivers.mem.config import MemConfig
from uvirtio.drivers.mem.ranges import BlockRange, Ranges
from uvirtio.drivers.mem.survey import AT_ONCE, pieces, survey
from uvirtio.drivers.mem.suspend import SuspendLock
from uvirtio.errors import BadSize, MemBusy, MemError, MemNack, ProtocolError, UsageError
from uvirtio.spec import features as f
from uvirtio.spec import mem as spec
from uvirtio.spec.mem import Request, Response, State
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.clock import Clock

_REQUEST = struct.Struct("<H6xQH6x")
_RESPONSE = struct.Struct("<H6xH")
_RESPONSE_AT = 64  # in the buffer of a request; the device writes there, on away from the request
_BUFFER = 128

BUSY_FIRST, BUSY_LAST = 0.05, 5.0
"""Seconds between retries while the device is busy: doubled from the first to the last, with jitter."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of the device (5.15.6)."""

    type: Response
    state: State | None = None
    """The state, for an ACK to STATE only."""


class Mem(Driver):
    """Driver of the memory device (5.15): PLUG, UNPLUG, UNPLUG ALL and STATE requests.

    Addresses are guest-physical, in bytes; counts are of blocks of ``block_size`` bytes. Plugged blocks outlive
    the driver, the process and a reset of the device: closing the driver unplugs nothing.
    """

    device_id: ClassVar[int] = spec.TYPE
    features: ClassVar[int] = f.mask(f.Mem.ACPI_PXM, f.Mem.UNPLUGGED_INACCESSIBLE, f.Mem.PERSISTENT_SUSPEND)

    def __init__(
        self,
        device: Device,
        *,
        leftover: Literal["keep", "unplug"] = "keep",
        suspend_lock: SuspendLock | None = None,
        observe: Observer = unobserved,
    ) -> None:
        """Start the device and find out what is plugged; ``Driver.__init__`` lists how starting can fail.

        The device's time-out is the deadline of all that comes after the start: the STATE requests of ``resync``,
        of which many are with the device at once, or the tries of UNPLUG ALL.

        Args:
            device: An open memory device.
            leftover: What to do with blocks that an earlier owner left plugged: keep them, or repeat UNPLUG ALL
                until it succeeds (5.15.5.1).
            suspend_lock: Held while blocks are plugged that a suspend to RAM would lose (5.15.6.1), until the
                driver is closed; None: the caller keeps the machine awake.
            observe: Called after each step of the initialisation.

        Raises:
            NotVirtio: The device is of another type.
            UsageError: ``leftover`` is none of the two.
            ConfigError: The configuration is invalid (5.15.4.2).
            ProtocolError: STATE responses contradict each other.
            MemBusy, MemNack, MemError: With ``leftover="unplug"``, UNPLUG ALL did not succeed in time.
            DeviceTimeout: The device did not respond in time, or not to all requests.
        """
        if leftover not in ("keep", "unplug"):
            raise UsageError("there is no such choice", seen=repr(leftover), expected="'keep' or 'unplug'")
        self.suspend_lock = suspend_lock
        super().__init__(device, observe=observe)
        self.counts: dict[Response, int] = dict.fromkeys(Response, 0)
        """Responses so far, by type."""
        try:
            with self.session(device.timeout):
                config = self.config()
                if config.plugged_size and leftover == "unplug":
                    self.unplug_all()
                elif config.plugged_size:
                    self.resync()
                self.leftover = self.block_table.plugged.copy()
                """Blocks that were plugged before this driver and still are."""
                self._update_suspend_lock()
        except BaseException:
            self.close()
            raise

    def _queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec(spec.GUEST_REQUESTQ, "guest-request", size=AT_ONCE)]

    def _before_ok(self) -> None:
        config = configuration.read(self.device)  # an invalid device is left before DRIVER_OK
        self._identity = (config.block_size, config.addr, config.region_size)
        self.block_table = BlockTable(config.block_size)
        ring = self.device.queues[spec.GUEST_REQUESTQ].ring
        self._room = max(1, min(AT_ONCE, ring.size // ring.needs(2)))
        """Requests that can be with the device at once: each is two elements (5.15.6)."""
        self._buffer = self.device.dma.alloc(_BUFFER * self._room)

    def _about(self) -> str:
        return f"{self.block_table.plugged.total} of {self._identity[2] // self._identity[0]} blocks plugged"

    # --- configuration --------------------------------------------------------------------------------------

    def config(self) -> MemConfig:
        """Read the configuration, which may change without a notification (5.15.4.2).

        Raises:
            ConfigError: It is invalid.
            ConfigUnstable: It changes at every read.
            ProtocolError: ``block_size``, ``addr`` or ``region_size`` changed.
            DeviceResetByOther: Nothing is usable, or not as much is plugged as was, because another program reset
                the device.
        """
        with self.session():
            config = configuration.read(self.device)
            if not config.usable_region_size or config.plugged_blocks != self.block_table.plugged.total:
                self.device.check_status()
            if self._identity != (config.block_size, config.addr, config.region_size):
                self._finding("what cannot change changed: block_size, addr or region_size")
                raise ProtocolError(
                    f"{self.device.address} changed its block_size, addr or region_size",
                    seen=(config.block_size, config.addr, config.region_size),
                    expected=self._identity,
                    remedy="the device is at fault: these never change (5.15.4)",
                )
            return config

    @property
    def block_size(self) -> int:
        """Bytes of a block; never changes (5.15.4)."""
        return self.block_table.block_size

    @property
    def addr(self) -> int:
        """Guest-physical address of the region; never changes."""
        return self._identity[1]

    @property
    def unplugged_inaccessible(self) -> bool:
        """Whether unplugged blocks must not be read (UNPLUGGED_INACCESSIBLE, 5.15.6.1). Here they never are."""
        return self.device.has(f.Mem.UNPLUGGED_INACCESSIBLE)

    @property
    def survives_suspend(self) -> bool:
        """Whether plugged memory survives a suspend to RAM (PERSISTENT_SUSPEND, 5.15.6.1)."""
        return self.device.has(f.Mem.PERSISTENT_SUSPEND)

    def _update_suspend_lock(self, *, plugs: bool = False) -> None:
        """5.15.6.1: hold the lock from before the first block is plugged until the last is unplugged."""
        if self.suspend_lock is None or self.survives_suspend:
            return
        if plugs or self.block_table.plugged.total:
            self.suspend_lock.hold()
        else:
            self.suspend_lock.release()

    def close(self) -> None:
        """Reset the device, free its memory, release the suspend lock; blocks stay plugged. Idempotent."""
        try:
            super().close()
        finally:
            if self.suspend_lock is not None:
                self.suspend_lock.release()

    # --- requests -------------------------------------------------------------------------------------------

    def plug(self, addr: int, blocks: int, *, timeout: float | None = None) -> None:
        """Plug unplugged blocks (5.15.6.3); more than 65,535 take several requests.

        Args:
            addr: Guest-physical address of the first block.
            blocks: How many.
            timeout: Seconds in all; None: the device's own for each request.

        Raises:
            BadSize: The blocks are not all in the usable region, or not all unplugged; nothing was sent.
            MemNack, MemBusy, MemError: The device refused; ``done`` is the number of blocks plugged before.
            DeviceTimeout: The device did not respond in time.
            ProtocolError: The response is invalid.
        """
        addr, blocks = index(addr), index(blocks)
        with self.session(timeout):
            first = self._validated(addr, blocks)
            if self.block_table.plugged.overlaps(first, blocks):
                raise self._not_uniform("plugged already", first, blocks)
            self._update_suspend_lock(plugs=True)
            try:
                self._each(Request.PLUG, first, blocks, self.block_table.was_plugged)
            finally:
                self._update_suspend_lock()

    def unplug(self, addr: int, blocks: int, *, timeout: float | None = None) -> None:
        """Unplug plugged blocks; their contents are lost (5.15.6.4).

        Args:
            addr: Guest-physical address of the first block.
            blocks: How many.
            timeout: Seconds in all; None: the device's own for each request.

        Raises:
            BadSize: The blocks are not all in the usable region, or not all plugged; nothing was sent.
            InUse: One of them is in use; nothing was sent.
            MemNack, MemBusy, MemError: The device refused; ``done`` is the number of blocks unplugged before.
            DeviceTimeout: The device did not respond in time.
            ProtocolError: The response is invalid.
        """
        addr, blocks = index(addr), index(blocks)
        with self.session(timeout):
            first = self._validated(addr, blocks)
            if not self.block_table.plugged.covers(first, blocks):
                raise self._not_uniform("not plugged", first, blocks)
            self.block_table.require_unused(first, blocks)
            self._each(Request.UNPLUG, first, blocks, self.block_table.was_unplugged)

    def unplug_all(self, *, timeout: float | None = None) -> None:
        """Unplug all blocks, also those of an earlier owner (UNPLUG ALL, 5.15.6.5).

        Retries while the device is busy. Afterwards the usable region may shrink, without a notification
        (5.15.4.2).

        Args:
            timeout: Seconds in all; the device's own where None.

        Raises:
            InUse: A block is in use; nothing was sent.
            MemBusy: The device was busy until ``timeout``.
            MemNack, MemError: The device refused.
            DeviceTimeout: The device did not respond in time.
            ProtocolError: The response is invalid.
        """
        with self.session(timeout):
            whole = self._identity[2] // self.block_size
            self.block_table.require_unused(0, whole)
            self.patiently(self._unplug_all_once, None)
            self.block_table.was_unplugged(0, whole)
            left = self.config().plugged_size
            if left:
                self._finding("plugged_size is not 0 after UNPLUG ALL")
                self.resync()
            self._update_suspend_lock()

    def _unplug_all_once(self, seconds: float) -> None:
        answer = self.ask(Request.UNPLUG_ALL, timeout=seconds)
        if answer.type is not Response.ACK:
            self._refused(Request.UNPLUG_ALL, 0, 0, answer, 0)

    def state(self, addr: int, blocks: int, *, timeout: float | None = None) -> State:
        """Ask the device whether blocks are plugged (STATE, 5.15.6.6).

        Args:
            addr: Guest-physical address of the first block.
            blocks: How many.
            timeout: Seconds in all; None: the device's own for each request.

        Returns:
            Whether they are plugged, unplugged, or some of each.

        Raises:
            BadSize: The blocks are not all in the usable region; nothing was sent.
            MemNack, MemBusy, MemError: The device refused.
            DeviceTimeout: The device did not respond in time.
            ProtocolError: The response is invalid.
        """
        addr, blocks = index(addr), index(blocks)
        with self.session(timeout):
            return self._state(self._validated(addr, blocks), blocks)

    def _state(self, first: int, blocks: int) -> State:
        asked = list(pieces(first, blocks))
        states = set(self._states(asked, _Pace(self.device, self._room), f"STATE of {blocks} blocks"))
        return states.pop() if len(states) == 1 else State.MIXED

    def _states(self, asked: Sequence[BlockRange], pace: _Pace, what: str) -> list[State]:
        """Ask for the states of these ranges, many at once, but no more than are answered in time."""
        states: list[State] = []
        while len(states) < len(asked):
            if pace.answers:
                self.device.check_time(what)
            batch = asked[len(states) : len(states) + pace.at_once()]
            answers = self._exchange([(Request.STATE, self._address(at), count) for at, count in batch])
            pace.answers += len(batch)
            for (at, count), answer in zip(batch, answers, strict=True):
                if answer.state is None:
                    self._refused(Request.STATE, at, count, answer, sum(many for _, many in asked[: len(states)]))
                states.append(answer.state)
        return states

    def ask(self, request: Request, addr: int = 0, blocks: int = 0, *, timeout: float | None = None) -> Answer:
        """Send one request unchecked, without recording its effect in ``block_table``. For diagnostics.

        Args:
            request: Its type.
            addr: Guest-physical address, 64 bits.
            blocks: Blocks, 16 bits.
            timeout: Seconds; the device's own where None.

        Returns:
            The response.

        Raises:
            BadSize: A number does not fit its field; nothing was sent.
            DeviceTimeout: The device did not respond in time.
            ProtocolError: The response is invalid.
        """
        request, addr, blocks = Request(request), index(addr), index(blocks)
        if not (0 <= addr < 1 << 64 and 0 <= blocks < 1 << 16):
            raise BadSize(
                "a request has an address of 64 bits, and blocks of 16",
                seen=f"{addr:#x} +{blocks}",
                expected="no more (5.15.6)",
            )
        with self.session(timeout):
            return self._exchange([(request, addr, blocks)])[0]

    def _exchange(self, requests: Sequence[tuple[Request, int, int]]) -> list[Answer]:
        """Send so many requests with one notification, and wait for all answers; at most ``_room``.

        A device may use them in any order (2.7.9): an answer belongs to the request that is in the same chain.
        """
        device, queue, view = self.device, self.device.queues[spec.GUEST_REQUESTQ], self._buffer.view
        settle(device, queue, timeout=device.seconds(None))  # of a wait that was interrupted
        for place, request in enumerate(requests):
            at = place * _BUFFER
            answer = at + _RESPONSE_AT
            view[at : at + spec.REQUEST_SIZE] = _REQUEST.pack(*request)
            # Preset to an invalid response: what the device does not write must not look like an ACK.
            view[answer : answer + spec.RESPONSE_SIZE] = b"\xff" * spec.RESPONSE_SIZE
            readable = runs(self._buffer, at, spec.REQUEST_SIZE)
            queue.add(readable, runs(self._buffer, answer, spec.RESPONSE_SIZE), place)
        queue.kick()
        kind, addr, blocks = requests[0]
        what = f"the answer to {kind.name} {addr:#x} +{blocks}"
        if len(requests) > 1:
            what = f"the answers to {len(requests)} {kind.name} requests from {addr:#x} on"
        written = {
            done.cookie: done.written for done in settle(device, queue, timeout=device.seconds(None), what=what)
        }
        answers = []
        for place, (kind, _, _) in enumerate(requests):
            answer = place * _BUFFER + _RESPONSE_AT
            data = bytes(view[answer : answer + spec.RESPONSE_SIZE])
            answers.append(self._answer(kind, written[place], data))
        return answers

    def _answer(self, request: Request, written: int, data: bytes) -> Answer:
        kind, state = _RESPONSE.unpack(data)
        if written < spec.RESPONSE_SIZE:
            raise self._senseless(request, f"{written} bytes", f"{spec.RESPONSE_SIZE} bytes (5.15.6)")
        if kind not in set(Response):
            raise self._senseless(request, f"type {kind}", "ACK, NACK, BUSY or ERROR (5.15.6)")
        answer = Response(kind)
        self.counts[answer] += 1
        if request is not Request.STATE or answer is not Response.ACK:
            return Answer(answer)  # 5.15.6.3.1 and others: of other responses the type alone counts
        if state not in set(State):
            raise self._senseless(request, f"state {state}", "PLUGGED, UNPLUGGED or MIXED (5.15.6.6)")
        return Answer(answer, State(state))

    def _senseless(self, request: Request, seen: str, expected: str) -> ProtocolError:
        return ProtocolError(
            f"{self.device.address} answers {request.name} with an invalid response",
            seen=seen,
            expected=expected,
            remedy="the device is at fault; its log may say more",
        )

    def _each(
        self,
        request: Request,
        first: int,
        blocks: int,
        book: Callable[[int, int], None],
    ) -> None:
        """Send the request for all of these blocks, in pieces that fit; each ACK is recorded at once."""
        for at, count in pieces(first, blocks):
            if at != first:
                self.device.check_time(f"{request.name} of {blocks} blocks")
            answer = self.ask(request, self._address(at), count)
            if answer.type is not Response.ACK:
                self._refused(request, at, count, answer, at - first)
            book(at, count)
        self._compare()

    def _refused(self, request: Request, first: int, count: int, answer: Answer, done: int) -> NoReturn:
        about = f"{request.name} of {count} blocks at {self._address(first):#x}"
        if request is Request.UNPLUG_ALL:
            about = "UNPLUG ALL"
        if answer.type is Response.BUSY:
            raise MemBusy(
                f"{self.device.address} is too busy for {about}",
                seen=f"BUSY after {done} blocks",
                expected="ACK",
                remedy="try again later; QEMU is busy during a migration",
                done=done,
            )
        if answer.type is Response.NACK:
            config = self.config()
            raise MemNack(
                f"{self.device.address} does not want {about}",
                seen=f"NACK after {done} blocks; plugged {config.plugged_size}, requested {config.requested_size}",
                expected="ACK",
                remedy="only as much can be plugged as the host requests: raise its requested-size (QMP qom-set)",
                done=done,
            )
        if request is not Request.STATE:
            # The block table differs from the device's state; the device is right.
            self.resync()
        raise MemError(
            f"{self.device.address} calls {about} an error",
            seen=f"{answer.type.name}: type {int(request)}, addr {self._address(first):#x}, nb_blocks {count}",
            expected="ACK",
            remedy="blocks must be usable, all plugged or all unplugged (5.15.6); block_table.plugged, or "
            "uvirtio mem map DEV, shows them",
            done=done,
        )

    def patiently(self, act: Callable[[float], None], timeout: float | None) -> None:
        """Retry ``act`` with growing pauses while it raises MemBusy.

        Args:
            act: What to do, called with the seconds that are left, which are its deadline; its other errors pass
                through.
            timeout: Seconds in all; the device's own where None.

        Raises:
            MemBusy: The device was busy until ``timeout``, or until too late for one more answer.
        """
        seconds = self.device.seconds(timeout)
        deadline = self.device.clock.monotonic() + seconds
        with self.session(seconds):
            self._patiently(act, deadline)

    def _patiently(self, act: Callable[[float], None], deadline: float) -> None:
        clock, pause, slowest = self.device.clock, BUSY_FIRST, 0.0
        while True:
            begin = clock.monotonic()
            try:
                act(max(0.0, deadline - begin))
                return
            except MemBusy:
                now = clock.monotonic()
                slowest = max(slowest, now - begin)
                self.pause(max(0.0, min(deadline - now, jittered(pause, clock))))
                if clock.monotonic() + slowest >= deadline:  # an answer would come too late: DeviceTimeout
                    raise
                pause = min(pause * 2, BUSY_LAST)

    def pause(self, seconds: float) -> bool:
        """Wait until the configuration changes; a signal or ``close()`` interrupts it.

        Args:
            seconds: How long, at most.

        Returns:
            Whether the configuration changed.
        """
        seen = self.device.counters.config_changes
        with self.session():
            return self.device.wait(
                lambda: self.device.counters.config_changes != seen, timeout=seconds, what="a change", owed=False
            )

    # --- what is plugged ------------------------------------------------------------------------------------

    def resync(self, *, timeout: float | None = None) -> Ranges:
        """Read from the device which blocks are plugged, by STATE requests, and correct ``block_table``.

        Args:
            timeout: Seconds in all; the device's own where None.

        Returns:
            The plugged blocks.

        Raises:
            ProtocolError: The responses contradict each other.
            MemNack, MemBusy, MemError: The device refused.
            DeviceTimeout: The device did not respond in time, or not to all requests.
        """
        with self.session(self.device.seconds(timeout)):
            config = self.config()
            pace = _Pace(self.device, self._room)
            plugged, fits = survey(
                config.usable_blocks,
                config.plugged_blocks,
                lambda asked: self._states(asked, pace, "which blocks are plugged"),
                lambda seen, expected: self._senseless(Request.STATE, seen, expected),
            )
            if not fits:
                self._finding("plugged_size is not the number of plugged blocks")
            if self.block_table.plugged != plugged:
                lost = self.block_table.in_use.without(plugged)
                if lost:
                    self._finding("blocks in use were unplugged behind our back")
                self.block_table.set_plugged(plugged)
            return plugged

    def _compare(self) -> None:
        """5.15.4.2: plugged_size follows our requests without a notification; if it does not, read all states."""
        if self.config().plugged_size != self.block_table.plugged.total * self.block_size:
            self._finding("plugged_size is not what was acknowledged")
            self.resync()
        self._update_suspend_lock()

    # --- before sending -------------------------------------------------------------------------------------

    def _address(self, block: int) -> int:
        return self.addr + block * self.block_size

    def _validated(self, addr: int, blocks: int) -> int:
        """Check a range that the device would have to refuse otherwise (5.15.6); the number of its first block."""
        config = self.config()
        block = config.block_size
        if blocks < 1:
            raise BadSize("a request is for at least one block", seen=blocks, expected="1 or more")
        if addr % block:
            below = addr // block * block
            raise BadSize(
                f"{addr:#x} is not the address of a block",
                seen=addr,
                expected=f"a multiple of {block:#x}",
                remedy=f"nearest block addresses: {below:#x} and {below + block:#x}",
            )
        end = config.addr + config.usable_blocks * block
        if addr < config.addr or addr + blocks * block > end:
            raise BadSize(
                f"{blocks} blocks at {addr:#x} are not all in the usable region",
                seen=f"{addr:#x}..{addr + blocks * block:#x}",
                expected=f"within {config.addr:#x}..{end:#x}",
                remedy="the region's usable part grows when the host requests more",
            )
        return config.block_at(addr)

    def _not_uniform(self, what: str, first: int, blocks: int) -> BadSize:
        plugged = self.block_table.plugged.count(first, blocks)
        return BadSize(
            f"some of these {blocks} blocks are {what}",
            seen=f"{plugged} plugged, {blocks - plugged} not",
            expected="all plugged to unplug them, all unplugged to plug them (5.15.6)",
            remedy="block_table.plugged, or uvirtio mem map DEV, shows which are plugged",
        )


def jittered(seconds: float, clock: Clock) -> float:
    """Return ``seconds`` with jitter of 25%, so that several guests do not retry at the same moment."""
    return seconds * (0.75 + 0.5 * clock.random())


class _Pace:
    """How many requests to have with a device at once: as many as it answers in half of the time that is left.

    So a device that is slow and answers each request in time is never owed an answer when the call's time is over.
    """

    def __init__(self, device: Device, most: int) -> None:
        self._device = device
        self._most = most
        self._begin = device.clock.monotonic()
        self.answers = 0
        """Answers so far."""

    def at_once(self) -> int:
        """Return how many requests to send next: one at first."""
        if not self.answers:
            return 1
        each = (self._device.clock.monotonic() - self._begin) / self.answers
        return max(1, min(self._most, int(self._device.seconds(None) / 2 / each))) if each else self._most
