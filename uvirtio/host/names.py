"""Find the device behind a name of the kernel's: ``eth0``, ``/dev/vda``, ``/sys/class/net/eth0``.

Only sysfs is read; a node below /dev is not opened, only its device number is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from uvirtio.errors import NoSuchDevice, NotVirtio, UsageError
from uvirtio.host import addresses, sysfs
from uvirtio.host.addresses import Address
from uvirtio.host.roots import Roots

_NAMED = {"net": (), "block": ("/dev/",), "input": ("/dev/input/",)}
"""The classes whose names people know a device by, and where the nodes of each are."""

BUSES = ("pci", "platform", "vdpa")
"""The buses that have virtio devices, and on which bind and unbind work."""


def device_behind(address: Address, roots: Roots) -> tuple[str, str]:
    """The device that a name of the families in ``addresses.LOOKED_UP`` belongs to.

    It need not be a virtio device: an ``eth0`` on another card leads to that card.

    Args:
        address: The name, parsed.
        roots: Where to look.

    Returns:
        Its bus, one of ``BUSES``, and its name on that bus.

    Raises:
        BadAddress: The name means nothing on this machine.
        NoSuchDevice: The node or the path does not exist.
        NotVirtio: It belongs to no device of these buses.
        UsageError: It belongs to more than one.
    """
    if address.family == "path":
        places = [_below_sys(address, roots)]
    elif address.family == "node":
        places = _of_node(address, roots)
    else:
        places = _of_class(address.name, roots)
        if not places:
            addresses.refuse(
                address.canonical, "no interface, disk, input device or other class device here is called that"
            )
    found = sorted({one for place in places if (one := _owner(place, roots)) is not None})
    if not found:
        raise NotVirtio(
            f"{address} belongs to no device of a bus",
            seen=", ".join(f"/sys/{place.relative_to(sysfs.real(roots.sys))}" for place in places),
            expected=f"something that stands on a device of {', '.join(BUSES)}",
            remedy="`uvirtio list` shows the virtio devices of this machine",
        )
    if len(found) > 1:
        raise UsageError(
            f"{address} belongs to {len(found)} devices",
            seen=[name for _, name in found],
            expected="one",
            remedy="name one by its address",
        )
    return found[0]


def names_of(place: Path, roots: Roots) -> Iterator[str]:
    """The names of interfaces, disks and input devices on a device, in the forms of ``device_behind``.

    Partitions and joysticks are names of it too; they are left out, since no one would look for it by them.

    Args:
        place: The directory of the device in sysfs.
        roots: Where to look.
    """
    place = sysfs.real(place)
    for kind, nodes in _NAMED.items():
        for name in sorted(sysfs.names(roots.sys / "class" / kind)):
            link = roots.sys / "class" / kind / name
            if (kind == "input" and not name.startswith("event")) or sysfs.exists(link / "partition"):
                continue
            if sysfs.real(link).is_relative_to(place):
                yield from (name, *(f"{node}{name}" for node in nodes))


def _absent(address: Address) -> NoReturn:
    raise NoSuchDevice(
        f"there is no {address}",
        seen=address.canonical,
        expected="a name that this machine has now",
        remedy="`uvirtio list` shows the virtio devices of this machine",
    )


def _below_sys(address: Address, roots: Roots) -> Path:
    try:
        place = (roots.sys / address.name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        _absent(address)
    if not place.is_relative_to(sysfs.real(roots.sys)):
        addresses.refuse(address.canonical, "it leads out of /sys")
    return place


def _of_class(name: str, roots: Roots) -> list[Path]:
    """The directories with this name in the classes of sysfs, such as net, block or input."""
    top = roots.sys / "class"
    places = (sysfs.real(top / kind / name) for kind in sysfs.names(top) if sysfs.exists(top / kind / name))
    return [place for place in dict.fromkeys(places) if place.is_relative_to(sysfs.real(roots.sys))]


def _of_node(address: Address, roots: Roots) -> list[Path]:
    node = sysfs.real(roots.dev / address.name)  # /dev/disk/by-id/... are links
    try:
        status = node.stat()
    except (OSError, ValueError):
        _absent(address)
    if stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
        kind = "block" if stat.S_ISBLK(status.st_mode) else "char"
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        place = sysfs.real(roots.sys / "dev" / kind / number)
        if place.name == number:  # no link there: a number that no driver has
            _absent(address)
        return [place]
    return _of_class(node.name, roots)  # a tree that was captured or made up has no device numbers


def _owner(place: Path, roots: Roots) -> tuple[str, str] | None:
    """The nearest device of a bus at or above a real directory of sysfs."""
    for directory in (place, *place.parents):
        for bus in BUSES:
            link = sysfs.device(bus, directory.name, roots)
            if sysfs.exists(link) and sysfs.real(link) == directory:
                return bus, directory.name
    return None
