"""Soaks workloads, one after the other, and says what stays of them; see ``tools/soak --help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from benches import facts  # noqa: E402

from soaks import kills, soak, work  # noqa: E402

_RUNTIME = "XDG_RUNTIME_DIR"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="tools/soak",
        description="A day's work squeezed, on QEMU's device models and qemu-storage-daemon.\n"
        "What grows, and what stays?",
        epilog="With --vm: commands killed in the lab VM instead; see tools/soak --vm --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="default: all; --list names them")
    top.add_argument("--list", action="store_true", help="the workloads, and how many cycles are a day")
    top.add_argument(
        "--scale", type=float, default=0.01, metavar="X", help="the part of a day (default: 0.01; 1 is all of it)"
    )
    top.add_argument("--minutes", type=float, metavar="N", help="instead: each workload its part of N minutes")
    top.add_argument(
        "--day",
        action="store_true",
        help=f"instead: the whole day, squeezed; without names of {', '.join(work.PROMISED)}, which are promised"
        " (docs/soak.md has figures)",
    )
    top.add_argument(
        "--within",
        type=float,
        metavar="N",
        help="end after N minutes in all: a workload has its part of what is left, and is cut off after it",
    )
    top.add_argument(
        "--kills",
        type=int,
        metavar="N",
        help="instead: N commands of each kind killed at random moments, and a fifth as many stopped for a while",
    )
    top.add_argument("--seed", type=int, default=1, metavar="N", help="of the moments (default: 1)")
    top.add_argument("--json", type=Path, metavar="FILE", help="the figures; - is the standard output")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Soak; the exit code: 1 where something grew or stayed."""
    top = parser()
    options = top.parse_args(arguments)
    if options.kills is not None:
        others = (options.minutes, options.within, options.day or None)
        if options.workloads or any(other is not None for other in others) or options.kills < 1:
            top.error("--kills N, of 1 or more, goes without a workload, --minutes, --day and --within")
        return _kills(options)
    if unknown := [name for name in options.workloads if name not in work.BY_NAME]:
        top.error(f"no workload {', '.join(unknown)}; there are {', '.join(work.BY_NAME)}")
    for name in ("scale", "minutes", "within"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1e6:
            top.error(f"--{name} {value:g}: a number above 0")
    if options.minutes is not None and (options.day or options.within is not None):
        top.error("--minutes says how long, --day and --within how much: leave one of them out")
    if options.list:
        for one in work.ALL:
            print(f"{one.name:9} {one.day:10,}  {one.about}")
        return 0
    names = options.workloads or (work.PROMISED if options.day else work.BY_NAME)
    chosen = [work.BY_NAME[name] for name in names]
    scale = 1.0 if options.day else options.scale
    said = sys.stderr if options.json == Path("-") else sys.stdout
    begin, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="uvs-", dir="/tmp") as where:
        watched = _folders(Path(where))
        for number, one in enumerate(chosen):
            scratch = Path(where) / f"{number}"
            scratch.mkdir()
            seconds = options.minutes * 60 / len(chosen) if options.minutes else None
            most = None
            if options.within is not None:
                most = (options.within * 60 - (time.monotonic() - begin)) / (len(chosen) - number)
            cycles = max(1, round(one.day * scale))
            results.append(soak.run(one, cycles, seconds, scratch, watched, most))
            print(results[-1].line(), file=said, flush=True)
    bad = [result.name for result in results if result.faults]
    verdict = f"FAIL: {', '.join(bad)}" if bad else "PASS: nothing stays"
    print(f"{verdict}, {time.monotonic() - begin:.0f} s", file=said, flush=True)
    if options.json is not None:
        _write(options.json, {"facts": facts.gather(), "soak": [result.as_dict() for result in results]})
    return 1 if bad else 0


def _kills(options: argparse.Namespace) -> int:
    """Kill and stop commands; the exit code."""
    said = sys.stderr if options.json == Path("-") else sys.stdout
    begin, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="uvs-", dir="/tmp") as where:
        watched = _folders(Path(where))
        scratch = Path(where) / "disk"
        scratch.mkdir()
        killing = kills.Killing(scratch, watched, options.seed)
        for victim in kills.VICTIMS:
            for work_of, count in ((killing.kills, options.kills), (killing.stops, -(-options.kills // 5))):
                results.append(work_of(victim, count))
                print(results[-1].line(), file=said, flush=True)
    bad = [result.name for result in results if result.faults]
    verdict = f"FAIL: {', '.join(bad)}" if bad else "PASS: nothing stays, and the next start works"
    print(f"{verdict}, {time.monotonic() - begin:.0f} s", file=said, flush=True)
    if options.json is not None:
        _write(options.json, {"facts": facts.gather(), "kills": [result.as_dict() for result in results]})
    return 1 if bad else 0


def _folders(where: Path) -> tuple[Path, ...]:
    """Those in which nothing may stay: the runtime and temporary ones of this process, and /dev/shm."""
    runtime, temporary = where / "run", where / "tmp"
    for path in (runtime, temporary):
        path.mkdir(mode=0o700)
    os.environ.update({_RUNTIME: str(runtime), "TMPDIR": str(temporary)})
    tempfile.tempdir = None  # it is asked for again
    return runtime, temporary, Path("/dev/shm")


def _write(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2) + "\n"
    if path == Path("-"):
        sys.stdout.write(text)
    else:
        path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
