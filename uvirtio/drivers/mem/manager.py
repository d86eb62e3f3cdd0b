"""The memory manager: what Linux's virtio_mem does inside the kernel, in user space.

It moves ``plugged_size`` towards what the host requests, and decides which blocks to plug and unplug. One
allocator serves both of the kernel's modes. Memory is handed out in *units* (for Linux: its memory block), and
plugged in *steps*:

* sub-blocks: the step is a device block and smaller than the unit. Units may be partly plugged, and only whole
  ones are handed out.
* big blocks: the step is one or several units. Whole steps are plugged and unplugged.

The addresses of units and steps are aligned to their size; the parts of the region before the first and after the
last whole one are not managed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from operator import index

from uvirtio.drivers.base import integer
from uvirtio.drivers.mem.block_table import Use
from uvirtio.drivers.mem.config import MemConfig
from uvirtio.drivers.mem.driver import BUSY_FIRST, BUSY_LAST, Mem, jittered
from uvirtio.drivers.mem.ranges import BlockRange, Ranges
from uvirtio.drivers.mem.region import Region
from uvirtio.errors import BadSize, InUse, MemBusy, MemNack, OperationFailed
from uvirtio.interfaces.values import RESPONSE_LEAST
from uvirtio.spec.mem import MAX_BLOCKS, Response

_LOOK = 1.0
"""Seconds between reads of the request while idle, so that a lost notification costs only time."""


class Mode(Enum):
    """The kernel's two modes, by which is larger: the unit, or the step."""

    SUB_BLOCKS = "sub-blocks"
    BIG_BLOCKS = "big-blocks"


class Outcome(Enum):
    """The result of a step, or of ``Manager.converge``."""

    MOVED = "moved"
    """Blocks were plugged or unplugged, or the host's request changed; plan the next step."""
    REACHED = "reached"
    """As near to the target as whole steps allow."""
    BUSY = "busy"
    """The device answered BUSY; try again later."""
    NACK = "nack"
    """The device answered NACK, and its request did not change; wait until it does."""
    NOTHING_LEFT = "nothing-left"
    """There is no other block that could be plugged."""
    IN_USE = "in-use"
    """There is no block that could be unplugged: all are in use. Try again later."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The state of one unit."""

    address: int
    """Guest-physical."""
    size: int
    """Bytes."""
    plugged: int
    """Bytes of it that are plugged."""
    in_use: bool

    @property
    def state(self) -> str:
        """``unplugged``, ``partly``, ``plugged`` or ``in-use``."""
        if self.in_use:
            return "in-use"
        return "unplugged" if not self.plugged else "plugged" if self.plugged == self.size else "partly"


@dataclass(frozen=True, slots=True, eq=False)
class HandOut:
    """One unit that belongs to its owner until ``Manager.give_back``."""

    address: int
    """Guest-physical."""
    size: int
    """Bytes."""
    owner: str
    use: Use


class Consumer:
    """The user of the memory; the manager calls its methods. This one wants nothing."""

    anywhere = False
    """True: it can use every part of the region, and ``usable`` is not asked about each of them."""

    def usable(self, address: int, size: int) -> bool:
        """Return whether the consumer could use a part of the region; only such parts are plugged (5.15.6.1).

        Args:
            address: Guest-physical address.
            size: Bytes.
        """
        return True

    def arrived(self, manager: Manager) -> None:
        """Called when blocks were plugged: take whole units with ``manager.hand_out``."""

    def wanted_back(self, manager: Manager, size: int) -> None:
        """Called when more has to be unplugged than is free: give units back with ``manager.give_back``.

        Args:
            manager: The caller.
            size: Bytes that are missing. If fewer are given back, it is called again later.
        """

    def wants(self) -> bool:
        """Return whether ``follow`` is to call ``arrived`` again, for units that could not be taken before."""
        return False


class _Anywhere(Consumer):
    """A consumer that takes nothing by itself: the owner of the manager asks it for units."""

    anywhere = True


