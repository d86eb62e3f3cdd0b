"""The devices that change hands together: the functions of an IOMMU group, the windows in one page of the CPU."""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from itertools import accumulate

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
    def _windows(self) -> list[tuple[range, DiscoveredDevice]]:
        """The virtio-mmio devices with the pages of the CPU that each is in, by the first one."""
        found = ((mmio.pages(*one.window), one) for one in platform_devices(self._roots) if one.window is not None)
        return sorted(found, key=lambda pair: pair[0].start)

    @cached_property
    def _reach(self) -> list[int]:
        """Where the furthest of the windows up to each of these ends. Firmware may claim one of any length."""
        return [*accumulate((pages.stop for pages, _ in self._windows), max)]

    def page_members(self, found: DiscoveredDevice) -> list[DiscoveredDevice]:
        """The other virtio-mmio devices with registers in a page of the CPU that this one is in, by address."""
        if found.window is None:
            return []
        mine, here = mmio.pages(*found.window), []
        at = bisect_left(self._windows, mine.stop, key=lambda pair: pair[0].start)
        while at > 0 and self._reach[at - 1] > mine.start:
            at -= 1
            pages, one = self._windows[at]
            if pages.stop > mine.start and one.address != found.address:
                here.append(one)
        return sorted(here, key=lambda one: one.address)


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
