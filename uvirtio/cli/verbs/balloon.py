"""``uvirtio balloon``: a driver that runs as long as this process, and deflates however the command ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, DevArgument, make_group, seconds, verb
from uvirtio.cli.ending import TimeUp, time_up_after
from uvirtio.cli.progress import make_progress
from uvirtio.cli.signals import Signalled
from uvirtio.cli.size import human, parse_size
from uvirtio.cli.systemd import Manager
from uvirtio.errors import BadSize, NotSupported, UsageError, UvirtioError
from uvirtio.host import addresses, killer
from uvirtio.spec.page import VIRTIO_PAGE

if TYPE_CHECKING:
    from uvirtio.device import Device
    from uvirtio.drivers.balloon import Balloon, Collector


_ANY_MEMORY = (1 << 44) - VIRTIO_PAGE
"""Bytes: the most that a balloon can count (5.5.6)."""


class Tags(StrEnum):
    """Which statistics are reported."""

    ALL = "all"
    STANDARD = "standard"


TagsOption = Annotated[
    Tags, typer.Option("--tags", help="Statistics: standard leaves out those newer than the standard.")
]


def register(app: typer.Typer) -> None:
    """Add the group ``balloon`` to the application."""
    group = make_group("The memory balloon. It is deflated when the command ends.")
    app.add_typer(group, name="balloon")
    verb(group, "status", group="balloon", opens=True)(status)
    verb(group, "inflate", group="balloon", opens=True, streams=True)(inflate)
    verb(group, "follow", group="balloon", opens=True, streams=True)(follow)
    verb(group, "stats", group="balloon", opens=True, streams=True)(stats)
    verb(group, "report", group="balloon", opens=True, streams=True)(report)


# --- status -------------------------------------------------------------------------------------------------


def status(cmd: Command, dev: DevArgument, tags: TagsOption = Tags.ALL) -> None:
    """Show the host's target and the size of the balloon. Also its features and how it is driven."""
    from uvirtio.drivers.balloon import Balloon
    from uvirtio.spec import features as f

    with cmd.device(dev) as device, Balloon(device, stats=_statistics(cmd, tags), roots=cmd.roots) as driver:
        target, actual = driver.num_pages, driver.actual
        offered, taken = f.names(device.type, device.offered), f.names(device.type, device.features)
        mode = device.transport.interrupt_mode.value
        if cmd.json:
            cmd.document(
                address=device.address,
                num_pages=target,
                actual=actual,
                target_bytes=target * VIRTIO_PAGE,
                actual_bytes=actual * VIRTIO_PAGE,
                offered=device.offered,
                offered_names=[bit.name for bit in offered],
                features=device.features,
                features_names=[bit.name for bit in taken],
                interrupts=mode,
                backend=device.transport.description,
            )
            return
        cmd.fields(
            [
                ("address", device.address),
                ("target", f"{target} pages, {human(target * VIRTIO_PAGE)}"),
                ("actual", f"{actual} pages, {human(actual * VIRTIO_PAGE)}"),
                ("offered", f"{device.offered:#x}: " + ", ".join(bit.name for bit in offered)),
                ("negotiated", f"{device.features:#x}: " + ", ".join(bit.name for bit in taken)),
                ("interrupts", mode),
                ("back end", device.transport.description),
            ]
        )


# --- inflate ------------------------------------------------------------------------------------------------

FREE_MEMORY = "free-memory"
"""The rule that keeps some memory free; the only one that --force accepts here."""

SizeArgument = Annotated[str, typer.Argument(metavar="SIZE", help="64M, 1GiB, or 25% of the guest's memory.")]
HoldOption = Annotated[
    float | None,
    typer.Option("--hold", metavar="SECONDS", help="Release and exit after SECONDS (default: at Ctrl-C)."),
]
FloorOption = Annotated[
    str,
    typer.Option(
        "--floor", metavar="SIZE", help="Keep at least this much memory free (default: 5%, at least 256M)."
    ),
]


def _floor(cmd: Command, device: Device, floor: str) -> int | None:
    """``--floor`` in bytes; None where it was not given."""
    return parse_size(floor, total=_guest_memory(cmd, device), multiple=1) if floor else None


