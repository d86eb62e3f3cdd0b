"""The description of an input device (5.8.4), and its nearest version that the kernel accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from uvirtio.spec import input as spec

SLOTS_MAX = 1024
"""Most slots (contacts) of a multi-touch device. The kernel refuses more, and a device may claim 2^31."""

_INT_MAX = (1 << 31) - 1

_JOYSTICK = frozenset(range(spec.BTN_JOYSTICK, spec.BTN_DIGI))
"""Buttons of joysticks and game pads."""

_POSITIONS = (spec.ABS_X, spec.ABS_Y, spec.ABS_MT_POSITION_X, spec.ABS_MT_POSITION_Y)
"""Axes whose resolution is in units per millimetre (<linux/input.h>, struct input_absinfo)."""


@dataclass(frozen=True, slots=True)
class InputIds:
    """Bus type, vendor, product and version, 16 bits each (5.8.4)."""

    bustype: int
    vendor: int
    product: int
    version: int


@dataclass(frozen=True, slots=True)
class AbsInfo:
    """Range and noise of an absolute axis (5.8.4), as the device reports them; signed, 32 bits."""

    minimum: int
    maximum: int
    fuzz: int
    flat: int
    resolution: int

    def problems(self) -> list[str]:
        """Return what is invalid in it, in words; empty for a valid axis."""
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
        """Return the nearest description that the kernel accepts (uinput_validate_absinfo)."""
        low, high = min(self.minimum, self.maximum), max(self.minimum, self.maximum)
        high = min(high, low + _INT_MAX)
        reach = high - low
        fuzz, flat = (min(max(0, value), reach) for value in (self.fuzz, self.flat))
        return AbsInfo(low, high, fuzz, flat, max(0, self.resolution))


@dataclass(frozen=True, slots=True)
class Description:
    """Everything that a device reports about itself (5.8.4)."""

    name: str
    serial: str = ""
    ids: InputIds = InputIds(0, 0, 0, 0)
    properties: frozenset[int] = frozenset()
    """INPUT_PROP_* numbers."""
    events: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """Event codes, by event type."""
    axes: Mapping[int, AbsInfo] = field(default_factory=dict)
    """Ranges, by code of EV_ABS."""

    @property
    def slots(self) -> int:
        """Slots of a multi-touch device, at most ``SLOTS_MAX``; 0 for other devices."""
        if spec.ABS_MT_SLOT not in self.events.get(spec.EV_ABS, ()) or spec.ABS_MT_SLOT not in self.axes:
            return 0
        return min(max(self.axes[spec.ABS_MT_SLOT].maximum, 0) + 1, SLOTS_MAX)

    @property
    def multi_touch(self) -> str:
        """The kernel's multi-touch protocol: ``B`` with slots, ``A`` without; empty for other devices."""
        there = self.events.get(spec.EV_ABS, frozenset())
        if spec.ABS_MT_SLOT in there:
            return "B"
        return "A" if any(axis > spec.ABS_MT_SLOT for axis in there) else ""

    @property
    def unscaled(self) -> tuple[int, ...]:
        """Axes of positions that have no resolution, so that their size in millimetres is not known; by code.

        Those of joysticks and accelerometers are no positions.
        """
        there = self.events.get(spec.EV_ABS, frozenset())
        if spec.PROP_ACCELEROMETER in self.properties or not _JOYSTICK.isdisjoint(
            self.events.get(spec.EV_KEY, ())
        ):
            return ()
        return tuple(axis for axis in _POSITIONS if axis in there and not self._resolution(axis))

    def _resolution(self, axis: int) -> int:
        return self.axes[axis].resolution if axis in self.axes else 0

    def scaled(self, resolution: int) -> Description:
        """Return the same device with a resolution for those axes of positions that have none.

        Args:
            resolution: Units per millimetre, above 0.
        """
        axes = {
            axis: replace(self.axes[axis], resolution=resolution) for axis in self.unscaled if axis in self.axes
        }
        return replace(self, axes={**self.axes, **axes})

    def can(self, event_type: int, code: int) -> bool:
        """Return whether the device announces this event; EV_SYN needs no announcement."""
        return event_type == spec.EV_SYN or code in self.events.get(event_type, ())

    def problems(self) -> list[str]:
        """Return what is invalid in it, in words; empty for a valid description."""
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
        """Return the nearest description that uinput accepts.

        Event types are known, codes in range, axes valid, and slots at most ``SLOTS_MAX``.
        """
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
