"""virtio-mmio windows through /dev/mem: no driver in between, no interrupt, no IOMMU.

What is mapped is held against /proc/iomem first (:mod:`uvirtio.host.mmio`). The kernel has its own rules on top:
with STRICT_DEVMEM it maps no RAM, with IO_STRICT_DEVMEM no page in which a driver has a window, and when it is
locked down, nothing. Rings and buffers are huge pages at their physical addresses.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Literal

from uvirtio.backends.guardian import Await, Guardian, Register, Store
from uvirtio.backends.physical import HugeFile, PhysicalDmaSpace
from uvirtio.errors import (
    Closed,
    GroupNotViable,
    GuardianLost,
    NotBound,
    NotSupported,
    OperationFailed,
    PermissionLack,
    UnsafeDma,
)
from uvirtio.host import mmio, sysfs
from uvirtio.host.lock import take_lock
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots
from uvirtio.interfaces.memory import Event, Registers
from uvirtio.memory.access import MappedRegisters
from uvirtio.spec import mmio as spec

WARNING = (
    "nothing holds a device that is reached through /dev/mem: it reads and writes physical memory, anywhere, and "
    "a mistake of its driver destroys data of this machine"
)

_QUIET = 1.0
"""Seconds that the guardian gives the device for its reset."""

_PATIENCE = 10.0
"""Seconds that a new driver gives the guardian of a dead one, which may have to wait for a busy CPU too."""

_X86 = ("x86_64", "AMD64", "i686", "i386")


class _GuardedRegisters(MappedRegisters):
    """The registers, with the question before each read whether the guardian still stands.

    Not before a write: the one that resets the device has to get through.
    """

    window: DevmemWindow

    def read32(self, offset: int) -> int:
        self.window.watch()
        return super().read32(offset)


class DevmemWindow:
    """A virtio-mmio window that this process has mapped. Satisfies ``MmioWindow``."""

    bus: Literal["mmio"] = "mmio"
    translates = False
    removal: Event | None = None
    warning = WARNING

    def __init__(self, address: str, base: int, length: int, roots: Roots) -> None:
        """Use :meth:`open`, which asks first. The window was held against /proc/iomem."""
        self.address = address
        self.base = base
        self.description = f"/dev/mem at {base:#x}, {length} bytes, physical addresses"
        self._roots = roots
        self._closed = False
        with ExitStack() as stack:
            lock = take_lock(address, roots, patience=_PATIENCE)
            stack.callback(os.close, lock)
            fd = _open(roots)
            stack.callback(os.close, fd)
            start = base & -CPU_PAGE
            mapping = _map(fd, start, base + length - start, base, address, roots)
            stack.callback(mapping.close)
            guarded = _GuardedRegisters(mapping, base - start, length)
            guarded.window = self
            self.registers: Registers = guarded
            stack.callback(self.registers.close)
            self._held = (lock, fd)
            self._memory: HugeFile | None = None
            self._guardian: Guardian | None = None
            self._status = 0
            self._resources = stack.pop_all()

    @classmethod
    def open(
        cls,
        address: str,
        base: int,
        length: int = 0,
        roots: Roots | None = None,
        *,
        unsafe_dma: bool = False,
        machine: str | None = None,
    ) -> DevmemWindow:
        """Map the window at the physical address ``base``; ``length`` in bytes, 0 where nobody knows it.

        ``machine`` is the CPU's name, this machine's if it is not given. The caller has asked the deny list.
        Raises UnsafeDma (without the consent), NotBound, ForeignWindow, GroupNotViable (a driver has another
        window of the page), Busy, PermissionLack, NotSupported, OperationFailed.
        """
        roots = roots or Roots()
        length = max(length or spec.WINDOW_SIZE, spec.WINDOW_MIN_SIZE)
        if base % 4:
            raise NotSupported(
                f"{address} is no place for a virtio-mmio window",
                seen=f"address {base:#x}",
                expected="a multiple of 4: the registers are words of 32 bits (4.2.2.2)",
            )
        if not unsafe_dma:
            raise UnsafeDma(
                f"{address} is refused: {WARNING}",
                seen="/dev/mem, without --unsafe-dma",
                expected="the consent, or a device that an IOMMU holds",
                remedy="on a machine that you can afford to lose: --unsafe-dma (unsafe_dma=True)",
            )
        on_x86 = (machine or platform.machine()) in _X86
        mmio.check_window(base, length, roots, address=address, named_only=not on_x86)
        return cls(address, base, length, roots)

    def enable_interrupt(self) -> Event | None:
        """None: /dev/mem has no interrupts, the device is polled."""
        return None

    def disable_interrupt(self) -> None:
        """Nothing is on."""

    def guard(self, status: int) -> None:
        """Have a guardian stand ready to reset the device if this process is killed. See the MmioWindow seam.

        It holds the memory too, and the lock: nobody gets either before the device is quiet. Raises
        OperationFailed where there can be none, GuardianLost.
        """
        if self._closed:
            raise Closed(f"{self.address} is closed")
        if self._guardian is not None:
            self.watch()
            return
        guardian = Guardian(self.address, [*self._held, self._file().fileno()])
        register = Register(self._held[1], self.base + status, 4, mapped=True)
        try:
            guardian.arm([Store(register, 0), Await(register, 0, _QUIET)])
        except BaseException:
            guardian.close()
            raise
        self._guardian, self._status = guardian, status

    def watch(self) -> None:
        """Raises GuardianLost, once, where there was a guardian and is none any more."""
        guardian = self._guardian
        if guardian is not None and not guardian.alive:
            self._guardian = None
            raise GuardianLost(
                f"the guardian of {self.address} is gone",
                seen=f"process {guardian.pid} ended",
                expected="a process that quiets the device if this one is killed",
                remedy="find out who ended it; then open the device again",
            )

    def _file(self) -> HugeFile:
        if self._memory is None:
            self._memory = self._resources.enter_context(closing(HugeFile(self._roots)))
        return self._memory

    def dma(self, translated: bool) -> PhysicalDmaSpace:
        """Memory in huge pages. The caller closes it after the device was reset.

        Raises HugePagesLack, PagemapHidden.
        """
        if self._closed:
            raise Closed(f"{self.address} is closed")
        return PhysicalDmaSpace(self._roots, file=self._file(), translated=translated)

    def close(self) -> None:
        """Unmap the window and give it back; idempotent.

        If the device is reset, its guardian ends; if not, it does what it is there for.
        """
        if self._closed:
            return
        self._closed = True
        guardian, self._guardian = self._guardian, None
        with self._resources:
            if guardian is None:
                return
            if self.registers.read32(self._status) == 0:
                guardian.disarm()
            else:
                guardian.close()

    def __enter__(self) -> DevmemWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(roots: Roots) -> int:
    path = roots.dev / "mem"
    try:
        # O_SYNC: these are registers, and must not be cached.
        return os.open(path, os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)
    except OSError as error:
        seen = os.strerror(error.errno or 0)
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _locked(path, seen, roots) from error
        raise NotSupported(
            f"{path} cannot be opened",
            seen=seen,
            expected="a kernel with /dev/mem (CONFIG_DEVMEM)",
            remedy="boot a kernel that has it; a container may lack the node: mknod -m 600 /dev/mem c 1 1",
        ) from error


def _locked(path: Path, seen: str, roots: Roots) -> PermissionLack:
    mode = sysfs.locked_down(roots)
    if mode is not None:
        return PermissionLack(
            f"{path} is closed: this kernel is locked down",
            seen=f"{seen}; lockdown is {mode}",
            expected="lockdown none",
            remedy="lockdown comes with secure boot: switch that off in the firmware, or use VFIO with an IOMMU",
        )
    return PermissionLack(
        f"{path} may not be opened",
        seen=f"{seen}, as user {os.geteuid()}",
        expected="root (CAP_SYS_RAWIO)",
        remedy="run as root",
    )


def _map(fd: int, start: int, length: int, base: int, address: str, roots: Roots) -> mmap.mmap:
    try:
        mapping = mmap.mmap(fd, length, offset=start)
    except PermissionError as error:
        raise _refused(start, length, base, address, roots) from error
    except (OSError, OverflowError, ValueError) as error:
        raise OperationFailed(
            f"{address} cannot be mapped",
            seen=str(error),
            expected=f"{length} bytes of {roots.dev / 'mem'} at {start:#x}",
        ) from error
    with suppress(OSError):
        mapping.madvise(mmap.MADV_DONTFORK)
    return mapping


def _refused(start: int, length: int, base: int, address: str, roots: Roots) -> Exception:
    """Why the kernel says no to a mapping: whose window lies in the page, or its configuration."""
    held = []
    page = (start & -CPU_PAGE, (start + length + CPU_PAGE - 1) & -CPU_PAGE)
    for window in mmio.windows(roots):
        if window.base is None or not page[0] <= window.base < page[1]:
            continue
        driver = sysfs.driver_of(sysfs.device("platform", window.name, roots))
        if driver is None:
            continue
        entry = f"mmio:{window.base:#x} ({window.name}, {driver})"
        if window.base == base:
            return NotBound(
                f"{address} is held by a driver of the kernel",
                seen=entry,
                expected="a window that nobody drives",
                remedy=f"uvirtio bind mmio:{base:#x}",
            )
        held.append(entry)
    if held:
        return GroupNotViable(
            f"{address} shares its page with windows that the kernel drives, and then it maps none of them",
            seen=", ".join(dict.fromkeys(held)),
            expected="a page without a driver in it (IO_STRICT_DEVMEM)",
            remedy=f"uvirtio bind mmio:{base:#x} --group takes them all; or boot with iomem=relaxed",
        )
    mode = sysfs.locked_down(roots)
    return PermissionLack(
        f"the kernel does not map {address}",
        seen=f"EPERM; lockdown is {mode}" if mode else "EPERM",
        expected="a kernel that maps device memory for root",
        remedy="STRICT_DEVMEM or a driver forbids it: see /proc/iomem for who has the page; iomem=relaxed on the "
        "kernel's command line allows it",
    )
