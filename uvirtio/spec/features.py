"""Feature bits (2.2, 6): all 128, with their names, ranges and dependencies.

A *word* is the whole bitmap as one integer, bit 0 lowest. Bit *numbers* are in the enums; ``bit(n)`` makes
the mask. Names are the standard's without their ``VIRTIO_..._F_`` prefix. Where the kernel's header and the
standard differ (BALLOON_F_REPORTING), the standard's name is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, IntEnum

from uvirtio.errors import Misuse
from uvirtio.spec.needs import Needs as Needs
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Final

    from uvirtio.spec.type_features import *  # noqa: F403

MAX_BITS: Final = 128  # what the transports carry today: four words of 32 bits (2.2, 4.1.4.3)
ALL: Final = (1 << MAX_BITS) - 1
LEGACY_MASK: Final = 0xFFFFFFFF  # a legacy interface has bits 0 to 31 only (4.1.4.10)


class Reserved(IntEnum):
    """The device-independent bits (6), and those of the legacy interface (6.3)."""

    NOTIFY_ON_EMPTY = 24  # 6.3, legacy only
    ANY_LAYOUT = 27  # 6.3, legacy only
    INDIRECT_DESC = 28  # 6
    EVENT_IDX = 29  # 6
    UNUSED = 30  # 6.3: QEMU's probe for broken drivers, not to be negotiated
    VERSION_1 = 32  # 6
    ACCESS_PLATFORM = 33  # 6
    RING_PACKED = 34  # 6
    IN_ORDER = 35  # 6
    ORDER_PLATFORM = 36  # 6
    SR_IOV = 37  # 6
    NOTIFICATION_DATA = 38  # 6
    NOTIF_CONFIG_DATA = 39  # 6
    RING_RESET = 40  # 6
    ADMIN_VQ = 41  # 6
    SUSPEND = 43  # 6


NOTIFY_ON_EMPTY: Final = Reserved.NOTIFY_ON_EMPTY
ANY_LAYOUT: Final = Reserved.ANY_LAYOUT
INDIRECT_DESC: Final = Reserved.INDIRECT_DESC
EVENT_IDX: Final = Reserved.EVENT_IDX
VERSION_1: Final = Reserved.VERSION_1
ACCESS_PLATFORM: Final = Reserved.ACCESS_PLATFORM
RING_PACKED: Final = Reserved.RING_PACKED
IN_ORDER: Final = Reserved.IN_ORDER
ORDER_PLATFORM: Final = Reserved.ORDER_PLATFORM
SR_IOV: Final = Reserved.SR_IOV
NOTIFICATION_DATA: Final = Reserved.NOTIFICATION_DATA
NOTIF_CONFIG_DATA: Final = Reserved.NOTIF_CONFIG_DATA
RING_RESET: Final = Reserved.RING_RESET
ADMIN_VQ: Final = Reserved.ADMIN_VQ
SUSPEND: Final = Reserved.SUSPEND

LEGACY_ONLY: Final = frozenset({NOTIFY_ON_EMPTY, ANY_LAYOUT, Reserved.UNUSED})
"""Bits that have a meaning on a legacy interface alone (6.3)."""


# Bits of one type before 1.0, where a device-independent bit is now (5.1.3.2).
_NET_LEGACY_RSC: Final = {41: "GUEST_RSC4", 42: "GUEST_RSC6"}


def _tables() -> ModuleType:
    from uvirtio.spec import type_features

    return type_features


if not TYPE_CHECKING:  # or every misspelt name would pass as Any

    def __getattr__(name: str) -> Any:
        """The tables of the device types, which are imported when one is asked for."""
        if not name.startswith("_") and hasattr(_tables(), name):
            found = globals()[name] = getattr(_tables(), name)
            return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def bit(number: int) -> int:
    """Return the mask with only bit ``number`` set."""
    return 1 << number


def mask(*numbers: int) -> int:
    """Return the word in which exactly the bits ``numbers`` are set."""
    word = 0
    for number in numbers:
        word |= 1 << number
    return word


def has(word: int, number: int) -> bool:
    """Return whether bit ``number`` is set in ``word``."""
    return bool(word >> number & 1)


def bits(word: int) -> list[int]:
    """Return the numbers of the bits set in ``word``, lowest first."""
    return [number for number in range(word.bit_length()) if word >> number & 1]


class Kind(Enum):
    """The ranges of feature bits (2.2)."""

    DEVICE = "device"  # 0 to 23, 41, 42, 50 to 127: the device type's
    RING = "ring"  # 24 to 40, 43: queues and negotiation
    FUTURE = "future"  # 44 to 49, 128 and up: reserved


def kind(number: int) -> Kind:
    """Return the range of bit ``number`` (2.2).

    ADMIN_VQ is 41, which 2.2 counts among the device types' bits; chapter 6 defines it for all types, so it is
    a ring bit here.
    """
    if number == ADMIN_VQ:
        return Kind.RING
    if number <= 23 or number == 42 or 50 <= number < MAX_BITS:
        return Kind.DEVICE
    if number <= 40 or number == 43:
        return Kind.RING
    return Kind.FUTURE


DEVICE_TYPE_MASK: Final = mask(*(number for number in range(MAX_BITS) if kind(number) is Kind.DEVICE))
"""The bits that belong to the device type, whatever the type."""


class FeatureBit(NamedTuple):
    """One feature bit of a device type."""

    bit: int
    name: str
    """The standard's name; ``bit N`` where it has none."""
    section: str
    """The section that defines it; empty where none does."""
    kind: Kind

    @property
    def known(self) -> bool:
        """Whether the standard or the kernel names the bit."""
        return self.name != f"bit {self.bit}"


