"""What the data path tests of all devices share: the result, and waiting for a device that sends nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvirtio.device import Device

Witness = Callable[..., Any]
"""``qmp(command, **arguments)`` of the guest machine that has the device, where this process runs it."""


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


class Idle:
    """Takes interrupts and asks for nothing: most devices send nothing by themselves."""

    _device: Device

    def serve(self, seconds: float) -> int:
        """Wait, taking interrupts."""
        self._device.wait(lambda: False, timeout=seconds, what="time to pass", owed=False)
        return 0


def supplied_disk(witness: Witness | None, ident: str | None) -> dict[str, Any] | None:
    """The disk that was supplied for this device; no other is resized."""
    if witness is None:
        return None
    return next((disk for disk in witness("query-block") if disk["device"] == f"{ident}-disk"), None)
