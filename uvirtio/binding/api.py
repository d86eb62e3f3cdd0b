"""Devices of this machine, for programs: list, find, bind and restore them.

These are ``uvirtio.list``, ``find``, ``bind``, ``restore`` and ``bound``. They do what the commands of the same
names do, take addresses in the same forms, and return values instead of printing them.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from uvirtio.binding import discover, rules
from uvirtio.binding.discover import DiscoveredDevice, Interface
from uvirtio.binding.facts import Facts
from uvirtio.errors import DeviceAbsent, NoSuchDevice, UsageError, UvirtioError
from uvirtio.host import addresses, denylist
from uvirtio.host.addresses import canonical
from uvirtio.host.roots import Roots
from uvirtio.spec import ids

if TYPE_CHECKING:
    from uvirtio.binding.bind import Bound
    from uvirtio.binding.restore import Restored


@dataclass(frozen=True, slots=True)
class Use:
    """Why a device is in use: the rule that found it, and its evidence."""

    rule: str
    evidence: str


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One virtio device of this machine as sysfs shows it; the device itself is not touched."""

    address: str
    """In its canonical form: ``0000:03:00.0``, ``mmio:0xfeb02e00``, ``/dev/vhost-vdpa-0`` ..."""
    type: str
    """``balloon``, ``rng`` ...; ``unknown`` where only the device's registers have it."""
    device_id: int | None
    pci_id: str | None
    interface: Interface
    driver: str | None
    """The driver of the function: ``virtio-pci``, ``vfio-pci`` ...; None: none."""
    kernel_driver: str | None
    """The driver on the virtio bus: ``virtio_balloon`` ...; None: none."""
    iommu_group: int | None
    virtio_name: str | None
    numa_node: int | None
    node: str | None
    """The device node that the driver bound now offers to programs."""
    parent: str | None
    """The parent of a vDPA device: the address of a PCI function (vp_vdpa), or a name (VDUSE, a sub-function)."""
    notes: tuple[str, ...]
    """What could not be determined, and why."""
    in_use: tuple[Use, ...]
    """Why this machine needs the device; empty: no rule knows of a use."""
    unchecked: tuple[str, ...]
    """The rules about use that could not see enough as this user."""

    def as_dict(self) -> dict[str, Any]:
        """The device as a member of ``devices`` in the JSON of ``uvirtio list``."""
        members = asdict(self)
        return {name: [*value] if isinstance(value, tuple) else value for name, value in members.items()}


def describe(found: DiscoveredDevice, verdicts: rules.Verdicts) -> DeviceInfo:
    """The public description of a device that discovery found, with the findings of the rules."""
    members = found.as_dict()
    members["notes"] = tuple(members["notes"])
    return DeviceInfo(
        **members,
        in_use=tuple(Use(one.rule, one.evidence) for one in rules.in_use(verdicts.findings)),
        unchecked=tuple(one.rule for one in verdicts.unchecked),
    )


def list(type: str | None = None, *, roots: Roots | None = None) -> builtins.list[DeviceInfo]:
    """The virtio devices of this machine, sorted by address. Nothing is opened: sysfs alone is read.

    Args:
        type: Only devices of this type: ``"balloon"``, ``"rng"``, ``"net"`` ...
        roots: Where ``/sys``, ``/proc`` ... are read.

    Returns:
        One DeviceInfo for each device.

    Raises:
        UsageError: There is no such type.
    """
    roots = roots or Roots()
    wanted = None if type is None else ids.require_type(type)
    facts = Facts(roots)
    return [
        describe(found, rules.check(found, roots, facts))
        for found in discover.scan(roots)
        if wanted is None or found.device_id == wanted
    ]


