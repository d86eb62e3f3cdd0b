"""The names of the kernel drivers that matter here, and which driver is bound to a device."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from uvirtio.errors import NoSuchDevice, NotBound
from uvirtio.host import sysfs
from uvirtio.host.roots import Roots

VFIO: Final = "vfio-pci"
UIO: Final = "uio_pci_generic"
VDPA: Final = "vhost_vdpa"
VIRTIO_VDPA: Final = "virtio_vdpa"
"""Makes a virtio device of a vDPA device, for the kernel's own drivers."""
PCI_STUB: Final = "pci-stub"
VP_VDPA: Final = "vp-vdpa"
"""Makes a vDPA device of a virtio PCI function."""
VIRTIO_PCI: Final = "virtio-pci"
VIRTIO_MMIO: Final = "virtio-mmio"
KMEM: Final = "kmem"
"""Makes System RAM of a dax device."""

USER_DRIVERS: Final = frozenset({VFIO, UIO, PCI_STUB, VDPA})
"""Drivers under which the kernel itself does not use the device; VFIO has more of them, see ``is_vfio``."""
KERNEL_DRIVERS: Final = {"pci": VIRTIO_PCI, "platform": VIRTIO_MMIO, "vdpa": VIRTIO_VDPA}
"""The driver of each bus under which Linux uses a virtio device itself."""

_VARIANTS_USE: Final = "vfio_pci_core"
"""The module that vfio-pci and its variants are made of."""


def is_vfio(directory: Path, roots: Roots) -> bool:
    """Whether VFIO has a device: through vfio-pci, or through a variant of it for one kind of function.

    Variants (virtio_vfio_pci, mlx5_vfio_pci ...) are known by what the kernel shows, not by name. Since Linux
    6.1 a device of VFIO has the child ``vfio-dev/vfioN``; before, its driver's module is a user of vfio_pci_core.

    Args:
        directory: The device's directory in sysfs.
        roots: Where ``/sys`` is.
    """
    driver = sysfs.driver_of(directory)
    if driver is None or driver == VFIO:
        return driver == VFIO
    if sysfs.vfio_devices(directory):
        return True
    module = sysfs.link_name(directory / "driver/module")
    return module is not None and sysfs.exists(roots.sys / "module" / _VARIANTS_USE / "holders" / module)


def is_for_user_space(directory: Path, roots: Roots) -> bool:
    """Whether the driver that is bound to a device hands it to user space."""
    return sysfs.driver_of(directory) in USER_DRIVERS or is_vfio(directory, roots)


def user_nodes(directory: Path, roots: Roots) -> list[str]:
    """The nodes by which user space can open a PCI function as it is bound now.

    Returns:
        Under VFIO the node of its group, where the kernel has groups (CONFIG_VFIO_GROUP), then its own; that of
        uio_pci_generic; none under other drivers.
    """
    if not is_vfio(directory, roots):
        return (
            [f"/dev/{name}" for name in sysfs.uio_nodes(directory)[:1]]
            if sysfs.driver_of(directory) == UIO
            else []
        )
    own, group = sysfs.vfio_nodes(directory), sysfs.iommu_group(directory)
    if group is None or (own and not sysfs.is_dir(roots.sys / "class/vfio")):
        return own
    return [f"/dev/vfio/noiommu-{group}" if sysfs.is_noiommu(directory) else f"/dev/vfio/{group}", *own]


def pci_driver(address: str, roots: Roots) -> str | None:
    """The driver bound to a PCI function; None where none is."""
    return sysfs.driver_of(sysfs.device("pci", address, roots))


def require_bound(address: str, wanted: str, roots: Roots) -> None:
    """Check that a PCI function is bound to the driver ``wanted``; a variant of vfio-pci counts as vfio-pci.

    Raises:
        NoSuchDevice: There is no such function.
        NotBound: Another driver is bound, or none.
    """
    device = sysfs.device("pci", address, roots)
    if sysfs.gone(device):
        raise NoSuchDevice(
            f"there is no PCI function {address}", expected="an address of uvirtio list", remedy="uvirtio list"
        )
    driver = sysfs.driver_of(device)
    if driver != wanted and not (wanted == VFIO and is_vfio(device, roots)):
        raise NotBound(
            f"{address} is not bound to {wanted}",
            seen=driver or "no driver",
            expected=wanted,
            remedy=f"uvirtio bind {address}" + ("" if wanted == VFIO else f" --driver {wanted}"),
        )
