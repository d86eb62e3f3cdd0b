"""Makes the record of a device: from sysfs alone, or of one that this process has opened.

A function that a kernel driver holds is read about, never accessed: its registers stay untouched.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import uvirtio
from uvirtio.binding import discover
from uvirtio.binding.config_space import config_edges
from uvirtio.binding.discover import DiscoveredDevice
from uvirtio.binding.facts import Facts
from uvirtio.binding.hwdb import hardware
from uvirtio.binding.rules import Verdicts
from uvirtio.device import Device
from uvirtio.device.evidence import of_queue
from uvirtio.errors import DeviceAbsent, DeviceGone, DeviceTimeout, PermissionLack, UvirtioError
from uvirtio.evidence import record
from uvirtio.evidence.record import Bar, Record
from uvirtio.host import proc, sysfs
from uvirtio.host.digits import decimal
from uvirtio.host.roots import Roots
from uvirtio.interfaces.backend import MmioWindow, PciFunction
from uvirtio.interfaces.memory import Registers
from uvirtio.memory.access import read_field
from uvirtio.spec import device_config, mmio, pci
from uvirtio.spec import input as input_spec
from uvirtio.spec.layout import Field
from uvirtio.transports import pci_caps
from uvirtio.transports.pci import PciModern
from uvirtio.transports.pci_base import config_reader

_IOMMU_PARAMETERS = ("iommu", "smmu", "vfio")
"""What is in the names of the kernel's parameters that a dump repeats: all others may say whose machine it is."""

_BYTES_OF_UNKNOWN = 64
"""Bytes of device configuration that are shown of a type whose fields are not known."""

_QUEUES_MAX = 64
"""Queues that are shown of a device that has more."""

_SILENT = "silent"
"""Not a section: why nothing more is asked of a device."""


def document(records: list[Record], environment: Mapping[str, Any] | None) -> dict[str, Any]:
    """The document for these devices, not masked.

    Args:
        records: The devices.
        environment: This machine.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    return {
        "schema": record.SCHEMA,
        "made": {"by": f"uvirtio {uvirtio.__version__}", "at": now.isoformat().replace("+00:00", "Z")},
        "source": {"form": "device", "name": None, "others": 0},
        "masked": False,
        "environment": None if environment is None else dict(environment),
        "devices": records,
    }


def environment(roots: Roots, device: Device | None = None) -> dict[str, Any]:
    """This machine: kernel, IOMMU, versions.

    Args:
        roots: Where it is read.
        device: An open device, whose QEMU has a version, too.
    """
    groups = sysfs.iommu_groups(roots)
    parameters = proc.parameters(proc.command_line(roots))
    made: dict[str, Any] = {
        "host": platform.node() if roots.live else None,
        "kernel": proc.kernel_release(roots) or None,
        "machine": platform.machine() if roots.live else None,
        "distribution": _distribution() if roots.live else None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "uvirtio": uvirtio.__version__,
        "iommu_groups": None if groups is None else len(groups),
        "iommu_parameters": [
            name if value is None else f"{name}={value}"
            for name, value in parameters
            if any(part in name for part in _IOMMU_PARAMETERS)
        ],
        "noiommu_mode": sysfs.noiommu_mode(roots),
        "lockdown": sysfs.lockdown(roots),
        "qemu": None,
    }
    if device is not None and device.guest is not None:
        try:
            made["qemu"] = ".".join(
                str(device.guest.qmp("query-version")["qemu"][part]) for part in ("major", "minor", "micro")
            )
        except (UvirtioError, KeyError, TypeError):
            pass
    return made


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


# --- from sysfs -------------------------------------------------------------------------------------------------


def of_machine(found: DiscoveredDevice, facts: Facts, verdicts: Verdicts | None = None) -> Record:
    """The record of a device of this machine, from sysfs alone.

    Args:
        found: The device.
        facts: What is known of the machine on which it was found.
        verdicts: What the rules say of its use; None: they were not asked.
    """
    roots = facts.roots
    made = record.new(found.bus, found.address)
    reasons = _config_space(made, found) if found.bus == "pci" else {}
    told = found.as_dict()
    for name in ("type", "device_id", "pci_id", "driver", "kernel_driver", "iommu_group", "virtio_name", "node"):
        made[name] = told[name]
    made["numa_node"], made["parent"] = found.numa_node, found.parent
    made["interface"] = None if found.interface == "none" else found.interface
    if made["interface"] is not None:
        reasons.pop("interface", None)
    made["driver_override"], made["noiommu"] = found.driver_override, found.noiommu
    made["subsystem_id"] = found.subsystem_id
    made["revision"] = found.revision
    if found.pci_class is not None:
        made["pci_class"] = f"{found.pci_class:06x}"
    if found.window is not None:
        made["window"] = {"base": f"{found.window[0]:#x}", "length": found.window[1]}
    made["notes"].extend(found.notes)
    mates = facts.mates.group_members(found)
    if mates is not None:
        made["group_members"] = [
            {"address": one.address, "pci_id": one.pci_id, "driver": one.driver} for one in mates
        ]
    made["interrupts"] = interrupts(made["interrupts"], found, roots)
    made["hardware"] = hardware(found, roots)
    word = discover.negotiated_features(found)
    if word is not None:
        made["features"] = record.words(found.type, None, word)
    value = status_of(found)
    if value is not None:
        made["status"] = record.status(value)
    if verdicts is not None:
        made["findings"] = [one.as_dict() for one in verdicts.findings]
    unread = "not read: only a device that is opened shows its registers (--live)"
    none = {
        "driver": "no driver is bound",
        "driver_override": "none is set",
        "kernel_driver": "no driver of the kernel's virtio bus has it",
        "virtio_name": "no driver of the kernel's virtio bus has it",
        "iommu_group": "it is in no IOMMU group",
        "group_members": "the members of the group cannot be listed",
        "numa_node": "the kernel names none",
        "status": unread,
        "features": unread,
    }
    return record.finish(made, unread, none | reasons)


def status_of(found: DiscoveredDevice) -> int | None:
    """The device status (2.1) as the driver of the kernel's virtio bus knows it; None: there is none."""
    virtio = found.virtio_path
    value = None if virtio is None else sysfs.number(virtio / "status")
    return value if value is not None and 0 <= value <= 0xFF else None


