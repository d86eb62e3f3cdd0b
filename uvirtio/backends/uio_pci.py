"""A PCI function through uio_pci_generic and sysfs, as the ``PciFunction`` that the transports want.

Nothing holds such a device: it may write anywhere in memory, and so may a mistake of its driver. Memory is huge
pages at physical addresses (``physical``), and a guardian quiets the device when this process is killed.

I/O BARs and configuration space are read and written by pread and pwrite of exact width. Memory BARs can only
be mapped here (sysfs has no read for them), and a mapped BAR raises SIGBUS once the device is removed. The
kernel tells it before it takes the mapping away: uio_pci_generic lets go first, and ``/dev/uioN`` polls as
failed from then on. So that is asked before every access, which costs a microsecond; the moment between the
question and the access stays, and who dies in it is outlived by the guardian.

Whoever opens and closes ``/dev/uioN`` switches bus mastering off, whoever else has it open. So the device's lock
is taken before, which disturbs nobody, and the bit is watched.
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

from uvirtio.backends.guardian import QUIET, WARNING, Guardian, Register, Step, quieting
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
from uvirtio.host import sysfs
from uvirtio.host.drivers import UIO, require_bound
from uvirtio.host.lock import take_lock
from uvirtio.host.roots import Roots
from uvirtio.interfaces.memory import Event, Registers
from uvirtio.interfaces.values import DEFAULT_TIMEOUT, BarInfo
from uvirtio.memory.access import FdRegisters, MappedRegisters
from uvirtio.memory.eventfd import EventFd
from uvirtio.spec import pci

DRIVER = UIO

_WATCH = 0.1
"""Seconds between looks at the bus master bit and the guardian."""


class _Lines:
    """The state of ``/dev/uioN``: interrupts counted by the kernel, and the end of the device."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)

    def state(self) -> int:
        found = self._poller.poll(0)
        return found[0][1] if found else 0

    def failed(self) -> bool:
        return bool(self.state() & select.POLLERR)

    def take(self) -> bool:
        """Whether there was an interrupt since the last time."""
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
        if self._closed:
            raise Closed("this event is closed")
        return self._lines.fd

    def take(self) -> bool:
        if self._closed:
            raise Closed("this event is closed")
        try:
            came = self._lines.take()
        except OSError as error:
            self._function.gone(os.strerror(error.errno or 0))
        self._masked = self._masked or came
        return came

    def rearm(self) -> None:
        """Let the pin speak again: not by a write to the node, which uio_pci_generic does not take."""
        if self._masked:
            self._masked = False
            self._function.command(clear=pci.Command.INTX_DISABLE)

    def close(self) -> None:
        self._closed = True


