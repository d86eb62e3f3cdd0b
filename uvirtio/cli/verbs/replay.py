"""``uvirtio replay``: a recorded command run again, against its record in place of the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, Invocation, verb
from uvirtio.errors import Diverged, UsageError

if TYPE_CHECKING:
    from uvirtio.trace import Replay

_VERBS = {
    "diag": (),
    "reset": (),
    "top": (),
    "rng": ("read",),
    "blk": ("info", "read", "write", "flush", "discard"),
    "scsi": ("list", "info", "read", "write"),
    "balloon": ("status", "inflate", "follow", "stats", "report"),
    "mem": ("status", "map", "plug", "unplug", "follow", "unplug-all"),
    "input": ("info", "events", "led"),
}
"""What can be replayed: verbs that touch nothing but the device. Of a record from elsewhere no other runs."""

_WRITES = ("-o", "--output", "--junit", "--html", "--trace")
"""Options that name a file to be written: left out."""

_ASKS = "--qmp"
"""Names a socket that a replay does not connect to: left out, unless it is the QEMU that is on the record, too."""


def register(app: typer.Typer) -> None:
    """Add ``replay`` to the application."""
    verb(app, "replay")(replay)


def replay(
    cmd: Command,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --trace FILE has recorded.")],
) -> int:
    """Run a recorded command again, offline: the same output and the same error, without the device."""
    from uvirtio.cli.app import invoke
    from uvirtio.trace import Replay

    record = Replay(file)
    words = tuple(_safe(record, record.command))
    code = invoke(Invocation(words, replay=record))
    if record.diverged is not None:
        return Diverged.exit_code
    _finished(record, code)
    if not cmd.json:
        output.note(f"replayed: {' '.join(words)}, {record.done} actions, as recorded by uvirtio {record.maker}")
    return code


def _finished(record: Replay, code: int) -> None:
    """Check that the command ended as the recorded one did.

    Raises:
        Diverged: It did not.
    """
    record.check_end()
    end = record.end
    if end is not None and end["exit"] != code:
        raise Diverged(
            f"{record.path}: the replayed command ended in another way than the recorded one",
            seen=f"exit code {code}",
            expected=f"exit code {end['exit']}",
            remedy="what a command reads beside its device (files, signals) is not in the record",
        )


def _safe(record: Replay, words: Sequence[str]) -> Iterator[str]:
    """The words of a recorded command, without files that it would write.

    Raises:
        UsageError: It is none that can be replayed.
    """
    group, *rest = words or [""]
    if group not in _VERBS or (_VERBS[group] and (not rest or rest[0] not in _VERBS[group])):
        raise UsageError(
            f"{record.path} has no command that can be replayed",
            seen=" ".join(words) or "the record of a program",
            expected=", ".join(" ".join((name, "|".join(verbs))).strip() for name, verbs in _VERBS.items()),
            remedy="run that program on it: uvirtio.open(uvirtio.trace.replayed(FILE))",
        )
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            yield word
            yield from waiting
            return
        if word in _WRITES or (word == _ASKS and waiting[:1] != ["auto"]):
            del waiting[:1]
        elif word.startswith(f"{_ASKS}=") and word != f"{_ASKS}=auto":
            pass
        elif not (word.startswith("-o") or word.partition("=")[0] in _WRITES[1:]):
            yield word
