"""The current state of an input device: pressed keys, axes and contacts, as the sum of all events so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from uvirtio.drivers.input.description import SLOTS_MAX
from uvirtio.drivers.input.events import InputEvent
from uvirtio.spec import input as spec


@dataclass(frozen=True, slots=True)
class Contact:
    """One contact of a multi-touch device."""

    slot: int
    """Its slot; of a device without slots (protocol A) its place in the frame."""
    id: int
    """Its tracking id (ABS_MT_TRACKING_ID); the same as ``slot`` where the device gives none (protocol A)."""
    values: Mapping[int, int]
    """Its ABS_MT_* values, by code."""


class InputState:
    """State that follows events; contacts by protocol B of the kernel's multi-touch-protocol, or by protocol A.

    A device of protocol A has no slots: each frame lists all contacts, and SYN_MT_REPORT ends each. It is known by
    that event, if there was no ABS_MT_SLOT before. Memory is bounded by the numbers of codes and slots, whatever
    the device sends.
    """

    def __init__(self, slots: int = SLOTS_MAX) -> None:
        """Start with nothing pressed.

        Args:
            slots: Slots of the device; an ABS_MT_SLOT beyond them is ignored, as the kernel does.
        """
        self.slots = min(slots, SLOTS_MAX)
        self.slot = 0
        """The slot that ABS_MT_* events refer to (the last ABS_MT_SLOT)."""
        self._down: set[int] = set()
        self._switches: set[int] = set()
        self._axes: dict[int, int] = {}
        self._touch: dict[int, dict[int, int]] = {}
        # Protocol A: the contact that is being told, those of this frame so far, and those of the last whole one.
        self._has_slots = False
        self._telling: dict[int, int] = {}
        self._frame: list[dict[int, int]] | None = None
        self._lifted = False
        self._listed: list[dict[int, int]] | None = None
        """None: not a device of protocol A, as far as is known."""

    @property
    def keys(self) -> frozenset[int]:
        """Codes of pressed keys and buttons."""
        return frozenset(self._down)

    @property
    def switches(self) -> frozenset[int]:
        """Codes of switches that are on, among those that have changed since the start."""
        return frozenset(self._switches)

    @property
    def axes(self) -> Mapping[int, int]:
        """Last value of every absolute axis that has moved since the start, without ABS_MT_*."""
        return MappingProxyType(dict(self._axes))

    @property
    def contacts(self) -> tuple[Contact, ...]:
        """The current contacts, by slot."""
        if self._listed is not None:
            return tuple(
                Contact(place, values.get(spec.ABS_MT_TRACKING_ID, place), MappingProxyType(dict(values)))
                for place, values in enumerate(self._listed)
            )
        return tuple(
            Contact(slot, values[spec.ABS_MT_TRACKING_ID], MappingProxyType(dict(values)))
            for slot, values in sorted(self._touch.items())
            if values.get(spec.ABS_MT_TRACKING_ID, -1) >= 0
        )

    def apply(self, events: Iterable[InputEvent]) -> None:
        """Apply events; those of an unknown type or code change nothing (5.8.6.1)."""
        for event in events:
            kind, code, value = event.type, event.code, event.value
            if code >= spec.CODE_COUNTS.get(kind, 0):
                continue
            if kind == spec.EV_KEY:
                _put(self._down, code, value)
                self._lifted |= code == spec.BTN_TOUCH and not value
            elif kind == spec.EV_ABS:
                self._move(code, value)
            elif kind == spec.EV_SW:
                _put(self._switches, code, value)
            elif code == spec.SYN_MT_REPORT and kind == spec.EV_SYN and not self._has_slots:
                self._end_contact()
            elif code == spec.SYN_REPORT and kind == spec.EV_SYN:
                self._end_frame()

    def _end_contact(self) -> None:
        if self._listed is None:
            self._listed = []
            self._touch.clear()  # what was told so far was the first contact, of no slot
        if self._frame is None:
            self._frame = []
        if self._telling and len(self._frame) < SLOTS_MAX:  # without values it says that there is no contact
            self._frame.append(self._telling)
        self._telling = {}

    def _end_frame(self) -> None:
        if self._frame is not None:
            self._listed = self._frame
        elif self._listed and self._lifted:
            self._listed = []  # with BTN_TOUCH the last SYN_MT_REPORT may be left out
        self._frame, self._telling, self._lifted = None, {}, False

    def _move(self, code: int, value: int) -> None:
        if code == spec.ABS_MT_SLOT:
            self._has_slots, self._listed, self._frame = True, None, None
            if 0 <= value < self.slots:
                self.slot = value
        elif code > spec.ABS_MT_SLOT:
            self._telling[code] = value
            if self._listed is None:
                self._touch.setdefault(self.slot, {})[code] = value
        else:
            self._axes[code] = value

    def copy(self) -> InputState:
        """Return an independent copy."""
        other = InputState(self.slots)
        other.slot = self.slot
        other._down, other._switches, other._axes = set(self._down), set(self._switches), dict(self._axes)
        other._touch = {slot: dict(values) for slot, values in self._touch.items()}
        other._has_slots, other._lifted, other._telling = self._has_slots, self._lifted, dict(self._telling)
        other._frame = None if self._frame is None else [dict(values) for values in self._frame]
        other._listed = None if self._listed is None else [dict(values) for values in self._listed]
        return other

    def towards(self, goal: InputState) -> list[InputEvent]:
        """Return the events that lead from this state to ``goal``, releases first, without a SYN_REPORT."""
        events = [InputEvent(spec.EV_KEY, code, 0) for code in sorted(self._down - goal._down)]
        events += [InputEvent(spec.EV_KEY, code, 1) for code in sorted(goal._down - self._down)]
        events += [InputEvent(spec.EV_SW, code, 0) for code in sorted(self._switches - goal._switches)]
        events += [InputEvent(spec.EV_SW, code, 1) for code in sorted(goal._switches - self._switches)]
        events += [
            InputEvent(spec.EV_ABS, code, value)
            for code, value in sorted(goal._axes.items())
            if self._axes.get(code) != value
        ]
        if goal._listed is not None:
            return events if self._listed == goal._listed else events + _listing(goal._listed)
        slot = self.slot
        for number in sorted(set(self._touch) | set(goal._touch)):
            changes = self._contact_changes(goal, number)
            if changes and number != slot:
                events.append(InputEvent(spec.EV_ABS, spec.ABS_MT_SLOT, number))
                slot = number
            events += changes
        if slot != goal.slot:
            events.append(InputEvent(spec.EV_ABS, spec.ABS_MT_SLOT, goal.slot))
        return events

    def _contact_changes(self, goal: InputState, slot: int) -> list[InputEvent]:
        """From one contact to another in the same slot; the tracking id comes first."""
        have, want = dict(self._touch.get(slot, {})), goal._touch.get(slot, {})
        changes = []
        tracking = spec.ABS_MT_TRACKING_ID
        if have.get(tracking, -1) != want.get(tracking, -1):
            changes.append(InputEvent(spec.EV_ABS, tracking, want.get(tracking, -1)))
        changes += [
            InputEvent(spec.EV_ABS, code, value)
            for code, value in sorted(want.items())
            if code != tracking and have.get(code) != value
        ]
        return changes

    def releases(self) -> list[InputEvent]:
        """Return the events that release every key and end every contact; axes and switches stay."""
        events = [InputEvent(spec.EV_KEY, code, 0) for code in sorted(self._down)]
        if self._listed is not None:
            return events + (_listing([]) if self._listed else [])
        for contact in self.contacts:
            events.append(InputEvent(spec.EV_ABS, spec.ABS_MT_SLOT, contact.slot))
            events.append(InputEvent(spec.EV_ABS, spec.ABS_MT_TRACKING_ID, -1))
        return events


def _listing(contacts: list[dict[int, int]]) -> list[InputEvent]:
    """All contacts of a frame of protocol A; where there is none, a SYN_MT_REPORT alone says so."""
    events = []
    for values in contacts or [{}]:
        events += [InputEvent(spec.EV_ABS, code, value) for code, value in sorted(values.items())]
        events.append(InputEvent(spec.EV_SYN, spec.SYN_MT_REPORT, 0))
    return events


def _put(among: set[int], code: int, value: int) -> None:
    if value:
        among.add(code)
    else:
        among.discard(code)
