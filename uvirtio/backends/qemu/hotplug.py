"""Plugging a device into a running machine, and unplugging it: the host's part over QMP, and the guest's.

A guest turns the power of a root port's slot on and off (PCI Express, 6.7), or, on the machine pc, ejects a device
of the root bus through ACPI (docs/specs/acpi_pci_hotplug.txt of QEMU). Nothing runs in the guest here, so this
process does it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from uvirtio.backends.qemu.models import Model, is_mmio
from uvirtio.backends.qemu.ports import RootPort
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.backends.qemu.qtest import Qtest
from uvirtio.backends.qemu.supply import Part
from uvirtio.errors import DeviceTimeout, NotSupported, QemuFailed, UvirtioError

PORTS_MOST = 16
"""Maximum number of root ports of one machine."""


def check_ports(model: Model, count: int, iommu: str) -> None:
    """Check that a machine can have root ports.

    Args:
        model: The kind of machine.
        count: Number of root ports.
        iommu: The IOMMU of the machine.

    Raises:
        NotSupported: It has no PCI Express, or cannot have so many ports.
    """
    if model.pci is None or model.pci.ecam is None:
        raise NotSupported(
            f"the machine {model.name} has no PCI Express",
            seen=f"root_ports={count}",
            expected="a machine with PCI Express: q35, virt, riscv64 or loongarch64",
            remedy="on pc devices are plugged into the root bus: leave root_ports out",
        )
    if iommu != "none" or not 1 <= count <= PORTS_MOST:
        raise NotSupported(
            "these root ports are not available",
            seen=f"root_ports={count}, iommu={iommu}",
            expected=f"1 to {PORTS_MOST}, without an IOMMU",
            remedy="use a second machine",
        )


class Sockets:
    """The places where devices can be plugged into one machine, and which are in use."""

    def __init__(self, model: Model, ports: Sequence[RootPort], qmp: Qmp, qtest: Qtest, timeout: float) -> None:
        """Set up the places, all of them free.

        Args:
            model: The kind of machine.
            ports: Its root ports.
            qmp: Its QMP connection.
            qtest: Its qtest connection.
            timeout: Seconds that QEMU has for a removal.
        """
        self._model = model
        self._ports = ports
        self._used: dict[str, RootPort] = {}  # by the id of the device
        self._qmp = qmp
        self._qtest = qtest
        self._timeout = timeout

    def free(self, device: str) -> RootPort | None:
        """Return a free port for a device; None: it goes to the root bus.

        Raises:
            NotSupported: No port is free, or the device cannot be plugged.
        """
        pci = self._model.pci
        if pci is None or is_mmio(device):
            raise NotSupported(
                f"{device.partition(',')[0]} cannot be plugged into a machine that runs",
                seen=f"machine {self._model.name}",
                expected="a PCI device, and a machine that has PCI",
                remedy="use the -pci form of the device, and q35, pc or virt",
            )
        if pci.ejection is not None:
            return None
        taken = self._used.values()
        free = next((port for port in self._ports if port not in taken), None)
        if free is None:
            raise NotSupported(
                "this machine has no free socket",
                seen=f"{len(self._ports)} root ports, all of them in use" if self._ports else "no root ports",
                expected="a free root port",
                remedy=f"Machine({self._model.name!r}, ..., root_ports={len(self._ports) + 1})",
            )
        return free

    def plug(self, part: Part, fd: int | None, port: RootPort | None) -> None:
        """Plug a device in.

        Args:
            part: The device with what it needs.
            fd: The memfd that is supplied to it; None: there is none.
            port: What ``free`` returned.

        Raises:
            NotSupported: The device brings what QEMU makes at its start alone, such as memory.
            QemuFailed: QEMU refuses the device.
        """
        if part.at_start:
            raise NotSupported(
                f"{part.device.partition(',')[0]} cannot be plugged into a machine that runs",
                seen=f"a device that brings {part.at_start}",
                expected=f"{part.at_start} that is known when QEMU starts",
                remedy="give the machine the device at its start",
            )
        root = self._model.pci.name if self._model.pci is not None else ""
        _plug(self._qmp, part, fd, root if port is None else port.id)
        if port is not None:
            self._used[part.id] = port
            port.power(True)

    def check(self, ident: str, address: str) -> None:
        """Check that a device can be unplugged.

        Args:
            ident: QEMU's name of the device.
            address: Its address, for the error.

        Raises:
            NotSupported: It cannot be unplugged from where it is.
        """
        pci = self._model.pci
        if ident not in self._used and (pci is None or pci.ejection is None):
            raise NotSupported(
                f"{address} cannot be unplugged",
                seen=f"a device that the machine {self._model.name} has had from its start",
                expected="one that was plugged in, or a machine of the kind pc",
                remedy="plug it in first: Machine(..., root_ports=1).plug(DEVICE)",
            )

    def take_out(self, ident: str, devfn: int) -> None:
        """Unplug a device: the host requests it back, and the guest releases it.

        Args:
            ident: QEMU's name of the device.
            devfn: Its place on the root bus, slot * 8 + function.

        Raises:
            QemuFailed: QEMU refuses.
            DeviceTimeout: QEMU does not report its removal.
        """
        port, pci = self._used.get(ident), self._model.pci
        self._qmp.execute("device_del", id=ident)
        if port is not None:
            port.power(False)
        elif pci is not None and pci.ejection is not None:
            self._qtest.port_out(4, pci.ejection.select, 0)
            self._qtest.port_out(4, pci.ejection.eject, 1 << (devfn >> 3))
        _await_removal(self._qmp, ident, self._timeout)
        self._used.pop(ident, None)


def _plug(qmp: Qmp, part: Part, fd: int | None, bus: str) -> None:
    """Make a device, with what it needs, on a bus. On QemuFailed nothing of it is left."""
    try:
        path = "" if fd is None else _hand_over(qmp, fd, part.id)
        for one in part.objects:
            more = {"mem-path": path} if one["qom-type"] == "memory-backend-file" else {}
            qmp.execute("object-add", **one, **more)
        if part.disk:
            qmp.execute("blockdev-add", **_disk(part, path))
        if part.netdev:
            qmp.execute("netdev_add", type="user", id=part.netdev, restrict=True)
        # The monitor for people accepts -device arguments; QMP needs every property in its own JSON type.
        for device in (f"{part.device},bus={bus}", *part.behind):
            quoted = device.replace("\\", "\\\\").replace('"', '\\"')
            answer = str(
                qmp.execute("human-monitor-command", **{"command-line": f'device_add "{quoted}"'})
            ).strip()
            if answer:
                raise QemuFailed(
                    f"QEMU refused to plug {device.partition(',')[0]} in",
                    seen=answer.removeprefix("Error: "),
                    expected="a device that can be plugged in",
                    remedy="correct the device; its options: -device NAME,help",
                )
    except BaseException:
        withdraw(qmp, part)
        raise


def _hand_over(qmp: Qmp, fd: int, ident: str) -> str:
    """Pass a descriptor to QEMU; returns the path by which QEMU opens it."""
    answer = qmp.execute_with([fd], "add-fd", opaque=ident)
    return f"/proc/self/fd/{answer['fd']}"


def _disk(part: Part, path: str) -> dict[str, Any]:
    image = part.image
    file = {"driver": "file", "filename": path, "locking": "off"} if image is None else {"driver": "file"}
    if image is not None:
        file["filename"] = str(image.path)
    return {
        "driver": "raw",
        "node-name": part.disk,
        "file": file,
        "read-only": image is not None and image.read_only,
    }


def withdraw(qmp: Qmp, part: Part) -> None:
    """Remove what was supplied to a device that does not exist any more, as far as it is there."""
    commands: list[tuple[str, dict[str, Any]]] = []
    if part.disk:
        commands.append(("blockdev-del", {"node-name": part.disk}))
    if part.netdev:
        commands.append(("netdev_del", {"id": part.netdev}))
    commands += [("object-del", {"id": one["id"]}) for one in part.objects]
    with suppress(UvirtioError):
        commands += [
            ("remove-fd", {"fdset-id": one["fdset-id"]})
            for one in qmp.execute("query-fdsets")
            if any(fd.get("opaque") == part.id for fd in one["fds"])
        ]
    for command, arguments in commands:
        with suppress(UvirtioError):
            qmp.execute(command, **arguments)


def _await_removal(qmp: Qmp, ident: str, timeout: float) -> None:
    """Wait until QEMU reports that the device is removed (DEVICE_DELETED); DeviceTimeout where it does not."""
    deadline = time.monotonic() + timeout
    while ident not in qmp.deleted:
        qmp.await_message(deadline)
        if ident not in qmp.deleted and time.monotonic() >= deadline:
            raise DeviceTimeout(
                f"QEMU did not remove the device {ident}",
                seen=f"no DEVICE_DELETED within {timeout:g} s",
                expected="its end",
                remedy="close the machine",
            )
