"""The host's side of a console: a port comes, and goes (5.3.6.2)."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.plugging import Pluggable
from uvirtio.conform.verdict import Unfit
from uvirtio.device import Device
from uvirtio.interfaces.backend import GuestMachine
from uvirtio.scripted import Console, ScriptedCore

_PORT: Final = 1
_NAME: Final = "uvirtio-conform-port"


class Port(Pluggable):
    """A port that can be plugged."""


def port(device: Device) -> Port:
    """A port for a console.

    Args:
        device: The device.

    Raises:
        Unfit: There is no way to plug one here.
    """
    backend = device.transport.backend
    if isinstance(backend, ScriptedCore) and isinstance(backend.model, Console):
        return _ScriptedPort(backend.model)
    if device.guest is not None:
        return _MachinePort(device.guest)
    raise Unfit("its host cannot be asked for a port")


class _ScriptedPort(Port):
    def __init__(self, model: Console) -> None:
        self._model = model

    def _plug(self) -> None:
        self._model.plug(_PORT)

    def _unplug(self) -> None:
        self._model.unplug(_PORT)


class _MachinePort(Port):
    def __init__(self, guest: GuestMachine) -> None:
        self._guest = guest

    def _plug(self) -> None:
        self._guest.qmp("device_add", driver="virtserialport", id=_NAME, bus=f"{self._guest.id}.0", nr=_PORT)

    def _unplug(self) -> None:
        self._guest.qmp("device_del", id=_NAME)
