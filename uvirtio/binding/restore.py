"""Bind devices to the drivers that they had before bind.

Restore is declarative: it compares the present state with the recorded one and makes only the missing changes, so
that it may be repeated after any interruption. A device that another program has claimed since is left to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from uvirtio.binding import journal
from uvirtio.binding.discover import find
from uvirtio.binding.facts import Facts
from uvirtio.binding.holders import drivers_of
from uvirtio.binding.journal import DeviceEntry
from uvirtio.binding.standing import by_hand, claim, node_to_return, release, standing, unbinding
from uvirtio.binding.sysfs_ops import TIMEOUT, SysfsOps, device_lock
from uvirtio.errors import (
    Busy,
    Claimed,
    DeviceAbsent,
    EnvironmentLack,
    OperationFailed,
    Refused,
    UsageError,
    UvirtioError,
)
from uvirtio.host import addresses, sysfs
from uvirtio.host.roots import Roots
from uvirtio.host.writer import ChildWriter, Writer

Action = Literal["restored", "already", "gone", "replaced"]
"""``restored``; ``already``: nothing differed; ``gone``: the device is not there; ``replaced``: another device is
at its address, and was left alone."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of restore for one device."""

    address: str
    driver: str | None
    action: Literal["restored", "already", "gone", "replaced", "forgotten"]
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


