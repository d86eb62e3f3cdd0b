"""Bringing pieces of a region online as System RAM, and offline again; each piece is one dax device.

Online: create a dax device, set its addresses, bind it to kmem, check that every memory block is online. Offline:
take the blocks offline, check that they are, unbind, check that the blocks are gone, destroy the device. Never
unbind a device with online memory: the kernel would keep that memory until the next boot.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from uvirtio.errors import (
    BadSize,
    Blocked,
    Busy,
    InUse,
    Misuse,
    ModuleLack,
    NotSupported,
    OperationFailed,
    PermissionLack,
)
from uvirtio.host import privilege, remedies, sysfs
from uvirtio.host.drivers import KMEM
from uvirtio.host.lock import await_lock
from uvirtio.host.writer import ChildWriter, Writer, module_loader
from uvirtio.online.kernel_view import DaxPiece, KernelView, PieceState
from uvirtio.online.policy import BlockPolicy

WRITE_SECONDS = 20.0
"""Seconds that the kernel may take for a write that does not have to wait for pages to move."""
RETRY_FIRST, RETRY_LAST = 0.05, 2.0
"""Seconds between tries to take a busy memory block offline, doubled from the first to the last."""

TRY_FIRST, TRY_LAST = 5.0, 15.0
"""The least seconds that the kernel may move pages before a signal ends its try, doubled up to the last."""

_IN_USE = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINTR})


class SystemMemory:
    """A region of this machine's memory, whose pieces are brought online and offline.

    Nothing is read or changed before ``prepare``.
    """

    def __init__(
        self,
        kernel: KernelView,
        *,
        writer: Writer | None = None,
        load: Callable[..., None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make it; nothing is read or changed yet.

        Args:
            kernel: The view of the region.
            writer: Writes to sysfs; None: in a child process, with a deadline.
            load: Loads a module with parameters; None: modprobe, but only for this machine's own ``/sys``.
            sleep: Sleeps for so many seconds, between two tries; it may raise, which ends what was begun in order.
        """
        self.kernel = kernel
        self._writer = writer or ChildWriter()
        self._load = load or module_loader(kernel.roots)
        self._sleep = sleep
        self._policy = BlockPolicy(kernel, self._write, sleep)
        self._region: Path | None = None
        self._tries: dict[str, float] = {}
        self.retries = 0
        """How often a memory block was busy, and tried again."""

    # --- before anything ------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Check the requirements, load the modules, and remove unfinished dax devices of an earlier run.

        Raises:
            NotSupported: The region was not reserved at boot (the remedy has the kernel's parameters), or the
                kernel has no memory blocks.
            ModuleLack: A kernel module cannot be loaded or does not work.
            PermissionLack: This user may not do it.
            Busy: Another process is working on the same dax region.
            OperationFailed: The kernel refused a write.
        """
        kernel = self.kernel
        kept = kernel.kept()
        if kept is False:
            raise kernel.not_kept()
        kernel.block_size()
        if kernel.dax_region() is None:
            # Idle, or dax_hmem makes one device of the whole region, plugged or not, for kmem to take.
            self._load("dax_hmem", "region_idle=1")
            if kept is None and kernel.kept() is False:
                raise kernel.not_kept()
        if not sysfs.is_dir(kernel.dax / "drivers" / KMEM):
            self._check_nobody_took_it_all()  # kmem would bind to it as soon as it is loaded
            self._load(KMEM)
        self._region = kernel.dax_region()
        if self._region is None:
            raise ModuleLack(
                "dax_hmem made no dax region of the Soft Reserved memory",
                seen="no device of /sys/bus/dax in it",
                expected="one, such as dax0.0",
                remedy="the kernel needs CONFIG_DEV_DAX_HMEM; if CXL has the range, this cannot work",
            )
        if not sysfs.is_dir(kernel.dax / "drivers" / KMEM):
            raise ModuleLack(
                "the driver kmem is not there", seen="no /sys/bus/dax/drivers/kmem", expected="CONFIG_DEV_DAX_KMEM"
            )
        if not os.access(self._region / "create", os.W_OK):
            raise PermissionLack(
                "only root may hand memory to Linux",
                seen=f"{self._region}/create cannot be written",
                expected="root",
                remedy=privilege.remedy("run this as root", path=self._region / "create", roots=kernel.roots),
            )
        self._check_nobody_took_it_all()
        self.clear_leftovers()

    def _check_nobody_took_it_all(self) -> None:
        """Check that no device has the whole region: dax_hmem without region_idle makes one, plugged or not."""
        block = self.kernel.block_size()
        for piece in self.kernel.pieces():
            if piece.start <= self.kernel.addr and piece.size > block and piece.size >= self.kernel.size:
                raise NotSupported(
                    f"{piece.name} has the whole region, also what is not plugged",
                    seen=f"dax_hmem was loaded without region_idle; {piece.name} is {piece.state.value}"
                    + (f", bound to {piece.driver}" if piece.driver else ""),
                    expected="a region that is idle until memory is plugged",
                    remedy=remedies.kept_at_boot(self.kernel.addr, self.kernel.size),
                )

    def clear_leftovers(self) -> None:
        """Destroy the dax devices that an interrupted run created and did not bind, or unbound; they are unused.

        If it was killed while it added memory, ``auto_online_blocks`` is set to what it was, too.

        Raises:
            Busy: Another process is working on the same dax region.
            OperationFailed: The kernel refused a write; Blocked where it did not return in time.
        """
        with self.locked():
            self._policy.recover()
            self._clear_leftovers()

    def _clear_leftovers(self) -> None:
        region = self._ready()
        for directory in list(self.kernel.devices()):
            if sysfs.real(directory).parent != region.parent or directory.name.endswith(".0"):
                continue
            if sysfs.driver_of(directory) is not None:
                continue
            spans = self.kernel.mappings(directory)
            if any(self.kernel.blocks(span.start, span.size) for span in spans):
                continue  # stuck
            self._destroy(directory)

    def _ready(self) -> Path:
        if self._region is None:
            raise Misuse("prepare() comes first")
        return self._region

    @contextmanager
    def locked(self, timeout: float = 10.0) -> Iterator[None]:
        """Lock the dax region: no other run of this creates or destroys a device in it (``seed`` names only one).

        Args:
            timeout: Seconds to wait for another process.

        Raises:
            Busy: Another process is working on the same dax region.
        """
        fd = os.open(self._ready(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not await_lock(fd, timeout, self._sleep):
                raise Busy(
                    "another process cuts up the same dax region",
                    seen=f"{self._region} is locked",
                    expected="one at a time",
                    remedy="wait for it to end",
                )
            yield
        finally:
            os.close(fd)

    # --- in -------------------------------------------------------------------------------------------------

    def online(self, start: int, size: int | None = None) -> DaxPiece:
        """Bring plugged memory online as System RAM, in ZONE_MOVABLE so that it can be taken offline again.

        A failure half-way is rolled back.

        Args:
            start: The physical address, a multiple of the size of a memory block.
            size: Bytes, a multiple of the size of a memory block; None: one block.

        Returns:
            The dax device that has the memory now.

        Raises:
            BadSize: These are not whole memory blocks, or not all in the region.
            InUse: A dax device or Linux has some of it already.
            Busy: Another process is working on the same dax region, or adds memory elsewhere.
            OperationFailed: The kernel refused a step; Blocked where a write did not return in time.
            NotSupported: The kernel has no memory blocks.
            EnvironmentLack: There is no place for a record of what is changed meanwhile.
        """
        block = self.kernel.block_size()
        size = block if size is None else size
        if start % block or size % block or size < 1:
            raise BadSize(
                f"{size} bytes at {start:#x} are no whole memory blocks",
                seen=size,
                expected=f"multiples of {block}",
            )
        if start < self.kernel.addr or start + size > self.kernel.addr + self.kernel.size:
            raise BadSize(f"{size} bytes at {start:#x} are not all in the region", seen=f"{start:#x}")
        self._require_free(start, size)
        with self.locked():
            directory = self._create(start, size)
        try:
            with self._policy.movable():
                self._bind(directory)
                self._blocks_online(start, size)
        except BaseException:
            self._undo(directory, start, size)
            raise
        return self._piece_at(start)

    def _require_free(self, start: int, size: int) -> None:
        for piece in self.kernel.pieces():
            if piece.start < start + size and start < piece.start + piece.size:
                raise InUse(
                    f"{piece.name} has some of the {size} bytes at {start:#x}",
                    seen=f"{piece.state.value}, {piece.size} bytes at {piece.start:#x}",
                    expected="memory that no driver has",
                )
        if self.kernel.blocks(start, size):
            raise InUse(
                f"the {size} bytes at {start:#x} are memory of Linux already", expected="no memory block there"
            )

    def _create(self, start: int, size: int) -> Path:
        region = self._ready()
        self._write(region / "create", "1")
        name = sysfs.read(region / "seed", 64) or ""
        directory = self.kernel.dax / "devices" / name
        if not name or not sysfs.exists(directory):
            raise OperationFailed(
                "the kernel made no dax device", seen=f"seed {name!r}", expected="the name of a new device"
            )
        try:
            self._write(directory / "mapping", f"{start:x}-{start + size - 1:x}")
        except BaseException:
            self._destroy(directory)
            raise
        return directory

    def _bind(self, directory: Path) -> None:
        drivers = self.kernel.dax / "drivers" / KMEM
        # A new id binds the device of this name at once; no other driver binds it (its type is device_dax).
        self._write(drivers / "new_id", directory.name)
        driver = sysfs.driver_of(directory)
        if driver != KMEM:
            raise OperationFailed(
                f"kmem did not take {directory.name}",
                seen=f"driver {driver}",
                expected=KMEM,
                remedy="see the kernel's log (dmesg)",
            )

    def _blocks_online(self, start: int, size: int) -> None:
        for directory, state in self.kernel.blocks(start, size).items():
            if state == "offline":
                self._write(directory / "state", "online_movable")
        states = list(self.kernel.blocks(start, size).values())
        wanted = ["online"] * (size // self.kernel.block_size())
        if states != wanted:
            raise OperationFailed(
                f"the memory at {start:#x} did not come online", seen=states, expected=wanted, remedy="see dmesg"
            )

    def _undo(self, directory: Path, start: int, size: int) -> None:
        """Roll back after a failure half-way. If that fails too, the piece stays visible, and counts as used."""
        try:
            if sysfs.driver_of(directory) == KMEM:
                self._all_offline(start, size, WRITE_SECONDS)
                self._unbind(directory, start, size)
            self._destroy(directory)
        except (OperationFailed, InUse):
            pass  # the original failure says more

    # --- out ------------------------------------------------------------------------------------------------

    def offline(self, piece: DaxPiece, *, timeout: float = 10.0) -> None:
        """Take a piece offline and destroy its dax device; its memory may be unplugged afterwards.

        Args:
            piece: One of ``KernelView.pieces``.
            timeout: Seconds to try busy memory again, at growing intervals; 0: one try.

        Raises:
            InUse: It stays busy, and the whole piece is online again; or it is not bound to kmem.
            OperationFailed: The kernel refused a step, or kept the memory; Blocked where a write did not return in
                time.
        """
        directory = self.kernel.dax / "devices" / piece.name
        if piece.state is PieceState.IDLE:
            self._destroy(directory)
            return
        if piece.driver != KMEM:
            raise InUse(
                f"{piece.name} cannot be taken back",
                seen=piece.state.value + (f", bound to {piece.driver}" if piece.driver else ""),
                expected="a piece that kmem has",
                remedy="it is System RAM until the next boot" if piece.state is PieceState.STUCK else None,
            )
        self._all_offline(piece.start, piece.size, timeout)
        self._unbind(directory, piece.start, piece.size)
        self._destroy(directory)

    def _all_offline(self, start: int, size: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        ours: list[Path] = []
        try:
            for directory in self.kernel.blocks(start, size):
                if self._block_offline(directory, deadline):
                    ours.append(directory)
            left = [d.name for d, state in self.kernel.blocks(start, size).items() if state != "offline"]
            if left:
                raise InUse(f"{', '.join(left)} came online again", seen="online", expected="offline")
        except BaseException:
            # Online again, as it was: half a piece is of no use.
            for directory in ours:
                try:
                    self._write(directory / "state", "online_movable")
                except OperationFailed:
                    pass
            raise

    def _block_offline(self, directory: Path, deadline: float) -> bool:
        """Take one memory block offline; False if it was offline already.

        Raises:
            InUse: It stays busy.
            OperationFailed: The kernel refused the write for another reason.
        """
        state = directory / "state"
        pause = RETRY_FIRST
        while sysfs.read(state, 64) != "offline":
            left = deadline - time.monotonic()
            patience = self._tries.get(directory.name, TRY_FIRST)
            try:
                # The kernel tries until the process gets a signal; the writer sends one to its child.
                self._writer.write(state, "offline", max(left, patience))
                self._tries.pop(directory.name, None)
                return True
            except Blocked as error:
                self._settle(state)
                self._tries[directory.name] = min(patience * 2, TRY_LAST)  # or a slow machine never gets there
                why = "the kernel did not get its pages moved"
                cause: Exception = error
            except OSError as error:
                if error.errno not in _IN_USE:
                    raise _failed(state, "offline", error) from error
                why = error.strerror or "busy"
                cause = error
            left = deadline - time.monotonic()
            if left <= 0:
                raise InUse(
                    f"{directory.name} is in use and stays online",
                    seen=why,
                    expected="memory whose pages can be moved elsewhere",
                    remedy="free memory, and try again",
                ) from cause
            self.retries += 1
            self._sleep(min(pause, left))
            pause = min(pause * 2, RETRY_LAST)
        return False

    def _settle(self, state: Path) -> None:
        """After a signal: wait until the block is online or offline; not by ``sleep``, which may raise."""
        deadline = time.monotonic() + WRITE_SECONDS
        while sysfs.read(state, 64) == "going-offline" and time.monotonic() < deadline:
            time.sleep(0.02)

    def _unbind(self, directory: Path, start: int, size: int) -> None:
        drivers = self.kernel.dax / "drivers" / KMEM
        self._write(drivers / "unbind", directory.name)
        left = self.kernel.blocks(start, size)
        if left:
            raise OperationFailed(
                f"Linux did not let go of the memory at {start:#x}",
                seen=", ".join(f"{d.name} {state}" for d, state in left.items()),
                expected="no memory block there",
                remedy="it stays System RAM until the next boot, and must not be unplugged",
            )

    def _destroy(self, directory: Path) -> None:
        """Destroy an unused dax device: its id in kmem, its addresses, itself. The one with id 0 always stays."""
        try:
            self._writer.write(self.kernel.dax / "drivers" / KMEM / "remove_id", directory.name, WRITE_SECONDS)
        except Blocked:
            raise  # an OSError too
        except OSError:
            pass  # kmem does not have this id
        if sysfs.number(directory / "size"):
            self._write(directory / "size", "0")
        if not directory.name.endswith(".0"):
            self._write(self._ready() / "delete", directory.name)

    # --- helpers --------------------------------------------------------------------------------------------

    def _piece_at(self, start: int) -> DaxPiece:
        for piece in self.kernel.pieces():
            if piece.start == start:
                return piece
        raise OperationFailed(f"the piece at {start:#x} is gone", expected="a dax device there")

    def _write(self, path: Path, text: str) -> None:
        try:
            self._writer.write(path, text, WRITE_SECONDS)
        except Blocked:
            raise
        except OSError as error:
            raise _failed(path, text, error) from error


def _failed(path: Path, text: str, error: OSError) -> OperationFailed:
    return OperationFailed(
        f"writing {text!r} to {path} failed",
        seen=error.strerror or str(error),
        expected="a write that the kernel takes",
        remedy="see the kernel's log (dmesg)",
    )
