"""Which node belongs to which vDPA device, and what its parent device is: from sysfs, without opening anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from uvirtio.backends.capability_list import capabilities
from uvirtio.errors import NoSuchDevice, NotBound
from uvirtio.host import sysfs
from uvirtio.host.drivers import VDPA, VP_VDPA
from uvirtio.host.roots import Roots
from uvirtio.spec import pci


def node_of(name: str, roots: Roots) -> str | None:
    """Return the node of a vDPA device that is bound to vhost_vdpa, ``/dev/vhost-vdpa-0``, or None."""
    return sysfs.vdpa_node(sysfs.device("vdpa", name, roots))


def name_of(node: str, roots: Roots) -> str | None:
    """Return the name of the vDPA device behind ``/dev/vhost-vdpa-0``; None where there is none."""
    names = sysfs.device_names("vdpa", roots)
    return next((name for name in names if node_of(name, roots) == node), None)


def require_bound(address: str, roots: Roots) -> tuple[str, str]:
    """Check that a vDPA device is bound to vhost_vdpa. Reads sysfs only.

    Args:
        address: ``vdpa:NAME`` or ``/dev/vhost-vdpa-N``.
        roots: Where /sys is.

    Returns:
        Its node and its name.

    Raises:
        NoSuchDevice: There is no such device.
        NotBound: The device is not bound to vhost_vdpa.
    """
    if address.startswith("vdpa:"):
        name = address.removeprefix("vdpa:")
        known = "/" not in name and name not in ("", ".", "..") and sysfs.is_dir(sysfs.device("vdpa", name, roots))
    else:
        name = name_of(address, roots) or ""
        known = bool(name)
    if not known:
        raise NoSuchDevice(
            f"there is no vDPA device {address}",
            seen=f"nothing of this name in {sysfs.bus('vdpa', roots) / 'devices'}",
            expected="a device of uvirtio list",
            remedy="uvirtio list; `vdpa dev show` (iproute2) lists vDPA devices too, `vdpa dev add` makes one",
        )
    node = node_of(name, roots)
    driver = sysfs.driver_of(sysfs.device("vdpa", name, roots))
    if driver != VDPA or node is None:
        raise NotBound(
            f"vdpa:{name} is not bound to {VDPA}",
            seen=driver or "no driver",
            expected=f"{VDPA} and its node",
            remedy=f"uvirtio bind vdpa:{name}",
        )
    return node, name


def parent_of(name: str, roots: Roots) -> Path:
    """Return the sysfs directory of the parent device: a PCI function under vp-vdpa, VDUSE, a simulator ..."""
    return sysfs.device("vdpa", name, roots).resolve().parent


def kind_of(name: str, roots: Roots) -> str:
    """Return what makes the device: the driver of its parent, or ``vduse``; empty where sysfs does not tell.

    The simulators' devices have no parent.
    """
    parent = parent_of(name, roots)
    return sysfs.driver_of(parent) or sysfs.link_name(parent / "subsystem") or ""


def behind(name: str, roots: Roots) -> str:
    """Return the parent device, for people: ``0000:03:00.0 (vp-vdpa)``, ``vduse0 (vduse)``.

    A sub-function is shown with the PCI function that it belongs to.
    """
    parent, kind = parent_of(name, roots), kind_of(name, roots)
    function = sysfs.function_below(sysfs.device("vdpa", name, roots))
    of = "" if function in (None, parent) else f" of {function.name}"
    return (f"{parent.name} ({kind})" if kind else parent.name) + of


def calls_of(name: str, roots: Roots) -> int | None:
    """Return how many calls (queues and configuration) the device can deliver; None where that is unknown.

    vp_vdpa requests one MSI-X vector for each of them when DRIVER_OK is set, uses none if it does not get all, and
    reports that only to the kernel's log. So this reads the vectors from configuration space, whose capabilities
    the kernel shows to root alone.
    """
    parent = parent_of(name, roots)
    if sysfs.driver_of(parent) != VP_VDPA:
        return None
    try:
        fd = os.open(parent / "config", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _msix_vectors(lambda offset, width: _config(fd, offset, width))
    except _Hidden:
        return None
    finally:
        os.close(fd)


class _Hidden(Exception):
    """Configuration space ends before the requested place: the kernel hides the rest from this user."""


def _config(fd: int, offset: int, width: int) -> int:
    data = os.pread(fd, width, offset)
    if len(data) != width:
        raise _Hidden
    return int.from_bytes(data, "little")


def _msix_vectors(read: Callable[[int, int], int]) -> int:
    at = next((at for at, kind in capabilities(read) if kind == pci.CapId.MSIX), None)
    return 0 if at is None else (read(at + pci.MSIX_CONTROL, 2) & pci.MSIX_CONTROL_SIZE_MASK) + 1
