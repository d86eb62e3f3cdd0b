"""The memory of a control group (version 2) as the kernel counts it: Documentation/admin-guide/cgroup-v2.rst."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from uvirtio.errors import NotSupported, OperationFailed, PermissionLack, UsageError
from uvirtio.host.digits import decimal
from uvirtio.host.proc import numbers

_CONTROLLERS = "cgroup.controllers"
"""Every cgroup of version 2 has this file, and no cgroup of version 1."""
_TYPE = "cgroup.type"
"""Every cgroup of version 2 but the root has this one."""
_NO_LIMIT = "max"


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """What is counted for a cgroup and all below it. Bytes, except where ``stat`` counts pages or events."""

    stat: Mapping[str, int]
    """Its memory.stat."""
    oom_kills: int | None
    """Processes killed for lack of memory; None where that is not counted."""
    total: int | None
    """The lowest limit that applies to it, its own or an ancestor's, in bytes; None: no limit."""
    free: int | None
    """Bytes until the first of these limits is reached."""
    available: int | None
    """The same, with the page cache that can be reclaimed."""


def read(directory: Path) -> CgroupMemory | None:
    """Read the memory statistics and limits of a cgroup.

    A limit is ``memory.max``, or ``memory.high`` where that is lower: the kernel reclaims what is above it. An
    ancestor's limit applies to all its descendants together, so what is free there counts too.

    Args:
        directory: The cgroup, a directory of the cgroup2 file system.

    Returns:
        What the kernel counts; None for the root, whose memory is the machine's.

    Raises:
        UsageError: There is no such directory, or it is no cgroup of version 2.
        NotSupported: The cgroup does not count memory.
        PermissionLack: A file of it may not be read.
        OperationFailed: A file of it cannot be read, or has unexpected contents.
    """
    try:
        path = _resolved(directory)
        if _is_root(path):
            return None
        stat, events = _counted(path, directory)
        limits = [limit for one in _with_ancestors(path) if (limit := _Limit.of(one)) is not None]
    except OSError as error:
        kind = PermissionLack if isinstance(error, PermissionError) else OperationFailed
        raise kind(f"{error.filename} cannot be read", seen=error.strerror, expected="a cgroup's file") from error
    return CgroupMemory(
        stat,
        events.get("oom_kill"),
        min((limit.size for limit in limits), default=None),
        min((limit.free for limit in limits), default=None),
        min((limit.available for limit in limits), default=None),
    )


def _resolved(directory: Path) -> Path:
    try:
        path = directory.resolve(strict=True)
        (path / _CONTROLLERS).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        there = directory.is_dir()
        raise UsageError(
            f"{directory} is no cgroup of version 2" if there else f"there is no cgroup {directory}",
            seen=f"no {_CONTROLLERS} in it" if there else error.strerror,
            expected="a directory of the cgroup2 file system",
            remedy="findmnt -t cgroup2 shows where it is mounted",
        ) from error
    return path


def _counted(path: Path, directory: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Its memory.stat and memory.events."""
    try:
        return numbers(path / "memory.stat"), numbers(path / "memory.events")
    except FileNotFoundError as error:
        raise NotSupported(
            f"the cgroup {directory} does not count memory",
            seen=f"no {Path(error.filename).name} in it",
            expected="the memory controller",
            remedy=_enabling(path),
        ) from error


def _enabling(path: Path) -> str:
    """How to enable the memory controller for this cgroup, from the first ancestor that has it."""
    below: list[Path] = []
    for one in path.parents:
        below.insert(0, one / "cgroup.subtree_control")
        if "memory" in (one / _CONTROLLERS).read_text(encoding="ascii", errors="replace").split():
            return "as root: " + " && ".join(f"echo +memory > {file}" for file in below)
        if _is_root(one):
            break
    return "version 1 has the memory controller here, or none has: boot with cgroup_no_v1=memory"


def _is_root(path: Path) -> bool:
    return not (path / _TYPE).exists()


def _with_ancestors(path: Path) -> Iterator[Path]:
    """The cgroup and those above it, without the root, as far as this process sees them."""
    for one in (path, *path.parents):
        if not (one / _CONTROLLERS).exists() or _is_root(one):
            return
        yield one


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit, what is free below it, and that with the page cache that can be reclaimed; in bytes."""

    size: int
    free: int
    available: int

    @classmethod
    def of(cls, path: Path) -> _Limit | None:
        """Read the limit of one cgroup; None if it has none."""
        limits = [_number(path / name) for name in ("memory.max", "memory.high")]
        sizes = [size for size in limits if size is not None]
        if not sizes:
            return None
        left = min(sizes) - (_number(path / "memory.current") or 0)
        reclaimable = numbers(path / "memory.stat").get("inactive_file", 0)
        return cls(min(sizes), max(0, left), max(0, left + reclaimable))


def _number(path: Path) -> int | None:
    """The number in this file; None for ``max``."""
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if text == _NO_LIMIT:
        return None
    number = decimal(text)
    if number is None:
        raise OperationFailed(
            f"{path} is not as the kernel writes it", seen=text[:80], expected="a number, or max"
        )
    return number
