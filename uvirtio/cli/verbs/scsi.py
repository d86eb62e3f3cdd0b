"""``uvirtio scsi``: the units of a SCSI host device; nothing is changed without ``--allow-write``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

from uvirtio.cli import content
from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, DevArgument, make_group, verb
from uvirtio.cli.size import SECTOR, human, parse_sectors
from uvirtio.errors import BadSize, ScsiCheck, ScsiRefusal, WriteRefused

if TYPE_CHECKING:
    from uvirtio.device import Device
    from uvirtio.drivers.scsi import Capacity, Inquiry, Lun, Scsi

LunArgument = Annotated[
    str, typer.Argument(metavar="LUN", help="Logical unit: TARGET:LUN, or LUN of target 0; see scsi list.")
]


def register(app: typer.Typer) -> None:
    """Add the group ``scsi`` to the application."""
    group = make_group("SCSI host devices: list, read and write logical units.")
    app.add_typer(group, name="scsi")
    verb(group, "list", group="scsi", opens=True)(list_units)
    verb(group, "info", group="scsi", opens=True)(info)
    verb(group, "read", group="scsi", opens=True)(read)
    verb(group, "write", group="scsi", opens=True)(write)


@contextmanager
def _driver(cmd: Command, dev: str, *, allow_write: bool = False) -> Iterator[tuple[Device, Scsi]]:
    from uvirtio.drivers.scsi import Scsi

    with cmd.device(dev) as device, Scsi(device, allow_write=allow_write) as scsi:
        yield device, scsi


def _lun(text: str) -> Lun:
    from uvirtio.drivers.scsi import Lun

    return Lun.parse(text)


# --- list and info ------------------------------------------------------------------------------------------


def list_units(cmd: Command, dev: DevArgument) -> None:
    """List the logical units of a SCSI host device. Only commands that change nothing are sent."""
    with _driver(cmd, dev) as (device, scsi):
        units = [(unit.lun, unit.inquiry, _capacity(scsi, unit.lun)) for unit in scsi.scan()]
        if cmd.json:
            cmd.document(
                address=device.address,
                units=[_members(lun, inquiry, capacity) for lun, inquiry, capacity in units],
                findings=scsi.findings,
            )
            return
        rows = [
            [
                str(lun),
                inquiry.type_name,
                f"{inquiry.vendor} {inquiry.product}".strip(),
                inquiry.revision,
                _size(told),
            ]
            for lun, inquiry, told in units
        ]
        if rows:
            cmd.table(["LUN", "TYPE", "MODEL", "REV", "CAPACITY"], rows)
        else:
            cmd.line("no logical units")


def _capacity(scsi: Scsi, lun: Lun) -> Capacity | ScsiRefusal:
    """How large a unit is, or why it does not say: no medium, or no unit of blocks."""
    try:
        return scsi.capacity(lun)
    except ScsiRefusal as error:
        return error


def _size(told: Capacity | ScsiRefusal) -> str:
    if isinstance(told, ScsiCheck):
        return "no medium" if (told.key, told.asc) == (2, 0x3A) else "not reported"
    return "not reported" if isinstance(told, ScsiRefusal) else human(told.bytes)


def _members(lun: Lun, inquiry: Inquiry, told: Capacity | ScsiRefusal) -> dict[str, Any]:
    known = None if isinstance(told, ScsiRefusal) else told
    return {
        "lun": str(lun),
        "type": inquiry.type_name,
        "removable": inquiry.removable,
        "vendor": inquiry.vendor,
        "product": inquiry.product,
        "revision": inquiry.revision,
        "capacity_bytes": known and known.bytes,
        "blocks": known and known.blocks,
        "block_size": known and known.block_size,
        "thin": known and known.thin,
        "error": told.seen if isinstance(told, ScsiRefusal) else None,
    }


def info(
    cmd: Command,
    dev: DevArgument,
    lun: Annotated[
        str,
        typer.Argument(metavar="[LUN]", help="Logical unit: TARGET:LUN, or LUN of target 0; none: the device."),
    ] = "",
) -> None:
    """Show limits of a SCSI host device, or of one logical unit capacity, serial number and cache."""
    wanted = _lun(lun) if lun else None
    with _driver(cmd, dev) as (device, scsi):
        if wanted is None:
            _info_of_device(cmd, device, scsi)
        else:
            _info_of_unit(cmd, device, scsi, wanted)


def _info_of_device(cmd: Command, device: Device, scsi: Scsi) -> None:
    from uvirtio.spec import features as f

    config = scsi.config
    taken = [bit.name for bit in f.names(device.type, device.features)]
    mode = device.transport.interrupt_mode.value
    if cmd.json:
        cmd.document(
            address=device.address,
            **{name: getattr(config, name) for name in type(config).__slots__},
            request_bytes=scsi.request_size,
            depth=scsi.depth,
            features=device.features,
            features_names=taken,
            findings=scsi.findings,
            interrupts=mode,
            backend=device.transport.description,
        )
        return
    cmd.fields(
        [
            ("address", device.address),
            ("targets", f"0 to {config.max_target}, LUNs up to {config.max_lun}"),
            ("queues", config.num_queues),
            ("command", f"up to {config.cdb_size} bytes, {config.sense_size} of sense data"),
            ("transfer", f"up to {human(config.max_sectors * SECTOR)}, {config.seg_max} elements"),
            ("at once", f"{config.cmd_per_lun} commands of one logical unit"),
            ("request", f"up to {human(scsi.request_size)} each, {scsi.depth} at once"),
            ("negotiated", f"{device.features:#x}: " + ", ".join(taken)),
            ("findings", "; ".join(f"{what} ({count})" for what, count in scsi.findings.items()) or "none"),
            ("interrupts", mode),
            ("back end", device.transport.description),
        ]
    )


def _info_of_unit(cmd: Command, device: Device, scsi: Scsi, lun: Lun) -> None:
    inquiry = scsi.inquiry(lun)
    if not inquiry.present:
        scsi.check_ready(lun)  # its error says that there is none
    told, serial, names = _capacity(scsi, lun), scsi.serial(lun), scsi.identifications(lun)
    try:
        mode = scsi.mode(lun)
    except ScsiRefusal:
        mode = None  # not every type of unit has mode pages
    if cmd.json:
        cmd.document(
            address=device.address,
            **_members(lun, inquiry, told),
            serial=serial,
            identifications=[{"type": name.type, "text": name.text} for name in names],
            vpd_pages=scsi.vpd_pages(lun),
            write_protected=mode and mode.write_protected,
            write_cache=mode and mode.write_cache,
        )
        return
    size, thin = _size(told), None
    if not isinstance(told, ScsiRefusal):
        thin = told.thin
        size += f", {told.blocks} blocks of {human(told.block_size)}"
    cache = {None: "not reported", True: "write-back", False: "none, or write-through"}
    cmd.fields(
        [
            ("address", device.address),
            ("unit", str(lun)),
            ("type", inquiry.type_name + ", removable" * inquiry.removable),
            ("model", f"{inquiry.vendor} {inquiry.product} {inquiry.revision}"),
            ("serial", serial or "none"),
            ("names", "; ".join(name.text for name in names) or "none"),
            ("capacity", size),
            ("thin", {None: "not reported", True: "yes: blocks may be unmapped", False: "no"}[thin]),
            ("writable", _writable(mode.write_protected if mode else None)),
            ("cache", cache[mode.write_cache if mode else None]),
        ]
    )


def _writable(protected: bool | None) -> str:
    if protected is None:
        return "not reported"
    return "no (write protected)" if protected else "yes, with --allow-write"


# --- read and write -----------------------------------------------------------------------------------------


def _blocks(size: int, first: int, count: int) -> tuple[int, int]:
    """Sectors of 512 bytes, from the first one, as blocks of the unit."""
    for name, value in (("OFFSET", first), ("SIZE", count)):
        if value * SECTOR % size:
            raise BadSize(
                f"{name} is not a whole number of this unit's blocks",
                seen=f"{value * SECTOR} bytes",
                expected=f"a multiple of {size}",
                remedy="uvirtio scsi info DEV LUN shows the size of a block",
            )
    return first * SECTOR // size, count * SECTOR // size


def read(
    cmd: Command,
    dev: DevArgument,
    lun: LunArgument,
    offset: content.OffsetArgument,
    size: content.SizeArgument,
    hex: content.HexOption = False,
    raw: content.RawOption = False,
    out: content.OutOption = "",
) -> None:
    """Read SIZE bytes at OFFSET of a logical unit."""
    content.check_form(cmd, hex=hex, raw=raw, out=out)
    first, count = parse_sectors(offset, "OFFSET"), parse_sectors(size, "SIZE")
    where = _lun(lun)
    with _driver(cmd, dev) as (device, scsi):
        each = scsi.check_range(where, 0, 0)
        block, blocks = _blocks(each, first, count)
        scsi.check_range(where, block, blocks)  # before any output: else a part would be printed first
        content.give(
            cmd,
            _contents(scsi, where, block, blocks, max(1, content.PIECE // each)),
            hex=hex,
            raw=raw,
            out=out,
            base=first * SECTOR,
            address=device.address,
            lun=str(where),
            offset=first * SECTOR,
        )


def _contents(scsi: Scsi, lun: Lun, first: int, count: int, step: int) -> Iterator[bytes]:
    for at in range(first, first + count, step):
        yield scsi.read(lun, at, min(step, first + count - at))


def write(
    cmd: Command,
    dev: DevArgument,
    lun: LunArgument,
    offset: content.OffsetArgument,
    source: content.InOption = "",
    allow_write: Annotated[
        bool, typer.Option("--allow-write", help="Allow the contents of the unit to be changed.")
    ] = False,
) -> None:
    """Write whole blocks at OFFSET of a logical unit, then flush."""
    if not allow_write:
        raise WriteRefused(
            "scsi write changes the contents of a unit",
            seen="no --allow-write",
            expected="--allow-write",
            remedy="add --allow-write",
        )
    first, where = parse_sectors(offset, "OFFSET"), _lun(lun)
    with content.opened(source) as file, _driver(cmd, dev, allow_write=True) as (device, scsi):
        each = scsi.check_range(where, 0, 0)
        block, _ = _blocks(each, first, 0)
        count = _copy(file, scsi, where, block, each)
        scsi.flush(where)
        if cmd.json:
            cmd.document(
                address=device.address, lun=str(where), offset=first * SECTOR, bytes=count * each, flushed=True
            )
        else:
            cmd.line(f"wrote {human(count * each)} at block {block} of {where}; flushed")


def _copy(file: BinaryIO, scsi: Scsi, lun: Lun, first: int, each: int) -> int:
    """Write the contents of ``file``; returns the number of blocks."""
    at, step = first, max(each, content.PIECE // each * each)
    for piece in iter(lambda: file.read(step), b""):
        if len(piece) % each:
            raise BadSize(
                "the input ends within a block",
                seen=f"{(at - first) * each + len(piece)} bytes; {(at - first) * each} of them were written",
                expected=f"a multiple of {each}",
                remedy=f"pad it: ... | dd bs={each} conv=sync iflag=fullblock | uvirtio ...",
            )
        scsi.write(lun, at, piece)
        at += len(piece) // each
    return at - first
