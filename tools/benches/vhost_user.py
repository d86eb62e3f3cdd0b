"""A disk of qemu-storage-daemon through vhost-user: ``Blk`` beside a C program on libblkio, in turn in one run.

The daemon has one processor, and what drives it another: left to the kernel, both are on one for a while and then
on two, and which it was decides more than what they do. All are in the bench's session, and so in one autogroup.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import blkio, cache

import uvirtio
from benches.disk import BLOCKS, CONTENT, DEPTH, SECTORS, apart, cpu_of
from benches.measure import Section
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.blk.burst import Burst

SIZE = 512 * SECTORS
KINDS = {
    "io_uring": ("a file in the page cache, aio=io_uring", True),
    "null-co": ("null-co, which reads nothing", False),
}
"""What the daemon serves: in words, and whether there are contents to compare."""

THINK = 5
"""Microseconds that the peer computes between an answer and its next request, in one of its rows."""

WARM_UP = 2000
"""Reads of the peer before it begins to count."""

_DRAWN = 1 << 16
_START = 10.0
_LAID = 64
"""Slots of a burst that reads with fewer requests in flight."""
_TURNS = 64
"""Single reads between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A running daemon."""

    socket: str
    pid: int
    checked: bool
    """Whether its contents are CONTENT."""
    seconds: float
    """Of each measurement."""


@contextmanager
def _daemon(program: str, kind: str, seconds: float) -> Iterator[Disk]:
    """qemu-storage-daemon as the address ``vhost-user:qsd/FILE`` starts it, but listening at a path."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache.root()) as where:
        file, socket = Path(where) / "disk", f"{where}/socket"
        file.write_bytes(b"".join(CONTENT))
        node: dict[str, object] = {"driver": "file", "filename": str(file), "aio": kind}
        if not KINDS[kind][1]:
            node = {"driver": kind, "size": len(CONTENT) * SIZE}
        export = {"type": "vhost-user-blk", "id": "export", "node-name": "disk"}
        words = ["--blockdev", json.dumps({**node, "node-name": "disk"})]
        words += ["--export", json.dumps({**export, "addr": {"type": "unix", "path": socket}})]
        child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", program, *words], stdin=subprocess.DEVNULL)
        try:
            limit = time.monotonic() + _START
            while not os.path.exists(socket):  # noqa: PTH110
                if child.poll() is not None or time.monotonic() > limit:
                    raise AssertionError(f"{program} made no socket")
                time.sleep(1e-3)
            yield Disk(socket, child.pid, KINDS[kind][1], seconds)
        finally:
            child.kill()
            child.wait()


@contextmanager
def _opened(disk: Disk, depth: int, poll_us: float = 0) -> Iterator[Blk]:
    with uvirtio.open(f"vhost-user:blk:{disk.socket}", poll_us=poll_us) as device, Blk(device, depth=depth) as blk:
        yield blk


def _drawn() -> list[int]:
    draw = random.Random(11)
    return [draw.randrange(BLOCKS) for _ in range(_DRAWN)]


def peer(program: Path, disk: Disk, depth: int, mode: str, think: int = 0) -> Callable[[], float]:
    """Reads/s of the program on libblkio."""
    blocks = BLOCKS if disk.checked else 0
    words = [str(program), disk.socket, str(depth), str(disk.seconds), mode, str(blocks), str(think)]

    def work() -> float:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.stderr}")
        return float(done.stdout)

    return work


def burst(disk: Disk, depth: int) -> Callable[[], float]:
    """Reads/s by ``post`` and ``wait``: what has come is compared and sent again."""

    def work() -> float:
        with _opened(disk, depth) as blk:
            return _burst(blk.burst(SECTORS), disk)

    return work


