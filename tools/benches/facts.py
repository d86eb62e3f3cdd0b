"""Where and with what it was measured."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any


def gather() -> dict[str, Any]:
    """The machine, the versions, and how busy it was."""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load": [round(value, 2) for value in os.getloadavg()],
        "autogroup": _autogroup(),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libc": "-".join(platform.libc_ver()),
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "commit": _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
    }


def _autogroup() -> str | None:
    """How this session stands among the others of the machine (sched(7)); None: there are no autogroups."""
    path = Path("/proc/self/autogroup")
    return path.read_text().strip().partition(" ")[2] or None if path.exists() else None


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.machine()


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout.splitlines() or [""])[0].strip() or None
