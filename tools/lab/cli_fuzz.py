"""``tools/fuzz``: bytes for everything that reads bytes of others. The fuzzing itself is in tools/fuzzers."""

from __future__ import annotations

import os

from lab import CHECKOUT, process, setup
from lab.floors import without_devices

FUZZERS = CHECKOUT / "tools/fuzzers"


def main(arguments: list[str]) -> int:
    """Fuzz where no device of this machine can be reached; the exit code."""
    setup.packages(setup.FOR_LINT)
    python = setup.venv() / "bin/python"
    if "atheris" in arguments or "--engine=atheris" in arguments:
        setup.extra(python, "fuzz", "atheris")
    command = [str(python), str(FUZZERS), *arguments]
    if os.geteuid() == 0:
        command = [*without_devices(), *command]
    return process.to_its_end(command)