def _config_space(made: Record, found: DiscoveredDevice) -> dict[str, str]:
    header, extended = config_edges(found.path / "config")
    bars = _bars_of(found)
    try:
        space = discover.config_bytes(found)
    except (PermissionLack, DeviceGone) as error:
        why = error.message
        if len(header) == pci.STANDARD_CONFIG_SIZE:
            record.add_config_space(made, header, bars)
        elif bars is not None:
            made["bars"] = [bar.as_dict() for bar in bars]
        return dict.fromkeys(("config_space", "pci_capabilities", "capabilities", "msix", "bars"), why)
    whole = len(extended) == pci.EXPRESS_CONFIG_SIZE - pci.CONFIG_SIZE
    return record.add_config_space(made, space.data + (extended if whole else b""), bars, space.hidden)


def _bars_of(found: DiscoveredDevice) -> list[Bar] | None:
    told = sysfs.resources(found.path)
    if told is None:
        return None
    return [
        record.of_resource(index, one)
        for index, one in enumerate(told[: pci.MAX_BAR + 1])
        if one is not None and one.used
    ]


def interrupts(known: dict[str, Any] | None, found: DiscoveredDevice, roots: Roots) -> dict[str, Any]:
    """The interrupts of a device as the kernel counts them.

    Args:
        known: What its configuration space says of them.
        found: The device.
        roots: Where ``/proc`` is.
    """
    counts = proc.interrupts(roots)
    numbers = sorted(irq for name in sysfs.names(found.path / "msi_irqs") if (irq := decimal(name)) is not None)
    irq = sysfs.number(found.path / "irq")
    vectors = []
    for number in numbers or ([irq] if irq else []):
        count, name = counts.get(number, (None, None))
        vectors.append({"irq": number, "count": count, "name": name})
    return {**(known or {}), "irq": irq if irq is None or irq >= 0 else None, "mode": None, "vectors": vectors}


# --- of an open device ------------------------------------------------------------------------------------------