def feature(type_name: str, number: int) -> FeatureBit:
    """Look up a feature bit.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        number: The bit.

    Returns:
        What the bit means for this type.
    """
    owner = kind(number)
    tables = _tables()
    if owner is Kind.DEVICE and type_name in tables.DEVICE_BITS:
        family, section = tables.DEVICE_BITS[type_name]
        for entry in family:
            if entry.value == number:
                return FeatureBit(
                    number, entry.name, tables.LEGACY_SECTIONS.get((type_name, number), section), owner
                )
    if owner is Kind.DEVICE and type_name == "net" and number in _NET_LEGACY_RSC:
        return FeatureBit(number, _NET_LEGACY_RSC[number], "5.1.3.2", owner)
    for reserved in Reserved:
        if reserved.value == number:
            return FeatureBit(number, reserved.name, "6.3" if reserved in LEGACY_ONLY else "6", owner)
    return FeatureBit(number, f"bit {number}", "", owner)


def names(type_name: str, word: int) -> list[FeatureBit]:
    """Look up every bit that is set in a word.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        word: The feature bits.

    Returns:
        The bits, lowest first, including those without a name.

    Raises:
        Misuse: ``word`` is negative.
    """
    if word < 0:
        raise Misuse("a feature word is not negative", seen=word, expected="0 or more")
    return [feature(type_name, number) for number in bits(word)]


def numbered(type_name: str, text: str) -> int | None:
    """The number of a feature bit that is written as a name of this type or as a number; None: there is none.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        text: ``EVENT_IDX``, ``event_idx``, ``VIRTIO_F_EVENT_IDX``, ``29`` or ``0x1d``.
    """
    plain = text.strip().upper().replace("-", "_")
    if plain.isascii() and plain[:1].isdigit():
        try:
            number = int(plain, 0)
        except ValueError:
            return None
        return number if number < MAX_BITS else None
    import re  # here: few starts name a bit

    plain = re.sub(rf"^VIRTIO_(F|RING_F|{re.escape(type_name.upper())}_F)_", "", plain)
    return next((bit for bit in bits(known(type_name)) if feature(type_name, bit).name == plain), None)


class Decoded(NamedTuple):
    """The bits of a word by range (2.2)."""

    device: list[FeatureBit]
    """Those of the device type."""
    ring: list[FeatureBit]
    """Those of queues and negotiation."""
    future: list[FeatureBit]
    """Reserved ones."""


def decode(type_name: str, word: int) -> Decoded:
    """Look up every bit that is set in a word, by range.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        word: The feature bits.

    Raises:
        Misuse: ``word`` is negative.
    """
    found = names(type_name, word)
    return Decoded(
        device=[entry for entry in found if entry.kind is Kind.DEVICE],
        ring=[entry for entry in found if entry.kind is Kind.RING],
        future=[entry for entry in found if entry.kind is Kind.FUTURE],
    )


def known(type_name: str) -> int:
    """Return the word of all bits that have a name for this type: its own and the device-independent ones."""
    family = _tables().DEVICE_BITS.get(type_name)
    own = mask(*family[0]) if family else 0
    return own | mask(*Reserved)


# --- dependencies --------------------------------------------------------------------------------------------


RESERVED_DEPENDS: Final[tuple[Needs, ...]] = tuple(
    # A legacy interface has no word above the first (4.1.4.10): everything from 33 on needs VERSION_1.
    Needs(number, (VERSION_1,))
    for number in range(33, MAX_BITS)
)


WITH_DEPENDENCIES: Final = frozenset({"net", "blk", "balloon", "gpu", "crypto", "can"})
"""The device types that ``DEPENDS`` has: the others start without it."""


def dependencies(type_name: str) -> tuple[Needs, ...]:
    """Return all dependencies of a device type: those of every device, and its own."""
    return RESERVED_DEPENDS + (_tables().DEPENDS[type_name] if type_name in WITH_DEPENDENCIES else ())


def device_dependencies(type_name: str) -> tuple[Needs, ...]:
    """Return the dependencies that a device of this type has to keep in its offer (2.2.2).

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
    """
    left = _tables().OF_DRIVERS.get(type_name, frozenset())
    return tuple(rule for rule in dependencies(type_name) if rule.bit not in left)


def resolve(offered: int, wanted: int, dependencies: Iterable[Needs] = RESERVED_DEPENDS) -> int:
    """Choose the feature bits to accept (2.2.1): offered and wanted, without those whose dependency is not met.

    Dropping one bit can break the dependency of another, so this repeats until nothing changes; every round but
    the last drops at least one bit.

    Args:
        offered: The word that the device offers.
        wanted: The word that the driver supports.
        dependencies: Which bit needs which.

    Returns:
        The word to accept.
    """
    rules = tuple(dependencies)
    taken = offered & wanted
    while True:
        dropped = mask(*(rule.bit for rule in rules if has(taken, rule.bit) and not taken & mask(*rule.any_of)))
        if not dropped:
            return taken
        taken &= ~dropped


def needed(type_name: str, rule: Needs) -> str:
    """The names of the bits that a dependency asks for one of, as ``CTRL_VQ`` or ``GUEST_TSO4 or GUEST_TSO6``."""
    return " or ".join(feature(type_name, bit).name for bit in rule.any_of)


def unmet(word: int, dependencies: Iterable[Needs] = RESERVED_DEPENDS) -> list[Needs]:
    """Return the dependencies that ``word`` breaks; a device that offers such a word is at fault (2.2.2)."""
    return [rule for rule in dependencies if has(word, rule.bit) and not word & mask(*rule.any_of)]
