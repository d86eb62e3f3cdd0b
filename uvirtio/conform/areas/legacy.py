"""2.7.2, 3.1.2, 4.1.4.10 and 6.3: the legacy interface, whatever the transport."""

from __future__ import annotations

from typing import Final, cast

from uvirtio.conform.areas.split import only, split
from uvirtio.conform.exchange import SERVED
from uvirtio.conform.row import LEGACY, M2, Area, L, Level, P
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, Unfit, free, rejected
from uvirtio.errors import NotSupported
from uvirtio.interfaces.backend import PciFunction
from uvirtio.interfaces.values import InterruptMode
from uvirtio.spec import features as f
from uvirtio.spec import pci, ring
from uvirtio.spec.device_config import FIELDS
from uvirtio.spec.layout import Field
from uvirtio.spec.status import Status

AREA = Area("legacy", 75, "2.7.2, 3.1.2, 4.1.4.10, 6.3: the legacy interface", transports=LEGACY)

_TRAFFIC: Final = SERVED
_ALIKE: Final = frozenset({"rng", "blk", "balloon"})
"""Types whose good request is the same on both interfaces."""
_CONFIGURED: Final = frozenset(name for name, fields in FIELDS.items() if fields)
_ONLY_L: Final = frozenset({L})
_PAGE: Final = 4096

_EARLY: Final = {"balloon": "actual", "blk": "writeback", "scsi": "sense_size"}
"""A field that a driver may write, by type."""


def _field(t: Trial, name: str) -> Field:
    """A field of the configuration, if what it depends on is offered."""
    field, bit = next((field, bit) for field, bit in FIELDS[t.type] if field.name == name)
    if bit is not None:
        t.need_feature(bit)
    return field


# --- negotiation and initialization (2.2.3, 3.1.2) ---------------------------------------------------------------


@AREA.row(
    "D-FEAT-L1",
    "2.2.3",
    "MUST",
    "Transitional: a driver without VERSION_1 is a legacy driver.",
    level=Level.REGISTERS,
    transports=frozenset({P, M2}),
    types=_ALIKE,
)
def legacy_driver_without_version_1(t: Trial) -> Outcome:
    """VERSION_1 is left out on the modern interface; the device refuses, or serves a request in legacy layout."""
    only(t)
    features = t.plain & ~f.mask(f.VERSION_1)
    if not t.accepts(features):
        return rejected("FEATURES_OK is refused without VERSION_1")
    t.good(t.start(features=features))
    return free("FEATURES_OK without VERSION_1; the device serves")


@AREA.row(
    "D-INI-L1",
    "3.1.2",
    "MUST",
    "Transitional: the configuration may be written before the feature step.",
    level=Level.REGISTERS,
    types=frozenset(_EARLY),
)
def early_writes_are_taken(t: Trial) -> Outcome:
    """A field that a driver may write is written at status 0, read back, and written back."""
    field = _field(t, _EARLY[t.type])
    before = t.read_field(field)
    t.transport.write_config(field.offset, field.width, before ^ 1)
    seen = t.read_field(field)
    t.transport.write_config(field.offset, field.width, before)
    t.expect(seen == before ^ 1, f"{field.name} {seen:#x} after it was written", f"{before ^ 1:#x}")
    return None


@AREA.row(
    "D-INI-L2",
    "3.1.2",
    "MUST",
    "Transitional: buffers are served before DRIVER_OK.",
    level=Level.REGISTERS,
    types=_TRAFFIC,
)
def serves_before_driver_ok(t: Trial) -> Outcome:
    """A good request is made while the status is DRIVER."""
    only(t)
    lane = t.prepare()
    t.transport.dma_enable(True)
    t.good(lane)
    return None


@AREA.row(
    "D-RES-L2",
    "6.3",
    "MUST",
    "NOTIFY_ON_EMPTY accepted: notify when a queue runs dry, even if that is suppressed.",
    level=Level.ODD,
    severity=Severity.SILENT,
    types=_TRAFFIC,
)
def notifies_on_empty(t: Trial) -> Outcome:
    """The last request of a queue is used with NO_INTERRUPT in the available ring."""
    t.need_feature(f.NOTIFY_ON_EMPTY)
    lane = split(t, also=f.mask(f.NOTIFY_ON_EMPTY), interrupts=True)
    lane.raw.flags = ring.AVAIL_F_NO_INTERRUPT
    t.arrived()
    t.good(lane)
    t.await_interrupt(lane)
    return None


# --- the layout of queues and requests (2.7.2, 2.7.4.3) ----------------------------------------------------------


@AREA.row(
    "D-LAY-L1",
    "2.7.2",
    "MUST",
    "Legacy: one block, with the used ring at the next page boundary.",
    severity=Severity.MEMORY,
    types=_TRAFFIC,
)
def used_ring_at_the_next_page(t: Trial) -> Outcome:
    """The gap before the used ring is full of a pattern; the ring is used until it has wrapped."""
    only(t)
    lane = t.start()
    desc, _, used = lane.queue.addresses
    layout = ring.legacy_layout(lane.size)
    t.need((desc % _PAGE, used - desc) == (0, layout.used), "the queue is not in one block")
    area = lane.queue.areas[1].view
    start = ring.avail_size(lane.size)
    pattern = bytes(0x5A ^ place & 0xFF for place in range(len(area) - start))
    t.need(bool(pattern), "there is no gap before the used ring")
    area[start:] = pattern
    t.good(lane, lane.size + 1)
    t.expect(bytes(area[start:]) == pattern, "the gap before the used ring was written", "no access")
    return None