def of_open(
    device: Device, known: Record | None = None, *, live: bool = False, roots: Roots | None = None
) -> Record:
    """The record of a device that this process has opened.

    Args:
        device: The device.
        known: What sysfs has about it; None: it is not a device of this machine's.
        live: Whether it was started, and has queues and books.
        roots: Where what the start has changed is read again, of a device that sysfs knows; None: it is not.
    """
    transport = device.transport
    backend = transport.backend
    bus = "platform" if backend.bus == "mmio" else backend.bus
    made = record.new(bus, device.address) if known is None else known
    reasons: dict[str, str] = {entry["what"]: entry["why"] for entry in made["absent"]} if known else {}
    if backend.bus == "pci" and made["config_space"] is None:
        _try(made, reasons, "config_space", lambda: _opened_space(made, backend, reasons))
    record.set_type(made, device.device_id)
    if made["interface"] is None:
        made["interface"] = {"platform": "mmio", "pci": "legacy"}.get(bus, bus)
    made["opened"] = {
        "description": transport.description,
        "interface": transport.interface,
        "quirks": list(transport.quirks),
        "live": live,
    }
    _try(made, reasons, "status", lambda: record.status(transport.status()))
    offered = _try(made, reasons, "features", transport.device_features)
    if offered is not None:
        made["features"] = record.words(
            device.type, offered, device.features if live or device.queues_left else None
        )
    _try(made, reasons, "common", lambda: _common(device))
    if made["common"] is None:
        reasons.setdefault("common", "this interface has no such registers")
    _try(made, reasons, "device_config", lambda: _device_config(device, offered or 0))
    _try(made, reasons, "queues", lambda: _queues(device))
    if live:
        made["books"] = device.counters.as_dict() | {
            f"{queue.name} {what}": getattr(queue, what)
            for queue in device.queues.values()
            for what in ("kicks", "completions")
        }
        if known is not None and roots is not None:
            _look_again(made, roots)
        made["interrupts"] = {**(made["interrupts"] or {}), "mode": transport.interrupt_mode.value}
    elif device.queues_left:
        made["books"] = device.counters.as_dict() | {
            f"{one.name} {what}": count
            for one in device.queues_left
            for what, count in (("kicks", one.kicks), ("completions", one.published - one.in_flight))
        }
        made["notes"].append("the device was left before this dump; its queues are as they were then")
    else:
        reasons["books"] = "the device was not started (--live)"
    return record.finish(made, "this device is not one of this machine's sysfs", reasons)


def _look_again(made: Record, roots: Roots) -> None:
    """Read again what the start of a device changes: MSI-X, bus master, the interrupts and their counts."""
    try:
        found = discover.find(made["address"], roots, aliases=False)
    except UvirtioError:  # it went meanwhile; what was seen before stands
        return
    if found.bus == "pci":
        _config_space(made, found)
    made["interrupts"] = interrupts(made["interrupts"], found, roots)


def _try(made: Record, reasons: dict[str, str], what: str, read: Any) -> Any:
    """Set a section; where the device does not let it be read, the error is the reason why it is missing.

    A device that does not answer at all is asked once: each further read would wait for its time-out.
    """
    made[what] = None
    if _SILENT in reasons:
        reasons[what] = reasons[_SILENT]
        return None
    try:
        made[what] = read()
    except UvirtioError as error:
        reasons[what] = error.message
        if isinstance(error, DeviceTimeout | DeviceAbsent):
            reasons[_SILENT] = error.message
    return made[what]


def _opened_space(made: Record, function: PciFunction, reasons: dict[str, str]) -> Any:
    """Configuration space by the open function; pci_cfg_data is not read (4.1.4.9)."""
    read = config_reader(function)
    hidden = pci_caps.pci_cfg_data(pci_caps.walk_capabilities(read, function.bar))
    whole = function.config.length >= pci.EXPRESS_CONFIG_SIZE
    data = pci_caps.copied(read, pci.EXPRESS_CONFIG_SIZE if whole else pci.CONFIG_SIZE, hidden)
    by_index = {bar.index: bar for bar in record.registers(data)}
    bars = []
    for index in range(pci.BARS):
        told, seen = function.bar(index), by_index.get(index)
        if told is not None:
            bars.append(
                Bar(
                    index,
                    "io" if told.is_io else "memory",
                    None if seen is None else seen.address,
                    told.size,
                    None if seen is None else seen.bits,
                    None if seen is None else seen.prefetchable,
                )
            )
    reasons |= record.add_config_space(made, data, bars, hidden)
    return made["config_space"]


_PER_QUEUE = "queue_"
_NOT_READ = frozenset({"device_feature_select", "device_feature", "driver_feature_select", "driver_feature"})
"""Registers that are windows: what they show is in ``features``."""


def _common(device: Device) -> dict[str, Any] | None:
    """The registers that are not of one queue, by their names in 4.1.4.3 or 4.2.2."""
    transport, backend = device.transport, device.transport.backend
    if isinstance(transport, PciModern) and backend.bus == "pci":
        with _common_registers(transport, backend) as registers:
            return {
                field.name: _shown(registers, field)
                for field in pci.COMMON_CFG
                if field.end <= pci.COMMON_CFG_MIN_SIZE
                and not field.name.startswith(_PER_QUEUE)
                and field.name not in _NOT_READ
            }
    if backend.bus == "mmio":
        window: MmioWindow = backend
        places = {
            "MagicValue": mmio.MAGIC_VALUE_REG,
            "Version": mmio.VERSION_REG,
            "DeviceID": mmio.DEVICE_ID,
            "VendorID": mmio.VENDOR_ID,
            "Status": mmio.STATUS,
        }
        return {name: window.registers.read32(place) for name, place in places.items()}
    return None


