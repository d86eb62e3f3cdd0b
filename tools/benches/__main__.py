"""tools/bench runs this in the project's virtual environment; see --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the folder that has the package "benches"

from benches import against, document, facts, report  # noqa: E402
from benches.document import Run  # noqa: E402
from benches.measure import Section, told  # noqa: E402
from benches.options import GUEST, SECTIONS, parse  # noqa: E402

INTERRUPTED = 130


def main() -> int:
    """Run the benches; the exit code, as --help has it."""
    options = parse()
    try:
        if options.serve:
            against.serve(lambda name, quick: _run(name)(1, quick))
            return 0
        if options.show:
            return document.show(map(Path, options.show), options.svg and Path(options.svg))
        return _profile() if options.profile else _measure(options)
    except BrokenPipeError:  # whoever read this has seen enough
        document.read_no_more()
        return 1


def _profile() -> int:
    from benches import paths

    try:
        for line in paths.run():
            print(line, flush=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  # it ends here either way, and a person reads it
        print(f"   FAILED {told(error)}")
        return 1
    return 0


def _measure(options: argparse.Namespace) -> int:
    """Each section is printed, and kept in the files that are asked for, as soon as it is there."""
    names = options.only or list(SECTIONS)
    run = Run(facts.gather(), [], names)
    print(report.head(run.facts), flush=True)
    found = against.run(names, options.runs, options.quick, Path(options.against)) if options.against else None
    try:
        for section in found or _sections(names, options.runs, options.quick):
            run.sections.append(section)
            run.left = names[len(run.sections) :]
            print("\n".join(report.table(section)), flush=True)
            _keep(run, options)
    except KeyboardInterrupt:
        left = f"; not measured: {', '.join(run.left)}" if run.left else ""
        print(f"\ntools/bench: interrupted{left}", file=sys.stderr, flush=True)
        return INTERRUPTED
    return int(any(section.failed for section in run.sections))


def _keep(run: Run, options: argparse.Namespace) -> None:
    for name, made in ((options.json, run.as_json), (options.svg, lambda: document.svg([run]))):
        # What is no file (a terminal, a pipe) gets the whole, once.
        if name and (not run.left or not Path(name).exists() or Path(name).is_file()):
            Path(name).write_text(made())


def _sections(names: list[str], runs: int, quick: bool) -> Iterator[Section]:
    for name in names:
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        try:
            section = _run(name)(runs, quick)
        except Exception as error:  # noqa: BLE001  # the others are worth measuring; it is told, and counts
            section = Section(name, "not measured", failed=[told(error)])
        yield section


def _run(name: str) -> Callable[[int, bool], Section]:
    if name in GUEST:
        return partial(import_module("benches.vm").run, parts=name.split(":")[1:])
    run: Callable[[int, bool], Section] = import_module(f"benches.{name.replace('-', '_')}").run
    return run


if __name__ == "__main__":
    sys.exit(main())
