"""How list, doctor and the plan of bind grow with the number of virtio-mmio windows: made-up trees, no device."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from benches import measure
from benches.measure import Section
from uvirtio.binding import api, doctor
from uvirtio.binding.discover import scan
from uvirtio.binding.plan import plans
from uvirtio.host.roots import Roots

FEW, MANY = 32, 128  # every QEMU `virt` has 32
_MOST = 1.5
"""The most that a window may cost with four times as many beside it."""


def run(runs: int, quick: bool) -> Section:
    """Seconds of each for both numbers of windows, and the ratio to four times the smaller one."""
    section = Section(
        "discovery", f"Made-up machines with {FEW} and {MANY} virtio-mmio windows, 8 of them in each page."
    )
    with tempfile.TemporaryDirectory(prefix="uvb-") as top:
        few, many = (virt(Path(top) / str(count), count) for count in (FEW, MANY))
        for name, work in (
            ("list", lambda roots: api.list(roots=roots)),
            ("doctor", lambda roots: doctor.checks(roots, qemu_version=lambda _: "")),
            ("plan of all", lambda roots: plans(scan(roots), roots, force=["many"])),
        ):
            _compare(section, name, work, few, many, 1 if quick else max(runs, 5))
    return section


def _compare(
    section: Section, name: str, work: Callable[[Roots], object], few: Roots, many: Roots, runs: int
) -> None:
    work(few)  # the imports
    short, long = measure.interleaved(
        runs, lambda: measure.seconds(lambda: work(few)), lambda: measure.seconds(lambda: work(many))
    )
    section.add(f"{name}, {FEW} windows", short, "s")
    section.add(f"{name}, {MANY} windows", long, "s")
    times = MANY // FEW
    section.compare(
        f"{name}: {MANY} windows / {times} x {FEW}", long, [times * one for one in short], _MOST, at_least=False
    )


def virt(top: Path, count: int) -> Roots:
    """A machine whose kernel drives an rng in each of so many windows."""
    roots = Roots.under(top)
    tree, platform = roots.sys / "firmware/devicetree/base", roots.sys / "bus/platform/devices"
    driver, virtio = roots.sys / "bus/platform/drivers/virtio-mmio", roots.sys / "bus/virtio/drivers/virtio_rng"
    for directory in (tree, platform, driver, virtio, roots.proc, roots.dev, roots.run, roots.etc):
        directory.mkdir(parents=True)
    for name in ("#address-cells", "#size-cells"):
        (tree / name).write_bytes((2).to_bytes(4, "big"))
    lines = []
    for number in range(count):
        base = 0xA000000 + number // 8 * 0x10000 + number % 8 * 0x200
        node, device = tree / f"virtio_mmio@{base:x}", platform / f"{base:x}.virtio_mmio"
        child = device / f"virtio{number}"
        for directory in (node, child):
            directory.mkdir(parents=True)
        (node / "compatible").write_bytes(b"virtio,mmio\0")
        (node / "reg").write_bytes(base.to_bytes(8, "big") + (0x200).to_bytes(8, "big"))
        (device / "of_node").symlink_to(node)
        (device / "driver").symlink_to(driver)
        (device / "driver_override").write_text("(null)\n")
        (child / "driver").symlink_to(virtio)
        (child / "device").write_text("0x0004\n")
        lines.append(f"{base:08x}-{base + 0x1FF:08x} : {device.name} virtio_mmio@{base:x}\n")
    (roots.proc / "iomem").write_text("".join(lines) + "40000000-7fffffff : System RAM\n")
    return roots
