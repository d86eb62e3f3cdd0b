"""What a traced register is called, and what its value means: for people who read ``-v`` without the standard.

Each class knows one structure. Selectors are remembered, so that a queue's register is told with its queue and a
feature word with its bits. All of this is made only where a trace was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import ClassVar, Final

from uvirtio.memory.trace import Naming
from uvirtio.spec import balloon, blk, ids, input, mem, mmio, pci, status
from uvirtio.spec import features as f
from uvirtio.spec.layout import Layout

_CONFIGS: Final[dict[str, Layout]] = {
    "balloon": balloon.CONFIG,
    "blk": blk.CONFIG,
    "input": input.CONFIG,
    "mem": mem.CONFIG,
}
"""The device configuration by type, where the standard's table is in ``spec``."""

_NOTHING: Final = ("", "")


def flags(kind: type[IntFlag], value: int) -> str:
    """The names of the bits of a register, as ``MEMORY|MASTER``; unnamed bits as a number, "none" for 0."""
    known = [bit for bit in kind if value & bit]
    rest = value & ~sum(known)
    return "|".join([*(bit.name or "" for bit in known), *([f"{rest:#x}"] if rest else [])]) or "none"


def feature_bits(type_name: str, word: int) -> str:
    """The names of the bits of a feature word, or a part of one at its place."""
    return ", ".join(entry.name for entry in f.names(type_name, word)) or "none"


def field_name(layout: Layout, place: int) -> str:
    """The name of the field at a byte; with the byte in it where a field is accessed piece by piece."""
    for field in layout:
        if field.offset <= place < field.end:
            inside = place - field.offset
            if field.width == 8:
                return f"{field.name}.{'high' if inside >= 4 else 'low'}"
            return f"{field.name}[{inside}]" if inside else field.name
    return ""


class ConfigNames:
    """The device configuration of one type (chapter 5), from byte ``base`` of its window."""

    def __init__(self, type_name: str, base: int = 0) -> None:
        self._layout = _CONFIGS.get(type_name, ())
        self._base = base

    def told(self, place: int, width: int, value: int, written: bool) -> tuple[str, str]:
        """Name and meaning of one access; see ``Naming``."""
        return field_name(self._layout, place - self._base), ""


class IsrNames:
    """The ISR status (4.1.4.5)."""

    def told(self, place: int, width: int, value: int, written: bool) -> tuple[str, str]:
        """Name and meaning of one access; see ``Naming``."""
        return "isr_status", flags(pci.Isr, value)


class _Selecting:
    """Registers whose meaning depends on selectors that were written before."""

    layout: Layout
    vectors = frozenset({"config_msix_vector", "queue_msix_vector"})
    of_features: ClassVar[dict[str, str]]
    """The registers of feature words, each with its selector."""
    of_status: str
    of_queue: str
    """The selector of queues; what begins with ``queue`` after it is the queue's."""

    def __init__(self, type_name: str) -> None:
        self._type = type_name
        self._selected: dict[str, int] = {}

    def told(self, place: int, width: int, value: int, written: bool) -> tuple[str, str]:
        """Name and meaning of one access; see ``Naming``."""
        name = field_name(self.layout, place)
        if written and (name in self.of_features.values() or name == self.of_queue):
            self._selected[name] = value
        return name, self._meaning(name, value)

    def _meaning(self, name: str, value: int) -> str:
        if name == self.of_status:
            return "|".join(status.names(value)) or "reset"
        if name in self.of_features:
            word = self._selected.get(self.of_features[name], 0)
            if word >= f.MAX_BITS // 32:
                return f"word {word}"
            return f"word {word}: {feature_bits(self._type, value << 32 * word)}"
        about = []
        if name in self.vectors and value == pci.NO_VECTOR:
            about.append("NO_VECTOR")
        if name.lower().startswith("queue") and name != self.of_queue and self.of_queue in self._selected:
            about.append(f"queue {self._selected[self.of_queue]}")
        return ", ".join(about)


class CommonNames(_Selecting):
    """The common configuration (4.1.4.3)."""

    layout = pci.COMMON_CFG
    of_features: ClassVar[dict[str, str]] = {
        "device_feature": "device_feature_select",
        "driver_feature": "driver_feature_select",
    }
    of_status = "device_status"
    of_queue = "queue_select"


class LegacyNames(_Selecting):
    """The header of the legacy interface (4.1.4.10), and the device configuration behind it."""

    layout = pci.LEGACY_HEADER
    of_features: ClassVar[dict[str, str]] = {"device_features": "", "driver_features": ""}
    of_status = "device_status"
    of_queue = "queue_select"

    def __init__(self, type_name: str, msix_on: Callable[[], bool]) -> None:
        super().__init__(type_name)
        self._configs = {end: ConfigNames(type_name, end) for end in map(pci.legacy_config_offset, (False, True))}
        self._msix_on = msix_on

    def told(self, place: int, width: int, value: int, written: bool) -> tuple[str, str]:
        """Name and meaning of one access; see ``Naming``."""
        begin = pci.legacy_config_offset(self._msix_on())  # the configuration begins behind the vectors, if any
        if place >= begin:
            return self._configs[begin].told(place, width, value, written)
        name, meaning = super().told(place, width, value, written)
        return name, flags(pci.Isr, value) if name == "isr_status" else meaning


