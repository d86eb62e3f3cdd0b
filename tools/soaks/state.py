"""What a process holds, and what it left on the machine."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_MAP = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ \S+ (\d+) *(.*)$")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class State:
    """What this process holds at one moment."""

    rss: int
    """Bytes of memory that are present, those shared with a device included."""
    descriptors: int
    maps: int
    """Mappings of something: files, memfds, devices. Those of nothing are the allocator's, and count as memory."""
    children: frozenset[int]
    files: frozenset[str]
    """Below the folders that were given."""


def look(folders: tuple[Path, ...]) -> State:
    """The state of this process now, when it keeps nothing that it could give back: after a garbage collection."""
    _forget_attributes()
    gc.collect()
    _trim()
    return State(rss(), descriptors(), maps(), frozenset(children()), frozenset(files(folders)))


def _forget_attributes() -> None:
    """Empty CPython's cache of the attributes of types.

    It keeps up to 4,096 names alive, found by their addresses: each re.finditer(), and each file with a codec that
    is no built-in one, adds one of 64 bytes.
    """
    name = "_clear_internal_caches" if sys.version_info >= (3, 13) else "_clear_type_cache"
    getattr(sys, name)()


def _trim() -> None:
    """Have glibc give back the pages that it keeps and no one uses, holes in its heap among them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def rss() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - less the one that it is read with


def maps() -> int:
    """How many mappings this process has that are of something."""
    found = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        match = _MAP.match(line)
        found += match is not None and match[1] != "0"
    return found


def children() -> list[int]:
    """The processes that this one started and that are there, dead ones that were not waited for included."""
    found: list[int] = []
    for one in Path("/proc/self/task").glob("*/children"):
        found += map(int, one.read_text().split())
    return found


def files(folders: tuple[Path, ...]) -> list[str]:
    """All that is below these folders."""
    return [str(path) for folder in folders for path in folder.rglob("*")]
