"""What feature bits are called, for people: the names behind ``spec.features``.

``features`` imports this module when one of its names is first asked for; a device that comes up as it should
wants none.
"""

from __future__ import annotations

from uvirtio.errors import Misuse
from uvirtio.spec import type_features as tables
from uvirtio.spec.feature_bits import LEGACY_ONLY, MAX_BITS, Kind, Reserved, bits, kind, mask
from uvirtio.spec.needs import Needs
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Final

# Bits of one type before 1.0, where a device-independent bit is now (5.1.3.2).
_NET_LEGACY_RSC: Final = {41: "GUEST_RSC4", 42: "GUEST_RSC6"}


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
    family = tables.DEVICE_BITS.get(type_name)
    own = mask(*family[0]) if family else 0
    return own | mask(*Reserved)


def needed(type_name: str, rule: Needs) -> str:
    """The names of the bits that a dependency asks for one of, as ``CTRL_VQ`` or ``GUEST_TSO4 or GUEST_TSO6``."""
    return " or ".join(feature(type_name, bit).name for bit in rule.any_of)
