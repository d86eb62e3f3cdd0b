"""The data path of a balloon (5.5): one page goes in and comes out."""

from __future__ import annotations

from uvirtio.device import Device, Observer
from uvirtio.diag.probes.outcome import Around, PathResult
from uvirtio.drivers.balloon import Balloon


class BalloonPath:
    """Inflates and deflates a balloon by one page."""

    def __init__(self, device: Device, around: Around) -> None:
        self._device = device
        self._witness = around.witness

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._balloon = Balloon(self._device, observe=observe)

    def exercise(self) -> PathResult:
        """Inflate and deflate one page, twice: the second round needs a kick that the device asks for."""
        seen = []
        for _ in range(2):
            self._balloon.inflate(1)
            seen.append(self._balloon.actual)
            # The page goes back also where the host asks for pages: diag does not leave it, and close() would not.
            self._balloon.deflate(1, force=True)
        odd = "" if seen == [1, 1] else f"actual reads {seen[0]} after 1 was written (5.5.4)"
        return PathResult("1 page inflated, acknowledged, deflated, acknowledged, twice", odd)

    def serve(self, seconds: float) -> int:
        """Answer requests for statistics and hints; the target of the host is not followed."""
        self._balloon.hold(seconds)
        return 0

    def change_configuration(self) -> PathResult | None:
        """Have the host change its target (num_pages), and change it back."""
        if self._witness is None:
            return None
        device, balloon = self._device, self._balloon
        before, seen = balloon.num_pages, device.counters.config_changes
        size = int(self._witness("query-balloon")["actual"])
        self._witness("balloon", value=size - (1 << 20))
        told = device.wait(
            lambda: device.counters.config_changes != seen, timeout=device.timeout, what="the change", owed=False
        )
        after = balloon.num_pages
        self._witness("balloon", value=size)
        detail = f"the host changed num_pages from {before} to {after}"
        if after == before:
            return PathResult(detail, "the host's change does not show in the configuration")
        return PathResult(detail, "" if told else "the configuration changed without a notification (4.1.5.4)")
