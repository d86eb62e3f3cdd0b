"""The balloon on QEMU: pages a second, inflated and deflated one by one, and reported free in 2 MiB ranges."""

from __future__ import annotations

import time

from benches.measure import Section
from uvirtio.drivers.balloon import Balloon
from uvirtio.opening import identify
from uvirtio.qemu import Machine

_DEVICE = "virtio-balloon-pci,free-page-reporting=on"


def once(pages: int) -> tuple[float, float, float]:
    """Pages a second: inflated, deflated, reported; all of fresh memory that was written to."""
    with Machine("q35", [_DEVICE], ram=512 << 20) as machine:
        function = machine.functions[0]
        with identify(function.address, function) as device, Balloon(device, floor=0, reporting=True) as balloon:
            arena = balloon.arena(pages * 4096)
            begin = time.perf_counter()
            balloon.report(arena)
            reported = time.perf_counter() - begin
            begin = time.perf_counter()
            balloon.inflate(pages)
            inflated = time.perf_counter() - begin
            begin = time.perf_counter()
            balloon.deflate(pages)
            deflated = time.perf_counter() - begin
    return pages / inflated, pages / deflated, pages / reported


def run(runs: int, quick: bool) -> Section:
    """4 KiB pages a second."""
    pages = 1024 if quick else 32768
    section = Section("balloon", f"{pages * 4096 >> 20} MiB on qemu:, 4 KiB pages a second.")
    results = [once(pages) for _ in range(runs)]
    inflated, deflated, reported = (list(column) for column in zip(*results, strict=True))
    section.add("inflated", inflated, "pages/s", "the host gives back each page by itself")
    section.add("deflated", deflated, "pages/s")
    section.add("reported free, 2 MiB ranges", reported, "pages/s")
    section.compare("reported / inflated", reported, inflated, 3.0)
    return section
