"""A QEMU machine without a guest: real device models, and this process in the place of the operating system."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from uvirtio.backends.qemu import address as addresses
from uvirtio.backends.qemu.function import QemuPciFunction
from uvirtio.backends.qemu.ivshmem import VECTORS, Bells
from uvirtio.backends.qemu.memory import LOW_LIMIT, GuestMemory
from uvirtio.backends.qemu.pci import HostBridge, PciAccess
from uvirtio.backends.qemu.process import (
    QemuProcess,
    check_socket_path,
    check_version,
    find_binary,
    halt_firmware,
)
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.backends.qemu.qtest import Qtest
from uvirtio.backends.qemu.supply import Supply
from uvirtio.errors import BadAddress, DeviceGone, DeviceTimeout, NotSupported, QemuFailed

PCI_MACHINES = ("q35", "pc")
_GIB = 1 << 30


class Machine:
    """One QEMU with a parked CPU; several drivers may share it, each with one of its ``functions``.

    ``devices`` are QEMU's own ``-device`` arguments (each begins with ``virtio-``); what they need is supplied.
    ``ram`` is in bytes. ``arguments`` are passed on to QEMU as they are. ``timeout`` (seconds) holds for the
    start and for every answer of QEMU. Needs no privilege and no KVM.

    Raises QemuMissing, QemuFailed (with what QEMU said), NotSupported, BadAddress for an unusable device.
    """

    def __init__(
        self,
        machine: str = "q35",
        devices: Sequence[str] = (),
        *,
        ram: int = addresses.RAM_DEFAULT,
        binary: str | None = None,
        qmp_path: str | None = None,
        timeout: float = 5.0,
        arguments: Sequence[str] = (),
    ) -> None:
        if machine not in PCI_MACHINES:
            raise NotSupported(
                f"the machine {machine} has virtio-mmio devices, which come later",
                seen=machine,
                expected=" or ".join(PCI_MACHINES),
                remedy="use a PCI device on q35: qemu:virtio-rng-pci",
            )
        for device in devices:
            if not device.startswith("virtio-"):
                raise BadAddress(
                    f"{device!r} is no virtio device of QEMU's",
                    seen=device,
                    expected="a -device argument that begins with virtio-",
                    remedy="see the list: qemu-system-x86_64 -device help",
                )
        if qmp_path is not None:
            check_socket_path(qmp_path)
        program = find_binary(binary)
        self.name = machine
        self.timeout = timeout
        self.functions: list[QemuPciFunction] = []
        """In the order of ``devices``."""
        self._closing = False
        # Closed in reverse: first the sockets, then QEMU, then what it used.
        self._resources = ExitStack()
        try:
            self._supply = Supply()
            self._resources.callback(self._supply.close)
            for device in devices:
                self._supply.add(device)
            self._start(program, ram, qmp_path, arguments)
        except BaseException:
            self.close()
            raise

    def _start(self, program: str, ram: int, qmp_path: str | None, arguments: Sequence[str]) -> None:
        own = self._resources.callback
        self.memory = GuestMemory(ram)
        own(self.memory.close)
        self.bells = Bells()
        own(self.bells.close)
        with ExitStack() as inherited:
            firmware = halt_firmware()
            inherited.callback(os.close, firmware)
            qtest_socket, qtest_far = socket.socketpair()
            inherited.callback(qtest_far.close)
            own(qtest_socket.close)
            qmp_socket, qmp_far = socket.socketpair()
            inherited.callback(qmp_far.close)
            own(qmp_socket.close)
            inherited.callback(self.bells.inherited.close)
            command = self._command(
                ram=ram,
                firmware=firmware,
                qtest=qtest_far.fileno(),
                qmp=qmp_far.fileno(),
                qmp_path=qmp_path,
            )
            fds = [firmware, qtest_far.fileno(), qmp_far.fileno(), self.bells.inherited.fileno(), self.memory.fd]
            fds += self._supply.files.values()
            self.process = QemuProcess(program, [*command, *arguments], fds, timeout=self.timeout)
            own(self.process.close)
        self.qmp_client = Qmp(qmp_socket, timeout=self.timeout, why=self.process.autopsy)
        own(self.qmp_client.close)
        self.qtest = Qtest(qtest_socket, timeout=self.timeout, why=self.process.autopsy)
        own(self.qtest.close)
        try:
            self.qmp_client.greet(self.timeout)
            check_version(self.qmp_client.version)
            self._find_functions()
        except (DeviceGone, DeviceTimeout) as error:
            raise self._start_failed(error) from error

    def _command(self, *, ram: int, firmware: int, qtest: int, qmp: int, qmp_path: str | None) -> list[str]:
        machine = f"{self.name},memory-backend=ram,pit=off"
        if ram > LOW_LIMIT:
            machine += f",max-ram-below-4g={LOW_LIMIT}"
        size = f"{ram >> 20}M"
        if self._supply.slots:
            # Room for aligning each piece to 1 GiB.
            most = ram + self._supply.hotplug + self._supply.slots * _GIB
            size += f",slots={self._supply.slots},maxmem={most >> 20}M"
        command = ["-machine", machine, "-accel", "tcg", "-m", size, "-bios", f"/proc/self/fd/{firmware}"]
        command += ["-no-user-config", "-nodefaults", "-display", "none"]
        command += ["-object", f"memory-backend-file,id=ram,size={ram},mem-path={_path(self.memory.fd)},share=on"]
        command += ["-chardev", f"socket,id=qtest,fd={qtest}", "-object", "qtest,id=qtest,chardev=qtest,log=none"]
        command += ["-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"]
        if qmp_path is not None:
            place = qmp_path.replace(",", ",,")
            command += ["-chardev", f"socket,id=others,path={place},server=on,wait=off"]
            command += ["-mon", "chardev=others,mode=control"]
        command += self._supply.arguments
        for _, device in self._supply.devices:
            command += ["-device", device]
        command += ["-chardev", f"socket,id=bells,fd={self.bells.inherited.fileno()}"]
        command += ["-device", f"ivshmem-doorbell,id={Bells.ID},chardev=bells,vectors={VECTORS}"]
        return command

    def _find_functions(self) -> None:
        self.qtest.intercept_ioapic()
        bridge = HostBridge(self.qtest, self.name)
        places: dict[str, int] = {}
        for bus in self.qmp_client.execute("query-pci"):
            for found in bus["devices"]:
                if found["bus"] == 0 and found.get("qdev_id"):
                    places[found["qdev_id"]] = found["slot"] << 3 | found["function"]
        for ident, device in self._supply.devices:
            if ident not in places:
                raise QemuFailed(
                    f"{device} did not become a PCI function",
                    seen=f"functions {', '.join(sorted(places))} on the root bus",
                    expected=f"one with the id {ident}",
                    remedy="use the -pci form of the device",
                )
            access = PciAccess(bridge, places[ident])
            self.functions.append(QemuPciFunction(self, access, ident=ident, address=f"qemu:{self.name}/{device}"))
        self._bridge = bridge
        self._bells_devfn = places[Bells.ID]

    def _start_failed(self, error: Exception) -> QemuFailed:
        """Why there is no machine: an old QEMU does not know all our options, so say that first."""
        seen = self.process.autopsy()
        version = self.process.version()
        if version:
            check_version(version)
        return QemuFailed(
            "QEMU did not start" if self.process.exited else f"QEMU did not start in {self.timeout:g} s",
            seen=seen,
            expected="a QEMU that takes these devices and options",
            remedy="correct the device; its options: qemu-system-x86_64 -device NAME,help",
        )

    @property
    def pid(self) -> int:
        """The process id of QEMU."""
        return self.process.pid

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version."""
        return self.qmp_client.version

    @property
    def files(self) -> dict[str, int]:
        """The memfds that were supplied to devices (disks, memory to plug), by the device's id."""
        return self._supply.files

    def connect_bells(self) -> None:
        """Connect the eventfds, at their first use."""
        if not self.bells.connected:
            self.bells.connect(PciAccess(self._bridge, self._bells_devfn), self.timeout)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its result. Raises QemuFailed when QEMU refuses it."""
        return self.qmp_client.execute(command, **arguments)

    def qmp_events(self, name: str, timeout: float = 0.0) -> list[dict[str, Any]]:
        """Take the QMP events of this name, waiting up to ``timeout`` seconds for the first; maybe none."""
        return self.qmp_client.events(name, timeout)

    def close(self) -> None:
        """End QEMU and free everything; idempotent, from any thread."""
        if self._closing:
            return
        self._closing = True
        self._resources.close()
        for function in self.functions:
            function.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_address(address: str, timeout: float = 5.0) -> QemuPciFunction:
    """Start the machine of a ``qemu:`` address; it ends when the function is closed.

    Raises BadAddress, QemuMissing, QemuFailed, NotSupported.
    """
    parsed = addresses.parse(address)
    if parsed.iommu != "none":
        raise NotSupported(
            f"a virtual IOMMU ({parsed.iommu}) comes later",
            seen=f"iommu={parsed.iommu}",
            expected="iommu=none",
            remedy="leave iommu= out; with iommu_platform=on,disable-legacy=on addresses are not translated",
        )
    machine = Machine(
        parsed.machine,
        [parsed.device],
        ram=parsed.ram,
        binary=parsed.binary,
        qmp_path=parsed.qmp,
        timeout=timeout,
    )
    function = machine.functions[0]
    function.address = address
    function.own_machine()
    return function


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