class _NodeFailed:
    """The event of the removal: ``/dev/uioN`` polls as failed from then on. The node is the function's."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def fileno(self) -> int:
        return self._lines.fd

    def take(self) -> bool:
        return self._lines.failed()

    def rearm(self) -> None:
        """Nothing: it fires once."""

    def close(self) -> None:
        """Nothing."""


class UioPciFunction(BoundFunction):
    """A PCI function that uio_pci_generic holds and this process has opened. Satisfies ``PciFunction``."""

    driver = DRIVER
    msix_vectors = 0
    """uio_pci_generic delivers the interrupt pin alone."""

    warning = WARNING

    def __init__(self, address: str, node: Path, roots: Roots, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Use :meth:`open`, which asks first."""
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
            self._bars = _bars(self._device)
            for info in self._bars.values():
                self._files[info.index] = self._open(self._device / f"resource{info.index}", stack)
            self._lines = _Lines(self._open(node, stack, os.O_NONBLOCK))
            # Without an interrupt the kernel's driver calls every poll failed, whether the device is there or not.
            deaf = self._lines.failed()
            self.has_intx = not deaf and bool(self.config.read8(pci.CFG_INTERRUPT_PIN))
            self._can_tell = not deaf
            self.removal: Event | None = WatchedRemoval(
                EventFd() if deaf else _NodeFailed(self._lines), self.watch
            )
            stack.callback(self.removal.close)
            # It may have been left running.
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
        """Open the function at ``address`` (``0000:03:00.0``).

        The caller has asked the deny list. Raises NoSuchDevice, NotBound, UnsafeDma (without the consent),
        Busy, PermissionLack, NotSupported, OperationFailed.
        """
        roots = roots or Roots()
        require_bound(address, DRIVER, roots)
        if not unsafe_dma:
            raise UnsafeDma(
                f"{address} is refused: {WARNING}",
                seen=f"bound to {DRIVER}, without --unsafe-dma",
                expected="the consent, or a device that an IOMMU holds",
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
                    remedy="run as root; under lockdown (secure boot) only VFIO with an IOMMU is left",
                ) from error
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                self.gone(f"{path}: {seen}")
            raise OperationFailed(f"{path} cannot be opened", seen=seen, expected="a file of sysfs") from error
        stack.callback(os.close, fd)
        return fd

    def check_there(self) -> None:
        """Raise DeviceGone once the kernel has begun to take the function away."""
        if self._can_tell and self._lines.failed():
            self.gone("/dev/uio says that its device has gone")

    # --- registers ----------------------------------------------------------------------------------------

    def registers(self, bar: int, offset: int, length: int) -> Registers:
        """A window of a BAR. Raises CapabilityError if the BAR is absent or too small."""
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

    # --- DMA, and who stops it ------------------------------------------------------------------------------

    def guard(self, bar: int, offset: int, width: int) -> None:
        """Where the device status lies: what the guardian resets the device by. See the Guarded seam."""
        info = self._bars[bar]
        self._status = Register(self._files[bar], offset, width, mapped=not info.is_io)

    def bus_master(self, on: bool) -> None:
        """Allow the function to do DMA, or not. Allowing waits until the guardian stands ready."""
        if on:
            self._guardian.stand_ready(self._plan())
            self.command(set_=pci.Command.MASTER)
        else:
            self.command(clear=pci.Command.MASTER)
        self._master = self._guardian.needed = on

    def _plan(self) -> list[Step]:
        return quieting(self._status, Register(self._config_fd, pci.CFG_COMMAND, 2), pci.Command.MASTER)

    def watch(self) -> None:
        """Look now and then whether the function may still do DMA, and whether the guardian stands.

        Raises DeviceResetByOther, GuardianLost; each once, for the way out must not stumble over it.
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
                f"somebody else has switched off bus mastering of {self.address}",
                seen=f"command register {command:#06x}",
                expected="bit 2 as it was set",
                remedy="whoever opens and closes /dev/uioN does that; find it, then open the device again",
            )
        self._guardian.check()

    def dma(self, translated: bool) -> PhysicalDmaSpace:
        """Memory in huge pages. The caller closes it after the device was reset.

        Raises NotSupported where the device takes IOVAs and an IOMMU translates; HugePagesLack, PagemapHidden.
        """
        if self._closed:
            raise Closed(f"{self.address} is closed")
        if translated and (kind := _iommu(self._device)) is not None:
            raise NotSupported(
                f"uio with the IOMMU on: {self.address} takes its addresses from the IOMMU (ACCESS_PLATFORM), and "
                "uio_pci_generic cannot tell the IOMMU any",
                seen=f"an IOMMU group of type {kind}",
                expected="vfio-pci, or an IOMMU that passes addresses through",
                remedy=f"uvirtio restore {self.address}; uvirtio bind {self.address} --driver vfio-pci "
                "(or boot with iommu=pt, and nothing holds the device)",
            )
        return PhysicalDmaSpace(self._roots, file=self._memory, translated=translated)

    # --- interrupts ---------------------------------------------------------------------------------------

    def enable_msix(self, count: int) -> list[Event]:
        """Raises OperationFailed: uio_pci_generic has no MSI-X."""
        raise OperationFailed(f"{self.address} cannot have {count} MSI-X vectors", seen=f"{DRIVER} delivers none")

    def enable_intx(self) -> Event | None:
        """Turn the interrupt pin on; None where the function has none or the kernel does not deliver it."""
        if not self.has_intx:
            return None
        self.disable_interrupts()
        self._lines.take()  # what came before anybody listened
        self._intx = _Intx(self, self._lines)
        self.command(clear=pci.Command.INTX_DISABLE)
        return self._intx

    def disable_interrupts(self) -> None:
        """Turn the pin off; idempotent."""
        intx, self._intx = self._intx, None
        if intx is not None:
            intx.close()
            self.command(set_=pci.Command.INTX_DISABLE)
            with suppress(OSError):
                self._lines.take()

    # --- reset, close -------------------------------------------------------------------------------------

    def reset(self) -> bool:
        """The kernel's reset of the function, where sysfs has one; False where it has none or refuses."""
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
        """Give the function back; idempotent.

        Order: pin off, bus mastering off. If that is so, the guardian ends; if not, it does what it is there
        for. Then registers and files.
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


def _node(address: str, roots: Roots) -> Path:
    """The character device that uio_pci_generic made for the function."""
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


def _bars(directory: Path) -> dict[int, BarInfo]:
    """The BARs, as sysfs tells them. Raises OperationFailed."""
    lines = sysfs.resources(directory)
    if lines is None or None in lines[: pci.BARS]:
        raise OperationFailed(
            f"sysfs does not tell the BARs of {directory.name}",
            seen="no readable file" if lines is None else "a line of another shape",
            expected="a file resource with three numbers a line",
        )
    return {
        index: BarInfo(index, line.size, line.is_io)
        for index, line in enumerate(lines[: pci.BARS])
        if line is not None and line.used
    }


def _iommu(device: Path) -> str | None:
    """The type of the IOMMU domain that translates for this function; None where none does."""
    if not (device / "iommu_group").exists():
        return None
    try:
        kind = (device / "iommu_group" / "type").read_text(encoding="ascii").strip()
    except OSError:
        kind = "unknown"
    return None if kind == "identity" else kind
