"""``uvirtio balloon``: a driver that lives as long as this process, and gives everything back when it leaves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uvirtio.cli import output
from uvirtio.cli.common import DevArgument, Run, seconds, verb
from uvirtio.cli.ending import TimeUp, time_up_after
from uvirtio.cli.progress import make_progress
from uvirtio.cli.signals import Signalled
from uvirtio.cli.size import PAGE, human, parse_size
from uvirtio.errors import BadSize, NotSupported, UsageError, UvirtioError
from uvirtio.host.proc import meminfo

if TYPE_CHECKING:
    from uvirtio.device import Device
    from uvirtio.drivers.balloon import Balloon


_ANY_MEMORY = (1 << 44) - PAGE
"""Bytes; as much as a balloon can count (5.5.6)."""


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="The memory balloon. It lives as long as the command does.")
    app.add_typer(group, name="balloon")
    verb(group, "status", group="balloon", opens=True)(status)
    verb(group, "inflate", group="balloon", opens=True, streams=True)(inflate)
    verb(group, "follow", group="balloon", opens=True, streams=True)(follow)
    verb(group, "stats", group="balloon", opens=True, streams=True)(stats)
    verb(group, "report", group="balloon", opens=True, streams=True)(report)


# --- status -------------------------------------------------------------------------------------------------


def status(run: Run, dev: DevArgument) -> None:
    """The host's target, what the balloon holds, and how the device is driven."""
    from uvirtio.drivers.balloon import Balloon
    from uvirtio.spec import features as f

    with run.device(dev) as device, Balloon(device, roots=run.roots) as driver:
        target, actual = driver.num_pages, driver.actual
        offered, taken = f.names(device.type, device.offered), f.names(device.type, device.features)
        mode = device.transport.interrupt_mode.value
        if run.json:
            run.document(
                address=device.address,
                num_pages=target,
                actual=actual,
                target_bytes=target * PAGE,
                actual_bytes=actual * PAGE,
                offered=device.offered,
                offered_names=[bit.name for bit in offered],
                features=device.features,
                features_names=[bit.name for bit in taken],
                interrupts=mode,
                backend=device.transport.description,
            )
            return
        run.fields(
            [
                ("address", device.address),
                ("target", f"{target} pages, {human(target * PAGE)}"),
                ("actual", f"{actual} pages, {human(actual * PAGE)}"),
                ("offered", f"{device.offered:#x}: " + ", ".join(bit.name for bit in offered)),
                ("negotiated", f"{device.features:#x}: " + ", ".join(bit.name for bit in taken)),
                ("interrupts", mode),
                ("back end", device.transport.description),
            ]
        )


# --- inflate ------------------------------------------------------------------------------------------------

FREE_MEMORY = "free-memory"
"""The rule that keeps a floor of free memory; the one that --force can name here."""

SizeArgument = Annotated[str, typer.Argument(metavar="SIZE", help="64M, 1GiB, or 25% of the guest's memory.")]
HoldOption = Annotated[
    float | None, typer.Option("--hold", metavar="SECONDS", help="Leave after this long instead of on Ctrl-C.")
]
FloorOption = Annotated[
    str,
    typer.Option("--floor", metavar="SIZE", help="Leave this much memory free (default: 5%, at least 256M)."),
]


def _floor(run: Run, device: Device, floor: str) -> int | None:
    """``--floor`` in bytes; None where it was not given."""
    return parse_size(floor, total=_guest_memory(run, device), multiple=1) if floor else None


def inflate(
    run: Run,
    dev: DevArgument,
    size: SizeArgument,
    hold: HoldOption = None,
    floor: FloorOption = "",
    force: Annotated[
        str, typer.Option("--force", metavar="RULE", help="free-memory: the floor does not count.")
    ] = "",
) -> None:
    """Take SIZE into the balloon, hold it until Ctrl-C, SIGTERM or --hold, then give it back."""
    if hold is not None and hold != 0:
        seconds("--hold", hold)
    if force not in ("", FREE_MEMORY):
        raise UsageError("--force names a rule", seen=force, expected=FREE_MEMORY)
    _check_sizes(size, floor)
    from uvirtio.drivers.balloon import Balloon

    started = time.monotonic()
    reached = 0
    with run.device(dev) as device:
        pages, least = _pages(run, device, size), _floor(run, device, floor)
        with Balloon(device, floor=least, roots=run.roots) as driver:
            try:
                with make_progress(run, f"inflate {human(pages * PAGE)}", pages) as progress:
                    driver.inflate(pages, progress=progress.update, force=force == FREE_MEMORY)
                _hold(run, driver, hold)
                _say_leaving(run, driver.held, "held long enough")
            except Signalled as signalled:
                _say_leaving(run, driver.held, signalled.name)
                raise
            finally:
                reached = driver.held
        _say_done(run, device, reached, time.monotonic() - started)