class Manager:
    """Plugs and unplugs blocks towards a target, and hands out whole units of plugged memory."""

    def __init__(
        self,
        mem: Mem,
        *,
        unit: int | None = None,
        step: int | None = None,
        limit: int | None = None,
        region: Region | None = None,
        consumer: Consumer | None = None,
    ) -> None:
        """Choose units and steps; nothing is plugged yet.

        Args:
            mem: The driver.
            unit: Bytes, a power of two; None: one device block.
            step: Bytes, a power of two; None: one device block. At least the unit, unless it is one device block
                and the unit is larger (sub-blocks).
            limit: Bytes that are plugged at most; None: no limit.
            region: Clears units before they are handed out; without one, their owners initialise them.
            consumer: Is told about plugged memory, and asked to give it back.

        Raises:
            BadSize: Unit or step is no power of two, or the region has no whole one.
        """
        self.mem, block = mem, mem.block_size
        unit, step = integer(unit), integer(step)
        for name, size in (("unit", unit), ("step", step)):
            if size is not None and (size < 1 or size & (size - 1)):
                raise BadSize(f"the {name} is no power of two", seen=size, expected="a power of two, in bytes")
        self.unit = block if unit is None else unit
        self.step = max(step or block, block)
        if self.step > block or self.unit <= block:
            self.step = max(self.step, self.unit)
        self.limit, self.region = integer(limit), region
        self.consumer = consumer or _Anywhere()
        self._step = self.step // block
        self._group = max(self.unit, self.step) // block
        """Blocks that belong together: those of a unit (sub-blocks), or of a step (big blocks)."""
        config = mem.config()
        group = self._group * block
        self._low = (-(-config.addr // group) * group - config.addr) // block
        top = (config.addr + config.region_size) // group * group
        self._high = max(self._low, (top - config.addr) // block)
        if self._high == self._low:
            raise BadSize(
                f"the region has no whole {group} bytes",
                seen=f"{config.region_size:#x} bytes at {config.addr:#x}",
                expected=f"a multiple of {group:#x} in it",
                remedy="use a smaller unit",
            )
        self._steps = 0
        self.retries = 0
        """How often a step was postponed because the device was busy or blocks were in use."""

    @property
    def mode(self) -> Mode:
        """The mode that unit and step make."""
        return Mode.SUB_BLOCKS if self.step < self.unit else Mode.BIG_BLOCKS

    @property
    def counts(self) -> dict[Response, int]:
        """The device's responses so far, by type."""
        return self.mem.counts

    # --- units ----------------------------------------------------------------------------------------------

    def units(self) -> Iterator[Unit]:
        """Yield the state of all whole units of the region, by address."""
        table, block = self.mem.block_table, self.mem.block_size
        claimed = Ranges((use.offset, use.length) for use in table.uses)
        first, end = self._low * block, self._high * block
        for offset in range(first, end, self.unit):
            yield Unit(
                address=self.mem.addr + offset,
                size=self.unit,
                plugged=self._plugged_bytes(offset, self.unit),
                in_use=claimed.overlaps(offset, self.unit),
            )

    def _plugged_bytes(self, offset: int, length: int) -> int:
        table, block = self.mem.block_table, self.mem.block_size
        if length >= block:
            return table.plugged.count(offset // block, length // block) * block
        return length if table.plugged.covers(offset // block, 1) else 0

    def _free_units(self) -> Iterator[int]:
        """Offsets of the plugged units that are not in use, lowest first."""
        table, block = self.mem.block_table, self.mem.block_size
        free = Ranges((first * block, count * block) for first, count in table.plugged)
        for use in table.uses:
            free.remove(use.offset, use.length)
        low, high = self._low * block, self._high * block
        for first, count in free.within(low, high - low):
            begin = low + -(-(first - low) // self.unit) * self.unit
            yield from range(begin, first + count - self.unit + 1, self.unit)

    def hand_out(self, owner: str, *, count: int | None = None, near: int | None = None) -> list[HandOut]:
        """Hand out whole plugged units that are not in use. With a region they are cleared first.

        Args:
            owner: Who uses them, for errors and listings.
            count: How many, at most; None: all.
            near: Only the unit at this guest-physical address; None: any.

        Returns:
            The units, lowest first.
        """
        made, count, near = list[HandOut](), integer(count), integer(near)
        try:
            for offset in list(self._free_units()):
                if count is not None and len(made) >= count:
                    break
                address = self.mem.addr + offset
                if near is not None and address != near:
                    continue
                use = self.mem.block_table.claim(offset, self.unit, owner)
                made.append(HandOut(address, self.unit, owner, use))
                if self.region is not None:
                    self.region.zero(offset, self.unit)
        except BaseException:
            for one in made:
                self.give_back(one)
            raise
        return made

    def adopt(self, address: int, owner: str) -> HandOut:
        """Record that a plugged unit has an owner from before this manager. It is not cleared.

        Args:
            address: Guest-physical address of the unit.
            owner: Who uses it, for errors and listings.

        Raises:
            NotPlugged: The unit is not plugged.
            InUse: It has an owner already.
        """
        use = self.mem.block_table.claim(index(address) - self.mem.addr, self.unit, owner)
        return HandOut(address, self.unit, owner, use)

    def give_back(self, one: HandOut) -> None:
        """End a hand-out: the unit may be unplugged or handed out again. Idempotent."""
        self.mem.block_table.release(one.use)

    # --- towards a target -----------------------------------------------------------------------------------

    def plug_size(self, size: int, *, timeout: float | None = None) -> None:
        """Plug more memory.

        Args:
            size: Bytes, a multiple of ``step``.
            timeout: Seconds in all; None: the device's own for each request, and for being busy.

        Raises:
            BadSize: ``size`` is no multiple of ``step``, or more than the region has left.
            MemNack: The host does not request as much.
            MemBusy: The device was busy until ``timeout``.
            MemError: The device refused.
            OperationFailed: There is no other block that could be plugged.
        """
        with self.mem.session(timeout):
            self._plug_size(self._checked(size))

    def _plug_size(self, size: int) -> None:
        config = self.mem.config()
        room = config.region_size - config.plugged_size
        if size > room:
            raise BadSize(
                f"{size} bytes are more than the region has left",
                seen=size,
                expected=f"at most {room}: {config.plugged_size} of {config.region_size} are plugged",
            )
        if config.plugged_size + size > config.requested_size:
            # The device would have to refuse a part of it (5.15.6.3); refuse the whole before anything changes.
            raise self._beyond_request(config, size)
        self._go_to(config.plugged_size + size)

    def unplug_size(self, size: int, *, timeout: float | None = None) -> None:
        """Unplug memory: whole units first, the highest first.

        Args:
            size: Bytes, a multiple of ``step``.
            timeout: Seconds in all; None: the device's own for each request, and for being busy.

        Raises:
            BadSize: ``size`` is no multiple of ``step``, or more than is plugged.
            InUse: Too much is in use. If that was so at the call, nothing was changed.
            MemBusy: The device was busy until ``timeout``.
            MemNack, MemError: The device refused.
        """
        with self.mem.session(timeout):
            self._unplug_size(self._checked(size))

    def _unplug_size(self, size: int) -> None:
        plugged = self.mem.config().plugged_size
        table = self.mem.block_table
        if size > plugged:
            raise BadSize(
                f"{size} bytes are more than is plugged", seen=size, expected=f"at most {plugged}", remedy=None
            )
        free = table.plugged.without(table.in_use).total * self.mem.block_size
        if size > free:
            table.require_unused(0, self.mem.config().blocks)
        self._go_to(plugged - size)

    def _checked(self, size: int) -> int:
        size = index(size)
        if size <= 0 or size % self.step:
            below = max(0, size) // self.step * self.step
            near = [below, below + self.step] if below else [self.step]
            raise BadSize(
                f"{size} bytes are not a multiple of {self.step}, the step of plugging",
                seen=size,
                expected=f"a multiple of {self.step}",
                remedy=f"nearest valid size{'s' * (len(near) > 1)}: " + " and ".join(str(one) for one in near),
            )
        return size

    def _beyond_request(self, config: MemConfig, size: int) -> MemNack:
        return MemNack(
            f"the host does not request {size} bytes more",
            seen=f"plugged {config.plugged_size}, requested {config.requested_size}",
            expected=f"at most {max(0, config.requested_size - config.plugged_size)} more (5.15.6.3)",
            remedy="raise requested-size first (QMP: qom-set ID requested-size), or follow it: follow(), or "
            "uvirtio mem follow DEV",
        )

    def _go_to(self, target: int) -> None:
        outcome = self.converge(target)
        if outcome is Outcome.NACK:
            config = self.mem.config()
            raise self._beyond_request(config, target - config.plugged_size)
        if outcome is Outcome.NOTHING_LEFT:
            config = self.mem.config()
            raise OperationFailed(
                "there is no other block that could be plugged",
                seen=f"plugged {config.plugged_size}, usable {config.usable_region_size}",
                expected=f"{target} plugged",
                remedy="the usable region grows when the host requests more",
            )
        if outcome is Outcome.IN_USE:
            raise InUse(
                "the rest of the plugged blocks is in use",
                seen=f"plugged {self.mem.block_table.plugged.total * self.mem.block_size}",
                expected=f"{target} plugged",
                remedy="close what uses them, or give the units back",
            )

    def converge(
        self,
        target: int | None = None,
        *,
        timeout: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Outcome:
        """Plug or unplug until a target is reached, or no step towards it is possible.

        Busy responses are retried with growing pauses.

        Args:
            target: Bytes that are to be plugged; None: what the host requests, read before each step.
            timeout: Seconds in all; None: the device's own for each request, and for being busy.
            progress: Called with the plugged bytes after each request.

        Returns:
            How it ended.

        Raises:
            MemBusy: The device was busy until ``timeout``.
            MemError: The device refused.
            DeviceTimeout: The device did not respond in time.
            ConfigError, ProtocolError: Its configuration or a response is invalid.
        """
        with self.mem.session(timeout):
            return self._converge(integer(target), self.mem.device.seconds(None), None, progress)

    def _converge(
        self,
        target: int | None,
        busy: float,
        timeout: float | None,
        progress: Callable[[int], None] | None,
    ) -> Outcome:
        """``converge`` with two time-outs: seconds that the device may be busy, and seconds for each step."""
        clock = self.mem.device.clock
        deadline = clock.monotonic() + busy
        pause = BUSY_FIRST
        moved = False
        with self.mem.session():
            while True:
                try:
                    with self.mem.session(timeout):
                        outcome = self._one_step(target, moved)
                except MemBusy:
                    left = deadline - clock.monotonic()
                    if left <= 0:
                        raise
                    self.retries += 1
                    self.mem.pause(min(left, jittered(pause, clock)))
                    pause = min(pause * 2, BUSY_LAST)
                    continue
                if outcome is not Outcome.MOVED:
                    return outcome
                moved = True
                self._steps += 1
                deadline = clock.monotonic() + busy
                pause = BUSY_FIRST
                if progress is not None:
                    progress(self.mem.block_table.plugged.total * self.mem.block_size)

    def follow(
        self,
        *,
        timeout: float | None = None,
        progress: Callable[[int], None] | None = None,
        told: Callable[[Outcome], None] | None = None,
    ) -> None:
        """Track the host's request (requested_size) until ``close()`` or a signal.

        After a NACK it waits until the request changes; busy devices and blocks in use are retried with growing
        pauses.

        Args:
            timeout: Return after so many seconds in which the request did not change and there was nothing to do;
                each step towards it has as many, 0.1 at least. None: never; each step has the device's own.
            progress: Called with the plugged bytes after each request.
            told: Called with the outcome when blocks were moved, or when the outcome or the request changed.

        Raises:
            MemError: The device refused.
            DeviceTimeout: The device did not respond in time.
            ConfigError, ProtocolError: Its configuration or a response is invalid.
        """
        device = self.mem.device
        each = None if timeout is None else max(device.seconds(timeout), RESPONSE_LEAST)
        pause = BUSY_FIRST
        outcome = Outcome.REACHED
        before: tuple[Outcome, int] | None = None
        quiet_since = self.mem.device.clock.monotonic()
        with self.mem.session():
            self.consumer.arrived(self)
            while True:
                seen = device.counters.config_changes
                at, steps = self.mem.block_table.plugged.total, self._steps
                with self.mem.session(each):
                    requested = self.mem.config().requested_size
                if before != (Outcome.NACK, requested):  # refused before, so it is not asked again
                    try:
                        outcome = self._converge(None, 0.0, each, progress)
                    except MemBusy:
                        outcome = Outcome.BUSY
                # Also where as much is plugged as before: these may be other blocks, which have no owner yet.
                moved = self._steps != steps or self.mem.block_table.plugged.total != at
                if moved or self.consumer.wants():
                    self.consumer.arrived(self)
                if moved or (outcome, requested) != before:
                    quiet_since = self.mem.device.clock.monotonic()
                    pause = BUSY_FIRST
                    if told is not None:
                        told(outcome)
                before = (outcome, requested)
                again = outcome in (Outcome.BUSY, Outcome.IN_USE)
                wait = jittered(pause, self.mem.device.clock) if again else _LOOK
                if timeout is not None:
                    left = quiet_since + device.seconds(timeout) - self.mem.device.clock.monotonic()
                    if left <= 0:
                        return
                    wait = min(wait, left)
                if device.counters.config_changes == seen and not self.mem.pause(wait) and again:
                    self.retries += 1
                    pause = min(pause * 2, BUSY_LAST)

    # --- one step -------------------------------------------------------------------------------------------

    def _one_step(self, target: int | None, again: bool) -> Outcome:
        """One request at most, planned with the current configuration; ``again``: not the first of this call."""
        config = self.mem.config()
        wanted = config.requested_size if target is None else target
        if self.limit is not None:
            wanted = min(wanted, self.limit)
        missing = wanted // self.mem.block_size - self.mem.block_table.plugged.total
        if again and missing:
            self.mem.device.check_time(f"{wanted} bytes plugged")
        try:
            if missing > 0:
                return self._grow(config, missing)
            return self._shrink(-missing)
        except MemNack:
            after = self.mem.config()
            if after.requested_size != config.requested_size:
                return Outcome.MOVED  # the request changed meanwhile: plan again
            return Outcome.NACK

    def _grow(self, config: MemConfig, missing: int) -> Outcome:
        missing -= missing % self._step
        if not missing:
            return Outcome.REACHED
        run = self._to_plug(config, missing)
        if run is None:
            return Outcome.NOTHING_LEFT
        self.mem.plug(config.address_of(run[0]), run[1])
        return Outcome.MOVED

    def _shrink(self, surplus: int) -> Outcome:
        surplus += -surplus % self._step  # below the request rather than above it
        if surplus < 1:
            return Outcome.REACHED
        run = self._to_unplug(surplus)
        if run is None:
            self.consumer.wanted_back(self, surplus * self.mem.block_size)
            run = self._to_unplug(surplus)
        if run is None:
            return Outcome.IN_USE
        self.mem.unplug(self.mem.addr + run[0] * self.mem.block_size, run[1])
        return Outcome.MOVED

    def _to_plug(self, config: MemConfig, missing: int) -> BlockRange | None:
        """The next blocks to plug: the rest of partly plugged units, then the lowest ones."""
        plugged = self.mem.block_table.plugged
        end = min(self._high, config.usable_blocks)
        begun = sorted(self._begun())
        for group in begun:
            for first, count in plugged.gaps(group, max(0, min(self._group, end - group))):
                if self._is_usable(group):
                    return first, min(count, missing, MAX_BLOCKS)
        most = max(self._step, min(missing, MAX_BLOCKS) // self._step * self._step)
        for first, count in plugged.gaps(self._low, max(0, end - self._low)):
            run = self._part_of_gap(first, count, most)
            if run is not None:
                return run
        return None

    def _part_of_gap(self, first: int, count: int, most: int) -> BlockRange | None:
        """The first usable blocks of a gap, at most ``most``; whole steps in big-block mode."""
        group = self._group
        end = first + count
        start = self._low + -(-(first - self._low) // group) * group
        if self._step == group:
            end = self._low + (end - self._low) // group * group
        if self.consumer.anywhere:
            return (start, min(end - start, most)) if start < end else None
        while start < end and not self._is_usable(start):
            start += group
        stop = start
        while stop < end and stop - start < most and self._is_usable(stop):
            stop += group
        stop = min(stop, end, start + most)
        return (start, stop - start) if start < stop else None

    def _is_usable(self, group: int) -> bool:
        block = self.mem.block_size
        return self.consumer.anywhere or self.consumer.usable(self.mem.addr + group * block, self._group * block)

    def _begun(self) -> set[int]:
        """First blocks of the groups that are plugged in part; such a group holds the end of a plugged run."""
        plugged, group = self.mem.block_table.plugged, self._group
        if group == 1:
            return set()
        found = set()
        for first, count in plugged:
            for block in (first, first + count - 1):
                if self._low <= block < self._high:
                    start = self._low + (block - self._low) // group * group
                    if not plugged.covers(start, group):
                        found.add(start)
        return found

    def _to_unplug(self, surplus: int) -> BlockRange | None:
        """The next blocks to unplug, so that whole units come free first and with the fewest requests."""
        table, group = self.mem.block_table, self._group
        free = table.plugged.without(table.in_use)
        for first, count in self._outside(free):
            return first, min(count, surplus, MAX_BLOCKS)
        # Partly plugged units cannot be handed out; the one with the fewest plugged blocks first.
        begun = [
            (table.plugged.count(start, group), start)
            for start in self._begun()
            if not table.in_use.overlaps(start, group)
        ]
        if begun:
            _, start = min(begun)
            first, count = list(table.plugged.within(start, group))[-1]
            most = min(count, surplus, MAX_BLOCKS)
            return first + count - most, most
        if surplus >= group:
            for first, count in reversed(free):
                start = self._low + -(-(first - self._low) // group) * group
                end = self._low + (first + count - self._low) // group * group
                whole = min(end - start, surplus // group * group)
                if whole > 0:
                    # A group of more blocks than a request can name takes several requests, which Mem sends.
                    whole = min(whole, max(group, MAX_BLOCKS // group * group))
                    return end - whole, whole
        if self._step == group:
            return None
        # Sub-blocks: first those of units that are in use, then those of whole units, the highest first.
        for wanted_used in (True, False):
            for first, count in reversed(free):
                run = self._loose(first, count, min(surplus, MAX_BLOCKS), beside_used=wanted_used)
                if run is not None:
                    return run
        return None

    def _loose(self, first: int, count: int, most: int, *, beside_used: bool) -> BlockRange | None:
        """The highest blocks of a free run that lie in one unit, which is partly in use or not."""
        in_use, group = self.mem.block_table.in_use, self._group
        end = first + count
        while end > first:
            unit = self._low + (end - 1 - self._low) // group * group
            start = max(first, unit)
            if in_use.overlaps(unit, group) == beside_used:
                return max(start, end - most), min(most, end - start)
            if not in_use:
                return None
            end = start
        return None

    def _outside(self, free: Ranges) -> Iterator[BlockRange]:
        yield from free.within(0, self._low)
        yield from free.within(self._high, max(0, self.mem.config().blocks - self._high))
