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
from uvirtio.backends.qemu.memory import GuestMemory
from uvirtio.backends.qemu.mmio import QemuMmioWindow, transport_of
from uvirtio.backends.qemu.models import GIB, MODELS, Model, is_mmio
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
from uvirtio.backends.qemu.vtd import Vtd
from uvirtio.errors import BadAddress, DeviceGone, DeviceTimeout, NotSupported, QemuFailed

QemuFunction = QemuPciFunction | QemuMmioWindow
"""A device of a machine: a PCI function, or a virtio-mmio window."""


class Machine:
    """One QEMU with a parked CPU; several drivers may share it, each with one of its ``functions``.

    ``machine`` is q35, pc, microvm (virtio-mmio alone) or virt (aarch64; both). ``devices`` are QEMU's own
    ``-device`` arguments (each begins with ``virtio-``); what they need is supplied. ``ram`` is in bytes.
    ``legacy``: virtio-mmio of version 1 (True, QEMU's own choice) or 2 (False). ``iommu`` is none, or intel
    (q35): then devices with ``iommu_platform=on`` are behind an IOMMU that this process programs. ``arguments``
    are passed on to QEMU as they are. ``timeout`` (seconds) holds for the start and for every answer of QEMU.
    Needs no privilege and no KVM.

    Raises QemuMissing, QemuFailed (with what QEMU said), NotSupported, BadAddress for an unusable device.
    """

    def __init__(
        self,
        machine: str = "q35",
        devices: Sequence[str] = (),
        *,
        ram: int = addresses.RAM_DEFAULT,
        legacy: bool | None = None,
        iommu: str = "none",
        binary: str | None = None,
        qmp_path: str | None = None,
        timeout: float = 5.0,
        arguments: Sequence[str] = (),
    ) -> None:
        if machine not in MODELS:
            raise NotSupported(
                f"the machine {machine} is not known here",
                seen=machine,
                expected=", ".join(MODELS),
                remedy="use q35: qemu:virtio-rng-pci",
            )
        self.model = MODELS[machine]
        if self.model.ram.high is None and ram > self.model.ram.split:
            raise BadAddress(
                f"the machine {machine} cannot have so much memory",
                seen=f"{ram} bytes",
                expected=f"at most {self.model.ram.split} bytes",
                remedy="write ram=512M, or leave it out",
            )
        if iommu not in self.model.iommus:
            raise NotSupported(
                f"the machine {machine} has no IOMMU of this kind here",
                seen=f"iommu={iommu}",
                expected=" or ".join(f"iommu={kind}" for kind in self.model.iommus),
                remedy="iommu=intel is there with q35; leave iommu= out elsewhere",
            )
        for device in devices:
            _check_device(device, self.model)
        if qmp_path is not None:
            check_socket_path(qmp_path)
        program = find_binary(binary or self.model.binary, self.model.package)
        self.name = machine
        self.timeout = timeout
        self._has_iommu = iommu != "none"
        self.iommu: Vtd | None = None
        """The IOMMU that stands before devices with ``iommu_platform=on``."""
        self.functions: list[QemuFunction] = []
        """In the order of ``devices``."""
        self._closing = False
        # Closed in reverse: first the sockets, then QEMU, then what it used.
        self._resources = ExitStack()
        try:
            self._supply = Supply()
            self._resources.callback(self._supply.close)
            for device in devices:
                self._supply.add(device)
            self._start(program, ram, legacy, qmp_path, arguments)
        except BaseException:
            self.close()
            raise

    def _start(
        self, program: str, ram: int, legacy: bool | None, qmp_path: str | None, arguments: Sequence[str]
    ) -> None:
        own = self._resources.callback
        self.memory = GuestMemory(ram, self.model.ram)
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
                legacy=legacy,
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
            if self._has_iommu:
                self.iommu = Vtd(self.qtest, self.memory)
            self._find_functions()
        except (DeviceGone, DeviceTimeout) as error:
            raise self._start_failed(error) from error

    def _command(
        self, *, ram: int, legacy: bool | None, firmware: int, qtest: int, qmp: int, qmp_path: str | None
    ) -> list[str]:
        model = self.model
        machine = ",".join(word for word in (self.name, "memory-backend=ram", model.options) if word)
        if ram > model.ram.split and model.split_option:
            machine += f",{model.split_option}={model.ram.split}"
        size = f"{ram >> 20}M"
        if self._supply.slots:
            # Room for aligning each piece to 1 GiB.
            most = ram + self._supply.hotplug + self._supply.slots * GIB
            size += f",slots={self._supply.slots},maxmem={most >> 20}M"
        command = ["-machine", machine, "-accel", "tcg", "-m", size, *model.arguments]
        if model.firmware:
            command += ["-bios", _path(firmware)]
        if legacy is not None:
            command += ["-global", f"virtio-mmio.force-legacy={'on' if legacy else 'off'}"]
        command += ["-no-user-config", "-nodefaults", "-display", "none"]
        command += ["-object", f"memory-backend-file,id=ram,size={ram},mem-path={_path(self.memory.fd)},share=on"]
        command += ["-chardev", f"socket,id=qtest,fd={qtest}", "-object", "qtest,id=qtest,chardev=qtest,log=none"]
        command += ["-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"]
        if qmp_path is not None:
            place = qmp_path.replace(",", ",,")
            command += ["-chardev", f"socket,id=others,path={place},server=on,wait=off"]
            command += ["-mon", "chardev=others,mode=control"]
        if self._has_iommu:
            command += ["-device", "intel-iommu,intremap=off"]  # before what is to be behind it
        command += self._supply.arguments
        for _, device in self._supply.devices:
            command += ["-device", device]
        if model.pci is not None:
            command += ["-chardev", f"socket,id=bells,fd={self.bells.inherited.fileno()}"]
            command += ["-device", f"ivshmem-doorbell,id={Bells.ID},chardev=bells,vectors={VECTORS}"]
        return command

    def _find_functions(self) -> None:
        self.qtest.intercept(self._controller())
        if self.model.pci is not None:
            self._bridge = HostBridge(self.qtest, self.model.pci)
            self._places = self._functions_of_qemu()
        for ident, device in self._supply.devices:
            address = f"qemu:{self.name}/{device}"
            if is_mmio(device):
                assert self.model.mmio is not None
                transport = transport_of(self.qmp_client, ident, self.model.mmio)
                window = QemuMmioWindow(self, self.model.mmio, transport, ident=ident, address=address)
                self.functions.append(window)
                continue
            if ident not in self._places:
                raise QemuFailed(
                    f"{device} did not become a PCI function",
                    seen=f"functions {', '.join(sorted(self._places))} on the root bus",
                    expected=f"one with the id {ident}",
                    remedy="use the -pci form of the device",
                )
            access = PciAccess(self._bridge, self._places[ident])
            self.functions.append(QemuPciFunction(self, access, ident=ident, address=address))

    def _controller(self) -> str:
        """The interrupt controller by its name, or, where it has none, by its place in QEMU's tree."""
        top = "/machine/unattached"
        for child in self.qmp_client.execute("qom-list", path=top):
            if child["type"] == f"child<{self.model.controller}>":
                return f"{top}/{child['name']}"
        return self.model.controller

    def _functions_of_qemu(self) -> dict[str, int]:
        """The devfn of each function on the root bus that has an id."""
        places: dict[str, int] = {}
        for bus in self.qmp_client.execute("query-pci"):
            for found in bus["devices"]:
                if found["bus"] == 0 and found.get("qdev_id"):
                    places[found["qdev_id"]] = found["slot"] << 3 | found["function"]
        return places

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
            remedy=f"change the option that QEMU names; those of a device: {self.model.binary} -device NAME,help",
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
            self.bells.connect(PciAccess(self._bridge, self._places[Bells.ID]), self.timeout)

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


