"""A QEMU machine without a guest: real device models, and this process in place of the operating system."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, partial

from uvirtio.backends.qemu import address as addresses
from uvirtio.backends.qemu.function import QemuPciFunction
from uvirtio.backends.qemu.ivshmem import Bells
from uvirtio.backends.qemu.launch import Launch, check_device, port_name
from uvirtio.backends.qemu.models import is_mmio
from uvirtio.backends.qemu.pci import HostBridge, PciAccess
from uvirtio.backends.qemu.process import (
    check_target,
    check_version,
)
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.backends.qemu.qtest import Qtest
from uvirtio.backends.qemu.supply import Part, image_at, take_apart
from uvirtio.errors import (
    Closed,
    DeviceGone,
    DeviceTimeout,
    QemuFailed,
    UsageError,
    UvirtioError,
)
from uvirtio.host import limits
from uvirtio.interfaces.values import DEFAULT_TIMEOUT
from uvirtio.memory.forks import StaysHere, check_process
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self

    from uvirtio.backends.qemu import ports
    from uvirtio.backends.qemu.hotplug import Sockets
    from uvirtio.backends.qemu.mmio import QemuMmioWindow
    from uvirtio.backends.qemu.pci import Bridge
    from uvirtio.backends.qemu.peer import Peer
    from uvirtio.backends.qemu.vtd import Vtd
    from uvirtio.memory.unclosed import Closable

    QemuFunction = QemuPciFunction | QemuMmioWindow

_UNATTACHED = "/machine/unattached"
"""Where QEMU's object tree has what the board itself consists of."""


