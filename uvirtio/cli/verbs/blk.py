"""``uvirtio blk``: properties and contents of a disk; nothing is changed without ``--allow-write``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

from uvirtio.cli import content
from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, DevArgument, make_group, verb
from uvirtio.cli.size import SECTOR, human, parse_sectors
from uvirtio.errors import BadSize, BlkRefusal, UsageError, WriteRefused

if TYPE_CHECKING:
    from uvirtio.device import Device
    from uvirtio.drivers.blk import Blk, BlkConfig, Limits

AllowOption = Annotated[bool, typer.Option("--allow-write", help="Allow the contents of the disk to be changed.")]


def register(app: typer.Typer) -> None:
    """Add the group ``blk`` to the application."""
    group = make_group("Disks: read, write, flush, discard.")
    app.add_typer(group, name="blk")
    verb(group, "info", group="blk", opens=True)(info)
    verb(group, "read", group="blk", opens=True)(read)
    verb(group, "write", group="blk", opens=True)(write)
    verb(group, "flush", group="blk", opens=True)(flush)
    verb(group, "discard", group="blk", opens=True)(discard)


@contextmanager
def _driver(cmd: Command, dev: str, *, allow_write: bool = False) -> Iterator[tuple[Device, Blk]]:
    from uvirtio.drivers.blk import Blk

    with cmd.device(dev) as device, Blk(device, allow_write=allow_write) as disk:
        yield device, disk


def _consent(allowed: bool, what: str) -> None:
    """Refuse to write without --allow-write, before the device is opened."""
    if not allowed:
        raise WriteRefused(
            f"{what} changes the contents of the disk",
            seen="no --allow-write",
            expected="--allow-write",
            remedy="add --allow-write",
        )


# --- info ---------------------------------------------------------------------------------------------------


def info(cmd: Command, dev: DevArgument) -> None:
    """Show capacity, limits and serial of a disk. Also its features and how it is driven."""
    from uvirtio.spec import features as f

    with _driver(cmd, dev) as (device, disk):
        config, name = disk.config, _name(disk)
        taken = [bit.name for bit in f.names(device.type, device.features)]
        mode = device.transport.interrupt_mode.value
        if cmd.json:
            cmd.document(
                address=device.address,
                id=name,
                capacity_bytes=config.capacity * SECTOR,
                sectors=config.capacity,
                read_only=disk.read_only,
                write_cache=disk.write_cache,
                block_size=config.blk_size,
                size_max=config.size_max,
                seg_max=config.seg_max,
                geometry=config.geometry,
                topology=_members(config.topology),
                queues=config.num_queues,
                discard=_members(config.discard),
                write_zeroes=_members(config.write_zeroes),
                secure_erase=_members(config.secure_erase),
                lifetime=_members(disk.lifetime() if device.has(f.Blk.LIFETIME) else None),
                request_bytes=disk.request_size,
                depth=disk.depth,
                features=device.features,
                features_names=taken,
                findings=disk.findings,
                interrupts=mode,
                backend=device.transport.description,
            )
            return
        cache = "write-back: flush makes writes durable" if disk.write_cache else "none, or write-through"
        cmd.fields(
            [
                ("address", device.address),
                ("serial", name or "none"),
                ("capacity", f"{human(config.capacity * SECTOR)}, {config.capacity} sectors of {SECTOR} bytes"),
                ("writable", "no (RO)" if disk.read_only else "yes, with --allow-write"),
                ("cache", cache),
                ("block", human(config.blk_size) if config.blk_size else "not reported"),
                ("topology", _topology(config)),
                ("queues", config.num_queues),
                ("request", f"up to {human(disk.request_size)} each, {disk.depth} at once"),
                ("discard", _limits(config.discard)),
                ("write zeroes", _limits(config.write_zeroes)),
                ("secure erase", _limits(config.secure_erase)),
                ("negotiated", f"{device.features:#x}: " + ", ".join(taken)),
                ("findings", "; ".join(f"{what} ({count})" for what, count in disk.findings.items()) or "none"),
                ("interrupts", mode),
                ("back end", device.transport.description),
            ]
        )


def _name(disk: Blk) -> str | None:
    try:
        return disk.identify()
    except BlkRefusal:
        return None  # GET_ID is optional


def _members(told: Any) -> dict[str, Any] | None:
    return None if told is None else {name: getattr(told, name) for name in type(told).__slots__}


def _topology(config: BlkConfig) -> str:
    told = config.topology
    if told is None:
        return "not reported"
    shown = [f"physical block {human((config.blk_size or SECTOR) << min(told.physical_block_exp, 32))}"]
    # 5.2.4: both are 0 where the device has nothing to say.
    if told.min_io_size:
        shown.append(f"minimum I/O {told.min_io_size} blocks")
    if told.opt_io_size:
        shown.append(f"optimal I/O {told.opt_io_size} blocks")
    return ", ".join(shown)


def _limits(limits: Limits | None) -> str:
    if limits is None:
        return "no"
    ranges = f"{limits.max_segments} range{'s' * (limits.max_segments != 1)}"
    text = f"up to {ranges} of {human(limits.max_sectors * SECTOR)}"
    if limits.alignment > 1:
        text += f", best at multiples of {human(limits.alignment * SECTOR)}"
    return text + ", may deallocate" * limits.may_unmap


# --- read and write -----------------------------------------------------------------------------------------


def read(
    cmd: Command,
    dev: DevArgument,
    offset: content.OffsetArgument,
    size: content.SizeArgument,
    hex: content.HexOption = False,
    raw: content.RawOption = False,
    out: content.OutOption = "",
) -> None:
    """Read SIZE bytes at OFFSET."""
    content.check_form(cmd, hex=hex, raw=raw, out=out)
    first, count = parse_sectors(offset, "OFFSET"), parse_sectors(size, "SIZE")
    with _driver(cmd, dev) as (device, disk):
        disk.check_range(first, count)  # before any output: else a part would be printed first
        content.give(
            cmd,
            _contents(disk, first, count),
            hex=hex,
            raw=raw,
            out=out,
            base=first * SECTOR,
            address=device.address,
            offset=first * SECTOR,
        )


def _contents(disk: Blk, first: int, count: int) -> Iterator[bytes]:
    step = content.PIECE // SECTOR
    for at in range(first, first + count, step):
        yield disk.read(at, min(step, first + count - at))


def write(
    cmd: Command,
    dev: DevArgument,
    offset: content.OffsetArgument,
    source: content.InOption = "",
    zeroes: Annotated[str, typer.Option("--zeroes", metavar="SIZE", help="Write SIZE of zeroes instead.")] = "",
    allow_write: AllowOption = False,
) -> None:
    """Write whole sectors at OFFSET, then flush."""
    _consent(allow_write, "blk write")
    if source and zeroes:
        raise UsageError("--in and --zeroes exclude each other", expected="at most one of them")
    first = parse_sectors(offset, "OFFSET")
    count = parse_sectors(zeroes, "--zeroes") if zeroes else 0
    with content.opened(source, wanted=not zeroes) as file, _driver(cmd, dev, allow_write=True) as (device, disk):
        if zeroes:
            disk.write_zeroes(first, count)
        else:
            count = _copy(file, disk, first)
        flushed = disk.flush()
        if cmd.json:
            cmd.document(address=device.address, offset=first * SECTOR, bytes=count * SECTOR, flushed=flushed)
        else:
            durable = "flushed" if flushed else "no cache to flush"
            cmd.line(f"wrote {human(count * SECTOR)} at sector {first}; {durable}")


def _copy(file: BinaryIO, disk: Blk, first: int) -> int:
    """Write the contents of ``file``; returns the number of sectors."""
    at = first
    for piece in iter(lambda: file.read(content.PIECE), b""):
        if len(piece) % SECTOR:
            raise BadSize(
                "the input ends within a sector",
                seen=f"{(at - first) * SECTOR + len(piece)} bytes; {(at - first) * SECTOR} of them were written",
                expected=f"a multiple of {SECTOR}",
                remedy=f"pad it: ... | dd bs={SECTOR} conv=sync iflag=fullblock | uvirtio ...",
            )
        disk.write(at, piece)
        at += len(piece) // SECTOR
    return at - first


# --- flush and discard --------------------------------------------------------------------------------------


def flush(cmd: Command, dev: DevArgument) -> None:
    """Flush the write cache of the disk."""
    with _driver(cmd, dev) as (device, disk):
        flushed = disk.flush()
        if cmd.json:
            cmd.document(address=device.address, flushed=flushed)
        else:
            cmd.line("flushed" if flushed else "no cache to flush")


def discard(
    cmd: Command,
    dev: DevArgument,
    offset: content.OffsetArgument,
    size: content.SizeArgument,
    allow_write: AllowOption = False,
) -> None:
    """Tell the disk that SIZE bytes at OFFSET are unused. Their contents become undefined."""
    _consent(allow_write, "blk discard")
    first, count = parse_sectors(offset, "OFFSET"), parse_sectors(size, "SIZE")
    with _driver(cmd, dev, allow_write=True) as (device, disk):
        disk.discard(first, count)
        if cmd.json:
            cmd.document(address=device.address, offset=first * SECTOR, bytes=count * SECTOR)
        else:
            cmd.line(f"discarded {human(count * SECTOR)} at sector {first}")
