"""2.6.1: the reset of one queue."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.exchange import SERVED
from uvirtio.conform.lane import Lane
from uvirtio.conform.row import PCI, Area
from uvirtio.conform.traffic import batch, fitting, not_enabled, same_used_index
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity
from uvirtio.interfaces.transport import ResetsQueues
from uvirtio.spec import features as f
from uvirtio.spec import pci

AREA = Area("queue_reset", 65, "2.6.1: the reset of one queue", transports=PCI, types=SERVED)

_RESET: Final = f.mask(f.RING_RESET)


def _with_reset(t: Trial, *, interrupts: bool = False) -> tuple[Lane, ResetsQueues]:
    t.need_feature(f.RING_RESET)
    t.need(isinstance(t.transport, ResetsQueues), "this transport resets no queue by itself")
    lane = t.start(also=_RESET, interrupts=interrupts)
    assert isinstance(t.transport, ResetsQueues)
    return lane, t.transport


def _reset(t: Trial, lane: Lane, transport: ResetsQueues) -> None:
    transport.start_queue_reset(lane.index)
    t.owe(lambda: transport.queue_is_reset(lane.index), "the reset of the queue does not end", "an end (2.6.1)")


@AREA.row(
    "D-QRST-01",
    "2.6.1.1.1",
    "MUST NOT",
    "A reset queue executes no further request.",
    severity=Severity.MEMORY,
    witness="host",
)
def reset_queue_is_quiet(t: Trial) -> Outcome:
    """A loaded queue is reset; rings and buffers are compared after a while."""
    lane, transport = _with_reset(t)
    batch(t, lane, fitting(t, lane))
    _reset(t, lane, transport)
    t.status()
    before = t.contents()
    t.quiet(lambda: not t.status())
    t.expect(t.contents() == before, "rings or buffers were written after the reset of the queue", "no access")
    not_enabled(t, lane.index)
    return None


@AREA.row(
    "D-QRST-02",
    "2.6.1.1.1",
    "MUST NOT",
    "A reset queue sends no notification.",
    severity=Severity.SILENT,
)
def reset_queue_sends_nothing(t: Trial) -> Outcome:
    """A loaded queue is reset, and its interrupts are watched."""
    lane, transport = _with_reset(t, interrupts=True)
    batch(t, lane, fitting(t, lane))
    _reset(t, lane, transport)
    t.arrived()
    t.expect(t.no_interrupt(lane), "a notification came after the reset of the queue", "none")
    return None


@AREA.row("D-QRST-03", "2.6.1.1.1", "MUST", "The state of a reset queue returns to its default.", witness="host")
def reset_queue_is_at_its_default(t: Trial) -> Outcome:
    """queue_enable 0, the maximum of queue_size, addresses of 0."""
    lane, transport = _with_reset(t)
    t.good(lane)
    most = t.transport.queue_layout(lane.index).size_max
    _reset(t, lane, transport)
    not_enabled(t, lane.index)
    common = t.registers("common")
    common.write16(pci.COMMON_QUEUE_SELECT, lane.index)
    enabled, size = common.read16(pci.COMMON_QUEUE_ENABLE), common.read16(pci.COMMON_QUEUE_SIZE)
    t.expect(enabled == 0, f"queue_enable {enabled}", "0")
    t.expect(size >= most, f"queue_size {size}", "the maximum")
    for name, offset in (
        ("queue_desc", pci.COMMON_QUEUE_DESC),
        ("queue_driver", pci.COMMON_QUEUE_DRIVER),
        ("queue_device", pci.COMMON_QUEUE_DEVICE),
    ):
        address = common.read32(offset) | common.read32(offset + 4) << 32
        t.expect(address == 0, f"{name} {address:#x} after the reset of the queue", "0")
    return None


@AREA.row(
    "D-QRST-04",
    "2.6.1.2.1",
    "MUST",
    "Enabling a queue again takes whatever the driver changed, its size included.",
    witness="host",
)
def enabled_again_with_another_size(t: Trial) -> Outcome:
    """The queue comes back with other addresses and four entries, and serves more requests than that."""
    lane, transport = _with_reset(t)
    t.good(lane)
    _reset(t, lane, transport)
    small = 4
    t.need(lane.size > small and small >= len(t.exchange.elements(t)), "there is no smaller size for a request")
    again = t.again(lane.index, small)
    t.good(again, 2 * small + 1)
    same_used_index(t, again)
    shown = None if t.packed else t.host.queue(lane.index)
    t.witnessed("the size of the queue", small, None if shown is None else shown.size)
    return None


@AREA.row(
    "D-QRST-05",
    "2.6.1",
    "DESC",
    "Other queues go on while one is reset.",
    types=frozenset({"balloon", "input"}),
    witness="host",
)
def others_go_on(t: Trial) -> Outcome:
    """Another queue of the device is reset three times between requests."""
    t.need_feature(f.RING_RESET)
    main = t.exchange.queue
    other = 1 - main
    lane = t.start(also=_RESET, queues=[main, other])
    assert isinstance(t.transport, ResetsQueues)
    for _ in range(3):
        t.good(lane)
        _reset(t, t.lanes[other], t.transport)
        t.good(lane)
        not_enabled(t, other)
        same_used_index(t, lane)
        t.again(other)
    return None
