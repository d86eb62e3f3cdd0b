"""The command line of tools/bench: what there is to measure, and what goes with what.

Only the standard library is used here: it is read before there is a virtual environment, so that ``--help`` and a
wrong word need none, and nothing is found out after ten minutes of measuring that could be known before.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SECTIONS = {
    "rings": "the ring engine in memory, beside a ring of ctypes structures without checks",
    "memory": "what a queue takes, and whether a batch leaves objects",
    "disk": "4 KiB reads on QEMU, beside code without checks and a ping-pong of eventfds",
    "scsi": "the same through virtio-scsi, beside virtio-blk",
    "balloon": "pages a second, one by one and reported in ranges",
    "interrupts": "the wait loop, beside an epoll and a read",
    "startup": "whole processes, beside an empty Python and a bare QEMU",
    "discovery": "list, doctor and plan with 32 and 128 virtio-mmio windows",
    "vhost-user": "a disk of qemu-storage-daemon, beside libblkio",
    "net": "frames on QEMU and through testpmd, beside a ring of ctypes structures",
}
APART = {  # not of interest to whoever looks how fast it is, so only where they are named
    "growth": "how cost grows with rings, queues, devices, regions and balloons",
    "kept": "what is in memory after 100,000 completions on each path",
}
GUEST = {
    "vm": "in the lab VM: all of the next, each beside the kernel's driver",
    "vm:disk": "4 KiB reads, beside O_DIRECT preadv",
    "vm:balloon": "256 MiB in and out, beside virtio_balloon",
    "vm:memory": "256 MiB plugged and unplugged, beside virtio_mem",
    "vm:keyboard": "from a key press to the event, beside evdev",
}

RUNS = 7
_FILES = ("json", "svg")
_ALONE = {
    "profile": ("only", "against", "show", "quick", "runs", "vm", "json", "svg"),
    "show": ("only", "against", "quick", "runs", "raised", "vm", "json"),
    "vm": ("against",),
}
"""Options that say what is done, and those that would say nothing there."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, after all that can be said about them before a run; SystemExit (2) with what is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    given = {name for name, value in vars(options).items() if value not in (None, False)}
    if not options.vm and given & {"boot", "cpu"}:
        parser.error("--boot and --cpu are the lab VM's: they go with --vm")
    for one, others in _ALONE.items():
        if one in given and (left := sorted(given & {*others})):
            parser.error(f"--{one} does not go with --{left[0]}")
    options.only = list(dict.fromkeys(options.only or ()))
    guest = [name for name in options.only if name in GUEST]
    if guest and not options.vm and "UVIRTIO_LAB" not in os.environ:
        parser.error(f"--only {' '.join(guest)} goes with --vm")
    if options.vm and len(guest) < len(options.only):
        there = ", ".join(GUEST)
        parser.error(f"--vm measures {there}; {', '.join(sorted({*options.only} - {*guest}))} goes without it")
    if options.runs is None:
        options.runs = 1 if options.quick and not options.against else RUNS
    if options.against and not _readable(Path(options.against) / "uvirtio/__init__.py"):
        parser.error(f"--against {options.against}: no checkout of uvirtio (it has no uvirtio/__init__.py)")
    for name in _FILES:
        if (path := getattr(options, name)) is not None and (why := unwritable(Path(path))):
            parser.error(f"--{name} {path}: {why}")
    return options


def unwritable(path: Path) -> str:
    """Why a file cannot be written; empty if it can. What is in it stays."""
    try:
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _readable(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _count(word: str) -> int:
    try:
        number = int(word)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of runs: 1 or more")
    return number


def _table(names: dict[str, str]) -> str:
    return "".join(f"  {name:<12} {what}\n" for name, what in names.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        allow_abbrev=False,
        usage="tools/bench [OPTION ...] [--only NAME ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure the ring engine and the drivers, each beside what it is compared with, in one run.\n"
        "Everything runs in memory and on QEMU's device models; no device of this machine is touched.",
        epilog=f"NAME, all of the first by default:\n{_table(SECTIONS)}\n"
        f"only where they are named:\n{_table(APART)}\nwith --vm:\n{_table(GUEST)}\n"
        "exit code:\n"
        "  0    all of it was measured, whatever was found (a MISS is no failure)\n"
        "  1    something could not be measured: FAILED says what; the rest was\n"
        "  2    the command line, or a file that it names\n"
        "  4    something is missing on this machine\n"
        "  130  interrupted (143: SIGTERM); sections that were done have been printed, and written to FILE",
    )
    parser.add_argument("--quick", action="store_true", help="short, and once unless --runs says so: does it run?")
    parser.add_argument("--runs", type=_count, metavar="N", help=f"runs of each ({RUNS}); the median counts")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, *APART, *GUEST], metavar="NAME", help="see below")
    parser.add_argument(
        "--against",
        metavar="CHECKOUT",
        help="the same with the uvirtio of another checkout, in turn, N pairs (with --quick: short ones)",
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
    parser.add_argument("--profile", action="store_true", help="no figures: where the time goes, path by path")
    parser.add_argument(
        "--show", nargs="+", metavar="FILE", help="no run: print those that --json has kept, and --svg draws them"
    )
    parser.add_argument("--json", metavar="FILE", help="all figures as one JSON document, after each section")
    parser.add_argument("--svg", metavar="FILE", help="a plot of the comparisons, or of the curves of growth")
    return parser
