"""Reads what ``lspci`` prints, as people paste it: ``-v`` to ``-vvv``, ``-x`` to ``-xxxx``, ``-n``, ``-nn``.

Several functions may be in one text, between other text, quoted or indented. Lines that are not known are passed
over; a known one that is damaged is an error, since what it would have said would be missing without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from uvirtio.evidence import record
from uvirtio.evidence.record import Bar, Record
from uvirtio.evidence.text import Line, lines
from uvirtio.host.addresses import canonical, is_pci
from uvirtio.interfaces.values import BarInfo
from uvirtio.spec import ids, pci
from uvirtio.transports.pci_caps import VirtioCapability, judge

_HEADER: Final = re.compile(r"(?P<slot>(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])\s+(?P<rest>\S.*: .*)")
_PLAIN_IDS: Final = re.compile(r"(?P<class>[0-9a-f]{4}): (?P<ids>[0-9a-f]{4}:[0-9a-f]{4})\b")  # lspci -n
_CLASS: Final = re.compile(r"[^:]*\[(?P<class>[0-9a-f]{4})\]: ")  # lspci -nn
_IDS: Final = re.compile(r"\[(?P<ids>[0-9a-f]{4}:[0-9a-f]{4})\]")
_REVISION: Final = re.compile(r"\(rev (?P<rev>[0-9a-f]{2})\)")
_HEX_ROW: Final = re.compile(r"(?P<offset>[0-9a-fA-F]{2,4}): ?(?P<rest>.*)")
_BYTE: Final = re.compile(r"[0-9a-fA-F]{2}")
_ROW: Final = 16
_LEAST: Final = pci.STANDARD_CONFIG_SIZE

_REGION: Final = re.compile(
    r"(?:Region (?P<index>\S+): )?(?P<kind>Memory|I/O ports) at (?P<place>\S+)(?P<rest>.*)"
)
_HEX_NUMBER: Final = re.compile(r"[0-9a-f]{1,16}")
_SIZE: Final = re.compile(r"\[size=(?P<size>[^\]]*)\]")
_SIZE_WORD: Final = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[KMGTPE]?)")
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_CAPABILITY: Final = re.compile(r"Capabilities: \[(?P<at>[^\] ]*)(?: v[0-9]+)?\](?P<rest>.*)")
_VIRTIO: Final = re.compile(r"Vendor Specific Information: VirtIO: (?P<name>\S+)")
_STRUCTURE: Final = re.compile(
    r"BAR=(?P<bar>\S+) offset=(?P<offset>\S+) size=(?P<size>\S+)(?: multiplier=(?P<multiplier>\S+))?"
)
_MSIX: Final = re.compile(r"MSI-X: Enable(?P<on>[+-]) Count=(?P<count>[0-9]{1,4})\b")
_TABLE: Final = re.compile(r"Vector table: BAR=(?P<bar>[0-9]+) offset=(?P<offset>[0-9a-f]{1,8})")
_PIN: Final = re.compile(r"Interrupt: pin (?P<pin>[A-D?]) routed to IRQ (?P<irq>[0-9]{1,9})")
_KERNEL: Final = re.compile(r"Kernel driver in use: (?P<driver>\S+)")
_NUMA: Final = re.compile(r"NUMA node: (?P<node>[0-9]{1,9})")
_GROUP: Final = re.compile(r"IOMMU group: (?P<group>.*)")
_SUBSYSTEM: Final = re.compile(r"Subsystem: .*")
_SUBSYSTEM_IDS: Final = re.compile(r"Subsystem: (?P<ids>[0-9a-f]{4}:[0-9a-f]{4})$")  # lspci -n

_SERIAL: Final = re.compile(r"(Device Serial Number).*")  # the number is a MAC address as a rule

_STRUCTURES: Final = {
    "CommonCfg": pci.CfgType.COMMON,
    "Notify": pci.CfgType.NOTIFY,
    "ISR": pci.CfgType.ISR,
    "DeviceCfg": pci.CfgType.DEVICE,
}
"""What pciutils calls the structures; it names no others."""

_NAMES: Final = {
    "Virtio network device": 0x1000,
    "Virtio block device": 0x1001,
    "Virtio memory balloon": 0x1002,
    "Virtio console": 0x1003,
    "Virtio SCSI": 0x1004,
    "Virtio RNG": 0x1005,
    "Virtio filesystem": 0x1009,
    "Virtio 1.0 network device": 0x1041,
    "Virtio 1.0 block device": 0x1042,
    "Virtio 1.0 console": 0x1043,
    "Virtio 1.0 RNG": 0x1044,
    "Virtio 1.0 memory balloon": 0x1045,
    "Virtio 1.0 SCSI": 0x1048,
    "Virtio 1.0 filesystem": 0x1049,
    "Virtio 1.0 GPU": 0x1050,
    "Virtio 1.0 input": 0x1052,
    "Virtio 1.0 socket": 0x1053,
    "Virtio file system": 0x105A,
    "Virtio 1.0 file system": 0x105A,
}
"""The names of virtio functions in pci.ids, each of one device id: what ``lspci`` shows without ``-n``."""

_LSPCI: Final = "not in this lspci text"


@dataclass(slots=True)
class _Function:
    """One function, while its lines are read."""

    address: str
    header: Line
    rest: str
    data: bytearray = field(default_factory=bytearray)
    bars: list[Bar] = field(default_factory=list)
    caps: list[VirtioCapability] = field(default_factory=list)
    pci_caps: list[dict[str, object]] = field(default_factory=list)
    msix: dict[str, object] | None = None
    subsystem: str | None = None
    facts: dict[str, object] = field(default_factory=dict)
    refused: bool = False
    """lspci was not allowed to see the capabilities."""
    vendor: bool = False
    """There is a vendor capability that lspci did not decode: old versions do not know virtio's."""
    verbose: bool = False
    """There are lines of ``-v``."""
    pending: str = ""
    """The virtio capability whose second line comes next, by its name; empty: none."""


