"""4.2.2: the registers of virtio-mmio, and those that version 1 has in common."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.areas.split import only, split
from uvirtio.conform.exchange import SERVED
from uvirtio.conform.lane import Lane, SplitLane
from uvirtio.conform.levers import Change
from uvirtio.conform.row import M1, M2, Area, Level
from uvirtio.conform.traffic import batch, not_enabled, same_used_index
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, Unfit, free
from uvirtio.errors import MemoryScattered, NotSupported
from uvirtio.interfaces.memory import Registers
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted import ScriptedCore
from uvirtio.spec import features as f
from uvirtio.spec import mmio
from uvirtio.spec.device_config import FIELDS
from uvirtio.spec.mmio import Interrupt, Way
from uvirtio.spec.status import Status, describe

_BOTH: Final = frozenset({M2, M1})
_V2: Final = frozenset({M2})

AREA = Area("mmio", 50, "4.2.2: the registers of virtio-mmio", transports=_V2)

_TRAFFIC: Final = SERVED
_MOST: Final = 64
"""Queues that are looked at one by one."""
_NO_REGION: Final = 0xFF
"""An identifier of shared memory that no device type has (2.10)."""
_ONES: Final = 0xFFFFFFFF


def window_of(t: Trial) -> Registers:
    """The registers of the window."""
    return t.registers("mmio")


def queues_of(t: Trial) -> list[int]:
    """The queues that are there; to be asked for before any is enabled."""
    return [
        index for index in range(min(t.transport.num_queues, _MOST)) if t.transport.queue_layout(index).size_max
    ]


def of_queue(window: Registers, queue: int, register: int) -> int:
    """Select a queue, and read a register of it."""
    window.write32(mmio.QUEUE_SEL, queue)
    return window.read32(register)


def steady(t: Trial, register: int, value: int, name: str) -> None:
    """Expect that a register reads one value, whatever the status is."""
    window = window_of(t)
    for step in (0, Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.DRIVER):
        if step:
            t.set_status(step)
        seen = window.read32(register)
        t.expect(seen == value, f"{name} {seen:#x} at status {describe(step)}", f"{value:#x}")


def cleared_by_reset(t: Trial, register: int, name: str) -> None:
    """Expect that a register of each queue is 0 after the reset of a device with all queues enabled."""
    only(t)
    queues = queues_of(t)
    t.start(queues=queues, size=2)
    t.confirm_reset()
    window = window_of(t)
    for queue in queues:
        seen = of_queue(window, queue, register)
        t.expect(seen == 0, f"{name} {seen:#x} of queue {queue} after the reset", "0")


def in_use(t: Trial) -> tuple[SplitLane, Registers]:
    """A queue of a running device that served one good request, and the registers of the window."""
    lane = split(t)
    t.good(lane)
    return lane, window_of(t)


# --- identity (4.2.2) -------------------------------------------------------------------------------------------


@AREA.row(
    "D-MMIO-01",
    "4.2.2.1",
    "MUST",
    "MagicValue is 0x74726976.",
    level=Level.LOOK,
    transports=_BOTH,
)
def magic(t: Trial) -> Outcome:
    """Read at status 0, ACKNOWLEDGE and DRIVER."""
    steady(t, mmio.MAGIC_VALUE_REG, mmio.MAGIC, "MagicValue")
    return None


@AREA.row("D-MMIO-02", "4.2.2.1", "MUST", "Version is 2.", level=Level.LOOK)
def version(t: Trial) -> Outcome:
    """Read at status 0, ACKNOWLEDGE and DRIVER."""
    steady(t, mmio.VERSION_REG, mmio.VERSION, "Version")
    return None


# --- InterruptStatus, InterruptACK and the line (4.2.2, 4.2.3.4) -------------------------------------------------


def _pending(t: Trial, window: Registers, cause: Interrupt, after: str) -> None:
    t.owe(
        lambda: bool(window.read32(mmio.INTERRUPT_STATUS) & cause),
        f"bit {cause.bit_length() - 1} of InterruptStatus is not set after {after}",
        "1",
    )


@AREA.row(
    "D-MMIO-03",
    "4.2.2.1",
    "MUST",
    "InterruptStatus keeps the bit of an event until it is acknowledged.",
    severity=Severity.SILENT,
    transports=_BOTH,
    types=_TRAFFIC,
)
def cause_stays_until_acknowledged(t: Trial) -> Outcome:
    """After a used buffer it is read twice, acknowledged, and read again."""
    _, window = in_use(t)
    _pending(t, window, Interrupt.USED_BUFFER, "a used buffer")
    again = window.read32(mmio.INTERRUPT_STATUS)
    t.expect(bool(again & Interrupt.USED_BUFFER), f"InterruptStatus {again:#x} at the second reading", "bit 0")
    window.write32(mmio.INTERRUPT_ACK, again & 3)
    seen = window.read32(mmio.INTERRUPT_STATUS)
    t.expect(not seen & again, f"InterruptStatus {seen:#x} after {again & 3:#x} was acknowledged", "0")
    return None


@AREA.row(
    "D-MMIO-04",
    "4.2.2.1",
    "MUST",
    "Bits of InterruptStatus without an event are zero.",
    transports=_BOTH,
    needs=frozenset({"host"}),
)
def no_cause_without_an_event(t: Trial) -> Outcome:
    """The host changes the configuration of a running device that has used no buffer."""
    change = t.lever()
    change(0)
    t.up()
    window = window_of(t)
    early = window.read32(mmio.INTERRUPT_STATUS)
    t.expect(not early, f"InterruptStatus {early:#x} before there was an event", "0")
    change(1)
    _pending(t, window, Interrupt.CONFIG_CHANGE, "a change of the configuration")
    seen = window.read32(mmio.INTERRUPT_STATUS)
    t.expect(seen == Interrupt.CONFIG_CHANGE, f"InterruptStatus {seen:#x} though no buffer was used", "2")
    return None


@AREA.row(
    "D-MMIO-05",
    "4.2.2.1",
    "MUST",
    "A reset clears InterruptStatus.",
    transports=_BOTH,
    types=_TRAFFIC,
)
def reset_clears_the_causes(t: Trial) -> Outcome:
    """The device is reset with the interrupt of a used buffer pending."""
    _, window = in_use(t)
    _pending(t, window, Interrupt.USED_BUFFER, "a used buffer")
    t.confirm_reset()
    seen = window.read32(mmio.INTERRUPT_STATUS)
    t.expect(seen == 0, f"InterruptStatus {seen:#x} after the reset", "0")
    return None


@AREA.row(
    "D-MMIO-22",
    "4.2.2",
    "DESC",
    "InterruptACK clears the written bits only.",
    severity=Severity.SILENT,
    transports=_BOTH,
    types=_TRAFFIC,
    needs=frozenset({"host"}),
)
def acknowledges_what_was_written(t: Trial) -> Outcome:
    """With both events pending each is acknowledged by itself."""
    change = t.lever()
    change(0)
    lane = split(t)
    t.good(lane)
    change(1)
    window = window_of(t)
    _pending(t, window, Interrupt.USED_BUFFER, "a used buffer")
    _pending(t, window, Interrupt.CONFIG_CHANGE, "a change of the configuration")
    for cause, left in ((Interrupt.CONFIG_CHANGE, Interrupt.USED_BUFFER), (Interrupt.USED_BUFFER, 0)):
        window.write32(mmio.INTERRUPT_ACK, cause)
        seen = window.read32(mmio.INTERRUPT_STATUS)
        t.expect(seen == left, f"InterruptStatus {seen:#x} after {cause:#x} was acknowledged", f"{int(left):#x}")
    return None


@AREA.row(
    "D-MMIO-25",
    "4.2.3.4",
    "DESC",
    "The interrupt line falls when all causes are acknowledged.",
    transports=_BOTH,
    types=_TRAFFIC,
)
def line_falls(t: Trial) -> Outcome:
    """A used buffer's interrupt is taken and acknowledged; the line is watched for another."""
    only(t)
    try:
        lane = t.start(interrupts=(InterruptMode.INTX,))
    except NotSupported as error:
        raise Unfit(f"its line cannot be watched: {error}") from error
    t.good(lane)
    t.await_interrupt(lane)  # takes it, acknowledges and rearms the line
    event = t.transport.events()[0]
    t.expect(t.quiet(event.take), "the line is up after the causes were acknowledged", "down")
    return None


