"""Feature bits (2.2, 6): all 128, with their names, ranges and dependencies.

A *word* is the whole bitmap as one integer, bit 0 lowest. Bit *numbers* are in the enums; ``bit(n)`` makes
the mask. Names are the standard's without their ``VIRTIO_..._F_`` prefix. Where the kernel's header and the
standard differ (BALLOON_F_REPORTING), the standard's name is used.
"""

from __future__ import annotations

from collections.abc import Iterable

from uvirtio.spec.feature_bits import *  # noqa: F403
from uvirtio.spec.feature_bits import MAX_BITS, VERSION_1, has, mask
from uvirtio.spec.needs import Needs as Needs
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Final

    from uvirtio.spec.feature_names import *  # noqa: F403
    from uvirtio.spec.type_features import *  # noqa: F403


def _tables() -> ModuleType:
    from uvirtio.spec import type_features

    return type_features


def _words() -> ModuleType:
    from uvirtio.spec import feature_names

    return feature_names


if not TYPE_CHECKING:  # or every misspelt name would pass as Any

    def __getattr__(name: str) -> Any:
        """The tables of the device types, and what tells people of bits: each is imported when it is asked for."""
        for module in (_tables, _words) if not name.startswith("_") else ():
            if hasattr(module(), name):
                found = globals()[name] = getattr(module(), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- dependencies --------------------------------------------------------------------------------------------


RESERVED_DEPENDS: Final[tuple[Needs, ...]] = tuple(
    # A legacy interface has no word above the first (4.1.4.10): everything from 33 on needs VERSION_1.
    Needs(number, any_of)
    for any_of in ((VERSION_1,),)  # one for all of them
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


def unmet(word: int, dependencies: Iterable[Needs] = RESERVED_DEPENDS) -> list[Needs]:
    """Return the dependencies that ``word`` breaks; a device that offers such a word is at fault (2.2.2)."""
    return [rule for rule in dependencies if has(word, rule.bit) and not word & mask(*rule.any_of)]
