"""Reads a recording of ``umockdev-record``: devices of sysfs as text, one paragraph each.

``P:`` is the path, ``E:`` a property of udev, ``A:`` an attribute as text, ``H:`` one in hexadecimal, ``L:`` a
link, ``N:`` the node, ``S:`` another name of it (umockdev's README).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from uvirtio.evidence import record
from uvirtio.evidence.record import Bar, Record
from uvirtio.evidence.text import SHOWN, Line, bad
from uvirtio.host import addresses, sysfs
from uvirtio.spec import pci

_LINE: Final = re.compile(r"(?P<key>[A-Z]): (?P<rest>.*)")
_KEYS: Final = "PNSEAHL"
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
_NOT_RECORDED: Final = "not in this umockdev recording"


@dataclass(slots=True)
class _Device:
    """One paragraph."""

    path: str
    line: Line
    properties: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    places: dict[str, Line] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name on its bus."""
        return self.path.rpartition("/")[2]

    def number(self, name: str) -> int | None:
        """A numeric attribute; None: it was not recorded.

        Raises:
            BadDump: It is no number.
        """
        text = self.attributes.get(name)
        if text is None:
            return None
        try:
            return int(text.strip(), 0)
        except ValueError:
            raise self.places[name].bad(f"{name} is not a number", seen=text[:40], expected="0x1af4") from None


def looks_like(text: str) -> bool:
    """Whether a text begins as a recording does; comments may stand before it."""
    for raw in text.split("\n"):
        if raw.strip() and not raw.startswith(("#", "@")):
            return raw.startswith("P: /devices/")
    return False


def read(file: str, text: str) -> tuple[list[Record], int]:
    """Read the virtio devices of a recording.

    Args:
        file: Its name, for errors.
        text: The recording.

    Returns:
        The records, and how many PCI functions in it are not virtio.

    Raises:
        BadDump: A line is damaged.
    """
    devices = list(_paragraphs(file, text))
    made, others = [], 0
    for one in devices:
        child = next((it for it in devices if _is_child(it, one)), None)
        if addresses.is_pci(one.name) and ("vendor" in one.attributes or "PCI_ID" in one.properties):
            found = _pci(one, child)
            if record.is_virtio(found):
                made.append(found)
            else:
                others += 1
        elif addresses.is_mmio_platform_name(one.name):
            made.append(_platform(one, child))
    return made, others


def _is_child(one: _Device, parent: _Device) -> bool:
    above, _, name = one.path.rpartition("/")
    return above == parent.path and addresses.is_virtio_name(name)


def _paragraphs(file: str, text: str) -> Iterator[_Device]:
    current: _Device | None = None
    for number, raw in enumerate(text.split("\n"), 1):
        raw = raw.rstrip("\r")
        if not raw.strip() or raw.startswith(("#", "@")):
            continue
        line = Line(file, number, 1, raw)
        match = _LINE.fullmatch(raw)
        if match is None or match["key"] not in _KEYS:
            raise line.bad("not a line of a recording", expected="P: N: S: E: A: H: or L:, and a space")
        if match["key"] == "P":
            if current is not None:
                yield current
            if not match["rest"].startswith("/devices/"):
                raise line.bad("not the path of a device", 3, expected="/devices/...")
            current = _Device(match["rest"], line)
        elif current is None:
            raise line.bad("a line before the first device", expected="P: /devices/...")
        else:
            _take(current, match["key"], match["rest"], line)
    if current is not None:
        yield current


def _take(one: _Device, key: str, rest: str, line: Line) -> None:
    if key in "NS":
        return
    name, equals, value = rest.partition("=")
    if not equals or not name:
        raise line.bad("no name and value", 3, expected=f"{key}: NAME=VALUE")
    one.places[name] = line
    if key == "E":
        one.properties[name] = value
    elif key == "L":
        one.links[name] = value
    elif key == "A":
        one.attributes[name] = _unescaped(line, value, 4 + len(name))
    else:
        try:
            one.raw[name] = bytes.fromhex(value)
        except ValueError:
            wrong = re.search(r"[^0-9a-fA-F]", value)
            at = len(value) if wrong is None else wrong.start()
            raise line.bad(
                "not bytes in hexadecimal", 4 + len(name) + at, expected="two digits for each byte"
            ) from None


def _unescaped(line: Line, value: str, start: int) -> str:
    if value.endswith("\\") and (len(value) - len(value.rstrip("\\"))) % 2:
        raise line.bad("a backslash at the end", start + len(value) - 1, expected=r"\n, \t or \\")
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), value)


