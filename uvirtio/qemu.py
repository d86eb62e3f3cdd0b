"""QEMU without a guest, for integration tests and experiments.

    with uvirtio.qemu.Machine(devices=["virtio-rng-pci", "virtio-balloon-pci"]) as machine:
        with machine.open(1) as device, uvirtio.Balloon(device) as balloon:
            balloon.inflate(16384)
            assert machine.qmp("query-balloon")["actual"] == 448 << 20

A ``Machine`` is one QEMU process with its real device models. ``machine.functions`` are its devices, ``open``
opens one as a Device, ``qmp`` and ``qmp_events`` are the host's side, ``plug`` and ``unplug`` hot-plug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from uvirtio import opening
from uvirtio.backends.qemu.function import QemuPciFunction
from uvirtio.backends.qemu.machine import Machine as _Machine
from uvirtio.backends.qemu.mmio import QemuMmioWindow
from uvirtio.device import OpenOptions
from uvirtio.errors import Busy

if TYPE_CHECKING:
    from uvirtio.device import Device, OpenKeywords

QemuFunction = QemuPciFunction | QemuMmioWindow
"""A device of a machine: a PCI function, or a virtio-mmio window."""

__all__ = ["Machine", "QemuFunction", "QemuMmioWindow", "QemuPciFunction"]


class Machine(_Machine):
    """One QEMU with a parked CPU and several virtio devices, for tests and experiments; a context manager.

    It needs no privilege and no KVM. Each of its ``functions`` takes one driver at a time; several drivers may run
    side by side. QEMU ends with the machine, and with this process, however that ends.
    """

    def open(
        self,
        which: QemuFunction | int = 0,
        *,
        options: OpenOptions | None = None,
        **keywords: Unpack[OpenKeywords],
    ) -> Device:
        """Open one of the machine's devices; also again, once the Device that was opened before is closed.

        Args:
            which: One of ``functions``, or its number there.
            options: As for ``uvirtio.open``.
            **keywords: As for ``uvirtio.open``; the time-out is the machine's unless one is given.

        Returns:
            The open device. Closing it leaves the machine running.

        Raises:
            UsageError: It is no function of this machine, or an option has a value that it cannot have.
            Busy: A Device that was opened before is still open.
            DeviceGone: QEMU has ended, or the device was unplugged.
            NotVirtio: It is not a virtio device.
            CapabilityError: Its virtio capabilities cannot be used (4.1.4).
            NotSupported: A legacy interface was asked for, and there is none.
        """
        function = self.function(which)
        if options is None:
            options = OpenOptions(timeout=self.timeout)
        self._set_up_again()  # after a reset of the machine
        if function.closed:
            function.reopen()
        elif function.id in self._opened:
            raise Busy(
                f"{function.address} is open already",
                seen=repr(self._opened[function.id]),
                expected="a function that no Device has",
                remedy="use that Device, or close it first",
            )
        device = opening.identify(function.address, function, options=options, **keywords)
        self._opened[function.id] = device
        return device
