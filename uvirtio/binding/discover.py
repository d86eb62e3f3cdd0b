"""Discovery of the virtio devices of this machine in sysfs.

Devices that have a kernel driver are not touched: no node of vfio, uio or vdpa is opened here, because opening one
resets or stops the device, and the four bytes of configuration space that are a window into a BAR (pci_cfg_data,
4.1.4.9) are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from uvirtio.binding.config_space import ConfigSpace, config_bytes_at
from uvirtio.errors import BadAddress, DeviceGone, NoSuchDevice, NotVirtio, PermissionLack, UsageError
from uvirtio.host import addresses, mmio, sysfs
from uvirtio.host.addresses import Address, canonical
from uvirtio.host.drivers import USER_DRIVERS, VIRTIO_VDPA, is_vfio, user_nodes
from uvirtio.host.names import device_behind
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import BarInfo
from uvirtio.spec import ids, pci
from uvirtio.transports.pci_caps import VirtioCapability, modern

if TYPE_CHECKING:
    from uvirtio.binding.vdpa_netlink import VdpaDevice

__all__ = [
    "DiscoveredDevice",
    "bars",
    "capabilities",
    "config_bytes",
    "find",
    "find_all",
    "id_pair",
    "negotiated_features",
    "on_bus",
    "pci_functions",
    "platform_devices",
    "scan",
    "unlisted",
    "vdpa_above",
    "vdpa_devices",
]

Interface = Literal["modern", "transitional", "legacy", "mmio", "vdpa", "none"]


class DiscoveredDevice(NamedTuple):
    """One device, as sysfs shows it. ``interface`` is ``none`` for a PCI function that is not virtio."""

    address: str
    """Canonical: ``0000:03:00.0``, ``mmio:0xfeb02e00``, ``/dev/vhost-vdpa-0`` ..."""
    bus: Literal["pci", "platform", "vdpa"]
    name: str
    """Its name on the bus, as written to bind and unbind."""
    path: Path
    """Its directory below ``bus/*/devices``."""
    type: str
    device_id: int | None
    """The virtio device type; None where only the device's registers have it (an unbound mmio window)."""
    interface: Interface
    pci_id: str | None = None
    subsystem_id: str | None = None
    revision: int | None = None
    pci_class: int | None = None
    driver: str | None = None
    vfio: bool = False
    """VFIO has it: ``driver`` is vfio-pci or a variant of it (virtio_vfio_pci ...)."""
    driver_override: str | None = None
    virtio_name: str | None = None
    virtio_path: Path | None = None
    """Its directory: below the device, or for a vDPA device below what that stands on."""
    elsewhere: tuple[Path, ...] = ()
    """Virtio devices outside of ``path`` that are this vDPA device's, or may be: sysfs does not say whose."""
    kernel_driver: str | None = None
    iommu_group: int | None = None
    noiommu: bool = False
    """The group is one of VFIO's no-IOMMU mode: it has a number, and no IOMMU restricts the device."""
    numa_node: int | None = None
    window: tuple[int, int] | None = None
    """Base address and length in bytes of an mmio window; length 0: not known."""
    node: str | None = None
    """The device node that the driver bound now offers to user space."""
    other_nodes: tuple[str, ...] = ()
    """Further nodes that reach the same device: VFIO's character device of the function beside its group's."""
    parent: str | None = None
    """The parent of a vDPA device: the address of a PCI function (vp_vdpa), or a name (VDUSE, a sub-function)."""
    above: tuple[str, ...] = ()
    """The names of the devices that a vDPA device stands on, the parent first, a PCI function last."""
    notes: tuple[str, ...] = ()
    """What could not be determined, and why."""

    @property
    def key(self) -> str:
        """A name that does not change with the driver, for the journal and the locks."""
        return f"vdpa:{self.name}" if self.bus == "vdpa" else self.address

    @property
    def places(self) -> tuple[Path, ...]:
        """The directories below which sysfs shows what the kernel made of the device: disks, interfaces ..."""
        return (sysfs.real(self.path), *self.elsewhere)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node by which user space can open the device as it is bound now."""
        return () if self.node is None else (self.node, *self.other_nodes)

    @property
    def for_user_space(self) -> bool:
        """Whether the driver that is bound hands the device to user space."""
        return self.vfio or self.driver in USER_DRIVERS

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the device, the address first, as matched against the deny list."""
        extra = [self.name, self.virtio_name, self.node, *self.other_nodes]
        if self.bus == "vdpa":
            extra.append(f"vdpa:{self.name}")
            # Denying a function denies the vDPA devices on it and on its sub-functions, too.
            extra += [canonical(name) if addresses.is_pci(name) else name for name in self.above]
        if self.window is not None:
            extra.append(f"mmio:{self.window[0]:#x}")
        return tuple(dict.fromkeys([self.address, *(name for name in extra if name)]))

    def as_dict(self) -> dict[str, Any]:
        """The device as ``list`` prints it, without the verdicts of the rules."""
        return {
            "address": self.address,
            "type": self.type,
            "device_id": self.device_id,
            "pci_id": self.pci_id,
            "interface": self.interface,
            "driver": self.driver,
            "kernel_driver": self.kernel_driver,
            "iommu_group": self.iommu_group,
            "virtio_name": self.virtio_name,
            "numa_node": self.numa_node,
            "node": self.node,
            "parent": self.parent,
            "notes": list(self.notes),
        }


def scan(roots: Roots) -> list[DiscoveredDevice]:
    """Every virtio device of this machine, sorted by address. Odd contents of sysfs are no exception."""
    found = list(pci_functions(roots, virtio=True))
    found.extend(platform_devices(roots))
    found.extend(vdpa_devices(roots))
    return sorted(found, key=lambda device: device.address)


def unlisted(roots: Roots) -> list[Path]:
    """The directories of buses that this user cannot list: devices on them are not found."""
    places = (sysfs.bus(bus, roots) / "devices" for bus in ("pci", "platform", "vdpa"))
    return [place for place in places if sysfs.listed(place) is None]


def on_bus(bus: str, name: str, roots: Roots) -> DiscoveredDevice | None:
    """The virtio device with this name on a bus (``pci``, ``platform``, ``vdpa``); None: there is none."""
    if bus == "pci":
        return _pci_function(name, roots, virtio=True) if addresses.is_pci(name) else None
    walk = {"platform": lambda: platform_devices(roots, name), "vdpa": lambda: vdpa_devices(roots)}.get(bus)
    return None if walk is None else next((device for device in walk() if device.name == name), None)


# --- PCI ---------------------------------------------------------------------------------------------------


def pci_functions(roots: Roots, group: int | None = None, *, virtio: bool = False) -> Iterator[DiscoveredDevice]:
    """Every PCI function, or those of one IOMMU group; with ``virtio`` only those that are virtio."""
    names = sysfs.device_names("pci", roots) if group is None else sysfs.iommu_group_members(group, roots)
    for name in names:
        if addresses.is_pci(name) and (device := _pci_function(name, roots, virtio)) is not None:
            yield device


def _pci_function(name: str, roots: Roots, virtio: bool = False) -> DiscoveredDevice | None:
    path = sysfs.device("pci", name, roots)
    vendor, device = sysfs.number(path / "vendor"), sysfs.number(path / "device")
    if vendor is None or device is None or (virtio and not ids.is_virtio_pci(vendor, device)):
        return None
    notes: list[str] = []
    interface: Interface
    driver = sysfs.driver_of(path)
    virtio_name, kernel_driver = _virtio_child(path)
    subsystem = sysfs.number(path / "subsystem_device")
    if not ids.is_virtio_pci(vendor, device):
        device_id, interface = None, "none"
    elif ids.is_transitional_pci(vendor, device):
        # 4.1.2.3: outside the table of ids, the subsystem id is the type.
        device_id = ids.device_id_of_pci(vendor, device) or subsystem or None
        interface = _transitional(path, virtio_name, notes)
    else:
        device_id, interface = ids.device_id_of_pci(vendor, device), "modern"
    group = sysfs.iommu_group(path)
    vfio = is_vfio(path, roots)
    nodes = user_nodes(path, roots) if vfio or driver in USER_DRIVERS else []  # it would look for VFIO once more
    return DiscoveredDevice(
        address=canonical(name),
        bus="pci",
        name=name,
        path=path,
        type=_type_name(device_id),
        device_id=device_id,
        interface=interface,
        pci_id=id_pair(vendor, device),
        subsystem_id=id_pair(sysfs.number(path / "subsystem_vendor"), subsystem),
        revision=sysfs.number(path / "revision"),
        pci_class=sysfs.number(path / "class"),
        driver=driver,
        vfio=vfio,
        driver_override=sysfs.override(path),
        virtio_name=virtio_name,
        virtio_path=path / virtio_name if virtio_name else None,
        kernel_driver=kernel_driver,
        iommu_group=group,
        noiommu=sysfs.is_noiommu(path),
        numa_node=_node(path),
        node=nodes[0] if nodes else None,
        other_nodes=tuple(nodes[1:]),
        notes=tuple(notes),
    )


def _transitional(path: Path, virtio_name: str | None, notes: list[str]) -> Interface:
    """An id of the old range: transitional if it has virtio capabilities (4.1.5.1.1.1), else legacy.

    They lie beyond the first 64 bytes, where only root may read. The features that a kernel driver negotiated
    do instead: a legacy interface has no VERSION_1.
    """
    try:
        config = config_bytes_at(path / "config")
    except (PermissionLack, DeviceGone):
        from uvirtio.spec.features import VERSION_1  # here: importing it takes longer than a scan

        negotiated = _features_of(path / (virtio_name or "virtio"))
        if negotiated is not None and negotiated >> VERSION_1 & 1:
            return "transitional"
        notes.append("transitional or legacy: its capabilities can be read by root only")
        return "transitional"
    if config.data[:2] == b"\xff\xff":
        notes.append("transitional or legacy: configuration space reads all ones")
        return "transitional"
    return "transitional" if modern(config.capabilities) else "legacy"


# --- virtio-mmio -------------------------------------------------------------------------------------------


def platform_devices(roots: Roots, only: str | None = None) -> Iterator[DiscoveredDevice]:
    """Every virtio-mmio device, or the one of this name on the platform bus."""
    for window in mmio.windows(roots, only):
        place = None if window.base is None else (window.base, window.length)
        yield _platform_device(window.name, sysfs.device("platform", window.name, roots), place)


def _platform_device(name: str, path: Path, window: tuple[int, int] | None) -> DiscoveredDevice:
    virtio_name, kernel_driver = _virtio_child(path)
    device_id = sysfs.number(path / virtio_name / "device") if virtio_name else None
    notes = [] if device_id is not None else ["type: no driver has it, and only its registers tell"]
    if window is None:
        notes.append("window: /proc/iomem shows addresses to root only")
    return DiscoveredDevice(
        address=name if window is None else f"mmio:{window[0]:#x}",
        bus="platform",
        name=name,
        path=path,
        type=_type_name(device_id),
        device_id=device_id,
        interface="mmio",
        driver=sysfs.driver_of(path),
        driver_override=sysfs.override(path),
        virtio_name=virtio_name,
        virtio_path=path / virtio_name if virtio_name else None,
        kernel_driver=kernel_driver,
        numa_node=_node(path),
        window=window,
        notes=tuple(notes),
    )


# --- vdpa --------------------------------------------------------------------------------------------------


def vdpa_devices(roots: Roots, names: Iterable[str] | None = None) -> Iterator[DiscoveredDevice]:
    """Every vDPA device, or those of these names."""
    told: dict[str, VdpaDevice] | None = None
    for name in sysfs.device_names("vdpa", roots) if names is None else names:
        path = sysfs.device("vdpa", name, roots)
        parent = sysfs.real(path).parent
        driver = sysfs.driver_of(path)
        own = _virtio_children(path)
        elsewhere = _virtio_above(path) if driver == VIRTIO_VDPA and not own else []
        virtio = next(iter(own or elsewhere)) if len(own or elsewhere) == 1 else None
        device_id = sysfs.number(virtio / "device") if virtio is not None else _id_of_function(path)
        if device_id is None and roots.live:  # the kernel knows only its own devices
            from uvirtio.binding import vdpa_netlink  # here: without such a device there is no need of sockets

            told = vdpa_netlink.devices() if told is None else told
            device_id = told[name].device_id if name in told else None
        node = sysfs.vdpa_node(path)
        yield DiscoveredDevice(
            address=node or f"vdpa:{name}",
            bus="vdpa",
            name=name,
            path=path,
            type=_type_name(device_id),
            device_id=device_id,
            interface="vdpa",
            driver=driver,
            driver_override=sysfs.override(path),
            virtio_name=None if virtio is None else virtio.name,
            virtio_path=virtio,
            elsewhere=tuple(elsewhere),
            kernel_driver=None if virtio is None else sysfs.driver_of(virtio),
            numa_node=_node(path),
            node=node,
            parent=parent.name,
            above=tuple(place.name for place in sysfs.above(path)),
            notes=() if device_id is not None else ("type: only the device itself tells",),
        )


def _id_of_function(path: Path) -> int | None:
    """The type of a vDPA device that is a virtio PCI function, by vp_vdpa or the like; None for others."""
    function = sysfs.function_below(path)
    if function is None:
        return None
    vendor, device = sysfs.number(function / "vendor"), sysfs.number(function / "device")
    return None if vendor is None or device is None else ids.device_id_of_pci(vendor, device)


def vdpa_above(roots: Roots) -> dict[Path, list[str]]:
    """The names of the vDPA devices that stand on a device, by its directory with all links resolved."""
    found: dict[Path, list[str]] = {}
    for name in sysfs.device_names("vdpa", roots):
        for place in sysfs.above(sysfs.device("vdpa", name, roots)):
            found.setdefault(place, []).append(name)
    return found


# --- common ------------------------------------------------------------------------------------------------


def _virtio_children(path: Path) -> list[Path]:
    """The virtio devices directly below a device of a bus: one, except below one with several vDPA devices."""
    return [path / name for name in sysfs.names(path) if addresses.is_virtio_name(name)]


def _virtio_above(path: Path) -> list[Path]:
    """The virtio devices below what a vDPA device stands on.

    virtio_vdpa makes a device's virtio device a child of what does its DMA: of the vDPA device itself (VDUSE), or
    of its PCI function (vp_vdpa, mlx5_vdpa), where it lies beside those of the function's other vDPA devices.
    """
    return [virtio for place in sysfs.above(path) for virtio in _virtio_children(place)]


def _virtio_child(path: Path) -> tuple[str | None, str | None]:
    """``virtio3`` below the bus device, and the driver bound to it."""
    found = next(iter(_virtio_children(path)), None)
    return (None, None) if found is None else (found.name, sysfs.driver_of(found))


def _type_name(device_id: int | None) -> str:
    return "unknown" if device_id is None else ids.type_name(device_id)


def id_pair(vendor: int | None, device: int | None) -> str | None:
    """Two ids of PCI as ``lspci`` and the journal write them, ``1af4:1044``; None where one is not known."""
    return None if vendor is None or device is None else f"{vendor:04x}:{device:04x}"


def _node(path: Path) -> int | None:
    node = sysfs.number(path / "numa_node")
    return None if node is None or node < 0 else node


def _features_of(virtio: Path) -> int | None:
    """The feature bits that the kernel's driver negotiated: a string of 0 and 1, bit 0 first."""
    text = sysfs.read(virtio / "features", 4096)
    if not text or set(text) - {"0", "1"}:
        return None
    return sum(1 << bit for bit, digit in enumerate(text) if digit == "1")


def negotiated_features(found: DiscoveredDevice) -> int | None:
    """The feature bits that the kernel's driver negotiated; None where none is bound."""
    return None if found.virtio_path is None else _features_of(found.virtio_path)


# --- by name -----------------------------------------------------------------------------------------------


def find(name: str, roots: Roots, *, aliases: bool = True) -> DiscoveredDevice:
    """The device with this name, in any of the documented forms.

    Args:
        name: An address, or an interface, disk, node or sysfs path of the device (``eth0``, ``/dev/vda``).
        roots: Where ``/sys`` and ``/proc`` are read.
        aliases: Accept ``virtio3`` and a type, which are for commands that only read.

    Raises:
        BadAddress: The name has no known form, or is one that only reading commands accept.
        UsageError: Several devices have it, or it is a ``qemu:`` address.
        NoSuchDevice: No device has it.
        NotVirtio: The device that has it is no virtio device.
    """
    return find_all([name], roots, aliases=aliases)[0]


def find_all(names: Iterable[str], roots: Roots, *, aliases: bool = True) -> list[DiscoveredDevice]:
    """The devices with these names, in their order: as ``find``, and from one look at the machine.

    Args:
        names: As for ``find``; one of them may be there more than once.
        roots: As for ``find``.
        aliases: As for ``find``.

    Raises:
        BadAddress, UsageError, NoSuchDevice, NotVirtio: As ``find``, for the first name that is none.
    """
    every = _Scan(roots)
    return [_find(name, every, aliases) for name in names]


class _Scan:
    """What ``scan`` finds, when it is first asked for; by any of the names of a device, too."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots

    @cached_property
    def devices(self) -> list[DiscoveredDevice]:
        """All devices, sorted by address."""
        return scan(self.roots)

    @cached_property
    def by_name(self) -> dict[str, DiscoveredDevice]:
        """The devices by each of their names, the first one where several share a name."""
        found: dict[str, DiscoveredDevice] = {}
        for device in self.devices:
            for name in device.names:
                found.setdefault(name, device)
        return found

    @cached_property
    def by_place(self) -> dict[tuple[str, str], DiscoveredDevice]:
        """The devices by bus and name on the bus."""
        return {(device.bus, device.name): device for device in self.devices}


def _find(name: str, every: _Scan, aliases: bool) -> DiscoveredDevice:
    wanted, roots = addresses.parse(name), every.roots
    if wanted.family == "pci":
        return _find_pci(wanted.name, roots)
    if wanted.canonical.startswith(addresses.SIMULATED):
        raise UsageError(
            f"{wanted} is not a device of this machine; its sysfs does not have it",
            seen=wanted.canonical,
            expected="an address of this machine",
            remedy=f"`uvirtio diag` takes {wanted.family}: addresses",
        )
    if wanted.family in addresses.LOOKED_UP:
        return _find_behind(wanted, every)
    if wanted.family in addresses.LOOKING_ONLY:
        device = _by_alias(wanted, every.devices)
        if aliases:
            return device
        raise BadAddress(
            f"{wanted} is a name for looking only",
            seen=wanted.canonical,
            expected="the address of a device",
            remedy=f"write {device.address}",
        )
    found = every.by_name.get(wanted.canonical)
    if found is None and wanted.base is not None:
        found = every.by_name.get(f"mmio:{wanted.base:#x}")
    if found is None:
        raise _none(wanted.canonical)
    return found


def _find_pci(address: str, roots: Roots, known_as: str = "") -> DiscoveredDevice:
    name: str | None = address
    if sysfs.gone(sysfs.device("pci", address, roots)):  # as the kernel spells it; a made-up tree may not
        names = sysfs.device_names("pci", roots)
        name = next((name for name in names if addresses.is_pci(name) and canonical(name) == address), None)
    if name is None:
        raise _none(address)
    shown = f"{known_as} belongs to {address}, which" if known_as else address
    device = _pci_function(name, roots)
    if device is None:
        raise NotVirtio(
            f"{shown} does not show its vendor and device id",
            seen="no readable vendor or device file",
            expected="a virtio PCI function",
        )
    if device.interface == "none":
        raise NotVirtio(
            f"{shown} is no virtio device",
            seen=f"PCI id {device.pci_id}, class {device.pci_class or 0:06x}, driver {device.driver or 'none'}",
            expected="PCI id 1af4:1000 to 1af4:107f (4.1.2)",
            remedy="`uvirtio list` shows the virtio devices of this machine",
        )
    return device


def _find_behind(wanted: Address, every: _Scan) -> DiscoveredDevice:
    """The device that an interface, a disk, a node or a path of sysfs belongs to."""
    if wanted.family == "node" and (having := [one for one in every.devices if wanted.canonical in one.nodes]):
        return _only(having, f"devices behind {wanted}")  # the nodes of user-space drivers: /dev/vfio/8
    bus, name = device_behind(wanted, every.roots)
    if bus == "pci":
        return _find_pci(canonical(name), every.roots, wanted.canonical)
    if (device := every.by_place.get((bus, name))) is not None:
        return device
    raise NotVirtio(
        f"{wanted} belongs to {name}, which is no virtio device",
        seen=f"the {bus} device {name}",
        expected="a virtio-mmio window or a vDPA device",
        remedy="`uvirtio list` shows the virtio devices of this machine",
    )


def _by_alias(wanted: Address, found: list[DiscoveredDevice]) -> DiscoveredDevice:
    if wanted.family == "virtio":
        matches = [device for device in found if device.virtio_name == wanted.name]
    else:
        matches = [device for device in found if device.type == wanted.name]
    if not matches:
        raise _none(wanted.canonical)
    return _only(matches, f"devices of type {wanted}")


def _only(matches: list[DiscoveredDevice], what: str) -> DiscoveredDevice:
    """The only element.

    Raises:
        UsageError: There are several.
    """
    if len(matches) > 1:
        raise UsageError(
            f"there are {len(matches)} {what}",
            seen=[device.address for device in matches],
            expected="one",
            remedy="name one by its address",
        )
    return matches[0]


def _none(name: str) -> NoSuchDevice:
    return NoSuchDevice(
        f"there is no device {name}",
        seen=name,
        expected="a device of this machine",
        remedy="`uvirtio list` shows what there is; mmio windows show their address to root only",
    )


# --- configuration space -----------------------------------------------------------------------------------


def config_bytes(found: DiscoveredDevice) -> ConfigSpace:
    """Configuration space of a PCI function, by its sysfs file; pci_cfg_data is not read.

    Raises:
        PermissionLack: This user may read only the first 64 bytes; the rest takes CAP_SYS_ADMIN.
        DeviceGone: The file is not there or cannot be read.
    """
    return config_bytes_at(found.path / "config", bars(found))


def bars(found: DiscoveredDevice) -> list[BarInfo | None] | None:
    """The six base address registers, by the ``resource`` file; None where it cannot be read."""
    lines = sysfs.resources(found.path)
    if lines is None:
        return None
    made: list[BarInfo | None] = [None] * (pci.MAX_BAR + 1)
    for index, line in enumerate(lines[: len(made)]):
        if line is not None and line.used:
            made[index] = BarInfo(index, line.size, line.is_io)
    return made


def capabilities(found: DiscoveredDevice) -> list[VirtioCapability]:
    """The virtio capabilities of a PCI function, each with a verdict; none for other buses.

    Raises:
        PermissionLack: This user may not see them, which is not the same as having none.
        DeviceGone: The function is not there any more.
    """
    return list(config_bytes(found).capabilities) if found.bus == "pci" else []
