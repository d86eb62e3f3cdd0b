"""Linux as the manager's consumer: plugged units become System RAM, and are returned when the host wants them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from uvirtio.drivers.mem import Consumer, HandOut, Manager, Mem, Ranges
from uvirtio.drivers.mem.kernel_use import of_this_machine
from uvirtio.errors import InUse, NotPlugged, NotSupported, OperationFailed, UvirtioError
from uvirtio.host import sysfs
from uvirtio.host.memory import blocks_of_range
from uvirtio.host.roots import Roots
from uvirtio.online.kernel_view import DaxPiece, KernelView, PieceState
from uvirtio.online.pieces import SystemMemory

OWNER = "Linux"
BUSY_FIRST, BUSY_LAST = 0.5, 15.0
"""Seconds before a busy or failed piece is tried again while following, doubled from the first to the last."""


def kernel_of(mem: Mem, roots: Roots) -> KernelView | None:
    """The view of the device's region in this machine's kernel; None where it is another machine's memory."""
    if not of_this_machine(mem.device):
        return None
    return KernelView(mem.addr, mem.config().region_size, roots)


def system_memory(mem: Mem, roots: Roots) -> SystemMemory:
    """The region of a memory device of this machine, to be brought online.

    Args:
        mem: The started device.
        roots: Where ``/sys`` and ``/proc`` are.

    Raises:
        NotSupported: The device belongs to another machine, such as a ``qemu:`` guest.
    """
    kernel = kernel_of(mem, roots)
    if kernel is None:
        raise NotSupported(
            f"{mem.device.address} is memory of another machine",
            seen="a device whose memory this kernel does not see",
            expected="a device of this machine",
            remedy="run this in the guest",
        )

    def sleep(seconds: float) -> None:
        mem.pause(seconds)  # a signal ends it

    return SystemMemory(kernel, sleep=sleep)


def _claim_used(mem: Mem, kernel: KernelView) -> None:
    """Claim in the block table what else Linux uses of the region, so that it is not unplugged."""
    block = mem.block_size
    for span in kernel.ram():
        first, count = mem.block_table.blocks_of(span.start - mem.addr, span.size)
        first, count = max(0, first), count + min(0, first)
        for at, plugged in list(mem.block_table.plugged.within(first, count)):
            for free, length in list(mem.block_table.in_use.gaps(at, plugged)):
                mem.block_table.claim(free * block, length * block, OWNER)


