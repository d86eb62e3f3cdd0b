"""virtio-mmio windows through /dev/mem: no kernel driver, no interrupt, no IOMMU.

The window is compared with /proc/iomem and the device tree before it is mapped (``host/mmio``). The kernel has
its own rules on top: with STRICT_DEVMEM it maps no RAM, with IO_STRICT_DEVMEM no page in which a driver has a
window, and when it is locked down, nothing. Rings and buffers are huge pages at their physical addresses.
"""

from __future__ import annotations

import errno
import mmap
import os
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
from uvirtio.host import cpu, mmio, privilege, sysfs
from uvirtio.host.lock import take_lock
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots
from uvirtio.memory.access import MappedRegisters
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.spec import mmio as spec
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Event, Registers

WARNING = (
    "no IOMMU holds a device that is reached through /dev/mem: it can read and write all physical memory, and a "
    "fault in its driver can destroy data of this machine"
)

_QUIET = 1.0
"""Seconds that the guardian waits for the device's reset."""

_PATIENCE = 10.0
"""Seconds that a new driver waits for the guardian of a dead one, which may have to wait for a busy CPU too."""


class _GuardedRegisters(MappedRegisters):
    """The registers, with a check before each read that the guardian is alive.

    Not before a write: the one that resets the device must always be possible.
    """

    window: DevmemWindow

    def read32(self, offset: int) -> int:
        """Read 32 bits at ``offset``.

        Raises:
            GuardianLost: The guardian has ended.
            Misuse: Outside the window, or not aligned.
            Closed: After ``close()``.
        """
        self.window.watch()
        return super().read32(offset)


