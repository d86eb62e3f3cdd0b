"""The data path of a memory device (5.15): the state of a block is asked for."""

from __future__ import annotations

from uvirtio.device import Device, Observer
from uvirtio.diag.probes.outcome import Around, Idle, PathResult
from uvirtio.drivers.mem import Mem


class MemPath(Idle):
    """Queries a memory device and plugs nothing, since plugged memory would outlive the diagnosis."""

    def __init__(self, device: Device, around: Around) -> None:
        self._device = device
        self._witness = around.witness
        self._path = f"/machine/peripheral/{around.ident}"

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._mem = Mem(self._device, observe=observe)

    def exercise(self) -> PathResult:
        """Query the state of the first block."""
        config = self._mem.config()
        about = f"{config.plugged_blocks} of {config.blocks} blocks of {config.block_size} bytes are plugged"
        odd = "; ".join(self._mem.findings)
        if not config.usable_blocks:
            return PathResult(f"{about}; no block is usable, so none can be queried", odd, skipped=True)
        state = self._mem.state(config.addr, 1)
        return PathResult(f"{about}; the state of the first: {state.name}", odd)

    def change_configuration(self) -> PathResult | None:
        """Have the host change requested_size, and change it back."""
        if self._witness is None:
            return None
        device, mem = self._device, self._mem
        config, seen = mem.config(), device.counters.config_changes
        other = config.block_size if config.requested_size != config.block_size else 2 * config.block_size
        if other > config.region_size:
            return None
        self._request(other)
        told = device.wait(
            lambda: device.counters.config_changes != seen, timeout=device.timeout, what="the change", owed=False
        )
        after = mem.config().requested_size
        self._request(config.requested_size)
        detail = f"the host changed requested_size from {config.requested_size} to {after}"
        if after != other:
            return PathResult(detail, "the host's change does not show in the configuration")
        return PathResult(detail, "" if told else "the configuration changed without a notification (4.1.5.4)")

    def _request(self, size: int) -> None:
        assert self._witness is not None
        self._witness("qom-set", path=self._path, property="requested-size", value=size)
