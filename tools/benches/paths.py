"""Where the time goes: each path under cProfile, which makes calls dearer than they are and tells them apart."""

from __future__ import annotations

import cProfile
import io
import pstats
import re
from collections.abc import Callable, Iterator

from benches import balloon, disk, interrupts, rings
from uvirtio.drivers.rng import Rng
from uvirtio.opening import identify
from uvirtio.qemu import Machine

_LINES = 10


def _loop(kind: type[rings.Loop], batch: int, *, shuffled: bool = False) -> Callable[[], None]:
    loop = kind(batch, shuffled=shuffled)
    answers = [loop.once() for _ in range(2000)]
    loop.fresh()
    return lambda: loop.chunk(answers)


def _interrupts() -> None:
    with Machine("q35", ["virtio-rng-pci"]) as machine:
        function = machine.functions[0]
        with identify(function.address, function) as device, Rng(device):
            ours = interrupts.loops(device)[0]
            for _ in range(2000):
                ours()


PATHS: dict[str, Callable[[], Callable[[], object]]] = {
    "rings: fixed slots, 32 at a time, in order": lambda: _loop(rings.Fixed, 32),
    "rings: fixed slots, 32 at a time, any order": lambda: _loop(rings.Fixed, 32, shuffled=True),
    "rings: engine, one at a time": lambda: _loop(rings.Engine, 1),
    "rings: packed, fixed slots, 32 at a time, in order": lambda: _loop(rings.PackedFixed, 32),
    "rings: packed, fixed slots, 32 at a time, any order": lambda: _loop(rings.PackedFixed, 32, shuffled=True),
    "rings: packed, engine, 32 at a time": lambda: _loop(rings.PackedEngine, 32),
    "disk: batch path, 32 out": lambda: disk.burst_rate(16000),
    "disk: futures, 32 out": lambda: disk.futures_rate(4000),
    "disk: one read at a time": lambda: disk.single_latency(1000),
    "balloon: inflate, deflate, report 64 MiB": lambda: lambda: balloon.once(16384),
    "interrupts: the wait loop": lambda: _interrupts,
}


def run() -> Iterator[str]:
    """For each path its dearest functions, by the time spent in them themselves."""
    for name, prepare in PATHS.items():
        work = prepare()
        profile = cProfile.Profile()
        profile.enable()
        work()
        profile.disable()
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(_LINES)
        yield f"== {name}"
        for line in text.getvalue().splitlines():
            if re.match(r"\s*(\d|ncalls)", line):
                yield "   " + re.sub(r"/\S*/(uvirtio|benches|python3\.\d+)/", r"\1/", line).rstrip()
        yield ""
