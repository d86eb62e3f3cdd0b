"""A PCI function through uio_pci_generic and sysfs, as the ``PciFunction`` that the transports need.

Nothing restricts the DMA of such a device: it may write anywhere in memory, and so may a fault in its driver.
Memory is huge pages at physical addresses (``physical``), and a guardian quiets the device when this process is
killed.

I/O BARs and configuration space are read and written by pread and pwrite of exact width. Memory BARs can only
be mapped here (sysfs has no read for them), and a mapped BAR causes SIGBUS once the device is removed. The
kernel signals the removal before it removes the mapping: uio_pci_generic is unbound first, and ``/dev/uioN`` polls
as failed from then on. So that is checked before every access, which costs a microsecond; the moment between the
check and the access remains, and the guardian outlives a process killed in it.

Every process that opens and closes ``/dev/uioN`` clears Bus Master Enable, even while others have it open. So the
device's lock is taken first, which disturbs no other process, and the bit is checked periodically.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import time
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path

from uvirtio.backends.guardian import QUIET, WARNING, Guardian, QuietStep, Register, quieting
from uvirtio.backends.pages import advise
from uvirtio.backends.pci_function import BoundFunction
from uvirtio.backends.physical import HugeFile, PhysicalDmaSpace
from uvirtio.backends.watched import WatchedRegisters, WatchedRemoval
from uvirtio.errors import (
    Closed,
    DeviceResetByOther,
    NotSupported,
    OperationFailed,
    PermissionLack,
    UnsafeDma,
    UvirtioError,
)
from uvirtio.host import privilege, sysfs
from uvirtio.host.drivers import UIO, require_bound
from uvirtio.host.lock import take_lock
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import DEFAULT_TIMEOUT, BarInfo
from uvirtio.memory.access import FdRegisters, MappedRegisters
from uvirtio.memory.eventfd import EventFd
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.spec import pci
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Event, Registers

DRIVER = UIO

_WATCH = 0.1
"""Seconds between checks of the bus master bit and the guardian."""


class _Lines:
    """The state of ``/dev/uioN``: interrupts counted by the kernel, and the removal of the device."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)

    def state(self) -> int:
        """Return the poll events that are pending."""
        found = self._poller.poll(0)
        return found[0][1] if found else 0

    def failed(self) -> bool:
        """Whether the device was removed."""
        return bool(self.state() & select.POLLERR)

    def take(self) -> bool:
        """Whether an interrupt came since the last call."""
        try:
            return len(os.read(self.fd, 4)) == 4
        except BlockingIOError:
            return False


class _Intx:
    """The interrupt pin. The kernel masks it at each interrupt, by bit 10 of the command register."""

    def __init__(self, function: UioPciFunction, lines: _Lines) -> None:
        self._function = function
        self._lines = lines
        self._masked = False
        self._closed = False

    def fileno(self) -> int:
        """Return the file descriptor to poll for reading."""
        if self._closed:
            raise Closed("this event is closed")
        return self._lines.fd

    def take(self) -> bool:
        """Consume what is pending; returns whether an interrupt came."""
        if self._closed:
            raise Closed("this event is closed")
        try:
            came = self._lines.take()
        except OSError as error:
            self._function.gone(os.strerror(error.errno or 0))
        self._masked = self._masked or came
        return came

    def rearm(self) -> None:
        """Enable the pin again; not by a write to the node, which uio_pci_generic does not accept."""
        if self._masked:
            self._masked = False
            self._function.command(clear=pci.Command.INTX_DISABLE)

    def close(self) -> None:
        """Stop; the node is the function's. Idempotent."""
        self._closed = True


class _NodeFailed:
    """The event of the removal: ``/dev/uioN`` polls as failed from then on. The node is the function's."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def fileno(self) -> int:
        """Return the file descriptor to poll."""
        return self._lines.fd

    def take(self) -> bool:
        """Whether the device was removed."""
        return self._lines.failed()

    def rearm(self) -> None:
        """Do nothing: it fires once."""

    def close(self) -> None:
        """Do nothing: the node is the function's."""


