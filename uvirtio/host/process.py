"""The files of ``/proc/PID``, each parsed only here: command lines, open files, capabilities, limits, mounts."""

from __future__ import annotations

import os
import re
import resource
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from uvirtio.host import sysfs
from uvirtio.host.digits import decimal
from uvirtio.host.roots import Roots

CAP_IPC_LOCK = 14  # <linux/capability.h>
CAP_SYS_ADMIN = 21

Pid = int | str
"""The number of a process, or ``self``."""


def directory(pid: Pid, roots: Roots) -> Path:
    """The directory of a process, ``/proc/PID``."""
    return roots.proc / str(pid)


def pids(roots: Roots) -> list[int]:
    """The numbers of the processes that run now, in ascending order."""
    return sorted(pid for name in sysfs.names(roots.proc) if (pid := decimal(name)) is not None)


def all_visible(roots: Roots) -> bool:
    """Whether /proc shows this user the processes of the whole machine.

    Not where it is mounted with ``hidepid`` (proc(5)), nor in a PID namespace of its own, as in a container: the
    processes outside are not even listed there.
    """
    try:
        space = os.readlink(directory("self", roots) / "ns/pid")  # noqa: PTH115  # "pid:[1]" is no path
    except OSError:
        space = _FIRST_PID_NAMESPACE  # a kernel without namespaces
    return space == _FIRST_PID_NAMESPACE and exists(1, roots)


_FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO, <linux/proc_ns.h>."""


# --- one process --------------------------------------------------------------------------------------------


def exists(pid: Pid, roots: Roots) -> bool:
    """Whether there is such a process."""
    return not sysfs.gone(directory(pid, roots))


def command(pid: Pid, roots: Roots) -> str:
    """The first two words of a process's command line, made printable; without one, its ``comm``."""
    text = sysfs.read(directory(pid, roots) / "cmdline", 4096) or ""
    words = " ".join(text.split("\0")[:2]).strip() or comm(pid, roots)
    return "".join(c if c.isprintable() else "?" for c in words)[:80]


def comm(pid: Pid, roots: Roots) -> str:
    """The name of a process's program, at most 15 characters; empty where it cannot be read."""
    return sysfs.read(directory(pid, roots) / "comm", 64) or ""


def start_time(pid: Pid, roots: Roots) -> int | None:
    """When a process started, in clock ticks since boot: together with the pid it identifies a process."""
    text = sysfs.read(directory(pid, roots) / "stat", 4096)
    words = text.rpartition(")")[2].split() if text else []
    return decimal(words[19]) if len(words) > 19 else None


_PF_EXITING = 0x4  # <linux/sched.h>


def ending(pid: Pid, roots: Roots) -> bool:
    """Whether a process has ended, or is about to: its files are closed then, and it may not be reaped yet."""
    text = sysfs.read(directory(pid, roots) / "stat", 4096)
    if text is None:
        return not exists(pid, roots)
    words = text.rpartition(")")[2].split()  # proc_pid_stat(5): state, and as the seventh the flags
    flags = (decimal(words[6]) if len(words) > 6 else None) or 0
    return words[:1] in (["Z"], ["X"]) or bool(flags & _PF_EXITING)


def executable(pid: Pid, roots: Roots) -> str | None:
    """The file that a process runs, as ``/proc/PID/exe`` names it; None where this user may not see it."""
    try:
        return os.readlink(directory(pid, roots) / "exe")  # noqa: PTH115  # it may end in " (deleted)"
    except OSError:
        return None


def environment(pid: Pid, roots: Roots) -> list[str]:
    """The ``NAME=value`` settings that a process was started with; empty where they cannot be read."""
    return (sysfs.read(directory(pid, roots) / "environ", 1 << 20) or "").split("\0")


class Holder(NamedTuple):
    """A process that has a file open."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})" if self.command else f"process {self.pid}"


def holder(pid: int, roots: Roots) -> Holder:
    """A process by its number, with the first words of its command line."""
    return Holder(pid, command(pid, roots))


# --- rights and limits --------------------------------------------------------------------------------------


def status(pid: Pid, roots: Roots) -> dict[str, str]:
    """The fields of ``/proc/PID/status`` as text; empty where it cannot be read."""
    pairs = (line.partition(":") for line in sysfs.lines(directory(pid, roots) / "status") or [])
    return {name: value.strip() for name, _, value in pairs}


def parent(pid: Pid, roots: Roots) -> int | None:
    """The process that started this one; None for the first, and where it cannot be read."""
    return decimal(status(pid, roots).get("PPid", "")) or None


def capable(capability: int, roots: Roots) -> bool:
    """Whether this process has a capability (by its number) in effect."""
    text = status("self", roots).get("CapEff", "")
    return bool(re.fullmatch(r"[0-9a-f]{1,16}", text, re.ASCII)) and bool(int(text, 16) >> capability & 1)


def initial_user_namespace(roots: Roots) -> bool:
    """Whether this process is in the first user namespace, whose root is the machine's (user_namespaces(7))."""
    text = sysfs.read(directory("self", roots) / "uid_map", 4096)
    return text is None or text.split() == ["0", "0", "4294967295"]


def status_bytes(fields: Iterable[str], roots: Roots) -> int:
    """The sum of fields of this process's status, such as VmLck and VmPin, in bytes; missing fields count as 0."""
    known = status("self", roots)
    words = [known.get(name, "").split() for name in fields]
    return sum((decimal(word[0]) or 0) << 10 for word in words if word)  # proc(5): kB there are KiB


