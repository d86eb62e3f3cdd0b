"""The PCI configuration access capability (4.1.4.9): registers of a BAR through configuration space alone.

For a function whose BARs cannot be mapped, and to read a register by a second way. Slow: an access takes three
additional writes. Nothing else in configuration space is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.errors import CapabilityError, Misuse
from uvirtio.memory.access import WidthRegisters, read_field, write_field
from uvirtio.spec import pci
from uvirtio.transports.pci_caps import PCI_CFG, UNKNOWN, VENDOR, VirtioCapability
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Registers


class CfgWindow:
    """The configuration access window of one function."""

    def __init__(self, config: Registers, capabilities: Sequence[VirtioCapability]) -> None:
        """Find the capability.

        Args:
            config: Configuration space; stays the caller's.
            capabilities: What ``walk_capabilities`` returned.

        Raises:
            CapabilityError: The function has no such capability.
        """
        found = [cap for cap in capabilities if cap.type == PCI_CFG and cap.verdict == "ok"]
        if not found:
            raise CapabilityError(
                "the function has no usable pci_cfg capability",
                seen=[cap.type for cap in capabilities],
                expected="one of cfg_type 5 (4.1.4.9)",
            )
        self._config = config
        self._at = found[0].config_offset
        self._described = [
            cap
            for cap in capabilities
            if cap.verdict == "ok" and cap.type not in (PCI_CFG, VENDOR, UNKNOWN) and cap.usable
        ]

    def registers(self, capability: VirtioCapability) -> CfgRegisters:
        """Return the structure that ``capability`` describes, as registers."""
        return CfgRegisters(self, capability)

    def read(self, bar: int, offset: int, width: int) -> int:
        """Read from a BAR by one access.

        Args:
            bar: Number of the BAR, 0 to 5.
            offset: Place in the BAR, in bytes.
            width: 1, 2 or 4 bytes.

        Raises:
            Misuse: The width is another one, or the place is not aligned to it.
            CapabilityError: The place is in no structure that a capability describes.
        """
        self._aim(bar, offset, width)
        return read_field(self._config, self._at + pci.PCI_CFG_CAP_DATA, width)

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write to a BAR by one access; parameters as for ``read``.

        Raises:
            Misuse: The width is not 1, 2 or 4, or the place is not aligned to it.
            CapabilityError: The place is in no structure that a capability describes.
        """
        self._aim(bar, offset, width)
        write_field(self._config, self._at + pci.PCI_CFG_CAP_DATA, width, value)

    def _aim(self, bar: int, offset: int, width: int) -> None:
        if width not in (1, 2, 4) or offset % width:
            raise Misuse(f"a window of {width} bytes at {offset:#x}: 1, 2 or 4, aligned to itself (4.1.4.9.2)")
        if not any(
            cap.bar == bar and cap.offset <= offset and offset + width <= cap.end for cap in self._described
        ):
            raise CapabilityError(
                f"there is no virtio structure at {offset:#x} of BAR {bar}",
                seen=f"{width} bytes",
                expected="an access within what a capability describes (4.1.4.9.2)",
            )
        self._config.write8(self._at + pci.CAP_BAR, bar)
        self._config.write32(self._at + pci.CAP_LENGTH, width)
        self._config.write32(self._at + pci.CAP_OFFSET, offset)


class CfgRegisters(WidthRegisters):
    """The structure of one capability, accessed through the window. Satisfies ``Registers``."""

    def __init__(self, window: CfgWindow, capability: VirtioCapability) -> None:
        """Set the structure.

        Args:
            window: The window of the function.
            capability: The capability that describes the structure.
        """
        super().__init__(capability.offset, capability.usable)
        self._window = window
        self._bar = capability.bar

    def _read(self, place: int, width: int) -> int:
        return self._window.read(self._bar, place, width)

    def _write(self, place: int, width: int, value: int) -> None:
        self._window.write(self._bar, place, width, value)
