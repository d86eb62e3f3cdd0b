"""What a device of a QEMU machine needs of the machine; ``machine.Machine`` has it all."""

from __future__ import annotations

from typing import Any, Protocol

from uvirtio.backends.qemu.ivshmem import Bells
from uvirtio.backends.qemu.memory import GuestMemory
from uvirtio.backends.qemu.process import QemuProcess
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.backends.qemu.qtest import Qtest
from uvirtio.backends.qemu.vtd import Vtd


class MachineParts(Protocol):
    """One QEMU: its process, its connections, its memory, and what stands between its devices and that."""

    name: str
    process: QemuProcess
    qmp_client: Qmp
    qtest: Qtest
    memory: GuestMemory
    bells: Bells
    iommu: Vtd | None

    @property
    def pid(self) -> int: ...
    @property
    def files(self) -> dict[str, int]: ...
    def connect_bells(self) -> None: ...
    def qmp(self, command: str, **arguments: Any) -> Any: ...
    def close(self) -> None: ...
