"""5.15: memory devices that are wrong."""

from __future__ import annotations

import os
import struct

from uvirtio.scripted import Mem, ScriptedDevice
from uvirtio.spec.mem import Request, Response, State

from . import Mutants, around

MUTANTS = Mutants("scripted:mem")


def with_memory():
    """A device whose region is a file, which goes with it."""
    device = ScriptedDevice(Mem(memory=True), address="scripted:mem")
    around(device, "close", lambda close: (close(), device.model.close()))
    return device


def decides(device, instead):
    """Another answer: ``instead`` is given what decides, and type, address and blocks of the request."""
    around(device.model, "decide", instead)


def answers(device, kind, answer, when=lambda addr, blocks: True):
    """The answer to requests of one type, which are not carried out."""
    decides(
        device,
        lambda before, asked, addr, blocks: (
            (answer, None) if asked == kind and when(addr, blocks) else before(asked, addr, blocks)
        ),
    )


def after(device, kind, act):
    """Do something after requests of one type."""

    def decide(before, asked, addr, blocks):
        done = before(asked, addr, blocks)
        if asked == kind:
            act(addr)
        return done

    decides(device, decide)


def scribbles(device):
    """The device writes over all that is plugged."""
    model = device.model
    for block in model.plugged:
        os.pwrite(model.fd, b"\x5a" * 64, block * model.block_size)


# --- the configuration ------------------------------------------------------------------------------------------


@MUTANTS.of("D-MEM-01")
def moves_to_another_node(device):
    after(device, Request.PLUG, lambda addr: device.model.put("node_id", 7))


@MUTANTS.of("D-MEM-02")
def forgets_the_size_of_unplugs(device):
    before = device.model._book
    after(device, Request.UNPLUG, lambda addr: setattr(device.model, "_book", lambda: None))
    after(device, Request.PLUG, lambda addr: setattr(device.model, "_book", before))


@MUTANTS.of("D-COM-06", on=with_memory)
def generation_stands_still_while_blocks_come_and_go(device):
    around(device.model, "put", lambda put, name, value, **how: put(name, value))


@MUTANTS.of("D-MEM-03")
def less_usable_than_requested(device):
    around(device.model, "request", lambda before, size: (before(size), device.model.put("usable_region_size", 0)))


@MUTANTS.of("D-MEM-04")
def blocks_of_three_mib(device):
    device.model.put("block_size", 3 << 20)


