"""4.1.4.3: the common configuration structure of a PCI function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from uvirtio.conform.blocks import place_of
from uvirtio.conform.cards import command, controlq
from uvirtio.conform.exchange import SERVED
from uvirtio.conform.row import PCI, Area, Level
from uvirtio.conform.traffic import not_enabled, same_used_index
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity
from uvirtio.interfaces.backend import PciFunction
from uvirtio.interfaces.memory import Registers
from uvirtio.interfaces.transport import HasAdminQueues
from uvirtio.spec import features as f
from uvirtio.spec import net, pci
from uvirtio.spec.mem import Request
from uvirtio.spec.net import Control
from uvirtio.spec.ring import is_power_of_two
from uvirtio.spec.status import Status

AREA = Area("common", 30, "4.1.4.3: the common configuration of PCI", transports=PCI)

_ADDRESSES: Final = {
    "queue_desc": pci.COMMON_QUEUE_DESC,
    "queue_driver": pci.COMMON_QUEUE_DRIVER,
    "queue_device": pci.COMMON_QUEUE_DEVICE,
}
_ANOTHER_MAC: Final = bytes.fromhex("0200000000fa")
_MOST: Final = 64
"""Queues that are looked at one by one."""


def _queues(t: Trial) -> range:
    return range(min(t.transport.num_queues, _MOST))


def _select(common: Registers, queue: int) -> None:
    common.write16(pci.COMMON_QUEUE_SELECT, queue)


def _read64(common: Registers, offset: int) -> int:
    return common.read32(offset) | common.read32(offset + 4) << 32


# --- features ---------------------------------------------------------------------------------------------------


@AREA.row(
    "D-COM-03",
    "4.1.4.3.1",
    "MUST",
    "device_feature follows any select, and is 0 beyond the bits that exist.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
)
def device_feature_of_any_select(t: Trial) -> Outcome:
    """Selects far beyond the words that there are, each with device_feature 0."""
    common = t.registers("common")
    for select in (4, 5, 0x7FFFFFFF, 0xFFFFFFFF):
        common.write32(pci.COMMON_DEVICE_FEATURE_SELECT, select)
        seen = common.read32(pci.COMMON_DEVICE_FEATURE)
        t.expect(seen == 0, f"device_feature {seen:#x} at select {select:#x}", "0")
    return None


@AREA.row("D-COM-04", "4.1.4.3.1", "MUST", "driver_feature gives back valid bits for any select.", witness="host")
def driver_feature_reads_back(t: Trial) -> Outcome:
    """The plain features are written word by word, and each word is read after the others were written."""
    t.acknowledge()
    t.transport.set_driver_features(t.plain)
    common = t.registers("common")
    for word in (1, 0, 1):
        common.write32(pci.COMMON_DRIVER_FEATURE_SELECT, word)
        seen, wrote = common.read32(pci.COMMON_DRIVER_FEATURE), t.plain >> 32 * word & 0xFFFFFFFF
        t.expect(seen == wrote, f"word {word} reads {seen:#x}", f"{wrote:#x}, as written")
    t.witnessed("the accepted word", t.plain, t.host.features(t.type))
    return None


# --- config_generation (2.5) ------------------------------------------------------------------------------------


@AREA.row(
    "D-COM-05",
    "4.1.4.3.1",
    "MUST",
    "config_generation changes if a value read before has changed, before DRIVER_OK too.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def generation_follows_the_host(t: Trial) -> Outcome:
    """The host changes the configuration at FEATURES_OK."""
    change = t.lever()
    change(0)
    t.negotiate(t.plain)
    before, config = t.transport.generation(), _config(t)
    change(1)
    t.owe(lambda: _config(t) != config, "the host's change does not show", "another configuration")
    t.expect(t.transport.generation() != before, f"the generation stays {before}", "another generation")
    return None


@AREA.row(
    "D-COM-07",
    "4.1.4.3.1",
    "MUST",
    "256 changes between two reads of config_generation still show.",
    severity=Severity.SILENT,
    level=Level.ODD,
    needs=frozenset({"host"}),
)
def many_changes_show(t: Trial) -> Outcome:
    """The host makes one change, which shows, then 256 with no read between; the device runs."""
    change = t.lever()
    t.up()
    first = t.transport.generation()
    change(0)
    shows = t.until(lambda: t.transport.generation() != first, t.pace.deadline)
    t.need(shows, "one change does not show in the generation, so no count of them does")
    before = t.transport.generation()
    for number in range(1, 257):
        change(number)
    changed = t.until(lambda: t.transport.generation() != before, t.pace.watch)
    t.expect(changed, f"after 256 changes the generation is {before} again", "another generation")
    return None


def _config(t: Trial) -> bytes:
    length = min(t.transport.config_length, 64)
    return bytes(t.transport.read_config(place, 1) for place in range(length))


# --- reset ------------------------------------------------------------------------------------------------------


@AREA.row(
    "D-COM-08", "4.1.4.3.1", "MUST", "Writing 0 resets: afterwards queues are at their defaults.", witness="host"
)
def defaults_after_reset(t: Trial) -> Outcome:
    """A running device is reset; queue_size and status of each queue are as when it was first seen."""
    common = t.registers("common")
    first = _sizes(t, common)
    t.start(size=min(first[0], 2) or None)
    t.confirm_reset()
    now = _sizes(t, common)
    t.expect(now == first, f"queue sizes {now}", f"{first}, as at first")
    not_enabled(t, next(iter(t.lanes)))
    return None


def _sizes(t: Trial, common: Registers) -> list[int]:
    found = []
    for queue in _queues(t):
        _select(common, queue)
        found.append(common.read16(pci.COMMON_QUEUE_SIZE))
    return found


@AREA.row(
    "D-COM-09", "4.1.4.3.1", "MUST", "queue_enable is 0 after reset.", severity=Severity.SILENT, witness="host"
)
def not_enabled_after_reset(t: Trial) -> Outcome:
    """Every queue, after the reset of a loaded device."""
    lane = t.start()
    t.good(lane)
    t.confirm_reset()
    common = t.registers("common")
    for queue in _queues(t):
        _select(common, queue)
        seen = common.read16(pci.COMMON_QUEUE_ENABLE)
        t.expect(seen == 0, f"queue_enable {seen} of queue {queue}", "0")
        if queue in t.lanes:
            not_enabled(t, queue)
    return None


@AREA.row(
    "D-COM-19",
    "4.1.4.3",
    "DESC",
    "Reset restores the maximum of queue_size, and addresses of zero.",
    witness="host",
)
def queue_defaults_after_reset(t: Trial) -> Outcome:
    """A queue gets another size and addresses, is never enabled, and the device is reset."""
    t.negotiate(t.plain)
    common = t.registers("common")
    _select(common, 0)
    most = common.read16(pci.COMMON_QUEUE_SIZE)
    t.need(most > 0, "there is no queue 0")
    common.write16(pci.COMMON_QUEUE_SIZE, 1)
    for offset in _ADDRESSES.values():
        common.write32(offset, 0x1000)
        common.write32(offset + 4, 0x1)
    t.confirm_reset()
    _select(common, 0)
    seen = common.read16(pci.COMMON_QUEUE_SIZE)
    t.expect(seen == most, f"queue_size {seen} after the reset", f"{most}, the maximum")
    for name, offset in _ADDRESSES.items():
        address = _read64(common, offset)
        t.expect(address == 0, f"{name} {address:#x} after the reset", "0")
    not_enabled(t, 0)
    return None


# --- the reset of one queue (2.6.1) -----------------------------------------------------------------------------


def _reset_queue(t: Trial) -> tuple[Registers, list[int]]:
    """A queue that served is reset; the registers, and what queue_reset read until it was 0."""
    t.need_feature(f.RING_RESET)
    lane = t.start(also=f.mask(f.RING_RESET))
    t.good(lane)
    common = t.registers("common")
    _select(common, lane.index)
    common.write16(pci.COMMON_QUEUE_RESET, 1)
    read: list[int] = []

    def done() -> bool:
        read.append(common.read16(pci.COMMON_QUEUE_RESET))
        return read[-1] == 0

    t.owe(done, "queue_reset did not become 0", "0 when the queue is reset")
    return common, read


@AREA.row("D-COM-10", "4.1.4.3.1", "MUST", "queue_reset is 0 after reset.")
def queue_reset_after_reset(t: Trial) -> Outcome:
    """Every queue, after RING_RESET was negotiated and the device was reset."""
    t.need_feature(f.RING_RESET)
    t.start(also=f.mask(f.RING_RESET))
    t.confirm_reset()
    t.need(bool(t.negotiate(t.plain | f.mask(f.RING_RESET)) & Status.FEATURES_OK), "RING_RESET is refused")
    common = t.registers("common")
    for queue in _queues(t):
        _select(common, queue)
        seen = common.read16(pci.COMMON_QUEUE_RESET)
        t.expect(seen == 0, f"queue_reset {seen} of queue {queue}", "0")
    return None


@AREA.row("D-COM-11", "4.1.4.3.1", "MUST", "queue_reset is 0 once a queue is enabled again.")
def queue_reset_after_enabling(t: Trial) -> Outcome:
    """A queue is reset, made anew and enabled; it serves."""
    common, _ = _reset_queue(t)
    index = next(iter(t.lanes))
    lane = t.again(index)
    _select(common, index)
    seen = common.read16(pci.COMMON_QUEUE_RESET)
    t.expect(seen == 0, f"queue_reset {seen} of an enabled queue", "0")
    t.good(lane)
    return None


@AREA.row("D-COM-12", "4.1.4.3.1", "MUST", "Writing 1 to queue_reset resets that queue.", witness="host")
def queue_begins_anew(t: Trial) -> Outcome:
    """After the reset the queue begins at the start of a new ring."""
    _reset_queue(t)
    lane = t.again(next(iter(t.lanes)))
    t.good(lane, 2)
    t.expect(t.quiet(lambda: bool(lane.take())), "more was used than two requests", "two used elements")
    same_used_index(t, lane)
    return None


@AREA.row("D-COM-13", "4.1.4.3.1", "MUST", "queue_reset reads 1 while the reset is under way, then 0.")
def queue_reset_reads(t: Trial) -> Outcome:
    """What it read until it was 0."""
    _, read = _reset_queue(t)
    odd = [hex(value) for value in read if value not in (0, 1)]
    t.expect(not odd, f"queue_reset read {', '.join(odd)}", "1, then 0")
    return None


@AREA.row("D-COM-14", "4.1.4.3.1", "MUST", "Both queue_reset and queue_enable are 0 after the reset of a queue.")
def both_zero(t: Trial) -> Outcome:
    """queue_enable is read when queue_reset is 0."""
    common, _ = _reset_queue(t)
    seen = common.read16(pci.COMMON_QUEUE_ENABLE)
    t.expect(seen == 0, f"queue_enable {seen} after the reset of the queue", "0")
    return None


# --- queues that are not there, sizes ----------------------------------------------------------------------------


@AREA.row(
    "D-COM-15",
    "4.1.4.3.1",
    "MUST",
    "queue_size is 0 for a queue that is not there.",
    level=Level.REGISTERS,
)
def absent_queues(t: Trial) -> Outcome:
    """Selects beyond the last queue, after a queue that is there."""
    count = t.transport.num_queues
    common = t.registers("common")
    admin = t.transport.admin_queues() if isinstance(t.transport, HasAdminQueues) else range(0)
    for select in (count, 1023, 1024, 0xFFFF):
        if select in admin or select < count:
            continue
        _select(common, 0)
        _select(common, select)
        seen = common.read16(pci.COMMON_QUEUE_SIZE)
        t.expect(seen == 0, f"queue_size {seen} at queue {select} of {count}", "0")
    return None


@AREA.row(
    "D-COM-16",
    "4.1.4.3.1",
    "MUST",
    "Without RING_PACKED queue_size is 0 or a power of two.",
    level=Level.REGISTERS,
)
def sizes_are_powers_of_two(t: Trial) -> Outcome:
    """All queues as they are, and one after 3 was written."""
    t.negotiate(t.plain & ~f.mask(f.RING_PACKED))
    common = t.registers("common")
    for queue in _queues(t):
        _select(common, queue)
        seen = common.read16(pci.COMMON_QUEUE_SIZE)
        t.expect(seen == 0 or is_power_of_two(seen), f"queue_size {seen} of queue {queue}", "a power of two")
    _select(common, 0)
    t.need(common.read16(pci.COMMON_QUEUE_SIZE) > 3, "queue 0 is too small for a size of 3")
    common.write16(pci.COMMON_QUEUE_SIZE, 3)
    seen = common.read16(pci.COMMON_QUEUE_SIZE)
    t.expect(is_power_of_two(seen), f"queue_size reads {seen} after 3 was written", "a power of two")
    return None


@AREA.row(
    "D-COM-21",
    "4.1.4.3",
    "DESC",
    "A queue_size above the maximum is not taken.",
    level=Level.REGISTERS,
)
def size_above_the_maximum(t: Trial) -> Outcome:
    """Twice the maximum is written."""
    t.negotiate(t.plain)
    common = t.registers("common")
    _select(common, 0)
    most = common.read16(pci.COMMON_QUEUE_SIZE)
    t.need(0 < most < 0x8000, "there is no larger size")
    common.write16(pci.COMMON_QUEUE_SIZE, 2 * most)
    seen = common.read16(pci.COMMON_QUEUE_SIZE)
    t.expect(seen <= most, f"queue_size reads {seen} after {2 * most} was written", f"at most {most}")
    return None


@AREA.row(
    "D-COM-23", "4.1.4.3", "DESC", "num_queues is the number of queues, admin queues apart.", level=Level.LOOK
)
def number_of_queues(t: Trial) -> Outcome:
    """The last of them has a size, and there is none behind it."""
    count = t.transport.num_queues
    common = t.registers("common")
    _select(common, max(count - 1, 0))
    last = common.read16(pci.COMMON_QUEUE_SIZE)
    t.expect(count > 0 and last > 0, f"num_queues {count}, and queue {count - 1} has size {last}", "a queue there")
    return None


# --- admin queues -----------------------------------------------------------------------------------------------


@AREA.row("D-COM-17", "4.1.4.3.1", "MUST", "admin_queue_index is at least num_queues.")
def admin_queue_index(t: Trial) -> Outcome:
    """Read with ADMIN_VQ."""
    admin = _admin(t)
    t.expect(admin.start >= t.transport.num_queues, f"{admin.start} of {t.transport.num_queues}", "behind them")
    return None


@AREA.row("D-COM-18", "4.1.4.3.1", "MUST", "admin_queue_num is 1 at least, and fits below 0x10000 with the index.")
def admin_queue_num(t: Trial) -> Outcome:
    """Read with ADMIN_VQ."""
    admin = _admin(t)
    t.expect(len(admin) > 0 and admin.stop <= 0x10000, f"{len(admin)} from {admin.start}", "1 to 0x10000")
    return None


def _admin(t: Trial) -> range:
    t.need_feature(f.ADMIN_VQ)
    t.need(bool(t.negotiate(t.plain | f.mask(f.ADMIN_VQ)) & Status.FEATURES_OK), "ADMIN_VQ is refused")
    common = t.registers("common")
    first = common.read16(pci.COMMON_ADMIN_QUEUE_INDEX)
    return range(first, first + common.read16(pci.COMMON_ADMIN_QUEUE_NUM))


# --- writes that mean nothing -----------------------------------------------------------------------------------


@AREA.row(
    "D-COM-20",
    "4.1.4.3",
    "DESC",
    "A read-only register ignores writes.",
    level=Level.REGISTERS,
)
def read_only_registers(t: Trial) -> Outcome:
    """device_feature, num_queues, config_generation and queue_notify_off are written."""
    common = t.registers("common")
    common.write32(pci.COMMON_DEVICE_FEATURE_SELECT, 0)
    _select(common, 0)
    for name, offset, width in (
        ("device_feature", pci.COMMON_DEVICE_FEATURE, 32),
        ("num_queues", pci.COMMON_NUM_QUEUES, 16),
        ("config_generation", pci.COMMON_CONFIG_GENERATION, 8),
        ("queue_notify_off", pci.COMMON_QUEUE_NOTIFY_OFF, 16),
    ):
        read, write = getattr(common, f"read{width}"), getattr(common, f"write{width}")
        before = read(offset)
        write(offset, before ^ 0x55)
        t.expect(
            read(offset) == before, f"{name} reads {read(offset):#x} after a write", f"{before:#x}, as before"
        )
    return None


@AREA.row(
    "D-COM-22",
    "4.1.4.3",
    "DESC",
    "Writes to the fields of an enabled queue do not disturb it.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    witness="host",
)
def live_queue_is_left_alone(t: Trial) -> Outcome:
    """Half the size and other addresses, all in our memory, are written to a queue that works on."""
    lane = t.start()
    t.good(lane)
    common = t.registers("common")
    before = t.host.queue(lane.index)
    _select(common, lane.index)
    other = t.readable(bytes(1024)).address & ~0xF
    for offset in _ADDRESSES.values():
        common.write32(offset, other & 0xFFFFFFFF)
        common.write32(offset + 4, other >> 32)
    t.good(lane, 3)
    after = t.host.queue(lane.index)
    if before is not None:
        t.witnessed("the address of the ring", before.desc, None if after is None else after.desc)
    return None


@AREA.row("D-PCI-07", "4.1.3", "MUST", "64-bit configuration fields: each half is readable by itself.")
def halves(t: Trial) -> Outcome:
    """The addresses of a queue, each half alone and in both orders."""
    lane = t.start()
    common = t.registers("common")
    _select(common, lane.index)
    for (name, offset), wrote in zip(_ADDRESSES.items(), lane.queue.addresses, strict=True):
        high, low = common.read32(offset + 4), common.read32(offset)
        t.expect(high << 32 | low == wrote, f"{name} reads {high << 32 | low:#x}", f"{wrote:#x}, as written")
        t.expect(_read64(common, offset) == wrote, f"{name} depends on the order of its halves", "the same")
    return None


# --- the generation, and the function as a whole -----------------------------------------------------------------


@AREA.row(
    "D-COM-06",
    "4.1.4.3.1",
    "MUST",
    "config_generation changes with what a request changes, too.",
    severity=Severity.SILENT,
    types=SERVED,
)
def generation_of_a_request(t: Trial) -> Outcome:
    """Memory: PLUG and UNPLUG; a card: MAC_ADDR_SET; others: a good request. The generation is read around it."""

    def changes(read: Callable[[], int], act: Callable[[], object]) -> None:
        before, generation = read(), t.transport.generation()
        act()
        t.need(read() != before, "the request changes nothing")
        t.expect(t.transport.generation() != generation, f"it stays {generation}", "another generation")

    if t.type == "net":
        t.need_feature(f.Net.MAC)
        t.need(t.consent.host, "another MAC address is seen from outside, which needs --host")
        lane = controlq(t, f.Net.CTRL_MAC_ADDR)
        changes(
            lambda: t.config_field(net.CONFIG, "mac"),
            lambda: command(t, lane, Control.MAC, net.MAC_ADDR_SET, _ANOTHER_MAC),
        )
        return None
    if t.type != "mem":
        lane = t.start()
        changes(lambda: int.from_bytes(_config(t), "little"), lambda: t.good(lane))
        return None
    with place_of(t) as blocks:
        for kind in (Request.PLUG, Request.UNPLUG):
            changes(lambda: blocks.field("plugged_size"), lambda kind=kind: blocks.done(kind, blocks.first, 1))  # type: ignore[misc]
    return None


@AREA.row(
    "D-FLR-01",
    "4.1.1",
    "DESC",
    "A function-level reset ends like a reset of the device.",
    severity=Severity.DEAD,
    needs=frozenset({"flr"}),
)
def function_reset(t: Trial) -> Outcome:
    """A running device is reset so: the status reads 0, the queue is disabled, and a bring-up serves a request."""
    function = cast(PciFunction, t.transport.backend)
    t.need(function.has_reset, "the function has no reset of its own")
    lane = t.start()
    t.good(lane)
    t.need(function.reset(), "the function has no reset of its own")
    t.owe(lambda: t.status() == 0, f"status {t.status():#x}", "0")
    common = t.registers("common")
    _select(common, lane.index)
    enabled = common.read16(pci.COMMON_QUEUE_ENABLE)
    t.expect(enabled == 0, f"queue_enable {enabled}", "0")
    t.reset()
    t.good(t.start())
    return None