def find(
    type: str | None = None,
    *,
    address: str | None = None,
    driver: str | None = None,
    interface: Interface | None = None,
    in_use: bool | None = None,
    roots: Roots | None = None,
) -> DeviceInfo:
    """The one virtio device of this machine that fits all of what is given.

    Args:
        type: Its type: ``"balloon"``, ``"rng"``, ``"net"`` ...
        address: Its address in any form, or a name such as ``virtio3``.
        driver: What it is bound to: ``"virtio-pci"``, ``"vfio-pci"`` ...
        interface: ``"modern"``, ``"transitional"``, ``"legacy"``, ``"mmio"`` or ``"vdpa"``.
        in_use: True: only one that this machine needs; False: only one for which no rule finds a use.
        roots: Where ``/sys``, ``/proc`` ... are read.

    Returns:
        Its DeviceInfo; ``uvirtio.open(found.address)`` opens it, once it is bound.

    Raises:
        NoSuchDevice: No device fits.
        UsageError: Several fit, or there is no such type; ``seen`` has their addresses.
        BadAddress: The address has no known form.
        NotVirtio: The function at the address is no virtio device.
    """
    roots = roots or Roots()
    named = None if address is None else discover.find(address, roots).address
    asked = {"type": type, "address": address, "driver": driver, "interface": interface, "in_use": in_use}
    fitting = [
        one
        for one in list(type, roots=roots)
        if named in (None, one.address)
        and driver in (None, one.driver)
        and interface in (None, one.interface)
        and in_use in (None, bool(one.in_use))
    ]
    if len(fitting) == 1:
        return fitting[0]
    words = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None)
    if not fitting:
        raise NoSuchDevice(
            f"no virtio device here has {words}" if words else "there is no virtio device here",
            seen=[one.address for one in discover.scan(roots)],
            expected="one device",
            remedy="`uvirtio list` shows the virtio devices of this machine",
        )
    raise UsageError(
        f"{len(fitting)} devices have {words}" if words else f"there are {len(fitting)} virtio devices here",
        seen=[one.address for one in fitting],
        expected="one device",
        remedy="say more of it, or give its address",
    )


def bind(
    addresses: str | Iterable[str],
    *,
    driver: str | None = None,
    group: bool = False,
    force: Collection[str] = (),
    owner: str | None = None,
    roots: Roots | None = None,
) -> builtins.list[Bound]:
    """Bind devices to a user-space driver instead of the kernel's, all of them or none.

    Every rule is checked for every device before the first write. A journal is written, by which ``restore``
    undoes the changes even if this process is killed.

    Args:
        addresses: One address or several.
        driver: ``"vfio-pci"``, ``"uio_pci_generic"``, ``"vhost_vdpa"``; None: vfio-pci where there is an IOMMU.
        group: Take the other functions of the IOMMU group along.
        force: Names of rules to override.
        owner: ``"USER"`` or ``"USER:GROUP"``, who becomes the owner of the device node.
        roots: Where ``/sys``, ``/proc`` ... are.

    Returns:
        For each device, once and in the order given: its address now, driver and node.

    Raises:
        Denied: The administrator's deny list names a device.
        InUse: This machine needs a device.
        Refused: Another rule forbids it.
        EnvironmentLack: An IOMMU, a module or a permission is missing; the subclass says which.
        Busy: Another process binds or drives a device.
        OperationFailed: A write failed; all changes were undone.
        Blocked: A write did not return in time; ``restore`` undoes the changes once it has returned.
        BadAddress: An address has no known form.
        NoSuchDevice: There is no device at an address.
        NotVirtio: The device there is no virtio device.
        UsageError: There is no such owner, driver or rule.
    """
    from uvirtio.binding import bind as binding
    from uvirtio.binding.owner import owner_ids

    roots = roots or Roots()
    names = [addresses] if isinstance(addresses, str) else addresses
    ids_of_owner = None if owner is None else owner_ids(owner)
    return binding.bind(
        discover.find_all(names, roots, aliases=False),
        roots,
        driver=driver,
        group=group,
        force=force,
        owner=ids_of_owner,
        argv=sys.argv,
    )


def restore(
    addresses: str | Iterable[str] = (), *, all: bool = False, forget: bool = False, roots: Roots | None = None
) -> builtins.list[Restored]:
    """Bind devices to the drivers that they had before ``bind``. May be repeated after any interruption.

    A failure of one device does not stop the others.

    Args:
        addresses: One address or several.
        all: All devices in the journal, whichever process bound them.
        forget: Only remove the devices from the journal, and leave them as they are; not with ``all``.
        roots: Where ``/sys``, ``/proc`` ... are.

    Returns:
        For each device what was done: ``"restored"``, ``"already"``, ``"gone"``, ``"replaced"`` (another device is
        at its address now, and was left alone) or ``"forgotten"``.

    Raises:
        UsageError: Neither addresses nor ``all`` are given, or both; to forget: a device is not in the journal.
        Busy: A process still uses a device.
        Claimed: Another program has set an override for a device since, with driverctl for example.
        Refused: Another program has bound a device since, or it was not bound by uvirtio.
        BadAddress: An address has no known form.
        NoSuchDevice, NotVirtio: There is no such device, and the journal has none.
        PermissionLack: This user may not write to sysfs, or not read the journal.
        EnvironmentLack: The journal or a lock cannot be written, or a part of the journal cannot be read.
        OperationFailed: A write to sysfs failed or had no effect; with ``all``: a file of the journal holds no
            entry.
        Blocked: A write did not return in time.
    """
    from uvirtio.binding import restore as restoring

    names = [addresses] if isinstance(addresses, str) else builtins.list(dict.fromkeys(addresses))
    if bool(names) == all or (all and forget):
        raise UsageError(
            "restore takes devices, or all=True; forget=True takes devices",
            seen=names,
            expected="one of the two",
            remedy="name the devices",
        )
    if forget:
        return [one for one, _ in restoring.forget(roots or Roots(), names)]
    return restoring.restore(roots or Roots(), None if all else names)


