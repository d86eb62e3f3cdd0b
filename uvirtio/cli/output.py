"""What is written, where, and what happens when nobody reads it.

Documents and stream lines of ``--json`` and the text of a command go to stdout; errors (as text), warnings and
traces go to stderr. Whatever a device or a caller says is printed without its control characters.
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from uvirtio.errors import OperationFailed, UvirtioError

SCHEMA = "uvirtio/1"


class OutputClosed(BaseException):
    """Whoever read our output went away (``| head``). No error: leave in order and say nothing."""


def prepare() -> None:
    """Make stdin, stdout and stderr usable: present, and not choking on what they cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Closed by the caller. Without this a device's descriptor could become number 1.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: object) -> str:
    """``text`` on one line, with control characters and the like written as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in str(text)
    )


def write(text: str) -> None:
    """Write ``text`` to stdout and flush it. Raises OutputClosed, or OperationFailed (a full disk)."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosed from None
    except (OSError, ValueError) as error:
        raise _cannot_write("the output", error) from error


def write_bytes(data: bytes) -> None:
    """Write raw bytes to stdout. Raises as :func:`write`."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise OutputClosed from None
    except (OSError, ValueError) as error:
        raise _cannot_write("the output", error) from error


def _cannot_write(what: str, error: Exception) -> OperationFailed:
    return OperationFailed(f"{what} cannot be written", seen=str(error), expected="a place that takes it")


def line(text: str = "") -> None:
    """One line of text on stdout."""
    write(f"{printable(text)}\n")


def document(command: str, **members: Any) -> None:
    """One JSON document, or one line of a stream of them: the head, then ``members``."""
    made = {"schema": SCHEMA, "command": command, **members}
    write(json.dumps(made, default=_jsonable) + "\n")


def _jsonable(value: Any) -> Any:
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value) if isinstance(value, (set, frozenset)) else list(value)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    return str(value)


def note(text: str) -> None:
    """A remark on stderr; a stderr that nobody reads is no reason to stop."""
    try:
        sys.stderr.write(f"uvirtio: {printable(text)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def trace(text: str) -> None:
    """One register access or kick, for ``-v``."""
    try:
        sys.stderr.write(f"trace: {printable(text)}\n")
    except (OSError, ValueError):
        pass


def error(failure: UvirtioError, command: str, as_json: bool) -> None:
    """Say what went wrong: text on stderr, with ``as_json`` one document on stdout."""
    if as_json:
        document(command, error=failure.as_dict())
        return
    lines = [f"uvirtio: {failure.code}: {printable(failure.message)}"]
    for label, value in (
        ("seen", failure.seen),
        ("expected", failure.expected),
        ("remedy", failure.remedy),
    ):
        if value is not None:
            lines.append(f"  {label + ':':<10}{printable(value)}")
    try:
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def ready() -> bool:
    """Whether stdout takes a line now, without waiting for its reader."""
    try:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), select.POLLOUT)
        return bool(poller.poll(0))
    except (OSError, ValueError):
        return True


def abandon_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush neither fails nor blocks."""
    try:
        void = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(void, sys.stdout.fileno())
        os.close(void)
    except (OSError, ValueError):
        pass


def fancy() -> bool:
    """Whether stdout is a terminal that can redraw a line."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns: with rules and colours on a terminal, plain in a pipe."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if fancy():
        _rich_table(header, cells)
        return
    widths = [max(len(row[column]) for row in [list(header), *cells]) for column in range(len(header))]
    for row in [list(header), *cells]:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        write("  ".join(padded).rstrip() + "\n")


def _rich_table(header: Sequence[str], cells: list[list[str]]) -> None:
    from rich import box  # here: a pipe pays nothing for it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        made.add_column(name, no_wrap=name == header[0])
    for row in cells:
        made.add_row(*(Text(cell) for cell in row))  # Text: no markup from sysfs or a device
    Console().print(made)
    write("")
