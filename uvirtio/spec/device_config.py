"""The device configuration of each type, as data: which fields exist with which feature (5.1 to 5.19).

For reports. A driver here has its own view of its type, with what the values mean.
"""

from __future__ import annotations

from typing import Final

from uvirtio.spec import balloon, blk, fs, mem, net, scsi
from uvirtio.spec import features as f
from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

Fields = tuple[tuple[F, int | None], ...]
"""The fields of a type, each with the number of the feature bit that it needs; None: it is always there."""

_BLK: Final[dict[str, int]] = {
    "size_max": f.Blk.SIZE_MAX,
    "seg_max": f.Blk.SEG_MAX,
    "cylinders": f.Blk.GEOMETRY,
    "heads": f.Blk.GEOMETRY,
    "sectors": f.Blk.GEOMETRY,
    "blk_size": f.Blk.BLK_SIZE,
    "physical_block_exp": f.Blk.TOPOLOGY,
    "alignment_offset": f.Blk.TOPOLOGY,
    "min_io_size": f.Blk.TOPOLOGY,
    "opt_io_size": f.Blk.TOPOLOGY,
    "writeback": f.Blk.CONFIG_WCE,
    "num_queues": f.Blk.MQ,
    "max_discard_sectors": f.Blk.DISCARD,
    "max_discard_seg": f.Blk.DISCARD,
    "discard_sector_alignment": f.Blk.DISCARD,
    "max_write_zeroes_sectors": f.Blk.WRITE_ZEROES,
    "max_write_zeroes_seg": f.Blk.WRITE_ZEROES,
    "write_zeroes_may_unmap": f.Blk.WRITE_ZEROES,
    "max_secure_erase_sectors": f.Blk.SECURE_ERASE,
    "max_secure_erase_seg": f.Blk.SECURE_ERASE,
    "secure_erase_sector_alignment": f.Blk.SECURE_ERASE,
    "zone_sectors": f.Blk.ZONED,
    "max_open_zones": f.Blk.ZONED,
    "max_active_zones": f.Blk.ZONED,
    "max_append_sectors": f.Blk.ZONED,
    "write_granularity": f.Blk.ZONED,
    "model": f.Blk.ZONED,
}

_NET: Final[dict[str, int]] = {
    "mac": f.Net.MAC,
    "status": f.Net.STATUS,
    "max_virtqueue_pairs": f.Net.MQ,
    "mtu": f.Net.MTU,
    "speed": f.Net.SPEED_DUPLEX,
    "duplex": f.Net.SPEED_DUPLEX,
    "rss_max_key_size": f.Net.RSS,
    "rss_max_indirection_table_length": f.Net.RSS,
    "supported_hash_types": f.Net.HASH_REPORT,
}

_BALLOON: Final[dict[str, int]] = {
    "free_page_hint_cmd_id": f.Balloon.FREE_PAGE_HINT,
    "poison_val": f.Balloon.PAGE_POISON,
}


def _with(layout: Layout, needs: dict[str, int]) -> Fields:
    return tuple((field, needs.get(field.name)) for field in layout if not field.name.startswith(_PADDING))


_PADDING: Final = ("unused", "padding", "reserved")

FIELDS: Final[dict[str, Fields]] = {
    "net": _with(net.CONFIG, _NET),  # 5.1.4
    "blk": _with(blk.CONFIG, _BLK),  # 5.2.4
    "console": (  # 5.3.4; emerg_wr is written only
        (F("cols", 0, 2), f.Console.SIZE),
        (F("rows", 2, 2), f.Console.SIZE),
        (F("max_nr_ports", 4, 4), f.Console.MULTIPORT),
    ),
    "balloon": _with(balloon.CONFIG, _BALLOON),  # 5.5.4
    "scsi": _with(scsi.CONFIG, {}),  # 5.6.4
    "gpu": (  # 5.7.4; events_clear is written only
        (F("events_read", 0, 4), None),
        (F("num_scanouts", 8, 4), None),
        (F("num_capsets", 12, 4), None),
    ),
    "vsock": ((F("guest_cid", 0, 8), None),),  # 5.10.4
    "fs": _with(fs.CONFIG, {}),  # 5.11.4
    "mem": _with(mem.CONFIG, {"node_id": f.Mem.ACPI_PXM}),  # 5.15.4
    "pmem": ((F("start", 0, 8), None), (F("size", 8, 8), None)),  # 5.19.4
    "sound": (  # 5.14.4
        (F("jacks", 0, 4), None),
        (F("streams", 4, 4), None),
        (F("chmaps", 8, 4), None),
    ),
    "rng": (),
    # 5.8.4: what the window behind these shows depends on them, and may be a serial number.
    "input": ((F("select", 0, 1), None), (F("subsel", 1, 1), None), (F("size", 2, 1), None)),
}
"""By type name. A type that is not here is shown as bytes."""

SECRET: Final = frozenset({("net", "mac"), ("input", "serial")})
"""Fields that tell whose machine it is. A serial number lies behind the window of an input device."""


def decode(type_name: str, features: int, data: bytes) -> dict[str, int | str]:
    """Return the fields that exist with these features.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        features: The feature bits, offered or negotiated: a device fills in a field that it offers (2.5).
        data: The configuration, little-endian; fields that are not all in it are left out.

    Returns:
        Numbers; text of hexadecimal digits for what is wider than 8 bytes, or an address of six.
    """
    made: dict[str, int | str] = {}
    for field, needs in FIELDS.get(type_name, ()):
        if field.end > len(data) or (needs is not None and not f.has(features, needs)):
            continue
        raw = data[field.offset : field.end]
        made[field.name] = int.from_bytes(raw, "little") if field.width in (1, 2, 4, 8) else raw.hex()
    return made


def length(type_name: str) -> int | None:
    """Return the bytes up to the last field that is known; None for a type that is not in ``FIELDS``."""
    fields = FIELDS.get(type_name)
    return None if fields is None else max((field.end for field, _ in fields), default=0)
