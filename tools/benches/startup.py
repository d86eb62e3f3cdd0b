"""How long a command takes before it does anything: a process for each run."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import uvirtio
from benches import measure
from benches.measure import Section

_MAIN = "import sys; from uvirtio.cli import main; sys.argv[0] = 'uvirtio'; sys.exit(main())"
_RNG = """import uvirtio
with uvirtio.open("qemu:virtio-rng-pci") as device, uvirtio.Rng(device) as rng:
    rng.read(1)
"""
_SIZE = """import sys  # and nothing else: what it imports would be in both
print(*(name for name in sys.modules if name.partition(".")[0] in sys.stdlib_module_names))
print(open("/proc/self/smaps_rollup").read())"""
_QEMU = "qemu-system-x86_64"
_QUIT = b'{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'
_LIST_MOST, _HELP_MOST, _RNG_MOST, _SIZE_MOST = 5.0, 6.0, 2.2, 1.3


def run(runs: int, quick: bool) -> Section:
    """Seconds of a whole process; the machine's own speed is in the bare program beside it."""
    section = Section("start-up", "Seconds of a whole process, from start to end; cpu: what it computed itself.")
    with tempfile.TemporaryDirectory(prefix="uvb-") as empty:
        (Path(empty) / "sys").mkdir()
        # Compiled once, as where it is installed; whoever runs this may have forbidden that.
        compiled = {**os.environ, "PYTHONPYCACHEPREFIX": f"{empty}/compiled", "PYTHONDONTWRITEBYTECODE": ""}
        compiled["PYTHONPATH"] = str(Path(uvirtio.__file__).parents[1])
        computed: dict[tuple[str, ...], list[float]] = {}

        def process(*argv: str) -> bytes:
            # Elsewhere: python -c would import the uvirtio of this directory, whatever PYTHONPATH says.
            done = subprocess.run(argv, capture_output=True, timeout=60, check=True, env=compiled, cwd=empty)
            return done.stdout

        def python(*argv: str) -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = measure.seconds(lambda: process(sys.executable, "-c", *argv))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            computed.setdefault(argv, []).append(used)
            return took

        works: tuple[Callable[[], float], ...] = (
            lambda: python("pass"),
            lambda: python(_MAIN, "list", "--root", empty),
            lambda: python(_MAIN, "--help"),
        )
        for work in works:
            work()
        computed.clear()
        bare, listed, helped = measure.interleaved(2 if quick else max(runs, 9), *works)
        names = ("python -c pass", "uvirtio list", "uvirtio --help")
        for name, took in zip(names, (bare, listed, helped), strict=True):
            section.add(name, took, "s")
        for name, used in zip(names, computed.values(), strict=True):
            section.add(f"{name}, cpu", used, "s")
        section.compare("uvirtio list / bare python", listed, bare, _LIST_MOST, at_least=False)
        section.compare("uvirtio --help / bare python", helped, bare, _HELP_MOST, at_least=False)

        if shutil.which(_QEMU):
            python(_RNG)
            opened, alone = measure.interleaved(
                2 if quick else max(runs, 9), lambda: python(_RNG), lambda: measure.seconds(_bare_qemu)
            )
            section.add("import uvirtio, open qemu:virtio-rng-pci, a byte, close", opened, "s")
            section.add("a bare QEMU with that device, told to quit", alone, "s")
            section.compare("an rng's first byte / bare QEMU", opened, alone, _RNG_MOST, at_least=False)

            def size(code: str) -> tuple[str, float]:
                modules, told = process(sys.executable, "-c", code).decode().split("\n", 1)
                found = {line.partition(":")[0]: line.split()[1] for line in told.splitlines()[1:] if line.strip()}
                return modules, float(found["Rss"]) * 1024

            driving = _RNG.replace("    rng.read(1)\n", "    rng.read(1)\n    ") + _in_block(_SIZE)
            ours, theirs = list[float](), list[float]()
            # Where the libraries lie decides how many of their pages are mapped at once: a per cent of all.
            for _ in range(2 if quick else max(runs, 9)):
                modules, resident = size(driving)
                ours.append(resident)
                wanted = ", ".join(name for name in modules.split() if name != "__main__")
                theirs.append(size(f"import {wanted}\n{_SIZE}")[1])
            section.add("a process that drives one rng, resident", ours, "B")
            section.add("bare Python with the same modules of its own", theirs, "B")
            section.compare("resident: one rng / bare Python", ours, theirs, _SIZE_MOST, at_least=False)
    return section


def _in_block(code: str) -> str:
    return code.replace("\n", "\n    ")


def _bare_qemu() -> None:
    argv = [_QEMU, "-machine", "q35", "-accel", "tcg", "-m", "512M", "-S", "-no-user-config", "-nodefaults"]
    argv += ["-display", "none", "-device", "virtio-rng-pci", "-qmp", "stdio"]
    subprocess.run(argv, input=_QUIT, capture_output=True, timeout=60, check=True)
