"""``uvirtio watch``: changes of the virtio devices of this machine, as they happen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, seconds, verb
from uvirtio.errors import UsageError

if TYPE_CHECKING:
    from uvirtio.binding.watch import WatchEvent


def register(app: typer.Typer) -> None:
    """Add ``watch`` to the application."""
    verb(app, "watch", streams=True)(watch)


def watch(
    cmd: Command,
    count: Annotated[int | None, typer.Option("--count", metavar="N", help="Stop after N events.")] = None,
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="Stop after SECONDS.")
    ] = None,
    poll: Annotated[
        float,
        typer.Option("--poll", metavar="SECONDS", help="Read carriers and MTUs this often; 0: never."),
    ] = 1.0,
    lines: Annotated[bool, typer.Option("--jsonl", help="The same as --json.")] = False,
) -> None:
    """Print hot plug, removal, changes of drivers and of configurations as they happen, until Ctrl-C."""
    cmd.json = cmd.json or lines
    if count is not None and count < 1:
        raise UsageError("--count takes a number above 0", seen=count, expected="1 or more")
    if for_seconds is not None:
        seconds("--for", for_seconds)
    if poll != 0:
        seconds("--poll", poll)
    from uvirtio.binding.watch import Watcher

    deadline = None if for_seconds is None else time.monotonic() + for_seconds
    with Watcher(cmd.roots, poll=poll) as watcher:
        cmd.guard.watch(watcher)
        if watcher.note is not None:
            output.note(watcher.note)
        if cmd.json:
            cmd.document(
                event="watching",
                sequence=0,
                time=time.monotonic(),
                source=watcher.source,
                devices=list(watcher.devices),
            )
        else:
            cmd.line(f"watching {len(watcher.devices)} devices, by {watcher.source} (Ctrl-C to leave)")
        told = 0
        while count is None or told < count:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            for one in watcher.read(left if left is None else min(left, 3600.0))[
                : None if count is None else count - told
            ]:
                _say(cmd, one)
                told += 1
            if deadline is not None and time.monotonic() >= deadline:
                break
    cmd.guard.watch(None)


def _say(cmd: Command, one: WatchEvent) -> None:
    if cmd.json:
        cmd.document(**one.as_dict())
        return
    head = f"{one.sequence:>4}  {one.time:14.6f}  {one.event:<8}"
    if one.event == "lost":
        cmd.line(f"{head}  uevents were dropped; the devices are compared with what was known")
        return
    text = f"{head}  {one.address}  {one.type}"
    if one.name != one.address:
        text += f"  {one.name}"
    if one.driver is not None:
        text += f"  {one.driver}"
    for name, (old, new) in one.changes.items():
        text += f"  {name} {old or '-'} -> {new or '-'}"
    cmd.line(text)
