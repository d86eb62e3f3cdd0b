"""``tools/demo``: real devices of a real kernel, taken, driven and given back, with QEMU as the witness."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from lab import CHECKOUT, arches, debian, demo_ways, kernels, natives, process, roots, setup
from lab.demo_host import Host
from lab.demo_ways import BACKENDS, WAYS
from lab.vm import Config, Vm

_MARGIN = 8
"""Columns in which each line says whose it is."""


def main(arguments: list[str]) -> int:
    """Run tools/demo; the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/demo",
        description="Boot a stock kernel in QEMU, take its devices, drive them from user space, give them back."
        " By default: balloon, memory device and keyboard, over PCI through vfio-pci.",
    )
    parser.add_argument(
        "--arch",
        choices=list(arches.ALL),
        default=arches.X86_64.name,
        help="aarch64: a device tree's windows through /dev/mem, and functions behind an SMMU (27 MB and a"
        " kernel of 93 MB on first use)",
    )
    transports = list(dict.fromkeys(transport for transport, _ in WAYS))
    backends = list(dict.fromkeys(backend for _, backend in WAYS))
    parser.add_argument("--transport", choices=transports, help="pci by default")
    parser.add_argument("--backend", choices=backends, help="the transport's usual one by default")
    parser.add_argument("--kernel", metavar="V", help="6.1, 6.12, newest, or a path; by default what fits the way")
    parser.add_argument("--accept-expired", action="store_true", help=debian.ACCEPT_EXPIRED)
    parser.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="kill the VM after S seconds (600)"
    )
    options = parser.parse_args(arguments)
    arch, transport = arches.get(options.arch), options.transport or "pci"
    chosen = (transport, options.backend or BACKENDS[transport])
    if arch is not arches.X86_64 and (options.transport or options.backend):
        parser.error(f"--arch {arch.name} shows both of its ways: leave --transport and --backend out")
    if chosen not in WAYS:
        parser.error(f"{chosen[0]} has no {chosen[1]}; there are: {', '.join('/'.join(one) for one in WAYS)}")
    ways = demo_ways.story(arch.name, *chosen)
    way = ways[0]
    begin = time.monotonic()
    setup.packages(setup.FOR_VM | setup.for_arch(arch))
    kernel = kernels.get(options.kernel or way.kernel, arch, accept_expired=options.accept_expired)
    root, venv = roots.get(arch), setup.venv()
    print(f"Linux {kernel.version} under QEMU: {'; '.join(one.title for one in ways)}", flush=True)
    with process.signals_raise(), tempfile.TemporaryDirectory(prefix="uvd-") as folder:
        socket, vnc = Path(folder, "qmp"), Path(folder, "vnc")
        config = Config(
            kernel=kernel,
            command=["python", "-m", "lab.demo_guest"],
            arch=arch,
            root=root,
            machine=way.machine,
            iommu=way.iommu,
            devices=[device for one in ways for device in one.devices],
            # The VNC server is how the host shows the keyboard's LEDs; it wants a screen.
            qemu_arguments=[*way.arguments, *(["-vnc", f"unix:{vnc}", "-device", "VGA"] if way.screen else [])],
            memory=way.memory,
            append=way.append,
            qmp=socket,
            venv=venv,
            libraries=natives.get(arch, venv),
            timeout=options.timeout,
            env={
                "PYTHONPATH": f"{CHECKOUT}/tools:{CHECKOUT}",
                "UVIRTIO_DEMO": json.dumps([arch.name, *chosen]),
                **_looks(),
            },
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
