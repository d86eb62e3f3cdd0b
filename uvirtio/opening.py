"""From an address to a device: a back end opens what is there, and a transport is put on it.

Only this module knows both. An address has a family (``0000:03:00.0``, ``qemu:``, ``mmio:``, vDPA), a family has
one or more back ends, and the ``bus`` of the object that a back end returns decides which transport it takes.
Modules are imported where they are used, so that a command loads only the back end that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from uvirtio.device.options import OpenOptions
from uvirtio.errors import (
    BadAddress,
    Misuse,
    NoSuchDevice,
    NotBound,
    NotSupported,
    PermissionLack,
    UsageError,
    UvirtioError,
)
from uvirtio.host import addresses, denylist, limits
from uvirtio.host.addresses import Address
from uvirtio.host.cpu import require_host
from uvirtio.host.roots import Roots
from uvirtio.typed import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:  # the rest is imported while QEMU starts
    from typing import Literal, Unpack

    from uvirtio.device.core import Device
    from uvirtio.device.keywords import OpenKeywords
    from uvirtio.interfaces.backend import Backend, MmioWindow, VdpaNode, VhostUserNode
    from uvirtio.interfaces.transport import Transport
    from uvirtio.interfaces.values import Trace


def open(
    address: str | Backend, *, options: OpenOptions | None = None, **keywords: Unpack[OpenKeywords]
) -> Device:
    """Open and identify a virtio device. It is not reset, nothing is negotiated, and no driver is bound.

    Args:
        address: The address of the device: ``0000:03:00.0``, ``mmio:0xfeb02e00``, ``vdpa:NAME``,
            ``vhost-user:blk:SOCKET``, ``qemu:virtio-rng-pci`` ...; or what a back end of your own returns,
            which the device then owns and closes.
        options: How to open it; None: the defaults of ``OpenOptions``.
        **keywords: Single options, which override those in ``options``: ``backend``, ``timeout`` (seconds),
            ``interrupts``, ``ring``, ``poll_us`` (microseconds), ``force_legacy``, ``unsafe_dma``,
            ``vf_token``, ``roots``, ``trace``, ``record``, ``replay``. ``OpenOptions`` says what each means.

    Returns:
        The open device, which a driver (Balloon, Blk, Input, Mem, Rng) can start. A context manager.

    Raises:
        UsageError: An option has a value that it cannot have.
        BadAddress: The address has no known form, or the back end cannot open addresses of this form.
        Denied: The administrator's deny list names the device.
        NotBound: A kernel driver holds the device.
        NoSuchDevice: There is no device at the address.
        NotVirtio: It is not a virtio device.
        CapabilityError: Its virtio capabilities cannot be used (4.1.4).
        EnvironmentLack: This machine lacks something that the back end needs; the subclass says what.
        DeviceGone: The device was removed meanwhile.
    """
    options = chosen(options, keywords)
    return identify(*open_function(address, options=options), options=options)


def open_function(
    address: str | Backend, *, options: OpenOptions | None = None, **keywords: Unpack[OpenKeywords]
) -> tuple[str, Backend]:
    """The first half of ``open``: find the back end for an address, and open what is there.

    Args:
        address: As for ``open``; what a back end has already opened is returned as it is.
        options: As for ``open``.
        **keywords: As for ``open``.

    Returns:
        The canonical address, and what the back end opened there.

    Raises:
        UvirtioError: What ``open`` raises, except for errors that the device's own registers show.
    """
    options = chosen(options, keywords)
    require_host()
    if options.replay is not None:
        return options.replay.next_device()
    with limits.told(f"{getattr(address, 'address', address)} cannot be opened"):
        canonical, found = _opened(address, options)
        return canonical, _recorded(canonical, found, options)


def _opened(address: str | Backend, options: OpenOptions) -> tuple[str, Backend]:
    if not isinstance(address, str):
        handed = _handed_over(address)
        return handed.address, handed
    found = _openable(address, options.roots)
    family = _family(found)
    if options.backend not in ("auto", *family.backends):
        raise BadAddress(
            f"the back end {options.backend!r} cannot open {address}",
            seen=options.backend,
            expected=" or ".join(("auto", *family.backends)),
            remedy="leave --backend out",
        )
    if options.vf_token is not None and "vfio" not in family.backends:
        raise _no_vf_token(address, f"the back end {family.backends[0]}")
    return family.open(found.canonical, options)


def _no_vf_token(address: str, seen: str) -> UsageError:
    return UsageError(
        f"{address} takes no VF token",
        seen=seen,
        expected="a PCI function with SR-IOV that vfio-pci holds",
        remedy="leave --vf-token out",
    )


def chosen(options: OpenOptions | None, keywords: OpenKeywords) -> OpenOptions:
    """Options with single ones replaced.

    Args:
        options: None: the defaults of ``OpenOptions``.
        keywords: The options to replace.

    Raises:
        UsageError: An option has a value that it cannot have.
        Misuse: ``options`` is not an ``OpenOptions``.
    """
    if options is None:
        options = OpenOptions()
    elif not isinstance(options, OpenOptions):
        raise Misuse(
            f"options cannot be {options!r}",
            seen=repr(options),
            expected="an OpenOptions, or None",
            remedy="write single options as keywords: uvirtio.open(address, timeout=1)",
        )
    return options.merged(keywords)


def _handed_over(found: object) -> Backend:
    """The object that a caller gave instead of an address, if it is what a back end returns.

    Raises:
        Misuse: It is something else.
    """
    if getattr(found, "bus", None) in ("pci", "mmio", "vdpa", "vhost-user") and callable(
        getattr(found, "dma", None)
    ):
        return cast("Backend", found)
    raise Misuse(
        f"{found!r} cannot be opened",
        seen=type(found).__name__,
        expected="an address (a str), or what a back end hands over: PciFunction, MmioWindow, VdpaNode, "
        "VhostUserNode",
        remedy="uvirtio.list() has the addresses of this machine's devices",
    )


class _Family(NamedTuple):
    """One form of address: the back ends that can open it, and the function that does."""

    backends: tuple[str, ...]
    open: Callable[[str, OpenOptions], tuple[str, Backend]]


def _family(address: Address) -> _Family:
    families = {
        "qemu": _Family(("qemu",), _open_qemu),
        "scripted": _Family(("scripted",), _open_scripted),
        "pci": _Family(("vfio", "vfio-group", "vfio-cdev", "uio"), _open_pci),
        "mmio": _Family(("devmem",), _open_mmio),
        "vdpa": _Family(("vhost-vdpa",), _open_vdpa),
        "vhost-user": _Family(("vhost-user",), _open_vhost_user),
    }
    return families[address.family]


def _openable(text: str, roots: Roots) -> Address:
    """The address of the device that a name belongs to.

    Raises:
        BadAddress: The name has no known form.
        NoSuchDevice: No device has the name.
        NotBound: A kernel driver holds the device, so it can only be looked at.
    """
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


_DRIVERS = frozenset({"balloon", "blk", "mem", "net", "rng", "scsi"})
"""The device types whose driver QEMU's devices are named for."""


