"""The data path of an input device (5.8): it is described, and has an event where one can be sent."""

from __future__ import annotations

from typing import Any

from uvirtio.device import Device, Observer
from uvirtio.device.evidence import of_queue
from uvirtio.diag.causes import STALLS
from uvirtio.diag.probes.outcome import Around, PathResult
from uvirtio.drivers.input import Input
from uvirtio.spec import input as input_spec

_HostEvent = dict[str, Any]
"""An InputEvent of QEMU's QMP schema."""


def _rel(value: int) -> _HostEvent:
    return {"type": "rel", "data": {"axis": "x", "value": value}}


def _abs(value: int) -> _HostEvent:
    return {"type": "abs", "data": {"axis": "x", "value": value}}


def _contact(kind: str, ident: int) -> _HostEvent:
    data = {"type": kind, "slot": 0, "tracking-id": ident, "axis": "x", "value": 0}
    return {"type": "mtt", "data": data}


def _key(down: bool) -> _HostEvent:
    return {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": "a"}}}


def _button(down: bool) -> _HostEvent:
    return {"type": "btn", "data": {"down": down, "button": "left"}}


_KEY_A, _BTN_LEFT = 30, 0x110

_HOST_EVENTS: tuple[tuple[int, int, _HostEvent, _HostEvent | None], ...] = (
    # The first code that the device has decides: QEMU gives an event to the first model that takes its type.
    (input_spec.EV_REL, 0, _rel(1), None),
    (input_spec.EV_ABS, 0, _abs(1), None),
    (input_spec.EV_ABS, input_spec.ABS_MT_SLOT, _contact("begin", 0), _contact("end", -1)),
    (input_spec.EV_KEY, _KEY_A, _key(True), _key(False)),
    (input_spec.EV_KEY, _BTN_LEFT, _button(True), _button(False)),
)
"""What a host can send to a device with this type and code: QMP input-send-event; and the event that undoes it."""

_PASSED_THROUGH = ("virtio-input-host", "vhost-user-input")
"""Models that forward another device's events, and get none from QMP."""


class InputPath:
    """Describes an input device, and has the host send it an event."""

    def __init__(self, device: Device, around: Around) -> None:
        self._device = device
        self._witness = around.witness
        self._path = f"/machine/peripheral/{around.ident}"

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._input = Input(self._device, observe=observe)

    def exercise(self) -> PathResult:
        """Read the description, switch an LED off, and have the host send an event."""
        told = self._input.describe()
        about = f"{told.name!r}, event types {sorted(told.events)}"
        if told.slots:
            about += f", {told.slots} contacts"
        leds = sorted(told.events.get(input_spec.EV_LED, ()))
        odd = "; ".join(self._input.findings)
        if leds:
            for _ in range(2):  # the second one needs a kick that the device asks for
                self._input.set_led(leds[0], False)
                if not self._input.flush(timeout=self._device.timeout):
                    return PathResult(about, *self._silent(odd))
            about += "; it acknowledged an LED"
        sent = self._host_event()
        if self._witness is None or sent is None:
            return PathResult(
                f"{about}; event queue filled; no key can be pressed from here", odd, skipped=not (odd or leds)
            )
        event, back = sent
        self._witness("input-send-event", events=[event])
        found = self._input.read(timeout=self._device.timeout)
        if back is not None:
            self._witness("input-send-event", events=[back])
        if not found:
            return PathResult(about, "the host sent an event and none arrived")
        return PathResult(f"{about}; the host sent an event, {len(found)} arrived, first {found[0]}", odd)

    def _silent(self, odd: str) -> tuple[str, str]:
        """What is odd about a status queue that keeps its buffers, and the cause."""
        found = of_queue(self._device.queues[input_spec.STATUSQ])
        what = f"it does not serve its status queue (5.8.6): {found}"
        ident = STALLS[found.stall][0] if found is not None and found.stall in STALLS else "data-path"
        return f"{odd}; " * bool(odd) + what, ident

    def _host_event(self) -> tuple[_HostEvent, _HostEvent | None] | None:
        """An event of a kind that this device has, and one that undoes it; None where the host can send none."""
        if self._witness is None:
            return None
        model = str(self._witness("qom-get", path=self._path, property="type"))
        if model.startswith(_PASSED_THROUGH):
            return None
        kinds = self._input.describe().events
        for kind, code, event, back in _HOST_EVENTS:
            if code in kinds.get(kind, ()):
                return event, back
        return None

    def serve(self, seconds: float) -> int:
        """Take events, and give the device its buffers back."""
        return len(self._input.read(timeout=seconds))

    def change_configuration(self) -> PathResult | None:
        """Return None: the host cannot change the configuration."""
        return None
