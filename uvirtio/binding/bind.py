"""Unbind devices from the kernel's drivers and bind user-space drivers.

Order of work: check everything for every device; lock; check again; write the journal; write to sysfs, reading
back after each write. On any failure all changes are undone. The journal is on the disk before the first write,
so restore works even if this process is killed between any two of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from uvirtio.binding import journal, standing
from uvirtio.binding.checks import driver_state
from uvirtio.binding.discover import DiscoveredDevice, find_all
from uvirtio.binding.facts import Facts
from uvirtio.binding.journal import DeviceEntry, Entry
from uvirtio.binding.owner import check_owner_allowed
from uvirtio.binding.plan import Member, Plan, plans
from uvirtio.binding.restore import give_back
from uvirtio.binding.sysfs_ops import TIMEOUT, SysfsOps, device_lock
from uvirtio.errors import Blocked, ModuleLack, OperationFailed, Refused, UvirtioError
from uvirtio.host import driverctl, sysfs
from uvirtio.host.roots import Roots
from uvirtio.host.writer import ChildWriter, Writer, module_loader


@dataclass(frozen=True, slots=True)
class Bound:
    """The result of bind for one device."""

    address: str
    driver: str | None
    node: str | None
    journal: str | None
    """The id of the journal entry of this run; None: the device was already bound."""
    unchecked: tuple[str, ...] = ()
    """The rules that could not see everything as this user, so that the device may be in use after all."""

    def as_dict(self) -> dict[str, Any]:
        """The result as a member of ``devices`` in the JSON of ``bind``."""
        return {
            "address": self.address,
            "driver": self.driver,
            "node": self.node,
            "journal": self.journal,
            "unchecked": list(self.unchecked),
        }


def bind(
    founds: Sequence[DiscoveredDevice],
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
    """Bind devices to a user-space driver, all of them or none.

    Args:
        founds: The devices; one that is named twice counts once.
        roots: Where ``/sys``, ``/dev``, ``/run`` ... are.
        driver: As for ``plan``.
        group: Take the other functions of the IOMMU group along.
        force: Names of rules to override.
        owner: (uid, gid) for the node of the VFIO group or the vhost-vdpa device; None: it is left to root.
        argv: The command line, for the journal.
        writer: What writes to sysfs; None: a child process, so that a blocked write cannot block this one.
        modprobe: Loads a module by name; None: ``modprobe`` where this user may.
        sleep: Waits a number of seconds.
        timeout: Seconds after which one write to sysfs counts as blocked.

    Returns:
        For each device its address, driver and node now.

    Raises:
        Denied: The administrator's deny list names a device.
        InUse: This machine needs a device.
        Refused: Another rule forbids it, the owner may not be given a node, or the IOMMU group changed meanwhile.
        NoIommu: There is no IOMMU, and no driver was named that does without.
        ModuleLack: A module is not installed or cannot be loaded.
        PermissionLack: This user may not write to sysfs.
        Busy: Another process holds the lock of a device.
        EnvironmentLack: The journal or a lock cannot be written.
        UsageError: There is no such driver or rule.
        NoSuchDevice, NotVirtio: A device went away meanwhile.
        Blocked: A write to sysfs did not return in time; the journal entry is kept for ``restore``.
        OperationFailed: A write failed. All was undone, or the message says that it was not.
    """
    if not founds:
        return []
    founds = [*{found.key: found for found in founds}.values()]  # one device may have been named twice
    writer = ChildWriter() if writer is None else writer
    load = module_loader(roots) if modprobe is None else modprobe
    made = plans(founds, roots, driver, group, force)
    _first_problem(made)
    with ExitStack() as locks:
        locked = _keys(made)
        for key in sorted(locked):
            locks.enter_context(device_lock(key, roots))
        # What was true before the locks may not be now.
        made = plans(find_all([found.key for found in founds], roots), roots, driver, group, force)
        _first_problem(made)
        if not _keys(made) <= locked:
            raise Refused(
                "the IOMMU group changed meanwhile",
                seen=sorted(_keys(made) - locked),
                expected=f"the members {sorted(locked)}",
                remedy="try again",
            )
        if owner is not None:
            check_owner_allowed(made, force)
        _load_drivers(made, roots, load)
        return _BindRun(made, roots, writer, sleep, timeout, owner).bind(argv)


def _keys(made: list[Plan]) -> set[str]:
    return {member.found.key for plan in made for member in plan.members}


def _first_problem(made: list[Plan]) -> None:
    # A denied device first: its other problems do not matter then.
    problems = sorted((p for plan in made for p in plan.problems), key=lambda p: p.code != "UV-REFUSED-DENIED")
    if problems:
        raise problems[0]


def _load_drivers(made: list[Plan], roots: Roots, load: Callable[[str], None]) -> None:
    wanted = {(plan.driver, plan.found.bus) for plan in made if plan.driver and not plan.nothing_to_do}
    for target, bus in sorted(wanted):
        if driver_state(target, bus, roots) == "loaded":
            continue
        load(target)
        if driver_state(target, bus, roots) != "loaded":
            raise ModuleLack(
                f"the module {target} was loaded, and the driver is still not there",
                seen=f"no {sysfs.bus(bus, roots) / 'drivers' / target}",
                expected="the driver in sysfs",
                remedy="see the kernel's log (dmesg)",
            )


class _BindRun:
    """One run of bind over its plans, with its journal entry."""

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
        self.ops = SysfsOps(roots, writer, sleep, timeout)
        self.entry: Entry | None = None

    def bind(self, argv: Sequence[str]) -> list[Bound]:
        """Bind all members of the plans; on a failure undo what was changed.

        Args:
            argv: The command line, for the journal.

        Returns:
            A result for each plan.

        Raises:
            Blocked: A write did not return in time; the entry stays in the journal, as ``pending``.
            EnvironmentLack: The journal cannot be written.
            PermissionLack: This user may not write to sysfs.
            OperationFailed: A write or its check failed.
        """
        members = [m for plan in self.plans for m in plan.members if m.steps or self.owner is not None]
        if members:
            standing.drop_ended([member.found.key for member in members], self.roots)
            # A device with an open entry keeps that one: it has the state before the first bind.
            facts = Facts(self.roots)
            fresh = [m for m in members if facts.live(m.found.key) is None]
            self._save(journal.new([self._record(m.found, m.target) for m in fresh], self.roots, argv))
            try:
                for member in members:
                    self._one(member)
                self._state("bound")
            except Blocked:
                # The write holds the device's lock in the kernel: nothing can be undone before it returns.
                self._state("pending")
                raise
            except BaseException as error:
                self._roll_back(error)
                raise
        found = find_all([plan.found.key for plan in self.plans], self.roots)
        return [self._bound(plan, now) for plan, now in zip(self.plans, found, strict=True)]

    def _bound(self, plan: Plan, now: DiscoveredDevice) -> Bound:
        ours = self.entry is not None and self.entry.device(now.key) is not None
        unseen = dict.fromkeys(item.rule for m in plan.members if m.steps for item in m.unchecked)
        return Bound(
            now.address, now.driver, now.node, self.entry.id if self.entry and ours else None, tuple(unseen)
        )

    def _record(self, found: DiscoveredDevice, target: str | None) -> DeviceEntry:
        saved = driverctl.saved(found.bus, found.name, self.roots)
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
            driverctl=None if saved is None else saved.driver,
        )

    def _save(self, entry: Entry) -> None:
        self.entry = entry
        if entry.devices:
            journal.store(entry, self.roots)

    def _state(self, state: str) -> None:
        assert self.entry is not None
        self._save(self.entry._replace(state=state))

    def _step(self, address: str, step: str, **changes: Any) -> None:
        assert self.entry is not None
        device = self.entry.device(address)
        if device is not None:
            self._save(self.entry.with_device(device._replace(steps=(*device.steps, step), **changes)))

    def _one(self, member: Member) -> None:
        found, target = member.found, member.target
        ops, bus, name = self.ops, found.bus, found.name
        if found.driver != target:
            others = ops.held_by(bus, target)
            if target is not None:
                ops.set_override(bus, name, target)
                self._step(found.key, "override")
            if found.driver is not None:
                ops.unbind(bus, name, found.driver)
                self._step(found.key, "unbind")
            if target is not None:
                ops.probe(bus, name, target)
                self._step(found.key, "probe")
                strangers = ops.held_by(bus, target) - others - {name}
                if strangers:
                    raise OperationFailed(
                        f"{target} took devices that bind did not give it",
                        seen=sorted(strangers),
                        expected=f"{name} alone",
                        remedy=f"look for ids in {target}'s new_id",
                    )
                ops.set_override(bus, name, found.driver_override)
                self._step(found.key, "override-cleared")
        if self.owner is not None and member.hands_out_a_node:
            self._give_node(found)

    def _give_node(self, found: DiscoveredDevice) -> None:
        assert self.owner is not None
        node = self.ops.wait_for_node(found)
        status = node.stat()
        before = (status.st_uid, status.st_gid, status.st_mode & 0o7777)
        self._step(found.key, "owner", node=node.name, node_before=before)
        try:
            self.ops.writer.own(node, *self.owner, None)
        except OSError as error:
            raise OperationFailed(f"{node} cannot be given away", seen=error.strerror, expected="chown") from error
        self._step(found.key, "owned")

    def _note(self, device: DeviceEntry) -> None:
        assert self.entry is not None
        self._save(self.entry.with_device(device))

    def _roll_back(self, error: BaseException) -> None:
        assert self.entry is not None
        failures = []
        for device in sorted(self.entry.devices, key=lambda device: device.number):
            try:
                give_back(device, self.ops, state=self.entry.state, check_users=False, note=self._note)
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
