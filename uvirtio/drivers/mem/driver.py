"""The memory device's protocol (5.15.6): requests, their four answers, and books that follow the device."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.base import Driver, runs, transact
from uvirtio.drivers.mem import config as configuration
from uvirtio.drivers.mem.block_table import BlockTable
from uvirtio.drivers.mem.config import MemConfig
from uvirtio.drivers.mem.ranges import Ranges
from uvirtio.drivers.mem.suspend import SuspendLock
from uvirtio.errors import BadSize, MemBusy, MemError, MemNack, ProtocolError
from uvirtio.spec import features as f
from uvirtio.spec import mem as spec
from uvirtio.spec.mem import Request, Response, State

_REQUEST = struct.Struct("<H6xQH6x")
_RESPONSE = struct.Struct("<H6xH")
_RESPONSE_AT = 64  # in the one buffer; the device writes there, and nowhere near the request
_BUFFER = 128

_SURVEY_LIMIT = 1 << 20
"""STATE requests of one survey. QEMU answers 30,000 a second; a region in more pieces than this is a lie."""

BUSY_FIRST, BUSY_LAST = 0.05, 5.0
"""Seconds between tries while the device is busy, growing by two from the first to the last, with jitter."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its type, and for STATE with ACK the state; nothing else in it is looked at (5.15.6)."""

    type: Response
    state: State | None = None


