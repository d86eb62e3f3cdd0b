"""The configuration of a block device (5.2.4): read as one snapshot, and only what the features say is there."""

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
"""Which fields are there with which feature (5.2.4)."""


@dataclass(frozen=True, slots=True)
class Topology:
    """What the device is good at (5.2.4), in logical blocks of ``blk_size`` bytes; hints, no limits."""

    physical_block_exp: int
    """A physical block is 2 to the power of this many logical ones."""
    alignment_offset: int
    min_io_size: int
    opt_io_size: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request of ranges may name."""

    max_sectors: int
    """Sectors of one range."""
    max_segments: int
    """Ranges of one request."""
    alignment: int = 1
    """Sectors; where a long range is best cut. A hint."""
    may_unmap: bool = False
    """WRITE_ZEROES only: a range whose unmap bit is set may be given back to the host."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How worn the medium is (5.2.6.1, GET_LIFETIME), in the units of JEDEC's eMMC standard."""

    pre_eol_info: int
    device_lifetime_est_typ_a: int
    device_lifetime_est_typ_b: int


@dataclass(frozen=True, slots=True)
class BlkConfig:
    """One snapshot of the configuration; None is what the device has no feature for."""

    capacity: int
    """Sectors of 512 bytes, whatever ``blk_size`` says."""
    size_max: int | None = None
    """Bytes of one element of a chain, at most."""
    seg_max: int | None = None
    """Elements of data in one request, at most."""
    geometry: tuple[int, int, int] | None = None
    """Cylinders, heads, sectors."""
    blk_size: int | None = None
    """Bytes of a logical block; the unit that suits the device, and no unit of any field or request."""
    topology: Topology | None = None
    writeback: bool | None = None
    """With CONFIG_WCE: writes are done when they are in the device's cache."""
    num_queues: int = 1
    discard: Limits | None = None
    write_zeroes: Limits | None = None
    secure_erase: Limits | None = None


def read(device: Device) -> BlkConfig:
    """The configuration as it is now. Raises ConfigError where it is shorter than its features say."""
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
