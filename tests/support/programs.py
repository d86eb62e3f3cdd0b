"""Programs of a few lines that import this package, each in a Python of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def run_program(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code to its end, in this checkout."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
