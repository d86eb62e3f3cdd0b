"""What this machine does with its devices: mounts, routes, consoles, open files. Read once, from the roots.

Every fact is collected when a rule first asks for it and then kept, so that one :class:`Facts` is one moment;
before anything is changed a new one is made. What could not be seen is said (``*_complete``).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from uvirtio.binding import ssh
from uvirtio.binding.discover import Found
from uvirtio.host import sysfs
from uvirtio.host.roots import Roots

_SLEEPERS = frozenset({"systemd-sleep", "systemd-shutdow", "pm-suspend", "pm-hibernate", "s2ram", "s2disk"})
"""Programs that put a machine to sleep, as /proc/PID/comm has them: 15 characters."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    device: str
    """``major:minor``; anonymous file systems (btrfs, overlay, 9p) have major 0."""
    point: str
    options: str
    fstype: str
    source: str
    super_options: str


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a file open."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})" if self.command else f"process {self.pid}"


@dataclass(frozen=True, slots=True)
class Node:
    """A device node that belongs to a device: subsystem ``block``, name ``vda1``, path ``/dev/vda1``."""

    subsystem: str
    name: str
    node: str
    number: str
    path: Path


class Facts:
    """The facts of one moment, below one set of roots."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots

    # --- processes ---

    @cached_property
    def pids(self) -> list[int]:
        return sorted(int(name) for name in sysfs.names(self.roots.proc) if name.isdecimal() and name.isascii())

    def command(self, pid: int) -> str:
        """The first two words of a command line, made printable."""
        text = sysfs.read(self.roots.proc / str(pid) / "cmdline", 4096) or ""
        words = " ".join(text.split("\0")[:2])
        return "".join(c if c.isprintable() else "?" for c in words)[:80]

    @cached_property
    def _open(self) -> tuple[dict[str, list[int]], bool]:
        found: dict[str, list[int]] = defaultdict(list)
        complete = bool(self.pids)
        for pid in self.pids:
            directory = self.roots.proc / str(pid) / "fd"
            try:
                entries = list(directory.iterdir())
            except PermissionError:
                complete = False
                continue
            except OSError:
                continue  # it ended
            for entry in entries:
                try:
                    target = os.readlink(entry)  # noqa: PTH115  # "socket:[1]" is no path
                except PermissionError:
                    complete = False
                except OSError:
                    pass
                else:
                    if target.startswith("/"):
                        found[target].append(pid)
        return dict(found), complete

    @property
    def open_complete(self) -> bool:
        """False where the open files of some process could not be seen."""
        return self._open[1]

    def holders(self, node: str) -> list[Holder]:
        """The processes that have ``node`` (a path below /dev) open."""
        pids = dict.fromkeys(self._open[0].get(node, ()))
        return [Holder(pid, self.command(pid)) for pid in pids]

    # --- mounts ---

    @cached_property
    def _mounts(self) -> tuple[list[Mount], bool]:
        """The mounts of our own name space, of init's and of every other that can be read."""
        found: dict[Mount, None] = {}
        spaces: set[str] = set()
        complete = True
        for pid in ["self", 1, *self.pids]:
            directory = self.roots.proc / str(pid)
            try:
                space = os.readlink(directory / "ns/mnt")  # noqa: PTH115
            except FileNotFoundError:
                space = ""  # it ended, or a kernel without name spaces
                if pid not in ("self", 1):
                    continue
            except OSError:
                space = ""
                if pid not in ("self", 1):
                    complete = False
                    continue
            if space and space in spaces:
                continue
            lines = sysfs.lines(directory / "mountinfo")
            if lines is None:
                complete = False
                continue
            if space:
                spaces.add(space)
            found.update((mount, None) for line in lines if (mount := _mount(line)) is not None)
        return list(found), complete

    @property
    def mounts(self) -> list[Mount]:
        return self._mounts[0]

    @property
    def mounts_complete(self) -> bool:
        return self._mounts[1]

    @property
    def layered_root(self) -> bool:
        """Whether / is made of layers whose own mounts may be visible to nobody."""
        return any(mount.point == "/" and mount.fstype in ("overlay", "aufs") for mount in self.mounts)

    @cached_property
    def swaps(self) -> list[str] | None:
        """The files and devices in /proc/swaps; None where it cannot be read."""
        text = sysfs.lines(self.roots.proc / "swaps")
        return None if text is None else [_unescape(line.split()[0]) for line in text[1:] if line.split()]

    # --- network ---

    @cached_property
    def routes(self) -> dict[str, bool] | None:
        """Interface -> whether a default route leaves by it, for all that have a route; None if unreadable."""
        v4 = sysfs.lines(self.roots.proc / "net/route")
        v6 = sysfs.lines(self.roots.proc / "net/ipv6_route")
        if v4 is None and v6 is None:
            return None
        found: dict[str, bool] = defaultdict(bool)
        for line in (v4 or [])[1:]:
            words = line.split()
            if len(words) >= 8:
                found[words[0]] |= words[1] == words[7] == "00000000"
        for line in v6 or []:
            words = line.split()
            # Link-local and multicast routes are on every interface that is up; they carry nothing for us.
            if len(words) >= 10 and not words[0].startswith(("fe80", "ff")) and words[9] != "lo":
                found[words[9]] |= set(words[0]) == {"0"} and words[1] == "00"
        return dict(found)

    @cached_property
    def ssh(self) -> dict[str, str]:
        """Interface -> the far end of the SSH session that we run in, where the route to it leaves by that."""
        found = {}
        for peer in ssh.peers(self.roots):
            name = ssh.interface_to(peer, self.roots)
            if name is not None:
                found[name] = str(peer)
        return found

    # --- going to sleep ---

    @cached_property
    def sleeping(self) -> list[str]:
        """What says that this machine is about to sleep or to go down."""
        found = [
            f"{name} ({pid}) is at work"
            for pid in self.pids
            if (name := sysfs.read(self.roots.proc / str(pid) / "comm", 64)) in _SLEEPERS
        ]
        if (self.roots.run / "systemd/shutdown/scheduled").exists():
            found.append("a shutdown is scheduled")
        return found

    # --- other files of proc ---

    @cached_property
    def consoles(self) -> list[tuple[str, bool]]:
        """(name, whether it is /dev/console) of /proc/consoles."""
        found = []
        for line in sysfs.lines(self.roots.proc / "consoles") or []:
            match = re.match(r"(\S+)\s+\S+\s+\(([^)]*)\)", line)
            if match:
                found.append((match[1], "C" in match[2]))
        return found

    @cached_property
    def iomem(self) -> list[tuple[int, str]] | None:
        """(depth, name) of /proc/iomem; names are shown to everybody, addresses to root only."""
        lines = sysfs.lines(self.roots.proc / "iomem")
        if lines is None:
            return None
        found = []
        for line in lines:
            match = re.fullmatch(r"( *)[0-9a-f]+-[0-9a-f]+ : (.*)", line, re.ASCII)
            if match:
                found.append((len(match[1]) // 2, match[2]))
        return found

    @cached_property
    def vmstat(self) -> dict[str, int]:
        found = {}
        for line in sysfs.lines(self.roots.proc / "vmstat") or []:
            words = line.split()
            if len(words) == 2 and words[1].isdecimal():
                found[words[0]] = int(words[1])
        return found

    # --- nodes of a device ---

    def nodes(self, found: Found) -> list[Node]:
        """Every device node below the device: disks and partitions, event nodes, ports, cards ..."""
        made = []
        for directory in sysfs.below(sysfs.real(found.path)):
            number = sysfs.read(directory / "dev", 64)
            if not number:
                continue
            uevent = dict(
                line.split("=", 1) for line in sysfs.lines(directory / "uevent") or [] if line.count("=") >= 1
            )
            name = uevent.get("DEVNAME", directory.name)
            subsystem = sysfs.link_name(directory / "subsystem") or ""
            if subsystem == "input" and "/" not in name:
                name = f"input/{name}"
            made.append(Node(subsystem, directory.name, f"/dev/{name}", number, directory))
        return made

    def block_stack(self, found: Found) -> list[Node]:
        """The block devices of a device and all that stands on them (dm, md, bcache ...), found by holders."""
        stack = [node for node in self.nodes(found) if node.subsystem == "block"]
        known = {node.name for node in stack}
        for node in stack:  # grows while we go; each name once
            for name in sysfs.names(node.path / "holders"):
                if name not in known and len(known) < 1000:
                    known.add(name)
                    path = self.roots.sys / "class/block" / name
                    number = sysfs.read(path / "dev", 64) or ""
                    stack.append(Node("block", name, f"/dev/{name}", number, sysfs.real(path)))
        return stack

    def block_name(self, source: str) -> str | None:
        """The kernel's name (``dm-0``) of a path such as /dev/mapper/vg-root; None if it is no block device."""
        if not source.startswith("/dev/"):
            return None
        plain = source.removeprefix("/dev/")
        if (self.roots.sys / "class/block" / plain).exists():
            return plain
        if plain.startswith("mapper/"):
            wanted = plain.removeprefix("mapper/")
            for name in sysfs.names(self.roots.sys / "class/block"):
                if sysfs.read(self.roots.sys / "class/block" / name / "dm/name", 4096) == wanted:
                    return name
        real = sysfs.real(self.roots.dev / plain)
        return real.name if real != self.roots.dev / plain else None


def _mount(line: str) -> Mount | None:
    words = line.split(" ")
    try:
        dash = words.index("-", 6)
        return Mount(
            device=words[2],
            point=_unescape(words[4]),
            options=words[5],
            fstype=words[dash + 1],
            source=_unescape(words[dash + 2]),
            super_options=words[dash + 3] if len(words) > dash + 3 else "",
        )
    except (ValueError, IndexError):
        return None


def _unescape(text: str) -> str:
    """Undo the octal escapes of blanks and backslashes in mountinfo and swaps."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
