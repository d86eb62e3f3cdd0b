"""What the data paths of all types share: the result, what stands around the device, and how much is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from uvirtio.device import Device, Observer
from uvirtio.interfaces.backend import OtherSide

Witness = Callable[..., Any]
"""``qmp(command, **arguments)`` of the guest machine that has the device, where this process runs it."""


class Harm(Enum):
    """What a probe does to others than the device."""

    NONE = "harmless"
    SEEN = "seen by others"
    CUTS_OFF = "cuts others off"


@dataclass(frozen=True, slots=True)
class Around:
    """What stands around a device that is probed."""

    witness: Witness | None = None
    """QMP of the guest machine that has the device; None: this process runs none."""
    ident: str | None = None
    """The name of the device in that machine."""
    intrusive: bool = False
    """Whether it may be done what is seen by others, or cuts them off: the device was made for this, or its user
    has said so."""


@dataclass(frozen=True, slots=True)
class PathResult:
    """The result of one test."""

    detail: str
    """What was done and read."""
    suspicious: str = ""
    """An anomaly of a data path that works."""
    cause: str = "data-path"
    """The id of the cause of the anomaly."""
    skipped: bool = False
    """Whether nothing could be tested."""


class DataPath(Protocol):
    """The data path test of one device type."""

    def start(self, observe: Observer) -> None:
        """Bring the device up to DRIVER_OK (3.1.1).

        Args:
            observe: Called with the name of each step, as for ``Device.start``.
        """
        ...

    def exercise(self) -> PathResult:
        """Exchange buffers with the device."""
        ...

    def change_configuration(self) -> PathResult | None:
        """Have the host change the configuration, and read the change; None where that cannot be triggered."""
        ...

    def serve(self, seconds: float) -> int:
        """Answer what the device asks for, without traffic of its own.

        Args:
            seconds: How long; it may return earlier.

        Returns:
            How many messages the device sent by itself.
        """
        ...


class Idle:
    """Takes interrupts and asks for nothing: most devices send nothing by themselves."""

    _device: Device

    def serve(self, seconds: float) -> int:
        """Wait, taking interrupts."""
        self._device.wait(lambda: False, timeout=seconds, what="time to pass", owed=False)
        return 0


def other_side(device: Device, name: str) -> OtherSide | None:
    """What shows another side of a device; None: this process does not see it.

    Args:
        device: The device.
        name: ``peer``, ``screen`` or ``memory``.
    """
    backend = device.transport.backend
    return backend if isinstance(backend, OtherSide) and name in backend.other_sides else None


def supplied_disk(witness: Witness | None, ident: str | None) -> dict[str, Any] | None:
    """The disk that was supplied for this device; no other is resized."""
    if witness is None:
        return None
    return next((disk for disk in witness("query-block") if disk["device"] == f"{ident}-disk"), None)
