"""Takes out of a document what says whose machine it is: MAC addresses, serial numbers, host names.

What was replaced is still there as a place, so that a masked dump is not mistaken for a device full of zeros.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any, Final

from uvirtio.evidence import record
from uvirtio.spec import device_config

MASKED: Final = "masked"
_SERIAL_AT, _SERIAL_LENGTH = 4, 8
_MAC: Final = re.compile(r"\b[0-9a-fA-F]{2}(?:([:-])[0-9a-fA-F]{2})(?:\1[0-9a-fA-F]{2}){4}\b")
_SERIAL: Final = re.compile(r"(; serial: )(?!none\b).+", re.DOTALL)
"""The end of what ``diag`` says of the data path of a disk."""
_TYPED: Final = re.compile(r"\b(serial|file|qmp|binary)=(?:(?!/virtio-)[^,])*")
"""What a ``qemu:`` address may hold besides: serial numbers, and paths with the names of users."""


def masked(document: dict[str, Any]) -> dict[str, Any]:
    """A copy of the document without them.

    Args:
        document: As ``schema.json`` has it.
    """
    made = deepcopy(document)
    made["masked"] = True
    environment = made["environment"]
    if environment is not None and environment.get("host") is not None:
        environment["host"] = MASKED
    if made["source"].get("name"):
        made["source"]["name"] = MASKED
    for device in made["devices"]:
        _device(device)
    without: dict[str, Any] = masked_text(made)
    return without


def masked_text(value: Any) -> Any:
    """The same value without MAC addresses and typed secrets in any of its texts: addresses, errors, names.

    Args:
        value: A document, or a part of one; of a diagnosis the disk's serial number is taken out, too.
    """
    if isinstance(value, str):
        plain = _SERIAL.sub(rf"\1{MASKED}", _MAC.sub(MASKED, value))
        return _TYPED.sub(rf"\1={MASKED}", plain) if "qemu:" in plain else plain
    if isinstance(value, dict):
        return {name: masked_text(one) for name, one in value.items()}
    return [masked_text(one) for one in value] if isinstance(value, list) else value


def _device(device: dict[str, Any]) -> None:
    _serial(device)
    for one in device.get("findings") or ():
        # What shows a use names interfaces, mounts, programs and the peers of connections.
        if "evidence" in one:
            one["evidence"] = MASKED
    config = device.get("device_config")
    if config is not None:
        _config(device["type"], config)


def _serial(device: dict[str, Any]) -> None:
    """The Device Serial Number of PCI Express, which a network function makes of its MAC address."""
    space = device.get("config_space")
    if space is None:
        return
    data = bytearray.fromhex(space["hex"])
    for cap in device.get("pci_capabilities") or ():
        if cap["id"] != record.DEVICE_SERIAL or not cap.get("extended"):
            continue
        start = cap["offset"] + _SERIAL_AT
        data[start : start + _SERIAL_LENGTH] = bytes(len(data[start : start + _SERIAL_LENGTH]))
        space.setdefault("hidden", []).append({"offset": start, "length": _SERIAL_LENGTH})
    space["hex"] = data.hex()


def _config(type_name: str, config: dict[str, Any]) -> None:
    secret = {name for kind, name in device_config.SECRET if kind == type_name}
    for name in secret & {*config["fields"]}:
        config["fields"][name] = MASKED
    data = bytearray.fromhex(config["hex"] or "")
    for field, _ in device_config.FIELDS.get(type_name, ()):
        if field.name in secret and field.end <= len(data):
            data[field.offset : field.end] = bytes(field.width)
            config.setdefault("masked", []).append({"offset": field.offset, "length": field.width})
    config["hex"] = data.hex()
