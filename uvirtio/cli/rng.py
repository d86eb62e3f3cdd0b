"""``uvirtio rng``: random bytes from the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uvirtio.cli.common import DevArgument, Run, verb
from uvirtio.cli.size import parse_size
from uvirtio.errors import OperationFailed, UsageError

if TYPE_CHECKING:
    from uvirtio.drivers.rng import Rng

_PIECE = 1 << 16
_ROW = 16


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Random bytes from the host.")
    app.add_typer(group, name="rng")
    verb(group, "read", group="rng", opens=True)(read)


def read(
    run: Run,
    dev: DevArgument,
    count: Annotated[str, typer.Argument(metavar="N", help="How many bytes: 32, 4K.")],
    hex: Annotated[bool, typer.Option("--hex", help="Bare hexadecimal digits instead of a dump.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="The bytes themselves.")] = False,
    out: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="The bytes, into a file.")] = "",
) -> None:
    """Read N random bytes."""
    if sum((hex, raw, bool(out), run.json)) > 1:
        raise UsageError(
            "--hex, --raw, -o and --json are four ways of saying the same", expected="one of them at most"
        )
    wanted = parse_size(count)
    from uvirtio.drivers.rng import Rng

    with run.device(dev) as device, Rng(device) as rng:
        pieces = _pieces(rng, wanted)
        if run.json:
            run.document(address=device.address, bytes=wanted, hex=b"".join(pieces).hex())
        elif out:
            _into_file(out, pieces)
        elif raw:
            for piece in pieces:
                run.raw(piece)
        elif hex:
            for piece in pieces:
                run.raw(piece.hex().encode())
            run.line()
        else:
            _dump(run, pieces)


def _pieces(rng: Rng, count: int) -> Iterator[bytes]:
    while count > 0:
        piece = rng.read(min(count, _PIECE))
        count -= len(piece)
        yield piece


def _into_file(name: str, pieces: Iterator[bytes]) -> None:
    try:
        with Path(name).open("wb") as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        raise OperationFailed(
            f"{name} cannot be written", seen=error.strerror, expected="a file that can be written"
        ) from error


def _dump(run: Run, pieces: Iterator[bytes]) -> None:
    """As ``hexdump -C``: offset, sixteen bytes, and what they are as text."""
    offset = 0
    for piece in pieces:
        for at in range(0, len(piece), _ROW):
            row = piece[at : at + _ROW]
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            digits = f"{row[:8].hex(' ')}  {row[8:].hex(' ')}"
            run.line(f"{offset:08x}  {digits:<49} |{text}|")
            offset += len(row)
