"""A machine with one device, which ends with it: what is behind a ``qemu:`` address."""

from __future__ import annotations

from collections.abc import Callable

from uvirtio.backends.qemu import address as addresses
from uvirtio.backends.qemu.launch import Launch
from uvirtio.backends.qemu.models import is_mmio
from uvirtio.interfaces.values import DEFAULT_TIMEOUT
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.backends.qemu.machine import QemuFunction


def open_address(
    address: str, timeout: float = DEFAULT_TIMEOUT, meanwhile: Callable[[str, str], None] | None = None
) -> QemuFunction:
    """Start the machine of a ``qemu:`` address; it ends when the function is closed.

    Args:
        address: The address.
        timeout: Seconds that QEMU has for its start, and for each response.
        meanwhile: Called while QEMU starts with the device's bus, ``pci`` or ``mmio``, and its type as its name
            has it, such as ``rng``.

    Raises:
        BadAddress: The address is malformed.
        QemuMissing: QEMU is not installed.
        QemuFailed: QEMU did not start; ``seen`` has what it said.
        NotSupported: There is no such machine here, or it has no such IOMMU.
    """
    parsed = addresses.parse(address)
    launch = Launch(
        parsed.machine,
        [parsed.device],
        ram=parsed.ram,
        legacy=parsed.legacy,
        iommu=parsed.iommu,
        binary=parsed.binary,
        qmp_path=parsed.qmp,
        timeout=timeout,
        drives=[parsed.file] if parsed.file is not None else (),
    )
    try:
        from uvirtio.backends.qemu.machine import take_over

        if meanwhile is not None:
            kind = parsed.device.partition(",")[0].split("-")[1]
            meanwhile("mmio" if is_mmio(parsed.device) else "pci", kind)
    except BaseException:
        launch.close()
        raise
    machine = take_over(launch)
    function = machine.functions[0]
    function.address = address
    function.own_machine()
    return function
