"""Addresses of devices made of Python: ``scripted:TYPE[,SWITCH[=VALUE]...]``.

    scripted:rng                       an honest entropy source
    scripted:blk,silent                a disk that never answers
    scripted:balloon,transport=mmio,no-vectors=0+1

A switch is a fault of ``Faults``, a lie of ``Lies``, a lie of the type's own model, or how the device is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, NoReturn

from uvirtio.errors import BadAddress, NotSupported, UvirtioError
from uvirtio.scripted.answering import Answering
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.blk import Disk
from uvirtio.scripted.console import Console
from uvirtio.scripted.core import RING_FEATURES, ScriptedCore
from uvirtio.scripted.crypto import Crypto
from uvirtio.scripted.fs import Fs
from uvirtio.scripted.gpu import Gpu
from uvirtio.scripted.input import Input
from uvirtio.scripted.iommu import Iommu
from uvirtio.scripted.legacy import ScriptedLegacy
from uvirtio.scripted.mem import Mem
from uvirtio.scripted.mmio import ScriptedMmio
from uvirtio.scripted.model import Model
from uvirtio.scripted.net import Net
from uvirtio.scripted.ninep import NineP
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.pmem import Pmem
from uvirtio.scripted.rng import Rng
from uvirtio.scripted.rtc import Rtc
from uvirtio.scripted.scsi import ScsiHost
from uvirtio.scripted.sound import Sound
from uvirtio.scripted.vsock import Vsock
from uvirtio.spec import features as f
from uvirtio.spec import mmio, pci

PREFIX: Final = "scripted:"

TYPES: Final[dict[str, Callable[..., Model]]] = {
    "rng": Rng,
    "blk": Disk,
    "balloon": Balloon,
    "mem": Mem,
    "input": Input,
    "scsi": ScsiHost,
    "net": Net,
    "console": Console,
    "9p": NineP,
    "gpu": Gpu,
    "rtc": Rtc,
    "vsock": Vsock,
    "crypto": Crypto,
    "iommu": Iommu,
    "sound": Sound,
    "fs": Fs,
    "pmem": Pmem,
}
"""The device types that there is a model of, by name."""

_LEGACY_BAR_SIZE: Final = 128  # room for the whole configuration of every type

TRANSPORTS: Final = ("pci", "legacy", "transitional", "mmio", "mmio-legacy")


@dataclass(slots=True)
class _Parts:
    """What the switches of an address add up to."""

    type: str
    transport: str = "pci"
    packed: bool = False
    device: dict[str, Any] = field(default_factory=dict)
    """Keywords of the device, the faults among them."""
    model: dict[str, Any] = field(default_factory=dict)
    """Keywords of the model."""
    lies: dict[str, Any] = field(default_factory=dict)
    """Attributes of ``Lies``."""
    set: dict[str, Any] = field(default_factory=dict)
    """Attributes of the model."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch of a ``scripted:`` address."""

    name: str
    value: str
    """What follows ``=`` in words, empty where nothing does."""
    help: str
    apply: Callable[[_Parts, str], None]
    types: tuple[str, ...] = ()
    """The device types that have it; empty: all."""


class _Unfit(Exception):
    """A value that the switch cannot have."""


# --- values -----------------------------------------------------------------------------------------------------


def _number(text: str) -> int:
    return int(text, 0)


def _within(least: int, most: int) -> Callable[[str], int]:
    """A number of a field: what does not fit it would end in the device model, not in the driver."""

    def read(text: str) -> int:
        number = _number(text)
        if not least <= number <= most:
            raise _Unfit
        return number

    return read


def _wide(bits: int) -> Callable[[str], int]:
    return _within(0, (1 << bits) - 1)


_count = _within(-1, (1 << 31) - 1)  # -1: without end
_features = _wide(f.MAX_BITS)
_u16 = _wide(16)
_vectors = _within(0, pci.MSIX_MAX_VECTORS)
_signed = _within(-(1 << 63), (1 << 63) - 1)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < inf:
        raise _Unfit
    return seconds


def _numbers(text: str) -> frozenset[int]:
    return frozenset(map(_u16, text.split("+")))


def _by_queue(text: str) -> dict[int, int]:
    pairs = (pair.split(":") for pair in text.split("+"))
    return {_u16(queue): _u16(value) for queue, value in pairs}


def _word(parts: _Parts, text: str) -> int:
    """Feature bits by name or number, joined with ``+``."""
    bits = [f.numbered(parts.type, one) for one in text.split("+")]
    if None in bits:
        raise _Unfit
    return f.mask(*(bit for bit in bits if bit is not None))


