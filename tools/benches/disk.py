"""A disk on QEMU: 4 KiB reads of random blocks, each one's content compared, by every way that the driver has."""

from __future__ import annotations

import os
import random
import select
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache as once
from pathlib import Path

from lab import cache

from benches import flat
from benches.measure import Section
from uvirtio.drivers.blk import Blk, Burst
from uvirtio.drivers.scsi import Burst as ScsiBurst
from uvirtio.errors import QemuFailed
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec.blk import REQUESTQ

SECTORS = 8  # 4 KiB
DEPTH, CHUNK = 32, 16
BLOCKS = 1024
PATIENCE = 100e-6
"""Seconds for which both sides look before they sleep."""
PIECES = 8
"""Pieces of a run of two ways in turn: in half of them the two sides have changed processors."""
CONTENT = [number.to_bytes(8, "little") * 512 for number in range(BLOCKS)]


@once
def _aio() -> str:
    """io_uring where kernel and QEMU let us, else threads."""
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(1 << 20)
            drive = f"driver=file,node-name=try,filename={file.name},aio=io_uring"
            Machine("q35", ["virtio-blk-pci,drive=try"], arguments=["-blockdev", drive]).close()
    except QemuFailed:
        return "threads"
    return "io_uring"


@contextmanager
def machine_with(device: str, *more: str) -> Iterator[Machine]:
    """A QEMU with this device in an iothread, and the node ``bench``: a file in the page cache.

    The file is in the page cache because a disk of this machine is not what is measured, and lies where other
    caches lie. In a tmpfs io_uring would hand each read to a thread of the kernel's, for such files cannot be read
    without waiting; that costs QEMU twice its time. The node is the file itself: a ``raw`` node above it would be
    one more thing to go through, and an indirect table one more to look up. An iothread looks at the ring for
    PATIENCE before it sleeps, which QEMU's main loop never does; with event indices it would ask for kicks while
    it looks.

    Args:
        device: The ``-device`` argument.
        *more: Arguments of QEMU after it.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache.root()) as where:
        path = Path(where) / "disk"
        path.write_bytes(b"".join(CONTENT))
        drive = f"driver=file,node-name=bench,filename={path},aio={_aio()}"
        device += ",iothread=io,event_idx=off,indirect_desc=off"
        with Machine("q35", [device], arguments=["-blockdev", drive, *more]) as machine:
            machine.qmp("qom-set", path="/objects/io", property="poll-max-ns", value=int(PATIENCE * 1e9))
            yield machine


@contextmanager
def _disk(depth: int, *, merging: bool = False) -> Iterator[tuple[Machine, Blk]]:
    """A virtio-blk disk. ``merging``: QEMU looks for neighbours, which only reads in sequence have."""
    device = f"virtio-blk-pci,drive=bench,request-merging={'on' if merging else 'off'}"
    with machine_with(device) as machine:
        function = machine.functions[0]
        with identify(function.address, function) as opened, Blk(opened, depth=depth) as blk:
            yield machine, blk


def random_blocks(count: int) -> list[int]:
    draw = random.Random(11)
    return [draw.randrange(BLOCKS) for _ in range(count)]


def burst_rate(count: int, *, in_sequence: bool = False) -> Callable[[], tuple[float, float, float]]:
    """(IOPS, seconds of QEMU's CPU for each, seconds of ours). Reads in sequence are merged by QEMU."""

    def work() -> tuple[float, float, float]:
        with _disk(2 * DEPTH, merging=in_sequence) as (machine, blk):
            blocks = [number % BLOCKS for number in range(count)] if in_sequence else random_blocks(count)
            return keep_busy(blk.burst(SECTORS), machine.pid, blocks)

    return work


def keep_busy(burst: Burst | ScsiBurst, pid: int, blocks: list[int]) -> tuple[float, float, float]:
    """Read these blocks by a burst: (IOPS, seconds of QEMU's CPU for each, seconds of ours).

    Twice as many slots as are out, and never more than CHUNK of them sent or looked at in one turn: so the device
    always has something to do while we look, and we while it works.
    """
    count = len(blocks)
    sectors = array("Q", (SECTORS * block for block in blocks))
    expected = [CONTENT[block] for block in blocks]
    where = [b""] * burst.count
    for now in (burst.slots[:DEPTH], burst.slots[DEPTH:]):  # what happens once has happened
        burst.post(now, [0] * len(now))
        while burst.in_flight:
            burst.wait()
    theirs, ours, begin = cpu_of(pid), time.process_time(), time.perf_counter()
    idle, came, out, place, done = burst.slots[:], burst.slots[:0], 0, 0, 0
    while done < count:
        room = min(DEPTH - out, CHUNK, count - place)
        now, idle = idle[:room], idle[room:]
        end = place + len(now)
        burst.post(now, sectors[place:end])
        for slot, content in zip(now, expected[place:end], strict=True):
            where[slot] = content
        out, place = out + len(now), end
        back, came = came[:CHUNK], came[CHUNK:]
        if burst.contents(back) != [where[slot] for slot in back]:
            raise AssertionError(f"slots {list(back)} do not hold what they should")
        idle += back
        done += len(back)
        if out and len(came) < CHUNK:
            idling = not came and (out == DEPTH or place == count)
            more = burst.wait(poll=PATIENCE) if idling else burst.take()
            out -= len(more)
            came += more
    took = time.perf_counter() - begin
    used = (cpu_of(pid) - theirs, time.process_time() - ours)
    return done / took, used[0] / done, used[1] / done


def in_turn(count: int) -> Callable[[], tuple[tuple[float, float, float], float]]:
    """(What ``burst_rate`` returns, IOPS of flat code), 32 out: by turns, a piece of each.

    A virtual machine's processors may differ, each from second to second, by what else the host does on them. So
    each side has one of its own, in half of the pieces the one and in half the other, and what is compared ran
    within a few hundredths of a second, at the same places.
    """

    def work() -> tuple[tuple[float, float, float], float]:
        share = count // PIECES
        with _disk(2 * DEPTH) as (machine, blk), _disk(DEPTH) as (plain, other):
            burst, blocks = blk.burst(SECTORS), random_blocks(share)
            took, theirs, ours, flatly = 0.0, 0.0, 0.0, 0.0
            for number in range(PIECES):
                for way in (0, 1) if number % 2 else (1, 0):
                    with apart(plain.pid if way else machine.pid, swapped=number >= PIECES // 2):
                        if way:
                            flatly += 1 / flat.read(other.device, REQUESTQ, DEPTH, blocks, CONTENT)
                        else:
                            rate, cpu, own = keep_busy(burst, machine.pid, blocks)
                            took, theirs, ours = took + 1 / rate, theirs + cpu, ours + own
        return (PIECES / took, theirs / PIECES, ours / PIECES), PIECES / flatly

    return work


@contextmanager
def apart(pid: int, *, swapped: bool = False) -> Iterator[None]:
    """This process on the first processor, the threads of another one on the last; or the other way round."""
    every = os.sched_getaffinity(0)
    ours, theirs = (max(every), min(every)) if swapped else (min(every), max(every))
    try:
        os.sched_setaffinity(0, {ours})
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):  # one of io_uring's that has ended
                os.sched_setaffinity(int(thread.name), {theirs})
        yield
    finally:
        os.sched_setaffinity(0, every)


def read_rate(count: int) -> Callable[[], float]:
    """IOPS of ``Burst.read``, 32 out."""

    def work() -> float:
        with _disk(DEPTH) as (_, blk):
            burst = blk.burst(SECTORS)
            content = {SECTORS * number: content for number, content in enumerate(CONTENT)}
            sectors = [SECTORS * block for block in random_blocks(count)]
            begin = time.perf_counter()
            for sector, found in burst.read(sectors):
                if found != content[sector]:
                    raise AssertionError(f"sector {sector} does not hold what it should")
            return count / (time.perf_counter() - begin)

    return work


def futures_rate(count: int) -> Callable[[], float]:
    """IOPS of submit_read and result, 32 out."""

    def work() -> float:
        with _disk(DEPTH) as (_, blk):
            blocks = random_blocks(count)
            begin = time.perf_counter()
            for first in range(0, count, DEPTH):
                batch = blocks[first : first + DEPTH]
                requests = [blk.submit_read(SECTORS * block, SECTORS, kick=False) for block in batch]
                blk.wait(requests)
                for block, request in zip(batch, requests, strict=True):
                    if request.result() != CONTENT[block]:
                        raise AssertionError(f"{request} does not hold block {block}")
            return count / (time.perf_counter() - begin)

    return work


def single_latency(count: int) -> Callable[[], tuple[float, float]]:
    """One read at a time, by the batch path: (seconds there and back, seconds of QEMU's CPU for it)."""

    def work() -> tuple[float, float]:
        with _disk(1) as (machine, blk):
            return one_by_one(blk.burst(SECTORS), machine.pid, random_blocks(count))

    return work


def call_latency(count: int) -> Callable[[], float]:
    """One read at a time, by Blk.read: seconds there and back, the median."""

    def work() -> float:
        with _disk(1) as (_, blk):
            took = []
            for block in random_blocks(count):
                begin = time.perf_counter()
                found = blk.read(SECTORS * block, SECTORS)
                took.append(time.perf_counter() - begin)
                if found != CONTENT[block]:
                    raise AssertionError(f"not block {block}")
            return sorted(took)[len(took) // 2]

    return work


def one_by_one(burst: Burst | ScsiBurst, pid: int, blocks: list[int]) -> tuple[float, float]:
    """Read these blocks one at a time by a burst: (seconds there and back, seconds of QEMU's CPU for each).

    Both sides look for long enough to see the other come back.
    """
    slot, took = burst.slots, []
    theirs = cpu_of(pid)
    for block in blocks:
        sector = array("Q", [SECTORS * block])
        begin = time.perf_counter()
        burst.post(slot, sector)
        burst.wait(poll=PATIENCE)
        took.append(time.perf_counter() - begin)
        if burst.content(0) != CONTENT[block]:
            raise AssertionError(f"not block {block}")
    return sorted(took)[len(took) // 2], (cpu_of(pid) - theirs) / len(blocks)


def ping_pong(count: int) -> float:
    """Seconds there and back between two processes, over eventfds, the other one in epoll: the median."""
    there, back = os.eventfd(0), os.eventfd(0)
    child = os.fork()
    if child == 0:
        _echo(there, back)
    try:
        poller, took = select.epoll(), []
        poller.register(back, select.EPOLLIN)
        for _ in range(count):
            begin = time.perf_counter()
            os.eventfd_write(there, 1)
            poller.poll()
            os.eventfd_read(back)
            took.append(time.perf_counter() - begin)
        poller.close()
    finally:
        os.eventfd_write(there, 1 << 32)
        os.waitpid(child, 0)
        os.close(there)
        os.close(back)
    return sorted(took)[len(took) // 2]


def _echo(there: int, back: int) -> None:
    try:
        poller = select.epoll()
        poller.register(there, select.EPOLLIN)
        while True:
            poller.poll()
            if os.eventfd_read(there) >= 1 << 32:
                break
            os.eventfd_write(back, 1)
    finally:
        os._exit(0)


def cpu_of(pid: int) -> float:
    """Seconds that the threads of a process have run, to the nanosecond."""
    ran = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # one of io_uring's that has ended
            ran += int((task / "schedstat").read_text().split()[0])
    return ran / 1e9


def run(runs: int, quick: bool) -> Section:
    """4 KiB reads of a file in the page cache behind QEMU."""
    section = Section(
        "disk", f"4 KiB random reads on qemu:, aio={_aio()}, file in the page cache, contents compared."
    )
    count = 320 if quick else 64_000
    both, sequence = in_turn(count), burst_rate(count, in_sequence=True)
    futures, single = futures_rate(count // 8), single_latency(count // 32)
    generator = read_rate(count)
    fast: list[tuple[float, float, float]] = []
    merged: list[tuple[float, float, float]] = []
    floor: list[float] = []
    slow: list[float] = []
    yielded: list[float] = []
    one, busy, echo = [], [], []
    called: list[float] = []
    call = call_latency(count // 32)
    for _ in range(runs):
        quick_way, plain = both()
        fast.append(quick_way)
        floor.append(plain)
        yielded.append(generator())
        merged.append(sequence())
        slow.append(futures())
        echo.append(ping_pong(count // 32))
        latency, cpu = single()
        one.append(latency)
        called.append(call())
        busy.append(cpu)
    rates = [rate for rate, _, _ in fast]
    section.add(f"{DEPTH} out: batch path", rates, "reads/s", "wanted 300 k on a quiet machine")
    section.add(f"{DEPTH} out: batch path, by Burst.read", yielded, "reads/s", "a generator of (sector, data)")
    section.add(
        f"{DEPTH} out: batch path, in sequence", [rate for rate, _, _ in merged], "reads/s", "QEMU merges them"
    )
    section.add(f"{DEPTH} out: flat code without checks", floor, "reads/s")
    section.add(f"{DEPTH} out: futures", slow, "reads/s")
    section.add("batch path: QEMU's CPU for each", [cpu for _, cpu, _ in fast], "s")
    section.add("batch path: our CPU for each, polling included", [cpu for _, _, cpu in fast], "s")
    section.add("1 out: there and back", one, "s")
    section.add("1 out: Blk.read, there and back", called, "s")
    section.add("1 out: QEMU's CPU for each, its polling included", busy, "s")
    section.add("eventfd ping-pong with another process", echo, "s")
    section.compare("32 out: batch path / flat code", rates, floor, 1.05)
    section.compare("32 out: Burst.read / flat code", yielded, floor, None)
    section.compare("32 out: batch path / futures", rates, slow, None)
    section.compare("1 out / eventfd ping-pong", one, echo, 1.3, at_least=False)
    section.compare("1 out: Blk.read / eventfd ping-pong", called, echo, None, at_least=False)
    return section