def inflate(
    cmd: Command,
    dev: DevArgument,
    size: SizeArgument,
    hold: HoldOption = None,
    floor: FloorOption = "",
    force: Annotated[str, typer.Option("--force", metavar="RULE", help="free-memory: ignore the floor.")] = "",
    tags: TagsOption = Tags.ALL,
) -> None:
    """Inflate the balloon by SIZE, hold it, then deflate it. It holds until Ctrl-C, SIGTERM or --hold."""
    if hold is not None and hold != 0:
        seconds("--hold", hold)
    if force not in ("", FREE_MEMORY):
        raise UsageError("--force takes a rule", seen=force, expected=FREE_MEMORY)
    _check_sizes(size, floor)
    from uvirtio.drivers.balloon import Balloon

    started = time.monotonic()
    reached = 0
    with cmd.device(dev) as device:
        pages, least = _pages(cmd, device, size), _floor(cmd, device, floor)
        _first_to_go(cmd, dev)
        with Balloon(device, floor=least, stats=_statistics(cmd, tags), roots=cmd.roots) as driver:
            cmd.drop_rights(device, pins=True)
            try:
                with make_progress(cmd, f"inflate {human(pages * VIRTIO_PAGE)}", pages) as progress:
                    driver.inflate(pages, progress=progress.update, force=force == FREE_MEMORY)
                _hold(cmd, driver, hold)
                _say_leaving(cmd, driver.held, "held long enough")
            except Signalled as signalled:
                _say_leaving(cmd, driver.held, signalled.name)
                raise
            finally:
                reached = driver.held
        _say_done(cmd, device, driver.findings, reached, time.monotonic() - started)


def _statistics(cmd: Command, tags: Tags) -> Collector | Literal["auto"]:
    """The source of statistics for the host: this machine's."""
    if tags is Tags.ALL:
        return "auto"
    from uvirtio.drivers.balloon import Collector

    return Collector(cmd.roots, standard=True)


def _check_sizes(size: str = "", floor: str = "") -> None:
    """Refuse, before a device is opened, a SIZE or --floor that no balloon could have."""
    if size:
        _count(size, _ANY_MEMORY)
    if floor:
        parse_size(floor, total=_ANY_MEMORY)


def _count(size: str, total: int) -> int:
    """The pages of ``size``.

    Args:
        size: As the user typed it.
        total: Bytes that a percentage refers to.

    Raises:
        BadSize: It is no size, less than a page, or more than 32 bits can count.
    """
    wanted = parse_size(size, total=total, multiple=VIRTIO_PAGE)
    if wanted == 0:
        raise BadSize(
            f"SIZE must be at least one page ({VIRTIO_PAGE})", seen=size, expected=f"at least {VIRTIO_PAGE} bytes"
        )
    if wanted // VIRTIO_PAGE >= 1 << 32:
        raise BadSize(
            f"{size!r} is more than a balloon can hold: its page count has 32 bits",
            seen=wanted,
            expected="below 16 TiB (5.5.6)",
        )
    return wanted // VIRTIO_PAGE


def _pages(cmd: Command, device: Device, size: str) -> int:
    """The pages of ``size``.

    Raises:
        BadSize: It is no size, or more than the ``qemu:`` guest has.
    """
    total = _guest_memory(cmd, device) if size.strip().endswith("%") else _ANY_MEMORY
    pages = _count(size, total)
    if device.guest is not None and pages * VIRTIO_PAGE > device.guest.ram:
        raise BadSize(
            f"the qemu: guest has only {human(device.guest.ram)} (ram=)",
            seen=pages * VIRTIO_PAGE,
            expected=f"at most {device.guest.ram}",
            remedy="give it more: qemu:q35,ram=SIZE/DEVICE",
        )
    return pages


def _guest_memory(cmd: Command, device: Device) -> int:
    """Bytes of memory of the guest that has the device: a ``qemu:`` guest, or this machine."""
    if device.guest is not None:
        return device.guest.ram
    from uvirtio.host.proc import meminfo

    try:
        return meminfo(cmd.roots)["MemTotal"]
    except (OSError, KeyError) as error:
        raise NotSupported(
            "it is not known how much memory this machine has",
            seen=f"/proc/meminfo: {error}",
            expected="MemTotal",
            remedy="give SIZE in bytes",
        ) from error


def _first_to_go(cmd: Command, dev: str) -> None:
    """Have the kernel's OOM killer find this process first: its end gives all of the balloon back.

    VFIO and the guardian reset the device before the memory is free, and the host gives it again.
    """
    if not dev.startswith(addresses.SIMULATED):
        killer.prefer(cmd.roots)


def _hold(cmd: Command, driver: Balloon, hold: float | None) -> None:
    if cmd.json:
        cmd.document(event="holding", pages=driver.held, bytes=driver.held * VIRTIO_PAGE, hold_s=hold)
    else:
        until = "until Ctrl-C" if hold is None else f"for {hold:g} s"
        cmd.line(f"holding {driver.held} pages ({human(driver.held * VIRTIO_PAGE)}) {until}")
    # In the wait loop: requests of the host are answered, and a failure of the device is noticed.
    driver.hold(hold)


