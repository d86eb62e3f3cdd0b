"""Take a device from the kernel's driver, and give it back.

Order of work: check everything for every device; lock; check again; journal; write, and verify after each
write. On any failure what was changed is put back. The journal is on the disk before the first
write, so restore works also when this process was killed between any two of them. Restore has a goal, not a
script: it compares what is with what was and does what is missing, so that it may be run again and again.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from uvirtio.binding import journal, rules, sysfs
from uvirtio.binding.addresses import canonical
from uvirtio.binding.checks import driver_state
from uvirtio.binding.discover import Found, find, negotiated_features
from uvirtio.binding.facts import Facts
from uvirtio.binding.journal import DeviceEntry, Entry
from uvirtio.binding.plan import UIO, VDPA, VFIO, Plan, bus_directory, plans
from uvirtio.errors import (
    Busy,
    DeviceAbsent,
    ModuleLack,
    OperationFailed,
    PermissionLack,
    Refused,
    UsageError,
    UvirtioError,
)
from uvirtio.lock import take_lock
from uvirtio.roots import Roots
from uvirtio.spec import features

TIMEOUT = 10.0
"""Seconds that one write to sysfs may take before it is called blocked."""
PROBES = 10
PROBE_INTERVAL = 0.5
"""A driver that was just loaded may need a moment: so many tries, so far apart (seconds)."""


class Writer(Protocol):
    """All that bind and restore change goes through this."""

    def write(self, path: Path, text: str, timeout: float) -> None:
        """Write ``text`` to a sysfs file in one write(2). Raises OSError, or Blocked after ``timeout`` seconds."""
        ...

    def own(self, path: Path, uid: int, gid: int, mode: int | None) -> None:
        """Give a device node an owner, a group and, unless None, a mode. Raises OSError."""
        ...


class Blocked(OperationFailed):
    """A write to sysfs did not return in time. The kernel will finish it, we do not know when."""

    code = "UV-OPERATION-BLOCKED"


def _blocked(path: Path, text: str, timeout: float) -> Blocked:
    return Blocked(
        f"the kernel did not finish writing {text!r} to {path}",
        seen=f"no answer within {timeout:g} s",
        expected="a driver that lets go",
        remedy="end the processes that use the device; the kernel finishes the write by itself, then "
        "`uvirtio restore`",
    )


def _write_and_exit(path: Path, text: str) -> NoReturn:
    """In the child: one write(2), and its errno as the exit code."""
    code = errno.EIO
    try:
        os.setsid()  # Ctrl-C is the parent's to handle, between two writes
        os.closerange(0, 1 << 16)  # one that stays behind holds nobody's pipe or lock
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, text.encode())
        code = 0
    except OSError as error:
        if error.errno is not None and 0 < error.errno < 256:
            code = error.errno
    finally:
        os._exit(code)


class ChildWriter:
    """Writes in a child process, with a deadline.

    An unbind may sleep in the kernel beyond the reach of any signal; then the child is left behind (init reaps
    it) and we are free to say so. A bare fork, because an interpreter of its own would cost more than the write.
    """

    def write(self, path: Path, text: str, timeout: float) -> None:
        child = os.fork()
        if child == 0:
            _write_and_exit(path, text)
        handle = os.pidfd_open(child)
        try:
            code = self._wait(child, handle, timeout)
            if code is None:
                os.kill(child, signal.SIGKILL)
                self._wait(child, handle, 0.2)  # some waits in the kernel do end with it: then no zombie stays
                raise _blocked(path, text, timeout)
        except BaseException as error:
            # A write that was begun is better finished before anything is put back.
            if not isinstance(error, Blocked) and self._wait(child, handle, timeout) is None:
                raise _blocked(path, text, timeout) from error
            raise
        finally:
            os.close(handle)
        if code:
            raise OSError(code, os.strerror(code), str(path))

    @staticmethod
    def _wait(child: int, handle: int, timeout: float) -> int | None:
        """The errno that the child ended with, 0 for none; None if it does not end in time."""
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(timeout * 1000):
            return None
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code if code >= 0 else errno.EIO

    def own(self, path: Path, uid: int, gid: int, mode: int | None) -> None:
        os.chown(path, uid, gid, follow_symlinks=False)
        if mode is not None:
            path.chmod(mode)


def modprobe(module: str, *parameters: str) -> None:
    """Load a module, with parameters such as ``name=value``. Raises ModuleLack with what modprobe says."""
    try:
        done = subprocess.run(
            ["modprobe", "--", module, *parameters],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModuleLack(f"modprobe {module} did not run", seen=str(error), expected="a loaded module") from error
    if done.returncode:
        raise ModuleLack(
            f"modprobe {module} failed",
            seen=done.stderr.strip()[:500] or f"exit code {done.returncode}",
            expected="a loaded module",
            remedy="see the kernel's log (dmesg)",
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """What bind did with one device."""

    address: str
    driver: str | None
    node: str | None
    journal: str | None
    """The id of the journal entry of this run; None where the device was bound already."""

    def as_dict(self) -> dict[str, Any]:
        return {"address": self.address, "driver": self.driver, "node": self.node, "journal": self.journal}


@dataclass(frozen=True, slots=True)
class Restored:
    """What restore did with one device."""

    address: str
    driver: str | None
    action: Literal["restored", "already", "gone"]

    def as_dict(self) -> dict[str, Any]:
        return {"address": self.address, "driver": self.driver, "action": self.action}


# --- locks -------------------------------------------------------------------------------------------------


@contextmanager
def device_lock(address: str, roots: Roots) -> Iterator[None]:
    """Hold the lock of a device. Raises Busy when another process has it, or EnvironmentLack."""
    fd = take_lock(address, roots)
    try:
        yield
    finally:
        os.close(fd)


# --- bind --------------------------------------------------------------------------------------------------


def bind(
    founds: Sequence[Found],
    roots: Roots,
    *,
    driver: str | None = None,
    group: bool = False,
    force: Collection[str] = (),
    owner: tuple[int, int] | None = None,
    argv: Sequence[str] = (),
    writer: Writer | None = None,
    modprobe: Callable[[str], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    timeout: float = TIMEOUT,
) -> list[Bound]:
    """Give devices to a user-space driver, all of them or none.

    ``owner`` is (uid, gid) for the VFIO group's node, or the vhost-vdpa one. ``timeout`` is in seconds, for one
    sysfs write. Raises the first of the plan's problems (Denied, InUse, Refused, NoIommu, ModuleLack,
    PermissionLack), Busy, EnvironmentLack (no journal), or OperationFailed after everything was put back.
    """
    if not founds:
        return []
    writer = ChildWriter() if writer is None else writer
    load = _loader(roots) if modprobe is None else modprobe
    made = plans(founds, roots, driver, group, force)
    _first_problem(made)
    with ExitStack() as locks:
        locked = _keys(made)
        for key in sorted(locked):
            locks.enter_context(device_lock(key, roots))
        # What was true before the locks may not be now.
        made = plans([find(found.key, roots) for found in founds], roots, driver, group, force)
        _first_problem(made)
        if not _keys(made) <= locked:
            raise Refused(
                "the IOMMU group changed meanwhile",
                seen=sorted(_keys(made) - locked),
                expected=f"the members {sorted(locked)}",
                remedy="try again",
            )
        if owner is not None:
            _owner_allowed(made, force)
        _load_drivers(made, roots, load)
        return _Run(made, roots, writer, sleep, timeout, owner).bind(argv)


def _keys(made: list[Plan]) -> set[str]:
    return {member.found.key for plan in made for member in plan.members}


def _first_problem(made: list[Plan]) -> None:
    # A denied device first: then nothing else about it matters.
    problems = sorted((p for plan in made for p in plan.problems), key=lambda p: p.code != "UV-REFUSED-DENIED")
    if problems:
        raise problems[0]


def _loader(roots: Roots) -> Callable[[str], None]:
    if roots.sys == Path("/sys") and os.geteuid() == 0:
        return modprobe

    def refuse(module: str) -> None:
        raise ModuleLack(
            f"the module {module} is not loaded",
            seen="no such driver in sysfs",
            expected="a loaded module",
            remedy=f"as root: modprobe {module}",
        )

    return refuse


def _load_drivers(made: list[Plan], roots: Roots, load: Callable[[str], None]) -> None:
    wanted = {(plan.driver, plan.found.bus) for plan in made if plan.driver and not plan.nothing_to_do}
    for target, bus in sorted(wanted):
        if driver_state(target, bus, roots) == "loaded":
            continue
        load(target)
        if driver_state(target, bus, roots) != "loaded":
            raise ModuleLack(
                f"the module {target} was loaded, and the driver is still not there",
                seen=f"no {bus_directory(bus, roots) / 'drivers' / target}",
                expected="the driver in sysfs",
                remedy="see the kernel's log (dmesg)",
            )


def _owner_allowed(made: list[Plan], force: Collection[str]) -> None:
    """Whoever may open the node of a device that no IOMMU holds may write anywhere in memory.

    VFIO holds a function only as far as the function takes its addresses from the IOMMU: with
    ACCESS_PLATFORM. And a balloon or virtio-mem device takes memory from the guest by its physical address,
    whatever the IOMMU.
    """
    for plan in made:
        if plan.driver == UIO:
            # The node alone would give interrupts; BARs, configuration space and frame numbers are root's.
            raise Refused(
                f"the node of {plan.found.address} would be of no use to an ordinary user",
                seen=f"--owner with {UIO}",
                expected="a driver that hands out a whole device by its node: vfio-pci",
                remedy="drive it as root, without --owner; or give the machine an IOMMU and take vfio-pci",
            )
    if "unsafe-owner" in force:
        return
    for plan in made:
        for member in plan.members:
            found = member.found
            negotiated = negotiated_features(found)
            if found.type in ("balloon", "memory-balloon", "mem"):
                why = f"a {found.type} device takes memory of the whole guest by its physical address"
            elif member.target not in (VFIO, VDPA) or _unheld(found):
                why = f"{member.target or 'an mmio window'} lets the device write anywhere in memory"
            elif _vduse(found):
                continue
            elif found.device_id is None:
                why = "its type is not known, so it may be a balloon, which takes memory of the whole guest"
            elif negotiated is None or not negotiated >> features.ACCESS_PLATFORM & 1:
                why = "it is not known to have ACCESS_PLATFORM, so it may go round the IOMMU"
            else:
                continue
            raise Refused(
                f"{found.address} is not given to an ordinary user",
                seen=why,
                expected="a device that the IOMMU holds",
                remedy="leave its node to root; or, knowing what it means, --force unsafe-owner",
            )


def _vduse(found: Found) -> bool:
    """Whether a process of this machine is the device: VDUSE takes none that lacks ACCESS_PLATFORM."""
    return found.bus == "vdpa" and sysfs.link_name(sysfs.real(found.path).parent / "subsystem") == "vduse"


def _unheld(found: Found) -> bool:
    """No IOMMU stands before the function; VFIO's no-IOMMU mode gives it a group only once it is bound."""
    return found.noiommu or (found.bus == "pci" and found.iommu_group is None)


