"""From an address to a device: a back end finds what is there, a transport is put on it.

This is the one place that knows both. An address has a family (``0000:03:00.0``, ``qemu:``, ``mmio:``, vDPA),
a family has one or more back ends, and what a back end hands over says by its ``bus`` which transport it takes.
Modules are imported where they are used, so that a command loads no more than its way in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from uvirtio.device import DEFAULT_TIMEOUT, Device, RingChoice
from uvirtio.errors import BadAddress, NoSuchDevice, NotBound, NotSupported, PermissionLack, UvirtioError
from uvirtio.host import addresses, denylist
from uvirtio.host.addresses import Address
from uvirtio.host.roots import Roots
from uvirtio.interfaces.backend import MmioWindow, PciFunction, VdpaNode, WithoutIommu
from uvirtio.interfaces.transport import Transport
from uvirtio.interfaces.values import InterruptMode
from uvirtio.memory.trace import Trace

Opened = PciFunction | MmioWindow | VdpaNode
"""What a back end hands over."""


def open(
    address: str,
    *,
    backend: str = "auto",
    timeout: float = DEFAULT_TIMEOUT,
    unsafe_dma: bool = False,
    interrupts: Sequence[InterruptMode] = tuple(InterruptMode),
    force_legacy: bool = False,
    ring: RingChoice = "auto",
    poll_us: float = 0,
    roots: Roots | None = None,
    trace: Trace | None = None,
) -> Device:
    """Open and identify the device at ``address`` (``0000:03:00.0``, ``qemu:virtio-rng-pci``, ...).

    It neither resets nor negotiates, and never binds. ``interrupts`` are the rungs of the ladder that may be
    taken, best first. ``ring`` is the format of the virtqueues: packed where it is offered (auto), or one of them.
    ``poll_us``: the most microseconds that a wait polls, with interrupts off, before it sleeps; 0 is none.
    ``force_legacy`` takes the legacy interface of a transitional PCI device, as the kernel's module parameter of
    that name does; without it the modern one is preferred (4.1.5.1.1.1). ``trace`` gets a line for every register
    access and kick.

    Raises BadAddress, Denied, NotBound, NoSuchDevice, NotVirtio, CapabilityError, or what the back end lacks.
    """
    canonical, function = open_function(
        address, backend=backend, timeout=timeout, unsafe_dma=unsafe_dma, roots=roots
    )
    return identify(
        canonical,
        function,
        timeout=timeout,
        interrupts=interrupts,
        ring=ring,
        poll_us=poll_us,
        force_legacy=force_legacy,
        trace=trace,
    )


def open_function(
    address: str,
    *,
    backend: str = "auto",
    timeout: float = DEFAULT_TIMEOUT,
    unsafe_dma: bool = False,
    roots: Roots | None = None,
) -> tuple[str, Opened]:
    """The first half of :func:`open`: the canonical address, and what a back end found there."""
    roots = roots or Roots()
    found = _openable(address, roots)
    family = _family(found)
    if backend not in ("auto", *family.backends):
        raise BadAddress(
            f"the back end {backend!r} cannot open {address}",
            seen=backend,
            expected=" or ".join(("auto", *family.backends)),
            remedy="leave --backend out",
        )
    wish = Wish(backend=backend, timeout=timeout, unsafe_dma=unsafe_dma, roots=roots)
    return family.open(found.canonical, wish)


@dataclass(frozen=True, slots=True)
class Wish:
    """How an address is to be opened. ``timeout`` in seconds."""

    backend: str
    timeout: float
    unsafe_dma: bool
    roots: Roots


@dataclass(frozen=True, slots=True)
class _Family:
    """One form of address: the back ends that it may be opened by, and how."""

    backends: tuple[str, ...]
    open: Callable[[str, Wish], tuple[str, Opened]]


def _family(address: Address) -> _Family:
    families = {
        "qemu": _Family(("qemu",), _open_qemu),
        "pci": _Family(("vfio", "vfio-group", "vfio-cdev", "uio"), _open_pci),
        "mmio": _Family(("devmem",), _open_mmio),
        "vdpa": _Family(("vhost-vdpa",), _open_vdpa),
    }
    return families[address.family]


def _openable(text: str, roots: Roots) -> Address:
    """The address of the device that a name belongs to. Raises BadAddress, NotBound, as ``discover.find`` does."""
    address = addresses.parse(text)
    if address.family in addresses.LOOKED_UP:
        from uvirtio.binding import discover

        return addresses.parse(discover.find(text, roots).address)
    if not address.openable:
        raise NotBound(
            f"{address} is a name for looking only",
            seen=text,
            expected="the address of a device that a driver for user space holds, or a qemu: address",
            remedy="uvirtio list shows its address; then: uvirtio bind ADDRESS",
        )
    return address


def _open_qemu(address: str, wish: Wish) -> tuple[str, Opened]:
    denylist.check([address], wish.roots)
    from uvirtio.backends import qemu

    return address, qemu.open_address(address, timeout=wish.timeout)


_VFIO_WAYS: dict[str, Literal["group", "cdev"]] = {"vfio-group": "group", "vfio-cdev": "cdev"}


def _open_pci(address: str, wish: Wish) -> tuple[str, Opened]:
    denylist.check([address], wish.roots)
    from uvirtio.host import drivers

    # The driver that holds it decides; --backend only insists.
    held = drivers.pci_driver(address, wish.roots)
    if wish.backend == "uio" or (wish.backend == "auto" and held == drivers.UIO):
        from uvirtio.backends import uio_pci

        function = uio_pci.UioPciFunction.open(
            address, wish.roots, timeout=wish.timeout, unsafe_dma=wish.unsafe_dma
        )
        return address, function
    from uvirtio.backends import vfio_pci

    return address, vfio_pci.VfioPciFunction.open(
        address,
        wish.roots,
        timeout=wish.timeout,
        way=_VFIO_WAYS.get(wish.backend, "best"),
        unsafe_dma=wish.unsafe_dma,
    )


def _open_mmio(address: str, wish: Wish) -> tuple[str, Opened]:
    denylist.check([address], wish.roots)
    from uvirtio.backends import devmem
    from uvirtio.binding import discover

    try:
        found = discover.find(address, wish.roots, aliases=False)
    except NoSuchDevice:
        base = addresses.mmio_base(address)
        if base is None or not address.startswith("mmio:"):
            raise
        # An address that somebody gave by hand: /proc/iomem has the last word.
        return address, devmem.DevmemWindow.open(address, base, 0, wish.roots, unsafe_dma=wish.unsafe_dma)
    denylist.check(found.names, wish.roots)
    if found.window is None:
        raise PermissionLack(
            f"the address of {found.address} is hidden",
            seen="/proc/iomem shows none to this user",
            expected="the physical address of the window",
            remedy="run as root",
        )
    if found.driver is not None:
        raise NotBound(
            f"{found.address} is held by a driver of the kernel",
            seen=f"{found.name} is bound to {found.driver}",
            expected="a window that nobody drives",
            remedy=f"uvirtio bind {found.address}",
        )
    window = devmem.DevmemWindow.open(found.address, *found.window, wish.roots, unsafe_dma=wish.unsafe_dma)
    return found.address, window


def _open_vdpa(address: str, wish: Wish) -> tuple[str, Opened]:
    denylist.check([address], wish.roots)
    from uvirtio.backends import vhost_vdpa

    node, name = vhost_vdpa.require_bound(address, wish.roots)
    # Whoever denies the PCI function denies what vp_vdpa makes of it.
    denylist.check([node, f"vdpa:{name}", vhost_vdpa.parent_of(name, wish.roots).name], wish.roots)
    return node, vhost_vdpa.VhostVdpaNode.open(node, wish.roots)


def identify(
    address: str,
    found: Opened,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    interrupts: Sequence[InterruptMode] = tuple(InterruptMode),
    force_legacy: bool = False,
    ring: RingChoice = "auto",
    poll_us: float = 0,
    trace: Trace | None = None,
) -> Device:
    """The second half: introduce what was found to its transport. Closes it if they do not get on."""
    try:
        transport = _transport(found, trace, force_legacy)
    except BaseException:
        found.close()
        raise
    device = Device(address, transport, timeout=timeout, interrupts=interrupts, ring=ring, poll_us=poll_us)
    if isinstance(found, WithoutIommu):
        device.warning = found.warning
    return device


def _transport(found: Opened, trace: Trace | None, force_legacy: bool) -> Transport:
    if found.bus == "vdpa":
        return _over_vdpa(found, trace, force_legacy)
    if found.bus == "mmio":
        return _over_mmio(found, trace, force_legacy)
    from uvirtio.transports.pci import PciModern
    from uvirtio.transports.pci_legacy import PciLegacy, is_legacy_only

    if force_legacy or is_legacy_only(found):
        return PciLegacy(found, trace=trace)
    return PciModern(found, trace=trace)


def _over_mmio(found: MmioWindow, trace: Trace | None, force_legacy: bool) -> Transport:
    from uvirtio.transports import mmio

    transport = mmio.transport(found, trace=trace)
    if force_legacy and not transport.legacy:
        raise _no_legacy(found.address, f"a virtio-mmio device of version {transport.version}")
    return transport


def _over_vdpa(found: VdpaNode, trace: Trace | None, force_legacy: bool) -> Transport:
    from uvirtio.transports.vdpa import Vdpa

    if force_legacy:
        raise _no_legacy(found.address, "a vDPA device")
    return Vdpa(found, trace=trace)


def _no_legacy(address: str, seen: str) -> UvirtioError:
    return NotSupported(
        f"{address} has no legacy interface",
        seen=seen,
        expected="a transitional PCI device",
        remedy="leave --force-legacy out",
    )
