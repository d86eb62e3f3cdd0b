"""The start of QEMU: what it is given, as files and as a command line.

QEMU takes as long to start as all that talks to it takes to import. So this module imports little, and the rest of
the package (machine.py) is imported while QEMU starts.
"""

from __future__ import annotations

import os
from _socket import socketpair  # of CPython; the module socket takes longer to import than all else here
from collections.abc import Sequence

from uvirtio.backends.qemu import address as addresses
from uvirtio.backends.qemu.ivshmem import VECTORS, Bells
from uvirtio.backends.qemu.models import GIB, MODELS, WHY_LITTLE, Model, is_big_endian, is_mmio
from uvirtio.backends.qemu.process import (
    QemuProcess,
    check_socket_path,
    check_target,
    find_binary,
    halt_firmware,
    ram_file,
    target_of,
)
from uvirtio.backends.qemu.supply import Supply, images_of
from uvirtio.backends.resources import Resources
from uvirtio.errors import BadAddress, NotSupported, UsageError
from uvirtio.host import limits
from uvirtio.interfaces.values import DEFAULT_TIMEOUT, TIMEOUT_MAX
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.backends.qemu.memory import GuestMemory


class Launch:
    """A QEMU that was started, and what it has to be left with. A ``Machine`` takes it over."""

    def __init__(
        self,
        machine: str,
        devices: Sequence[str],
        *,
        ram: int | None = None,
        legacy: bool | None = None,
        iommu: str = "none",
        binary: str | None = None,
        qmp_path: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        arguments: Sequence[str] = (),
        drives: Sequence[str | os.PathLike[str] | None] = (),
        root_ports: int = 0,
    ) -> None:
        """Start QEMU; parameters and errors as for ``Machine``."""
        if not 0 < timeout <= TIMEOUT_MAX:
            expected = f"seconds, above 0, at most {TIMEOUT_MAX:g}"
            raise UsageError(f"timeout cannot be {timeout!r}", seen=timeout, expected=expected)
        for name, given in (("devices", devices), ("drives", drives), ("arguments", arguments)):
            if isinstance(given, str):  # a sequence, too: of letters
                raise UsageError(f"{name} is a list", seen=given, expected=f"{name}=[{given!r}]")
        if is_big_endian(machine):
            raise NotSupported(
                f"the machine {machine} is big-endian: {WHY_LITTLE}",
                seen=machine,
                expected=", ".join(MODELS),
                remedy="use q35: qemu:virtio-rng-pci",
            )
        if machine not in MODELS:
            raise NotSupported(
                f"the machine {machine} is not known here",
                seen=machine,
                expected=", ".join(MODELS),
                remedy="use q35: qemu:virtio-rng-pci",
            )
        self.model = MODELS[machine]
        if ram is None:
            ram = addresses.ram_of(machine)
        check_ram(ram, self.model)
        if iommu not in self.model.iommus:
            raise NotSupported(
                f"the machine {machine} has no IOMMU of this kind here",
                seen=f"iommu={iommu}",
                expected=" or ".join(f"iommu={kind}" for kind in self.model.iommus),
                remedy="q35 has iommu=intel; leave iommu= out elsewhere",
            )
        for device in devices:
            check_device(device, self.model, binary)
        if root_ports:
            from uvirtio.backends.qemu import hotplug

            hotplug.check_ports(self.model, root_ports, iommu)
        images = images_of(devices, drives)
        if qmp_path is not None:
            check_socket_path(qmp_path)
        self.program = find_binary(binary, self.model)
        if is_big_endian(target_of(self.program)):
            check_target(target_of(self.program), self.model, self.program)
        self.name = machine
        self.timeout = timeout
        self.root_ports = root_ports
        # A program of the caller's may be a script that has more to do.
        self._to_leave_in_order = binary is not None or any(image is not None for image in images)
        self.has_iommu = iommu != "none"
        # Closed in reverse: first the sockets, then QEMU, then what it used.
        self.resources = Resources()
        own = self.resources.callback
        try:
            with limits.told(f"the machine {machine} cannot be started"):
                self.supply = Supply(elsewhere=" ".join(arguments))
                own(self.supply.close)
                for device, image in zip(devices, images, strict=True):
                    self.supply.add(device, image)
                self._start(ram, legacy, qmp_path, arguments)
        except BaseException:
            self.resources.close()
            raise

    def _start(self, ram: int, legacy: bool | None, qmp_path: str | None, arguments: Sequence[str]) -> None:
        own = self.resources.callback
        self._ram, self._ram_file = ram, ram_file(ram)
        self._memory: GuestMemory | None = None
        own(self._close_memory)
        self.bells = Bells()
        own(self.bells.close)
        with Resources() as inherited:
            firmware = halt_firmware()
            inherited.callback(os.close, firmware)
            self.qtest, qtest_far = socketpair()
            inherited.callback(qtest_far.close)
            own(self.qtest.close)
            self.qmp, qmp_far = socketpair()
            inherited.callback(qmp_far.close)
            own(self.qmp.close)
            inherited.callback(self.bells.inherited.close)
            command = self._command(
                ram=ram,
                legacy=legacy,
                firmware=firmware,
                qtest=qtest_far.fileno(),
                qmp=qmp_far.fileno(),
                qmp_path=qmp_path,
                given=bool(arguments),
            )
            fds = [firmware, qtest_far.fileno(), qmp_far.fileno(), self.bells.inherited.fileno(), self._ram_file]
            fds += self.supply.files.values()
            fds += [peer.fileno() for peer in self.supply.peers.values()]
            for peer in self.supply.peers.values():
                inherited.callback(peer.started)
            self.process = QemuProcess(
                self.program,
                [*command, *arguments],
                fds,
                timeout=self.timeout,
                disposable=not (self._to_leave_in_order or arguments or qmp_path),
            )
            own(self.process.close)
            self.process.belongings = self.resources  # or a machine that is dropped could not end QEMU in order

    def map_memory(self) -> GuestMemory:
        """Map guest memory, which ends with this object; called once."""
        from uvirtio.backends.qemu.memory import GuestMemory  # here: QEMU starts without

        self._memory = GuestMemory(self._ram, self.model.ram, fd=self._ram_file)
        return self._memory

    def _close_memory(self) -> None:
        if self._memory is not None:
            self._memory.close()
        else:
            os.close(self._ram_file)

    def close(self) -> None:
        """End QEMU and free everything; idempotent."""
        self.resources.close()

    def _command(
        self,
        *,
        ram: int,
        legacy: bool | None,
        firmware: int,
        qtest: int,
        qmp: int,
        qmp_path: str | None,
        given: bool,
    ) -> list[str]:
        model = self.model
        machine = ",".join(
            word
            for word in (
                model.board or self.name,
                "memory-backend=ram",
                model.options,
                "" if given else model.spared,
            )
            if word
        )
        if ram > model.ram.split and model.split_option:
            machine += f",{model.split_option}={model.ram.split}"
        size = f"{ram >> 20}M"
        if self.supply.slots:
            # Space for aligning each piece to 1 GiB.
            most = ram + self.supply.hotplug + self.supply.slots * GIB
            size += f",slots={self.supply.slots},maxmem={most >> 20}M"
        command = ["-machine", machine, "-accel", "tcg", "-m", size, *model.arguments]
        if model.firmware:
            command += ["-bios", _path(firmware)]
        else:
            command += ["-global", "cpu.start-powered-off=on"]
        if legacy is not None:
            command += ["-global", f"virtio-mmio.force-legacy={'on' if legacy else 'off'}"]
        command += ["-no-user-config", "-nodefaults", "-display", "none"]
        command += ["-object", f"memory-backend-file,id=ram,size={ram},mem-path={_path(self._ram_file)},share=on"]
        command += ["-chardev", f"socket,id=qtest,fd={qtest}", "-object", "qtest,id=qtest,chardev=qtest,log=none"]
        command += ["-chardev", f"socket,id=qmp,fd={qmp}", "-qmp", "chardev:qmp"]
        if qmp_path is not None:
            place = qmp_path.replace(",", ",,")
            command += ["-chardev", f"socket,id=others,path={place},server=on,wait=off"]
            command += ["-qmp", "chardev:others"]
        if self.has_iommu:
            command += ["-device", "intel-iommu,intremap=off"]  # before what is to be behind it
        command += self.supply.arguments()
        if model.pci is not None:
            command += ["-chardev", f"socket,id=bells,fd={self.bells.inherited.fileno()}"]
            command += ["-device", f"ivshmem-doorbell,id={Bells.ID},chardev=bells,vectors={VECTORS}"]
            command += model.pci.native if self.root_ports else ()
            for number in range(1, self.root_ports + 1):  # last, so that the others keep their slots
                command += ["-device", f"pcie-root-port,id={port_name(number)},chassis={number},slot={number}"]
        return command


def check_ram(ram: int, model: Model) -> None:
    """Check the length of guest memory; BadAddress if the machine cannot have so much or so little."""
    most = model.ram.split if model.ram.high is None else addresses.RAM_MAXIMUM
    if not model.ram.least <= ram <= most:
        raise BadAddress(
            f"the machine {model.name} cannot have so {'little' if ram < model.ram.least else 'much'} memory",
            seen=f"{ram} bytes",
            expected=f"{model.ram.least} to {most} bytes",
            remedy=f"write ram={addresses.ram_of(model.name) >> 20}M, or leave it out",
        )


def check_device(device: str, model: Model, program: str | None) -> None:
    """Check a ``-device`` argument where QEMU's own message is unclear or missing; BadAddress if it is wrong."""
    if not device.startswith("virtio-"):
        raise BadAddress(
            f"{device!r} is not a virtio device that QEMU has",
            seen=device,
            expected="a -device argument that begins with virtio-",
            remedy=f"see the list: {program or model.binary} -device help",
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
            remedy=f"or use a machine that has it: {' or '.join(others)}",
        )


def port_name(number: int) -> str:
    """Return QEMU's name of the root port with this number, and of the bus behind it."""
    return f"uvirtio-port{number}"


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
