"""Which index each optional queue of a balloon has (5.5.2).

The standard gives each queue an index of its own. Devices differ: most count only the queues that exist, either
those whose features they offer (QEMU, Firecracker, crosvm since 2025) or those whose features were negotiated
(Alioth, Linux's driver). So an index is used only where everything that the device shows leads to the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from uvirtio.device import QueueSpec
from uvirtio.errors import NotSupported, QueueError
from uvirtio.spec import balloon as spec
from uvirtio.spec import features as f

_OPTIONAL: Mapping[int, QueueSpec] = {
    f.Balloon.STATS_VQ: QueueSpec(spec.STATSQ, spec.STATSQ_NAME, size=16, required=False, owed=False),
    f.Balloon.FREE_PAGE_HINT: QueueSpec(spec.FREE_PAGE_VQ, spec.FREE_PAGE_VQ_NAME, size=64),
    f.Balloon.PAGE_REPORTING: QueueSpec(spec.REPORTING_VQ, spec.REPORTING_VQ_NAME, size=64),
}
"""By feature bit, in the standard's order; the index is the standard's."""


@dataclass(frozen=True, slots=True)
class _Numbering:
    """One way to number the queues: the index of each negotiated queue, and whether what is shown fits it."""

    rule: str
    indices: Mapping[int, int]
    fits: bool


def numbered(
    address: str, offered: int, negotiated: int, num_queues: int, exists: Callable[[int], bool]
) -> list[QueueSpec]:
    """Find the index that this device has each negotiated optional queue at.

    Args:
        address: The device's, for errors.
        offered: Feature bits that the device offered.
        negotiated: Feature bits that were negotiated.
        num_queues: How many queues the device shows, for errors.
        exists: Whether the device shows a queue of this index.

    Returns:
        The negotiated optional queues, in the standard's order.

    Raises:
        QueueError: The device shows no queue where one should be.
        NotSupported: What it shows allows more than one index for a queue.
    """
    taken = [bit for bit in _OPTIONAL if f.has(negotiated, bit)]
    shown = [queue.index for queue in _OPTIONAL.values() if exists(queue.index)]
    ways = [
        _as_standard(offered, taken, shown),
        _gapless("offered", offered, taken, shown),
        _gapless("negotiated", negotiated, taken, shown),
    ]
    if _differ(ways):
        ways = [way for way in ways if way.fits]
    if not ways:
        raise QueueError(
            f"{address} has no place for {', '.join(_OPTIONAL[bit].name for bit in taken)}",
            seen=f"{num_queues} queues, features {offered:#x} offered and {negotiated:#x} negotiated",
            expected="a queue for each feature, at its own index (5.5.2) or without gaps",
            remedy="leave hinting and reporting out",
        )
    if _differ(ways):
        raise NotSupported(
            f"which queue of {address} is which cannot be known",
            seen=f"{num_queues} queues; " + "; ".join(f"{way.rule}: {_places(way.indices)}" for way in ways),
            expected="one numbering that fits (5.5.2)",
            remedy=_remedy(offered & ~negotiated),
        )
    return [_OPTIONAL[bit]._replace(index=index) for bit, index in ways[0].indices.items()]


def _as_standard(offered: int, taken: Sequence[int], shown: Sequence[int]) -> _Numbering:
    # A device that offers statistics and has no queue for them is driven without; the other queues are required.
    needs = [queue.index for bit, queue in _OPTIONAL.items() if queue.required and f.has(offered, bit)]
    indices = {bit: _OPTIONAL[bit].index for bit in taken}
    return _Numbering("as the standard has it", indices, set(needs) <= set(shown))


def _gapless(which: str, counted: int, taken: Sequence[int], shown: Sequence[int]) -> _Numbering:
    there = [bit for bit in _OPTIONAL if f.has(counted, bit)]
    places = {bit: spec.STATSQ + place for place, bit in enumerate(there)}
    # More queues than features are no contradiction: some devices always show all five.
    fits = len(there) <= len(shown) and all(index == spec.STATSQ + place for place, index in enumerate(shown))
    return _Numbering(f"without gaps, by what is {which}", {bit: places[bit] for bit in taken}, fits)


def _differ(ways: Sequence[_Numbering]) -> bool:
    return any(way.indices != ways[0].indices for way in ways)


def _places(indices: Mapping[int, int]) -> str:
    return ", ".join(f"{_OPTIONAL[bit].name} {index}" for bit, index in indices.items())


def _remedy(left_out: int) -> str:
    if f.has(left_out, f.Balloon.STATS_VQ):
        return "let the device have statistics too (stats='auto'): then all numberings agree"
    return "leave hinting and reporting out: a queue of another meaning might get their pages"
