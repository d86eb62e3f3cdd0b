"""What is different between two devices, or two moments of one: only what both sides know is compared.

What one side alone knows is listed apart: that a dump does not have a section says nothing about the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from uvirtio.evidence.mask import MASKED
from uvirtio.evidence.record import Record
from uvirtio.host.digits import decimal
from uvirtio.spec import pci
from uvirtio.spec import status as st

PLACES: Final = ("address", "virtio_name", "iommu_group", "numa_node", "node", "parent", "window", "hardware")
"""Where a device is: shown, and no difference of the device."""

_MOMENTARY: Final = frozenset({"ages"})
"""Members of a queue that are another at each look."""

_NOT_COMPARED: Final = frozenset({*PLACES, "absent", "notes", "opened", "findings", "group_members"})

_REGISTERS: Final = {
    pci.CFG_VENDOR_ID: ("vendor_id", 2),
    pci.CFG_DEVICE_ID: ("device_id", 2),
    pci.CFG_COMMAND: ("command", 2),
    pci.CFG_STATUS: ("status", 2),
    pci.CFG_REVISION_ID: ("revision", 1),
    pci.CFG_CLASS_CODE: ("class", 3),
    0x0C: ("cache_line_size", 1),
    0x0D: ("latency", 1),
    pci.CFG_HEADER_TYPE: ("header_type", 1),
    **{pci.CFG_BAR0 + 4 * index: (f"bar{index}", 4) for index in range(pci.BARS)},
    pci.CFG_SUBSYSTEM_VENDOR_ID: ("subsystem_vendor", 2),
    pci.CFG_SUBSYSTEM_ID: ("subsystem", 2),
    0x30: ("rom", 4),
    pci.CFG_CAPABILITIES_POINTER: ("capabilities_pointer", 1),
    pci.CFG_INTERRUPT_LINE: ("interrupt_line", 1),
    pci.CFG_INTERRUPT_PIN: ("interrupt_pin", 1),
}
"""The registers of the header (PCI 3.0, 6.1): name and width."""

_COMMAND: Final = {
    pci.Command.IO: "I/O decoding",
    pci.Command.MEMORY: "memory decoding",
    pci.Command.MASTER: "bus master",
    pci.Command.INTX_DISABLE: "INTx disable",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One value that is different."""

    section: str
    """The section of the record: ``features``, ``config_space`` ..."""
    what: str
    """The value in it, by name."""
    first: Any
    second: Any
    about: str = ""
    """What the difference is, in words: the bits that came and went."""

    def as_dict(self) -> dict[str, Any]:
        """The change, for JSON."""
        return {
            "section": self.section,
            "what": self.what,
            "first": self.first,
            "second": self.second,
            "about": self.about,
        }


@dataclass(slots=True)
class Difference:
    """The comparison of two devices."""

    changes: list[Change] = field(default_factory=list)
    only_first: list[str] = field(default_factory=list)
    """Sections that the second does not have."""
    only_second: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    """Sections that both have."""

    @property
    def same(self) -> bool:
        """Whether nothing is different in what both have."""
        return not self.changes


def compare(first: Record, second: Record) -> Difference:
    """Compare two devices.

    Args:
        first: One record.
        second: The other.
    """
    made = Difference()
    for section in dict.fromkeys((*first, *second)):
        if section in _NOT_COMPARED:
            continue
        one, other = first.get(section), second.get(section)
        if one is None and other is None:
            continue
        if one is None:
            made.only_second.append(section)
        elif other is None:
            made.only_first.append(section)
        else:
            made.compared.append(section)
            made.changes.extend(_SPECIAL.get(section, _values)(section, one, other))
    return made


def of_environments(first: dict[str, Any] | None, second: dict[str, Any] | None) -> list[Change]:
    """What is different about the machines; empty where one side does not say."""
    if first is None or second is None:
        return []
    return list(_values("environment", first, second))


# --- sections ---------------------------------------------------------------------------------------------------


