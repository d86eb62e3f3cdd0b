"""What every back end of this machine does the same way with a PCI function: its BARs, its command register."""

from __future__ import annotations

from uvirtio.backends.bars import bar_of
from uvirtio.errors import DeviceGone, UvirtioError
from uvirtio.interfaces.values import BarInfo
from uvirtio.spec import pci
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Literal, NoReturn

    from uvirtio.interfaces.memory import Doorbell, Registers


class BoundFunction:
    """A PCI function that is bound to a kernel driver (``driver``) which passes it to this process.

    A back end sets ``config`` and ``_bars`` in its constructor.
    """

    bus: Literal["pci"] = "pci"
    driver: str
    config: Registers

    def __init__(self, address: str) -> None:
        """Set the address, ``0000:03:00.0``."""
        self.address = address
        self._bars: dict[int, BarInfo] = {}
        self._closed = False

    def gone(self, seen: str) -> NoReturn:
        """Report the function as removed.

        Args:
            seen: How that was noticed.

        Raises:
            DeviceGone: Always.
        """
        raise DeviceGone(
            f"{self.address} does not respond any more",
            seen=seen,
            expected=f"a function that is bound to {self.driver}",
            remedy="look whether the device was removed: uvirtio list",
        )

    def bar(self, index: int) -> BarInfo | None:
        """Return a base address register; None: absent, or the upper half of a 64-bit one."""
        return self._bars.get(index)

    def _bar_of(self, bar: int, offset: int, length: int) -> BarInfo:
        """Return the BAR that contains a window; CapabilityError if it is absent or too small."""
        return bar_of(self._bars, bar, offset, length, address=self.address)

    def doorbell(self, bar: int, offset: int, value: int) -> Doorbell | None:
        """Return None: a kick is a register write. (VFIO's ioeventfd costs the same one system call.)"""
        return None

    def command(self, *, set_: int = 0, clear: int = 0) -> int:
        """Change bits of the command register; returns its previous value.

        Args:
            set_: Bits to set.
            clear: Bits to clear.

        Raises:
            DeviceGone: The function does not respond.
        """
        old = self.config.read16(pci.CFG_COMMAND)
        if old == 0xFFFF:
            self.gone("configuration space reads all ones")
        new = (old | set_) & ~clear
        # QEMU sets MASTER itself at DRIVER on the legacy interface, and serves nothing before it is written.
        if new != old or set_ & pci.Command.MASTER:
            self.config.write16(pci.CFG_COMMAND, new)
        return old

    def _decode(self, *, clear: int = 0) -> None:
        """Let the function decode its BARs, and keep its pin disabled until a handler is installed.

        If a line is asserted and has no handler, the kernel disables it ("nobody cared"), for all devices that
        share it. (With VFIO the physical command bit follows the virtual one.)
        """
        wanted = int(pci.Command.INTX_DISABLE)
        for info in self._bars.values():
            wanted |= pci.Command.IO if info.is_io else pci.Command.MEMORY
        self.command(set_=wanted, clear=clear)

    def _master_off(self) -> bool:
        """Clear Bus Master Enable; returns whether the function is known to do no DMA from now on."""
        try:
            self.command(clear=pci.Command.MASTER)
            return not self.config.read16(pci.CFG_COMMAND) & pci.Command.MASTER
        except DeviceGone:
            return True  # a removed function writes nowhere
        except UvirtioError:
            return False