def _say_leaving(cmd: Command, pages: int, why: str) -> None:
    if cmd.json:
        cmd.document(event="leaving", pages=pages, bytes=pages * VIRTIO_PAGE, reason=why)
    else:
        cmd.line(f"leaving ({why}): giving {human(pages * VIRTIO_PAGE)} back")


def _say_done(cmd: Command, device: Device, findings: Mapping[str, int], pages: int, took: float) -> None:
    actual: int | None = None
    try:
        actual = _actual(device)
    except UvirtioError as error:
        output.note(f"the final value of actual is unknown: {error.message}")
    if cmd.json:
        size = pages * VIRTIO_PAGE
        cmd.document(event="done", pages=pages, bytes=size, seconds=took, actual=actual, findings=findings)
    else:
        for what, count in findings.items():
            output.note(f"warning: {what} ({count})")
        cmd.line(
            f"done: {pages} pages ({human(pages * VIRTIO_PAGE)}) in {took:.1f} s; actual is {actual} pages now"
        )


def _actual(device: Device) -> int:
    from uvirtio.spec import balloon as spec
    from uvirtio.spec.layout import by_name

    return device.read_config(by_name(spec.CONFIG)["actual"])[0]


# --- follow -------------------------------------------------------------------------------------------------


def follow(
    cmd: Command,
    dev: DevArgument,
    limit: Annotated[str, typer.Option("--limit", metavar="SIZE", help="Never hold more than SIZE.")] = "",
    floor: FloorOption = "",
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="Stop after SECONDS.")
    ] = None,
    tags: TagsOption = Tags.ALL,
) -> None:
    """Track the host's target until Ctrl-C."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    _check_sizes(limit, floor)
    from uvirtio.drivers.balloon import Balloon

    with cmd.device(dev) as device:
        most = _pages(cmd, device, limit) if limit else None
        least = _floor(cmd, device, floor)
        _first_to_go(cmd, dev)
        started = time.monotonic()
        with Balloon(device, floor=least, stats=_statistics(cmd, tags), roots=cmd.roots) as driver:
            rights = cmd.drop_rights(device, pins=True)
            manager = Manager()
            teller = _Follower(cmd, driver, most, manager)
            teller.tell("following")
            manager.ready(f"following the host's target; {rights}")
            try:
                with time_up_after(device, for_seconds):
                    while True:  # it returns only where a watchdog wants to hear of it
                        driver.follow(
                            limit=most,
                            timeout=manager.every,
                            progress=teller.progress,
                            shortage=teller.shortage,
                        )
                        manager.alive()
            except TimeUp:
                _say_leaving(cmd, driver.held, "--for is over")
            except Signalled as signalled:
                _say_leaving(cmd, driver.held, signalled.name)
                raise
            finally:
                manager.stopping()
                reached = driver.held
        _say_done(cmd, device, driver.findings, reached, time.monotonic() - started)


class _Follower:
    """Reports the size of the balloon: when the target is reached, and at intervals on the way."""

    _EVERY = 0.5  # seconds

    def __init__(self, cmd: Command, driver: Balloon, limit: int | None, manager: Manager) -> None:
        self._cmd = cmd
        self._driver = driver
        self._manager = manager
        self._limit = limit
        self._told = 0.0

    def progress(self, pages: int) -> None:
        """Report the balloon at so many pages, if it is time to."""
        self._manager.alive()
        target = self._driver.num_pages
        wanted = target if self._limit is None else min(target, self._limit)
        if pages == wanted:
            self.tell("reached")
        elif time.monotonic() - self._told >= self._EVERY:
            self.tell("progress")

    def shortage(self, why: Exception, delay: float) -> None:
        """Report why the balloon does not grow now.

        Args:
            why: The reason.
            delay: Seconds to the next try.
        """
        reason = why.message if isinstance(why, UvirtioError) else str(why) or type(why).__name__
        if self._cmd.json:
            self._cmd.document(event="short", reason=reason, retry_s=delay, pages=self._driver.held)
        else:
            self._cmd.line(f"short of memory: {reason}; retrying in {delay:.1f} s")

    def tell(self, event: str) -> None:
        """Print an event with target and size of the balloon."""
        self._told = time.monotonic()
        target, held = self._driver.num_pages, self._driver.held
        if self._cmd.json:
            self._cmd.document(event=event, num_pages=target, pages=held, bytes=held * VIRTIO_PAGE)
        else:
            self._cmd.line(f"{event}: target {human(target * VIRTIO_PAGE)}, balloon {human(held * VIRTIO_PAGE)}")


# --- stats --------------------------------------------------------------------------------------------------

_POLLING = (
    "QEMU: qom-set guest-stats-polling-interval of the balloon, in seconds",
    "libvirt: virsh dommemstat DOMAIN --period SECONDS --live",
)
"""How a host is made to ask for statistics, which it does not do by itself."""


def stats(
    cmd: Command,
    dev: DevArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Show them again every second, until Ctrl-C.")] = False,
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="With --watch: stop after SECONDS.")
    ] = None,
    cgroup: Annotated[
        Path | None,
        typer.Option("--cgroup", metavar="DIR", help="Report this cgroup (v2) instead of the whole machine."),
    ] = None,
    tags: TagsOption = Tags.ALL,
) -> None:
    """Report memory statistics to the host. They are those of this machine, shown under both of their names."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    from uvirtio.drivers.balloon import Balloon, Collector

    collector = Collector(cmd.roots, cgroup, standard=tags is Tags.STANDARD)
    collector()  # a DIR that is no cgroup is an error before the device is touched
    with cmd.device(dev) as device, Balloon(device, stats=collector, roots=cmd.roots) as driver:
        if driver.stats is None:
            raise NotSupported(
                f"{dev} does not take statistics",
                seen=f"offered features {device.offered:#x}",
                expected="STATS_VQ (5.5.3)",
            )
        _tell_stats(cmd, driver, collector())
        if not watch:
            return
        cmd.drop_rights(device)
        clock = device.clock
        end = None if for_seconds is None else clock.monotonic() + for_seconds
        while (left := 1.0 if end is None else min(1.0, end - clock.monotonic())) > 0:
            driver.hold(left)
            _tell_stats(cmd, driver, collector())