@MUTANTS.of("D-MEM-05")
def half_a_block_is_requested(device):
    device.model.put("requested_size", device.model.block_size // 2)


@MUTANTS.of("D-MEM-07")
def usable_follows_the_request(device):
    around(
        device.model, "request", lambda before, size: (before(size), device.model.put("usable_region_size", size))
    )


@MUTANTS.of("D-MEM-08")
def requests_in_silence(device):
    around(device.model, "request", lambda before, size: device.model.put("requested_size", size, interrupt=False))


@MUTANTS.of("D-MEM-09")
def tells_each_plug(device):
    after(device, Request.PLUG, lambda addr: device.interrupt_config())


# --- bring-up and resets ----------------------------------------------------------------------------------------


@MUTANTS.of("D-MEM-10")
def refuses_without_inaccessible(device):
    device.faults.refuse_without = 1 << 1


@MUTANTS.of("D-MEM-11")
def a_reset_unplugs(device):
    around(device.model, "reset", lambda before: (before(), device.model.plugged.clear()))


@MUTANTS.of("D-MEM-12", on=with_memory)
def a_reset_scribbles(device):
    around(device.model, "reset", lambda before: (before(), scribbles(device)))


@MUTANTS.of("D-MEM-15", on=with_memory)
def a_look_scribbles(device):
    after(device, Request.STATE, lambda addr: scribbles(device))


@MUTANTS.of("D-MEM-16", on=with_memory)
def plugs_other_memory(device):
    """Devices reach other memory than the CPU does."""
    around(device.memory, "show", lambda before, address, view: before(address, memoryview(bytearray(len(view)))))


# --- wrong requests ---------------------------------------------------------------------------------------------


@MUTANTS.of("D-MEM-21")
def rounds_plugs_down(device):
    size = device.model.block_size
    decides(
        device,
        lambda before, kind, addr, blocks: before(
            kind, addr // size * size if kind == Request.PLUG else addr, blocks
        ),
    )


@MUTANTS.of("D-MEM-22")
def plugging_nothing_is_fine(device):
    answers(device, Request.PLUG, Response.ACK, lambda addr, blocks: not blocks)


@MUTANTS.of("D-MEM-23")
def plugs_around_the_end(device):
    answers(device, Request.PLUG, Response.NACK, lambda addr, blocks: addr > 1 << 63)


@MUTANTS.of("D-MEM-24")
def looks_at_the_first_block(device):
    model = device.model

    def decide(before, kind, addr, blocks):
        block = (addr - model.addr) // model.block_size
        if kind == Request.PLUG and blocks == 2 and block + 1 in model.plugged and block not in model.plugged:
            return before(kind, addr, 1)
        return before(kind, addr, blocks)

    decides(device, decide)


@MUTANTS.of("D-MEM-26")
def gives_more_than_requested(device):
    around(device.model, "get", lambda before, name: 1 << 40 if name == "requested_size" else before(name))


@MUTANTS.of("D-MEM-28")
def unplugging_nothing_is_fine(device):
    answers(device, Request.UNPLUG, Response.ACK, lambda addr, blocks: not blocks)


@MUTANTS.of("D-MEM-29")
def unplugs_what_it_has(device):
    model = device.model

    def decide(before, kind, addr, blocks):
        block = (addr - model.addr) // model.block_size
        if kind == Request.UNPLUG and block in model.plugged and block + 1 not in model.plugged:
            return before(kind, addr, 1)
        return before(kind, addr, blocks)

    decides(device, decide)


@MUTANTS.of("D-MEM-35")
def state_of_nothing(device):
    def decide(before, kind, addr, blocks):
        if kind == Request.STATE and not blocks:
            return Response.ACK, State.UNPLUGGED
        return before(kind, addr, blocks)

    decides(device, decide)


@MUTANTS.of("D-MEM-38")
def hangs_with_an_unknown_type(device):
    def decide(before, kind, addr, blocks):
        if kind > Request.STATE:
            device.faults.reset_reads = -1
        return before(kind, addr, blocks)

    decides(device, decide)


# --- right requests ---------------------------------------------------------------------------------------------


@MUTANTS.of("D-MEM-25")
def plugs_two_and_says_error(device):
    def decide(before, kind, addr, blocks):
        answer, state = before(kind, addr, blocks)
        return (Response.ERROR if kind == Request.PLUG and blocks == 2 else answer), state

    decides(device, decide)


@MUTANTS.of("D-MEM-30")
def unplugs_the_first_alone(device):
    decides(
        device,
        lambda before, kind, addr, blocks: before(kind, addr, 1 if kind == Request.UNPLUG and blocks else blocks),
    )


@MUTANTS.of("D-MEM-36")
def a_fourth_state(device):
    def decide(before, kind, addr, blocks):
        answer, state = before(kind, addr, blocks)
        last = kind == Request.STATE and addr == device.model.addr + 15 * device.model.block_size
        return answer, (4 if last else state)

    decides(device, decide)


@MUTANTS.of("D-MEM-37")
def knows_no_mixed(device):
    def decide(before, kind, addr, blocks):
        answer, state = before(kind, addr, blocks)
        return answer, (State.UNPLUGGED if state == State.MIXED else state)

    decides(device, decide)


def looks_at_padding(*kinds):
    """The device refuses what has rubbish in its padding."""

    def spoil(device):
        def handle(before, queue, chain):
            data = chain.data()
            kind = struct.unpack("<H", data[:2])[0]
            device.model.always = Response.ERROR if kind in kinds and any(data[2:8]) else None
            return before(queue, chain)

        around(device.model, "handle", handle)

    return spoil


MUTANTS.of("D-MEM-20")(looks_at_padding(Request.PLUG))
MUTANTS.of("D-MEM-27")(looks_at_padding(Request.UNPLUG))
MUTANTS.of("D-MEM-34")(looks_at_padding(Request.STATE))


@MUTANTS.of("D-MEM-31")
def looks_where_to_unplug_all(device):
    answers(device, Request.UNPLUG_ALL, Response.ERROR, lambda addr, blocks: blocks > 0)


@MUTANTS.of("D-MEM-32")
def nothing_to_unplug(device):
    answers(device, Request.UNPLUG_ALL, Response.ERROR, lambda addr, blocks: not device.model.plugged)


@MUTANTS.of("D-MEM-33")
def keeps_the_size(device):
    model = device.model
    after(device, Request.UNPLUG_ALL, lambda addr: setattr(model, "size_lie", model.block_size))