class _Run:
    """One run of bind over its plans, with what it has done so far."""

    def __init__(
        self,
        made: list[Plan],
        roots: Roots,
        writer: Writer,
        sleep: Callable[[float], None],
        timeout: float,
        owner: tuple[int, int] | None,
    ) -> None:
        self.plans, self.roots, self.owner = made, roots, owner
        self.hands = _Hands(roots, writer, sleep, timeout)
        self.entry: Entry | None = None

    def bind(self, argv: Sequence[str]) -> list[Bound]:
        members = [m for plan in self.plans for m in plan.members if m.steps or self.owner is not None]
        if members:
            # A device with an open entry keeps that one: it knows what was there at first.
            fresh = [m for m in members if journal.entry_of(m.found.key, self.roots) is None]
            self._save(journal.new([self._record(m.found, m.target) for m in fresh], self.roots, argv))
            try:
                for member in members:
                    self._one(member.found, member.target)
                self._state("bound")
            except Blocked:
                # The device's lock in the kernel is taken: nothing can be put back before it is free.
                self._state("pending")
                raise
            except BaseException as error:
                self._roll_back(error)
                raise
        return [self._bound(plan) for plan in self.plans]

    def _bound(self, plan: Plan) -> Bound:
        now = find(plan.found.key, self.roots)
        ours = self.entry is not None and self.entry.device(now.key) is not None
        return Bound(now.address, now.driver, now.node, self.entry.id if self.entry and ours else None)

    def _record(self, found: Found, target: str | None) -> DeviceEntry:
        return DeviceEntry(
            address=found.key,
            bus=found.bus,
            name=found.name,
            target=target,
            driver=found.driver,
            driver_override=found.driver_override,
            pci_id=found.pci_id,
            subsystem_id=found.subsystem_id,
            type=found.type,
            iommu_group=found.iommu_group,
            virtio_name=found.virtio_name,
        )

    def _save(self, entry: Entry) -> None:
        self.entry = entry
        if entry.devices:
            journal.store(entry, self.roots)

    def _state(self, state: str) -> None:
        assert self.entry is not None
        self._save(replace(self.entry, state=state))

    def _step(self, address: str, step: str, **changes: Any) -> None:
        assert self.entry is not None
        device = self.entry.device(address)
        if device is not None:
            self._save(self.entry.with_device(replace(device, steps=(*device.steps, step), **changes)))

    def _one(self, found: Found, target: str | None) -> None:
        hands, bus, name = self.hands, found.bus, found.name
        if found.driver != target:
            others = hands.held_by(bus, target)
            if target is not None:
                hands.set_override(bus, name, target)
                self._step(found.key, "override")
            if found.driver is not None:
                hands.unbind(bus, name, found.driver)
                self._step(found.key, "unbind")
            if target is not None:
                hands.probe(bus, name, target)
                self._step(found.key, "probe")
                strangers = hands.held_by(bus, target) - others - {name}
                if strangers:
                    raise OperationFailed(
                        f"{target} took devices that nobody gave it",
                        seen=sorted(strangers),
                        expected=f"{name} alone",
                        remedy=f"look for ids in {target}'s new_id",
                    )
                hands.set_override(bus, name, found.driver_override)
                self._step(found.key, "override-cleared")
        if self.owner is not None and target in (VFIO, VDPA):
            self._give_node(found)

    def _give_node(self, found: Found) -> None:
        assert self.owner is not None
        node = self.hands.wait_for_node(found)
        status = node.stat()
        before = (status.st_uid, status.st_gid, status.st_mode & 0o7777)
        self._step(found.key, "owner", node=node.name, node_before=before)
        try:
            self.hands.writer.own(node, *self.owner, None)
        except OSError as error:
            raise OperationFailed(f"{node} cannot be given away", seen=error.strerror, expected="chown") from error
        self._step(found.key, "owned")

    def _roll_back(self, error: BaseException) -> None:
        assert self.entry is not None
        failures = []
        for device in sorted(self.entry.devices, key=lambda device: device.number):
            try:
                _give_back(device, self.hands, check_users=False)
            except (UvirtioError, OSError) as second:
                failures.append(f"{device.address}: {second}")
        if failures:
            raise OperationFailed(
                "binding failed, and so did putting things back",
                seen=f"{error}; then {'; '.join(failures)}",
                expected="all devices as they were",
                remedy="`uvirtio restore --all` tries again; the journal is kept",
            ) from error
        journal.remove(self.entry, self.roots)
        if isinstance(error, OperationFailed):
            error.message += " (everything was put back)"
            error.args = (error.message,)


