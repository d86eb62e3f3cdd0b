"""The addresses and names of devices: one grammar for every verb, every option and the deny list.

Only text is parsed; the machine is not accessed. ``uvirtio.host.names`` finds the device behind a name of the
kernel's (``eth0``, ``/dev/vda``, a path of sysfs). The back end defines what may follow ``qemu:``.
"""

from __future__ import annotations

from collections.abc import Iterator

from uvirtio.errors import BadAddress
from uvirtio.host.pattern import Pattern
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Final, Literal, NoReturn

    Family = Literal[
        "pci", "mmio", "vdpa", "vhost-user", "qemu", "scripted", "virtio", "type", "name", "node", "path"
    ]  # fmt: skip
    """The kind of a name.

    ``pci``, ``mmio``, ``vdpa``, ``vhost-user``, ``qemu`` and ``scripted`` are permanent addresses of a
    device. ``virtio`` (``virtio3``) and ``type`` (``balloon``) are for looking only. ``name`` (``eth0``), ``node``
    (``/dev/vda``) and ``path`` (``/sys/class/net/eth0``) exist while a kernel driver has the device, or are its
    place in sysfs.
    """


OPENABLE: Final = frozenset({"pci", "mmio", "vdpa", "vhost-user", "qemu", "scripted"})
LOOKING_ONLY: Final = frozenset({"virtio", "type"})
LOOKED_UP: Final = frozenset({"name", "node", "path"})

QEMU: Final = "qemu:"
SCRIPTED: Final = "scripted:"
VHOST_USER: Final = "vhost-user:"
_SIMULATED: Final[dict[str, Family]] = {QEMU: "qemu", SCRIPTED: "scripted", VHOST_USER: "vhost-user"}
SIMULATED: Final = tuple(_SIMULATED)
"""How the addresses of devices begin that are not this machine's, but those of another program."""
MADE: Final = (QEMU, SCRIPTED)
"""How those begin whose device is made when it is opened, and is gone when it is closed."""

_WANTED: Final = {
    QEMU: (
        "qemu:[MACHINE/]DEVICE",
        "name a virtio device of QEMU's: qemu:virtio-rng-pci, or qemu:microvm/virtio-rng-device",
    ),
    VHOST_USER: (
        "vhost-user:TYPE:SOCKET or vhost-user:qsd/FILE",
        "name a type and a socket: vhost-user:blk:/run/disk.socket; or a disk image: vhost-user:qsd/disk.img",
    ),
    SCRIPTED: ("scripted:TYPE", "name a type of device: scripted:rng, or scripted:balloon"),
}
"""What follows the beginning of an address that has nothing else, and the remedy."""

_IMAGES: Final = (".img", ".raw", ".iso", ".qcow2")
"""How files with disks are called."""

LIKELY: Final = "an address such as 0000:03:00.0, eth0 or qemu:virtio-rng-pci"
"""What the error for a malformed address expects; every form is in the man page and in docs/contract.md."""

# lspci, sysfs and virsh write pci:..., lshw writes pci@..., devlink writes pci/...
_PCI = Pattern(
    r"(?ai)(?:pci[@/])?(?:(?P<domain>[0-9a-f]{1,8}):)?"
    r"(?P<bus>[0-9a-f]{1,2}):(?P<device>[0-9a-f]{1,2})\.(?P<function>[0-7])"
)
_LIKE_PCI = Pattern(r"(?ai)(?:pci[@/])?(?:([0-9a-f]+):)?([0-9a-f]+):([0-9a-f]+)(?:\.([0-9a-f]*))?")
_PCI_DEVICES = 0x1F  # the last one on a bus

_MMIO = Pattern(r"(?ai)mmio:0x([0-9a-f]{1,16})")
# The names of platform devices: of ACPI, of a device tree (address and node name, of_device_make_bus_id), and of
# the kernel's command line.
_ACPI = Pattern(r"(?ai)LNRO0005:([0-9a-f]{2,8})")
_DEVICE_TREE = Pattern(r"(?ai)([0-9a-f]{1,16})\.([a-z][a-z0-9,._+-]{0,30})")
_COMMAND_LINE = Pattern(r"(?a)virtio-mmio\.(-?[0-9]{1,10})")