class Linux(Consumer):
    """The consumer that gives whole memory blocks to Linux as they are plugged, and takes back what it can spare.

    A busy piece is skipped when the manager asks again at once: each try costs the kernel work.
    """

    def __init__(
        self,
        memory: SystemMemory,
        *,
        told: Callable[[str, int], None] | None = None,
    ) -> None:
        """Make the consumer; nothing is changed yet.

        Args:
            memory: The region.
            told: Called with "online", "offline", "busy" or "failed", and the address of the piece.
        """
        self.memory = memory
        self.told = told or (lambda _event, _address: None)
        self._held: dict[int, HandOut] = {}
        self._busy: dict[int, tuple[float, float]] = {}  # when to try again, and the pause that this was
        self._tried: list[DaxPiece] = []  # what this call has begun to take offline
        self.failures: dict[int, UvirtioError] = {}
        """The errors of pieces that did not come online, by address."""
        self._again = (0.0, 0.0)  # when to try that again, and the pause that this was

    def manager(self, mem: Mem, *, limit: int | None = None) -> Manager:
        """Prepare the region, and make a manager whose units are memory blocks; it adopts what Linux has already.

        Args:
            mem: The started device.
            limit: The most bytes to plug; None: no limit.

        Raises:
            OperationFailed: Linux has memory that is not plugged.
            NotSupported: The region was not reserved at boot; the remedy has the kernel's parameter.
            ModuleLack: A kernel module is missing.
            PermissionLack: This user may not do it.
        """
        self.memory.prepare()
        block = self.memory.kernel.block_size()
        # Steps of whole units too: part of a memory block is of no use to Linux, and the host can use it.
        manager = Manager(mem, unit=block, step=max(block, mem.block_size), limit=limit, consumer=self)
        self._adopt(manager)
        return manager

    def _adopt(self, manager: Manager) -> None:
        known = 0
        for piece in self.memory.kernel.pieces():
            if not piece.used:
                continue
            for address in range(piece.start, piece.start + piece.size, manager.unit):
                try:
                    self._held[address] = manager.adopt(address, OWNER)
                except NotPlugged as error:
                    raise OperationFailed(
                        f"Linux has memory at {address:#x} that is not plugged",
                        seen=f"{piece.name}, {piece.state.value}",
                        expected="plugged memory only (5.15.6.1)",
                        remedy="take it offline by hand, or boot again",
                    ) from error
                known += manager.unit
        _claim_used(manager.mem, self.memory.kernel)  # System RAM that no dax device accounts for

    @property
    def bytes(self) -> int:
        """Bytes of the region that Linux has."""
        return sum(one.size for one in self._held.values())

    @property
    def movable(self) -> int:
        """Bytes of the region that Linux could return, unless they are busy."""
        return sum(piece.size for piece in self._pieces())

    # --- the manager's calls --------------------------------------------------------------------------------

    def usable(self, address: int, size: int) -> bool:
        """Whether a unit lies in the region."""
        kernel = self.memory.kernel
        return kernel.addr <= address and address + size <= kernel.addr + kernel.size

    def arrived(self, manager: Manager) -> None:
        """Bring all newly plugged units online."""
        self.take(manager)

    def wants(self) -> bool:
        """Whether it is time to try failed units again."""
        return bool(self.failures) and time.monotonic() >= self._again[0]

    def wanted_back(self, manager: Manager, size: int) -> None:
        """Take up to ``size`` bytes offline, except pieces that were busy a short time ago."""
        now = time.monotonic()
        with self._nothing_left_behind(manager):
            self._spare(
                manager, size, [one for one in self._pieces() if self._busy.get(one.start, (now, 0))[0] <= now]
            )
            manager.mem.pause(0)  # a signal that came meanwhile is raised here, and not before the UNPLUG

    # --- in and out -----------------------------------------------------------------------------------------

    def take(self, manager: Manager, count: int | None = None) -> int:
        """Bring free plugged units online.

        A unit that fails is noted in ``failures`` and stays plugged and free.

        Args:
            manager: The manager of the device.
            count: The most units; None: all.

        Returns:
            The bytes that came online.
        """
        came = 0
        for unit in manager.hand_out(OWNER, count=count):
            try:
                self.memory.online(unit.address, unit.size)
            except UvirtioError as error:
                self.failures[unit.address] = error
                self.told("failed", unit.address)
                if self._is_used(unit.address, unit.size):
                    self._held[unit.address] = unit  # it went wrong so badly that Linux has it after all
                else:
                    manager.give_back(unit)
                continue
            except BaseException:
                if self._is_used(unit.address, unit.size):
                    self._held[unit.address] = unit
                raise
            self._held[unit.address] = unit
            self.failures.pop(unit.address, None)
            came += unit.size
            self.told("online", unit.address)
        pause = min(max(BUSY_FIRST, 2 * self._again[1]), BUSY_LAST) if self.failures else 0.0
        self._again = (time.monotonic() + pause, pause)
        return came

    def give_back(self, manager: Manager, size: int, *, timeout: float) -> int:
        """Take memory offline, the highest addresses first, and give it back to the manager.

        Every piece is tried once, then the busy ones again until the time is over.

        Args:
            manager: The manager of the device.
            size: Bytes.
            timeout: Seconds in all.

        Returns:
            The bytes that went offline; fewer than ``size`` where Linux cannot spare them.
        """
        return self._give_back(manager, size, timeout, unplug=False)

    def unplug(self, manager: Manager, size: int, *, timeout: float) -> int:
        """Take memory offline as ``give_back`` does, and unplug each piece as soon as Linux has let go of it.

        What Linux has let go of is unplugged whatever ends this early, a signal too; the device's time-out is the
        deadline of that.

        Args:
            manager: The manager of the device.
            size: Bytes.
            timeout: Seconds in all, for Linux.

        Returns:
            The bytes that the device acknowledged; fewer than ``size`` where Linux cannot spare them.

        Raises:
            Busy: Another process is working on the same dax region.
            OperationFailed: The kernel refused a step, or kept the memory; Blocked where a write did not return in
                time.
            MemBusy, MemNack, MemError: The device refused.
            DeviceTimeout: The device did not respond in time.
        """
        plugged = manager.mem.block_table.plugged.total
        with self._nothing_left_behind(manager):
            self._give_back(manager, size, timeout, unplug=True)
        return (plugged - manager.mem.block_table.plugged.total) * manager.mem.block_size

    def _give_back(self, manager: Manager, size: int, timeout: float, *, unplug: bool) -> int:
        deadline = time.monotonic() + timeout
        freed = self._spare(manager, size, self._pieces(), unplug=unplug)
        for piece in reversed(self._pieces()):
            left = deadline - time.monotonic()
            if freed >= size or left <= 0:
                break
            freed += self._spare(manager, size - freed, [piece], left, unplug=unplug)
        return freed

    def _spare(
        self, manager: Manager, size: int, pieces: list[DaxPiece], timeout: float = 0.0, *, unplug: bool = False
    ) -> int:
        """Take these pieces offline, the highest first, until that is ``size`` bytes; how many bytes it was."""
        freed = 0
        for piece in reversed(pieces):
            if freed >= size:
                break
            self._tried.append(piece)
            try:
                self.memory.offline(piece, timeout=timeout)
            except InUse:
                pause = min(self._busy.get(piece.start, (0.0, BUSY_FIRST / 2))[1] * 2, BUSY_LAST)
                self._busy[piece.start] = (time.monotonic() + pause, pause)
                self.told("busy", piece.start)
                continue
            self._busy.pop(piece.start, None)
            self._release(manager, piece)
            freed += piece.size
            self.told("offline", piece.start)
            if unplug:
                self._unplug_idle(manager, [piece])
        return freed

    def _release(self, manager: Manager, piece: DaxPiece) -> None:
        for address in range(piece.start, piece.start + piece.size, manager.unit):
            held = self._held.pop(address, None)
            if held is not None:
                manager.give_back(held)

    @contextmanager
    def _nothing_left_behind(self, manager: Manager) -> Iterator[None]:
        """While pieces go offline: if something ends that, what Linux has let go of so far is unplugged first."""
        self._tried.clear()
        try:
            yield
        except BaseException:
            mem = manager.mem
            try:
                with mem.session(mem.device.timeout):
                    mem.resync()  # an UNPLUG may have been interrupted between the request and the answer
                    self.memory.clear_leftovers()
                    for piece in self._tried:
                        if not self._taken(piece.start, piece.size):
                            self._release(manager, piece)
                    self._unplug_idle(manager, self._tried)
            except UvirtioError:
                pass  # the original failure says more, and the next run finds what is left
            raise

    # --- plugged, and of use to nothing ---------------------------------------------------------------------

    def idle(self, manager: Manager) -> int:
        """Bytes that are plugged, and that neither Linux, nor a dax device, nor an owner in this process has.

        That is what a run left which ended between Linux's letting go and UNPLUG, or what was plugged for another
        use; the device is open, so no other driver uses it.
        """
        return sum(size for _, size in self._idle(manager))

    def unplug_idle(self, manager: Manager, size: int | None = None) -> int:
        """Unplug what is ``idle``, the highest addresses first.

        Args:
            manager: The manager of the device.
            size: The most bytes, in whole steps of the manager's; None: all, also parts of a step.

        Returns:
            The bytes that the device acknowledged.

        Raises:
            Busy: Another process is working on the same dax region.
            MemBusy, MemNack, MemError: The device refused.
            DeviceTimeout: The device did not respond in time.
        """
        return self._unplug_idle(manager, None, size)

    def _idle(self, manager: Manager, of: list[DaxPiece] | None = None) -> list[tuple[int, int]]:
        """What is idle, or the part of it that was in these pieces, by address: at most a step each."""
        mem, step, table = manager.mem, manager.step, manager.mem.block_table
        taken, found = self._taken(mem.addr, mem.config().region_size), []
        wanted = None if of is None else Ranges((piece.start, piece.size) for piece in of)
        for first, count in table.plugged.without(table.in_use):
            at, end = mem.addr + first * mem.block_size, mem.addr + (first + count) * mem.block_size
            while at < end:
                size = min(end, at // step * step + step) - at
                if not taken.overlaps(at, size) and (wanted is None or wanted.overlaps(at, size)):
                    found.append((at, size))
                at += size
        return found

    def _unplug_idle(self, manager: Manager, of: list[DaxPiece] | None, most: int | None = None) -> int:
        mem, done = manager.mem, 0
        for address, size in reversed(self._idle(manager, of)):
            if most is not None and (size != manager.step or done + size > most):
                continue
            with self.memory.locked():  # no dax device comes to be here before the answer
                # 5.15.6.1: the driver MUST NOT request UNPLUG of memory that is still in use. The kernel is
                # asked now, under the lock; the block table is by ``Mem.unplug``.
                if self._taken(address, size):
                    continue
                self._request_unplug(mem, address, size)
            done += size
        return done

    @staticmethod
    def _request_unplug(mem: Mem, address: int, size: int) -> None:
        first, count = mem.block_table.blocks_of(address - mem.addr, size)

        def unplug(seconds: float) -> None:
            for at, blocks in list(mem.block_table.plugged.within(first, count)):  # the rest, after a BUSY
                mem.unplug(mem.addr + at * mem.block_size, blocks, timeout=seconds)

        mem.patiently(unplug, None)

    def _taken(self, address: int, size: int) -> Ranges:
        """What of this memory is Linux's or a dax device's, through which it may be used at any time; addresses.

        A memory block counts in every state, also offline; so does System RAM that no block stands for, and a dax
        device of any driver or none.
        """
        kernel, taken = self.memory.kernel, Ranges()
        for block in blocks_of_range(address, address + size, kernel.roots):
            if sysfs.exists(block.path):
                taken.add(block.start, block.size)
        for piece in kernel.pieces():
            taken.add(piece.start, piece.size)
        for span in kernel.ram():
            taken.add(span.start, span.size)
        return Ranges(taken.within(address, size))

    def _pieces(self) -> list[DaxPiece]:
        going = (PieceState.ONLINE, PieceState.PARTLY, PieceState.OFFLINE)
        return [p for p in self.memory.kernel.pieces() if p.state in going and p.start in self._held]

    def _is_used(self, address: int, size: int) -> bool:
        kernel = self.memory.kernel
        return bool(kernel.blocks(address, size)) or any(
            piece.used and piece.start < address + size and address < piece.start + piece.size
            for piece in kernel.pieces()
        )
