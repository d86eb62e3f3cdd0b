"""5.4: entropy sources that are wrong."""

from __future__ import annotations

from . import Mutants, around

MUTANTS = Mutants("scripted:rng")


@MUTANTS.of("D-RNG-01")
def gives_nothing_into_large_buffers(device):
    handle = device.model.handle
    device.model.handle = lambda queue, chain: handle(queue, chain) if chain.room < 4096 else 0


@MUTANTS.of("D-RNG-02")
def fills_more_than_it_says(device):
    around(device.model, "handle", lambda before, queue, chain: before(queue, chain) // 2)


@MUTANTS.of("D-RNG-03")
def repeats_itself(device):
    device.model.source = lambda count: bytes(range(256)) * (count // 256 + 1)


@MUTANTS.of("D-RNG-04")
def stopped_by_readable_buffers(device):
    def handle(before, queue, chain):
        if not chain.writable:
            device.faults.reset_reads = -1
        return before(queue, chain)

    around(device.model, "handle", handle)
