"""The host's side of a SCSI host device: a unit comes, its medium changes, and it goes (5.6.6.3)."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.plugging import Pluggable
from uvirtio.conform.verdict import Unfit
from uvirtio.device import Device
from uvirtio.interfaces.backend import GuestMachine
from uvirtio.scripted import ScriptedCore, ScsiDisk, ScsiHost

_TARGET: Final = 7
_NAME: Final = "uvirtio-conform-unit"


class Unit(Pluggable):
    """A unit that can be plugged, and whose medium can change."""

    def change(self) -> None:
        """The medium goes, or has another size."""
        raise NotImplementedError


def unit(device: Device, *, removable: bool = False) -> Unit:
    """A unit for a SCSI host device.

    Args:
        device: The device.
        removable: An MMC unit, with a medium; else a disk.

    Raises:
        Unfit: There is no way to plug one here.
    """
    backend = device.transport.backend
    if isinstance(backend, ScriptedCore) and isinstance(backend.model, ScsiHost):
        return _ScriptedUnit(backend.model, removable)
    if device.guest is not None:
        return _MachineUnit(device.guest, removable)
    raise Unfit("its host cannot be asked for a unit")


class _ScriptedUnit(Unit):
    def __init__(self, model: ScsiHost, removable: bool) -> None:
        self._model = model
        self._disk = ScsiDisk(64, removable=removable)

    def change(self) -> None:
        """The medium has another size."""
        self._model.grow((_TARGET, 0), 128)

    def _plug(self) -> None:
        self._model.plug((_TARGET, 0), self._disk)

    def _unplug(self) -> None:
        self._model.unplug((_TARGET, 0))


class _MachineUnit(Unit):
    """QEMU: ``device_add`` and ``device_del`` on the bus of the device, over a node that holds nothing."""

    def __init__(self, guest: GuestMachine, removable: bool) -> None:
        self._guest = guest
        self._model = "scsi-cd" if removable else "scsi-hd"

    def change(self) -> None:
        """The medium goes."""
        self._guest.qmp("eject", id=_NAME, force=True)

    def _plug(self) -> None:
        # A node is in use for a while after its unit has gone, so each unit has another, and they stay.
        nodes = self._guest.qmp("query-named-block-nodes", flat=True)
        node = f"{_NAME}-{sum(one['node-name'].startswith(_NAME) for one in nodes)}"
        self._guest.qmp("blockdev-add", driver="null-co", size=1 << 20, **{"node-name": node})
        place = {"bus": f"{self._guest.id}.0", "scsi-id": _TARGET, "drive": node}
        self._guest.qmp("device_add", driver=self._model, id=_NAME, **place)

    def _unplug(self) -> None:
        self._guest.qmp("device_del", id=_NAME)
