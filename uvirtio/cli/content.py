"""Bytes that a command reads or writes: where, from which file, and the forms of output."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command
from uvirtio.cli.size import SECTOR
from uvirtio.errors import BadSize, OperationFailed, UsageError, UvirtioError

HexOption = Annotated[bool, typer.Option("--hex", help="Write plain hexadecimal digits instead of a dump.")]
RawOption = Annotated[bool, typer.Option("--raw", help="Write the raw bytes to stdout.")]
OutOption = Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="Write the raw bytes to FILE.")]

InOption = Annotated[
    str, typer.Option("-i", "--in", metavar="FILE", help="Data to write (default: standard input).")
]
OffsetArgument = Annotated[
    str, typer.Argument(metavar="OFFSET", help="Start: bytes (0, 4K, 1GiB) or sectors of 512 (8s).")
]
SizeArgument = Annotated[str, typer.Argument(metavar="SIZE", help="Length: 4K, 1MiB, or 8s.")]

PIECE = 1 << 20
"""Bytes of a disk that a command reads or writes at once, about."""

_ROW = 16


def check_form(cmd: Command, *, hex: bool, raw: bool, out: str) -> None:
    """Check that at most one form of output is asked for, and that a file is one.

    Raises:
        UsageError: Several are, or the file is ``-``.
    """
    if sum((hex, raw, bool(out), cmd.json)) > 1:
        raise UsageError("--hex, --raw, -o and --json exclude each other", expected="at most one of them")
    if out:
        check_file(out)


def check_file(name: str) -> None:
    """Check that the name of a file is not ``-``, which other programs take for stdout.

    Raises:
        UsageError: It is.
    """
    if name == "-":
        raise UsageError(
            "- is not the name of a file here",
            seen="-",
            expected="a file",
            remedy="write /dev/stdout, or ./- for a file of that name",
        )


def give(
    cmd: Command, pieces: Iterable[bytes], *, hex: bool, raw: bool, out: str, base: int = 0, **members: Any
) -> None:
    """Write out bytes as they arrive, in the form that is asked for.

    Args:
        cmd: The command.
        pieces: The bytes.
        hex: As hex digits.
        raw: As they are.
        out: The name of a file; empty: stdout.
        base: The offset that a hex dump begins with.
        **members: More members of the JSON document.

    Raises:
        OperationFailed: The file cannot be written.
    """
    if cmd.json:
        found = b"".join(pieces)
        cmd.document(**members, bytes=len(found), hex=found.hex())
    elif out:
        into_file(out, pieces)
    elif raw:
        for piece in pieces:
            cmd.raw(piece)
    elif hex:
        for piece in pieces:
            cmd.raw(piece.hex().encode())
        cmd.line()
    else:
        for text in dump(pieces, base):
            cmd.line(text)


@contextmanager
def readable(name: str) -> Iterator[BinaryIO]:
    """A file to read. What goes wrong with it is one error.

    Args:
        name: Its name.

    Raises:
        OperationFailed: It cannot be read.
    """
    with _failing(name, "read"), Path(name).open("rb") as file:
        yield file


@contextmanager
def writable(name: str, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which is replaced. What goes wrong with it, also when it is closed, is one error.

    Args:
        name: Its name.
        private: Only its owner may read it (0600), whoever could before.

    Raises:
        OperationFailed: It cannot be written.
    """
    with _failing(name, "written"), open(name, "wb", opener=_closed if private else None) as file:
        yield file


def _closed(name: str, flags: int) -> int:
    number = os.open(name, flags, 0o600)
    if stat.S_ISREG(os.fstat(number).st_mode):
        os.fchmod(number, 0o600)
    return number


@contextmanager
def _failing(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except UvirtioError:
        raise  # from the device; some of these are OSErrors, too
    except OSError as error:
        raise OperationFailed(
            f"{name} cannot be {what}", seen=error.strerror, expected=f"a file that can be {what}"
        ) from error


@contextmanager
def opened(source: str, *, wanted: bool = True) -> Iterator[BinaryIO]:
    """A file to read whole sectors from.

    Args:
        source: Its name; empty: stdin.
        wanted: Whether it will be read.

    Raises:
        OperationFailed: It cannot be read.
        BadSize: It is not whole sectors of 512 bytes.
    """
    if not source:
        yield sys.stdin.buffer
        return
    with readable(source) as file:
        if wanted and os.fstat(file.fileno()).st_size % SECTOR:
            raise BadSize(
                f"{source} is not a whole number of sectors",
                seen=os.fstat(file.fileno()).st_size,
                expected=f"a multiple of {SECTOR} bytes",
                remedy=f"pad it: truncate -s %{SECTOR} {shlex.quote(source)}",
            )
        yield file


def into_file(name: str, pieces: Iterable[bytes]) -> None:
    """Write bytes to a file as they arrive.

    Args:
        name: The file, which is replaced.
        pieces: The bytes.

    Raises:
        OperationFailed: The file cannot be written.
    """
    with writable(name) as file:
        for piece in pieces:
            file.write(piece)


def document_into(name: str, data: bytes) -> None:
    """Write a document to a file, as a whole or not at all.

    Args:
        name: The file, which is replaced.
        data: The document.

    Raises:
        OperationFailed: The file cannot be written.
    """
    from uvirtio.host.whole import write_whole

    with _failing(name, "written"):
        write_whole(name, data, 0o666)


def dump(pieces: Iterable[bytes], base: int = 0) -> Iterator[str]:
    """Lines as of ``hexdump -C``: offset, sixteen bytes, and these as ASCII; ``*`` for rows like the one above."""
    offset, above, skipped = base, b"", False
    for piece in pieces:
        for at in range(0, len(piece), _ROW):
            row = piece[at : at + _ROW]
            if row != above:
                text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
                digits = f"{row[:8].hex(' ')}  {row[8:].hex(' ')}"
                yield f"{offset:08x}  {digits:<49} |{text}|"
            elif not skipped:
                yield "*"
            skipped, above = row == above, row
            offset += len(row)
    if skipped:
        yield f"{offset:08x}"