def locked_memory_limit(roots: Roots) -> int | None:
    """The most bytes that this process may lock or pin (RLIMIT_MEMLOCK).

    Returns:
        The soft limit; ``resource.RLIM_INFINITY`` where there is none; None where it cannot be read.
    """
    for line in sysfs.lines(directory("self", roots) / "limits") or []:
        if match := re.match(r"Max locked memory\s+(\d+|unlimited)\s", line, re.ASCII):
            return resource.RLIM_INFINITY if match[1] == "unlimited" else decimal(match[1])
    return None


# --- open files ---------------------------------------------------------------------------------------------


class OpenFiles(NamedTuple):
    """The open files, and the processes that have them open."""

    by_path: dict[str, list[int]]
    """The numbers of the processes by path; by the path in sysfs for an open device of VFIO that has no other."""
    complete: bool
    """False where the open files of some process could not be seen."""

    def holders(self, path: str, roots: Roots) -> list[Holder]:
        """The processes that have ``path`` open."""
        return [holder(pid, roots) for pid in dict.fromkeys(self.by_path.get(path, ()))]


def open_files(roots: Roots, limit: int | None = None) -> OpenFiles:
    """The files that processes have open, as far as this user may see it.

    Args:
        roots: Where to look.
        limit: The most file descriptors to look at; None: all.
    """
    found: dict[str, list[int]] = defaultdict(list)
    everyone = pids(roots)
    complete = all_visible(roots)
    looked = 0
    for pid in everyone:
        try:
            entries = list((directory(pid, roots) / "fd").iterdir())
        except PermissionError:
            complete = False
            continue
        except OSError:
            continue  # it ended
        for entry in entries:
            looked += 1
            try:
                target = os.readlink(entry)  # noqa: PTH115  # "socket:[1]" is no path
            except PermissionError:
                complete = False
            except OSError:
                pass
            else:
                if target.startswith("/"):
                    found[target].append(pid)
                elif target == _VFIO_DEVICE and (path := _vfio_device(pid, entry.name, roots)) is not None:
                    found[path].append(pid)
        if limit is not None and looked > limit:
            return OpenFiles(dict(found), complete=False)
    return OpenFiles(dict(found), complete)


_VFIO_DEVICE = "anon_inode:[vfio-device]"
"""A function that was opened through its group: the descriptor says so, and not which function it is."""


def _vfio_device(pid: int, fd: str, roots: Roots) -> str | None:
    """The function behind such a descriptor, by its path in sysfs: Linux tells it since 6.18 (proc(5), fdinfo)."""
    for line in sysfs.lines(directory(pid, roots) / "fdinfo" / fd) or []:
        name, _, value = line.partition(":")
        if name == "vfio-device-syspath":
            return value.strip()
    return None


_SCAN_LIMIT = 65536


def holders(path: Path, roots: Roots) -> list[Holder]:
    """The processes that have the node ``path`` open, as far as ``/proc`` shows them to this user."""
    return holders_of_any([path], roots)


def holders_of_any(paths: Iterable[Path], roots: Roots) -> list[Holder]:
    """The processes that have one of these nodes open, as far as ``/proc`` shows them to this user."""
    seen = open_files(roots, _SCAN_LIMIT)
    names = dict.fromkeys(name for path in paths for name in (str(path), os.path.realpath(path)))
    return list(dict.fromkeys(one for name in names for one in seen.holders(name, roots)))


# --- mounts -------------------------------------------------------------------------------------------------


class Mount(NamedTuple):
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    device: str
    """``major:minor``; anonymous file systems (btrfs, overlay, 9p) have major 0."""
    point: str
    options: str
    fstype: str
    source: str
    super_options: str

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written through this mount."""
        return "ro" in self.options.split(",")


def mounts(pid: Pid, roots: Roots) -> list[Mount] | None:
    """The mounts that a process sees, the last one on top; None where they cannot be read."""
    lines = sysfs.lines(directory(pid, roots) / "mountinfo")
    return None if lines is None else [mount for line in lines if (mount := _mount(line)) is not None]


def _mount(line: str) -> Mount | None:
    words = line.split(" ")
    try:
        dash = words.index("-", 6)
        return Mount(
            device=words[2],
            point=unescape(words[4]),
            options=words[5],
            fstype=words[dash + 1],
            source=unescape(words[dash + 2]),
            super_options=words[dash + 3] if len(words) > dash + 3 else "",
        )
    except (ValueError, IndexError):
        return None


def sysfs_read_only(roots: Roots) -> bool:
    """Whether this process sees /sys mounted read-only, as in a container."""
    found = [mount for mount in mounts("self", roots) or [] if mount.point == "/sys"]
    return bool(found) and found[-1].read_only  # the last mount lies on top


def mount_namespace(pid: Pid, roots: Roots) -> str:
    """The identifier of a process's mount namespace, such as ``mnt:[4026531840]``.

    Raises:
        FileNotFoundError: The process ended, or the kernel has no namespaces.
        OSError: This user may not see it.
    """
    return os.readlink(directory(pid, roots) / "ns/mnt")  # noqa: PTH115  # "mnt:[1]" is no path


def unescape(text: str) -> str:
    """Undo the octal escapes of blanks and backslashes in mountinfo and swaps."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
