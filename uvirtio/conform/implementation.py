"""Which implementation of a device this is, and which version: what the quirk list goes by."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import NamedTuple

from uvirtio.backends.qemu import queries
from uvirtio.backends.qemu.process import version_of
from uvirtio.backends.vhost_user import VhostUserNode
from uvirtio.backends.vhost_user.address import QSD_PROGRAM
from uvirtio.backends.vhost_vdpa import VhostVdpaNode
from uvirtio.device import Device
from uvirtio.errors import UsageError
from uvirtio.interfaces.backend import PciFunction
from uvirtio.scripted import ScriptedCore
from uvirtio.spec import pci


class Implementation(NamedTuple):
    """A name and a version; each empty where it is not known."""

    name: str
    version: str


def parse(text: str) -> Implementation:
    """What a caller says that the device is.

    Args:
        text: ``NAME/VERSION``.

    Raises:
        UsageError: It has another form.
    """
    name, slash, version = text.partition("/")
    if not (name and slash and version and text.isprintable()):
        raise UsageError(
            f"{text!r} is no implementation",
            seen=text,
            expected="a name and a version, such as qemu/7.2.22",
        )
    return Implementation(name, version)


def of(device: Device) -> Implementation:
    """What can be found out about a device: QEMU and qemu-storage-daemon are asked, a PCI function has ids.

    Of a vDPA device it is what makes it, and the kernel's version: not what serves it behind that.

    Args:
        device: An open device.
    """
    backend = device.transport.backend
    if isinstance(backend, ScriptedCore):
        return Implementation("scripted", "")
    if device.guest is not None:
        return Implementation("qemu", ".".join(map(str, queries.version(device.guest.qmp))))
    if device.transport.kind == "vdpa":
        kind = backend.kind if isinstance(backend, VhostVdpaNode) else ""
        return Implementation(kind or "vhost-vdpa", platform.release())
    if device.transport.kind.startswith("pci"):
        return _of_ids(backend)  # type: ignore[arg-type]
    if isinstance(backend, VhostUserNode):
        return _of_back_end(backend)
    return Implementation("", "")


def _of_back_end(node: VhostUserNode) -> Implementation:
    """qemu-storage-daemon, by the name under which it was started; no other user's program is run for that."""
    program = node.program or _started_by_others(node)
    if Path(program).name == QSD_PROGRAM and Path(program).is_absolute():
        return Implementation(QSD_PROGRAM, ".".join(map(str, version_of(program))))
    return Implementation("", "")


def _started_by_others(node: VhostUserNode) -> str:
    """The first word of the back end's command line; empty where it is another user's, or cannot be read."""
    peer = node.peer
    if peer is None or not peer.pid or peer.uid != os.geteuid():
        return ""
    try:
        return Path(f"/proc/{peer.pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _of_ids(function: PciFunction) -> Implementation:
    read = function.config.read16
    places = (pci.CFG_VENDOR_ID, pci.CFG_DEVICE_ID, pci.CFG_SUBSYSTEM_VENDOR_ID, pci.CFG_SUBSYSTEM_ID)
    ids = ":".join(f"{read(place):04x}" for place in places)
    return Implementation(ids, f"{function.config.read8(pci.CFG_REVISION_ID):02x}")
