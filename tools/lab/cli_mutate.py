"""``tools/mutate``: checks that no test would miss. The work itself is in tools/mutants."""

from __future__ import annotations

import os
import tempfile

from lab import CHECKOUT, process, setup
from lab.floors import without_devices

MUTANTS = CHECKOUT / "tools/mutants"


def main(arguments: list[str]) -> int:
    """Mutate where no device of this machine can be reached; the exit code."""
    setup.packages(setup.FOR_UNIT)
    command = ["nice", "-n", "10", str(setup.venv() / "bin/python"), str(MUTANTS), *arguments]
    with tempfile.TemporaryDirectory(prefix="uvmu-", dir="/tmp") as scratch:
        if os.geteuid() == 0:
            command = [*without_devices(scratch=True), *command]
        return process.to_its_end(command, env={**os.environ, "TMPDIR": scratch})