def _check_sizes(size: str = "", floor: str = "") -> None:
    """Refuse, before a device is opened, what is no size of any balloon, or no floor."""
    if size:
        _count(size, _ANY_MEMORY)
    if floor:
        parse_size(floor, total=_ANY_MEMORY)


def _count(size: str, total: int) -> int:
    """Pages; ``total`` is the memory that a percentage is of, in bytes."""
    wanted = parse_size(size, total=total, multiple=PAGE)
    if wanted == 0:
        raise BadSize(f"{size!r} is not one page", seen=wanted, expected=f"at least {PAGE} bytes")
    if wanted // PAGE >= 1 << 32:
        raise BadSize(f"{size!r} is more than a balloon can count", seen=wanted, expected="below 16 TiB (5.5.6)")
    return wanted // PAGE


def _pages(run: Run, device: Device, size: str) -> int:
    """``size`` in pages. Raises BadSize for more than the guest has, where that is a guest of ours."""
    total = _guest_memory(run, device) if size.strip().endswith("%") else _ANY_MEMORY
    pages = _count(size, total)
    if device.guest is not None and pages * PAGE > device.guest.ram:
        raise BadSize(
            f"{size!r} is more memory than this machine has",
            seen=pages * PAGE,
            expected=f"at most {device.guest.ram}",
            remedy="give it more: qemu:q35,ram=SIZE/DEVICE",
        )
    return pages


def _guest_memory(run: Run, device: Device) -> int:
    """Bytes of memory of the guest that the device belongs to: one of ours, or this machine."""
    if device.guest is not None:
        return device.guest.ram
    try:
        return meminfo(run.roots)["MemTotal"]
    except (OSError, KeyError) as error:
        raise NotSupported(
            "it is not known how much memory this machine has",
            seen=f"/proc/meminfo: {error}",
            expected="MemTotal",
            remedy="give SIZE in bytes",
        ) from error


def _hold(run: Run, driver: Balloon, hold: float | None) -> None:
    if run.json:
        run.document(event="holding", pages=driver.held, bytes=driver.held * PAGE, hold_s=hold)
    else:
        until = "until Ctrl-C" if hold is None else f"for {hold:g} s"
        run.line(f"holding {driver.held} pages ({human(driver.held * PAGE)}) {until}")
    # In the wait loop: the host's questions are answered, and a device that breaks meanwhile is noticed.
    driver.hold(hold)


def _say_leaving(run: Run, pages: int, why: str) -> None:
    if run.json:
        run.document(event="leaving", pages=pages, bytes=pages * PAGE, reason=why)
    else:
        run.line(f"leaving ({why}): giving {human(pages * PAGE)} back")


def _say_done(run: Run, device: Device, pages: int, took: float) -> None:
    actual: int | None = None
    try:
        actual = _actual(device)
    except UvirtioError as error:
        output.note(f"what the device has noted at the end is not known: {error.message}")
    if run.json:
        run.document(event="done", pages=pages, bytes=pages * PAGE, seconds=took, actual=actual)
    else:
        run.line(
            f"done: {pages} pages ({human(pages * PAGE)}) in {took:.1f} s; the device has noted {actual} pages"
        )


def _actual(device: Device) -> int:
    from uvirtio.spec import balloon as spec
    from uvirtio.spec.layout import by_name

    return device.read_config(by_name(spec.CONFIG)["actual"])[0]


# --- follow -------------------------------------------------------------------------------------------------


