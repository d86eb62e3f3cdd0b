"""Where sockets with a name are made."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from uvirtio.errors import EnvironmentLack
from uvirtio.host.limits import SOCKET_PATH_MAX

_NAME = "socket"


def make_place(prefix: str) -> Path:
    """Make a directory that only this user may enter, for one socket.

    It is in the directory of temporary files (``TMPDIR``), but in /tmp where a path there would be too long.

    Args:
        prefix: What the directory's name begins with.

    Returns:
        The path for the socket; the directory is the caller's to remove.

    Raises:
        EnvironmentLack: No directory can be made.
    """
    try:
        directory = Path(tempfile.mkdtemp(prefix=prefix))
        if len(os.fsencode(directory / _NAME)) > SOCKET_PATH_MAX:
            directory.rmdir()
            directory = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    except OSError as error:
        raise EnvironmentLack(
            "there is no place for a socket",
            seen=str(error),
            expected="a directory of temporary files that this user may write to",
            remedy="set TMPDIR to one",
        ) from error
    return directory / _NAME


def remove_place(socket: Path) -> None:
    """Remove what ``make_place`` made, with the socket; nothing where it is gone already.

    Args:
        socket: The path that was returned.
    """
    shutil.rmtree(socket.parent, ignore_errors=True)