@contextmanager
def bound(
    address: str,
    *,
    driver: str | None = None,
    group: bool = False,
    force: Collection[str] = (),
    owner: str | None = None,
    roots: Roots | None = None,
) -> Iterator[Bound]:
    """Bind one device for the length of a ``with`` block, and restore it however the block ends.

        with uvirtio.bound("0000:03:00.0") as bound, uvirtio.open(bound.address) as device:
            ...

    A device that was bound before the block stays bound after it. Close what you opened before the block ends.
    If the process is killed in the block, ``uvirtio restore`` gives the device back.

    Args:
        address: Of the device.
        driver: As for ``bind``.
        group: As for ``bind``; the other functions are restored too.
        force: As for ``bind``.
        owner: As for ``bind``.
        roots: As for ``bind``.

    Yields:
        Its address now (that of a vDPA device changes), driver and node.

    Raises:
        Denied: The administrator's deny list names a device.
        InUse: This machine needs a device.
        Busy: Another process binds or drives a device; at the end: a process still uses it.
        Claimed: At the end: another program has claimed the device meanwhile.
        Refused: Another rule forbids it; at the end: another program has bound the device meanwhile.
        EnvironmentLack: An IOMMU, a module or a permission is missing; the subclass says which.
        OperationFailed: A write failed; at the start all changes were undone.
        Blocked: A write did not return in time; ``uvirtio restore`` undoes the changes once it has returned.
        BadAddress: The address has no known form.
        NoSuchDevice: There is no device at the address.
        NotVirtio: The device there is no virtio device.
        UsageError: There is no such owner, driver or rule.
    """
    from uvirtio.binding import journal
    from uvirtio.device.signals import signals_held

    roots = roots or Roots()
    before = {entry.id for entry in journal.entries(roots)}
    put_back = False
    try:  # around bind too: an exception that a signal handler throws may come right after it
        try:
            (one,) = bind(address, driver=driver, group=group, force=force, owner=owner, roots=roots)
        except UvirtioError:
            put_back = True  # by bind, as far as that is possible
            raise
        yield one
    finally:
        if not put_back:
            with signals_held():
                _give_back(address, before, roots)


def _give_back(address: str, before: set[str], roots: Roots) -> None:
    """Restore what this process has bound since ``before``, together with ``address``."""
    from uvirtio.binding import journal

    try:
        key = discover.find(address, roots, aliases=False).key
    except DeviceAbsent:
        key = canonical(address)
    for entry in journal.entries(roots):
        if entry.id not in before and entry.pid == os.getpid() and entry.device(key) is not None:
            restore([device.address for device in sorted(entry.devices, key=lambda one: one.number)], roots=roots)


def check_denied(address: str, *, roots: Roots | None = None) -> None:
    """Refuse a device that the administrator's deny list (``/etc/uvirtio/deny``) names.

    ``open`` and ``bind`` call it; programs that use ``uvirtio.backends.vfio`` alone should, too.

    Args:
        address: Of the device; if it exists, all its other names are matched, too.
        roots: Where ``/etc`` and ``/sys`` are.

    Raises:
        Denied: A line of the list names it, or the list cannot be read.
        BadAddress: The address has no known form.
        UsageError: The name is a type, and several devices have it.
    """
    roots = roots or Roots()
    names = [canonical(address), address]
    if not names[0].startswith(addresses.SIMULATED):
        try:
            names += discover.find(address, roots).names
        except DeviceAbsent:
            pass  # its address may be on the list nevertheless
    denylist.check(dict.fromkeys(names), roots)