@AREA.row(
    "D-LAY-L3",
    "2.7.4.3",
    "DESC",
    "Legacy without ANY_LAYOUT: a request in the classic layout is served.",
    types=_TRAFFIC,
)
def classic_layout(t: Trial) -> Outcome:
    """ANY_LAYOUT is left out; header and status of a good request stand alone, as always here."""
    only(t)
    t.good(t.start(features=t.plain & ~f.mask(f.ANY_LAYOUT)))
    return None


# --- registers of PCI (4.1.4.10) ---------------------------------------------------------------------------------


def _function(t: Trial) -> PciFunction:
    return cast(PciFunction, t.transport.backend)


@AREA.row(
    "D-PCI-L4",
    "4.1.4.10",
    "MUST",
    "Transitional: the legacy registers are in BAR 0, in the first I/O region.",
    level=Level.LOOK,
    transports=_ONLY_L,
)
def legacy_registers_in_bar_0(t: Trial) -> Outcome:
    """BAR 0 is I/O, and its first register reads the offered features."""
    bar = _function(t).bar(pci.LEGACY_BAR)
    t.expect(bar is not None and bar.is_io, f"BAR 0 is {bar}", "I/O ports")
    header = _function(t).registers(pci.LEGACY_BAR, 0, pci.legacy_config_offset(False))
    try:
        seen = header.read32(pci.LEGACY_DEVICE_FEATURES)
    finally:
        header.close()
    t.expect(seen == t.offered, f"{seen:#x} at the start of BAR 0", f"{t.offered:#x}, the offered features")
    return None


def _span(t: Trial) -> int:
    """The bytes that the known fields of the configuration have, in whole 32-bit words."""
    ends = [field.end for field, bit in FIELDS[t.type] if bit is None or f.has(t.offered, bit)]
    span = min(max(ends, default=0), t.transport.config_length) // 4 * 4
    t.need(span > 0, "no field of the configuration is offered")
    return span


def _read(t: Trial, span: int, width: int) -> bytes:
    found = (t.transport.read_config(place, width) for place in range(0, span, width))
    return b"".join(value.to_bytes(width, "little") for value in found)


@AREA.row(
    "D-PCI-L5",
    "4.1.4.10",
    "MUST",
    "The legacy configuration reads alike at any width.",
    level=Level.LOOK,
    transports=_ONLY_L,
    types=_CONFIGURED,
)
def any_width(t: Trial) -> Outcome:
    """Its fields are read by bytes, by 16 and by 32 bits."""
    span = _span(t)
    whole = _read(t, span, 4)
    for width in (2, 1):
        seen = _read(t, span, width)
        t.expect(seen == whole, f"{seen.hex()} by {8 * width} bits", f"{whole.hex()}, as by 32 bits")
    return None


@AREA.row(
    "D-PCI-L6",
    "4.1.4.10",
    "MUST",
    "The legacy configuration follows the header: at 20, or at 24 with MSI-X.",
    transports=_ONLY_L,
    types=_CONFIGURED,
)
def moves_with_msix(t: Trial) -> Outcome:
    """It is read at 20 with MSI-X off, and at 24 with MSI-X on."""
    span = _span(t)
    before = _read(t, span, 4)
    t.negotiate(t.plain)
    try:
        t.transport.connect_interrupts([0], (InterruptMode.PER_QUEUE, InterruptMode.SHARED))
    except NotSupported as error:
        raise Unfit(f"it has no MSI-X: {error}") from error
    seen = _read(t, span, 4)
    t.expect(seen == before, f"{seen.hex()} at 24 with MSI-X on", f"{before.hex()}, as at 20 with MSI-X off")
    return None


# --- block (5.2.5.3) ---------------------------------------------------------------------------------------------


@AREA.row(
    "D-BLK-L1",
    "5.2.5.3",
    "MUST NOT",
    "Legacy: a status bit moves the cache mode only at DRIVER_OK, without CONFIG_WCE.",
    level=Level.ODD,
    severity=Severity.SILENT,
    types=frozenset({"blk"}),
)
def cache_mode_stays(t: Trial) -> Outcome:
    """Writeback is read after each step, once without CONFIG_WCE up to DRIVER, once with it up to DRIVER_OK."""
    field = _field(t, "writeback")
    before = t.read_field(field)
    steps = (Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.DRIVER)

    def take(status: int) -> None:
        t.set_status(status)
        seen = t.read_field(field)
        t.expect(seen == before, f"writeback {seen} after status {status:#x}", f"{before}, as before")

    for step in steps:
        take(step)
    t.reset()
    before = t.read_field(field)
    for step in steps:
        take(step)
    t.transport.set_driver_features(t.plain | f.mask(f.Blk.CONFIG_WCE))
    t.transport.dma_enable(True)
    take(steps[-1] | Status.DRIVER_OK)
    return None