class Mem(Driver):
    """Plug, unplug and ask. Addresses are guest-physical, in bytes; numbers are of blocks of ``block_size``.

    Plugged blocks outlive the driver, the process and a reset of the device: leaving unplugs nothing. What an
    earlier owner left plugged is found at the start, shown in ``leftover`` and kept; ``leftover="unplug"``
    repeats UNPLUG ALL instead until it succeeds (5.15.5.1). ``timeout`` of a call is for each request.
    ``suspend_lock`` is held while something is plugged that a suspend to RAM would lose (5.15.6.1), until the
    driver is closed; without one (None) it is up to the caller to keep the machine awake.

    Raises, beside what every driver does, ConfigError for a configuration that cannot be.
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
        self.suspend_lock = suspend_lock
        super().__init__(device, observe=observe)
        self.counts: dict[Response, int] = dict.fromkeys(Response, 0)
        """Answers so far, by their type."""
        self.findings: dict[str, int] = {}
        """How often the device did something odd that is tolerated, by name."""
        try:
            with device.session():
                config = self.config()
                self.block_table = BlockTable(config.block_size)
                if config.plugged_size and leftover == "unplug":
                    self.unplug_all(timeout=device.timeout)
                elif config.plugged_size:
                    self.resync()
                self.leftover = self.block_table.plugged.copy()
                """Blocks that were plugged when we came."""
                self._update_suspend_lock()
        except BaseException:
            self.close()
            raise

    def _queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec(spec.GUEST_REQUESTQ, "guest-request", size=8)]

    def _before_ok(self) -> None:
        config = configuration.read(self.device)  # a device that cannot be is left before it runs
        self._identity = (config.block_size, config.addr, config.region_size)
        self._buffer = self.device.dma.alloc(_BUFFER)

    # --- configuration --------------------------------------------------------------------------------------

    def config(self) -> MemConfig:
        """The configuration, read now: it changes without a notification too (5.15.4.2). Raises ConfigError."""
        with self.device.session():
            config = configuration.read(self.device)
            if self._identity != (config.block_size, config.addr, config.region_size):
                self._finding("what cannot change changed: block_size, addr or region_size")
                raise ProtocolError(
                    f"{self.device.address} changed its block_size, addr or region_size",
                    seen=(config.block_size, config.addr, config.region_size),
                    expected=self._identity,
                    remedy="the device is at fault: they stand for its life (5.15.4)",
                )
            return config

    @property
    def block_size(self) -> int:
        """Bytes; never changes (5.15.4)."""
        return self.block_table.block_size

    @property
    def addr(self) -> int:
        """Guest-physical address of the region; never changes."""
        return self._identity[1]

    @property
    def unplugged_inaccessible(self) -> bool:
        """Unplugged blocks must not even be read (5.15.6.1). Here they never are, whatever this says."""
        return self.device.has(f.Mem.UNPLUGGED_INACCESSIBLE)

    @property
    def survives_suspend(self) -> bool:
        """PERSISTENT_SUSPEND: without it the guest must not suspend to RAM while memory is plugged (5.15.6.1)."""
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
        """Reset the device, free its memory, let go of the suspend lock; what is plugged stays. Idempotent."""
        try:
            super().close()
        finally:
            if self.suspend_lock is not None:
                self.suspend_lock.release()

    # --- requests -------------------------------------------------------------------------------------------

    def plug(self, addr: int, blocks: int, *, timeout: float | None = None) -> None:
        """Plug ``blocks`` unplugged blocks from ``addr``; more than 65,535 take several requests (5.15.6.3).

        Raises BadSize before anything is sent; MemNack, MemBusy, MemError with ``done``, the number of blocks
        that were acknowledged before; DeviceTimeout, ProtocolError.
        """
        with self.device.session():
            first = self._validated(addr, blocks)
            if self.block_table.plugged.overlaps(first, blocks):
                raise self._not_uniform("plugged already", first, blocks)
            self._update_suspend_lock(plugs=True)
            try:
                self._each(Request.PLUG, first, blocks, self.block_table.was_plugged, timeout)
            finally:
                self._update_suspend_lock()

    def unplug(self, addr: int, blocks: int, *, timeout: float | None = None) -> None:
        """Unplug ``blocks`` plugged blocks from ``addr``; their contents are lost (5.15.6.4).

        Raises as :meth:`plug`, and InUse where somebody uses one of them.
        """
        with self.device.session():
            first = self._validated(addr, blocks)
            if not self.block_table.plugged.covers(first, blocks):
                raise self._not_uniform("not plugged", first, blocks)
            self.block_table.require_unused(first, blocks)
            self._each(Request.UNPLUG, first, blocks, self.block_table.was_unplugged, timeout)

    def unplug_all(self, *, timeout: float | None = None) -> None:
        """Unplug everything, whoever plugged it; repeated while the device is busy, ``timeout`` seconds in all.

        The usable region may shrink afterwards, without a notification (5.15.4.2).
        Raises InUse, MemNack, MemBusy, MemError.
        """
        with self.device.session():
            whole = self._identity[2] // self.block_size
            self.block_table.require_unused(0, whole)
            self.patiently(self._unplug_all_once, timeout)
            self.block_table.was_unplugged(0, whole)
            left = self.config().plugged_size
            if left:
                self._finding("plugged_size is not 0 after UNPLUG ALL")
                self.resync()
            self._update_suspend_lock()

    def _unplug_all_once(self) -> None:
        answer = self.ask(Request.UNPLUG_ALL)
        if answer.type is not Response.ACK:
            self._refused(Request.UNPLUG_ALL, 0, 0, answer, 0)

    def state(self, addr: int, blocks: int, *, timeout: float | None = None) -> State:
        """Whether these blocks are plugged, unplugged, or some of each (5.15.6.6).

        Raises BadSize, DeviceTimeout, ProtocolError, and MemError where the device refuses to tell.
        """
        with self.device.session():
            return self._state(self._validated(addr, blocks), blocks, timeout)

    def _state(self, first: int, blocks: int, timeout: float | None = None) -> State:
        states = set()
        for at, count in _pieces(first, blocks):
            answer = self.ask(Request.STATE, self._address(at), count, timeout=timeout)
            if answer.state is None:
                self._refused(Request.STATE, at, count, answer, at - first)
            states.add(answer.state)
        return states.pop() if len(states) == 1 else State.MIXED

    def ask(self, request: Request, addr: int = 0, blocks: int = 0, *, timeout: float | None = None) -> Answer:
        """One request exactly as given, and its answer; nothing is checked, no book is kept. For diagnostics.

        ``timeout`` in seconds, the device's own where None. Raises DeviceTimeout, ProtocolError.
        """
        with self.device.session():
            buffer = self._buffer
            buffer.view[: spec.REQUEST_SIZE] = _REQUEST.pack(request, addr, blocks)
            # Cleared, and to what is no answer: what the device does not write must not look like an ACK.
            buffer.view[_RESPONSE_AT : _RESPONSE_AT + spec.RESPONSE_SIZE] = b"\xff" * spec.RESPONSE_SIZE
            done = transact(
                self.device,
                self.device.queues[spec.GUEST_REQUESTQ],
                runs(buffer, 0, spec.REQUEST_SIZE),
                runs(buffer, _RESPONSE_AT, spec.RESPONSE_SIZE),
                timeout=self.device.timeout if timeout is None else timeout,
                what=f"the answer to {request.name} {addr:#x} +{blocks}",
            )
            data = bytes(buffer.view[_RESPONSE_AT : _RESPONSE_AT + spec.RESPONSE_SIZE])
            return self._answer(request, done.written, data)

    def _answer(self, request: Request, written: int, data: bytes) -> Answer:
        kind, state = _RESPONSE.unpack(data)
        if written < spec.RESPONSE_SIZE:
            raise self._senseless(request, f"{written} bytes", f"{spec.RESPONSE_SIZE} bytes (5.15.6)")
        if kind not in set(Response):
            raise self._senseless(request, f"type {kind}", "ACK, NACK, BUSY or ERROR (5.15.6)")
        answer = Response(kind)
        self.counts[answer] += 1
        if request is not Request.STATE or answer is not Response.ACK:
            return Answer(answer)  # 5.15.6.3.1 and its like: of other answers the type alone
        if state not in set(State):
            raise self._senseless(request, f"state {state}", "PLUGGED, UNPLUGGED or MIXED (5.15.6.6)")
        return Answer(answer, State(state))

    def _senseless(self, request: Request, seen: str, expected: str) -> ProtocolError:
        return ProtocolError(
            f"{self.device.address} answers {request.name} with what is no answer",
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
        timeout: float | None,
    ) -> None:
        """The request for all of these blocks, in pieces that fit; each ACK goes into the books at once."""
        for at, count in _pieces(first, blocks):
            answer = self.ask(request, self._address(at), count, timeout=timeout)
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
            # What the device thinks is not what we think: it is right.
            self.resync()
        raise MemError(
            f"{self.device.address} calls {about} an error",
            seen=f"{answer.type.name}: type {int(request)}, addr {self._address(first):#x}, nb_blocks {count}",
            expected="ACK",
            remedy="blocks must be usable, and all plugged or all unplugged (5.15.6); the books were made anew",
            done=done,
        )

    def patiently(self, act: Callable[[], None], timeout: float | None) -> None:
        """Do ``act`` again, ever less often, while it raises MemBusy; ``timeout`` in seconds, for all of it."""
        deadline = time.monotonic() + (self.device.timeout if timeout is None else timeout)
        pause = BUSY_FIRST
        while True:
            try:
                act()
                return
            except MemBusy:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                self.pause(min(left, jittered(pause)))
                pause = min(pause * 2, BUSY_LAST)

    def pause(self, seconds: float) -> bool:
        """Wait, unless the configuration changes, which is told by True; a signal or ``close()`` gets through."""
        seen = self.device.counters.config_changes
        return self.device.wait(
            lambda: self.device.counters.config_changes != seen, timeout=seconds, what="a change", owed=False
        )

    # --- what is plugged ------------------------------------------------------------------------------------

    def resync(self) -> Ranges:
        """Ask the device, by STATE, what is plugged, and believe it; the plugged blocks.

        Raises ProtocolError if its answers cannot be true, or if it has more pieces than can be asked for.
        """
        with self.device.session():
            config = self.config()
            plugged = self._survey(config)
            if plugged.total != config.plugged_blocks:
                self._finding("plugged_size is not the number of plugged blocks")
            if self.block_table.plugged != plugged:
                lost = self.block_table.in_use.without(plugged)
                if lost:
                    self._finding("blocks in use were unplugged behind our back")
                self.block_table.set_plugged(plugged)
            return plugged

    def _survey(self, config: MemConfig) -> Ranges:
        """Bisection of MIXED answers; over as soon as all that is plugged was found."""
        plugged = Ranges()
        missing = config.plugged_blocks
        todo = [(0, config.usable_blocks)]
        asked = 0
        while todo and missing > 0:
            first, count = todo.pop()
            if count == 0:
                break  # nothing is usable, and so nothing can be asked about
            if count > spec.MAX_BLOCKS:
                piece = spec.MAX_BLOCKS
                todo.append((first + piece, count - piece))
                count = piece
            asked += 1
            if asked > _SURVEY_LIMIT:
                raise self._senseless(
                    Request.STATE, f"{asked} requests and no end", "a region whose plugged blocks can be found"
                )
            state = self._state(first, count)
            if state is State.PLUGGED:
                plugged.add(first, count)
                missing -= count
            elif state is State.MIXED:
                if count == 1:
                    raise self._senseless(Request.STATE, "MIXED for one block", "PLUGGED or UNPLUGGED")
                half = count // 2
                todo += [(first + half, count - half), (first, half)]
        return plugged

    def _compare(self) -> None:
        """5.15.4.2: plugged_size follows our requests without a notification; when it does not, ask for all."""
        if self.config().plugged_size != self.block_table.plugged.total * self.block_size:
            self._finding("plugged_size is not what was acknowledged")
            self.resync()
        self._update_suspend_lock()

    # --- before sending -------------------------------------------------------------------------------------

    def _address(self, block: int) -> int:
        return self.addr + block * self.block_size

    def _validated(self, addr: int, blocks: int) -> int:
        """The number of the first block. Raises BadSize for what the device would have to refuse (5.15.6)."""
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
            remedy="uvirtio mem map DEV shows which are plugged",
        )

    def _finding(self, what: str) -> None:
        self.findings[what] = self.findings.get(what, 0) + 1


def jittered(seconds: float) -> float:
    """A little more or less, so that several guests do not come back all at once."""
    return seconds * random.uniform(0.75, 1.25)


def _pieces(first: int, count: int) -> Iterator[tuple[int, int]]:
    """What one request after the other can name: nb_blocks is 16 bits wide."""
    most = spec.MAX_BLOCKS
    return ((first + at, min(most, count - at)) for at in range(0, count, most))
