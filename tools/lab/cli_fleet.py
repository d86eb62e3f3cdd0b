"""``tools/fleet``: examples/fleet on three lab VMs that are reached over ssh."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from lab import debian, fleet, kernels, process, setup


def main(arguments: list[str]) -> int:
    """Run tools/fleet; the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/fleet",
        description="Boot three lab VMs with sshd, run the playbook of examples/fleet over them (doctor, plan,"
        " bind, diag, restore), and merge what they came to into one page.",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("fleet-results"),
        metavar="DIR",
        help="where it goes (fleet-results)",
    )
    parser.add_argument("--kernel", default="6.1", metavar="V", help="6.1 (default), 6.12, newest, or a path")
    parser.add_argument("--accept-expired", action="store_true", help=debian.ACCEPT_EXPIRED)
    options = parser.parse_args(arguments)
    setup.packages(setup.FOR_FLEET)
    venv = setup.venv()
    kernel = kernels.get(options.kernel, accept_expired=options.accept_expired)
    fleet.ansible()
    begin = time.monotonic()
    with process.signals_raise():
        times = run(kernel, venv, options.out.absolute(), accept_expired=options.accept_expired)
    took = time.monotonic() - begin
    print(f"tools/fleet: {options.out / 'fleet.html'}")
    print(
        f"tools/fleet: done in {took:.0f} s, {times}, on {os.cpu_count()} cores",
        flush=True,
    )
    return 0


def run(kernel: kernels.Kernel, venv: Path, results: Path, *, accept_expired: bool = False) -> fleet.Times:
    """Start the machines, run the playbook and end them; what the playbook wrote is in ``results``."""
    results.mkdir(parents=True, exist_ok=True)
    with fleet.Fleet(kernel, venv, accept_expired=accept_expired) as machines:
        return machines.play(results)
