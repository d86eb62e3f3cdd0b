"""A disk against a model of it: random reads, writes, zeroes and flushes, one by one and many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from uvirtio.drivers.blk import SECTOR_SIZE, Blk, Request

SECTORS = 512
"""The part of the disk that is played with."""


@dataclass(frozen=True)
class Act:
    """One call: what, where, how much, and the byte that is written."""

    verb: str
    sector: int
    sectors: int
    byte: int


@dataclass
class Model:
    """What the disk must hold, and what is on its way."""

    content: bytearray = field(default_factory=lambda: bytearray(SECTORS * SECTOR_SIZE))
    reads: list[tuple[Request, bytes]] = field(default_factory=list)
    busy: set[int] = field(default_factory=set)
    """Sectors that something is on its way to or from: the order of two requests is not defined."""

    def part(self, act: Act) -> bytes:
        return bytes(self.content[act.sector * SECTOR_SIZE : (act.sector + act.sectors) * SECTOR_SIZE])

    def put(self, act: Act, data: bytes) -> None:
        self.content[act.sector * SECTOR_SIZE : (act.sector + act.sectors) * SECTOR_SIZE] = data

    def settle(self, blk: Blk) -> None:
        blk.wait()
        for request, expected in self.reads:
            assert request.result() == expected, request
        self.reads.clear()
        self.busy.clear()


def _acts() -> st.SearchStrategy[Act]:
    def bounded(verb: str, sector: int, sectors: int, byte: int) -> Act:
        return Act(verb, sector, min(sectors, SECTORS - sector), byte)

    verbs = ["read", "write", "zeroes", "flush", "submit_read", "submit_write", "submit_flush", "settle"]
    return st.builds(
        bounded,
        st.sampled_from(verbs),
        st.integers(0, SECTORS - 1),
        st.integers(1, 40),
        st.integers(1, 255),
    )


acts = st.lists(_acts(), min_size=1, max_size=25)


def pattern(act: Act) -> bytes:
    """Sectors that can be told from each other, and from those of another act."""
    return b"".join(bytes([act.byte, number & 0xFF]) * (SECTOR_SIZE // 2) for number in range(act.sectors))


def play(blk: Blk, what: list[Act], look: Callable[[int, int], bytes]) -> None:
    """Do all of it; ``look`` gives sectors of the disk as they are behind the device's back."""
    model = Model()
    blk.write(0, bytes(model.content))
    for act in what:
        touched = set(range(act.sector, act.sector + act.sectors))
        if act.verb == "settle" or (touched & model.busy and act.verb not in ("flush", "submit_flush")):
            model.settle(blk)
        match act.verb:
            case "read":
                assert blk.read(act.sector, act.sectors) == model.part(act)
            case "write":
                blk.write(act.sector, pattern(act))
                model.put(act, pattern(act))
            case "zeroes":
                blk.write_zeroes(act.sector, act.sectors, unmap=bool(act.byte & 1))
                model.put(act, bytes(act.sectors * SECTOR_SIZE))
            case "flush":
                blk.flush()
            case "submit_read":
                model.reads.append(
                    (blk.submit_read(act.sector, act.sectors, kick=bool(act.byte & 1)), model.part(act))
                )
                model.busy |= touched
            case "submit_write":
                blk.submit_write(act.sector, pattern(act), kick=bool(act.byte & 1))
                model.put(act, pattern(act))
                model.busy |= touched
            case "submit_flush":
                blk.submit_flush()
    model.settle(blk)
    assert look(0, SECTORS) == model.content
    assert blk.read(0, SECTORS) == model.content
    assert not blk.findings and blk.in_flight == 0
