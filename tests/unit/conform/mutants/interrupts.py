"""4.1.4.5 and 4.1.5: functions whose interrupts are wrong."""

from __future__ import annotations

from uvirtio.spec import pci

from . import Mutants, around
from .common import reads, writes

MUTANTS = Mutants("scripted:rng")
BALLOON = "scripted:balloon"


@MUTANTS.of("D-ISR-03")
def isr_stays_0(device):
    around(device, "_isr_read", lambda read, *at: read(*at) & ~1)


@MUTANTS.of("D-ISR-05")
def isr_stays(device):
    device._isr_read = lambda offset, width: device.isr


@MUTANTS.of("D-ISR-04")
def status_bit_stays_0(device):
    around(
        device,
        "_config_read",
        lambda read, at, width: read(at, width) & ~(pci.STATUS_INTERRUPT if at == pci.CFG_STATUS else 0),
    )
    device.config = device._window("config", 256, device._config_read, device._config_write)


@MUTANTS.of("D-ISR-02", on=BALLOON)
def isr_hides_the_configuration(device):
    around(device, "_isr_read", lambda read, *at: read(*at) & ~2)


@MUTANTS.of("D-ISR-07", on=BALLOON)
def isr_shows_3(device):
    around(device, "_isr_read", lambda read, *at: 3 if (value := read(*at)) else value)


@MUTANTS.of("D-MSX-01")
def one_vector(device):
    device.msix_vectors = 1


@MUTANTS.of("D-MSX-02")
def last_vector_is_missing(device):
    vectors = device.msix_vectors
    around(device, "_vector", lambda before, value: pci.NO_VECTOR if value == vectors - 1 else before(value))


@MUTANTS.of("D-MSX-08", on=BALLOON)
def one_event_for_each_vector(device):
    def write(before, value):
        taken = {queue.vector for queue in device.queues if queue is not device._queue()}
        before(pci.NO_VECTOR if value in taken else value)

    writes(device, "queue_msix_vector", write)


@MUTANTS.of("D-MSX-04")
def first_vector_always(device):
    around(device, "_interrupt", lambda before, cause, vector: before(cause, 0))


@MUTANTS.of("D-MSX-13")
def all_vectors(device):
    around(device, "_interrupt", lambda before, cause, vector: [before(cause, one) for one in range(3)])


@MUTANTS.of("D-MSX-05")
def keeps_its_vector(device):
    writes(device, "config_msix_vector", lambda write, value: write(value) if value != pci.NO_VECTOR else None)


@MUTANTS.of("D-MSX-06")
def shows_one_vector_for_all(device):
    reads(device, "queue_msix_vector", lambda value: 0)


@MUTANTS.of("D-MSX-07")
def mapped_after_reset(device):
    def finish(before):
        kept = device.config_vector
        before()
        device.config_vector = kept

    around(device, "_finish_reset", finish)


@MUTANTS.of("D-MSX-09")
def takes_any_vector(device):
    device._vector = lambda value: value


@MUTANTS.of("D-MSX-10")
def unmapped_queue_notifies(device):
    around(device, "_interrupt", lambda before, cause, vector: before(cause, vector if vector != 0xFFFF else 1))


@MUTANTS.of("D-MSX-11", on=BALLOON)
def unmapped_configuration_notifies(device):
    around(device, "_interrupt", lambda before, cause, vector: before(cause, vector if vector != 0xFFFF else 1))