@dataclass(frozen=True, slots=True)
class Failed:
    """A device that could not be restored, and why."""

    address: str
    error: UvirtioError

    def as_dict(self) -> dict[str, Any]:
        """The result as a member of ``devices`` in the JSON of ``restore``."""
        return {"address": self.address, "driver": None, "action": "failed", "error": self.error.as_dict()}


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
        Claimed: Another program has set an override for it since.
        Refused: Another program has bound it since, or a user-space driver has it and it is not in the journal.
        Busy: A process still uses it, or another process holds its lock.
        BadAddress: An address has no known form.
        NoSuchDevice, NotVirtio: There is no such device, and the journal has none.
        EnvironmentLack: The journal or a lock cannot be written, or a part of the journal cannot be read.
        PermissionLack: This user may not write to sysfs, or not read the journal.
        OperationFailed: A write or its check failed (Blocked: it did not return in time), several devices
            failed, or a file of the journal holds no entry.
    """
    every = restore_each(roots, names, writer=writer, sleep=sleep, timeout=timeout)
    failure = failure_of(every, journal.unread(roots) if names is None else None)
    if failure is not None:
        raise failure
    return [one for one in every if isinstance(one, Restored)]


def restore_each(
    roots: Roots,
    names: Sequence[str] | None = None,
    *,
    writer: Writer | None = None,
    sleep: Callable[[float], None] = time.sleep,
    timeout: float = TIMEOUT,
) -> list[Restored | Failed]:
    """The same, with what became of each device, failures included.

    Args:
        roots: As for ``restore``.
        names: As for ``restore``.
        writer: As for ``restore``.
        sleep: As for ``restore``.
        timeout: As for ``restore``.

    Raises:
        BadAddress: An address has no known form; nothing was changed.
        NoSuchDevice, NotVirtio: There is no such device, and the journal has none; nothing was changed.
    """
    ops = SysfsOps(roots, ChildWriter() if writer is None else writer, sleep, timeout)
    if names is None:
        # The kernel assigns the lowest free virtio number: in this order each device gets its own again.
        devices = [device for entry in journal.entries(roots) for device in entry.devices]
        wanted = [device.address for device in sorted(devices, key=lambda device: device.number)]
    else:
        wanted = [_key(name, roots) for name in names]
    every: list[Restored | Failed] = []
    for address in dict.fromkeys(wanted):
        try:
            every.append(_restore_one(address, roots, ops))
        except UvirtioError as error:
            every.append(Failed(address, error))
        except OSError as error:  # a node or a file of the journal that went away meanwhile
            failure = OperationFailed(
                f"{address} could not be given back",
                seen=str(error),
                expected="the device as it was",
                remedy=f"`uvirtio restore {address}` tries again; the journal is kept",
            )
            failure.__cause__ = error
            every.append(Failed(address, failure))
    return every


def failure_of(every: Sequence[Restored | Failed], unread: UvirtioError | None = None) -> UvirtioError | None:
    """One error for all that could not be restored; None: there is nothing.

    Args:
        every: What became of each device.
        unread: What of the journal could not be read, where all of it was asked for.
    """
    failed = [one.error for one in every if isinstance(one, Failed)]
    what = f"{len(failed)} device{'s' * (len(failed) != 1)} could not be given back"
    if unread is not None:
        failed.append(unread)
        what += ", and there may be others"
    if len(failed) < 2:
        return failed[0] if failed else None
    return OperationFailed(
        what,
        seen="; ".join(f"{one.message}: {one.seen}" for one in failed),
        expected="all devices as they were",
        remedy="; ".join(dict.fromkeys(str(one.remedy) for one in failed if one.remedy is not None)),
    )


def forget(roots: Roots, names: Sequence[str]) -> list[tuple[Restored, DeviceEntry]]:
    """Remove devices from the journal, and leave them as they are.

    Args:
        roots: Where the journal is.
        names: Addresses of devices.

    Returns:
        For each device its driver now, and the record that the journal had: what it was before bind.

    Raises:
        UsageError: The journal does not have a device; nothing was changed.
        BadAddress: An address has no known form.
        Busy: Another process holds the lock of a device.
        EnvironmentLack: The journal or a lock cannot be written, or a part of the journal cannot be read.
    """
    keys = list(dict.fromkeys(_key(name, roots) for name in names))
    for key in keys:
        if not journal.entries_of(key, roots):
            _check_seen(roots)
            raise UsageError(
                f"{key} is not in the journal",
                seen=[device.address for entry in journal.entries(roots) for device in entry.devices]
                or "no entry",
                expected="a device that bind has bound since the last boot",
                remedy="`uvirtio journal` shows what is in it",
            )
    done = []
    for key in keys:
        with device_lock(key, roots):
            having = journal.entries_of(key, roots)
            for entry, _ in having:
                journal.drop(entry, key, roots)
        for _, device in having[:1]:  # none, if another process was faster
            driver = sysfs.driver_of(sysfs.device(device.bus, device.name, roots))
            done.append((Restored(key, driver, "forgotten"), device))
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
        having = journal.entries_of(address, roots)
        facts = Facts(roots)
        action: Action | None = None
        for entry, device in having:
            action = give_back(
                device,
                ops,
                state=entry.state,
                facts=facts,
                note=partial(journal.update, entry, roots=roots),
            )
            if action not in ("gone", "replaced"):
                break  # the oldest record of the device that is there: later ones have what bind made of it
        if action is None:
            return _not_journaled(address, roots)
        for entry, device in having:
            journal.drop(entry, device.address, roots)
        unseen = action == "restored" and not facts.open_complete
        now = ops.driver(device.bus, device.name)
        return Restored(address, now, action, ("other-use",) if unseen else ())


def _check_seen(roots: Roots) -> None:
    """Check that no entry is hidden from this user, before a device counts as one that is in none.

    Raises:
        EnvironmentLack: A part of the journal cannot be read.
    """
    unread = journal.unread(roots)
    if isinstance(unread, EnvironmentLack):
        raise unread


def _not_journaled(address: str, roots: Roots) -> Restored:
    found = find(address, roots, aliases=False)
    if not found.for_user_space:
        return Restored(found.address, found.driver, "already")
    _check_seen(roots)
    raise Refused(
        f"{found.address} was not bound by uvirtio, or not since the last boot",
        seen=f"bound to {found.driver}, and not in {journal.directory(roots)}"
        + "".join(f"; {path} holds no entry" for path in journal.damaged(roots)),
        expected="a journal entry that says what it was before",
        remedy=f"once no program uses it, by hand: {by_hand(found, roots)}",
    )


def give_back(
    device: DeviceEntry,
    ops: SysfsOps,
    *,
    state: str = "bound",
    check_users: bool = True,
    facts: Facts | None = None,
    note: Callable[[DeviceEntry], None] | None = None,
) -> Action:
    """Set driver, ``driver_override`` and owner of the node to what the record has; change only what differs.

    Args:
        device: The record in the journal.
        ops: What writes to sysfs.
        state: Of the entry that has the record.
        check_users: Refuse while a process has the device open.
        facts: Who has what open; None: a new snapshot.
        note: Stores the record, changed, before the first write: that restore has begun; None: it is not stored.

    Raises:
        Claimed: Another program has set an override for it since.
        Refused: Another program has bound it since.
        Busy: A process still uses it.
        PermissionLack: This user may not write to sysfs.
        OperationFailed: A write or its check failed (Blocked: it did not return in time).
    """
    directory = ops.device(device.bus, device.name)
    now = standing(device, ops.roots, state)
    if now == "gone" or now == "replaced":
        return now
    if now == "as-before":
        return "already"
    if now == "claimed":
        raise _claimed(device, ops.roots)
    driver, override = ops.driver(device.bus, device.name), sysfs.override(directory)
    if now == "taken":
        raise Refused(
            f"another program has bound {device.address} since",
            seen=f"driver {driver}",
            expected=f"{device.target or 'no driver'}, as bind left it",
            remedy=f"{unbinding(device.bus, device.name, driver, ops.roots)}; uvirtio restore {device.address}. "
            f"Or leave it as it is: uvirtio restore --forget {device.address}",
        )
    # An override that the other program has removed again stays removed.
    wanted = None if override is None else device.driver_override
    changed = False
    if driver != device.driver:
        if driver is not None and check_users:
            _check_unused(device, ops, Facts(ops.roots) if facts is None else facts)
        if note is not None and device.driver is not None:
            # Whatever is interrupted below, the next restore has to know the override for its own.
            with suppress(EnvironmentLack):  # a full disk keeps no device from its driver
                note(device._replace(driver_override=wanted, steps=(*device.steps, "restore")))
        if driver is not None:
            ops.unbind(device.bus, device.name, driver)
        if device.driver is not None:
            # By override, because without one any driver with a matching id might be probed first.
            if sysfs.override(directory) != device.driver:
                ops.set_override(device.bus, device.name, device.driver)
            ops.probe(device.bus, device.name, device.driver)
        changed = True
    differs = sysfs.override(directory) != wanted
    if differs or state == "pending":
        # The kernel takes the device's lock for it: this waits for a write of bind that still waits itself.
        ops.set_override(device.bus, device.name, wanted)
        changed = changed or differs
    if device.node_before is not None and (node := node_to_return(device, ops.roots)) is not None:
        ops.writer.own(node, *device.node_before)
        changed = True
    return "restored" if changed else "already"


def _claimed(device: DeviceEntry, roots: Roots) -> Claimed:
    found = claim(device, roots)
    if found is None:
        return Claimed(f"{device.address} was claimed by another program a moment ago", remedy="try again")
    who = "driverctl" if found.saved is not None else "another program"
    left = "no driver_override" if device.driver_override is None else f"driver_override {device.driver_override}"
    return Claimed(
        f"{who} has claimed {device.address} since bind",
        seen=found.evidence,
        expected=f"{left}, as bind found it and left it",
        remedy=f"once that program does not need the device: {release(device, found, roots)}; "
        f"uvirtio restore {device.address}. Or leave it as it is: uvirtio restore --forget {device.address}",
    )


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
            remedy=f"end it, then: uvirtio restore {device.address}",
        )