def _bent(text: str, width: int) -> Callable[[int], int]:
    """``+N`` and ``-N`` are added to the true value, ``N`` stands instead of it."""
    number = _number(text)
    if text[0] in "+-":
        return lambda value: (value + number) % (1 << width)
    return lambda value: number % (1 << width)


# --- the switches -----------------------------------------------------------------------------------------------


def _fault(name: str, read: Callable[[str], Any]) -> Callable[[_Parts, str], None]:
    def apply(parts: _Parts, text: str) -> None:
        parts.device[name] = read(text)

    return apply


def _flag(name: str, value: Any = True) -> Callable[[_Parts, str], None]:
    def apply(parts: _Parts, text: str) -> None:
        parts.device[name] = value

    return apply


def _bits(name: str) -> Callable[[_Parts, str], None]:
    def apply(parts: _Parts, text: str) -> None:
        parts.device[name] = _word(parts, text)

    return apply


def _lie(name: str, width: int) -> Callable[[_Parts, str], None]:
    def apply(parts: _Parts, text: str) -> None:
        parts.lies[name] = _bent(text, width)

    return apply


def _of_model(name: str, read: Callable[[str], Any]) -> Callable[[_Parts, str], None]:
    def apply(parts: _Parts, text: str) -> None:
        parts.set[name] = read(text)

    return apply


def _transport(parts: _Parts, text: str) -> None:
    if text not in TRANSPORTS:
        raise _Unfit
    parts.transport = text


def _packed(parts: _Parts, text: str) -> None:
    parts.packed = True


def _used_flags(parts: _Parts, text: str) -> None:
    parts.lies["used_flags"] = _u16(text)


def _duplicate(parts: _Parts, text: str) -> None:
    parts.lies["duplicate"] = True


def _when(text: str) -> str:
    if text not in ("driver_ok", "kick"):
        raise _Unfit
    return text


def _pair(text: str) -> tuple[int, int]:
    first, second = text.split(":")
    return _wide(8)(first), _wide(8)(second)


ANSWERING: Final = tuple(
    name for name, model in TYPES.items() if isinstance(model, type) and issubclass(model, Answering)
)
"""Types without a driver, whose models share their lies."""

