"""What became of a device since bind, by its record in the journal. Read only.

Another program may have claimed the device meanwhile: driverctl and libvirt do so by its ``driver_override``. And
the device may be gone, or another one in its place: a record of such a device has ended, and hinders nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from uvirtio.binding import journal
from uvirtio.binding.discover import DiscoveredDevice, id_pair
from uvirtio.binding.journal import DeviceEntry, Entry
from uvirtio.host import driverctl, sysfs
from uvirtio.host.drivers import KERNEL_DRIVERS
from uvirtio.host.roots import Roots

Standing = Literal["bound", "unfinished", "as-before", "gone", "replaced", "claimed", "taken"]
"""``bound``: as bind left it. ``unfinished``: bind or restore did not come to its end. ``as-before``: nothing is
left to restore. ``gone``: the device is not there. ``replaced``: another device is at its address. ``claimed``:
another program has set an override since. ``taken``: another driver is bound to it."""

ENDED = frozenset({"as-before", "gone", "replaced"})
"""The standings in which a record ends by itself."""


def standing(device: DeviceEntry, roots: Roots, state: str = "bound") -> Standing:
    """What became of a device since bind.

    Args:
        device: Its record.
        roots: Where ``/sys``, ``/etc`` and ``/dev`` are.
        state: Of the entry that has the record: ``pending`` means that a write still waits in the kernel, and
            then a device that looks as before need not stay so.
    """
    directory = sysfs.device(device.bus, device.name, roots)
    if sysfs.gone(directory):
        return "gone"
    if _replaced(device, directory):
        return "replaced"
    if claim(device, roots) is not None:
        return "claimed"
    driver = sysfs.driver_of(directory)
    if driver == device.driver:
        released = sysfs.override(directory) in (None, device.driver_override)
        if released and state != "pending" and node_to_return(device, roots) is None:
            return "as-before"
        return "bound" if driver == device.target else "unfinished"
    if driver == device.target:
        return "bound"
    return "unfinished" if driver is None else "taken"


def _replaced(device: DeviceEntry, directory: Path) -> bool:
    """Whether the function was unplugged, and another one plugged in its place."""
    if device.pci_id is None:
        return False
    pci_id = id_pair(sysfs.number(directory / "vendor"), sysfs.number(directory / "device"))
    if pci_id is None and not sysfs.gone(directory):
        return False  # it is being removed just now, or its files cannot be read
    subsystem = sysfs.number(directory / "subsystem_vendor"), sysfs.number(directory / "subsystem_device")
    return (pci_id, id_pair(*subsystem)) != (device.pci_id, device.subsystem_id)


# --- claims -------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """What another program has decided about a device since bind."""

    override: str | None
    """``driver_override`` now."""
    saved: driverctl.Saved | None
    """What driverctl has saved for it since; None: nothing."""

    @property
    def evidence(self) -> str:
        """What shows it."""
        seen = f"driver_override is {self.override}" if self.override is not None else "no driver_override"
        return seen if self.saved is None else f"{seen}, and {self.saved.path} names {self.saved.driver}"


def claim(device: DeviceEntry, roots: Roots) -> Claim | None:
    """The claim of another program to a device that bind has bound; None: there is none.

    It is an override that neither bind found nor bind or restore set, or one that driverctl has saved since: its
    value may be the very one that bind sets for a moment.
    """
    override = sysfs.override(sysfs.device(device.bus, device.name, roots))
    saved = driverctl.saved(device.bus, device.name, roots)
    if saved is not None and saved.driver == device.driverctl:
        saved = None  # bind found it
    ours = {None, device.driver_override}
    if "override-cleared" not in device.steps:
        ours.add(device.target)
    if "restore" in device.steps:
        ours.add(device.driver)
    return None if saved is None and override in ours else Claim(override, saved)


def release(device: DeviceEntry, claimed: Claim, roots: Roots) -> str:
    """The commands that end a claim, after which ``uvirtio restore`` works."""
    if claimed.saved is not None:
        return driverctl.unset(device.bus, device.name)
    directory = sysfs.device(device.bus, device.name, roots)
    commands = [f"echo > {directory / 'driver_override'}"]
    driver = sysfs.driver_of(directory)
    if driver not in (device.driver, device.target, None):
        commands.append(unbinding(device.bus, device.name, driver, roots))
    return "; ".join(commands)


def unbinding(bus: str, name: str, driver: str | None, roots: Roots) -> str:
    """The command that takes a device from its driver."""
    return f"echo {name} > {sysfs.bus(bus, roots) / 'drivers' / str(driver) / 'unbind'}"


def by_hand(found: DiscoveredDevice, roots: Roots) -> str:
    """The commands that bind a device to the kernel's driver where the journal does not say what it had before.

    By override: without one the kernel may probe the user-space driver again, by an override or an id that the
    program set which bound it.
    """
    if driverctl.saved(found.bus, found.name, roots) is not None:
        return driverctl.unset(found.bus, found.name)
    override = found.path / "driver_override"
    return "; ".join(
        [
            f"echo {KERNEL_DRIVERS[found.bus]} > {override}",
            unbinding(found.bus, found.name, found.driver, roots),
            f"echo {found.name} > {sysfs.bus(found.bus, roots) / 'drivers_probe'}",
            f"echo > {override}",
        ]
    )


# --- the node -----------------------------------------------------------------------------------------------


def node_to_return(device: DeviceEntry, roots: Roots) -> Path | None:
    """The node whose owner or mode is not what it was before bind; None: there is none, or it is as it was."""
    if device.node is None or device.node_before is None:
        return None
    name = Path(device.node).name
    node = roots.dev / "vfio" / name
    if device.bus == "vdpa" or name.startswith("vfio"):
        # The device's own. It is removed with the driver, and its number may be another device's by now.
        directory = sysfs.device(device.bus, device.name, roots)
        own = sysfs.vfio_nodes(directory) if device.bus == "pci" else [sysfs.vdpa_node(directory)]
        path = f"/dev/vfio/devices/{name}" if device.bus == "pci" else f"/dev/{name}"
        if path not in own:
            return None
        node = roots.dev / path.removeprefix("/dev/")
    try:
        status = node.stat()
    except OSError:
        return None
    return None if (status.st_uid, status.st_gid, status.st_mode & 0o7777) == device.node_before else node


# --- the journal --------------------------------------------------------------------------------------------


def first_live(records: Iterable[tuple[Entry, DeviceEntry]], roots: Roots) -> tuple[Entry, DeviceEntry] | None:
    """The first of a device's records that has not ended; None: all have, or there is none."""
    for entry, device in records:
        if standing(device, roots, entry.state) not in ENDED:
            return entry, device
    return None


def drop_ended(keys: Collection[str], roots: Roots) -> None:
    """Remove the records of these devices that have ended. The caller holds the devices' locks.

    Raises:
        EnvironmentLack: The journal cannot be written.
    """
    for entry in journal.entries(roots):
        for device in entry.devices:
            if device.address in keys and standing(device, roots, entry.state) in ENDED:
                journal.drop(entry, device.address, roots)
