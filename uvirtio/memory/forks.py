"""What belongs to one process: which one this is, and objects that cannot be copied to another."""

from __future__ import annotations

import mmap
import os
from typing import NoReturn

from uvirtio.errors import Misuse, NotSupported

_WIPEONFORK = 18  # MADV_WIPEONFORK of <asm-generic/mman-common.h>, since Linux 4.14


def made_here() -> memoryview:
    """Return memory whose first byte is 1 in this process, and 0 in a child that it forks (madvise(2)).

    Each call of a driver asks, and ``getpid`` costs 300 ns where system calls are slow.
    Where the kernel does not wipe memory it is 0 from the start: then ask for the process id.
    """
    memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(_WIPEONFORK)
        memory[0] = 1
    except OSError:
        pass
    return memoryview(memory)


class StaysHere:
    """Base of what is open: a copy would share its registers and rings, and close them a second time."""

    def __reduce__(self) -> NoReturn:
        raise Misuse(f"a {type(self).__name__} cannot be copied or sent to another process: open one there")


def check_process(what: str, owner: int) -> None:
    """Check that this process opened something.

    Args:
        what: What it is, for the error.
        owner: The process that opened it.

    Raises:
        NotSupported: Another one did: this is a forked child.
    """
    if os.getpid() != owner:
        raise NotSupported(
            f"{what} was opened by another process",
            seen=f"pid {os.getpid()}",
            expected=f"pid {owner}",
            remedy="open it after the fork",
        )
