"""Limits of the process (setrlimit(2)), lowered for a whole command: each is named, and none ends as a bug."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

CASES = [
    *(("NOFILE", value, "n") for value in (24, 48)),
    *(("FSIZE", value, "f") for value in (1 << 24,)),
    *(("AS", value, "v") for value in (3 << 29,)),
    ("NPROC", 1, "u"),
    ("MEMLOCK", 0, ""),
]
"""The limit, its value, and the option of ulimit that the remedy names; empty: QEMU's devices need none of it."""


def _holds(limit: int, value: int) -> bool:
    """Whether no thread can be started below this limit."""
    start = "import _thread; _thread.start_new_thread(int, ())"
    tried = subprocess.run(
        [sys.executable, "-c", start],
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
    )
    return tried.returncode != 0


@pytest.mark.parametrize(("name", "value", "option"), CASES, ids=lambda one: str(one))
def test_a_limit_is_named_with_its_remedy_and_never_a_bug(name: str, value: int, option: str) -> None:
    limit = getattr(resource, f"RLIMIT_{name}")
    if name == "NPROC" and not _holds(limit, value):
        pytest.skip("root, also as another user of its own namespace, may start as many threads as it likes")
    words = ["balloon", "inflate", "qemu:virtio-balloon-pci", "1M", "--hold", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "uvirtio", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
    )
    assert "UV-BUG" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    if not option:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 4, done.stderr
    assert "UV-ENV-LIMIT" in done.stderr and f"RLIMIT_{name} {value}" in done.stderr, done.stderr
    assert f"ulimit -{option} " in done.stderr, done.stderr
