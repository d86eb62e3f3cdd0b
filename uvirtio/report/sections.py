"""The plain parts of a report: interrupts, registers, configuration, environment, and what is missing."""

from __future__ import annotations

from typing import Any, Final

from uvirtio.report.markup import Children, Markup, code, element, join, mark, pairs, table

Record = dict[str, Any]

_NO_VECTOR: Final = 0xFFFF  # 4.1.5.1.2
_ROW: Final = 16


def interrupts(record: Record, queues: list[dict[str, Any]], diag: dict[str, Any] | None) -> Markup | None:
    """The interrupt mode, the vectors with their counts, and which vector each queue has."""
    told, msix = record.get("interrupts") or {}, record.get("msix")
    step: dict[str, Any] = next((one for one in (diag or {}).get("steps") or () if one["name"] == "vectors"), {})
    mode = told.get("mode") or (step.get("data") or {}).get("interrupts")
    summary: list[tuple[str, Children]] = []
    if mode:
        summary.append(("mode", mode))
    if msix:
        state = "on" if msix.get("enabled") else "off"
        summary.append(("MSI-X", f"{msix.get('vectors')} vectors, {state}"))
    if told.get("pin") is not None:
        pin = told["pin"]
        summary.append(("pin", f"INT{chr(64 + pin)}" if 1 <= pin <= 4 else "none"))
    if told.get("irq"):
        summary.append(("line", told["irq"]))
    parts = [pairs(summary)] if summary else []
    assigned = _assigned(record, queues)
    if assigned:
        parts.append(table(("What", "Vector", "Verdict"), assigned, caption="The vector of each interrupt source"))
    vectors = told.get("vectors")
    if vectors:
        rows = [(code(one["irq"]), _or_dash(one.get("count")), _or_dash(one.get("name"))) for one in vectors]
        parts.append(
            table(("Interrupt", "Count", "Handled by"), rows, caption="Interrupts of this function so far")
        )
    return join(*parts) if parts else None


def _assigned(record: Record, queues: list[dict[str, Any]]) -> list[list[Children]]:
    found: list[list[Children]] = []
    common = record.get("common") or {}
    sources = [("configuration change", common.get("config_msix_vector", common.get("msix_config")))]
    sources += [
        (f"queue {queue['index']}", (queue.get("registers") or {}).get("queue_msix_vector")) for queue in queues
    ]
    for name, vector in sources:
        if isinstance(vector, int):
            none = vector == _NO_VECTOR
            found.append(
                [
                    name,
                    code(f"{vector:#06x}" if none else vector),
                    mark("note", "NO_VECTOR") if none else mark("pass"),
                ]
            )
    return found


def configuration(record: Record) -> Markup | None:
    """The device configuration, decoded and as bytes."""
    told = record.get("device_config")
    if not told:
        return None
    fields = [(name, code(_number(value))) for name, value in (told.get("fields") or {}).items()]
    parts = [element("p", f"{told.get('length')} bytes", class_="small")]
    if fields:
        parts.append(table(("Field", "Value"), fields, caption="Fields of the device configuration"))
    if told.get("hex"):
        parts.append(_folded("As bytes", dump(bytes.fromhex(told["hex"]), told.get("masked") or (), "masked")))
    return join(*parts)


def registers(record: Record) -> Markup | None:
    """The common registers."""
    told = record.get("common")
    if not told:
        return None
    rows = [(name, code(_number(value))) for name, value in told.items()]
    return table(("Register", "Value"), rows, caption="Common registers, as they were read")


def pci_space(record: Record) -> Markup | None:
    """PCI configuration space: the capability list, and the bytes."""
    space = record.get("config_space")
    if not space:
        return None
    rows = [
        (
            code(f"{one['offset']:#05x}"),
            one.get("name") or f"{one.get('id') or 0:#04x}",
            "extended" if one.get("extended") else "standard",
        )
        for one in record.get("pci_capabilities") or ()
    ]
    parts = []
    if rows:
        parts.append(table(("Offset", "Capability", "List"), rows, caption="Capability list"))
    text = dump(bytes.fromhex(space["hex"]), space.get("hidden") or (), "not read")
    parts.append(_folded(f"{space['length']} bytes", text))
    return join(*parts)


def dump(data: bytes, hidden: Any, why: str) -> Markup:
    """Bytes in rows of 16; rows that are all zero are left out, hidden bytes are shown as dots."""
    covered = {at for one in hidden for at in range(one["offset"], min(one["offset"] + one["length"], len(data)))}
    lines, left_out = [], False
    for start in range(0, len(data), _ROW):
        row = data[start : start + _ROW]
        places = range(start, start + len(row))
        if not any(row) and not covered.intersection(places):
            left_out = True
            continue
        if left_out:
            lines.append("     zeros")
            left_out = False
        lines.append(f"{start:03x}: " + " ".join(".." if at in covered else f"{data[at]:02x}" for at in places))
    if left_out:
        lines.append("     zeros")
    if covered:
        lines.append(f"..   {why}")
    return element("pre", Markup("\n").join(element("span", line) for line in lines))


def environment(document: dict[str, Any] | None, diag: dict[str, Any] | None) -> Markup | None:
    """The machine, and how the documents were made."""
    rows: list[tuple[str, Children]] = []
    if document is not None:
        made, source = document.get("made") or {}, document.get("source") or {}
        rows += [("made by", made.get("by") or "another tool"), ("made at", made.get("at") or "not known")]
        rows.append(("made from", f"{source.get('form')}" + (f", {source['name']}" if source.get("name") else "")))
        rows.append(("masked", "MACs, serials, host names" if document.get("masked") else "nothing"))
        for name, value in (document.get("environment") or {}).items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            if shown not in (None, ""):
                rows.append(
                    (
                        name.replace("_", " "),
                        {True: "yes", False: "no"}.get(shown, shown) if isinstance(shown, bool) else shown,
                    )
                )
    elif diag is not None:
        rows.append(("made by", "uvirtio diag"))
    return pairs(rows) if rows else None


def identity(record: Record) -> Markup:
    """What the device is, and who holds it."""
    hardware = record.get("hardware") or {}
    group = record.get("iommu_group")
    rows: list[tuple[str, Any]] = [
        ("hardware", " ".join(str(one) for one in hardware.values() if one) or None),
        ("interface", (record.get("opened") or {}).get("interface") or record.get("interface")),
        ("PCI id", record.get("pci_id")),
        ("subsystem", record.get("subsystem_id")),
        ("revision", record.get("revision")),
        ("class", record.get("pci_class")),
        ("driver", record.get("driver")),
        ("kernel driver", record.get("kernel_driver")),
        ("driver_override", record.get("driver_override")),
        ("IOMMU group", None if group is None else f"{group}" + (", no IOMMU" if record.get("noiommu") else "")),
        ("NUMA node", record.get("numa_node")),
        ("opened as", (record.get("opened") or {}).get("description")),
    ]
    return pairs([(name, value) for name, value in rows if value not in (None, "")])


def absent(record: Record) -> Markup | None:
    """What the dump does not have, and why."""
    told = record.get("absent") or ()
    if not told:
        return None
    rows = [(one["what"], one["why"]) for one in told]
    return _folded(
        f"{len(rows)} parts are not in the dump", table(("Part", "Why"), rows, caption="What is not in the dump")
    )


def _folded(title: str, content: Markup) -> Markup:
    return element("details", element("summary", title), content)


def _number(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value > 9:
        return f"{value} ({value:#x})"
    return "-" if value is None else str(value)


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)
