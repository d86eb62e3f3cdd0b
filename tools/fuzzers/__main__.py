"""Fuzzes targets, one after the other, and says what was found; see ``tools/fuzz --help``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from fuzzers import coverage, findings, loop, target  # noqa: E402
from fuzzers.findings import Finding  # noqa: E402
from fuzzers.targets import ALL, BY_NAME  # noqa: E402

MILLION = 1_000_000
_HOUR = 3600


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="tools/fuzz",
        description="Feed bytes to what reads bytes of others: each target ends normally or with a typed error.\n"
        "Everything else is a finding, made small and kept in a file. The same seed gives the same run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("targets", nargs="*", metavar="TARGET", help="default: all; --list names them")
    top.add_argument("--list", action="store_true", help="the targets, and their part of a million executions")
    top.add_argument(
        "--runs", type=int, default=MILLION, metavar="N", help="executions in all (default: a million)"
    )
    top.add_argument("--seed", type=int, metavar="N", help="default: 1, and with --hours one that is told")
    top.add_argument(
        "--hours", type=float, metavar="N", help="round after round for so long, each with the next seed"
    )
    top.add_argument("--replay", type=Path, metavar="FILE", help="run the one input in FILE, with TARGET")
    top.add_argument("--out", type=Path, metavar="DIR", help="where inputs of findings go (default: a new folder)")
    top.add_argument(
        "--keep", action="store_true", help="write inputs with new coverage into the corpus of the tree"
    )
    top.add_argument(
        "--engine",
        choices=("own", "atheris"),
        default="own",
        help="atheris: libFuzzer with one TARGET, to the first finding; --hours bounds it (the extra 'fuzz')",
    )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Fuzz; the exit code: 1 where something was found."""
    top = parser()
    options = top.parse_args(arguments)
    if unknown := [name for name in options.targets if name not in BY_NAME]:
        top.error(f"no target {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    if options.list:
        for one in ALL:
            print(f"{one.name:15} {one.weight:7}  {one.about}")
        return 0
    chosen = [BY_NAME[name] for name in options.targets] or list(ALL)
    if options.replay is not None or options.engine == "atheris":
        if len(chosen) != 1 or not options.targets:
            top.error("this wants one TARGET")
        if options.replay is not None:
            return replay(chosen[0], options.replay.read_bytes())
        from fuzzers import libfuzzer

        runs, seconds = (-1, max(1, round(options.hours * _HOUR))) if options.hours else (options.runs, 0)
        return libfuzzer.run(chosen[0].name, runs, options.seed or 1, _folder(options.out), seconds)
    return Run(chosen, options).run()


def replay(kind: type[target.Target], data: bytes) -> int:
    """Run one input and say how it ends; the exit code."""
    made = kind()
    try:
        error = findings.fault(made, data)
        if error is None:
            print(f"{kind.name}: ends as it may")
            return 0
        raise error
    finally:
        made.close()


def _folder(given: Path | None) -> Path:
    if given is None:
        return Path(tempfile.mkdtemp(prefix="uvirtio-fuzz-"))
    given.mkdir(parents=True, exist_ok=True)
    return given


class Run:
    """Rounds over some targets."""

    def __init__(self, chosen: list[type[target.Target]], options: argparse.Namespace) -> None:
        self._chosen, self._options = chosen, options
        self._out: Path | None = options.out
        self._found: list[Finding] = []
        self._seed = 1

    def run(self) -> int:
        """Fuzz; the exit code."""
        options = self._options
        self._seed = options.seed
        if self._seed is None:
            self._seed = int.from_bytes(os.urandom(4), "little") if options.hours else 1
        begin, executions = time.monotonic(), 0
        until = begin + options.hours * _HOUR if options.hours else None
        print(f"seed {self._seed}, {coverage.Coverage(()).kind}, Python {sys.version.split()[0]}", flush=True)
        while True:
            executions += self._round(until)
            if until is None or time.monotonic() >= until:
                break
            self._seed += 1
        seconds = time.monotonic() - begin
        print(
            f"{executions:,} executions in {seconds:.0f} s, {time.process_time():.0f} s of CPU: "
            f"{len(self._found)} found"
        )
        return 1 if self._found else 0

    def _round(self, until: float | None) -> int:
        done = 0
        whole = sum(one.weight for one in self._chosen)
        for kind in self._chosen:
            made = kind()
            try:
                fuzzed = loop.Loop(made, self._seed)
                result = fuzzed.run(max(1, self._options.runs * kind.weight // whole), until, self._say)
            finally:
                made.close()
            done += result.executions
            rate = result.executions / max(result.seconds, 1e-9)
            print(
                f"{kind.name:15} {result.executions:8,} executions {rate:8,.0f}/s {result.lines:5} lines "
                f"{len(result.kept):4} new {len(result.findings)} found",
                flush=True,
            )
            if self._options.keep:
                keep(kind.name, result.kept)
        return done

    def _say(self, finding: Finding) -> None:
        if self._out is None:
            self._out = _folder(None)
        path = _folder(self._out) / finding.file
        path.write_bytes(finding.data)
        self._found.append(finding)
        print(finding.report(path, f"seed {self._seed}, "), flush=True)


def keep(name: str, inputs: list[bytes], most: int = 40) -> None:
    """Add the shortest inputs to the corpus of a target, which stays small."""
    path = target.CORPUS / f"{name}.txt"
    known = target.corpus(name)
    new = [one for one in sorted(inputs, key=len) if one not in known and len(one) <= 300][
        : max(0, most - len(known))
    ]
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            file.writelines(f"{one.hex()}\n" for one in new)


if __name__ == "__main__":
    sys.exit(main())