class Machine(StaysHere):
    """One QEMU with a parked CPU and several virtio devices, for tests and experiments; a context manager.

    It needs no privilege and no KVM. Each of its ``functions`` takes one driver at a time; several drivers may run
    side by side. QEMU ends with the machine, and with this process, however that ends.
    """

    def __init__(
        self,
        machine: str = "q35",
        devices: Sequence[str] = (),
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
        """Start QEMU.

        Args:
            machine: ``q35``, ``pc``, ``microvm`` (virtio-mmio alone), ``virt`` (aarch64; PCI and virtio-mmio),
                ``riscv64`` (the same buses) or ``loongarch64`` (PCI).
            devices: QEMU's own ``-device`` arguments, each of which begins with ``virtio-``. What a device needs
                in addition (a disk of 64 MiB, memory to plug, ...) is supplied unless the argument names its own.
            ram: Guest memory, in bytes; None: 512 MiB, or 1 GiB on loongarch64, where QEMU takes no less.
            legacy: virtio-mmio of version 1 (True, QEMU's default) or 2 (False).
            iommu: ``none``, or ``intel`` (q35): then devices with ``iommu_platform=on`` are behind an IOMMU that
                this process programs.
            binary: The program, by name or path; None: the machine's usual one, from PATH.
            qmp_path: Where QEMU makes a QMP socket for other programs.
            timeout: Seconds that QEMU has for its start, and for each response.
            arguments: Arguments that are passed on to QEMU as they are.
            drives: Raw disk images, for the virtio-blk and virtio-scsi devices in their order; None among them, or
                none at all: a disk is supplied. An image that this user may not write is read-only.
            root_ports: Number of PCI Express root ports of the machine, each a socket for ``plug``. The machine pc
                has no PCI Express, and needs none.

        Raises:
            QemuMissing: QEMU is not installed.
            QemuFailed: QEMU did not start; ``seen`` has what it said.
            NotSupported: There is no such machine here, or it has no such IOMMU or ports.
            UsageError: A device, an image or ``timeout`` (above 0, at most 1e8) cannot be used; BadAddress says
                what is wrong with a device.
        """
        launch = Launch(
            machine,
            devices,
            ram=ram,
            legacy=legacy,
            iommu=iommu,
            binary=binary,
            qmp_path=qmp_path,
            timeout=timeout,
            arguments=arguments,
            drives=drives,
            root_ports=root_ports,
        )
        self._take_over(launch)

    def _take_over(self, launch: Launch) -> None:
        self.name, self._owner = launch.name, os.getpid()
        self.model = launch.model
        self.timeout = launch.timeout
        self.memory = launch.map_memory()
        self.bells = launch.bells
        self.process = launch.process
        self._program = launch.program
        self._supply = launch.supply
        self.iommu: Vtd | None = None
        """The IOMMU in front of devices with ``iommu_platform=on``."""

        self.functions: list[QemuFunction] = []
        """One for each device: those of ``devices`` in their order, then those plugged in."""

        self._unplugged: list[QemuFunction] = []
        self._opened: dict[str, Closable] = {}
        """The Device that was made of a function last, by its id; ``uvirtio.qemu`` sets it."""

        self._closing = False
        self._resets = 0
        """Resets of the machine after which it was set up."""

        self._resources = launch.resources
        try:
            with limits.told(f"the machine {self.name} cannot be started"):
                self._connect(launch)
        except BaseException:
            self.close()
            raise

    def _connect(self, launch: Launch) -> None:
        own = self._resources.callback
        self.qmp_client = Qmp(launch.qmp, timeout=self.timeout, why=self.process.autopsy)
        own(self.qmp_client.close)
        self.qtest = Qtest(launch.qtest, timeout=self.timeout, why=self.process.autopsy)
        own(self.qtest.close)
        try:
            asked: list[tuple[str, dict[str, Any]]] = [("query-target", {}), ("qom-list", {"path": _UNATTACHED})]
            if self.model.pci is not None:
                asked.append(("query-pci", {}))
            target, children, *buses = self.qmp_client.begin(self.timeout, *asked)
            check_version(self.qmp_client.version)
            check_target(target()["arch"], self.model, self._program)
            self.memory.locate(self.qtest.read)
            if launch.has_iommu:
                from uvirtio.backends.qemu.vtd import Vtd

                self.iommu = Vtd(self.qtest, self.memory)
            self.qtest.intercept(self._controller(children()))
            if self.model.pci is not None:
                self._bridge = HostBridge(self.qtest, self.model.pci)
                self._places = _with_ids(buses[0]())
            self._find_functions(launch.root_ports)
        except (DeviceGone, DeviceTimeout) as error:
            raise self._start_failed(error) from error

    def _find_functions(self, root_ports: int) -> None:
        self._ports = self._root_ports(root_ports) if root_ports else []
        for part in self._supply.parts:
            if is_mmio(part.device):
                from uvirtio.backends.qemu.mmio import QemuMmioWindow, transport_of

                assert self.model.mmio is not None
                transport = transport_of(self.qmp_client, part.id, self.model.mmio)
                address = self._address(part)
                window = QemuMmioWindow(self, self.model.mmio, transport, ident=part.id, address=address)
                self.functions.append(window)
            else:
                self.functions.append(self._on_root_bus(part))

    def _root_ports(self, count: int) -> list[ports.RootPort]:
        from uvirtio.backends.qemu import ports

        names = {number: port_name(number) for number in range(1, count + 1)}
        return [ports.RootPort(self._bridge, self._places[name], n, ident=name) for n, name in names.items()]

    @cached_property
    def _sockets(self) -> Sockets:
        from uvirtio.backends.qemu.hotplug import Sockets  # here: few machines plug

        return Sockets(self.model, self._ports, self.qmp_client, self.qtest, self.timeout)

    def _on_root_bus(self, part: Part) -> QemuPciFunction:
        if part.id not in self._places:
            raise QemuFailed(
                f"{part.device} did not become a PCI function",
                seen=f"functions {', '.join(sorted(self._places))} on the root bus",
                expected=f"one with the id {part.id}",
                remedy="use the -pci form of the device",
            )
        return self._function(part, self._bridge, self._places[part.id])

    def _function(self, part: Part, bridge: Bridge, devfn: int) -> QemuPciFunction:
        address = self._address(part)
        access = PciAccess(bridge, devfn, partial(self._refuse_removed, part.id, address))
        return QemuPciFunction(self, access, ident=part.id, address=address)

    def _address(self, part: Part) -> str:
        """Return the device's name. It is not an address that can be opened: that would start another QEMU."""
        return f"{addresses.PREFIX}{self.name}@{self.pid}/{take_apart(part.device)[0]},id={part.id}"

    def _refuse_removed(self, ident: str, address: str) -> None:
        if ident in self.qmp_client.deleted:
            raise DeviceGone(
                f"{address} is gone",
                seen="the host removed the device (hot-unplug)",
                expected="a device that answers",
                remedy="plug in another device, or start another machine",
            )

    def _controller(self, children: list[dict[str, Any]]) -> str:
        """Return the interrupt controller's name, or, where it has none, its path in QEMU's object tree."""
        for child in children:
            if child["type"] in [f"child<{name}>" for name in self.model.controller]:
                return f"{_UNATTACHED}/{child['name']}"
        return self.model.controller[0]

    def _start_failed(self, error: Exception) -> UvirtioError:
        """Return why there is no machine: an old QEMU does not know all options, so that is reported first."""
        seen = self.process.autopsy()
        if os.strerror(errno.ENOMEM) in seen:
            limit = limits.reached(OSError(errno.ENOMEM, seen), "QEMU did not start")
            if limit is not None:
                return limit
        version = self.process.version()
        if version:
            check_version(version)
        if "is not a valid device model name" in seen:
            remedy = f"name a device that this QEMU has: {self._program} -device help"
        elif ".drive' can't find value" in seen:
            remedy = "give a raw disk image before the device: qemu:q35,file=PATH/virtio-blk-pci"
        else:
            remedy = f"change the option that QEMU names; those of a device: {self._program} -device NAME,help"
        return QemuFailed(
            "QEMU did not start" if self.process.exited else f"QEMU did not start in {self.timeout:g} s",
            seen=seen,
            expected="a QEMU that takes these devices and options",
            remedy=remedy,
        )

    @property
    def pid(self) -> int:
        """The process ID of QEMU."""
        return self.process.pid

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version: major, minor, micro."""
        return self.qmp_client.version

    @property
    def files(self) -> dict[str, int]:
        """The memfds that were supplied to devices (disks, memory to plug), by the device's id."""
        return self._supply.files

    @property
    def peers(self) -> dict[str, Peer]:
        """The other ends of devices, by the device's id."""
        return self._supply.peers

    def connect_bells(self) -> None:
        """Connect the eventfds, at their first use.

        Raises:
            QemuFailed: QEMU does not connect them.
            DeviceGone: QEMU ended.
            DeviceTimeout: QEMU does not respond.
            Closed: The machine is closed.
        """
        if not self.bells.connected:
            self.bells.connect(PciAccess(self._bridge, self._places[Bells.ID]), self.timeout)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command: a command of the host, as opposed to what a driver does.

            machine.qmp("query-balloon")["actual"]
            machine.qmp("qom-set", path=f"/machine/peripheral/{function.id}", property="requested-size", value=0)

        Args:
            command: Its name in QEMU's QMP reference manual.
            **arguments: Its arguments; ``**{"command-line": "info pci"}`` for names with dashes.

        Returns:
            The ``return`` member of QEMU's response.

        Raises:
            QemuFailed: QEMU refuses the command.
            DeviceGone: QEMU has ended.
            DeviceTimeout: QEMU does not respond within the machine's time-out.
            Closed: The machine is closed.
            NotSupported: Another process started it: this is a forked child.
        """
        self._check()
        self.process.disposable = False  # it may give QEMU an image whose format has to be finished
        self.qtest.settle()  # what a driver wrote comes before what the host does
        resets = self.qmp_client.resets
        answer = self.qmp_client.execute(command, **arguments)
        if command == "system_reset":
            deadline = time.monotonic() + self.timeout
            with suppress(DeviceGone):  # with -no-reboot QEMU ends
                while self.qmp_client.resets == resets and time.monotonic() < deadline:
                    self.qmp_client.await_message(deadline)
                self._set_up_again()
        return answer

    def _set_up_again(self) -> None:
        """Do what firmware does after a reset of the machine, if one has come: the functions are in place again.

        Raises:
            QemuFailed: The IOMMU does not respond as it should.
            DeviceGone: QEMU has ended.
            DeviceTimeout: QEMU does not respond within the machine's time-out.
        """
        self.qmp_client.drain()
        resets = self.qmp_client.resets
        if resets == self._resets:
            return
        if self.model.pci is not None:
            self._bridge.set_up()
            if self.iommu is not None:
                self.iommu.enable()
            for port in self._ports:
                port.set_up()
            self.bells.restore()
            for function in self.functions:
                if function.bus == "pci":
                    function.restore()
        self._resets = resets

    def qmp_events(self, name: str, timeout: float = 0.0) -> list[dict[str, Any]]:
        """Take the QMP events of one name that have come since the last call.

        Args:
            name: ``DEVICE_DELETED``, ``BALLOON_CHANGE`` ...
            timeout: Seconds to wait for the first of them; what is negative is as 0.

        Returns:
            The events, oldest first; empty if none came.

        Raises:
            UsageError: ``timeout`` is NaN or infinite.
            DeviceGone: QEMU has ended.
            Closed: The machine is closed.
        """
        self._check()
        return self.qmp_client.events(name, timeout)

    # --- plugging and unplugging ------------------------------------------------------------------------------

    def plug(self, device: str, *, drive: str | os.PathLike[str] | None = None) -> QemuPciFunction:
        """Plug a device in while the machine runs, as host and guest together do it; it joins ``functions``.

        Args:
            device: A ``-device`` argument of a PCI device; not virtio-mem and virtio-pmem, whose memory has to be
                known when QEMU starts.
            drive: A raw disk image for a virtio-blk or virtio-scsi device; None: a disk of 64 MiB is supplied.

        Returns:
            The function, for ``open``.

        Raises:
            NotSupported: The machine has no free socket, or cannot plug this device in.
            QemuFailed: QEMU refuses; ``seen`` has what it said.
            UsageError: The device or the image cannot be used.
        """
        self._check()
        self._set_up_again()  # after a reset of the machine
        check_device(device, self.model, self._program)
        port = self._sockets.free(device)
        part = self._supply.add(device, None if drive is None else image_at(drive), late=True)
        if drive is not None:
            self.process.disposable = False
        try:
            self._sockets.plug(part, self.files.get(part.id), port)
            if port is None:
                self._places = _with_ids(self.qmp_client.execute("query-pci"))
            function = self._on_root_bus(part) if port is None else self._function(part, port, 0)
        except BaseException:
            with suppress(UvirtioError):
                self._take_out(part.id)
            self._supply.drop(part.id)
            raise
        self.functions.append(function)
        return function

    def unplug(self, which: QemuFunction | int) -> None:
        """Have the host remove a device while the machine runs; it leaves ``functions``.

        The guest releases it at once, whatever its driver does: the driver gets DeviceGone in its current call, or
        in the next.

        Args:
            which: One of ``functions``, or its number there. Except on pc only what was plugged in.

        Raises:
            NotSupported: It cannot be unplugged from where it is.
            QemuFailed: QEMU refuses.
            DeviceTimeout: QEMU does not report its removal.
            UsageError: It is not a function of this machine.
        """
        function = self.function(which)
        self._sockets.check(function.id, function.address)
        self._set_up_again()  # after a reset of the machine
        self._take_out(function.id)
        self.functions.remove(function)
        self._unplugged.append(function)  # its device may be in use, and its user closes it
        function.wake()

    def _take_out(self, ident: str) -> None:
        from uvirtio.backends.qemu import hotplug

        self._sockets.take_out(ident, self._places.get(ident, 0))
        for part in [part for part in self._supply.parts if part.id == ident]:
            hotplug.withdraw(self.qmp_client, part)
            self._supply.drop(ident)

    def function(self, which: QemuFunction | int) -> QemuFunction:
        """Return one of ``functions``.

        Args:
            which: The function, or its number in ``functions``.

        Raises:
            UsageError: It is not a function of this machine.
            DeviceGone: It was unplugged.
            Closed: The machine is closed.
        """
        self._check()
        if isinstance(which, int):
            if 0 <= which < len(self.functions):
                return self.functions[which]
        elif which in self.functions:
            return which
        elif which in self._unplugged:
            self._refuse_removed(which.id, which.address)
        raise UsageError(
            f"{which!r} is no function of this machine",
            seen=[function.address for function in self.functions],
            expected="one of machine.functions, or its number",
        )

    def _check(self) -> None:
        check_process(f"machine {self.name}", self._owner)
        if self._closing:
            raise Closed("this machine is closed")

    def close(self) -> None:
        """End QEMU and free everything; idempotent, from any thread; in a forked child this does nothing."""
        if self._closing or os.getpid() != self._owner:
            return
        self._closing = True
        self._resources.close()
        for function in [*self.functions, *self._unplugged]:
            function.close()

    def __repr__(self) -> str:
        if self._closing:
            return f"<Machine {self.name}, closed>"
        return f"<Machine {self.name}, process {self.pid}, {len(self.functions)} functions>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.__dict__.get("_closing", True) or os.getpid() != self._owner:
            return
        if not any(function.undivided for function in self.functions):  # else it is the function's
            warn_unclosed(self, then=self._dropped)

    def _dropped(self) -> None:
        self.close()
        for device in self._opened.values():  # nobody else has them, or the machine would still be there
            device.close()


def _with_ids(buses: list[dict[str, Any]]) -> dict[str, int]:
    """Return the devfn of each function on the root bus that has an id, of what ``query-pci`` returned."""
    places: dict[str, int] = {}
    for bus in buses:
        for found in bus["devices"]:
            if found["bus"] == 0 and found.get("qdev_id"):
                places[found["qdev_id"]] = found["slot"] << 3 | found["function"]
    return places


def take_over(launch: Launch) -> Machine:
    """Make the machine of a QEMU that was started, as soon as it answers.

    Args:
        launch: The QEMU, which ends with the machine, and where there is none.

    Raises:
        QemuFailed: QEMU did not start; ``seen`` has what it said.
        NotSupported: It has another CPU.
    """
    made = Machine.__new__(Machine)
    made._take_over(launch)
    return made
