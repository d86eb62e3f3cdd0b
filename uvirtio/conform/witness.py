"""What a device's host shows of it: a second witness beside the registers and rings that the driver sees.

QEMU is asked by QMP, as far as its version may be (``backends/qemu/queries.py``); what it does not tell is None,
and a test then goes by what the driver sees alone. The files behind disks and memory are this process's.
"""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any, Final, NamedTuple

from uvirtio.backends.qemu import queries
from uvirtio.device import Device
from uvirtio.errors import QemuFailed, UvirtioError
from uvirtio.interfaces.backend import ProvidesMemory
from uvirtio.scripted import Disk, ScriptedCore
from uvirtio.spec import features as f
from uvirtio.spec.status import Status

_STATUS_PREFIX: Final = "VIRTIO_CONFIG_S_"
_OTHER_NAMES: Final = {
    "VIRTIO_F_IOMMU_PLATFORM": "VIRTIO_F_ACCESS_PLATFORM",
    "VIRTIO_CONFIG_S_NEEDS_RESET": "VIRTIO_CONFIG_S_DEVICE_NEEDS_RESET",
}
_PAGE: Final = 4096


class HostQueue(NamedTuple):
    """A split ring as QEMU has it, which it serves itself."""

    size: int
    desc: int
    """The address of the descriptor table; 0: the queue is not enabled."""
    used_idx: int


class Host:
    """The host of a device; one that tells nothing gives None for all."""

    def __init__(self, device: Device) -> None:
        """Note whom to ask.

        Args:
            device: The device.
        """
        self._device = device
        self._guest = device.guest
        inner = "/virtio-backend" if device.transport.kind.startswith("pci") else ""
        self._path = "" if self._guest is None else f"/machine/peripheral/{self._guest.id}{inner}"

    def _status(self) -> dict[str, Any] | None:
        if self._guest is None:
            return None
        try:
            return queries.status(self._guest.qmp, self._path)
        except QemuFailed:  # an older QEMU, or a path that it has not
            return None

    def status(self) -> int | None:
        """The device status (2.1)."""
        told = self._status()
        shown = None if told is None else told.get("status")
        if not isinstance(shown, dict):
            return None
        unknown = shown.get("unknown-statuses", 0)
        names = [_name(line).removeprefix(_STATUS_PREFIX) for line in shown.get("statuses", ())]
        known = {bit.name: int(bit) for bit in Status}
        return int(unknown) | sum(known.get(name, 0) for name in names)

    def features(self, type_name: str) -> int | None:
        """The features that the driver accepted; None also where it has a name for one that is not known here.

        Args:
            type_name: The type of the device.
        """
        told = self._status()
        shown = None if told is None else told.get("guest-features")
        if not isinstance(shown, dict):
            return None
        word = int(shown.get("unknown-dev-features", 0))
        for line in (*shown.get("transports", ()), *shown.get("dev-features", ())):
            bit = f.numbered(type_name, _name(line).removeprefix(f"VIRTIO_{type_name.upper()}_F_"))
            if bit is None:
                return None
            word |= f.mask(bit)
        return word

    def queue(self, index: int) -> HostQueue | None:
        """A queue.

        Args:
            index: Its number.
        """
        if self._guest is None:
            return None
        try:
            if queries.vhost_queue(self._guest.qmp, self._path, index) is not None:
                return None
            told = queries.queue(self._guest.qmp, self._path, index)
            return HostQueue(int(told["vring-num"]), int(told["vring-desc"]), int(told["used-idx"]))
        except (QemuFailed, KeyError):
            return None

    def memory(self, name: str) -> int | None:
        """A number that ``query-memory-devices`` has of a memory device.

        Args:
            name: Of the member, such as ``size``: what is plugged, in bytes.
        """
        if self._guest is None:
            return None
        for one in self._guest.qmp("query-memory-devices"):
            if one["data"].get("id") == self._guest.id:
                return int(one["data"][name])
        return None

    def balloon(self) -> int | None:
        """The pages of 4 KiB that the machine is smaller by, by ``query-balloon``."""
        if self._guest is None:
            return None
        return (self._guest.ram - int(self._guest.qmp("query-balloon")["actual"])) // _PAGE

    def image(self, offset: int, length: int) -> bytes | None:
        """What is in the file behind a disk.

        Args:
            offset: In bytes.
            length: In bytes.
        """
        backend = self._device.transport.backend
        if isinstance(backend, ScriptedCore) and isinstance(backend.model, Disk):
            return bytes(backend.model.durable[offset : offset + length])
        if isinstance(backend, ProvidesMemory):
            start = offset // _PAGE * _PAGE
            whole = -(-(offset + length - start) // _PAGE) * _PAGE
            with suppress(UvirtioError):  # another image than the one that was supplied
                window = backend.plugged_memory()
                with closing(window), window.map(start, whole) as content:
                    return content[offset - start : offset - start + length]
        return None


def _name(line: object) -> str:
    """The name before an explanation, as in ``VIRTIO_F_VERSION_1: Device compliant ...``."""
    name = str(line).partition(":")[0]
    return _OTHER_NAMES.get(name, name)
