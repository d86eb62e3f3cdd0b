"""What every back end does the same way with a PCI function: the bounds of its BARs, its command register."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NoReturn, Protocol, TypeVar

from uvirtio.errors import CapabilityError, DeviceGone, UvirtioError
from uvirtio.interfaces.memory import Doorbell, Registers
from uvirtio.interfaces.values import BarInfo
from uvirtio.spec import pci


class _Sized(Protocol):
    @property
    def size(self) -> int: ...


AnyBar = TypeVar("AnyBar", bound=_Sized)


def bar_of(bars: Mapping[int, AnyBar], index: int, offset: int, length: int, *, address: str) -> AnyBar:
    """The BAR that a window of ``length`` bytes at ``offset`` lies in.

    Raises:
        CapabilityError: The BAR is absent or too small.
    """
    bar = bars.get(index)
    if bar is None or offset < 0 or length < 0 or offset + length > bar.size:
        raise CapabilityError(
            f"{address} has no {length} bytes at {offset:#x} of BAR {index}",
            seen="no such BAR" if bar is None else f"{bar.size} bytes",
            expected=f"at least {offset + length} bytes",
            remedy="look at the capabilities: uvirtio inspect",
        )
    return bar


class BoundFunction:
    """A PCI function that a driver of the kernel holds for this process.

    A back end finds ``config`` and ``_bars`` when it is made; ``driver`` is the kernel's.
    """

    bus: Literal["pci"] = "pci"
    driver: ClassVar[str]
    config: Registers

    def __init__(self, address: str) -> None:
        self.address = address
        self._bars: dict[int, BarInfo] = {}
        self._closed = False

    def gone(self, seen: str) -> NoReturn:
        """Raise DeviceGone."""
        raise DeviceGone(
            f"{self.address} does not answer any more",
            seen=seen,
            expected=f"a function that {self.driver} holds",
            remedy="look whether the device was removed: uvirtio list",
        )

    def bar(self, index: int) -> BarInfo | None:
        """The base address register, or None: absent, or the upper half of a 64-bit one."""
        return self._bars.get(index)

    def _bar_of(self, bar: int, offset: int, length: int) -> BarInfo:
        """The BAR that a window lies in. Raises CapabilityError if it is absent or too small."""
        return bar_of(self._bars, bar, offset, length, address=self.address)

    def doorbell(self, bar: int, offset: int, value: int) -> Doorbell | None:
        """None: a kick is a register write. (VFIO's ioeventfd costs the same one system call.)"""
        return None

    def command(self, *, set_: int = 0, clear: int = 0) -> int:
        """Change bits of the command register; what it was before. Raises DeviceGone."""
        old = self.config.read16(pci.CFG_COMMAND)
        if old == 0xFFFF:
            self.gone("configuration space reads all ones")
        new = (old | set_) & ~clear
        if new != old:
            self.config.write16(pci.CFG_COMMAND, new)
        return old

    def _decode(self, *, clear: int = 0) -> None:
        """Let the function answer at its BARs, and keep its pin quiet until somebody listens.

        A line that is asserted and has no handler makes the kernel switch it off ("nobody cared"), for all who
        share it. (VFIO lets the physical bit follow ours.)
        """
        wanted = int(pci.Command.INTX_DISABLE)
        for info in self._bars.values():
            wanted |= pci.Command.IO if info.is_io else pci.Command.MEMORY
        self.command(set_=wanted, clear=clear)

    def _master_off(self) -> bool:
        """Switch bus mastering off; whether the function is known to do no DMA from now on."""
        try:
            self.command(clear=pci.Command.MASTER)
            return not self.config.read16(pci.CFG_COMMAND) & pci.Command.MASTER
        except DeviceGone:
            return True  # what is not there writes nowhere
        except UvirtioError:
            return False
