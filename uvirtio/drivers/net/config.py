"""The configuration of a network device (5.1.4): one snapshot of the fields that the negotiated features have."""

from __future__ import annotations

from dataclasses import dataclass

from uvirtio.device import Device
from uvirtio.errors import ConfigError
from uvirtio.spec import features as f
from uvirtio.spec import net as spec
from uvirtio.spec.layout import by_name

FIELDS = by_name(spec.CONFIG)

_CONDITIONAL: tuple[tuple[int, tuple[str, ...]], ...] = (
    (f.Net.STATUS, ("status",)),
    (f.Net.MQ, ("max_virtqueue_pairs",)),
    (f.Net.MTU, ("mtu",)),
    (f.Net.SPEED_DUPLEX, ("speed", "duplex")),
)
"""The fields that exist with each feature (5.1.4), without the address, which is read byte by byte."""


def beyond(length: int) -> int:
    """The feature bits whose fields do not lie in a configuration of this length.

    A back end may have none at all (vhost-user): what its features say of fields is then of no use.

    Args:
        length: Bytes of the configuration.
    """
    every = ((f.Net.MAC, ("mac",)), *_CONDITIONAL)
    return f.mask(*(bit for bit, names in every if length < FIELDS[names[-1]].end))


@dataclass(frozen=True, slots=True)
class NetConfig:
    """One snapshot of the configuration (5.1.4); fields whose feature was not negotiated are None."""

    mac: bytes | None = None
    """The device's Ethernet address, 6 bytes."""
    status: int | None = None
    """Bit 0: the link is up. Bit 1: the device asks for an announcement."""
    max_pairs: int = 1
    """Pairs of queues that the device has; 1 without MQ."""
    mtu: int | None = None
    """Bytes of the longest frame, without its Ethernet header."""
    speed: int | None = None
    """Mbit/s; None also where the device does not know it."""
    full_duplex: bool | None = None
    """None also where the device does not know it."""

    @property
    def link(self) -> bool:
        """Whether the link is up; without STATUS it counts as up (5.1.4.2)."""
        return self.status is None or bool(self.status & spec.STATUS_LINK_UP)


def read(device: Device) -> NetConfig:
    """Read the configuration.

    Args:
        device: A network device whose features are negotiated.

    Raises:
        ConfigError: It is shorter than its features say, or has an impossible number of queue pairs.
        ConfigUnstable: It changes at every read.
    """
    names = [name for bit, conditional in _CONDITIONAL if device.has(bit) for name in conditional]
    with_mac = device.has(f.Net.MAC)
    for name in [*names, *["mac"] * with_mac]:
        _check(device, name)
    one = device.transport.read_config

    def fields() -> tuple[bytes | None, dict[str, int]]:
        # 5.1.4: an array of bytes, so each is an access of its own (4.1.3.1).
        mac = bytes(one(FIELDS["mac"].offset + at, 1) for at in range(spec.MAC_SIZE)) if with_mac else None
        return mac, {name: one(FIELDS[name].offset, FIELDS[name].width) for name in names}

    mac, values = device.snapshot(fields)
    pairs = values.get("max_virtqueue_pairs", 1)
    if not 1 <= pairs <= spec.PAIRS_MAX:
        raise ConfigError(
            f"{device.address} has an impossible number of queue pairs",
            seen=pairs,
            expected=f"1..{spec.PAIRS_MAX} (5.1.4.1)",
            remedy="the device is at fault; without=['MQ'] (--without MQ) drives it with one pair",
        )
    speed, duplex = values.get("speed"), values.get("duplex")
    return NetConfig(
        mac=mac,
        status=values.get("status"),
        max_pairs=pairs,
        mtu=values.get("mtu"),
        speed=speed if speed is not None and speed <= spec.SPEED_MAX else None,  # 5.1.4.2
        full_duplex={0: False, 1: True}.get(duplex) if duplex is not None else None,
    )


def _check(device: Device, name: str) -> None:
    field = FIELDS[name]
    if field.end > device.transport.config_length:
        raise ConfigError(
            f"{device.address} has no configuration field {name}",
            seen=f"{device.transport.config_length} bytes of configuration",
            expected=f"at least {field.end} bytes (5.1.4)",
        )
