"""``tools/soak``: a day's work squeezed, and deaths at random moments. What it does is in tools/soaks."""

from __future__ import annotations

import os

from lab import CHECKOUT, process, setup
from lab.floors import without_devices, without_privilege

SOAKS = CHECKOUT / "tools/soaks"


def main(arguments: list[str]) -> int:
    """Soak where no device of this machine can be reached, and with a /dev/shm of its own; the exit code."""
    setup.packages(setup.FOR_QEMU)
    command = [str(setup.venv() / "bin/python"), str(SOAKS), *arguments]
    if os.geteuid() == 0:
        shared = ["sh", "-c", 'mount -t tmpfs -o mode=1777 none /dev/shm && exec "$@"', "sh"]
        command = [*without_devices(), *shared, *without_privilege(), *command]
    return process.to_its_end(command)
