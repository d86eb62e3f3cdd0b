"""The few things that bind and restore do to a device through sysfs, each verified after the write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from uvirtio.binding.discover import Found, find
from uvirtio.errors import Blocked, OperationFailed, PermissionLack
from uvirtio.host import sysfs
from uvirtio.host.lock import take_lock
from uvirtio.host.roots import Roots
from uvirtio.host.writer import Writer

TIMEOUT = 10.0
"""Seconds that one write to sysfs may take before it is called blocked."""
PROBES = 10
PROBE_INTERVAL = 0.5
"""A driver that was just loaded may need a moment: so many tries, so far apart (seconds)."""


@contextmanager
def device_lock(address: str, roots: Roots) -> Iterator[None]:
    """Hold the lock of a device.

    Raises:
        Busy: Another process has it.
        EnvironmentLack: The lock file cannot be made.
    """
    fd = take_lock(address, roots)
    try:
        yield
    finally:
        os.close(fd)


class SysfsOps:
    """What is done to sysfs for one device; each method writes, then checks what the kernel made of it."""

    def __init__(self, roots: Roots, writer: Writer, sleep: Callable[[float], None], timeout: float) -> None:
        self.roots, self.writer, self.sleep, self.timeout = roots, writer, sleep, timeout

    def device(self, bus: str, name: str) -> Path:
        return sysfs.device(bus, name, self.roots)

    def driver(self, bus: str, name: str) -> str | None:
        return sysfs.driver_of(self.device(bus, name))

    def held_by(self, bus: str, driver: str | None) -> set[str]:
        """The devices that a driver has."""
        if driver is None:
            return set()
        home = sysfs.bus(bus, self.roots)
        return {name for name in sysfs.names(home / "drivers" / driver) if (home / "devices" / name).exists()}

    def _write(self, path: Path, text: str) -> None:
        try:
            self.writer.write(path, text, self.timeout)
        except Blocked:
            raise  # an OSError too
        except PermissionError as error:
            raise PermissionLack(f"{path} cannot be written", seen=error.strerror, expected="root") from error
        except OSError as error:
            raise OperationFailed(
                f"writing {text!r} to {path} failed",
                seen=error.strerror,
                expected="the kernel takes it",
                remedy="see the kernel's log (dmesg)",
            ) from error

    def set_override(self, bus: str, name: str, driver: str | None) -> None:
        directory = self.device(bus, name)
        self._write(directory / "driver_override", driver or "\n")
        if (seen := sysfs.override(directory)) != driver:
            raise OperationFailed(
                f"driver_override of {name} does not read back", seen=seen or "none", expected=driver or "none"
            )

    def unbind(self, bus: str, name: str, driver: str) -> None:
        self._write(sysfs.bus(bus, self.roots) / "drivers" / driver / "unbind", name)
        if (seen := self.driver(bus, name)) is not None:
            raise OperationFailed(f"{name} is not free after unbind", seen=f"driver {seen}", expected="no driver")

    def probe(self, bus: str, name: str, driver: str) -> None:
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
        """The node below /dev of the VFIO group or the vDPA device, if it is there."""
        if bus == "vdpa":
            made = sysfs.vdpa_node(self.device(bus, name))
            paths = [] if made is None else [self.roots.dev / made.removeprefix("/dev/")]
        elif iommu_group is None:
            paths = []
        else:
            paths = [self.roots.dev / "vfio" / group for group in (str(iommu_group), f"noiommu-{iommu_group}")]
        return next((path for path in paths if path.exists()), None)

    def wait_for_node(self, found: Found) -> Path:
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