def open_address(address: str, timeout: float = 5.0) -> QemuFunction:
    """Start the machine of a ``qemu:`` address; it ends when the function is closed.

    Raises BadAddress, QemuMissing, QemuFailed, NotSupported.
    """
    parsed = addresses.parse(address)
    machine = Machine(
        parsed.machine,
        [parsed.device],
        ram=parsed.ram,
        legacy=parsed.legacy,
        iommu=parsed.iommu,
        binary=parsed.binary,
        qmp_path=parsed.qmp,
        timeout=timeout,
    )
    function = machine.functions[0]
    function.address = address
    function.own_machine()
    return function


def _check_device(device: str, model: Model) -> None:
    """Say what QEMU would say in its own words, or not at all. Raises BadAddress."""
    if not device.startswith("virtio-"):
        raise BadAddress(
            f"{device!r} is no virtio device of QEMU's",
            seen=device,
            expected="a -device argument that begins with virtio-",
            remedy=f"see the list: {model.binary} -device help",
        )
    if not model.fits(device):
        seen, fitting = (
            ("virtio-mmio", "PCI device, which ends in -pci")
            if is_mmio(device)
            else (
                "PCI",
                "virtio-mmio device, which ends in -device",
            )
        )
        others = [name for name, other in MODELS.items() if other.fits(device)]
        raise BadAddress(
            f"the machine {model.name} has no bus for {device.partition(',')[0]}",
            seen=f"a {seen} device",
            expected=f"a {fitting}",
            remedy=f"or take a machine that has it: {' or '.join(others)}",
        )


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
