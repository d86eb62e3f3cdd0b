"""Bind devices to the drivers that they had before bind.

Restore is declarative: it compares the present state with the recorded one and makes only the missing changes, so
that it may be repeated after any interruption.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from uvirtio.binding import journal
from uvirtio.binding.discover import find
from uvirtio.binding.facts import Facts
from uvirtio.binding.holders import drivers_of
from uvirtio.binding.journal import DeviceEntry
from uvirtio.binding.sysfs_ops import TIMEOUT, SysfsOps, device_lock
from uvirtio.errors import Busy, DeviceAbsent, OperationFailed, Refused, UvirtioError
from uvirtio.host import addresses, sysfs
from uvirtio.host.roots import Roots
from uvirtio.host.writer import ChildWriter, Writer


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of restore for one device."""

    address: str
    driver: str | None
    action: Literal["restored", "already", "gone"]
    unchecked: tuple[str, ...] = ()
    """``other-use``: processes that this user cannot look into may have had the device open."""

    def as_dict(self) -> dict[str, Any]:
        """The result as a member of ``devices`` in the JSON of ``restore``."""
        return {
            "address": self.address,
            "driver": self.driver,
            "action": self.action,
            "unchecked": list(self.unchecked),
        }


def restore(
    roots: Roots,
    names: Sequence[str] | None = None,
    *,
    writer: Writer | None = None,
    sleep: Callable[[float], None] = time.sleep,
    timeout: float = TIMEOUT,
) -> list[Restored]:
    """Bind devices to the drivers that they had before bind.

    A device that is gone is only removed from the journal. A failure of one device does not stop the others.

    Args:
        roots: Where ``/sys``, ``/dev``, ``/run`` ... are.
        names: Addresses of devices; None: all in the journal.
        writer: What writes to sysfs; None: a child process, so that a blocked write cannot block this one.
        sleep: Waits a number of seconds.
        timeout: Seconds after which one write to sysfs counts as blocked.

    Returns:
        What was done with each device.

    Raises:
        Refused: Another device is in its place, another program has bound it since, or a user-space driver has
            it and it is not in the journal.
        Busy: A process still uses it, or another process holds its lock.
        BadAddress: An address has no known form.
        NoSuchDevice, NotVirtio: There is no such device, and the journal has none.
        EnvironmentLack: The journal or a lock cannot be written.
        PermissionLack: This user may not write to sysfs.
        OperationFailed: A write or its check failed (Blocked: it did not return in time), or several
            devices failed.
    """
    ops = SysfsOps(roots, ChildWriter() if writer is None else writer, sleep, timeout)
    if names is None:
        # The kernel assigns the lowest free virtio number: in this order each device gets its own again.
        devices = [device for entry in journal.entries(roots) for device in entry.devices]
        wanted = [device.address for device in sorted(devices, key=lambda device: device.number)]
    else:
        wanted = [_key(name, roots) for name in names]
    done: list[Restored] = []
    failures: list[UvirtioError] = []
    for address in dict.fromkeys(wanted):
        try:
            done.append(_restore_one(address, roots, ops))
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
    """The name under which the journal has a device. If the device is gone, its address is used."""
    try:
        return find(name, roots, aliases=False).key
    except DeviceAbsent:
        if not (gone := addresses.parse(name)).openable:
            raise
        return gone.canonical


def _restore_one(address: str, roots: Roots, ops: SysfsOps) -> Restored:
    with device_lock(address, roots):
        entry = journal.entry_of(address, roots)
        device = entry.device(address) if entry is not None else None
        if entry is None or device is None:
            return _not_journaled(address, roots)
        facts = Facts(roots)
        action = give_back(device, ops, facts=facts)
        left = tuple(other for other in entry.devices if other.address != address)
        if left:
            journal.store(replace(entry, devices=left), roots)
        else:
            journal.remove(entry, roots)
        unseen = action == "restored" and not facts.open_complete
        now = ops.driver(device.bus, device.name)
        return Restored(address, now, action, ("other-use",) if unseen else ())


def _not_journaled(address: str, roots: Roots) -> Restored:
    found = find(address, roots, aliases=False)
    if not found.for_user_space:
        return Restored(found.address, found.driver, "already")
    raise Refused(
        f"{address} was not bound by uvirtio, or not since the last boot",
        seen=f"bound to {found.driver}, and not in {journal.directory(roots)}",
        expected="a journal entry that says what it was before",
        remedy=f"by hand: echo {found.name} > {found.path / 'driver/unbind'}; "
        f"echo {found.name} > {sysfs.bus(found.bus, roots) / 'drivers_probe'}",
    )


def give_back(
    device: DeviceEntry, ops: SysfsOps, *, check_users: bool = True, facts: Facts | None = None
) -> Literal["restored", "already", "gone"]:
    """Set driver, ``driver_override`` and owner of the node to what the record has; change only what differs.

    Args:
        device: The record in the journal.
        ops: What writes to sysfs.
        check_users: Refuse while a process has the device open.
        facts: Who has what open; None: a new snapshot.

    Returns:
        ``restored``; ``already``: nothing differed; ``gone``: the device is not there.

    Raises:
        Refused: Another device is in its place, or another program has bound it since.
        Busy: A process still uses it.
        PermissionLack: This user may not write to sysfs.
        OperationFailed: A write or its check failed (Blocked: it did not return in time).
    """
    directory = ops.device(device.bus, device.name)
    if not directory.exists():
        return "gone"
    _same_device(device, directory)
    now = ops.driver(device.bus, device.name)
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
                _check_unused(device, ops, Facts(ops.roots) if facts is None else facts)
            ops.unbind(device.bus, device.name, now)
        if device.driver is not None:
            # By override, because without one any driver with a matching id might be probed first.
            if sysfs.override(directory) != device.driver:
                ops.set_override(device.bus, device.name, device.driver)
            ops.probe(device.bus, device.name, device.driver)
        changed = True
    if sysfs.override(directory) != device.driver_override:
        ops.set_override(device.bus, device.name, device.driver_override)
        changed = True
    if device.node is not None and device.node_before is not None:
        node = ops.roots.dev / "vfio" / Path(device.node).name
        if device.bus == "vdpa" or node.name.startswith("vfio"):
            # The device's own. It is removed with the driver, and its number may be another device's by now.
            own = ops.node(device.bus, device.name, None)
            if own is None or own.name != node.name:
                return "restored" if changed else "already"
            node = own
        uid, gid, mode = device.node_before
        if node.exists():
            status = node.stat()
            if (status.st_uid, status.st_gid, status.st_mode & 0o7777) != (uid, gid, mode):
                ops.writer.own(node, uid, gid, mode)
                changed = True
    return "restored" if changed else "already"


def _same_device(device: DeviceEntry, directory: Path) -> None:
    """Refuse where the function was unplugged and another one plugged in its place."""
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


def _check_unused(device: DeviceEntry, ops: SysfsOps, facts: Facts) -> None:
    """Refuse while a user-space driver runs: unbind would wait for it, and may remove memory that it uses."""
    try:
        found = find(device.address, ops.roots)
    except UvirtioError:
        return  # it is going away, or hides its ids: nothing leads to its nodes
    held = [f"{place} is open in {process}" for place, process in drivers_of(found, facts)]
    if held:
        raise Busy(
            f"{device.address} is in use",
            seen="; ".join(held),
            expected="no process that has it open",
            remedy="end it, then run restore again",
        )