class DevmemWindow:
    """A virtio-mmio window that this process has mapped. Satisfies ``MmioWindow``; a context manager."""

    bus: Literal["mmio"] = "mmio"
    translates = False
    removal: Event | None = None
    warning = WARNING

    def __init__(self, address: str, base: int, length: int, roots: Roots) -> None:
        """Map a window that was checked; use ``open``, which checks it.

        Args:
            address: The window's name, ``mmio:0xfe003e00``.
            base: Its physical address, in bytes.
            length: Its length, in bytes.
            roots: Where /dev, /run, /sys and /proc are.

        Raises:
            Busy: Another process has the device.
            NotBound: A kernel driver is bound to the window.
            GroupNotViable: A kernel driver has another window of the page.
            PermissionLack: /dev/mem cannot be opened or mapped.
            NotSupported: The kernel has no /dev/mem.
            OperationFailed: The window cannot be mapped for another reason.
        """
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
        """Check and map the window at a physical address. The caller has checked the deny list.

        Args:
            address: The window's name, ``mmio:0xfe003e00``.
            base: Its physical address, in bytes; a multiple of 4.
            length: Its length, in bytes; 0 where it is unknown.
            roots: Where /dev, /run, /sys and /proc are.
            unsafe_dma: Consent to DMA that no IOMMU restricts; required.
            machine: Name of the CPU architecture; None: this machine's.

        Raises:
            UnsafeDma: ``unsafe_dma`` is False.
            NotBound: A kernel driver is bound to the window.
            ForeignWindow: /proc/iomem does not name a virtio-mmio window there.
            GroupNotViable: A kernel driver has another window of the page.
            Busy: Another process has the device.
            PermissionLack: /dev/mem cannot be opened or mapped.
            NotSupported: The address is not aligned, or the kernel has no /dev/mem.
            OperationFailed: The window cannot be mapped for another reason.
        """
        roots = roots or Roots()
        length = max(length or spec.WINDOW_SIZE, spec.WINDOW_MIN_SIZE)
        if base % 4:
            raise NotSupported(
                f"{address} cannot be a virtio-mmio window",
                seen=f"address {base:#x}",
                expected="a multiple of 4: the registers are words of 32 bits (4.2.2.2)",
            )
        if not unsafe_dma:
            raise UnsafeDma(
                f"{address} is refused: {WARNING}",
                seen="/dev/mem, without --unsafe-dma",
                expected="--unsafe-dma, or a device behind an IOMMU",
                remedy="on a machine that you can afford to lose: --unsafe-dma (unsafe_dma=True)",
            )
        named_only = not cpu.reads_of_nothing_are_harmless(machine)
        mmio.check_window(base, length, roots, address=address, named_only=named_only)
        return cls(address, base, length, roots)

    def enable_interrupt(self) -> Event | None:
        """Return None: /dev/mem has no interrupts, the device is polled."""
        return None

    def disable_interrupt(self) -> None:
        """Do nothing: no interrupt is enabled."""

    def guard(self, status: int) -> None:
        """Make a guardian ready to reset the device if this process is killed.

        It holds the memory too, and the lock: both become free only after the device is quiet.

        Args:
            status: Offset of the Status register in the window, in bytes.

        Raises:
            OperationFailed: The guardian cannot be started.
            GuardianLost: The guardian has ended.
            HugePagesLack: The pool has no huge page for the memory.
            Closed: After ``close()``.
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
        """Check that the guardian, if there is one, is alive.

        Raises:
            GuardianLost: It has ended. Raised once.
        """
        guardian = self._guardian
        if guardian is not None and not guardian.alive:
            self._guardian = None
            raise GuardianLost(
                f"the guardian of {self.address} has ended",
                seen=f"process {guardian.pid} ended",
                expected="a process that quiets the device if this one is killed",
                remedy="find out what ended it; then open the device again",
            )

    def _file(self) -> HugeFile:
        if self._memory is None:
            self._memory = self._resources.enter_context(closing(HugeFile(self._roots)))
        return self._memory

    def dma(self, translated: bool) -> PhysicalDmaSpace:
        """Return memory in huge pages. The caller closes it after the device was reset.

        Args:
            translated: Whether ACCESS_PLATFORM was negotiated; the addresses are physical ones either way.

        Raises:
            HugePagesLack: The pool has no huge page.
            PagemapHidden: This process may not read physical addresses.
            Closed: After ``close()``.
        """
        if self._closed:
            raise Closed(f"{self.address} is closed")
        return PhysicalDmaSpace(self._roots, file=self._file(), translated=translated)

    def close(self) -> None:
        """Unmap the window and release the lock; idempotent.

        If the device is reset, its guardian ends; if not, the guardian acts.
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

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warn_unclosed(self, self.address)


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
        remedy=privilege.remedy(path=path, roots=roots),
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
    """The error for a refused mapping: which driver has a window in the page, or the kernel's configuration."""
    held = []
    mapped = set(mmio.pages(start, length))
    for window in mmio.windows(roots):
        if window.base is None or mapped.isdisjoint(mmio.pages(window.base, window.length)):
            continue
        driver = sysfs.driver_of(sysfs.device("platform", window.name, roots))
        if driver is None:
            continue
        entry = f"mmio:{window.base:#x} ({window.name}, {driver})"
        if window.base == base:
            return NotBound(
                f"{address} is held by a driver of the kernel",
                seen=entry,
                expected="a window without a kernel driver",
                remedy=f"uvirtio bind mmio:{base:#x}",
            )
        held.append(entry)
    if held:
        return GroupNotViable(
            f"{address} shares its page with windows that kernel drivers use, so the kernel maps none of them",
            seen=", ".join(dict.fromkeys(held)),
            expected="a page without a driver in it (IO_STRICT_DEVMEM)",
            remedy=f"uvirtio bind mmio:{base:#x} --group takes them all; or boot with iomem=relaxed",
        )
    mode = sysfs.locked_down(roots)
    return PermissionLack(
        f"the kernel does not map {address}",
        seen=f"EPERM; lockdown is {mode}" if mode else "EPERM",
        expected="a kernel that maps device memory for root",
        remedy="STRICT_DEVMEM or a driver forbids it: see /proc/iomem for the page; iomem=relaxed on the "
        "kernel's command line allows it",
    )