def _tell_stats(cmd: Command, driver: Balloon, values: Mapping[int, int]) -> None:
    from uvirtio.drivers.balloon import BYTES, VIRSH, name_of

    requests = 0 if driver.stats is None else driver.stats.requests
    if cmd.json:
        entries = [
            {
                "tag": tag,
                "name": name_of(tag),
                "virsh": VIRSH.get(tag),
                "value": value,
                "unit": "bytes" if tag in BYTES else "events",
            }
            for tag, value in values.items()
        ]
        cmd.document(statistics=entries, requests=requests, remedy=None if requests else "; ".join(_POLLING))
        return
    rows = [
        [VIRSH.get(tag, "-"), name_of(tag), human(value) if tag in BYTES else str(value)]
        for tag, value in values.items()
    ]
    cmd.table(["virsh", "standard", "value"], rows)
    cmd.line(f"requests from the host: {requests}")
    if not requests:
        for line in _POLLING:
            cmd.line(f"  to make it ask, {line}")


# --- report -------------------------------------------------------------------------------------------------


def report(
    cmd: Command,
    dev: DevArgument,
    size: SizeArgument,
    hold: HoldOption = None,
    tags: TagsOption = Tags.ALL,
) -> None:
    """Keep SIZE of memory free and report it to the host. It is kept until Ctrl-C, SIGTERM or --hold.

    The host may reclaim the memory behind it and leave it out of a migration; the balloon itself does not grow.
    """
    if hold is not None and hold != 0:
        seconds("--hold", hold)
    _check_sizes(size)
    from uvirtio.drivers.balloon import Balloon

    statistics = _statistics(cmd, tags)
    with (
        cmd.device(dev) as device,
        Balloon(device, stats=statistics, reporting=True, hinting=True, roots=cmd.roots) as driver,
    ):
        wanted = _pages(cmd, device, size) * VIRTIO_PAGE
        if driver.reports is None and driver.hints is None:
            raise NotSupported(
                f"{dev} does not offer free page reporting or hints",
                seen=f"offered features {device.offered:#x}",
                expected="PAGE_REPORTING or FREE_PAGE_HINT (5.5.3)",
                remedy="QEMU: virtio-balloon-pci,free-page-reporting=on",
            )
        arena = driver.arena(wanted)
        told = driver.report(arena) if driver.reports is not None else 0
        if driver.hints is not None:
            driver.lend(arena)
        cmd.drop_rights(device)
        try:
            if cmd.json:
                cmd.document(event="holding", bytes=arena.size, reported_bytes=told, hold_s=hold)
            else:
                until = "until Ctrl-C" if hold is None else f"for {hold:g} s"
                cmd.line(f"{human(told)} reported in {len(arena.ranges)} ranges; kept free {until}")
            driver.hold(hold)
        finally:
            hinted = driver.hints.hinted if driver.hints is not None else 0
            if cmd.json:
                cmd.document(event="leaving", bytes=arena.size, reported_bytes=told, hinted_bytes=hinted)
            else:
                cmd.line(f"leaving: {human(told)} reported, {human(hinted)} hinted")