def _common_registers(transport: PciModern, function: PciFunction) -> closing[Registers]:
    """The common configuration of a function, for as long as it is read."""
    place = pci_caps.select(transport.capabilities)[pci_caps.COMMON]
    return closing(function.registers(place.bar, place.offset, pci.COMMON_CFG_MIN_SIZE))


def _shown(registers: Registers, field: Field) -> int | str:
    value = read_field(registers, field.offset, field.width)
    return f"{value:#x}" if field.width == 8 else value


def _queues(device: Device) -> list[dict[str, Any]]:
    """Every queue of the device: its registers, and its ring where the driver has one."""
    transport = device.transport
    left = {} if device.queues else {one.index: one for one in device.queues_left}
    shown = sorted({*range(min(transport.num_queues, _QUEUES_MAX)), *device.queues})
    made: list[dict[str, Any]] = []
    for index in shown:
        size = transport.queue_layout(index).size_max
        if size or index in device.queues:
            # A legacy window hides the size of a queue in use.
            made.append({"index": index, "size_max": size or None, "registers": None, "ring": None})
    backend = transport.backend
    if isinstance(transport, PciModern) and backend.bus == "pci":
        with _common_registers(transport, backend) as registers:
            for entry in made:
                registers.write16(pci.COMMON_QUEUE_SELECT, entry["index"])
                entry["registers"] = {
                    field.name: _shown(registers, field)
                    for field in pci.COMMON_CFG
                    if field.name.startswith(_PER_QUEUE)
                    and field.end <= pci.COMMON_CFG_MIN_SIZE
                    and field.name != "queue_select"
                }
    for entry in made:
        queue = device.queues.get(entry["index"])
        seen = left.get(entry["index"]) if queue is None else of_queue(queue)
        if seen is not None:
            told = seen.as_dict()
            told.pop("index")
            entry["ring"] = {**told, "addresses": [f"{one:#x}" for one in told["addresses"]]}
    return made


def _device_config(device: Device, features: int) -> dict[str, Any]:
    """The device configuration as bytes and as fields, each read with an access of its own width (4.1.3.1)."""
    transport = device.transport
    length = transport.config_length
    known = device_config.length(device.type)
    end = min(length, _BYTES_OF_UNKNOWN if known is None else known)
    fields = [field for field, _ in device_config.FIELDS.get(device.type, ()) if field.end <= end]

    def read() -> bytes:
        data = bytearray(end)
        for field in fields:
            if field.width in (1, 2, 4, 8):
                value = transport.read_config(field.offset, field.width)
                data[field.offset : field.end] = value.to_bytes(field.width, "little")
            else:
                for at in range(field.offset, field.end):
                    data[at] = transport.read_config(at, 1)
        if known is None:
            for at in range(end):
                data[at] = transport.read_config(at, 1)
        return bytes(data)

    told = _input_told(device) if device.device_id == input_spec.TYPE else {}
    data = device.snapshot(read)
    return {
        "length": length,
        "hex": data.hex(),
        "masked": [],
        "fields": device_config.decode(device.type, features, data) | told,
    }


def _input_told(device: Device) -> dict[str, int | str]:
    """Name, serial number and ids of an input device, which lie behind a window (5.8.4); it is closed again.

    The window is moved outside of the snapshots: some devices give each selection a generation of its own.
    """
    transport = device.transport

    def shown() -> bytes:
        size = min(transport.read_config(input_spec.SIZE, 1), input_spec.PAYLOAD_MAX)
        return bytes(transport.read_config(input_spec.PAYLOAD + at, 1) for at in range(size))

    made: dict[str, int | str] = {}
    for select, name in (
        (input_spec.Select.ID_NAME, "name"),
        (input_spec.Select.ID_SERIAL, "serial"),
        (input_spec.Select.ID_DEVIDS, "ids"),
    ):
        transport.write_config(input_spec.SELECT, 1, select)
        transport.write_config(input_spec.SUBSEL, 1, 0)
        data = device.snapshot(shown)
        made[name] = data.hex() if name == "ids" else data.decode("utf-8", "replace").rstrip("\0")
    transport.write_config(input_spec.SELECT, 1, input_spec.Select.UNSET)
    return made
