"""What a document says of one device: the same record, whichever form of dump it came from.

A section that is not known is None, and listed in ``absent`` with the reason: nothing is filled in by a guess.
Addresses and feature words are hexadecimal text, since JSON's numbers have 53 bits in many readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from uvirtio.host.sysfs import Resource
from uvirtio.interfaces.values import BarInfo
from uvirtio.spec import features as f
from uvirtio.spec import field_bits, ids, pci
from uvirtio.spec import status as st
from uvirtio.transports.pci_caps import ConfigReader, capability_list, modern, walk_capabilities

SCHEMA: Final = "uvirtio-dump/1"

Record = dict[str, Any]
"""One member of ``devices`` in the document; ``schema.json`` has its members."""

SECTIONS: Final = (
    "pci_id",
    "subsystem_id",
    "revision",
    "pci_class",
    "interface",
    "driver",
    "driver_override",
    "kernel_driver",
    "virtio_name",
    "iommu_group",
    "group_members",
    "numa_node",
    "config_space",
    "bars",
    "pci_capabilities",
    "capabilities",
    "msix",
    "interrupts",
    "status",
    "features",
    "common",
    "device_config",
    "queues",
    "books",
)
"""The members that a dump may lack, in their order."""

_OTHERS: Final = ("window", "node", "parent", "noiommu", "hardware", "findings", "opened", "error")
"""Members that exist for some devices only, so that nothing is said where they are missing."""

_ALONE_IN_PCI: Final = frozenset(
    {
        "pci_id",
        "subsystem_id",
        "revision",
        "pci_class",
        "config_space",
        "bars",
        "pci_capabilities",
        "capabilities",
        "msix",
    }
)
"""What a device on another bus does not have, which is not the same as being left out."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register, as far as a dump tells."""

    index: int | None
    """0 to 5; None where the dump does not say (``lspci -v``)."""
    kind: str
    """``memory`` or ``io``."""
    address: int | None
    """Bus address; None: not assigned, or not shown."""
    size: int | None
    """Bytes; None: not shown."""
    bits: int | None = None
    """32 or 64."""
    prefetchable: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """The register, for JSON."""
        return {
            "bar": self.index,
            "kind": self.kind,
            "address": None if self.address is None else f"{self.address:#x}",
            "size": self.size,
            "bits": self.bits,
            "prefetchable": self.prefetchable,
        }


def of_resource(index: int, resource: Resource) -> Bar:
    """A base address register as the kernel's ``resource`` file has it."""
    return Bar(
        index,
        "io" if resource.is_io else "memory",
        resource.start or None,
        resource.size,
        64 if resource.is_64_bit else 32,
        resource.prefetchable,
    )


def new(bus: str, address: str | None) -> Record:
    """A record in which nothing is known yet.

    Args:
        bus: ``pci``, ``platform``, ``vdpa`` or ``vhost-user``.
        address: The address of the device; None: the dump does not say.
    """
    made: Record = {"address": address, "bus": bus, "type": "unknown", "device_id": None}
    made.update(dict.fromkeys((*SECTIONS, *_OTHERS)))
    made["notes"] = []
    made["absent"] = []
    return made


def finish(record: Record, why: str, reasons: Mapping[str, str] | None = None) -> Record:
    """Say of each section that is None why it is.

    Args:
        record: The record, which is changed.
        why: The reason where there is no better one.
        reasons: Better ones, by section; an empty one: the device has no such thing.
    """
    known = reasons or {}
    record["absent"] = [
        {"what": what, "why": text}
        for what in SECTIONS
        if record[what] is None
        and not (what in _ALONE_IN_PCI and record["bus"] != "pci")
        and (text := known.get(what, why))
    ]
    return record


def identify(record: Record, vendor: int, device: int, subsystem: int | None) -> None:
    """Set the ids and the type of a PCI function (4.1.2).

    Args:
        record: The record, which is changed.
        vendor: The PCI vendor id.
        device: The PCI device id.
        subsystem: The subsystem device id, which is the type of some transitional functions (4.1.2.3).
    """
    record["pci_id"] = f"{vendor:04x}:{device:04x}"
    if not ids.is_virtio_pci(vendor, device):
        return
    found = ids.device_id_of_pci(vendor, device)
    if found is None and ids.is_transitional_pci(vendor, device):
        found = subsystem or None
    set_type(record, found)
    if not ids.is_transitional_pci(vendor, device):
        record["interface"] = "modern"


def set_type(record: Record, device_id: int | None) -> None:
    """Set the type of a device by its virtio id."""
    record["device_id"] = device_id
    record["type"] = "unknown" if device_id is None else ids.type_name(device_id)


