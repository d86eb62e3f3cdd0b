"""The devices that change hands together: the functions of an IOMMU group, the windows in one page."""

from __future__ import annotations

from uvirtio.binding.discover import DiscoveredDevice, pci_functions, scan
from uvirtio.host import addresses, sysfs
from uvirtio.host.roots import Roots


def group_members(found: DiscoveredDevice, roots: Roots) -> list[DiscoveredDevice] | None:
    """The other functions of the IOMMU group. Without bridges: VFIO accepts them with their own driver.

    Returns:
        The functions; None where the group or one of its functions cannot be read.
    """
    if found.iommu_group is None:
        return []
    names = sysfs.listed(sysfs.iommu_group_folder(found.iommu_group, roots))
    functions = list(pci_functions(roots, found.iommu_group))
    known = {function.name for function in functions}
    if names is None or found.name not in names or any(_hidden(name, roots) for name in {*names} - known):
        return None
    return [
        function
        for function in functions
        if function.name != found.name and (function.pci_class or 0) >> 8 != 0x0604
    ]


def _hidden(name: str, roots: Roots) -> bool:
    """Whether a PCI function is there and does not show what it is."""
    return addresses.is_pci(name) and sysfs.device("pci", name, roots).is_symlink()


def page_members(found: DiscoveredDevice, roots: Roots) -> list[DiscoveredDevice]:
    """The other virtio-mmio devices whose windows begin in the same 4 KiB page as this one."""
    if found.window is None:
        return []
    page = found.window[0] >> 12
    return [
        other
        for other in scan(roots)
        if other.window is not None and other.window[0] >> 12 == page and other.address != found.address
    ]
