"""5.2: disks that are wrong."""

from __future__ import annotations

from uvirtio.scripted import Disk, ScriptedDevice
from uvirtio.scripted.blk import FEATURES
from uvirtio.spec import features as f
from uvirtio.spec.blk import Request, Status

from . import Mutants, around

MUTANTS = Mutants("scripted:blk")


def with_features(*bits):
    """A disk with more features."""
    return lambda: ScriptedDevice(Disk(features=FEATURES | f.mask(*bits)), address="scripted:blk")


def answers(device, kind, status, does=False):
    """Another status for requests of one type; ``does``: they are carried out all the same."""

    def carry_out(before, asked, *what):
        if asked != kind:
            return before(asked, *what)
        return status, before(asked, *what)[1] if does else b""

    around(device.model, "carry_out", carry_out)


@MUTANTS.of("D-BLK-01")
def hides_flush(device):
    device.offered &= ~f.mask(f.Blk.FLUSH)


@MUTANTS.of("D-BLK-02", on=with_features(f.Blk.CONFIG_WCE))
def wce_without_flush(device):
    device.offered &= ~f.mask(f.Blk.FLUSH)


@MUTANTS.of("D-BLK-03", on=with_features(f.Blk.CONFIG_WCE))
def writeback_stays_1(device):
    def write(to, value):
        to(value)
        device._status = value

    around(device, "_write_status", write)


@MUTANTS.of("D-BLK-04")
def junk_in_the_padding(device):
    device.model.put("unused0", 0xA7)


@MUTANTS.of("D-BLK-05", on=lambda: zoned(1))
def zoned_with_no_model(device):
    device.model.put("model", 0)


def zoned(model):
    """A disk that says it is zoned."""
    return ScriptedDevice(Disk(features=FEATURES | f.mask(f.Blk.ZONED), model=model), address="scripted:blk")


@MUTANTS.of("D-BLK-06", on="scripted:blk,transport=legacy")
def legacy_and_zoned(device):
    device.legacy_offered |= f.mask(f.Blk.ZONED)


@MUTANTS.of("D-BLK-10")
def grows_in_silence(device):
    around(device, "change_config", lambda before, *what, **how: before(*what, interrupt=False))


@MUTANTS.of("D-BLK-11", on=with_features(f.Blk.RO))
def read_only_says_ok(device):
    answers(device, Request.OUT, Status.OK)


@MUTANTS.of("D-BLK-12", on=with_features(f.Blk.RO))
def read_only_is_written(device):
    def carry_out(before, kind, sector, payload, room):
        if kind == Request.OUT:
            device.model.content[sector * 512 : sector * 512 + len(payload)] = payload
        return before(kind, sector, payload, room)

    around(device.model, "carry_out", carry_out)


@MUTANTS.of("D-BLK-13")
def unknown_flags_are_fine(device):
    answers(device, Request.WRITE_ZEROES, Status.OK)


@MUTANTS.of("D-BLK-14")
def discards_with_unmap(device):
    answers(device, Request.DISCARD, Status.OK)


@MUTANTS.of("D-BLK-15")
def zeroes_nothing(device):
    answers(device, Request.WRITE_ZEROES, Status.OK)


@MUTANTS.of("D-BLK-18", on=with_features(f.Blk.LIFETIME))
def reserved_lifetime(device):
    around(
        device.model,
        "carry_out",
        lambda before, kind, *what: (
            (Status.OK, b"\x09\x00" * 3) if kind == Request.GET_LIFETIME else before(kind, *what)
        ),
    )


@MUTANTS.of("D-BLK-19")
def zone_append_is_fine(device):
    answers(device, 15, Status.OK)


@MUTANTS.of("D-BLK-25")
def unknown_is_ioerr(device):
    answers(device, 0x7FFF, Status.IOERR)


@MUTANTS.of("D-BLK-26")
def reads_beyond_the_end(device):
    around(
        device.model,
        "carry_out",
        lambda before, kind, sector, *what: before(kind, sector if sector < 2048 else 0, *what),
    )


@MUTANTS.of("D-BLK-27")
def claims_the_room(device):
    around(device.model, "answer", lambda before, chain, *what: (before(chain, *what), chain.room)[1])


@MUTANTS.of("D-BLK-28")
def hangs_without_a_status(device):
    def handle(before, queue, chain):
        if not chain.writable:
            device.faults.reset_reads = -1
        return before(queue, chain)

    around(device.model, "handle", handle)


@MUTANTS.of("D-BLK-17")
def acknowledges_flushes_alone(device):
    kept = bytes(device.model.durable)

    def handle(before, *what):
        written = before(*what)
        device.model.durable = bytearray(kept)
        return written

    around(device.model, "handle", handle)
