"""``uvirtio rng``: random bytes from the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from uvirtio.cli import content
from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, DevArgument, make_group, verb
from uvirtio.cli.size import parse_size

if TYPE_CHECKING:
    from uvirtio.drivers.rng import Rng

_PIECE = 1 << 16


def register(app: typer.Typer) -> None:
    """Add the group ``rng`` to the application."""
    group = make_group("Random bytes from the host.")
    app.add_typer(group, name="rng")
    verb(group, "read", group="rng", opens=True)(read)


def read(
    cmd: Command,
    dev: DevArgument,
    count: Annotated[str, typer.Argument(metavar="N", help="Number of bytes: 32, 4K.")],
    hex: content.HexOption = False,
    raw: content.RawOption = False,
    out: content.OutOption = "",
    untested: Annotated[bool, typer.Option("--untested", help="Skip the randomness health tests.")] = False,
) -> None:
    """Read N random bytes."""
    content.check_form(cmd, hex=hex, raw=raw, out=out)
    wanted = parse_size(count)
    from uvirtio.drivers.rng import Rng

    with cmd.device(dev) as device, Rng(device, health=not untested) as rng:
        content.give(cmd, _pieces(rng, wanted), hex=hex, raw=raw, out=out, address=device.address)


def _pieces(rng: Rng, count: int) -> Iterator[bytes]:
    while count > 0:
        piece = rng.read(min(count, _PIECE))
        count -= len(piece)
        yield piece