def _burst(requests: Burst, disk: Disk) -> float:
    blocks = _drawn()
    sectors = array("Q", (SECTORS * block for block in blocks)) * 2
    content = [CONTENT[block] for block in blocks] * 2
    checked, post, wait = disk.checked, requests.post, requests.wait
    where, back, place, count = [b""] * requests.count, requests.slots, 0, 0
    begin = now = time.perf_counter()
    while now - begin < disk.seconds:
        for _ in range(_TURNS):
            end = place + len(back)
            post(back, sectors[place:end])
            if checked:
                for slot, expected in zip(back, content[place:end], strict=True):
                    where[slot] = expected
            place = end & _DRAWN - 1
            back = wait()
            if checked and requests.contents(back) != [where[slot] for slot in back]:
                raise AssertionError(f"slots {list(back)} do not hold what they should")
            count += len(back)
        now = time.perf_counter()
    return count / (now - begin)


def generator(disk: Disk, depth: int) -> Callable[[], float]:
    """Reads/s by ``Burst.read``, with as many slots again for what comes next."""

    def work() -> float:
        with _opened(disk, max(2 * depth, _LAID)) as blk:
            requests, count = blk.burst(SECTORS), 0
            content = {SECTORS * number: content for number, content in enumerate(CONTENT)}
            sectors = [SECTORS * block for block in _drawn()] * 64
            begin = now = time.perf_counter()
            found = requests.read(sectors, out=depth)
            while now - begin < disk.seconds:
                for (sector, data), _ in zip(found, range(_TURNS * depth), strict=False):
                    if disk.checked and data != content[sector]:
                        raise AssertionError(f"sector {sector} does not hold what it should")
                    count += 1
                now = time.perf_counter()
            found.close()  # type: ignore[attr-defined]
            return count / (now - begin)

    return work


def single(disk: Disk, poll_us: float = 0) -> Callable[[], float]:
    """Reads/s by ``Blk.read``, one after the other."""

    def work() -> float:
        with _opened(disk, 1, poll_us) as blk:
            blocks, count = _drawn(), 0
            begin = now = time.perf_counter()
            while now - begin < disk.seconds:
                for _ in range(_TURNS):
                    block = blocks[count & _DRAWN - 1]
                    data = blk.read(SECTORS * block, SECTORS)
                    if disk.checked and data != CONTENT[block]:
                        raise AssertionError(f"not block {block}")
                    count += 1
                now = time.perf_counter()
            return count / (now - begin)

    return work


def futures(disk: Disk) -> Callable[[], float]:
    """Reads/s by ``submit_read`` and ``wait``, 32 out."""

    def work() -> float:
        with _opened(disk, DEPTH) as blk:
            blocks, count = _drawn(), 0
            begin = now = time.perf_counter()
            while now - begin < disk.seconds:
                batch = blocks[count & _DRAWN - 1 :][:DEPTH]
                requests = [blk.submit_read(SECTORS * block, SECTORS, kick=False) for block in batch]
                blk.wait(requests)
                for block, request in zip(batch, requests, strict=True):
                    if request.result() != CONTENT[block] and disk.checked:
                        raise AssertionError(f"{request} does not hold block {block}")
                count += len(batch)
                now = time.perf_counter()
            return count / (now - begin)

    return work


