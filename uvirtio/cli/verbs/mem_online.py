"""``uvirtio mem online`` and ``offline``: hand plugged memory to Linux, and take it back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, DevArgument, seconds
from uvirtio.cli.size import human, parse_size
from uvirtio.errors import BadSize, InUse

if TYPE_CHECKING:
    from uvirtio.device import Device
    from uvirtio.drivers.mem import Manager, Mem, SuspendLock
    from uvirtio.online import Linux

SizeArgument = Annotated[
    str,
    typer.Argument(metavar="[SIZE]", help="1GiB, or 25% of the region; whole memory blocks (x86: 128M)."),
]


STAY_AWAKE = "`systemd-inhibit --what=sleep sleep infinity`"


def suspend_lock(cmd: Command, device: Device) -> SuspendLock | None:
    """What prevents suspend while this machine's memory is plugged; None: it is no memory of this machine."""
    from uvirtio.drivers.mem import SuspendLock
    from uvirtio.drivers.mem.kernel_use import of_this_machine

    if not of_this_machine(device):
        return None
    return SuspendLock("plugged virtio-mem memory would be lost by a suspend", roots=cmd.roots)


def tell_suspend(cmd: Command, mem: Mem) -> None:
    """Report, for a command that keeps running, whether suspend is blocked while memory is plugged."""
    lock = mem.suspend_lock
    if cmd.json or lock is None or mem.survives_suspend:
        return
    lock.hold()
    if lock.means:
        cmd.line(f"suspend to RAM is blocked meanwhile by {' and '.join(lock.means)}")
    else:
        why = "; ".join(lock.lacking)
        output.note(f"cannot block a suspend to RAM, which would lose plugged memory: {why}")


def rights(cmd: Command, mem: Mem, online: bool) -> dict[str, str]:
    """The capabilities that a command needs which follows the host's requests, each with why.

    Args:
        cmd: The command.
        mem: The driver.
        online: Whether what is plugged is handed to Linux.
    """
    needed = {} if mem.suspend_lock is None or mem.survives_suspend else mem.suspend_lock.rights()
    if online and os.geteuid() != 0:
        needed["CAP_DAC_OVERRIDE"] = "memory is handed to Linux by files of root's in sysfs"
    return needed


@contextmanager
def handing(
    cmd: Command, dev: str, *, limit: str = "", teller: bool = False
) -> Iterator[tuple[Device, Mem, Linux, Manager]]:
    """Open the device and its memory as Linux sees it; everything is checked before anything changes.

    Args:
        cmd: The command.
        dev: The device's address.
        limit: The most memory to plug, as the user typed it; empty: no limit.
        teller: Print a line for each piece that goes online, offline, or is busy.
    """
    from uvirtio.drivers.mem import Mem
    from uvirtio.online import Linux, system_memory

    with cmd.device(dev) as device, Mem(device, suspend_lock=suspend_lock(cmd, device)) as mem:
        linux = Linux(system_memory(mem, cmd.roots))
        if teller:
            linux.told = _teller(cmd, linux)
        most = parse_size(limit, total=mem.config().region_size, multiple=mem.block_size) if limit else None
        yield device, mem, linux, linux.manager(mem, limit=most)


def _teller(cmd: Command, linux: Linux) -> Callable[[str, int], None]:
    last: dict[int, str] = {}

    def tell(event: str, address: int) -> None:
        if last.get(address) == event:
            return  # the same state again
        last[address] = event
        total = linux.memory.kernel.total()
        failure = linux.failures.get(address) if event == "failed" else None
        if cmd.json:
            error = failure.as_dict() if failure else None
            cmd.document(event=event, address=address, mem_total=total, error=error)
        else:
            cmd.line(f"{event} {address:#x}; MemTotal {human(total)}" + (f": {failure}" if failure else ""))

    return tell


def _bytes(size: str, mem: Mem, multiple: int) -> int:
    wanted = parse_size(size, total=mem.config().region_size, multiple=multiple)
    if wanted == 0:
        raise BadSize(
            f"SIZE must be at least one memory block ({multiple})",
            seen=size,
            expected=f"at least {multiple}",
        )
    return wanted


def online(cmd: Command, dev: DevArgument, size: SizeArgument = "") -> None:
    """Give SIZE more bytes to Linux. What is missing is plugged. Without SIZE: all that the host requests."""
    if size and not size.strip().endswith("%"):
        parse_size(size)
    with handing(cmd, dev) as (device, mem, linux, manager):
        started, before = time.monotonic(), linux.bytes
        unit = manager.unit
        if size:
            wanted = _bytes(size, mem, unit)
        else:
            wanted = max(0, mem.config().requested_size - before) // unit * unit
        free = sum(one.size for one in manager.units() if one.state == "plugged")
        if wanted > free:
            manager.plug_size(wanted - free)
        linux.take(manager, wanted // unit)
        _tell(cmd, device, mem, linux, before, time.monotonic() - started)
        for failure in linux.failures.values():
            raise failure


def offline(
    cmd: Command,
    dev: DevArgument,
    size: SizeArgument = "",
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long to retry while memory is busy.")
    ] = 30.0,
) -> None:
    """Take SIZE bytes back from Linux and unplug them. Without SIZE: all. Busy memory is left alone.

    What is plugged and Linux does not have is unplugged first, and counts.
    """
    seconds("--wait", wait)
    if size and not size.strip().endswith("%"):
        parse_size(size)
    with handing(cmd, dev) as (device, mem, linux, manager):
        started, before, idle = time.monotonic(), linux.bytes, linux.idle(manager)
        # By the manager's steps: less than a block of the device's cannot be unplugged.
        wanted = _bytes(size, mem, manager.step) if size else linux.movable + idle
        if wanted > before + idle:
            raise BadSize(
                f"{human(wanted)} are more than Linux has of the region, and what is plugged besides",
                seen=wanted,
                expected=f"at most {before + idle}",
            )
        try:
            found = linux.unplug_idle(manager, wanted if size else None)
            if found and not cmd.json:
                cmd.line(f"unplugged {human(found)} that were plugged and Linux did not have")
            freed = found + linux.unplug(manager, wanted - found, timeout=wait)
        except BaseException:
            _note_idle(linux, manager, device)
            raise
        if freed < wanted:
            raise InUse(
                f"Linux cannot free {human(wanted - freed)} of the region now",
                seen=f"{human(freed)} came back and were unplugged",
                expected=human(wanted),
                remedy="free memory, or try again with a longer --wait",
            )
        _tell(cmd, device, mem, linux, before, time.monotonic() - started, idle_bytes=found)


def _note_idle(linux: Linux, manager: Manager, device: Device) -> None:
    """Say what stays plugged and is of no use, for a command that ends early."""
    left = linux.idle(manager)
    if left:
        remedy = f"`uvirtio mem offline {device.address}` unplugs them"
        output.note(f"{human(left)} stay plugged that Linux does not have; {remedy}")


def _tell(cmd: Command, device: Device, mem: Mem, linux: Linux, before: int, took: float, **members: int) -> None:
    kernel = linux.memory.kernel
    total, config = kernel.total(), mem.config()
    if cmd.json:
        cmd.document(
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
            **members,
        )
        return
    cmd.line(
        f"Linux has {human(linux.bytes)} of the region, {human(before)} before; MemTotal {human(total)}; "
        f"plugged {human(config.plugged_size)}, requested {human(config.requested_size)}"
    )