def is_virtio(record: Record) -> bool:
    """Whether the record is of a virtio device."""
    if record["bus"] != "pci":
        return True
    if record["pci_id"] is None:
        return record["device_id"] is not None
    vendor, _, device = str(record["pci_id"]).partition(":")
    return ids.is_virtio_pci(int(vendor, 16), int(device, 16))


def words(type_name: str, offered: int | None, negotiated: int | None) -> dict[str, Any]:
    """The section ``features``: both words, each with the names of its bits."""
    return {"offered": _word(type_name, offered), "negotiated": _word(type_name, negotiated)}


def _word(type_name: str, value: int | None) -> dict[str, Any] | None:
    return None if value is None else {"word": f"{value:#x}", **bits(type_name, value)}


def bits(type_name: str, value: int) -> dict[str, Any]:
    """The bits of a feature word: names, numbers of those that the standard does not have, and who uses these."""
    found = f.names(type_name, value)
    unknown = [bit.bit for bit in found if not bit.known]
    return {
        "names": [bit.name for bit in found if bit.known],
        "unknown": unknown,
        "field": [
            {"bit": number, **met.as_dict()}
            for number in unknown
            if (met := field_bits.lookup(type_name, number)) is not None
        ],
    }


def status(value: int) -> dict[str, Any]:
    """The section ``status`` (2.1)."""
    return {"value": value, "names": st.names(value)}


# --- configuration space ----------------------------------------------------------------------------------------


def add_config_space(
    record: Record,
    data: bytes,
    bars: list[Bar] | None = None,
    hidden: Iterable[tuple[int, int]] = (),
) -> dict[str, str]:
    """Set all that PCI configuration space tells.

    Args:
        record: The record, which is changed.
        data: At least 64 bytes of configuration space.
        bars: The BARs by another source, which knows sizes; None: there is no other.
        hidden: Ranges that were not read, as (offset, length) in bytes.

    Returns:
        Why sections are missing, by section, for ``finish``.
    """
    record["config_space"] = {
        "length": len(data),
        "hex": data.hex(),
        "hidden": [{"offset": start, "length": length} for start, length in hidden],
    }
    vendor = _number(data, pci.CFG_VENDOR_ID, 2)
    if vendor == 0xFFFF:
        record["notes"].append("configuration space reads all ones: the function does not respond")
    subsystem = _number(data, pci.CFG_SUBSYSTEM_ID, 2)
    identify(record, vendor, _number(data, pci.CFG_DEVICE_ID, 2), subsystem)
    record["subsystem_id"] = f"{_number(data, pci.CFG_SUBSYSTEM_VENDOR_ID, 2):04x}:{subsystem:04x}"
    record["revision"] = data[pci.CFG_REVISION_ID]
    record["pci_class"] = f"{_number(data, pci.CFG_CLASS_CODE, 3):06x}"
    record["interrupts"] = {
        **(record["interrupts"] or {}),
        "pin": data[pci.CFG_INTERRUPT_PIN],
        "line": data[pci.CFG_INTERRUPT_LINE],
    }
    decoded = registers(data)
    record["bars"] = [bar.as_dict() for bar in (decoded if bars is None else _joined(decoded, bars))]
    if len(data) < pci.CONFIG_SIZE:
        short = f"only {len(data)} bytes of configuration space are in this dump"
        return {"pci_capabilities": short, "capabilities": short, "msix": short, "interface": short}
    return _add_capabilities(record, data)


def _add_capabilities(record: Record, data: bytes) -> dict[str, str]:
    record["pci_capabilities"] = [*standard_capabilities(data), *_extended(data)]
    caps = walk_capabilities(_reader(data), _sizes(record["bars"]))
    record["capabilities"] = [cap.as_dict() for cap in caps]
    record["msix"] = msix(data)
    vendor, device = _number(data, pci.CFG_VENDOR_ID, 2), _number(data, pci.CFG_DEVICE_ID, 2)
    if ids.is_transitional_pci(vendor, device):
        record["interface"] = "transitional" if modern(caps) else "legacy"  # 4.1.5.1.1.1
    return {"msix": ""}


def _sizes(bars: list[dict[str, Any]]) -> Any:
    """What ``walk_capabilities`` judges by; None where the size of a BAR is not known."""
    if any(bar["size"] is None or bar["bar"] is None for bar in bars) or not bars:
        return None
    by_index = {bar["bar"]: BarInfo(bar["bar"], bar["size"], bar["kind"] == "io") for bar in bars}
    return by_index.get