def _open_qemu(address: str, options: OpenOptions) -> tuple[str, Backend]:
    denylist.check([address], options.roots)
    from uvirtio.backends.qemu.single import open_address

    def meanwhile(bus: str, kind: str) -> None:
        """Import what comes next, the type's driver too: that takes no longer than QEMU's start."""
        __import__("uvirtio.device.core")
        __import__(f"uvirtio.transports.{bus}")
        if kind in _DRIVERS:
            __import__(f"uvirtio.drivers.{kind}")

    return address, open_address(address, timeout=options.timeout, meanwhile=meanwhile)


def _open_scripted(address: str, options: OpenOptions) -> tuple[str, Backend]:
    denylist.check([address], options.roots)
    from uvirtio.scripted import address as scripted

    return address, cast("Backend", scripted.build(address))


_VFIO_WAYS: dict[str, Literal["group", "cdev"]] = {"vfio-group": "group", "vfio-cdev": "cdev"}


def _open_pci(address: str, options: OpenOptions) -> tuple[str, Backend]:
    from uvirtio.host import drivers, sysfs

    # A line of the deny list may name the node, which does not lead back to the function everywhere.
    nodes = drivers.user_nodes(sysfs.device("pci", address, options.roots), options.roots)
    denylist.check([address, *nodes], options.roots)
    # The driver that holds it decides; --backend only insists.
    held = drivers.pci_driver(address, options.roots)
    if options.backend == "uio" or (options.backend == "auto" and held == drivers.UIO):
        if options.vf_token is not None:
            raise _no_vf_token(address, "the back end uio")
        from uvirtio.backends import uio_pci

        function = uio_pci.UioPciFunction.open(
            address, options.roots, timeout=options.timeout, unsafe_dma=options.unsafe_dma
        )
        return address, function
    from uvirtio.backends import vfio_pci

    return address, vfio_pci.VfioPciFunction.open(
        address,
        options.roots,
        timeout=options.timeout,
        way=_VFIO_WAYS.get(options.backend, "best"),
        unsafe_dma=options.unsafe_dma,
        vf_token=options.vf_token,
    )


