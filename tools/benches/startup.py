"""How long a command takes before it does anything: a process for each run."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benches import measure
from benches.measure import Section

_MAIN = "import sys; from uvirtio.cli import main; sys.argv[0] = 'uvirtio'; sys.exit(main())"
_LIST_MOST, _HELP_MOST = 0.150, 0.200
_BARE = 0.015  # a bare interpreter where those were set


def run(runs: int, quick: bool) -> Section:
    """Seconds of a whole process; the machine's own speed is in the bare interpreter beside it."""
    section = Section("start-up", "Seconds of a whole process, from start to end; cpu: what it computed itself.")
    with tempfile.TemporaryDirectory(prefix="uvb-") as empty:
        (Path(empty) / "sys").mkdir()
        computed: dict[tuple[str, ...], list[float]] = {}

        def process(*argv: str) -> float:
            command = [sys.executable, "-c", *argv]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = measure.seconds(lambda: subprocess.run(command, capture_output=True, timeout=60, check=True))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            computed.setdefault(argv, []).append(used)
            return took

        bare, listed, helped = measure.interleaved(
            2 if quick else max(runs, 9),
            lambda: process("pass"),
            lambda: process(_MAIN, "list", "--root", empty),
            lambda: process(_MAIN, "--help"),
        )
    section.add("python -c pass", bare, "s")
    section.add("uvirtio list", listed, "s", f"wanted under {_LIST_MOST * 1000:.0f} ms")
    section.add("uvirtio --help", helped, "s", f"wanted under {_HELP_MOST * 1000:.0f} ms")
    for name, used in zip(("python -c pass", "uvirtio list", "uvirtio --help"), computed.values(), strict=True):
        section.add(f"{name}, cpu", used, "s")
    section.compare("uvirtio list / bare python", listed, bare, _LIST_MOST / _BARE, at_least=False)
    section.compare("uvirtio --help / bare python", helped, bare, _HELP_MOST / _BARE, at_least=False)
    return section