# --- the hands: one verb each, verified ----------------------------------------------------------------------


class _Hands:
    """The few things that are done to sysfs, each with its verification."""

    def __init__(self, roots: Roots, writer: Writer, sleep: Callable[[float], None], timeout: float) -> None:
        self.roots, self.writer, self.sleep, self.timeout = roots, writer, sleep, timeout

    def device(self, bus: str, name: str) -> Path:
        return bus_directory(bus, self.roots) / "devices" / name

    def driver(self, bus: str, name: str) -> str | None:
        return sysfs.link_name(self.device(bus, name) / "driver")

    def held_by(self, bus: str, driver: str | None) -> set[str]:
        """The devices that a driver has."""
        if driver is None:
            return set()
        home = bus_directory(bus, self.roots)
        return {name for name in sysfs.names(home / "drivers" / driver) if (home / "devices" / name).exists()}

    def _write(self, path: Path, text: str) -> None:
        try:
            self.writer.write(path, text, self.timeout)
        except PermissionError as error:
            raise PermissionLack(f"{path} cannot be written", seen=error.strerror, expected="root") from error
        except OSError as error:
            raise OperationFailed(
                f"writing {text!r} to {path} failed",
                seen=error.strerror,
                expected="the kernel takes it",
                remedy="see the kernel's log (dmesg)",
            ) from error

    def set_override(self, bus: str, name: str, driver: str | None) -> None:
        directory = self.device(bus, name)
        self._write(directory / "driver_override", driver or "\n")
        if (seen := sysfs.override(directory)) != driver:
            raise OperationFailed(
                f"driver_override of {name} does not read back", seen=seen or "none", expected=driver or "none"
            )

    def unbind(self, bus: str, name: str, driver: str) -> None:
        self._write(bus_directory(bus, self.roots) / "drivers" / driver / "unbind", name)
        if (seen := self.driver(bus, name)) is not None:
            raise OperationFailed(f"{name} is not free after unbind", seen=f"driver {seen}", expected="no driver")

    def probe(self, bus: str, name: str, driver: str) -> None:
        last = "the driver did not take it"
        for attempt in range(PROBES):
            if attempt:
                self.sleep(PROBE_INTERVAL)
            try:
                self._write(bus_directory(bus, self.roots) / "drivers_probe", name)
            except Blocked:
                raise
            except OperationFailed as error:
                last = str(error.seen)
            seen = self.driver(bus, name)
            if seen == driver:
                return
            if seen is not None:
                raise OperationFailed(f"another driver took {name}", seen=seen, expected=driver)
        raise OperationFailed(
            f"{driver} does not take {name}",
            seen=last,
            expected=f"a driver link to {driver}, within {PROBES} tries",
            remedy="see the kernel's log (dmesg); vfio-pci needs an IOMMU group",
        )

    def node(self, bus: str, name: str, iommu_group: int | None) -> Path | None:
        """The node below /dev of the VFIO group or the vDPA device, if it is there."""
        if bus == "vdpa":
            children = [child for child in sysfs.names(self.device(bus, name)) if child.startswith("vhost-vdpa-")]
            paths = [self.roots.dev / child for child in children]
        elif iommu_group is None:
            paths = []
        else:
            paths = [self.roots.dev / "vfio" / group for group in (str(iommu_group), f"noiommu-{iommu_group}")]
        return next((path for path in paths if path.exists()), None)

    def wait_for_node(self, found: Found) -> Path:
        group = found.iommu_group
        if group is None and found.bus == "pci":  # VFIO makes a group when it binds without an IOMMU
            group = find(found.key, self.roots).iommu_group
        for attempt in range(PROBES):
            if attempt:
                self.sleep(PROBE_INTERVAL)
            if (node := self.node(found.bus, found.name, group)) is not None:
                return node
        raise OperationFailed(
            f"the node of {found.address if group is None else f'group {group}'} does not appear",
            seen=f"nothing in {self.roots.dev}",
            expected="a device node from the kernel",
            remedy="is /dev a devtmpfs here?",
        )