def _joined(decoded: list[Bar], told: list[Bar]) -> list[Bar]:
    """The BARs of another source, with the numbers and kinds that configuration space has for them."""
    made = []
    for bar in told:
        same = next(
            (
                one
                for one in decoded
                if (one.index == bar.index if bar.index is not None else one.address == bar.address)
                and one.kind == bar.kind
            ),
            None,
        )
        index = bar.index if bar.index is not None or same is None else same.index
        bits = bar.bits if bar.bits is not None or same is None else same.bits
        fetch = bar.prefetchable if bar.prefetchable is not None or same is None else same.prefetchable
        made.append(Bar(index, bar.kind, bar.address, bar.size, bits, fetch))
    return made


def registers(data: bytes) -> list[Bar]:
    """The base address registers that hold something (PCI 3.0, 6.2.5.1); their sizes are not in them.

    A register that reads 0 is not implemented, or not assigned: it is left out.
    """
    made = []
    last = pci.MAX_BAR if data[pci.CFG_HEADER_TYPE] & pci.HEADER_TYPE_MASK == 0 else 1
    index = 0
    while index <= last:
        low = _number(data, pci.CFG_BAR0 + 4 * index, 4)
        wide = not low & pci.BAR_IO and low & pci.BAR_TYPE_MASK == pci.BAR_TYPE_64 and index < last
        high = _number(data, pci.CFG_BAR0 + 4 * index + 4, 4) if wide else 0
        if low in (0, 0xFFFFFFFF):
            pass
        elif low & pci.BAR_IO:
            made.append(Bar(index, "io", low & pci.BAR_IO_MASK or None, None, 32, False))
        else:
            address = low & pci.BAR_MEMORY_MASK | high << 32
            fetch = bool(low & pci.BAR_PREFETCH)
            made.append(Bar(index, "memory", address or None, None, 64 if wide else 32, fetch))
        index += 2 if wide else 1
    return made


def standard_capabilities(data: bytes) -> list[dict[str, Any]]:
    """The capability list (PCI 3.0, 6.7): offset, id and name of each; it ends where it loops."""
    found: list[dict[str, Any]] = []
    if data[:2] == b"\xff\xff":
        return found
    for at, ident in capability_list(_reader(data)):
        if isinstance(ident, int):
            name = pci.CapId(ident).name if ident in pci.CapId.__members__.values() else None
            found.append({"offset": at, "id": ident, "name": name, "extended": False})
    return found


_EXTENDED_NAMES: Final = {
    0x01: "AER",
    0x03: "DEVICE_SERIAL",
    0x0B: "VENDOR",
    0x0D: "ACS",
    0x0E: "ARI",
    0x0F: "ATS",
    0x10: "SRIOV",
    0x13: "PRI",
    0x18: "LTR",
    0x1B: "PASID",
    0x1E: "L1PM",
}
"""Names of extended capabilities (<linux/pci_regs.h>) that virtio functions are met with."""

DEVICE_SERIAL: Final = 0x03
"""The Device Serial Number capability: 8 bytes from its offset 4."""


def _extended(data: bytes) -> list[dict[str, Any]]:
    """The list of extended capabilities, from byte 0x100 (PCI Express 7.6)."""
    found: list[dict[str, Any]] = []
    if len(data) < pci.EXPRESS_CONFIG_SIZE:
        return found
    at = pci.CONFIG_SIZE
    seen: set[int] = set()
    while at >= pci.CONFIG_SIZE and at not in seen:
        seen.add(at)
        header = _number(data, at, 4)
        if header in (0, 0xFFFFFFFF):
            break
        ident = header & 0xFFFF
        found.append({"offset": at, "id": ident, "name": _EXTENDED_NAMES.get(ident), "extended": True})
        at = header >> 20 & 0xFFC
    return found


def msix(data: bytes) -> dict[str, Any] | None:
    """The MSI-X capability in 256 bytes of configuration space (PCI 3.0, 6.8.2); None: there is none."""
    for cap in standard_capabilities(data):
        at = cap["offset"]
        if cap["id"] == pci.CapId.MSIX and at + pci.MSIX_CAP_SIZE <= pci.CONFIG_SIZE:
            control = _number(data, at + pci.MSIX_CONTROL, 2)
            table = _number(data, at + pci.MSIX_TABLE, 4)
            return {
                "vectors": (control & pci.MSIX_CONTROL_SIZE_MASK) + 1,
                "enabled": bool(control & pci.MSIX_CONTROL_ENABLE),
                "bar": table & pci.MSIX_BIR_MASK,
                "offset": table & pci.MSIX_OFFSET_MASK,
                "config_offset": at,
            }
    return None


def _reader(data: bytes) -> ConfigReader:
    return lambda offset, width: _number(data, offset, width)


def _number(data: bytes, offset: int, width: int) -> int:
    return int.from_bytes(data[offset : offset + width], "little")
