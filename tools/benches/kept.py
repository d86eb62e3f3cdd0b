"""What stays in memory after 100,000 completions on each path of the drivers: bytes of Python objects, counted."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from benches.growing_drivers import Host, Machine, Region, at_work
from benches.measure import Section
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.base import Driver
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.input import Input
from uvirtio.drivers.mem import Mem, Ranges
from uvirtio.drivers.net import Net
from uvirtio.drivers.rng import Rng
from uvirtio.drivers.scsi import Lun, Scsi
from uvirtio.scripted import Disk, Model, ScriptedDevice, ScsiHost
from uvirtio.scripted import Input as InputModel
from uvirtio.scripted import Mem as MemModel
from uvirtio.scripted import Net as NetModel
from uvirtio.scripted import Rng as RngModel
from uvirtio.spec.net import RECEIVEQ

Step = Callable[[], int]
"""Do a little on a path; how many chains came back."""

_D = TypeVar("_D", bound=Driver)
_OURS = (
    tracemalloc.Filter(False, "*/uvirtio/scripted/*"),
    tracemalloc.Filter(False, "*/benches/*"),
    tracemalloc.Filter(False, tracemalloc.__file__),
)
_BATCH = 32
_FRAME = bytes(range(64))


@contextmanager
def _driven(model: Model, driver: Callable[..., _D], machine: type[ScriptedDevice], **how: Any) -> Iterator[_D]:
    function = machine(model)
    with at_work(function) as device, driver(device, **how) as found:
        yield found


def _rng(stack: ExitStack) -> Step:
    model = RngModel()
    rng = stack.enter_context(_driven(model, Rng, ScriptedDevice))

    def step() -> int:
        model.given.clear()
        return len(rng.read(64)) // 64

    return step


def _blk(stack: ExitStack) -> tuple[Blk, Disk]:
    model = Disk()
    return stack.enter_context(_driven(model, Blk, ScriptedDevice, allow_write=True)), model


def _blk_calls(stack: ExitStack) -> Step:
    blk, model = _blk(stack)

    def step() -> int:
        model.requests.clear()
        blk.write(1, bytes(512))
        return 1 + len(blk.read(0, 1)) // 512

    return step


def _blk_futures(stack: ExitStack) -> Step:
    blk, model = _blk(stack)

    def step() -> int:
        model.requests.clear()
        asked = [blk.submit_read(number % 4, 1, kick=False) for number in range(8)]
        blk.kick()
        blk.wait(asked)
        return sum(len(one.result()) // 512 for one in asked)

    return step


def _blk_burst(stack: ExitStack) -> Step:
    blk, model = _blk(stack)
    burst = blk.burst(1)
    stack.callback(burst.release)

    def step() -> int:
        model.requests.clear()
        return sum(len(data) // 512 for _, data in burst.read([number % 4 for number in range(_BATCH)]))

    return step


def _scsi(stack: ExitStack) -> Step:
    model = ScsiHost()
    scsi = stack.enter_context(_driven(model, Scsi, ScriptedDevice))
    lun = Lun(0, 0)

    def step() -> int:
        model.requests.clear()
        scsi.read(lun, 0, 1)
        return 1

    return step


def _net(stack: ExitStack) -> tuple[Net, NetModel]:
    model = NetModel()
    return stack.enter_context(_driven(model, Net, ScriptedDevice)), model


def _net_send(stack: ExitStack) -> Step:
    net, model = _net(stack)

    def step() -> int:
        model.sent.clear()
        model.headers.clear()
        net.send_all([_FRAME] * _BATCH)
        net.flush()
        return _BATCH

    return step


def _net_receive(stack: ExitStack) -> Step:
    net, model = _net(stack)

    def step() -> int:
        model.inject(*[_FRAME] * _BATCH, queue=RECEIVEQ)
        return len(net.receive(timeout=60))

    return step


def _input(stack: ExitStack) -> Step:
    model = InputModel()
    driver = stack.enter_context(_driven(model, Input, ScriptedDevice))

    def step() -> int:
        model.inject((1, 30, 1), (0, 0, 0), (1, 30, 0), (0, 0, 0))
        return len(driver.read(timeout=60))

    return step


def _mem(stack: ExitStack) -> Step:
    model = MemModel(requested=64 << 21)
    mem = stack.enter_context(_driven(model, Mem, ScriptedDevice))

    def step() -> int:
        model.requests.clear()
        for block in (3, 5, 7):
            mem.plug(mem.addr + block * mem.block_size, 1)
        for block in (5, 7, 3):
            mem.unplug(mem.addr + block * mem.block_size, 1)
        return 6

    return step


def _mem_survey(stack: ExitStack) -> Step:
    mem = stack.enter_context(_driven(Region(64, Ranges([(3, 1), (9, 4)])), Mem, ScriptedDevice))

    def step() -> int:
        before = sum(mem.counts.values())
        mem.resync()
        return sum(mem.counts.values()) - before

    return step


def _balloon(stack: ExitStack) -> Step:
    balloon = stack.enter_context(_driven(Host(), Balloon, Machine, floor=None, stats=None))

    def step() -> int:
        balloon.inflate(1, force=True)
        balloon.deflate(1, force=True)
        return 2

    return step


PATHS: dict[str, Callable[[ExitStack], Step]] = {
    "rng: read": _rng,
    "blk: read and write": _blk_calls,
    "blk: futures": _blk_futures,
    "blk: burst": _blk_burst,
    "scsi: read": _scsi,
    "net: send": _net_send,
    "net: receive": _net_receive,
    "input: events": _input,
    "mem: plug and unplug": _mem,
    "mem: resync": _mem_survey,
    "balloon: one page in, one out": _balloon,
}


def kept(prepare: Callable[[ExitStack], Step], completions: int) -> float:
    """Bytes of objects that uvirtio has more after so many completions than after a tenth of them."""
    with ExitStack() as stack:
        step = prepare(stack)

        def go(count: int) -> int:
            while count > 0:
                came = step()
                assert came, "nothing came back"
                count -= came
            gc.collect()
            return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(_OURS).traces)

        tracemalloc.start(1)
        try:
            before = go(completions // 10)
            return float(go(completions) - before)
        finally:
            tracemalloc.stop()


COMPLETIONS = 100_000
MOST = 16 << 10
"""Bytes that may be more: times of publication, numbers. An object for each completion would be far more."""


def run(runs: int, quick: bool) -> Section:
    """What each path keeps; once, however many runs: it is a count."""
    completions = COMPLETIONS // 100 if quick else COMPLETIONS
    section = Section("kept", f"Bytes of Python objects after {completions:,} completions more.")
    for name, prepare in PATHS.items():
        more = kept(prepare, completions)
        section.add(f"{name}: kept", [more], "B")
        section.compare(f"{name}: kept / {MOST >> 10} KiB", [max(more, 0.0)], [float(MOST)], 1.0, at_least=False)
    return section
