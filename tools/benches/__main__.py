"""tools/bench runs this in the project's virtual environment; see --help."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the folder that has the package "benches"

from benches import against, facts, plot, report  # noqa: E402
from benches.measure import Section  # noqa: E402

SECTIONS = (
    "rings",
    "memory",
    "disk",
    "scsi",
    "balloon",
    "interrupts",
    "startup",
    "discovery",
    "vhost-user",
    "net",
)
APART = ("growth", "kept")  # not of interest to whoever looks how fast it is
GUEST = ("vm", "vm:disk", "vm:balloon", "vm:memory", "vm:keyboard")  # inside the lab VM only; vm is all of them


def main() -> int:
    """Run the benches; 0 if all of them ran, whatever they found."""
    top = _parser()
    options = top.parse_args()
    if (of_the_vm := sorted({*(options.only or ())} & {*GUEST})) and "UVIRTIO_LAB" not in os.environ:
        top.error(f"--only {' '.join(of_the_vm)} goes with --vm")
    if options.profile:
        from benches import paths

        for line in paths.run():
            print(line)
        return 0
    if options.serve:
        against.serve(lambda name, quick: _run(name)(1, quick))
        return 0
    if options.show:
        document = json.loads(Path(options.show).read_text())
        for line in report.text(document["facts"], [Section.from_dict(one) for one in document["sections"]]):
            print(line)
        return 0
    runs = 1 if options.quick else options.runs
    told = facts.gather()
    sections: list[Section] = []
    if options.against:
        sections = against.run(options.only or SECTIONS, options.runs, options.quick, Path(options.against))
    else:
        for name in options.only or SECTIONS:
            print(f"bench: {name} ...", file=sys.stderr, flush=True)
            sections.append(_run(name)(runs, options.quick))
    for line in report.text(told, sections):
        print(line)
    if options.json:
        document = {"schema": "uvirtio-bench/1", "facts": told, "sections": [one.as_dict() for one in sections]}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    if options.svg:
        Path(options.svg).write_text(
            plot.curves(told, sections) if any(one.curves for one in sections) else plot.draw(told, sections)
        )
    return int(any(section.failed for section in sections))


def _run(name: str) -> Callable[[int, bool], Section]:
    if name in GUEST:
        return partial(import_module("benches.vm").run, parts=name.split(":")[1:])
    run: Callable[[int, bool], Section] = import_module(f"benches.{name.replace('-', '_')}").run
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        allow_abbrev=False,  # tools/lab/cli_bench.py looks for some of them, too
        description="Measure the ring engine and the drivers, each beside what it is compared with, in one run."
        " Everything runs in memory and on QEMU's device models; no device of this machine is touched.",
    )
    parser.add_argument("--quick", action="store_true", help="once and short, to see that it runs")
    parser.add_argument("--profile", action="store_true", help="no figures: where the time goes, path by path")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="runs of each (7); the median counts")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS + APART + GUEST,
        metavar="NAME",
        help=f"{', '.join(SECTIONS + APART)}; with --vm {', '.join(GUEST)}",
    )
    parser.add_argument(
        "--against",
        metavar="CHECKOUT",
        help="the same with the uvirtio of another checkout, in turn, RUNS pairs (with --quick: short ones)",
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--raised",
        action="store_true",
        help="go before what else a busy machine does, QEMU and the daemons too (root, autogroup)",
    )
    parser.add_argument("--vm", action="store_true", help="in the lab VM, beside the kernel's own drivers")
    parser.add_argument("--boot", metavar="WORDS", help="with --vm: words for the command line of its kernel")
    parser.add_argument("--cpu", metavar="MODEL", help="with --vm: its CPU, as QEMU's -cpu has it (max,-erms)")
    parser.add_argument("--show", metavar="FILE", help="no run: print one that --json has kept")
    parser.add_argument("--json", metavar="FILE", help="all figures as one JSON document")
    parser.add_argument("--svg", metavar="FILE", help="a plot of the comparisons")
    return parser


if __name__ == "__main__":
    sys.exit(main())