def looks_like(file: str, text: str) -> bool:
    """Whether a function's first line as of ``lspci`` is in a text."""
    return any(_is_header(line) for line in lines(file, text))


def _is_header(line: Line) -> bool:
    return _HEADER.fullmatch(line.text) is not None


def read(file: str, text: str) -> tuple[list[Record], int]:
    """Read every function of a text.

    Args:
        file: Its name, for errors.
        text: What was pasted.

    Returns:
        The records of the virtio functions, and how many others there are.

    Raises:
        BadDump: A line is damaged.
    """
    found: list[_Function] = []
    for line in lines(file, text):
        if _is_header(line):
            _close(found)
            found.append(_header(line))
        elif found:
            _take(found[-1], line)
    _close(found)
    records = [_record(one) for one in _merged(found)]
    ours = [one for one in records if record.is_virtio(one)]
    return ours, len(records) - len(ours)


def _header(line: Line) -> _Function:
    match = _HEADER.fullmatch(line.text)
    if match is None or not is_pci(match["slot"]):
        raise line.bad("not a PCI address", expected="BUS:DEVICE.FUNCTION, perhaps with a domain: 0000:03:00.0")
    return _Function(canonical(match["slot"]), line, match["rest"])


def _close(found: list[_Function]) -> None:
    """Check that the bytes of the last function are enough to say anything."""
    if found and 0 < len(found[-1].data) < _LEAST:
        one = found[-1]
        raise one.header.bad(
            f"{one.address} has only {len(one.data)} bytes of configuration space",
            expected="64 (lspci -x), 256 (-xxx) or 4096 (-xxxx)",
        )


def _merged(found: Iterable[_Function]) -> list[_Function]:
    """``lspci -vvv`` and ``lspci -xxx`` of the same function, pasted one after the other, are one."""
    made: list[_Function] = []
    for one in found:
        same = next((old for old in made if old.address == one.address and old.rest == one.rest), None)
        if same is not None and not (same.data and one.data) and not (same.verbose and one.verbose):
            verbose, bare = (same, one) if same.verbose else (one, same)
            verbose.data = verbose.data or bare.data
            made[made.index(same)] = verbose
        else:
            made.append(one)
    return made


# --- one line ---------------------------------------------------------------------------------------------------


def _take(one: _Function, line: Line) -> None:
    if _hex_row(one, line):
        return
    if line.text.startswith("Capabilities: "):
        _capability(one, line)
        return
    if one.pending and line.text.startswith("BAR="):
        _structure(one, line)
        return
    one.pending = ""
    for form, take in _LINES:
        if match := form.match(line.text):
            one.verbose = True
            take(one, line, match)
            return


def _hex_row(one: _Function, line: Line) -> bool:
    """Take a row of bytes; False: the line is none."""
    match = _HEX_ROW.fullmatch(line.text)
    if match is None:
        return False
    offset, words = int(match["offset"], 16), match["rest"].split(" ")
    due = len(one.data)
    if not _BYTE.fullmatch(words[0]) and not (offset == due and due):
        return False
    if offset != due:
        raise line.bad(f"the row of offset {offset:#x} is not in its place", expected=f"{due:02x}: and 16 bytes")
    if due >= pci.EXPRESS_CONFIG_SIZE:
        raise line.bad("more than 4096 bytes of configuration space", expected="4096 bytes at most")
    at = match.start("rest")
    for count, word in enumerate(words):
        if count >= _ROW or not _BYTE.fullmatch(word):
            raise line.bad("not a byte", at, seen=word[:20], expected="16 bytes of two hexadecimal digits")
        at += len(word) + 1
    if len(words) != _ROW:
        raise line.bad(
            f"a row of {len(words)} bytes", len(line.text), seen=line.text, expected="16 bytes in a row"
        )
    one.data += bytes.fromhex("".join(words))
    return True


