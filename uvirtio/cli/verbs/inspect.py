"""``uvirtio inspect``: everything that sysfs has about one device, and what this user cannot see of it.

The kernel knows no vhost-user device: that one is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, FromOption, LookOrFileArgument, verb
from uvirtio.cli.size import human
from uvirtio.cli.verbs.from_file import inspect_file, print_capabilities, word_text
from uvirtio.cli.verbs.list import device_members
from uvirtio.errors import UsageError
from uvirtio.host.addresses import VHOST_USER

if TYPE_CHECKING:
    from uvirtio.binding.discover import DiscoveredDevice
    from uvirtio.binding.facts import Facts
    from uvirtio.binding.rules import Verdicts


def register(app: typer.Typer) -> None:
    """Add ``inspect`` to the application."""
    verb(app, "inspect")(inspect)


def inspect(cmd: Command, dev: LookOrFileArgument = "", file: FromOption = "") -> None:
    """Show all that sysfs tells about one device, or what a dump has. The device is not touched.

    A vhost-user back end is connected to and asked; no queue is started.
    """
    if file:
        inspect_file(cmd, file, dev)
        return
    if not dev:
        raise UsageError("which device?", expected="DEV, or -F FILE", remedy="uvirtio list")
    if dev.startswith(VHOST_USER):
        _back_end(cmd, dev)
        return
    from uvirtio.binding.discover import find
    from uvirtio.binding.facts import Facts
    from uvirtio.binding.rules import check

    found = find(dev, cmd.roots)
    facts = Facts(cmd.roots)
    members = _members(cmd, found, check(found, cmd.roots, facts), facts)
    if cmd.json:
        cmd.document(**members)
    else:
        _print(cmd, members)


def _back_end(cmd: Command, dev: str) -> None:
    """Connect to a vhost-user back end, and show what it says of itself. No ring is started."""
    from uvirtio.backends import vhost_user
    from uvirtio.evidence.record import bits
    from uvirtio.host import denylist
    from uvirtio.interfaces.values import DEFAULT_TIMEOUT
    from uvirtio.spec import ids

    target = vhost_user.parse(dev)
    denylist.check([dev, *target.names], cmd.roots)
    facts = vhost_user.look(target, timeout=DEFAULT_TIMEOUT, roots=cmd.roots)
    name = ids.type_name(facts.device_id)
    members = {
        "address": facts.address,
        "type": name,
        "device_id": facts.device_id,
        **facts.as_dict(),
        "features": {"sent": facts.offered, "offered": facts.features, **bits(name, facts.features)},
    }
    if cmd.json:
        cmd.document(**members)
    else:
        _print_back_end(cmd, members)


def _members(cmd: Command, found: DiscoveredDevice, verdicts: Verdicts, facts: Facts) -> dict[str, Any]:
    from uvirtio.binding.hwdb import hardware

    hidden: list[str] = []
    mates = facts.mates.group_members(found)
    virtio = found.virtio_path
    return {
        **device_members(found, verdicts),
        "hardware": hardware(found, cmd.roots),
        "subsystem_id": found.subsystem_id,
        "revision": found.revision,
        "driver_override": found.driver_override,
        "window": None if found.window is None else {"base": found.window[0], "length": found.window[1]},
        "noiommu": found.noiommu,
        "above": list(found.above),
        "group_members": None
        if mates is None
        else [{"address": one.address, "pci_id": one.pci_id, "driver": one.driver} for one in mates],
        "findings": [one.as_dict() for one in verdicts.findings],
        "unchecked_why": [{"rule": one.rule, "why": one.why} for one in verdicts.unchecked],
        "bars": _bars(found, hidden),
        **_configuration(found, hidden),
        "features": _features(found, hidden),
        "status": _status(virtio, hidden),
        "hidden": hidden,
    }


def _bars(found: DiscoveredDevice, hidden: list[str]) -> list[dict[str, Any]] | None:
    from uvirtio.binding.discover import bars

    if found.bus != "pci":
        return None
    every = bars(found)
    if every is None:
        hidden.append("BARs: the resource file cannot be read")
        return None
    return [{"bar": one.index, "size": one.size, "kind": "io" if one.is_io else "memory"} for one in every if one]


def _configuration(found: DiscoveredDevice, hidden: list[str]) -> dict[str, Any]:
    """The contents of configuration space: virtio capabilities and MSI-X; None: this user may not read them."""
    from uvirtio.binding.discover import config_bytes
    from uvirtio.errors import DeviceGone, PermissionLack
    from uvirtio.evidence.record import msix

    if found.bus != "pci":
        return {"capabilities": None, "msix": None}
    try:
        space = config_bytes(found)
    except (PermissionLack, DeviceGone) as error:
        hidden.append(error.message)
        return {"capabilities": None, "msix": None}
    return {
        "capabilities": [cap.as_dict() for cap in space.capabilities],
        "msix": msix(space.data),
    }


def _features(found: DiscoveredDevice, hidden: list[str]) -> dict[str, Any] | None:
    """The features that the kernel's driver negotiated. The offered ones are in registers, which are not read."""
    from uvirtio.binding.discover import negotiated_features
    from uvirtio.evidence.record import bits

    word = negotiated_features(found)
    if word is None:
        hidden.append("features: no kernel driver is bound, and the registers are not read")
        return None
    return {"negotiated": word, **bits(found.type, word)}


