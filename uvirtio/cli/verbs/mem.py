"""``uvirtio mem``: plug and unplug memory blocks. Plugged memory stays plugged after the command."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, DevArgument, make_group, seconds, verb
from uvirtio.cli.ending import TimeUp, time_up_after
from uvirtio.cli.signals import Signalled
from uvirtio.cli.size import human, parse_size
from uvirtio.cli.verbs import mem_online
from uvirtio.errors import BadSize, OperationFailed, UsageError

if TYPE_CHECKING:
    from uvirtio.device import Device
    from uvirtio.drivers.mem import BadBlock, Manager, Mem, MemConfig, Outcome, Region

_COLUMNS = 64
_ROWS = 32

SizeArgument = Annotated[
    str, typer.Argument(metavar="SIZE", help="64M, 1GiB, or 25% of the region; a multiple of the block size.")
]
UnitOption = Annotated[
    str,
    typer.Option("--unit", metavar="SIZE", help="Plug and unplug in multiples of SIZE (Linux: 128M)."),
]


def register(app: typer.Typer) -> None:
    """Add the group ``mem`` to the application."""
    group = make_group(
        "Memory that is plugged and unplugged as the host requests. What is plugged outlives the command."
    )
    app.add_typer(group, name="mem")
    verb(group, "status", group="mem", opens=True)(status)
    verb(group, "map", group="mem", opens=True)(show_map)
    verb(group, "plug", group="mem", opens=True)(plug)
    verb(group, "unplug", group="mem", opens=True)(unplug)
    verb(group, "follow", group="mem", opens=True, streams=True)(follow)
    verb(group, "unplug-all", group="mem", opens=True)(unplug_all)
    verb(group, "online", group="mem", opens=True)(mem_online.online)
    verb(group, "offline", group="mem", opens=True)(mem_online.offline)


@contextmanager
def _driver(cmd: Command, dev: str) -> Iterator[tuple[Device, Mem]]:
    from uvirtio.drivers.mem import Mem
    from uvirtio.drivers.mem.kernel_use import note_kernel_use, of_this_machine

    with cmd.device(dev) as device, Mem(device, suspend_lock=mem_online.suspend_lock(cmd, device)) as mem:
        if of_this_machine(device):
            note_kernel_use(mem, cmd.roots)  # blocks that Linux uses are not unplugged
        yield device, mem


def _sizes(config: MemConfig) -> dict[str, int]:
    return {
        "plugged_bytes": config.plugged_size,
        "requested_bytes": config.requested_size,
        "usable_bytes": config.usable_region_size,
        "region_bytes": config.region_size,
    }


def _answers(mem: Mem) -> dict[str, int]:
    return {answer.name.lower(): count for answer, count in mem.counts.items()}


def _answers_text(mem: Mem) -> str:
    return ", ".join(f"{count} {name.upper()}" for name, count in _answers(mem).items())


# --- status and map -----------------------------------------------------------------------------------------


def status(cmd: Command, dev: DevArgument) -> None:
    """Show plugged and requested memory. Also the features and how the device is driven."""
    from uvirtio.spec import features as f

    with _driver(cmd, dev) as (device, mem):
        config = mem.config()
        taken = [bit.name for bit in f.names(device.type, device.features)]
        mode = device.transport.interrupt_mode.value
        if cmd.json:
            cmd.document(
                address=device.address,
                block_size=config.block_size,
                addr=config.addr,
                node_id=config.node_id,
                **_sizes(config),
                leftover_blocks=mem.leftover.total,
                unplugged_inaccessible=mem.unplugged_inaccessible,
                persistent_suspend=mem.survives_suspend,
                features=device.features,
                features_names=taken,
                answers=_answers(mem),
                findings=mem.findings,
                interrupts=mode,
                backend=device.transport.description,
            )
            return
        cmd.fields(
            [
                ("address", device.address),
                ("plugged", f"{human(config.plugged_size)}, {config.plugged_blocks} blocks"),
                ("requested", human(config.requested_size)),
                ("region", f"{human(config.region_size)} at {config.addr:#x}"),
                ("usable", human(config.usable_region_size)),
                ("block", human(config.block_size)),
                ("node", "not reported" if config.node_id is None else config.node_id),
                ("negotiated", f"{device.features:#x}: " + ", ".join(taken)),
                (
                    "suspend to RAM",
                    "keeps plugged memory" if mem.survives_suspend else "would lose plugged memory",
                ),
                ("answers", _answers_text(mem)),
                ("findings", "; ".join(f"{what} ({count})" for what, count in mem.findings.items()) or "none"),
                ("interrupts", mode),
                ("back end", device.transport.description),
            ]
        )


def show_map(cmd: Command, dev: DevArgument) -> None:
    """Show a map of the blocks of the region. They are plugged, in use, or not usable."""
    with _driver(cmd, dev) as (device, mem):
        config = mem.config()
        if cmd.json:
            cmd.document(
                address=device.address,
                block_size=config.block_size,
                addr=config.addr,
                **_sizes(config),
                ranges=_ranges(mem, config),
                answers=_answers(mem),
            )
            return
        _print_map(cmd, mem, config)


def _ranges(mem: Mem, config: MemConfig) -> list[dict[str, Any]]:
    """The plugged ranges, split into those in use and the others."""
    table, made = mem.block_table, []
    for first, count in table.plugged:
        pieces = [(at, size, False) for at, size in table.in_use.gaps(first, count)]
        pieces += [(at, size, True) for at, size in table.in_use.within(first, count)]
        for at, size, used in sorted(pieces):
            made.append(
                {
                    "address": config.address_of(at),
                    "bytes": size * config.block_size,
                    "blocks": size,
                    "state": "in-use" if used else "plugged",
                }
            )
    return made


def _print_map(cmd: Command, mem: Mem, config: MemConfig) -> None:
    each = max(1, -(-config.blocks // (_COLUMNS * _ROWS)))
    each = 1 << (each - 1).bit_length()
    for row in range(0, config.blocks, _COLUMNS * each):
        cells = "".join(
            _cell(mem, config, first, min(each, config.blocks - first))
            for first in range(row, min(row + _COLUMNS * each, config.blocks), each)
        )
        cmd.line(f"{config.address_of(row):#014x} {cells}")
    cmd.line(
        f"each character is {human(each * config.block_size)}: "
        "# plugged, @ in use, + partly plugged, . not plugged, - not usable"
    )
    cmd.line(
        f"plugged {human(config.plugged_size)} of {human(config.region_size)}, "
        f"requested {human(config.requested_size)}; {_answers_text(mem)}"
    )


def _cell(mem: Mem, config: MemConfig, first: int, count: int) -> str:
    plugged = mem.block_table.plugged.count(first, count)
    if mem.block_table.in_use.overlaps(first, count):
        return "@"
    if plugged:
        return "#" if plugged == count else "+"
    return "." if first < config.usable_blocks else "-"


# --- plug and unplug ----------------------------------------------------------------------------------------


VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Write and read each new page, in a child process; the host provides them now."),
]


def plug(
    cmd: Command, dev: DevArgument, size: SizeArgument, unit: UnitOption = "", verify: VerifyOption = False
) -> int:
    """Plug SIZE more bytes, as far as the host requests them. They stay plugged."""
    with _sized(cmd, dev, size) as (device, mem, wanted), _region(cmd, mem, verify) as region:
        before, had = mem.config().plugged_size, mem.block_table.plugged.copy()
        manager = _manager(mem, unit)
        started = time.monotonic()
        manager.plug_size(wanted)
        took = time.monotonic() - started
        new = list(mem.block_table.plugged.without(had))
        if region is None:
            _tell_change(cmd, device, mem, manager, before, took)
            return 0
        bad = _verified(cmd, region, new)
        failure = _absent(mem, bad, sum(count for _, count in new)) if bad else None
        members: dict[str, Any] = {"bad": [one.as_dict() for one in bad]}
        if failure is not None:
            members["error"] = failure.as_dict()
        _tell_change(cmd, device, mem, manager, before, took, members)
        if failure is None and not cmd.json:
            cmd.line("each new page was written and read")
        elif failure is not None and not cmd.json:
            output.error(failure, cmd.name, as_json=False)
        return 0 if failure is None else failure.exit_code


def unplug(cmd: Command, dev: DevArgument, size: SizeArgument, unit: UnitOption = "") -> None:
    """Unplug SIZE bytes that are not in use. Their contents are lost."""
    with _sized(cmd, dev, size) as (device, mem, wanted):
        before = mem.config().plugged_size
        manager = _manager(mem, unit)
        started = time.monotonic()
        manager.unplug_size(wanted)
        _tell_change(cmd, device, mem, manager, before, time.monotonic() - started)


@contextmanager
def _sized(cmd: Command, dev: str, size: str) -> Iterator[tuple[Device, Mem, int]]:
    """The driver, and SIZE in bytes."""
    if not size.strip().endswith("%"):
        _positive(parse_size(size), size)  # before a device is opened
    with _driver(cmd, dev) as (device, mem):
        wanted = parse_size(size, total=mem.config().region_size, multiple=mem.block_size)
        _positive(wanted, size)
        yield device, mem, wanted


@contextmanager
def _region(cmd: Command, mem: Mem, wanted: bool) -> Iterator[Region | None]:
    """The memory itself, if it is wanted: what refuses it does so before anything is plugged."""
    from uvirtio.drivers.mem import Region

    if not wanted:
        yield None
        return
    with Region.open(mem, roots=cmd.roots) as region:
        yield region


def _verified(cmd: Command, region: Region, blocks: list[tuple[int, int]]) -> list[BadBlock]:
    from uvirtio.drivers.mem import verify

    return verify(region, blocks, timeout=cmd.timeout)


def _absent(mem: Mem, bad: list[BadBlock], of: int) -> OperationFailed:
    return OperationFailed(
        f"{len(bad)} of {of} blocks were acknowledged, and their memory is not there",
        seen="; ".join(f"{one.address:#x}: {one.why}" for one in bad[:3]) + ("; ..." if len(bad) > 3 else ""),
        expected=f"{mem.block_size} bytes of memory behind each (5.15.6.2)",
        remedy="see what the host has for this device (huge pages, tmpfs); uvirtio mem unplug takes them back",
    )


def unplug_all(cmd: Command, dev: DevArgument) -> None:
    """Unplug everything, whoever plugged it; its contents are lost."""
    with _driver(cmd, dev) as (device, mem):
        before = mem.config().plugged_size
        started = time.monotonic()
        mem.unplug_all()
        _tell_change(cmd, device, mem, None, before, time.monotonic() - started)


def _positive(wanted: int, size: str) -> None:
    if wanted == 0:
        raise BadSize("SIZE must be at least one block", seen=size, expected="at least one block")


def _manager(mem: Mem, unit: str, limit: str = "") -> Manager:
    from uvirtio.drivers.mem import Manager

    return Manager(
        mem,
        unit=parse_size(unit) if unit else None,
        limit=parse_size(limit, total=mem.config().region_size, multiple=mem.block_size) if limit else None,
    )


def _tell_change(
    cmd: Command,
    device: Device,
    mem: Mem,
    manager: Manager | None,
    before: int,
    took: float,
    members: Mapping[str, Any] | None = None,
) -> None:
    config = mem.config()
    mode = manager.mode.value if manager is not None else None
    if cmd.json:
        cmd.document(
            address=device.address,
            before_bytes=before,
            **_sizes(config),
            mode=mode,
            answers=_answers(mem),
            findings=mem.findings,
            seconds=took,
            **(members or {}),
        )
        return
    cmd.line(
        f"plugged {human(config.plugged_size)}, {human(before)} before; "
        f"requested {human(config.requested_size)}; {_answers_text(mem)}"
    )
    if config.plugged_size and mem.suspend_lock is not None and not mem.survives_suspend:
        output.note(
            "do not suspend this machine to RAM: plugged memory would be lost (5.15.6.1), and nothing prevents it"
            f" once this command has ended; {mem_online.STAY_AWAKE} does"
        )


# --- follow -------------------------------------------------------------------------------------------------


def follow(
    cmd: Command,
    dev: DevArgument,
    unit: UnitOption = "",
    limit: Annotated[str, typer.Option("--limit", metavar="SIZE", help="Never plug more than SIZE.")] = "",
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="Stop after SECONDS.")
    ] = None,
    online: Annotated[
        bool,
        typer.Option("--online", help="Give plugged memory to Linux itself, and take it back (excludes --unit)."),
    ] = False,
) -> None:
    """Plug and unplug as the host requests, until Ctrl-C. What is plugged then stays plugged."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    for text in (unit, limit):
        if text and not text.strip().endswith("%"):
            parse_size(text)
    if online and unit:
        raise UsageError("--online and --unit exclude each other", remedy="leave --unit out")
    with _managed(cmd, dev, unit, limit, online) as (device, mem, manager):
        cmd.drop_rights(device, keep=mem_online.rights(cmd, mem, online))
        teller = _Follower(cmd, mem, manager)
        teller.tell("following")
        if not cmd.json:
            cmd.line(_units(manager))
        mem_online.tell_suspend(cmd, mem)
        try:
            with time_up_after(device, for_seconds):
                manager.follow(progress=teller.progress, told=teller.ended)
        except TimeUp:
            teller.tell("leaving", reason="--for is over")
        except Signalled as signalled:
            teller.tell("leaving", reason=signalled.name)
            raise