# --- restore -----------------------------------------------------------------------------------------------


def restore(
    roots: Roots,
    names: Sequence[str] | None = None,
    *,
    writer: Writer | None = None,
    sleep: Callable[[float], None] = time.sleep,
    timeout: float = TIMEOUT,
) -> list[Restored]:
    """Give devices back to the drivers that they had before bind; ``names`` None: all in the journal.

    A device that is gone is only forgotten. Raises Refused when another
    device is in its place, when somebody else has rebound it, or when it is not in the journal and some
    user-space driver has it; Busy when a process still uses it; OperationFailed when the kernel does not play.
    """
    hands = _Hands(roots, ChildWriter() if writer is None else writer, sleep, timeout)
    if names is None:
        # The kernel gives out the lowest free virtio number: in this order each gets its own again.
        devices = [device for entry in journal.entries(roots) for device in entry.devices]
        wanted = [device.address for device in sorted(devices, key=lambda device: device.number)]
    else:
        wanted = [_key(name, roots) for name in names]
    done: list[Restored] = []
    failures: list[UvirtioError] = []
    for address in dict.fromkeys(wanted):
        try:
            done.append(_restore_one(address, roots, hands))
        except UvirtioError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise OperationFailed(
            f"{len(failures)} devices could not be given back",
            seen="; ".join(f"{error.message}: {error.seen}" for error in failures),
            expected="all devices as they were",
            remedy=failures[0].remedy,
        )
    return done


