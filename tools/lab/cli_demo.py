"""``tools/demo``: real devices of a real kernel, taken, driven and given back, with QEMU as the witness."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from lab import CHECKOUT, kernels, process, setup
from lab.demo_host import Host
from lab.vm import Config, Vm

# The balloon is not behind the IOMMU, because Linux's own driver refuses one that is, and shall have it back.
DEVICES = [
    "virtio-balloon-pci,id=balloon",
    "virtio-mem-pci,id=mem,block-size=2M,iommu_platform=on",
    "virtio-keyboard-pci,id=keyboard,iommu_platform=on,vectors=3",
]
_MARGIN = 8
"""Columns in which each line says whose it is."""


def main(arguments: list[str]) -> int:
    """Run tools/demo; the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/demo",
        description="Boot a stock kernel in QEMU, take its balloon, memory device and keyboard through vfio-pci,"
        " drive them, and give them back.",
    )
    parser.add_argument("--kernel", default="6.1", metavar="V", help="6.1 (default), 6.12, newest, or a path")
    parser.add_argument(
        "--timeout", type=float, default=240, metavar="S", help="kill the VM after S seconds (240)"
    )
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    setup.packages(setup.FOR_VM)
    kernel, venv = kernels.get(options.kernel), setup.venv()
    print(
        f"Linux {kernel.version} under QEMU, with a balloon, a memory device and a keyboard",
        flush=True,
    )
    with process.signals_raise(), tempfile.TemporaryDirectory(prefix="uvd-") as folder:
        socket, vnc = Path(folder, "qmp"), Path(folder, "vnc")
        config = Config(
            kernel=kernel,
            command=["python", "-m", "lab.demo_guest"],
            devices=DEVICES,
            # The VNC server is how the host shows the keyboard's LEDs; it wants a screen.
            qemu_arguments=["-vnc", f"unix:{vnc}", "-device", "VGA"],
            memory="1G,maxmem=4G,slots=4",
            qmp=socket,
            venv=venv,
            timeout=options.timeout,
            env={"PYTHONPATH": str(CHECKOUT / "tools"), **_looks()},
        )
        with Vm(config) as vm:
            code = vm.wait(tick=Host(vm.out, socket, vnc).tick)
            alarms = vm.alarms() + vm.faults()
    if alarms:
        print("the guest's kernel complained:", *alarms[:10], sep="\n  | ")
        code = code or 1
    print(f"tools/demo: {'done' if code == 0 else 'FAILED'} in {time.monotonic() - begin:.0f} s", flush=True)
    return code


def _looks() -> dict[str, str]:
    """The settings by which the guest's output looks as it would on our own terminal."""
    looks = {"COLUMNS": str(min(120, shutil.get_terminal_size((108, 24)).columns) - _MARGIN)}
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        looks["FORCE_COLOR"] = "1"
    return looks
