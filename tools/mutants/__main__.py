"""Draws guards by a seed, changes each, and lists those that no test notices; see ``tools/mutate --help``."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pytest

sys.path[0] = str(Path(__file__).resolve().parents[1])

from mutants import guards, runner  # noqa: E402
from mutants.guards import PARTS, ROOT, Mutant  # noqa: E402

EQUIVALENTS = Path(__file__).with_name("equivalents.toml")
TESTS = {
    "virtqueue": ("virtqueue",),
    "transports": ("transports",),
    "drivers": ("drivers",),
    "binding": ("binding",),
    "host": ("host", "binding"),
}
"""The folders of tests/unit that are to notice a mutant, by its part."""
_WORKERS = 2
_WANTED = 0.95


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="tools/mutate",
        description="Delete, negate or weaken guards that a seed draws, one at a time, and run the unit tests\n"
        "that reach each. A mutant that all of them pass is a test that is missing.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    top.add_argument("--count", type=int, default=150, metavar="N", help="guards in all (default: 150)")
    top.add_argument("--part", action="append", choices=PARTS, help="only this package; may be given again")
    top.add_argument("--list", action="store_true", help="say what would be changed, and run nothing")
    top.add_argument("--wanted", type=float, default=_WANTED, metavar="SHARE", help="fail below this share (0.95)")
    top.add_argument("--worker", metavar="FILE", help=argparse.SUPPRESS)
    return top


def equivalents() -> dict[tuple[str, str, str, str], str]:
    """Mutants that no test can notice, with the reason."""
    table = tomllib.loads(EQUIVALENTS.read_text(encoding="utf-8")).get("mutant", [])
    return {(one["file"], one["function"], one["before"], one["after"]): one["reason"] for one in table}


def key(mutant: Mutant) -> tuple[str, str, str, str]:
    """What a mutant is known by, wherever its line goes."""
    return mutant.file, mutant.function, mutant.before, mutant.after


def main(arguments: list[str] | None = None) -> int:
    """Mutate; the exit code: 1 where too many survive."""
    options = parser().parse_args(arguments)
    if options.worker:
        return work(Path(options.worker))
    drawn = guards.drawn(options.seed, options.count, options.part or PARTS)
    if options.list:
        print(*drawn, sep="\n")
        return 0
    begin = time.monotonic()
    verdicts = judged(drawn)
    known = equivalents()
    verdicts = [verdict for verdict in verdicts if verdict[1] != runner.SLOW]
    left = [verdict for verdict in verdicts if key(verdict[0]) not in known]
    same = [verdict for verdict in verdicts if key(verdict[0]) in known]
    survivors = [one for one in left if one[1] in (runner.SURVIVED, runner.UNREACHED)]
    for mutant, end, _, _ in survivors:
        print(f"{end.upper()} {mutant}")
    for mutant, end, _, _ in same:
        note = "" if end in (runner.SURVIVED, runner.UNREACHED) else f" (but {end}: the list is out of date)"
        print(f"equivalent {mutant}: {known[key(mutant)]}{note}")
    share = 1 - len(survivors) / len(left) if left else 0.0
    cpu = sum(verdict[2] for verdict in verdicts) / max(1, len(verdicts))
    print(
        f"seed {options.seed}: {len(left) - len(survivors)} of {len(left)} noticed ({share:.1%}), "
        f"{len(same)} equivalent; {cpu:.1f} s of CPU a mutant, {time.monotonic() - begin:.0f} s"
    )
    if len(verdicts) < len(drawn):
        print(f"{len(drawn) - len(verdicts)} were not judged")
    return 0 if left and share >= options.wanted and len(verdicts) == len(drawn) else 1


def judged(drawn: list[Mutant]) -> runner.Verdicts:
    """All verdicts, by two processes at once, one part each."""
    waiting = [[one for one in drawn if one.part == part] for part in PARTS]
    waiting = sorted((part for part in waiting if part), key=len)
    verdicts: runner.Verdicts = []
    with tempfile.TemporaryDirectory(prefix="uvmu-") as folder:
        running: list[tuple[subprocess.Popen[bytes], Path]] = []
        while waiting or running:
            while waiting and len(running) < _WORKERS:
                part = waiting.pop()
                file = Path(folder) / part[0].part
                file.write_bytes(pickle.dumps(part))
                env = {**os.environ, "TMPDIR": folder, "HYPOTHESIS_STORAGE_DIRECTORY": f"{folder}/h"}
                env |= {"UVIRTIO_EXAMPLES": env.get("UVIRTIO_EXAMPLES", "10"), "PYTHONPATH": str(ROOT)}
                command = [sys.executable, str(Path(__file__).parent), "--worker", str(file)]
                running.append((subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL), file))
            for child, file in [pair for pair in running if pair[0].poll() is not None]:
                running.remove((child, file))
                result = file.with_suffix(".done")
                if result.exists():
                    verdicts += pickle.loads(result.read_bytes())
            time.sleep(0.1)
    return verdicts


def work(file: Path) -> int:
    """Judge the mutants of one part; the exit code."""
    mutants: list[Mutant] = pickle.loads(file.read_bytes())
    part = mutants[0].part
    judge = runner.Judge(mutants, lambda mutant, end, cpu: print(f"{end:9} {cpu:5.1f} s  {mutant}", flush=True))
    folders = [str(ROOT / "tests/unit" / name) for name in TESTS[part]]
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:randomly", f"--basetemp={file}.t"]
    code = int(pytest.main([*options, *folders], plugins=[judge]))
    if judge.broken:
        print(f"{part}: {judge.broken}", flush=True)
        return code or 1
    file.with_suffix(".done").write_bytes(pickle.dumps(judge.verdicts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