def _capability(one: _Function, line: Line) -> None:
    one.verbose = True
    one.pending = ""
    if "<access denied>" in line.text:
        one.refused = True
        return
    match = _CAPABILITY.fullmatch(line.text)
    if match is None or not re.fullmatch(r"[0-9a-f]{2,3}", match["at"]):
        raise line.bad("a capability without its place", len("Capabilities: "), expected="[40], in hexadecimal")
    at = int(match["at"], 16)
    name = _SERIAL.sub(r"\1", match["rest"].strip())
    one.pci_caps.append({"offset": at, "id": None, "name": name or None, "extended": at > 0xFF})
    if virtio := _VIRTIO.search(match["rest"]):
        name = virtio["name"]
        kind = _STRUCTURES.get(name)
        one.pending = name
        one.caps.append(VirtioCapability(pci.cfg_type_name(kind or 0), kind, at))
    elif msix := _MSIX.search(match["rest"]):
        one.msix = {"vectors": int(msix["count"]), "enabled": msix["on"] == "+", "bar": None, "offset": None}
        one.msix["config_offset"] = at
    elif "Vendor Specific" in match["rest"]:
        one.vendor = True


def _structure(one: _Function, line: Line) -> None:
    """The second line of a virtio capability: where the structure is."""
    one.pending = ""
    match = _STRUCTURE.match(line.text)
    if match is None:
        raise line.bad("a virtio structure without its place", expected="BAR=N offset=XXXXXXXX size=XXXXXXXX")
    numbers = {}
    for name, base, digits in (("bar", 10, 3), ("offset", 16, 8), ("size", 16, 8), ("multiplier", 16, 8)):
        if match[name] is None:
            continue
        if not re.fullmatch(rf"[0-9a-f]{{1,{digits}}}", match[name]) or (base == 10 and not match[name].isdigit()):
            raise line.bad("not a number", match.start(name), seen=match[name], expected=f"{name} in base {base}")
        numbers[name] = int(match[name], base)
    last = one.caps[-1]
    one.caps[-1] = VirtioCapability(
        last.type,
        last.cfg_type,
        last.config_offset,
        bar=numbers["bar"],
        offset=numbers["offset"],
        length=numbers["size"],
        usable=numbers["size"],
        notify_off_multiplier=numbers.get("multiplier"),
    )


def _take_region(one: _Function, line: Line, match: re.Match[str]) -> None:
    index = match["index"]
    if index is not None and index not in ("0", "1", "2", "3", "4", "5"):
        raise line.bad("not the number of a BAR", match.start("index"), seen=index, expected="0 to 5")
    place = match["place"]
    if not place.startswith("<") and not _HEX_NUMBER.fullmatch(place):
        raise line.bad("not an address", match.start("place"), seen=place, expected="hexadecimal digits")
    size = _SIZE.search(match["rest"])
    io = match["kind"] == "I/O ports"
    one.bars.append(
        Bar(
            None if index is None else int(index),
            "io" if io else "memory",
            None if place.startswith("<") else int(place, 16),
            None if size is None else _bytes(line, size, match.start("rest")),
            32 if io or "(32-bit" in match["rest"] else 64 if "(64-bit" in match["rest"] else None,
            False if io or "non-prefetchable" in match["rest"] else "prefetchable" in match["rest"] or None,
        )
    )


def _bytes(line: Line, size: re.Match[str], start: int) -> int:
    match = _SIZE_WORD.fullmatch(size["size"])
    if match is None:
        raise line.bad("not a size", start + size.start("size"), seen=size["size"], expected="4K, 16K, 1M ...")
    return int(match["number"]) << _UNITS[match["unit"]]


def _take_group(one: _Function, line: Line, match: re.Match[str]) -> None:
    if not re.fullmatch(r"[0-9]{1,9}", match["group"]):
        raise line.bad("not the number of a group", match.start("group"), expected="a number")
    one.facts["iommu_group"] = int(match["group"])


def _take_driver(one: _Function, line: Line, match: re.Match[str]) -> None:
    one.facts["driver"] = match["driver"]


def _take_node(one: _Function, line: Line, match: re.Match[str]) -> None:
    one.facts["numa_node"] = int(match["node"])


