"""``tools/soak``: a day's work squeezed, and deaths at random moments. What it does is in tools/soaks.

Deaths in the lab VM are tests/vm/test_deaths.py, on the machines deaths-*, with other numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import CHECKOUT, LabError, cli_test, machines, pace, process, setup
from lab.floors import Runner, without_devices, without_privilege

SOAKS = CHECKOUT / "tools/soaks"
WAYS = ("vfio", "uio", "mmio", "vdpa")
_BOOT = 90
"""Seconds that a VM takes before its first test, more or less."""


def main(arguments: list[str]) -> int:
    """Soak where no device of this machine can be reached, and with a /dev/shm of its own; the exit code."""
    if "--vm" in arguments:
        return _in_the_vm(arguments)
    setup.packages(setup.FOR_QEMU)
    command = [str(setup.venv() / "bin/python"), str(SOAKS), *arguments]
    if os.geteuid() == 0:
        shared = ["sh", "-c", 'mount -t tmpfs -o mode=1777 none /dev/shm && exec "$@"', "sh"]
        command = [*without_devices(), *shared, *without_privilege(), *command]
    return process.to_its_end(command)


def _vm_parser() -> argparse.ArgumentParser:
    """The command line with --vm."""
    top = argparse.ArgumentParser(
        prog="tools/soak --vm",
        description="Commands killed at random moments in the lab VM, on each way to a device.",
    )
    top.add_argument("--vm", nargs="*", choices=WAYS, metavar="WAY", help=f"of {', '.join(WAYS)}; default: all")
    top.add_argument("--kills", type=int, default=50, metavar="N", help="of each workload on each way (50)")
    top.add_argument("--only", metavar="EXPR", help="the workloads that match, as pytest's -k has it")
    top.add_argument("--seed", type=int, default=1, metavar="N", help="of the moments (default: 1)")
    top.add_argument("--within", type=float, metavar="N", help="end after some N minutes in all, with fewer kills")
    top.add_argument("--json", type=Path, metavar="FILE", help="the figures")
    return top


def _in_the_vm(arguments: list[str]) -> int:
    top = _vm_parser()
    options = top.parse_args(arguments)
    if options.kills < 1 or (options.within is not None and not 0 < options.within < 1e6):
        top.error("--kills and --within are numbers above 0")
    setup.packages(setup.FOR_VM)
    runner_venv = setup.venv()
    by_name = {machine.name: machine for machine in machines.load()}
    ways = options.vm or list(WAYS)
    begin, results, broken = time.monotonic(), [], []
    undisturbed = min(pace.loop() for _ in range(20))
    os.environ.update(
        UVIRTIO_KILLS=str(options.kills),
        UVIRTIO_KILLS_SEED=str(options.seed),
        UVIRTIO_KILLS_LOOP=str(undisturbed),
    )
    with tempfile.TemporaryDirectory(prefix="uvs-", dir="/tmp") as folder:
        runner = Runner(runner_venv, Path(folder), options.only)
        files = sorted({str(file) for way in ways for file in by_name[f"deaths-{way}"].files})
        runner.compile(files, without_devices() if os.geteuid() == 0 else [])
        for number, way in enumerate(ways):
            machine = replace(by_name[f"deaths-{way}"], timeout=float("inf"))
            if options.within is not None:
                seconds = (options.within * 60 - (time.monotonic() - begin)) / (len(ways) - number)
                os.environ["UVIRTIO_KILLS_SECONDS"] = str(max(1.0, seconds - _BOOT))
                machine = replace(machine, timeout=seconds + 1200)
            found, wrong = _one_way(runner, machine)
            results += found
            broken += wrong
            if options.json is not None:  # each time: what ends the tool takes no figures with it
                options.json.write_text(json.dumps({"kills": results, "broken": broken}, indent=2) + "\n")
    kills = sum(one["kills"] for one in results)
    if not kills and not broken:
        broken.append("nothing was killed")
    verdict = f"FAIL: {'; '.join(broken)}" if broken else "PASS: nothing harmed, and the next start works"
    print(f"{verdict}; {kills} killed, {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if broken else 0


def _one_way(runner: Runner, machine: machines.Machine) -> tuple[list[dict[str, Any]], list[str]]:
    """What came of the kills on a machine, and what is wrong with it as a whole; no machine ends the others."""
    results: list[dict[str, Any]] = []
    broken: list[str] = []
    try:
        for name, step in cli_test.vm_floor(runner, [(machine, machine.kernels[0])]):
            outcome = step()
            report = runner.reports / f"{name.replace(' ', '-')}.xml"
            found = _deaths(report) if report.exists() else []
            for one in found:
                print(_line(one), flush=True)
            results += found
            wrong = [] if outcome.ok else [outcome.note or f"{outcome.failed} failed"]
            if not report.exists():
                wrong.append("and it left no report" if wrong else "it left no report")
            if wrong:
                broken.append(f"{name}: {', '.join(wrong)}")
    except (LabError, ET.ParseError) as error:
        broken.append(f"{machine.name}: {str(error).splitlines()[0]}")
    for text in broken:
        print(f"FAIL {text}", flush=True)
    return results, broken


def _deaths(report: Path) -> list[dict[str, Any]]:
    """What the tests recorded."""
    root = ET.parse(report).getroot()
    return [json.loads(one.get("value", "")) for one in root.iter("property") if one.get("name") == "deaths"]


def _line(one: dict[str, Any]) -> str:
    """For people."""
    return (
        f"{'FAIL' if one['faults'] else 'ok  '} {one['way']:10} {one['name']:8} {one['kills']:3} killed"
        f" ({one['late']} came late), {one['stops']} stopped; {one['filled'] >> 20} MiB filled; next start"
        f" {one['slowest_start']:.2f} s of the guest ({one['alone']:.2f} s undisturbed), {one['scaled']:.2f} s of"
        f" this CPU's{''.join(f'; {fault}' for fault in one['faults'])}"
    )
