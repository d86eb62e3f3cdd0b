"""``tools/bench``: how fast it is, beside what it is compared with. The measuring itself is in tools/benches."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benches import document
from benches import options as benches

from lab import CHECKOUT, LabError, blkio, kernels, process, setup
from lab.floors import without_devices, without_privilege
from lab.vm import Config, Vm

BENCHES = CHECKOUT / "tools/benches"

# The kernel shares the processors among sessions first (sched(7), autogroup): the nice value of a process changes
# nothing between two of them.
_RAISED = -20
_OFTEN = 0.05
"""Seconds between two looks for sessions that are not raised yet."""
_GOODBYE = 20.0
"""Seconds that the benches have to close what they started, once they are interrupted."""

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
    options = benches.parse(arguments)
    if options.show:
        return document.show(map(Path, options.show), options.svg and Path(options.svg))
    if options.raised and (why := _cannot_raise()):
        raise LabError(f"--raised: {why}")
    setup.packages(setup.FOR_VM if options.vm else setup.FOR_BENCH)
    venv = setup.venv()
    if options.vm:
        return _in_vm(venv, options)
    if not options.quick and not options.profile and (not options.only or "vhost-user" in options.only):
        _peers()
    command = [str(venv / "bin/python"), str(BENCHES), *arguments]
    if os.geteuid() == 0:
        command = [*without_devices(), *without_privilege(), *command]
    sys.stdout.flush()
    with process.signals_raise():
        child = process.start(command, stdin=subprocess.DEVNULL)
        try:
            while options.raised:  # what it starts has sessions of its own
                _raise(child.pid)
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(_OFTEN)
            return child.wait()
        except process.Interrupted:
            # It closes its QEMUs and its daemons, and says what it has.
            child.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GOODBYE)
            raise
        finally:
            process.kill(child)


def _cannot_raise() -> str:
    """Why sessions cannot be raised; empty if they can."""
    if not Path("/proc/self/autogroup").exists():
        return "this kernel has no autogroups (sched(7)); chrt --rr 5 tools/bench does the same"
    return "" if os.geteuid() == 0 else "only root can let a session go before others"


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


def _in_vm(venv: Path, options: argparse.Namespace) -> int:
    """In a fresh VM; files that are asked for are copied out of it, also of a run that was interrupted."""
    words, files = ["--only", *(options.only or ["vm"]), "--runs", str(options.runs)], {}
    words += ["--quick"] * options.quick
    for name in ("json", "svg"):
        if (path := getattr(options, name)) is not None:
            files[f"bench{name}"] = Path(path).absolute()
            words += [f"--{name}", f"/run/lab/out/bench{name}"]
    config = Config(
        kernel=kernels.get("6.12"),
        command=[str(venv / "bin/python"), str(BENCHES), *words],
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
        try:
            code = vm.wait(tick=(lambda: _raise(vm.pid)) if options.raised else None)
        finally:
            for name, path in files.items():
                if (vm.out / name).exists():
                    shutil.copyfile(vm.out / name, path)
        for line in (*vm.alarms(), *vm.faults()):
            print(f"  | {line}", file=sys.stderr)
    return code
