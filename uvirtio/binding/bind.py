"""Take a device from the kernel's driver.

Order of work: check everything for every device; lock; check again; journal; write, and verify after each
write. On any failure what was changed is put back. The journal is on the disk before the first
write, so restore works also when this process was killed between any two of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from uvirtio.binding import journal
from uvirtio.binding.checks import driver_state
from uvirtio.binding.discover import Found, find
from uvirtio.binding.journal import DeviceEntry, Entry
from uvirtio.binding.owner import check_owner_allowed
from uvirtio.binding.plan import Plan, plans
from uvirtio.binding.restore import give_back
from uvirtio.binding.sysfs_ops import TIMEOUT, SysfsOps, device_lock
from uvirtio.errors import Blocked, ModuleLack, OperationFailed, Refused, UvirtioError
from uvirtio.host import sysfs
from uvirtio.host.drivers import VDPA, VFIO
from uvirtio.host.roots import Roots
from uvirtio.host.writer import ChildWriter, Writer, module_loader


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
            check_owner_allowed(made, force)
        _load_drivers(made, roots, load)
        return _BindRun(made, roots, writer, sleep, timeout, owner).bind(argv)


def _keys(made: list[Plan]) -> set[str]:
    return {member.found.key for plan in made for member in plan.members}


def _first_problem(made: list[Plan]) -> None:
    # A denied device first: then nothing else about it matters.
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
        self.ops = SysfsOps(roots, writer, sleep, timeout)
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
                        f"{target} took devices that nobody gave it",
                        seen=sorted(strangers),
                        expected=f"{name} alone",
                        remedy=f"look for ids in {target}'s new_id",
                    )
                ops.set_override(bus, name, found.driver_override)
                self._step(found.key, "override-cleared")
        if self.owner is not None and target in (VFIO, VDPA):
            self._give_node(found)

    def _give_node(self, found: Found) -> None:
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

    def _roll_back(self, error: BaseException) -> None:
        assert self.entry is not None
        failures = []
        for device in sorted(self.entry.devices, key=lambda device: device.number):
            try:
                give_back(device, self.ops, check_users=False)
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
