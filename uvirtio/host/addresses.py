"""The names that a device goes by, and the one that is canonical. Pure text: nothing is looked at."""

from __future__ import annotations

import re

from uvirtio.errors import BadAddress
from uvirtio.spec import ids

_PCI = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE | re.ASCII)
_VIRTIO = re.compile(r"virtio(0|[1-9][0-9]{0,9})", re.ASCII)
_MMIO = re.compile(r"mmio:0x([0-9a-f]{1,16})", re.IGNORECASE | re.ASCII)
_ACPI = re.compile(r"LNRO0005:([0-9a-f]{2,8})", re.IGNORECASE | re.ASCII)
_DEVICE_TREE = re.compile(r"([0-9a-f]{1,16})\.virtio_mmio", re.IGNORECASE | re.ASCII)
_COMMAND_LINE = re.compile(r"virtio-mmio\.([0-9]{1,10})", re.ASCII)
_VHOST_VDPA = re.compile(r"/dev/vhost-vdpa-(0|[1-9][0-9]{0,9})", re.ASCII)
_VDPA = re.compile(r"vdpa:([^\s/\x00-\x1f\x7f]{1,128})")
QEMU = "qemu:"

FORMS = (
    "0000:03:00.0, mmio:0xfeb02e00, LNRO0005:07, a003e00.virtio_mmio, /dev/vhost-vdpa-0, vdpa:NAME, qemu:DEVICE; "
    "to look only, also virtio3 or a type such as balloon"
)


def canonical(name: str) -> str:
    """The one way to write ``name``: ``03:00.0`` becomes ``0000:03:00.0``, hex digits become lower case.

    Raises BadAddress for what has none of the known forms. Whether there is such a device is another question.
    """
    if match := _PCI.fullmatch(name):
        domain, bus, device, function = match.groups()
        if int(device, 16) > 0x1F:
            raise _bad(name, "a PCI device number up to 1f")
        # As the kernel prints it: four digits, more only where the domain needs them.
        return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}".lower()
    if match := _MMIO.fullmatch(name):
        return f"mmio:{int(match[1], 16):#x}"
    if match := _ACPI.fullmatch(name):
        return f"LNRO0005:{match[1].lower()}"
    if match := _DEVICE_TREE.fullmatch(name):
        return f"{match[1].lower()}.virtio_mmio"
    if _VIRTIO.fullmatch(name) or _COMMAND_LINE.fullmatch(name) or _VHOST_VDPA.fullmatch(name):
        return name
    if (match := _VDPA.fullmatch(name)) and match[1] not in (".", ".."):
        return name
    if name.startswith(QEMU) and len(name) > len(QEMU):
        return name
    if (kind := type_of_name(name)) is not None:
        return ids.type_name(kind)
    raise _bad(name, FORMS)


def _bad(name: str, expected: str) -> BadAddress:
    shown = name if len(name) <= 200 else name[:200] + "..."
    return BadAddress(
        f"{shown!r} is no address of a device",
        seen=shown,
        expected=expected,
        remedy="`uvirtio list` shows the addresses of this machine",
    )


def is_pci(name: str) -> bool:
    return _PCI.fullmatch(name) is not None


def is_virtio_name(name: str) -> bool:
    return _VIRTIO.fullmatch(name) is not None


def is_mmio_platform_name(name: str) -> bool:
    """Whether a platform device has one of the three names that virtio-mmio windows get."""
    return any(form.fullmatch(name) for form in (_ACPI, _DEVICE_TREE, _COMMAND_LINE))


def is_vhost_vdpa_node(name: str) -> bool:
    return _VHOST_VDPA.fullmatch(name) is not None


def mmio_base_of_name(name: str) -> int | None:
    """The base address in ``mmio:0xfeb02e00`` or ``a003e00.virtio_mmio``; None in other names."""
    match = _MMIO.fullmatch(name) or _DEVICE_TREE.fullmatch(name)
    return int(match[1], 16) if match else None


def type_of_name(name: str) -> int | None:
    """The device id of a type name (``balloon``: 5), or None. ``virtio3`` is a device, no type."""
    return None if is_virtio_name(name) else ids.type_id(name)


def is_alias(name: str) -> bool:
    """Whether ``name`` is a way to say it that only looking verbs take: ``virtio3`` or a type name."""
    return is_virtio_name(name) or type_of_name(name) is not None
