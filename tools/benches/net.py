"""Frames through a card of QEMU's and through DPDK's testpmd: ``Net`` beside a ring of ctypes without checks.

Sent to QEMU's own network, which lets frames of an unknown type vanish; received from a process that writes into
``-netdev stream``. With testpmd both sides poll: its worker has the last processor, this process the first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from lab import cache, daemons

import uvirtio
from benches import plain_net
from benches.measure import Section, interleaved
from uvirtio.device import Device, QueueSpec
from uvirtio.drivers.net import Net
from uvirtio.qemu import Machine
from uvirtio.spec import features as f

Ring = Literal["split", "packed"]
Way = Callable[[Net, bytes, float], float]
_ADDRESS = "vhost-user:net,mac=52:54:00:12:34:56:{}"
SIZES = (64, 1500)
WANTED: dict[tuple[str, int], float | None] = {("send", 64): 3.0, ("receive", 64): 2.2, ("receive", 1500): 1.5}
"""What is wanted of ``Net`` against the ctypes ring, on QEMU."""

TESTPMD = "dpdk-testpmd"
WANTED_TESTPMD = 3.0
RATES: dict[Ring, str] = {"split": "1.5 M", "packed": "1.0 M"}
_START = 10.0

_WRITER = """
import socket, sys
out = socket.socket(socket.AF_UNIX)
out.connect(sys.argv[1])
frame = bytes.fromhex(sys.argv[2]).ljust(int(sys.argv[3]), b"\\0")
blob = (len(frame).to_bytes(4, "big") + frame) * 256
while True:
    out.sendall(blob)
"""


def frame(size: int) -> bytes:
    """A frame of this many bytes that nothing answers."""
    return bytes.fromhex("52540012345652540012345688b5").ljust(size, b"\0")


# --- this side ------------------------------------------------------------------------------------------------


def _sent(net: Net, one: bytes, seconds: float) -> float:
    frames, send = [one] * 256, net.send
    begin = now = time.perf_counter()
    before = net.counts.sent - net.out
    while now - begin < seconds:
        send(frames)
        now = time.perf_counter()
    return (net.counts.sent - net.out - before) / (now - begin)


def _received(net: Net, one: bytes, seconds: float) -> float:
    take = net.take
    for _ in range(100):
        if net.wait(timeout=0.1) and (came := take()):
            assert not one or came[0] == one
            break
    begin = now = time.perf_counter()
    count = 0
    while now - begin < seconds:
        count += len(take())
        now = time.perf_counter()
    assert count and not net.findings and not net.dropped
    return count / (now - begin)


def _bare(device: Device) -> None:
    """Start the first pair of queues, for the ctypes ring, which knows no event words."""
    wanted = f.mask(f.Net.MAC, f.Net.MRG_RXBUF)
    device.start(wanted=wanted, queues=[QueueSpec(0, "receiveq1"), QueueSpec(1, "transmitq1")])


# --- QEMU -----------------------------------------------------------------------------------------------------


@contextmanager
def _card() -> Iterator[Machine]:
    with Machine("q35", ["virtio-net-pci"]) as machine:
        yield machine


@contextmanager
def _fed(size: int) -> Iterator[Machine]:
    """A card whose other end writes frames as fast as QEMU reads them."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache.root()) as where:
        path = f"{where}/socket"
        arguments = ["-netdev", f"stream,id=n,server=on,addr.type=unix,addr.path={path}"]
        with Machine("q35", ["virtio-net-pci,netdev=n"], arguments=arguments) as machine:
            words = [sys.executable, "-c", _WRITER, path, frame(14).hex(), str(size)]
            writer = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *words], stderr=subprocess.DEVNULL)
            try:
                yield machine
            finally:
                writer.kill()
                writer.wait()


def _on_qemu(section: Section, runs: int, seconds: float) -> None:
    for size in SIZES:
        one = frame(size)

        def ours(machine: Machine, way: Way, one: bytes = one) -> float:
            with machine.open(0) as device, Net(device) as net:
                return way(net, one, seconds)

        def plain_send(machine: Machine, one: bytes = one) -> float:
            with machine.open(0, without=["EVENT_IDX"]) as device:
                _bare(device)
                return plain_net.send(device, 1, one, seconds)

        def plain_receive(machine: Machine) -> float:
            with machine.open(0, without=["EVENT_IDX"]) as device:
                _bare(device)
                return plain_net.receive(device, 0, seconds)

        with _card() as machine:
            mine, theirs = interleaved(runs, lambda: ours(machine, _sent), lambda: plain_send(machine))
        _note(section, f"QEMU, send {size} B", mine, theirs, WANTED.get(("send", size)))
        with _fed(size) as machine:
            mine, theirs = interleaved(runs, lambda: ours(machine, _received), lambda: plain_receive(machine))
        _note(section, f"QEMU, receive {size} B", mine, theirs, WANTED.get(("receive", size)))


