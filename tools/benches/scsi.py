"""A SCSI disk on QEMU: the reads of the section disk, through virtio-scsi, beside virtio-blk on the same file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benches.disk import (
    CONTENT,
    DEPTH,
    SECTORS,
    burst_rate,
    keep_busy,
    machine_with,
    one_by_one,
    random_blocks,
    single_latency,
)
from benches.measure import Section
from uvirtio.drivers.scsi import Lun, Scsi, commands
from uvirtio.opening import identify
from uvirtio.qemu import Machine

HD = Lun(0, 0)


@contextmanager
def _disk(depth: int) -> Iterator[tuple[Machine, Scsi]]:
    disk = ("-device", "scsi-hd,bus=hba.0,drive=bench")
    with machine_with("virtio-scsi-pci,id=hba", *disk) as machine:
        function = machine.functions[0]
        with identify(function.address, function) as opened, Scsi(opened, depth=depth) as scsi:
            yield machine, scsi


def _burst(count: int) -> Callable[[], tuple[float, float, float]]:
    def work() -> tuple[float, float, float]:
        with _disk(2 * DEPTH) as (machine, scsi):
            return keep_busy(scsi.burst(HD, SECTORS), machine.pid, random_blocks(count))

    return work


def _single(count: int) -> Callable[[], tuple[float, float]]:
    def work() -> tuple[float, float]:
        with _disk(1) as (machine, scsi):
            return one_by_one(scsi.burst(HD, SECTORS), machine.pid, random_blocks(count))

    return work


def _requests(count: int) -> Callable[[], float]:
    """IOPS of submit and result, 32 out."""

    def work() -> float:
        with _disk(DEPTH) as (_, scsi):
            scsi.capacity(HD)  # and the unit attention of the reset
            blocks = random_blocks(count)
            begin = time.perf_counter()
            for first in range(0, count, DEPTH):
                batch = blocks[first : first + DEPTH]
                made = [commands.read(SECTORS * block, SECTORS, 512) for block in batch]
                asked = [scsi.submit(HD, command, kick=False) for command in made]
                scsi.wait(asked)
                for block, request in zip(batch, asked, strict=True):
                    if request.result() != CONTENT[block]:
                        raise AssertionError(f"{request} does not hold block {block}")
            return count / (time.perf_counter() - begin)

    return work


def run(runs: int, quick: bool) -> Section:
    """4 KiB reads of a file in the page cache behind QEMU, by virtio-scsi and by virtio-blk."""
    section = Section("scsi", "4 KiB random reads on qemu:, virtio-scsi beside virtio-blk, contents compared.")
    count = 320 if quick else 64_000
    ways = burst_rate(count), _burst(count)
    ones = single_latency(count // 32), _single(count // 32)
    requests = _requests(count // 8)
    blk: list[tuple[float, float, float]] = []
    scsi: list[tuple[float, float, float]] = []
    one_blk: list[float] = []
    one_scsi: list[float] = []
    slow: list[float] = []
    for _ in range(runs):
        blk.append(ways[0]())
        scsi.append(ways[1]())
        one_blk.append(ones[0]()[0])
        one_scsi.append(ones[1]()[0])
        slow.append(requests())
    theirs, ours = [rate for rate, _, _ in blk], [rate for rate, _, _ in scsi]
    section.add(f"{DEPTH} out: virtio-blk, Burst", theirs, "reads/s")
    section.add(f"{DEPTH} out: virtio-scsi, Burst", ours, "reads/s")
    section.add(f"{DEPTH} out: virtio-scsi, submit and result", slow, "reads/s")
    section.add("virtio-blk: QEMU's CPU for each", [cpu for _, cpu, _ in blk], "s")
    section.add("virtio-scsi: QEMU's CPU for each", [cpu for _, cpu, _ in scsi], "s", "its SCSI layer")
    section.add("virtio-scsi: our CPU for each, polling included", [cpu for _, _, cpu in scsi], "s")
    section.add("1 out: virtio-blk, there and back", one_blk, "s")
    section.add("1 out: virtio-scsi, there and back", one_scsi, "s")
    section.compare("32 out: virtio-scsi / virtio-blk", ours, theirs, 0.55)
    section.compare("32 out: virtio-scsi, Burst / submit", ours, slow, 1.4)
    return section
