"""The data path of a block device (5.2): one sector and the serial are read."""

from __future__ import annotations

from typing import Any

from uvirtio.device import Device, Observer
from uvirtio.diag.probes.outcome import Around, Idle, PathResult, supplied_disk
from uvirtio.drivers.blk import Blk
from uvirtio.errors import BlkRefusal


class BlkPath(Idle):
    """Reads one sector and the serial of a block device, and writes nothing."""

    _GROWTH = 1 << 20

    def __init__(self, device: Device, around: Around) -> None:
        self._device = device
        self._witness = around.witness
        self._ident = around.ident

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._blk = Blk(self._device, observe=observe)
        self._blk.rely_on_interrupts()

    def exercise(self) -> PathResult:
        """Read sector 0 and the serial."""
        blk = self._blk
        about = f"{blk.capacity} sectors"
        if not blk.capacity:
            return PathResult(f"{about}: there is nothing to read", skipped=True)
        odd = []
        try:
            first = blk.read(0, 1)
            about += f"; sector 0 begins {first[:8].hex(' ')}"
        except BlkRefusal as error:
            odd.append(f"sector 0 cannot be read: {error.seen}")
        try:
            name = blk.identify()
            about += f"; serial: {name or 'none'}"
        except BlkRefusal as error:
            about += f"; serial: none ({error.seen})"  # a device is free to have none
        cause = "io-error" if odd else "used-len"
        odd += blk.findings
        return PathResult(about, "; ".join(odd), cause)

    def change_configuration(self) -> PathResult | None:
        """Have the host change the capacity, and change it back."""
        disk = self._disk()
        if disk is None:
            return None
        assert self._witness is not None
        device, blk = self._device, self._blk
        before, seen = blk.refresh().capacity, device.counters.config_changes
        size = int(disk["inserted"]["image"]["virtual-size"])
        self._witness("block_resize", device=disk["device"], size=size + self._GROWTH)
        told = device.wait(
            lambda: device.counters.config_changes != seen, timeout=device.timeout, what="the change", owed=False
        )
        after = blk.refresh().capacity
        self._witness("block_resize", device=disk["device"], size=size)
        detail = f"the host changed the capacity from {before} to {after} sectors"
        if after == before:
            return PathResult(detail, "the host's change does not show in the configuration")
        return PathResult(detail, "" if told else "the configuration changed without a notification (4.1.5.4)")

    def _disk(self) -> dict[str, Any] | None:
        return supplied_disk(self._witness, self._ident)