def _note(section: Section, name: str, mine: list[float], theirs: list[float], wanted: float | None) -> None:
    section.add(f"{name}, Net", mine, "frames/s")
    section.add(f"{name}, ctypes", theirs, "frames/s")
    section.compare(f"{name}, Net / ctypes", mine, theirs, wanted)


# --- testpmd --------------------------------------------------------------------------------------------------


class _NotStarted(Exception):
    """The peer does not run on this machine."""


def testpmd() -> str | None:
    """DPDK's program: that in PATH, or the one that tools/test has fetched."""
    fetched = sorted((cache.root() / "daemons").glob(f"*/programs/{TESTPMD}"))
    return shutil.which(TESTPMD) or (str(fetched[0]) if fetched else None)


@contextmanager
def _switch(program: str, mode: str) -> Iterator[str]:
    """testpmd without huge pages, with one vhost port, in this mode; the path of its socket."""
    cores = f"{min(os.sched_getaffinity(0))},{max(os.sched_getaffinity(0))}"
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache.root()) as where:
        path = f"{where}/s"
        eal = ["--no-huge", "-m", "128", "--no-pci", "--no-shconf", f"--file-prefix=b{os.getpid()}", "-l", cores]
        eal += ["--vdev", f"net_vhost0,iface={path},queues=1", "--log-level=1"]
        own = ["--auto-start", f"--forward-mode={mode}", "--total-num-mbufs=4096", "--no-mlockall"]
        words = [*daemons.WITH_CORES, "setpriv", "--pdeathsig", "KILL", program, *eal, "--", *own]
        log = Path(where) / "log"
        with log.open("wb") as said:
            child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=said, stderr=said)
        every = os.sched_getaffinity(0)
        try:
            limit = time.monotonic() + _START
            while not Path(path).exists():
                if child.poll() is not None or time.monotonic() > limit:
                    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                    raise _NotStarted(f"{program} made no socket within {_START:g} s: {last}")
                time.sleep(1e-2)
            os.sched_setaffinity(0, {min(every)})
            yield path
        finally:
            os.sched_setaffinity(0, every)
            child.kill()
            child.wait()


def _on_testpmd(section: Section, program: str, runs: int, seconds: float) -> None:
    one = frame(64)
    rings: tuple[Ring, ...] = ("split", "packed")
    for mode, name, way in (("rxonly", "send", _sent), ("txonly", "receive", _received)):
        with _switch(program, mode) as path:
            works = [partial(_ours, path, ring, way, one if way is _sent else b"", seconds) for ring in rings]
            *mine, theirs = interleaved(runs, *works, partial(_plain, path, way, one, seconds))
        section.add(f"testpmd, {name} 64 B, ctypes", theirs, "frames/s")
        for ring, values in zip(rings, mine, strict=True):
            note = f"wanted {RATES[ring]} on a quiet machine"
            section.add(f"testpmd, {name} 64 B, Net, {ring}", values, "frames/s", note)
            section.compare(f"testpmd, {name} 64 B, {ring}, Net / ctypes", values, theirs, WANTED_TESTPMD)


def _ours(path: str, ring: Ring, way: Way, one: bytes, seconds: float) -> float:
    with uvirtio.open(_ADDRESS.format(path), ring=ring) as device, Net(device) as net:
        return way(net, one, seconds)


def _plain(path: str, way: Way, one: bytes, seconds: float) -> float:
    with uvirtio.open(_ADDRESS.format(path), ring="split", without=["EVENT_IDX", "IN_ORDER"]) as device:
        _bare(device)
        return plain_net.send(device, 1, one, seconds) if way is _sent else plain_net.receive(device, 0, seconds)


def run(runs: int, quick: bool) -> Section:
    """Measure sending and receiving.

    Args:
        runs: How often each.
        quick: Once and short.
    """
    seconds = 0.05 if quick else 0.3
    section = Section("net", "Ethernet frames, each copied in or out, beside a ctypes ring without checks.")
    _on_qemu(section, runs, seconds)
    program = testpmd()
    if program is None:
        section.about += f" No {TESTPMD}: tools/test fetches it, for --all."
        return section
    try:
        _on_testpmd(section, program, runs, seconds)
    except _NotStarted as error:  # a peer that does not run here is no fault of what is measured
        section.about += f" {error}."
    except (AssertionError, uvirtio.UvirtioError) as error:
        section.failed.append(f"{program}: {error}")
    return section
