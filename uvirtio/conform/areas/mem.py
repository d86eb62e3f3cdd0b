"""5.15: the memory device. A test plugs blocks that nobody has, and unplugs them again."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from uvirtio.conform.blocks import LOOKED_AT, PAGE, Answer, Blocks, again, pattern_of, place_of, started
from uvirtio.conform.memory import Piece
from uvirtio.conform.row import MODERN, Area, Level
from uvirtio.conform.traffic import gave_up
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, free, rejected
from uvirtio.spec import features as f
from uvirtio.spec import mem
from uvirtio.spec.mem import Request, Response, State

AREA = Area("mem", 90, "5.15: memory, virtio-mem", transports=MODERN, types=frozenset({"mem"}))

_FIXED: Final = ("block_size", "node_id", "addr", "region_size")
_SIZES: Final = ("region_size", "usable_region_size", "plugged_size", "requested_size")
_UNKNOWN: Final = 0x7FFF


# --- the configuration (5.15.4) ---------------------------------------------------------------------------------


@AREA.row(
    "D-MEM-01",
    "5.15.4.2",
    "MUST NOT",
    "block_size, node_id, addr and region_size never change without a system reset.",
    severity=Severity.SILENT,
    witness="host",
)
def fixed_fields(t: Trial) -> Outcome:
    """The four are read before and after PLUG, STATE, UNPLUG and a device reset."""

    def read() -> list[int]:
        return [t.config_field(mem.CONFIG, name) for name in _FIXED]

    with place_of(t) as blocks:
        for name, shown in (("addr", "memaddr"), ("block_size", "block-size"), ("region_size", "max-size")):
            t.witnessed(name, t.config_field(mem.CONFIG, name), t.host.memory(shown))
        first = read()
        seen = {}
        for kind in (Request.PLUG, Request.STATE, Request.UNPLUG):
            blocks.done(kind, blocks.first, 1)
            seen[kind.name] = read()
        again(blocks)
        seen["a reset"] = read()
        for what, now in seen.items():
            t.expect(now == first, f"after {what}: {dict(zip(_FIXED, now, strict=True))}", f"{first}")
    return None


@AREA.row("D-MEM-02", "5.15.4.2", "MUST", "plugged_size follows what is plugged.", witness="host")
def plugged_size_follows(t: Trial) -> Outcome:
    """Two blocks are plugged one after the other, and unplugged together."""
    with place_of(t) as blocks:
        before = blocks.field("plugged_size")
        steps = ((Request.PLUG, 0, 1, 1), (Request.PLUG, 1, 1, 2), (Request.UNPLUG, 0, 2, 0))
        for kind, place, count, plugged in steps:
            blocks.done(kind, blocks.first + place, count)
            blocks.plugged_size_is(before + plugged * blocks.size, kind.name)
    return None


@AREA.row("D-MEM-03", "5.15.4.2", "MUST", "usable_region_size is at least requested_size.", witness="host")
def usable_is_enough(t: Trial) -> Outcome:
    """Both are read as they are, and, with consent, after the host changed its request."""
    t.up()
    for number in range(-1, 2 if t.consent.host else 0):
        if number >= 0:
            t.lever()(number)
        usable, wanted = (t.config_field(mem.CONFIG, name) for name in ("usable_region_size", "requested_size"))
        t.witnessed("requested_size", wanted, t.host.memory("requested-size"))
        t.expect(usable >= wanted, f"usable {usable:#x}, requested {wanted:#x}", "enough for the request")
    return None


@AREA.row("D-MEM-04", "5.15.4.2", "MUST", "block_size is a power of two.", level=Level.LOOK)
def block_size(t: Trial) -> Outcome:
    """It is read."""
    seen = t.config_field(mem.CONFIG, "block_size")
    t.expect(seen > 0 and seen & (seen - 1) == 0, f"block_size {seen:#x}", "a power of two")
    return None


@AREA.row("D-MEM-05", "5.15.4.2", "MUST", "addr and all sizes are multiples of block_size.", level=Level.LOOK)
def multiples(t: Trial) -> Outcome:
    """They are read."""
    size = t.config_field(mem.CONFIG, "block_size")
    t.expect(size > 0, "block_size 0", "a power of two")
    for name in ("addr", *_SIZES):
        seen = t.config_field(mem.CONFIG, name)
        t.expect(seen % size == 0, f"{name} {seen:#x}", f"a multiple of {size:#x}")
    return None


@AREA.row(
    "D-MEM-07",
    "5.15.4.2",
    "MUST NOT",
    "usable_region_size shrinks only with UNPLUG ALL or a system reset.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def usable_stays(t: Trial) -> Outcome:
    """The host asks for more and then for less; the device is reset."""
    blocks = started(t)
    change = t.lever()
    change(1)
    most = blocks.field("usable_region_size")

    def no_less(what: str) -> None:
        seen = blocks.field("usable_region_size")
        t.expect(seen >= most, f"{seen:#x} after {what}, before {most:#x}", "no less")

    change(0)
    no_less("the host asked for less")
    again(blocks)
    no_less("a device reset")
    return None


@AREA.row(
    "D-MEM-08",
    "5.15.4.2",
    "MUST",
    "A change of the requested or usable size is notified.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def request_is_notified(t: Trial) -> Outcome:
    """The host asks for another size while the device runs."""
    change = t.lever()
    change(0)
    blocks = started(t, interrupts=True)
    t.arrived()
    before = blocks.field("requested_size")
    change(1)
    t.owe(lambda: blocks.field("requested_size") != before, "the new size does not show", "another size")
    t.owe(lambda: t.arrived().config, "no configuration-change notification came", "one (5.15.4.2)")
    return None


@AREA.row("D-MEM-09", "5.15.4.2", "SHOULD NOT", "A change of plugged_size alone is not notified.")
def plugging_is_quiet(t: Trial) -> Outcome:
    """A block is plugged and unplugged, with interrupts that tell the causes apart."""
    with place_of(t, interrupts=True) as blocks:
        t.arrived()
        for kind in (Request.PLUG, Request.UNPLUG):
            blocks.done(kind, blocks.first, 1)
            quiet = t.quiet(lambda: t.arrived().config)
            t.expect(quiet, f"{kind.name} brings a configuration-change notification", "none")
    return None


# --- bring-up and resets (5.15.5) -------------------------------------------------------------------------------


@AREA.row(
    "D-MEM-10",
    "5.15.5.2",
    "MAY",
    "FEATURES_OK may be refused without UNPLUGGED_INACCESSIBLE.",
    level=Level.ODD,
)
def without_inaccessible(t: Trial) -> Outcome:
    """The bit is offered and not accepted."""
    t.need_feature(f.Mem.UNPLUGGED_INACCESSIBLE)
    accepted = t.accepts(t.plain & ~f.mask(f.Mem.UNPLUGGED_INACCESSIBLE))
    return free("accepted without it" if accepted else "refused without it")


@AREA.row(
    "D-MEM-11",
    "5.15.5.2",
    "MUST NOT",
    "A device reset changes the state of no block.",
    severity=Severity.SILENT,
    witness="host",
)
def reset_keeps_states(t: Trial) -> Outcome:
    """One block is plugged and its neighbours are not, before and after a reset."""
    with place_of(t) as blocks:
        blocks.done(Request.PLUG, blocks.first + 1, 1)
        size = blocks.field("plugged_size")
        again(blocks)
        for place, state in ((0, State.UNPLUGGED), (1, State.PLUGGED), (2, State.UNPLUGGED)):
            blocks.is_(blocks.first + place, 1, state)
        blocks.plugged_size_is(size, "the reset")
    return None


@AREA.row(
    "D-MEM-12",
    "5.15.5.2",
    "MUST NOT",
    "A device reset changes no plugged memory.",
    severity=Severity.MEMORY,
    witness="memory",
)
def reset_keeps_memory(t: Trial) -> Outcome:
    """A pattern in a plugged block, before and after a reset."""
    with pattern_of(t) as (blocks, contents):
        again(blocks)
        t.expect(not contents.changed(), "plugged memory changed with a device reset", "the pattern")
    return None


@AREA.row(
    "D-MEM-15",
    "5.15.6.2",
    "MUST NOT",
    "Plugged memory is not modified.",
    severity=Severity.MEMORY,
    witness="memory",
)
def plugged_memory_stays(t: Trial) -> Outcome:
    """A pattern in a plugged block, while the next one is looked at, plugged and unplugged."""
    with pattern_of(t) as (blocks, contents):
        for kind in (Request.STATE, Request.PLUG, Request.STATE, Request.UNPLUG):
            blocks.done(kind, blocks.first + 1, 1)
            t.expect(not contents.changed(), f"plugged memory changed with {kind.name}", "the pattern")
    return None


@AREA.row(
    "D-MEM-16",
    "5.15.6.2",
    "MUST",
    "Plugged memory can be read and written.",
    severity=Severity.SILENT,
    witness="memory",
)
def plugged_memory_works(t: Trial) -> Outcome:
    """By the CPU and by a device: a request is taken out of a plugged block, and its response is put there."""
    with pattern_of(t) as (blocks, contents):
        t.need(not t.dma.translated, "the device does not use guest-physical addresses")
        t.expect(not contents.changed(), "what the CPU writes is not there", "the pattern")
        for there, here in ((contents.start, contents.last), (contents.last, contents.start)):
            contents.write(there, struct.pack("<H6xQH6x", Request.STATE, contents.start, 1))
            contents.write(here, b"\xff" * mem.RESPONSE_SIZE)
            blocks.exchange(Piece(there, mem.REQUEST_SIZE, False), Piece(here, mem.RESPONSE_SIZE, True))
            kind, state = struct.unpack("<H6xH", contents.read(here, mem.RESPONSE_SIZE))
            right = (kind, state) == (Response.ACK, State.PLUGGED)
            t.expect(right, f"a response in plugged memory reads {kind:#x}, state {state:#x}", "ACK, PLUGGED")
    return None


# --- requests that are wrong (5.15.6.3 to 5.15.6.6) --------------------------------------------------------------


def _usable(t: Trial) -> Blocks:
    """The blocks of a device that runs and has some that are usable."""
    blocks = started(t)
    t.need(blocks.usable > 0, "nothing is usable")
    return blocks


def _refused(blocks: Blocks, kind: Request, addr: int, count: int, what: str) -> None:
    """One request has to be answered ERROR, and changes no size."""
    before = blocks.field("plugged_size")
    answer = blocks.ask(kind, count=count, addr=addr)
    blocks.t.expect(answer.type == Response.ERROR, f"{what} is answered {answer}", "ERROR")
    blocks.plugged_size_is(before, what)


def _unaligned(blocks: Blocks, kind: Request, place: int) -> None:
    blocks.t.need(blocks.size > PAGE, "a block has one page")
    start = blocks.start(place)
    for offset in (1, PAGE):
        _refused(blocks, kind, start + offset, 1, f"{kind.name} {offset} bytes into a block")


def _outside(blocks: Blocks, kind: Request, plugged: bool) -> None:
    """Below and beyond the usable region, across its end, and around the end of all addresses."""
    blocks.t.need(blocks.addr >= blocks.size, "the region begins at 0")
    end = blocks.start(blocks.usable)
    what = f"{kind.name} outside of the usable region"
    _refused(blocks, kind, blocks.addr - blocks.size, 1, what)
    _refused(blocks, kind, end, 1, what)
    # Across its end: the last block has to be what the request may have, or it is refused for that.
    fits = blocks.state(blocks.usable - 1, 1) == (State.PLUGGED if plugged else State.UNPLUGGED)
    if fits or kind is Request.STATE:
        _refused(blocks, kind, end - blocks.size, 2, f"{kind.name} across the end of the usable region")
    _refused(blocks, kind, -blocks.size, 2, f"{kind.name} around the end of all addresses")


def _second_is_wrong(blocks: Blocks, kind: Request, good: State, wrong: State) -> None:
    """A request for the second block of the place, which it may not have, and for the first two together."""
    start, name = blocks.start(blocks.first), wrong.name.lower()
    _refused(blocks, kind, start + blocks.size, 1, f"{kind.name} of a block that is {name}")
    _refused(blocks, kind, start, 2, f"{kind.name} of two blocks of which the second is {name}")
    blocks.is_(blocks.first, 1, good)


@AREA.row(
    "D-MEM-21",
    "5.15.6.3.2",
    "MUST",
    "PLUG: ERROR if addr is not aligned to block_size.",
    level=Level.REGISTERS,
    witness="host",
)
def plug_unaligned(t: Trial) -> Outcome:
    """One byte and one page into an unplugged block."""
    with place_of(t) as blocks:
        _unaligned(blocks, Request.PLUG, blocks.first)
        blocks.is_(blocks.first, 3, State.UNPLUGGED)
    return None


@AREA.row("D-MEM-22", "5.15.6.3.2", "MUST", "PLUG: ERROR for no blocks.", level=Level.REGISTERS, witness="host")
def plug_none(t: Trial) -> Outcome:
    """nb_blocks is 0."""
    with place_of(t) as blocks:
        _refused(blocks, Request.PLUG, blocks.start(blocks.first), 0, "PLUG of 0 blocks")
    return None


@AREA.row(
    "D-MEM-23",
    "5.15.6.3.2",
    "MUST",
    "PLUG: ERROR outside of the usable region.",
    level=Level.REGISTERS,
    witness="host",
)
def plug_outside(t: Trial) -> Outcome:
    """Below it, beyond it, across its end, and around the end of all addresses."""
    with place_of(t) as blocks:
        _outside(blocks, Request.PLUG, plugged=False)
    return None


@AREA.row(
    "D-MEM-24", "5.15.6.3.2", "MUST", "PLUG: ERROR if any block is plugged.", level=Level.REGISTERS, witness="host"
)
def plug_twice(t: Trial) -> Outcome:
    """The plugged block itself, and two blocks of which it is the second."""
    with place_of(t) as blocks:
        blocks.done(Request.PLUG, blocks.first + 1, 1)
        _second_is_wrong(blocks, Request.PLUG, State.UNPLUGGED, State.PLUGGED)
    return None


@AREA.row(
    "D-MEM-28",
    "5.15.6.4.2",
    "MUST",
    "UNPLUG: ERROR for unaligned, none, outside.",
    level=Level.REGISTERS,
    witness="host",
)
def unplug_wrongly(t: Trial) -> Outcome:
    """Into a plugged block, 0 blocks, and below, beyond and across the usable region."""
    with place_of(t) as blocks:
        blocks.done(Request.PLUG, blocks.first, 2)
        _unaligned(blocks, Request.UNPLUG, blocks.first)
        _refused(blocks, Request.UNPLUG, blocks.start(blocks.first), 0, "UNPLUG of 0 blocks")
        _outside(blocks, Request.UNPLUG, plugged=True)
        blocks.is_(blocks.first, 2, State.PLUGGED)
    return None


@AREA.row(
    "D-MEM-29",
    "5.15.6.4.2",
    "MUST",
    "UNPLUG: ERROR if any block is unplugged.",
    level=Level.REGISTERS,
    witness="host",
)
def unplug_twice(t: Trial) -> Outcome:
    """An unplugged block, and two blocks of which the first is plugged."""
    with place_of(t) as blocks:
        blocks.done(Request.PLUG, blocks.first, 1)
        _second_is_wrong(blocks, Request.UNPLUG, State.PLUGGED, State.UNPLUGGED)
    return None


@AREA.row("D-MEM-35", "5.15.6.6.2", "MUST", "STATE: ERROR for unaligned, none, outside.", level=Level.REGISTERS)
def state_wrongly(t: Trial) -> Outcome:
    """Into a block, 0 blocks, and below, beyond and across the usable region."""
    blocks = _usable(t)
    _unaligned(blocks, Request.STATE, 0)
    _refused(blocks, Request.STATE, blocks.addr, 0, "STATE of 0 blocks")
    _outside(blocks, Request.STATE, plugged=False)
    return None


@AREA.row("D-MEM-26", "5.15.6.3", "DESC", "PLUG beyond requested_size is answered NACK.", level=Level.REGISTERS)
def plug_too_many(t: Trial) -> Outcome:
    """One block more than the host wants."""
    with place_of(t) as blocks:
        more = (blocks.field("requested_size") - blocks.field("plugged_size")) // blocks.size + 1
        t.need(more <= LOOKED_AT, f"the host wants {more - 1} blocks more")
        blocks.find(more)
        answer = blocks.ask(Request.PLUG, blocks.first, more)
        t.expect(answer.type == Response.NACK, f"{more} blocks, one too many: {answer}", "NACK")
        blocks.is_(blocks.first, more, State.UNPLUGGED)
    return None


@AREA.row(
    "D-MEM-38",
    "5.15.6",
    "DESC",
    "A request of unknown type is answered or refused, and survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
)
def unknown_request(t: Trial) -> Outcome:
    """Type 0x7fff; it is answered, refused or passed over, and a reset mends it."""
    blocks = started(t)
    response = t.writable(mem.RESPONSE_SIZE)
    posted = blocks.lane.post(t.readable(struct.pack("<H6xQH6x", _UNKNOWN, blocks.addr, 1)), response)
    if t.serve(blocks.lane, posted, 2 * t.pace.watch):
        return rejected(f"answered {Answer(int.from_bytes(response.data[:2], 'little'), 0)}")
    return gave_up(t, otherwise="silence")


# --- requests that are right (5.15.6.3 to 5.15.6.6) --------------------------------------------------------------


@AREA.row(
    "D-MEM-25", "5.15.6.3.2", "MUST", "PLUG: ACK if all were plugged, and plugged_size says so.", witness="host"
)
def plugs(t: Trial) -> Outcome:
    """One block, and two."""
    with place_of(t) as blocks:
        before = blocks.field("plugged_size")
        for count in (1, 2):
            blocks.done(Request.PLUG, blocks.first, count)
            blocks.is_(blocks.first, count, State.PLUGGED)
            blocks.plugged_size_is(before + count * blocks.size, f"PLUG of {count} blocks")
            blocks.done(Request.UNPLUG, blocks.first, count)
    return None


@AREA.row(
    "D-MEM-30",
    "5.15.6.4.2",
    "MUST",
    "UNPLUG: ACK if all were unplugged, and plugged_size says so.",
    witness="host",
)
def unplugs(t: Trial) -> Outcome:
    """One block of two, the other one, and two together."""
    with place_of(t) as blocks:
        before = blocks.field("plugged_size")
        for steps in (((1, 1), (0, 1)), ((0, 2),)):
            blocks.done(Request.PLUG, blocks.first, 2)
            left = 2
            for place, count in steps:
                blocks.done(Request.UNPLUG, blocks.first + place, count)
                left -= count
                blocks.is_(blocks.first + place, count, State.UNPLUGGED)
                blocks.plugged_size_is(before + left * blocks.size, f"UNPLUG of {count} blocks")
    return None


@AREA.row("D-MEM-36", "5.15.6.6.2", "MUST", "STATE: ACK with the state.")
def answers_state(t: Trial) -> Outcome:
    """Each of up to sixteen blocks: ACK, and one of the three states."""
    blocks = _usable(t)
    for block in range(min(blocks.usable, 16)):
        answer = blocks.ask(Request.STATE, block, 1)
        t.expect(answer.type == Response.ACK, f"{answer} for block {block}", "ACK")
        t.expect(answer.state in tuple(State), f"state {answer.state:#x} of block {block}", "0, 1 or 2")
    return None


@AREA.row(
    "D-MEM-37",
    "5.15.6.6.2",
    "MUST",
    "STATE: plugged, unplugged or mixed, as the blocks are.",
    severity=Severity.SILENT,
)
def right_states(t: Trial) -> Outcome:
    """Two plugged blocks and an unplugged one: each range of the three."""
    with place_of(t) as blocks:
        blocks.done(Request.PLUG, blocks.first, 2)
        plugged, unplugged, mixed = State.PLUGGED, State.UNPLUGGED, State.MIXED
        ranges = ((0, 1, plugged), (0, 2, plugged), (2, 1, unplugged), (1, 2, mixed), (0, 3, mixed))
        for place, count, state in ranges:
            blocks.is_(blocks.first + place, count, state)
    return None


@AREA.row(
    "D-MEM-20",
    "5.15.6.3.2",
    "MUST",
    "PLUG: all but the type and its data is ignored, the padding too.",
    level=Level.REGISTERS,
)
def plug_with_junk(t: Trial) -> Outcome:
    """Rubbish in the padding and behind the request."""
    with place_of(t) as blocks:
        blocks.done(Request.PLUG, blocks.first, 1, junk=True)
        blocks.is_(blocks.first, 1, State.PLUGGED)
    return None


@AREA.row(
    "D-MEM-27",
    "5.15.6.4.2",
    "MUST",
    "UNPLUG: all but the type and its data is ignored, the padding too.",
    level=Level.REGISTERS,
)
def unplug_with_junk(t: Trial) -> Outcome:
    """Rubbish in the padding and behind the request."""
    with place_of(t) as blocks:
        blocks.done(Request.PLUG, blocks.first, 2)
        blocks.done(Request.UNPLUG, blocks.first, 1, junk=True)
        blocks.is_(blocks.first, 1, State.UNPLUGGED)
        blocks.is_(blocks.first + 1, 1, State.PLUGGED)
    return None


@AREA.row(
    "D-MEM-34",
    "5.15.6.6.2",
    "MUST",
    "STATE: all but the type and its data is ignored, the padding too.",
    level=Level.REGISTERS,
)
def state_with_junk(t: Trial) -> Outcome:
    """The same block with and without rubbish in the padding and behind the request."""
    blocks = _usable(t)
    plain, junk = blocks.ask(Request.STATE, 0, 1), blocks.ask(Request.STATE, 0, 1, junk=True)
    t.expect(plain == junk, f"{junk}, state {junk.state}, with rubbish", f"{plain}, state {plain.state}")
    return None


@contextmanager
def _nothing_plugged(t: Trial) -> Iterator[Blocks]:
    """A place on a device of which nothing is in use, as UNPLUG ALL needs it."""
    with place_of(t) as blocks:
        t.need(not blocks.field("plugged_size"), "some of its memory was plugged before the test")
        yield blocks


@AREA.row(
    "D-MEM-31",
    "5.15.6.5.2",
    "MUST",
    "UNPLUG ALL: all but the type is ignored.",
    level=Level.REGISTERS,
    witness="host",
)
def unplug_all_with_junk(t: Trial) -> Outcome:
    """An address and a number of blocks that no other request may have, and rubbish in the padding and behind."""
    with _nothing_plugged(t) as blocks:
        blocks.done(Request.PLUG, blocks.first, 1)
        answer = blocks.ask(Request.UNPLUG_ALL, 0, 0x7FFF, addr=blocks.addr + 12345, junk=True)
        t.need(answer.type != Response.BUSY, "BUSY")
        t.expect(answer.type == Response.ACK, f"{answer}", "ACK")
        blocks.plugged_size_is(0, "UNPLUG ALL")
    return None


@AREA.row("D-MEM-32", "5.15.6.5.2", "MUST", "UNPLUG ALL: ACK when all is unplugged.", witness="host")
def unplugs_all(t: Trial) -> Outcome:
    """With one block plugged, and again with none."""
    with _nothing_plugged(t) as blocks:
        blocks.done(Request.PLUG, blocks.first + 1, 1)
        for _ in range(2):
            blocks.done(Request.UNPLUG_ALL)
            t.witnessed("plugged_size", 0, t.host.memory("size"))
            if blocks.usable > blocks.first + 1:
                blocks.is_(blocks.first + 1, 1, State.UNPLUGGED)
    return None


@AREA.row(
    "D-MEM-33", "5.15.6.5.2", "MUST", "UNPLUG ALL: plugged_size is 0 once it is acknowledged.", witness="host"
)
def unplugged_size(t: Trial) -> Outcome:
    """With two blocks plugged."""
    with _nothing_plugged(t) as blocks:
        blocks.done(Request.PLUG, blocks.first, 2)
        blocks.done(Request.UNPLUG_ALL)
        blocks.plugged_size_is(0, "UNPLUG ALL")
    return None