# --- reset, generation (4.2.2.1) ---------------------------------------------------------------------------------


@AREA.row("D-MMIO-06", "4.2.2.1", "MUST", "A reset clears QueueReady of all queues.", witness="host")
def reset_clears_queue_ready(t: Trial) -> Outcome:
    """All queues are enabled, and read after the reset."""
    cleared_by_reset(t, mmio.QUEUE_READY, "QueueReady")
    not_enabled(t, 0)
    return None


@AREA.row(
    "D-MMIO-07",
    "4.2.2.1",
    "MUST",
    "ConfigGeneration changes with the configuration, before DRIVER_OK too.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def generation_follows_the_host(t: Trial) -> Outcome:
    """The host changes the configuration of a running device, and of another at FEATURES_OK."""
    change = t.lever()
    change(0)
    t.up()
    _counted(t, change, 1, "while the device runs")
    t.reset()
    t.negotiate(t.plain)
    _counted(t, change, 2, "before DRIVER_OK")
    return None


def _counted(t: Trial, change: Change, number: int, when: str) -> None:
    before, config = t.transport.generation(), _config(t)
    change(number)
    t.owe(lambda: _config(t) != config, "the host's change does not show", "another configuration")
    t.expect(t.transport.generation() != before, f"ConfigGeneration stays {before} {when}", "another one")


def _config(t: Trial) -> tuple[int, ...]:
    return tuple(t.read_field(field) for field, bit in FIELDS[t.type] if bit is None or f.has(t.offered, bit))


# --- queues (4.2.2) ----------------------------------------------------------------------------------------------


@AREA.row(
    "D-MMIO-08",
    "4.2.2.1",
    "MUST NOT",
    "Touch no queue while QueueReady is 0.",
    level=Level.REGISTERS,
    severity=Severity.MEMORY,
    types=_TRAFFIC,
)
def nothing_while_not_ready(t: Trial) -> Outcome:
    """QueueReady of a live queue is set to 0, then a request is published and kicked."""
    lane, window = in_use(t)
    window.write32(mmio.QUEUE_SEL, lane.index)
    window.write32(mmio.QUEUE_READY, 0)
    ready = window.read32(mmio.QUEUE_READY)  # 4.2.2.2: reading it back synchronizes
    t.expect(ready == 0, f"QueueReady {ready:#x} after 0 was written", "0")
    used = lane.used_idx
    _, posted = t.request(lane)
    lane.publish(posted)
    lane.kick()
    t.expect(t.quiet(lambda: lane.used_idx != used), "a request was used while QueueReady was 0", "no access")
    return None


@AREA.row(
    "D-MMIO-16",
    "4.2.2",
    "DESC",
    "QueueSizeMax is 0 for a queue that is not there.",
    level=Level.REGISTERS,
    transports=_BOTH,
)
def no_size_of_no_queue(t: Trial) -> Outcome:
    """Beside queue 0, the queue behind the last one is selected, then 1024 and 0xffff."""
    last = t.transport.num_queues
    window = window_of(t)
    for queue in (last, 1024, 0xFFFF):
        of_queue(window, 0, mmio.QUEUE_SIZE_MAX)
        seen = of_queue(window, queue, mmio.QUEUE_SIZE_MAX)
        t.expect(seen == 0, f"QueueSizeMax {seen} with queue {queue} selected, of {last} queues", "0")
    return None


@AREA.row(
    "D-MMIO-17",
    "4.2.2",
    "DESC",
    "QueueSizeMax is what the device will serve.",
    transports=_BOTH,
    types=_TRAFFIC,
    witness="host",
)
def largest_size_is_served(t: Trial) -> Outcome:
    """A queue of exactly that size is used until its available ring has wrapped."""
    only(t)
    index = t.exchange.queue
    try:
        lane = t.start(size=t.transport.queue_layout(index).size_max)
    except MemoryScattered as error:
        raise Unfit(f"there is no memory for a queue of that size: {error}") from error
    posted = 0
    while posted <= lane.size:
        chains = batch(t, lane, max(1, min(64, lane.size // len(t.exchange.elements(t)))))
        t.await_used(lane, len(chains))
        for chain in chains:
            t.expect(chain.length is not None, f"a chain of request {posted} did not come back", "all of them")
        posted += len(chains)
    t.good(lane)
    same_used_index(t, lane)
    shown = None if t.packed else t.host.queue(index)
    t.witnessed("the size of the queue", lane.size, None if shown is None else shown.size)
    return None


@AREA.row(
    "D-MMIO-18", "4.2.2", "DESC", "QueueReady reads back what was written last.", level=Level.ODD, types=_TRAFFIC
)
def queue_ready_reads_back(t: Trial) -> Outcome:
    """Before DRIVER_OK it is 1, then 0, then 1 again, and the queue serves."""
    only(t)
    lane = t.prepare()
    window = window_of(t)
    for value in (1, 0, 1):
        window.write32(mmio.QUEUE_SEL, lane.index)
        if window.read32(mmio.QUEUE_READY) != value:
            window.write32(mmio.QUEUE_READY, value)
        seen = window.read32(mmio.QUEUE_READY)
        t.expect(seen == value, f"QueueReady {seen:#x} after {value} was written", f"{value}")
    t.go()
    t.good(lane)
    return None


# --- the reset of one queue (2.6.1) ------------------------------------------------------------------------------


def _with_reset(t: Trial) -> Lane:
    t.need_feature(f.RING_RESET)
    return split(t, also=f.mask(f.RING_RESET))


def _reset(t: Trial, lane: Lane) -> list[int]:
    """Reset one queue by its register; all that QueueReset read."""
    window = window_of(t)
    seen: list[int] = []

    def done() -> bool:
        seen.append(window.read32(mmio.QUEUE_RESET))
        return seen[-1] == 0

    window.write32(mmio.QUEUE_SEL, lane.index)
    window.write32(mmio.QUEUE_RESET, 1)
    t.owe(done, f"QueueReset reads {seen[-1] if seen else '?'}", "0")
    return seen


def _reset_reads_0(t: Trial, lane: Lane, when: str) -> None:
    """QueueReset is 0."""
    seen = of_queue(window_of(t), lane.index, mmio.QUEUE_RESET)
    t.expect(seen == 0, f"QueueReset {seen:#x} {when}", "0")


def _ended(t: Trial) -> Lane:
    """A queue that served two good requests and was reset; QueueReady is 0."""
    lane = _with_reset(t)
    t.good(lane, 2)
    _reset(t, lane)
    ready = of_queue(window_of(t), lane.index, mmio.QUEUE_READY)
    t.expect(ready == 0, f"QueueReset 0, and QueueReady {ready:#x}", "both 0")
    return lane


@AREA.row("D-MMIO-09", "4.2.2.1", "MUST", "QueueReset is 0 after a reset of the device.", types=_TRAFFIC)
def queue_reset_after_reset(t: Trial) -> Outcome:
    """Read after the reset of a running device that accepted RING_RESET."""
    lane = _with_reset(t)
    t.good(lane)
    t.confirm_reset()
    _reset_reads_0(t, lane, "after the reset of the device")
    return None


@AREA.row("D-MMIO-10", "4.2.2.1", "MUST", "QueueReset is 0 after the queue was enabled.", types=_TRAFFIC)
def queue_reset_after_enabling(t: Trial) -> Outcome:
    """Read as soon as QueueReady is 1."""
    lane = _with_reset(t)
    _reset_reads_0(t, lane, "of an enabled queue")
    t.good(lane)
    return None


@AREA.row("D-MMIO-11", "4.2.2.1", "MUST", "Writing 1 to QueueReset resets the queue.", types=_TRAFFIC)
def queue_reset_resets(t: Trial) -> Outcome:
    """A used queue is reset, and enabled again in other memory, where its indices begin with 0."""
    lane = _ended(t)
    t.good(t.again(lane.index), 2)
    return None


@AREA.row(
    "D-MMIO-12", "4.2.2.1", "MUST", "QueueReset reads 1 while the reset of the queue is under way.", types=_TRAFFIC
)
def queue_reset_reads_1(t: Trial) -> Outcome:
    """Read until it is 0; a device may be done at once."""
    lane = _with_reset(t)
    t.good(lane)
    odd = [value for value in _reset(t, lane) if value not in (0, 1)]
    t.expect(not odd, f"QueueReset {odd[0] if odd else 0:#x} while under way", "1")
    return None


@AREA.row(
    "D-MMIO-13",
    "4.2.2.1",
    "MUST",
    "QueueReset and QueueReady are both 0 after the reset of a queue.",
    types=_TRAFFIC,
)
def both_are_0_after_a_queue_reset(t: Trial) -> Outcome:
    """Both are read once QueueReset is 0, and once more."""
    lane = _ended(t)
    _reset_reads_0(t, lane, "after it was 0")
    return None


# --- features (4.2.2) --------------------------------------------------------------------------------------------


@AREA.row(
    "D-MMIO-14",
    "4.2.2",
    "DESC",
    "DeviceFeatures shows the word that is selected, and none where there is no bit.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
)
def device_features_of_any_select(t: Trial) -> Outcome:
    """Selects beyond the words that there are, each after word 1."""
    window = window_of(t)
    for select in (4, 5, 0x7FFFFFFF, _ONES):
        window.write32(mmio.DEVICE_FEATURES_SEL, 1)
        window.read32(mmio.DEVICE_FEATURES)
        window.write32(mmio.DEVICE_FEATURES_SEL, select)
        seen = window.read32(mmio.DEVICE_FEATURES)
        t.expect(seen == 0, f"DeviceFeatures {seen:#x} at select {select:#x}", "0")
    return None


@AREA.row(
    "D-MMIO-15",
    "4.2.2",
    "DESC",
    "DriverFeatures goes to the selected word only.",
    level=Level.ODD,
    severity=Severity.SILENT,
)
def driver_features_go_to_their_word(t: Trial) -> Outcome:
    """Words 2 and 3 are written empty behind word 1; the witness is VERSION_1, if it insists, or a packed ring."""
    insists = not t.accepts(t.plain & ~f.mask(f.VERSION_1))
    t.need(
        insists or t.packed,
        "it does not insist on VERSION_1; --ring packed shows it",
    )
    window = window_of(t)

    def empty() -> None:
        for word in (2, 3):
            window.write32(mmio.DRIVER_FEATURES_SEL, word)
            window.write32(mmio.DRIVER_FEATURES, 0)

    t.behind_features = empty
    if not insists:
        t.good(t.start())
        return None
    seen = t.negotiate(t.plain)
    t.expect(
        bool(seen & Status.FEATURES_OK),
        f"status {describe(seen)} once words 2 and 3 were written empty",
        "FEATURES_OK, as words 0 and 1 are good",
    )
    return None


# --- shared memory (2.10, 4.2.2) ---------------------------------------------------------------------------------


def _no_region(t: Trial, name: str, low: int) -> None:
    window = window_of(t)
    window.write32(mmio.SHM_SEL, _NO_REGION)
    seen = window.read32(low) | window.read32(low + 4) << 32
    t.expect(seen == mmio.NO_SHM, f"{name} {seen:#x} of region {_NO_REGION}", "all ones")


@AREA.row("D-MMIO-19", "4.2.2", "DESC", "The length of a region that does not exist is all ones.", level=Level.ODD)
def no_length_of_no_region(t: Trial) -> Outcome:
    """SHMLen of region 255, which no device type has."""
    _no_region(t, "SHMLen", mmio.SHM_LEN_LOW)
    return None


@AREA.row("D-MMIO-20", "4.2.2", "DESC", "The base of a region that does not exist is all ones.", level=Level.ODD)
def no_base_of_no_region(t: Trial) -> Outcome:
    """SHMBase of region 255, which no device type has."""
    _no_region(t, "SHMBase", mmio.SHM_BASE_LOW)
    return None


# --- accesses that the table does not allow (4.2.2.2) ------------------------------------------------------------


@AREA.row(
    "D-MMIO-23",
    "4.2.2",
    "DESC",
    "Reading a register with another width than 32 bits changes nothing.",
    level=Level.REGISTERS,
    transports=_BOTH,
    types=_TRAFFIC,
)
def narrow_reads(t: Trial) -> Outcome:
    """Registers of a running device are read by bytes and by 16 bits; then a good request is made."""
    # On a real bus such an access may end this process, so it is made to a device of this run alone.
    ours = t.device.guest is not None or isinstance(t.transport.backend, ScriptedCore)
    t.need(ours, "only tried on qemu: and scripted: devices")
    lane, window = in_use(t)
    before = t.status()
    read = []
    for register in (mmio.MAGIC_VALUE_REG, mmio.INTERRUPT_STATUS, mmio.STATUS):
        read += [window.read8(register), window.read16(register)]
    seen = t.status()
    t.expect(seen == before, f"status {describe(seen)} after narrow reads", f"{describe(before)}, as before")
    t.good(lane)
    return free(f"MagicValue, InterruptStatus and Status read {', '.join(f'{value:#x}' for value in read)}")


@AREA.row(
    "D-MMIO-24",
    "4.2.2",
    "DESC",
    "Read-only registers ignore writes, and write-only ones are read without harm.",
    level=Level.REGISTERS,
    transports=_BOTH,
    types=_TRAFFIC,
)
def the_other_way(t: Trial) -> Outcome:
    """Each is accessed once in the way that it has not, while the device runs; then a good request is made."""
    lane, window = in_use(t)
    _pending(t, window, Interrupt.USED_BUFFER, "a used buffer")
    table = mmio.LEGACY_REGISTERS if t.legacy else mmio.REGISTERS
    # A version 1 device may not be asked for the size of a live queue.
    readable = [field for field, way in table if way is Way.R and field.name != "QueueSizeMax"]
    window.write32(mmio.DEVICE_FEATURES_SEL, 0)
    before = {field.name: window.read32(field.offset) for field in readable}
    for field in readable:
        window.write32(field.offset, before[field.name] ^ 0xFF)
    for field, way in table:
        if way is Way.W:
            window.read32(field.offset)
    for field in readable:
        seen, was = window.read32(field.offset), before[field.name]
        t.expect(seen == was, f"{field.name} {seen:#x} after it was written", f"{was:#x}, as before")
    t.good(lane)
    return None
