"""The data path test of a device: it takes and returns buffers, and what it writes is what it should be."""

from __future__ import annotations

from uvirtio.device import Device, Observer, QueueSpec
from uvirtio.diag.probes.outcome import Around, DataPath, Idle, PathResult
from uvirtio.diag.probes.table import PROBES
from uvirtio.host.addresses import MADE

__all__ = ["DataPath", "for_device"]

_QUEUES_MAX = 16


def for_device(device: Device, *, intrusive: bool = False) -> DataPath:
    """The data path test of this device's type; for a type without one, a test that only starts its queues.

    Args:
        device: An open device.
        intrusive: Whether it may be done what others see, or are cut off by; so it may with a device of a machine
            of our own.
    """
    if device.type not in PROBES:
        return _BarePath(device)
    guest = device.guest
    ours = guest is not None or getattr(device, "address", "").startswith(MADE)
    around = Around(
        witness=guest.qmp if guest is not None else None,
        ident=guest.id if guest is not None else None,
        intrusive=intrusive or ours,
    )
    return PROBES[device.type].path(device, around)


class _BarePath(Idle):
    """Queues without traffic, for device types without a probe."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def start(self, observe: Observer) -> None:
        """Start the queues of the device, without a driver."""
        count = min(self._device.transport.num_queues, _QUEUES_MAX)
        queues = [QueueSpec(index, f"queue {index}", size=8, required=False) for index in range(count)]
        self._device.start(wanted=0, queues=queues, observe=observe)

    def exercise(self) -> PathResult:
        """Report that no buffers were exchanged."""
        what = f"data path not tried: there is no probe for {self._device.type}, so no buffers were exchanged"
        return PathResult(what, skipped=True)

    def change_configuration(self) -> PathResult | None:
        """Return None: there is no driver to read the configuration."""
        return None