def _values(section: str, one: Any, other: Any, path: str = "") -> Iterator[Change]:
    """Every leaf that both have and that is different, by its path."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys((*one, *other)):
            if key in one and key in other and key not in _MOMENTARY:
                yield from _values(section, one[key], other[key], f"{path}.{key}" if path else key)
        return
    if isinstance(one, list) and isinstance(other, list) and _keyed((*one, *other)):
        yield from _lists(section, one, other, path)
        return
    if one != other and one is not None and other is not None:
        yield Change(section, path or section, one, other)


def _keyed(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(one, dict) for one in values)


_KEYS: Final = ("index", "config_offset", "bar", "offset", "irq")


def _lists(section: str, one: list[Any], other: list[Any], path: str) -> Iterator[Change]:
    """Lists of objects by what identifies them; one that only one side has is a difference."""
    key = next((name for name in _KEYS if all(name in each for each in (*one, *other))), None)
    if key is None:
        if one != other:
            yield Change(section, path or section, one, other)
        return
    left, right = ({str(each[key]): each for each in side} for side in (one, other))
    for name in dict.fromkeys((*left, *right)):
        number = decimal(name) if key in ("config_offset", "offset") else None
        shown = name if number is None else f"0x{number:02x}"
        label = f"{path}[{shown}]" if path else f"[{shown}]"
        if name in left and name in right:
            yield from _values(section, left[name], right[name], label)
        else:
            yield Change(section, label, _brief(left.get(name)), _brief(right.get(name)), "only on one side")


def _brief(one: dict[str, Any] | None) -> str | None:
    if one is None:
        return None
    return ", ".join(
        f"{key} {value}" for key, value in one.items() if isinstance(value, (int, str)) and value != ""
    )


def _features(section: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[Change]:
    for word in ("offered", "negotiated"):
        left, right = one.get(word), other.get(word)
        if left is None or right is None or int(left["word"], 16) == int(right["word"], 16):
            continue
        first, second = (
            {*side.get("names", ()), *(f"bit {bit}" for bit in side.get("unknown", ()))} for side in (left, right)
        )
        about = [
            *(f"-{name}" for name in sorted(first - second)),
            *(f"+{name}" for name in sorted(second - first)),
        ]
        yield Change(section, word, left["word"], right["word"], " ".join(about))


def _status(section: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[Change]:
    if one["value"] != other["value"]:
        about = f"{st.describe(one['value'])} -> {st.describe(other['value'])}"
        yield Change(section, "device_status", one["value"], other["value"], about)


def _config_space(section: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[Change]:
    left, right = bytes.fromhex(one["hex"]), bytes.fromhex(other["hex"])
    hidden = {
        at
        for side in (one, other)
        for span in side.get("hidden", ())
        for at in range(span["offset"], min(span["offset"] + span["length"], len(side["hex"]) // 2))
    }
    shared = min(len(left), len(right))
    at = 0
    while at < shared:
        name, width = _REGISTERS.get(at, (f"{at:#04x}", 1)) if at < pci.STANDARD_CONFIG_SIZE else (f"{at:#04x}", 4)
        span = [place for place in range(at, min(at + width, shared)) if place not in hidden]
        if any(left[place] != right[place] for place in span):
            first = int.from_bytes(left[at : at + width], "little")
            second = int.from_bytes(right[at : at + width], "little")
            yield Change(
                section,
                name,
                f"0x{first:0{2 * width}x}",
                f"0x{second:0{2 * width}x}",
                _command(first, second) if at == pci.CFG_COMMAND else "",
            )
        at += width


def _command(first: int, second: int) -> str:
    return ", ".join(
        f"{name} {'on' if first & bit else 'off'} -> {'on' if second & bit else 'off'}"
        for bit, name in _COMMAND.items()
        if (first ^ second) & bit
    )


def _device_config(section: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[Change]:
    """By field; masked ones are not compared. Bytes only where no field is known."""
    left, right = one["fields"] or {}, other["fields"] or {}
    for name in dict.fromkeys((*left, *right)):
        if (
            name in left
            and name in right
            and MASKED not in (left[name], right[name])
            and left[name] != right[name]
        ):
            yield Change(section, name, left[name], right[name])
    if not left and not right and one["hex"] != other["hex"]:
        yield Change(section, "bytes", one["hex"], other["hex"])


def _class(section: str, one: str, other: str) -> Iterator[Change]:
    """``lspci`` shows class and subclass, configuration space the programming interface, too."""
    shared = min(len(one), len(other))
    if one[:shared] != other[:shared]:
        yield Change(section, section, one, other)


def _pci_capabilities(section: str, one: list[Any], other: list[Any]) -> Iterator[Change]:
    """By place and id; the names are those of different programs."""

    def known(side: list[Any]) -> list[Any]:
        return [{"offset": each["offset"], "id": each["id"]} for each in side]

    yield from _lists(section, known(one), known(other), "")


_PLACE_OF_STRUCTURE: Final = ("type", "bar", "offset", "length", "id", "notify_off_multiplier", "vendor_id")


def _capabilities(section: str, one: list[Any], other: list[Any]) -> Iterator[Change]:
    """Where the structures are; the verdict depends on how much a dump tells, lspci does not name all types."""
    unnamed = {
        each["config_offset"]
        for each in (*one, *other)
        if each["cfg_type"] is None and each["verdict"] == "ignored"
    }

    def known(side: list[Any]) -> list[Any]:
        return [
            {"config_offset": each["config_offset"]} | {name: each.get(name) for name in _PLACE_OF_STRUCTURE}
            for each in side
            if each["config_offset"] not in unnamed
        ]

    yield from _lists(section, known(one), known(other), "")


def _bars(section: str, one: list[Any], other: list[Any]) -> Iterator[Change]:
    """By number; where a dump has addresses without numbers (``lspci -v``), nothing can be said."""
    if all(each["bar"] is not None for each in (*one, *other)):
        yield from _lists(section, one, other, "")


def _interrupts(section: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[Change]:
    """The pin, the line and the mode, and how many vectors; numbers and counts are those of the machine."""
    for name in ("pin", "line", "mode"):
        left, right = one.get(name), other.get(name)
        if left is not None and right is not None and left != right:
            yield Change(section, name, left, right)
    left, right = one.get("vectors"), other.get("vectors")
    if left is not None and right is not None and len(left) != len(right):
        yield Change(section, "vectors", len(left), len(right))


_SPECIAL: Final[dict[str, Callable[[str, Any, Any], Iterator[Change]]]] = {
    "pci_class": _class,
    "pci_capabilities": _pci_capabilities,
    "capabilities": _capabilities,
    "bars": _bars,
    "interrupts": _interrupts,
    "features": _features,
    "status": _status,
    "config_space": _config_space,
    "device_config": _device_config,
}
