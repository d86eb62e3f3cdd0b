"""3.4: devices that suspend or resume wrongly."""

from __future__ import annotations

from uvirtio.scripted import Balloon, Rng, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.spec import features as f
from uvirtio.spec import pci

from . import Mutants, around


def suspendable() -> ScriptedDevice:
    """An rng that can be suspended."""
    return ScriptedDevice(Rng(), address="scripted:rng", features=RING_FEATURES | f.mask(f.SUSPEND))


def balloon() -> ScriptedDevice:
    """A balloon that can be suspended."""
    return ScriptedDevice(Balloon(), address="scripted:balloon", features=RING_FEATURES | f.mask(f.SUSPEND))


MUTANTS = Mutants(suspendable)


@MUTANTS.of("D-SUSP-01")
def takes_suspend_at_features_ok(device):
    def write(before, value):
        before(value)
        if value & 0x1C == 0x18:
            device._status |= 0x10

    around(device, "_write_status", write)


@MUTANTS.of("D-SUSP-08")
def never_suspends(device):
    device._suspend = lambda: None


@MUTANTS.of("D-SUSP-09")
def never_resumes(device):
    around(device, "_write_status", lambda write, value: write(value & ~4 if device.status_now & 0x10 else value))


@MUTANTS.of("D-SUSP-13")
def forgets_acknowledge(device):
    around(device, "_read_status", lambda read: read() & ~1 if device.status_now & 0x10 else read())


def suspended(device):
    return device.status_now & 0x10


@MUTANTS.of("D-SUSP-03")
def notifies_while_suspended(device):
    def kick(before, index, upper):
        before(index, upper)
        if suspended(device):
            device.interrupt_queue(index, force=True)

    around(device, "_kick", kick)


@MUTANTS.of("D-SUSP-04")
def serves_while_suspended(device):
    around(device, "_may_run", lambda may, index: device.queues[index].ring if suspended(device) else may(index))


@MUTANTS.of("D-SUSP-10")
def serves_until_it_shows(device):
    asked = []
    around(device, "_suspend", lambda before: asked.append(before))

    def read(before):
        while asked:
            asked.pop()()
        return before()

    around(device, "_read_status", read)


@MUTANTS.of("D-SUSP-11")
def loses_what_it_has(device):
    kept = []

    def handle(before, queue, chain):
        if f.has(device.driver_features, f.SUSPEND):
            kept.append(chain)
            return None
        return before(queue, chain)

    around(device.model, "handle", handle)


@MUTANTS.of("D-SUSP-12")
def sends_no_interrupt(device):
    def interrupt(before, queue, **how):
        if not f.has(device.driver_features, f.SUSPEND):
            before(queue, **how)

    around(device, "interrupt_queue", interrupt)


@MUTANTS.of("D-SUSP-02", on=balloon)
def takes_writes_while_suspended(device):
    def write(before, offset, width, value):
        if suspended(device):
            device.model.write_config(offset, width, value)
        else:
            before(offset, width, value)

    around(device, "_device_write", write)


@MUTANTS.of("D-SUSP-05", on=balloon)
def changes_while_suspended(device):
    def change(before, offset, data, **how):
        before(offset, data, **how)
        device.model.config[offset : offset + len(data)] = data

    around(device, "change_config", change)


@MUTANTS.of("D-SUSP-06", on=balloon)
def tells_a_change_while_suspended(device):
    def change(before, offset, data, **how):
        before(offset, data, **how)
        if suspended(device):
            device._interrupt(pci.ISR_CONFIG, device.config_vector)

    around(device, "change_config", change)


@MUTANTS.of("D-SUSP-07", on=balloon)
def tells_nothing_after_the_resume(device):
    def resume(before):
        device._missed = [(offset, data, False) for offset, data, _ in device._missed]
        before()

    around(device, "_resume", resume)
