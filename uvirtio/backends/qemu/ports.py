"""PCI Express root ports: the sockets of a machine that a device can be plugged into while it runs.

Each is a bridge (PCI-to-PCI Bridge Architecture 1.2, chapter 3) with one slot behind it, and is programmed here as
firmware would. Plugging and unplugging is PCI Express's own (Base Specification, 6.7): the guest turns the power
of the slot on and off, and QEMU detaches the device when it is off.
"""

from __future__ import annotations

from typing import Final

from uvirtio.backends.qemu.pci import HostBridge, Windows, find_capability
from uvirtio.backends.qemu.qtest import Qtest
from uvirtio.errors import QemuFailed
from uvirtio.spec import pci as spec
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Registers

_BUS_NUMBERS: Final = 0x18  # primary, secondary, subordinate: a byte each
_IO_WINDOW: Final = 0x1C  # base and limit, a byte each
_MEMORY_WINDOW: Final = 0x20  # base and limit, 2 bytes each: the upper 12 bits of a 32-bit address
_PREFETCH_WINDOW: Final = 0x24
_NOTHING: Final = 0x0000FFF0  # the limit is below the base
_WINDOW: Final = 16 << 20
_MIB: Final = 1 << 20

_SLOT_CONTROL: Final = 0x18  # in the PCI Express capability, 2 bytes
_POWER_OFF: Final = 1 << 10
_INDICATOR_ON: Final = 1 << 8
_INDICATOR_OFF: Final = 3 << 8


class RootPort:
    """One root port, and access to the bus behind it. Satisfies ``Bridge``."""

    def __init__(self, host: HostBridge, devfn: int, number: int, *, ident: str) -> None:
        """Program the bridge.

        Args:
            host: The host bridge.
            devfn: The port's place on the root bus, slot * 8 + function.
            number: The number of the bus behind it.
            ident: QEMU's name of that bus.

        Raises:
            QemuFailed: The function is not a root port.
            OperationFailed: No address space is left.
        """
        self.id = ident
        self.number = number
        """Of the bus behind it."""
        self.qtest: Qtest = host.qtest
        self._host = host
        self._devfn = devfn
        self._config = host.config(devfn)
        express = find_capability(self._config, spec.CapId.EXPRESS)
        if express is None:
            raise QemuFailed(
                f"{ident} is no root port",
                seen="no PCI Express capability",
                expected="pcie-root-port",
                remedy="use QEMU 7.2 or later",
            )
        self._slot = express + _SLOT_CONTROL
        start = host.windows.place(_WINDOW, is_io=False, is_64=False)
        # No I/O window: behind a root port QEMU's virtio devices have the modern interface alone.
        self.windows = Windows((start, start + _WINDOW), (0, 0), (0, 0))
        self._start = start
        self.set_up()

    def set_up(self) -> None:
        """Program the bridge: at the start, and after a reset of the machine."""
        config, start, number = self._config, self._start, self.number
        config.write32(_BUS_NUMBERS, number << 16 | number << 8)
        config.write16(_IO_WINDOW, 0x00F0)
        config.write32(_MEMORY_WINDOW, (start + _WINDOW - _MIB) >> 16 << 16 | start >> 16)
        config.write32(_PREFETCH_WINDOW, _NOTHING)
        config.write16(spec.CFG_COMMAND, spec.Command.IO | spec.Command.MEMORY | spec.Command.MASTER)

    def config(self, devfn: int) -> Registers:
        """Return the configuration space of a function behind the port."""
        return self._host.config(devfn, self.number)

    def line(self, devfn: int, pin: int) -> int | None:
        """Return the interrupt controller's input for a pin: bridges rotate pins by the slot (Bridge 1.2, 9.1)."""
        return self._host.line(self._devfn, (pin - 1 + (devfn >> 3)) % 4 + 1) if 1 <= pin <= 4 else None

    def ports(self, port: int, length: int) -> Registers:
        """Return a window of I/O ports."""
        return self._host.ports(port, length)

    def power(self, on: bool) -> None:
        """Turn the slot on, with its indicator, or off, which removes the device in it (6.7.1.8)."""
        self._config.write16(self._slot, _INDICATOR_ON if on else _POWER_OFF | _INDICATOR_OFF)
