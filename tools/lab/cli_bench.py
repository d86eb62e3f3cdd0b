"""``tools/bench``: how fast it is, beside what it is compared with. The measuring itself is in tools/benches."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lab import CHECKOUT, LabError, blkio, kernels, process, setup
from lab.floors import without_devices, without_privilege
from lab.vm import Config, Vm

BENCHES = CHECKOUT / "tools/benches"

# The kernel shares the processors among sessions first (sched(7), autogroup): the nice value of a process changes
# nothing between two of them.
_RAISED = -20
_OFTEN = 0.05
"""Seconds between two looks for sessions that are not raised yet."""

# What tools/benches/vm.py drives; the disk's and the memory's backends are supplied.
_DEVICES = [
    "virtio-balloon-pci,id=balloon",
    "virtio-blk-pci,id=disk",
    "virtio-keyboard-pci,id=keyboard",
    "virtio-mem-pci,id=mem,block-size=2M",
]


def main(arguments: list[str]) -> int:
    """Run the benches where no device of this machine can be reached, as tests/qemu is run; the exit code.

    With ``--vm``: in the lab VM, beside the kernel's own drivers.
    """
    top = _parser()
    options, rest = top.parse_known_args(arguments)
    if not options.vm and (options.boot, options.cpu) != (None, None):
        top.error("--boot and --cpu are the lab VM's: they go with --vm")
    setup.packages(setup.FOR_VM if options.vm else setup.FOR_BENCH)
    venv = setup.venv()
    if options.vm:
        return _in_vm(venv, options, rest)
    if "--quick" not in arguments and ("--only" not in arguments or "vhost-user" in arguments):
        _peers()
    command = [str(venv / "bin/python"), str(BENCHES), *arguments]
    if os.geteuid() == 0:
        command = [*without_devices(), *without_privilege(), *command]
    sys.stdout.flush()
    with process.signals_raise():
        child = process.start(command, stdin=subprocess.DEVNULL)
        try:
            while "--raised" in arguments:  # what it starts has sessions of its own
                _raise(child.pid)
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(_OFTEN)
            return child.wait()
        finally:
            process.kill(child)


def _parser() -> argparse.ArgumentParser:
    """What concerns the VM, and the files that come out of it; the whole is in tools/benches/__main__.py."""
    top = argparse.ArgumentParser(
        prog="tools/bench", usage="tools/bench [--help] [...]", add_help=False, allow_abbrev=False
    )
    top.add_argument("--vm", action="store_true")
    top.add_argument("--boot")
    top.add_argument("--cpu")
    top.add_argument("--json", type=Path)
    top.add_argument("--svg", type=Path)
    return top


def _raise(pid: int) -> None:
    """Let the session of a process go before what else this machine does, and those of its children."""
    for one in _family(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            path = Path(f"/proc/{one}/autogroup")
            if not path.read_text().rstrip().endswith(f" {_RAISED}"):
                path.write_text(str(_RAISED))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                yield from _family(int(child))


def _peers() -> None:
    """Fetch what the bench of vhost-user compares with; without it, it says so and measures the rest."""
    try:
        setup.packages(setup.FOR_PEERS)
        blkio.get()
    except LabError as error:
        print(f"tools/bench: nothing to compare vhost-user with: {error}", file=sys.stderr, flush=True)


def _in_vm(venv: Path, options: argparse.Namespace, rest: list[str]) -> int:
    """In a fresh VM; files that are asked for are copied out of it."""
    words, files = list(rest), {}
    for name in ("json", "svg"):
        if (path := getattr(options, name)) is not None:
            files[f"bench{name}"] = path.absolute()
            words += [f"--{name}", f"/run/lab/out/bench{name}"]
    config = Config(
        kernel=kernels.get("6.12"),
        command=[str(venv / "bin/python"), str(BENCHES), *([] if "--only" in words else ["--only", "vm"]), *words],
        append=options.boot or "",
        cpu=options.cpu or "",
        memory="1G,maxmem=4G,slots=4",
        devices=_DEVICES,
        before="modprobe vfio-pci\nmodprobe vfio_iommu_type1\nmodprobe virtio_mem\nmodprobe evdev\n"
        "echo online_movable >/sys/devices/system/memory/auto_online_blocks\n",
        timeout=900,
        venv=venv,
    )
    with process.signals_raise(), Vm(config) as vm:
        code = vm.wait(tick=(lambda: _raise(vm.pid)) if "--raised" in words else None)
        for name, path in files.items():
            if (vm.out / name).exists():
                shutil.copy(vm.out / name, path)
        for line in (*vm.alarms(), *vm.faults()):
            print(f"  | {line}", file=sys.stderr)
    return code
