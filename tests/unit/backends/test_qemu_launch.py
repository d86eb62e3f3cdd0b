"""The start of QEMU: nothing is imported before it that it does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MOST_MODULES = 27
"""Of this package, before QEMU: each costs a fifth of a millisecond or more."""

_SCRIPT = """
import os, sys

def start(*_, **__):
    print(*sys.modules, flush=True)
    os._exit(0)

os.posix_spawn = start
import uvirtio
uvirtio.open("qemu:virtio-rng-pci", roots=uvirtio.Roots.under(sys.argv[1]))
"""


def test_qemu_is_started_before_what_talks_to_it_is_imported(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    loaded = set(done.stdout.split())
    assert "uvirtio.backends.qemu.launch" in loaded
    assert not loaded & {
        "_ctypes",
        "contextlib",
        "ctypes",
        "dataclasses",
        "fnmatch",
        "inspect",
        "json",
        "mmap",
        "pathlib",
        "re",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "subprocess",
        "threading",
        "typing",
        "uvirtio.backends.qemu.machine",
        "uvirtio.backends.qemu.qtest",
        "uvirtio.device.core",
        "uvirtio.host.names",
        "uvirtio.memory.access",
        "uvirtio.spec.features",
        "uvirtio.spec.pci",
    }
    ours = {name for name in loaded if name.partition(".")[0] == "uvirtio"}
    assert len(ours) <= MOST_MODULES, sorted(ours)
