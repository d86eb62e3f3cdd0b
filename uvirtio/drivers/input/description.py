"""What an input device says that it is (5.8.4), and a version of it that the kernel takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from uvirtio.spec import input as spec

SLOTS_MAX = 1024
"""Contacts of a multi-touch device. The kernel refuses more, and a device may claim 2^31."""

_INT_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class InputIds:
    """Bus type, vendor, product and version, 16 bits each (5.8.4)."""

    bustype: int
    vendor: int
    product: int
    version: int


@dataclass(frozen=True, slots=True)
class AbsInfo:
    """Range and noise of an absolute axis (5.8.4), as the device gave them."""

    minimum: int
    maximum: int
    fuzz: int
    flat: int
    resolution: int

    def problems(self) -> list[str]:
        """What makes no sense in it, in words; empty for a sound axis."""
        found = []
        if self.maximum < self.minimum:
            found.append(f"max {self.maximum} is below min {self.minimum}")
        elif self.maximum - self.minimum > _INT_MAX:
            found.append("the range does not fit 31 bits")
        found += [
            f"{name} is negative: {value}"
            for name, value in (("fuzz", self.fuzz), ("flat", self.flat), ("resolution", self.resolution))
            if value < 0
        ]
        reach = max(0, self.maximum - self.minimum)
        found += [
            f"{name} {value} is wider than the range"
            for name, value in (("fuzz", self.fuzz), ("flat", self.flat))
            if value > reach
        ]
        return found

    def sane(self) -> AbsInfo:
        """The nearest description that the kernel takes for an axis (uinput_validate_absinfo)."""
        low, high = min(self.minimum, self.maximum), max(self.minimum, self.maximum)
        high = min(high, low + _INT_MAX)
        reach = high - low
        fuzz, flat = (min(max(0, value), reach) for value in (self.fuzz, self.flat))
        return AbsInfo(low, high, fuzz, flat, max(0, self.resolution))


@dataclass(frozen=True, slots=True)
class Description:
    """All that a device says about itself: ``events`` by type, ``axes`` by code of EV_ABS."""

    name: str
    serial: str = ""
    ids: InputIds = InputIds(0, 0, 0, 0)
    properties: frozenset[int] = frozenset()
    events: Mapping[int, frozenset[int]] = field(default_factory=dict)
    axes: Mapping[int, AbsInfo] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Contacts that a multi-touch device tells apart, between 0 (it is none) and SLOTS_MAX."""
        if spec.ABS_MT_SLOT not in self.events.get(spec.EV_ABS, ()) or spec.ABS_MT_SLOT not in self.axes:
            return 0
        return min(max(self.axes[spec.ABS_MT_SLOT].maximum, 0) + 1, SLOTS_MAX)

    def can(self, event_type: int, code: int) -> bool:
        """Whether the device announces this event; SYN needs no announcement."""
        return event_type == spec.EV_SYN or code in self.events.get(event_type, ())

    def problems(self) -> list[str]:
        """What makes no sense in it, in words."""
        found = [
            f"{spec.code_name(spec.EV_ABS, axis)}: {problem}"
            for axis, info in sorted(self.axes.items())
            for problem in info.problems()
        ]
        for axis in sorted(set(self.events.get(spec.EV_ABS, ())) - set(self.axes)):
            found.append(f"{spec.code_name(spec.EV_ABS, axis)}: announced, and no range is given")
        if spec.ABS_MT_SLOT in self.axes and self.axes[spec.ABS_MT_SLOT].maximum >= SLOTS_MAX:
            found.append(f"ABS_MT_SLOT: more than {SLOTS_MAX} slots")
        return found

    def sane(self) -> Description:
        """The nearest description that uinput takes: known types, codes in range, sound axes, few slots."""
        events = {
            kind: frozenset(code for code in codes if code < spec.CODE_COUNTS[kind])
            for kind, codes in self.events.items()
            if kind in spec.CODE_COUNTS and kind not in (spec.EV_SYN, spec.EV_FF)  # effects would need an upload
        }
        axes = {code: self.axes.get(code, AbsInfo(0, 0, 0, 0, 0)).sane() for code in events.get(spec.EV_ABS, ())}
        if spec.ABS_MT_SLOT in axes:
            axes[spec.ABS_MT_SLOT] = AbsInfo(0, max(self.slots, 1) - 1, 0, 0, 0)
        properties = frozenset(one for one in self.properties if one < spec.PROP_COUNT)
        return replace(self, events=events, axes=axes, properties=properties)
