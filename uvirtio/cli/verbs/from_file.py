"""``list``, ``inspect`` and ``features`` with ``-F``: the same looks at devices in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvirtio.cli.command import Command
from uvirtio.cli.size import human

if TYPE_CHECKING:
    from uvirtio.evidence.files import Evidence
    from uvirtio.evidence.record import Record

_LISTED = (
    "address",
    "type",
    "device_id",
    "pci_id",
    "interface",
    "driver",
    "kernel_driver",
    "iommu_group",
    "virtio_name",
    "numa_node",
    "node",
    "parent",
    "absent",
)


def list_file(cmd: Command, file: str, wanted: tuple[int, str] | None) -> None:
    """``list -F FILE [TYPE]``."""
    from uvirtio.evidence import files

    found = files.load(file)
    shown = [one for one in found.devices if wanted is None or one["device_id"] == wanted[0]]
    if cmd.json:
        cmd.document(
            file=found.name,
            form=found.form,
            others=found.others,
            devices=[{name: one[name] for name in _LISTED} for one in shown],
        )
        return
    if not shown:
        more = f" ({found.others} functions that are not virtio)" if found.others else ""
        kind = "virtio" if wanted is None else wanted[1]
        cmd.line(f"no {kind} devices in {found.name}{more}")
        return
    cmd.table(
        ("ADDRESS", "TYPE", "PCI ID", "INTERFACE", "DRIVER", "KERNEL DRIVER", "GROUP"),
        [
            tuple(
                _cell(one, name)
                for name in (
                    "address",
                    "type",
                    "pci_id",
                    "interface",
                    "driver",
                    "kernel_driver",
                    "iommu_group",
                )
            )
            for one in shown
        ],
    )
    if any(_cell(one, name) == "?" for one in shown for name in _LISTED[:8]):
        cmd.line("?: not in this file")


def _cell(one: Record, name: str) -> str:
    if name == "type" and one["device_id"] is None:
        return "?"
    value = one[name]
    if value is not None:
        return str(value)
    missing = name == "address" or any(entry["what"] == name for entry in one["absent"])
    return "?" if missing else "-"


def inspect_file(cmd: Command, file: str, dev: str) -> None:
    """``inspect -F FILE [DEV]``: one device, or all of them."""
    from uvirtio.evidence import files

    found = files.load(file)
    shown = [found.device(dev)] if dev or not found.devices else found.devices
    if cmd.json:
        cmd.document(file=found.name, form=found.form, environment=found.document["environment"], devices=shown)
        return
    for index, one in enumerate(shown):
        if index:
            cmd.line()
        print_record(cmd, one)
    _print_environment(cmd, found)


def _print_environment(cmd: Command, found: Evidence) -> None:
    machine = found.document["environment"]
    if machine is None:
        return
    told = [
        (name.replace("_", " "), ", ".join(value) if isinstance(value, list) else value)
        for name, value in machine.items()
        if value is not None and value != []
    ]
    if told:
        cmd.line()
        cmd.fields(told)


def print_record(cmd: Command, one: Record) -> None:
    """Print all that a record has, then what it has not."""
    number = one["device_id"]
    rows: list[tuple[str, object]] = [
        ("address", one["address"] or "not in this file"),
        ("type", "not in this file" if number is None else f"{one['type']} (device id {number})"),
    ]
    for name, key in (
        ("interface", "interface"),
        ("PCI id", "pci_id"),
        ("subsystem", "subsystem_id"),
        ("class", "pci_class"),
        ("driver", "driver"),
        ("kernel driver", "kernel_driver"),
        ("IOMMU group", "iommu_group"),
        ("NUMA node", "numa_node"),
        ("node", "node"),
        ("offered by", "parent"),
    ):
        if one.get(key) is not None:
            rows.append((name, one[key]))
    if one["status"] is not None:
        rows.append(("status", f"{one['status']['value']:#04x} " + "|".join(one["status"].get("names", ()))))
    for name, word in (one["features"] or {}).items():
        if word is not None:
            rows.append((name, word_text(word)))
    if one["msix"] is not None:
        rows.append(("MSI-X", _msix(one["msix"])))
    if one["interrupts"] is not None:
        rows.extend(_interrupts(one["interrupts"]))
    if one.get("opened"):
        rows.append(("opened by", one["opened"].get("description", "")))
    cmd.fields(rows)
    for bar in one["bars"] or ():
        cmd.line(_bar(bar))
    print_capabilities(cmd, one["capabilities"], one["interface"])
    _print_registers(cmd, "common configuration", one["common"])
    if one["device_config"] is not None:
        config = one["device_config"]
        _print_registers(cmd, f"device configuration, {config['length']} bytes", config["fields"])
    for queue in one["queues"] or ():
        cmd.line(_queue(queue))
    _print_registers(cmd, "books", one["books"])
    if one.get("error"):
        cmd.line(f"error: {one['error'].get('code')}: {one['error'].get('message')}")
    for text in one["notes"]:
        cmd.line(f"note: {text}")
    _print_absent(cmd, one)


def _print_absent(cmd: Command, one: Record) -> None:
    why: dict[str, list[str]] = {}
    for entry in one["absent"]:
        why.setdefault(entry["why"], []).append(entry["what"])
    for text, whats in why.items():
        cmd.paragraph(f"not in this dump: {', '.join(whats)} ({text})")


def word_text(word: dict[str, Any]) -> str:
    """A feature word and the names of its bits."""
    met = {one.get("bit"): one.get("name") for one in word.get("field", ())}
    names = [
        *word.get("names", ()),
        *(
            f"bit {bit}" + (f" ({met[bit]}, not in the standard)" if bit in met else "")
            for bit in word.get("unknown", ())
        ),
    ]
    return f"{word['word']}: " + (", ".join(names) or "none")


def _msix(found: dict[str, Any]) -> str:
    state = {True: "on", False: "off", None: "state not in this dump"}[found.get("enabled")]
    place = "" if found.get("bar") is None else f", BAR {found['bar']}+{found.get('offset') or 0:#x}"
    return f"{found.get('vectors')} vectors, {state}{place}"


def _interrupts(found: dict[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    pin = found.get("pin")
    if pin is not None:
        rows.append(("INTx pin", "none" if pin == 0 else f"{'?ABCD'[pin] if pin <= 4 else pin}"))
    if found.get("mode"):
        rows.append(("interrupts", found["mode"]))
    for vector in found.get("vectors") or ():
        count = "count not in this dump" if vector.get("count") is None else f"{vector['count']} times"
        rows.append((f"irq {vector['irq']}", f"{count} {vector.get('name') or ''}".rstrip()))
    return rows


def _bar(bar: dict[str, Any]) -> str:
    number = "BAR ?" if bar["bar"] is None else f"BAR {bar['bar']}"
    size = "size not in this dump" if bar["size"] is None else human(bar["size"])
    place = "not assigned" if bar["address"] is None else f"at {bar['address']}"
    bits = "" if bar.get("bits") is None else f", {bar['bits']} bits"
    fetch = ", prefetchable" if bar.get("prefetchable") else ""
    return f"{number}: {size}, {'I/O ports' if bar['kind'] == 'io' else 'memory'} {place}{bits}{fetch}"


def print_capabilities(cmd: Command, capabilities: list[dict[str, Any]] | None, interface: str | None) -> None:
    """Print the virtio capabilities as a table; nothing where they are not known."""
    if capabilities is None:
        return
    if not capabilities:
        cmd.line("no virtio capabilities: a legacy device" if interface == "legacy" else "no virtio capabilities")
        return
    cmd.line()
    cmd.table(
        ("AT", "CAPABILITY", "CFG_TYPE", "BAR", "OFFSET", "LENGTH", "MULTIPLIER", "VERDICT", "WHY"),
        [
            (
                _hex(cap["config_offset"], "#04x"),
                cap["type"],
                _dash(cap["cfg_type"]),
                _dash(cap["bar"]),
                _hex(cap["offset"]),
                _hex(cap["length"]),
                _dash(cap.get("notify_off_multiplier")),
                cap["verdict"],
                cap.get("why", ""),
            )
            for cap in capabilities
        ],
    )
    cmd.line()


def _hex(value: int | None, form: str = "#x") -> str:
    return "?" if value is None else format(value, form)


def _dash(value: object) -> str:
    return "-" if value is None else str(value)


def _print_registers(cmd: Command, name: str, registers: dict[str, Any] | None) -> None:
    if registers:
        cmd.paragraph(f"{name}: " + ", ".join(f"{key} {value}" for key, value in registers.items()))


def _queue(queue: dict[str, Any]) -> str:
    ring = queue.get("ring")
    parts = [f"queue {queue['index']}"]
    if queue.get("size_max") is not None:
        parts.append(f"up to {queue['size_max']} entries")
    if ring:
        parts.append(f"{ring.get('name')}: {ring.get('format')}, {ring.get('size')} entries")
        parts.append(
            f"{ring.get('published')} published, {ring.get('in_flight')} in flight, {ring.get('kicks')} kicks"
        )
        parts.extend(f"{key} {value}" for key, value in (ring.get("words") or {}).items())
        parts.append(f"buffers: {ring.get('stall')}")
    if queue.get("registers"):
        parts.extend(f"{key} {value}" for key, value in queue["registers"].items())
    return ", ".join(parts)


def features_file(cmd: Command, file: str, dev: str) -> None:
    """``features -F FILE [DEV]``: the feature words of the devices in a file, decoded."""
    from uvirtio.evidence import files

    found = files.load(file)
    shown = [found.device(dev)] if dev or not found.devices else found.devices
    if cmd.json:
        cmd.document(
            file=found.name,
            form=found.form,
            devices=[
                {
                    "address": one["address"],
                    "type": one["type"],
                    "features": one["features"],
                    "absent": [entry for entry in one["absent"] if entry["what"] == "features"],
                }
                for one in shown
            ],
        )
        return
    for one in shown:
        cmd.line(f"{one['address'] or 'no address'} {one['type']}")
        if one["features"] is None:
            why = next((entry["why"] for entry in one["absent"] if entry["what"] == "features"), "")
            cmd.paragraph(f"features: not in this dump ({why})", indent="  ")
            continue
        for name, word in one["features"].items():
            text = "not in this dump" if word is None else word_text(word)
            cmd.paragraph(f"{name}: {text}", indent="  ")