def follow(
    run: Run,
    dev: DevArgument,
    limit: Annotated[str, typer.Option("--limit", metavar="SIZE", help="Never hold more than this.")] = "",
    floor: FloorOption = "",
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="Stop after this long.")
    ] = None,
) -> None:
    """Be the balloon that the host asks for, whenever it asks, until Ctrl-C."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    _check_sizes(limit, floor)
    from uvirtio.drivers.balloon import Balloon

    with run.device(dev) as device:
        most = _pages(run, device, limit) if limit else None
        least = _floor(run, device, floor)
        started = time.monotonic()
        with Balloon(device, floor=least, roots=run.roots) as driver:
            teller = _Follower(run, driver, most)
            teller.tell("following")
            try:
                with time_up_after(device, for_seconds):
                    driver.follow(limit=most, progress=teller.progress, shortage=teller.shortage)
            except TimeUp:
                _say_leaving(run, driver.held, "--for is over")
            except Signalled as signalled:
                _say_leaving(run, driver.held, signalled.name)
                raise
            finally:
                reached = driver.held
        _say_done(run, device, reached, time.monotonic() - started)


class _Follower:
    """Says where the balloon is: each time that it gets where it was sent, and now and then on the way."""

    _EVERY = 0.5  # seconds

    def __init__(self, run: Run, driver: Balloon, limit: int | None) -> None:
        self._run = run
        self._driver = driver
        self._limit = limit
        self._told = 0.0

    def progress(self, pages: int) -> None:
        target = self._driver.num_pages
        wanted = target if self._limit is None else min(target, self._limit)
        if pages == wanted:
            self.tell("reached")
        elif time.monotonic() - self._told >= self._EVERY:
            self.tell("progress")

    def shortage(self, why: Exception, delay: float) -> None:
        """Why the balloon does not grow now."""
        reason = why.message if isinstance(why, UvirtioError) else str(why) or type(why).__name__
        if self._run.json:
            self._run.document(event="short", reason=reason, retry_s=delay, pages=self._driver.held)
        else:
            self._run.line(f"short of memory: {reason}; next try in {delay:.1f} s")

    def tell(self, event: str) -> None:
        self._told = time.monotonic()
        target, held = self._driver.num_pages, self._driver.held
        if self._run.json:
            self._run.document(event=event, num_pages=target, pages=held, bytes=held * PAGE)
        else:
            self._run.line(f"{event}: target {human(target * PAGE)}, balloon {human(held * PAGE)}")


# --- stats --------------------------------------------------------------------------------------------------


def stats(
    run: Run,
    dev: DevArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Show them anew each second, until Ctrl-C.")] = False,
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="With --watch: stop after this long.")
    ] = None,
    cgroup: Annotated[
        Path | None, typer.Option("--cgroup", metavar="DIR", help="Of this cgroup (v2) instead of the machine.")
    ] = None,
) -> None:
    """Give the host statistics of this machine's memory, and show them by their two names."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    from uvirtio.drivers.balloon import Balloon, Collector

    collector = Collector(run.roots, cgroup)
    collector()  # a DIR that is no cgroup is an error before the device is touched
    with run.device(dev) as device, Balloon(device, stats=collector, roots=run.roots) as driver:
        if driver.stats is None:
            raise NotSupported(
                f"{dev} takes no statistics",
                seen=f"offered features {device.offered:#x}",
                expected="STATS_VQ (5.5.3)",
            )
        _tell_stats(run, driver, collector())
        if not watch:
            return
        end = None if for_seconds is None else time.monotonic() + for_seconds
        while (left := 1.0 if end is None else min(1.0, end - time.monotonic())) > 0:
            driver.hold(left)
            _tell_stats(run, driver, collector())


def _tell_stats(run: Run, driver: Balloon, values: Mapping[int, int]) -> None:
    from uvirtio.drivers.balloon import BYTES, VIRSH, name_of

    requests = 0 if driver.stats is None else driver.stats.requests
    if run.json:
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
        run.document(statistics=entries, requests=requests)
        return
    rows = [
        [VIRSH.get(tag, "-"), name_of(tag), human(value) if tag in BYTES else str(value)]
        for tag, value in values.items()
    ]
    run.table(["virsh", "standard", "value"], rows)
    run.line(f"the host has asked {requests} times")


# --- report -------------------------------------------------------------------------------------------------


def report(run: Run, dev: DevArgument, size: SizeArgument, hold: HoldOption = None) -> None:
    """Hold SIZE of memory free and tell the host so, until Ctrl-C, SIGTERM or --hold.

    The host may take what is behind it, and leave it out of a migration; nothing of the balloon grows.
    """
    if hold is not None and hold != 0:
        seconds("--hold", hold)
    _check_sizes(size)
    from uvirtio.drivers.balloon import Balloon

    with run.device(dev) as device, Balloon(device, reporting=True, hinting=True, roots=run.roots) as driver:
        wanted = _pages(run, device, size) * PAGE
        if driver.reports is None and driver.hints is None:
            raise NotSupported(
                f"{dev} does not want to know of free memory",
                seen=f"offered features {device.offered:#x}",
                expected="PAGE_REPORTING or FREE_PAGE_HINT (5.5.3)",
                remedy="QEMU: virtio-balloon-pci,free-page-reporting=on",
            )
        arena = driver.arena(wanted)
        told = driver.report(arena) if driver.reports is not None else 0
        if driver.hints is not None:
            driver.lend(arena)
        try:
            if run.json:
                run.document(event="holding", bytes=arena.size, reported_bytes=told, hold_s=hold)
            else:
                until = "until Ctrl-C" if hold is None else f"for {hold:g} s"
                run.line(f"{human(told)} reported in {len(arena.ranges)} ranges; held free {until}")
            driver.hold(hold)
        finally:
            hinted = driver.hints.hinted if driver.hints is not None else 0
            if run.json:
                run.document(event="leaving", bytes=arena.size, reported_bytes=told, hinted_bytes=hinted)
            else:
                run.line(f"leaving: {human(told)} were reported, {human(hinted)} hinted")