SWITCHES: Final = (
    # How it is built.
    Switch("transport", "|".join(TRANSPORTS), "the registers in front of it", _transport),
    Switch("features", "WORD", "the feature word that it offers", _fault("features", _features)),
    Switch("packed", "", "offer packed rings", _packed),
    Switch("access-platform", "", "offer ACCESS_PLATFORM, behind an IOMMU", _flag("access_platform")),
    Switch("vectors", "N", "the size of its MSI-X table", _fault("vectors", _vectors)),
    Switch("no-intx", "", "no interrupt line", _flag("intx", False)),
    Switch("memory-off", "", "memory decoding is off", _flag("memory_off")),
    Switch("power-state", "N", "the power state, D0 to D3", _fault("power_state", _within(0, 3))),
    # Negotiation.
    Switch("refuse-features", "", "FEATURES_OK does not stick", _flag("refuse_features")),
    Switch("refuse-with", "BIT+...", "FEATURES_OK does not stick with all of them", _bits("refuse_with")),
    Switch("refuse-without", "BIT+...", "FEATURES_OK does not stick without them", _bits("refuse_without")),
    Switch("features-later", "WORD", "another offer at the second reading", _fault("features_later", _features)),
    Switch("status-or", "BYTE", "bits that every status read has on top", _fault("status_or", _wide(8))),
    Switch("needs-reset-at", "driver_ok|kick", "when DEVICE_NEEDS_RESET goes up", _fault("needs_reset_at", _when)),
    Switch("reset-reads", "N", "status reads until a reset is done; -1: never", _fault("reset_reads", _count)),
    Switch("reset-seconds", "S", "how long a reset takes", _fault("reset_seconds", _seconds)),
    Switch("generation-bumps", "N", "reads that find a new one; -1: all", _fault("generation_bumps", _count)),
    # Queues.
    Switch("num-queues", "N", "what num_queues reads", _fault("num_queues", _u16)),
    Switch("queue-size", "QUEUE:N+...", "what queue_size reads at first", _fault("queue_size", _by_queue)),
    Switch("queue-size-stuck", "", "queue_size takes no value", _flag("queue_size_stuck")),
    Switch("address-mask", "MASK", "the bits of queue addresses that it keeps", _fault("address_mask", _wide(64))),
    Switch("enabled-before", "", "queue_enable reads 1 too early", _flag("enabled_before")),
    Switch("never-enables", "", "queue_enable reads 0 after 1", _flag("never_enables")),
    Switch("queue-reset-reads", "N", "reads until a queue reset is done; -1: never",
           _fault("queue_reset_reads", _count)),
    # Kicks and interrupts.
    Switch("no-vectors", "N+...", "vectors that read back NO_VECTOR", _fault("no_vectors", _numbers)),
    Switch("msix-fails", "", "MSI-X cannot be turned on", _flag("msix_fails")),
    Switch("silent", "", "kicks do nothing", _flag("silent")),
    Switch("silent-queues", "N+...", "kicks of these queues do nothing", _fault("silent_queues", _numbers)),
    Switch("silent-with", "BIT+...", "kicks do nothing with all of these accepted", _bits("silent_with")),
    Switch("lose-interrupts", "", "completions come without interrupts", _flag("lose_interrupts")),
    # What it writes into rings.
    Switch("used-id", "N|+N|-N", "the id of used elements", _lie("used_id", 32)),
    Switch("used-len", "N|+N|-N", "the length of used elements", _lie("used_len", 32)),
    Switch("used-idx", "N|+N|-N", "the used index", _lie("used_idx", 16)),
    Switch("avail-event", "N|+N|-N", "where it wants its next kick", _lie("avail_event", 16)),
    Switch("used-flags", "N", "the flags of the used ring", _used_flags),
    Switch("duplicate", "", "every completion comes twice", _duplicate),
    # Its type's own.
    Switch("at-most", "N", "bytes that it gives at once", _of_model("at_most", _wide(32)), ("rng",)),
    Switch("status", "N", "the status of every request", _of_model("always", _wide(8)), ("blk", "scsi")),
    Switch("no-status", "", "the status byte is not written", _of_model("no_status", bool), ("blk", "scsi")),
    Switch("response", "N", "the response to every command", _of_model("response", _wide(8)), ("scsi",)),
    Switch("residual", "N", "the residual of every command", _of_model("residual", _wide(32)), ("scsi",)),
    Switch("sense-len", "N", "the length of sense data", _of_model("sense_len", _wide(32)), ("scsi",)),
    Switch("luns", "N", "the length of the list of units", _of_model("listed", _wide(32)), ("scsi",)),
    Switch("answer", "N", "the response to every request", _of_model("always", _wide(16)), ("mem",)),
    Switch("written", "N", "the length that it claims", _of_model("written", _wide(32)),
           ("blk", "mem", "scsi", "net")),
    Switch("busy", "", "BUSY where it may say so", _of_model("busy", bool), ("mem",)),
    Switch("size-lie", "N", "plugged_size is off by so many bytes", _of_model("size_lie", _signed), ("mem",)),
    Switch("actual", "N", "what `actual` reads, whatever is written", _of_model("actual_stays", _wide(32)),
           ("balloon",)),
    Switch("hold", "", "requests are kept", _of_model("hold", bool), ("blk", "balloon", "scsi", "net")),
    Switch("size", "N", "the size of every selection", _of_model("size_lie", _wide(8)), ("input",)),
    Switch("stuck", "SELECT:SUBSEL", "the selection that it always shows", _of_model("stuck", _pair), ("input",)),
    Switch("num-buffers", "N", "num_buffers of every frame", _of_model("num_buffers", _u16), ("net",)),
    Switch("header-flags", "N", "flags that its headers have", _of_model("header_flags", _wide(8)), ("net",)),
    Switch("untouched", "", "answers count, and are not written", _of_model("untouched", bool), ANSWERING),
    Switch("garbled", "", "answers are not those to the request", _of_model("garbled", bool), ANSWERING),
    Switch("ack", "N", "the answer to every command", _of_model("ack", _wide(8)), ("net",)),
)  # fmt: skip
"""Every switch, in the order of a device's life."""

_WITH_MSIX: Final = ("pci", "legacy", "transitional")
_WITH_CAPABILITIES: Final = ("pci", "transitional")
_MODERN: Final = ("pci", "transitional", "mmio")