def _take_pin(one: _Function, line: Line, match: re.Match[str]) -> None:
    pin = "?ABCD".index(match["pin"])
    one.facts["interrupts"] = {"pin": pin or None, "irq": int(match["irq"])}


def _take_table(one: _Function, line: Line, match: re.Match[str]) -> None:
    if one.msix is not None:
        one.msix.update(bar=int(match["bar"]) & pci.MSIX_BIR_MASK, offset=int(match["offset"], 16))


def _take_subsystem(one: _Function, line: Line, match: re.Match[str]) -> None:
    found = _IDS.search(line.text) or _SUBSYSTEM_IDS.match(line.text)
    if found is not None:
        one.subsystem = found["ids"]


_LINES: Final = (
    (_REGION, _take_region),
    (_GROUP, _take_group),
    (_KERNEL, _take_driver),
    (_NUMA, _take_node),
    (_PIN, _take_pin),
    (_TABLE, _take_table),
    (_SUBSYSTEM, _take_subsystem),
)


# --- what it adds up to -----------------------------------------------------------------------------------------


def _record(one: _Function) -> Record:
    made = record.new("pci", one.address)
    made.update(one.facts)
    reasons = {"config_space": "the bytes are not in this lspci text: add -xxxx"}
    if one.data:
        reasons |= record.add_config_space(made, bytes(one.data), one.bars or None)
    else:
        reasons |= _without_bytes(made, one)
    if made["capabilities"] is None and (one.caps or one.pci_caps):
        _told_capabilities(made, one)
    if one.refused and made["capabilities"] is None:
        denied = "<access denied>: lspci was not run as root"
        reasons |= {"pci_capabilities": denied, "capabilities": denied, "msix": denied, "interface": denied}
    if one.verbose:
        reasons |= {
            "driver": "no driver is named: none was bound, or this lspci text was cut",
        }
    return record.finish(made, _LSPCI, reasons)


def _without_bytes(made: Record, one: _Function) -> dict[str, str]:
    """Take the ids from the first line, and the BARs from the regions."""
    plain, numbers = _PLAIN_IDS.match(one.rest), _IDS.search(one.rest)
    found = plain or numbers
    if kind := plain or _CLASS.match(one.rest):
        made["pci_class"] = kind["class"]
    if revision := _REVISION.search(one.rest):
        made["revision"] = int(revision["rev"], 16)
    made["subsystem_id"] = one.subsystem
    subsystem = None if one.subsystem is None else int(one.subsystem[5:], 16)
    if found is not None:
        vendor, device = (int(word, 16) for word in found["ids"].split(":"))
        record.identify(made, vendor, device, subsystem)
    elif named := _named(one.rest):
        record.identify(made, ids.VENDOR, named, subsystem)
        made["notes"].append("the ids are those that pci.ids has for the name: lspci without -n shows no others")
    if one.bars:
        made["bars"] = [bar.as_dict() for bar in one.bars]
    return {}


def _named(rest: str) -> int | None:
    name = _REVISION.sub("", rest.partition(": ")[2]).strip()
    # "Red Hat, Inc. NAME"; the newer ids are "(prog-if 00 [...])" after it, and old programs know a number alone
    name = re.sub(r"\s*\(prog-if.*\)", "", name).removeprefix("Red Hat, Inc.").removeprefix("Red Hat, Inc").strip()
    return _NAMES.get(name)


def _told_capabilities(made: Record, one: _Function) -> None:
    """The capabilities as ``lspci -v`` prints them, judged as those in bytes are."""
    made["pci_capabilities"] = one.pci_caps
    made["msix"] = one.msix
    sized = {bar.index: BarInfo(bar.index, bar.size, bar.kind == "io") for bar in one.bars
             if bar.index is not None and bar.size is not None}  # fmt: skip
    known = sized.get if one.bars and len(sized) == len(one.bars) else None
    told = []
    for cap in one.caps:
        if cap.cfg_type is None:
            entry = cap.as_dict()
            entry |= {"type": "unknown", "verdict": "ignored", "why": "lspci does not name this structure"}
        elif not cap.length and not cap.usable:
            entry = cap.as_dict()
            entry |= {"bar": None, "offset": None, "length": None, "why": "its place is not in this lspci text"}
        else:
            entry = judge(cap, cap.cfg_type, known).as_dict()
        entry["id"] = None
        told.append(entry)
    made["capabilities"] = told
    if made["pci_id"] is not None:
        vendor, device = (int(word, 16) for word in str(made["pci_id"]).split(":"))
        if ids.is_transitional_pci(vendor, device) and (one.caps or not one.vendor):
            made["interface"] = "transitional" if one.caps else "legacy"  # 4.1.5.1.1.1
