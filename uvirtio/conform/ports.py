"""The host's side of a console: a port comes, and goes (5.3.6.2)."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Self

from uvirtio.conform.verdict import Unfit
from uvirtio.device import Device
from uvirtio.errors import UvirtioError
from uvirtio.interfaces.backend import GuestMachine
from uvirtio.scripted import Console, ScriptedCore

_PORT: Final = 1
_NAME: Final = "uvirtio-conform-port"


class Port:
    """A port that can be plugged; a context manager, which unplugs it."""

    plugged = False

    def plug(self) -> None:
        """The port comes."""
        self._plug()
        self.plugged = True

    def unplug(self) -> None:
        """The port goes, if it is there."""
        if self.plugged:
            self.plugged = False
            self._unplug()

    def _plug(self) -> None:
        raise NotImplementedError

    def _unplug(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(UvirtioError):  # the machine may have ended, which the next step of the test sees
            self.unplug()


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
