"""The devices that change hands together: the functions of an IOMMU group, the windows in one page of the CPU."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

from uvirtio.binding.discover import DiscoveredDevice, pci_functions, platform_devices
from uvirtio.host import addresses, mmio, sysfs
from uvirtio.host.roots import Roots


class Mates:
    """A snapshot: each group is read once, and the windows are, when they are first asked for."""

    def __init__(self, roots: Roots) -> None:
        """Make an empty snapshot.

        Args:
            roots: Where ``/sys`` and ``/proc`` are.
        """
        self._roots = roots
        self._groups: dict[int, list[DiscoveredDevice] | None] = {}

    def of(self, found: DiscoveredDevice) -> list[DiscoveredDevice] | None:
        """The devices that change hands with this one; None where they cannot be read."""
        return self.group_members(found) if found.bus == "pci" else self.page_members(found)

    def group_members(self, found: DiscoveredDevice) -> list[DiscoveredDevice] | None:
        """The other functions of the IOMMU group. Without bridges: VFIO accepts them with their own driver.

        Returns:
            The functions; None where the group or one of its functions cannot be read.
        """
        group = found.iommu_group
        if group is None:
            return []
        if group not in self._groups:
            self._groups[group] = _functions(group, self._roots)
        functions = self._groups[group]
        if functions is None or all(function.name != found.name for function in functions):
            return None
        return [
            function
            for function in functions
            if function.name != found.name and (function.pci_class or 0) >> 8 != 0x0604
        ]

    @cached_property
    def _in_page(self) -> dict[int, list[DiscoveredDevice]]:
        """The virtio-mmio devices in each page of the CPU, by its number."""
        pages: dict[int, list[DiscoveredDevice]] = defaultdict(list)
        for device in platform_devices(self._roots):
            if device.window is not None:
                for page in mmio.pages(*device.window):
                    pages[page].append(device)
        return pages

    def page_members(self, found: DiscoveredDevice) -> list[DiscoveredDevice]:
        """The other virtio-mmio devices with registers in a page of the CPU that this one is in, by address."""
        if found.window is None:
            return []
        here = {one.address: one for page in mmio.pages(*found.window) for one in self._in_page.get(page, ())}
        here.pop(found.address, None)
        return sorted(here.values(), key=lambda one: one.address)


def _functions(group: int, roots: Roots) -> list[DiscoveredDevice] | None:
    """All functions of a group; None where the group or one of its functions cannot be read."""
    names = sysfs.listed(sysfs.iommu_group_folder(group, roots))
    functions = list(pci_functions(roots, group))
    known = {function.name for function in functions}
    if names is None or any(_hidden(name, roots) for name in {*names} - known):
        return None
    return functions


def _hidden(name: str, roots: Roots) -> bool:
    """Whether a PCI function is there and does not show what it is."""
    return addresses.is_pci(name) and not sysfs.gone(sysfs.device("pci", name, roots))