@contextmanager
def _managed(cmd: Command, dev: str, unit: str, limit: str, online: bool) -> Iterator[tuple[Device, Mem, Manager]]:
    if online:
        with mem_online.handing(cmd, dev, limit=limit, teller=True) as (device, mem, _, manager):
            yield device, mem, manager
    else:
        with _driver(cmd, dev) as (device, mem):
            yield device, mem, _manager(mem, unit, limit)


def _units(manager: Manager) -> str:
    """Which of the kernel's two modes applies (virtio_mem.c calls them SBM and BBM)."""
    linux = "SBM" if manager.mode.value == "sub-blocks" else "BBM"
    return f"units of {human(manager.unit)}, steps of {human(manager.step)}: {manager.mode.value} ({linux})"


class _Follower:
    """Reports how much is plugged: when no more can be done, and at intervals on the way."""

    _EVERY = 0.5  # seconds

    def __init__(self, cmd: Command, mem: Mem, manager: Manager) -> None:
        self._cmd = cmd
        self._mem = mem
        self._manager = manager
        self._told = time.monotonic()

    def progress(self, _plugged: int) -> None:
        """Report the size that is plugged now, if it is time to."""
        if time.monotonic() - self._told >= self._EVERY:
            self.tell("progress")

    def ended(self, outcome: Outcome) -> None:
        """Report the outcome, after which no more can be done for now."""
        self.tell(outcome.value)

    def tell(self, event: str, reason: str | None = None) -> None:
        """Print an event with requested and plugged size."""
        self._told = time.monotonic()
        config = self._mem.config()
        if self._cmd.json:
            self._cmd.document(
                event=event,
                reason=reason,
                **_sizes(config),
                mode=self._manager.mode.value,
                retries=self._manager.retries,
                answers=_answers(self._mem),
                findings=self._mem.findings,
            )
            return
        why = f" ({reason})" if reason else ""
        self._cmd.line(
            f"{event}{why}: requested {human(config.requested_size)}, plugged {human(config.plugged_size)}; "
            f"{_answers_text(self._mem)}"
        )
