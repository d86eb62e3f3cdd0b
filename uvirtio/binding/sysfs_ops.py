"""The writes to sysfs by which bind and restore change a device, each read back afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from uvirtio.binding.discover import DiscoveredDevice, find
from uvirtio.errors import Blocked, OperationFailed, PermissionLack
from uvirtio.host import privilege, sysfs
from uvirtio.host.lock import take_lock
from uvirtio.host.roots import Roots
from uvirtio.host.writer import Writer

TIMEOUT = 10.0
"""Seconds after which one write to sysfs counts as blocked."""
PROBES = 10
PROBE_INTERVAL = 0.5
"""A driver that was just loaded may need a moment: PROBES tries, PROBE_INTERVAL seconds apart."""


@contextmanager
def device_lock(address: str, roots: Roots) -> Iterator[None]:
    """Hold the lock of a device for the length of a ``with`` block.

    Args:
        address: The device's name that does not change with its driver (``DiscoveredDevice.key``).
        roots: Where ``/run`` is.

    Raises:
        Busy: Another process holds it.
        EnvironmentLack: The lock file cannot be created.
    """
    fd = take_lock(address, roots)
    try:
        yield
    finally:
        os.close(fd)


class SysfsOps:
    """Writes to the sysfs files of devices; each method writes, then checks the state that the kernel shows."""

    def __init__(self, roots: Roots, writer: Writer, sleep: Callable[[float], None], timeout: float) -> None:
        """Make the operations; nothing is written yet.

        Args:
            roots: Where ``/sys`` and ``/dev`` are.
            writer: What writes the files.
            sleep: Waits a number of seconds.
            timeout: Seconds after which one write counts as blocked.
        """
        self.roots, self.writer, self.sleep, self.timeout = roots, writer, sleep, timeout

    def device(self, bus: str, name: str) -> Path:
        """The directory of the device below ``bus/BUS/devices``."""
        return sysfs.device(bus, name, self.roots)

    def driver(self, bus: str, name: str) -> str | None:
        """The driver that the device is bound to; None: none."""
        return sysfs.driver_of(self.device(bus, name))

    def held_by(self, bus: str, driver: str | None) -> set[str]:
        """The names of the devices that are bound to ``driver``."""
        if driver is None:
            return set()
        home = sysfs.bus(bus, self.roots)
        return {name for name in sysfs.names(home / "drivers" / driver) if sysfs.exists(home / "devices" / name)}

    def _write(self, path: Path, text: str) -> None:
        try:
            self.writer.write(path, text, self.timeout)
        except Blocked:
            raise  # it is an OSError, too
        except OSError as error:
            if privilege.refused(error):
                raise PermissionLack(
                    f"{path} cannot be written",
                    seen=error.strerror,
                    expected="root, and a /sys that is not read-only",
                    remedy=privilege.remedy("run this as root", path=path, roots=self.roots),
                ) from error
            raise OperationFailed(
                f"writing {text!r} to {path} failed",
                seen=error.strerror,
                expected="the kernel takes it",
                remedy="see the kernel's log (dmesg)",
            ) from error

    def set_override(self, bus: str, name: str, driver: str | None) -> None:
        """Set the device's ``driver_override``; None clears it.

        Raises:
            Blocked: The write did not return in time.
            PermissionLack: This user may not write the file.
            OperationFailed: The write failed, or the file reads back another value.
        """
        directory = self.device(bus, name)
        self._write(directory / "driver_override", driver or "\n")
        if (seen := sysfs.override(directory)) != driver:
            raise OperationFailed(
                f"driver_override of {name} does not read back", seen=seen or "none", expected=driver or "none"
            )

    def unbind(self, bus: str, name: str, driver: str) -> None:
        """Unbind the device from ``driver``.

        Raises:
            Blocked: The write did not return in time.
            PermissionLack: This user may not write the file.
            OperationFailed: The write failed, or the device still has a driver.
        """
        self._write(sysfs.bus(bus, self.roots) / "drivers" / driver / "unbind", name)
        if (seen := self.driver(bus, name)) is not None:
            raise OperationFailed(f"{name} is not free after unbind", seen=f"driver {seen}", expected="no driver")

    def probe(self, bus: str, name: str, driver: str) -> None:
        """Have the kernel probe the device until ``driver`` is bound to it, PROBES times at most.

        Raises:
            Blocked: A write did not return in time.
            PermissionLack: This user may not write the file.
            OperationFailed: Another driver bound to it, or none did.
        """
        last = "the driver did not take it"
        for attempt in range(PROBES):
            if attempt:
                self.sleep(PROBE_INTERVAL)
            try:
                self._write(sysfs.bus(bus, self.roots) / "drivers_probe", name)
            except Blocked:
                raise
            except OperationFailed as error:
                last = str(error.seen)
            seen = self.driver(bus, name)
            if seen == driver:
                return
            if seen is not None:
                raise OperationFailed(f"another driver took {name}", seen=seen, expected=driver)
        raise OperationFailed(
            f"{driver} does not take {name}",
            seen=last,
            expected=f"a driver link to {driver}, within {PROBES} tries",
            remedy="see the kernel's log (dmesg); vfio-pci needs an IOMMU group",
        )

    def node(self, bus: str, name: str, iommu_group: int | None) -> Path | None:
        """The device node of the VFIO group or the vDPA device; None where it does not exist.

        Without ``iommu_group``, and on a kernel without groups (CONFIG_VFIO_GROUP=n): VFIO's node of the function.
        """
        if bus == "vdpa":
            made = sysfs.vdpa_node(self.device(bus, name))
            names = [] if made is None else [made]
        else:
            groups = () if iommu_group is None else (str(iommu_group), f"noiommu-{iommu_group}")
            names = [*(f"/dev/vfio/{group}" for group in groups), *sysfs.vfio_nodes(self.device(bus, name))]
        paths = (self.roots.dev / made.removeprefix("/dev/") for made in names)
        return next((path for path in paths if sysfs.exists(path)), None)

    def wait_for_node(self, found: DiscoveredDevice) -> Path:
        """Wait for the device node of the VFIO group or the vDPA device, at most PROBES times PROBE_INTERVAL s.

        Raises:
            OperationFailed: It does not appear.
        """
        group = found.iommu_group
        if group is None and found.bus == "pci":  # VFIO makes a group when it binds without an IOMMU
            group = find(found.key, self.roots).iommu_group
        for attempt in range(PROBES):
            if attempt:
                self.sleep(PROBE_INTERVAL)
            if (node := self.node(found.bus, found.name, group)) is not None:
                return node
        raise OperationFailed(
            f"the node of {found.address if group is None else f'group {group}'} does not appear",
            seen=f"nothing in {self.roots.dev}",
            expected="a device node from the kernel",
            remedy="is /dev a devtmpfs here?",
        )
