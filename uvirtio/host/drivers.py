"""The names of the kernel drivers that matter here, and which driver is bound to a device."""

from __future__ import annotations

from typing import Final

from uvirtio.errors import NoSuchDevice, NotBound
from uvirtio.host import sysfs
from uvirtio.host.roots import Roots

VFIO: Final = "vfio-pci"
UIO: Final = "uio_pci_generic"
VDPA: Final = "vhost_vdpa"
PCI_STUB: Final = "pci-stub"
VP_VDPA: Final = "vp-vdpa"
"""Makes a vDPA device of a virtio PCI function."""
VIRTIO_PCI: Final = "virtio-pci"
VIRTIO_MMIO: Final = "virtio-mmio"
VIRTIO_VDPA: Final = "virtio_vdpa"
KMEM: Final = "kmem"
"""Makes System RAM of a dax device."""

USER_DRIVERS: Final = frozenset({VFIO, UIO, PCI_STUB, VDPA})
"""Drivers under which the kernel itself does not use the device."""
KERNEL_DRIVERS: Final = {"pci": VIRTIO_PCI, "platform": VIRTIO_MMIO, "vdpa": VIRTIO_VDPA}
"""The driver of each bus under which Linux uses a virtio device itself."""


def pci_driver(address: str, roots: Roots) -> str | None:
    """The driver bound to a PCI function; None where none is."""
    return sysfs.driver_of(sysfs.device("pci", address, roots))


def require_bound(address: str, wanted: str, roots: Roots) -> None:
    """Check that a PCI function is bound to the driver ``wanted``.

    Raises:
        NoSuchDevice: There is no such function.
        NotBound: Another driver is bound, or none.
    """
    if not sysfs.device("pci", address, roots).exists():
        raise NoSuchDevice(
            f"there is no PCI function {address}", expected="an address of uvirtio list", remedy="uvirtio list"
        )
    driver = pci_driver(address, roots)
    if driver != wanted:
        raise NotBound(
            f"{address} is not bound to {wanted}",
            seen=driver or "no driver",
            expected=wanted,
            remedy=f"uvirtio bind {address}" + ("" if wanted == VFIO else f" --driver {wanted}"),
        )