def first_data() -> float:
    """Seconds from nothing to the first block: the daemon in PATH is started, found, and read from."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache.root()) as where:
        file = Path(where) / "disk"
        file.write_bytes(b"".join(CONTENT))
        begin = time.perf_counter()
        with uvirtio.open(f"vhost-user:qsd,aio=io_uring/{file}") as device, Blk(device) as blk:
            if blk.read(0, SECTORS) != CONTENT[0]:
                raise AssertionError("not block 0")
            return time.perf_counter() - begin


def shared(disk: Disk) -> tuple[float, float]:
    """Bytes of shared memory that the daemon has: while a driver is started; after one round of 32 reads."""
    with _opened(disk, DEPTH) as blk:
        before = _shared(disk.pid)
        blk.wait([blk.submit_read(SECTORS * number, SECTORS) for number in range(DEPTH)])
        return before, _shared(disk.pid)


def _shared(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssShmem:"):
            return float(line.split()[1]) * 1024
    raise AssertionError("no RssShmem in /proc/PID/status")


def run(runs: int, quick: bool) -> Section:
    """4 KiB random reads, beside libblkio where it is here."""
    peers = blkio.found()
    program = str(peers / blkio.DAEMON) if peers else shutil.which(blkio.DAEMON)
    if program is None:
        return Section("vhost-user", "not measured: no qemu-storage-daemon is here")
    section = Section("vhost-user", "")
    section.about = f"4 KiB random reads from {_version(program)}, contents compared where there are any"
    if peers is None:
        section.about += "; no libblkio is here to compare with"
    reads = peers / blkio.READS if peers else None
    for kind in KINDS:
        with _daemon(program, kind, 0.05 if quick else 0.2) as disk, apart(disk.pid):
            _one_kind(section, kind, disk, reads, runs)
    os.environ["PATH"] = f"{Path(program).parent}:{os.environ.get('PATH', '')}"
    starts = [first_data() for _ in range(runs)]
    section.add("start of the daemon to the first 4 KiB", starts, "s", "wanted under 60 ms")
    with _daemon(program, "null-co", 0.1) as disk:
        before, after = shared(disk)
    section.add("shared memory in the daemon, driver started", [before], "B", "wanted 8 KiB")
    section.add("the same, after 32 reads", [after], "B")
    return section


def _one_kind(section: Section, kind: str, disk: Disk, reads: Path | None, runs: int) -> None:
    ours: dict[str, Callable[[], float]] = {
        "32 out: Blk.burst": burst(disk, DEPTH),
        "32 out: Burst.read": generator(disk, DEPTH),
        "32 out: futures": futures(disk),
        "1 out: Blk.burst": burst(disk, 1),
        "1 out: Burst.read": generator(disk, 1),
        "1 out: Blk.read": single(disk),
        "1 out: Blk.read, poll_us=200": single(disk, poll_us=200),
    }
    theirs: dict[str, Callable[[], float]] = {}
    if reads is not None:
        for depth in (DEPTH, 1):
            for mode in ("poll", "block"):
                theirs[f"{depth} out: libblkio, {mode}"] = peer(reads, disk, depth, mode)
        theirs[f"1 out: libblkio, poll, {THINK} us of work between"] = peer(reads, disk, 1, "poll", THINK)
    works = {**theirs, **ours}
    order = sorted(works, key=lambda name: int(name.split()[0]))  # those of one depth beside each other
    found: dict[str, list[float]] = {name: [] for name in works}
    busy: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name in order:
            before = cpu_of(disk.pid)
            rate = works[name]()
            found[name].append(rate)
            busy[name].append((cpu_of(disk.pid) - before) / (rate * disk.seconds + WARM_UP * (name in theirs)))
    section.add(f"{kind}: load of the machine", [os.getloadavg()[0]], "")
    for name in works:
        section.add(f"{kind}, {name}", found[name], "reads/s")
        section.add(f"{kind}, {name}: the daemon's CPU for each", busy[name], "s")
    if reads is None:
        return
    for name in ("32 out: Blk.burst", "32 out: libblkio, poll"):
        most = [1 / one for one in busy[name]]
        section.compare(f"{kind}, {name} / what the daemon's CPU allows", found[name], most, None)
    for one, other, target in (
        ("32 out: Blk.burst", "32 out: libblkio, poll", 1.0),
        ("32 out: Blk.burst", "32 out: libblkio, block", 1.8),
        ("32 out: Burst.read", "32 out: libblkio, poll", None),
        ("32 out: futures", "32 out: libblkio, poll", None),
        ("1 out: Blk.read", "1 out: libblkio, block", 2.0),
        ("1 out: Blk.read, poll_us=200", "1 out: libblkio, block", None),
        (f"1 out: libblkio, poll, {THINK} us of work between", "1 out: libblkio, block", None),
        ("1 out: Burst.read", "1 out: libblkio, poll", 0.5),
        ("1 out: Blk.burst", "1 out: libblkio, poll", None),
        ("1 out: Blk.burst", f"1 out: libblkio, poll, {THINK} us of work between", None),
    ):
        section.compare(f"{kind}, {one} / {other.split(': ')[1]}", found[one], found[other], target)


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return " ".join(done.stdout.split()[:3]) or program
