"""Files that are written as a whole, or not at all."""

from __future__ import annotations

import os
import stat
from contextlib import nullcontext, suppress


def write_whole(name: str, data: bytes, mode: int) -> None:
    """Write a file; where that fails, what had the name before is as it was.

    It is written beside its place, which it then takes. What is no regular file (``/dev/stdout``, a pipe) is
    written in place, and so is a file in a directory in which this user cannot make another one.

    Args:
        name: The file, which is replaced; of a link, what it points to.
        data: All of it.
        mode: Its permission bits, before the umask; a file that is there keeps those of them that it has.

    Raises:
        OSError: It cannot be written.
    """
    place = os.path.realpath(name)
    try:
        before = os.stat(place)  # noqa: PTH116
    except OSError:
        before = None
    regular = before is None or stat.S_ISREG(before.st_mode)
    closed = before is not None and not os.access(place, os.W_OK)  # the refusal is the kernel's
    of_another_name = name.startswith(("/dev/", "/proc/"))  # /dev/stdout: who has it open goes on writing to it
    beside = f"{place}.{os.urandom(4).hex()}.tmp"
    fd = -1
    if regular and not closed and not of_another_name:
        with suppress(OSError):
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    replaces = fd >= 0
    if not replaces:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123
            if before is not None and regular:
                # No one reads it who could not before. FAT has no such bits, and refuses to set them.
                with suppress(PermissionError) if replaces else nullcontext():
                    os.fchmod(fd, stat.S_IMODE(before.st_mode) & mode)
                with suppress(OSError):  # root's file in a user's place would be closed to them
                    os.fchown(fd, before.st_uid, before.st_gid)
            file.write(data)
        if replaces:
            os.replace(beside, place)  # noqa: PTH105
    except BaseException:
        if replaces:
            with suppress(OSError):
                os.unlink(beside)  # noqa: PTH108
        raise
