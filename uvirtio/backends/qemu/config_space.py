"""The configuration space of a function of a QEMU machine, read in as few round trips as there can be."""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.backends.capability_list import capabilities
from uvirtio.backends.qemu.qtest import PostedRegisters, Qtest
from uvirtio.memory.access import WidthRegisters, exchange, read_field, write_field
from uvirtio.spec import pci as spec
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from uvirtio.interfaces.memory import Registers, Step
    from uvirtio.typed import Protocol

    class Readable(Registers, Protocol):
        """Configuration space whose first bytes can be read at once."""

        def read_all(self, length: int) -> bytes:
            """Read the first ``length`` bytes."""
            ...


_CONFIG_ADDRESS: Final = 0xCF8
_CONFIG_DATA: Final = 0xCFC
_CONFIG_ENABLE: Final = 1 << 31

_FIXED_HEADER: Final = (
    (spec.CFG_DEVICE_ID, 2),
    (spec.CFG_SUBSYSTEM_VENDOR_ID, 2),
    (spec.CFG_SUBSYSTEM_ID, 2),
    (spec.CFG_CAPABILITIES_POINTER, 1),
    (spec.CFG_INTERRUPT_PIN, 1),
)
"""The fields of the header that are read once. What shows that a function is still there is read each time."""


class ConfigPorts(WidthRegisters):
    """Configuration space through the ports 0xCF8 and 0xCFC: an index and a data register."""

    def __init__(self, qtest: Qtest, devfn: int) -> None:
        """Set the function, ``devfn`` on the root bus."""
        super().__init__(0, spec.CONFIG_SIZE)
        self._qtest = qtest
        self._select = _CONFIG_ENABLE | devfn << 8

    def _read(self, place: int, width: int) -> int:
        return self.exchange([(place, width, None)])[0]

    def _write(self, place: int, width: int, value: int) -> None:
        self.exchange([(place, width, value)])

    def exchange(self, steps: Sequence[Step]) -> list[int]:
        """Make several accesses in one round trip; see ``Exchanges``."""
        accesses: list[Step] = []
        for at, width, value in steps:
            place = self._place(at, width)
            accesses.append((_CONFIG_ADDRESS, 4, self._select | place & 0xFC))
            accesses.append((_CONFIG_DATA + (place & 3), width, value))
        return self._qtest.exchange(accesses, ports=True)

    def read_all(self, length: int) -> bytes:
        """Read the first ``length`` bytes, a multiple of 4."""
        words = self.exchange([(at, 4, None) for at in range(0, length, 4)])
        return b"".join(word.to_bytes(4, "little") for word in words)


class ConfigSpace(WidthRegisters):
    """Configuration space whose read-only fields are read once, when this object is made.

    They are the identity, the interrupt pin, the links of the capability list, and of virtio's capabilities where
    each structure is (4.1.4). Everything else is accessed each time, and so is, from then on, what was written.
    """

    def __init__(self, inner: Readable) -> None:
        """Read them.

        Args:
            inner: The function's configuration space. No driver may have used the window of its PCI_CFG
                capability yet: reading it there would make the device access a BAR (4.1.4.9).
        """
        self._inner = inner
        self._image = inner.read_all(spec.CONFIG_SIZE)
        self._fixed = bytearray(spec.CONFIG_SIZE)
        for at, length in _FIXED_HEADER:
            self._fix(at, length)
        express = False
        for at, kind in capabilities(self._read_once):
            express = express or kind == spec.CapId.EXPRESS
            self._fix(at, _fixed_part(self._image, at, kind))
        super().__init__(0, spec.EXPRESS_CONFIG_SIZE if express else spec.CONFIG_SIZE)

    def _read_once(self, at: int, width: int) -> int:
        return int.from_bytes(self._image[at : at + width], "little")

    def _fix(self, at: int, length: int) -> None:
        length = min(length, spec.CONFIG_SIZE - at)
        self._fixed[at : at + length] = b"\1" * length

    def _read(self, place: int, width: int) -> int:
        if self._fixed[place : place + width] == b"\1" * width:
            return self._read_once(place, width)
        return read_field(self._inner, place, width)

    def _write(self, place: int, width: int, value: int) -> None:
        self._written(place, width)
        write_field(self._inner, place, width, value)

    def _written(self, place: int, width: int) -> None:
        if place < spec.CONFIG_SIZE:
            self._fixed[place : place + width] = bytes(width)

    def exchange(self, steps: Sequence[Step]) -> list[int]:
        """Make several accesses in one round trip; see ``Exchanges``."""
        for at, width, value in steps:
            place = self._place(at, width)
            if value is not None:
                self._written(place, width)
        return exchange(self._inner, steps)


def _fixed_part(image: bytes, at: int, kind: int) -> int:
    """Length of the part of a capability, from its start, that no driver and no device changes."""
    if kind != spec.CapId.VENDOR:
        return 2  # id and link
    cfg_type = image[at + spec.CAP_CFG_TYPE]
    # The BAR, offset and length of PCI_CFG are the driver's alone to write (4.1.4.9); its data is not among these.
    return spec.CAP_SIZE if cfg_type == spec.CfgType.PCI_CFG else spec.CAP_SIZES.get(cfg_type, spec.CAP_BAR)


def config_space(qtest: Qtest, ecam: int | None, devfn: int, bus: int = 0) -> ConfigSpace:
    """Return the configuration space of a function: 4096 bytes if it is PCI Express, else 256.

    Args:
        qtest: The qtest connection.
        ecam: Where configuration space is mapped (PCI Express); None: through the ports 0xCF8 and 0xCFC.
        devfn: The function's place on its bus, slot * 8 + function.
        bus: The number of the bus; 0 is the root bus, and the only one that the ports reach.
    """
    if ecam is None:
        return ConfigSpace(ConfigPorts(qtest, devfn))
    return ConfigSpace(PostedRegisters(qtest, ecam + (bus << 20 | devfn << 12), spec.EXPRESS_CONFIG_SIZE))