class UioPciFunction(BoundFunction):
    """A PCI function that is bound to uio_pci_generic and opened by this process.

    Satisfies ``PciFunction``, ``Guarded`` and ``WithoutIommu``; a context manager.
    """

    driver = DRIVER
    msix_vectors = 0
    """uio_pci_generic delivers the interrupt pin alone."""

    warning = WARNING

    def __init__(self, address: str, node: Path, roots: Roots, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Open a function that was checked; use ``open``, which checks it.

        Args:
            address: The function, ``0000:03:00.0``.
            node: Its ``/dev/uioN``.
            roots: Where /dev, /run, /sys and /proc are.
            timeout: Seconds to wait for the device's lock, 2 at most.

        Raises:
            Busy: Another process has the device.
            PermissionLack: This user may not open a file of the device.
            DeviceGone: The function was removed.
            NotSupported: The kernel has no huge pages of 2 MiB.
            OperationFailed: A file cannot be opened, or the guardian cannot be started.
        """
        super().__init__(address)
        self.translates = False
        self.description = f"{DRIVER}, {node.name}, physical addresses"
        self._roots = roots
        self._timeout = timeout
        self._device = sysfs.device("pci", address, roots)
        self._files: dict[int, int] = {}
        self._mappings: dict[int, mmap.mmap] = {}
        self._windows: weakref.WeakSet[WatchedRegisters] = weakref.WeakSet()
        self._intx: _Intx | None = None
        self._status: Register | None = None
        self._master = False
        self._looked = 0.0
        with ExitStack() as stack:
            self._lock = take_lock(address, roots, patience=min(timeout, 2 * QUIET))
            stack.callback(os.close, self._lock)
            self._config_fd = self._open(self._device / "config", stack)
            self.config: Registers = FdRegisters(
                self._config_fd, 0, os.fstat(self._config_fd).st_size, what=address
            )
            self._bars, self._starts = _bars(self._device)
            for info in self._bars.values():
                self._files[info.index] = self._open(self._device / f"resource{info.index}", stack)
            self._lines = _Lines(self._open(node, stack, os.O_NONBLOCK))
            # Without an interrupt the kernel's driver fails every poll, whether the device exists or not.
            unpollable = self._lines.failed()
            self.has_intx = not unpollable and bool(self.config.read8(pci.CFG_INTERRUPT_PIN))
            self._can_tell = not unpollable
            self.removal: Event | None = WatchedRemoval(
                EventFd() if unpollable else _NodeFailed(self._lines), self.watch
            )
            stack.callback(self.removal.close)
            # Its previous driver may have left it running.
            self._decode(clear=pci.Command.MASTER)
            self._memory = HugeFile(roots)
            stack.callback(self._memory.close)
            holds = [self._lock, self._memory.fileno(), self._config_fd, *self._files.values()]
            self._guardian = Guardian(address, holds)
            stack.pop_all()

    @classmethod
    def open(
        cls,
        address: str,
        roots: Roots | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        unsafe_dma: bool = False,
    ) -> UioPciFunction:
        """Check and open a function. The caller has checked the deny list.

        Args:
            address: The function, ``0000:03:00.0``.
            roots: Where /dev, /run, /sys and /proc are.
            timeout: Seconds to wait for the device's lock, 2 at most.
            unsafe_dma: Consent to DMA that no IOMMU restricts; required.

        Raises:
            NoSuchDevice: There is no such function.
            NotBound: The function is not bound to uio_pci_generic.
            UnsafeDma: ``unsafe_dma`` is False.
            Busy: Another process has the device.
            PermissionLack: This user may not open a file of the device.
            DeviceGone: The function was removed.
            NotSupported: The kernel has no huge pages of 2 MiB.
            OperationFailed: A file cannot be opened, or the guardian cannot be started.
        """
        roots = roots or Roots()
        require_bound(address, DRIVER, roots)
        if not unsafe_dma:
            raise UnsafeDma(
                f"{address} is refused: {WARNING}",
                seen=f"bound to {DRIVER}, without --unsafe-dma",
                expected="--unsafe-dma, or a device behind an IOMMU",
                remedy="on a machine that you can afford to lose: --unsafe-dma (unsafe_dma=True); better: give it "
                f"an IOMMU, then uvirtio restore {address}; uvirtio bind {address} --driver vfio-pci",
            )
        return cls(address, _node(address, roots), roots, timeout=timeout)

    def _open(self, path: Path, stack: ExitStack, flags: int = 0) -> int:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)
        except OSError as error:
            seen = os.strerror(error.errno or 0)
            if error.errno in (errno.EACCES, errno.EPERM):
                raise PermissionLack(
                    f"{path} may not be opened",
                    seen=f"{seen}, as user {os.geteuid()}",
                    expected="root, and a kernel that is not locked down",
                    remedy=privilege.remedy(
                        path=path, also="under lockdown (secure boot) take VFIO with an IOMMU", roots=self._roots
                    ),
                ) from error
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                self.gone(f"{path}: {seen}")
            raise OperationFailed(f"{path} cannot be opened", seen=seen, expected="a file of sysfs") from error
        stack.callback(os.close, fd)
        return fd

    def check_there(self) -> None:
        """Check that the kernel has not begun to remove the function.

        Raises:
            DeviceGone: It has.
        """
        if self._can_tell and self._lines.failed():
            self.gone("/dev/uioN polls as failed: its device was removed")

    # --- registers ----------------------------------------------------------------------------------------

    def registers(self, bar: int, offset: int, length: int) -> Registers:
        """Return a window of a BAR.

        Raises:
            CapabilityError: The BAR is absent or too small.
            NotSupported: The memory BAR cannot be mapped.
        """
        info = self._bar_of(bar, offset, length)
        inner: Registers
        if info.is_io:
            inner = FdRegisters(self._files[bar], offset, length, what=self.address)
        else:
            inner = MappedRegisters(self._mapping(info), offset, length)
        window = WatchedRegisters(inner, self.check_there)
        self._windows.add(window)
        return window

    def _mapping(self, info: BarInfo) -> mmap.mmap:
        found = self._mappings.get(info.index)
        if found is None:
            start = self._starts[info.index]
            if start % CPU_PAGE:
                # The kernel maps from the beginning of the page (pci_mmap_resource_range), which is not ours.
                raise NotSupported(
                    f"BAR {info.index} of {self.address} cannot be mapped: it does not begin at a page",
                    seen=f"{start:#x}, with pages of {CPU_PAGE} bytes",
                    expected=f"a multiple of {CPU_PAGE:#x}",
                    remedy="vfio-pci reaches it without mapping; or boot with "
                    f"pci=resource_alignment={self.address}",
                )
            try:
                found = mmap.mmap(self._files[info.index], info.size)
            except (OSError, ValueError) as error:
                raise NotSupported(
                    f"BAR {info.index} of {self.address} cannot be mapped",
                    seen=str(error),
                    expected="a memory BAR in whole pages, and a kernel that is not locked down",
                    remedy="vfio-pci reaches it without mapping",
                ) from error
            advise(found, mmap.MADV_DONTFORK)
            self._mappings[info.index] = found
        return found

    # --- DMA, and what stops it -----------------------------------------------------------------------------

    def guard(self, bar: int, offset: int, width: int) -> None:
        """Set where the device status is, for the guardian; see ``Guarded``."""
        info = self._bars[bar]
        self._status = Register(self._files[bar], offset, width, mapped=not info.is_io)

    def bus_master(self, on: bool) -> None:
        """Set or clear Bus Master Enable. Setting it waits until the guardian is ready.

        Raises:
            OperationFailed: The guardian did not become ready.
            GuardianLost: The guardian has ended.
            DeviceGone: The function was removed.
        """
        if on:
            self._guardian.stand_ready(self._plan())
            self.command(set_=pci.Command.MASTER)
        else:
            self.command(clear=pci.Command.MASTER)
        self._master = self._guardian.needed = on

    def _plan(self) -> list[QuietStep]:
        return quieting(self._status, Register(self._config_fd, pci.CFG_COMMAND, 2), pci.Command.MASTER)

    def watch(self) -> None:
        """Check periodically that the function may still do DMA, and that the guardian is alive.

        Each error is raised once, so that closing the device does not fail because of it.

        Raises:
            DeviceResetByOther: Another process cleared Bus Master Enable.
            GuardianLost: The guardian has ended.
            DeviceGone: The function was removed.
        """
        now = time.monotonic()
        if not self._master or now < self._looked + _WATCH:
            return
        self._looked = now
        command = self.config.read16(pci.CFG_COMMAND)
        if command == 0xFFFF:
            self.gone("configuration space reads all ones")
        if not command & pci.Command.MASTER:
            self._master = False
            raise DeviceResetByOther(
                f"another process has disabled bus mastering of {self.address}",
                seen=f"command register {command:#06x}",
                expected="bit 2 as it was set",
                remedy="opening and closing /dev/uioN does that; find that process, then open the device again",
            )
        self._guardian.check()

    def dma(self, translated: bool) -> PhysicalDmaSpace:
        """Return memory in huge pages. The caller closes it after the device was reset.

        Args:
            translated: Whether ACCESS_PLATFORM was negotiated.

        Raises:
            NotSupported: ``translated`` is True, and an IOMMU translates: uio cannot program it.
            HugePagesLack: The pool has no huge page.
            PagemapHidden: This process may not read physical addresses.
            Closed: After ``close()``.
        """
        if self._closed:
            raise Closed(f"{self.address} is closed")
        if translated and (kind := _iommu(self._device)) is not None:
            raise NotSupported(
                f"uio with the IOMMU on: {self.address} takes its addresses from the IOMMU (ACCESS_PLATFORM), and "
                "uio_pci_generic cannot program the IOMMU",
                seen=f"an IOMMU group of type {kind}",
                expected="vfio-pci, or an IOMMU that passes addresses through",
                remedy=f"uvirtio restore {self.address}; uvirtio bind {self.address} --driver vfio-pci "
                "(or boot with iommu=pt, and nothing restricts the device)",
            )
        return PhysicalDmaSpace(self._roots, file=self._memory, translated=translated)

    # --- interrupts ---------------------------------------------------------------------------------------

    def enable_msix(self, count: int) -> list[Event]:
        """Not available: uio_pci_generic has no MSI-X.

        Raises:
            OperationFailed: Always.
        """
        raise OperationFailed(f"MSI-X of {self.address} is not available", seen=f"{DRIVER} delivers no MSI-X")

    def enable_intx(self) -> Event | None:
        """Enable the interrupt pin; None where the function has none or the kernel does not deliver it."""
        if not self.has_intx:
            return None
        self.disable_interrupts()
        self._lines.take()  # what came before
        self._intx = _Intx(self, self._lines)
        self.command(clear=pci.Command.INTX_DISABLE)
        return self._intx

    def disable_interrupts(self) -> None:
        """Disable the pin; idempotent."""
        intx, self._intx = self._intx, None
        if intx is not None:
            intx.close()
            self.command(set_=pci.Command.INTX_DISABLE)
            with suppress(OSError):
                self._lines.take()

    # --- reset, close -------------------------------------------------------------------------------------

    @property
    def has_reset(self) -> bool:
        """Whether sysfs has a ``reset`` for the function."""
        return sysfs.exists(self._device / "reset")

    def reset(self) -> bool:
        """Do the kernel's reset of the function; False where sysfs has none, or it fails.

        Raises:
            DeviceGone: The function was removed.
        """
        try:
            fd = os.open(self._device / "reset", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"1")
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                self.gone(os.strerror(error.errno or 0))
            return False
        return True

    def close(self) -> None:
        """Release the function; idempotent.

        Order: pin disabled, bus mastering disabled. If that is confirmed, the guardian ends; if not, the guardian
        acts. Then registers and files.
        """
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:  # runs backwards, and all of it, whatever fails
            stack.callback(self._memory.close)
            for fd in (self._lock, self._lines.fd, *self._files.values(), self._config_fd):
                stack.callback(os.close, fd)
            for mapping in self._mappings.values():
                stack.callback(mapping.close)
            if self.removal is not None:
                stack.callback(self.removal.close)
            stack.callback(self._guardian.close)
            for window in list(self._windows):
                stack.callback(window.close)
            with suppress(UvirtioError):
                self.disable_interrupts()
            if self._master_off():
                self._guardian.disarm()

    def __enter__(self) -> UioPciFunction:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warn_unclosed(self, self.address)


def _node(address: str, roots: Roots) -> Path:
    """Return the character device that uio_pci_generic made for the function."""
    directory = sysfs.device("pci", address, roots)
    names = sysfs.uio_nodes(directory)
    if len(names) != 1:
        raise OperationFailed(
            f"{DRIVER} holds {address} and has no node for it",
            seen=", ".join(names) or f"nothing in {directory / 'uio'}",
            expected="one uioN",
            remedy="see the kernel's log (dmesg)",
        )
    return roots.dev / names[0]


def _bars(directory: Path) -> tuple[dict[int, BarInfo], dict[int, int]]:
    """Return the BARs and their first addresses, from sysfs; OperationFailed where they cannot be read."""
    lines = sysfs.resources(directory)
    if lines is None or None in lines[: pci.BARS]:
        raise OperationFailed(
            f"sysfs does not have the BARs of {directory.name}",
            seen="no readable file" if lines is None else "a line of another shape",
            expected="a file resource with three numbers a line",
        )
    used = {index: line for index, line in enumerate(lines[: pci.BARS]) if line is not None and line.used}
    bars = {index: BarInfo(index, line.size, line.is_io) for index, line in used.items()}
    return bars, {index: line.start for index, line in used.items()}


def _iommu(device: Path) -> str | None:
    """Return the type of the IOMMU domain that translates for this function; None where none does."""
    if not sysfs.exists(device / "iommu_group"):
        return None
    try:
        kind = (device / "iommu_group" / "type").read_text(encoding="ascii").strip()
    except OSError:
        kind = "unknown"
    return None if kind == "identity" else kind