def _key(name: str, roots: Roots) -> str:
    """The name under which the journal has a device; it may be gone, and then its address must do."""
    try:
        return find(name, roots, aliases=False).key
    except DeviceAbsent:
        return canonical(name)


def _restore_one(address: str, roots: Roots, hands: _Hands) -> Restored:
    with device_lock(address, roots):
        entry = journal.entry_of(address, roots)
        device = entry.device(address) if entry is not None else None
        if entry is None or device is None:
            return _not_journaled(address, roots)
        action = _give_back(device, hands)
        left = tuple(other for other in entry.devices if other.address != address)
        if left:
            journal.store(replace(entry, devices=left), roots)
        else:
            journal.remove(entry, roots)
        return Restored(address, hands.driver(device.bus, device.name), action)


def _not_journaled(address: str, roots: Roots) -> Restored:
    found = find(address, roots, aliases=False)
    if found.driver not in rules.USER_DRIVERS:
        return Restored(found.address, found.driver, "already")
    raise Refused(
        f"{address} was not bound by uvirtio, or not since the last boot",
        seen=f"bound to {found.driver}, and not in {journal.directory(roots)}",
        expected="a journal entry that says what it was before",
        remedy=f"by hand: echo {found.name} > {found.path / 'driver/unbind'}; "
        f"echo {found.name} > {bus_directory(found.bus, roots) / 'drivers_probe'}",
    )


