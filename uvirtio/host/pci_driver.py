"""Which driver holds a PCI function, as sysfs tells: what every back end for PCI asks first."""

from __future__ import annotations

from uvirtio.errors import NoSuchDevice, NotBound
from uvirtio.host.roots import Roots

VFIO = "vfio-pci"
UIO = "uio_pci_generic"


def driver_of(address: str, roots: Roots) -> str | None:
    """The driver bound to a PCI function; None: none."""
    try:
        return (roots.sys / "bus" / "pci" / "devices" / address / "driver").readlink().name
    except OSError:
        return None


def require_bound(address: str, wanted: str, roots: Roots) -> None:
    """Raise NoSuchDevice, or NotBound where another driver than ``wanted`` holds the function."""
    if not (roots.sys / "bus" / "pci" / "devices" / address).exists():
        raise NoSuchDevice(
            f"there is no PCI function {address}", expected="an address of uvirtio list", remedy="uvirtio list"
        )
    driver = driver_of(address, roots)
    if driver != wanted:
        raise NotBound(
            f"{address} is not bound to {wanted}",
            seen=driver or "no driver",
            expected=wanted,
            remedy=f"uvirtio bind {address}" + ("" if wanted == VFIO else f" --driver {wanted}"),
        )