class MmioNames(_Selecting):
    """The registers of a virtio-mmio window (4.2.2, 4.2.4), and the device configuration behind them."""

    layout = mmio.layout()
    of_features: ClassVar[dict[str, str]] = {
        "DeviceFeatures": "DeviceFeaturesSel",
        "DriverFeatures": "DriverFeaturesSel",
        "HostFeatures": "HostFeaturesSel",
        "GuestFeatures": "GuestFeaturesSel",
    }
    of_status = "Status"
    of_queue = "QueueSel"

    def __init__(self) -> None:
        super().__init__("")
        self._config = ConfigNames("")

    def told(self, place: int, width: int, value: int, written: bool) -> tuple[str, str]:
        """Name and meaning of one access; see ``Naming``."""
        if place >= mmio.CONFIG:
            return self._config.told(place, width, value, written)
        # What the window says of itself decides what the rest means.
        if place == mmio.VERSION_REG:
            self.layout = mmio.layout(value == mmio.VERSION_LEGACY)
        elif place == mmio.DEVICE_ID:
            self._type = ids.type_name(value)
            self._config = ConfigNames(self._type, mmio.CONFIG)
        return super().told(place, width, value, written)

    def _meaning(self, name: str, value: int) -> str:
        if name == "MagicValue":
            return '"virt"' if value == mmio.MAGIC else "not virtio"
        if name == "DeviceID":
            return ids.type_name(value) if value else "no device"
        if name in ("InterruptStatus", "InterruptACK"):
            return flags(mmio.Interrupt, value)
        return super()._meaning(name, value)


class PciConfigNames:
    """PCI configuration space: the header, and the capabilities that were walked (PCI 3.0, 6.1, 6.7)."""

    def __init__(self) -> None:
        self._next = 0
        self._headers: dict[int, int] = {}
        """Capability IDs by the place of the capability."""
        self._types: dict[int, int] = {}
        """The cfg_type of vendor capabilities, by their place."""

    def told(self, place: int, width: int, value: int, written: bool) -> tuple[str, str]:
        """Name and meaning of one access; see ``Naming``."""
        if place < pci.STANDARD_CONFIG_SIZE:
            name = field_name(pci.CFG_HEADER, place)
            if name == "capabilities_pointer" and not written:
                self._next = value & pci.CAP_NEXT_MASK
            return name, flags(pci.Command, value) if name == "command" else ""
        if place == self._next and not written:
            self._headers[place] = value & 0xFF
        base = max((at for at in self._headers if at <= place), default=None)
        if base is None:
            return _NOTHING
        return self._capability(base, place - base, value, written)

    def _capability(self, base: int, inside: int, value: int, written: bool) -> tuple[str, str]:
        ident = self._headers[base]
        known = ident in pci.CapId.__members__.values()
        if inside == 0:
            return "cap_vndr", pci.CapId(ident).name if known else ""
        if inside == pci.CAP_NEXT:
            if not written:
                self._next = value & pci.CAP_NEXT_MASK
            return "cap_next", ""
        if ident == pci.CapId.VENDOR:
            if inside == pci.CAP_CFG_TYPE:
                self._types[base] = value
                return "cfg_type", pci.cfg_type_name(value)
            whose = pci.cfg_type_name(self._types[base]) + "." if base in self._types else ""
            return whose + (field_name(pci.CAP, inside) or _BEHIND.get((self._types.get(base, 0), inside), "")), ""
        if ident == pci.CapId.MSIX and inside == pci.MSIX_CONTROL:
            states = [
                *(["ENABLE"] if value & pci.MSIX_CONTROL_ENABLE else []),
                *(["MASK_ALL"] if value & pci.MSIX_CONTROL_MASK_ALL else []),
            ]
            return "msix.control", "|".join(states) or "off"
        return (pci.CapId(ident).name.lower() if known else ""), ""


_BEHIND: Final[dict[tuple[int, int], str]] = {
    (pci.CfgType.NOTIFY, pci.NOTIFY_CAP_MULTIPLIER): "notify_off_multiplier",
    (pci.CfgType.PCI_CFG, pci.PCI_CFG_CAP_DATA): "pci_cfg_data",
    (pci.CfgType.SHARED_MEMORY, pci.CAP64_OFFSET_HIGH): "offset_hi",
    (pci.CfgType.SHARED_MEMORY, pci.CAP64_LENGTH_HIGH): "length_hi",
}
"""Fields behind struct virtio_pci_cap, by the capability's type and the byte in it."""


def of_pci(structure: str, type_name: str, msix_on: Callable[[], bool]) -> Naming | None:
    """What the registers of a structure in a BAR are called.

    Args:
        structure: ``common``, ``isr``, ``config`` (that of the device), or ``legacy``.
        type_name: The device type, as ``ids.type_name`` returns it.
        msix_on: Whether MSI-X is on now, which moves the configuration of the legacy interface.

    Returns:
        None: there is nothing known of this structure.
    """
    if structure == "common":
        return CommonNames(type_name)
    if structure == "isr":
        return IsrNames()
    if structure == "config":
        return ConfigNames(type_name)
    return LegacyNames(type_name, msix_on) if structure == "legacy" else None