# --- records ----------------------------------------------------------------------------------------------------


def _pci(one: _Device, child: _Device | None) -> Record:
    made = record.new("pci", addresses.canonical(one.name))
    reasons: dict[str, str] = {}
    bars = _bars(one)
    data = one.raw.get("config")
    if data is not None:
        if len(data) < pci.STANDARD_CONFIG_SIZE or len(data) > pci.EXPRESS_CONFIG_SIZE:
            raise one.places["config"].bad(
                "not configuration space", seen=f"{len(data)} bytes", expected="64, 256 or 4096 bytes"
            )
        reasons = record.add_config_space(made, data, bars)
    else:
        _ids(made, one)
        made["bars"] = None if bars is None else [bar.as_dict() for bar in bars]
    _common(made, one, child)
    return record.finish(made, _NOT_RECORDED, reasons)


def _ids(made: Record, one: _Device) -> None:
    vendor, device, subsystem = (one.number(name) for name in ("vendor", "device", "subsystem_device"))
    if vendor is None or device is None:
        match = re.fullmatch(r"([0-9A-Fa-f]{4}):([0-9A-Fa-f]{4})", one.properties.get("PCI_ID", ""))
        if match is None:
            raise one.line.bad("a PCI function without ids", expected="A: vendor, A: device or E: PCI_ID")
        vendor, device = int(match[1], 16), int(match[2], 16)
    for name, value in (("vendor", vendor), ("device", device), ("subsystem_device", subsystem or 0)):
        if not 0 <= value <= 0xFFFF:
            raise one.places[name].bad(f"{name} is not an id", seen=value, expected="16 bits")
    record.identify(made, vendor, device, subsystem)
    owner = one.number("subsystem_vendor")
    if owner is not None and subsystem is not None and 0 <= owner <= 0xFFFF:
        made["subsystem_id"] = f"{owner:04x}:{subsystem:04x}"
    made["revision"] = one.number("revision")
    if (kind := one.number("class")) is not None and 0 <= kind <= 0xFFFFFF:
        made["pci_class"] = f"{kind:06x}"


def _platform(one: _Device, child: _Device | None) -> Record:
    made = record.new("platform", one.name)
    made["interface"] = "mmio"
    base = addresses.mmio_base(one.name)
    if base is not None:
        made["window"] = {"base": f"{base:#x}", "length": None}
    if child is not None:
        record.set_type(made, child.number("device"))
    _common(made, one, child)
    return record.finish(made, _NOT_RECORDED)


def _common(made: Record, one: _Device, child: _Device | None) -> None:
    """What both kinds have: drivers, group, node, and what the virtio device below shows."""
    made["driver"] = _last(one.links.get("driver")) or one.properties.get("DRIVER")
    group = _last(one.links.get("iommu_group"))
    made["iommu_group"] = int(group) if group is not None and re.fullmatch(r"[0-9]{1,9}", group) else None
    made["numa_node"] = one.number("numa_node")
    override = one.attributes.get("driver_override", "").strip()
    made["driver_override"] = None if override in ("", "(null)") else override
    if child is None:
        return
    made["virtio_name"] = child.name
    made["kernel_driver"] = _last(child.links.get("driver")) or child.properties.get("DRIVER")
    value = child.number("status")
    if value is not None:
        if not 0 <= value <= 0xFF:
            raise child.places["status"].bad("not a device status", seen=value, expected="8 bits")
        made["status"] = record.status(value)
    if (bits := child.attributes.get("features")) is not None:
        bits = bits.strip()
        if not re.fullmatch("[01]{1,128}", bits):
            raise child.places["features"].bad(
                "not a feature word", seen=bits[:40], expected="zeros and ones, bit 0 first"
            )
        made["features"] = record.words(made["type"], None, int(bits[::-1], 2))


def _last(target: str | None) -> str | None:
    return None if target is None else target.rstrip("/").rpartition("/")[2] or None


def _bars(one: _Device) -> list[Bar] | None:
    text = one.attributes.get("resource")
    if text is None:
        return None
    made = []
    for index, resource in enumerate(sysfs.parse_resources(text.splitlines())[: pci.MAX_BAR + 1]):
        if resource is None:
            raise bad(
                one.line.file,
                one.places["resource"].number,
                1,
                f"line {index + 1} of resource is damaged",
                seen=text.splitlines()[index][:SHOWN],
                expected="first address, last address, flags",
            )
        if resource.used:
            made.append(record.of_resource(index, resource))
    return made
