"""How this machine uses its devices: mounts, routes, consoles, open files. Read once, below the roots.

Each fact is collected when a rule first asks for it and then kept, so that one ``Facts`` is a snapshot; before
anything is changed a new one is made. The members ``*_complete`` are False where something could not be read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from uvirtio.binding import journal, ssh, standing
from uvirtio.binding.discover import DiscoveredDevice, vdpa_above, vdpa_devices
from uvirtio.binding.journal import DeviceEntry, Entry
from uvirtio.binding.mates import Mates
from uvirtio.host import proc, process, sysfs
from uvirtio.host.process import Holder, Mount
from uvirtio.host.roots import Roots
from uvirtio.host.routes import routes

_SLEEPERS = frozenset({"systemd-sleep", "systemd-shutdow", "pm-suspend", "pm-hibernate", "s2ram", "s2disk"})
"""Programs that suspend a machine or shut it down, as /proc/PID/comm names them: 15 characters."""

_NETWORK_ROOT = re.compile(r"nfs\d?|cifs|smb3|ceph|glusterfs|fuse\.sshfs")


class Node(NamedTuple):
    """A device node that belongs to a device: subsystem ``block``, name ``vda1``, path ``/dev/vda1``."""

    subsystem: str
    name: str
    node: str
    number: str
    path: Path


class Facts:
    """A snapshot of the uses of devices, below one set of roots."""

    def __init__(self, roots: Roots) -> None:
        """Make an empty snapshot; facts are read on first use."""
        self.roots = roots
        self.unreadable: list[Path] = []
        """The directories that could not be listed so far: what is in them is not known, which is not nothing."""
        self._members: dict[Path, frozenset[str] | None] = {}
        self._block_names: dict[str, str | None] = {}

    # --- directories ---

    def names(self, directory: Path) -> list[str]:
        """The names in a directory; ``unreadable`` has it where it cannot be listed."""
        found = sysfs.listed(directory)
        if found is None:
            self.unreadable.append(directory)
        return found or []

    def members(self, directory: Path) -> frozenset[str]:
        """As ``names``, of a directory that is about many devices: it is listed once."""
        if directory not in self._members:
            found = sysfs.listed(directory)
            self._members[directory] = None if found is None else frozenset(found)
        members = self._members[directory]
        if members is None:
            self.unreadable.append(directory)
        return members or frozenset()

    def below(self, top: Path) -> list[Path]:
        """Every directory at or below ``top``; ``unreadable`` has those that cannot be listed."""
        return sysfs.below(top, unreadable=self.unreadable)

    # --- processes ---

    @cached_property
    def pids(self) -> list[int]:
        """The ids of all processes in /proc."""
        return process.pids(self.roots)

    @cached_property
    def _open(self) -> process.OpenFiles:
        return process.open_files(self.roots)

    @property
    def open_complete(self) -> bool:
        """Whether the open files of every process could be read."""
        return self._open.complete

    def holders(self, node: str) -> list[Holder]:
        """The processes that have ``node`` (a path below /dev or /sys) open."""
        names = {node: None}
        for name, root in (("dev", self.roots.dev), ("sys", self.roots.sys)):
            if node.startswith(
                f"/{name}/"
            ):  # below other roots its path is another; /dev/disk/by-id/... are links
                here = root / node.removeprefix(f"/{name}/")
                names |= {str(here): None, str(sysfs.real(here)): None}
        return [*{one: None for name in names for one in self._open.holders(name, self.roots)}]

    # --- mounts ---

    @cached_property
    def _mounts(self) -> tuple[list[Mount], bool]:
        """The mounts of our own name space, of that of init and of every other that can be read."""
        found: dict[Mount, None] = {}
        spaces: set[str] = set()
        complete = True
        every: list[process.Pid] = ["self", 1, *self.pids]
        for pid in every:
            try:
                space = process.mount_namespace(pid, self.roots)
            except FileNotFoundError:
                space = ""  # the process ended, or the kernel has no name spaces
                if pid not in ("self", 1):
                    continue
            except OSError:
                space = ""
                if pid not in ("self", 1):
                    complete = False
                    continue
            if space and space in spaces:
                continue
            seen = process.mounts(pid, self.roots)
            if seen is None:
                complete = False
                continue
            if space:
                spaces.add(space)
            found.update((mount, None) for mount in seen)
        return list(found), complete and process.all_visible(self.roots)

    @property
    def mounts(self) -> list[Mount]:
        """The mounts of all mount name spaces that can be read."""
        return self._mounts[0]

    @property
    def mounts_complete(self) -> bool:
        """Whether the mounts of every mount name space could be read."""
        return self._mounts[1]

    @cached_property
    def _mounts_at(self) -> tuple[dict[str, list[int]], dict[str, list[int]], dict[str, list[int]]]:
        """The places in ``mounts`` of those with a device number, with a block device's name, and of a type."""
        numbers: dict[str, list[int]] = defaultdict(list)
        names: dict[str, list[int]] = defaultdict(list)
        types: dict[str, list[int]] = defaultdict(list)
        for place, mount in enumerate(self.mounts):
            numbers[mount.device].append(place)
            types[mount.fstype].append(place)
            name = self.block_name(mount.source)
            if name is not None:
                names[name].append(place)
        return numbers, names, types

    def mounts_on(self, numbers: Iterable[str], names: Iterable[str]) -> list[Mount]:
        """The mounts with one of these device numbers, or whose source is a block device of one of these names."""
        by_number, by_name, _ = self._mounts_at
        places = {place for number in numbers for place in by_number.get(number, ())}
        places.update(place for name in names for place in by_name.get(name, ()))
        return [self.mounts[place] for place in sorted(places)]

    def mounts_of(self, fstype: str) -> list[Mount]:
        """The mounts of a type of file system."""
        return [self.mounts[place] for place in self._mounts_at[2].get(fstype, ())]

    @cached_property
    def _btrfs(self) -> tuple[dict[str, list[frozenset[str]]], list[Path]]:
        """The members of each btrfs by the name of each of them; and the directories that cannot be listed."""
        before, self.unreadable = self.unreadable, []
        top = self.roots.sys / "fs/btrfs"
        found: dict[str, list[frozenset[str]]] = defaultdict(list)
        for uuid in self.names(top):
            members = frozenset(self.names(top / uuid / "devices"))
            for name in members:
                found[name].append(members)
        hidden, self.unreadable = self.unreadable, before
        return found, hidden

    def btrfs_mounts(self, names: Iterable[str]) -> list[Mount]:
        """Mounts of btrfs with one of these disks: its device number is anonymous, and it names one disk."""
        by_name, hidden = self._btrfs
        self.unreadable += hidden
        others = {other for name in names for members in by_name.get(name, ()) for other in members}
        return [mount for mount in self.mounts_on((), others) if mount.fstype == "btrfs"]

    @cached_property
    def _loops(self) -> dict[str, list[tuple[str, str]]]:
        """The loop devices, each with its backing file, by the name of the block device that this is."""
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        home = self.roots.sys / "class/block"
        for name in sorted(self.members(home)):
            backing = sysfs.read(home / name / "loop/backing_file", 4096) if name.startswith("loop") else None
            if backing and (under := self.block_name(backing)) is not None:
                found[under].append((name, backing))
        return found

    def loops_on(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """The loop devices that stand on block devices of these names, each with its backing file."""
        self.members(self.roots.sys / "class/block")  # so that it is known whether it can be read
        return sorted(loop for name in names for loop in self._loops.get(name, ()))

    @cached_property
    def layered_root(self) -> bool:
        """Whether / is made of layers (overlay) whose own mounts need not be visible in any name space."""
        return any(mount.point == "/" and mount.fstype in ("overlay", "aufs") for mount in self.mounts)

    @cached_property
    def root_by_network(self) -> bool:
        """Whether / comes over a network."""
        return any(mount.point == "/" and _NETWORK_ROOT.fullmatch(mount.fstype) for mount in self.mounts)

    @cached_property
    def sysfs_read_only(self) -> bool:
        """Whether /sys is mounted read-only in our own name space, as in containers."""
        return process.sysfs_read_only(self.roots)

    @cached_property
    def swaps(self) -> list[str] | None:
        """The files and devices in /proc/swaps; None where it cannot be read."""
        return proc.swaps(self.roots)

    # --- network ---

    @cached_property
    def routes(self) -> dict[str, bool] | None:
        """Interface -> whether a default route uses it, for all that have a route; None: they cannot be read."""
        every = routes(self.roots)
        if every is None:
            return None
        found: dict[str, bool] = defaultdict(bool)
        for route in every:
            # Link-local and multicast routes are on every interface that is up; they do not count as use.
            if route.network.version == 4 or not (route.network.is_link_local or route.network.is_multicast):
                found[route.interface] |= route.default
        return dict(found)

    @cached_property
    def ssh(self) -> dict[str, str]:
        """Interface -> the peer of the SSH session that this process runs in, where the route to it uses that."""
        found = {}
        for peer in ssh.peers(self.roots):
            name = ssh.interface_to(peer, self.roots)
            if name is not None:
                found[name] = str(peer)
        return found

    # --- going to sleep ---

    @cached_property
    def sleeping(self) -> list[str]:
        """Evidence that this machine is about to suspend or to shut down."""
        found = [
            f"{name} ({pid}) is at work"
            for pid in self.pids
            if (name := process.comm(pid, self.roots)) in _SLEEPERS
        ]
        if sysfs.exists(self.roots.run / "systemd/shutdown/scheduled"):
            found.append("a shutdown is scheduled")
        return found

    # --- other files of proc ---

    @cached_property
    def consoles(self) -> list[tuple[str, bool]]:
        """The consoles of /proc/consoles: name, and whether it is /dev/console."""
        return proc.consoles(self.roots)

    @cached_property
    def iomem(self) -> list[proc.IoRange] | None:
        """The lines of /proc/iomem; every user sees the names, only root the addresses."""
        return proc.iomem(self.roots)

    @cached_property
    def vmstat(self) -> dict[str, int]:
        """The counters of /proc/vmstat; empty where it cannot be read."""
        return proc.vmstat(self.roots)

    # --- what several devices share ---

    @cached_property
    def mates(self) -> Mates:
        """The devices that change hands together."""
        return Mates(self.roots)

    @cached_property
    def _journal(self) -> dict[str, list[tuple[Entry, DeviceEntry]]]:
        """The records of the journal by the device's key, the oldest first."""
        found: dict[str, list[tuple[Entry, DeviceEntry]]] = defaultdict(list)
        for entry in journal.entries(self.roots):
            for device in entry.devices:
                found[device.address].append((entry, device))
        return found

    @cached_property
    def journal_unread(self) -> list[Path]:
        """What of the journal cannot be read, or holds no entry: a record of any device may be in it."""
        return [*journal.hidden(self.roots), *journal.damaged(self.roots)]

    def live(self, key: str) -> tuple[Entry, DeviceEntry] | None:
        """The oldest entry of this boot with a record of the device that has not ended; None: there is none.

        Args:
            key: The device's ``DiscoveredDevice.key``.
        """
        return standing.first_live(self._journal.get(key, ()), self.roots)

    @cached_property
    def _above(self) -> dict[Path, list[str]]:
        return vdpa_above(self.roots)

    def standing_on(self, found: DiscoveredDevice) -> list[DiscoveredDevice]:
        """The vDPA devices that stand on a PCI function or its sub-functions: they go when its driver goes."""
        names = self._above.get(sysfs.real(found.path), ()) if found.bus == "pci" and self._above else ()
        return [*vdpa_devices(self.roots, names)]

    # --- nodes of a device ---

    def nodes(self, found: DiscoveredDevice) -> list[Node]:
        """Every device node below the device: disks and partitions, event nodes, ports, DRM cards ..."""
        made = []
        for directory in (one for place in found.places for one in self.below(place)):
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

    def block_stack(self, found: DiscoveredDevice) -> list[Node]:
        """The block devices of a device and all that are stacked on them (dm, md, bcache ...), by ``holders``."""
        stack = [node for node in self.nodes(found) if node.subsystem == "block"]
        known = {node.name for node in stack}
        for node in stack:  # grows in the loop; each name once
            for name in self.names(node.path / "holders"):
                if name not in known and len(known) < 1000:
                    known.add(name)
                    path = self.roots.sys / "class/block" / name
                    number = sysfs.read(path / "dev", 64) or ""
                    stack.append(Node("block", name, f"/dev/{name}", number, sysfs.real(path)))
        return stack

    @cached_property
    def _mapped(self) -> dict[str, str]:
        """The kernel's names (``dm-0``) of the devices below /dev/mapper."""
        home = self.roots.sys / "class/block"
        labels = ((name, sysfs.read(home / name / "dm/name", 4096)) for name in sorted(sysfs.names(home)))
        found: dict[str, str] = {}
        for name, label in labels:
            if label is not None:
                found.setdefault(label, name)
        return found

    def block_name(self, source: str) -> str | None:
        """The kernel's name (``dm-0``) of a path such as /dev/mapper/vg-root; None: it is no block device."""
        if source not in self._block_names:
            self._block_names[source] = self._named(source)
        return self._block_names[source]

    def _named(self, source: str) -> str | None:
        if not source.startswith("/dev/"):
            return None
        plain = source.removeprefix("/dev/")
        if sysfs.exists(self.roots.sys / "class/block" / plain):
            return plain
        if plain.startswith("mapper/") and (name := self._mapped.get(plain.removeprefix("mapper/"))) is not None:
            return name
        real = sysfs.real(self.roots.dev / plain)
        return real.name if real != self.roots.dev / plain else None
