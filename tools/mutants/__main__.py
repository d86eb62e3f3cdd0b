"""Draws guards by a seed, changes each, and lists those that no test notices; see ``tools/mutate --help``."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest

sys.path[0] = str(Path(__file__).resolve().parents[1])

from mutants import books, guards, runner  # noqa: E402
from mutants.guards import PARTS, ROOT, Mutant  # noqa: E402
from mutants.runner import NOTICED, Verdict  # noqa: E402

_WORKERS = 2
_WANTED = 0.95
_USERS = {"virtqueue": "device", "transports": "device", "host": "binding"}
"""The part that stands on another one: its tests come to what only a whole device or machine comes to."""


class Task(NamedTuple):
    """What one process judges."""

    mutants: Sequence[Mutant]
    tests: Sequence[str]
    """Files and folders that pytest collects, below the checkout."""
    known: dict[Mutant, str] | None
    """As :class:`runner.Judge` takes it."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="tools/mutate",
        description="Delete, negate or weaken guards that a seed draws, one at a time, and run the unit tests\n"
        "that come to each. A mutant that all of them pass is a test that is missing.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    seed = f"default: {books.SEED}, whose verdicts are kept in {books.RECORD.relative_to(ROOT)}"
    top.add_argument("--seed", type=int, default=books.SEED, metavar="N", help=seed)
    top.add_argument("--count", type=int, default=books.COUNT, metavar="N", help="guards in all (default: 150)")
    top.add_argument("--part", action="append", choices=PARTS, help="only this package; may be given again")
    top.add_argument("--list", action="store_true", help="say what would be changed, and run nothing")
    top.add_argument("--told", action="store_true", help="say what the kept verdicts come to, and run nothing")
    top.add_argument("--keep", action="store_true", help="add the verdicts to those that are kept")
    top.add_argument(
        "--rest",
        action="store_true",
        help="take the kept verdicts, and judge only what was not noticed or has none",
    )
    top.add_argument("--wanted", type=float, default=_WANTED, metavar="SHARE", help="fail below this share (0.95)")
    top.add_argument("--worker", metavar="FILE", help=argparse.SUPPRESS)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Mutate; the exit code: 1 where too many survive, or some are not judged."""
    options = parser().parse_args(arguments)
    if options.worker:
        return work(Path(options.worker))
    if options.keep and options.seed != books.SEED:
        parser().error(f"the verdicts that are kept are on seed {books.SEED}")
    parts = options.part or PARTS
    drawn = guards.drawn(options.seed, options.count, parts)
    if options.list:
        print(*drawn, sep="\n")
        return 0
    begin = time.monotonic()
    beside = [one for one in books.once() if one.part in parts and one not in drawn]
    kept = books.kept()
    verdicts: list[Verdict] = []
    if options.told or options.rest:
        had = [kept[books.key(one)].of(one) for one in (*drawn, *beside) if books.key(one) in kept]
        verdicts += [one for one in had if options.told or one.end in NOTICED]
    if not options.told:
        done = {verdict.mutant for verdict in verdicts}
        # What is equivalent costs all tests that come to it: it is judged where the verdicts are kept.
        known = {} if options.keep else books.equivalents()
        left = [one for one in (*drawn, *beside) if one not in done and books.key(one) not in known]
        for verdict in judged(left, {one: kept[books.key(one)].by for one in left if books.key(one) in kept}):
            print(f"{verdict.end:9} {verdict.cpu:5.1f} s  {verdict.mutant}", flush=True)
            verdicts.append(verdict)
            if options.keep:
                books.keep([verdict])
    good = told(f"seed {options.seed}", drawn, verdicts, options.wanted)
    if beside:
        good &= told("survived once", beside, verdicts, 1.0)
    print(f"{time.monotonic() - begin:.0f} s")
    return 0 if good else 1


def told(name: str, mutants: Sequence[Mutant], verdicts: Iterable[Verdict], wanted: float) -> bool:
    """Say what verdicts come to; whether all are there, and tests notice enough of what they can notice.

    Args:
        name: Of these mutants.
        mutants: All of them.
        verdicts: On these, and perhaps on others.
        wanted: The share that is enough.
    """
    known, these = books.equivalents(), set(mutants)
    judged = [verdict for verdict in verdicts if verdict.mutant in these and verdict.end != runner.SLOW]
    left = [verdict for verdict in judged if books.key(verdict.mutant) not in known]
    ends = {verdict.mutant: verdict.end for verdict in judged}
    same = [mutant for mutant in mutants if books.key(mutant) in known]
    survivors = [verdict for verdict in left if verdict.end not in NOTICED]
    for verdict in survivors:
        print(f"{verdict.end.upper()} {verdict.mutant}")
    for mutant in same:
        note = f" (but {ends[mutant]}: the list is out of date)" if ends.get(mutant) in NOTICED else ""
        print(f"equivalent {mutant}: {known[books.key(mutant)]}{note}")
    share = 1 - len(survivors) / len(left) if left else 1.0
    print(
        f"{name}: {len(mutants)} mutants, {len(left) - len(survivors)} of {len(left)} noticed ({share:.1%}), "
        f"{len(survivors)} survive, {len(same)} equivalent, {len(mutants) - len(left) - len(same)} not judged"
    )
    return share >= wanted and len(left) + len(same) == len(mutants)


def judged(drawn: Sequence[Mutant], by: Mapping[Mutant, str]) -> Iterator[Verdict]:
    """All verdicts, as they come.

    First what a test is known to notice, by that test alone. Then the rest, by the tests of its part. Last what
    those do not notice, by the tests of the part that stands on it, and by other files of tests that name it.

    Args:
        drawn: Which mutants.
        by: The node id of the test that noticed each the last time; "" for none.
    """
    known = {one: test for one in drawn if (test := by.get(one)) and (ROOT / test.partition("::")[0]).exists()}
    done = set()
    if known:
        files = sorted({test.partition("::")[0] for test in known.values()})
        for verdict in _worked([Task(list(known), files, known)]):
            done.add(verdict.mutant)
            yield verdict
    rest = [one for one in drawn if one not in done]
    parts = sorted(([one for one in rest if one.part == part] for part in PARTS), key=len, reverse=True)
    late: dict[Mutant, Verdict] = {}
    for verdict in _worked([Task(part, [f"tests/unit/{part[0].part}"], None) for part in parts if part]):
        if verdict.end in NOTICED or books.key(verdict.mutant) in books.equivalents():
            yield verdict
        else:
            late[verdict.mutant] = verdict
    others = {one: _elsewhere(one) for one in late}
    some = [one for one in late if others[one]]
    if some:
        files = sorted({file for one in some for file in others[one]})
        late |= {verdict.mutant: verdict for verdict in _worked([Task(some, files, None)])}
    yield from late.values()


def _elsewhere(mutant: Mutant) -> list[str]:
    """Where else a mutant may be noticed than by the tests of its part.

    By those of the part that stands on it, and by files of tests that name its function or class, and its part.
    """
    user = _USERS.get(mutant.part)
    word = re.compile(rf"\b{mutant.function.partition('.')[0]}\b")
    texts = {path: path.read_text("utf-8") for path in (ROOT / "tests/unit").rglob("test_*.py")}
    return [
        str(path.relative_to(ROOT))
        for path, text in texts.items()
        if path.parent.name == user
        or (word.search(text) and f"uvirtio.{mutant.part}" in text and path.parent.name != mutant.part)
    ]


def _worked(tasks: Sequence[Task]) -> Iterator[Verdict]:
    """The verdicts of tasks, some at a time, each in a process of its own."""
    waiting = list(tasks)
    with tempfile.TemporaryDirectory(prefix="uvmu-") as folder:
        running: list[tuple[subprocess.Popen[bytes], BinaryIO]] = []
        while waiting or running:
            while waiting and len(running) < _WORKERS:
                file = Path(folder) / str(len(waiting))
                file.write_bytes(pickle.dumps(waiting.pop(0)))
                env = {**os.environ, "TMPDIR": folder, "HYPOTHESIS_STORAGE_DIRECTORY": f"{folder}/h"}
                env |= {"UVIRTIO_EXAMPLES": env.get("UVIRTIO_EXAMPLES", "10"), "PYTHONPATH": str(ROOT)}
                command = [sys.executable, str(Path(__file__).parent), "--worker", str(file)]
                told = file.with_suffix(".told")
                told.touch()
                child = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL)
                running.append((child, told.open("rb")))
            for pair in list(running):
                child, stream = pair
                ended = child.poll() is not None
                while head := stream.read(4):
                    yield pickle.loads(stream.read(int.from_bytes(head, "little")))
                if ended:
                    stream.close()
                    running.remove(pair)
            time.sleep(0.1)


def work(file: Path) -> int:
    """Judge the mutants of one task; the exit code."""
    task: Task = pickle.loads(file.read_bytes())
    with file.with_suffix(".told").open("ab") as stream:

        def say(verdict: Verdict) -> None:
            data = pickle.dumps(verdict)
            stream.write(len(data).to_bytes(4, "little") + data)
            stream.flush()

        judge = runner.Judge(task.mutants, say, task.known)
        options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:randomly", f"--basetemp={file}.t"]
        code = int(pytest.main([*options, *(str(ROOT / name) for name in task.tests)], plugins=[judge]))
    if judge.broken:
        print(judge.broken, flush=True)
        return code or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
