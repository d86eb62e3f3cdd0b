"""``uvirtio mem online`` and ``offline``: plugged memory for Linux itself, and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from uvirtio.cli import output
from uvirtio.cli.common import DevArgument, Run, seconds
from uvirtio.cli.size import human, parse_size
from uvirtio.errors import BadSize, InUse

if TYPE_CHECKING:
    from uvirtio.device import Device
    from uvirtio.drivers.mem import Manager, Mem, SuspendLock
    from uvirtio.online import Linux

SizeArgument = Annotated[
    str,
    typer.Argument(metavar="SIZE", help="1GiB, or 25% of the region; whole memory blocks (x86: 128M)."),
]


STAY_AWAKE = "`systemd-inhibit --what=sleep sleep infinity`"


def suspend_lock(run: Run, device: Device) -> SuspendLock | None:
    """What keeps this machine awake while its memory is plugged; a guest of ours does not suspend."""
    if device.guest is not None:
        return None
    from uvirtio.drivers.mem import SuspendLock

    return SuspendLock("virtio-mem has memory plugged that a suspend would lose", roots=run.roots)


def tell_suspend(run: Run, mem: Mem) -> None:
    """For who stays: whether the machine is kept from suspending while memory is plugged."""
    lock = mem.suspend_lock
    if run.json or lock is None or mem.survives_suspend:
        return
    lock.hold()
    if lock.means:
        run.line(f"suspend to RAM is held off meanwhile by {' and '.join(lock.means)}")
    else:
        why = "; ".join(lock.lacking)
        output.note(f"nothing here can hold off a suspend to RAM, which would lose what is plugged: {why}")


@contextmanager
def handing(
    run: Run, dev: str, *, limit: str = "", teller: bool = False
) -> Iterator[tuple[Device, Mem, Linux, Manager]]:
    """The device, and its memory as Linux has it; everything is checked before anything changes.

    ``teller``: a line for each piece that comes, goes, or is busy.
    """
    from uvirtio.drivers.mem import Mem
    from uvirtio.online import Linux, system_memory

    with run.device(dev) as device, Mem(device, suspend_lock=suspend_lock(run, device)) as mem:
        linux = Linux(system_memory(mem, run.roots))
        if teller:
            linux.told = _teller(run, linux)
        most = parse_size(limit, total=mem.config().region_size, multiple=mem.block_size) if limit else None
        yield device, mem, linux, linux.manager(mem, limit=most)


def _teller(run: Run, linux: Linux) -> Callable[[str, int], None]:
    last: dict[int, str] = {}

    def tell(event: str, address: int) -> None:
        if last.get(address) == event:
            return  # busy, and busy again
        last[address] = event
        total = linux.memory.kernel.total()
        failure = linux.failures.get(address) if event == "failed" else None
        if run.json:
            error = failure.as_dict() if failure else None
            run.document(event=event, address=address, mem_total=total, error=error)
        else:
            run.line(f"{event} {address:#x}; MemTotal {human(total)}" + (f": {failure}" if failure else ""))

    return tell


def _bytes(size: str, mem: Mem, manager: Manager) -> int:
    wanted = parse_size(size, total=mem.config().region_size, multiple=manager.unit)
    if wanted == 0:
        raise BadSize(f"{size!r} is not one memory block", seen=wanted, expected=f"at least {manager.unit}")
    return wanted


def online(run: Run, dev: DevArgument, size: SizeArgument = "") -> None:
    """Give SIZE bytes more to Linux, plugging what is missing; without SIZE all that the host requests."""
    if size and not size.strip().endswith("%"):
        parse_size(size)
    with handing(run, dev) as (device, mem, linux, manager):
        started, before = time.monotonic(), linux.bytes
        unit = manager.unit
        if size:
            wanted = _bytes(size, mem, manager)
        else:
            wanted = max(0, mem.config().requested_size - before) // unit * unit
        free = sum(one.size for one in manager.units() if one.state == "plugged")
        if wanted > free:
            manager.plug_size(wanted - free, timeout=run.timeout)
        linux.take(manager, wanted // unit)
        _tell(run, device, mem, linux, before, time.monotonic() - started)
        for failure in linux.failures.values():
            raise failure


def offline(
    run: Run,
    dev: DevArgument,
    size: SizeArgument = "",
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long to try again while memory is busy.")
    ] = 30.0,
) -> None:
    """Take SIZE bytes from Linux and unplug them; without SIZE all. What stays busy is left alone."""
    seconds("--wait", wait)
    if size and not size.strip().endswith("%"):
        parse_size(size)
    with handing(run, dev) as (device, mem, linux, manager):
        started, before = time.monotonic(), linux.bytes
        wanted = _bytes(size, mem, manager) if size else linux.movable
        if wanted > before:
            raise BadSize(
                f"{human(wanted)} are more than Linux has of it", seen=wanted, expected=f"at most {before}"
            )
        freed = linux.give_back(manager, wanted, timeout=wait)
        if freed:
            manager.unplug_size(freed, timeout=run.timeout)
        if freed < wanted:
            raise InUse(
                f"Linux cannot spare {human(wanted - freed)} of it now",
                seen=f"{human(freed)} came back and were unplugged",
                expected=human(wanted),
                remedy="free memory, or try again with a longer --wait",
            )
        _tell(run, device, mem, linux, before, time.monotonic() - started)


def _tell(run: Run, device: Device, mem: Mem, linux: Linux, before: int, took: float) -> None:
    kernel = linux.memory.kernel
    total, config = kernel.total(), mem.config()
    if run.json:
        run.document(
            address=device.address,
            unit=kernel.block_size(),
            before_bytes=before,
            online_bytes=linux.bytes,
            mem_total=total,
            plugged_bytes=config.plugged_size,
            requested_bytes=config.requested_size,
            region_bytes=config.region_size,
            pieces=[
                {"address": one.start, "bytes": one.size, "device": one.name, "state": one.state.value}
                for one in kernel.pieces()
            ],
            failures=[error.as_dict() for error in linux.failures.values()],
            seconds=took,
        )
        return
    run.line(
        f"Linux has {human(linux.bytes)} of the region, {human(before)} before; MemTotal {human(total)}; "
        f"plugged {human(config.plugged_size)}, requested {human(config.requested_size)}"
    )
