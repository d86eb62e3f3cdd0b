"""Whether plugged memory is there: each page is written and read by a child process, which a bad access may end.

A device can acknowledge a PLUG (5.15.6.2) for memory that its host does not have: out of huge pages, a full tmpfs.
The access then is a SIGBUS, and ends the process that makes it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from typing import Any, NoReturn

from uvirtio.drivers.mem.region import Region
from uvirtio.errors import OperationFailed, UvirtioError
from uvirtio.host import forks, limits
from uvirtio.spec.page import VIRTIO_PAGE

_WORD = 8
"""Bytes that are written into each page."""

Pass = Callable[[mmap, int], str]
"""One look at a mapped block; it takes the block's address, and returns what is wrong with it."""


@dataclass(frozen=True, slots=True)
class BadBlock:
    """A plugged block whose memory is not there, or not its own."""

    address: int
    """Guest-physical, in bytes."""
    why: str

    def as_dict(self) -> dict[str, Any]:
        """The block as a member of ``bad`` in the JSON of ``mem plug --verify``."""
        return {"address": self.address, "why": self.why}


def verify(region: Region, blocks: Iterable[tuple[int, int]], *, timeout: float | None = None) -> list[BadBlock]:
    """Write into each page of plugged blocks, read all of it back, and put zeros there.

    The host has to provide all of this memory now. What the blocks held is lost; they must not be in use.

    Args:
        region: The memory.
        blocks: Ranges of plugged blocks, as (first, count).
        timeout: Seconds that each access of a block may take; the device's default if None.

    Returns:
        The blocks that failed, by address; after one that did not answer in time, those that were not looked at.

    Raises:
        NotPlugged: Not all of them are plugged.
        InUse: One is in use.
        OperationFailed: There is no process or pipe for it.
    """
    table, patience = region.mem.block_table, region.mem.device.seconds(timeout)
    ranges = list(blocks)
    for first, count in ranges:
        table.require_unused(first, count)
    pins = []
    try:
        for first, count in ranges:
            pins.append(table.pin(first * table.block_size, count * table.block_size, "being verified"))
        numbers = [number for first, count in ranges for number in range(first, first + count)]
        bad: dict[int, str] = {}
        for act in (_write, _compare, _clear):
            left = [number for number in numbers if number not in bad]
            while left:  # a child that was ended has a successor, from the next block on
                seen = _in_child(region, left, act, patience)
                bad |= {number: why for number, why in zip(left, seen, strict=False) if why}
                left = left[len(seen) :]
    finally:
        for pin in pins:
            table.release(pin)
    return [BadBlock(region.mem.addr + number * table.block_size, bad[number]) for number in sorted(bad)]


def _pages(mapping: mmap, address: int) -> Iterable[tuple[int, bytes]]:
    """Each page's place in the block, and the word for it: its address, with all bits turned."""
    for offset in range(0, len(mapping), VIRTIO_PAGE):
        yield offset, (~(address + offset) & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(_WORD, "little")


def _write(mapping: mmap, address: int) -> str:
    for offset, word in _pages(mapping, address):
        mapping[offset : offset + _WORD] = word
    return ""


def _compare(mapping: mmap, address: int) -> str:
    for offset, word in _pages(mapping, address):
        if (seen := mapping[offset : offset + _WORD]) != word:
            return f"{address + offset:#x} reads {seen.hex()}, and {word.hex()} was written"
    return ""


def _clear(mapping: mmap, address: int) -> str:
    del address
    for offset in range(0, len(mapping), VIRTIO_PAGE):
        mapping[offset : offset + _WORD] = bytes(_WORD)
    return ""


# --- the child ----------------------------------------------------------------------------------------------


def _in_child(region: Region, numbers: Sequence[int], act: Pass, timeout: float) -> list[str]:
    """What is wrong with each block, if anything; fewer than ``numbers`` if an access ended the child."""
    try:
        child, (ours, theirs) = 0, os.pipe()
        try:
            with forks.undisturbed():
                child = os.fork()
                if child == 0:
                    os.close(ours)
                    _look(region, numbers, act, theirs)
        except BaseException:
            os.close(ours)
            os.close(theirs)
            if child:  # a signal handler's
                os.kill(child, signal.SIGKILL)
                _ending(child)
            raise
    except (OSError, RuntimeError) as error:
        lacking = limits.no_task(error, "plugged memory cannot be verified")
        if lacking is not None:
            raise lacking from error
        if isinstance(error, RuntimeError):
            raise
        raise OperationFailed(
            "plugged memory cannot be verified: there is no child process for it",
            seen=errno.errorcode.get(error.errno or 0, str(error)),
            expected="fork(2) and pipe(2)",
        ) from error
    os.close(theirs)
    try:
        seen, late = _told(ours, timeout)
    finally:
        os.close(ours)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        ended = _ending(child)
    if len(seen) == len(numbers):
        return seen
    if late:
        rest = len(numbers) - len(seen) - 1
        return [*seen, f"no answer to an access within {timeout:g} s", *["not looked at"] * rest]
    return [*seen, ended]


def _look(region: Region, numbers: Sequence[int], act: Pass, told: int) -> NoReturn:
    """In the child: look at one block after another, and tell of each in a line."""
    code = 1
    try:
        for fatal in (signal.SIGBUS, signal.SIGSEGV):
            signal.signal(
                fatal, signal.SIG_DFL
            )  # not as a fault handler would have it: with a report of this process
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
        size = region.mem.block_size
        for number in numbers:
            try:
                with region.window.map(number * size, size) as mapping:
                    why = act(mapping, region.mem.addr + number * size)
            except (UvirtioError, OSError, ValueError) as error:
                seen = getattr(error, "seen", None)
                why = " ".join(f"{error}; {seen}".split() if seen else f"{error}".split())
            os.write(told, f"{why}\n".encode())
        code = 0
    finally:
        os._exit(code)


def _told(pipe: int, timeout: float) -> tuple[list[str], bool]:
    """The lines that a child wrote before it ended, and whether it took too long for one."""
    poller, data = select.poll(), b""
    poller.register(pipe, select.POLLIN)
    while True:
        if not poller.poll(timeout * 1000):
            return _lines(data), True
        more = os.read(pipe, 1 << 16)
        if not more:
            return _lines(data), False
        data += more


def _lines(data: bytes) -> list[str]:
    return data.decode(errors="replace").split("\n")[:-1]


def _ending(child: int) -> str:
    """How the child ended. One that the kernel does not let go is left to it."""
    handle = os.pidfd_open(child)
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(200):
            return "the process that made the access does not end"
    finally:
        os.close(handle)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"{signal.Signals(-code).name} at an access" if code < 0 else f"the child ended with {code}"
