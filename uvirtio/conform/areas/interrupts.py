"""4.1.4.5 and 4.1.5: the ISR, and MSI-X vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from uvirtio.conform.lane import Lane
from uvirtio.conform.row import PCI, Area, Level
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity
from uvirtio.interfaces.backend import PciFunction
from uvirtio.interfaces.memory import Event, Registers
from uvirtio.spec import pci

AREA = Area("interrupts", 40, "4.1.4.5, 4.1.5: the ISR and MSI-X", transports=PCI)

_NO_VECTOR = pci.NO_VECTOR
_ENABLED = 64
"""Vectors that are enabled together, at most: each is an eventfd."""


def _vectors(t: Trial) -> int:
    count = cast(PciFunction, t.transport.backend).msix_vectors
    t.need(count > 0, "it has no MSI-X vectors")
    return count


def fired(events: Sequence[Event]) -> frozenset[int]:
    """The vectors whose interrupts are taken now."""
    return frozenset(number for number, event in enumerate(events) if event.take())


def _queue_vector(common: Registers, queue: int, vector: int) -> int:
    common.write16(pci.COMMON_QUEUE_SELECT, queue)
    common.write16(pci.COMMON_QUEUE_MSIX_VECTOR, vector)
    return common.read16(pci.COMMON_QUEUE_MSIX_VECTOR)


def _config_vector(common: Registers, vector: int) -> int:
    common.write16(pci.COMMON_CONFIG_MSIX_VECTOR, vector)
    return common.read16(pci.COMMON_CONFIG_MSIX_VECTOR)


def _mapped(t: Trial, count: int, vector: int) -> tuple[Lane, list[Event]]:
    """A running device whose queue is mapped to a vector by hand."""
    t.negotiate(t.plain)
    events = t.msix(count)
    common = t.registers("common")
    index = t.exchange.queue
    _config_vector(common, _NO_VECTOR)
    seen = _queue_vector(common, index, vector)
    t.expect(seen == vector, f"queue_msix_vector reads {seen:#x} after {vector:#x} was written", "the same")
    lane = t.lane(index)
    t.go()
    return lane, events


# --- the ISR (4.1.4.5) ------------------------------------------------------------------------------------------


@AREA.row(
    "D-ISR-03",
    "4.1.4.5.1",
    "MUST",
    "MSI-X off: bit 0 is set before a queue notification.",
    severity=Severity.SILENT,
)
def isr_of_a_queue(t: Trial) -> Outcome:
    """The ISR after a used buffer, with MSI-X off."""
    lane = t.start()
    isr = t.registers("isr")
    isr.read8(0)
    t.good(lane)
    t.owe(lambda: bool(isr.read8(0) & pci.ISR_QUEUE), "bit 0 of the ISR is not set", "1")
    return None


@AREA.row("D-ISR-05", "4.1.4.5.1", "MUST", "Reading the ISR clears it.")
def isr_is_cleared(t: Trial) -> Outcome:
    """Read until it shows a used buffer, and once more."""
    lane = t.start()
    isr = t.registers("isr")
    t.good(lane)
    t.owe(lambda: bool(isr.read8(0)), "the ISR stays 0", "bit 0")
    seen = isr.read8(0)
    t.expect(seen == 0, f"the ISR reads {seen:#x} the second time", "0")
    return None


@AREA.row("D-ISR-04", "4.1.4.5.1", "MUST", "MSI-X off: the Interrupt Status bit is the OR of the ISR's bits.")
def interrupt_status(t: Trial) -> Outcome:
    """PCI Status before a request, after it, and after the ISR was read."""
    config = cast(PciFunction, t.transport.backend).config
    lane = t.start()
    isr = t.registers("isr")
    isr.read8(0)
    before = config.read16(pci.CFG_STATUS) & pci.STATUS_INTERRUPT
    t.expect(not before, "the bit is set with the ISR 0", "0")
    t.good(lane)
    t.owe(lambda: bool(config.read16(pci.CFG_STATUS) & pci.STATUS_INTERRUPT), "the bit is not set", "1")
    isr.read8(0)
    after = config.read16(pci.CFG_STATUS) & pci.STATUS_INTERRUPT
    t.expect(not after, "the bit is set after the ISR was read", "0")
    return None


@AREA.row(
    "D-ISR-02",
    "4.1.4.5.1",
    "MUST",
    "MSI-X off: bit 1 is set before a configuration notification.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def isr_of_the_configuration(t: Trial) -> Outcome:
    """The host changes the configuration while the device runs."""
    seen = _isr_after_a_change(t)
    t.expect(bool(seen & pci.ISR_CONFIG), f"ISR {seen:#x}", "bit 1")
    return None


@AREA.row(
    "D-ISR-07",
    "4.1.4.5",
    "DESC",
    "The bits of the ISR stand for what happened, and no more.",
    needs=frozenset({"host"}),
)
def isr_says_no_more(t: Trial) -> Outcome:
    """A configuration change alone shows 2."""
    seen = _isr_after_a_change(t)
    t.expect(not seen & pci.ISR_QUEUE, f"ISR {seen:#x} though no buffer was used", "2")
    return None


def _isr_after_a_change(t: Trial) -> int:
    change = t.lever()
    change(0)
    t.up()
    isr = t.registers("isr")
    isr.read8(0)
    change(1)
    read = [0]

    def shown() -> bool:
        read.append(isr.read8(0))
        return read[-1] != 0

    t.until(shown, t.pace.deadline)
    return read[-1]


# --- MSI-X (4.1.5.1.2) ------------------------------------------------------------------------------------------


@AREA.row("D-MSX-01", "4.1.5.1.2.1", "SHOULD", "With MSI-X there are 2 to 0x800 vectors.", level=Level.LOOK)
def number_of_vectors(t: Trial) -> Outcome:
    """The size of the table."""
    count = _vectors(t)
    t.expect(2 <= count <= pci.MSIX_MAX_VECTORS, f"{count} vectors", "2 to 2048")
    return None


@AREA.row("D-MSX-02", "4.1.5.1.2.1", "MUST", "Of the vectors in the table the last is one, too.")
def last_vector(t: Trial) -> Outcome:
    """The configuration and a queue are mapped to it, and it reads back."""
    count = _vectors(t)
    t.need(count <= _ENABLED, f"there are more than {_ENABLED} vectors")
    t.negotiate(t.plain)
    t.msix(count)
    common = t.registers("common")
    seen = _config_vector(common, count - 1), _queue_vector(common, 0, count - 1)
    t.expect(
        seen == (count - 1, count - 1), f"{seen[0]:#x} and {seen[1]:#x} of {count} vectors", f"{count - 1:#x}"
    )
    return None


@AREA.row("D-MSX-04", "4.1.5.1.2.1", "MUST", "A queue maps to any valid vector.", severity=Severity.SILENT)
def any_vector(t: Trial) -> Outcome:
    """The first, the middle and the last vector in turn: the notification comes there."""
    count = min(_vectors(t), 16)
    for vector in sorted({0, count // 2, count - 1}):
        lane, events = _mapped(t, count, vector)
        t.good(lane)
        seen: set[int] = set()

        def came(events: list[Event] = events, seen: set[int] = seen, vector: int = vector) -> bool:
            seen |= fired(events)
            return vector in seen

        t.owe(came, f"no notification on vector {vector} of {count}", "one (4.1.5.3)")
        t.reset()
    return None


@AREA.row("D-MSX-13", "4.1.5.3", "DESC", "MSI-X on: a queue notification comes on its vector alone.")
def its_vector_alone(t: Trial) -> Outcome:
    """The queue on the last vector; the others are watched."""
    count = min(_vectors(t), 16)
    t.need(count > 1, "there is one vector alone")
    lane, events = _mapped(t, count, count - 1)
    t.good(lane)
    seen: set[int] = set()

    def others() -> bool:
        seen.update(fired(events))
        return bool(seen - {count - 1})

    t.expect(t.quiet(others), f"vectors {sorted(seen)} fired", f"{count - 1} alone")
    return None


@AREA.row("D-MSX-05", "4.1.5.1.2.1", "MUST", "Any event can be unmapped.")
def unmapped(t: Trial) -> Outcome:
    """Queue and configuration are mapped, and then to NO_VECTOR."""
    count = min(_vectors(t), 2)
    t.negotiate(t.plain)
    t.msix(count)
    common = t.registers("common")
    for vector in (0, _NO_VECTOR):
        seen = _config_vector(common, vector), _queue_vector(common, 0, vector)
        t.expect(seen == (vector, vector), f"{seen[0]:#x} and {seen[1]:#x} after {vector:#x}", "the same")
    return None


@AREA.row("D-MSX-06", "4.1.5.1.2.1", "MUST", "Vector registers read back their mapping.")
def mapping_reads_back(t: Trial) -> Outcome:
    """Each queue and the configuration, on different vectors."""
    count = min(_vectors(t), 16)
    t.negotiate(t.plain)
    t.msix(count)
    common = t.registers("common")
    queues = range(min(t.transport.num_queues, 16))
    wrote = {queue: (queue + 1) % count for queue in queues if t.transport.queue_layout(queue).size_max}
    _config_vector(common, 0)
    for queue, vector in wrote.items():
        _queue_vector(common, queue, vector)
    for queue, vector in wrote.items():
        common.write16(pci.COMMON_QUEUE_SELECT, queue)
        seen = common.read16(pci.COMMON_QUEUE_MSIX_VECTOR)
        t.expect(seen == vector, f"queue_msix_vector of queue {queue} reads {seen:#x}", f"{vector}, as written")
    seen = common.read16(pci.COMMON_CONFIG_MSIX_VECTOR)
    t.expect(seen == 0, f"config_msix_vector reads {seen:#x}", "0, as written")
    return None


@AREA.row("D-MSX-07", "4.1.5.1.2.1", "MUST", "After a reset everything is unmapped.", severity=Severity.SILENT)
def unmapped_after_reset(t: Trial) -> Outcome:
    """A queue and the configuration are mapped, and the device is reset."""
    t.negotiate(t.plain)
    t.msix(min(_vectors(t), 2))
    common = t.registers("common")
    _config_vector(common, 0)
    _queue_vector(common, 0, 0)
    t.confirm_reset()
    common.write16(pci.COMMON_QUEUE_SELECT, 0)
    seen = common.read16(pci.COMMON_CONFIG_MSIX_VECTOR), common.read16(pci.COMMON_QUEUE_MSIX_VECTOR)
    t.expect(seen == (_NO_VECTOR, _NO_VECTOR), f"{seen[0]:#x} and {seen[1]:#x} after the reset", "0xffff")
    return None


@AREA.row("D-MSX-08", "4.1.5.1.2.1", "SHOULD NOT", "A mapping fails only where it cannot be satisfied.")
def one_vector_for_all(t: Trial) -> Outcome:
    """Queues and configuration on vectors of their own, as far as there are any, and then all on vector 0."""
    count = min(_vectors(t), 16)
    t.negotiate(t.plain)
    t.msix(count)
    common = t.registers("common")
    most = min(t.transport.num_queues, 16)
    queues = [queue for queue in range(most) if t.transport.queue_layout(queue).size_max]
    for spread in (True, False):
        for place, queue in enumerate(queues):
            vector = (place + 1) % count if spread else 0
            seen = _queue_vector(common, queue, vector)
            t.expect(seen == vector, f"queue {queue}: {seen:#x} after {vector}", "what was written")
        seen = _config_vector(common, 0)
        t.expect(seen == 0, f"the configuration: {seen:#x} after 0", "0")
    return None


@AREA.row("D-MSX-09", "4.1.5.1.2.1", "MUST", "A failed mapping reads NO_VECTOR.", level=Level.REGISTERS)
def vectors_that_are_not_there(t: Trial) -> Outcome:
    """Vectors from the size of the table on."""
    count = _vectors(t)
    t.negotiate(t.plain)
    t.msix(min(count, 2))
    common = t.registers("common")
    for vector in (count, 0x7FF, 0xFFFE):
        if vector < count:
            continue
        seen = _config_vector(common, vector), _queue_vector(common, 0, vector)
        t.expect(seen == (_NO_VECTOR, _NO_VECTOR), f"{seen[0]:#x} and {seen[1]:#x} after {vector:#x}", "0xffff")
    return None


@AREA.row("D-MSX-10", "4.1.5.3.1", "MUST NOT", "A queue on NO_VECTOR sends no interrupt.")
def unmapped_queue_is_quiet(t: Trial) -> Outcome:
    """Requests on a queue that is unmapped; all vectors are watched."""
    lane, events = _mapped(t, min(_vectors(t), 16), _NO_VECTOR)
    t.good(lane, 2)
    t.expect(t.quiet(lambda: bool(fired(events))), "an interrupt came", "none")
    return None


@AREA.row(
    "D-MSX-11",
    "4.1.5.4.1",
    "MUST NOT",
    "The configuration on NO_VECTOR sends no interrupt.",
    needs=frozenset({"host"}),
)
def unmapped_configuration_is_quiet(t: Trial) -> Outcome:
    """The host changes the configuration; all vectors are watched."""
    change = t.lever()
    change(0)
    _, events = _mapped(t, min(_vectors(t), 16), _NO_VECTOR)
    change(1)
    t.expect(t.quiet(lambda: bool(fired(events))), "an interrupt came", "none")
    return None