def _give_back(
    device: DeviceEntry, hands: _Hands, *, check_users: bool = True
) -> Literal["restored", "already", "gone"]:
    """Make driver, override and node owner what they were. Does only what is missing."""
    directory = hands.device(device.bus, device.name)
    if not directory.exists():
        return "gone"
    _same_device(device, directory)
    now = hands.driver(device.bus, device.name)
    if now not in (device.driver, device.target, None):
        raise Refused(
            f"somebody else has bound {device.address} since",
            seen=f"driver {now}",
            expected=f"{device.target or 'no driver'}, as bind left it",
            remedy="give it back by hand, then run restore again",
        )
    changed = False
    if now != device.driver:
        if now is not None:
            if check_users:
                _nobody_uses(device, hands)
            hands.unbind(device.bus, device.name, now)
        if device.driver is not None:
            # Named, because without it any driver with a matching id might come first.
            if sysfs.override(directory) != device.driver:
                hands.set_override(device.bus, device.name, device.driver)
            hands.probe(device.bus, device.name, device.driver)
        changed = True
    if sysfs.override(directory) != device.driver_override:
        hands.set_override(device.bus, device.name, device.driver_override)
        changed = True
    if device.node is not None and device.node_before is not None:
        node = hands.roots.dev / "vfio" / Path(device.node).name
        if device.bus == "vdpa":
            node = hands.roots.dev / Path(device.node).name
            # It goes with the driver, and its number may be another device's by now.
            if hands.node(device.bus, device.name, None) != node:
                return "restored" if changed else "already"
        uid, gid, mode = device.node_before
        if node.exists():
            status = node.stat()
            if (status.st_uid, status.st_gid, status.st_mode & 0o7777) != (uid, gid, mode):
                hands.writer.own(node, uid, gid, mode)
                changed = True
    return "restored" if changed else "already"