_VHOST_VDPA = Pattern(r"(?a)/dev/vhost-vdpa-(0|[1-9][0-9]{0,9})")
_VDPA = Pattern(r"vdpa:([^\s/\x00-\x1f\x7f]{1,128})")
_VIRTIO = Pattern(r"(?a)virtio@?(0|[1-9][0-9]{0,9})")
_NAME = Pattern(r"(?a)[A-Za-z0-9_][A-Za-z0-9_.!-]{0,63}")
_PATH = Pattern(r"/(sys|dev)(/[^/\x00-\x1f\x7f]{1,255}){1,64}/?")


class Address(NamedTuple):
    """The address or name of a device, parsed."""

    family: Family
    canonical: str
    """The canonical spelling; for the families in ``LOOKED_UP`` as it was given."""
    name: str
    """Its name on the bus, in the kernel or as a file: ``0000:03:00.0``, ``vduse0``, ``eth0``, ``vda``."""
    base: int | None = None
    """The physical address of a virtio-mmio window, where the name contains it."""

    def __str__(self) -> str:
        return self.canonical

    @property
    def openable(self) -> bool:
        """Whether it is a permanent address of a device, which can be opened."""
        return self.family in OPENABLE


def parse(text: str) -> Address:
    """Parse an address or name of a device. The device need not exist.

    Raises:
        BadAddress: It has none of the known forms.
    """
    for form in (_simulated, _pci, _mmio, _vdpa, _alias, _looked_up):  # the first matches no expression
        if (found := form(text)) is not None:
            return found
    raise bad(text, _why(text))


def canonical(text: str) -> str:
    """The canonical spelling of an address: ``3:00.0`` becomes ``0000:03:00.0``, hex digits become lower case.

    Raises:
        BadAddress: It has none of the known forms.
    """
    return parse(text).canonical


def _pci(text: str) -> Address | None:
    match = _PCI.fullmatch(text)
    if match is None or (device := int(match["device"], 16)) > _PCI_DEVICES:
        return None
    # As the kernel prints it: four digits, more only where the domain needs them.
    name = f"{int(match['domain'] or '0', 16):04x}:{int(match['bus'], 16):02x}:{device:02x}.{match['function']}"
    return Address("pci", name, name)


def _mmio(text: str) -> Address | None:
    if match := _MMIO.fullmatch(text):
        base = int(match[1], 16)
        return Address("mmio", f"mmio:{base:#x}", f"mmio:{base:#x}", base)
    if match := _ACPI.fullmatch(text):
        name = f"LNRO0005:{match[1].lower()}"
    elif match := _DEVICE_TREE.fullmatch(text):
        name = f"{match[1].lower()}.{match[2]}"
        return Address("mmio", name, name, int(match[1], 16))
    elif _COMMAND_LINE.fullmatch(text):
        name = text
    else:
        return None
    return Address("mmio", name, name)


def _vdpa(text: str) -> Address | None:
    if _VHOST_VDPA.fullmatch(text):
        return Address("vdpa", text, text)
    if (match := _VDPA.fullmatch(text)) and match[1] not in (".", ".."):
        return Address("vdpa", text, match[1])
    return None


def _simulated(text: str) -> Address | None:
    for beginning, family in _SIMULATED.items():
        if text.startswith(beginning) and len(text) > len(beginning):
            return Address(family, text, text)
    return None


def _alias(text: str) -> Address | None:
    if match := _VIRTIO.fullmatch(text):
        return Address("virtio", f"virtio{match[1]}", f"virtio{match[1]}")
    from uvirtio.spec import ids  # here: a qemu: address does without

    kind = ids.type_id(text)
    return None if kind is None else Address("type", ids.type_name(kind), ids.type_name(kind))


