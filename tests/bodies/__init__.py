"""Test bodies that run on every cell: the same driver, another back end, transport or interrupt mode.

A cell module (tests/qemu/test_drivers.py, tests/vm/test_drivers.py) imports the bodies that it can run and
provides the fixture ``cell``; pytest collects them there, under the names that ``adopt`` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import pytest

from tests.support.virtio_state import FEATURES, State, started, state
from uvirtio.device import Device
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import pci
from uvirtio.transports.pci import PciModern


@dataclass
class Cell:
    """One device of one machine, and the witness who looks at it from outside."""

    open: Callable[[], Device]
    """Opens the device anew, with the interrupt mode of this cell."""

    qmp: Callable[..., Any]
    """``qmp(command, **arguments)`` of the QEMU that has the device."""

    events: Callable[[str, float], list[dict[str, Any]]]
    """The QMP events of this name that come within so many seconds; returns at the first."""

    path: str
    """QOM path of the virtio back end of the device, for tests/support/virtio_state.py and queries of QMP."""

    mode: InterruptMode
    translated: bool
    legacy: bool = False
    """The device is driven over its legacy interface."""

    knows_pfns: bool = True
    backing: Callable[[], int] | None = None
    """Bytes of memory that the host really holds for this machine, where that can be seen."""

    extra: dict[str, Any] = field(default_factory=dict)

    def state(self) -> State:
        """What the device model says of itself."""
        return state(self.qmp, self.path)

    def started(self) -> bool:
        """Whether the device model says that a driver has brought it up."""
        return started(self.qmp, self.path)

    def accepted(self, device: Device) -> Container[str]:
        """The names of the transport's features that the device model has noted as accepted.

        Where QEMU does not tell, they are read from the registers; where these can be written only (virtio-mmio),
        it is what the driver says.
        """
        told = self.state().features
        if told is not None:
            return told
        transport, features = device.transport, device.features
        if isinstance(transport, PciModern):
            place = next(cap for cap in transport.capabilities if cap.type == "common")
            common = transport.backend.registers(place.bar, place.offset, place.length)
            features = 0
            for word in range(2):
                common.write32(pci.COMMON_DRIVER_FEATURE_SELECT, word)
                features |= common.read32(pci.COMMON_DRIVER_FEATURE) << 32 * word
        return [name for bit, name in FEATURES.items() if features >> bit & 1]

    def queue(self, index: int) -> dict[str, Any]:
        """What the device model says of one queue: addresses and indices."""
        return dict(self.qmp("x-query-virtio-queue-status", path=self.path, queue=index))


def adopt(bodies: ModuleType, cells: list[Any]) -> dict[str, Any]:
    """The bodies of a module, each on these cells, under names that say whose they are."""
    mark = pytest.mark.parametrize("cell", cells, indirect=True)
    short = bodies.__name__.rsplit(".", 1)[-1]
    return {
        f"test_{short}_{name.removeprefix('test_')}": mark(_copy(body))
        for name, body in vars(bodies).items()
        if name.startswith("test_")
    }


def _copy(body: FunctionType) -> FunctionType:
    """The same test as a function of its own: marks are kept on it, and others adopt it too."""
    made = FunctionType(body.__code__, body.__globals__, body.__name__, body.__defaults__, body.__closure__)
    made.__kwdefaults__ = body.__kwdefaults__
    made.__dict__.update(body.__dict__)
    made.pytestmark = list(getattr(body, "pytestmark", []))  # type: ignore[attr-defined]
    return made