def _open_mmio(address: str, options: OpenOptions) -> tuple[str, Backend]:
    denylist.check([address], options.roots)
    from uvirtio.backends import devmem
    from uvirtio.binding import discover

    try:
        found = discover.find(address, options.roots, aliases=False)
    except NoSuchDevice:
        base = addresses.mmio_base(address)
        if base is None or not address.startswith("mmio:"):
            raise
        # An address that the user typed: /proc/iomem decides.
        return address, devmem.DevmemWindow.open(address, base, 0, options.roots, unsafe_dma=options.unsafe_dma)
    denylist.check(found.names, options.roots)
    if found.window is None:
        from uvirtio.host import privilege

        raise PermissionLack(
            f"the address of {found.address} is hidden",
            seen="/proc/iomem shows none to this user",
            expected="the physical address of the window",
            remedy=privilege.remedy(roots=options.roots),
        )
    if found.driver is not None:
        raise NotBound(
            f"{found.address} is held by a driver of the kernel",
            seen=f"{found.name} is bound to {found.driver}",
            expected="a window that no driver has",
            remedy=f"uvirtio bind {found.address}",
        )
    window = devmem.DevmemWindow.open(found.address, *found.window, options.roots, unsafe_dma=options.unsafe_dma)
    return found.address, window


def _open_vdpa(address: str, options: OpenOptions) -> tuple[str, Backend]:
    denylist.check([address], options.roots)
    from uvirtio.backends import vhost_vdpa
    from uvirtio.host import sysfs

    node, name = vhost_vdpa.require_bound(address, options.roots)
    # Denying a PCI function also denies the vDPA devices on it and on its sub-functions.
    above = [place.name for place in sysfs.above(sysfs.device("vdpa", name, options.roots))]
    denylist.check([node, f"vdpa:{name}", *above], options.roots)
    return node, vhost_vdpa.VhostVdpaNode.open(node, options.roots)


def _open_vhost_user(address: str, options: OpenOptions) -> tuple[str, Backend]:
    from uvirtio.backends import vhost_user

    target = vhost_user.parse(address)
    denylist.check([address, *target.names], options.roots)
    return address, vhost_user.open_target(target, timeout=options.timeout, roots=options.roots)


def identify(
    address: str, found: Backend, *, options: OpenOptions | None = None, **keywords: Unpack[OpenKeywords]
) -> Device:
    """The second half of ``open``: put the transport for its bus on what a back end opened.

    Args:
        address: What the device is called from now on, in errors and in ``Device.address``.
        found: A PciFunction, MmioWindow, VdpaNode or VhostUserNode. The device owns it; it is closed if this call
            fails.
        options: As for ``open``; those that choose and set up a back end have no effect here.
        **keywords: As for ``open``.

    Returns:
        The open device.

    Raises:
        NotVirtio: It is not a virtio device.
        CapabilityError: Its virtio capabilities cannot be used (4.1.4).
        NotSupported: A legacy interface was asked for, and there is none.
        DeviceGone: The device does not respond.
    """
    options = chosen(options, keywords)
    try:
        from uvirtio.device.log import register_trace

        require_host()
        found = _recorded(address, found, options)
        trace = register_trace(address, options.trace)
        transport = _transport(found, trace, options.force_legacy)
        from uvirtio.device.core import Device
        from uvirtio.interfaces.runtime import WithoutIommu

        with limits.told(f"{address} cannot be opened"):
            device = Device(address, transport, options)
    except BaseException:
        found.close()
        raise
    if isinstance(found, WithoutIommu):
        device.warning = found.warning
    return device


def _recorded(address: str, found: Backend, options: OpenOptions) -> Backend:
    """What stands for a back end's object where it is to be recorded, and is not yet; else the object itself."""
    record = options.record
    if record is None:
        return found
    from uvirtio.interfaces.clock import KeepsTime

    if isinstance(found, KeepsTime):
        return found
    try:
        if isinstance(record, (str, os.PathLike)):
            from uvirtio.trace import Recorder

            record = Recorder(record).once()
        return record.recorded(address, found)
    except BaseException:
        found.close()
        raise


def _transport(found: Backend, trace: Trace | None, force_legacy: bool) -> Transport:
    if found.bus == "vhost-user":
        return _over_vhost_user(found, trace, force_legacy)
    if found.bus == "vdpa":
        return _over_vdpa(found, trace, force_legacy)
    if found.bus == "mmio":
        return _over_mmio(found, trace, force_legacy)
    from uvirtio.transports.pci_base import is_legacy_only

    if force_legacy or is_legacy_only(found):
        from uvirtio.transports.pci_legacy import PciLegacy

        return PciLegacy(found, trace=trace)
    from uvirtio.transports.pci import PciModern

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


def _over_vhost_user(found: VhostUserNode, trace: Trace | None, force_legacy: bool) -> Transport:
    from uvirtio.transports.vhost_user import VhostUser

    if force_legacy:
        raise _no_legacy(found.address, "a vhost-user device")
    return VhostUser(found, trace=trace)


def _no_legacy(address: str, seen: str) -> UvirtioError:
    return NotSupported(
        f"{address} has no legacy interface",
        seen=seen,
        expected="a transitional PCI device",
        remedy="leave --force-legacy out",
    )
