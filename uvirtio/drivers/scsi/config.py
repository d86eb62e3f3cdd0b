"""The configuration of a SCSI host device (5.6.4), checked as far as the driver builds on it."""

from __future__ import annotations

from dataclasses import dataclass

from uvirtio.device import Device
from uvirtio.errors import ConfigError
from uvirtio.spec import scsi as spec

_CDB_LEAST, _CDB_MOST = 16, 260  # SPC-5, 4.2.1: the longest CDB
_SENSE_LEAST, _SENSE_MOST = 18, 1024
_EVENT_MOST = 4096


@dataclass(frozen=True, slots=True)
class ScsiConfig:
    """The configuration (5.6.4); nothing in it changes after a reset, because ``Scsi`` writes none of it."""

    num_queues: int
    """Request queues."""
    seg_max: int
    """Elements of data in one command, at most."""
    max_sectors: int
    """A hint: 512-byte units of one transfer, at most."""
    cmd_per_lun: int
    """Commands of one logical unit that can be in flight."""
    event_info_size: int
    """Bytes of an event, at most."""
    sense_size: int
    """Bytes of sense data in an answer."""
    cdb_size: int
    """Bytes of a CDB in a request."""
    max_channel: int
    max_target: int
    """The last target. A hint."""
    max_lun: int
    """The last number of a unit. A hint."""


def read(device: Device) -> ScsiConfig:
    """Read the configuration.

    Args:
        device: A SCSI host device whose features are negotiated.

    Raises:
        ConfigError: It is too short, or has sizes that no request can have.
        ConfigUnstable: It changes at every read.
    """
    made = ScsiConfig(*device.read_config(*spec.CONFIG))
    for name, value, least, most in (
        ("num_queues", made.num_queues, 1, 65535),
        ("cdb_size", made.cdb_size, _CDB_LEAST, _CDB_MOST),
        ("sense_size", made.sense_size, _SENSE_LEAST, _SENSE_MOST),
        ("event_info_size", made.event_info_size, spec.EVENT_SIZE, _EVENT_MOST),
    ):
        if not least <= value <= most:
            raise ConfigError(
                f"{device.address} has a {name} that cannot be",
                seen=value,
                expected=f"{least} to {most} (5.6.4)",
                remedy="the device is at fault: a reset restores cdb_size 32 and sense_size 96",
            )
    return made
