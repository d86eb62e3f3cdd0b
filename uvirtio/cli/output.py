"""Writing to stdout and stderr, and handling of their failures.

Documents and stream lines of ``--json`` and the text of a command go to stdout; errors (as text), warnings and
traces go to stderr. Text from a device or a caller is printed without its control characters.
"""

from __future__ import annotations

import errno
import io
import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TextIO

from uvirtio.errors import OperationFailed, UvirtioError

SCHEMA = "uvirtio/1"


# Neither is an Exception, so that no driver and no diagnosis takes them for a failure of the device.


class OutputClosed(BaseException):
    """The reader of stdout went away (``| head``). Not an error: clean up and exit without a message."""


class OutputFailed(BaseException):
    """stdout cannot be written: the disk is full, or stdout is closed. ``error`` is reported on stderr."""

    def __init__(self, why: Exception) -> None:
        """Make it from the exception of the write.

        Args:
            why: An OSError or a ValueError.
        """
        super().__init__(why)
        self.error = OperationFailed(
            "the output cannot be written",
            seen=getattr(why, "strerror", None) or str(why),
            expected="a standard output that is open, with room for what is written",
            remedy="what the command did up to here has taken effect; its output is incomplete",
        )


class _NoStdout(io.TextIOWrapper):
    """Replaces a stdout that the caller closed (``>&-``): a command that has output fails."""

    def write(self, text: str) -> int:
        """Refuse any text; ``write("")`` succeeds, as a flush does."""
        if text:
            self.refuse()
        return 0

    def refuse(self) -> NoReturn:
        """Report that there is no stdout.

        Raises:
            OutputFailed: Always.
        """
        raise OutputFailed(OSError(errno.EBADF, "there is no standard output: the caller closed it"))


def prepare() -> None:
    """Make stdin, stdout and stderr usable: open, and without errors for characters that they cannot encode."""
    # Closed ones become /dev/null: else the descriptor of a device could become number 1.
    for name, mode in (("stdin", "r"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    if sys.stdout is None:
        sys.stdout = _NoStdout(open(os.devnull, "wb"))  # noqa: SIM115, PTH123
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
    """Write ``text`` to stdout and flush it.

    Raises:
        OutputClosed: The reader went away.
        OutputFailed: The disk is full, or stdout is closed.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosed from None
    except (OSError, ValueError) as error:
        raise OutputFailed(error) from error


def write_bytes(data: bytes) -> None:
    """Write raw bytes to stdout and flush it.

    Raises:
        OutputClosed: The reader went away.
        OutputFailed: The disk is full, or stdout is closed.
    """
    try:
        if isinstance(sys.stdout, _NoStdout):
            sys.stdout.refuse()
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise OutputClosed from None
    except (OSError, ValueError) as error:
        raise OutputFailed(error) from error


def finish() -> None:
    """Report a failure that shows only at the end of the output.

    A file system that reports a failed write only at close(2) (NFS, FUSE) reports it for any descriptor of the
    file, so for a duplicate, too.

    Raises:
        OutputClosed: The reader went away.
        OutputFailed: The output cannot be written.
    """
    write("")
    try:
        duplicate = os.dup(sys.stdout.fileno())
    except (OSError, ValueError):
        return  # no descriptor behind it (in a test)
    try:
        os.close(duplicate)
    except OSError as error:
        raise OutputFailed(error) from error


def settle() -> None:
    """Flush stdout and stderr, so that the flush at interpreter exit cannot fail with exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _abandon(stream)


def line(text: str = "") -> None:
    """Write one line of text to stdout."""
    write(f"{printable(text)}\n")


def document(command: str, **members: Any) -> None:
    """Write one JSON document, or one line of a stream of them.

    Args:
        command: The member ``command``, after ``schema``.
        **members: The members after these.
    """
    write(json_text({"schema": SCHEMA, "command": command, **members}) + "\n")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON (RFC 8259), which has no NaN and no infinities: these become texts."""
    import json  # here: text does without it

    try:
        return json.dumps(value, default=_jsonable, indent=indent, allow_nan=False)
    except ValueError:  # such as the NaN of a command line that an error quotes
        return json.dumps(_finite(value), default=_jsonable, indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """The value with texts in the place of the numbers that JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_finite(one) for one in value]
    return value


def _jsonable(value: Any) -> Any:
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value) if isinstance(value, (set, frozenset)) else list(value)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    return str(value)


def note(text: str) -> None:
    """Write a remark to stderr; failure to do so is ignored."""
    try:
        sys.stderr.write(f"uvirtio: {printable(text)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def timed_trace() -> Callable[[str], None]:
    """A function that writes one register access or kick to stderr, with the seconds since this call."""
    begin = time.monotonic()
    return lambda text: trace(f"{time.monotonic() - begin:.6f} {text}")


def trace(text: str) -> None:
    """Write one line to stderr, for ``-v``."""
    try:
        sys.stderr.write(f"trace: {printable(text)}\n")
    except (OSError, ValueError):
        pass


def error(failure: UvirtioError, command: str, as_json: bool) -> None:
    """Report an error.

    Args:
        failure: The error.
        command: The name of the command.
        as_json: As one document on stdout instead of text on stderr.
    """
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
    """Whether stdout accepts a line now without blocking."""
    try:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), select.POLLOUT)
        return bool(poller.poll(0))
    except (OSError, ValueError):
        return True


def abandon_stdout() -> None:
    """Redirect stdout to /dev/null, so that the flush at interpreter exit neither fails nor blocks."""
    _abandon(sys.stdout)


def _abandon(stream: TextIO) -> None:
    try:
        void = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(void, stream.fileno())
        os.close(void)
    except (OSError, ValueError):
        pass


def fancy() -> bool:
    """Whether stdout is a terminal on which a line can be redrawn."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def coloured() -> bool:
    """Whether stdout takes colours and bold: a terminal, and NO_COLOR is not set (no-color.org)."""
    return fancy() and not os.environ.get("NO_COLOR")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table with columns as wide as their cells: no cell is cut, whatever the width of the terminal."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(header), *cells]) for column in range(len(header))]

    def joined(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    first = joined(header)
    write((f"\x1b[1m{first}\x1b[0m" if coloured() else first) + "\n")
    for row in cells:
        write(joined(row) + "\n")


def wrapped(text: str, indent: str) -> list[str]:
    """The text in indented lines that fit the terminal; in one line where stdout is no terminal."""
    plain = printable(text)
    if not sys.stdout.isatty():
        return [indent + plain]
    import shutil
    import textwrap  # here: not needed in a pipe

    width = max(shutil.get_terminal_size().columns, len(indent) + 40)
    return textwrap.wrap(
        plain,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
