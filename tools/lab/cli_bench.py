"""``tools/bench``: how fast it is, beside what it is compared with. The measuring itself is in tools/benches."""

from __future__ import annotations

import os
import subprocess
import sys

from lab import CHECKOUT, process, setup
from lab.floors import without_devices, without_privilege


def main(arguments: list[str]) -> int:
    """Run the benches where no device of this machine can be reached, as tests/qemu is run; the exit code."""
    setup.packages(setup.FOR_TESTS)
    venv = setup.venv()
    command = [str(venv / "bin/python"), str(CHECKOUT / "tools/benches"), *arguments]
    if os.geteuid() == 0:
        command = [*without_devices(), *without_privilege(), *command]
    sys.stdout.flush()
    with process.signals_raise():
        child = process.start(command, stdin=subprocess.DEVNULL)
        try:
            return child.wait()
        finally:
            process.kill(child)
