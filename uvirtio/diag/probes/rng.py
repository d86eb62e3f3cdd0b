"""The data path of an entropy device (5.4): random bytes are read twice."""

from __future__ import annotations

from uvirtio.device import Device, Observer
from uvirtio.diag.probes.outcome import Around, Idle, PathResult
from uvirtio.drivers.rng import Rng


class RngPath(Idle):
    """Reads random bytes from an entropy device."""

    _COUNT = 64

    def __init__(self, device: Device, around: Around) -> None:
        self._device = device

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._rng = Rng(self._device, health=False, observe=observe)  # its bytes are checked here

    def exercise(self) -> PathResult:
        """Read random bytes twice, and compare them."""
        first, second = self._rng.read(self._COUNT), self._rng.read(self._COUNT)
        odd = ""
        if first == second or len(set(first)) == 1:
            odd = "these bytes are not random: the device writes nothing, or the host's source is broken"
        return PathResult(f"2 x {self._COUNT} bytes, beginning {first[:8].hex(' ')}", odd)

    def change_configuration(self) -> PathResult | None:
        """Return None: the device has no configuration (5.4.4)."""
        return None  # 5.4.4: it has no configuration
