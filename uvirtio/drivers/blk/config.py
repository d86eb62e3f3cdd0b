"""The configuration of a block device (5.2.4): one snapshot of the fields that the negotiated features have."""

from __future__ import annotations

from dataclasses import dataclass

from uvirtio.device import Device
from uvirtio.spec import blk as spec
from uvirtio.spec import features as f
from uvirtio.spec.layout import by_name

FIELDS = by_name(spec.CONFIG)

_CONDITIONAL: tuple[tuple[int, tuple[str, ...]], ...] = (
    (f.Blk.SIZE_MAX, ("size_max",)),
    (f.Blk.SEG_MAX, ("seg_max",)),
    (f.Blk.GEOMETRY, ("cylinders", "heads", "sectors")),
    (f.Blk.BLK_SIZE, ("blk_size",)),
    (f.Blk.TOPOLOGY, ("physical_block_exp", "alignment_offset", "min_io_size", "opt_io_size")),
    (f.Blk.CONFIG_WCE, ("writeback",)),
    (f.Blk.MQ, ("num_queues",)),
    (f.Blk.DISCARD, ("max_discard_sectors", "max_discard_seg", "discard_sector_alignment")),
    (f.Blk.WRITE_ZEROES, ("max_write_zeroes_sectors", "max_write_zeroes_seg", "write_zeroes_may_unmap")),
    (
        f.Blk.SECURE_ERASE,
        ("max_secure_erase_sectors", "max_secure_erase_seg", "secure_erase_sector_alignment"),
    ),
)
"""The fields that exist with each feature (5.2.4)."""


@dataclass(frozen=True, slots=True)
class Topology:
    """I/O hints of the device (5.2.4), in logical blocks of ``blk_size`` bytes; not limits."""

    physical_block_exp: int
    """A physical block is 2 to the power of this many logical blocks."""
    alignment_offset: int
    """Offset of the first aligned logical block."""
    min_io_size: int
    """Suggested minimum size of a request."""
    opt_io_size: int
    """Suggested optimal size of a request; the maximum that is useful."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one DISCARD, WRITE_ZEROES or SECURE_ERASE request (5.2.4)."""

    max_sectors: int
    """Sectors of one range, at most."""
    max_segments: int
    """Ranges of one request, at most."""
    alignment: int = 1
    """In sectors; where a long range is best split. A hint."""
    may_unmap: bool = False
    """WRITE_ZEROES only: the device may deallocate ranges whose unmap bit is set."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Wear of the medium (5.2.6.1, GET_LIFETIME), in the units of JEDEC's eMMC standard."""

    pre_eol_info: int
    device_lifetime_est_typ_a: int
    device_lifetime_est_typ_b: int


@dataclass(frozen=True, slots=True)
class BlkConfig:
    """One snapshot of the configuration (5.2.4); fields whose feature was not negotiated are None."""

    capacity: int
    """Sectors of 512 bytes, whatever ``blk_size`` says."""
    size_max: int | None = None
    """Bytes of one element of a chain, at most."""
    seg_max: int | None = None
    """Elements of data in one request, at most."""
    geometry: tuple[int, int, int] | None = None
    """Cylinders, heads, sectors."""
    blk_size: int | None = None
    """Bytes of a logical block, for which requests are best aligned; no field or request is counted in it."""
    topology: Topology | None = None
    writeback: bool | None = None
    """With CONFIG_WCE: writes complete when they are in the device's cache."""
    num_queues: int = 1
    """Request queues; 1 without MQ."""
    discard: Limits | None = None
    write_zeroes: Limits | None = None
    secure_erase: Limits | None = None


def read(device: Device) -> BlkConfig:
    """Read the configuration.

    Args:
        device: A block device whose features are negotiated.

    Raises:
        ConfigError: It is shorter than its features say.
        ConfigUnstable: It changes at every read.
    """
    names = ["capacity"]
    for bit, conditional in _CONDITIONAL:
        if device.has(bit):
            names += conditional
    values = dict(zip(names, device.read_config(*(FIELDS[name] for name in names)), strict=True))
    geometry = topology = None
    if device.has(f.Blk.GEOMETRY):
        geometry = (values["cylinders"], values["heads"], values["sectors"])
    if device.has(f.Blk.TOPOLOGY):
        topology = Topology(
            values["physical_block_exp"],
            values["alignment_offset"],
            values["min_io_size"],
            values["opt_io_size"],
        )
    return BlkConfig(
        capacity=values["capacity"],
        size_max=values.get("size_max"),
        seg_max=values.get("seg_max"),
        geometry=geometry,
        blk_size=values.get("blk_size"),
        topology=topology,
        writeback=bool(values["writeback"]) if "writeback" in values else None,
        num_queues=values.get("num_queues", 1),
        discard=_limits(values, "discard"),
        write_zeroes=_limits(values, "write_zeroes"),
        secure_erase=_limits(values, "secure_erase"),
    )


def _limits(values: dict[str, int], what: str) -> Limits | None:
    if f"max_{what}_sectors" not in values:
        return None
    return Limits(
        max_sectors=values[f"max_{what}_sectors"],
        max_segments=values[f"max_{what}_seg"],
        alignment=max(1, values.get(f"{what}_sector_alignment", 1)),
        may_unmap=bool(values.get(f"{what}_may_unmap", 0)),
    )
