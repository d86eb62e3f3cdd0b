"""What a device of a QEMU machine needs of the machine; ``machine.Machine`` satisfies it."""

from __future__ import annotations

from uvirtio.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import Any

    from uvirtio.backends.qemu.ivshmem import Bells
    from uvirtio.backends.qemu.memory import GuestMemory
    from uvirtio.backends.qemu.peer import Peer
    from uvirtio.backends.qemu.process import QemuProcess
    from uvirtio.backends.qemu.qmp import Qmp
    from uvirtio.backends.qemu.qtest import Qtest
    from uvirtio.backends.qemu.vtd import Vtd


class MachineParts(Protocol):
    """One QEMU: its process, its connections, its memory, and the IOMMU in front of its devices."""

    name: str
    process: QemuProcess
    qmp_client: Qmp
    qtest: Qtest
    memory: GuestMemory
    bells: Bells
    iommu: Vtd | None

    @property
    def pid(self) -> int:
        """The process ID of QEMU."""
        ...

    @property
    def files(self) -> dict[str, int]:
        """The memfds that were supplied to devices, by the device's id."""
        ...

    @property
    def peers(self) -> dict[str, Peer]:
        """The other ends of devices, by the device's id."""
        ...

    def connect_bells(self) -> None:
        """Connect the eventfds, at their first use."""
        ...

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its result."""
        ...

    def close(self) -> None:
        """End QEMU and free everything; idempotent."""
        ...
