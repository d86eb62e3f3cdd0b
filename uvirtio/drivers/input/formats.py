"""Reading a recording whose format is found out: evemu's, or that of ``libinput record``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from uvirtio.drivers.input import evemu, libinput
from uvirtio.drivers.input.recording import Recording
from uvirtio.errors import UsageError


def read(path: str) -> Recording:
    """Parse the recording in a file, UTF-8.

    Args:
        path: The file: in evemu's format, or as ``libinput record`` writes it.

    Raises:
        UsageError: The file cannot be read, or a line is invalid or exceeds a limit.
    """
    lines = _lines(path)
    begin: list[str] = []
    for line in lines:
        begin.append(line)
        told = line.strip()
        if told and not told.startswith("#"):
            break
    whole = chain(begin, lines)
    by_libinput = bool(begin) and libinput.BEGIN.match(begin[-1].strip()) is not None
    return libinput.parse(whole) if by_libinput else evemu.parse(whole)


def _lines(path: str) -> Iterator[str]:
    """The lines of a file, of bounded length: one without line ends is never read as a whole."""
    longest = max(evemu.LINE_MAX, libinput.LINE_MAX)
    try:
        with open(path, encoding="utf-8", errors="strict") as file:  # noqa: PTH123
            while line := file.readline(longest + 1):
                yield line
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read",
            seen=error.strerror,
            expected="a recording in evemu's format, or of libinput record",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text", seen=str(error), expected="UTF-8") from error
