"""5.6: SCSI hosts that are wrong."""

from __future__ import annotations

from uvirtio.spec.scsi import CONTROLQ, EVENTQ, EventType, Response

from . import Mutants, around

MUTANTS = Mutants("scripted:scsi")


def answers(device, change):
    """Another answer: ``change`` is given the command, status and response, and returns status and response."""

    def answered(before, seen):
        answer, found = before(seen)
        return answer[:10] + bytes(change(seen, answer[10], answer[11])) + answer[12:], found

    around(device.model, "_answered", answered)


@MUTANTS.of("D-SCS-01")
def keeps_cdb_size(device):
    around(device.model, "reset", lambda before: (device.model._sizes.pop(24, None), before()))


@MUTANTS.of("D-SCS-11")
def two_channels(device):
    device.model.put("max_channel", 1)


@MUTANTS.of("D-SCS-02")
def no_status_of_sam(device):
    answers(device, lambda seen, status, response: (0x01 if not seen.room else status, response))


@MUTANTS.of("D-SCS-03")
def a_failure_for_no_target(device):
    answers(device, lambda seen, status, response: (status, Response.FAILURE if response == 3 else response))


@MUTANTS.of("D-SCS-04")
def cuts_in_silence(device):
    answers(device, lambda seen, status, response: (status, 0 if response == Response.OVERRUN else response))


@MUTANTS.of("D-SCS-05")
def moves_both_ways(device):
    answers(device, lambda seen, status, response: (status, 0 if seen.data and seen.room else response))


@MUTANTS.of("D-SCS-06")
def answers_after_a_reset(device):
    kept, ended, reads = [], [], 0

    def handle(before, queue, chain):
        kept.append(chain)
        return before(queue, chain)

    def reset(before):
        nonlocal reads
        ended[:], reads = kept, 0
        kept.clear()
        before()

    def status(read):
        nonlocal reads
        reads += 1
        if reads == 2 and len(ended) > 1:  # after 0 was read once
            device.memory.write(ended[-1].writable[0].address, b"\x5a" * 12)
        return read()

    around(device.model, "handle", handle)
    around(device.model, "reset", reset)
    around(device, "_read_status", status)


@MUTANTS.of("D-SCS-07")
def forgets_the_commands_it_ends(device):
    model = device.model

    def handle(before, queue, chain):
        if queue == CONTROLQ:
            model.kept.clear()
        else:
            model.hold = device.queues[CONTROLQ].enable
        return before(queue, chain)

    around(model, "handle", handle)


@MUTANTS.of("D-SCS-08")
def forgets_what_was_lost(device):
    around(
        device.model, "_buffer", lambda before, chain: (setattr(device.model, "missed", False), before(chain))[1]
    )


def tells(device, event, place, reason):
    """An event for whoever has a buffer there."""
    chain = device.model.buffers.popleft()
    chain.fill(event.to_bytes(4, "little") + bytes([1, place[0], 0, place[1]]).ljust(12, b"\0"))
    device.complete(EVENTQ, chain, 16)


@MUTANTS.of("D-SCS-09")
def tells_who_did_not_ask(device):
    around(
        device.model,
        "plug",
        lambda before, *what: (before(*what), tells(device, EventType.TRANSPORT_RESET, (7, 0), 1)),
    )


@MUTANTS.of("D-SCS-10")
def tells_of_media(device):
    around(
        device.model,
        "grow",
        lambda before, *what: (before(*what), tells(device, EventType.PARAM_CHANGE, (7, 0), 0x092A)),
    )