def _same_device(device: DeviceEntry, directory: Path) -> None:
    """A function may have been unplugged and another plugged in its place."""
    if device.pci_id is None:
        return
    vendor, product = sysfs.number(directory / "vendor"), sysfs.number(directory / "device")
    sub_vendor, sub = sysfs.number(directory / "subsystem_vendor"), sysfs.number(directory / "subsystem_device")
    seen = (_ids(vendor, product), _ids(sub_vendor, sub))
    if seen != (device.pci_id, device.subsystem_id):
        raise Refused(
            f"another device is at {device.address} now",
            seen=f"PCI id {seen[0]}, subsystem {seen[1]}",
            expected=f"PCI id {device.pci_id}, subsystem {device.subsystem_id}",
            remedy="it was plugged in after bind; the journal entry is of no use to it",
        )


def _ids(vendor: int | None, device: int | None) -> str | None:
    return None if vendor is None or device is None else f"{vendor:04x}:{device:04x}"


def _nobody_uses(device: DeviceEntry, hands: _Hands) -> None:
    """An unbind under a running user-space driver waits for it, and may take its memory from under it."""
    node = f"/dev/vfio/{device.iommu_group}"
    if device.bus != "pci":
        node = device.address
    try:
        found = find(device.address, hands.roots)
    except UvirtioError:
        pass
    else:
        node = found.node or node
    holders = Facts(hands.roots).holders(node)
    if holders:
        raise Busy(
            f"{device.address} is in use",
            seen=f"{node} is open in {', '.join(map(str, holders))}",
            expected="nobody",
            remedy="end it, then run restore again",
        )


def owner_ids(text: str) -> tuple[int, int]:
    """(uid, gid) of ``USER[:GROUP]``, names or numbers; without a group, the user's own. Raises UsageError."""
    import grp
    import pwd

    user, _, group_name = text.partition(":")
    try:
        if user.isdecimal() and group_name:
            uid = _number(user)  # as for chown, a number with a group need not be anybody's
        else:
            entry = pwd.getpwuid(_number(user)) if user.isdecimal() else pwd.getpwnam(user)
            if not group_name:
                return entry.pw_uid, entry.pw_gid
            uid = entry.pw_uid
        return uid, _number(group_name) if group_name.isdecimal() else grp.getgrnam(group_name).gr_gid
    except (KeyError, ValueError, OverflowError) as error:
        raise UsageError(f"there is no owner {text!r}", seen=text, expected="USER or USER:GROUP") from error


def _number(text: str) -> int:
    number = int(text)
    if number >= (1 << 32) - 1:  # uid_t and gid_t, whose last value means "leave it"
        raise ValueError(text)
    return number
