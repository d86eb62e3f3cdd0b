"""5.8: input devices that are wrong."""

from __future__ import annotations

import struct

from uvirtio.scripted import Input, ScriptedDevice
from uvirtio.spec import input as spec
from uvirtio.spec.input import Select

from . import Mutants, around

MUTANTS = Mutants("scripted:input")


def tablet():
    """A device with two axes."""
    info = struct.pack("<iiiii", -5, 5, 0, 0, 0)
    answers = {
        (Select.EV_BITS, spec.EV_ABS): b"\x03",
        (Select.ABS_INFO, spec.ABS_X): info,
        (Select.ABS_INFO, spec.ABS_Y): info,
    }
    return ScriptedDevice(Input(answers=answers), address="scripted:input")


@MUTANTS.of("D-INP-01")
def knows_an_event_type_too_many(device):
    device.model.size_lies[Select.EV_BITS, 0xFF] = 4


@MUTANTS.of("D-INP-02")
def gives_what_fits(device):
    device.model.report = device.model.inject


@MUTANTS.of("D-INP-03")
def drops_the_first_event(device):
    """An update that finds too few buffers is given without its first event."""
    model = device.model

    def report(before, *events):
        device.fetch(spec.EVENTQ)
        return model.inject(*events[-len(model.buffers) :]) if model.buffers else 0

    around(model, "report", report)


@MUTANTS.of("D-INP-04")
def forgets_unknown_selections(device):
    def write(before, offset, width, value):
        before(offset, width, value)
        if not device.model.config[spec.SIZE]:
            device.model.config[spec.SUBSEL] = 0

    around(device.model, "write_config", write)


@MUTANTS.of("D-INP-05")
def counts_the_terminator(device):
    device.model.answers[Select.ID_SERIAL, 0] = b"1\0"


@MUTANTS.of("D-INP-06", on=tablet)
def says_nothing_of_an_axis(device):
    del device.model.answers[Select.ABS_INFO, spec.ABS_Y]


@MUTANTS.of("D-INP-07")
def types_what_it_has_not(device):
    device.model.answers[Select.EV_BITS, spec.EV_KEY] = b"\xfe"


@MUTANTS.of("D-INP-08")
def says_no_length(device):
    around(device.model, "inject", lambda before, *events: before(*events, written=0))


@MUTANTS.of("D-INP-09")
def keeps_unknown_status(device):
    def handle(before, queue, chain):
        return None if chain.data()[:1] == b"\x12" else before(queue, chain)

    around(device.model, "handle", handle)


@MUTANTS.of("D-INP-10")
def fills_small_buffers(device):
    def inject(before, *events):
        for chain, event in zip(device.model.buffers, events, strict=False):
            device.memory.write(chain.writable[0].address, struct.pack("<HHi", *event))
        return before(*events)

    around(device.model, "inject", inject)