def _looked_up(text: str) -> Address | None:
    if match := _PATH.fullmatch(text):
        plain = text.rstrip("/")
        if {".", ".."} & set(plain.split("/")) or plain.startswith("/dev/vhost-vdpa-"):
            return None
        return Address("node" if match[1] == "dev" else "path", plain, plain[5:])
    return Address("name", text, text) if _NAME.fullmatch(text) else None


def _why(text: str) -> str:
    """What is wrong with a malformed address; empty where that is not known."""
    if not text.strip():
        return "it is empty"
    match = _LIKE_PCI.fullmatch(text) if len(text) < 64 else None
    if match is None:
        return ""
    domain, bus, device, function = match.groups()
    if function is None:
        return "a PCI address ends in a dot and the function, as in 03:00.0"
    for what, digits, most in (
        ("domain", domain, 0xFFFFFFFF),
        ("bus", bus, 0xFF),
        ("device", device, _PCI_DEVICES),
        ("function", function, 7),
    ):
        if digits is not None and (not digits or int(digits, 16) > most):
            return f"{what} {digits or 'none'} is not 0 to {most:x}"
    return "too many digits"


def bad(text: str, why: str = "") -> BadAddress:
    """The error for a text that is not an address; ``why`` says what is wrong with it."""
    shown = text if len(text) <= 200 else text[:200] + "..."
    if text in _WANTED:
        expected, remedy = _WANTED[text]
        return BadAddress(f"{shown!r} names no device", seen=shown, expected=expected, remedy=remedy)
    remedy = "`uvirtio list` shows the addresses of this machine, and `man uvirtio` all forms of an address"
    if text.endswith(_IMAGES):
        remedy = f"drive a raw disk image by qemu:q35,file={shown}/virtio-blk-pci, or by vhost-user:qsd/{shown}"
    return BadAddress(
        f"{shown!r} is not the address of a device" + (f": {why}" if why else ""),
        seen=shown,
        expected=LIKELY,
        remedy=remedy,
    )


def refuse(text: str, why: str = "") -> NoReturn:
    """Raise the error that ``bad`` makes.

    Raises:
        BadAddress: Always.
    """
    raise bad(text, why)


# --- questions about one text -------------------------------------------------------------------------------


def is_pci(name: str) -> bool:
    """Whether it is a PCI address without a prefix, as in sysfs."""
    return _pci(name) is not None and name[:1] not in "pP"


def is_virtio_name(name: str) -> bool:
    """Whether it is the name of a device on the virtio bus, such as ``virtio3``."""
    return _VIRTIO.fullmatch(name) is not None and "@" not in name


def is_vhost_vdpa_node(name: str) -> bool:
    """Whether it is a node of vhost_vdpa, such as ``/dev/vhost-vdpa-0``."""
    return _VHOST_VDPA.fullmatch(name) is not None


def is_mmio_platform_name(name: str) -> bool:
    """Whether a platform device of this name is a virtio-mmio window, judged by the name alone."""
    tree = _DEVICE_TREE.fullmatch(name)
    return tree[2] == "virtio_mmio" if tree else any(form.fullmatch(name) for form in (_ACPI, _COMMAND_LINE))


def mmio_base(name: str) -> int | None:
    """The physical address in a name such as ``mmio:0xfeb02e00`` or ``a003e00.virtio_mmio``; None in others."""
    address = _mmio(name)
    return None if address is None else address.base


def spellings(name: str) -> Iterator[str]:
    """Every spelling of an address that a deny list may contain, in lower case; the canonical one first."""
    try:
        address = parse(name)
    except BadAddress:
        yield name.lower()
        return
    yield address.canonical.lower()
    if address.family != "pci":
        return
    domain, bus, rest = address.name.split(":")
    device, function = rest.split(".")
    domains = {f"{domain}:", f"{int(domain, 16):x}:"} | ({""} if int(domain, 16) == 0 else set())
    for one in sorted(domains):
        for two in {bus, f"{int(bus, 16):x}"}:
            for three in {device, f"{int(device, 16):x}"}:
                for before in ("", "pci@", "pci/"):
                    yield f"{before}{one}{two}:{three}.{function}"
