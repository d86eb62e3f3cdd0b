"""Addresses of devices that QEMU models: ``qemu:[MACHINE[,KEY=VALUE].../]DEVICE``.

MACHINE is one of ``MACHINES`` (q35 by default), the keys are those of this module, and DEVICE is QEMU's own
``-device`` argument, which begins with ``virtio-``. The split is at the first ``/virtio-NAME`` that is followed
by a comma or the end, so a path in a value may hold ``/virtio-`` anywhere but at its end.
"""

from __future__ import annotations

from uvirtio.backends.qemu.models import MIB, MODELS, WHY_LITTLE, is_big_endian
from uvirtio.errors import BadAddress
from uvirtio.host.pattern import Pattern
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import NoReturn

PREFIX = "qemu:"
MACHINES = tuple(MODELS)
MMIO_MACHINES = tuple(name for name, model in MODELS.items() if model.mmio is not None)
KEYS = ("ram", "legacy", "iommu", "qmp", "binary", "file")
IOMMUS = ("none", "intel", "virtio")

RAM_DEFAULT = 512 * MIB
"""In bytes; a machine that takes no less than its ``least`` has that."""

RAM_MAXIMUM = 256 << 30

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
"""Of a device's name."""

_SPLIT = Pattern(r"/(?=virtio-[a-z0-9-]+(?:,|\Z))")
_RUNNING = Pattern(r"[a-z0-9]+@[0-9]+/")
_SIZE = Pattern(r"([0-9]{1,12})([KMGT]?)(?:i?B)?")
_UNIT = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SYNTAX = "qemu:[MACHINE[,KEY=VALUE].../]DEVICE"
_EXAMPLE = "for example qemu:virtio-rng-pci, or qemu:pc,ram=1G/virtio-balloon-pci"


class QemuAddress(NamedTuple):
    """A parsed ``qemu:`` address."""

    text: str
    """The address as given, which is also its canonical form."""

    machine: str
    device: str
    """QEMU's ``-device`` argument."""

    ram: int = RAM_DEFAULT
    """Guest memory, in bytes."""

    legacy: bool | None = None
    """virtio-mmio of version 1 (True) or 2 (False); None: QEMU's default."""

    iommu: str = "none"
    qmp: str | None = None
    binary: str | None = None
    file: str | None = None
    """A raw disk image, for a virtio-blk or virtio-scsi device."""

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> QemuAddress:
    """Parse an address.

    Raises:
        BadAddress: It is malformed, or names what is not known here; the remedy has what to write instead.
    """
    if not text.startswith(PREFIX):
        _bad(text, "is not the address of a QEMU device", seen=text[: len(PREFIX)], expected=f"{PREFIX} in front")
    if not text.isprintable():
        _bad(text, "holds a character that cannot be printed", seen=repr(text), expected="printable text")
    rest = text.removeprefix(PREFIX)
    if not rest:
        _bad(text, "names no device", seen=text, expected=_SYNTAX)
    if _is_device(rest):
        return QemuAddress(text=text, machine="q35", device=rest)
    if _RUNNING.match(rest):
        _bad(
            text,
            "is a device of a QEMU that is already running",
            seen=text,
            expected="an address that starts a QEMU of its own",
            remedy="open it from its machine: machine.open(0), or uvirtio.open(machine.functions[0])",
        )
    split = _SPLIT.search(rest)
    if split is None:
        head, _, tail = rest.partition("/")
        model = MODELS.get(head.partition(",")[0])
        if model is not None and not tail:
            kind = "device" if model.pci is None else "pci"
            _bad(
                text,
                "names a machine and no device",
                seen=text,
                expected=_SYNTAX,
                remedy=f"name a device, for example {PREFIX}{head}/virtio-rng-{kind}",
            )
        device = rest.rpartition("/")[2]
        _bad(text, "is not a virtio device that QEMU has", seen=device, expected="DEVICE begins with virtio-")
    head, device = rest[: split.start()], rest[split.end() :]
    machine, *pairs = head.split(",")
    if is_big_endian(machine):
        _bad(
            text,
            f"is on a big-endian machine: {WHY_LITTLE}",
            seen=machine,
            expected=" ".join(MACHINES),
            remedy="use one of these machines; q35, for example: qemu:virtio-rng-pci",
        )
    if machine not in MACHINES:
        _bad(text, "names an unknown machine", seen=machine, expected=" ".join(MACHINES))
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in KEYS:
            _bad(text, f"has no key {key!r}", seen=pair, expected=" ".join(f"{name}=" for name in KEYS))
        if not equals or not value:
            _bad(text, f"gives {key} no value", seen=pair, expected=f"{key}=VALUE")
        if key in values:
            _bad(text, f"gives {key} twice", seen=pair, expected="each key once")
        values[key] = value
    return QemuAddress(
        text=text,
        machine=machine,
        device=device,
        ram=_ram(text, machine, values["ram"]) if "ram" in values else ram_of(machine),
        legacy=_legacy(text, machine, values.get("legacy")),
        iommu=_choice(text, "iommu", values.get("iommu", "none"), IOMMUS),
        qmp=values.get("qmp"),
        binary=values.get("binary"),
        file=_file(text, device, values.get("file")),
    )


def _is_device(text: str) -> bool:
    name = text.partition(",")[0]
    return name.startswith("virtio-") and name != "virtio-" and _LETTERS.issuperset(name)


def _bad(text: str, why: str, *, seen: str, expected: str, remedy: str | None = None) -> NoReturn:
    raise BadAddress(
        f"{text!r} {why}",
        seen=seen,
        expected=expected,
        remedy=remedy or f"write {_SYNTAX}, {_EXAMPLE}",
    )


def _choice(text: str, key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        _bad(text, f"has an unknown value for {key}", seen=f"{key}={value}", expected=" ".join(allowed))
    return value


def _legacy(text: str, machine: str, value: str | None) -> bool | None:
    if value is None:
        return None
    if machine not in MMIO_MACHINES:
        _bad(
            text,
            "has legacy=, which is for virtio-mmio",
            seen=f"machine {machine}",
            expected=f"legacy= with {' or '.join(MMIO_MACHINES)}",
            remedy="for a legacy PCI device append disable-modern=on to DEVICE",
        )
    return _choice(text, "legacy", value, ("on", "off")) == "on"


def _file(text: str, device: str, value: str | None) -> str | None:
    if value is not None and (not device.startswith(("virtio-blk", "virtio-scsi")) or ",drive=" in device):
        _bad(
            text,
            "has file=, which is for a disk",
            seen=device,
            expected="a virtio-blk device without drive=, or a virtio-scsi device",
            remedy="leave file= out",
        )
    return value


def _ram(text: str, machine: str, value: str) -> int:
    match = _SIZE.fullmatch(value)
    size = int(match[1]) * _UNIT[match[2]] if match else 0
    least = MODELS[machine].ram.least
    if not least <= size <= RAM_MAXIMUM or size % MIB:
        _bad(
            text,
            "has no usable size of memory",
            seen=f"ram={value}",
            expected=f"{least // MIB}M to {RAM_MAXIMUM >> 30}G, whole MiB",
            remedy=f"write ram={ram_of(machine) // MIB}M, or leave it out",
        )
    return size


def ram_of(machine: str) -> int:
    """Return the length of a machine's memory unless another is asked for, in bytes."""
    return max(RAM_DEFAULT, MODELS[machine].ram.least)