_ONLY_ON: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("vectors", "no-vectors", "msix-fails"), _WITH_MSIX),
    **dict.fromkeys(("memory-off", "power-state", "num-queues", "queue-size-stuck"), _WITH_CAPABILITIES),
    **dict.fromkeys(("refuse-features", "refuse-with", "refuse-without"), _MODERN),
    **dict.fromkeys(("generation-bumps", "queue-reset-reads"), _MODERN),
    "packed": ("pci", "mmio"),
}
"""The transports that have the register a switch is about, where not all do: elsewhere it would do nothing."""


def switches(type_name: str) -> dict[str, Switch]:
    """The switches of a device type, by name."""
    return {one.name: one for one in SWITCHES if not one.types or type_name in one.types}


def build(address: str) -> ScriptedCore:
    """The device of a ``scripted:`` address.

    Args:
        address: ``scripted:TYPE[,SWITCH[=VALUE]...]``.

    Returns:
        A PciFunction or MmioWindow, to be opened or handed to ``diagnose``.

    Raises:
        BadAddress: No such type or switch, or a value that it cannot have.
    """
    return _made(address, _parsed(address))


def _parsed(address: str) -> _Parts:
    type_name, *given = address.removeprefix(PREFIX).split(",")
    if type_name not in TYPES:
        _refuse(address, f"there is no scripted {type_name or 'device'}", type_name, list(TYPES))
    known, parts = switches(type_name), _Parts(type_name)
    for one in given:
        name, equals, value = one.partition("=")
        switch = known.get(name)
        if switch is None:
            _refuse(address, f"{type_name} has no switch {name!r}", name, list(known))
        if bool(equals) != bool(switch.value):
            wanted = f"{name}={switch.value}" if switch.value else name
            _refuse(address, f"{name} takes {'a' if switch.value else 'no'} value", one, [wanted])
        try:
            # A flag without a value is True: bool of its own name.
            switch.apply(parts, value or name)
        except (ValueError, IndexError, _Unfit):
            _refuse(address, f"{name} cannot be {value!r}", value, [f"{name}={switch.value}"])
    for one in given:
        fits = _ONLY_ON.get(one.partition("=")[0], TRANSPORTS)
        if parts.transport not in fits:
            _refuse(address, f"{one} means nothing with transport={parts.transport}", parts.transport, [*fits])
    return parts


def _made(address: str, parts: _Parts) -> ScriptedCore:
    model = TYPES[parts.type](**parts.model)
    for name, value in parts.set.items():
        setattr(model, name, value)
    # 6.2: where addresses are translated a device should offer ACCESS_PLATFORM, and it is said to offer it.
    how = {"address": address, "translates": "access_platform" in parts.device, **parts.device}
    try:
        if parts.packed and "features" not in how:
            how["features"] = RING_FEATURES | model.features | f.mask(f.RING_PACKED)
        if parts.transport.startswith("mmio"):
            how["line"] = how.pop("intx", True)
            version = mmio.VERSION_LEGACY if parts.transport == "mmio-legacy" else mmio.VERSION
            device: ScriptedCore = ScriptedMmio(model, version=version, **how)
        elif parts.transport == "pci":
            device = ScriptedDevice(model, **how)
        else:
            if "features" in how:
                how["legacy_features"] = how.pop("features") & f.LEGACY_MASK
            device = ScriptedLegacy(
                model, bar_size=_LEGACY_BAR_SIZE, transitional=parts.transport == "transitional", **how
            )
    except (StopIteration, TypeError):
        _refuse(address, f"{parts.type} has no transport {parts.transport}", parts.transport, ["pci", "mmio"])
    for name, value in parts.lies.items():
        setattr(device.lies, name, value)
    if isinstance(model, Mem):
        # So that nothing takes the addresses of its region for those of this machine's memory.
        device.plugged_memory = _no_memory  # type: ignore[attr-defined]
    return device


def _no_memory() -> NoReturn:
    """The ability ``ProvidesMemory`` of a device that has none behind its numbers.

    Raises:
        NotSupported: Always.
    """
    raise NotSupported(
        "there is no memory behind a device of a scripted: address",
        seen="a device made of Python",
        expected="a device of this machine, or of QEMU",
        remedy="qemu:virtio-mem-pci has memory that can be plugged and used",
    )


def _refuse(address: str, why: str, seen: str, known: list[str]) -> NoReturn:
    near = difflib.get_close_matches(seen, known, 3) or known
    error: UvirtioError = BadAddress(
        f"{address!r} is not the address of a scripted device: {why}",
        seen=seen or "nothing",
        expected=", ".join(near),
        remedy="docs/scripted.md lists the types and switches of scripted devices",
    )
    raise error