def _status(virtio: Path | None, hidden: list[str]) -> dict[str, Any] | None:
    from uvirtio.host.sysfs import number
    from uvirtio.spec.status import names

    value = number(virtio / "status") if virtio else None
    if value is None:
        hidden.append("status: sysfs shows it only while a kernel driver is bound")
        return None
    return {"value": value, "names": names(value)}


# --- as text ------------------------------------------------------------------------------------------------


def _print(cmd: Command, members: dict[str, Any]) -> None:
    features, status, msi = members["features"], members["status"], members["msix"]
    rows: list[tuple[str, object]] = [
        ("address", members["address"]),
        ("type", f"{members['type']} (device id {_or_dash(members['device_id'])})"),
        ("interface", members["interface"]),
        ("PCI id", f"{_or_dash(members['pci_id'])}, subsystem {_or_dash(members['subsystem_id'])}"),
        ("driver", _driver(members)),
        ("kernel driver", _or_dash(members["kernel_driver"])),
        ("IOMMU group", _group(members)),
        ("status", "not shown" if status is None else f"{status['value']:#04x} " + "|".join(status["names"])),
        (
            "features",
            "not shown" if features is None else word_text({"word": f"{features['negotiated']:#x}", **features}),
        ),
    ]
    if members["hardware"] is not None:
        rows.insert(1, ("hardware", " ".join(filter(None, members["hardware"].values()))))
    if members["window"] is not None:
        rows.append(("window", f"{members['window']['base']:#x}, {members['window']['length']} bytes"))
    if members["node"] is not None:
        rows.append(("node", members["node"]))
    if members["parent"] is not None:
        rows.append(("offered by", " of ".join(members["above"] or [members["parent"]])))
    if msi is not None:
        state = "on" if msi["enabled"] else "off"
        rows.append(("MSI-X", f"{msi['vectors']} vectors, {state}, BAR {msi['bar']}+{msi['offset']:#x}"))
    cmd.fields(rows)
    for bar in members["bars"] or ():
        cmd.line(f"BAR {bar['bar']}: {human(bar['size'])}, {'I/O ports' if bar['kind'] == 'io' else 'memory'}")
    print_capabilities(cmd, members["capabilities"], members["interface"])
    for one in members["findings"]:
        how = "refuses bind" if one["severity"] == "refuse" else "warning"
        cmd.line(f"rule {one['rule']} ({how}): {one['evidence']}")
    for one in members["unchecked_why"]:
        cmd.line(f"rule {one['rule']} unchecked: {one['why']}")
    for text in (*members["notes"], *members["hidden"]):
        cmd.line(f"not visible: {text}")


def _print_back_end(cmd: Command, members: dict[str, Any]) -> None:
    who, protocol, features = members["back_end"], members["protocol_features"], members["features"]
    process = "of another PID namespace"
    if who["pid"] is not None:
        process = f"{_or_dash(who['command'])} (pid {who['pid']}), {who['exe'] or 'its file is not shown'}"
    config = members["configuration"]
    rows: list[tuple[str, object]] = [
        ("address", members["address"]),
        ("type", f"{members['type']} (device id {members['device_id']}), as the address says"),
        ("interface", members["interface"]),
        ("back end", f"{process}; user {who['uid']}, group {who['gid']}"),
        ("protocol features", f"{protocol['offered']:#x}: {', '.join(protocol['names']) or 'none'}"),
        ("of these used", ", ".join(protocol["used"]) or "none"),
        ("features", word_text({"word": f"{features['offered']:#x}", **features})),
        ("queues", members["queues"]),
        ("memory slots", "not told" if members["memory_slots"] is None else members["memory_slots"]),
        (
            "configuration",
            f"{config['length']} bytes" + (f", from the {config['from']}" if config["from"] else ""),
        ),
    ]
    cmd.fields(rows)
    if members["ended"]:
        cmd.line("the back end has ended with this connection: it serves one")


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _driver(members: dict[str, Any]) -> str:
    override = members["driver_override"]
    return _or_dash(members["driver"]) + (f" (driver_override {override})" if override else "")


def _group(members: dict[str, Any]) -> str:
    if members["iommu_group"] is None:
        return "none"
    kind = ", no IOMMU" if members["noiommu"] else ""
    if members["group_members"] is None:
        return f"{members['iommu_group']}{kind}, with others that cannot be listed, or alone"
    others = ", ".join(f"{one['address']} ({_or_dash(one['driver'])})" for one in members["group_members"])
    return f"{members['iommu_group']}{kind}" + (f", with {others}" if others else ", alone")
